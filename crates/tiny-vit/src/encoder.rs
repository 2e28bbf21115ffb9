use crate::{
    AttentionStage, BlockConfig, ConvBn, ConvBnConfig, ConvStage, MbConv, PatchMerging, Stage,
    TinyVitPart,
};
use burn::config::Config;
use burn::module::Module;
use burn::tensor::{Device, FloatDType, Tensor};
use sam_lst_sam_nn::{Neck, NeckConfig, forward_with_taps, gelu, round_weights};

/// Configuration of [`TinyVit`]. The published encoders are [`lite_medsam`](Self::lite_medsam) and
/// [`mobile_sam`](Self::mobile_sam).
#[derive(Config, Debug, PartialEq)]
pub struct TinyVitConfig {
    /// Stride of the patch embedding: 1 or 4.
    pub patch_stride: usize,
    /// Width of each stage.
    pub embed_dims: [usize; 4],
    /// Number of blocks of each stage.
    pub depths: [usize; 4],
    /// Number of attention heads of the second to the fourth stage; each divides the stage's width.
    pub num_heads: [usize; 3],
    /// Side of an attention window in tokens, for the second to the fourth stage.
    pub window_sizes: [usize; 3],
    /// Stride of the reduction after the first, the second and the third stage.
    #[config(default = "[2, 2, 1]")]
    pub strides: [usize; 3],
    /// Hidden width of a block's MLP and of an inverted residual block, as a multiple of the
    /// stage's width.
    #[config(default = 4)]
    pub expand_ratio: usize,
    /// Channels of the image embedding, the output of the neck.
    #[config(default = 256)]
    pub out_channels: usize,
}

impl TinyVitConfig {
    /// LiteMedSAM's encoder: 5.7 M parameters, trained at 256 x 256 pixels, an embedding at a
    /// quarter of the input's resolution.
    pub fn lite_medsam() -> Self {
        Self::new(1, [64, 128, 160, 320], [2, 2, 6, 2], [4, 5, 10], [7, 14, 7])
    }

    /// MobileSAM's encoder: 6.1 M parameters, trained at 1024 x 1024 pixels, an embedding at a
    /// sixteenth of the input's resolution, as SAM's.
    pub fn mobile_sam() -> Self {
        Self { patch_stride: 4, ..Self::lite_medsam() }
    }

    /// A small model for tests. It has every kind of layer at a thousandth of the cost; there are
    /// no published weights for it.
    pub fn tiny() -> Self {
        Self::new(1, [8, 16, 24, 32], [1, 1, 2, 1], [2, 3, 4], [3, 5, 3]).with_out_channels(64)
    }

    /// Input pixels along one side of a pixel of the embedding.
    pub fn stride(&self) -> usize {
        self.patch_stride * self.strides.iter().product::<usize>()
    }

    /// Input pixels along one side of a pixel of a stage's features.
    ///
    /// # Panics
    ///
    /// If `stage` is not 0, 1, 2 or 3.
    pub fn stage_stride(&self, stage: usize) -> usize {
        assert!(stage < self.depths.len(), "stages 0 to 3, not {stage}");
        self.patch_stride * self.strides[..stage].iter().product::<usize>()
    }

    /// Creates the encoder with random weights, split before a stage, from 1: the first part maps
    /// images to the input of that stage, the second that input to image embeddings.
    ///
    /// # Panics
    ///
    /// As [`init`](Self::init), and if the stage is not 1, 2 or 3.
    pub fn init_split(&self, stage: usize, device: &Device) -> [TinyVitPart; 2] {
        assert!((1..4).contains(&stage), "split before stage 1, 2 or 3, not {stage}");
        self.init(device).split_before(stage, self.embed_dims[stage], self.stage_stride(stage))
    }

    /// Creates the encoder with random weights.
    ///
    /// # Panics
    ///
    /// If `patch_stride` is neither 1 nor 4, a stride or a window size is zero, a stage has no
    /// blocks, or a number of heads does not divide its stage's width.
    pub fn init(&self, device: &Device) -> TinyVit {
        assert!(
            self.depths.iter().all(|&depth| depth > 0),
            "each stage must have at least one block, found {:?}",
            self.depths
        );
        assert!(
            self.strides.iter().all(|&stride| stride > 0),
            "strides must be positive, found {:?}",
            self.strides
        );
        let downsample = |stage: usize| {
            let stride = self.strides.get(stage)?;
            let channels = [self.embed_dims[stage], self.embed_dims[stage + 1]];
            Some(PatchMerging::init(channels, *stride, device))
        };
        let convolutions = Stage::Conv(ConvStage {
            blocks: (0..self.depths[0])
                .map(|_| MbConv::init(self.embed_dims[0], self.expand_ratio, device))
                .collect(),
            downsample: downsample(0),
        });
        let attention = (1..4).map(|stage| {
            let block = BlockConfig::new(
                self.embed_dims[stage],
                self.num_heads[stage - 1],
                self.window_sizes[stage - 1],
                self.expand_ratio,
            );
            Stage::Attention(AttentionStage {
                blocks: (0..self.depths[stage]).map(|_| block.init(device)).collect(),
                downsample: downsample(stage),
            })
        });
        TinyVit {
            patch_embed: PatchEmbed::init(self.embed_dims[0], self.patch_stride, device),
            layers: std::iter::once(convolutions).chain(attention).collect(),
            neck: NeckConfig::new(self.embed_dims[3], self.out_channels).init(device),
            stride: self.stride(),
        }
    }
}

/// TinyViT with SAM's neck.
#[derive(Module, Debug)]
pub struct TinyVit {
    /// Projects pixels or patches to the first stage's width.
    pub patch_embed: PatchEmbed,
    /// The four stages.
    pub layers: Vec<Stage>,
    /// Projects the last stage's tokens to the image embedding.
    pub neck: Neck,
    stride: usize,
}

impl TinyVit {
    /// Input pixels along one side of a pixel of the embedding.
    pub fn stride(&self) -> usize {
        self.stride
    }

    /// Rounds the weights of linear layers and convolutions to `dtype`. These layers and attention
    /// then compute in `dtype`; norms, attention biases and the residual stream remain in 32 bits.
    pub fn with_precision(self, dtype: FloatDType) -> Self {
        round_weights(self, dtype, &["attention_biases"])
    }

    /// Encodes images. Pixel values are not normalised; the caller scales them.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - output: `[B, out_channels, S / stride, S / stride]`
    ///
    /// # Panics
    ///
    /// If the image is not square, does not have 3 channels, or its side is not a positive multiple
    /// of the encoder's stride.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        self.forward_with_taps(image, &[]).0
    }

    /// As [`forward`](Self::forward), and also returns the features of some stages before their
    /// grid is reduced, in the order of `stages`.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - outputs: `[B, out_channels, S / stride, S / stride]`, and of each stage `[B, G, G, C]`, where
    ///   `C` is the stage's width and `G` is `S` divided by [`TinyVitConfig::stage_stride`]
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward), and if an index in `stages` is out of range or `stages` is not
    /// in increasing order.
    pub fn forward_with_taps(
        &self,
        image: Tensor<4>,
        stages: &[usize],
    ) -> (Tensor<4>, Vec<Tensor<4>>) {
        let [_, channels, height, width] = image.dims();
        assert!(
            channels == 3 && height == width && height > 0 && height.is_multiple_of(self.stride),
            "TinyVit expects an image [B, 3, S, S] whose side S is a positive multiple of {}, found \
             {:?}",
            self.stride,
            image.dims()
        );
        let tokens = self.patch_embed.forward(image.permute([0, 2, 3, 1]));
        // The last stage has no reduction, so its features are its output.
        let reduce = |stage: Option<&Stage>, tokens| match stage {
            Some(stage) => stage.reduce(tokens),
            None => tokens,
        };
        let previous = std::iter::once(None).chain(self.layers.iter().map(Some));
        let layers = previous.zip(&self.layers);
        let (tokens, taps) = forward_with_taps(tokens, layers, stages, |(previous, stage), x| {
            stage.blocks(reduce(previous, x))
        });
        (self.neck.forward(tokens), taps)
    }
}

/// Two convolutions that project an image to the first stage's width: 1 x 1 (stride 1 in all) or
/// 3 x 3 with stride 2 (stride 4 in all).
#[derive(Module, Debug)]
pub struct PatchEmbed {
    /// First convolution, to half of the width.
    pub conv1: ConvBn,
    /// Second convolution.
    pub conv2: ConvBn,
}

impl PatchEmbed {
    /// Creates the layers with random weights.
    ///
    /// # Panics
    ///
    /// If `stride` is neither 1 nor 4.
    pub fn init(width: usize, stride: usize, device: &Device) -> Self {
        let [kernel, stride] = match stride {
            1 => [1, 1],
            4 => [3, 2],
            _ => panic!("patch_stride must be 1 or 4, found {stride}"),
        };
        let conv = |channels| {
            ConvBnConfig::new(channels).with_kernel(kernel).with_stride(stride).init(device)
        };
        Self { conv1: conv([3, width / 2]), conv2: conv([width / 2, width]) }
    }

    /// Applies the layers.
    ///
    /// # Shapes
    ///
    /// - image: `[B, S, S, 3]`
    /// - output: `[B, S / stride, S / stride, C]`
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        self.conv2.forward(gelu(self.conv1.forward(image)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::{Distribution, Tolerance};

    #[test]
    fn published_encoders_have_the_published_parameter_counts() {
        // Counted in the published code, without the classifier's head. A batch norm has two
        // parameters for each channel; folded, it leaves one bias for each of the 4,928 channels.
        for (config, parameters) in [
            (TinyVitConfig::lite_medsam(), 5_726_740 - 4_928),
            (TinyVitConfig::mobile_sam(), 5_743_892 - 4_928),
        ] {
            assert_eq!(config.init(&Device::flex()).num_params(), parameters);
        }
    }

    #[test]
    fn kernels_equal_burns_operations_at_sizes_that_need_padding() {
        // No kernel serves a tensor with gradient checkpointing.
        let device = Device::flex().autodiff().gradient_checkpointing();
        for (config, sizes) in [
            (TinyVitConfig::tiny(), [4, 20, 36]),
            (TinyVitConfig { patch_stride: 4, ..TinyVitConfig::tiny() }, [16, 80, 144]),
        ] {
            let encoder = config.init(&device);
            for size in sizes {
                let image = Tensor::random([2, 3, size, size], Distribution::Default, &device);
                let ours = encoder.valid().forward(image.clone().inner());
                let grid = size / config.stride();
                assert_eq!(ours.dims(), [2, 64, grid, grid]);
                let burn = encoder.forward(image).inner();
                ours.into_data()
                    .assert_approx_eq::<f32>(&burn.into_data(), Tolerance::absolute(2e-5));
            }
        }
    }

    #[test]
    #[should_panic(expected = "multiple of 4, found [1, 3, 18, 18]")]
    fn other_input_sizes_panic() {
        let device = Device::flex();
        TinyVitConfig::tiny().init(&device).forward(Tensor::zeros([1, 3, 18, 18], &device));
    }
}

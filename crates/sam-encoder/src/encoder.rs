use crate::{Block, BlockConfig, SamEncoderPart};
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, FloatDType, Tensor};
use sam_lst_sam_nn::{
    Neck, NeckConfig, cast_like, forward_with_taps, matrix_product, resize_bilinear, round_weights,
};

/// Side of a patch in pixels, in every variant of SAM's ViT: one token, and one pixel of the image
/// embedding, for 16 x 16 pixels of the input.
pub const PATCH_SIZE: usize = 16;

/// Configuration of [`SamEncoder`]. The published variants are [`vit_b`](Self::vit_b),
/// [`vit_l`](Self::vit_l) and [`vit_h`](Self::vit_h).
#[derive(Config, Debug, PartialEq)]
pub struct SamEncoderConfig {
    /// Embedding width `C` of a token.
    pub embed_dim: usize,
    /// Number of transformer blocks.
    pub depth: usize,
    /// Number of attention heads; divides `embed_dim`.
    pub num_heads: usize,
    /// Indices of the blocks with global instead of windowed attention.
    pub global_blocks: Vec<usize>,
    /// Side of an attention window in tokens.
    #[config(default = 14)]
    pub window_size: usize,
    /// Hidden width of a block's MLP, as a multiple of `embed_dim`.
    #[config(default = 4)]
    pub mlp_ratio: usize,
    /// Channels of the image embedding, the output of the neck.
    #[config(default = 256)]
    pub out_channels: usize,
    /// Input size in pixels at which the position embeddings were trained.
    #[config(default = 1024)]
    pub pretrained_size: usize,
}

impl SamEncoderConfig {
    /// ViT-B: 89.7 M parameters at its training size. It is the foundation of the published method.
    pub fn vit_b() -> Self {
        Self::new(768, 12, 12, vec![2, 5, 8, 11])
    }

    /// ViT-L.
    pub fn vit_l() -> Self {
        Self::new(1024, 24, 16, vec![5, 11, 17, 23])
    }

    /// ViT-H.
    pub fn vit_h() -> Self {
        Self::new(1280, 32, 16, vec![7, 15, 23, 31])
    }

    /// A small model for tests and demonstrations. It has every kind of layer at a thousandth of
    /// the cost; there are no published weights for it.
    pub fn tiny() -> Self {
        Self::new(32, 4, 2, vec![1, 3])
            .with_window_size(5)
            .with_out_channels(64)
            .with_pretrained_size(128)
    }

    /// Creates the encoder with random weights. Relative position embeddings are initialised to
    /// zero, as in SAM.
    ///
    /// # Panics
    ///
    /// If `num_heads` does not divide `embed_dim`, the index of a global block is not below
    /// `depth`, `pretrained_size` is not a positive multiple of 16, or `window_size` is zero.
    pub fn init(&self, device: &Device) -> SamEncoder {
        assert!(
            self.pretrained_size > 0 && self.pretrained_size.is_multiple_of(PATCH_SIZE),
            "pretrained_size must be a positive multiple of {PATCH_SIZE}, found {}",
            self.pretrained_size
        );
        assert!(self.window_size > 0, "window_size must be positive");
        if let Some(index) = self.global_blocks.iter().find(|&&i| i >= self.depth) {
            panic!("global_blocks contains block {index}, but depth is {}", self.depth);
        }
        let grid = self.pretrained_size / PATCH_SIZE;
        let blocks = (0..self.depth)
            .map(|index| {
                let window_size =
                    (!self.global_blocks.contains(&index)).then_some(self.window_size);
                BlockConfig::new(self.embed_dim, self.num_heads, self.mlp_ratio, grid)
                    .with_window_size(window_size)
                    .init(device)
            })
            .collect();
        let normal = Initializer::Normal { mean: 0.0, std: 0.02 };
        SamEncoder {
            patch_embed: Conv2dConfig::new([3, self.embed_dim], [PATCH_SIZE; 2])
                .with_stride([PATCH_SIZE; 2])
                .init(device),
            pos_embed: normal.init([1, grid, grid, self.embed_dim], device),
            blocks,
            neck: NeckConfig::new(self.embed_dim, self.out_channels).init(device),
        }
    }
}

/// SAM's image encoder, the frozen foundation of ladder side-tuning.
#[derive(Module, Debug)]
pub struct SamEncoder {
    /// 16 x 16 convolution that projects each patch to a token.
    pub patch_embed: Conv2d,
    /// Absolute position embeddings `[1, G0, G0, C]`, for the grid size `G0` at which they were
    /// trained.
    pub pos_embed: Param<Tensor<4>>,
    /// Transformer blocks.
    pub blocks: Vec<Block>,
    /// Projects the tokens to the image embedding.
    pub neck: Neck,
}

impl SamEncoder {
    /// Rounds the weights of linear layers and convolutions to `dtype`. These layers and attention
    /// then compute in `dtype`; norms, position embeddings and the residual stream remain in 32
    /// bits.
    pub fn with_precision(self, dtype: FloatDType) -> Self {
        round_weights(self, dtype, &["pos_embed", "rel_pos_h", "rel_pos_w"])
    }

    /// Encodes images. Pixel values are not normalised; the caller scales them.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - output: `[B, out_channels, S / 16, S / 16]`
    ///
    /// # Panics
    ///
    /// If the image is not square, does not have 3 channels, or its side is not a positive multiple
    /// of 16.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        self.forward_with_taps(image, &[]).0
    }

    /// As [`forward`](Self::forward), and also returns the outputs of some blocks, in the order of
    /// `blocks`.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - outputs: `[B, out_channels, S / 16, S / 16]`, and of each block `[B, S / 16, S / 16, C]`
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward), and if an index in `blocks` is out of range or `blocks` is not
    /// in increasing order.
    pub fn forward_with_taps(
        &self,
        image: Tensor<4>,
        blocks: &[usize],
    ) -> (Tensor<4>, Vec<Tensor<4>>) {
        let layers = self.blocks.iter();
        let (tokens, taps) =
            forward_with_taps(self.embed(image), layers, blocks, |block, x| block.forward(x));
        (self.neck.forward(tokens), taps)
    }

    /// Splits the encoder before a block: the first part maps images to the input of that block, the
    /// second that input to image embeddings.
    ///
    /// # Panics
    ///
    /// If there are fewer than `block` blocks.
    pub fn split(self, block: usize) -> [SamEncoderPart; 2] {
        let Self { patch_embed, pos_embed, blocks, neck } = self;
        assert!(block <= blocks.len(), "split before block {block} of {}", blocks.len());
        let width = patch_embed.weight.dims()[0];
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (index, found) in blocks.into_iter().enumerate() {
            let (found_first, found_second) =
                if index < block { (Some(found), None) } else { (None, Some(found)) };
            first.push(found_first);
            second.push(found_second);
        }
        first.truncate(block);
        [
            SamEncoderPart {
                patch_embed: Some(patch_embed),
                pos_embed: Some(pos_embed),
                blocks: first,
                neck: None,
                width,
            },
            SamEncoderPart {
                patch_embed: None,
                pos_embed: None,
                blocks: second,
                neck: Some(neck),
                width,
            },
        ]
    }

    /// Projects patches to tokens and adds the absolute position embeddings: the input of the first
    /// block.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - output: `[B, S / 16, S / 16, C]`
    ///
    /// # Panics
    ///
    /// As [`forward`](Self::forward).
    pub fn embed(&self, image: Tensor<4>) -> Tensor<4> {
        add_positions(patches(&self.patch_embed, image), &self.pos_embed)
    }
}

/// Adds absolute position embeddings, resized to the grid of the tokens `[B, G, G, C]`.
pub(crate) fn add_positions(tokens: Tensor<4>, positions: &Param<Tensor<4>>) -> Tensor<4> {
    let [_, grid, _, _] = tokens.dims();
    let positions = positions.val();
    let positions = if positions.dims()[1] == grid {
        positions
    } else {
        let channels_first = positions.permute([0, 3, 1, 2]); // [1, C, G0, G0]
        resize_bilinear(channels_first, [grid, grid]).permute([0, 2, 3, 1]) // [1, G, G, C]
    };
    tokens + positions
}

/// The patch convolution, `[B, 3, S, S]` to `[B, S / 16, S / 16, C]`. Its windows do not overlap, so
/// it is a single product of patches and weights.
pub(crate) fn patches(convolution: &Conv2d, image: Tensor<4>) -> Tensor<4> {
    let [batch, channels, height, width] = image.dims();
    assert!(
        channels == 3 && height == width && height > 0 && height.is_multiple_of(PATCH_SIZE),
        "SamEncoder expects an image [B, 3, S, S] whose side S is a positive multiple of \
         {PATCH_SIZE}, found {:?}",
        image.dims()
    );
    let grid = height / PATCH_SIZE;
    let values = channels * PATCH_SIZE * PATCH_SIZE;
    let patches = image
        .reshape([batch, channels, grid, PATCH_SIZE, grid, PATCH_SIZE])
        .permute([0, 2, 4, 1, 3, 5]) // [B, G, G, 3, 16, 16]
        .reshape([batch * grid * grid, values]);
    let dtype = FloatDType::from(patches.dtype());
    let patches = cast_like(patches, &convolution.weight);
    let weight = convolution.weight.val(); // [C, 3, 16, 16]
    let [width, ..] = weight.dims();
    let weight = weight.reshape([width, values]).transpose();
    let bias = convolution.bias.as_ref().map(|bias| bias.val());
    let tokens = matrix_product(patches, weight, bias);
    tokens.reshape([batch, grid, grid, width]).cast(dtype)
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::tensor::Distribution;

    #[test]
    fn published_variants_have_the_published_parameter_counts() {
        // Counted in the state dict of segment-anything's `image_encoder`.
        for (config, parameters) in [
            (SamEncoderConfig::vit_b(), 89_670_912),
            (SamEncoderConfig::vit_l(), 308_278_272),
            (SamEncoderConfig::vit_h(), 637_026_048),
        ] {
            assert_eq!(config.init(&Device::flex()).num_params(), parameters);
        }
    }

    #[test]
    fn any_multiple_of_the_patch_size_is_encoded() {
        let device = Device::flex();
        let encoder = SamEncoderConfig::tiny().init(&device);
        for size in [16, 80, 128, 208] {
            let image = Tensor::random([1, 3, size, size], Distribution::Default, &device);
            assert_eq!(
                encoder.forward(image).dims(),
                [1, 64, size / PATCH_SIZE, size / PATCH_SIZE]
            );
        }
    }

    #[test]
    #[should_panic(expected = "multiple of 16, found [1, 3, 100, 100]")]
    fn other_input_sizes_panic() {
        let device = Device::flex();
        let encoder = SamEncoderConfig::tiny().init(&device);
        encoder.forward(Tensor::zeros([1, 3, 100, 100], &device));
    }

    #[test]
    #[should_panic(expected = "global_blocks contains block 4, but depth is 4")]
    fn global_block_beyond_the_depth_panics() {
        SamEncoderConfig::new(8, 4, 2, vec![4]).init(&Device::flex());
    }
}

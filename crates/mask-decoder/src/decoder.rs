use crate::transformer::{SAM_DEPTH, SAM_MLP_DIM, SAM_NUM_HEADS};
use crate::{PromptEmbeddings, TwoWayTransformer, TwoWayTransformerConfig};
use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{ConvTranspose2d, ConvTranspose2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{
    LayerNorm2d, LayerNorm2dConfig, gelu, linear, resize_bilinear, upsample, upsample_channels_last,
};

/// Which parameters of the mask decoder are trained. The IoU head is never trained, because no loss
/// on masks depends on it.
#[derive(Config, Debug, Copy, PartialEq, Eq, Hash)]
pub enum DecoderTuning {
    /// Only `output_upscaling`, the published setting: 73,952 parameters at SAM's size.
    Upscaling,
    /// Additionally everything that depends on the number of masks: the mask tokens and their
    /// hypernetworks.
    UpscalingAndHeads,
    /// Everything that the masks depend on, including the transformer and both kinds of tokens.
    Full,
}

/// Configuration of [`MaskDecoder`].
#[derive(Config, Debug, PartialEq)]
pub struct MaskDecoderConfig {
    /// Number of masks `K`; for semantic classes, this includes the background. The original SAM
    /// has 4.
    pub num_masks: usize,
    /// Embedding width `C`; a multiple of 8.
    #[config(default = 256)]
    pub embed_dim: usize,
    /// Number of blocks of the two-way transformer; 2 in SAM.
    #[config(default = "SAM_DEPTH")]
    pub depth: usize,
    /// Number of attention heads of the two-way transformer; 8 in SAM.
    #[config(default = "SAM_NUM_HEADS")]
    pub num_heads: usize,
    /// Hidden width of the two-way transformer's MLPs; 2048 in SAM.
    #[config(default = "SAM_MLP_DIM")]
    pub mlp_dim: usize,
    /// Hidden width of the IoU head.
    #[config(default = 256)]
    pub iou_hidden_dim: usize,
}

/// SAM's mask decoder.
#[derive(Module, Debug)]
pub struct MaskDecoder {
    /// Attention between tokens and image in both directions.
    pub transformer: TwoWayTransformer,
    /// Token from which the quality of the masks is predicted, `[1, C]`.
    pub iou_token: Param<Tensor<2>>,
    /// One token per mask, `[K, C]`.
    pub mask_tokens: Param<Tensor<2>>,
    /// Upscales the image embedding by 4.
    pub output_upscaling: OutputUpscaling,
    /// One hypernetwork per mask. It predicts, from the mask's token, the weights of the linear
    /// layer that computes the mask.
    pub output_hypernetworks_mlps: Vec<Mlp>,
    /// Predicts the quality of each mask.
    pub iou_prediction_head: Mlp,
}

/// The output of the decoder.
#[derive(Debug, Clone)]
pub struct MaskPrediction {
    /// Low-resolution logits `[B, K, 4 G, 4 G]`.
    pub logits: Tensor<4>,
    /// Predicted intersection over union of each mask, `[B, K]`.
    pub iou: Tensor<2>,
}

impl MaskPrediction {
    /// The output of the original SAM with `multimask_output = true`: all masks except the first,
    /// for ambiguous prompts.
    pub fn multiple(self) -> Self {
        let [_, count] = self.iou.dims();
        self.select(1..count)
    }

    /// The output of the original SAM with `multimask_output = false`: the first mask.
    pub fn single(self) -> Self {
        self.select(0..1)
    }

    /// The logits resized to the input's size, bilinearly with half-pixel centres.
    ///
    /// # Shapes
    ///
    /// - output: `[B, K, size_px, size_px]`
    pub fn full_size(&self, size_px: usize) -> Tensor<4> {
        resize_bilinear(self.logits.clone(), [size_px, size_px])
    }

    fn select(self, range: std::ops::Range<usize>) -> Self {
        let [batch, _] = self.iou.dims();
        Self {
            logits: self.logits.slice([0..batch, range.clone()]),
            iou: self.iou.slice([0..batch, range]),
        }
    }
}

impl MaskDecoderConfig {
    /// Creates the decoder with random weights from the same distributions as in SAM.
    ///
    /// # Panics
    ///
    /// If `num_masks` is zero, `embed_dim` is not a multiple of 8, or `num_heads` does not divide
    /// half of `embed_dim`.
    pub fn init(&self, device: &Device) -> MaskDecoder {
        assert!(self.num_masks > 0, "num_masks must be at least 1, found 0");
        assert!(
            self.embed_dim.is_multiple_of(8),
            "embed_dim must be a multiple of 8, found {}",
            self.embed_dim
        );
        let normal = Initializer::Normal { mean: 0.0, std: 1.0 };
        let width = self.embed_dim;
        MaskDecoder {
            transformer: TwoWayTransformerConfig::of_decoder(self).init(device),
            iou_token: normal.init([1, width], device),
            mask_tokens: normal.init([self.num_masks, width], device),
            output_upscaling: OutputUpscalingConfig::new(width).init(device),
            output_hypernetworks_mlps: (0..self.num_masks)
                .map(|_| MlpConfig::new([width, width, width, width / 8]).init(device))
                .collect(),
            iou_prediction_head: MlpConfig::new([
                width,
                self.iou_hidden_dim,
                self.iou_hidden_dim,
                self.num_masks,
            ])
            .init(device),
        }
    }
}

impl MaskDecoder {
    /// Makes the parameters selected by `tuning` require gradients, and freezes all others.
    pub fn with_tuning(self, tuning: DecoderTuning) -> Self {
        let heads = tuning != DecoderTuning::Upscaling;
        let full = tuning == DecoderTuning::Full;
        Self {
            transformer: self.transformer.set_require_grad(full),
            iou_token: self.iou_token.set_require_grad(full),
            mask_tokens: self.mask_tokens.set_require_grad(heads),
            output_upscaling: self.output_upscaling.set_require_grad(true),
            output_hypernetworks_mlps: self.output_hypernetworks_mlps.set_require_grad(heads),
            iou_prediction_head: self.iou_prediction_head.no_grad(),
        }
    }

    /// Predicts one mask per mask token.
    ///
    /// Image embeddings and prompts must have the same batch size or batch size 1; those with batch
    /// size 1 are used for the whole batch.
    ///
    /// # Shapes
    ///
    /// - image: `[B, C, G, G]`
    /// - image_positions: `[1, C, G, G]`,
    ///   [`PromptEncoder::image_positions`](crate::PromptEncoder::image_positions)
    /// - prompts: encoded for the same grid
    /// - logits: `[B, K, 4 G, 4 G]`, iou: `[B, K]`
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(
        &self,
        image: Tensor<4>,
        image_positions: Tensor<4>,
        prompts: PromptEmbeddings,
    ) -> MaskPrediction {
        let [images, width, height, grid] = image.dims();
        let [dense, ..] = prompts.dense.dims();
        let sparse = prompts.sparse.as_ref().map_or(1, |sparse| sparse.dims()[0]);
        let batch = images.max(dense).max(sparse);
        for (name, count) in [
            ("image embeddings", images),
            ("mask prompts", dense),
            ("point and box prompts", sparse),
        ] {
            assert!(
                count == batch || count == 1,
                "{name} have batch size {count}, expected 1 or {batch}"
            );
        }

        // The decoder's own tokens are the same for every image, so they are expanded over the
        // batch.
        let tokens: Tensor<2> = Tensor::cat(vec![self.iou_token.val(), self.mask_tokens.val()], 0);
        let [own_tokens, _] = tokens.dims();
        let tokens = tokens.unsqueeze::<3>().expand([batch, own_tokens, width]);
        let tokens = match prompts.sparse {
            Some(sparse) => {
                let [_, count, _] = sparse.dims();
                Tensor::cat(vec![tokens, sparse.expand([batch, count, width])], 1)
            }
            None => tokens,
        }; // [B, T, C]

        // Nothing is copied where channels are last in memory, as the side network leaves them.
        let flat = |image: Tensor<4>| {
            let [images, ..] = image.dims();
            image.permute([0, 2, 3, 1]).reshape([images, height * grid, width]) // [B, P, C]
        };
        let image = (flat(image) + flat(prompts.dense)).expand([batch, height * grid, width]);
        let (tokens, image) = self.transformer.forward(image, flat(image_positions), tokens);

        let token = |index: usize| {
            tokens.clone().slice([0..batch, index..index + 1]).squeeze_dim::<2>(1) // [B, C]
        };
        let weights = self
            .output_hypernetworks_mlps
            .iter()
            .enumerate()
            .map(|(mask, mlp)| mlp.forward(token(1 + mask)))
            .collect();
        let weights: Tensor<3> = Tensor::stack(weights, 1); // [B, K, C / 8]
        let logits = self.masks(image, weights, [height, grid]);
        MaskPrediction { logits, iou: self.iou_prediction_head.forward(token(0)) }
    }

    /// Upscales the image and computes the product of each pixel with the weights of each mask.
    ///
    /// # Shapes
    ///
    /// - image: `[B, P, C]`, of `height * width` pixels
    /// - weights: `[B, K, C / 8]`
    /// - output: `[B, K, 4 height, 4 width]`
    fn masks(
        &self,
        image: Tensor<3>,
        weights: Tensor<3>,
        [height, width]: [usize; 2],
    ) -> Tensor<4> {
        let [batch, _, channels] = image.dims();
        let [_, masks, _] = weights.dims();
        let logits: Tensor<3> = if sam_lst_cpu_kernels::is_supported(&image) {
            let image = image.reshape([batch, height, width, channels]);
            let upscaled = self.output_upscaling.forward_channels_last(image);
            let [_, upscaled_height, upscaled_width, channels] = upscaled.dims();
            let upscaled = upscaled.reshape([batch, upscaled_height * upscaled_width, channels]);
            sam_lst_cpu_kernels::linear_by_image(upscaled, weights).swap_dims(1, 2)
        } else {
            let image = image.swap_dims(1, 2);
            let image = image.reshape([batch, channels, height, width]);
            let upscaled = self.output_upscaling.forward_channels_first(image);
            weights.matmul(upscaled.flatten(2, 3))
        }; // [B, K, 16 P]
        logits.reshape([batch, masks, 4 * height, 4 * width])
    }
}

/// Configuration of [`OutputUpscaling`].
#[derive(Config, Debug)]
pub struct OutputUpscalingConfig {
    /// Embedding width `C`; a multiple of 8.
    pub embed_dim: usize,
}

/// Upscales the image embedding by 4: two 2 x 2 transposed convolutions with stride 2, each
/// followed by GELU, with a norm before the first GELU.
#[derive(Module, Debug)]
pub struct OutputUpscaling {
    /// Upscales by 2, `C -> C / 4`.
    pub conv1: ConvTranspose2d,
    /// Norm after the first convolution.
    pub norm: LayerNorm2d,
    /// Upscales by 2, `C / 4 -> C / 8`.
    pub conv2: ConvTranspose2d,
}

impl OutputUpscalingConfig {
    /// Creates the layers with random weights.
    pub fn init(&self, device: &Device) -> OutputUpscaling {
        let upsampling = |channels| {
            ConvTranspose2dConfig::new(channels, [2, 2]).with_stride([2, 2]).init(device)
        };
        let width = self.embed_dim;
        OutputUpscaling {
            conv1: upsampling([width, width / 4]),
            norm: LayerNorm2dConfig::new(width / 4).init(device),
            conv2: upsampling([width / 4, width / 8]),
        }
    }
}

impl OutputUpscaling {
    /// Upscales an image embedding.
    ///
    /// # Shapes
    ///
    /// - image: `[B, C, G, G]`
    /// - output: `[B, C / 8, 4 G, 4 G]`
    ///
    /// # Panics
    ///
    /// If the second axis of `image` is not `C`.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        if !sam_lst_cpu_kernels::is_supported(&image) {
            return self.forward_channels_first(image);
        }
        let channels_last = image.permute([0, 2, 3, 1]);
        self.forward_channels_last(channels_last).permute([0, 3, 1, 2])
    }

    fn forward_channels_first(&self, image: Tensor<4>) -> Tensor<4> {
        let image = gelu(self.norm.forward(upsample(&self.conv1, image))); // [B, C / 4, 2 G, 2 G]
        gelu(upsample(&self.conv2, image))
    }

    /// [`forward`](Self::forward) on a channels-last tensor for which
    /// [`sam_lst_cpu_kernels::is_supported`] is true, `[B, G, G, C]` to `[B, 4 G, 4 G, C / 8]`.
    fn forward_channels_last(&self, image: Tensor<4>) -> Tensor<4> {
        let image = upsample_channels_last(&self.conv1, image); // [B, 2 G, 2 G, C / 4]
        let image = gelu(self.norm.forward_channels_last(image));
        gelu(upsample_channels_last(&self.conv2, image))
    }
}

/// Configuration of [`Mlp`].
#[derive(Config, Debug)]
pub struct MlpConfig {
    /// Widths of the input, the two hidden layers and the output.
    pub widths: [usize; 4],
}

/// Three linear layers with ReLU between them, SAM's `MLP`: the hypernetworks and the IoU head.
#[derive(Module, Debug)]
pub struct Mlp {
    /// The linear layers.
    pub layers: Vec<Linear>,
}

impl MlpConfig {
    /// Creates the layers with random weights.
    pub fn init(&self, device: &Device) -> Mlp {
        Mlp {
            layers: self
                .widths
                .windows(2)
                .map(|pair| LinearConfig::new(pair[0], pair[1]).init(device))
                .collect(),
        }
    }
}

impl Mlp {
    /// Applies the layers.
    ///
    /// # Shapes
    ///
    /// - input: `[B, first width]`
    /// - output: `[B, last width]`
    ///
    /// # Panics
    ///
    /// If the last axis of `input` is not the first width.
    pub fn forward(&self, input: Tensor<2>) -> Tensor<2> {
        let last = self.layers.len() - 1;
        self.layers.iter().enumerate().fold(input, |features, (index, layer)| {
            let features = linear(layer, features);
            if index < last { relu(features) } else { features }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{PromptEncoderConfig, Prompts};
    use burn::tensor::{Distribution, Gradients, TensorData, Tolerance};

    fn tiny(num_masks: usize) -> MaskDecoderConfig {
        MaskDecoderConfig::new(num_masks).with_embed_dim(16).with_num_heads(2).with_mlp_dim(32)
    }

    #[test]
    fn supports_any_batch_size_number_of_masks_and_grid() {
        let device = Device::flex();
        let prompts = PromptEncoderConfig::new().with_embed_dim(16).init(&device);
        for (batch, masks, grid) in [(1, 1, 3), (3, 9, 4), (2, 30, 1)] {
            let prediction = tiny(masks).init(&device).forward(
                Tensor::ones([batch, 16, grid, grid], &device),
                prompts.image_positions(grid),
                prompts.forward(&Prompts::default(), grid),
            );
            assert_eq!(prediction.logits.dims(), [batch, masks, 4 * grid, 4 * grid]);
            assert_eq!(prediction.iou.dims(), [batch, masks]);
        }
    }

    #[test]
    fn channels_last_equals_channels_first() {
        let device = Device::flex().autodiff();
        let upscaling = OutputUpscalingConfig::new(16).init(&device);
        let normal = Distribution::Normal(0.0, 1.0);
        let image = Tensor::<4>::random([2, 16, 3, 5], normal, &device).require_grad();
        let channels_last = image.clone().permute([0, 2, 3, 1]);
        let ours = upscaling.forward_channels_last(channels_last).permute([0, 3, 1, 2]);
        let theirs = upscaling.forward_channels_first(image.clone());
        assert_eq!(theirs.dims(), [2, 2, 12, 20]);
        let weight = Tensor::<4>::random([2, 2, 12, 20], normal, &device);
        let score = |output: Tensor<4>| (output * weight.clone()).sum().backward();
        let (found, expected) = (score(ours.clone()), score(theirs.clone()));
        let close = |ours: TensorData, theirs: TensorData| {
            // Random weights give sums of any size, whose rounding is as large.
            let largest = theirs.iter::<f32>().fold(1.0, |largest, value| value.abs().max(largest));
            ours.assert_approx_eq::<f32>(&theirs, Tolerance::absolute(2e-5 * largest));
        };
        close(ours.into_data(), theirs.into_data());
        macro_rules! close_gradients {
            ($($tensor:expr),*) => {$(
                let grad = |gradients: &Gradients| {
                    $tensor.grad(gradients).expect("requires a gradient").into_data()
                };
                close(grad(&found), grad(&expected));
            )*};
        }
        let OutputUpscaling { conv1, norm, conv2 } = &upscaling;
        close_gradients!(
            image,
            conv1.weight.val(),
            conv1.bias.as_ref().expect("has a bias").val(),
            norm.weight.val(),
            norm.bias.val(),
            conv2.weight.val(),
            conv2.bias.as_ref().expect("has a bias").val()
        );
    }

    #[test]
    #[should_panic(expected = "num_masks must be at least 1, found 0")]
    fn zero_masks_panics() {
        tiny(0).init(&Device::flex());
    }

    #[test]
    #[should_panic(expected = "image embeddings have batch size 2, expected 1 or 3")]
    fn mismatched_batch_sizes_panic() {
        let device = Device::flex();
        let prompts = PromptEncoderConfig::new().with_embed_dim(16).init(&device);
        let boxes = Some(Tensor::zeros([3, 4], &device));
        let prompt = prompts.forward(&Prompts { boxes, ..Prompts::default() }, 2);
        tiny(2).init(&device).forward(
            Tensor::ones([2, 16, 2, 2], &device),
            prompts.image_positions(2),
            prompt,
        );
    }
}

use super::error::require;
use super::{ConfigError, InvalidSetting};
use burn::config::Config;
use burn::tensor::Tensor;
use sam_lst_gated_fusion::Fusion;
use sam_lst_mask_decoder::{DecoderTuning, MaskDecoderConfig, PromptEncoderConfig};
use sam_lst_resnet_side::ResNetSideConfig;
use sam_lst_sam_encoder::{PATCH_SIZE, SamEncoderConfig};

/// Normalisation of the pixels, from `[0, 1]`, for SAM and the side network.
#[derive(Config, Debug, Copy, PartialEq, Eq, Hash)]
pub enum PixelScale {
    /// No normalisation (mean 0, standard deviation 1), as in the authors' code.
    Unit,
    /// SAM's mean and standard deviation of each colour channel.
    Sam,
}

impl PixelScale {
    /// Normalises images.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - output: `[B, 3, S, S]`
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels and the scale is [`Self::Sam`].
    pub fn apply(self, image: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Unit => image,
            Self::Sam => {
                let device = image.device().inner();
                let per_channel = |values: [f32; 3]| {
                    Tensor::<1>::from_floats(values, &device).reshape([1, 3, 1, 1]) / 255.0
                };
                let mean = per_channel([123.675, 116.28, 103.53]);
                let std = per_channel([58.395, 57.12, 57.375]);
                (image - mean) / std
            }
        }
    }
}

/// The side network, which runs in parallel with the foundation.
#[derive(Config, Debug, PartialEq)]
pub enum SideConfig {
    /// A ResNet up to `layer3`.
    ResNet(ResNetSideConfig),
    /// A custom side network, identified in checkpoints by this name.
    Custom(String),
}

/// Configuration of [`SamLst`](crate::SamLst). Start from a preset:
///
/// ```
/// use sam_lst::{DecoderTuning, SamLstConfig};
///
/// let config = SamLstConfig::vit_b(9).with_tuning(DecoderTuning::UpscalingAndHeads);
/// ```
#[derive(Config, Debug, PartialEq)]
pub struct SamLstConfig {
    /// The foundation, SAM's image encoder.
    pub encoder: SamEncoderConfig,
    /// The mask decoder. Its `num_masks` is the number of classes `K`, including the background.
    pub decoder: MaskDecoderConfig,
    /// The side network.
    #[config(default = "SideConfig::ResNet(ResNetSideConfig::resnet18())")]
    pub side: SideConfig,
    /// Which image embedding the decoder receives: the published method, or an ablation of the
    /// paper's Table II.
    #[config(default = "Fusion::Gated")]
    pub fusion: Fusion,
    /// Which parameters of the decoder are trained.
    #[config(default = "DecoderTuning::Upscaling")]
    pub tuning: DecoderTuning,
    /// Side `S` of the input in pixels; a multiple of 16.
    #[config(default = 512)]
    pub input_size: usize,
    /// Normalisation of the input of the foundation and the side network.
    #[config(default = "PixelScale::Unit")]
    pub pixel_scale: PixelScale,
    /// Seed of all random initial weights.
    #[config(default = 0)]
    pub seed: u64,
}

impl SamLstConfig {
    /// The published method: ViT-B, ResNet18, 512 x 512 pixels. `num_classes` includes the
    /// background, so it is 9 for Synapse.
    pub fn vit_b(num_classes: usize) -> Self {
        Self::published(SamEncoderConfig::vit_b(), num_classes)
    }

    /// As [`vit_b`](Self::vit_b), with ViT-L.
    pub fn vit_l(num_classes: usize) -> Self {
        Self::published(SamEncoderConfig::vit_l(), num_classes)
    }

    /// As [`vit_b`](Self::vit_b), with ViT-H.
    pub fn vit_h(num_classes: usize) -> Self {
        Self::published(SamEncoderConfig::vit_h(), num_classes)
    }

    /// A small model for tests and demonstrations, for an input of 128 x 128 pixels. It has every
    /// part of the published model at a thousandth of the cost; there are no published weights for
    /// it.
    pub fn tiny(num_classes: usize) -> Self {
        let encoder = SamEncoderConfig::tiny();
        let decoder = MaskDecoderConfig::new(num_classes)
            .with_embed_dim(encoder.out_channels)
            .with_num_heads(4)
            .with_mlp_dim(128)
            .with_iou_hidden_dim(32);
        let side = ResNetSideConfig::resnet18().with_width(encoder.out_channels / 4);
        Self::new(encoder, decoder).with_side(SideConfig::ResNet(side)).with_input_size(128)
    }

    fn published(encoder: SamEncoderConfig, num_classes: usize) -> Self {
        Self::new(encoder, MaskDecoderConfig::new(num_classes))
    }

    /// Number of classes `K`, including the background.
    pub fn num_classes(&self) -> usize {
        self.decoder.num_masks
    }

    /// Grid size `G = S / 16` of the image embedding.
    pub fn grid(&self) -> usize {
        self.input_size / PATCH_SIZE
    }

    pub(crate) fn prompt_encoder(&self) -> PromptEncoderConfig {
        PromptEncoderConfig::new().with_embed_dim(self.decoder.embed_dim)
    }

    /// Checks all settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] for the first invalid setting.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_encoder()?;
        self.validate_decoder()?;
        Ok(self.validate_side()?)
    }

    fn validate_encoder(&self) -> Result<(), InvalidSetting> {
        let Self { encoder, input_size, .. } = self;
        require(
            is_positive_multiple(*input_size, PATCH_SIZE),
            "input_size",
            input_size,
            "a positive multiple of 16",
        )?;
        require(
            is_positive_multiple(encoder.pretrained_size, PATCH_SIZE),
            "encoder.pretrained_size",
            encoder.pretrained_size,
            "a positive multiple of 16",
        )?;
        require(encoder.window_size > 0, "encoder.window_size", encoder.window_size, "at least 1")?;
        require(
            is_positive_multiple(encoder.embed_dim, encoder.num_heads),
            "encoder.embed_dim",
            encoder.embed_dim,
            "a positive multiple of encoder.num_heads",
        )?;
        require(
            encoder.global_blocks.iter().all(|&i| i < encoder.depth),
            "encoder.global_blocks",
            format!("{:?}", encoder.global_blocks),
            "indices below encoder.depth",
        )
    }

    fn validate_decoder(&self) -> Result<(), InvalidSetting> {
        let Self { encoder, decoder, .. } = self;
        require(
            decoder.num_masks > 0,
            "num_classes",
            decoder.num_masks,
            "at least 1, background included",
        )?;
        require(
            is_positive_multiple(decoder.embed_dim, 8)
                && is_positive_multiple(decoder.embed_dim / 2, decoder.num_heads),
            "decoder.embed_dim",
            decoder.embed_dim,
            "a positive multiple of 8 and of twice decoder.num_heads",
        )?;
        require(
            encoder.out_channels == decoder.embed_dim,
            "encoder.out_channels",
            encoder.out_channels,
            "decoder.embed_dim, since the decoder reads the encoder's embedding",
        )
    }

    fn validate_side(&self) -> Result<(), InvalidSetting> {
        let SideConfig::ResNet(side) = &self.side else { return Ok(()) };
        require(
            side.blocks.iter().all(|&count| count > 0),
            "side.blocks",
            format!("{:?}", side.blocks),
            "at least one block in each layer",
        )?;
        require(
            side.out_channels() == self.decoder.embed_dim,
            "side.width",
            side.width,
            "a quarter of decoder.embed_dim, since the decoder reads the side network's embedding",
        )
    }
}

fn is_positive_multiple(value: usize, divisor: usize) -> bool {
    value > 0 && divisor > 0 && value.is_multiple_of(divisor)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_errors_name_the_setting() {
        for config in [
            SamLstConfig::vit_b(9),
            SamLstConfig::vit_l(9),
            SamLstConfig::vit_h(9),
            SamLstConfig::tiny(9),
        ] {
            assert_eq!(config.validate(), Ok(()));
        }
        let message = |config: SamLstConfig| config.validate().unwrap_err().to_string();
        assert_eq!(
            message(SamLstConfig::vit_b(0)),
            "`num_classes` is 0; expected at least 1, background included"
        );
        assert_eq!(
            message(SamLstConfig::vit_b(9).with_input_size(500)),
            "`input_size` is 500; expected a positive multiple of 16"
        );
        let narrow = SideConfig::ResNet(ResNetSideConfig::resnet18().with_width(32));
        let message = message(SamLstConfig::vit_b(9).with_side(narrow));
        assert!(message.starts_with("`side.width` is 32; expected a quarter"), "{message}");
    }

    #[test]
    fn sam_pixel_scale_normalises_by_mean_and_standard_deviation() {
        let device = burn::tensor::Device::flex();
        let pixel = Tensor::<1>::from_floats([123.675, 116.28, 103.53 + 57.375], &device) / 255.0;
        let scaled = PixelScale::Sam.apply(pixel.reshape([1, 3, 1, 1]));
        let expected = burn::tensor::TensorData::from([0.0_f32, 0.0, 1.0]);
        scaled
            .reshape([3])
            .into_data()
            .assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::absolute(1e-5));
    }
}

use burn::config::Config;
use burn::tensor::Tensor;
use gated_fusion::Fusion;
use mask_decoder::{DecoderTuning, MaskDecoderConfig, PromptEncoderConfig};
use resnet_side::ResNetSideConfig;
use sam_encoder::{PATCH_SIZE, SamEncoderConfig};

/// How pixels in `[0, 1]` are scaled before SAM and the side network see them.
#[derive(Config, Debug, Copy, PartialEq, Eq, Hash)]
pub enum PixelScale {
    /// Mean 0 and deviation 1, that is as they are: what the authors feed.
    Unit,
    /// The mean and deviation of each colour that SAM was trained with.
    Sam,
}

impl PixelScale {
    /// Scales an image `[B, 3, S, S]` whose pixels lie in `[0, 1]`.
    ///
    /// # Panics
    ///
    /// If the image has other than 3 channels.
    pub fn apply(self, image: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Unit => image,
            Self::Sam => {
                let device = image.device().inner();
                let per_channel = |values: [f32; 3]| {
                    Tensor::<1>::from_floats(values, &device).reshape([1, 3, 1, 1]) / 255.0
                };
                let mean = per_channel([123.675, 116.28, 103.53]);
                let deviation = per_channel([58.395, 57.12, 57.375]);
                (image - mean) / deviation
            }
        }
    }
}

/// Which side network runs beside the foundation.
#[derive(Config, Debug, PartialEq)]
pub enum SideConfig {
    /// A ResNet up to `layer3`.
    ResNet(ResNetSideConfig),
    /// A network of the user's own, by a name that checkpoints carry.
    Custom(String),
}

/// Configuration of [`SamLst`](crate::SamLst). A preset is the place to start:
///
/// ```
/// use sam_lst::{DecoderTuning, SamLstConfig};
///
/// let config = SamLstConfig::vit_b(9).with_tuning(DecoderTuning::UpscalingAndHeads);
/// ```
#[derive(Config, Debug, PartialEq)]
pub struct SamLstConfig {
    /// The foundation.
    pub encoder: SamEncoderConfig,
    /// The mask decoder; its `num_masks` is the number of classes `K`, background included.
    pub decoder: MaskDecoderConfig,
    /// The side network.
    #[config(default = "SideConfig::ResNet(ResNetSideConfig::resnet18())")]
    pub side: SideConfig,
    /// Which image embedding the decoder sees: the method, or a row of the paper's Table II.
    #[config(default = "Fusion::Gated")]
    pub fusion: Fusion,
    /// What of the decoder trains.
    #[config(default = "DecoderTuning::Upscaling")]
    pub tuning: DecoderTuning,
    /// Side `S` of the input in pixels; a multiple of 16.
    #[config(default = 512)]
    pub input_size: usize,
    /// Pixel scale of the foundation and the side network.
    #[config(default = "PixelScale::Unit")]
    pub pixel_scale: PixelScale,
    /// Decides every random initial weight.
    #[config(default = 0)]
    pub seed: u64,
}

impl SamLstConfig {
    /// The published method: ViT-B, ResNet18, input 512. `num_classes` counts the background: 9 for Synapse.
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

    /// A model for tests and demonstrations that has every part at a thousandth of the cost, for input 128. There are
    /// no published weights for it.
    pub fn tiny(num_classes: usize) -> Self {
        let encoder = SamEncoderConfig::tiny();
        let decoder = MaskDecoderConfig::new(num_classes)
            .with_embed_dim(encoder.out_channels)
            .with_num_heads(4)
            .with_mlp_dim(128)
            .with_iou_hidden_dim(32);
        let side = ResNetSideConfig::resnet18().with_width(encoder.out_channels / 4);
        Self::new(encoder, decoder)
            .with_side(SideConfig::ResNet(side))
            .with_input_size(128)
    }

    fn published(encoder: SamEncoderConfig, num_classes: usize) -> Self {
        Self::new(encoder, MaskDecoderConfig::new(num_classes))
    }

    /// Number of classes `K`, background included.
    pub fn num_classes(&self) -> usize {
        self.decoder.num_masks
    }

    /// Side `G` of the image embedding.
    pub fn grid(&self) -> usize {
        self.input_size / PATCH_SIZE
    }

    pub(crate) fn prompt_encoder(&self) -> PromptEncoderConfig {
        PromptEncoderConfig::new().with_embed_dim(self.decoder.embed_dim)
    }

    /// Checks every value, before anything is computed.
    ///
    /// # Errors
    ///
    /// The first value that cannot be, with what was expected.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let require = |holds: bool, field: &'static str, found: String, expected: &'static str| {
            holds.then_some(()).ok_or(ConfigError::Value {
                field,
                found,
                expected,
            })
        };
        let Self {
            encoder,
            decoder,
            input_size,
            ..
        } = self;
        let positive_multiple =
            |value: usize, of: usize| value > 0 && of > 0 && value.is_multiple_of(of);

        require(
            decoder.num_masks > 0,
            "num_classes",
            decoder.num_masks.to_string(),
            "at least 1, background included",
        )?;
        require(
            positive_multiple(*input_size, PATCH_SIZE),
            "input_size",
            input_size.to_string(),
            "a positive multiple of 16",
        )?;
        require(
            positive_multiple(encoder.pretrained_size, PATCH_SIZE),
            "encoder.pretrained_size",
            encoder.pretrained_size.to_string(),
            "a positive multiple of 16",
        )?;
        require(
            encoder.window_size > 0,
            "encoder.window_size",
            encoder.window_size.to_string(),
            "at least 1",
        )?;
        require(
            positive_multiple(encoder.embed_dim, encoder.num_heads),
            "encoder.embed_dim",
            encoder.embed_dim.to_string(),
            "a positive multiple of encoder.num_heads",
        )?;
        require(
            encoder.global_blocks.iter().all(|&i| i < encoder.depth),
            "encoder.global_blocks",
            format!("{:?}", encoder.global_blocks),
            "indices below encoder.depth",
        )?;
        require(
            positive_multiple(decoder.embed_dim, 8)
                && positive_multiple(decoder.embed_dim / 2, decoder.num_heads),
            "decoder.embed_dim",
            decoder.embed_dim.to_string(),
            "a positive multiple of 8 and of 2 decoder.num_heads",
        )?;
        require(
            encoder.out_channels == decoder.embed_dim,
            "encoder.out_channels",
            encoder.out_channels.to_string(),
            "decoder.embed_dim, since the decoder reads the encoder's embedding",
        )?;
        if let SideConfig::ResNet(side) = &self.side {
            require(
                side.blocks.iter().all(|&count| count > 0),
                "side.blocks",
                format!("{:?}", side.blocks),
                "at least one block a layer",
            )?;
            require(
                side.out_channels() == decoder.embed_dim,
                "side.width",
                side.width.to_string(),
                "a quarter of decoder.embed_dim, since the decoder reads the side network's embedding",
            )?;
        }
        Ok(())
    }
}

/// A configuration that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A value is out of its range or does not fit another.
    #[error("{field} is {found}; expected {expected}")]
    Value {
        /// Which value.
        field: &'static str,
        /// What it is.
        found: String,
        /// What it must be.
        expected: &'static str,
    },
    /// The configuration names a side network of the user's own, which it cannot build.
    #[error(
        "the side network \"{name}\" is not one of this library's; build it and pass it to `init_with_side`"
    )]
    CustomSide {
        /// Its name.
        name: String,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn presets_are_valid_and_errors_name_the_value() {
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
            "num_classes is 0; expected at least 1, background included"
        );
        assert_eq!(
            message(SamLstConfig::vit_b(9).with_input_size(500)),
            "input_size is 500; expected a positive multiple of 16"
        );
        let narrow = SideConfig::ResNet(ResNetSideConfig::resnet18().with_width(32));
        let message = message(SamLstConfig::vit_b(9).with_side(narrow));
        assert!(
            message.starts_with("side.width is 32; expected a quarter"),
            "{message}"
        );
    }

    #[test]
    fn sams_pixel_scale_centres_its_mean() {
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

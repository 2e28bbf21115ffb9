use super::encoder::is_positive_multiple;
use super::error::require;
use super::side_network::SideShape;
use super::{
    ConfigError, EncoderConfig, InvalidSetting, NetworkConfig, SamConfig, SideConfig, Tap,
};
use burn::config::Config;
use burn::tensor::Tensor;
use sam_lst_gated_fusion::Fusion;
use sam_lst_mask_decoder::{DecoderTuning, MaskDecoderConfig, PromptEncoderConfig};
use sam_lst_resnet_side::ResNetSideConfig;
use sam_lst_sam_encoder::SamEncoderConfig;

/// Normalisation of the pixels, from `[0, 1]`, for SAM and the side network.
#[derive(Config, Debug, Copy, PartialEq, Eq, Hash)]
pub enum PixelScale {
    /// No normalisation (mean 0, standard deviation 1), as in the authors' code.
    Unit,
    /// SAM's mean and standard deviation of each colour channel. SAM and MobileSAM were trained
    /// with it.
    Sam,
    /// From the smallest and largest value of each image to `[0, 1]`. MedSAM and LiteMedSAM were
    /// trained with it.
    MinMax,
}

impl PixelScale {
    /// SAM's mean of each colour channel, of pixels in `[0, 255]`.
    pub(crate) const SAM_MEAN: [f32; 3] = [123.675, 116.28, 103.53];

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
                let mean = per_channel(Self::SAM_MEAN);
                let std = per_channel([58.395, 57.12, 57.375]);
                (image - mean) / std
            }
            Self::MinMax => {
                let [batch, channels, height, width] = image.dims();
                let values = image.clone().reshape([batch, channels * height * width]);
                let per_image = |values: Tensor<2>| values.reshape([batch, 1, 1, 1]);
                let smallest = per_image(values.clone().min_dim(1));
                // As MedSAM does, so that a uniform image becomes 0.
                let range = (per_image(values.max_dim(1)) - smallest.clone()).clamp_min(1e-8);
                (image - smallest) / range
            }
        }
    }
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
    /// The foundation, an image encoder.
    pub encoder: EncoderConfig,
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
    /// Side `S` of the input in pixels; a multiple of the encoder's stride.
    #[config(default = 512)]
    pub input_size: usize,
    /// Places inside the encoder whose features enter the side network, as in the original ladder
    /// side-tuning (Sung et al., arXiv 2206.06522): one for each layer of a ResNet, into its input;
    /// indices of the blocks of a ViT, or of the stages of a TinyViT, in increasing order. They are
    /// cached with the embedding. None by default, as in the published method; see
    /// [`with_true_ladder`](Self::with_true_ladder).
    #[config(default = "None")]
    pub taps: Option<Vec<usize>>,
    /// Normalisation of the input of the foundation and the side network.
    #[config(default = "PixelScale::Unit")]
    pub pixel_scale: PixelScale,
    /// Seed of all random initial weights.
    #[config(default = 0)]
    pub seed: u64,
}

impl SamLstConfig {
    /// The published method: SAM ViT-B, ResNet18, 512 x 512 pixels. `num_classes` includes the
    /// background, so it is 9 for Synapse.
    pub fn vit_b(num_classes: usize) -> Self {
        Self::over(SamEncoderConfig::vit_b(), num_classes)
    }

    /// As [`vit_b`](Self::vit_b), with ViT-L.
    pub fn vit_l(num_classes: usize) -> Self {
        Self::over(SamEncoderConfig::vit_l(), num_classes)
    }

    /// As [`vit_b`](Self::vit_b), with ViT-H.
    pub fn vit_h(num_classes: usize) -> Self {
        Self::over(SamEncoderConfig::vit_h(), num_classes)
    }

    /// MedSAM, a SAM ViT-B that was fine-tuned on medical images, at its native 1024 x 1024 pixels.
    pub fn med_sam(num_classes: usize) -> Self {
        Self::native(SamConfig::med_sam(), num_classes)
    }

    /// LiteMedSAM at its native 256 x 256 pixels. Its embedding has a quarter of the input's
    /// resolution, so the side network is a feature pyramid over all layers of ResNet18, and the
    /// logits have the input's resolution.
    pub fn lite_medsam(num_classes: usize) -> Self {
        let config = Self::native(SamConfig::lite_medsam(), num_classes);
        let channels = config.decoder.embed_dim;
        let side = ResNetSideConfig::resnet18().with_pyramid_channels(Some(channels));
        config.with_side(SideConfig::ResNet(side))
    }

    /// MobileSAM at its native 1024 x 1024 pixels.
    pub fn mobile_sam(num_classes: usize) -> Self {
        Self::native(SamConfig::mobile_sam(), num_classes)
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
        Self::new(encoder.into(), decoder).with_side(SideConfig::ResNet(side)).with_input_size(128)
    }

    /// The model over an image encoder, which [`EncoderConfig::recognize`] finds in a checkpoint:
    /// the preset of a published encoder, else the published method at 512 x 512 pixels. Over an
    /// encoder of stride 4, the side network is a feature pyramid.
    pub fn for_encoder(encoder: EncoderConfig, num_classes: usize) -> Self {
        let presets = [Self::lite_medsam(num_classes), Self::mobile_sam(num_classes)];
        if let Some(preset) = presets.into_iter().find(|preset| preset.encoder == encoder) {
            return preset;
        }
        let is_fine = encoder.stride() == 4;
        let config = Self::over(encoder, num_classes);
        if !is_fine {
            return config;
        }
        let side = Self::lite_medsam(num_classes).side;
        config.with_side(side)
    }

    fn over(encoder: impl Into<EncoderConfig>, num_classes: usize) -> Self {
        Self::new(encoder.into(), MaskDecoderConfig::new(num_classes))
    }

    /// Over the encoder of a model, with the input that it was trained for.
    fn native(sam: SamConfig, num_classes: usize) -> Self {
        Self::over(sam.encoder, num_classes)
            .with_input_size(sam.input_size)
            .with_pixel_scale(sam.pixel_scale)
    }

    /// With evenly spaced [taps](Self::taps): after the blocks 2, 5 and 8 of ViT-B, and the stages 0,
    /// 1 and 2 of TinyViT. The embedding comes from the last block or stage. The result is invalid if
    /// the encoder has fewer blocks than the side network has stages, or if either cannot have taps.
    pub fn with_true_ladder(self) -> Self {
        let depth = self.encoder.taps().len();
        let stages = self.side.stage_channels().len().max(1);
        let tap = |stage: usize| (stage * depth).div_ceil(stages + 1).saturating_sub(1);
        let taps = (1..=stages).map(tap).collect();
        self.with_taps(Some(taps))
    }

    /// Number of classes `K`, including the background.
    pub fn num_classes(&self) -> usize {
        self.decoder.num_masks
    }

    /// What the configuration's [taps](Self::taps) are in its encoder. The configuration must be
    /// valid.
    pub(super) fn encoder_taps(&self) -> Vec<Tap> {
        self.encoder.select_taps(self.taps.as_deref().unwrap_or_default())
    }

    /// Grid size `G = S / stride` of the image embedding.
    pub fn grid(&self) -> usize {
        self.input_size / self.encoder.stride()
    }

    pub(crate) fn prompt_encoder(&self) -> PromptEncoderConfig {
        PromptEncoderConfig::new()
            .with_embed_dim(self.decoder.embed_dim)
            .with_stride(self.encoder.stride())
    }

    /// Checks all settings.
    ///
    /// # Errors
    ///
    /// [`ConfigError::Invalid`] for the first invalid setting.
    pub fn validate(&self) -> Result<(), ConfigError> {
        self.validate_without_side()?;
        Ok(self.validate_side()?)
    }

    /// Checks all settings but those of the side network.
    pub(super) fn validate_without_side(&self) -> Result<(), ConfigError> {
        self.encoder.validate()?;
        require(
            is_positive_multiple(self.input_size, self.encoder.stride()),
            "input_size",
            self.input_size,
            match self.encoder.stride() {
                4 => "a positive multiple of 4",
                16 => "a positive multiple of 16",
                _ => "a positive multiple of the encoder's stride",
            },
        )?;
        require(self.input_size <= 8192, "input_size", self.input_size, "at most 8192")?;
        Ok(self.validate_decoder()?)
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
        for (field, size) in [
            ("decoder.depth", decoder.depth),
            ("decoder.mlp_dim", decoder.mlp_dim),
            ("decoder.iou_hidden_dim", decoder.iou_hidden_dim),
        ] {
            require(size > 0, field, size, "at least 1")?;
        }
        require(
            encoder.channels() == decoder.embed_dim,
            "encoder.out_channels",
            encoder.channels(),
            "decoder.embed_dim, since the decoder reads the encoder's embedding",
        )
    }

    fn validate_side(&self) -> Result<(), InvalidSetting> {
        self.side.validate(self.side_shape())?;
        self.validate_taps()
    }

    fn validate_taps(&self) -> Result<(), InvalidSetting> {
        let Self { taps, encoder, side, fusion, .. } = self;
        let Some(taps) = taps.as_ref().filter(|taps| !taps.is_empty()) else { return Ok(()) };
        let found = format!("{taps:?}");
        let check = |holds, expected| require(holds, "taps", &found, expected);
        let stages = side.stage_channels().len();
        check(*fusion == Fusion::Gated, "none, unless `fusion` is \"Gated\"")?;
        check(stages > 0, "none, since only a ResNet as side network has layers that taps enter")?;
        check(taps.len() == stages, "one tap for each of the side network's three layers")?;
        encoder.validate_taps(taps)
    }

    /// What the side network has to fit.
    pub(super) fn side_shape(&self) -> SideShape {
        SideShape {
            channels: self.decoder.embed_dim,
            stride: self.encoder.stride(),
            input_size: self.input_size,
        }
    }
}

impl NetworkConfig for SamLstConfig {
    const METHOD: &'static str = "ladder";

    fn num_classes(&self) -> usize {
        self.num_classes()
    }

    fn input_size(&self) -> usize {
        self.input_size
    }

    fn logits_size(&self) -> usize {
        4 * self.grid()
    }

    fn seed(&self) -> u64 {
        self.seed
    }

    fn set_seed(&mut self, seed: u64) {
        self.seed = seed;
    }

    fn validate(&self) -> Result<(), ConfigError> {
        self.validate()
    }
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
            SamLstConfig::med_sam(9),
            SamLstConfig::lite_medsam(9),
            SamLstConfig::mobile_sam(9),
            SamLstConfig::tiny(9),
        ] {
            assert_eq!(config.validate(), Ok(()));
        }
        assert_eq!(SamLstConfig::lite_medsam(9).grid(), 64);
        assert_eq!(SamLstConfig::mobile_sam(9).grid(), 64);
        let message = |config: SamLstConfig| config.validate().unwrap_err().to_string();
        assert_eq!(
            message(SamLstConfig::vit_b(0)),
            "`num_classes` is 0; expected at least 1, background included"
        );
        assert_eq!(
            message(SamLstConfig::vit_b(9).with_input_size(500)),
            "`input_size` is 500; expected a positive multiple of 16"
        );
        assert_eq!(
            message(SamLstConfig::lite_medsam(9).with_input_size(250)),
            "`input_size` is 250; expected a positive multiple of 4"
        );
        let coarse = SideConfig::ResNet(ResNetSideConfig::resnet18());
        let text = message(SamLstConfig::lite_medsam(9).with_side(coarse));
        assert!(text.starts_with("`side.pyramid_channels` is None; expected decoder"), "{text}");
        let narrow = SideConfig::ResNet(ResNetSideConfig::resnet18().with_width(32));
        let text = message(SamLstConfig::vit_b(9).with_side(narrow));
        assert!(text.starts_with("`side.width` is 32; expected a quarter"), "{text}");
        for (config, expected) in [
            (
                SamLstConfig::vit_b(9).with_taps(Some(vec![2, 5, 12])),
                "blocks, below `encoder.depth`",
            ),
            (SamLstConfig::lite_medsam(9).with_taps(Some(vec![1, 2, 4])), "stages, 0 to 3"),
            (SamLstConfig::vit_b(9).with_taps(Some(vec![2, 5])), "one tap for each"),
            (SamLstConfig::vit_b(9).with_taps(Some(vec![5, 2, 8])), "increasing order"),
            (
                SamLstConfig::vit_b(9).with_true_ladder().with_fusion(Fusion::SideOnly),
                "none, unless `fusion`",
            ),
            (
                SamLstConfig::vit_b(9).with_side(SideConfig::vit_tiny()).with_true_ladder(),
                "none, since only a ResNet",
            ),
        ] {
            let text = message(config);
            assert!(text.starts_with("`taps` is [") && text.contains(expected), "{text}");
        }
    }

    #[test]
    fn taps_of_the_true_ladder_are_evenly_spaced() {
        for (config, taps) in [
            (SamLstConfig::vit_b(9), [2, 5, 8]),
            (SamLstConfig::vit_l(9), [5, 11, 17]),
            (SamLstConfig::vit_h(9), [7, 15, 23]),
            (SamLstConfig::lite_medsam(9), [0, 1, 2]),
            (SamLstConfig::tiny(9), [0, 1, 2]),
        ] {
            let config = config.with_true_ladder();
            assert_eq!((config.validate(), config.taps), (Ok(()), Some(taps.to_vec())));
        }
    }

    /// As ladder files of version 0.1.0 contain it, before there were other encoders and pyramids.
    #[test]
    fn configurations_of_earlier_ladders_are_read() {
        let text = r#"{
            "encoder": {
                "embed_dim": 32, "depth": 4, "num_heads": 2, "global_blocks": [1, 3],
                "window_size": 5, "mlp_ratio": 4, "out_channels": 64, "pretrained_size": 128
            },
            "decoder": {
                "num_masks": 9, "embed_dim": 64, "depth": 2, "num_heads": 4, "mlp_dim": 128,
                "iou_hidden_dim": 32
            },
            "side": { "ResNet": { "blocks": [2, 2, 2], "width": 16 } },
            "fusion": "Gated", "tuning": "Full", "input_size": 128, "pixel_scale": "Unit", "seed": 0
        }"#;
        let config = SamLstConfig::load_binary(text.as_bytes()).expect("a configuration");
        assert_eq!(config, SamLstConfig::tiny(9).with_tuning(DecoderTuning::Full));
        for config in [SamLstConfig::vit_b(9), SamLstConfig::lite_medsam(9)] {
            let written = config.to_string();
            assert_eq!(SamLstConfig::load_binary(written.as_bytes()).expect("written"), config);
        }
    }

    #[test]
    fn min_max_scales_each_image_by_itself() {
        let device = burn::tensor::Device::flex();
        let images = Tensor::<1>::from_floats(
            [[0.2, 0.4, 0.6], [0.5, 0.5, 0.5]].concat().as_slice(),
            &device,
        );
        let scaled = PixelScale::MinMax.apply(images.reshape([2, 3, 1, 1]));
        let expected = burn::tensor::TensorData::from([0.0_f32, 0.5, 1.0, 0.0, 0.0, 0.0]);
        scaled
            .reshape([6])
            .into_data()
            .assert_approx_eq::<f32>(&expected, burn::tensor::Tolerance::absolute(1e-6));
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

use super::network::{constant_beside, trained_tensors};
use super::{Foundation, PixelScale, SamLstConfig, SegmentationNetwork, SideEncoder, SideNetwork};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sam_lst_gated_fusion::{Fusion, GatedFusion, GatedFusionConfig, TapFusion, TapFusionConfig};
use sam_lst_mask_decoder::{DecoderTuning, MaskDecoder, MaskPrediction, PromptEncoder, Prompts};

/// The trainable part of the model: side network, gate, SAM's prompt encoder and mask decoder.
///
/// Pass this, not [`SamLst`](crate::SamLst), to an optimizer. The tensors that require gradients
/// are those of the side network, of the gate, and of the decoder as selected by
/// [`DecoderTuning`](crate::DecoderTuning); with [`Fusion::Untrained`] there are none.
#[derive(Module, Debug)]
pub struct Ladder<S: SideEncoder = SideNetwork> {
    /// The side network, if [`Fusion`] uses it.
    pub side: Option<S>,
    /// The gate, if [`Fusion`] uses it.
    pub gate: Option<GatedFusion>,
    /// Mixes the foundation's taps into the inputs of the side network's stages, one for each stage;
    /// empty without taps.
    pub taps: Vec<TapFusion>,
    /// SAM's prompt encoder; frozen.
    pub prompt_encoder: PromptEncoder,
    /// SAM's mask decoder, with one mask per class.
    pub mask_decoder: MaskDecoder,
    #[module(skip)]
    fusion: Fusion,
    #[module(skip)]
    pixel_scale: PixelScale,
    #[module(skip)]
    stride: usize,
    #[module(skip)]
    tuning: DecoderTuning,
    /// Channels of each tap, on the embedding's grid.
    #[module(skip)]
    tap_channels: Vec<usize>,
}

impl<S: SideEncoder> Ladder<S> {
    /// Creates a ladder with random weights. Calls `side` only if the fusion uses a side network.
    /// The configuration must be valid.
    pub(crate) fn new(
        config: &SamLstConfig,
        side: impl FnOnce() -> S,
        device: &Device,
    ) -> Ladder<S> {
        let fusion = config.fusion;
        let stride = config.encoder.stride();
        let taps = config.encoder_taps();
        let tap_channels: Vec<_> = taps.iter().map(|tap| tap.packed_channels(stride)).collect();
        let stages = config.side.stage_channels();
        let tap_fusion = |(&tap, &stage)| TapFusionConfig::new(tap, stage).init(device);
        let ladder = Ladder {
            side: fusion.uses_side().then(side),
            gate: (fusion == Fusion::Gated).then(|| GatedFusionConfig::new().init(device)),
            taps: tap_channels.iter().zip(&stages).map(tap_fusion).collect(),
            prompt_encoder: config.prompt_encoder().init(device),
            mask_decoder: config.decoder.init(device).with_tuning(config.tuning),
            fusion,
            pixel_scale: config.pixel_scale,
            stride,
            tuning: config.tuning,
            tap_channels,
        };
        match fusion {
            Fusion::Untrained => ladder.no_grad(),
            _ => ladder,
        }
    }

    /// Predicts one mask per class.
    ///
    /// `embedding` is the foundation's embedding of the same image, with the features of its
    /// [taps](Foundation::embed) if there are any, which is optional for [`Fusion::SideOnly`]. On an
    /// autodiff device it is a constant.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - embedding: `[B, F, G, G]`, `G = S / stride`, where `F` is
    ///   [`Foundation::feature_channels`], `C` without taps
    /// - logits: `[B, K, 4 G, 4 G]`, iou: `[B, K]`
    ///
    /// # Panics
    ///
    /// If the embedding does not have the shape that the image requires, or is missing although the
    /// fusion uses it.
    pub fn forward(
        &self,
        image: Tensor<4>,
        embedding: impl Into<Option<Tensor<4>>>,
    ) -> MaskPrediction {
        let [batch, _, _, size] = image.dims();
        let grid = size / self.stride;
        let [_, channels] = self.prompt_encoder.no_mask_embed.dims();
        let check = |embedding: Tensor<4>, channels: usize, source: &str| {
            let expected = [batch, channels, grid, grid];
            assert_eq!(
                embedding.dims(),
                expected,
                "{source} embedding is {:?}, but the image {:?} needs {expected:?}",
                embedding.dims(),
                image.dims()
            );
            embedding
        };
        let sam = || {
            let embedding = embedding.into().unwrap_or_else(|| {
                panic!("Fusion::{:?} needs the foundation's embedding", self.fusion)
            });
            let features = channels + self.tap_channels.iter().sum::<usize>();
            check(embedding, features, "the foundation's").inner()
        };
        let scaled = || self.pixel_scale.apply(image.clone());
        let fused = match (&self.side, &self.gate) {
            (Some(network), Some(gate)) => {
                let (sam, taps) = self.split(&image, sam(), channels);
                let side = match taps.as_slice() {
                    [] => network.forward(scaled()),
                    taps => network.forward_mixed(scaled(), &|stage, input| {
                        self.taps[stage].forward(input, taps[stage].clone())
                    }),
                };
                let side = check(side, channels, "the side network's");
                // In the memory order in which the decoder reads it.
                let [sam, side] = [sam, side].map(|image| image.permute([0, 2, 3, 1]));
                gate.forward(sam, side).permute([0, 3, 1, 2])
            }
            (Some(network), None) => {
                check(network.forward(scaled()), channels, "the side network's")
            }
            (None, _) => sam(),
        };
        self.mask_decoder.forward(
            fused,
            self.prompt_encoder.image_positions(grid),
            self.prompt_encoder.forward(&Prompts::default(), grid),
        )
    }

    /// Divides what the foundation computed into the embedding, `[B, C, G, G]`, and the features of
    /// each tap, `[B, G, G, packed channels]`, which are constants for autodiff.
    fn split(
        &self,
        image: &Tensor<4>,
        features: Tensor<4>,
        channels: usize,
    ) -> (Tensor<4>, Vec<Tensor<4>>) {
        let mut start = channels;
        let tap = |&width: &usize| {
            let tap = features.clone().narrow(1, start, width).permute([0, 2, 3, 1]);
            start += width;
            constant_beside(image, tap)
        };
        let taps: Vec<_> = self.tap_channels.iter().map(tap).collect();
        let embedding = if taps.is_empty() { features } else { features.narrow(1, 0, channels) };
        (embedding, taps)
    }

    /// The gate's current value, the weight of SAM's embedding; `None` if there is no gate.
    pub fn gate_value(&self) -> Option<f32> {
        self.gate.as_ref().map(GatedFusion::value)
    }

    /// Which image embedding the decoder receives.
    pub fn fusion(&self) -> Fusion {
        self.fusion
    }

    /// Names and numbers of values of the tensors that require gradients. Empty on a device without
    /// autodiff.
    pub fn trained_tensors(&self) -> Vec<(String, usize)> {
        trained_tensors(self)
    }
}

impl<S: SideEncoder> SegmentationNetwork for Ladder<S> {
    type Config = SamLstConfig;
    type Foundation = Foundation;

    fn logits(&self, image: Tensor<4>, embedding: Option<Tensor<4>>) -> Tensor<4> {
        self.forward(image, embedding).logits
    }

    fn uses_embedding(&self) -> bool {
        self.fusion.uses_sam()
    }

    fn gate_value(&self) -> Option<f32> {
        self.gate_value()
    }

    fn is_in_foundation_file(&self, name: &str) -> bool {
        let frozen: &[&str] = match self.tuning {
            DecoderTuning::Full => &["prompt_encoder."],
            DecoderTuning::Upscaling | DecoderTuning::UpscalingAndHeads => {
                &["prompt_encoder.", "mask_decoder.transformer.", "mask_decoder.iou_token."]
            }
        };
        frozen.iter().any(|prefix| name.starts_with(prefix))
    }
}

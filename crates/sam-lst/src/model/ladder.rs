use super::network::trained_tensors;
use super::{Foundation, PixelScale, SamLstConfig, SegmentationNetwork, SideEncoder, SideNetwork};
use burn::module::Module;
use burn::tensor::{Device, Tensor};
use sam_lst_gated_fusion::{Fusion, GatedFusion, GatedFusionConfig};
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
        let ladder = Ladder {
            side: fusion.uses_side().then(side),
            gate: (fusion == Fusion::Gated).then(|| GatedFusionConfig::new().init(device)),
            prompt_encoder: config.prompt_encoder().init(device),
            mask_decoder: config.decoder.init(device).with_tuning(config.tuning),
            fusion,
            pixel_scale: config.pixel_scale,
            stride: config.encoder.stride(),
            tuning: config.tuning,
        };
        match fusion {
            Fusion::Untrained => ladder.no_grad(),
            _ => ladder,
        }
    }

    /// Predicts one mask per class.
    ///
    /// `embedding` is the foundation's embedding of the same image, which is optional for
    /// [`Fusion::SideOnly`]. On an autodiff device it is a constant.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - embedding: `[B, C, G, G]`, `G = S / stride`
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
        let expected = [batch, channels, grid, grid];
        let check = |embedding: Tensor<4>, source: &str| {
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
            check(embedding, "the foundation's").inner()
        };
        let side = |network: &S| {
            let scaled = self.pixel_scale.apply(image.clone());
            check(network.forward(scaled), "the side network's")
        };
        let fused = match (&self.side, &self.gate) {
            (Some(network), Some(gate)) => {
                // In the memory order in which the decoder reads it.
                let [sam, side] = [sam(), side(network)].map(|image| image.permute([0, 2, 3, 1]));
                gate.forward(sam, side).permute([0, 3, 1, 2])
            }
            (Some(network), None) => side(network),
            (None, _) => sam(),
        };
        self.mask_decoder.forward(
            fused,
            self.prompt_encoder.image_positions(grid),
            self.prompt_encoder.forward(&Prompts::default(), grid),
        )
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

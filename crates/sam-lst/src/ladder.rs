use crate::{PixelScale, SamLstConfig, SideEncoder};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Device, Tensor};
use gated_fusion::{Fusion, GatedFusion, GatedFusionConfig};
use mask_decoder::{MaskDecoder, MaskPrediction, PromptEncoder, Prompts};
use resnet_side::ResNetSide;

/// The trained half: side network, gate, SAM's prompt encoder and mask decoder.
///
/// Give this, not [`SamLst`](crate::SamLst), to an optimizer. Which of its tensors require gradients follows from the
/// configuration: the side network, the gate and what [`DecoderTuning`](crate::DecoderTuning) names.
#[derive(Module, Debug)]
pub struct Ladder<S: SideEncoder = ResNetSide> {
    /// The side network, where [`Fusion`] uses one.
    pub side: Option<S>,
    /// The gate, where [`Fusion`] uses one.
    pub gate: Option<GatedFusion>,
    /// SAM's prompt encoder; frozen.
    pub prompt_encoder: PromptEncoder,
    /// SAM's mask decoder, with one mask per class.
    pub mask_decoder: MaskDecoder,
    #[module(skip)]
    fusion: Fusion,
    #[module(skip)]
    pixel_scale: PixelScale,
    /// Whether the frozen tensors came from SAM's checkpoint, so that a ladder checkpoint can do without them.
    #[module(skip)]
    pub(crate) sam_loaded: bool,
}

impl<S: SideEncoder> Ladder<S> {
    /// `side` is built only where the fusion uses one. The configuration must be valid.
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
            sam_loaded: false,
        };
        match fusion {
            Fusion::Untrained => ladder.no_grad(),
            _ => ladder,
        }
    }

    /// Draws one mask per class.
    ///
    /// `embedding` is the foundation's, of the same image; [`Fusion::SideOnly`] does without it. On an autodiff device
    /// it takes part as a constant.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - embedding: `[B, C, G, G]`, `G = S / 16`
    /// - logits: `[B, K, 4 G, 4 G]`, iou: `[B, K]`
    ///
    /// # Panics
    ///
    /// If the embedding has another batch or size than the image's, or is missing where the fusion needs it.
    pub fn forward(
        &self,
        image: Tensor<4>,
        embedding: impl Into<Option<Tensor<4>>>,
    ) -> MaskPrediction {
        let [batch, _, _, size] = image.dims();
        let grid = size / sam_encoder::PATCH_SIZE;
        let [_, width] = self.prompt_encoder.no_mask_embed.dims();
        let expected = [batch, width, grid, grid];
        let check = |embedding: Tensor<4>, whose: &str| {
            assert_eq!(
                embedding.dims(),
                expected,
                "{whose} embedding is {:?}, but the image {:?} needs {expected:?}",
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
            (Some(network), Some(gate)) => gate.forward(sam(), side(network)),
            (Some(network), None) => side(network),
            (None, _) => sam(),
        };
        self.mask_decoder.forward(
            fused,
            self.prompt_encoder.image_positions(grid),
            self.prompt_encoder.forward(&Prompts::default(), grid),
        )
    }

    /// The gate's current value, the weight of SAM's embedding; none where there is no gate.
    pub fn gate_value(&self) -> Option<f32> {
        self.gate.as_ref().map(GatedFusion::value)
    }

    /// Which image embedding the decoder sees.
    pub fn fusion(&self) -> Fusion {
        self.fusion
    }

    /// The tensors that require gradients, by name, with the number of their values. Empty on a device without autodiff.
    pub fn trained_tensors(&self) -> Vec<(String, usize)> {
        #[derive(Default)]
        struct Trained {
            path: Vec<String>,
            tensors: Vec<(String, usize)>,
        }
        impl ModuleVisitor for Trained {
            fn enter_module(&mut self, name: &str, _: &str) {
                self.path.push(name.to_string());
            }
            fn exit_module(&mut self, _: &str, _: &str) {
                self.path.pop();
            }
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if param.is_require_grad() {
                    let name = crate::weights::official_name(&self.path.join("."));
                    self.tensors.push((name, param.shape().num_elements()));
                }
            }
        }
        let mut trained = Trained::default();
        self.visit(&mut trained);
        trained.tensors
    }
}

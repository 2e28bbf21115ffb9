use super::network::{ENUM, constant_beside};
use super::segmentation_model::{SegmentationModel, init_params, with_seed};
use super::tuning_config::{EncoderTuning, SamTuningConfig};
use super::{
    ConfigError, EncoderConfig, Foundation, ImageEncoder, ModelError, NetworkConfig,
    NetworkMetadata, PixelScale, SegmentationNetwork,
};
use crate::weights::{self, IMAGE_ENCODER, StateDict, WeightsError, official_name};
use burn::module::{Initializer, Module, ModuleMapper, Param};
use burn::tensor::{Device, FloatDType, Tensor};
use sam_lst_mask_decoder::{DecoderTuning, MaskDecoder, PromptEncoder, Prompts};
use sam_lst_peft::{
    BlockAdaptation, BlockAdapters, BlockAdaptersConfig, BlockLora, BlockLoraConfig, BlockPrompt,
    FrequencyPrompts, FrequencyPromptsConfig,
};
use sam_lst_sam_encoder::{PATCH_SIZE, SamEncoderPart};
use sam_lst_sam_nn::{AdaptedLayer, round_weights};
use sam_lst_tiny_vit::TinyVitPart;
use std::path::Path;

/// SAM whose image encoder, or part of it, is fine-tuned: the other methods of the paper's tables.
///
/// What is frozen and comes first in the encoder is the model's [`Foundation`], whose output is
/// cached as a ladder's embeddings are: the whole encoder if only the decoder trains, the blocks
/// before the first adapted one otherwise. The rest of the encoder is part of this network, since
/// gradients flow through it.
#[derive(Module, Debug)]
pub struct TunedSam {
    /// The part of the image encoder that is not the foundation, if there is one.
    pub image_encoder: Option<EncoderPart>,
    /// LoRA of each block of the encoder that has it.
    pub lora: Vec<Option<BlockLora>>,
    /// Adapters of each block of the encoder that has them.
    pub adapters: Vec<Option<BlockAdapters>>,
    /// SAM-Adapter's prompts of all blocks.
    pub frequency_prompts: Option<FrequencyPrompts>,
    /// Learnable prompt tokens for the decoder, `[tokens, C]`.
    pub prompt_tokens: Option<Param<Tensor<2>>>,
    /// SAM's prompt encoder.
    pub prompt_encoder: PromptEncoder,
    /// SAM's mask decoder, with one mask per class.
    pub mask_decoder: MaskDecoder,
    #[module(skip)]
    tuning: EncoderTuning,
    #[module(skip)]
    pixel_scale: PixelScale,
    #[module(skip)]
    stride: usize,
}

/// A part of an image encoder.
#[derive(Module, Debug)]
pub enum EncoderPart {
    /// Of SAM's ViT.
    Vit(SamEncoderPart),
    /// Of TinyViT.
    TinyVit(TinyVitPart),
}

/// What a block of the encoder is adapted by.
enum Adaptation<'a> {
    Lora(&'a BlockLora),
    Adapters(&'a BlockAdapters),
    Prompt(&'a BlockPrompt),
}

impl BlockAdaptation for Adaptation<'_> {
    fn input(&self, tokens: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Prompt(prompt) => prompt.input(tokens),
            _ => tokens,
        }
    }

    fn linear(&self, layer: AdaptedLayer, input: &Tensor<2>, output: Tensor<2>) -> Tensor<2> {
        match self {
            Self::Lora(lora) => lora.linear(layer, input, output),
            _ => output,
        }
    }

    fn attention(&self, output: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Adapters(adapters) => adapters.attention(output),
            _ => output,
        }
    }

    fn mlp(&self, normed: &Tensor<4>, output: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Adapters(adapters) => adapters.mlp(normed, output),
            _ => output,
        }
    }
}

impl EncoderPart {
    fn forward_adapted<'a>(
        &self,
        input: Tensor<4>,
        adaptation: impl Fn(usize) -> Option<Adaptation<'a>>,
    ) -> Tensor<4> {
        match self {
            Self::Vit(part) => part.forward_adapted(input, adaptation),
            Self::TinyVit(part) => part.forward_adapted(input, adaptation),
        }
    }
}

impl ImageEncoder for EncoderPart {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        match self {
            Self::Vit(part) => part.forward(image),
            Self::TinyVit(part) => part.forward(image),
        }
    }

    fn stride(&self) -> usize {
        match self {
            Self::Vit(_) => PATCH_SIZE,
            Self::TinyVit(part) => part.stride(),
        }
    }

    fn channels(&self) -> usize {
        match self {
            Self::Vit(part) => part.channels(),
            Self::TinyVit(part) => part.channels(),
        }
    }

    fn with_precision(self, dtype: FloatDType) -> Option<Self> {
        let exact = ["pos_embed", "rel_pos_h", "rel_pos_w", "attention_biases"];
        Some(round_weights(self, dtype, &exact))
    }
}

/// Which tensors of an encoder a part has, by their official names without `image_encoder.`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Half {
    Whole,
    /// The layers before a block of a ViT, or a stage of TinyViT.
    Before(usize),
    /// Those from it on.
    From(usize),
}

impl Half {
    fn contains(self, name: &str) -> bool {
        let list = ["blocks.", "layers."].iter().find_map(|list| name.strip_prefix(list));
        let index = list.and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
        let is_first = !name.starts_with("neck.");
        match (self, index) {
            (Self::Whole, _) => true,
            (Self::Before(split), Some(index)) => index < split,
            (Self::From(split), Some(index)) => index >= split,
            (Self::Before(_), None) => is_first,
            (Self::From(_), None) => !is_first,
        }
    }
}

impl EncoderConfig {
    /// The part before a block and that from it on, with random weights; without a block, the whole
    /// encoder is the second.
    fn init_parts(&self, block: Option<usize>, device: &Device) -> [Option<EncoderPart>; 2] {
        match (self, block) {
            (Self::Vit(config), Some(block)) => {
                let parts = config.init(device).split(block);
                parts.map(|part| Some(EncoderPart::Vit(part)))
            }
            (Self::Vit(config), None) => [None, Some(EncoderPart::Vit(config.init(device).into()))],
            (Self::TinyVit(config), Some(block)) => {
                let stage = self.split_layer(block);
                config.init_split(stage, device).map(|part| Some(EncoderPart::TinyVit(part)))
            }
            (Self::TinyVit(config), None) => {
                [None, Some(EncoderPart::TinyVit(config.init(device).into()))]
            }
            (Self::Custom(_), _) => unreachable!("`SamTuningConfig::validate` refuses it"),
        }
    }

    /// Loads a part of this encoder from a file.
    fn load_part(
        &self,
        part: EncoderPart,
        half: Half,
        source: &StateDict,
    ) -> Result<EncoderPart, WeightsError> {
        let folded;
        let (source, layers) = match self {
            Self::TinyVit(_) => {
                folded = weights::fold_batch_norms(source)?;
                (&folded, &weights::TINY_VIT)
            }
            _ => (source, &IMAGE_ENCODER),
        };
        weights::load_where(part, source, layers, |name| half.contains(name))
    }
}

impl SamTuningConfig {
    /// Creates a model with random weights, determined by the seed.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for an invalid setting.
    pub fn init(&self, device: &Device) -> Result<SegmentationModel<TunedSam>, ConfigError> {
        self.validate()?;
        let inner = device.clone().inner();
        let seed = self.seed.wrapping_add(1);
        let foundation = match self.tuning.first_block() {
            Some(None) => Some(with_seed(seed, &inner, || {
                self.encoder
                    .init(&inner)
                    .map(|encoder| Foundation::from_frozen(encoder, self.pixel_scale))
            })?),
            Some(Some(block)) => with_seed(seed, &inner, || {
                let [before, _] = self.encoder.init_parts(Some(block), &inner);
                before.map(|part| {
                    let part = init_params(part);
                    Foundation::new(part, self.pixel_scale)
                })
            }),
            None => None,
        };
        let network = |device: &Device| TunedSam::new(self, device);
        Ok(SegmentationModel::with_random_network(self, foundation, network, device))
    }

    /// Creates a model for training from SAM's checkpoint, or that of MedSAM, LiteMedSAM or
    /// MobileSAM. What the file does not contain is random.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`] for an invalid setting, [`ModelError::Weights`] for an invalid file.
    pub fn from_official(
        &self,
        sam: impl AsRef<Path>,
        device: &Device,
    ) -> Result<SegmentationModel<TunedSam>, ModelError> {
        self.validate()?;
        let source = StateDict::open(sam)?;
        self.encoder.expect_in(&source)?;
        let foundation = match self.tuning.first_block() {
            Some(None) => {
                Some(Foundation::from_state_dict(&self.encoder, self.pixel_scale, &source, device)?)
            }
            Some(Some(block)) => {
                let [before, _] = self.encoder.init_parts(Some(block), &device.clone().inner());
                let half = Half::Before(self.encoder.split_layer(block));
                let part = before.map(|part| self.encoder.load_part(part, half, &source));
                part.transpose()?.map(|part| Foundation::new(part, self.pixel_scale))
            }
            None => None,
        };
        let network = |device: &Device| TunedSam::new(self, device);
        let mut model = SegmentationModel::with_random_network(self, foundation, network, device);
        let half = match self.tuning.first_block() {
            Some(Some(block)) => Half::From(self.encoder.split_layer(block)),
            _ => Half::Whole,
        };
        let network = &mut model.network;
        let part = network.image_encoder.take();
        let part = part.map(|part| self.encoder.load_part(part, half, &source));
        network.image_encoder = part.transpose()?;
        network.prompt_encoder =
            weights::load(network.prompt_encoder.clone(), &source, &weights::PROMPT_ENCODER)?;
        network.mask_decoder =
            weights::load(network.mask_decoder.clone(), &source, &weights::CLASS_DECODER)?;
        model.frozen_loaded = true;
        Ok(model)
    }

    /// Loads a trained model from SAM's checkpoint and the checkpoint of the network, which contains
    /// the configuration.
    ///
    /// # Errors
    ///
    /// As [`SamLst::from_pretrained`](super::SamLst::from_pretrained).
    pub fn from_pretrained(
        sam: impl AsRef<Path>,
        network: impl AsRef<Path>,
        device: &Device,
    ) -> Result<SegmentationModel<TunedSam>, ModelError> {
        let config: Self = NetworkMetadata::read(&network)?.config()?;
        let mut model = config.from_official(sam, device)?;
        model.load_network(network)?;
        Ok(model)
    }
}

impl TunedSam {
    /// Creates a network with random weights, of which those of the tuning require gradients. The
    /// configuration must be valid.
    fn new(config: &SamTuningConfig, device: &Device) -> Self {
        let SamTuningConfig { encoder, tuning, .. } = config;
        let image_encoder = match tuning.first_block() {
            Some(None) => None,
            Some(block) => encoder.init_parts(block, device)[1].take(),
            None => encoder.init_parts(None, device)[1].take(),
        };
        let widths = encoder.block_widths();
        let adapted = |first: usize| {
            let blocks = widths.iter().enumerate();
            blocks.map(move |(index, widths)| (index >= first).then_some(*widths))
        };
        let mut network = Self {
            image_encoder,
            lora: Vec::new(),
            adapters: Vec::new(),
            frequency_prompts: None,
            prompt_tokens: None,
            prompt_encoder: config.prompt_encoder().init(device),
            mask_decoder: config.decoder.init(device).with_tuning(DecoderTuning::Full),
            tuning: *tuning,
            pixel_scale: config.pixel_scale,
            stride: encoder.stride(),
        };
        match *tuning {
            EncoderTuning::Decoder | EncoderTuning::Biases | EncoderTuning::Full => {}
            EncoderTuning::Prompts { tokens } => {
                let normal = Initializer::Normal { mean: 0.0, std: 1.0 };
                network.prompt_tokens =
                    Some(normal.init([tokens, config.decoder.embed_dim], device));
            }
            EncoderTuning::Lora { rank, targets, first_block } => {
                let lora = |[embed_dim, hidden_dim]: [usize; 2]| {
                    BlockLoraConfig { embed_dim, hidden_dim, rank, targets }.init(device)
                };
                network.lora = adapted(first_block).map(|widths| widths.map(lora)).collect();
            }
            EncoderTuning::Adapters { reduction } => {
                let adapters = |[embed_dim, _]: [usize; 2]| {
                    let bottleneck = embed_dim / reduction;
                    BlockAdaptersConfig { embed_dim, bottleneck }.init(device)
                };
                network.adapters = adapted(0).map(|widths| widths.map(adapters)).collect();
            }
            EncoderTuning::FrequencyPrompts { reduction } => {
                let [embed_dim, _] = widths[0];
                let prompts =
                    FrequencyPromptsConfig::new(embed_dim, widths.len(), embed_dim / reduction);
                network.frequency_prompts = Some(prompts.init(device));
            }
        }
        network.with_gradients()
    }

    /// Makes the tensors that the tuning trains require gradients, and freezes those of the encoders
    /// that it does not.
    fn with_gradients(self) -> Self {
        struct Select {
            tuning: EncoderTuning,
            path: Vec<String>,
        }
        impl ModuleMapper for Select {
            fn enter_module(&mut self, name: &str, container: &str) {
                if !container.starts_with(ENUM) {
                    self.path.push(name.to_owned());
                }
            }
            fn exit_module(&mut self, _: &str, container: &str) {
                if !container.starts_with(ENUM) {
                    self.path.pop();
                }
            }
            fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
                let name = official_name(&self.path.join("."));
                match self.tuning.trains(&name) {
                    Some(trains) => param.set_require_grad(trains),
                    None => param,
                }
            }
        }
        let tuning = self.tuning;
        self.map(&mut Select { tuning, path: Vec::new() })
    }

    /// What a block of the encoder is adapted by.
    fn adaptation<'a>(
        &'a self,
        prompts: &'a [BlockPrompt],
        block: usize,
    ) -> Option<Adaptation<'a>> {
        let lora = || self.lora.get(block)?.as_ref().map(Adaptation::Lora);
        let adapters = || self.adapters.get(block)?.as_ref().map(Adaptation::Adapters);
        lora().or_else(adapters).or_else(|| prompts.get(block).map(Adaptation::Prompt))
    }

    /// The image embedding `[B, C, G, G]`, from the image or from what the foundation computed.
    fn embed(&self, image: Tensor<4>, frozen: Option<Tensor<4>>) -> Tensor<4> {
        let Some(encoder) = &self.image_encoder else {
            return frozen.expect("the foundation's embedding");
        };
        let input = frozen.unwrap_or_else(|| self.pixel_scale.apply(image));
        let prompts = match (&self.frequency_prompts, encoder) {
            (Some(prompts), EncoderPart::Vit(part)) => {
                prompts.forward(input.clone(), part.patches(input.clone()))
            }
            _ => Vec::new(),
        };
        encoder.forward_adapted(input, |block| self.adaptation(&prompts, block))
    }
}

impl SegmentationNetwork for TunedSam {
    type Config = SamTuningConfig;
    type Foundation = Option<Foundation>;

    fn logits(&self, image: Tensor<4>, embedding: Option<Tensor<4>>) -> Tensor<4> {
        let [batch, _, _, size] = image.dims();
        let grid = size / self.stride;
        let frozen = embedding.map(|frozen| constant_beside(&image, frozen));
        let embedding = self.embed(image, frozen);
        let mut prompts = self.prompt_encoder.forward(&Prompts::default(), grid);
        prompts.sparse = self.prompt_tokens.as_ref().map(|tokens| {
            let [count, width] = tokens.dims();
            tokens.val().unsqueeze::<3>().expand([batch, count, width])
        });
        let positions = self.prompt_encoder.image_positions(grid);
        self.mask_decoder.forward(embedding, positions, prompts).logits
    }

    fn uses_embedding(&self) -> bool {
        self.tuning.first_block().is_some()
    }

    fn is_in_foundation_file(&self, name: &str) -> bool {
        self.tuning.trains(name) == Some(false)
    }
}

use super::{Baseline, BaselineConfig, is_below};
use crate::model::error::require;
use crate::model::{InvalidSetting, NoFoundation, SegmentationNetwork};
use crate::weights::{self, Part, SWIN, StateDict, WeightsError};
use burn::tensor::{Device, Tensor};
use sam_lst_baselines::{SwinUNet, SwinUNetConfig};

/// Prefixes of the tensors of the encoder's stages. There are at most six.
const PREFIXES: [&str; 6] =
    ["layers.0.", "layers.1.", "layers.2.", "layers.3.", "layers.4.", "layers.5."];

impl Baseline for SwinUNetConfig {
    const METHOD: &'static str = "swin-unet";
    type Network = SwinUNet;

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn validate(&self, input_size: usize) -> Result<(), InvalidSetting> {
        let encoder = &self.encoder;
        let stages = encoder.depths.len();
        require(
            (2..=6).contains(&stages) && !encoder.depths.contains(&0),
            "network.encoder.depths",
            format!("{:?}", encoder.depths),
            "between 2 and 6 stages with at least one block each",
        )?;
        let heads = &encoder.num_heads;
        require(
            encoder.embed_dim > 0
                && heads.len() == stages
                && (0..stages).all(|s| heads[s] > 0 && encoder.width(s).is_multiple_of(heads[s])),
            "network.encoder.num_heads",
            format!("{heads:?}"),
            "one number for each stage, which divides the stage's width: network.encoder.embed_dim, \
             and twice as many in each further stage",
        )?;
        require(
            (1..=64).contains(&encoder.window_size),
            "network.encoder.window_size",
            encoder.window_size,
            "between 1 and 64",
        )?;
        require(
            input_size.is_multiple_of(encoder.stride()),
            "input_size",
            format!("{input_size}, with {stages} stages"),
            "a multiple of 4 and of a further 2 for each stage after the first",
        )
    }

    fn init(&self, _: usize, device: &Device) -> SwinUNet {
        self.init(device)
    }

    /// As in the published code, a stage of fewer blocks than Swin-T's gets the first of them, and
    /// the decoder's blocks those of the encoder's stage of the same size.
    fn load_encoder(
        &self,
        mut network: SwinUNet,
        source: &StateDict,
    ) -> Option<Result<SwinUNet, WeightsError>> {
        let depths = &self.encoder.depths;
        let is_kept = |name: &str| {
            let mut stages = PREFIXES.iter().zip(depths);
            stages.all(|(prefix, &depth)| {
                name.strip_prefix(prefix).is_none_or(|rest| is_below(rest, "blocks.", depth))
            })
        };
        let load = || {
            network.encoder = weights::load_where(network.encoder, source, &SWIN, is_kept)?;
            let stages = network.decoder.into_iter().enumerate().map(|(index, stage)| {
                let level = depths.len() - 2 - index;
                let part = Part { prefix: PREFIXES[level], ..SWIN };
                weights::load_where(stage, source, &part, |name| {
                    name.starts_with("blocks.") && is_below(name, "blocks.", depths[level])
                })
            });
            network.decoder = stages.collect::<Result<_, _>>()?;
            Ok(network)
        };
        Some(load())
    }
}

impl SegmentationNetwork for SwinUNet {
    type Config = BaselineConfig<SwinUNetConfig>;
    type Foundation = NoFoundation;

    fn logits(&self, image: Tensor<4>, _: Option<Tensor<4>>) -> Tensor<4> {
        self.forward(image)
    }
}

use super::{Baseline, BaselineConfig, is_below};
use crate::model::error::require;
use crate::model::{InvalidSetting, NoFoundation, SegmentationNetwork};
use crate::weights::{self, HYBRID_RESNET, StateDict, WeightsError};
use burn::tensor::{Device, Tensor};
use sam_lst_baselines::{TransUNet, TransUNetConfig};

impl Baseline for TransUNetConfig {
    const METHOD: &'static str = "trans-unet";
    type Network = TransUNet;

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn validate(&self, input_size: usize) -> Result<(), InvalidSetting> {
        let Self { resnet, depth, embed_dim, num_heads, neck_channels, .. } = self;
        require(
            input_size.is_multiple_of(16),
            "input_size",
            input_size,
            "a multiple of 16, the stride of the network's encoder",
        )?;
        require(
            resnet.blocks.iter().all(|&count| count > 0),
            "network.resnet.blocks",
            format!("{:?}", resnet.blocks),
            "at least one block in each stage",
        )?;
        require(
            resnet.groups > 0 && resnet.width > 0 && resnet.width.is_multiple_of(resnet.groups),
            "network.resnet.width",
            resnet.width,
            "a positive multiple of network.resnet.groups",
        )?;
        require(
            *depth == 0
                || (*num_heads > 0 && *embed_dim > 0 && embed_dim.is_multiple_of(*num_heads)),
            "network.embed_dim",
            embed_dim,
            "a positive multiple of network.num_heads",
        )?;
        require(*neck_channels > 0, "network.neck_channels", neck_channels, "at least 1")?;
        require(
            !self.decoder_channels.contains(&0),
            "network.decoder_channels",
            format!("{:?}", self.decoder_channels),
            "at least one channel in each level",
        )
    }

    fn init(&self, input_size: usize, device: &Device) -> TransUNet {
        self.init(input_size, device)
    }

    fn load_encoder(
        &self,
        mut network: TransUNet,
        source: &StateDict,
    ) -> Option<Result<TransUNet, WeightsError>> {
        let depth = self.depth;
        let load = || {
            if !source.names().any(|name| name.starts_with(HYBRID_RESNET.prefix)) {
                return Err(WeightsError::WrongKind {
                    path: source.path().into(),
                    expected: HYBRID_RESNET.description.into(),
                    found: source.describe(),
                });
            }
            network.resnet = weights::load(network.resnet, source, &HYBRID_RESNET)?;
            network.transformer = match network.transformer {
                Some(transformer) => {
                    let is_kept = |name: &str| is_below(name, "blocks.", depth);
                    Some(weights::load_vision_transformer(transformer, source, is_kept)?)
                }
                None => None,
            };
            Ok(network)
        };
        Some(load())
    }
}

impl SegmentationNetwork for TransUNet {
    type Config = BaselineConfig<TransUNetConfig>;
    type Foundation = NoFoundation;

    fn logits(&self, image: Tensor<4>, _: Option<Tensor<4>>) -> Tensor<4> {
        self.forward(image)
    }
}

use super::{Baseline, BaselineConfig, validate_levels};
use crate::model::{InvalidSetting, NoFoundation, SegmentationNetwork};
use burn::tensor::{Device, Tensor};
use sam_lst_baselines::{AttentionUNet, AttentionUNetConfig};

impl Baseline for AttentionUNetConfig {
    const METHOD: &'static str = "attention-unet";
    type Network = AttentionUNet;

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn validate(&self, input_size: usize) -> Result<(), InvalidSetting> {
        validate_levels(&self.channels, input_size)
    }

    fn init(&self, _: usize, device: &Device) -> AttentionUNet {
        self.init(device)
    }
}

impl SegmentationNetwork for AttentionUNet {
    type Config = BaselineConfig<AttentionUNetConfig>;
    type Foundation = NoFoundation;

    fn logits(&self, image: Tensor<4>, _: Option<Tensor<4>>) -> Tensor<4> {
        self.forward(image)
    }
}

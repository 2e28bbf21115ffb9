use super::{Baseline, BaselineConfig, validate_levels};
use crate::model::{InvalidSetting, NoFoundation, SegmentationNetwork, SupervisedLogits};
use burn::tensor::{Device, Tensor};
use sam_lst_baselines::{UNet, UNetConfig};

impl Baseline for UNetConfig {
    const METHOD: &'static str = "unet";
    type Network = UNet;

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn validate(&self, input_size: usize) -> Result<(), InvalidSetting> {
        validate_levels(&self.channels, input_size)
    }

    fn init(&self, _: usize, device: &Device) -> UNet {
        self.init(device)
    }
}

impl SegmentationNetwork for UNet {
    type Config = BaselineConfig<UNetConfig>;
    type Foundation = NoFoundation;

    fn logits(&self, image: Tensor<4>, _: Option<Tensor<4>>) -> Tensor<4> {
        self.forward(image)
    }

    /// Each level has half the weight of the next finer one, as in nnU-Net.
    fn supervised_logits(&self, image: Tensor<4>, _: Option<Tensor<4>>) -> Vec<SupervisedLogits> {
        let levels = self.forward_supervised(image);
        let weight = |level: usize| 0.5_f64.powi(level as i32);
        let total: f64 = (0..levels.len()).map(weight).sum();
        let supervised =
            |(level, logits)| SupervisedLogits { logits, weight: weight(level) / total };
        levels.into_iter().enumerate().map(supervised).collect()
    }
}

use super::{Baseline, BaselineConfig, validate_levels};
use crate::model::{InvalidSetting, NoFoundation, SegmentationNetwork, SupervisedLogits, require};
use burn::tensor::{Device, Tensor};
use sam_lst_baselines::{UNet, UNetConfig};

impl Baseline for UNetConfig {
    const METHOD: &'static str = "unet";
    type Network = UNet;

    fn num_classes(&self) -> usize {
        self.num_classes
    }

    fn validate(&self, input_size: usize) -> Result<(), InvalidSetting> {
        require(
            self.features.is_none(),
            "network.features",
            format!("{:?}", self.features),
            "none, since the method has no foundation that computes features",
        )?;
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

    fn supervised_logits(&self, image: Tensor<4>, _: Option<Tensor<4>>) -> Vec<SupervisedLogits> {
        SupervisedLogits::of_levels(self.forward_supervised(image))
    }
}

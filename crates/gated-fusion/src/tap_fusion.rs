use crate::{GatedFusion, GatedFusionConfig};
use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{
    BatchNorm2d, BatchNorm2dConfig, convolve_same, resize_bilinear_channels_last,
};

/// Configuration of [`TapFusion`].
#[derive(Config, Debug)]
pub struct TapFusionConfig {
    /// Channels of the foundation's features.
    pub tap_channels: usize,
    /// Channels of the side network's features.
    pub stage_channels: usize,
}

/// Mixes features from inside the foundation into those of a stage of the side network:
/// `gate * projected + (1 - gate) * stage`.
///
/// The foundation's features are projected to the stage's channels and enlarged, or reduced, to its
/// grid. As in LST, the gate is `sigmoid(alpha / 0.1)` with one scalar `alpha` that starts at 0. LST
/// projects with a linear layer; a batch norm follows it here, because the features of SAM's blocks
/// have another scale in each block.
#[derive(Module, Debug)]
pub struct TapFusion {
    /// 1 x 1 convolution from the foundation's channels to the stage's.
    pub projection: Conv2d,
    /// Norm of the projected features.
    pub norm: BatchNorm2d,
    /// The gate: the weight of the foundation's features.
    pub gate: GatedFusion,
}

/// LST's temperature of the gates.
const TEMPERATURE: f64 = 0.1;

impl TapFusionConfig {
    /// Creates the layers. The projection has random weights, the gate is 0.5.
    pub fn init(&self, device: &Device) -> TapFusion {
        let channels = [self.tap_channels, self.stage_channels];
        TapFusion {
            projection: Conv2dConfig::new(channels, [1, 1]).with_bias(false).init(device),
            norm: BatchNorm2dConfig::new(self.stage_channels).init(device),
            gate: GatedFusionConfig::new().with_temperature(TEMPERATURE).init(device),
        }
    }
}

impl TapFusion {
    /// Mixes the foundation's features into those of the stage.
    ///
    /// # Shapes
    ///
    /// - stage: `[B, H, W, stage channels]`
    /// - tap: `[B, h, w, tap channels]`
    /// - output: `[B, H, W, stage channels]`
    ///
    /// # Panics
    ///
    /// If the last axes are not these channels.
    pub fn forward(&self, stage: Tensor<4>, tap: Tensor<4>) -> Tensor<4> {
        let [_, height, width, _] = stage.dims();
        let projected = convolve_same(&self.projection, tap);
        let projected = self.norm.forward_channels_last(projected, None, false);
        let resized = resize_bilinear_channels_last(projected, [height, width]);
        self.gate.forward(resized, stage)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_closed_gate_leaves_the_stage_and_an_open_one_the_tap() {
        let device = Device::flex();
        let stage = Tensor::<4>::full([1, 8, 4, 3], 2.0, &device);
        let tap = Tensor::<4>::ones([1, 2, 2, 5], &device);
        let mut fusion = TapFusionConfig::new(5, 3).init(&device);
        let projected = convolve_same(&fusion.projection, tap.clone());
        let projected = fusion.norm.forward_channels_last(projected, None, false);
        let enlarged = resize_bilinear_channels_last(projected, [8, 4]);
        for (alpha, expected) in [
            (-90.0, stage.clone()),
            (90.0, enlarged.clone()),
            (0.0, (stage.clone() + enlarged) / 2.0),
        ] {
            fusion.gate = GatedFusionConfig::new().with_initial_alpha(alpha).init(&device);
            let output = fusion.forward(stage.clone(), tap.clone());
            let tolerance = burn::tensor::Tolerance::absolute(1e-5);
            output.into_data().assert_approx_eq::<f32>(&expected.into_data(), tolerance);
        }
        // The gate of the configuration has a temperature of 0.1.
        let gate = TapFusionConfig::new(5, 3).init(&device).gate;
        let gate = GatedFusion { alpha: gate.alpha.map(|alpha| alpha + 0.1), ..gate };
        assert!((gate.value() - 1.0 / (1.0 + (-1.0_f32).exp())).abs() < 1e-6);
    }
}

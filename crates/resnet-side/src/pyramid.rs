use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};
use sam_lst_sam_nn::{pointwise_channels_last, resize_bilinear, resize_bilinear_channels_last};

/// A feature pyramid over three layers of features, such as those of a ResNet: a 1 x 1 convolution
/// of each, enlarged bilinearly to the finest, and their sum.
#[derive(Module, Debug)]
pub struct Pyramid {
    /// 1 x 1 convolution of the features of `layer1`, at 1/4 of the input's size.
    pub lateral1: Conv2d,
    /// 1 x 1 convolution of the features of `layer2`, at 1/8 of the input's size.
    pub lateral2: Conv2d,
    /// 1 x 1 convolution of the features of `layer3`, at 1/16 of the input's size.
    pub lateral3: Conv2d,
}

impl Pyramid {
    /// Creates the convolutions with random weights, from the channels of the three layers to
    /// `channels`.
    pub fn init(layers: [usize; 3], channels: usize, device: &Device) -> Self {
        let [lateral1, lateral2, lateral3] =
            layers.map(|width| Conv2dConfig::new([width, channels], [1, 1]).init(device));
        Self { lateral1, lateral2, lateral3 }
    }

    /// Sums the features of the three layers, finest first.
    ///
    /// # Shapes
    ///
    /// - features: `[B, C1, H, W]`, `[B, C2, H / 2, W / 2]`, `[B, C3, H / 4, W / 4]`
    /// - output: `[B, channels, H, W]`
    ///
    /// # Panics
    ///
    /// If the features do not have these channels.
    pub fn forward(&self, [fine, middle, coarse]: [Tensor<4>; 3]) -> Tensor<4> {
        let [_, _, height, width] = fine.dims();
        let size = [height, width];
        if sam_lst_cpu_kernels::is_supported(&fine) {
            let project = |lateral, features: Tensor<4>| {
                pointwise_channels_last(lateral, features.permute([0, 2, 3, 1]))
            };
            let enlarged =
                |lateral, features| resize_bilinear_channels_last(project(lateral, features), size);
            let sum = project(&self.lateral1, fine)
                + enlarged(&self.lateral2, middle)
                + enlarged(&self.lateral3, coarse);
            return sum.permute([0, 3, 1, 2]);
        }
        let enlarged =
            |lateral: &Conv2d, features| resize_bilinear(lateral.forward(features), size);
        self.lateral1.forward(fine)
            + enlarged(&self.lateral2, middle)
            + enlarged(&self.lateral3, coarse)
    }
}

use crate::basic_block::{conv, conv_channels_last};
use crate::{BasicBlock, BasicBlockConfig, BatchNorm2d, BatchNorm2dConfig, Pyramid};
use burn::config::Config;
use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::Conv2d;
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, assert_shape};

/// Configuration of [`ResNetSide`]. The published networks are [`resnet18`](Self::resnet18) and
/// [`resnet34`](Self::resnet34).
#[derive(Config, Debug, PartialEq)]
pub struct ResNetSideConfig {
    /// Number of blocks in `layer1`, `layer2` and `layer3`.
    pub blocks: [usize; 3],
    /// Channels of the stem; `layer3` has four times as many.
    #[config(default = 64)]
    pub width: usize,
    /// Channels of a feature pyramid over the three layers, whose output has stride 4; `None` for
    /// the features of `layer3`, which have stride 16.
    #[config(default = "None")]
    pub pyramid_channels: Option<usize>,
}

impl ResNetSideConfig {
    /// ResNet18 up to `layer3`: 2,782,784 parameters. It is the side network of the published
    /// method.
    pub fn resnet18() -> Self {
        Self::new([2, 2, 2])
    }

    /// ResNet34 up to `layer3`.
    pub fn resnet34() -> Self {
        Self::new([3, 4, 6])
    }

    /// Channels of the network's output.
    pub fn out_channels(&self) -> usize {
        self.pyramid_channels.unwrap_or(4 * self.width)
    }

    /// Input pixels along one side of a pixel of the network's output.
    pub fn stride(&self) -> usize {
        if self.pyramid_channels.is_some() { 4 } else { 16 }
    }

    /// Creates the network with random weights from the same distributions as in torchvision.
    ///
    /// # Panics
    ///
    /// If a layer has no blocks or `width` is zero.
    pub fn init(&self, device: &Device) -> ResNetSide {
        assert!(self.width > 0, "width must be positive");
        assert!(
            self.blocks.iter().all(|&count| count > 0),
            "each layer must have at least one block, found {:?}",
            self.blocks
        );
        let layer = |index: usize, channels: [usize; 2], stride: usize| -> Vec<BasicBlock> {
            let first = BasicBlockConfig::new(channels).with_stride(stride);
            let rest = BasicBlockConfig::new([channels[1]; 2]);
            std::iter::once(first)
                .chain(std::iter::repeat_n(rest, self.blocks[index] - 1))
                .map(|block| block.init(device))
                .collect()
        };
        let width = self.width;
        ResNetSide {
            conv1: conv([3, width], 7, 2, device),
            bn1: BatchNorm2dConfig::new(width).init(device),
            max_pool: MaxPool2dConfig::new([3, 3])
                .with_strides([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(),
            layer1: layer(0, [width, width], 1),
            layer2: layer(1, [width, 2 * width], 2),
            layer3: layer(2, [2 * width, 4 * width], 2),
            pyramid: self.pyramid_channels.map(|channels| Pyramid::init(width, channels, device)),
        }
    }
}

/// A ResNet up to `layer3`.
#[derive(Module, Debug)]
pub struct ResNetSide {
    /// 7 x 7 convolution with stride 2.
    pub conv1: Conv2d,
    /// Norm after the stem's convolution.
    pub bn1: BatchNorm2d,
    max_pool: MaxPool2d,
    /// Blocks at 1/4 of the input's size.
    pub layer1: Vec<BasicBlock>,
    /// Blocks at 1/8 of the input's size.
    pub layer2: Vec<BasicBlock>,
    /// Blocks at 1/16 of the input's size.
    pub layer3: Vec<BasicBlock>,
    /// Brings the features of all layers to 1/4 of the input's size.
    pub pyramid: Option<Pyramid>,
}

impl ResNetSide {
    /// Computes the features of `layer3`, or of the pyramid.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, `S` a multiple of 16
    /// - output: `[B, 4 width, S / 16, S / 16]`, with a pyramid `[B, channels, S / 4, S / 4]`
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        assert_shape!(image, [_, 3, _, _]);
        if sam_lst_cpu_kernels::is_supported(&image) {
            self.forward_channels_last(image)
        } else {
            self.forward_channels_first(image)
        }
    }

    fn forward_channels_first(&self, image: Tensor<4>) -> Tensor<4> {
        let stem = relu(self.bn1.forward(self.conv1.forward(image))); // [B, w, S/2, S/2]
        let pooled = self.max_pool.forward(stem); // [B, w, S/4, S/4]
        let [fine, middle, coarse] = self.layers(pooled, BasicBlock::forward);
        match &self.pyramid {
            Some(pyramid) => pyramid.forward([fine, middle, coarse]),
            None => coarse,
        }
    }

    /// The same with channels-last kernels, on the CPU.
    fn forward_channels_last(&self, image: Tensor<4>) -> Tensor<4> {
        let image = image.permute([0, 2, 3, 1]); // [B, S, S, 3]
        let stem = conv_channels_last(&self.conv1, image);
        let stem = self.bn1.forward_channels_last(stem, None, true); // [B, S/2, S/2, w]
        let pooled = sam_lst_cpu_kernels::max_pool(stem); // [B, S/4, S/4, w]
        let features = self.layers(pooled, BasicBlock::forward_channels_last);
        let [fine, middle, coarse] = features.map(|features| features.permute([0, 3, 1, 2]));
        match &self.pyramid {
            Some(pyramid) => pyramid.forward([fine, middle, coarse]),
            None => coarse,
        }
    }

    /// The features of the three layers.
    fn layers(
        &self,
        pooled: Tensor<4>,
        apply: impl Fn(&BasicBlock, Tensor<4>) -> Tensor<4>,
    ) -> [Tensor<4>; 3] {
        let layer = |blocks: &[BasicBlock], features| {
            blocks.iter().fold(features, |features, block| apply(block, features))
        };
        let fine = layer(&self.layer1, pooled);
        let middle = layer(&self.layer2, fine.clone());
        let coarse = layer(&self.layer3, middle.clone());
        [fine, middle, coarse]
    }

    #[cfg(test)]
    fn blocks(&self) -> impl Iterator<Item = &BasicBlock> {
        let first = self.layer1.iter();
        first.chain(&self.layer2).chain(&self.layer3)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::module::{ModuleMapper, ModuleVisitor, Param};
    use burn::tensor::{TensorData, Tolerance};

    /// The number of parameters without the running statistics, which `num_params` includes.
    fn num_trainable_params(network: &ResNetSide) -> usize {
        struct Count(usize);
        impl ModuleVisitor for Count {
            fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
                if param.is_require_grad() {
                    self.0 += param.shape().num_elements();
                }
            }
        }
        let mut count = Count(0);
        network.visit(&mut count);
        count.0
    }

    #[test]
    fn published_networks_have_the_published_parameter_counts() {
        let device = Device::flex();
        // Counted in torchvision's `resnet18` and `resnet34` without `layer4` and `fc`.
        for (config, parameters) in
            [(ResNetSideConfig::resnet18(), 2_782_784), (ResNetSideConfig::resnet34(), 8_170_304)]
        {
            let network = config.init(&device).train();
            assert_eq!(num_trainable_params(&network), parameters);
        }
    }

    /// Deterministic pseudo-random values between `-bound` and `bound`.
    fn fixed(shape: [usize; 4], bound: f32, seed: u64) -> TensorData {
        let count: usize = shape.iter().product();
        let values = (0..count as u64).map(|i| {
            // splitmix64
            let z = ((seed << 32) + i + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            bound * (((z ^ (z >> 31)) >> 40) as f32 / (1 << 23) as f32 - 1.0)
        });
        TensorData::new(values.collect::<Vec<f32>>(), shape)
    }

    /// Replaces the weights of convolutions by fixed values of the scale of initial weights.
    struct FixWeights {
        tensors: u64,
    }

    impl ModuleMapper for FixWeights {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            let Ok(shape) = <[usize; 4]>::try_from(param.dims().as_slice()) else {
                return param;
            };
            let [channels_out, _, rows, columns] = shape;
            let bound = (6.0 / (channels_out * rows * columns) as f32).sqrt();
            self.tensors += 1;
            let values = fixed(shape, bound, self.tensors);
            param.map(|weight| Tensor::from_data(values, &weight.device()).require_grad())
        }
    }

    fn weights(network: &ResNetSide) -> Vec<Tensor<4>> {
        network.blocks().map(|block| block.conv2.weight.val()).collect()
    }

    #[test]
    fn channels_last_equals_channels_first() {
        let device = Device::flex().autodiff();
        // Fixed values, independent of the random numbers of other tests: gradients are sensitive
        // to ReLU inputs near zero.
        for pyramid_channels in [None, Some(8)] {
            let config = ResNetSideConfig::resnet18().with_width(4);
            let network = config.with_pyramid_channels(pyramid_channels).init(&device);
            paths_are_equal(network.map(&mut FixWeights { tensors: 0 }), &device);
        }
    }

    fn paths_are_equal(network: ResNetSide, device: &Device) {
        let image = Tensor::from_data(fixed([2, 3, 48, 32], 1.73, 0), device) + 0.5;
        let image = image.detach().require_grad(); // mean 0.5, deviation 1
        let score = |output: Tensor<4>| (output.clone() * output).sum();
        // The two paths sum in different orders through six blocks with batch norms and ReLUs, so
        // the relative difference of single values can exceed 1. Differences are therefore bounded
        // relative to the largest value.
        let close = |ours: Tensor<4>, theirs: Tensor<4>| {
            let theirs = theirs.into_data();
            let largest = theirs.iter::<f64>().fold(0.0, |max: f64, x| max.max(x.abs()));
            assert!(largest > 0.0, "all expected values are zero");
            let tolerance = Tolerance::absolute(5e-5 * largest);
            ours.into_data().assert_approx_eq::<f32>(&theirs, tolerance);
        };
        // With autodiff: in training, which updates the running statistics, then frozen with these
        // statistics.
        for (network, gradients) in [(network.clone(), 7), (network.clone().freeze(), 1)] {
            let ours = network.forward_channels_last(image.clone());
            let theirs = network.forward_channels_first(image.clone());
            close(ours.clone().inner(), theirs.clone().inner());
            let [ours, theirs] = [ours, theirs].map(|output| score(output).backward());
            let tensors = || weights(&network).into_iter().chain([image.clone()]);
            let found = tensors().filter(|tensor| tensor.grad(&ours).is_some());
            assert_eq!(found.count(), gradients, "of six blocks and the image");
            for weight in tensors() {
                match (weight.grad(&ours), weight.grad(&theirs)) {
                    (Some(ours), Some(theirs)) => close(ours, theirs),
                    (None, None) => {}
                    (ours, _) => panic!("only one has a gradient: {}", ours.is_some()),
                }
            }
        }
        // Without autodiff.
        let (network, image) = (network.valid(), image.inner());
        let theirs = network.forward_channels_first(image.clone());
        close(network.forward(image), theirs);
    }

    #[test]
    fn output_side_follows_from_the_stride() {
        let device = Device::flex();
        let config = ResNetSideConfig::resnet18().with_width(4);
        let image = Tensor::ones([2, 3, 48, 48], &device);
        assert_eq!(config.init(&device).forward(image.clone()).dims(), [2, 16, 3, 3]);
        assert_eq!((config.out_channels(), config.stride()), (16, 16));

        let config = config.with_pyramid_channels(Some(8));
        assert_eq!(config.init(&device).forward(image).dims(), [2, 8, 12, 12]);
        assert_eq!((config.out_channels(), config.stride()), (8, 4));
    }
}

use crate::residual_block::conv;
use crate::{Pyramid, ResidualBlock, ResidualBlockConfig};
use burn::config::Config;
use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::pool::{MaxPool2d, MaxPool2dConfig};
use burn::tensor::activation::relu;
use burn::tensor::{Device, Tensor, assert_shape};
use sam_lst_sam_nn::{BatchNorm2d, BatchNorm2dConfig, convolve_same};

/// Configuration of [`ResNetSide`]. The published networks are [`resnet18`](Self::resnet18),
/// [`resnet34`](Self::resnet34) and [`resnet50`](Self::resnet50).
#[derive(Config, Debug, PartialEq)]
pub struct ResNetSideConfig {
    /// Number of blocks in `layer1`, `layer2` and `layer3`.
    pub blocks: [usize; 3],
    /// Channels of the stem; `layer3` has four times as many, times the expansion of bottlenecks.
    #[config(default = 64)]
    pub width: usize,
    /// For blocks that are bottlenecks of three convolutions, as in ResNet50, the channels of a
    /// block divided by those between its convolutions; `None` for blocks of two convolutions.
    #[config(default = "None")]
    pub bottleneck_expansion: Option<usize>,
    /// Channels of a feature pyramid over the three layers, whose output has stride 4; `None` for
    /// the features of `layer3`, which have stride 16.
    #[config(default = "None")]
    pub pyramid_channels: Option<usize>,
    /// Channels of a 1 x 1 convolution after `layer3`; `None` without one. Not with a pyramid.
    #[config(default = "None")]
    pub projection_channels: Option<usize>,
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

    /// ResNet50 up to `layer3`, whose output has 1024 channels.
    pub fn resnet50() -> Self {
        Self::new([3, 4, 6]).with_bottleneck_expansion(Some(4))
    }

    /// The network for an embedding of `channels` channels of a foundation of stride 4 or 16: with
    /// a pyramid at stride 4, and a projection at stride 16 if `layer3` has another number of
    /// channels.
    pub fn for_embedding(self, channels: usize, stride: usize) -> Self {
        let [.., coarsest] = self.layer_channels();
        let projection = (stride != 4 && coarsest != channels).then_some(channels);
        self.with_pyramid_channels((stride == 4).then_some(channels))
            .with_projection_channels(projection)
    }

    /// Channels of the three layers.
    fn layer_channels(&self) -> [usize; 3] {
        let expansion = self.bottleneck_expansion.unwrap_or(1);
        [1, 2, 4].map(|factor| factor * expansion * self.width)
    }

    /// Channels of the inputs of the three layers.
    pub fn layer_input_channels(&self) -> [usize; 3] {
        let [fine, middle, _] = self.layer_channels();
        [self.width, fine, middle]
    }

    /// Channels of the network's output.
    pub fn out_channels(&self) -> usize {
        let [.., coarsest] = self.layer_channels();
        self.pyramid_channels.or(self.projection_channels).unwrap_or(coarsest)
    }

    /// Input pixels along one side of a pixel of the network's output.
    pub fn stride(&self) -> usize {
        if self.pyramid_channels.is_some() { 4 } else { 16 }
    }

    /// Creates the network with random weights from the same distributions as in torchvision.
    ///
    /// # Panics
    ///
    /// If a layer has no blocks, `width` is zero, or there are both a pyramid and a projection.
    pub fn init(&self, device: &Device) -> ResNetSide {
        assert!(self.width > 0, "width must be positive");
        assert!(
            self.blocks.iter().all(|&count| count > 0),
            "each layer must have at least one block, found {:?}",
            self.blocks
        );
        assert!(
            self.pyramid_channels.is_none() || self.projection_channels.is_none(),
            "either a pyramid or a projection"
        );
        let block = |channels| {
            ResidualBlockConfig::new(channels).with_bottleneck_expansion(self.bottleneck_expansion)
        };
        let layer = |index: usize, channels: [usize; 2], stride: usize| -> Vec<ResidualBlock> {
            let first = block(channels).with_stride(stride);
            let rest = block([channels[1]; 2]);
            std::iter::once(first)
                .chain(std::iter::repeat_n(rest, self.blocks[index] - 1))
                .map(|block| block.init(device))
                .collect()
        };
        let width = self.width;
        let layers @ [fine, middle, coarse] = self.layer_channels();
        let projection = |channels| Conv2dConfig::new([coarse, channels], [1, 1]).init(device);
        ResNetSide {
            conv1: conv([3, width], 7, 2, device),
            bn1: BatchNorm2dConfig::new(width).init(device),
            max_pool: MaxPool2dConfig::new([3, 3])
                .with_strides([2, 2])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .init(),
            layer1: layer(0, [width, fine], 1),
            layer2: layer(1, [fine, middle], 2),
            layer3: layer(2, [middle, coarse], 2),
            pyramid: self.pyramid_channels.map(|channels| Pyramid::init(layers, channels, device)),
            projection: self.projection_channels.map(projection),
        }
    }
}

/// What is made of the input of a layer, by the layer's index.
pub type Mix<'a> = dyn Fn(usize, Tensor<4>) -> Tensor<4> + 'a;

/// A ResNet up to `layer3`.
#[derive(Module, Debug)]
pub struct ResNetSide {
    /// 7 x 7 convolution with stride 2.
    pub conv1: Conv2d,
    /// Norm after the stem's convolution.
    pub bn1: BatchNorm2d,
    max_pool: MaxPool2d,
    /// Blocks at 1/4 of the input's size.
    pub layer1: Vec<ResidualBlock>,
    /// Blocks at 1/8 of the input's size.
    pub layer2: Vec<ResidualBlock>,
    /// Blocks at 1/16 of the input's size.
    pub layer3: Vec<ResidualBlock>,
    /// Brings the features of all layers to 1/4 of the input's size.
    pub pyramid: Option<Pyramid>,
    /// 1 x 1 convolution of the features of `layer3`.
    pub projection: Option<Conv2d>,
}

impl ResNetSide {
    /// Computes the features of `layer3`, or of the pyramid.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, `S` a multiple of 16
    /// - output: `[B, C, S / 16, S / 16]`, with a pyramid `[B, C, S / 4, S / 4]`, where `C` is
    ///   [`ResNetSideConfig::out_channels`]
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels.
    pub fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        self.forward_mixed(image, &|_, input| input)
    }

    /// As [`forward`](Self::forward), with what `mix` makes of the input of each layer; it receives
    /// the layer's index, from 0, and its input, `[B, H, W, C]` with
    /// [`ResNetSideConfig::layer_input_channels`].
    ///
    /// # Panics
    ///
    /// If the image does not have 3 channels, or `mix` returns a tensor of another shape.
    pub fn forward_mixed(&self, image: Tensor<4>, mix: &Mix<'_>) -> Tensor<4> {
        assert_shape!(image, [_, 3, _, _]);
        if sam_lst_cpu_kernels::is_supported(&image) {
            self.forward_channels_last(image, mix)
        } else {
            self.forward_channels_first(image, mix)
        }
    }

    fn forward_channels_first(&self, image: Tensor<4>, mix: &Mix<'_>) -> Tensor<4> {
        let stem = relu(self.bn1.forward(self.conv1.forward(image))); // [B, w, S/2, S/2]
        let pooled = self.max_pool.forward(stem); // [B, w, S/4, S/4]
        let mix =
            |layer, input: Tensor<4>| mix(layer, input.permute([0, 2, 3, 1])).permute([0, 3, 1, 2]);
        self.output(self.layers(pooled, mix, ResidualBlock::forward))
    }

    /// The same with channels-last kernels, on the CPU.
    fn forward_channels_last(&self, image: Tensor<4>, mix: &Mix<'_>) -> Tensor<4> {
        let image = image.permute([0, 2, 3, 1]); // [B, S, S, 3]
        let stem = convolve_same(&self.conv1, image);
        let stem = self.bn1.forward_channels_last(stem, None, true); // [B, S/2, S/2, w]
        let pooled = sam_lst_cpu_kernels::max_pool(stem); // [B, S/4, S/4, w]
        let features = self.layers(pooled, mix, ResidualBlock::forward_channels_last);
        self.output(features.map(|features| features.permute([0, 3, 1, 2])))
    }

    /// The output from the features of the three layers, `[B, C, H, W]` each.
    fn output(&self, features: [Tensor<4>; 3]) -> Tensor<4> {
        if let Some(pyramid) = &self.pyramid {
            return pyramid.forward(features);
        }
        let [.., coarse] = features;
        match &self.projection {
            Some(projection) => {
                let channels_last = coarse.permute([0, 2, 3, 1]);
                convolve_same(projection, channels_last).permute([0, 3, 1, 2])
            }
            None => coarse,
        }
    }

    /// The features of the three layers.
    fn layers(
        &self,
        pooled: Tensor<4>,
        mix: impl Fn(usize, Tensor<4>) -> Tensor<4>,
        apply: impl Fn(&ResidualBlock, Tensor<4>) -> Tensor<4>,
    ) -> [Tensor<4>; 3] {
        let layer = |index, blocks: &[ResidualBlock], input| {
            blocks.iter().fold(mix(index, input), |features, block| apply(block, features))
        };
        let fine = layer(0, &self.layer1, pooled);
        let middle = layer(1, &self.layer2, fine.clone());
        let coarse = layer(2, &self.layer3, middle.clone());
        [fine, middle, coarse]
    }

    #[cfg(test)]
    fn blocks(&self) -> impl Iterator<Item = &ResidualBlock> {
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
        // Counted in torchvision's networks without `layer4` and `fc`.
        for (config, parameters) in [
            (ResNetSideConfig::resnet18(), 2_782_784),
            (ResNetSideConfig::resnet34(), 8_170_304),
            (ResNetSideConfig::resnet50(), 8_543_296),
        ] {
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
        let config = ResNetSideConfig::resnet18().with_width(4);
        for config in [config.clone(), config.with_pyramid_channels(Some(8))] {
            let network = config.init(&device);
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
            let mix = |layer, input: Tensor<4>| input * (layer + 1) as f64;
            let ours = network.forward_channels_last(image.clone(), &mix);
            let theirs = network.forward_channels_first(image.clone(), &mix);
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
        let theirs = network.forward_channels_first(image.clone(), &|_, input| input);
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
        assert_eq!(config.init(&device).forward(image.clone()).dims(), [2, 8, 12, 12]);
        assert_eq!((config.out_channels(), config.stride()), (8, 4));

        let config =
            ResNetSideConfig::new([1, 1, 1]).with_bottleneck_expansion(Some(4)).with_width(4);
        assert_eq!(config.out_channels(), 64);
        let projected = config.for_embedding(8, 16);
        assert_eq!(projected.init(&device).forward(image).dims(), [2, 8, 3, 3]);
        assert_eq!((projected.out_channels(), projected.stride()), (8, 16));
    }
}

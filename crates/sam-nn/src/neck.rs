use crate::{LayerNorm2d, LayerNorm2dConfig, cast_like, pointwise_channels_last};
use burn::config::Config;
use burn::module::Module;
use burn::nn::PaddingConfig2d;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, FloatDType, Tensor};

/// Configuration of [`Neck`].
#[derive(Config, Debug)]
pub struct NeckConfig {
    /// Embedding width `C` of a token.
    pub embed_dim: usize,
    /// Channels of the image embedding.
    pub out_channels: usize,
}

/// Projects an image encoder's tokens to the image embedding: convolution 1 x 1, norm, convolution
/// 3 x 3, norm.
#[derive(Module, Debug)]
pub struct Neck {
    /// 1 x 1 convolution without bias.
    pub conv1: Conv2d,
    /// Norm after the first convolution.
    pub norm1: LayerNorm2d,
    /// 3 x 3 convolution without bias.
    pub conv2: Conv2d,
    /// Norm after the second convolution.
    pub norm2: LayerNorm2d,
}

impl NeckConfig {
    /// Creates the neck with random weights.
    pub fn init(&self, device: &Device) -> Neck {
        let out = self.out_channels;
        Neck {
            conv1: Conv2dConfig::new([self.embed_dim, out], [1, 1]).with_bias(false).init(device),
            norm1: LayerNorm2dConfig::new(out).init(device),
            conv2: Conv2dConfig::new([out, out], [3, 3])
                .with_padding(PaddingConfig2d::Explicit(1, 1, 1, 1))
                .with_bias(false)
                .init(device),
            norm2: LayerNorm2dConfig::new(out).init(device),
        }
    }
}

impl Neck {
    /// Channels of the image embedding.
    pub fn channels(&self) -> usize {
        let [channels] = self.norm2.weight.dims();
        channels
    }

    /// Projects tokens to the image embedding. It computes convolutions in the float type of their
    /// weights and returns the float type of the tokens.
    ///
    /// # Shapes
    ///
    /// - tokens: `[B, G, G, C]`
    /// - output: `[B, out_channels, G, G]`
    ///
    /// # Panics
    ///
    /// If the last axis of `tokens` is not `C`.
    pub fn forward(&self, tokens: Tensor<4>) -> Tensor<4> {
        let dtype = FloatDType::from(tokens.dtype());
        let tokens = cast_like(tokens, &self.conv1.weight);
        if sam_lst_cpu_kernels::is_supported(&tokens) {
            return self.forward_channels_last(tokens);
        }
        let convolve = |convolution: &Conv2d, input| {
            let input = cast_like(input, &convolution.weight);
            convolution.forward(input).cast(dtype)
        };
        let embedding = convolve(&self.conv1, tokens.permute([0, 3, 1, 2])); // [B, out, G, G]
        let embedding = self.norm1.forward(embedding);
        self.norm2.forward(convolve(&self.conv2, embedding))
    }

    /// The same with channels-last kernels, on the CPU.
    fn forward_channels_last(&self, tokens: Tensor<4>) -> Tensor<4> {
        let projected = pointwise_channels_last(&self.conv1, tokens);
        let features = self.norm1.forward_channels_last(projected);
        let features = sam_lst_cpu_kernels::conv2d(features, self.conv2.weight.val(), 1, 1);
        self.norm2.forward_channels_last(features).permute([0, 3, 1, 2])
    }
}

use super::error::require;
use super::{InvalidSetting, SideEncoder};
use crate::weights::{self, Part, RESNET, SWIN, StateDict, WeightsError};
use burn::config::Config;
use burn::module::{
    Content, Devices, Module, ModuleDisplay, ModuleDisplayDefault, ModuleMapper, ModuleVisitor,
};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor};
use sam_lst_backbones::{Swin, SwinConfig, VisionTransformer, VisionTransformerConfig};
use sam_lst_resnet_side::{Pyramid, ResNetSide, ResNetSideConfig};
use sam_lst_sam_nn::{convolve_same, resize_bilinear};

/// The side network, which runs in parallel with the foundation.
#[derive(Config, Debug, PartialEq)]
pub enum SideConfig {
    /// A ResNet up to `layer3`.
    ResNet(ResNetSideConfig),
    /// A Swin Transformer of three stages.
    Swin(SwinConfig),
    /// A Vision Transformer.
    VisionTransformer(VisionTransformerSideConfig),
    /// A custom side network, identified in checkpoints by this name.
    Custom(String),
}

/// Configuration of a Vision Transformer as side network.
#[derive(Config, Debug, PartialEq)]
pub struct VisionTransformerSideConfig {
    /// Width of the tokens, one for each 16 x 16 pixels.
    #[config(default = 192)]
    pub embed_dim: usize,
    /// Number of blocks.
    #[config(default = 12)]
    pub depth: usize,
    /// Number of attention heads; divides `embed_dim`.
    #[config(default = 3)]
    pub num_heads: usize,
}

/// What a side network has to fit: the foundation's embedding and the input.
#[derive(Debug, Clone, Copy)]
pub(super) struct SideShape {
    /// Channels of the embedding.
    pub channels: usize,
    /// Input pixels along one side of a pixel of the embedding.
    pub stride: usize,
    /// Side of the input in pixels.
    pub input_size: usize,
}

impl SideConfig {
    /// Swin-T up to its third stage, timm's `swin_tiny_patch4_window7_224`: 12.2 million
    /// parameters.
    pub fn swin_tiny() -> Self {
        Self::Swin(SwinConfig::tiny().with_depths(vec![2, 2, 6]).with_num_heads(vec![3, 6, 12]))
    }

    /// ViT-Tiny, timm's `vit_tiny_patch16_224`: 5.5 million parameters.
    pub fn vit_tiny() -> Self {
        Self::VisionTransformer(VisionTransformerSideConfig::new())
    }

    /// Channels of the input of each stage that a tap can enter; empty for a network without such
    /// stages.
    pub(super) fn stage_channels(&self) -> Vec<usize> {
        match self {
            Self::ResNet(side) => side.layer_input_channels().to_vec(),
            Self::Swin(_) | Self::VisionTransformer(_) | Self::Custom(_) => Vec::new(),
        }
    }

    /// Checks all settings.
    pub(super) fn validate(&self, shape: SideShape) -> Result<(), InvalidSetting> {
        match self {
            Self::ResNet(side) => validate_resnet(side, shape),
            Self::Swin(swin) => {
                let widths = (0..3).map(|stage| swin.width(stage));
                require(
                    swin.depths.len() == 3 && !swin.depths.contains(&0),
                    "side.depths",
                    format!("{:?}", swin.depths),
                    "three stages with at least one block each",
                )?;
                require(
                    swin.embed_dim > 0
                        && swin.num_heads.len() == 3
                        && widths.zip(&swin.num_heads).all(|(width, &heads)| divides(heads, width)),
                    "side.num_heads",
                    format!("{:?}", swin.num_heads),
                    "three numbers that divide side.embed_dim, its double and its fourfold",
                )?;
                require(
                    (1..=64).contains(&swin.window_size),
                    "side.window_size",
                    swin.window_size,
                    "between 1 and 64",
                )?;
                validate_stride(shape)
            }
            Self::VisionTransformer(side) => {
                require(
                    side.embed_dim > 0 && divides(side.num_heads, side.embed_dim),
                    "side.num_heads",
                    side.num_heads,
                    "a divisor of side.embed_dim",
                )?;
                require(side.depth > 0, "side.depth", side.depth, "at least 1")?;
                validate_stride(shape)
            }
            Self::Custom(_) => Ok(()),
        }
    }

    /// Creates the network with random weights; `None` for a custom one. The configuration must be
    /// valid.
    pub(super) fn init(&self, shape: SideShape, device: &Device) -> Option<SideNetwork> {
        let project = |width| Conv2dConfig::new([width, shape.channels], [1, 1]).init(device);
        Some(match self {
            Self::ResNet(side) => SideNetwork::ResNet(side.init(device)),
            Self::Swin(config) => {
                let widths = [0, 1, 2].map(|stage| config.width(stage));
                let neck = match shape.stride {
                    4 => SwinNeck::Pyramid(Pyramid::init(widths, shape.channels, device)),
                    _ => SwinNeck::Projection(project(widths[2])),
                };
                SideNetwork::Swin(SwinSide { swin: config.init(device), neck })
            }
            Self::VisionTransformer(side) => {
                let transformer = VisionTransformerConfig::new(side.embed_dim, side.num_heads)
                    .with_depth(side.depth)
                    .with_grid(shape.input_size / 16);
                SideNetwork::VisionTransformer(VisionTransformerSide {
                    transformer: transformer.init(device),
                    projection: project(side.embed_dim),
                    stride: shape.stride,
                })
            }
            Self::Custom(_) => return None,
        })
    }
}

fn divides(divisor: usize, number: usize) -> bool {
    divisor > 0 && number.is_multiple_of(divisor)
}

fn validate_stride(shape: SideShape) -> Result<(), InvalidSetting> {
    require(
        [4, 16].contains(&shape.stride),
        "encoder.stride",
        shape.stride,
        "4 or 16, for a transformer as side network",
    )?;
    require(
        shape.input_size.is_multiple_of(16),
        "input_size",
        shape.input_size,
        "a multiple of 16, for a transformer as side network",
    )
}

fn validate_resnet(side: &ResNetSideConfig, shape: SideShape) -> Result<(), InvalidSetting> {
    require(
        side.blocks.iter().all(|&count| count > 0),
        "side.blocks",
        format!("{:?}", side.blocks),
        "at least one block in each layer",
    )?;
    require(side.width > 0, "side.width", side.width, "at least 1")?;
    require(
        side.bottleneck_expansion != Some(0),
        "side.bottleneck_expansion",
        0,
        "at least 1, or none",
    )?;
    require(
        side.stride() == shape.stride,
        "side.pyramid_channels",
        format!("{:?}", side.pyramid_channels),
        "decoder.embed_dim for an encoder of stride 4, and none for one of stride 16, since \
         both embeddings must have the same grid",
    )?;
    let has_both = side.pyramid_channels.is_some() && side.projection_channels.is_some();
    require(
        !has_both,
        "side.projection_channels",
        format!("{:?}", side.projection_channels),
        "none together with side.pyramid_channels",
    )?;
    let is_fitting = side.out_channels() == shape.channels;
    match (side.pyramid_channels, side.projection_channels) {
        (Some(channels), _) => require(
            is_fitting,
            "side.pyramid_channels",
            channels,
            "decoder.embed_dim, since the decoder reads the side network's embedding",
        ),
        (None, None) if side.bottleneck_expansion.is_none() => require(
            is_fitting,
            "side.width",
            side.width,
            "a quarter of decoder.embed_dim, since the decoder reads the side network's \
             embedding",
        ),
        (None, projection) => require(
            is_fitting,
            "side.projection_channels",
            format!("{projection:?}"),
            "decoder.embed_dim, since the decoder reads the side network's embedding",
        ),
    }
}

/// A side network of this library, by [`SideConfig`].
///
/// Its parameters have no name of a variant in their paths, so that training checkpoints of ladders
/// with a ResNet as their only kind of side network are read.
#[derive(Debug, Clone)]
#[expect(clippy::large_enum_variant, reason = "there is one in a model")]
pub enum SideNetwork {
    /// A ResNet.
    ResNet(ResNetSide),
    /// A Swin Transformer.
    Swin(SwinSide),
    /// A Vision Transformer.
    VisionTransformer(VisionTransformerSide),
}

/// A Swin Transformer of three stages, of strides 4, 8 and 16.
#[derive(Module, Debug)]
pub struct SwinSide {
    /// The transformer.
    pub swin: Swin,
    /// Brings the features of the stages to the shape of the foundation's embedding.
    pub neck: SwinNeck,
}

/// What follows a [`SwinSide`]'s stages.
#[derive(Module, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one in a model")]
pub enum SwinNeck {
    /// For a foundation of stride 4, a pyramid over all stages.
    Pyramid(Pyramid),
    /// For a foundation of stride 16, a 1 x 1 convolution of the last stage.
    Projection(Conv2d),
}

/// A Vision Transformer on patches of 16 x 16 pixels.
#[derive(Module, Debug)]
pub struct VisionTransformerSide {
    /// The transformer.
    pub transformer: VisionTransformer,
    /// 1 x 1 convolution to the channels of the foundation's embedding.
    pub projection: Conv2d,
    stride: usize,
}

/// The same expression of any side network.
macro_rules! of_any {
    ($any:expr, $side:ident => $value:expr) => {
        match $any {
            SideNetwork::ResNet($side) => $value,
            SideNetwork::Swin($side) => $value,
            SideNetwork::VisionTransformer($side) => $value,
        }
    };
}

/// Applies a function that returns the same kind of side network.
macro_rules! map_any {
    ($any:expr, $side:ident => $value:expr) => {
        match $any {
            SideNetwork::ResNet($side) => SideNetwork::ResNet($value),
            SideNetwork::Swin($side) => SideNetwork::Swin($value),
            SideNetwork::VisionTransformer($side) => SideNetwork::VisionTransformer($value),
        }
    };
}

impl SideEncoder for SideNetwork {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        of_any!(self, side => SideEncoder::forward(side, image))
    }

    fn stage_channels(&self) -> Vec<usize> {
        of_any!(self, side => SideEncoder::stage_channels(side))
    }

    fn forward_mixed(
        &self,
        image: Tensor<4>,
        mix: &dyn Fn(usize, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<4> {
        of_any!(self, side => SideEncoder::forward_mixed(side, image, mix))
    }
}

impl Module for SideNetwork {
    fn num_params(&self) -> usize {
        of_any!(self, side => Module::num_params(side))
    }

    fn visit<V: ModuleVisitor>(&self, visitor: &mut V) {
        of_any!(self, side => side.visit(visitor));
    }

    fn map<M: ModuleMapper>(self, mapper: &mut M) -> Self {
        map_any!(self, side => side.map(mapper))
    }

    fn collect_devices(&self, devices: Devices) -> Devices {
        of_any!(self, side => side.collect_devices(devices))
    }

    fn to_device(self, device: &Device) -> Self {
        map_any!(self, side => side.to_device(device))
    }

    fn fork(self, device: &Device) -> Self {
        map_any!(self, side => side.fork(device))
    }

    fn valid(&self) -> Self {
        map_any!(self, side => side.valid())
    }

    fn train(self) -> Self {
        map_any!(self, side => side.train())
    }

    fn materialize(self) -> Self {
        map_any!(self, side => side.materialize())
    }
}

impl ModuleDisplayDefault for SideNetwork {
    fn content(&self, content: Content) -> Option<Content> {
        of_any!(self, side => side.content(content))
    }

    fn num_params(&self) -> usize {
        Module::num_params(self)
    }
}

impl ModuleDisplay for SideNetwork {}

impl SideEncoder for ResNetSide {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        ResNetSide::forward(self, image)
    }

    fn stage_channels(&self) -> Vec<usize> {
        let layers = [&self.layer1, &self.layer2, &self.layer3];
        layers.map(|layer| layer[0].conv1.weight.dims()[1]).to_vec()
    }

    fn forward_mixed(
        &self,
        image: Tensor<4>,
        mix: &dyn Fn(usize, Tensor<4>) -> Tensor<4>,
    ) -> Tensor<4> {
        ResNetSide::forward_mixed(self, image, mix)
    }
}

impl SideNetwork {
    /// Loads weights from ImageNet: torchvision's for a ResNet, timm's for a transformer.
    pub(super) fn load(self, source: &StateDict) -> Result<Self, WeightsError> {
        Ok(match self {
            Self::ResNet(side) => Self::ResNet(weights::load(side, source, &RESNET)?),
            Self::Swin(mut side) => {
                // The norm of the file follows its fourth stage.
                let part = Part { left_out: &["head.", "norm.", "layers.3."], ..SWIN };
                side.swin = weights::load(side.swin, source, &part)?;
                Self::Swin(side)
            }
            Self::VisionTransformer(mut side) => {
                side.transformer =
                    weights::load_vision_transformer(side.transformer, source, |_| true)?;
                Self::VisionTransformer(side)
            }
        })
    }
}

impl SideEncoder for SwinSide {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let stages = self.swin.forward(image.permute([0, 2, 3, 1]));
        let [fine, middle, coarse] =
            <[Tensor<4>; 3]>::try_from(stages).expect("a valid configuration has three stages");
        match &self.neck {
            SwinNeck::Pyramid(pyramid) => {
                pyramid.forward([fine, middle, coarse].map(|stage| stage.permute([0, 3, 1, 2])))
            }
            SwinNeck::Projection(projection) => {
                convolve_same(projection, coarse).permute([0, 3, 1, 2])
            }
        }
    }
}

impl SideEncoder for VisionTransformerSide {
    fn forward(&self, image: Tensor<4>) -> Tensor<4> {
        let [_, _, height, width] = image.dims();
        let features = self.transformer.forward(image.permute([0, 2, 3, 1]));
        let projected = convolve_same(&self.projection, features).permute([0, 3, 1, 2]);
        resize_bilinear(projected, [height / self.stride, width / self.stride])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_a_resnet_alone_are_read() {
        let device = Device::flex();
        let resnet = || ResNetSideConfig::new([1, 1, 1]).with_width(2).init(&device);
        let side = SideNetwork::ResNet(resnet()).try_load_record(resnet().into_record());
        side.expect("the same names");
    }
}

use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor, TensorData};
use sam_nn::{LayerNorm2d, LayerNorm2dConfig, gelu};

/// Side of a patch in pixels: an image embedding of grid size `G` belongs to an input of `16 G` pixels.
const PATCH_SIZE: usize = 16;

/// What a point says about the object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointLabel {
    /// The point lies on the object (SAM's label 1).
    Foreground,
    /// The point lies beside the object (SAM's label 0).
    Background,
    /// Fills up a row that has fewer points than others (SAM's label -1).
    Padding,
}

/// Point prompts.
#[derive(Debug, Clone)]
pub struct Points {
    coordinates: Tensor<3>,
    labels: Vec<PointLabel>,
}

impl Points {
    /// `coordinates` are `[B, N, 2]`, x then y, in pixels of the model's input; `labels` has one entry per point, those
    /// of the first image first.
    ///
    /// # Panics
    ///
    /// If the last axis of `coordinates` is not 2 or `labels` has not `B * N` entries.
    pub fn new(coordinates: Tensor<3>, labels: &[PointLabel]) -> Self {
        let [batch, count, axes] = coordinates.dims();
        assert!(
            axes == 2 && labels.len() == batch * count,
            "Points expects coordinates [B, N, 2] with B * N labels, found {:?} with {} labels",
            coordinates.dims(),
            labels.len()
        );
        Self {
            coordinates,
            labels: labels.to_vec(),
        }
    }
}

/// What the decoder is asked for. [`Prompts::default()`] is no prompt, which is how ladder side-tuning asks.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// Points on or beside the object.
    pub points: Option<Points>,
    /// One box per image: `[B, 4]` as x0, y0, x1, y1 in pixels of the model's input.
    pub boxes: Option<Tensor<2>>,
    /// Low-resolution logits of an earlier mask: `[B, 1, 4 G, 4 G]`.
    pub masks: Option<Tensor<4>>,
}

/// Encoded prompts.
#[derive(Debug, Clone)]
pub struct PromptEmbeddings {
    /// Points and boxes, `[B, N, C]`; none where neither was given.
    pub sparse: Option<Tensor<3>>,
    /// The mask, or its absence, `[B, C, G, G]`; `B` is 1 for an absent mask.
    pub dense: Tensor<4>,
}

/// Configuration of [`PromptEncoder`].
#[derive(Config, Debug, PartialEq)]
pub struct PromptEncoderConfig {
    /// Embedding width `C`; a multiple of 2.
    #[config(default = 256)]
    pub embed_dim: usize,
    /// Channels between the convolutions that shrink a mask prompt; a multiple of 4.
    #[config(default = 16)]
    pub mask_channels: usize,
}

/// SAM's prompt encoder. Nothing of it trains, in any setting.
#[derive(Module, Debug)]
pub struct PromptEncoder {
    /// Encodes positions.
    pub pe_layer: PositionalEncoding,
    /// Embeddings `[1, C]` of a background point, a foreground point, a box's first and second corner.
    pub point_embeddings: Vec<Param<Tensor<2>>>,
    /// Embedding of a padding point, `[1, C]`.
    pub not_a_point_embed: Param<Tensor<2>>,
    /// Shrinks a mask prompt to the embedding's grid.
    pub mask_downscaling: MaskDownscaling,
    /// Stands for the absence of a mask prompt, `[1, C]`.
    pub no_mask_embed: Param<Tensor<2>>,
}

impl PromptEncoderConfig {
    /// Creates the encoder with random weights that do not require gradients.
    pub fn init(&self, device: &Device) -> PromptEncoder {
        let normal = Initializer::Normal {
            mean: 0.0,
            std: 1.0,
        };
        let embedding = || normal.init([1, self.embed_dim], device);
        let [narrow, wide] = [self.mask_channels / 4, self.mask_channels];
        let halving = |channels| {
            Conv2dConfig::new(channels, [2, 2])
                .with_stride([2, 2])
                .init(device)
        };
        PromptEncoder {
            pe_layer: PositionalEncoding {
                positional_encoding_gaussian_matrix: normal.init([2, self.embed_dim / 2], device),
            },
            point_embeddings: (0..4).map(|_| embedding()).collect(),
            not_a_point_embed: embedding(),
            mask_downscaling: MaskDownscaling {
                conv1: halving([1, narrow]),
                norm1: LayerNorm2dConfig::new(narrow).init(device),
                conv2: halving([narrow, wide]),
                norm2: LayerNorm2dConfig::new(wide).init(device),
                conv3: Conv2dConfig::new([wide, self.embed_dim], [1, 1]).init(device),
            },
            no_mask_embed: embedding(),
        }
        .no_grad()
    }
}

impl PromptEncoder {
    /// Encodes prompts for an image embedding of grid size `grid`.
    ///
    /// # Shapes
    ///
    /// - sparse: `[B, N, C]` with a token per point, one more if there are points but no boxes, two per box
    /// - dense: `[B, C, grid, grid]`
    ///
    /// # Panics
    ///
    /// If the prompts' batches differ, a box has not 4 numbers, or the mask is not `[B, 1, 4 grid, 4 grid]`.
    pub fn forward(&self, prompts: &Prompts, grid: usize) -> PromptEmbeddings {
        let points = prompts.points.as_ref().map(|points| {
            // SAM fills up with one padding point where no box follows.
            self.embed_points(points, grid, prompts.boxes.is_none())
        });
        let boxes = prompts
            .boxes
            .as_ref()
            .map(|boxes| self.embed_boxes(boxes.clone(), grid));
        let sparse = match (points, boxes) {
            (Some(points), Some(boxes)) => Some(Tensor::cat(vec![points, boxes], 1)),
            (points, boxes) => points.or(boxes),
        };
        let dense = match &prompts.masks {
            Some(masks) => {
                let [_, channels, height, width] = masks.dims();
                assert!(
                    channels == 1 && height == 4 * grid && width == 4 * grid,
                    "a mask prompt for a grid of {grid} must be [B, 1, {0}, {0}], found {1:?}",
                    4 * grid,
                    masks.dims()
                );
                self.mask_downscaling.forward(masks.clone())
            }
            None => {
                let embedding = self.no_mask_embed.val();
                let [_, width] = embedding.dims();
                embedding
                    .reshape([1, width, 1, 1])
                    .expand([1, width, grid, grid])
            }
        };
        PromptEmbeddings { sparse, dense }
    }

    /// The positional encoding of every place of an image embedding of grid size `grid`: `[1, C, grid, grid]`.
    pub fn image_positions(&self, grid: usize) -> Tensor<4> {
        self.pe_layer.grid(grid)
    }

    fn embed_points(&self, points: &Points, grid: usize, fill_up: bool) -> Tensor<3> {
        let [batch, count, _] = points.coordinates.dims();
        let positions = self
            .pe_layer
            .forward(points.coordinates.clone() + 0.5, grid * PATCH_SIZE); // [B, N, C]
        let device = positions.device();
        let is = |label: PointLabel| {
            let flags: Vec<f32> = points
                .labels
                .iter()
                .map(|&other| f32::from(other == label))
                .collect();
            Tensor::<3>::from_data(TensorData::new(flags, [batch, count, 1]), &device)
        };
        let padding = is(PointLabel::Padding);
        let embedded = positions * (1.0 - padding.clone())
            + padding * self.not_a_point_embed.val().unsqueeze()
            + is(PointLabel::Background) * self.point_embeddings[0].val().unsqueeze()
            + is(PointLabel::Foreground) * self.point_embeddings[1].val().unsqueeze();
        if !fill_up {
            return embedded;
        }
        let [_, width] = self.not_a_point_embed.dims();
        let filler = self
            .not_a_point_embed
            .val()
            .unsqueeze::<3>()
            .expand([batch, 1, width]);
        Tensor::cat(vec![embedded, filler], 1)
    }

    fn embed_boxes(&self, boxes: Tensor<2>, grid: usize) -> Tensor<3> {
        let [batch, numbers] = boxes.dims();
        assert_eq!(
            numbers,
            4,
            "a box prompt must be [B, 4], found {:?}",
            boxes.dims()
        );
        let corners = (boxes + 0.5).reshape([batch, 2, 2]);
        let embeddings = self.point_embeddings[2..].iter().map(Param::val).collect();
        let embeddings: Tensor<2> = Tensor::cat(embeddings, 0); // [2, C]
        self.pe_layer.forward(corners, grid * PATCH_SIZE) + embeddings.unsqueeze()
    }
}

/// Encodes positions by random Fourier features (Tancik et al., arXiv 2006.10739).
#[derive(Module, Debug)]
pub struct PositionalEncoding {
    /// Spatial frequencies, `[2, C / 2]`.
    pub positional_encoding_gaussian_matrix: Param<Tensor<2>>,
}

impl PositionalEncoding {
    /// Encodes points in an image of `size_px` pixels a side.
    ///
    /// # Shapes
    ///
    /// - coordinates: `[B, N, 2]`, x then y, in pixels
    /// - output: `[B, N, C]`
    ///
    /// # Panics
    ///
    /// If the last axis of `coordinates` is not 2.
    pub fn forward(&self, coordinates: Tensor<3>, size_px: usize) -> Tensor<3> {
        let centred = coordinates / size_px as f64 * 2.0 - 1.0; // [-1, 1]
        let frequencies = self.positional_encoding_gaussian_matrix.val().unsqueeze();
        let angles = centred.matmul(frequencies) * std::f64::consts::TAU; // [B, N, C / 2]
        Tensor::cat(vec![angles.clone().sin(), angles.cos()], 2)
    }

    /// Encodes the centres of a grid's cells: `[1, C, grid, grid]`.
    pub fn grid(&self, grid: usize) -> Tensor<4> {
        let centres: Vec<f32> = (0..grid)
            .flat_map(|y| (0..grid).flat_map(move |x| [x as f32 + 0.5, y as f32 + 0.5]))
            .collect();
        let device = self.positional_encoding_gaussian_matrix.device();
        let centres =
            Tensor::<3>::from_data(TensorData::new(centres, [1, grid * grid, 2]), &device);
        let encoded = self.forward(centres, grid); // [1, P, C]
        let [_, _, width] = encoded.dims();
        encoded.swap_dims(1, 2).reshape([1, width, grid, grid])
    }
}

/// Shrinks a mask prompt to a quarter of its side and widens it to the embedding's channels.
#[derive(Module, Debug)]
pub struct MaskDownscaling {
    /// Halves the side, `1 -> mask_channels / 4`.
    pub conv1: Conv2d,
    /// Norm after the first convolution.
    pub norm1: LayerNorm2d,
    /// Halves the side, `mask_channels / 4 -> mask_channels`.
    pub conv2: Conv2d,
    /// Norm after the second convolution.
    pub norm2: LayerNorm2d,
    /// 1 x 1, `mask_channels -> C`.
    pub conv3: Conv2d,
}

impl MaskDownscaling {
    /// # Shapes
    ///
    /// - masks: `[B, 1, 4 G, 4 G]`
    /// - output: `[B, C, G, G]`
    ///
    /// # Panics
    ///
    /// If `masks` has other than one channel.
    pub fn forward(&self, masks: Tensor<4>) -> Tensor<4> {
        let features = gelu(self.norm1.forward(self.conv1.forward(masks))); // [B, _, 2 G, 2 G]
        let features = gelu(self.norm2.forward(self.conv2.forward(features))); // [B, _, G, G]
        self.conv3.forward(features)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[should_panic(expected = "found [1, 2, 2] with 1 labels")]
    fn every_point_needs_a_label() {
        let coordinates = Tensor::zeros([1, 2, 2], &Device::flex());
        Points::new(coordinates, &[PointLabel::Foreground]);
    }

    #[test]
    #[should_panic(expected = "must be [B, 1, 32, 32], found [1, 1, 16, 16]")]
    fn a_mask_of_another_size_is_refused() {
        let device = Device::flex();
        let encoder = PromptEncoderConfig::new().with_embed_dim(8).init(&device);
        let masks = Some(Tensor::zeros([1, 1, 16, 16], &device));
        encoder.forward(
            &Prompts {
                masks,
                ..Prompts::default()
            },
            8,
        );
    }
}

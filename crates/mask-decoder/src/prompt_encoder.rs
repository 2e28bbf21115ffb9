use burn::config::Config;
use burn::module::{Initializer, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst_sam_nn::{LayerNorm2d, LayerNorm2dConfig, gelu};

/// The meaning of a point prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PointLabel {
    /// The point is on the object (SAM's label 1).
    Foreground,
    /// The point is outside the object (SAM's label 0).
    Background,
    /// Pads an image that has fewer points than others of the batch (SAM's label -1).
    Padding,
}

/// Point prompts.
#[derive(Debug, Clone)]
pub struct Points {
    coordinates: Tensor<3>,
    labels: Vec<PointLabel>,
}

impl Points {
    /// Creates point prompts. `coordinates` are `[B, N, 2]`, x then y, in pixels of the model's
    /// input; `labels` has one entry per point, image by image.
    ///
    /// # Panics
    ///
    /// If the last axis of `coordinates` is not 2 or the number of `labels` is not `B * N`.
    pub fn new(coordinates: Tensor<3>, labels: &[PointLabel]) -> Self {
        let [batch, count, axes] = coordinates.dims();
        assert!(
            axes == 2 && labels.len() == batch * count,
            "Points expects coordinates [B, N, 2] with B * N labels, found {:?} with {} labels",
            coordinates.dims(),
            labels.len()
        );
        Self { coordinates, labels: labels.to_vec() }
    }
}

/// The prompts of a batch. [`Prompts::default()`] contains no prompts, as in ladder side-tuning.
#[derive(Debug, Clone, Default)]
pub struct Prompts {
    /// Points on or outside the object.
    pub points: Option<Points>,
    /// One box per image: `[B, 4]` as x0, y0, x1, y1 in pixels of the model's input.
    pub boxes: Option<Tensor<2>>,
    /// Low-resolution logits of a previous mask: `[B, 1, 4 G, 4 G]`.
    pub masks: Option<Tensor<4>>,
}

/// Embeddings of prompts.
#[derive(Debug, Clone)]
pub struct PromptEmbeddings {
    /// Embeddings of points and boxes, `[B, N, C]`; `None` if there are neither.
    pub sparse: Option<Tensor<3>>,
    /// Embedding of the mask, `[B, C, G, G]`, or the embedding for no mask, `[1, C, G, G]`.
    pub dense: Tensor<4>,
}

/// Configuration of [`PromptEncoder`].
#[derive(Config, Debug, PartialEq)]
pub struct PromptEncoderConfig {
    /// Embedding width `C`; a multiple of 2.
    #[config(default = 256)]
    pub embed_dim: usize,
    /// Channels between the convolutions that downscale a mask prompt; a multiple of 4.
    #[config(default = 16)]
    pub mask_channels: usize,
    /// Input pixels along one side of a pixel of the image embedding; 16 in SAM.
    #[config(default = 16)]
    pub stride: usize,
}

/// SAM's prompt encoder. Always frozen.
#[derive(Module, Debug)]
pub struct PromptEncoder {
    /// Encodes positions of points, boxes and image pixels.
    pub pe_layer: PositionalEncoding,
    /// Embeddings `[1, C]` of a background point, a foreground point, and the first and second
    /// corner of a box.
    pub point_embeddings: Vec<Param<Tensor<2>>>,
    /// Embedding of a padding point, `[1, C]`.
    pub not_a_point_embed: Param<Tensor<2>>,
    /// Downscales a mask prompt to the grid of the image embedding.
    pub mask_downscaling: MaskDownscaling,
    /// Embedding for no mask prompt, `[1, C]`.
    pub no_mask_embed: Param<Tensor<2>>,
    stride: usize,
}

impl PromptEncoderConfig {
    /// Creates the encoder with random weights that do not require gradients.
    pub fn init(&self, device: &Device) -> PromptEncoder {
        let normal = Initializer::Normal { mean: 0.0, std: 1.0 };
        let embedding = || normal.init([1, self.embed_dim], device);
        let [narrow, wide] = [self.mask_channels / 4, self.mask_channels];
        let downsampling =
            |channels| Conv2dConfig::new(channels, [2, 2]).with_stride([2, 2]).init(device);
        PromptEncoder {
            pe_layer: PositionalEncoding {
                positional_encoding_gaussian_matrix: normal.init([2, self.embed_dim / 2], device),
            },
            point_embeddings: (0..4).map(|_| embedding()).collect(),
            not_a_point_embed: embedding(),
            mask_downscaling: MaskDownscaling {
                conv1: downsampling([1, narrow]),
                norm1: LayerNorm2dConfig::new(narrow).init(device),
                conv2: downsampling([narrow, wide]),
                norm2: LayerNorm2dConfig::new(wide).init(device),
                conv3: Conv2dConfig::new([wide, self.embed_dim], [1, 1]).init(device),
            },
            no_mask_embed: embedding(),
            stride: self.stride,
        }
        .no_grad()
    }
}

impl PromptEncoder {
    /// Encodes prompts for an image embedding of grid size `grid`.
    ///
    /// # Shapes
    ///
    /// - sparse: `[B, N, C]` with one token per point, one padding token if there are points but no
    ///   boxes, and two tokens per box
    /// - dense: `[B, C, grid, grid]`
    ///
    /// # Panics
    ///
    /// If the batch sizes of the prompts differ, boxes are not `[B, 4]`, or masks are not
    /// `[B, 1, 4 grid, 4 grid]`.
    pub fn forward(&self, prompts: &Prompts, grid: usize) -> PromptEmbeddings {
        let points = prompts.points.as_ref().map(|points| {
            // SAM appends one padding point if there are no boxes.
            self.embed_points(points, grid, prompts.boxes.is_none())
        });
        let boxes = prompts.boxes.as_ref().map(|boxes| self.embed_boxes(boxes.clone(), grid));
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
                embedding.reshape([1, width, 1, 1]).expand([1, width, grid, grid])
            }
        };
        PromptEmbeddings { sparse, dense }
    }

    /// The positional encoding of every position of an image embedding of grid size `grid`:
    /// `[1, C, grid, grid]`.
    pub fn image_positions(&self, grid: usize) -> Tensor<4> {
        self.pe_layer.grid(grid)
    }

    fn embed_points(&self, points: &Points, grid: usize, append_padding: bool) -> Tensor<3> {
        let [batch, count, _] = points.coordinates.dims();
        let centres = points.coordinates.clone() + 0.5;
        let positions = self.pe_layer.forward(centres, grid * self.stride); // [B, N, C]
        let device = positions.device();
        let indicator = |label: PointLabel| {
            let flags: Vec<f32> =
                points.labels.iter().map(|&other| f32::from(other == label)).collect();
            Tensor::<3>::from_data(TensorData::new(flags, [batch, count, 1]), &device)
        };
        let padding = indicator(PointLabel::Padding);
        let embedded = positions * (1.0 - padding.clone())
            + padding * self.not_a_point_embed.val().unsqueeze()
            + indicator(PointLabel::Background) * self.point_embeddings[0].val().unsqueeze()
            + indicator(PointLabel::Foreground) * self.point_embeddings[1].val().unsqueeze();
        if !append_padding {
            return embedded;
        }
        let [_, width] = self.not_a_point_embed.dims();
        let appended = self.not_a_point_embed.val().unsqueeze::<3>().expand([batch, 1, width]);
        Tensor::cat(vec![embedded, appended], 1)
    }

    fn embed_boxes(&self, boxes: Tensor<2>, grid: usize) -> Tensor<3> {
        let [batch, numbers] = boxes.dims();
        assert_eq!(numbers, 4, "a box prompt must be [B, 4], found {:?}", boxes.dims());
        let corners = (boxes + 0.5).reshape([batch, 2, 2]);
        let embeddings = self.point_embeddings[2..].iter().map(Param::val).collect();
        let embeddings: Tensor<2> = Tensor::cat(embeddings, 0); // [2, C]
        self.pe_layer.forward(corners, grid * self.stride) + embeddings.unsqueeze()
    }
}

/// Positional encoding by random Fourier features (Tancik et al., arXiv 2006.10739).
#[derive(Module, Debug)]
pub struct PositionalEncoding {
    /// Spatial frequencies, `[2, C / 2]`.
    pub positional_encoding_gaussian_matrix: Param<Tensor<2>>,
}

impl PositionalEncoding {
    /// Encodes points in a square image of side `size_px` pixels.
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

    /// Encodes the centres of the cells of a grid: `[1, C, grid, grid]`.
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

/// Downscales a mask prompt by 4 along each side and projects it to `C` channels.
#[derive(Module, Debug)]
pub struct MaskDownscaling {
    /// Downscales by 2, `1 -> mask_channels / 4`.
    pub conv1: Conv2d,
    /// Norm after the first convolution.
    pub norm1: LayerNorm2d,
    /// Downscales by 2, `mask_channels / 4 -> mask_channels`.
    pub conv2: Conv2d,
    /// Norm after the second convolution.
    pub norm2: LayerNorm2d,
    /// 1 x 1 convolution, `mask_channels -> C`.
    pub conv3: Conv2d,
}

impl MaskDownscaling {
    /// Embeds mask prompts.
    ///
    /// # Shapes
    ///
    /// - masks: `[B, 1, 4 G, 4 G]`
    /// - output: `[B, C, G, G]`
    ///
    /// # Panics
    ///
    /// If `masks` does not have exactly one channel.
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
    fn missing_point_label_panics() {
        let coordinates = Tensor::zeros([1, 2, 2], &Device::flex());
        Points::new(coordinates, &[PointLabel::Foreground]);
    }

    #[test]
    #[should_panic(expected = "must be [B, 1, 32, 32], found [1, 1, 16, 16]")]
    fn mask_prompt_of_another_size_panics() {
        let device = Device::flex();
        let encoder = PromptEncoderConfig::new().with_embed_dim(8).init(&device);
        let masks = Some(Tensor::zeros([1, 1, 16, 16], &device));
        encoder.forward(&Prompts { masks, ..Prompts::default() }, 8);
    }
}

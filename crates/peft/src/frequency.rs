use burn::config::Config;
use burn::module::Module;
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{Linear, LinearConfig};
use burn::tensor::{Device, Tensor, TensorData};
use sam_lst_sam_nn::{BlockAdaptation, flatten_leading, gelu, linear};

/// Configuration of [`FrequencyPrompts`].
#[derive(Config, Debug, PartialEq)]
pub struct FrequencyPromptsConfig {
    /// Width `C` of the blocks.
    pub embed_dim: usize,
    /// Number of blocks.
    pub depth: usize,
    /// Width of the prompts before the shared layer; `C / 32` in SAM-Adapter.
    pub prompt_dim: usize,
    /// Side of a patch in pixels.
    #[config(default = 16)]
    pub patch_size: usize,
    /// Share of the frequencies that are removed, the lowest.
    #[config(default = 0.25)]
    pub removed_share: f64,
}

/// SAM-Adapter's prompts: a prompt for each block, computed from the image's high frequencies and its
/// patch embedding, and added to the block's input.
#[derive(Module, Debug)]
pub struct FrequencyPrompts {
    /// Projects patches of the high frequencies.
    pub frequency_patches: Conv2d,
    /// Projects the patch embedding.
    pub embedding: Linear,
    /// A layer for each block, followed by GELU.
    pub blocks: Vec<Linear>,
    /// A layer shared by all blocks.
    pub shared: Linear,
    removed_share: f64,
}

/// The prompt of a block for a batch of images, `[B, G, G, C]`.
#[derive(Debug, Clone)]
pub struct BlockPrompt(pub Tensor<4>);

impl FrequencyPromptsConfig {
    /// Creates the layers with PyTorch's default initialisation.
    ///
    /// # Panics
    ///
    /// If the share is not between 0 and 1.
    pub fn init(&self, device: &Device) -> FrequencyPrompts {
        let Self { embed_dim, prompt_dim, patch_size, removed_share, .. } = *self;
        assert!((0.0..1.0).contains(&removed_share), "a share of frequencies: {removed_share}");
        let square = || LinearConfig::new(prompt_dim, prompt_dim).init(device);
        FrequencyPrompts {
            frequency_patches: Conv2dConfig::new([3, prompt_dim], [patch_size; 2])
                .with_stride([patch_size; 2])
                .init(device),
            embedding: LinearConfig::new(embed_dim, prompt_dim).init(device),
            blocks: (0..self.depth).map(|_| square()).collect(),
            shared: LinearConfig::new(prompt_dim, embed_dim).init(device),
            removed_share,
        }
    }
}

impl FrequencyPrompts {
    /// The prompt of each block.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`
    /// - patches: the patch embedding, without positions, `[B, G, G, C]`
    /// - output: `[B, G, G, C]` for each block
    ///
    /// # Panics
    ///
    /// If the shapes do not match.
    pub fn forward(&self, image: Tensor<4>, patches: Tensor<4>) -> Vec<BlockPrompt> {
        let shape = patches.dims();
        let frequencies = high_frequencies(image, self.removed_share);
        let features = self.frequency_patches.forward(frequencies).permute([0, 2, 3, 1]);
        let features =
            flatten_leading(features) + linear(&self.embedding, flatten_leading(patches));
        let prompt = |block: &Linear| {
            let hidden = gelu(linear(block, features.clone()));
            BlockPrompt(linear(&self.shared, hidden).reshape(shape))
        };
        self.blocks.iter().map(prompt).collect()
    }
}

impl BlockAdaptation for &BlockPrompt {
    fn input(&self, tokens: Tensor<4>) -> Tensor<4> {
        tokens + self.0.clone()
    }
}

/// Removes the lowest frequencies of square images: those in a square around frequency zero whose
/// area is `removed_share` of all. Returns the absolute values, as SAM-Adapter does.
///
/// The square is a product of intervals, so removing everything else is a product with a matrix from
/// either side: the real part of `F x F^T`, where `F` is the transform to the interval's frequencies
/// and back. SAM-Adapter's interval has one negative frequency more than positive ones, so `F` is
/// complex.
///
/// # Shapes
///
/// - image, output: `[B, C, S, S]`
///
/// # Panics
///
/// If the image is not square.
pub fn high_frequencies(image: Tensor<4>, removed_share: f64) -> Tensor<4> {
    let [batch, channels, size, width] = image.dims();
    assert_eq!(size, width, "a square image, found {:?}", image.dims());
    let half = ((size * size) as f64 * removed_share).sqrt() as i64 / 2;
    let entry = |row: usize, column: usize| -> [f64; 2] {
        let angle = std::f64::consts::TAU * (row as f64 - column as f64) / size as f64;
        let sum = |function: fn(f64) -> f64| -> f64 {
            (-half..half).map(|frequency| function(angle * frequency as f64)).sum()
        };
        [sum(f64::cos), sum(f64::sin)].map(|value| value / size as f64)
    };
    // The entries depend on the difference of row and column alone.
    let differences: Vec<[f64; 2]> = (0..size).map(|row| entry(row, 0)).collect();
    let device = image.device().inner();
    let matrix = |part: usize| {
        let values: Vec<f32> = (0..size * size)
            .map(|index| differences[(index / size + size - index % size) % size][part] as f32)
            .collect();
        Tensor::<2>::from_data(TensorData::new(values, [size, size]), &device)
    };
    let [real, imaginary] = [matrix(0), matrix(1)];
    // Constants, as the image is.
    let pixels = if image.is_autodiff() { image.clone().inner() } else { image.clone() };
    let from_both_sides = |matrix: &Tensor<2>| {
        let columns = pixels.clone().reshape([batch * channels * size, size]);
        let columns = columns.matmul(matrix.clone().transpose());
        let columns = columns.reshape([batch * channels, size, size]);
        matrix.clone().unsqueeze::<3>().matmul(columns).reshape([batch, channels, size, size])
    };
    let low = from_both_sides(&real) - from_both_sides(&imaginary);
    let high = (pixels.clone() - low).abs();
    // Not only with autodiff, but also with the image's gradient checkpointing.
    if image.is_autodiff() { image.zeros_like() + high } else { high }
}

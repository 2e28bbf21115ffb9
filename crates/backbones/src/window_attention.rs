use crate::init;
use burn::module::{Module, Param};
use burn::nn::Linear;
use burn::tensor::activation::softmax;
use burn::tensor::{Device, Int, Tensor, TensorData};
use sam_lst_sam_nn::{QkvOrder, attend_in_windows, flatten_leading, linear};

/// Multi-head self-attention within windows, with a learned bias for each offset between two
/// tokens.
///
/// A grid that is not a multiple of the window is padded on the right and at the bottom with zeros,
/// which are attended to, as in timm.
#[derive(Module, Debug)]
pub struct WindowAttention {
    /// Bias of the scores for each offset, `[(2 s - 1)^2, heads]` for windows of side `s`.
    pub relative_position_bias_table: Param<Tensor<2>>,
    /// Queries, keys and values of all heads, `C -> 3 C`.
    pub qkv: Linear,
    /// Output projection, `C -> C`.
    pub proj: Linear,
    num_heads: usize,
    window_size: usize,
}

impl WindowAttention {
    /// Creates the layer with random weights.
    pub(crate) fn init(
        width: usize,
        num_heads: usize,
        window_size: usize,
        device: &Device,
    ) -> Self {
        assert!(
            num_heads > 0 && width.is_multiple_of(num_heads),
            "{num_heads} heads must divide {width} channels"
        );
        let offsets = (2 * window_size - 1).pow(2);
        Self {
            relative_position_bias_table: init::NORMAL.init([offsets, num_heads], device),
            qkv: init::linear([width, 3 * width], device),
            proj: init::linear([width; 2], device),
            num_heads,
            window_size,
        }
    }

    /// Applies the layer to windows that are moved by `shift` tokens to the right and to the
    /// bottom; those that then leave the grid continue at its other side, and their tokens attend
    /// only to those from the same side.
    ///
    /// # Shapes
    ///
    /// - tokens, output: `[B, G, G, C]`
    ///
    /// # Panics
    ///
    /// If the grid is not square or its last axis is not `C`.
    pub fn forward(&self, tokens: Tensor<4>, shift: usize) -> Tensor<4> {
        let shape @ [batch, grid, width, channels] = tokens.dims();
        assert_eq!(grid, width, "attention in windows needs a square grid, found {shape:?}");
        let roll = |tokens: Tensor<4>, by: isize| match shift {
            0 => tokens,
            _ => tokens.roll(&[by, by], &[1, 2]),
        };
        let tokens = flatten_leading(roll(tokens, -(shift as isize)));
        let qkv = linear(&self.qkv, tokens).reshape([batch, grid, grid, 3 * channels]);
        let attended = attend_in_windows(
            qkv,
            self.window_size,
            self.num_heads,
            QkvOrder::PartMajor,
            || self.qkv_bias(),
            |qkv| self.attend(qkv, batch, grid, shift),
        );
        let output = linear(&self.proj, flatten_leading(attended)).reshape(shape);
        roll(output, shift as isize)
    }

    fn qkv_bias(&self) -> Tensor<1> {
        match &self.qkv.bias {
            Some(bias) => bias.val(),
            None => unreachable!("`init` creates qkv with a bias"),
        }
    }

    /// Attention among the tokens of each window.
    ///
    /// # Shapes
    ///
    /// - qkv: `[3, B * windows, heads, N, d]`
    /// - output: `[B * windows, heads, N, d]`
    fn attend(&self, qkv: Tensor<5>, batch: usize, grid: usize, shift: usize) -> Tensor<4> {
        let [_, count, heads, tokens, head_dim] = qkv.dims();
        let [query, key, value] =
            [0, 1, 2].map(|part| qkv.clone().narrow(0, part, 1).squeeze_dim::<4>(0));
        let scale = (head_dim as f64).powf(-0.5);
        let mut scores = (query * scale).matmul(key.swap_dims(2, 3)) + self.biases();
        if shift > 0 {
            let windows = count / batch;
            let mask = self.mask(grid, shift, &scores.device().inner());
            let mask = mask.reshape([1, windows, 1, tokens, tokens]);
            scores = (scores.reshape([batch, windows, heads, tokens, tokens]) + mask)
                .reshape([count, heads, tokens, tokens]);
        }
        softmax(scores, 3).matmul(value)
    }

    /// The bias of each pair of tokens of a window, `[1, heads, N, N]`.
    fn biases(&self) -> Tensor<4> {
        let side = self.window_size as i64;
        let places = || (0..side).flat_map(move |row| (0..side).map(move |column| (row, column)));
        let offset = |from: i64, to: i64| from - to + side - 1;
        let offsets: Vec<i64> = places()
            .flat_map(|(row, column)| {
                places().map(move |(key_row, key_column)| {
                    offset(row, key_row) * (2 * side - 1) + offset(column, key_column)
                })
            })
            .collect();
        let table = self.relative_position_bias_table.val();
        let offsets = Tensor::<1, Int>::from_data(offsets.as_slice(), &table.device());
        let tokens = self.window_size * self.window_size;
        table.select(0, offsets).transpose().reshape([1, self.num_heads, tokens, tokens])
    }

    /// What is added to the scores so that no token attends to one from the other side of the grid,
    /// `[windows, N, N]`.
    fn mask(&self, grid: usize, shift: usize, device: &Device) -> Tensor<3> {
        /// As in the published code.
        const EXCLUDED: f32 = -100.0;
        let side = self.window_size;
        let padded = grid.next_multiple_of(side);
        // Only the last window along each axis has tokens from both sides.
        let region = |place: usize| match padded - place {
            distance if distance <= shift => 2,
            distance if distance <= side => 1,
            _ => 0,
        };
        let per_axis = padded / side;
        let tokens = side * side;
        let mut mask = Vec::with_capacity(per_axis * per_axis * tokens * tokens);
        for window in 0..per_axis * per_axis {
            let regions: Vec<_> = (0..tokens)
                .map(|token| {
                    let row = window / per_axis * side + token / side;
                    let column = window % per_axis * side + token % side;
                    (region(row), region(column))
                })
                .collect();
            for query in &regions {
                mask.extend(regions.iter().map(|key| if key == query { 0.0 } else { EXCLUDED }));
            }
        }
        let shape = [per_axis * per_axis, tokens, tokens];
        Tensor::from_data(TensorData::new(mask, shape), device)
    }
}

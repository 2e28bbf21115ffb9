//! Attention within windows, with decomposed relative positions as in SAM's image encoder or with a
//! bias for each distance as in TinyViT.
//!
//! A task is one head of one window and some of its queries. It packs the keys and values, then
//! computes, for eight queries at a time, the scores against all keys, their softmax and its
//! product with the values: only the scores of eight queries are in memory at once, and they stay
//! in the cache. The gradient computes the scores again.

mod forward;
mod gradient;
mod head;

use crate::autodiff::{
    FlexTensor, Operation, apply, contiguous, shape, tensor, tensor_like, values,
};
use crate::buffer;
use burn::tensor::Tensor;
use forward::Forward;
use gradient::Gradients;
use pulp::Arch;
use rayon::prelude::*;

/// Attention within windows with decomposed relative positions, `softmax(q k^T / sqrt(d) + q R_h +
/// q R_w) v` for each head. The scores are never stored in memory as a whole.
///
/// Windows of side `s` cover the grid starting at its first token; windows that extend beyond it
/// are filled with `padding`.
///
/// # Shapes
///
/// - qkv: `[B, G, G, 3 * heads * d]`
/// - padding: `[3 * heads * d]`
/// - positions, along the height and the width: `[2 s - 1, d]`
/// - output: `[B, G, G, heads * d]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), or the shapes do not match.
pub fn window_attention(
    qkv: Tensor<4>,
    padding: Tensor<1>,
    positions: [Tensor<2>; 2],
    heads: usize,
) -> Tensor<4> {
    let [_, grid, columns, width] = qkv.dims();
    assert_eq!(grid, columns, "sides of a square grid");
    assert!(
        heads > 0 && width.is_multiple_of(3 * heads),
        "{width} channels are not queries, keys and values of {heads} heads"
    );
    let [length, _] = positions[0].dims();
    for table in &positions {
        let expected = [length, width / (3 * heads)];
        assert_eq!(table.dims(), expected, "tables of relative positions");
    }
    let [rows, columns] = positions;
    apply(Windows { heads }, [qkv.into(), padding.into(), rows.into(), columns.into()])
}

/// Attention within windows with a bias for each distance, `softmax(q k^T / sqrt(d) + bias[|dy|,
/// |dx|]) v` for each head. The scores are never stored in memory as a whole.
///
/// Windows of side `s` cover the grid starting at its first token; windows that extend beyond it
/// are filled with `padding`.
///
/// # Shapes
///
/// - qkv: `[B, G, G, heads * 3 * d]`, query, key and value head by head
/// - padding: `[heads * 3 * d]`
/// - biases: `[heads, s * s]`, that of `|dy|` rows and `|dx|` columns at `|dy| * s + |dx|`
/// - output: `[B, G, G, heads * d]`
///
/// # Panics
///
/// If a tensor is not supported ([`is_supported`](crate::is_supported)), or the shapes do not match.
pub fn biased_window_attention(qkv: Tensor<4>, padding: Tensor<1>, biases: Tensor<2>) -> Tensor<4> {
    let [_, grid, columns, width] = qkv.dims();
    assert_eq!(grid, columns, "sides of a square grid");
    let [heads, distances] = biases.dims();
    let side = distances.isqrt();
    assert_eq!(side * side, distances, "distances within a square window");
    assert!(
        heads > 0 && width.is_multiple_of(3 * heads),
        "{width} channels are not queries, keys and values of {heads} heads"
    );
    apply(Windows { heads }, [qkv.into(), padding.into(), biases.into()])
}

/// Either attention as an operation on queries, keys and values, padding, and two tables of relative
/// positions or one of biases.
#[derive(Debug, Clone, Copy)]
struct Windows {
    heads: usize,
}

impl Windows {
    fn attention<'a>(&self, inputs: &'a [FlexTensor]) -> WindowAttention<'a> {
        let [qkv, padding, tables @ ..] = inputs else { unreachable!("more than two inputs") };
        let [batch, grid, _, width] = shape::<4>(qkv);
        let (positions, layout, side) = match tables {
            [rows, columns] => {
                let [length, _] = shape(rows);
                let tables = [values(rows), values(columns)];
                (Positions::Decomposed(tables), Layout::PartMajor, length.div_ceil(2))
            }
            [biases] => {
                let [_, distances] = shape(biases);
                (Positions::Biases(values(biases)), Layout::HeadMajor, distances.isqrt())
            }
            _ => unreachable!("one or two tables"),
        };
        WindowAttention {
            qkv: values(qkv),
            padding: values(padding),
            positions,
            layout,
            batch,
            grid,
            side,
            heads: self.heads,
            head_dim: width / (3 * self.heads),
        }
    }
}

impl<const N: usize> Operation<N> for Windows {
    type Saved = [FlexTensor; N];

    fn forward(&self, inputs: [FlexTensor; N], _: [bool; N]) -> (FlexTensor, Self::Saved) {
        let inputs = inputs.map(contiguous);
        let [batch, grid, _, width] = shape::<4>(&inputs[0]);
        let output = self.attention(&inputs).output();
        (tensor(output, [batch, grid, grid, width / 3]), inputs)
    }

    fn backward(
        &self,
        inputs: Self::Saved,
        gradient: FlexTensor,
        requires_grad: [bool; N],
    ) -> [Option<FlexTensor>; N] {
        let gradient = contiguous(gradient);
        let with_positions = requires_grad[2..].contains(&true);
        let Gradients { qkv, padding, positions } =
            self.attention(&inputs).gradients(values(&gradient), requires_grad[1], with_positions);
        let positions = positions.into_iter().map(Some);
        let mut gradients = [Some(qkv), padding].into_iter().chain(positions);
        inputs.map(|input| Some(tensor_like(gradients.next()??, &input)))
    }
}

/// What is added to the scores.
#[derive(Clone, Copy)]
enum Positions<'a> {
    /// Products of the query with relative positions, for a query's row minus the key's, then for
    /// its column minus the key's, `[2 s - 1, d]`, the most negative first.
    Decomposed([&'a [f32]; 2]),
    /// A bias for each head and distance, `[heads, s * s]`.
    Biases(&'a [f32]),
}

/// The order of queries, keys and values in the channels of a token.
#[derive(Clone, Copy)]
enum Layout {
    /// `[3, heads, d]`.
    PartMajor,
    /// `[heads, 3, d]`.
    HeadMajor,
}

/// Maximum number of queries per task: each task packs the keys and values again.
const QUERIES_PER_TASK: usize = 512;

/// The attention of all heads of all windows.
#[derive(Clone, Copy)]
struct WindowAttention<'a> {
    /// Queries, keys and values, `[B, G, G, 3 * heads * d]`.
    qkv: &'a [f32],
    /// Query, key and value of a token beyond the grid, `[3 * heads * d]`.
    padding: &'a [f32],
    positions: Positions<'a>,
    layout: Layout,
    /// Batch size `B`.
    batch: usize,
    /// Side `G` of the grid of tokens.
    grid: usize,
    /// Side `s` of a window.
    side: usize,
    /// Number of heads.
    heads: usize,
    /// Width `d` of a head.
    head_dim: usize,
}

/// Some queries of one head of one window.
struct Task {
    image: usize,
    /// Row and column of the window's first token.
    origin: [usize; 2],
    head: usize,
    /// Index of the first query among the window's tokens that lie on the grid.
    first: usize,
    /// Number of queries.
    count: usize,
}

impl WindowAttention<'_> {
    /// The attended values, `[B, G, G, heads, d]`.
    fn output(&self) -> Vec<f32> {
        let channels = self.check();
        let tokens = self.grid * self.grid;
        let arch = Arch::new();
        let mut out = buffer::zeros(self.batch * tokens * channels);
        let tasks = self.tasks(QUERIES_PER_TASK);
        let outputs: Vec<Vec<f32>> =
            tasks.par_iter().map(|task| arch.dispatch(Forward { attention: self, task })).collect();
        for (task, output) in tasks.iter().zip(&outputs) {
            let attended = output.chunks_exact(self.head_dim);
            for (token, attended) in self.tokens(task).zip(attended) {
                let start = (task.image * tokens + token) * channels + task.head * self.head_dim;
                out[start..start + self.head_dim].copy_from_slice(attended);
            }
        }
        out
    }

    /// Checks the sizes and returns the number of channels.
    fn check(&self) -> usize {
        let channels = self.heads * self.head_dim;
        let tokens = self.grid * self.grid;
        assert!(
            channels > 0 && tokens > 0 && self.side > 0,
            "heads of {} channels, a grid of side {} or windows of side {} are empty",
            self.head_dim,
            self.grid,
            self.side
        );
        assert_eq!(self.qkv.len(), self.batch * tokens * 3 * channels);
        assert_eq!(self.padding.len(), 3 * channels);
        channels
    }

    /// All tasks of at most `limit` queries each, image by image.
    fn tasks(&self, limit: usize) -> Vec<Task> {
        let mut tasks = Vec::new();
        for image in 0..self.batch {
            for row in (0..self.grid).step_by(self.side) {
                for column in (0..self.grid).step_by(self.side) {
                    let [rows, columns] = self.extent([row, column]);
                    for head in 0..self.heads {
                        for first in (0..rows * columns).step_by(limit) {
                            tasks.push(Task {
                                image,
                                origin: [row, column],
                                head,
                                first,
                                count: limit.min(rows * columns - first),
                            });
                        }
                    }
                }
            }
        }
        tasks
    }

    /// Number of rows and columns of a window that lie on the grid.
    fn extent(&self, origin: [usize; 2]) -> [usize; 2] {
        origin.map(|start| self.side.min(self.grid - start))
    }

    /// Row and column of each query in its window.
    fn places(&self, task: &Task) -> impl Iterator<Item = [usize; 2]> + use<> {
        let [_, columns] = self.extent(task.origin);
        (task.first..task.first + task.count).map(move |query| [query / columns, query % columns])
    }

    /// Index of each query on the grid.
    fn tokens(&self, task: &Task) -> impl Iterator<Item = usize> + use<> {
        let (origin, grid) = (task.origin, self.grid);
        self.places(task).map(move |[row, column]| (origin[0] + row) * grid + origin[1] + column)
    }

    /// Where query, key or value (`part`) of a head begin in the channels of a token.
    fn offset(&self, head: usize, part: usize) -> usize {
        let index = match self.layout {
            Layout::PartMajor => part * self.heads + head,
            Layout::HeadMajor => head * 3 + part,
        };
        index * self.head_dim
    }

    /// Queries, keys and values of all heads at a row and column of a window.
    fn token_qkv(&self, task: &Task, [row, column]: [usize; 2]) -> &[f32] {
        let [row, column] = [task.origin[0] + row, task.origin[1] + column];
        if row >= self.grid || column >= self.grid {
            return self.padding;
        }
        let token = (task.image * self.grid + row) * self.grid + column;
        &self.qkv[token * self.padding.len()..][..self.padding.len()]
    }
}

//! The kernels on Burn's CPU backend, and on its tape.

use crate::attention::WindowAttention;
use crate::convolution::Convolution;
use crate::layer_norm::LayerNorm;
use crate::norm::{self, Normalized};
use crate::{Statistics, elementwise, pool};
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Flex};
use burn::tensor::{DType, Tensor, TensorData};
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

/// A tensor of Burn's CPU backend.
type Plain = FloatTensor<Flex>;

/// A differentiable function of `N` tensors.
trait Function<const N: usize>: Clone + Debug + Send + 'static {
    /// What the gradients are computed from.
    type Saved: Clone + Debug + Send + 'static;

    /// `wanted` says of which inputs gradients will be.
    fn forward(&self, inputs: [Plain; N], wanted: [bool; N]) -> (Plain, Self::Saved);

    /// The gradients of the inputs, of which only those that are wanted are looked at.
    fn backward(
        &self,
        saved: Self::Saved,
        gradient: Plain,
        wanted: [bool; N],
    ) -> [Option<Plain>; N];
}

/// A function's place on the tape.
#[derive(Debug)]
struct Recorded<F>(PhantomData<F>);

impl<const N: usize, F: Function<N>> Backward<Flex, N> for Recorded<F> {
    type State = (F, F::Saved);

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&ops.node);
        let (function, saved) = ops.state;
        let wanted = ops.parents.each_ref().map(Option::is_some);
        let found = function.backward(saved, gradient, wanted);
        for (parent, gradient) in ops.parents.into_iter().zip(found) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// A tensor of Burn's CPU backend on the tape.
type Taped = FloatTensor<Autodiff<Flex>>;

enum Input {
    Plain(Plain),
    Taped(Taped),
}

impl<const D: usize> From<Tensor<D>> for Input {
    fn from(tensor: Tensor<D>) -> Self {
        let found = match tensor.is_autodiff() {
            true => tensor
                .try_into_primitive::<Autodiff<Flex>>()
                .map(Self::Taped),
            false => tensor.try_into_primitive::<Flex>().map(Self::Plain),
        };
        found.unwrap_or_else(|error| panic!("a tensor of the CPU backend: {error:?}"))
    }
}

impl Input {
    /// Off the tape, it is taken as a constant.
    fn taped(self) -> Taped {
        match self {
            Self::Plain(tensor) => Autodiff::<Flex>::from_inner(tensor),
            Self::Taped(tensor) => tensor,
        }
    }

    fn plain(self) -> Plain {
        match self {
            Self::Plain(tensor) => tensor,
            Self::Taped(tensor) => tensor.into_primitive(),
        }
    }
}

/// Calls a function, on the tape if one of its inputs is.
fn call<const D: usize, const N: usize, F: Function<N>>(
    function: F,
    inputs: [Input; N],
) -> Tensor<D> {
    if inputs.iter().all(|input| matches!(input, Input::Plain(_))) {
        let (output, _) = function.forward(inputs.map(Input::plain), [false; N]);
        return Tensor::from_primitive::<Flex>(output);
    }
    let taped = inputs.map(Input::taped);
    let wanted = taped.each_ref().map(Taped::is_tracked);
    let mut plain = Vec::with_capacity(N);
    let nodes = taped.map(|tensor| {
        let (primitive, node) = tensor.into_parts();
        plain.push(primitive);
        node
    });
    let plain: [Plain; N] = plain.try_into().expect("as many as nodes");
    let prepared = Recorded::<F>(PhantomData).prepare::<NoCheckpointing>(nodes);
    let (output, saved) = function.forward(plain, wanted);
    let output = match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish((function, saved), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

pub fn serves<const D: usize>(tensor: &Tensor<D>) -> bool {
    // A tape that recomputes what it did not keep is another type, and is left to Burn.
    tensor.dtype() == DType::F32
        && match tensor.is_autodiff() {
            true => tensor
                .clone()
                .try_into_primitive::<Autodiff<Flex>>()
                .is_ok(),
            false => tensor.clone().try_into_primitive::<Flex>().is_ok(),
        }
}

/// A tensor whose values lie one after the other.
fn contiguous(tensor: Plain) -> Plain {
    match tensor.as_slice::<f32>() {
        Some(_) => tensor,
        None => tensor.to_contiguous(),
    }
}

fn values(tensor: &Plain) -> &[f32] {
    tensor.as_slice().expect("contiguous 32-bit values")
}

fn shape<const D: usize>(tensor: &Plain) -> [usize; D] {
    tensor.layout().shape().dims()
}

/// A tensor of another's shape.
fn like(values: Vec<f32>, other: &Plain) -> Plain {
    Plain::from_data(TensorData::new(values, other.layout().shape().clone()))
}

fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Plain {
    Plain::from_data(TensorData::new(values, shape))
}

pub fn conv2d(input: Tensor<4>, weight: Tensor<4>, stride: usize, padding: usize) -> Tensor<4> {
    let [channels, channels_in, kernel_rows, kernel_columns] = weight.dims();
    assert_eq!(input.dims()[3], channels_in, "channels of the input");
    let convolution = Convolution {
        input: input.dims(),
        channels,
        kernel: [kernel_rows, kernel_columns],
        stride,
        padding,
    };
    call(convolution, [input.into(), weight.into()])
}

impl Function<2> for Convolution {
    type Saved = [Plain; 2];

    fn forward(&self, inputs: [Plain; 2], _: [bool; 2]) -> (Plain, Self::Saved) {
        let [input, weight] = inputs.map(contiguous);
        let output = Convolution::forward(self, values(&input), values(&weight));
        (tensor(output, self.output()), [input, weight])
    }

    fn backward(
        &self,
        [input, weight]: Self::Saved,
        gradient: Plain,
        [of_input, of_weight]: [bool; 2],
    ) -> [Option<Plain>; 2] {
        let gradient = contiguous(gradient);
        let gradient = values(&gradient);
        [
            of_input.then(|| tensor(self.input_gradient(values(&weight), gradient), self.input)),
            of_weight.then(|| {
                let of_weight = self.weight_gradient(values(&input), gradient);
                tensor(of_weight, shape::<4>(&weight))
            }),
        ]
    }
}

/// A transposed convolution without padding is the gradient of a convolution's input, and its input's gradient is that
/// convolution.
#[derive(Debug, Clone, Copy)]
struct Transposed(Convolution);

pub fn conv_transpose2d(
    input: Tensor<4>,
    weight: Tensor<4>,
    bias: Tensor<1>,
    stride: usize,
) -> Tensor<4> {
    let [batch, rows, columns, channels] = input.dims();
    let [channels_in, channels_out, kernel_rows, kernel_columns] = weight.dims();
    assert_eq!(channels, channels_in, "channels of the input");
    assert_eq!(bias.dims(), [channels_out], "one bias a channel");
    let size = |size: usize, kernel: usize| (size - 1) * stride + kernel;
    let transposed = Transposed(Convolution {
        input: [
            batch,
            size(rows, kernel_rows),
            size(columns, kernel_columns),
            channels_out,
        ],
        channels,
        kernel: [kernel_rows, kernel_columns],
        stride,
        padding: 0,
    });
    call(transposed, [input.into(), weight.into(), bias.into()])
}

impl Function<3> for Transposed {
    /// Input if the weight's gradient is wanted, and weight.
    type Saved = (Option<Plain>, Plain);

    fn forward(&self, inputs: [Plain; 3], [_, of_weight, _]: [bool; 3]) -> (Plain, Self::Saved) {
        let [input, weight, bias] = inputs.map(contiguous);
        let mut output = self.0.input_gradient(values(&weight), values(&input));
        crate::linear::add_bias(&mut output, values(&bias));
        let saved = (of_weight.then_some(input), weight);
        (tensor(output, self.0.input), saved)
    }

    fn backward(
        &self,
        (input, weight): Self::Saved,
        gradient: Plain,
        [of_input, _, of_bias]: [bool; 3],
    ) -> [Option<Plain>; 3] {
        let gradient = contiguous(gradient);
        let gradient = values(&gradient);
        let channels = self.0.input[3];
        [
            of_input.then(|| {
                let of_input = self.0.forward(gradient, values(&weight));
                tensor(of_input, self.0.output())
            }),
            input.map(|input| {
                let of_weight = self.0.weight_gradient(gradient, values(&input));
                tensor(of_weight, shape::<4>(&weight))
            }),
            of_bias.then(|| tensor(crate::linear::bias_gradient(gradient, channels), [channels])),
        ]
    }
}

pub fn moments(input: &Tensor<4>) -> Statistics {
    let [.., channels] = input.dims();
    let device = input.device().inner();
    let plain = Input::from(input.clone()).plain();
    let (mean, variance) = norm::moments(values(&contiguous(plain)), channels);
    let tensor = |values: Vec<f32>| Tensor::from_data(TensorData::new(values, [channels]), &device);
    Statistics {
        mean: tensor(mean),
        variance: tensor(variance),
    }
}

#[derive(Debug, Clone)]
struct Norm {
    mean: Vec<f32>,
    inverse_deviation: Vec<f32>,
    relu: bool,
}

pub fn batch_norm(
    input: Tensor<4>,
    statistics: &Statistics,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
    shortcut: Option<Tensor<4>>,
    relu: bool,
) -> Tensor<4> {
    let [.., channels] = input.dims();
    assert_eq!(weight.dims(), [channels], "scales of channels");
    assert_eq!(bias.dims(), [channels], "shifts of channels");
    let read = |tensor: &Tensor<1>| -> Vec<f32> { tensor.to_data().iter().collect() };
    let inverse = |variance: f32| (1.0 / (f64::from(variance) + epsilon).sqrt()) as f32;
    let norm = Norm {
        mean: read(&statistics.mean),
        inverse_deviation: read(&statistics.variance)
            .into_iter()
            .map(inverse)
            .collect(),
        relu,
    };
    assert_eq!(norm.mean.len(), channels, "means of channels");
    match shortcut {
        Some(shortcut) => {
            assert_eq!(shortcut.dims(), input.dims(), "the short cut's shape");
            let inputs = [input.into(), weight.into(), bias.into(), shortcut.into()];
            call::<4, 4, _>(norm, inputs)
        }
        None => call::<4, 3, _>(norm, [input.into(), weight.into(), bias.into()]),
    }
}

impl Norm {
    /// One factor and one summand for each channel.
    fn scale_and_shift(&self, weight: &Plain, bias: &Plain) -> [Vec<f32>; 2] {
        let scale = values(weight).iter().zip(&self.inverse_deviation);
        let scale: Vec<f32> = scale.map(|(weight, inverse)| weight * inverse).collect();
        let shift = values(bias).iter().zip(&self.mean).zip(&scale);
        let shift = shift.map(|((bias, mean), scale)| bias - mean * scale);
        let shift = shift.collect();
        [scale, shift]
    }

    fn apply(&self, input: &Plain, [weight, bias]: [&Plain; 2], shortcut: Option<&Plain>) -> Plain {
        let [scale, shift] = self.scale_and_shift(weight, bias);
        let shortcut = shortcut.map(values);
        let output = norm::apply(values(input), &scale, &shift, shortcut, self.relu);
        tensor(output, shape::<4>(input))
    }

    /// Of input, weight and bias. `rectified` is the scale and the shift of what went through ReLU.
    fn gradients(
        &self,
        input: &Plain,
        weight: &Plain,
        rectified: Option<&[Vec<f32>; 2]>,
        gradient: &Plain,
    ) -> [Option<Plain>; 3] {
        let normalized = Normalized {
            input: values(input),
            mean: &self.mean,
            inverse_deviation: &self.inverse_deviation,
            weight: values(weight),
            rectified: rectified.map(|[scale, shift]| [&scale[..], &shift[..]]),
        };
        let found = normalized.gradients(values(gradient));
        let channels = [self.mean.len()];
        [
            Some(tensor(found.input, shape::<4>(input))),
            Some(tensor(found.weight, channels)),
            Some(tensor(found.bias, channels)),
        ]
    }
}

impl Function<3> for Norm {
    /// Input, weight and bias.
    type Saved = [Plain; 3];

    fn forward(&self, inputs: [Plain; 3], _: [bool; 3]) -> (Plain, Self::Saved) {
        let inputs = inputs.map(contiguous);
        let [input, weight, bias] = &inputs;
        (self.apply(input, [weight, bias], None), inputs)
    }

    fn backward(
        &self,
        [input, weight, bias]: Self::Saved,
        gradient: Plain,
        _: [bool; 3],
    ) -> [Option<Plain>; 3] {
        let rectified = self.relu.then(|| self.scale_and_shift(&weight, &bias));
        self.gradients(&input, &weight, rectified.as_ref(), &contiguous(gradient))
    }
}

impl Function<4> for Norm {
    /// Input, weight, and the output if it went through ReLU.
    type Saved = (Plain, Plain, Option<Plain>);

    fn forward(&self, inputs: [Plain; 4], _: [bool; 4]) -> (Plain, Self::Saved) {
        let [input, weight, bias, shortcut] = inputs.map(contiguous);
        let output = self.apply(&input, [&weight, &bias], Some(&shortcut));
        let rectified = self.relu.then(|| output.clone());
        (output, (input, weight, rectified))
    }

    fn backward(
        &self,
        (input, weight, rectified): Self::Saved,
        gradient: Plain,
        [.., of_shortcut]: [bool; 4],
    ) -> [Option<Plain>; 4] {
        let gradient = contiguous(gradient);
        // The short cut needs the gradient below ReLU in any case; the rest then takes it from there.
        let below = match &rectified {
            Some(output) => {
                let below = norm::below_relu(values(&gradient), values(output));
                tensor(below, shape::<4>(output))
            }
            None => gradient,
        };
        let [of_input, of_weight, of_bias] = self.gradients(&input, &weight, None, &below);
        [of_input, of_weight, of_bias, of_shortcut.then_some(below)]
    }
}

#[derive(Debug, Clone, Copy)]
struct MaxPool {
    input: [usize; 4],
}

pub fn max_pool(input: Tensor<4>) -> Tensor<4> {
    let pool = MaxPool {
        input: input.dims(),
    };
    call(pool, [input.into()])
}

impl Function<1> for MaxPool {
    type Saved = Arc<Vec<u8>>;

    fn forward(&self, [input]: [Plain; 1], _: [bool; 1]) -> (Plain, Self::Saved) {
        let (largest, taps) = pool::forward(values(&contiguous(input)), self.input);
        (tensor(largest, pool::output(self.input)), Arc::new(taps))
    }

    fn backward(&self, taps: Self::Saved, gradient: Plain, _: [bool; 1]) -> [Option<Plain>; 1] {
        let below = pool::backward(values(&contiguous(gradient)), &taps, self.input);
        [Some(tensor(below, self.input))]
    }
}

/// Values that nobody else holds any more, or a copy of them.
fn owned(tensor: Plain) -> Vec<f32> {
    let data = contiguous(tensor).into_data();
    data.try_into_vec()
        .unwrap_or_else(|error| panic!("32-bit values: {error:?}"))
}

#[derive(Debug, Clone, Copy)]
struct Gelu;

pub fn gelu<const D: usize>(input: Tensor<D>) -> Tensor<D> {
    match Input::from(input) {
        // Off the tape in place, where nobody else holds the values.
        Input::Plain(input) => {
            let shape = shape::<D>(&input);
            let mut values = owned(input);
            elementwise::gelu(&mut values);
            Tensor::from_primitive::<Flex>(tensor(values, shape))
        }
        input @ Input::Taped(_) => call(Gelu, [input]),
    }
}

impl Function<1> for Gelu {
    type Saved = Plain;

    fn forward(&self, [input]: [Plain; 1], _: [bool; 1]) -> (Plain, Plain) {
        let input = contiguous(input);
        let mut output = values(&input).to_vec();
        elementwise::gelu(&mut output);
        (like(output, &input), input)
    }

    fn backward(&self, input: Plain, gradient: Plain, _: [bool; 1]) -> [Option<Plain>; 1] {
        let mut gradient = owned(gradient);
        elementwise::gelu_gradient(values(&input), &mut gradient);
        [Some(like(gradient, &input))]
    }
}

#[derive(Debug, Clone, Copy)]
struct Linear;

pub fn linear(input: Tensor<2>, weight: Tensor<2>, bias: Option<Tensor<1>>) -> Tensor<2> {
    let ([_, inputs], [weight_inputs, outputs]) = (input.dims(), weight.dims());
    assert_eq!(inputs, weight_inputs, "width of the input");
    match bias {
        Some(bias) => {
            assert_eq!(bias.dims(), [outputs], "one bias an output");
            call::<2, 3, _>(Linear, [input.into(), weight.into(), bias.into()])
        }
        None => call::<2, 2, _>(Linear, [input.into(), weight.into()]),
    }
}

impl Linear {
    /// The output, and of input and weight what the other's gradient is computed from.
    fn apply(
        [input, weight]: [Plain; 2],
        bias: Option<Plain>,
        [of_input, of_weight]: [bool; 2],
    ) -> (Plain, [Option<Plain>; 2]) {
        let [input, weight] = [input, weight].map(contiguous);
        let bias = bias.map(contiguous);
        let ([rows, _], [_, outputs]) = (shape(&input), shape(&weight));
        let output = crate::linear::linear(
            values(&input),
            values(&weight),
            bias.as_ref().map(values),
            outputs,
        );
        let saved = [of_weight.then_some(input), of_input.then_some(weight)];
        (tensor(output, [rows, outputs]), saved)
    }

    /// Of input and weight.
    fn gradients([input, weight]: [Option<Plain>; 2], gradient: &Plain) -> [Option<Plain>; 2] {
        let [rows, outputs] = shape(gradient);
        let gradient = values(gradient);
        let of_input = weight.map(|weight| {
            let [inputs, _] = shape(&weight);
            let of_input = crate::linear::input_gradient(values(&weight), gradient, inputs);
            tensor(of_input, [rows, inputs])
        });
        let of_weight = input.map(|input| {
            let [_, inputs] = shape(&input);
            let of_weight = crate::linear::weight_gradient(values(&input), gradient, inputs);
            tensor(of_weight, [inputs, outputs])
        });
        [of_input, of_weight]
    }
}

impl Function<2> for Linear {
    type Saved = [Option<Plain>; 2];

    fn forward(&self, inputs: [Plain; 2], wanted: [bool; 2]) -> (Plain, Self::Saved) {
        Self::apply(inputs, None, wanted)
    }

    fn backward(&self, saved: Self::Saved, gradient: Plain, _: [bool; 2]) -> [Option<Plain>; 2] {
        Self::gradients(saved, &contiguous(gradient))
    }
}

impl Function<3> for Linear {
    type Saved = [Option<Plain>; 2];

    fn forward(
        &self,
        [input, weight, bias]: [Plain; 3],
        [of_input, of_weight, _]: [bool; 3],
    ) -> (Plain, Self::Saved) {
        Self::apply([input, weight], Some(bias), [of_input, of_weight])
    }

    fn backward(
        &self,
        saved: Self::Saved,
        gradient: Plain,
        [.., of_bias]: [bool; 3],
    ) -> [Option<Plain>; 3] {
        let gradient = contiguous(gradient);
        let [of_input, of_weight] = Self::gradients(saved, &gradient);
        let of_bias = of_bias.then(|| {
            let [_, outputs] = shape(&gradient);
            tensor(
                crate::linear::bias_gradient(values(&gradient), outputs),
                [outputs],
            )
        });
        [of_input, of_weight, of_bias]
    }
}

#[derive(Debug, Clone, Copy)]
struct RowNorm {
    epsilon: f32,
}

pub fn layer_norm<const D: usize>(
    input: Tensor<D>,
    [weight, bias]: [Tensor<1>; 2],
    epsilon: f64,
) -> Tensor<D> {
    let channels = input.dims()[D - 1];
    assert_eq!(weight.dims(), [channels], "scales of channels");
    assert_eq!(bias.dims(), [channels], "shifts of channels");
    let norm = RowNorm {
        epsilon: epsilon as f32,
    };
    call(norm, [input.into(), weight.into(), bias.into()])
}

impl RowNorm {
    fn of<'a>(&self, input: &'a Plain, weight: &'a Plain) -> LayerNorm<'a> {
        LayerNorm {
            input: values(input),
            weight: values(weight),
            epsilon: self.epsilon,
        }
    }
}

impl Function<3> for RowNorm {
    /// Input and weight.
    type Saved = [Plain; 2];

    fn forward(&self, inputs: [Plain; 3], _: [bool; 3]) -> (Plain, Self::Saved) {
        let [input, weight, bias] = inputs.map(contiguous);
        let output = self.of(&input, &weight).forward(values(&bias));
        (like(output, &input), [input, weight])
    }

    fn backward(
        &self,
        [input, weight]: Self::Saved,
        gradient: Plain,
        [_, of_weight, of_bias]: [bool; 3],
    ) -> [Option<Plain>; 3] {
        let gradient = contiguous(gradient);
        let norm = self.of(&input, &weight);
        let found = norm.gradients(values(&gradient), of_weight || of_bias);
        let [of_weight, of_bias] = match found.affine {
            Some(affine) => affine.map(|found| Some(like(found, &weight))),
            None => [None, None],
        };
        [Some(like(found.input, &input)), of_weight, of_bias]
    }
}

/// A tensor off the tape.
fn plain<const D: usize>(tensor: Tensor<D>) -> Plain {
    match Input::from(tensor) {
        Input::Plain(tensor) => contiguous(tensor),
        Input::Taped(_) => panic!("there is no gradient of this function"),
    }
}

pub fn window_attention(
    qkv: Tensor<4>,
    padding: Tensor<1>,
    positions: [Tensor<2>; 2],
    heads: usize,
) -> Tensor<4> {
    let [batch, grid, columns, width] = qkv.dims();
    assert_eq!(grid, columns, "a square grid");
    assert!(
        heads > 0 && width.is_multiple_of(3 * heads),
        "heads of the width"
    );
    let [length, head_dim] = positions[0].dims();
    let (qkv, padding) = (plain(qkv), plain(padding));
    let positions = positions.map(plain);
    let attention = WindowAttention {
        qkv: values(&qkv),
        padding: values(&padding),
        positions: positions.each_ref().map(values),
        batch,
        grid,
        side: length.div_ceil(2),
        heads,
        head_dim,
    };
    Tensor::from_primitive::<Flex>(tensor(attention.output(), [batch, grid, grid, width / 3]))
}

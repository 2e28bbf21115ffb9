//! Connects the operations to Burn: records them for its autodiff, and reads and creates tensors of
//! its CPU backend, Flex.

use crate::buffer;
use burn::backend::autodiff::checkpoint::base::Checkpointer;
use burn::backend::autodiff::checkpoint::strategy::NoCheckpointing;
use burn::backend::autodiff::grads::Gradients;
use burn::backend::autodiff::ops::{Backward, Ops, OpsKind};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, AutodiffBackend, Flex};
use burn::tensor::{DType, Tensor, TensorData};
use std::fmt::Debug;
use std::marker::PhantomData;

/// Whether the functions of this crate accept the tensor: 32-bit values of Burn's CPU backend, with
/// or without autodiff.
///
/// Autodiff with gradient checkpointing is a backend of its own and is not supported.
pub fn is_supported<const D: usize>(tensor: &Tensor<D>) -> bool {
    let is_flex = if tensor.is_autodiff() {
        tensor.clone().try_into_primitive::<Autodiff<Flex>>().is_ok()
    } else {
        tensor.clone().try_into_primitive::<Flex>().is_ok()
    };
    is_flex && tensor.dtype() == DType::F32
}

/// A tensor without autodiff.
pub type FlexTensor = FloatTensor<Flex>;
type AutodiffTensor = FloatTensor<Autodiff<Flex>>;

/// A differentiable function of `N` tensors.
pub trait Operation<const N: usize>: Clone + Debug + Send + 'static {
    /// What the gradients are computed from.
    type Saved: Clone + Debug + Send + 'static;

    /// The output, and what `backward` needs for the gradients of the inputs in `requires_grad`.
    fn forward(
        &self,
        inputs: [FlexTensor; N],
        requires_grad: [bool; N],
    ) -> (FlexTensor, Self::Saved);

    /// The gradients of the inputs, from that of the output. Those of inputs that do not require
    /// one are ignored.
    fn backward(
        &self,
        saved: Self::Saved,
        gradient: FlexTensor,
        requires_grad: [bool; N],
    ) -> [Option<FlexTensor>; N];
}

/// Applies an operation, recorded for autodiff if one of its inputs is an autodiff tensor.
pub fn apply<const D: usize, const N: usize, O: Operation<N>>(
    operation: O,
    inputs: [Input; N],
) -> Tensor<D> {
    if inputs.iter().all(|input| matches!(input, Input::Flex(_))) {
        let (output, _) = operation.forward(inputs.map(Input::into_flex), [false; N]);
        return Tensor::from_primitive::<Flex>(output);
    }
    let inputs = inputs.map(Input::into_autodiff);
    let requires_grad = inputs.each_ref().map(AutodiffTensor::is_tracked);
    let mut primitives = Vec::with_capacity(N);
    let nodes = inputs.map(|tensor| {
        let (primitive, node) = tensor.into_parts();
        primitives.push(primitive);
        node
    });
    let primitives: [FlexTensor; N] = primitives.try_into().expect("one per node");
    let prepared = BackwardStep::<O>(PhantomData).prepare::<NoCheckpointing>(nodes);
    let (output, saved) = operation.forward(primitives, requires_grad);
    let output = match prepared.compute_bound().stateful() {
        OpsKind::Tracked(prepared) => prepared.finish((operation, saved), output),
        OpsKind::UnTracked(prepared) => prepared.finish(output),
    };
    Tensor::from_primitive::<Autodiff<Flex>>(output)
}

/// The backward step that Burn calls for an operation.
#[derive(Debug)]
struct BackwardStep<O>(PhantomData<O>);

impl<const N: usize, O: Operation<N>> Backward<Flex, N> for BackwardStep<O> {
    type State = (O, O::Saved);

    fn backward(self, ops: Ops<Self::State, N>, gradients: &mut Gradients, _: &mut Checkpointer) {
        let gradient = gradients.consume::<Flex>(&ops.node);
        let (operation, saved) = ops.state;
        let requires_grad = ops.parents.each_ref().map(Option::is_some);
        let input_gradients = operation.backward(saved, gradient, requires_grad);
        for (parent, gradient) in ops.parents.into_iter().zip(input_gradients) {
            if let (Some(parent), Some(gradient)) = (parent, gradient) {
                gradients.register::<Flex>(parent.id, gradient);
            }
        }
    }
}

/// An input of an operation.
pub enum Input {
    Flex(FlexTensor),
    Autodiff(AutodiffTensor),
}

impl<const D: usize> From<Tensor<D>> for Input {
    fn from(tensor: Tensor<D>) -> Self {
        let input = if tensor.is_autodiff() {
            tensor.try_into_primitive::<Autodiff<Flex>>().map(Self::Autodiff)
        } else {
            tensor.try_into_primitive::<Flex>().map(Self::Flex)
        };
        input.unwrap_or_else(|error| panic!("not a tensor of Burn's CPU backend: {error:?}"))
    }
}

impl Input {
    /// A tensor without autodiff becomes a constant.
    fn into_autodiff(self) -> AutodiffTensor {
        match self {
            Self::Flex(tensor) => Autodiff::<Flex>::from_inner(tensor),
            Self::Autodiff(tensor) => tensor,
        }
    }

    pub fn into_flex(self) -> FlexTensor {
        match self {
            Self::Flex(tensor) => tensor,
            Self::Autodiff(tensor) => tensor.into_primitive(),
        }
    }
}

/// The tensor with its values contiguous in memory, copied if they are not.
pub fn contiguous(tensor: FlexTensor) -> FlexTensor {
    match tensor.as_slice::<f32>() {
        Some(_) => tensor,
        None => tensor.to_contiguous(),
    }
}

pub fn values(tensor: &FlexTensor) -> &[f32] {
    tensor.as_slice().expect("contiguous 32-bit values")
}

/// The tensor's values, copied if its buffer is shared.
pub fn into_values(tensor: FlexTensor) -> Vec<f32> {
    let tensor = contiguous(tensor);
    if !tensor.is_unique() {
        return buffer::map(values(&tensor), |_| ());
    }
    tensor.into_data().try_into_vec().unwrap_or_else(|error| panic!("not 32-bit values: {error:?}"))
}

pub fn shape<const D: usize>(tensor: &FlexTensor) -> [usize; D] {
    tensor.layout().shape().dims()
}

pub fn tensor<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, shape))
}

/// A tensor of the shape of `other`.
pub fn tensor_like(values: Vec<f32>, other: &FlexTensor) -> FlexTensor {
    FlexTensor::from_data(TensorData::new(values, other.layout().shape().clone()))
}

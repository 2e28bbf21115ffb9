use super::keys::{Part, our_name};
use super::{StateDict, WeightsError, official_name};
use burn::module::Module;
use burn::store::burn_pack::{Error as PackError, Tensor as PackTensor};
use burn::store::{ApplyError, ModuleSnapshot, PyTorchToBurnAdapter, bridge};
use burn::tensor::{DType, TensorData};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Loads a part of a file into a module. Missing and unexpected tensors are errors.
///
/// Takes the module by value and returns it only if every tensor was loaded. The module must not
/// share state with one in use, which a failed load would leave partly loaded. Apart from the
/// module, one tensor at a time is in memory.
pub(crate) fn load<M: Module>(
    module: M,
    source: &StateDict,
    part: &Part,
) -> Result<M, WeightsError> {
    load_where(module, source, part, |_| true)
}

/// As [`load`], for a module with those tensors of the part whose official names without the prefix
/// are `selected`. Others are neither loaded nor required.
pub(crate) fn load_where<M: Module>(
    mut module: M,
    source: &StateDict,
    part: &Part,
    selected: impl Fn(&str) -> bool,
) -> Result<M, WeightsError> {
    let leaves_out = |name: &str| part.leaves_out(name) || !selected(name);
    let bad_value = First::default();
    let mut tensors = Vec::new();
    for tensor in source.iter() {
        let Some(name) = tensor.name.strip_prefix(part.prefix) else {
            continue;
        };
        if leaves_out(name) {
            continue;
        }
        let mut tensor = as_f32(tensor.clone(), source.path(), &bad_value)?;
        tensor.name = our_name(name);
        tensors.push(tensor);
    }
    let name_in_file = |ours: &str| format!("{}{}", part.prefix, official_name(ours));

    let result = module.apply(tensors, None, Some(Box::new(PyTorchToBurnAdapter)), true);

    let path = || source.path().to_path_buf();
    if let Some(error) = bad_value.take() {
        return Err(error);
    }
    let missing: Vec<_> = result
        .missing
        .iter()
        .map(|(ours, _)| name_in_file(ours))
        .filter(|name| !leaves_out(&name[part.prefix.len()..]))
        .collect();
    // With no name in common, a list of hundreds of tensors would hide the cause.
    let nothing_matches = result.applied.is_empty() && result.errors.is_empty();
    if nothing_matches && !result.unused.is_empty() {
        return Err(WeightsError::WrongKind {
            path: path(),
            expected: part.description.into(),
            found: source.describe(),
        });
    }
    if let Some(error) = result.errors.first() {
        return Err(apply_error(error, source, &name_in_file));
    }
    if !missing.is_empty() {
        return Err(WeightsError::Missing { path: path(), names: missing });
    }
    if !result.unused.is_empty() {
        return Err(WeightsError::Unused {
            path: path(),
            names: result.unused.iter().map(|ours| name_in_file(ours)).collect(),
        });
    }
    Ok(module)
}

/// The first error of a kind, stored out of band for code that cannot return it: tensors are read
/// inside Burn's store, whose errors are text, and written through a trait without errors.
pub(super) struct First<E>(Arc<Mutex<Option<E>>>);

impl<E> First<E> {
    pub(super) fn note(&self, error: E) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(error);
    }

    pub(super) fn take(&self) -> Option<E> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl<E> Default for First<E> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<E> Clone for First<E> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

/// Converts a tensor to `f32` lazily. When it is read, a value that is not finite is an error,
/// which is also stored in `bad_value`.
pub(super) fn as_f32(
    tensor: PackTensor,
    path: &Path,
    bad_value: &First<WeightsError>,
) -> Result<PackTensor, WeightsError> {
    if !matches!(tensor.dtype, DType::F64 | DType::F32 | DType::F16 | DType::BF16) {
        return Err(WeightsError::NotFloat {
            path: path.into(),
            name: tensor.name.clone(),
            found: format!("{:?}", tensor.dtype),
        });
    }
    let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
    let (path, bad_value) = (path.to_path_buf(), bad_value.clone());
    Ok(bridge::deferred(name.clone(), DType::F32, shape, None, move || {
        let data = bridge::to_data(&tensor)?.convert::<f32>();
        match first_not_finite(&data) {
            None => Ok(data),
            Some((index, value)) => {
                let error = WeightsError::NotFinite {
                    path: path.clone(),
                    name: name.clone(),
                    index,
                    value,
                };
                let message = error.to_string();
                bad_value.note(error);
                Err(PackError::ValidationError(message))
            }
        }
    }))
}

/// The values of a tensor, which must be finite.
pub(super) fn values(source: &StateDict, tensor: &PackTensor) -> Result<Vec<f32>, WeightsError> {
    let bad_value = First::default();
    let tensor = as_f32(tensor.clone(), source.path(), &bad_value)?;
    let data = bridge::into_data(tensor).map_err(|error| {
        bad_value.take().unwrap_or_else(|| WeightsError::Damaged {
            path: source.path().into(),
            reason: error.to_string(),
        })
    })?;
    Ok(data.iter::<f32>().collect())
}

fn first_not_finite(data: &TensorData) -> Option<(usize, f32)> {
    data.iter::<f32>().enumerate().find(|(_, value)| !value.is_finite())
}

fn apply_error(
    error: &ApplyError,
    source: &StateDict,
    name_in_file: &impl Fn(&str) -> String,
) -> WeightsError {
    let path = source.path().to_path_buf();
    match error {
        ApplyError::ShapeMismatch { path: ours, expected, found } => {
            let name = name_in_file(ours);
            let mut expected = expected.as_slice().to_vec();
            let mut found = found.as_slice().to_vec();
            // Burn stores linear layers transposed; the error reports the layout of the file.
            if source.shape(&name).is_some_and(|shape| shape.as_slice() != found) {
                expected.reverse();
                found.reverse();
            }
            WeightsError::Shape { path, name, found, expected }
        }
        other => WeightsError::Damaged { path, reason: other.to_string() },
    }
}

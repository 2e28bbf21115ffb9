use super::WeightsError;
use super::load::{First, as_f32};
use burn::store::burn_pack::{AtomicFile, Tensor as PackTensor};
use burn::tensor::DType;
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::path::Path;

/// Writes tensors as safetensors, floating-point ones as `f32`, one in memory at a time. The file is written beside
/// `path` and renamed. `origin` is the file that the tensors come from, for messages.
///
/// Integer tensors (PyTorch's counters of batches) are left out: nothing reads them.
pub(super) fn safetensors(
    path: &Path,
    origin: &Path,
    tensors: Vec<PackTensor>,
    metadata: HashMap<String, String>,
) -> Result<(), WeightsError> {
    let bad_value = First::default();
    let unreadable = First::default();
    let views = tensors
        .into_iter()
        .filter(|tensor| !matches!(tensor.dtype, DType::I64))
        .map(|tensor| {
            let tensor = as_f32(tensor, origin, &bad_value)?;
            let view = F32View {
                shape: tensor.shape.as_slice().to_vec(),
                tensor,
                unreadable: unreadable.clone(),
            };
            Ok((view.tensor.name.clone(), view))
        })
        .collect::<Result<Vec<_>, WeightsError>>()?;

    let write_error = |reason: String| WeightsError::Write {
        path: path.into(),
        reason,
    };
    let (scratch, file) =
        AtomicFile::create(path).map_err(|error| write_error(error.to_string()))?;
    drop(file);
    safetensors::serialize_to_file(views, Some(metadata), scratch.path())
        .map_err(|error| write_error(error.to_string()))?;
    // Dropping the scratch file without committing removes it.
    if let Some(error) = bad_value.take() {
        return Err(error);
    }
    if let Some(reason) = unreadable.take() {
        return Err(WeightsError::Damaged {
            path: origin.into(),
            reason,
        });
    }
    scratch
        .commit()
        .map_err(|error| write_error(error.to_string()))
}

struct F32View {
    shape: Vec<usize>,
    tensor: PackTensor,
    unreadable: First<String>,
}

impl View for F32View {
    fn dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        match self.tensor.to_bytes() {
            Ok(bytes) => Cow::Owned(bytes.to_vec()),
            Err(error) => {
                self.unreadable.note(error.to_string());
                Cow::Owned(vec![0; self.data_len()])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.byte_len()
    }
}

use super::WeightsError;
use super::load::{First, as_f32};
use burn::store::burn_pack::Tensor as PackTensor;
use burn::tensor::DType;
use datasets::replace_file;
use safetensors::tensor::{Dtype, View};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io;
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

    let mut wrong = None;
    let written = replace_file(path, "tensors.safetensors", |beside| {
        // What `safetensors` makes only its owner may read.
        let permissions = File::create(beside)?.metadata()?.permissions();
        safetensors::serialize_to_file(views, Some(metadata), beside).map_err(io::Error::other)?;
        std::fs::set_permissions(beside, permissions)?;
        let damaged = |reason| WeightsError::Damaged {
            path: origin.into(),
            reason,
        };
        wrong = bad_value.take().or_else(|| unreadable.take().map(damaged));
        match wrong {
            Some(_) => Err(io::ErrorKind::InvalidData.into()), // not put in place
            None => Ok(()),
        }
    });
    wrong.map_or(Ok(()), Err)?;
    written.map_err(|error| WeightsError::Write {
        path: path.into(),
        reason: error.to_string(),
    })
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

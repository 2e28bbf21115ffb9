use super::WeightsError;
use super::load::{First, as_f32};
use burn::store::burn_pack::Tensor as PackTensor;
use burn::tensor::DType;
use safetensors::tensor::{Dtype, View};
use sam_lst_datasets::replace_file;
use serde_json::Value;
use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

/// Writes floating-point tensors as `f32` safetensors, with one tensor at a time in memory. The
/// file replaces `path` atomically. `origin` is the file that contains the tensors, for error
/// messages.
///
/// 64-bit integer tensors, PyTorch's batch counters, are omitted because nothing reads them.
pub(crate) fn safetensors(
    path: &Path,
    origin: &Path,
    tensors: Vec<PackTensor>,
    metadata: HashMap<String, String>,
) -> Result<(), WeightsError> {
    let bad_value = First::default();
    let read_error = First::default();
    let views = tensors
        .into_iter()
        .filter(|tensor| !matches!(tensor.dtype, DType::I64))
        .map(|tensor| {
            let tensor = as_f32(tensor, origin, &bad_value)?;
            let view = F32View {
                shape: tensor.shape.as_slice().to_vec(),
                tensor,
                read_error: read_error.clone(),
            };
            Ok((view.tensor.name.clone(), view))
        })
        .collect::<Result<Vec<_>, WeightsError>>()?;

    let mut tensor_error = None;
    let written = replace_file(path, "tensors.safetensors", |temporary| {
        // `serialize_to_file` creates a file that only its owner may read.
        let permissions = File::create(temporary)?.metadata()?.permissions();
        safetensors::serialize_to_file(views, Some(metadata), temporary)
            .map_err(io::Error::other)?;
        sort_header(temporary)?;
        std::fs::set_permissions(temporary, permissions)?;
        let damaged = |reason| WeightsError::Damaged { path: origin.into(), reason };
        tensor_error = bad_value.take().or_else(|| read_error.take().map(damaged));
        match tensor_error {
            // An error, so that the file is not renamed to `path`.
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
            None => Ok(()),
        }
    });
    tensor_error.map_or(Ok(()), Err)?;
    written.map_err(|error| WeightsError::Write { path: path.into(), reason: error.to_string() })
}

/// Sorts the entries of a safetensors header, whose order is random otherwise, so that equal
/// contents are equal files. The length of the header does not change.
fn sort_header(file: &Path) -> io::Result<()> {
    let mut file = File::options().read(true).write(true).open(file)?;
    let mut length = [0; 8];
    file.read_exact(&mut length)?;
    let mut header = vec![0; u64::from_le_bytes(length) as usize];
    file.read_exact(&mut header)?;
    let entries: BTreeMap<String, BTreeMap<String, Value>> = serde_json::from_slice(&header)?;
    let mut sorted = serde_json::to_vec(&entries)?;
    sorted.resize(header.len(), b' ');
    file.seek(SeekFrom::Start(length.len() as u64))?;
    file.write_all(&sorted)
}

struct F32View {
    shape: Vec<usize>,
    tensor: PackTensor,
    read_error: First<String>,
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
                self.read_error.note(error.to_string());
                Cow::Owned(vec![0; self.data_len()])
            }
        }
    }

    fn data_len(&self) -> usize {
        self.tensor.byte_len()
    }
}

use super::official::OfficialFile;
use super::{WeightsError, write};
use burn::store::burn_pack::Tensor as PackTensor;
use burn::store::{ModuleStore, PytorchStore, SafetensorsStore};
use burn::tensor::Shape;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Named tensors in a file, PyTorch's or safetensors. Opening reads the table of contents; each tensor's values are read
/// when they are asked for, so that memory holds one at a time.
///
/// A pickle is parsed as data: nothing in it is executed.
pub struct StateDict {
    path: PathBuf,
    tensors: BTreeMap<String, PackTensor>,
    metadata: HashMap<String, String>,
}

/// What a tensor in a file looks like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its type, such as `F32`.
    pub dtype: String,
}

/// What the first bytes of a file say that it is.
enum Format {
    PyTorch,
    Safetensors,
}

impl StateDict {
    /// Opens a file. The format is told by its contents. If its name is an official one, its SHA-256 is compared with
    /// the digits in the name.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if there is no such file, it is not a checkpoint, truncated, damaged, or a broken download.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let format = recognise(path)?;
        if let Some(official) = OfficialFile::named(path) {
            official.verify(path)?;
        }
        let damaged = |reason: String| WeightsError::Damaged {
            path: path.into(),
            reason,
        };
        let (tensors, metadata) = match format {
            Format::PyTorch => {
                let mut store = PytorchStore::from_file(path).map_indices_contiguous(false);
                let tensors = store
                    .get_all_tensors()
                    .map_err(|error| damaged(error.to_string()))?;
                (tensors.clone(), HashMap::new())
            }
            Format::Safetensors => {
                let mut store = SafetensorsStore::from_file(path);
                let tensors = store
                    .get_all_tensors()
                    .map_err(|error| damaged(error.to_string()))?
                    .clone();
                (tensors, safetensors_metadata(path)?)
            }
        };
        if tensors.is_empty() {
            return Err(WeightsError::NotACheckpoint {
                path: path.into(),
                found: "a file without tensors".into(),
            });
        }
        Ok(Self {
            path: path.into(),
            tensors,
            metadata,
        })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// What the file holds, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> {
        self.tensors.values().map(|tensor| TensorInfo {
            name: tensor.name.clone(),
            shape: tensor.shape.as_slice().to_vec(),
            dtype: format!("{:?}", tensor.dtype),
        })
    }

    /// Writes the tensors as safetensors with the same names, floating-point ones as `f32`. The file is written beside
    /// `path` and renamed; its folder is made if there is none.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if a weight is NaN or infinite, or a file cannot be read or written.
    pub fn save_safetensors(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        let tensors = self.tensors.values().cloned().collect();
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        write::safetensors(path.as_ref(), &self.path, tensors, metadata)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&Shape> {
        self.tensors.get(name).map(|tensor| &tensor.shape)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &PackTensor> {
        self.tensors.values()
    }

    pub(super) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// What the file seems to hold, for messages.
    pub(crate) fn describe(&self) -> String {
        let has = |name: &str| self.tensors.contains_key(name);
        if self.metadata(super::checkpoint::CONFIG_KEY).is_some() {
            return "a ladder checkpoint".into();
        }
        if has("image_encoder.pos_embed") {
            return "a SAM checkpoint".into();
        }
        if has("conv1.weight") && has("layer1.0.conv1.weight") {
            return "a ResNet".into();
        }
        let first = self.names().next().unwrap_or_default();
        format!("{} tensors, the first of them {first}", self.tensors.len())
    }
}

fn recognise(path: &Path) -> Result<Format, WeightsError> {
    let read_error = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => WeightsError::NotFound {
            path: path.into(),
            hint: OfficialFile::named(path)
                .map(|file| format!("it is published at {}", file.url())),
        },
        _ => WeightsError::Read {
            path: path.into(),
            source,
        },
    };
    let file = File::open(path).map_err(read_error)?;
    let length = file.metadata().map_err(read_error)?.len();
    let mut head = Vec::new();
    file.take(512).read_to_end(&mut head).map_err(read_error)?;

    let not_a_checkpoint = |found: &str| {
        Err(WeightsError::NotACheckpoint {
            path: path.into(),
            found: found.into(),
        })
    };
    if head.starts_with(b"PK\x03\x04") || head.get(257..262) == Some(b"ustar") {
        return Ok(Format::PyTorch);
    }
    // Safetensors: the length of a JSON header, then the header.
    if head.len() > 8 && head[8] == b'{' {
        let header = u64::from_le_bytes(std::array::from_fn(|i| head[i]));
        if header > length - 8 {
            return Err(WeightsError::Damaged {
                path: path.into(),
                reason: format!("its header has {header} bytes, but the file only {length}"),
            });
        }
        return Ok(Format::Safetensors);
    }
    // A pickle of protocol 2 or later: what torch.save wrote before version 1.6.
    if head.len() > 1 && head[0] == 0x80 && (2..=5).contains(&head[1]) {
        return Ok(Format::PyTorch);
    }
    if head.is_empty() {
        return not_a_checkpoint("an empty file");
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let text = text.trim_start();
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        return not_a_checkpoint("an HTML page, as a failed download leaves");
    }
    if text.starts_with("version https://git-lfs") {
        return not_a_checkpoint("a Git LFS pointer; `git lfs pull` fetches the file itself");
    }
    let bytes = &head[..head.len().min(8)];
    not_a_checkpoint(&format!("a file that begins with the bytes {bytes:02x?}"))
}

/// The header's free-form part, which Burn's store does not hand out.
fn safetensors_metadata(path: &Path) -> Result<HashMap<String, String>, WeightsError> {
    let read_header = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut header = Vec::new();
        // `recognise` found the header to lie within the file.
        file.take(u64::from_le_bytes(length))
            .read_to_end(&mut header)?;
        Ok(header)
    };
    let header = read_header().map_err(|source| WeightsError::Read {
        path: path.into(),
        source,
    })?;
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(default, rename = "__metadata__")]
        metadata: HashMap<String, String>,
    }
    serde_json::from_slice::<Header>(&header)
        .map(|header| header.metadata)
        .map_err(|error| WeightsError::Damaged {
            path: path.into(),
            reason: error.to_string(),
        })
}

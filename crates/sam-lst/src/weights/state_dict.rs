use super::official::OfficialFile;
use super::{WeightsError, hugging_face, write};
use burn::store::burn_pack::Tensor as PackTensor;
use burn::store::pytorch::{PickleError, PytorchError, PytorchStoreError};
use burn::store::{ModuleStore, PytorchStore, SafetensorsStore};
use burn::tensor::Shape;
use sam_lst_datasets::files_sha256;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};

/// Metadata of a trained network: its configuration. Its presence identifies the checkpoint of a
/// network.
pub(crate) const NETWORK_CONFIG_KEY: &str = "sam_lst.config";
/// Metadata of a trained network: the name of its method, unless it is a ladder.
pub(crate) const METHOD_KEY: &str = "sam_lst.method";

/// The named tensors of a PyTorch or safetensors file. Opening the file reads names, shapes and
/// types; values are read one tensor at a time when they are needed.
///
/// Pickles are parsed as data; no code in them is executed.
pub struct StateDict {
    path: PathBuf,
    tensors: BTreeMap<String, PackTensor>,
    metadata: HashMap<String, String>,
}

/// Name, shape and element type of a tensor in a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Its name.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its element type, for example `F32`.
    pub dtype: String,
}

/// A supported file format.
enum Format {
    PyTorch,
    Safetensors,
}

impl StateDict {
    /// Opens a file. Its format is detected from its contents. If the file has the name of an
    /// official file, its SHA-256 must begin with the digits in the name.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if the file does not exist, cannot be read, is not a checkpoint, is
    /// truncated or damaged, or differs from the official file of its name.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let path = path.as_ref();
        let format = detect_format(path)?;
        if let Some(official) = OfficialFile::named(path) {
            official.verify(path)?;
        }
        let damaged = |reason: String| WeightsError::Damaged { path: path.into(), reason };
        let (tensors, metadata) = match format {
            Format::PyTorch => {
                let mut store = PytorchStore::from_file(path).map_indices_contiguous(false);
                let tensors =
                    store.get_all_tensors().map_err(|error| pytorch_error(path, &error))?;
                (tensors.clone(), HashMap::new())
            }
            Format::Safetensors => {
                let mut store = SafetensorsStore::from_file(path);
                let tensors =
                    store.get_all_tensors().map_err(|error| damaged(error.to_string()))?.clone();
                (tensors, safetensors_metadata(path)?)
            }
        };
        if tensors.is_empty() {
            return Err(WeightsError::NotACheckpoint {
                path: path.into(),
                found: "a file without tensors".into(),
            });
        }
        // A ladder checkpoint's names are as they were written.
        let tensors = if metadata.contains_key(NETWORK_CONFIG_KEY) {
            tensors
        } else {
            with_official_names(unwrapped(path, tensors)?)
        };
        Ok(Self { path: path.into(), tensors, metadata })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The SHA-256 of the file.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Read`] if the file cannot be read.
    pub(crate) fn file_sha256(&self) -> Result<String, WeightsError> {
        files_sha256([&self.path])
            .map_err(|(_, source)| WeightsError::Read { path: self.path.clone(), source })
    }

    /// The tensors' names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Names, shapes and element types of the tensors, sorted by name.
    pub fn tensors(&self) -> impl Iterator<Item = TensorInfo> {
        self.tensors.values().map(|tensor| TensorInfo {
            name: tensor.name.clone(),
            shape: tensor.shape.as_slice().to_vec(),
            dtype: format!("{:?}", tensor.dtype),
        })
    }

    /// Writes the floating-point tensors as safetensors, under the same names and as `f32`. 64-bit
    /// integers, which are batch norms' batch counters, are omitted. The file replaces `path`
    /// atomically; its folder is created if necessary.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] if a weight is NaN or infinite, a tensor has another element type, or a
    /// file cannot be read or written.
    pub fn save_safetensors(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        let tensors = self.tensors.values().cloned().collect();
        let metadata = HashMap::from([("format".to_string(), "pt".to_string())]);
        write::safetensors(path.as_ref(), &self.path, tensors, metadata)
    }

    pub(crate) fn shape(&self, name: &str) -> Option<&Shape> {
        self.tensors.get(name).map(|tensor| &tensor.shape)
    }

    pub(super) fn get(&self, name: &str) -> Option<&PackTensor> {
        self.tensors.get(name)
    }

    /// The names of floating-point tensors, sorted. Tensors of other types are no weights:
    /// checkpoints contain, for example, states of random number generators.
    pub(crate) fn float_names(&self) -> impl Iterator<Item = &str> {
        let is_float = |tensor: &&PackTensor| tensor.dtype.is_float();
        self.tensors.values().filter(is_float).map(|tensor| tensor.name.as_str())
    }

    /// The same file with other tensors.
    pub(crate) fn with_tensors(&self, tensors: Vec<PackTensor>) -> Self {
        Self {
            path: self.path.clone(),
            tensors: tensors.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect(),
            metadata: self.metadata.clone(),
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &PackTensor> {
        self.tensors.values()
    }

    pub(crate) fn metadata(&self, key: &str) -> Option<&str> {
        self.metadata.get(key).map(String::as_str)
    }

    /// The method of a trained network. Files of ladders do not name it.
    pub(crate) fn method(&self) -> &str {
        self.metadata(METHOD_KEY).unwrap_or("ladder")
    }

    /// Describes the kind of model in the file for error messages.
    pub(crate) fn describe(&self) -> String {
        let has = |name: &str| self.tensors.contains_key(name);
        if self.metadata(NETWORK_CONFIG_KEY).is_some() {
            return format!("a trained network of the method `{}`", self.method());
        }
        if has("image_encoder.pos_embed") || has("image_encoder.patch_embed.seq.0.c.weight") {
            return "a SAM checkpoint".into();
        }
        if has("conv1.weight") && has("layer1.0.conv1.weight") {
            return "a ResNet".into();
        }
        if has("w_a_000") {
            return "a network of SAMed's code".into();
        }
        if has("layers.0.blocks.0.attn.relative_position_bias_table") {
            return "a Swin Transformer".into();
        }
        if has("patch_embed.backbone.stem.conv.weight") {
            return "a hybrid Vision Transformer".into();
        }
        if has("cls_token") && has("blocks.0.attn.qkv.weight") {
            return "a Vision Transformer".into();
        }
        let first = self.names().next().unwrap_or_default();
        format!("{} tensors, starting with {first}", self.tensors.len())
    }
}

const SAVE_STATE_DICT: &str = "save its weights alone with \
                               `torch.save(model.state_dict(), \"weights.pth\")`";

/// Distinguishes files that PyTorch wrote for another purpose, or with other types, from damaged
/// ones.
fn pytorch_error(path: &Path, error: &PytorchStoreError) -> WeightsError {
    let path = path.to_owned();
    let unsupported =
        |found: String, remedy| WeightsError::Unsupported { path: path.clone(), found, remedy };
    match error {
        PytorchStoreError::Reader(PytorchError::Pickle(PickleError::UnsupportedType(name))) => {
            if name.starts_with("__torch__") {
                unsupported("a TorchScript program".to_owned(), SAVE_STATE_DICT)
            } else {
                let remedy = "convert the tensors with `.float()` and save them again";
                unsupported(format!("an object of the unsupported type {name}"), remedy)
            }
        }
        PytorchStoreError::Reader(PytorchError::InvalidFormat(reason))
            if reason.starts_with("Expected a dictionary") =>
        {
            let found = reason.rsplit(' ').next().unwrap_or_default();
            unsupported(format!("no dictionary of tensors, but a {found}"), SAVE_STATE_DICT)
        }
        error => WeightsError::Damaged { path, reason: error.to_string() },
    }
}

/// Renames the tensors of Hugging Face's `SamModel` to SAM's names, and those of Microsoft's Swin
/// Transformer to timm's.
fn with_official_names(tensors: BTreeMap<String, PackTensor>) -> BTreeMap<String, PackTensor> {
    let official_name: fn(&str) -> String = if tensors.contains_key(hugging_face::ANCHOR) {
        hugging_face::official_name
    } else if tensors.contains_key("layers.0.downsample.reduction.weight") {
        timm_name
    } else {
        return tensors;
    };
    let renamed = tensors.into_values().map(|mut tensor| {
        tensor.name = official_name(&tensor.name);
        (tensor.name.clone(), tensor)
    });
    renamed.collect()
}

/// timm's name of a tensor of Microsoft's Swin Transformer, where a stage ends with the layer that
/// halves the grid instead of beginning with it.
fn timm_name(name: &str) -> String {
    let renamed = || {
        let (stage, rest) = name.strip_prefix("layers.")?.split_once(".downsample.")?;
        Some(format!("layers.{}.downsample.{rest}", stage.parse::<usize>().ok()? + 1))
    };
    renamed().unwrap_or_else(|| name.to_owned())
}

/// A tensor that each kind of model has, by which its state dict is found in a training checkpoint.
const ANCHORS: [&str; 7] = [
    hugging_face::ANCHOR,
    "image_encoder.neck.0.weight",
    "mask_decoder.iou_token.weight",
    "prompt_encoder.no_mask_embed.weight",
    "layer1.0.conv1.weight",
    "layers.0.blocks.0.attn.relative_position_bias_table",
    "cls_token",
];

/// Removes what training programs put around a state dict: a dictionary with one entry for the
/// model, and a prefix before every name, such as `module.` of data-parallel training. Names in a
/// nested dictionary have its key as a prefix, so both are one prefix. All tensors without it, such
/// as the optimizer's, are dropped.
fn unwrapped(
    path: &Path,
    tensors: BTreeMap<String, PackTensor>,
) -> Result<BTreeMap<String, PackTensor>, WeightsError> {
    let prefixes: BTreeSet<&str> = tensors
        .keys()
        .flat_map(|name| ANCHORS.iter().filter_map(|anchor| name.strip_suffix(anchor)))
        .filter(|prefix| prefix.is_empty() || prefix.ends_with('.'))
        .collect();
    let prefix = match Vec::from_iter(prefixes)[..] {
        [] | [""] => return Ok(tensors),
        [prefix] => prefix.to_owned(),
        // The file is a state dict that happens to contain another one.
        ["", ..] => return Ok(tensors),
        ref several => {
            return Err(WeightsError::Ambiguous {
                path: path.into(),
                prefixes: several.iter().map(|&prefix| prefix.to_owned()).collect(),
            });
        }
    };
    let unwrapped = tensors.into_iter().filter_map(|(name, mut tensor)| {
        let name = name.strip_prefix(&prefix)?.to_owned();
        tensor.name.clone_from(&name);
        Some((name, tensor))
    });
    Ok(unwrapped.collect())
}

fn detect_format(path: &Path) -> Result<Format, WeightsError> {
    let read_error = |source: std::io::Error| match source.kind() {
        ErrorKind::NotFound => WeightsError::NotFound {
            path: path.into(),
            hint: OfficialFile::named(path).map(|file| format!("download it from {}", file.url())),
        },
        _ => WeightsError::Read { path: path.into(), source },
    };
    let file = File::open(path).map_err(read_error)?;
    let length = file.metadata().map_err(read_error)?.len();
    let mut head = Vec::new();
    file.take(512).read_to_end(&mut head).map_err(read_error)?;

    let not_a_checkpoint =
        |found: &str| Err(WeightsError::NotACheckpoint { path: path.into(), found: found.into() });
    if head.starts_with(b"PK\x03\x04") || head.get(257..262) == Some(b"ustar") {
        return Ok(Format::PyTorch);
    }
    // Safetensors: the length of the JSON header, then the header.
    if head.len() > 8 && head[8] == b'{' {
        let header_length = u64::from_le_bytes(std::array::from_fn(|i| head[i]));
        if header_length > length - 8 {
            return Err(WeightsError::Damaged {
                path: path.into(),
                reason: format!("its header has {header_length} bytes, but the file only {length}"),
            });
        }
        return Ok(Format::Safetensors);
    }
    // A pickle of protocol 2 or later: the format of torch.save before version 1.6.
    if head.len() > 1 && head[0] == 0x80 && (2..=5).contains(&head[1]) {
        return Ok(Format::PyTorch);
    }
    if head.is_empty() {
        return not_a_checkpoint("an empty file");
    }
    let text = String::from_utf8_lossy(&head).to_ascii_lowercase();
    let text = text.trim_start();
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        return not_a_checkpoint("an HTML page, probably from a failed download");
    }
    if text.starts_with("version https://git-lfs") {
        return not_a_checkpoint("a Git LFS pointer; run `git lfs pull` to fetch the file");
    }
    let bytes = &head[..head.len().min(8)];
    not_a_checkpoint(&format!("a file that begins with the bytes {bytes:02x?}"))
}

/// Reads the metadata of the header, which Burn's store does not return.
fn safetensors_metadata(path: &Path) -> Result<HashMap<String, String>, WeightsError> {
    let read_header = || -> std::io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let mut length = [0; 8];
        file.read_exact(&mut length)?;
        let mut header = Vec::new();
        // `detect_format` has checked that the header is within the file.
        file.take(u64::from_le_bytes(length)).read_to_end(&mut header)?;
        Ok(header)
    };
    let header =
        read_header().map_err(|source| WeightsError::Read { path: path.into(), source })?;
    #[derive(serde::Deserialize)]
    struct Header {
        #[serde(default, rename = "__metadata__")]
        metadata: HashMap<String, String>,
    }
    serde_json::from_slice::<Header>(&header)
        .map(|header| header.metadata)
        .map_err(|error| WeightsError::Damaged { path: path.into(), reason: error.to_string() })
}

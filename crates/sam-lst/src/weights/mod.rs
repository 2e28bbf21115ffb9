//! Weights in and out: official `.pth` files, safetensors, and ladder checkpoints.
//!
//! # Files that load
//!
//! SAM's `sam_vit_{b,l,h}_*.pth` and torchvision's `resnet18-*.pth` and `resnet34-*.pth`, as they are published, or the
//! same tensors as safetensors (`examples/convert_weights.rs` converts). Full and half precision load alike, as `f32`.
//! Loading is strict: a tensor that is missing, left over, of another shape, or holds a NaN is an error that names it.
//! After an error the model is as it was.
//!
//! Left out on purpose are `fc.*`, `layer4.*` and `*.num_batches_tracked` of a ResNet, and from SAM's decoder the
//! tensors whose shape depends on the number of classes: `mask_tokens`, `output_hypernetworks_mlps` and
//! `iou_prediction_head`.
//!
//! # Ladder checkpoints
//!
//! A safetensors file with what cannot be rebuilt from the official files: the trained tensors, the batch norms'
//! running statistics, and the tensors that were left at their random initialisation. Names and layouts are PyTorch's,
//! behind the prefixes `side.`, `gate.`, `prompt_encoder.` and `mask_decoder.`. Its metadata carry the configuration
//! with the seed, and the SHA-256 of the weights that it was trained over.
//!
//! # The SHA-256 of weights
//!
//! Over the tensors in the order of their official names: the name, a zero byte, the values as little-endian `f32` in
//! PyTorch's layout. In Python:
//!
//! ```python
//! digest = hashlib.sha256()
//! for name, tensor in sorted(state_dict.items()):
//!     if name.startswith("image_encoder."):
//!         digest.update(name.encode() + b"\0" + tensor.float().contiguous().numpy().tobytes())
//! ```

mod checkpoint;
mod error;
mod fingerprint;
mod keys;
mod load;
mod official;
mod state_dict;
mod write;

pub use checkpoint::LadderMetadata;
pub use error::WeightsError;
pub use keys::official_name;
pub use state_dict::{StateDict, TensorInfo};

pub(crate) use checkpoint::{load_ladder, save_ladder, save_sam};
pub(crate) use fingerprint::{collect, files_sha256, sha256};
pub(crate) use keys::{CLASS_DECODER, IMAGE_ENCODER, MASK_DECODER, PROMPT_ENCODER, RESNET};
pub(crate) use load::load;
pub(crate) use official::expect_variant;

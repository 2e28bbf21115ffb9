//! Loading and saving weights: official `.pth` files, safetensors, and checkpoints of
//! networks.
//!
//! # Supported files
//!
//! The published files of SAM (`sam_vit_{b,l,h}_*.pth`), MedSAM, LiteMedSAM and MobileSAM, and
//! `resnet{18,34,50}-*.pth` of torchvision, `vit_base_r50_s16_224`, `swin_tiny_patch4_window7_224`
//! and `vit_tiny_patch16_224` of timm, or the same tensors as safetensors
//! ([`StateDict::save_safetensors`] converts). Full and half precision are both loaded as `f32`.
//! Loading is strict: a tensor that is missing, unexpected, of another shape, or not finite is an
//! error that names it. After an error the model is unchanged.
//!
//! What a file contains is recognised by its tensors
//! ([`EncoderConfig::recognize`](crate::model::EncoderConfig::recognize)). A state dict may be an
//! entry of a training checkpoint, beside optimizer and epoch, and all names may have a prefix such
//! as `module.`. Names of Hugging Face's `SamModel` are mapped to SAM's.
//!
//! The following tensors are not loaded: `fc.*`, `layer4.*` and `*.num_batches_tracked` of a
//! ResNet; class token and classifier of timm's transformers; MobileSAM's classifier, `norm_head.*`
//! and `head.*`; and those of SAM's decoder whose shape depends on the number of classes,
//! `mask_tokens`, `output_hypernetworks_mlps` and `iou_prediction_head`. TinyViT's batch norms are
//! folded into the convolutions before them.
//!
//! # Checkpoints of networks
//!
//! A checkpoint is a safetensors file with everything that the official files do not
//! contain: the trained tensors, the running statistics of the batch norms, and the tensors that
//! keep their random initialisation. Names and layouts are PyTorch's, with the prefixes `side.`,
//! `gate.`, `prompt_encoder.` and `mask_decoder.`. The metadata contain the configuration,
//! including the seed, and the SHA-256 of the frozen weights that the network was trained with.
//!
//! # SHA-256 of weights
//!
//! The hash covers the tensors in the order of their official names: for each, its name, a zero
//! byte, and its values as little-endian `f32` in PyTorch's layout. Of TinyViT, it covers the
//! convolutions with folded batch norms, `*.c.weight` and `*.c.bias`. In Python, for SAM:
//!
//! ```python
//! digest = hashlib.sha256()
//! for name, tensor in sorted(state_dict.items()):
//!     if name.startswith("image_encoder."):
//!         digest.update(name.encode() + b"\0" + tensor.float().contiguous().numpy().tobytes())
//! ```

mod batch_norms;
mod error;
mod fingerprint;
mod hugging_face;
mod keys;
mod load;
mod official;
mod position_embeddings;
mod state_dict;
mod write;

pub use error::WeightsError;
pub use keys::official_name;
pub use state_dict::{StateDict, TensorInfo};

pub(crate) use batch_norms::fold_batch_norms;
pub(crate) use fingerprint::{collect, sha256};
pub(crate) use keys::{
    CLASS_DECODER, HYBRID_RESNET, IMAGE_ENCODER, MASK_DECODER, PROMPT_ENCODER, Part, RESNET, SWIN,
    TINY_VIT,
};
pub(crate) use load::{load, load_where};
pub(crate) use position_embeddings::load_vision_transformer;
pub(crate) use state_dict::{METHOD_KEY, NETWORK_CONFIG_KEY};
pub(crate) use write::safetensors as write_safetensors;

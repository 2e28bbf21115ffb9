//! SAM's prompt encoder and mask decoder (Kirillov et al., *Segment Anything*, arXiv 2304.02643,
//! appendix A) for any batch size, any number of masks and any embedding size.
//!
//! Without prompts, the decoder predicts one mask per class; ladder side-tuning uses it this way.
//! With point, box or mask prompts and four mask tokens, it is the decoder of the original SAM.
//!
//! # Notation
//!
//! `B` batch, `C` embedding width (256 in SAM), `G` grid size of the image embedding, `K` number of
//! masks, `N` number of prompt tokens, `T` total number of tokens, `P = G * G` number of image
//! positions.

mod attention;
mod decoder;
mod prompt_encoder;
mod transformer;

pub use attention::{Attention, AttentionConfig};
pub use decoder::{
    DecoderTuning, MaskDecoder, MaskDecoderConfig, MaskPrediction, Mlp, MlpConfig, OutputUpscaling,
    OutputUpscalingConfig,
};
pub use prompt_encoder::{
    MaskDownscaling, PointLabel, Points, PositionalEncoding, PromptEmbeddings, PromptEncoder,
    PromptEncoderConfig, Prompts,
};
pub use transformer::{TwoWayBlock, TwoWayBlockConfig, TwoWayTransformer, TwoWayTransformerConfig};

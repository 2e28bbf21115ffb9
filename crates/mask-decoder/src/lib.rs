//! SAM's prompt encoder and mask decoder (Kirillov et al., *Segment Anything*, arXiv 2304.02643, appendix A) for any
//! batch, any number of masks and any embedding size.
//!
//! Asked without prompts it draws one mask per class, which is how ladder side-tuning uses it; with points, boxes or
//! masks, and four mask tokens, it is the decoder of the unmodified SAM.
//!
//! # Letters
//!
//! `B` batch, `C` embedding width (256 in SAM), `G` grid size of the image embedding, `K` number of masks,
//! `N` number of prompt tokens, `T` number of tokens in all, `P` number of image positions, `G * G`.

mod attention;
mod decoder;
mod prompt_encoder;
mod transformer;

pub use attention::{Attention, AttentionConfig};
pub use decoder::{
    DecoderTuning, Head, HeadConfig, MaskDecoder, MaskDecoderConfig, MaskPrediction,
    OutputUpscaling, OutputUpscalingConfig,
};
pub use prompt_encoder::{
    MaskDownscaling, PointLabel, Points, PositionalEncoding, PromptEmbeddings, PromptEncoder,
    PromptEncoderConfig, Prompts,
};
pub use transformer::{TwoWayBlock, TwoWayBlockConfig, TwoWayTransformer, TwoWayTransformerConfig};

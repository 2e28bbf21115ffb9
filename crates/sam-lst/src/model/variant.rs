//! Identifies the published variants of SAM by their tensors.

use crate::weights::{StateDict, WeightsError};
use burn::tensor::Shape;
use sam_lst_sam_encoder::SamEncoderConfig;

/// Returns the name of a published variant, or a description of any other.
fn variant_name(embed_dim: usize, depth: usize) -> String {
    for (name, config) in [
        ("SAM ViT-B", SamEncoderConfig::vit_b()),
        ("SAM ViT-L", SamEncoderConfig::vit_l()),
        ("SAM ViT-H", SamEncoderConfig::vit_h()),
    ] {
        if (config.embed_dim, config.depth) == (embed_dim, depth) {
            return name.into();
        }
    }
    format!("a SAM image encoder with width {embed_dim} and {depth} blocks")
}

/// Checks that a file contains the configured variant of SAM. Comparing the tensors one by one
/// would only report a wrong shape, which does not tell the user that the variant is wrong.
pub(super) fn expect_variant(
    source: &StateDict,
    config: &SamEncoderConfig,
) -> Result<(), WeightsError> {
    let expected = variant_name(config.embed_dim, config.depth);
    let wrong_kind = |expected: String, found: String| WeightsError::WrongKind {
        path: source.path().into(),
        expected,
        found,
    };
    let width = source
        .shape("image_encoder.pos_embed")
        .and_then(|shape: &Shape| shape.as_slice().last().copied());
    let Some(embed_dim) = width else {
        return Err(wrong_kind(
            format!("{expected} with tensors image_encoder.*, prompt_encoder.*, mask_decoder.*"),
            source.describe(),
        ));
    };
    let depth = (0..)
        .take_while(|block| {
            source.shape(&format!("image_encoder.blocks.{block}.norm1.weight")).is_some()
        })
        .count();
    let found = variant_name(embed_dim, depth);
    if found != expected {
        return Err(wrong_kind(expected, found));
    }
    let unknown: Vec<_> = source
        .names()
        .filter(|name| {
            !["image_encoder.", "prompt_encoder.", "mask_decoder."]
                .iter()
                .any(|prefix| name.starts_with(prefix))
        })
        .map(str::to_string)
        .collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(WeightsError::Unused { path: source.path().into(), names: unknown })
}

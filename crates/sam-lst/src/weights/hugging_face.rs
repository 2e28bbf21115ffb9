//! Names of tensors in Hugging Face's `SamModel`.

/// A tensor by which a file of `SamModel` is recognised.
pub(super) const ANCHOR: &str = "vision_encoder.pos_embed";

/// Parts of names that differ, as (Hugging Face's, SAM's). All that occur are replaced.
const NAMES: [(&str, &str); 22] = [
    ("shared_image_embedding.positional_embedding", POSITIONAL_ENCODING),
    ("prompt_encoder.shared_embedding.positional_embedding", POSITIONAL_ENCODING),
    ("vision_encoder.patch_embed.projection.", "image_encoder.patch_embed.proj."),
    ("vision_encoder.neck.conv1.", "image_encoder.neck.0."),
    ("vision_encoder.neck.layer_norm1.", "image_encoder.neck.1."),
    ("vision_encoder.neck.conv2.", "image_encoder.neck.2."),
    ("vision_encoder.neck.layer_norm2.", "image_encoder.neck.3."),
    ("vision_encoder.layers.", "image_encoder.blocks."),
    ("vision_encoder.", "image_encoder."),
    ("prompt_encoder.point_embed.", "prompt_encoder.point_embeddings."),
    ("prompt_encoder.mask_embed.conv1.", "prompt_encoder.mask_downscaling.0."),
    ("prompt_encoder.mask_embed.layer_norm1.", "prompt_encoder.mask_downscaling.1."),
    ("prompt_encoder.mask_embed.conv2.", "prompt_encoder.mask_downscaling.3."),
    ("prompt_encoder.mask_embed.layer_norm2.", "prompt_encoder.mask_downscaling.4."),
    ("prompt_encoder.mask_embed.conv3.", "prompt_encoder.mask_downscaling.6."),
    ("mask_decoder.upscale_conv1.", "mask_decoder.output_upscaling.0."),
    ("mask_decoder.upscale_layer_norm.", "mask_decoder.output_upscaling.1."),
    ("mask_decoder.upscale_conv2.", "mask_decoder.output_upscaling.3."),
    (".layer_norm_final_attn.", ".norm_final_attn."),
    (".layer_norm", ".norm"),
    (".proj_in.", ".layers.0."),
    (".proj_out.", ".layers.2."),
];

const POSITIONAL_ENCODING: &str = "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix";

/// SAM's name of a tensor of `SamModel`. Its two positional encodings are the same tensor.
pub(super) fn official_name(name: &str) -> String {
    // The only layer between the first and the last of an MLP with three layers.
    let is_mlp =
        ["output_hypernetworks_mlps.", "iou_prediction_head."].iter().any(|mlp| name.contains(mlp));
    let name = if is_mlp { name.replace(".layers.0.", ".layers.1.") } else { name.to_owned() };
    NAMES.iter().fold(name, |name, (from, to)| name.replace(from, to))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_each_part_are_mapped() {
        for (name, official) in [
            ("vision_encoder.pos_embed", "image_encoder.pos_embed"),
            ("vision_encoder.layers.3.layer_norm2.bias", "image_encoder.blocks.3.norm2.bias"),
            ("vision_encoder.layers.0.attn.rel_pos_h", "image_encoder.blocks.0.attn.rel_pos_h"),
            ("vision_encoder.neck.layer_norm1.weight", "image_encoder.neck.1.weight"),
            ("shared_image_embedding.positional_embedding", POSITIONAL_ENCODING),
            (
                "prompt_encoder.mask_embed.layer_norm2.bias",
                "prompt_encoder.mask_downscaling.4.bias",
            ),
            ("prompt_encoder.no_mask_embed.weight", "prompt_encoder.no_mask_embed.weight"),
            (
                "mask_decoder.transformer.layers.1.layer_norm4.bias",
                "mask_decoder.transformer.layers.1.norm4.bias",
            ),
            (
                "mask_decoder.transformer.layer_norm_final_attn.weight",
                "mask_decoder.transformer.norm_final_attn.weight",
            ),
            (
                "mask_decoder.output_hypernetworks_mlps.2.proj_in.bias",
                "mask_decoder.output_hypernetworks_mlps.2.layers.0.bias",
            ),
            (
                "mask_decoder.output_hypernetworks_mlps.2.layers.0.bias",
                "mask_decoder.output_hypernetworks_mlps.2.layers.1.bias",
            ),
            (
                "mask_decoder.iou_prediction_head.proj_out.weight",
                "mask_decoder.iou_prediction_head.layers.2.weight",
            ),
        ] {
            assert_eq!(official_name(name), official);
        }
    }
}

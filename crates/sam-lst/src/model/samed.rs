use super::checkpoint::independent_copy;
use super::{
    EncoderConfig, EncoderTuning, ModelError, PixelScale, SamTuningConfig, SegmentationModel,
    TunedSam,
};
use crate::weights::{self, Part, StateDict, WeightsError};
use burn::module::Module;
use burn::tensor::Device;
use sam_lst_mask_decoder::MaskDecoderConfig;
use sam_lst_peft::LoraTargets;
use std::collections::HashMap;
use std::path::Path;

/// Our name of a tensor in SAMed's files. Its matrices are numbered over all blocks, those of a
/// block's queries before those of its values.
fn our_name(samed: &str) -> Option<String> {
    let (matrix, number) = samed.strip_prefix("w_")?.split_once('_')?;
    let number: usize = number.parse().ok()?;
    let layer = if number.is_multiple_of(2) { "q" } else { "v" };
    ["a", "b"].contains(&matrix).then(|| format!("lora.{}.{layer}.{matrix}.weight", number / 2))
}

/// The name of one of our tensors in SAMed's files.
fn samed_name(ours: &str) -> Option<String> {
    let [block, layer, matrix, "weight"] =
        ours.strip_prefix("lora.")?.split('.').collect::<Vec<_>>()[..]
    else {
        return None;
    };
    let block: usize = block.parse().ok()?;
    let offset = if layer == "q" { 0 } else { 1 };
    Some(format!("w_{matrix}_{:03}", 2 * block + offset))
}

impl SamTuningConfig {
    /// The configuration of a network in a file of SAMed's released code (arXiv 2304.13785), for
    /// the SAM checkpoint that it was trained with: rank and number of classes are the file's, the
    /// input has 512 x 512 pixels in [0, 1].
    ///
    /// # Errors
    ///
    /// [`WeightsError::WrongKind`] if SAMed did not write the file, or trained with another encoder;
    /// otherwise as [`StateDict::open`].
    pub fn of_samed(sam: impl AsRef<Path>, samed: impl AsRef<Path>) -> Result<Self, WeightsError> {
        let encoder = EncoderConfig::recognize(sam)?;
        Self::in_samed(encoder, &StateDict::open(samed)?)
    }

    fn in_samed(encoder: EncoderConfig, source: &StateDict) -> Result<Self, WeightsError> {
        let wrong = |expected: String, found: String| WeightsError::WrongKind {
            path: source.path().into(),
            expected,
            found,
        };
        let rows = |name: &str| source.shape(name).and_then(|shape| shape.first().copied());
        let (Some(rank), Some(classes)) =
            (rows("w_a_000"), rows("mask_decoder.mask_tokens.weight"))
        else {
            let expected = "a file of SAMed with tensors w_a_000, w_b_000, mask_decoder.*";
            return Err(wrong(expected.to_owned(), source.describe()));
        };
        let count = source.names().filter(|name| name.starts_with("w_a_")).count();
        let blocks = match &encoder {
            EncoderConfig::Vit(config) => config.depth,
            _ => 0,
        };
        if count != 2 * blocks {
            return Err(wrong(
                format!("LoRA of {} layers, for {}", 2 * blocks, encoder.name()),
                format!("LoRA of {count} layers"),
            ));
        }
        let tuning = EncoderTuning::Lora { rank, targets: LoraTargets::QueryValue, first_block: 0 };
        let decoder = MaskDecoderConfig::new(classes).with_embed_dim(encoder.channels());
        let pixel_scale = PixelScale::Unit;
        Ok(Self { encoder, decoder, tuning, input_size: 512, pixel_scale, seed: 0 })
    }

    /// Loads a network that SAMed's released code saved, over the SAM checkpoint that it was
    /// trained with. It can be trained on and saved like any other; the file does not say which
    /// organs its classes are, so [`SegmentationModel::task`] is `None`.
    ///
    /// # Errors
    ///
    /// [`ModelError::Config`] for an invalid configuration, [`ModelError::Weights`] for an invalid
    /// file, or if the configuration is not the file's ([`of_samed`](Self::of_samed)).
    pub fn from_samed(
        &self,
        sam: impl AsRef<Path>,
        samed: impl AsRef<Path>,
        device: &Device,
    ) -> Result<SegmentationModel<TunedSam>, ModelError> {
        let mut model = self.from_official(sam, device)?;
        let source = StateDict::open(samed)?;
        Self::in_samed(self.encoder.clone(), &source)?;
        let tensors = source.iter().cloned().map(|mut tensor| {
            tensor.name = our_name(&tensor.name).unwrap_or(tensor.name);
            tensor
        });
        let source = source.with_tensors(tensors.collect());
        let part = Part { prefix: "", description: "a network of SAMed", left_out: &[] };
        // The rest of the prompt encoder has no effect without prompts, and is SAM's.
        let is_trained = |name: &str| {
            name.starts_with("lora.")
                || name.starts_with("mask_decoder.")
                || name == "prompt_encoder.no_mask_embed.weight"
        };
        let network = independent_copy(&model.network);
        model.network = weights::load_where(network, &source, &part, is_trained)?;
        Ok(model)
    }
}

impl SegmentationModel<TunedSam> {
    /// Saves LoRA, prompt encoder and mask decoder under the names of SAMed's released code, as
    /// safetensors. That code reads a `.pth` file, which
    /// `torch.save(load_file("samed.safetensors"), "samed.pth")` writes. The file does not contain
    /// the input's size, which is 512 there by default.
    ///
    /// # Errors
    ///
    /// [`ModelError::NotSamed`] for another tuning than LoRA of the queries and values of all
    /// blocks of a ViT, or pixels other than in [0, 1]; [`ModelError::Weights`] if the file cannot
    /// be written.
    pub fn save_samed(&self, path: impl AsRef<Path>) -> Result<(), ModelError> {
        let path = path.as_ref();
        let SamTuningConfig { encoder, tuning, pixel_scale, .. } = self.config();
        let is_samed = matches!(encoder, EncoderConfig::Vit(_))
            && *pixel_scale == PixelScale::Unit
            && matches!(
                tuning,
                EncoderTuning::Lora { targets: LoraTargets::QueryValue, first_block: 0, .. }
            );
        if !is_samed {
            return Err(ModelError::NotSamed { path: path.into() });
        }
        let tensors = weights::collect(&self.network.valid(), "").into_iter();
        let tensors = tensors.filter_map(|mut tensor| {
            let is_decoder = ["prompt_encoder.", "mask_decoder."]
                .iter()
                .any(|prefix| tensor.name.starts_with(prefix));
            if !is_decoder {
                tensor.name = samed_name(&tensor.name)?;
            }
            Some(tensor)
        });
        let metadata = HashMap::from([("format".to_owned(), "pt".to_owned())]);
        Ok(weights::write_safetensors(path, path, tensors.collect(), metadata)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_map_both_ways() {
        for (samed, ours) in [
            ("w_a_000", "lora.0.q.a.weight"),
            ("w_b_001", "lora.0.v.b.weight"),
            ("w_a_022", "lora.11.q.a.weight"),
        ] {
            assert_eq!(our_name(samed).as_deref(), Some(ours));
            assert_eq!(samed_name(ours).as_deref(), Some(samed));
        }
        assert_eq!(our_name("mask_decoder.iou_token.weight"), None);
        assert_eq!(samed_name("image_encoder.pos_embed"), None);
    }
}

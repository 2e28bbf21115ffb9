//! Settings from a TOML text, on top of a preset.

use super::{TrainingConfig, TrainingConfigError};
use crate::model::{EncoderConfig, NetworkConfig};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};
use std::path::Path;

/// Tables with mutually exclusive variants or settings, which are replaced as a whole.
const REPLACED_WHOLE: [&str; 2] = ["geometry", "optimization.optimizer"];
/// A table whose keys depend on the kind of encoder: one with all settings replaces it.
const ENCODER: &str = "model.encoder";
/// A table with one key, the kind of side network: that of another kind replaces it.
const SIDE: &str = "model.side";
/// A table with one key, the kind of tuning: that of another kind replaces it.
const TUNING: &str = "model.tuning";
/// Settings that each written configuration has.
const WRITTEN: [&str; 5] = ["epochs", "geometry", "optimization", "cache", "model"];
/// Settings that are absent from a written configuration when they have their default.
const OPTIONAL: [&str; 3] = ["method", "patience", "cache.limit_gb"];

impl<C: NetworkConfig> TrainingConfig<C> {
    /// This configuration with the settings of a TOML text. `origin` names the text in messages.
    ///
    /// Tables are merged key by key, except `geometry` and `optimization.optimizer`, which are
    /// replaced as a whole, and `model.encoder` and `model.side` if they are of another kind. A text
    /// with all settings, such as a run's `config.toml`, replaces the whole model.
    ///
    /// # Errors
    ///
    /// [`TrainingConfigError`] for text that is not TOML, an unknown key, or an invalid value.
    pub fn with_overrides(
        &self,
        text: &str,
        origin: impl AsRef<Path>,
    ) -> Result<Self, TrainingConfigError> {
        let file = origin.as_ref();
        let mut overrides: Map<String, Value> = toml::from_str(text).map_err(|source| {
            TrainingConfigError::Toml { file: file.to_owned(), source: Box::new(source) }
        })?;
        // Before the method's own settings, which would only be unknown.
        if let Some(Value::String(method)) = overrides.get("method")
            && method != C::METHOD
        {
            return Err(TrainingConfigError::WrongType {
                file: file.to_owned(),
                key: "method".to_owned(),
                problem: super::method::other_method::<C>(method),
            });
        }
        let mut settings = serde_json::to_value(self).expect("plain data");
        // Settings that a written configuration lacks are none, not those of the preset.
        let is_whole = WRITTEN.iter().all(|key| overrides.contains_key(*key));
        if is_whole
            && let Some(whole) = with_defaults::<C>(&overrides["model"])
            && let Some(model) = overrides.remove("model")
        {
            check_known(&model, &whole, "model", file)?;
            settings["model"] = model;
        }
        apply(&mut settings, overrides, "", file)?;
        let config: Self = serde_path_to_error::deserialize(settings).map_err(|error| {
            TrainingConfigError::WrongType {
                file: file.to_owned(),
                key: error.path().to_string(),
                problem: plain(&error.into_inner().to_string()),
            }
        })?;
        config.validate()?;
        Ok(config)
    }

    /// This configuration with the settings of a TOML file, as [`Self::with_overrides`].
    ///
    /// # Errors
    ///
    /// As [`Self::with_overrides`], and [`TrainingConfigError::Read`] if the file cannot be read.
    pub fn with_overrides_from_file(
        &self,
        file: impl AsRef<Path>,
    ) -> Result<Self, TrainingConfigError> {
        let file = file.as_ref();
        let text = std::fs::read_to_string(file)
            .map_err(|source| TrainingConfigError::Read { file: file.to_owned(), source })?;
        self.with_overrides(&text, file)
    }
}

/// serde's message in the words of TOML instead of those of Rust.
fn plain(message: &str) -> String {
    let problem = message.strip_prefix("invalid type: ");
    let problem = problem.or_else(|| message.strip_prefix("invalid value: "));
    let Some((found, expected)) = problem.and_then(|text| text.rsplit_once(", expected ")) else {
        return message.to_owned();
    };
    let found = match found {
        "map" => "a table",
        "sequence" => "a list",
        other => other,
    };
    let expected = match expected {
        "u8" | "u16" | "u32" | "u64" | "usize" => "a whole number, at least 0",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "f32" | "f64" => "a number",
        "a boolean" => "true or false",
        "a string" => "a text in quotes",
        "map" => "a table",
        other if other.starts_with("struct ") => "a table",
        other => other,
    };
    format!("found {found}, expected {expected}")
}

/// Applies overrides to the table named `within`, recursively.
fn apply(
    whole: &mut Value,
    overrides: Map<String, Value>,
    within: &str,
    file: &Path,
) -> Result<(), TrainingConfigError> {
    let Value::Object(settings) = whole else {
        *whole = Value::Object(overrides);
        return Ok(());
    };
    for (key, value) in overrides {
        let path = if within.is_empty() { key.clone() } else { format!("{within}.{key}") };
        if !settings.contains_key(&key) && !OPTIONAL.contains(&path.as_str()) {
            return Err(TrainingConfigError::UnknownKey {
                file: file.to_owned(),
                key: path,
                known: settings.keys().cloned().collect(),
            });
        }
        let is_other_kind = [TUNING, SIDE].contains(&path.as_str()) && {
            let known = settings[&key].as_object();
            let found = value.as_object();
            found.is_some_and(|found| {
                !found.keys().all(|kind| known.is_some_and(|known| known.contains_key(kind)))
            })
        };
        let encoder = (path == ENCODER).then(|| with_defaults::<EncoderConfig>(&value)).flatten();
        if let Some(whole) = &encoder {
            check_known(&value, whole, &path, file)?;
        }
        if encoder.is_some() || is_other_kind {
            settings.insert(key, value);
            continue;
        }
        match (settings.get_mut(&key), value) {
            (Some(inner @ Value::Object(_)), Value::Object(overrides))
                if !REPLACED_WHOLE.contains(&path.as_str()) =>
            {
                apply(inner, overrides, &path, file)?;
            }
            (_, value) => {
                settings.insert(key, value);
            }
        }
    }
    Ok(())
}

/// A configuration with the defaults of the settings that it lacks; `None` if it lacks others.
fn with_defaults<T: Serialize + DeserializeOwned>(value: &Value) -> Option<Value> {
    serde_json::to_value(serde_json::from_value::<T>(value.clone()).ok()?).ok()
}

/// Checks that all keys of a table, and of the tables in it, are those of `known`.
fn check_known(
    value: &Value,
    known: &Value,
    within: &str,
    file: &Path,
) -> Result<(), TrainingConfigError> {
    let (Value::Object(found), Value::Object(known)) = (value, known) else { return Ok(()) };
    for (key, value) in found {
        let path = format!("{within}.{key}");
        let Some(inner) = known.get(key) else {
            return Err(TrainingConfigError::UnknownKey {
                file: file.to_owned(),
                key: path,
                known: known.keys().cloned().collect(),
            });
        };
        check_known(value, inner, &path, file)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{SamLstConfig, SideConfig, SliceGeometry};
    use crate::training::OptimizerConfig;
    use sam_lst_datasets::Augmentation;
    use sam_lst_gated_fusion::Fusion;
    use sam_lst_resnet_side::ResNetSideConfig;

    #[test]
    fn overrides_change_only_their_settings_and_a_written_file_holds_all() {
        let released = TrainingConfig::released(9);
        let config = released
            .with_overrides(
                r#"
                patience = 3
                geometry = { grid = "half_pixel" }
                [optimization.optimizer.adam]
                betas = [0.8, 0.99]
                epsilon = 1e-7
                [cache]
                views = "all"
                limit_gb = 2.5
                [model]
                fusion = "SideOnly"
                "#,
                "mine.toml",
            )
            .expect("valid");
        assert_eq!(config.patience, Some(3));
        assert_eq!(config.geometry, SliceGeometry::direct());
        assert!(matches!(
            config.optimization.optimizer,
            OptimizerConfig::Adam { betas: [0.8, 0.99], .. }
        ));
        assert_eq!(config.optimization.schedule, released.optimization.schedule);
        assert_eq!(config.cache.limit_bytes(), Some(2_500_000_000));
        assert_eq!(config.model.fusion, Fusion::SideOnly);
        assert_eq!(config.model.encoder, released.model.encoder);
        let fine = "[model.encoder]\nwindow_size = 7";
        let merged = released.with_overrides(fine, "mine.toml").expect("valid").model.encoder;
        assert_ne!(merged, released.model.encoder);
        assert_eq!(merged.name(), "SAM ViT-B");
        let mut other = released.clone();
        other.model = crate::model::SamLstConfig::lite_medsam(9);
        let replaced = released.with_overrides(&other.to_toml(), "config.toml").expect("valid");
        assert_eq!(replaced, other);
        let again = TrainingConfig::demo(4)
            .with_overrides(&config.to_toml(), "config.toml")
            .expect("a written configuration");
        assert_eq!(again, config);
    }

    #[test]
    fn a_side_network_is_merged_or_replaced_and_its_unknown_keys_are_reported() {
        let with_side =
            |side| TrainingConfig::released(9).with_model(SamLstConfig::vit_b(9).with_side(side));
        let resnet50 = ResNetSideConfig::resnet50().for_embedding(256, 16);
        let config = with_side(SideConfig::ResNet(resnet50.clone()));
        let side = |text: &str| config.with_overrides(text, "a.toml").map(|new| new.model.side);
        for text in [
            "model.side.ResNet.blocks = [3, 4, 23]",
            "model.side.ResNet = { blocks = [3, 4, 23], width = 64 }",
        ] {
            let expected = ResNetSideConfig { blocks: [3, 4, 23], ..resnet50.clone() };
            assert_eq!(side(text).expect("valid"), SideConfig::ResNet(expected));
        }
        for other in [SideConfig::swin_tiny(), SamLstConfig::vit_b(9).side] {
            let written = with_side(other.clone()).to_toml();
            assert_eq!(side(&written).expect("a written file"), other);
        }
        let typo = config.to_toml().replace("seed = 0", "seed = 0\nsead = 1");
        for (text, key) in [
            ("model.side.ResNet.widht = 3", "model.side.ResNet.widht"),
            ("model.side.ResNet = { blocks = [2, 2, 2], width = 64, widht = 3 }", "ResNet.widht"),
            (&typo, "sead"),
        ] {
            let message = side(text).expect_err("invalid").to_string();
            assert!(message.contains("unknown setting") && message.contains(key), "{message}");
        }
    }

    #[test]
    fn unknown_keys_and_invalid_values_are_reported() {
        let message = |text: &str| {
            TrainingConfig::released(9)
                .with_overrides(text, "mine.toml")
                .expect_err("invalid")
                .to_string()
        };
        let unknown = message("[optimization.schedule]\nwarmup = 3");
        assert!(
            unknown.starts_with(
                "cannot read mine.toml: unknown setting `optimization.schedule.warmup`"
            ) && unknown.contains("warmup_steps"),
            "{unknown}"
        );
        assert!(message("[model.encoder]\ndepht = 2").contains("`model.encoder.depht`"));
        assert!(message("[model.encoder]\nwindow_size = 0").contains("`encoder.window_size` is 0"));
        assert!(message("[model.decoder]\nmlp_dim = 0").contains("`decoder.mlp_dim` is 0"));
        assert!(message("model.input = 5").contains("`model.input`"));
        assert!(message("epochs = ").starts_with("cannot read mine.toml: "));
        let negative = message("epochs = -1");
        assert!(negative.starts_with("cannot read mine.toml: `epochs`: found"), "{negative}");
        let text = message("[optimization.schedule]\nbase = \"high\"");
        assert!(text.contains("`optimization.schedule.base`: found string"), "{text}");
        assert!(text.ends_with("expected a number"), "{text}");
        let text = message("optimization = 3");
        assert!(text.contains("`optimization`: found integer `3`, expected a table"), "{text}");
        let text = message("model = 3");
        assert!(text.contains("`model`: found integer `3`, expected a table"), "{text}");
        let text = message("epochs = 2.5");
        assert!(text.ends_with("found floating point `2.5`, expected a whole number, at least 0"));
        assert!(message("[geometry]\ntrain_size = 100000\ngrid = \"half_pixel\"").contains("4096"));
        assert_eq!(message("epochs = 0"), "`epochs` is 0; expected at least 1");
        assert_eq!(message("dice_weight = 1.5"), "`dice_weight` is 1.5; expected between 0 and 1");
        assert!(message("[model]\ninput_size = 500").contains("multiple of 16"));
        assert!(message("[cache]\nviews = \"some\"").contains("`some`"));
        let both =
            "[optimization.optimizer]\nadam = { betas = [0.9, 0.9], epsilon = 1e-8 }\nsgd = 1";
        assert!(message(both).starts_with("cannot read mine.toml: "));
    }

    #[test]
    fn augmentations_have_names_and_earlier_flags_are_read() {
        let released = TrainingConfig::released(9);
        let with =
            |value: &str| released.with_overrides(&format!("augmentation = {value}"), "a.toml");
        for (value, expected) in [
            ("false", Augmentation::None),
            ("true", Augmentation::Released),
            ("\"none\"", Augmentation::None),
            ("\"released\"", Augmentation::Released),
            ("\"upright\"", Augmentation::Upright),
        ] {
            let config = with(value).expect("valid");
            assert_eq!(config.augmentation, expected);
            let again: TrainingConfig = toml::from_str(&config.to_toml()).expect("just written");
            assert_eq!(again.augmentation, expected);
        }
        for value in ["1", "\"mirrored\""] {
            let error = with(value).expect_err("invalid").to_string();
            assert!(error.ends_with("expected \"none\", \"released\" or \"upright\""), "{error}");
        }
    }
}

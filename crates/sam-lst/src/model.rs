use crate::weights::{self, LadderMetadata, StateDict, WeightsError};
use crate::{CacheError, CachePrecision, EmbeddingCache, EmbeddingKind};
use crate::{ConfigError, Foundation, Ladder, SamLstConfig, SideConfig, SideEncoder, Task};
use burn::module::{Module, ModuleVisitor, Param};
use burn::tensor::{Bool, Device, Int, Tensor};
use mask_decoder::MaskPrediction;
use resnet_side::ResNetSide;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// SAM with a ladder: the frozen foundation and the trained half, composed.
///
/// It is no [`Module`]: train [`ladder`](Self::ladder), which is one.
#[derive(Debug, Clone)]
pub struct SamLst<S: SideEncoder = ResNetSide> {
    /// The frozen half.
    pub foundation: Foundation,
    /// The trained half.
    pub ladder: Ladder<S>,
    /// What the ladder is trained for, where that is known. Its checkpoint carries it.
    pub task: Option<Task>,
    config: SamLstConfig,
}

/// Burn's random numbers come from one generator per device kind. While a model draws its initial weights, no other
/// may, or the seed would not decide them.
static DRAWING: Mutex<()> = Mutex::new(());

/// Draws a module's initial weights now, from `seed`, in the order of its fields.
fn drawn_from<M: Module>(seed: u64, device: &Device, build: impl FnOnce() -> M) -> M {
    struct Draw;
    impl ModuleVisitor for Draw {
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            param.val();
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            param.val();
        }
        fn visit_bool<const D: usize>(&mut self, param: &Param<Tensor<D, Bool>>) {
            param.val();
        }
    }
    let _guard = DRAWING.lock().unwrap_or_else(PoisonError::into_inner);
    device.seed(seed);
    let module = build();
    module.visit(&mut Draw);
    module
}

impl SamLstConfig {
    /// Creates a model with random weights, decided by the seed. The ladder is on `device`; on an autodiff device it
    /// trains. The foundation is on the same device without autodiff.
    ///
    /// Burn has one generator of random numbers for all threads. A thread that draws from it meanwhile, by other means
    /// than this library's, disturbs what the seed decides.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a value that cannot be, or a side network that is not one of this library's.
    pub fn init(&self, device: &Device) -> Result<SamLst, ConfigError> {
        let SideConfig::ResNet(side) = &self.side else {
            return Err(self.custom_side());
        };
        self.init_with_side(|device| side.init(device), device)
    }

    /// As [`init`](Self::init), with a side network of your own, which `side` builds.
    ///
    /// # Errors
    ///
    /// [`ConfigError`] for a value that cannot be.
    pub fn init_with_side<S: SideEncoder>(
        &self,
        side: impl FnOnce(&Device) -> S,
        device: &Device,
    ) -> Result<SamLst<S>, ConfigError> {
        self.validate()?;
        let plain = device.clone().inner();
        // Another seed than the ladder's, so that the ladder is the same over a random foundation and over SAM's.
        let encoder = drawn_from(self.seed.wrapping_add(1), &plain, || {
            self.encoder.init(&plain)
        });
        Ok(SamLst {
            foundation: Foundation::new(encoder, self.pixel_scale),
            ladder: self.random_ladder(side, device),
            task: None,
            config: self.clone(),
        })
    }

    fn random_ladder<S: SideEncoder>(
        &self,
        side: impl FnOnce(&Device) -> S,
        device: &Device,
    ) -> Ladder<S> {
        drawn_from(self.seed, device, || {
            Ladder::new(self, || side(device), device)
        })
    }

    fn custom_side(&self) -> ConfigError {
        let name = match &self.side {
            SideConfig::Custom(name) => name.clone(),
            SideConfig::ResNet(side) => format!("{side:?}"),
        };
        ConfigError::CustomSide { name }
    }
}

impl SamLst {
    /// A model to train: SAM's weights in the foundation and the decoder, torchvision's in the side network (random
    /// ones without `resnet`), and random ones where the number of classes decides the shape.
    ///
    /// Both files may be official `.pth` or safetensors, in full or half precision.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] that names the file and what is wrong with it, or the configuration's value that cannot be.
    pub fn from_official(
        config: &SamLstConfig,
        sam: impl AsRef<Path>,
        resnet: Option<&Path>,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        let SideConfig::ResNet(side) = &config.side else {
            return Err(config.custom_side().into());
        };
        let mut model =
            Self::from_official_with_side(config, sam, |device| side.init(device), device)?;
        if let Some(path) = resnet {
            let source = StateDict::open(path)?;
            let load = |network| weights::load(network, &source, &weights::RESNET);
            model.ladder.side = model.ladder.side.map(load).transpose()?;
        }
        Ok(model)
    }

    /// A trained model in one call: SAM's checkpoint and a ladder checkpoint, which carries the configuration.
    ///
    /// On an autodiff device training goes on from there.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] that names the file and what is wrong with it; among others if the ladder was trained over
    /// another foundation than this one.
    pub fn from_pretrained(
        sam: impl AsRef<Path>,
        ladder: impl AsRef<Path>,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        let config = LadderMetadata::read(&ladder)?.config;
        let mut model = Self::from_official(&config, sam, None, device)?;
        model.load_ladder(ladder)?;
        Ok(model)
    }
}

impl<S: SideEncoder> SamLst<S> {
    /// As [`SamLst::from_official`], with a side network of your own, which `side` builds and may load.
    ///
    /// # Errors
    ///
    /// As [`SamLst::from_official`].
    pub fn from_official_with_side(
        config: &SamLstConfig,
        sam: impl AsRef<Path>,
        side: impl FnOnce(&Device) -> S,
        device: &Device,
    ) -> Result<Self, WeightsError> {
        config.validate()?;
        let source = StateDict::open(sam)?;
        let foundation =
            Foundation::from_state_dict(&config.encoder, config.pixel_scale, &source, device)?;
        let mut ladder = config.random_ladder(side, device);
        ladder.prompt_encoder =
            weights::load(ladder.prompt_encoder, &source, &weights::PROMPT_ENCODER)?;
        ladder.mask_decoder = weights::load(ladder.mask_decoder, &source, &weights::CLASS_DECODER)?;
        ladder.sam_loaded = true;
        Ok(Self {
            foundation,
            ladder,
            task: None,
            config: config.clone(),
        })
    }

    /// The configuration that the model was made from.
    pub fn config(&self) -> &SamLstConfig {
        &self.config
    }

    /// Opens the part of a cache folder that holds this foundation's embeddings at this model's input size. `limit_bytes`
    /// bounds what all its files together may hold.
    ///
    /// # Errors
    ///
    /// [`CacheError`] if the folder can neither be read nor made.
    pub fn embedding_cache(
        &self,
        folder: impl AsRef<Path>,
        precision: CachePrecision,
        limit_bytes: Option<u64>,
    ) -> Result<EmbeddingCache, CacheError> {
        let Self {
            foundation, config, ..
        } = self;
        let kind = EmbeddingKind {
            foundation: foundation.cache_name(),
            input_size: config.input_size,
            shape: [config.encoder.out_channels, config.grid(), config.grid()],
            precision,
        };
        EmbeddingCache::open(folder, kind, limit_bytes)
    }

    /// Embeds the image on the spot and draws one mask per class.
    ///
    /// # Shapes
    ///
    /// - image: `[B, 3, S, S]`, pixels in `[0, 1]`
    /// - logits: `[B, K, S / 4, S / 4]`, iou: `[B, K]`
    ///
    /// # Panics
    ///
    /// If the image is not square, has other than 3 channels, or its side is no positive multiple of 16.
    pub fn forward(&self, image: Tensor<4>) -> MaskPrediction {
        let embedding = self
            .ladder
            .fusion()
            .uses_sam()
            .then(|| self.foundation.embed(image.clone()));
        self.ladder.forward(image, embedding)
    }

    /// The model for inference: the ladder without autodiff, with running statistics in its norms.
    pub fn valid(&self) -> Self {
        Self {
            foundation: self.foundation.clone(),
            ladder: self.ladder.valid(),
            task: self.task.clone(),
            config: self.config.clone(),
        }
    }

    /// Saves the ladder checkpoint: what cannot be rebuilt from the official files, about 17 MB for ViT-B. It is written
    /// beside `path` and renamed, so that an interruption leaves the last good file; its folder is made if there is none.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Write`] if the file cannot be written.
    pub fn save_ladder(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        weights::save_ladder(
            &self.ladder,
            &self.config,
            self.task.as_ref(),
            self.foundation.weights_sha256(),
            path.as_ref(),
        )
    }

    /// Saves SAM's part of the model, image encoder, prompt encoder and mask decoder as they are now, under SAM's names: the
    /// checkpoint that [`from_pretrained`](SamLst::from_pretrained) asks for, where the foundation came from no file.
    ///
    /// The file is written as [`save_ladder`](Self::save_ladder) writes one. A foundation in half precision is written as it was
    /// rounded, and no ladder that was trained over it takes it then.
    ///
    /// # Errors
    ///
    /// [`WeightsError::Write`] if the file cannot be written.
    pub fn save_sam(&self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        weights::save_sam(self.foundation.encoder(), &self.ladder, path.as_ref())
    }

    /// Loads a ladder checkpoint, and its task, into this model, on the ladder's device. After an error the model is as it was.
    ///
    /// # Errors
    ///
    /// A [`WeightsError`] that names the file and what is wrong with it: not a ladder checkpoint, of another
    /// configuration, or trained over another foundation.
    pub fn load_ladder(&mut self, path: impl AsRef<Path>) -> Result<(), WeightsError> {
        let (ladder, task) = weights::load_ladder(
            &self.ladder,
            &self.config,
            self.foundation.weights_sha256(),
            path.as_ref(),
        )?;
        self.ladder = ladder;
        self.task = task;
        Ok(())
    }
}

//! Trains, scores and shows. Without arguments on made-up patients, in minutes on a laptop; with a dataset and SAM's
//! checkpoint as published:
//!
//! ```sh
//! cargo run --release --example train_synapse
//! cargo run --release --example train_synapse -- --data Synapse/ --sam sam_vit_b_01ec64.pth --resnet resnet18-f37072fd.pth
//! ```
//!
//! The same command goes on with a run that was cut off.

#[path = "shared/device.rs"]
mod device;
#[path = "shared/learning_curve.rs"]
mod learning_curve;
#[path = "shared/training_display.rs"]
mod training_display;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use device::{DeviceArguments, Precision};
use indicatif::{ProgressBar, ProgressStyle};
use sam_lst::rooms::datasets::ndarray::Axis;
use sam_lst::rooms::datasets::{Split, Validation};
use sam_lst::{
    CachedViews, Dataset, DatasetDescription, EmbeddingCache, Fusion, PhantomConfig, Protocol,
    SamLst, SamLstConfig, SegmentationConfig, Segmenter, Trained, TrainingConfig, TrainingFolders,
    Volume, embed, outlined, radiological, side_by_side, train_beside,
};
use std::path::{Path, PathBuf};
use training_display::Display;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(
    about = "Trains a ladder over SAM, scores it on the held-out cases, and draws what it found"
)]
struct Arguments {
    /// Folder of the dataset; made-up patients without.
    #[arg(long, value_name = "DIR", requires = "sam")]
    data: Option<PathBuf>,
    /// A description of another dataset than Synapse, in TOML.
    #[arg(long, value_name = "FILE", requires = "data")]
    dataset: Option<PathBuf>,
    /// Share of the training patients that choose the best checkpoint instead; the published protocol has none.
    #[arg(long, value_name = "SHARE", requires = "data")]
    validation: Option<f64>,
    /// SAM's checkpoint, .pth or .safetensors.
    #[arg(long, value_name = "FILE", requires = "data")]
    sam: Option<PathBuf>,
    /// Which SAM that is.
    #[arg(long, value_enum, default_value_t = Variant::VitB)]
    variant: Variant,
    /// torchvision's ResNet18, .pth or .safetensors; random weights without.
    #[arg(long, value_name = "FILE", requires = "sam")]
    resnet: Option<PathBuf>,
    /// Whose settings: the released code's or the paper's.
    #[arg(long, value_enum, default_value_t = Preset::Released, requires = "data")]
    preset: Preset,
    /// Settings that differ from the preset, in TOML, as in a run's config.toml.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Times that every slice is seen.
    #[arg(long)]
    epochs: Option<u64>,
    /// Slices in a batch.
    #[arg(long)]
    batch_size: Option<usize>,
    /// Which image embedding the decoder sees: the method, or a row of the paper's Table II.
    #[arg(long, value_enum)]
    fusion: Option<FusionArgument>,
    /// Views whose embeddings are kept: all, discrete, identity, or how many of the 44.
    #[arg(long, value_name = "VIEWS")]
    cache_views: Option<CachedViews>,
    /// What kept embeddings may take, in units of 10^9 bytes.
    #[arg(long, value_name = "GB")]
    cache_limit_gb: Option<f64>,
    #[command(flatten)]
    device: DeviceArguments,
    /// What the foundation computes in; the ladder always computes in 32 bits.
    #[arg(long, value_enum)]
    precision: Option<Precision>,
    /// Compute the embeddings that the run asks for, keep them in the cache, and end. Several processes, on one machine or on
    /// several that share the cache's folder, do so together.
    #[arg(long)]
    embed_only: bool,
    /// Folder of the run: settings, logs, checkpoints, ladder, pictures.
    #[arg(
        long,
        value_name = "DIR",
        default_value = "runs/demo",
        default_value_if("data", clap::builder::ArgPredicate::IsPresent, "runs/synapse")
    )]
    run: PathBuf,
    /// Folder of decoded slices and embeddings, which runs share.
    #[arg(long, value_name = "DIR", default_value = "runs/cache")]
    cache: PathBuf,
    /// Lines and a progress bar, not a full screen with curves.
    #[arg(long)]
    plain: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum Variant {
    VitB,
    VitL,
    VitH,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    /// The authors' code: AdamW.
    Released,
    /// The paper: Adam.
    Paper,
}

#[derive(Clone, Copy, ValueEnum)]
enum FusionArgument {
    Gated,
    SideOnly,
    SamOnly,
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> Result<()> {
    let arguments: Arguments = device::parse();
    sam_lst::compute_on_this_thread();
    let devices = arguments.device.open()?;
    let (device, others) = devices.split_first().context("--device names none")?;
    let device = device.clone().autodiff();
    let dataset = open_dataset(&arguments)?;
    let config = settings(&arguments, dataset.description().classes())?.shared_by(devices.len())?;
    let model = match &arguments.sam {
        Some(sam) => {
            SamLst::from_official(&config.model, sam, arguments.resnet.as_deref(), &device)?
        }
        None => config.model.init(&device)?,
    };
    let folders = TrainingFolders {
        run: arguments.run.clone(),
        cache: arguments.cache.clone(),
    };
    let mut display = Display::new(arguments.plain)?;
    if arguments.embed_only {
        let computed = embed(model, others, &dataset, &config, &folders, |event| {
            display.show(event)
        });
        display.close();
        println!("{} embeddings were computed here", computed?);
        return Ok(());
    }
    let trained = train_beside(model, others, &dataset, &config, &folders, |event| {
        display.show(event)
    });
    let epoch_steps = display.close();
    let trained = trained?;

    let cache = config.embedding_cache(&trained.model, &folders)?;
    let segmentation = SegmentationConfig {
        output: config.output,
        ..SegmentationConfig::new(config.geometry)
    };
    score(
        &trained,
        segmentation,
        &dataset,
        cache.as_ref(),
        &folders.run,
    )?;
    let curve = folders.run.join("learning-curve.svg");
    learning_curve::draw(&folders.run, epoch_steps, &curve)?;
    println!("trained ladder   {}", trained.ladder_file.display());
    if arguments.sam.is_none() {
        // A ladder is of no use without its foundation. Drawn anew, as the training may have rounded it.
        let foundation = folders.run.join("foundation.safetensors");
        config.model.init(&device)?.save_sam(&foundation)?;
        println!("its foundation   {}", foundation.display());
    }
    println!("learning curve   {}", curve.display());
    println!("settings, logs   {}", folders.run.display());
    Ok(())
}

fn open_dataset(arguments: &Arguments) -> Result<Dataset> {
    let mut description = match &arguments.dataset {
        Some(file) => DatasetDescription::from_file(file)?,
        None => DatasetDescription::synapse(),
    };
    if let Some(fraction) = arguments.validation {
        description.split.validation = Validation::Fraction { fraction, seed: 0 };
    }
    if let Some(data) = &arguments.data {
        return Ok(Dataset::open(data, description)?);
    }
    let folder = arguments.cache.join("phantoms");
    let complete = folder.join("complete");
    if !complete.is_file() {
        let bar = ProgressBar::new((PHANTOMS[0] + PHANTOMS[1]) as u64).with_style(
            ProgressStyle::with_template("making up patients {bar:30} {pos}/{len}")?,
        );
        PhantomConfig::small(0).write_dataset(&folder, PHANTOMS[0], PHANTOMS[1], |_| bar.inc(1))?;
        std::fs::write(&complete, "")
            .with_context(|| format!("cannot write {}", complete.display()))?;
        bar.finish_and_clear();
    }
    description.name = "made-up patients".to_owned();
    description.split.validation = Validation::Fraction {
        fraction: 0.2,
        seed: 0,
    };
    Ok(Dataset::open(folder, description)?)
}

/// Made-up patients that train or validate, and that are held out.
const PHANTOMS: [usize; 2] = [15, 4];

fn settings(arguments: &Arguments, classes: usize) -> Result<TrainingConfig> {
    let mut config = match (&arguments.data, arguments.preset) {
        (None, _) => TrainingConfig::demo(classes),
        (Some(_), Preset::Released) => TrainingConfig::released(classes),
        (Some(_), Preset::Paper) => TrainingConfig::paper(classes),
    };
    if arguments.data.is_some() {
        config.model = match arguments.variant {
            Variant::VitB => SamLstConfig::vit_b(classes),
            Variant::VitL => SamLstConfig::vit_l(classes),
            Variant::VitH => SamLstConfig::vit_h(classes),
        };
    }
    if let Some(file) = &arguments.config {
        config = config.changed_by_file(file)?;
    }
    if let Some(epochs) = arguments.epochs {
        config.epochs = epochs;
    }
    if let Some(batch_size) = arguments.batch_size {
        config.batch_size = batch_size;
    }
    if let Some(precision) = arguments.precision {
        config.foundation_precision = precision.into();
    }
    if let Some(views) = arguments.cache_views {
        config.cache.views = views;
    }
    config.cache.limit_gb = arguments.cache_limit_gb.or(config.cache.limit_gb);
    if let Some(fusion) = arguments.fusion {
        config.model.fusion = match fusion {
            FusionArgument::Gated => Fusion::Gated,
            FusionArgument::SideOnly => Fusion::SideOnly,
            FusionArgument::SamOnly => Fusion::SamOnly,
        };
    }
    config.validate()?;
    Ok(config)
}

/// Scores the held-out cases, or what there is, and draws some slices.
#[expect(clippy::print_stdout, reason = "a program's output")]
fn score(
    trained: &Trained<sam_lst::ResNetSide>,
    config: SegmentationConfig,
    dataset: &Dataset,
    cache: Option<&EmbeddingCache>,
    run: &Path,
) -> Result<()> {
    let split = [Split::Test, Split::Validation, Split::Train]
        .into_iter()
        .find(|&split| dataset.cases(split).is_ok());
    let Some(split) = split else {
        bail!("{} has no cases", dataset.root().display());
    };
    let cases = dataset.cases(split)?;
    let mut segmenter = Segmenter::new(&trained.model, config);
    if let Some(cache) = cache {
        segmenter = segmenter.with_cache(cache);
    }
    // Volumes of the prepared layout have no spacing, so no millimetres.
    let spacing = dataset.read(cases[0])?.image.spacing_mm().is_some();
    let protocols = match spacing {
        true => vec![Protocol::Reference, Protocol::strict()],
        false => vec![Protocol::Reference],
    };
    let bar = ProgressBar::no_length().with_style(ProgressStyle::with_template(
        "scoring {msg}  {bar:30} {pos}/{len} slices",
    )?);
    let reports = segmenter.evaluate(dataset, &cases, &protocols, |case, done, all| {
        bar.set_message(case.to_owned());
        bar.set_length(all as u64);
        bar.set_position(done as u64);
    })?;
    bar.finish_and_clear();
    println!("\n{} {split} cases", cases.len());
    for report in &reports {
        println!("{report}\n");
    }
    trained.keep_scores(&reports)?;
    let pictures = run.join("pictures");
    std::fs::create_dir_all(&pictures)
        .with_context(|| format!("cannot make {}", pictures.display()))?;
    for case in cases.iter().take(2) {
        draw_case(&mut segmenter, dataset, case, &pictures)?;
    }
    println!(
        "pictures         {} (left: found, right: true)",
        pictures.display()
    );
    Ok(())
}

/// The slices of a case with the most organs, predicted beside true.
fn draw_case(
    segmenter: &mut Segmenter<'_>,
    dataset: &Dataset,
    case: &sam_lst::rooms::datasets::Case,
    folder: &Path,
) -> Result<()> {
    const PICTURES: usize = 3;
    let volumes = dataset.read(case)?;
    let organs = |slice: usize| {
        let label = volumes.label.voxels().index_axis(Axis(0), slice);
        let mut seen = [false; 256];
        label
            .iter()
            .for_each(|&class| seen[usize::from(class)] = true);
        seen.iter().filter(|&&seen| seen).count()
    };
    let mut slices: Vec<usize> = (0..volumes.label.shape()[0]).collect();
    slices.sort_by_key(|&slice| std::cmp::Reverse(organs(slice)));
    slices.truncate(PICTURES);
    let pixels = volumes.image.voxels().select(Axis(0), &slices);
    let found = segmenter.segment(&Volume::new(pixels, None), |_| {})?;
    for (i, &slice) in slices.iter().enumerate() {
        let geometry = volumes.image.geometry();
        let pixels = radiological(volumes.image.voxels().index_axis(Axis(0), slice), geometry);
        let scale = (512 / pixels.ncols().max(1)).max(1) as u32;
        let picture = |label| {
            outlined(
                pixels,
                radiological(label, geometry),
                dataset.description(),
                scale,
            )
        };
        let found = picture(found.voxels().index_axis(Axis(0), i));
        let truth = picture(volumes.label.voxels().index_axis(Axis(0), slice));
        let file = folder.join(format!("{}-slice{slice:03}.png", case.name));
        side_by_side(&[found, truth])
            .save(&file)
            .with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

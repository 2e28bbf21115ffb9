//! Times the networks and measures their memory on each device of this machine.
//!
//! ```sh
//! cargo bench --bench models                      # on the CPU
//! cargo bench --bench models --features cuda      # also on each CUDA device
//! cargo bench --bench models -- --rows step       # only rows whose name contains `step`
//! ```

use anyhow::{Context, Result, bail, ensure};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use sam_lst::baselines::{AttentionUNetConfig, SwinUNetConfig, TransUNetConfig, UNetConfig};
use sam_lst::devices::{self, AvailableDevice};
use sam_lst::mask_decoder::{
    MaskDecoder, MaskDecoderConfig, PromptEncoder, PromptEncoderConfig, Prompts,
};
use sam_lst::model::{
    Baseline, EncoderConfig, EncoderTuning, ImageEncoder, SamTuningConfig, UNetLadderConfig,
};
use sam_lst::resnet_side::ResNetSideConfig;
use sam_lst::sam_encoder::{SamEncoder, SamEncoderConfig};
use sam_lst::tiny_vit::TinyVitConfig;
use sam_lst::training::OptimizationConfig;
use sam_lst::{DecoderTuning, SamLst, SamLstConfig, SegmentationNetwork, peak_memory_bytes};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The networks allocate and free hundreds of tensors of megabytes each. glibc returns their memory
/// to the system, which has to clear it before it is used again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Times the networks on each device and writes a table")]
struct Arguments {
    /// Devices, as `sam-lst devices` names them [default: the CPU and all GPUs].
    #[arg(long, value_delimiter = ',')]
    device: Vec<String>,
    /// Only rows whose name contains one of these. Rows for GPUs are measured on a CPU if they are
    /// named in full.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Number of timed runs, after a warm-up.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(3..))]
    samples: u32,
    /// Time limit for a row in seconds.
    #[arg(long, default_value_t = 300.0)]
    limit_seconds: f64,
    /// The table is written to PREFIX.md and PREFIX.json.
    #[arg(long, value_name = "PREFIX", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/../benchmark"))]
    save: PathBuf,
    /// Measures one row on one device and prints the result as JSON. Used by this program to start
    /// its own measuring processes.
    #[arg(long, hide = true, requires = "device")]
    measure: Option<String>,
    /// Passed by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Row {
    name: &'static str,
    /// Images in a run.
    images: usize,
    /// Whether the row takes too long on a CPU to be measured there by default.
    for_gpus: bool,
    prepare: fn(&Device, usize) -> Run,
}

/// Does the work once. The result is held until the device has finished, because a device may skip
/// work whose result is dropped.
type Run = Box<dyn FnMut() -> Box<dyn Any>>;

const ROWS: [Row; 41] = [
    // Close to the highest rate of the machine.
    row("product/4096", 1, product),
    row("encoder/vit_b_512_b1", 1, |device, images| encoder(device, images, 512, FloatDType::F32)),
    row("encoder/vit_b_512_b4", 4, |device, images| encoder(device, images, 512, FloatDType::F32)),
    row("encoder/vit_b_1024_b1", 1, |device, images| {
        encoder(device, images, 1024, FloatDType::F32)
    }),
    row("encoder/lite_medsam_256_b1", 1, |device, images| {
        tiny_vit(device, images, 256, TinyVitConfig::lite_medsam())
    }),
    row("encoder/lite_medsam_256_b4", 4, |device, images| {
        tiny_vit(device, images, 256, TinyVitConfig::lite_medsam())
    }),
    row("encoder/mobile_sam_1024_b1", 1, |device, images| {
        tiny_vit(device, images, 1024, TinyVitConfig::mobile_sam())
    }),
    for_gpus("encoder/vit_b_512_b16", 16, |device, images| {
        encoder(device, images, 512, FloatDType::F32)
    }),
    for_gpus("encoder/vit_b_512_b16_f16", 16, |device, images| {
        encoder(device, images, 512, FloatDType::F16)
    }),
    for_gpus("encoder/vit_b_512_b16_bf16", 16, |device, images| {
        encoder(device, images, 512, FloatDType::BF16)
    }),
    row("side/forward_b4", 4, side_forward),
    row("side/forward_backward_b4", 4, side_backward),
    for_gpus("side/forward_backward_b24", 24, side_backward),
    row("decoder/forward_b4", 4, decoder_forward),
    row("decoder/forward_backward_b4", 4, |device, images| decoder_backward(device, images, 32)),
    row("decoder/grid64_forward_backward_b4", 4, |device, images| {
        decoder_backward(device, images, 64)
    }),
    for_gpus("decoder/forward_backward_b24", 24, |device, images| {
        decoder_backward(device, images, 32)
    }),
    row("step/cached_b4", 4, |device, images| step(device, images, SamLstConfig::vit_b(9), false)),
    row("step/full_b4", 4, |device, images| step(device, images, SamLstConfig::vit_b(9), true)),
    row("step/lite_medsam_cached_b4", 4, |device, images| {
        step(device, images, SamLstConfig::lite_medsam(9), false)
    }),
    row("step/lite_medsam_full_b4", 4, |device, images| {
        step(device, images, SamLstConfig::lite_medsam(9), true)
    }),
    row("step/unet_ladder_b4", 4, |device, images| {
        unet_ladder_step(device, images, &SamLstConfig::vit_b(9), |config| config)
    }),
    row("step/fast_unet_ladder_b4", 4, |device, images| {
        unet_ladder_step(device, images, &SamLstConfig::vit_b(9), UNetLadderConfig::fast)
    }),
    row("step/lite_medsam_unet_ladder_b4", 4, |device, images| {
        unet_ladder_step(device, images, &SamLstConfig::lite_medsam(9), |config| config)
    }),
    row("step/lite_medsam_fast_unet_ladder_b4", 4, |device, images| {
        unet_ladder_step(device, images, &SamLstConfig::lite_medsam(9), UNetLadderConfig::fast)
    }),
    row("step/unet_b8", 8, |device, images| baseline_step(device, images, UNetConfig::new(9))),
    row("step/attention_unet_b4", 4, |device, images| {
        baseline_step(device, images, AttentionUNetConfig::new(9))
    }),
    row("step/trans_unet_b4", 4, |device, images| {
        baseline_step(device, images, TransUNetConfig::new(9))
    }),
    row("step/swin_unet_b4", 4, |device, images| {
        baseline_step(device, images, SwinUNetConfig::new(9))
    }),
    row("step/cached_b1", 1, |device, images| step(device, images, SamLstConfig::vit_b(9), false)),
    row("step/full_b1", 1, |device, images| step(device, images, SamLstConfig::vit_b(9), true)),
    row("step/decoder_b1", 1, |device, images| {
        tuning_step(device, images, SamLstConfig::vit_b(9), |_| EncoderTuning::Decoder)
    }),
    row("step/sam_adapter_b1", 1, |device, images| {
        let tuning = |_: &EncoderConfig| EncoderTuning::sam_adapter();
        tuning_step(device, images, SamLstConfig::vit_b(9), tuning)
    }),
    row("step/biases_b1", 1, |device, images| {
        tuning_step(device, images, SamLstConfig::vit_b(9), |_| EncoderTuning::Biases)
    }),
    row("step/lora_b1", 1, |device, images| {
        tuning_step(device, images, SamLstConfig::vit_b(9), |_| EncoderTuning::samed())
    }),
    row("step/late_lora_b1", 1, |device, images| {
        tuning_step(device, images, SamLstConfig::vit_b(9), EncoderTuning::late_lora)
    }),
    row("step/adapter_b1", 1, |device, images| {
        let tuning = |_: &EncoderConfig| EncoderTuning::medical_sam_adapter();
        tuning_step(device, images, SamLstConfig::vit_b(9), tuning)
    }),
    row("step/full_tuning_b1", 1, |device, images| {
        tuning_step(device, images, SamLstConfig::vit_b(9), |_| EncoderTuning::Full)
    }),
    row("step/lite_medsam_lora_b1", 1, |device, images| {
        tuning_step(device, images, SamLstConfig::lite_medsam(9), |_| EncoderTuning::samed())
    }),
    for_gpus("step/cached_b24", 24, |device, images| {
        step(device, images, SamLstConfig::vit_b(9), false)
    }),
    for_gpus("step/full_b24", 24, |device, images| {
        step(device, images, SamLstConfig::vit_b(9), true)
    }),
];

const fn row(name: &'static str, images: usize, prepare: fn(&Device, usize) -> Run) -> Row {
    Row { name, images, for_gpus: false, prepare }
}

const fn for_gpus(name: &'static str, images: usize, prepare: fn(&Device, usize) -> Run) -> Row {
    Row { for_gpus: true, ..row(name, images, prepare) }
}

fn random<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
    Tensor::random(shape, Distribution::Default, device)
}

fn product(device: &Device, _images: usize) -> Run {
    let [left, right] = [(); 2].map(|()| random([4096, 4096], device));
    Box::new(move || Box::new(left.clone().matmul(right.clone())))
}

fn encoder(device: &Device, images: usize, size: usize, precision: FloatDType) -> Run {
    let mut encoder: SamEncoder = SamEncoderConfig::vit_b().init(device);
    if precision != FloatDType::F32 {
        encoder = encoder.with_precision(precision);
    }
    embed(encoder, device, images, size)
}

fn tiny_vit(device: &Device, images: usize, size: usize, config: TinyVitConfig) -> Run {
    embed(config.init(device), device, images, size)
}

fn embed(encoder: impl ImageEncoder, device: &Device, images: usize, size: usize) -> Run {
    let image = random([images, 3, size, size], device);
    Box::new(move || Box::new(encoder.forward(image.clone())))
}

fn side_forward(device: &Device, images: usize) -> Run {
    let network = ResNetSideConfig::resnet18().init(device);
    let image = random([images, 3, 512, 512], device);
    Box::new(move || Box::new(network.forward(image.clone())))
}

fn side_backward(device: &Device, images: usize) -> Run {
    let device = device.clone().autodiff();
    let network = ResNetSideConfig::resnet18().init(&device);
    let image = random([images, 3, 512, 512], &device);
    Box::new(move || {
        let gradients = network.forward(image.clone()).mean().backward();
        Box::new(GradientsParams::from_grads(gradients, &network))
    })
}

fn decoder(device: &Device) -> (PromptEncoder, MaskDecoder) {
    let decoder = MaskDecoderConfig::new(9).init(device);
    (PromptEncoderConfig::new().init(device), decoder.with_tuning(DecoderTuning::Upscaling))
}

fn decode((prompts, decoder): &(PromptEncoder, MaskDecoder), embedding: Tensor<4>) -> Tensor<4> {
    let [_, _, _, grid] = embedding.dims();
    let positions = prompts.image_positions(grid);
    let prompt = prompts.forward(&Prompts::default(), grid);
    decoder.forward(embedding, positions, prompt).logits
}

fn decoder_forward(device: &Device, images: usize) -> Run {
    let decoder = decoder(device);
    let embedding = random([images, 256, 32, 32], device);
    Box::new(move || Box::new(decode(&decoder, embedding.clone())))
}

fn decoder_backward(device: &Device, images: usize, grid: usize) -> Run {
    let device = device.clone().autodiff();
    let decoder = decoder(&device);
    // The embedding requires a gradient, as that of the side network does.
    let embedding = random([images, 256, grid, grid], &device).require_grad();
    Box::new(move || {
        let gradients = decode(&decoder, embedding.clone()).mean().backward();
        assert!(embedding.grad(&gradients).is_some());
        Box::new(GradientsParams::from_grads(gradients, &decoder.1))
    })
}

/// A training step, with a cached embedding or, if `full`, with the foundation's forward pass.
fn step(device: &Device, images: usize, mut config: SamLstConfig, full: bool) -> Run {
    let device = device.clone().autodiff();
    let (size, grid, stride) = (config.input_size, config.grid(), config.encoder.stride());
    if !full {
        // A run whose embeddings are all cached offloads the foundation.
        config.encoder = if stride == 4 {
            TinyVitConfig::tiny().with_out_channels(256).into()
        } else {
            SamEncoderConfig::tiny().with_out_channels(256).into()
        };
    }
    let SamLst { foundation, network: ladder, .. } =
        config.init(&device).expect("a preset is valid");
    let image = random([images, 3, size, size], &device);
    let embedding = random([images, 256, grid, grid], &device).inner();
    let mut optimizer = OptimizationConfig::released().optimizer.init();
    let mut ladder = Some(ladder);
    Box::new(move || {
        let embedding = if full { foundation.embed(image.clone()) } else { embedding.clone() };
        let before = ladder.take().expect("returned by the previous run");
        let logits = before.forward(image.clone(), embedding).logits;
        let loss = logits.square().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &before);
        let after = optimizer.step(1e-3, before, gradients);
        ladder = Some(after.clone());
        Box::new(after)
    })
}

/// A training step of a network over images and, where it uses one, the foundation's output.
fn network_step<N: SegmentationNetwork>(
    mut network: Option<N>,
    image: Tensor<4>,
    frozen: Option<Tensor<4>>,
) -> Run {
    let mut optimizer = OptimizationConfig::released().optimizer.init();
    Box::new(move || {
        let before = network.take().expect("returned by the previous run");
        let logits = before.supervised_logits(image.clone(), frozen.clone());
        let losses = logits.into_iter().map(|level| level.logits.square().mean() * level.weight);
        let loss = losses.reduce(|sum, loss| sum + loss).expect("a network has logits");
        let gradients = GradientsParams::from_grads(loss.backward(), &before);
        let after = optimizer.step(1e-3, before, gradients);
        network = Some(after.clone());
        Box::new(after)
    })
}

/// A training step of a U-Net that receives the foundation's features, which are kept.
fn unet_ladder_step(
    device: &Device,
    images: usize,
    ladder: &SamLstConfig,
    preset: fn(UNetLadderConfig) -> UNetLadderConfig,
) -> Run {
    let config = preset(UNetLadderConfig::from_ladder(ladder));
    let model = config.init(&device.clone().autodiff()).expect("a preset is valid");
    let foundation = &model.foundation;
    let (size, grid) = (config.input_size, config.input_size / foundation.stride());
    let image = random([images, 3, size, size], &device.clone().autodiff());
    let features = random([images, foundation.feature_channels(), grid, grid], &image.device());
    network_step(Some(model.network), image, Some(features.inner()))
}

/// A training step of a network without a foundation.
fn baseline_step<C: Baseline>(device: &Device, images: usize, config: C) -> Run {
    const SIZE: usize = 224;
    let device = device.clone().autodiff();
    let network = config.init(SIZE, &device);
    network_step(Some(network), random([images, 3, SIZE, SIZE], &device), None)
}

/// A step of another way to fine-tune SAM, with what its foundation computes kept: with LoRA of all
/// blocks and adapters, the patch embedding, with late LoRA the blocks before the first changed
/// one.
fn tuning_step(
    device: &Device,
    images: usize,
    ladder: SamLstConfig,
    tuning: fn(&EncoderConfig) -> EncoderTuning,
) -> Run {
    let device = device.clone().autodiff();
    let config = SamTuningConfig::from_ladder(&ladder, tuning(&ladder.encoder));
    let model = config.init(&device).expect("a preset is valid");
    let image = random([images, 3, config.input_size, config.input_size], &device);
    let frozen = model.foundation.as_ref().map(|foundation| foundation.embed(image.clone()));
    network_step(Some(model.network), image, frozen)
}

#[derive(Serialize, Deserialize)]
struct Measurement {
    seconds: Vec<f64>,
    /// Of the process on a CPU, reserved by the backend on a GPU.
    peak_memory_bytes: Option<u64>,
}

impl Measurement {
    /// First quartile, median, third quartile.
    fn quartiles(&self) -> [f64; 3] {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let quantile = |share: f64| {
            let position = share * (sorted.len() - 1) as f64;
            let below = sorted[position.floor() as usize];
            let above = sorted[position.ceil() as usize];
            below + (above - below) * position.fract()
        };
        [quantile(0.25), quantile(0.5), quantile(0.75)]
    }
}

/// A row measured on a device.
#[derive(Serialize)]
struct Cell {
    device: String,
    row: &'static str,
    images: usize,
    #[serde(flatten)]
    measurement: Measurement,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.measure {
        Some(row) => measure(row, &arguments),
        None => compare(&arguments),
    }
}

#[expect(clippy::print_stdout, reason = "the result for the process that started this one")]
fn measure(name: &str, arguments: &Arguments) -> Result<()> {
    let [device] = &arguments.device[..] else {
        bail!("--measure needs exactly one device");
    };
    sam_lst::compute_on_current_thread();
    let device = devices::open(device)?;
    let row = ROWS.iter().find(|row| row.name == name);
    let row = row.with_context(|| format!("unknown row `{name}`"))?;
    let mut run = (row.prepare)(&device, row.images);
    let mut timed = || -> Result<f64> {
        let start = Instant::now();
        let _result = run();
        device.sync()?;
        Ok(start.elapsed().as_secs_f64())
    };
    // Warm-up: the first runs select kernels and fill caches.
    let mut previous = timed()?;
    for _ in 0..10 {
        let seconds = timed()?;
        let is_stable = seconds > 0.8 * previous;
        previous = seconds;
        if is_stable {
            break;
        }
    }
    let seconds = (0..arguments.samples).map(|_| timed()).collect::<Result<_>>()?;
    let peak_memory_bytes = match device.memory_pool_usage() {
        Some(usage) => Some(usage.bytes_reserved),
        None => peak_memory_bytes(),
    };
    let measurement = Measurement { seconds, peak_memory_bytes };
    println!("{}", serde_json::to_string(&measurement)?);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn compare(arguments: &Arguments) -> Result<()> {
    let devices = selected_devices(arguments)?;
    let rows = selected_rows(arguments)?;
    let mut cells = Vec::new();
    let mut errors = Vec::new();
    let bar = ProgressBar::new((rows.len() * devices.len()) as u64)
        .with_style(ProgressStyle::with_template("{bar:20} {pos}/{len} {elapsed} {msg}")?);
    bar.enable_steady_tick(Duration::from_millis(200));
    for device in &devices {
        for row in &rows {
            bar.set_message(format!("{} {}", device.name, row.name));
            let is_named = arguments.rows.iter().any(|part| part == row.name);
            if device.name != "cpu" || !row.for_gpus || is_named {
                match measure_in_own_process(row, &device.name, arguments) {
                    Ok(measurement) => cells.push(Cell {
                        device: device.name.clone(),
                        row: row.name,
                        images: row.images,
                        measurement,
                    }),
                    Err(error) => {
                        errors.push(format!("{} on {}: {error:#}", row.name, device.name));
                    }
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    let text = table(&rows, &devices, &cells, &errors)?;
    println!("{text}");
    let file = arguments.save.with_extension("md");
    std::fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    let json = arguments.save.with_extension("json");
    std::fs::write(&json, serde_json::to_vec_pretty(&cells)?)
        .with_context(|| format!("cannot write {}", json.display()))?;
    println!("{}\n{}", file.display(), json.display());
    Ok(())
}

/// The devices of `--device`, each of which must be usable, or all without it.
fn selected_devices(arguments: &Arguments) -> Result<Vec<AvailableDevice>> {
    let mut devices = devices::list();
    if !arguments.device.is_empty() {
        for name in &arguments.device {
            devices::open(name)?;
        }
        devices.retain(|device| {
            let short_name = device.name.strip_suffix(":0");
            arguments.device.contains(&device.name)
                || short_name.is_some_and(|short| arguments.device.iter().any(|name| name == short))
        });
    }
    Ok(devices)
}

/// The rows of `--rows`, by their full name or by a part that is not a row's full name, or all
/// without it.
fn selected_rows(arguments: &Arguments) -> Result<Vec<&'static Row>> {
    let is_row = |name: &str| ROWS.iter().any(|row| row.name == name);
    let is_selected = |row: &&Row| {
        let matches = |part: &String| part == row.name || !is_row(part) && row.name.contains(part);
        arguments.rows.is_empty() || arguments.rows.iter().any(matches)
    };
    let rows: Vec<&Row> = ROWS.iter().filter(is_selected).collect();
    ensure!(!rows.is_empty(), "no row has {} in its name", arguments.rows.join(" or "));
    Ok(rows)
}

/// Measures a row in a separate process, so that peak memory is that of the row alone and a failure
/// does not affect other rows.
fn measure_in_own_process(row: &Row, device: &str, arguments: &Arguments) -> Result<Measurement> {
    let mut process = Command::new(std::env::current_exe()?)
        .args(["--measure", row.name, "--device", device])
        .args(["--samples", &arguments.samples.to_string()])
        // As the program `sam-lst` does.
        .env("MIMALLOC_PURGE_DELAY", "-1")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let started = Instant::now();
    while process.try_wait()?.is_none() {
        if started.elapsed().as_secs_f64() > arguments.limit_seconds {
            process.kill()?;
            process.wait()?;
            bail!("stopped after {} s", arguments.limit_seconds);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = process.wait_with_output()?;
    if !output.status.success() {
        let printed = String::from_utf8_lossy(&output.stderr);
        let line = printed.lines().find(|line| !line.trim().is_empty());
        bail!("failed: {}", line.unwrap_or("without a message"));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn table(
    rows: &[&Row],
    devices: &[AvailableDevice],
    cells: &[Cell],
    errors: &[String],
) -> Result<String> {
    let mut text = String::new();
    for device in devices {
        writeln!(text, "- {}: {}", device.name, device.description)?;
    }
    write!(text, "\nMedian, half the interquartile range, images per second, peak memory.\n\n")?;
    let mut lines = vec![vec!["row".to_owned()]];
    lines[0].extend(devices.iter().map(|device| device.name.clone()));
    // Rows for GPUs are not measured without a GPU.
    let is_measured = |row: &&&Row| cells.iter().any(|cell| cell.row == row.name);
    for row in rows.iter().filter(is_measured) {
        let mut line = vec![row.name.to_owned()];
        for device in devices {
            let cell = cells.iter().find(|cell| cell.row == row.name && cell.device == device.name);
            line.push(cell.map_or("–".to_owned(), describe));
        }
        lines.push(line);
    }
    let widths: Vec<usize> = (0..=devices.len())
        .map(|column| {
            let widths = lines.iter().map(|line| line[column].chars().count());
            widths.max().unwrap_or(0)
        })
        .collect();
    for (i, line) in lines.iter().enumerate() {
        for (cell, &width) in line.iter().zip(&widths) {
            write!(text, "| {cell:<width$} ")?;
        }
        text.push_str("|\n");
        if i == 0 {
            for &width in &widths {
                write!(text, "|{}", "-".repeat(width + 2))?;
            }
            text.push_str("|\n");
        }
    }
    if !errors.is_empty() {
        text.push('\n');
    }
    for error in errors {
        writeln!(text, "- {error}")?;
    }
    Ok(text)
}

fn describe(cell: &Cell) -> String {
    let [low, median, high] = cell.measurement.quartiles();
    let spread = 50.0 * (high - low) / median;
    let (value, unit) = if median < 1.0 { (1000.0 * median, "ms") } else { (median, "s") };
    let decimals = 2_usize.saturating_sub(value.log10().floor().max(0.0) as usize);
    let memory = cell
        .measurement
        .peak_memory_bytes
        .map_or(String::new(), |bytes| format!(", {} MB", bytes / 1_000_000));
    let rate = cell.images as f64 / median;
    let rate_decimals = 2_usize.saturating_sub(rate.log10().floor().max(0.0) as usize);
    format!("{value:.decimals$} {unit} ± {spread:.0} %, {rate:.rate_decimals$}/s{memory}")
}

//! How long do the networks take, on each backend of this machine, and in how much memory?
//!
//! ```sh
//! cargo bench --bench models                      # on the CPU
//! cargo bench --bench models --features cuda      # and on each GPU that CUDA finds
//! cargo bench --bench models -- --rows step       # only those whose name has it
//! ```

#[path = "../examples/shared/device.rs"]
#[expect(dead_code, reason = "the examples' command line")]
mod device;

use anyhow::{Context, Result, bail, ensure};
use burn::optim::GradientsParams;
use burn::tensor::{Device, Distribution, FloatDType, Tensor};
use clap::Parser;
use device::{Listed, devices};
use indicatif::{ProgressBar, ProgressStyle};
use sam_lst::rooms::mask_decoder::{MaskDecoder, PromptEncoder, PromptEncoderConfig};
use sam_lst::{
    DecoderTuning, MaskDecoderConfig, OptimizationConfig, Prompts, ResNetSideConfig, SamEncoder,
    SamEncoderConfig, SamLst, SamLstConfig, peak_memory_bytes,
};
use serde::{Deserialize, Serialize};
use std::any::Any;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Tensors of megabytes come and go by the hundred; glibc gives each back to the system and has it cleared again.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Parser)]
#[command(about = "Times the networks on each device and writes a table")]
struct Arguments {
    /// Devices, as --list-devices of the examples names them; all GPUs and the CPU without.
    #[arg(long, value_delimiter = ',')]
    device: Vec<String>,
    /// Only rows whose name has one of these; those for GPUs are measured on a CPU too if they are named in full.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<String>,
    /// Runs that are timed, after those that warm up.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(3..))]
    samples: u32,
    /// Seconds after which a row is given up.
    #[arg(long, default_value_t = 300.0)]
    limit_seconds: f64,
    /// Where the table goes: PREFIX.md and PREFIX.json.
    #[arg(long, value_name = "PREFIX", default_value = concat!(env!("CARGO_TARGET_TMPDIR"), "/../benchmark"))]
    save: PathBuf,
    /// Measures one row on one device and prints it as JSON: what this program starts itself with.
    #[arg(long, hide = true, requires = "device")]
    measure: Option<String>,
    /// What `cargo bench` passes.
    #[arg(long, hide = true)]
    bench: bool,
}

struct Row {
    name: &'static str,
    /// Images in a run.
    images: usize,
    /// Whether it takes a GPU to be worth the wait.
    for_gpus: bool,
    prepare: fn(&Device, usize) -> Run,
}

/// Does the work once. What comes out is held until the device is done: of what nobody holds, it need not do all.
type Run = Box<dyn FnMut() -> Box<dyn Any>>;

const ROWS: [Row; 17] = [
    // What the machine can do at most, or nearly.
    row("product/4096", 1, product),
    row("encoder/vit_b_512_b1", 1, |device, images| {
        encoder(device, images, 512, FloatDType::F32)
    }),
    row("encoder/vit_b_512_b4", 4, |device, images| {
        encoder(device, images, 512, FloatDType::F32)
    }),
    row("encoder/vit_b_1024_b1", 1, |device, images| {
        encoder(device, images, 1024, FloatDType::F32)
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
    row("decoder/forward_backward_b4", 4, decoder_backward),
    for_gpus("decoder/forward_backward_b24", 24, decoder_backward),
    row("step/cached_b4", 4, |device, images| {
        step(device, images, false)
    }),
    row("step/full_b4", 4, |device, images| {
        step(device, images, true)
    }),
    for_gpus("step/cached_b24", 24, |device, images| {
        step(device, images, false)
    }),
    for_gpus("step/full_b24", 24, |device, images| {
        step(device, images, true)
    }),
];

const fn row(name: &'static str, images: usize, prepare: fn(&Device, usize) -> Run) -> Row {
    Row {
        name,
        images,
        for_gpus: false,
        prepare,
    }
}

const fn for_gpus(name: &'static str, images: usize, prepare: fn(&Device, usize) -> Run) -> Row {
    Row {
        for_gpus: true,
        ..row(name, images, prepare)
    }
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
    (
        PromptEncoderConfig::new().init(device),
        decoder.with_tuning(DecoderTuning::Upscaling),
    )
}

fn decode((prompts, decoder): &(PromptEncoder, MaskDecoder), embedding: Tensor<4>) -> Tensor<4> {
    let positions = prompts.image_positions(32);
    let prompt = prompts.forward(&Prompts::default(), 32);
    decoder.forward(embedding, positions, prompt).logits
}

fn decoder_forward(device: &Device, images: usize) -> Run {
    let decoder = decoder(device);
    let embedding = random([images, 256, 32, 32], device);
    Box::new(move || Box::new(decode(&decoder, embedding.clone())))
}

fn decoder_backward(device: &Device, images: usize) -> Run {
    let device = device.clone().autodiff();
    let decoder = decoder(&device);
    // It requires a gradient, as it does behind the side network.
    let embedding = random([images, 256, 32, 32], &device).require_grad();
    Box::new(move || {
        let gradients = decode(&decoder, embedding.clone()).mean().backward();
        assert!(embedding.grad(&gradients).is_some());
        Box::new(GradientsParams::from_grads(gradients, &decoder.1))
    })
}

/// A step of training, from a kept embedding or with the foundation in it.
fn step(device: &Device, images: usize, full: bool) -> Run {
    let device = device.clone().autodiff();
    let mut config = SamLstConfig::vit_b(9);
    if !full {
        // A run that finds its embeddings leaves the foundation on disk.
        config.encoder = SamEncoderConfig::tiny().with_out_channels(config.encoder.out_channels);
    }
    let SamLst {
        foundation, ladder, ..
    } = config.init(&device).expect("a preset is valid");
    let image = random([images, 3, 512, 512], &device);
    let embedding = random([images, 256, 32, 32], &device).inner();
    let mut optimizer = OptimizationConfig::released().optimizer.init();
    let mut ladder = Some(ladder);
    Box::new(move || {
        let embedding = match full {
            true => foundation.embed(image.clone()),
            false => embedding.clone(),
        };
        let before = ladder.take().expect("put back by the last step");
        let logits = before.forward(image.clone(), embedding).logits;
        let loss = logits.square().mean();
        let gradients = GradientsParams::from_grads(loss.backward(), &before);
        let after = optimizer.step(1e-3, before, gradients);
        ladder = Some(after.clone());
        Box::new(after)
    })
}

#[derive(Serialize, Deserialize)]
struct Measured {
    seconds: Vec<f64>,
    /// Of the device: the process's on a CPU, what the backend reserved on a GPU.
    peak_memory_bytes: Option<u64>,
}

impl Measured {
    /// First quartile, median, third quartile.
    fn quartiles(&self) -> [f64; 3] {
        let mut sorted = self.seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let place = share * (sorted.len() - 1) as f64;
            let (below, above) = (
                sorted[place.floor() as usize],
                sorted[place.ceil() as usize],
            );
            below + (above - below) * place.fract()
        };
        [at(0.25), at(0.5), at(0.75)]
    }
}

/// A row on a device.
#[derive(Serialize)]
struct Cell {
    device: String,
    row: &'static str,
    images: usize,
    #[serde(flatten)]
    measured: Measured,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    match &arguments.measure {
        Some(row) => measure(row, &arguments),
        None => compare(&arguments),
    }
}

#[expect(
    clippy::print_stdout,
    reason = "the answer to the program that started this one"
)]
fn measure(name: &str, arguments: &Arguments) -> Result<()> {
    let [device] = &arguments.device[..] else {
        bail!("--measure takes one device");
    };
    sam_lst::compute_on_this_thread();
    let device = device::device(device)?;
    let row = ROWS.iter().find(|row| row.name == name);
    let row = row.with_context(|| format!("there is no row {name}"))?;
    let mut run = (row.prepare)(&device, row.images);
    let mut timed = || -> Result<f64> {
        let start = Instant::now();
        let _made = run();
        device.sync()?;
        Ok(start.elapsed().as_secs_f64())
    };
    // The first runs choose kernels and fill caches.
    let mut before = timed()?;
    for _ in 0..10 {
        let now = timed()?;
        let settled = now > 0.8 * before;
        before = now;
        if settled {
            break;
        }
    }
    let seconds = (0..arguments.samples)
        .map(|_| timed())
        .collect::<Result<_>>()?;
    let peak_memory_bytes = match device.memory_pool_usage() {
        Some(usage) => Some(usage.bytes_reserved),
        None => peak_memory_bytes(),
    };
    let measured = Measured {
        seconds,
        peak_memory_bytes,
    };
    println!("{}", serde_json::to_string(&measured)?);
    Ok(())
}

#[expect(clippy::print_stdout, reason = "a program's output")]
fn compare(arguments: &Arguments) -> Result<()> {
    let mut devices = devices();
    if !arguments.device.is_empty() {
        for name in &arguments.device {
            device::device(name)?;
        }
        let asked = |listed: &Listed| {
            let first = listed.name.strip_suffix(":0");
            arguments.device.contains(&listed.name)
                || first.is_some_and(|first| arguments.device.iter().any(|name| name == first))
        };
        devices.retain(asked);
    }
    let is_row = |name: &str| ROWS.iter().any(|row| row.name == name);
    let wanted = |row: &&Row| {
        let named = |part: &String| part == row.name || !is_row(part) && row.name.contains(part);
        arguments.rows.is_empty() || arguments.rows.iter().any(named)
    };
    let rows: Vec<&Row> = ROWS.iter().filter(wanted).collect();
    ensure!(
        !rows.is_empty(),
        "no row has {}",
        arguments.rows.join(" or ")
    );

    let mut cells = Vec::new();
    let mut remarks = Vec::new();
    let bar = ProgressBar::new((rows.len() * devices.len()) as u64).with_style(
        ProgressStyle::with_template("{bar:20} {pos}/{len} {elapsed} {msg}")?,
    );
    bar.enable_steady_tick(Duration::from_millis(200));
    for listed in &devices {
        for row in &rows {
            bar.set_message(format!("{} {}", listed.name, row.name));
            let asked = arguments.rows.iter().any(|part| part == row.name);
            if listed.name != "cpu" || !row.for_gpus || asked {
                match in_own_process(row, &listed.name, arguments) {
                    Ok(measured) => cells.push(Cell {
                        device: listed.name.clone(),
                        row: row.name,
                        images: row.images,
                        measured,
                    }),
                    Err(error) => {
                        remarks.push(format!("{} on {}: {error:#}", row.name, listed.name));
                    }
                }
            }
            bar.inc(1);
        }
    }
    bar.finish_and_clear();

    let text = table(&rows, &devices, &cells, &remarks)?;
    println!("{text}");
    let file = arguments.save.with_extension("md");
    std::fs::write(&file, &text).with_context(|| format!("cannot write {}", file.display()))?;
    let json = arguments.save.with_extension("json");
    std::fs::write(&json, serde_json::to_vec_pretty(&cells)?)
        .with_context(|| format!("cannot write {}", json.display()))?;
    println!("{}\n{}", file.display(), json.display());
    Ok(())
}

/// Measures a row in a process of its own, so that its peak memory is its own, and so that a failing one takes no other with it.
fn in_own_process(row: &Row, device: &str, arguments: &Arguments) -> Result<Measured> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--measure", row.name, "--device", device])
        .args(["--samples", &arguments.samples.to_string()])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let started = Instant::now();
    while child.try_wait()?.is_none() {
        if started.elapsed().as_secs_f64() > arguments.limit_seconds {
            child.kill()?;
            child.wait()?;
            bail!("given up after {} s", arguments.limit_seconds);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let line = said.lines().find(|line| !line.trim().is_empty());
        bail!("failed: {}", line.unwrap_or("without a word"));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}

fn table(rows: &[&Row], devices: &[Listed], cells: &[Cell], remarks: &[String]) -> Result<String> {
    let mut text = String::new();
    for listed in devices {
        writeln!(text, "- {}: {}", listed.name, listed.description)?;
    }
    write!(
        text,
        "\nMedian, half the distance of the quartiles, images per second, peak memory.\n\n"
    )?;
    let mut lines = vec![vec!["row".to_owned()]];
    lines[0].extend(devices.iter().map(|listed| listed.name.clone()));
    // Those for GPUs are not measured where there is none.
    let measured = |row: &&&Row| cells.iter().any(|cell| cell.row == row.name);
    for row in rows.iter().filter(measured) {
        let mut line = vec![row.name.to_owned()];
        for listed in devices {
            let cell = cells
                .iter()
                .find(|cell| cell.row == row.name && cell.device == listed.name);
            line.push(cell.map_or("–".to_owned(), in_words));
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
    if !remarks.is_empty() {
        text.push('\n');
    }
    for remark in remarks {
        writeln!(text, "- {remark}")?;
    }
    Ok(text)
}

fn in_words(cell: &Cell) -> String {
    let [low, median, high] = cell.measured.quartiles();
    let spread = 50.0 * (high - low) / median;
    let (value, unit) = match median {
        median if median < 1.0 => (1000.0 * median, "ms"),
        median => (median, "s"),
    };
    let decimals = 2_usize.saturating_sub(value.log10().floor().max(0.0) as usize);
    let memory = cell
        .measured
        .peak_memory_bytes
        .map_or(String::new(), |bytes| format!(", {} MB", bytes / 1_000_000));
    let rate = cell.images as f64 / median;
    let rate_decimals = 2_usize.saturating_sub(rate.log10().floor().max(0.0) as usize);
    format!("{value:.decimals$} {unit} ± {spread:.0} %, {rate:.rate_decimals$}/s{memory}")
}

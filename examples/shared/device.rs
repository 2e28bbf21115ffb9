//! `--device` and `--list-devices` of the examples, and the devices that tests and benches go over.

use anyhow::{Context, Result, bail};
use burn::tensor::{Device, DeviceType};
use clap::{Args, Parser, ValueEnum};
use sam_lst::FoundationPrecision;
use std::panic::{AssertUnwindSafe, catch_unwind};

#[derive(Args)]
pub struct DeviceArguments {
    /// Where to compute: cpu, cuda:0, wgpu, vulkan, … as --list-devices names them. Several, as in cuda:0,cuda:1, share the
    /// work of training.
    #[arg(long, default_value = "cpu", value_delimiter = ',')]
    device: Vec<String>,
    /// List the devices that --device can name, and end.
    #[arg(long, exclusive = true)]
    list_devices: bool,
}

/// What the foundation computes in.
#[derive(Clone, Copy, ValueEnum)]
pub enum Precision {
    F32,
    F16,
    Bf16,
}

impl From<Precision> for FoundationPrecision {
    fn from(precision: Precision) -> Self {
        match precision {
            Precision::F32 => Self::F32,
            Precision::F16 => Self::F16,
            Precision::Bf16 => Self::BF16,
        }
    }
}

impl DeviceArguments {
    /// The devices asked for.
    pub fn open(&self) -> Result<Vec<Device>> {
        let mut opened = Vec::new();
        for name in &self.device {
            let found = device(name)?;
            if opened.contains(&found) {
                bail!(
                    "--device {}: `{name}` is named twice",
                    self.device.join(",")
                );
            }
            opened.push(found);
        }
        Ok(opened)
    }
}

/// The command line, unless it asks which devices there are.
#[expect(clippy::print_stdout, reason = "a program's output")]
pub fn parse<A: Parser>() -> A {
    let matches = A::command().get_matches();
    if matches.get_flag("list_devices") {
        for listed in devices() {
            println!("{:<10} {}", listed.name, listed.description);
        }
        std::process::exit(0);
    }
    A::from_arg_matches(&matches).unwrap_or_else(|error| error.exit())
}

/// A device of this machine that this program can use.
pub struct Listed {
    /// What `--device` calls it.
    pub name: String,
    /// What it calls itself.
    pub description: String,
}

/// A family of devices.
struct Kind {
    name: &'static str,
    /// None if the program was built without.
    device_type: Option<DeviceType>,
}

/// `kind!(name, variant of DeviceType)`; the feature that brings it has its name.
macro_rules! kind {
    ($name:literal, $variant:ident) => {
        Kind {
            name: $name,
            #[cfg(feature = $name)]
            device_type: Some(DeviceType::$variant),
            #[cfg(not(feature = $name))]
            device_type: None,
        }
    };
}

const KINDS: [Kind; 6] = [
    kind!("cuda", Cuda),
    kind!("rocm", Rocm),
    kind!("metal", Metal),
    kind!("vulkan", Vulkan),
    kind!("wgpu", Wgpu),
    kind!("webgpu", WebGpu),
];

/// Every device of this machine that this program can use, the CPU first.
pub fn devices() -> Vec<Listed> {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut listed = vec![Listed {
        name: "cpu".to_owned(),
        description: format!("{cores} threads"),
    }];
    for kind in &KINDS {
        for (index, device) in found(kind).into_iter().enumerate() {
            let description = quietly(|| describe(&device)).unwrap_or_else(|reason| reason);
            listed.push(Listed {
                name: format!("{}:{index}", kind.name),
                description,
            });
        }
    }
    listed
}

/// The device of a name: `cpu`, `cuda`, `cuda:1`, `wgpu`, `vulkan:0`, … Without a number, the first of its kind.
pub fn device(name: &str) -> Result<Device> {
    if matches!(name, "cpu" | "flex") {
        return Ok(Device::flex());
    }
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => {
            let index = index.parse::<usize>();
            let index = index.with_context(|| {
                format!("`{name}`: expected a number after the colon, as in `cuda:0`")
            })?;
            (kind, index)
        }
        None => (name, 0),
    };
    let Some(kind) = KINDS.iter().find(|known| known.name == kind) else {
        let kinds: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        bail!("`{name}` is no device; there are cpu, {}", kinds.join(", "));
    };
    if kind.device_type.is_none() {
        let kind = kind.name;
        bail!("this program was built without `{kind}`; build it with `--features {kind}`");
    }
    let found = found(kind);
    let count = found.len();
    let Some(device) = found.into_iter().nth(index) else {
        let there_are = match count {
            0 => format!("no {} device was found on this machine", kind.name),
            _ => format!(
                "the last {} device is {}:{}",
                kind.name,
                kind.name,
                count - 1
            ),
        };
        bail!("`{name}`: {there_are}; --list-devices shows what there is");
    };
    // A driver that is too old, or a card that another program holds: now, not in the middle of a run.
    quietly(|| describe(&device))
        .map_err(anyhow::Error::msg)
        .with_context(|| format!("`{name}` cannot be used"))?;
    Ok(device)
}

fn found(kind: &Kind) -> Vec<Device> {
    // Where the driver's library is missing, there are no devices.
    let devices = kind
        .device_type
        .clone()
        .map(|device_type| quietly(|| Device::enumerate(device_type).into_vec()));
    devices.and_then(Result::ok).unwrap_or_default()
}

/// What a device calls itself. Opens it.
fn describe(device: &Device) -> String {
    #[cfg(any(
        feature = "cuda",
        feature = "rocm",
        feature = "wgpu",
        feature = "vulkan",
        feature = "metal",
        feature = "webgpu"
    ))]
    if let Some(identity) = device.identity() {
        return format!("{} ({})", identity.name, identity.fingerprint);
    }
    format!("{device:?}")
}

/// What `ask` says, or why a driver stopped it.
fn quietly<T>(ask: impl FnOnce() -> T) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let answer = catch_unwind(AssertUnwindSafe(ask));
    std::panic::set_hook(hook);
    answer.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "the driver gave no reason".to_owned())
    })
}

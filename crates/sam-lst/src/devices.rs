//! Devices by name, as a command line names them: `cpu`, `cuda:0`, `wgpu`, `vulkan`, ...

use burn::tensor::{Device, DeviceType};
use std::panic::{AssertUnwindSafe, catch_unwind};

/// A device of this machine that this program can use.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AvailableDevice {
    /// Its name for [`open`], such as `cuda:0`.
    pub name: String,
    /// The driver's description, or why the device cannot be used.
    pub description: String,
}

/// Why a device cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// An unknown name.
    #[error("unknown device `{name}`; expected cpu, or one of {}, as in `cuda:0`", KINDS.map(|kind| kind.name).join(", "))]
    Unknown {
        /// The name.
        name: String,
    },
    /// The program was built without this backend.
    #[error("cannot use device `{name}`: this program was built without the feature `{feature}`")]
    NotCompiled {
        /// The name.
        name: String,
        /// The feature that adds the backend.
        feature: &'static str,
    },
    /// The machine has no such device.
    #[error("cannot use device `{name}`: this machine has {count} {kind} device{}", if *count == 1 { "" } else { "s" })]
    NotFound {
        /// The name.
        name: String,
        /// The kind of device.
        kind: &'static str,
        /// Number of devices of that kind.
        count: usize,
    },
    /// The driver rejected the device.
    #[error("cannot use device `{name}`: {reason}")]
    Driver {
        /// The name.
        name: String,
        /// The driver's message.
        reason: String,
    },
}

struct Kind {
    name: &'static str,
    /// `None` if the program was built without this backend.
    device_type: Option<DeviceType>,
}

/// `kind!(name, variant of DeviceType)`; the feature that adds the backend has the same name.
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

/// Lists every device of this machine that this program can use, the CPU first.
pub fn list() -> Vec<AvailableDevice> {
    let mut devices = Vec::new();
    if cfg!(feature = "flex") {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let description = format!("{cores} threads");
        devices.push(AvailableDevice { name: "cpu".to_owned(), description });
    }
    for kind in &KINDS {
        for (index, device) in enumerate(kind).into_iter().enumerate() {
            let description = without_panic(|| describe(&device)).unwrap_or_else(|reason| reason);
            devices.push(AvailableDevice { name: format!("{}:{index}", kind.name), description });
        }
    }
    devices
}

/// Opens the device of a name: `cpu`, `cuda`, `cuda:1`, `wgpu`, `vulkan:0`, ... Without a number, the
/// first of its kind.
///
/// # Errors
///
/// [`DeviceError`] if the name is unknown, the program was built without the backend, or the machine
/// has no such device or cannot use it.
pub fn open(name: &str) -> Result<Device, DeviceError> {
    if matches!(name, "cpu" | "flex") {
        return cpu(name);
    }
    let unknown = || DeviceError::Unknown { name: name.to_owned() };
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => (kind, index.parse::<usize>().map_err(|_| unknown())?),
        None => (name, 0),
    };
    let kind = KINDS.iter().find(|known| known.name == kind).ok_or_else(unknown)?;
    if kind.device_type.is_none() {
        return Err(DeviceError::NotCompiled { name: name.to_owned(), feature: kind.name });
    }
    let devices = enumerate(kind);
    let count = devices.len();
    let not_found = || DeviceError::NotFound { name: name.to_owned(), kind: kind.name, count };
    let device = devices.into_iter().nth(index).ok_or_else(not_found)?;
    // Detects an outdated driver or an occupied card now rather than in the middle of a run.
    without_panic(|| describe(&device))
        .map_err(|reason| DeviceError::Driver { name: name.to_owned(), reason })?;
    Ok(device)
}

#[cfg(feature = "flex")]
fn cpu(_: &str) -> Result<Device, DeviceError> {
    Ok(Device::flex())
}

#[cfg(not(feature = "flex"))]
fn cpu(name: &str) -> Result<Device, DeviceError> {
    Err(DeviceError::NotCompiled { name: name.to_owned(), feature: "flex" })
}

fn enumerate(kind: &Kind) -> Vec<Device> {
    // Without the driver's library, enumeration panics: there are no devices.
    let devices = kind
        .device_type
        .clone()
        .map(|device_type| without_panic(|| Device::enumerate(device_type).into_vec()));
    devices.and_then(Result::ok).unwrap_or_default()
}

/// The driver's description of a device. Opens the device.
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

/// Calls into a driver; a panic becomes an error with its message and is not printed.
fn without_panic<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let result = catch_unwind(AssertUnwindSafe(call));
    std::panic::set_hook(hook);
    result.map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()))
            .unwrap_or_else(|| "the driver gave no reason".to_owned())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_open_by_name() {
        assert_eq!(open("cpu"), Ok(Device::flex()));
        assert_eq!(list()[0].name, "cpu");
    }

    #[test]
    fn unknown_names_are_reported() {
        for name in ["gpu", "cuda:x", "cuda:-1", "", "cpu:0"] {
            let message = open(name).expect_err("unknown").to_string();
            assert!(message.starts_with(&format!("unknown device `{name}`")), "{message}");
            assert!(message.contains("vulkan"), "{message}");
        }
    }

    #[cfg(not(feature = "rocm"))]
    #[test]
    fn a_backend_that_is_not_compiled_in_is_reported() {
        let message = open("rocm:0").expect_err("not compiled").to_string();
        assert!(message.contains("without the feature `rocm`"), "{message}");
    }
}

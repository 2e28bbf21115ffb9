//! `--device` of the examples.

use anyhow::{Result, bail};
use burn::tensor::Device;

/// The device of a name: `cpu`, `cuda`, `cuda:1`, `wgpu`, `vulkan`, `metal`, `webgpu`, `rocm`.
pub fn device(name: &str) -> Result<Device> {
    let (kind, index) = match name.split_once(':') {
        Some((kind, index)) => match index.parse::<usize>() {
            Ok(index) => (kind, Some(index)),
            Err(_) => bail!("`{name}`: expected a number after the colon, as in `cuda:0`"),
        },
        None => (name, None),
    };
    match kind {
        "cpu" | "flex" => Ok(Device::flex()),
        #[cfg(feature = "cuda")]
        "cuda" => Ok(Device::cuda(index.unwrap_or(0))),
        #[cfg(feature = "rocm")]
        "rocm" => Ok(Device::rocm(index.unwrap_or(0))),
        #[cfg(feature = "wgpu")]
        "wgpu" => Ok(Device::wgpu(adapter(index))),
        #[cfg(feature = "vulkan")]
        "vulkan" => Ok(Device::vulkan(adapter(index))),
        #[cfg(feature = "metal")]
        "metal" => Ok(Device::metal(adapter(index))),
        #[cfg(feature = "webgpu")]
        "webgpu" => Ok(Device::webgpu(adapter(index))),
        "cuda" | "rocm" | "wgpu" | "vulkan" | "metal" | "webgpu" => {
            let _ = index;
            bail!("this program was built without `{kind}`; build it with `--features {kind}`")
        }
        _ => bail!(
            "`{name}` is no device; there are cpu, cuda, rocm, wgpu, vulkan, metal and webgpu"
        ),
    }
}

#[cfg(any(
    feature = "wgpu",
    feature = "vulkan",
    feature = "metal",
    feature = "webgpu"
))]
fn adapter(index: Option<usize>) -> burn::tensor::DeviceKind {
    index.map_or(
        burn::tensor::DeviceKind::DefaultDevice,
        burn::tensor::DeviceKind::DiscreteGpu,
    )
}

//! `sam-lst devices`.

use crate::{Status, output};
use anyhow::Result;
use clap::Args;
use sam_lst::devices::AvailableDevice;
use serde_json::json;

const EXAMPLES: &str = "\
Names are those of --device; `cuda` is short for `cuda:0`. GPUs need a program that was built with a
feature: cargo install --path crates/cli --features cuda (or rocm, metal, vulkan, wgpu, webgpu)

Examples:
  sam-lst devices
  sam-lst devices --json";

/// List the devices of this machine that --device accepts
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Print the list as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: Arguments) -> Result<Status> {
    let devices = sam_lst::devices::list();
    if arguments.json {
        let entry = |device: &AvailableDevice| {
            let AvailableDevice { name, description } = device;
            json!({ "name": name, "description": description })
        };
        output::print_json(&devices.iter().map(entry).collect::<Vec<_>>())?;
    } else {
        let line =
            |device: &AvailableDevice| format!("{:<10} {}\n", device.name, device.description);
        output::print(&devices.iter().map(line).collect::<String>())?;
    }
    Ok(Status::Done)
}

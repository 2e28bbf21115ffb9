//! `sam-lst embed`.

use crate::arguments::open_devices;
use crate::display::{Display, Mode};
use crate::progress::note;
use crate::settings::{DataArguments, SettingsArguments, check};
use crate::training::check_folders;
use crate::{Status, interrupt, output};
use anyhow::Result;
use clap::Args;
use sam_lst::training::Shard;
use sam_lst::{SamLstConfig, Training, TrainingConfig, TrainingFolders};
use serde_json::json;

const EXAMPLES: &str = "\
Any number of processes may share the cache folder: without --shard, each takes slices that no other
has. Then train with the same data, settings and cache, on one machine.

Examples:
  sam-lst embed --data Synapse --sam sam_vit_b_01ec64.pth --device cuda:0
  sam-lst embed --data Synapse --sam sam_vit_b_01ec64.pth --cache /shared/cache --shard 0/8";

/// Precompute the embeddings that a training run needs, and nothing else
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    #[command(flatten)]
    data: DataArguments,
    #[command(flatten)]
    settings: SettingsArguments,
    /// Compute only this shard, I from 0 to N - 1 [default: all slices]
    #[arg(long, value_name = "I/N")]
    shard: Option<Shard>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    interrupt::set_resumable();
    arguments.data.check_foundation()?;
    arguments.data.check_inputs()?;
    // A precomputation has no run folder.
    let cache = &arguments.settings.cache;
    let folders = TrainingFolders { run: cache.clone(), cache: cache.clone() };
    check_folders::<SamLstConfig>(&folders, &arguments.data.inputs())?;
    let devices = open_devices(&arguments.settings.device)?;
    let dataset = arguments.data.open()?;
    let classes = dataset.description().classes();
    let preset = TrainingConfig::released(classes);
    let config = arguments.settings.apply(arguments.data.over_foundation(preset, classes)?)?;
    check(&config, &dataset)?;
    let config = config.split_across(devices.len())?;
    let model = arguments.data.load(&config, None, &devices[0])?;
    let mut training = Training::new(config, folders).devices(&devices);
    if let Some(shard) = arguments.shard {
        training = training.shard(shard);
    }
    let mut display = Display::new(Mode::Embeddings);
    let outcome = training.precompute(model, &dataset, |event| display.show(&event));
    drop(display);
    let outcome = outcome?;
    if outcome.stopped {
        note(&format!("stopped after {} embeddings; {}", outcome.computed, interrupt::RESUME));
        return Ok(Status::Stopped);
    }
    if arguments.json {
        output::print_json(&json!({
            "computed_embeddings": outcome.computed,
            "cache": cache.display().to_string(),
        }))?;
    } else {
        output::print(&format!("{} embeddings computed\n", outcome.computed))?;
    }
    Ok(Status::Done)
}

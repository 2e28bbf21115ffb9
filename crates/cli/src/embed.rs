//! `sam-lst embed`.

use crate::arguments::open_devices;
use crate::display::{Display, Mode};
use crate::method::{Method, MethodName, of_method};
use crate::progress::note;
use crate::settings::{DataArguments, SettingsArguments};
use crate::train::{self, NetworkConfigOf, Preset};
use crate::training::check_folders;
use crate::{Status, WrongUsage, interrupt, output};
use anyhow::{Result, bail};
use clap::Args;
use sam_lst::training::Shard;
use sam_lst::{Training, TrainingFolders};
use serde_json::json;

const EXAMPLES: &str = "\
Any number of processes may share the cache folder: without --shard, each takes slices that no other
has. Then train with the same data, settings and cache, on one machine.

Examples:
  sam-lst embed --data Synapse --sam sam_vit_b_01ec64.pth --device cuda:0
  sam-lst embed --preset accurate --data mri --sam lite_medsam.pth --cache /shared/cache --shard 0/8";

/// Precompute the embeddings that a training run needs, and nothing else
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The method that will be trained, as in `sam-lst train` [default: ladder]
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    method: Option<MethodName>,
    /// The preset of the training [default: the method's]
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    preset: Option<Preset>,
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
    let Arguments { method, preset, data, settings, .. } = arguments;
    let training =
        train::Arguments::for_embeddings(*method, *preset, data.clone(), settings.clone());
    let method = training.method();
    if !method.has_cached_blocks() {
        bail!(WrongUsage(format!(
            "the method {} keeps no embeddings, so there is nothing to precompute",
            method.name()
        )));
    }
    of_method!(method, M => run_method::<M>(arguments, &training))
}

fn run_method<M: Method>(arguments: &Arguments, training: &train::Arguments) -> Result<Status> {
    interrupt::set_resumable();
    training.check_preset()?;
    M::check(training)?;
    arguments.data.check_inputs()?;
    // A precomputation has no run folder.
    let cache = &arguments.settings.cache;
    let folders = TrainingFolders { run: cache.clone(), cache: cache.clone() };
    check_folders::<NetworkConfigOf<M>>(&folders, &arguments.data.inputs())?;
    let devices = open_devices(&arguments.settings.device)?;
    let dataset = arguments.data.open()?;
    let config = train::config::<M>(training, &dataset)?;
    let model = M::load(training, &config, &devices[0])?;
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

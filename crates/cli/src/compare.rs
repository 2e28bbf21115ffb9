//! `sam-lst compare`.

use crate::arguments::at_least_one;
use crate::interrupt::EXIT_STATUS;
use crate::method::MethodName;
use crate::progress::{Progress, Spinner, note};
use crate::settings::{DataArguments, SettingsArguments, value_name};
use crate::staging::Staging;
use crate::train::Preset;
use crate::{Cli, Command, Status, WrongUsage, interrupt, output, report, train};
use anyhow::{Context, Error, Result, bail, ensure};
use clap::{Args, Parser, ValueEnum};
use sam_lst::Dataset;
use sam_lst::datasets::files_sha256;
use sam_lst::training::Comparison;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

const EXAMPLES: &str = "\
Each method and seed is a run of `sam-lst train` in a folder of its own, with the settings of the
method's preset and those given here. The tables name what a method costs and how much its DSC is
above the first method's. Finished runs are kept: to add methods or seeds, run the command again
with the longer list; the tables contain the listed methods only.

Examples:
  sam-lst compare --methods ladder,unet --data Synapse --sam lite_medsam.pth --epochs 20
  sam-lst compare --methods ladder,lora,unet --minutes 30 --data mri --sam sam_vit_b_01ec64.pth";

/// Train several methods on the same data, and compare their accuracy and cost
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// Methods, separated by commas: those of `sam-lst train --help`
    #[arg(long, value_name = "LIST", value_enum, value_delimiter = ',', required = true)]
    #[arg(hide_possible_values = true)]
    methods: Vec<MethodName>,
    /// Runs of each method, with seeds from --seed on
    #[arg(long, value_name = "N", value_parser = at_least_one, default_value_t = 3)]
    seeds: usize,
    /// Minutes of training steps for each run, instead of equal epochs
    #[arg(long, value_name = "MINUTES", value_parser = minutes, conflicts_with = "epochs")]
    minutes: Option<f64>,
    /// Preset of `sam-lst train` for all methods [default: their own]
    #[arg(long, value_name = "NAME", value_enum, hide_possible_values = true)]
    preset: Option<Preset>,
    /// Settings of the method M, such as lora=lora.toml; may be repeated
    #[arg(long, value_name = "M=FILE", value_parser = method_file)]
    method_config: Vec<(MethodName, PathBuf)>,
    #[command(flatten)]
    data: DataArguments,
    /// ImageNet weights for the method M, such as ladder=resnet18.pth; repeatable
    #[arg(long, value_name = "M=FILE", value_parser = method_file)]
    pretrained: Vec<(MethodName, PathBuf)>,
    #[command(flatten)]
    settings: SettingsArguments,
    /// Folder of the comparison [default: runs/compare-, dataset's name]
    #[arg(long, value_name = "DIR")]
    run: Option<PathBuf>,
    /// Print the result as JSON
    #[arg(long)]
    json: bool,
}

/// A run of one method from one seed.
struct PlannedRun {
    method: MethodName,
    seed: u64,
    folder: PathBuf,
    /// Arguments of the program.
    arguments: Vec<OsString>,
    /// The settings that the run's `config.toml` must have.
    config: String,
}

/// The dataset's description, which the runs read.
const DATASET: &str = "dataset.toml";
/// What all runs share, to recognise other data, checkpoints and devices.
const SHARED: &str = "shared.json";

/// What a key of the shared file means.
fn difference(key: &str) -> &'static str {
    match key {
        "description" => "another description of the dataset",
        "cases" => "other cases, or other files of them",
        "devices" => "other devices, whose times cannot be compared",
        "sam" => "another --sam",
        _ => "another --pretrained of a method, or none",
    }
}

pub fn run(arguments: &Arguments) -> Result<Status> {
    interrupt::set_resumable();
    arguments.check()?;
    arguments.data.check_inputs()?;
    for (_, file) in &arguments.pretrained {
        output::check_checkpoint(file)?;
    }
    let dataset = arguments.data.open()?;
    let folder =
        arguments.run.clone().unwrap_or_else(|| train::default_run("compare-", &dataset, ""));
    for input in arguments.inputs() {
        output::check_not_input(&folder, &[input])?;
    }
    output::check_writable(&folder)?;
    // All arguments are checked before anything is written.
    for &method in &arguments.methods {
        let epochs = arguments.minutes.map(|_| 1);
        let run = arguments.plan(method, 0, epochs, &folder, "check", &dataset)?;
        if arguments.pretrained_of(method).is_some() {
            train::check_pretrained(&parse(&run.arguments)?, &dataset)?;
        }
    }
    arguments.check_shared(&folder, &dataset)?;
    let epochs = match arguments.minutes {
        Some(minutes) => match arguments.epochs_within(minutes, &folder, &dataset)? {
            Some(epochs) => epochs,
            None => return Ok(Status::Stopped),
        },
        None => vec![None; arguments.methods.len()],
    };
    let mut runs = Vec::new();
    for seed in arguments.seeds() {
        for (&method, &epochs) in arguments.methods.iter().zip(&epochs) {
            let name = format!("{}-{seed}", method.name());
            runs.push(arguments.plan(method, seed, epochs, &folder, &name, &dataset)?);
        }
    }
    if arguments.minutes.is_none() {
        warn_of_other_training(&runs);
    }
    for (index, run) in runs.iter().enumerate() {
        if !run.is_complete()? {
            let (method, seed) = (run.method.name(), run.seed);
            note(&format!("\nrun {} of {}: {method}, seed {seed}", index + 1, runs.len()));
            if train_in_child(&run.arguments, &run.name())? == Status::Stopped {
                return Ok(Status::Stopped);
            }
        }
    }
    let mut comparison = Comparison::new();
    // By method, so that tables have the order in which the methods were given.
    for method in &arguments.methods {
        for run in runs.iter().filter(|run| run.method == *method) {
            comparison.add(method.name(), run.seed, &run.folder)?;
        }
    }
    arguments.write(&comparison, &folder)?;
    let others = other_runs(&folder, &runs)?;
    if !others.is_empty() {
        note(&format!(
            "the tables leave out finished runs in {} that are not listed: {}",
            folder.display(),
            others.join(", ")
        ));
    }
    Ok(Status::Done)
}

/// Names of the finished runs in the folder that are not among `runs`.
fn other_runs(folder: &Path, runs: &[PlannedRun]) -> Result<Vec<String>> {
    let error = || format!("cannot read {}", folder.display());
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).with_context(error)? {
        let path = entry.with_context(error)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let is_run = name.rsplit_once('-').is_some_and(|(method, seed)| {
            MethodName::from_str(method, false).is_ok() && seed.parse::<u64>().is_ok()
        });
        if is_run && path.join(SUMMARY).exists() && runs.iter().all(|run| run.folder != path) {
            names.push(name);
        }
    }
    names.sort();
    Ok(names)
}

impl Arguments {
    fn check(&self) -> Result<()> {
        for (index, method) in self.methods.iter().enumerate() {
            if self.methods[..index].contains(method) {
                bail!(WrongUsage(format!("the method {} is listed twice", method.name())));
            }
        }
        let named = [("--method-config", &self.method_config), ("--pretrained", &self.pretrained)];
        for (option, files) in named {
            for (method, _) in files {
                if !self.methods.contains(method) {
                    let name = method.name();
                    bail!(WrongUsage(format!("{option} names {name}, which --methods lacks")));
                }
            }
        }
        for (index, (method, _)) in self.pretrained.iter().enumerate() {
            if self.pretrained[..index].iter().any(|(before, _)| before == method) {
                bail!(WrongUsage(format!("--pretrained names {} twice", method.name())));
            }
        }
        Ok(())
    }

    /// What no output may replace.
    fn inputs(&self) -> Vec<&Path> {
        let mut inputs = self.data.inputs();
        inputs.extend(self.pretrained.iter().map(|(_, file)| file.as_path()));
        inputs
    }

    fn seeds(&self) -> impl Iterator<Item = u64> + use<> {
        let first = self.settings.seed.unwrap_or(0);
        (0..self.seeds as u64).map(move |index| first + index)
    }

    /// Checks that earlier runs in the folder are of the same data, checkpoints and devices, or
    /// notes these for later.
    fn check_shared(&self, folder: &Path, dataset: &Dataset) -> Result<()> {
        let file = folder.join(SHARED);
        let before: Option<Value> = match std::fs::read(&file) {
            Ok(text) => {
                let invalid = || format!("cannot read {}: it is damaged", file.display());
                Some(serde_json::from_slice(&text).with_context(invalid)?)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        if before.is_none() {
            let others = ["config.toml", DATASET, "comparison.md", "comparison.csv"];
            if let Some(found) = others.into_iter().find(|name| folder.join(name).exists()) {
                bail!(
                    "cannot write to {}: it contains {found}, but no comparison; choose another \
                     --run, or move {found} away",
                    folder.display()
                );
            }
        }
        let mut shared = self.shared(dataset)?;
        if let Some(Value::Object(before)) = before {
            for (name, value) in before {
                // A checkpoint that no method used before has no value.
                let now = shared.entry(name.clone()).or_insert_with(|| value.clone());
                ensure!(
                    *now == value,
                    "cannot add to the comparison in {}: it was begun with {}; use the same again, \
                     or choose another --run",
                    folder.display(),
                    difference(&name)
                );
            }
        }
        let shared = serde_json::to_string_pretty(&shared).expect("plain data");
        let description = dataset.description().to_toml();
        write_files(folder, &[(SHARED, shared), (DATASET, description)])
    }

    /// What all runs of a comparison share, as far as these methods use it.
    fn shared(&self, dataset: &Dataset) -> Result<Map<String, Value>> {
        let hash = |file: &Path| -> Result<Value> {
            let _spinner = Spinner::loading(file);
            Ok(sha256(file)?.into())
        };
        let mut cases = Vec::new();
        let mut progress = Progress::new();
        for (done, case) in dataset.all_cases().iter().enumerate() {
            progress.count("checking", done, dataset.all_cases().len(), "cases");
            let split = case.split.to_string();
            cases.push(json!([case.name, split, case.files.sha256()?]));
        }
        drop(progress);
        let mut shared = Map::new();
        shared.insert("description".to_owned(), dataset.description().to_toml().into());
        shared.insert("cases".to_owned(), cases.into());
        shared.insert("devices".to_owned(), self.settings.device.join(",").into());
        if self.methods.iter().any(|method| method.uses_sam())
            && let Some(sam) = &self.data.sam
        {
            shared.insert("sam".to_owned(), hash(sam)?);
        }
        for &method in self.methods.iter().filter(|method| method.takes_pretrained()) {
            let weights = self.pretrained_of(method).map_or(Ok("random".into()), hash)?;
            shared.insert(format!("pretrained {}", method.name()), weights);
        }
        Ok(shared)
    }

    fn pretrained_of(&self, method: MethodName) -> Option<&Path> {
        let mut files = self.pretrained.iter();
        files.find(|(of, _)| *of == method).map(|(_, file)| file.as_path())
    }

    /// The epochs of each method whose steps take so many minutes, by the time of one epoch. `None`
    /// if the user stopped it.
    fn epochs_within(
        &self,
        minutes: f64,
        folder: &Path,
        dataset: &Dataset,
    ) -> Result<Option<Vec<Option<u64>>>> {
        let mut epochs = Vec::new();
        let plan = |&method: &MethodName| {
            // Other settings have other times.
            let config = self.plan(method, 0, Some(1), folder, "check", dataset)?.config;
            let hash = hexadecimal(&Sha256::digest(&config));
            let name = format!("timing/{}-{}", method.name(), &hash[..8]);
            let mut run = self.plan(method, 0, Some(1), folder, &name, dataset)?;
            run.arguments.push("--no-scores".into());
            Ok(run)
        };
        let runs = self.methods.iter().map(plan).collect::<Result<Vec<_>>>()?;
        for run in &runs {
            let method = run.method.name();
            if run.summary()?.is_none() {
                note(&format!("\ntiming an epoch of {method}"));
                if train_in_child(&run.arguments, &run.name())? == Status::Stopped {
                    return Ok(None);
                }
            }
            let summary = run.summary()?;
            let seconds = summary.as_ref().and_then(|summary| summary["step_seconds"].as_f64());
            let Some(seconds) = seconds.filter(|&seconds| seconds > 0.0) else {
                bail!("{} names no time of its steps", run.folder.join(SUMMARY).display());
            };
            let fitting = (60.0 * minutes / seconds).floor().max(1.0) as u64;
            let longer = if seconds > 60.0 * minutes { ", which takes longer" } else { "" };
            let unit = if fitting == 1 { "epoch" } else { "epochs" };
            note(&format!("{method}: {seconds:.1} s for an epoch, so {fitting} {unit}{longer}"));
            epochs.push(Some(fitting));
        }
        Ok(Some(epochs))
    }

    /// A run, with its settings checked.
    fn plan(
        &self,
        method: MethodName,
        seed: u64,
        epochs: Option<u64>,
        folder: &Path,
        name: &str,
        dataset: &Dataset,
    ) -> Result<PlannedRun> {
        let run = folder.join(name);
        let mut arguments: Vec<OsString> =
            ["train", "--plain", "--method"].map(OsString::from).into();
        arguments.push(method.name().into());
        let mut option = |name: &str, value: &dyn AsRef<std::ffi::OsStr>| {
            arguments.extend([name.into(), value.as_ref().to_owned()]);
        };
        option("--run", &run);
        option("--dataset", &folder.join(DATASET));
        if let Some(file) = self.pretrained_of(method) {
            option("--pretrained", &file);
        }
        self.data.pass_on(method.uses_sam(), &mut option);
        self.preset.iter().for_each(|preset| option("--preset", &value_name(preset)));
        let of_method = self.method_config.iter().filter(|(of, _)| *of == method);
        let of_method: Vec<&Path> = of_method.map(|(_, file)| file.as_path()).collect();
        self.settings.pass_on(method, &of_method, &mut option);
        option("--seed", &seed.to_string());
        if let Some(epochs) = epochs {
            option("--epochs", &epochs.to_string());
        }
        let check = || train::config_toml(&parse(&arguments)?, dataset);
        let config = check().with_context(|| format!("cannot train {}", method.name()))?;
        Ok(PlannedRun { method, seed, folder: run, arguments, config })
    }

    /// Writes the tables and prints them.
    fn write(&self, comparison: &Comparison, folder: &Path) -> Result<()> {
        let runs = serde_json::to_value(comparison).expect("plain data");
        let text = serde_json::to_string_pretty(&runs).expect("plain data");
        let files = [
            ("comparison.md", comparison.to_markdown()),
            ("comparison.csv", comparison.to_csv()),
            ("comparison.json", text),
            ("comparison.svg", comparison.to_svg()),
            ("comparison.html", comparison.to_html()),
        ];
        write_files(folder, &files)?;
        if self.json {
            return output::print_json(&json!({
                "folder": folder.display().to_string(),
                "runs": runs["runs"],
            }));
        }
        let mut text = format!("{comparison}\n\n");
        report::file_line(&mut text, "all in one page", &folder.join("comparison.html"));
        report::file_line(&mut text, "tables", &folder.join("comparison.md"));
        report::file_line(&mut text, "each run", &folder.join("comparison.csv"));
        report::file_line(&mut text, "DSC and time", &folder.join("comparison.svg"));
        output::print(&text)
    }
}

const SUMMARY: &str = "run_summary.json";

impl PlannedRun {
    fn name(&self) -> String {
        format!("{}, seed {}", self.method.name(), self.seed)
    }

    /// The summary of the run, if it has ended.
    fn summary(&self) -> Result<Option<Value>> {
        let file = self.folder.join(SUMMARY);
        let text = match std::fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", file.display()));
            }
        };
        let summary = serde_json::from_slice(&text)
            .with_context(|| format!("cannot read {}: no summary of a run", file.display()))?;
        Ok(Some(summary))
    }

    /// Whether the run has ended and was scored. Planning it has checked that the folder has its
    /// settings, but for those that do not affect the weights.
    fn is_complete(&self) -> Result<bool> {
        let has_settings = self.folder.join("config.toml").exists();
        let summary = self.summary()?;
        Ok(has_settings && summary.is_some_and(|summary| summary["scores"].is_array()))
    }
}

/// Settings of training that the tables take as equal, with what makes them equal.
const EQUAL: [(&str, &str); 3] =
    [("epochs", "--epochs"), ("batch_size", "--batch-size"), ("augmentation", "--preset")];

/// Warns if the methods differ in how they are trained.
fn warn_of_other_training(runs: &[PlannedRun]) {
    for (setting, option) in EQUAL {
        let value = |run: &PlannedRun| {
            let line = run.config.lines().find_map(|line| {
                line.strip_prefix(setting).and_then(|line| line.strip_prefix(" = "))
            });
            line.unwrap_or_default().trim_matches('"').to_owned()
        };
        let mut methods: Vec<String> = Vec::new();
        for run in runs {
            let text = format!("{} {}", run.method.name(), value(run));
            if !methods.contains(&text) {
                methods.push(text);
            }
        }
        let first = runs.first().map(value);
        if runs.iter().any(|run| Some(value(run)) != first) {
            note(&format!(
                "warning: the methods train with different `{setting}`: {}; {option} makes them equal",
                methods.join(", ")
            ));
        }
    }
}

/// Trains in a process of its own, so that its peak memory is that of one run.
fn train_in_child(arguments: &[OsString], name: &str) -> Result<Status> {
    let program = std::env::current_exe().context("cannot find this program")?;
    let mut command = std::process::Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    // Ctrl-C in a terminal reaches all processes of a group: this one passes it on, once.
    #[cfg(unix)]
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    interrupt::set_finishes_child(true);
    let mut child = command.spawn().context("cannot start a training")?;
    let status = wait(&mut child);
    interrupt::set_finishes_child(false);
    let status = status.context("cannot wait for a training")?;
    if status.code() == Some(EXIT_STATUS.into()) || interrupt::stop_requested() {
        return Ok(Status::Stopped);
    }
    ensure!(
        status.success(),
        "the training of {name} failed, as the lines before say; finished runs are kept, and the \
         same command continues"
    );
    Ok(Status::Done)
}

/// Waits for a process to end and passes each signal on to it: the first lets it end its step, the
/// second ends it at once.
fn wait(child: &mut Child) -> std::io::Result<std::process::ExitStatus> {
    let mut passed_on = interrupt::signals();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(status);
        }
        if interrupt::signals() > passed_on {
            passed_on += 1;
            #[cfg(unix)]
            {
                let process = rustix::process::Pid::from_child(child);
                // It may have ended meanwhile.
                let _ = rustix::process::kill_process(process, rustix::process::Signal::INT);
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Writes files into the folder, where they replace files of the same names.
fn write_files(folder: &Path, files: &[(&str, String)]) -> Result<()> {
    let staging = Staging::new(folder)?;
    for (name, text) in files {
        std::fs::write(staging.file(Path::new(name)), text)
            .with_context(|| format!("cannot write {}", folder.join(name).display()))?;
    }
    let _complete = interrupt::hold();
    staging.publish()
}

/// The SHA-256 of a file, in hexadecimal digits.
fn sha256(file: &Path) -> Result<String> {
    files_sha256([file]).map_err(|(file, error)| {
        Error::new(error).context(format!("cannot read {}", file.display()))
    })
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Parses a positive number of minutes.
fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(minutes) if minutes > 0.0 && minutes < f64::INFINITY => Ok(minutes),
        _ => Err("expected a positive number of minutes".to_owned()),
    }
}

/// Parses the arguments of `sam-lst train`.
fn parse(arguments: &[OsString]) -> Result<train::Arguments> {
    let program = std::iter::once(OsString::from("sam-lst"));
    let parsed = Cli::try_parse_from(program.chain(arguments.iter().cloned()))?;
    let Command::Train(parsed) = parsed.command else { unreachable!("as `plan` writes them") };
    Ok(*parsed)
}

/// Parses a method and the file of its settings.
fn method_file(text: &str) -> Result<(MethodName, PathBuf), String> {
    let (method, file) =
        text.split_once('=').ok_or("expected a method, = and a file, such as unet=FILE")?;
    let method = MethodName::from_str(method, false).map_err(|_| {
        format!("unknown method `{method}`; `sam-lst train --help` lists the methods")
    })?;
    Ok((method, file.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_checked() {
        assert_eq!(minutes("0.5"), Ok(0.5));
        for invalid in ["0", "-1", "inf", "NaN", "an hour"] {
            assert!(minutes(invalid).is_err(), "{invalid}");
        }
        let lora = method_file("late-lora=a=b.toml");
        assert_eq!(lora, Ok((MethodName::LateLora, "a=b.toml".into())));
        for invalid in ["lora", "lore=a.toml"] {
            assert!(method_file(invalid).is_err(), "{invalid}");
        }
    }

    #[test]
    fn a_file_is_hashed() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("abc");
        std::fs::write(&file, "abc").expect("writes");
        // FIPS 180-2, appendix B.1.
        let expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(sha256(&file).expect("reads"), expected);
    }
}

//! The command-line program `sam-lst`: fine-tunes SAM for medical image segmentation.

mod arguments;
mod compare;
mod completions;
mod convert;
mod demo;
mod devices;
mod display;
mod embed;
mod evaluate;
mod foundation;
mod inspect;
mod interrupt;
mod method;
mod model;
mod output;
mod overlays;
mod prepare;
mod progress;
mod prompt;
mod report;
mod segment;
mod settings;
mod staging;
mod terminal;
mod train;
mod training;
mod warnings;
mod weights;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const EXAMPLES: &str = "\
`sam-lst COMMAND --help` describes a command. Results go to standard output, progress and messages
to standard error. Exit status: 0 done, 1 failed, 2 wrong usage, 130 stopped by Ctrl-C.

Examples:
  sam-lst demo
  sam-lst train --data Synapse --sam sam_vit_b_01ec64.pth --pretrained resnet18-f37072fd.pth
  sam-lst segment ct.nii.gz organs.nii.gz --sam sam_vit_b_01ec64.pth \\
      --network runs/synapse/ladder.safetensors
  sam-lst evaluate --pred predictions --label labels";

/// Fine-tunes the Segment Anything Model for medical images by ladder side-tuning
#[derive(Parser)]
#[command(name = "sam-lst", version, max_term_width = 100, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Demo(demo::Arguments),
    Inspect(inspect::Arguments),
    Train(Box<train::Arguments>),
    Compare(Box<compare::Arguments>),
    Embed(Box<embed::Arguments>),
    Segment(Box<segment::Arguments>),
    Evaluate(Box<evaluate::Arguments>),
    Prompt(Box<prompt::Arguments>),
    Weights(weights::Arguments),
    Convert(convert::Arguments),
    Prepare(prepare::Arguments),
    Devices(devices::Arguments),
    Completions(completions::Arguments),
}

/// How a command ended without an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Done,
    /// The user requested a stop.
    Stopped,
}

/// An invalid argument; the program exits with status 2.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct WrongUsage(String);

/// Restarts the program so that its allocator keeps memory that was freed, which the next step needs
/// again. Returned to the system, it has to be cleared first: 5 to 14 % of a step's time where the
/// encoder is trained. mimalloc reads its options from the environment, before `main`.
#[cfg(unix)]
fn keep_freed_memory() {
    use std::os::unix::process::CommandExt;
    const OPTION: &str = "MIMALLOC_PURGE_DELAY";
    let mut arguments = std::env::args_os();
    let (None, Some(name), Ok(program)) =
        (std::env::var_os(OPTION), arguments.next(), std::env::current_exe())
    else {
        return;
    };
    // Of a program that another one loads, such as the system's linker, the file is that other one.
    if program.file_name() != std::path::Path::new(&name).file_name() {
        return;
    }
    // Returns only if it fails. Then the program is slower, nothing else.
    let _ = std::process::Command::new(program).arg0(name).args(arguments).env(OPTION, "-1").exec();
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    #[cfg(unix)]
    if matches!(cli.command, Command::Train(_) | Command::Demo(_)) {
        keep_freed_memory();
    }
    sam_lst::compute_on_current_thread();
    warnings::show();
    let result = interrupt::install().and_then(|()| cli.command.run());
    interrupt::wait_if_exiting();
    match result {
        Ok(Status::Done) => ExitCode::SUCCESS,
        Ok(Status::Stopped) => ExitCode::from(interrupt::EXIT_STATUS),
        Err(error) => {
            progress::note(&format!("error: {}", one_line(&error)));
            if error.is::<WrongUsage>() { ExitCode::from(2) } else { ExitCode::FAILURE }
        }
    }
}

impl Command {
    fn run(self) -> Result<Status> {
        match self {
            Self::Demo(arguments) => demo::run(&arguments),
            Self::Inspect(arguments) => inspect::run(&arguments),
            Self::Train(arguments) => train::run(&arguments),
            Self::Compare(arguments) => compare::run(&arguments),
            Self::Embed(arguments) => embed::run(&arguments),
            Self::Segment(arguments) => segment::run(&arguments),
            Self::Evaluate(arguments) => evaluate::run(&arguments),
            Self::Prompt(arguments) => prompt::run(&arguments),
            Self::Weights(arguments) => weights::run(&arguments),
            Self::Convert(arguments) => convert::run(&arguments),
            Self::Prepare(arguments) => prepare::run(&arguments),
            Self::Devices(arguments) => devices::run(arguments),
            Self::Completions(arguments) => completions::run(arguments),
        }
    }
}

/// The error and its causes. A cause that the message before it already contains is left out, and
/// so are the quoted lines of a TOML error.
fn one_line(error: &anyhow::Error) -> String {
    let mut whole = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        if whole.is_empty() {
            whole = cause;
        } else if !whole.contains(&cause) {
            whole = format!("{whole}: {cause}");
        }
    }
    let is_quoted = |line: &str| {
        line.trim_start()
            .trim_start_matches(|c: char| c.is_ascii_digit())
            .trim_start()
            .starts_with('|')
    };
    let lines = whole.lines().filter(|line| !is_quoted(line)).map(str::trim);
    lines.filter(|line| !line.is_empty()).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn errors_print_as_one_line_without_repetition() {
        let io = std::io::Error::other("disk full");
        let error = Err::<(), _>(io).context("cannot write a.nii: disk full").expect_err("failed");
        assert_eq!(one_line(&error), "cannot write a.nii: disk full");
        let error =
            anyhow!("TOML parse error at line 1, column 5\n  |\n1 | a = \n  |     ^\nno value")
                .context("cannot read a.toml");
        assert_eq!(
            one_line(&error),
            "cannot read a.toml: TOML parse error at line 1, column 5: no value"
        );
    }
}

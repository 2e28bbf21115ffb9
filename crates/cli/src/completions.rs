//! `sam-lst completions`.

use crate::{Cli, Status, output};
use anyhow::Result;
use clap::{Args, CommandFactory};
use clap_complete::Shell;

const EXAMPLES: &str = "\
Examples:
  sam-lst completions bash > ~/.local/share/bash-completion/completions/sam-lst
  sam-lst completions zsh > ~/.zfunc/_sam-lst
  sam-lst completions fish > ~/.config/fish/completions/sam-lst.fish";

/// Print a shell's completion script
#[derive(Args)]
#[command(after_help = EXAMPLES)]
pub struct Arguments {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub fn run(arguments: Arguments) -> Result<Status> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Cli::command(), "sam-lst", &mut script);
    output::print(&String::from_utf8_lossy(&script))?;
    Ok(Status::Done)
}

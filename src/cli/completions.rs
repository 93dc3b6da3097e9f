//! `assay completions`: shell completions and the man page, made from the same definitions as the parser.

use clap::{Args, CommandFactory, ValueEnum};

use super::print;
use crate::error::{Error, Exit, Result};

/// Print shell completions, or the man page
#[derive(Debug, Args)]
#[command(hide = true)]
pub struct CompletionsArgs {
    #[arg(value_enum)]
    what: What,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum What {
    Bash,
    Zsh,
    Fish,
    Man,
}

pub fn run(args: &CompletionsArgs) -> Result<Exit> {
    let mut command = super::Cli::command();
    let mut out = Vec::new();
    let shell = match args.what {
        What::Bash => clap_complete::Shell::Bash,
        What::Zsh => clap_complete::Shell::Zsh,
        What::Fish => clap_complete::Shell::Fish,
        What::Man => {
            clap_mangen::Man::new(command).render(&mut out).map_err(|e| Error::io("print", "standard output", &e))?;
            print(&String::from_utf8_lossy(&out))?;
            return Ok(Exit::Ok);
        }
    };
    clap_complete::generate(shell, &mut command, "assay", &mut out);
    print(&String::from_utf8_lossy(&out))?;
    Ok(Exit::Ok)
}

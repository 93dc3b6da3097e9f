//! `assay init`.

use clap::{Args, ValueEnum};
use zeroize::Zeroizing;

use super::{Context, print};
use crate::backupdir::{BackupDir, Config};
use crate::error::{Error, Exit, Result};
use crate::text::shown;

/// Make a new backup dir in an absent or empty directory
///
/// Makes a random 256-bit key. Without a copy of key.conf (and its passphrase, if any) nobody can read the
/// backup, so put one in a safe place. config.toml and inex.conf may be there already. So may a symlink index.db,
/// for a backup dir on a network file system: the index is made where it leads to, on a local disk.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Protect the key by a passphrase: ask for it on the terminal, or take it from ASSAY_PASSPHRASE
    #[arg(long, value_name = "HOW")]
    passphrase: Option<From>,
    /// Average block size, a power of two from 4KiB to 1MiB; smaller is faster for random reads
    #[arg(long, value_name = "SIZE", value_parser = crate::backupdir::config::parse_size)]
    block_size: Option<u64>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum From {
    Ask,
    Env,
}

pub fn run(context: &Context, args: &InitArgs) -> Result<Exit> {
    let passphrase = match args.passphrase {
        None => None,
        Some(From::Env) => match std::env::var("ASSAY_PASSPHRASE") {
            Ok(text) if !text.is_empty() => Some(Zeroizing::new(text)),
            _ => return Err(Error::PassphraseMissing { path: context.dir.join("key.conf") }),
        },
        Some(From::Ask) => Some(ask_twice(context)?),
    };
    let mut config = Config::default();
    if let Some(size) = args.block_size {
        config.block_size = size;
        Config::parse(&config.to_text()).map_err(|what| Error::Usage(format!("--block-size: {what}")))?;
    }
    let passphrase_text = passphrase.as_ref().map(|text| text.as_str());
    BackupDir::init_as(&context.dir, passphrase_text, &config, context.sharing)?;
    if !context.quiet {
        let dir = shown(&context.dir);
        print(&format!(
            "Made a backup dir in {dir}\n\n\
             *** KEEP A COPY OF {dir}/key.conf IN ANOTHER PLACE, NOW. ***\n\
             Without it{} nothing in this backup can ever be read again: not by you, not by anyone.\n",
            if passphrase.is_some() { " and its passphrase" } else { "" }
        ))?;
    }
    Ok(Exit::Ok)
}

fn ask_twice(context: &Context) -> Result<Zeroizing<String>> {
    let missing = || Error::PassphraseMissing { path: context.dir.join("key.conf") };
    let ask = |prompt| -> Result<Zeroizing<String>> {
        let line = crate::os::term::read_hidden_line(prompt).map_err(|_| missing())?;
        let text = std::str::from_utf8(&line).map_err(|_| Error::Usage("the passphrase is not UTF-8".into()))?;
        Ok(Zeroizing::new(text.to_string()))
    };
    let first = ask("New passphrase: ")?;
    if first.is_empty() {
        return Err(missing());
    }
    if *first != *ask("Once more: ")? {
        return Err(Error::Usage("the two passphrases differ".into()));
    }
    Ok(first)
}

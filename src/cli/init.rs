//! `assay init`.

use clap::Args;

use super::{Context, print};
use crate::backupdir::{BackupDir, Config};
use crate::error::{Error, Exit, Result};
use crate::own::OwnDir;
use crate::text::shown;

/// Make a new backup dir in an absent or empty directory
///
/// Makes a random 256-bit key. Without a copy of key.conf (and its passphrase, if any) nobody can read the
/// backup, so put one in a safe place. config.toml and inex.conf may be there already. So may a symlink index.db,
/// for a backup dir on a network file system: the index is made where it leads to, on a local disk.
#[derive(Debug, Args)]
pub struct InitArgs {
    /// Where to make it, instead of the directory that -c names
    #[arg(value_name = "DIR")]
    place: Option<std::path::PathBuf>,
    /// Average block size, a power of two from 4KiB to 1MiB; smaller is faster for random reads
    #[arg(long, value_name = "SIZE", value_parser = crate::backupdir::config::parse_size)]
    block_size: Option<u64>,
}

pub fn run(context: &Context, args: &InitArgs) -> Result<Exit> {
    let dir = args.place.as_ref().unwrap_or(&context.dir);
    let key_file = dir.join("key.conf");
    let passphrase = context.passphrase.of_new(&key_file)?;
    let mut config = Config::default();
    if let Some(size) = args.block_size {
        config.block_size = size;
        Config::parse(&config.to_text()).map_err(|what| Error::Usage(format!("--block-size: {what}")))?;
    }
    let passphrase_text = passphrase.as_ref().map(|text| text.as_str());
    BackupDir::init_as(dir, passphrase_text, &config, context.sharing)?;
    if let Ok(own) = OwnDir::open(dir, context.sharing) {
        context.begin_log(&own);
    }
    if !context.quiet {
        let dir = shown(dir);
        let named = args.place.is_some();
        let how = if named { format!(" (say `-c {dir}` to every command, or set ASSAY_DIR)") } else { String::new() };
        print(&format!(
            "Made a backup dir in {dir}{how}\n\n\
             *** KEEP A COPY OF {dir}/key.conf IN ANOTHER PLACE, NOW. ***\n\
             Without it{} nothing in this backup can ever be read again: not by you, not by anyone.\n",
            if passphrase.is_some() { " and its passphrase" } else { "" }
        ))?;
    }
    Ok(Exit::Ok)
}

//! Where a passphrase comes from: the terminal, the environment, a file, a command, or systemd.
//!
//! Invariants: it is asked for only when a key needs it; it stays out of the environment of this process and its
//! children, and of messages; a source that was named and can't give one is an error, and no other is tried.

use std::cell::RefCell;
use std::io::{IsTerminal, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use zeroize::Zeroizing;

use crate::backupdir::BackupDir;
use crate::error::{Error, Result, io_text};
use crate::os::{file, process, term};
use crate::own::Sharing;
use crate::text::shown;

const VARIABLE: &str = "ASSAY_PASSPHRASE";
/// Longest passphrase, bytes.
const MAX_BYTES: u64 = 4096;

type Secret = Zeroizing<String>;

/// What `--passphrase` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Ask,
    Env,
    File(PathBuf),
    Command(String),
    /// A credential of a systemd unit.
    Credential(String),
}

/// The value of `--passphrase`.
pub fn parse_source(text: &str) -> Result<Source, String> {
    match text.split_once(':') {
        None if text == "ask" => Ok(Source::Ask),
        None if text == "env" => Ok(Source::Env),
        Some(("file", path)) if !path.is_empty() => Ok(Source::File(path.into())),
        Some(("cmd", command)) if !command.is_empty() => Ok(Source::Command(command.into())),
        Some(("cred", name)) if !name.is_empty() && name != ".." && !name.contains('/') => {
            Ok(Source::Credential(name.into()))
        }
        _ => Err("it is ask, env, file:PATH, cmd:COMMAND or cred:NAME".into()),
    }
}

/// Takes `ASSAY_PASSPHRASE` out of the environment.
pub fn take_variable() -> Option<Zeroizing<Vec<u8>>> {
    process::take_variable(VARIABLE)
}

/// The passphrase of a run, before it is known whether one is needed.
pub struct Passphrase {
    source: Option<Source>,
    variable: Option<Zeroizing<Vec<u8>>>,
}

impl Passphrase {
    pub fn new(source: Option<Source>, variable: Option<Zeroizing<Vec<u8>>>) -> Passphrase {
        // An empty one is as none: settings may name it and leave it empty.
        Passphrase { source, variable: variable.filter(|value| !value.is_empty()) }
    }

    /// The user expects that the key needs one.
    pub fn is_given(&self) -> bool {
        self.variable.is_some() || self.source.as_ref().is_some_and(|source| *source != Source::Ask)
    }

    /// Opens a backup dir, with a passphrase if its key needs one.
    pub fn open(&self, dir: &Path, sharing: Sharing) -> Result<BackupDir> {
        let trouble = RefCell::new(None);
        let ask = |key_file: &Path| {
            self.of(key_file).unwrap_or_else(|error| {
                trouble.replace(Some(error));
                None
            })
        };
        BackupDir::open_as(dir, &ask, sharing).map_err(|error| trouble.take().unwrap_or(error))
    }

    /// The passphrase for a new key; None if the key is to have none.
    pub fn of_new(&self, key_file: &Path) -> Result<Option<Secret>> {
        let secret = match &self.source {
            None => {
                if self.variable.is_some() {
                    log::warn!("{VARIABLE} is set, but the new key gets no passphrase: that takes `--passphrase env`");
                }
                return Ok(None);
            }
            Some(Source::Ask) => ask_twice()?,
            Some(_) => self.of(key_file)?,
        };
        // An empty one protects nothing.
        let missing = || Error::PassphraseMissing { path: key_file.to_path_buf() };
        secret.filter(|secret| !secret.is_empty()).map(Some).ok_or_else(missing)
    }

    /// None where nobody can answer.
    fn of(&self, key_file: &Path) -> Result<Option<Secret>> {
        let prompt = || format!("Passphrase of {}: ", shown(&key_file));
        match &self.source {
            None if self.variable.is_some() => self.of_variable(),
            None if !std::io::stdin().is_terminal() => Ok(None),
            None | Some(Source::Ask) => term::read_hidden_line(&prompt()).ok().map(secret).transpose(),
            Some(Source::Env) => self.of_variable(),
            Some(Source::File(path)) => from_file(path).map(Some),
            Some(Source::Command(command)) => from_command(command).map(Some),
            Some(Source::Credential(name)) => from_credential(name).map(Some),
        }
    }

    fn of_variable(&self) -> Result<Option<Secret>> {
        self.variable.clone().map(secret).transpose()
    }
}

fn failed(what: String) -> Error {
    Error::PassphraseSource { what }
}

fn secret(bytes: Zeroizing<Vec<u8>>) -> Result<Secret> {
    let text = std::str::from_utf8(&bytes).map_err(|_| failed("it is not UTF-8".into()))?;
    Ok(Zeroizing::new(text.to_string()))
}

fn unread(whose: &str, error: &std::io::Error) -> Error {
    failed(format!("{whose}: {}", io_text(error)))
}

/// Without the newline at its end.
fn read(source: impl Read, whose: &str) -> Result<Secret> {
    // Room for all of it: a buffer that grows leaves copies behind.
    let mut bytes = Zeroizing::new(Vec::with_capacity(MAX_BYTES as usize + 2));
    let read = source.take(MAX_BYTES + 1).read_to_end(&mut bytes);
    read.map_err(|error| unread(whose, &error))?;
    if bytes.len() as u64 > MAX_BYTES {
        return Err(failed(format!("{whose}: it is longer than {MAX_BYTES} bytes")));
    }
    if bytes.last() == Some(&b'\n') {
        bytes.pop();
    }
    secret(bytes)
}

fn from_file(path: &Path) -> Result<Secret> {
    let whose = shown(path).to_string();
    let regular = |meta: std::io::Result<std::fs::Metadata>| match meta {
        Ok(meta) if meta.is_file() => Ok(meta),
        Ok(_) => Err(failed(format!("{whose} is no regular file"))),
        Err(error) => Err(unread(&whose, &error)),
    };
    let file = file::open_named(path).map_err(|error| unread(&whose, &error))?;
    let meta = regular(file.metadata())?;
    if meta.mode() & 0o077 != 0 {
        log::warn!("{whose} holds a passphrase and is open to others: chmod 600 closes it");
    }
    read(file, &whose)
}

fn from_command(command: &str) -> Result<Secret> {
    let whose = "the command for the passphrase";
    let error = |error: std::io::Error| unread(whose, &error);
    let mut child = Command::new("/bin/sh").arg("-c").arg(command).stdout(Stdio::piped()).spawn().map_err(error)?;
    let secret = child.stdout.take().map(|out| read(out, whose));
    let status = child.wait().map_err(error)?;
    if !status.success() {
        return Err(failed(format!("{whose} ended with {status}")));
    }
    secret.unwrap_or_else(|| Err(failed(format!("{whose} printed nothing"))))
}

fn from_credential(name: &str) -> Result<Secret> {
    let Some(directory) = std::env::var_os("CREDENTIALS_DIRECTORY") else {
        return Err(failed("CREDENTIALS_DIRECTORY is not set: the unit has no LoadCredential=".into()));
    };
    let path = Path::new(&directory).join(name);
    let whose = shown(&path).to_string();
    read(file::open_named(&path).map_err(|error| unread(&whose, &error))?, &whose)
}

fn ask_twice() -> Result<Option<Secret>> {
    let ask = |prompt| term::read_hidden_line(prompt).ok().map(secret).transpose();
    let (first, second) = (ask("New passphrase: ")?, ask("Once more: ")?);
    if first != second {
        return Err(Error::Usage("the two passphrases differ".into()));
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_named_exactly() {
        assert_eq!(parse_source("file:/a:b"), Ok(Source::File("/a:b".into())));
        assert_eq!(parse_source("cmd:pass show x"), Ok(Source::Command("pass show x".into())));
        assert_eq!(parse_source("cred:assay"), Ok(Source::Credential("assay".into())));
        for nonsense in ["", "secret", "file:", "cmd:", "cred:", "cred:../x", "cred:..", "env:X", "Ask"] {
            assert!(parse_source(nonsense).is_err(), "{nonsense}");
        }
    }

    #[test]
    fn one_newline_at_the_end_does_not_count() {
        for (bytes, text) in [(&b"a b\n"[..], "a b"), (b"a", "a"), (b"a\n\n", "a\n"), (b"", ""), (b"a\r\n", "a\r")] {
            assert_eq!(read(bytes, "it").unwrap().as_str(), text);
        }
        assert!(read(&b"\xff"[..], "it").is_err());
        assert!(read(&vec![b'a'; 4097][..], "it").is_err());
    }
}

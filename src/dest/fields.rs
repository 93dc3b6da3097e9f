//! One table of dest.toml: its values by type, each error one line with the line's number and what to do.

use std::path::PathBuf;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::backupdir::config::parse_size;
use crate::text::shown;

/// Keys that every destination may have.
const COMMON: &str = "name, type, workers, rate, onfail, off, verify";
/// What users of other programs write for a secret.
const SECRETS: [&str; 11] = [
    "secret-key",
    "secret",
    "password",
    "secret-access-key",
    "token",
    "secret_key",
    "secret_access_key",
    "passphrase",
    "account-key",
    "sas-token",
    "credentials",
];

/// Lines count from 1.
pub fn line_of(text: &str, at: usize) -> usize {
    text.bytes().take(at).filter(|byte| *byte == b'\n').count() + 1
}

/// One table, and which of its keys were asked for.
pub struct Fields<'a> {
    text: &'a str,
    table: &'a DeTable<'a>,
    pub line: usize,
    asked: Vec<&'static str>,
}

type Field<'a> = (usize, &'a DeValue<'a>);

impl<'a> Fields<'a> {
    pub fn new(text: &'a str, table: &'a DeTable<'a>, line: usize) -> Fields<'a> {
        Fields { text, table, line, asked: Vec::new() }
    }

    fn get(&mut self, key: &'static str) -> Option<Field<'a>> {
        self.asked.push(key);
        let (key, value) = self.table.get_key_value(key)?;
        Some((line_of(self.text, Spanned::span(key).start), value.get_ref()))
    }

    pub fn string(&mut self, key: &'static str) -> Result<Option<(usize, String)>, String> {
        match self.get(key) {
            None => Ok(None),
            Some((line, DeValue::String(text))) => Ok(Some((line, text.to_string()))),
            Some((line, _)) => Err(format!("line {line}: {key} must be a text in quotes")),
        }
    }

    pub fn needed(&mut self, key: &'static str, example: &str) -> Result<(usize, String), String> {
        let line = self.line;
        self.string(key)?.ok_or_else(|| format!("line {line}: this destination has no {key}: add {key} = {example}"))
    }

    pub fn absolute(&mut self, key: &'static str, example: &str) -> Result<PathBuf, String> {
        let (line, path) = self.needed(key, &format!("\"{example}\""))?;
        if !path.starts_with('/') || path.contains('\0') {
            return Err(format!("line {line}: {key} must be an absolute path, as \"{example}\""));
        }
        Ok(path.into())
    }

    pub fn number(&mut self, key: &'static str, low: u64, high: u64) -> Result<Option<u64>, String> {
        let Some((line, value)) = self.get(key) else { return Ok(None) };
        let number = value.as_integer().filter(|number| number.radix() == 10);
        let number =
            number.and_then(|number| number.as_str().parse().ok()).filter(|number| (low..=high).contains(number));
        number.map(Some).ok_or_else(|| format!("line {line}: {key} must be a number between {low} and {high}"))
    }

    pub fn size(&mut self, key: &'static str) -> Result<Option<u64>, String> {
        let Some((line, text)) = self.string(key)? else { return Ok(None) };
        match parse_size(&text) {
            Ok(bytes) if bytes > 0 => Ok(Some(bytes)),
            _ => Err(format!("line {line}: {key} must be bytes a second, as \"500k\" or \"20M\"")),
        }
    }

    pub fn flag(&mut self, key: &'static str) -> Result<bool, String> {
        match self.get(key) {
            None => Ok(false),
            Some((_, DeValue::Boolean(flag))) => Ok(*flag),
            Some((line, _)) => Err(format!("line {line}: {key} must be true or false, without quotes")),
        }
    }

    pub fn choice<T: Copy>(&mut self, key: &'static str, choices: &[(&str, T)]) -> Result<Option<T>, String> {
        let Some((line, word)) = self.string(key)? else { return Ok(None) };
        let words: Vec<String> = choices.iter().map(|(word, _)| format!("\"{word}\"")).collect();
        match choices.iter().find(|(known, _)| *known == word) {
            Some((_, value)) => Ok(Some(*value)),
            None => Err(format!("line {line}: {key} must be {} here", words.join(" or "))),
        }
    }

    pub fn nothing_else(&self, kind: &str) -> Result<(), String> {
        let Some((key, _)) = self.table.iter().find(|(key, _)| !self.asked.contains(&key.get_ref().as_ref())) else {
            return Ok(());
        };
        let (line, key) = (line_of(self.text, key.span().start), key.get_ref().as_ref());
        if SECRETS.contains(&key) {
            let known = |end: &str, usual| self.asked.iter().copied().find(|key| key.ends_with(end)).unwrap_or(usual);
            let (file, variable) = (known("-file", "secret-key-file"), known("-env", "secret-key-env"));
            return Err(format!(
                "line {line}: secrets don't stand in dest.toml: name a file or variable that has it, by {file} or {variable}, \
                 or a credential-command"
            ));
        }
        let own: Vec<&str> =
            self.asked.iter().copied().filter(|key| !COMMON.split(", ").any(|word| word == *key)).collect();
        Err(format!(
            "line {line}: a destination of type {kind} has no setting `{}`: it knows {COMMON}, {}",
            shown(key),
            own.join(", ")
        ))
    }
}

//! How names that others chose, and counts, appear in messages, logs and tables: the one function that turns a path into
//! text, and the one that puts a noun behind a number.
//!
//! Invariants: what it gives is one line without control characters, whatever the name holds; two names never give the
//! same text (`\` is written `\\`, every byte that can't stand as it is `\xNN`), so the name can be had back.

use std::ffi::{OsStr, OsString};
use std::fmt::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// What is a sequence of bytes: a name, a path, an operand.
pub trait Name {
    fn as_name(&self) -> &[u8];
}

macro_rules! names {
    ($($type:ty, $name:ident => $bytes:expr;)*) => {
        $(impl Name for $type { fn as_name(&self) -> &[u8] { let $name = self; $bytes } })*
    };
}

names! {
    [u8], name => name;
    Vec<u8>, name => name;
    str, name => name.as_bytes();
    String, name => name.as_bytes();
    OsStr, name => name.as_bytes();
    OsString, name => name.as_bytes();
    Path, name => name.as_os_str().as_bytes();
    PathBuf, name => name.as_os_str().as_bytes();
}

impl<N: Name + ?Sized> Name for &N {
    fn as_name(&self) -> &[u8] {
        (**self).as_name()
    }
}

/// A name as text, for `{}`.
#[derive(Debug, Clone, Copy)]
pub struct Shown<'a>(&'a [u8]);

/// A name as text: UTF-8 stands as it is, but for `\` (`\\`), control characters and those that turn the direction of
/// writing or end a line (`\xNN` for each of their bytes), and so do bytes that are not UTF-8.
pub fn shown<N: Name + ?Sized>(name: &N) -> Shown<'_> {
    Shown(name.as_name())
}

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for chunk in self.0.utf8_chunks() {
            for c in chunk.valid().chars() {
                match c {
                    '\\' => f.write_str("\\\\")?,
                    c if misleads(c) => escape(f, c.encode_utf8(&mut [0; 4]).as_bytes())?,
                    c => f.write_char(c)?,
                }
            }
            escape(f, chunk.invalid())?;
        }
        Ok(())
    }
}

/// `1,234,567`.
pub fn number(count: u64) -> String {
    let digits = count.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// `1 file`, `2,000 files`, `0 directories`: a count with its noun, which is given for one.
pub fn counted(count: u64, noun: &str) -> String {
    format!("{} {}", number(count), plural(count, noun))
}

/// Bytes in lower-case hex.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The noun as it stands after a count.
pub fn plural(count: u64, noun: &str) -> String {
    match noun.strip_suffix('y') {
        _ if count == 1 => noun.to_string(),
        Some(stem) if !stem.ends_with(['a', 'e', 'o', 'u']) => format!("{stem}ies"),
        _ => format!("{noun}s"),
    }
}

fn escape(f: &mut impl Write, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
}

/// A character that a terminal or a log reader would obey instead of showing it.
fn misleads(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A message of ours, or of a program that we ran, as one line: what misleads in it is escaped, the rest stays.
pub fn one_line(message: &str) -> String {
    let mut line = String::with_capacity(message.len());
    for c in message.chars() {
        if misleads(c) {
            // Writing to a String can't fail.
            let _ = escape(&mut line, c.encode_utf8(&mut [0; 4]).as_bytes());
        } else {
            line.push(c);
        }
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_in_one_line_that_obeys_nobody() {
        for (name, text) in [
            (&b"plain \xc3\xa9"[..], "plain \u{e9}"),
            (b"a\nb", "a\\x0ab"),
            (b"a\\x0ab", "a\\\\x0ab"),
            (b"\x1b[31m\xff", "\\x1b[31m\\xff"),
            ("\u{85}\u{202e}".as_bytes(), "\\xc2\\x85\\xe2\\x80\\xae"),
        ] {
            assert_eq!(shown(name).to_string(), text);
        }
        assert_eq!(one_line("a\\x\nb\tc"), "a\\x\\x0ab\\x09c");
    }

    #[test]
    fn one_thing_is_not_many() {
        assert_eq!((counted(1, "file"), counted(0, "directory")), ("1 file".into(), "0 directories".into()));
        assert_eq!((counted(1_234_567, "copy"), counted(2, "day")), ("1,234,567 copies".into(), "2 days".into()));
    }

    proptest::proptest! {
        #[test]
        fn two_names_never_look_alike(name in proptest::collection::vec(0u8.., 0..40)) {
            let text = shown(&name).to_string();
            assert!(!text.chars().any(misleads));
            // The way back, written another way: a backslash takes the next character, or \xNN.
            let (mut back, mut rest) = (Vec::new(), text.as_bytes());
            while let Some((&first, tail)) = rest.split_first() {
                let escaped = first == b'\\' && tail[0] == b'x';
                if escaped {
                    back.push(u8::from_str_radix(std::str::from_utf8(&tail[1..3]).unwrap(), 16).unwrap());
                } else {
                    back.push(first);
                }
                rest = &tail[if escaped { 3 } else { usize::from(first == b'\\') }..];
            }
            assert_eq!(back, name);
        }
    }
}

//! Asking the user on the terminal without showing what is typed.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;

use zeroize::Zeroizing;

use super::check;

/// Longest line that is taken, bytes.
const MAX_LINE: usize = 4096;

/// Shows `prompt` on the controlling terminal and reads one line with echo off; without the line's end.
///
/// ENXIO if the process has no terminal. The echo is switched back on whatever happens but a kill.
pub fn read_hidden_line(prompt: &str) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut terminal = File::options().read(true).write(true).open("/dev/tty")?;
    terminal.write_all(prompt.as_bytes())?;
    let hidden = EchoOff::new(&terminal)?;
    let line = read_line(&terminal);
    drop(hidden);
    terminal.write_all(b"\n")?;
    line
}

fn read_line(mut input: impl Read) -> io::Result<Zeroizing<Vec<u8>>> {
    let mut line = Zeroizing::new(Vec::with_capacity(MAX_LINE));
    let mut byte = [0u8];
    loop {
        match input.read(&mut byte) {
            Ok(0) if line.is_empty() => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(0) => return Ok(line),
            Ok(_) if byte == *b"\n" => return Ok(line),
            Ok(_) if line.len() == MAX_LINE => return Err(io::ErrorKind::InvalidInput.into()),
            Ok(_) => line.extend_from_slice(&byte),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Echo is off while this lives.
struct EchoOff<'a> {
    terminal: &'a File,
    before: libc::termios,
}

impl<'a> EchoOff<'a> {
    fn new(terminal: &'a File) -> io::Result<EchoOff<'a>> {
        // SAFETY: `termios` is plain integers, for which zeros are valid.
        let mut before: libc::termios = unsafe { std::mem::zeroed() };
        // SAFETY: `before` is writable for the whole call.
        check(|| unsafe { libc::tcgetattr(terminal.as_raw_fd(), &raw mut before) })?;
        let mut silent = before;
        silent.c_lflag &= !libc::ECHO;
        // SAFETY: `silent` is readable for the whole call.
        check(|| unsafe { libc::tcsetattr(terminal.as_raw_fd(), libc::TCSAFLUSH, &raw const silent) })?;
        Ok(EchoOff { terminal, before })
    }
}

impl Drop for EchoOff<'_> {
    fn drop(&mut self) {
        // SAFETY: `before` is readable for the whole call. Nothing can be done about a failure.
        unsafe { libc::tcsetattr(self.terminal.as_raw_fd(), libc::TCSAFLUSH, &raw const self.before) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_at_its_newline_or_the_end_and_has_a_bound() {
        assert_eq!(read_line(&b"se cret\nrest"[..]).unwrap().as_slice(), b"se cret");
        assert_eq!(read_line(&b"\n"[..]).unwrap().as_slice(), b"");
        assert_eq!(read_line(&b"no newline"[..]).unwrap().as_slice(), b"no newline");
        assert!(read_line(&b""[..]).is_err());
        assert!(read_line(&vec![b'a'; MAX_LINE + 1][..]).is_err());
    }
}

//! The process of ssh that carries SFTP.
//!
//! Invariants: it may ask nobody anything; it ends with the connection, at the latest; whoever waits for an answer over it
//! hears of its end; what it says is kept to tell why a connection was lost.

use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::pin::{Pin, pin};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::future::{self, Either};
use tokio::io::{AsyncRead, Join, ReadBuf};
use tokio::net::unix::pipe::{Receiver, Sender};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::{settings, trouble};
use crate::error::{Error, Result, Trouble, io_text};
use crate::sync::lock;
use crate::text::{one_line, shown};

/// Its own time limits: a machine that is gone is noticed also while nothing is asked.
const OPTIONS: [&str; 4] = ["BatchMode=yes", "ConnectTimeout=20", "ServerAliveInterval=15", "ServerAliveCountMax=2"];
/// How long it may take to say why it ends.
const LAST_WORDS: Duration = Duration::from_secs(1);
const MAX_LINE_BYTES: usize = 400;

type Stream = Join<Output, Sender>;

/// What ssh gives. The client of the protocol drops it when either direction is over.
pub struct Output {
    pipe: Receiver,
    _is_open: watch::Sender<()>,
}

impl AsyncRead for Output {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        to: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.pipe).poll_read(context, to)
    }
}

pub struct Ssh {
    child: Mutex<Child>,
    stream: Option<Stream>,
    end: watch::Receiver<()>,
    /// The last line of its standard error.
    said: Arc<Mutex<String>>,
    dest: String,
}

impl Ssh {
    pub fn start(dest: &str, settings: &settings::Sftp, runtime: &Handle) -> Result<Ssh> {
        let failed = |error: std::io::Error| {
            let command = settings.ssh_command.first().map(String::as_str).unwrap_or_default();
            trouble(dest, "", Trouble::Refused(format!("{}: {}", shown(command), io_text(&error))))
        };
        let mut words = settings.ssh_command.iter();
        let mut command = Command::new(words.next().map(String::as_str).unwrap_or("ssh"));
        command.args(words);
        for option in OPTIONS {
            command.args(["-o", option]);
        }
        if let Some(port) = settings.port {
            command.args(["-p", &port.to_string()]);
        }
        if let Some(user) = &settings.user {
            command.args(["-l", user]);
        }
        command.args(["-s", "--", &settings.host, "sftp"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // Ctrl-C is for us: the run ends the connection when it is done with it.
        command.process_group(0);
        let mut child = command.spawn().map_err(failed)?;
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let said: Arc<Mutex<String>> = Arc::default();
        if let Some(errors) = errors {
            let said = said.clone();
            let listener = move || {
                for line in BufReader::new(errors).split(b'\n').map_while(std::io::Result::ok) {
                    let line = line.get(..MAX_LINE_BYTES).unwrap_or(&line).trim_ascii();
                    if !line.is_empty() {
                        *lock(&said) = shown(line).to_string();
                    }
                }
            };
            std::thread::Builder::new().name("ssh".into()).spawn(listener).map_err(failed)?;
        }
        let (is_open, end) = watch::channel(());
        let _context = runtime.enter();
        let stream = match (input, output) {
            (Some(input), Some(output)) => {
                let pipe = Receiver::from_owned_fd(OwnedFd::from(output)).map_err(failed)?;
                let output = Output { pipe, _is_open: is_open };
                let input = Sender::from_owned_fd(OwnedFd::from(input)).map_err(failed)?;
                Some(tokio::io::join(output, input))
            }
            _ => None,
        };
        Ok(Ssh { child: Mutex::new(child), stream, end, said, dest: dest.to_string() })
    }

    /// Where the protocol goes; once.
    pub fn take_stream(&mut self) -> Result<Stream> {
        let gone = || -> Error { trouble(&self.dest, "", Trouble::Failed("ssh has no input or output".into())) };
        self.stream.take().ok_or_else(gone)
    }

    /// What an act over the connection gives, or nothing once the client has let go of it. A request that the client was given
    /// between the end of one direction and that of the other is answered by nobody.
    pub async fn unless_lost<T>(&self, act: impl Future<Output = T>) -> Option<T> {
        let mut end = self.end.clone();
        match future::select(pin!(act), pin!(end.changed())).await {
            Either::Left((given, _)) => Some(given),
            Either::Right(_) => None,
        }
    }

    /// Why the connection is no more, as ssh tells it, else as the client of the protocol does.
    pub fn why_lost(&self, client: &str) -> Trouble {
        let until = Instant::now() + LAST_WORDS;
        while Instant::now() < until && matches!(lock(&self.child).try_wait(), Ok(None)) {
            std::thread::sleep(Duration::from_millis(10));
        }
        // Its last words may still be on their way.
        while Instant::now() < until && lock(&self.said).is_empty() {
            std::thread::sleep(Duration::from_millis(10));
        }
        let said = lock(&self.said).clone();
        let is_denied = ["Permission denied", "Host key verification failed", "authentication failures"];
        if is_denied.iter().any(|words| said.contains(words)) {
            return Trouble::Denied(said);
        }
        Trouble::Failed(if said.is_empty() { format!("the connection was lost: {}", one_line(client)) } else { said })
    }
}

impl Ssh {
    #[cfg(test)]
    pub fn kill(&self) {
        let mut child = lock(&self.child);
        child.kill().and_then(|()| child.wait()).unwrap();
    }
}

impl Drop for Ssh {
    fn drop(&mut self) {
        let mut child = lock(&self.child);
        let _ = child.kill();
        let _ = child.wait();
    }
}

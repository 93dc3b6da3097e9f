//! A mount as a guard: ready when `start` returns, gone when `end` returns or the guard is dropped.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use super::{Cmd, Lab, Out, below, is_root, require_fuse};

const DEADLINE: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(3);

pub struct Mount {
    pub point: PathBuf,
    child: Child,
    what: String,
    log: PathBuf,
    ended: bool,
}

impl Mount {
    /// `assay mount -c REPO ARGS… MNT` in the foreground.
    #[track_caller]
    pub fn start<A: AsRef<OsStr>>(lab: &Lab, repo: &Path, args: impl IntoIterator<Item = A>) -> Mount {
        Mount::spawn(lab.assay_on(repo, "mount", args).arg(lab.mnt()), &lab.mnt(), &lab.root)
    }

    /// Runs a command that will mount on `point`; its output goes to files in `logs`.
    #[track_caller]
    pub fn spawn(cmd: Cmd, point: &Path, logs: &Path) -> Mount {
        require_fuse();
        assert!(mount_line(point).is_none(), "{} is mounted already", point.display());
        let log = logs.join("mount-log");
        let (mut command, what) = cmd.into_parts();
        let child = command
            .stdout(File::create(log.with_extension("out")).expect("log file"))
            .stderr(File::create(log.with_extension("err")).expect("log file"))
            .spawn()
            .unwrap_or_else(|e| panic!("`{what}`: {e}"));
        let mut mount = Mount { point: point.to_path_buf(), child, what, log, ended: false };
        let start = Instant::now();
        while mount_line(point).is_none() {
            if let Some(status) = mount.child.try_wait().expect("wait") {
                mount.ended = true;
                panic!("`{}` ended with {status} before it was ready:\n{}", mount.what, mount.err());
            }
            assert!(start.elapsed() < DEADLINE, "`{}` is not ready:\n{}", mount.what, mount.err());
            std::thread::sleep(POLL);
        }
        mount
    }

    /// Where the newest version shows what was at `absolute`.
    pub fn latest(&self, absolute: &Path) -> PathBuf {
        below(&self.point.join("latest"), absolute)
    }

    /// Where version `number` shows what was at `absolute`.
    #[track_caller]
    pub fn version(&self, number: u64, absolute: &Path) -> PathBuf {
        below(&self.point.join(self.folder(number)), absolute)
    }

    /// Name of a version's folder.
    #[track_caller]
    pub fn folder(&self, number: u64) -> String {
        let suffix = format!("-r{number}");
        let names: Vec<String> =
            super::names_in(&self.point).into_iter().map(|n| String::from_utf8(n).expect("UTF-8")).collect();
        names
            .iter()
            .find(|name| name.ends_with(&suffix))
            .unwrap_or_else(|| panic!("no folder of r{number} in {names:?}"))
            .clone()
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to its standard error so far.
    pub fn err(&self) -> String {
        read_lossy(&self.log.with_extension("err"))
    }

    /// Unmounts as a user would and waits for the end of the process.
    #[track_caller]
    pub fn end(self) -> Out {
        let start = Instant::now();
        loop {
            match unmount_command(&self.point).output() {
                Ok(output) if output.status.success() => break,
                Ok(output) if start.elapsed() > Duration::from_secs(5) => {
                    panic!("cannot unmount {}: {}", self.point.display(), String::from_utf8_lossy(&output.stderr))
                }
                Ok(_) => std::thread::sleep(Duration::from_millis(20)),
                Err(e) => panic!("umount: {e}"),
            }
        }
        self.finish()
    }

    /// Waits for the end of the process, which must have been caused already.
    #[track_caller]
    pub fn finish(mut self) -> Out {
        let start = Instant::now();
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                break status;
            }
            assert!(start.elapsed() < DEADLINE, "`{}` does not end:\n{}", self.what, self.err());
            std::thread::sleep(POLL);
        };
        self.ended = true;
        assert!(mount_line(&self.point).is_none(), "{} is still mounted", self.point.display());
        let out = Out {
            what: self.what.clone(),
            code: status.code(),
            signal: status.signal(),
            stdout: fs::read(self.log.with_extension("out")).expect("log"),
            stderr: fs::read(self.log.with_extension("err")).expect("log"),
        };
        assert!(!out.err().contains("panicked at"), "the mount panicked:\n{}", out.err());
        out
    }

    /// Sends a signal to the mount's own process.
    pub fn signal(&self, signal: i32) {
        super::sys::kill(self.pid(), signal).unwrap_or_else(|e| panic!("kill {signal}: {e}"));
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if self.ended {
            return;
        }
        if mount_line(&self.point).is_some() {
            let done = unmount_command(&self.point).stderr(Stdio::null()).status().is_ok_and(|s| s.success());
            if !done {
                let _ = if is_root() {
                    Command::new("umount").arg("-l").arg(&self.point).status()
                } else {
                    Command::new("fusermount3").arg("-uz").arg(&self.point).status()
                };
            }
        }
        let start = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if start.elapsed() > Duration::from_secs(5) {
                let _ = self.child.kill();
                let _ = self.child.wait();
                break;
            }
            std::thread::sleep(POLL);
        }
        if std::thread::panicking() {
            eprintln!("--- the mount's stderr\n{}", self.err());
        } else {
            assert!(mount_line(&self.point).is_none(), "{} is still mounted", self.point.display());
        }
    }
}

fn unmount_command(point: &Path) -> Command {
    let mut command;
    if is_root() {
        command = Command::new("umount");
    } else {
        command = Command::new("fusermount3");
        command.arg("-u");
    }
    command.arg(point);
    command
}

fn read_lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned()
}

/// The line of the mount table for exactly this mount point.
pub fn mount_line(point: &Path) -> Option<String> {
    mount_table().into_iter().find(|(at, _)| at == point).map(|(_, line)| line)
}

pub fn mounts_below(dir: &Path) -> Vec<PathBuf> {
    mount_table().into_iter().map(|(at, _)| at).filter(|at| at.starts_with(dir)).collect()
}

fn mount_table() -> Vec<(PathBuf, String)> {
    let text = fs::read("/proc/self/mountinfo").expect("/proc/self/mountinfo");
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let field = line.split(|byte| *byte == b' ').nth(4)?;
            Some((PathBuf::from(unescape(field)), String::from_utf8_lossy(line).into_owned()))
        })
        .collect()
}

/// Undoes the octal escapes of the mount table.
fn unescape(field: &[u8]) -> std::ffi::OsString {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..3).and_then(|d| std::str::from_utf8(d).ok()).and_then(|d| u8::from_str_radix(d, 8).ok());
        match code {
            Some(code) if *first == b'\\' => {
                bytes.push(code);
                rest = &tail[3..];
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    std::ffi::OsString::from_vec(OsStr::from_bytes(&bytes).as_bytes().to_vec())
}

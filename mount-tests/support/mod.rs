//! What every test needs: a `Lab` (source tree, backup dir, the program), a `Mount` guard, trees and oracles.

pub mod arcfile;
pub mod mount;
pub mod odd;
pub mod oracle;
pub mod rng;
pub mod strace;
pub mod sys;

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

pub use mount::Mount;

/// The program under test.
pub fn assay_binary() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_assay"))
}

/// What a finished program left: exit code and everything it printed.
#[derive(Debug)]
pub struct Out {
    pub what: String,
    /// None when a signal ended it.
    pub code: Option<i32>,
    pub signal: Option<i32>,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Out {
    fn from_output(what: String, output: Output) -> Out {
        Out {
            what,
            code: output.status.code(),
            signal: output.status.signal(),
            stdout: output.stdout,
            stderr: output.stderr,
        }
    }
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
    /// Both streams, for messages that may stand in either.
    pub fn text(&self) -> String {
        format!("{}{}", self.out(), self.err())
    }
    #[track_caller]
    pub fn code(self, wanted: i32) -> Out {
        assert_eq!(
            self.code,
            Some(wanted),
            "{} (signal {:?})\n--- stdout\n{}\n--- stderr\n{}",
            self.what,
            self.signal,
            self.out(),
            self.err()
        );
        self
    }
    #[track_caller]
    pub fn ok(self) -> Out {
        self.code(0)
    }
    #[track_caller]
    pub fn json(&self) -> serde_json::Value {
        match serde_json::from_slice(&self.stdout) {
            Ok(value) => value,
            Err(e) => panic!("{}: stdout is not JSON: {e}\n{}", self.what, self.out()),
        }
    }
}

/// A command with a fixed environment (C locale, own HOME, no terminal), run to its end.
pub struct Cmd {
    inner: Command,
    what: String,
}

impl Cmd {
    pub fn new(program: impl AsRef<OsStr>) -> Cmd {
        let mut inner = Command::new(program.as_ref());
        inner
            .stdin(Stdio::null())
            .env("LC_ALL", "C")
            .env("TZ", "UTC")
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .env_remove("ASSAY_DIR")
            // Tests put older copies of backup dirs back all the time.
            .env("ASSAY_STATE_DIR", "")
            .env_remove("ASSAY_PASSPHRASE")
            .env_remove("RUST_LOG")
            .env("RUST_BACKTRACE", "0");
        Cmd { inner, what: program.as_ref().to_string_lossy().into_owned() }
    }
    pub fn arg(mut self, arg: impl AsRef<OsStr>) -> Cmd {
        self.what.push(' ');
        self.what.push_str(&arg.as_ref().to_string_lossy());
        self.inner.arg(arg);
        self
    }
    pub fn args<A: AsRef<OsStr>>(self, args: impl IntoIterator<Item = A>) -> Cmd {
        args.into_iter().fold(self, |cmd, arg| cmd.arg(arg))
    }
    pub fn dir(mut self, dir: &Path) -> Cmd {
        self.inner.current_dir(dir);
        self
    }
    pub fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Cmd {
        self.inner.env(name, value);
        self
    }
    pub fn unset(mut self, name: &str) -> Cmd {
        self.inner.env_remove(name);
        self
    }
    pub fn into_parts(self) -> (Command, String) {
        (self.inner, self.what)
    }
    #[track_caller]
    pub fn run(mut self) -> Out {
        match self.inner.stdout(Stdio::piped()).stderr(Stdio::piped()).output() {
            Ok(output) => {
                let out = Out::from_output(self.what, output);
                assert!(!out.err().contains("panicked at"), "{} panicked:\n{}", out.what, out.err());
                out
            }
            Err(e) if e.kind() == ErrorKind::NotFound => {
                panic!("`{}`: the program is missing; .ci/run lists the Debian packages that the tests need", self.what)
            }
            Err(e) => panic!("`{}`: {e}", self.what),
        }
    }
    #[track_caller]
    pub fn ok(self) -> Out {
        self.run().ok()
    }
    /// Runs it with `input` on its standard input.
    #[track_caller]
    pub fn run_with_input(mut self, input: &[u8]) -> Out {
        use std::io::Write;
        self.inner.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.inner.spawn().unwrap_or_else(|e| panic!("`{}`: {e}", self.what));
        let mut stdin = child.stdin.take().expect("stdin is piped");
        // A program that does not read all of its input is fine.
        let _ = stdin.write_all(input);
        drop(stdin);
        Out::from_output(self.what, child.wait_with_output().expect("wait"))
    }
}

/// A tool of the system.
pub fn tool(program: &str) -> Cmd {
    Cmd::new(program)
}

/// PATH with administrators' programs.
pub fn admin_path() -> String {
    format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default())
}

pub fn is_root() -> bool {
    sys::euid() == 0
}

/// A directory of its own with a source tree, a backup dir and a mount point; removed at the end.
pub struct Lab {
    dir: TempDir,
    pub root: PathBuf,
}

impl Lab {
    pub fn new() -> Lab {
        Lab::new_in(&std::env::temp_dir())
    }
    pub fn new_in(parent: &Path) -> Lab {
        let dir = tempfile::Builder::new().prefix("assay-test-").tempdir_in(parent).expect("temporary directory");
        let root = dir.path().canonicalize().expect("canonical path");
        for sub in ["src", "mnt", "home", "out"] {
            fs::create_dir(root.join(sub)).expect("mkdir");
        }
        Lab { dir, root }
    }
    /// A lab with a backup dir and one version of `files`.
    pub fn with_files(files: &[(&str, &[u8])]) -> Lab {
        let lab = Lab::new();
        for (name, bytes) in files {
            lab.write(name, bytes);
        }
        lab.init();
        lab.backup();
        lab
    }
    pub fn src(&self) -> PathBuf {
        self.root.join("src")
    }
    pub fn repo(&self) -> PathBuf {
        self.root.join("backup")
    }
    pub fn mnt(&self) -> PathBuf {
        self.root.join("mnt")
    }
    pub fn out_dir(&self) -> PathBuf {
        self.root.join("out")
    }
    pub fn path(&self, rel: &str) -> PathBuf {
        self.root.join(rel)
    }
    /// Writes a file of the source tree, with its directories.
    pub fn write(&self, rel: &str, bytes: &[u8]) -> PathBuf {
        let path = self.src().join(rel);
        fs::create_dir_all(path.parent().expect("a parent")).expect("mkdir -p");
        fs::write(&path, bytes).expect("write");
        path
    }
    /// `assay COMMAND -c BACKUPDIR ARGS…`, ready to run.
    pub fn assay<A: AsRef<OsStr>>(&self, command: &str, args: impl IntoIterator<Item = A>) -> Cmd {
        self.assay_on(&self.repo(), command, args)
    }
    /// In debug builds whatever it writes to a backup dir is held against the rules of `selftest -v2`.
    pub fn assay_on<A: AsRef<OsStr>>(&self, repo: &Path, command: &str, args: impl IntoIterator<Item = A>) -> Cmd {
        let cmd = Cmd::new(assay_binary()).env("HOME", self.root.join("home")).env("ASSAY_CHECK_WRITER", "1");
        cmd.arg(command).arg("-c").arg(repo).args(args)
    }
    #[track_caller]
    pub fn init(&self) {
        self.assay("init", NONE).ok();
        arcfile::know(&self.repo());
    }
    /// Backs up the source tree; must end with 0.
    #[track_caller]
    pub fn backup(&self) -> Out {
        self.backup_with(NONE)
    }
    #[track_caller]
    pub fn backup_with<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Out {
        self.assay("backup", args).arg(self.src()).ok()
    }
    #[track_caller]
    pub fn mount(&self) -> Mount {
        Mount::start(self, &self.repo(), NONE)
    }
    #[track_caller]
    pub fn mount_with<A: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = A>) -> Mount {
        Mount::start(self, &self.repo(), args)
    }
    /// Copies the backup dir, as it is, to `name` beside it.
    #[track_caller]
    pub fn copy_repo(&self, name: &str) -> PathBuf {
        let to = self.root.join(name);
        assert!(!to.exists(), "{} exists", to.display());
        tool("cp").arg("-a").arg(self.repo()).arg(&to).ok();
        to
    }
    /// Numbers of the versions, by `assay versions --json`.
    #[track_caller]
    pub fn versions(&self) -> Vec<u64> {
        self.versions_of(&self.repo())
    }
    #[track_caller]
    pub fn versions_of(&self, repo: &Path) -> Vec<u64> {
        version_numbers(&self.assay_on(repo, "versions", ["--json"]).ok().json())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let left = mount::mounts_below(&self.root);
        if !left.is_empty() {
            for point in &left {
                let _ = Command::new("umount").arg("-l").arg(point).status();
            }
            if !std::thread::panicking() {
                panic!("mounts were left: {left:?}");
            }
        }
        // Names and depths that remove_dir_all can't manage would stay behind silently otherwise.
        let _ = Command::new("chmod").arg("-R").arg("u+rwX").arg(self.dir.path()).stderr(Stdio::null()).status();
    }
}

pub const NONE: [&str; 0] = [];

/// Finds the version numbers in whatever `versions --json` prints (an array, or an object with one).
pub fn version_numbers(json: &serde_json::Value) -> Vec<u64> {
    let list = json
        .as_array()
        .or_else(|| json.get("versions").and_then(|v| v.as_array()))
        .unwrap_or_else(|| panic!("no array of versions in {json}"));
    let mut numbers: Vec<u64> = list
        .iter()
        .map(|row| {
            let field = row.get("version").or_else(|| row.get("rev")).unwrap_or_else(|| panic!("no version in {row}"));
            field
                .as_u64()
                .or_else(|| field.as_str().and_then(|s| s.trim_start_matches('r').parse().ok()))
                .unwrap_or_else(|| panic!("no number in {field}"))
        })
        .collect();
    numbers.sort_unstable();
    numbers
}

/// `base` + an absolute path: where the mount shows what was at that path.
pub fn below(base: &Path, absolute: &Path) -> PathBuf {
    let mut joined: OsString = base.as_os_str().to_owned();
    joined.push(absolute.as_os_str());
    PathBuf::from(joined)
}

/// Names in a directory, as bytes, sorted; panics when it can't be read to its end.
#[track_caller]
pub fn names_in(dir: &Path) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = fs::read_dir(dir)
        .unwrap_or_else(|e| panic!("{}: {e}", dir.display()))
        .map(|entry| entry.unwrap_or_else(|e| panic!("{}: {e}", dir.display())).file_name().as_bytes().to_vec())
        .collect();
    names.sort();
    names
}

/// Fails with words when FUSE can't work here.
pub fn require_fuse() {
    assert!(Path::new("/dev/fuse").exists(), "/dev/fuse is missing: the mount tests need it (modprobe fuse)");
}

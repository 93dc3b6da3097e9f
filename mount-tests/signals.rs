//! Signals and progress: who asks is answered, nobody is killed by asking, and no mount outlives its process.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Cmd, Lab, sys, tool};

/// Waits until `done`, for at most half a minute.
#[track_caller]
pub fn wait_until(what: &str, mut done: impl FnMut() -> bool) {
    let start = Instant::now();
    while !done() {
        assert!(start.elapsed() < Duration::from_secs(30), "{what}: not within 30 s");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A program whose output goes to `log`; it is killed when the guard is dropped.
pub struct Running {
    pub child: Child,
    log: std::path::PathBuf,
}

impl Running {
    pub fn start(cmd: Cmd, log: &Path) -> Running {
        let (mut command, what) = cmd.into_parts();
        let out = std::fs::File::create(log).expect("log");
        let child = command
            .stdin(Stdio::null())
            .stderr(out.try_clone().expect("log"))
            .stdout(out)
            .spawn()
            .unwrap_or_else(|e| panic!("`{what}`: {e}"));
        Running { child, log: log.to_path_buf() }
    }
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.log).expect("log")).into_owned()
    }
    #[track_caller]
    pub fn end(&mut self) -> Option<i32> {
        let mut code = None;
        wait_until("the end", || match self.child.try_wait().expect("wait") {
            Some(status) => {
                code = Some(status.code());
                true
            }
            None => false,
        });
        code.flatten()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// True when process `pid` has a handler for `signal`.
fn catches(pid: u32, signal: i32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigCgt:\t")).unwrap_or("0");
    u64::from_str_radix(mask, 16).unwrap_or(0) >> (signal - 1) & 1 == 1
}

/// A command that takes a second at each fsync, and the process to send signals to.
fn slow(lab: &Lab, cmd: Cmd) -> (Running, u32) {
    let (command, _) = cmd.into_parts();
    let traced = tool("strace")
        .args(["-f", "-qq", "-e", "trace=fsync,fdatasync", "-e", "inject=fsync,fdatasync:delay_enter=1000000", "-o"])
        .arg(lab.path("strace"))
        .arg(command.get_program())
        .args(command.get_args())
        .env("HOME", lab.path("home"));
    let run = Running::start(traced, &lab.path("log"));
    let mut pid = 0;
    wait_until("the traced process", || {
        let children = format!("/proc/{0}/task/{0}/children", run.child.id());
        pid = std::fs::read_to_string(children).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        catches(pid, libc::SIGALRM)
    });
    (run, pid)
}

fn send(pid: u32, signal: i32) {
    sys::kill(pid, signal).unwrap_or_else(|e| panic!("kill {signal}: {e}"));
}

#[test]
fn signals_that_ask_or_err_end_no_run() {
    let lab = Lab::new();
    lab.write("file", b"content");
    lab.init();
    let (mut run, pid) = slow(&lab, lab.assay("backup", [lab.src()]));
    for signal in [libc::SIGUSR2, libc::SIGALRM, libc::SIGVTALRM] {
        send(pid, signal);
    }
    wait_until("an answer", || {
        send(pid, libc::SIGUSR1);
        run.text().contains("assay: Backing up ")
    });
    assert_eq!(run.end(), Some(0), "{}", run.text());
    assert_eq!(lab.versions(), [0]);
}

#[test]
fn an_interrupted_run_says_so_and_how_far_it_was() {
    let lab = Lab::new();
    lab.write("file", b"content");
    lab.init();
    let (mut run, pid) = slow(&lab, lab.assay("backup", [lab.src()]));
    wait_until("a handler", || catches(pid, libc::SIGINT));
    send(pid, libc::SIGINT);
    assert_eq!(run.end(), Some(130), "{}", run.text());
    assert!(run.text().contains("assay: INTERRUPTED: interrupted; until then: Backing up "), "{}", run.text());
}

#[test]
fn progress_is_lines_of_json_if_asked_for() {
    let lab = Lab::with_files(&[("file", b"content")]);
    for (command, args) in
        [("backup", vec![lab.src()]), ("selftest", vec![]), ("coverage", vec![]), ("recover", vec![])]
    {
        let out = lab.assay(command, ["--progress", "json"]).args(args).ok();
        let last = out.err().lines().rfind(|line| line.starts_with('{')).expect("an object").to_string();
        let object: serde_json::Value = serde_json::from_str(&last).expect("JSON");
        assert_eq!(object["type"], "progress", "{last}");
        assert!(object["files"].is_u64() && object["seconds"].is_f64() && object["counts"].is_string(), "{last}");
    }
    // Without a terminal, and before the first minute is over, there is none.
    assert_eq!(lab.assay("backup", [lab.src()]).ok().err(), "");
}

#[test]
fn a_run_under_nohup_outlives_its_terminal() {
    let lab = Lab::new();
    lab.write("file", b"content");
    lab.init();
    let (command, _) = lab.assay("backup", [lab.src()]).into_parts();
    let nohup = tool("nohup").arg(command.get_program()).args(command.get_args());
    let (mut run, pid) = slow(&lab, nohup);
    send(pid, libc::SIGHUP);
    send(pid, libc::SIGHUP);
    assert_eq!(run.end(), Some(0), "{}", run.text());
}

#[test]
fn a_mount_goes_with_its_process_whatever_signal_ends_it() {
    let lab = Lab::with_files(&[("file", b"content")]);
    let crashes = [libc::SIGSEGV, libc::SIGBUS, libc::SIGABRT, libc::SIGILL, libc::SIGFPE, libc::SIGTRAP, libc::SIGSYS];
    let asks = [libc::SIGUSR1, libc::SIGPIPE, libc::SIGXFSZ];
    for signal in (1..=64).filter(|signal| ![libc::SIGKILL, libc::SIGSTOP, 32, 33].contains(signal)) {
        let stops_or_nothing = [libc::SIGCHLD, libc::SIGCONT, libc::SIGTSTP, libc::SIGTTIN, libc::SIGTTOU];
        if stops_or_nothing.contains(&signal) || [libc::SIGURG, libc::SIGWINCH].contains(&signal) {
            continue;
        }
        let mount = lab.mount();
        wait_until("ready", || mount.err().contains("is mounted on"));
        let held = std::fs::File::open(mount.latest(&lab.src()).join("file")).expect("open");
        mount.signal(signal);
        if asks.contains(&signal) {
            std::fs::read(mount.latest(&lab.src()).join("file")).expect("it goes on");
            drop(held);
            mount.end().ok();
            continue;
        }
        // Also while a file in it is open. `finish` looks that nothing is mounted.
        let out = mount.finish();
        let wanted = if crashes.contains(&signal) { (None, Some(signal)) } else { (Some(0), None) };
        assert_eq!((out.code, out.signal), wanted, "signal {signal}: {}", out.text());
    }
}

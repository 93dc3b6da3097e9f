//! Faults at system calls: `strace -f -e inject=…` (never with --seccomp-bpf, which injects nothing).

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs;
use std::path::Path;

use super::{Cmd, Out, tool};

/// Calls that change something on disk, or make a file.
pub const WRITE_CLASS: &[&str] = &[
    "write",
    "pwrite64",
    "pwritev",
    "writev",
    "fsync",
    "fdatasync",
    "sync_file_range",
    "ftruncate",
    "fallocate",
    "rename",
    "renameat",
    "renameat2",
    "link",
    "linkat",
    "unlink",
    "unlinkat",
    "mkdir",
    "mkdirat",
    "chmod",
    "fchmod",
    "fchmodat",
    "openat",
];

/// How often the busiest thread makes each call of the class that names a path or descriptor in `dir`.
/// strace counts `when=N` per thread.
pub struct Counts(pub BTreeMap<String, u64>);

/// Traces a run to its end. `make` gives the command (program first).
pub fn count(make: &[OsString], home: &Path, log: &Path) -> Counts {
    let out = traced(make, home, log, &format!("trace={}", WRITE_CLASS.join(",")), None);
    assert!(is_done(&out), "{}", out.text());
    let mut per_thread: BTreeMap<(String, String), u64> = BTreeMap::new();
    for line in String::from_utf8_lossy(&fs::read(log).expect("strace log")).lines() {
        if let Some((thread, call)) = call_of(line) {
            *per_thread.entry((thread, call)).or_default() += 1;
        }
    }
    let mut counts = BTreeMap::new();
    for ((_, call), count) in per_thread {
        let most: &mut u64 = counts.entry(call).or_default();
        *most = count.max(*most);
    }
    assert!(!counts.is_empty(), "strace traced nothing");
    Counts(counts)
}

/// It came to its end; damage that it mended is in the exit code.
fn is_done(out: &Out) -> bool {
    matches!(out.code, Some(0 | 4))
}

/// Thread and name of the call that a line of the log starts.
fn call_of(line: &str) -> Option<(String, String)> {
    let (thread, rest) = line.split_once(' ')?;
    let (call, _) = rest.trim_start().split_once('(')?;
    WRITE_CLASS.contains(&call).then(|| (thread.to_string(), call.to_string()))
}

fn traced(make: &[OsString], home: &Path, log: &Path, trace: &str, inject: Option<&str>) -> Out {
    let mut cmd = tool("strace").args(["-f", "-y", "-qq", "-o"]).arg(log).args(["-e", trace]);
    if let Some(inject) = inject {
        cmd = cmd.arg("-e").arg(format!("inject={inject}"));
    }
    env(cmd, home).arg("--").args(make).run()
}

fn env(cmd: Cmd, home: &Path) -> Cmd {
    cmd.env("HOME", home)
}

/// What a run with a fault came to.
pub struct Faulted {
    pub out: Out,
    /// The log line of the call that was hit.
    pub hit: String,
}

/// Runs with SIGKILL at the n-th `call`. None when no thread makes it that often in this run.
pub fn kill_at(make: &[OsString], home: &Path, log: &Path, call: &str, when: u64) -> Option<Faulted> {
    let out = traced(make, home, log, &format!("trace={call}"), Some(&format!("{call}:signal=KILL:when={when}")));
    let text = String::from_utf8_lossy(&fs::read(log).expect("strace log")).into_owned();
    let killed = text.lines().any(|line| line.contains("+++ killed by SIGKILL"));
    assert_eq!(killed, out.signal == Some(9), "strace and its exit disagree: {:?} {:?}", out.code, out.signal);
    if !killed {
        assert!(is_done(&out), "no fault, yet: {}", out.text());
        return None;
    }
    // The busiest line is enough for messages.
    let hit = text.lines().rfind(|line| line.contains(&format!("{call}("))).unwrap_or_default().to_string();
    Some(Faulted { out, hit })
}

/// Kills runs at some calls of each kind: the first, one in the middle, the last; `reset` makes each start alike, `judge` looks
/// at what is left.
pub fn kill_at_some(make: &[OsString], home: &Path, log: &Path, reset: impl Fn(), judge: impl Fn(&str)) {
    let counts = count(make, home, log);
    println!("{:?}", counts.0);
    let mut fired = 0;
    for (call, count) in &counts.0 {
        for number in (1..=*count).step_by((count / 2).max(1) as usize) {
            reset();
            let Some(hit) = kill_at(make, home, log, call, number) else { continue };
            fired += 1;
            judge(&format!("kill at {call} {number} ({})", hit.hit));
        }
    }
    assert!(fired > 9, "only {fired} kills fired");
}

/// Runs with `error` at the n-th `call` (`forever`: and at all that follow). None when it never fired.
pub fn fail_at(
    make: &[OsString],
    home: &Path,
    log: &Path,
    call: &str,
    error: &str,
    when: u64,
    forever: bool,
) -> Option<Faulted> {
    let plus = if forever { "+" } else { "" };
    let inject = format!("{call}:error={error}:when={when}{plus}");
    let out = traced(make, home, log, &format!("trace={call}"), Some(&inject));
    let text = String::from_utf8_lossy(&fs::read(log).expect("strace log")).into_owned();
    let hit = text.lines().find(|line| line.ends_with("(INJECTED)"))?.to_string();
    Some(Faulted { out, hit })
}

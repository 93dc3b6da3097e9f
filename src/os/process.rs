//! This process: identity, limits, and going into the background.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;

use zeroize::Zeroizing;

use super::check;

pub fn geteuid() -> u32 {
    // SAFETY: always succeeds, no memory is involved.
    unsafe { libc::geteuid() }
}

pub fn getegid() -> u32 {
    // SAFETY: always succeeds, no memory is involved.
    unsafe { libc::getegid() }
}

pub fn getuid() -> u32 {
    // SAFETY: always succeeds, no memory is involved.
    unsafe { libc::getuid() }
}

pub fn getgid() -> u32 {
    // SAFETY: always succeeds, no memory is involved.
    unsafe { libc::getgid() }
}

/// Sets the file mode creation mask of the whole process; gives the one before.
pub fn set_umask(mask: u32) -> u32 {
    // SAFETY: always succeeds, no memory is involved.
    unsafe { libc::umask(mask & 0o777) }
}

/// Lets a write beyond the limit of file sizes (`ulimit -f`) fail with EFBIG instead of ending the process.
pub fn ignore_file_size_signal() {
    // SAFETY: SIG_IGN runs no code of ours.
    unsafe { libc::signal(libc::SIGXFSZ, libc::SIG_IGN) };
}

/// How many files this process may have open.
pub fn open_file_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable for the whole call.
    match check(|| unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }) {
        Ok(_) => limit.rlim_cur,
        // POSIX promises so many.
        Err(_) => 20,
    }
}

/// Raises the limit of open files to the hard limit; gives the limit that holds now.
pub fn raise_open_file_limit() -> io::Result<u64> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is writable for the whole call.
    check(|| unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) })?;
    if limit.rlim_cur < limit.rlim_max {
        limit.rlim_cur = limit.rlim_max;
        // SAFETY: `limit` is readable for the whole call.
        check(|| unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) })?;
    }
    Ok(limit.rlim_cur)
}

/// The signals that end a process unless it catches them, but for those of a crash: all that someone may send it to
/// make it end, or by mistake.
pub fn ending_signals() -> Vec<i32> {
    let named = [
        libc::SIGHUP,
        libc::SIGINT,
        libc::SIGQUIT,
        libc::SIGTERM,
        libc::SIGUSR1,
        libc::SIGUSR2,
        libc::SIGALRM,
        libc::SIGVTALRM,
        libc::SIGPROF,
        libc::SIGIO,
        libc::SIGPWR,
        libc::SIGSTKFLT,
        libc::SIGXCPU,
        libc::SIGXFSZ,
        libc::SIGPIPE,
    ];
    named.into_iter().chain(libc::SIGRTMIN()..=libc::SIGRTMAX()).collect()
}

/// True when whoever started this process had it ignore a signal, as nohup(1) does.
pub fn is_ignored(signal: i32) -> bool {
    // SAFETY: `sigaction` is plain integers and a pointer, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: nothing is set, and `action` is writable for the whole call.
    let result = unsafe { libc::sigaction(signal, std::ptr::null(), &raw mut action) };
    result == 0 && action.sa_sigaction == libc::SIG_IGN
}

/// Name of this machine, as `uname -n`.
pub fn hostname() -> String {
    let mut buffer = [0u8; 256];
    // SAFETY: at most `buffer.len()` bytes are written.
    let result = unsafe { libc::gethostname(buffer.as_mut_ptr().cast(), buffer.len()) };
    let name = buffer.split(|byte| *byte == 0).next().unwrap_or_default();
    if result == 0 { String::from_utf8_lossy(name).into_owned() } else { String::new() }
}

/// True when the process `pid` exists (perhaps of another user).
pub fn is_alive(pid: u32) -> bool {
    let Ok(pid) = i32::try_from(pid) else { return false };
    // SAFETY: signal 0 only asks.
    pid > 0 && check(|| unsafe { libc::kill(pid, 0) }).or_else(permission_denied_is_alive).is_ok()
}

fn permission_denied_is_alive(error: io::Error) -> io::Result<i32> {
    if error.raw_os_error() == Some(libc::EPERM) { Ok(0) } else { Err(error) }
}

/// The descriptors above standard error that this process was started with.
#[derive(Debug)]
pub struct Inherited(Vec<i32>);

impl Inherited {
    /// To be called before anything is opened.
    pub fn now() -> io::Result<Inherited> {
        let listing = std::fs::read_dir("/proc/self/fd")?;
        let names = listing.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        let numbers = names.iter().filter_map(|name| name.to_str()?.parse::<i32>().ok());
        // The listing's own descriptor is closed by now.
        let open = |fd: &i32| {
            // SAFETY: the call only asks.
            *fd > 2 && check(|| unsafe { libc::fcntl(*fd, libc::F_GETFD) }).is_ok()
        };
        Ok(Inherited(numbers.filter(open).collect()))
    }

    /// Closes them: whoever holds a lock, a pipe or a mount through them waits no longer than for itself.
    pub fn close(self) {
        for fd in self.0 {
            // SAFETY: nothing of this program has opened it, so nothing of it uses it.
            unsafe { libc::close(fd) };
        }
    }
}

/// Does something in a thread that holds no descriptor of this process, and waits for it.
///
/// For requests to a file system of our own: when the process is killed meanwhile, the waiting thread ends only when the
/// connection does, and that when nobody holds it open.
pub fn without_descriptors<T: Send>(act: impl FnOnce() -> T + Send) -> io::Result<T> {
    let thread = || {
        // SAFETY: the thread gets a table of descriptors of its own, whose other users are those of the old one. An old
        // kernel refuses, and nothing is lost but what the comment above says.
        unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_UNSHARE) };
        act()
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("first look".into()).spawn_scoped(scope, thread)?;
        thread.join().map_err(|_| io::Error::other("the thread panicked"))
    })
}

/// Takes a variable out of the environment, also out of what /proc/PID/environ shows; gives its value.
///
/// Must be called while the process has one thread (None otherwise, and nothing happens).
pub fn take_variable(name: &str) -> Option<Zeroizing<Vec<u8>>> {
    if std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() != 1) {
        return None;
    }
    let value = Zeroizing::new(std::env::var_os(name)?.into_vec());
    let key = CString::new(name).ok()?;
    // SAFETY: there is one thread, so nobody else reads or changes the environment. getenv points at the value's own
    // bytes, up to their NUL.
    unsafe {
        let at = libc::getenv(key.as_ptr());
        if !at.is_null() {
            for offset in 0..libc::strlen(at) {
                std::ptr::write_volatile(at.add(offset), 0);
            }
        }
        std::env::remove_var(name);
    }
    Some(value)
}

/// Which of the two processes this is after [`daemonize`].
#[derive(Debug)]
#[must_use]
pub enum Side {
    /// The one the user started: waits for the other's word, then exits.
    Front(Waiter),
    /// The one that stays, in a session of its own.
    Back(Starter),
}

/// What the background process said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Started {
    Ready,
    /// Start-up failed with this exit code and message.
    Failed(u8, String),
    /// It ended without a word.
    Died,
}

/// The waiting end, in the front process.
#[derive(Debug)]
pub struct Waiter {
    pipe: File,
}

/// The reporting end, in the background process; dropped without a word it means `Died`.
#[derive(Debug)]
pub struct Starter {
    pipe: File,
}

const READY: u8 = b'+';
const FAILED: u8 = b'-';

/// Forks. The background process has a session of its own and keeps the terminal for its messages until it
/// says [`Starter::ready`].
///
/// Must be called while the process has one thread (an error otherwise): a fork copies no other.
pub fn daemonize() -> io::Result<Side> {
    // Without /proc nobody can count them.
    if std::fs::read_dir("/proc/self/task").is_ok_and(|threads| threads.count() != 1) {
        return Err(io::Error::other("going into the background must come before the first thread"));
    }
    let mut ends = [0i32; 2];
    // SAFETY: `ends` has room for the two descriptors.
    check(|| unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: the call just gave us both descriptors, nobody else owns them.
    let (read, write) = unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) };
    // SAFETY: there is one thread, so the child may do anything the parent could.
    match check(|| unsafe { libc::fork() })? {
        0 => {
            drop(read);
            // SAFETY: no memory is involved. A fresh child leads no group, so this can't fail.
            check(|| unsafe { libc::setsid() })?;
            Ok(Side::Back(Starter { pipe: File::from(write) }))
        }
        _ => Ok(Side::Front(Waiter { pipe: File::from(read) })),
    }
}

impl Waiter {
    /// Waits for the background process's word.
    pub fn wait(mut self) -> io::Result<Started> {
        let mut word = Vec::new();
        self.pipe.read_to_end(&mut word)?;
        Ok(match word.split_first() {
            Some((&READY, _)) => Started::Ready,
            Some((&FAILED, rest)) => {
                let (code, message) = rest.split_first().map_or((1, &[][..]), |(code, message)| (*code, message));
                Started::Failed(code, String::from_utf8_lossy(message).into_owned())
            }
            _ => Started::Died,
        })
    }
}

impl Starter {
    /// Reports success and lets go of the terminal: stdin becomes /dev/null, stdout and stderr go to `log`.
    ///
    /// The working directory stays; leave it (`set_current_dir("/")`) where all paths in use are absolute.
    pub fn ready(mut self, log: &File) -> io::Result<()> {
        let null = File::open("/dev/null")?;
        for (standard, target) in [(0, &null), (1, log), (2, log)] {
            // SAFETY: no memory is involved; both descriptors are open.
            check(|| unsafe { libc::dup2(target.as_raw_fd(), standard) })?;
        }
        self.pipe.write_all(&[READY])
    }

    /// Reports that start-up failed; the caller exits.
    pub fn failed(mut self, exit_code: u8, message: &str) -> io::Result<()> {
        self.pipe.write_all(&[&[FAILED, exit_code], message.as_bytes()].concat())
    }
}

/// Ends the process at once: what libraries do at an exit must not happen beneath threads that are kept by a server.
pub fn end(code: u8) -> ! {
    let _ = io::stdout().flush();
    // SAFETY: no memory is passed; it does not return.
    unsafe { libc::_exit(i32::from(code)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Waiter, Starter) {
        let (read, write) = io::pipe().unwrap();
        (Waiter { pipe: File::from(OwnedFd::from(read)) }, Starter { pipe: File::from(OwnedFd::from(write)) })
    }

    #[test]
    fn the_front_process_hears_failure_and_death() {
        let (waiter, starter) = pair();
        starter.failed(11, "it is locked").unwrap();
        assert_eq!(waiter.wait().unwrap(), Started::Failed(11, "it is locked".into()));
        let (waiter, starter) = pair();
        drop(starter);
        assert_eq!(waiter.wait().unwrap(), Started::Died);
        let (waiter, mut starter) = pair();
        starter.pipe.write_all(&[READY]).unwrap();
        drop(starter);
        assert_eq!(waiter.wait().unwrap(), Started::Ready);
    }

    #[test]
    fn no_fork_once_there_are_threads() {
        let (stop, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || wait.recv());
        assert!(daemonize().is_err());
        drop(stop);
        assert!(thread.join().unwrap().is_err());
    }

    #[test]
    fn identity_and_limits_make_sense() {
        assert!(raise_open_file_limit().unwrap() >= 1024);
        assert_eq!(hostname(), std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap().trim_end());
        assert!(is_alive(std::process::id()));
        assert!(!is_alive(0) && !is_alive(u32::MAX));
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        assert!(status.contains(&format!("Uid:\t{}\t{}", getuid(), geteuid())));
        assert!(status.contains(&format!("Gid:\t{}\t{}", getgid(), getegid())));
    }
}

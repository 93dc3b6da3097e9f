//! A mount that ends with its process, also when that crashes.
//!
//! Invariants: the handler calls only what may be called in one (umount2, clone, execv, waitpid, raise), and takes no
//! lock; the process dies of the signal all the same.

use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::ptr;
use std::sync::atomic::{AtomicPtr, Ordering};

use super::c_string;

/// What the kernel sends to a process that did something impossible.
const CRASHES: [i32; 7] =
    [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP, libc::SIGSYS];

struct Target {
    point: CString,
    /// `fusermount3 -u -z -- POINT`, for users who may not unmount, ended by a null pointer.
    arguments: [*const libc::c_char; 6],
}

static TARGET: AtomicPtr<Target> = AtomicPtr::new(ptr::null_mut());

/// The mount goes away with a crash while this lives.
#[derive(Debug)]
pub struct Guard(());

/// Sets handlers that take the mount at `point` away before the process dies of a crash.
///
/// One at a time: a later call takes the place of an earlier one.
pub fn unmount_on_crash(point: &Path, helper: &Path) -> io::Result<Guard> {
    let point = c_string(point.as_os_str().as_bytes())?;
    let helper = c_string(helper.as_os_str().as_bytes())?;
    // Never given back: a handler may run at any time.
    let leak = |text: CString| text.into_raw().cast_const();
    let arguments = [leak(helper), c"-u".as_ptr(), c"-z".as_ptr(), c"--".as_ptr(), leak(point.clone()), ptr::null()];
    TARGET.store(Box::into_raw(Box::new(Target { point, arguments })), Ordering::Release);
    for signal in CRASHES {
        // SAFETY: `sigaction` is plain integers and pointers, for which zeros are valid.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = crashed as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
        action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: `action` is readable for the whole call, and its handler keeps to what handlers may do.
        super::check(|| unsafe { libc::sigaction(signal, &raw const action, ptr::null_mut()) })?;
    }
    Ok(Guard(()))
}

impl Drop for Guard {
    fn drop(&mut self) {
        TARGET.store(ptr::null_mut(), Ordering::Release);
    }
}

extern "C" fn crashed(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives the `siginfo` of this signal.
    if signal == libc::SIGBUS && unsafe { super::mapped::stand_in(info) } {
        return;
    }
    let target = TARGET.swap(ptr::null_mut(), Ordering::AcqRel);
    // SAFETY: what the pointer leads to was leaked, whole, before it was stored. The calls are plain system calls; the
    // child of the clone, which copies the address space, does nothing but exec.
    unsafe {
        if let Some(target) = target.as_ref()
            && libc::umount2(target.point.as_ptr(), libc::MNT_DETACH | libc::UMOUNT_NOFOLLOW) != 0
        {
            match libc::syscall(libc::SYS_clone, libc::SIGCHLD, 0, 0, 0, 0) {
                0 => {
                    libc::execv(target.arguments[0], target.arguments.as_ptr());
                    libc::_exit(127);
                }
                child if child > 0 => {
                    libc::waitpid(child as libc::pid_t, ptr::null_mut(), 0);
                }
                _ => {}
            }
        }
        // Blocked until the handler returns, and then deadly.
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

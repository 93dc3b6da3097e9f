//! Memory that is mapped from a file (SQLite's `index.db-shm`), when the file is cut off, or its disk fails, under it.
//!
//! Invariants: the access that finds nothing gets zeros, in a page of this process alone, and from then on `is_lost` is
//! true: whoever used the mapping must not believe what came of it, and end. Program code is never replaced so.

use std::io;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst};

use super::check;

static LOST: AtomicBool = AtomicBool::new(false);
/// Signal that tells the process; 0: none.
static TELL_BY: AtomicI32 = AtomicI32::new(0);
static KNOWN: OnceLock<Known> = OnceLock::new();

/// What the handler needs and can't ask for.
struct Known {
    page_bytes: usize,
    /// Where the program and its libraries are mapped.
    program: Vec<(usize, usize)>,
}

/// From now on SIGBUS for a lost page of a mapped file ends nobody at once.
pub fn guard() -> io::Result<()> {
    // SAFETY: no memory is involved.
    let page_bytes = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096);
    let mut program: Vec<(usize, usize)> = Vec::new();
    // SAFETY: the callback gets back the vector, which outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(note_object), (&raw mut program).cast()) };
    let _ = KNOWN.set(Known { page_bytes, program });
    // SAFETY: `sigaction` is plain data, for which zeros are valid.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_bus_error as extern "C" fn(i32, *mut libc::siginfo_t, *mut libc::c_void) as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    // SAFETY: the action is initialized, and its handler only does what a signal handler may.
    check(|| unsafe { libc::sigaction(libc::SIGBUS, &raw const action, ptr::null_mut()) }).map(drop)
}

/// The process gets this signal when a mapped file is lost.
pub fn tell_by(signal: i32) {
    TELL_BY.store(signal, SeqCst);
}

/// A mapped file was cut off, or could not be read, under this process.
pub fn is_lost() -> bool {
    LOST.load(SeqCst)
}

extern "C" fn note_object(info: *mut libc::dl_phdr_info, _: usize, into: *mut libc::c_void) -> i32 {
    // SAFETY: the loader gives a valid object with `dlpi_phnum` headers, and `guard` its own vector.
    unsafe {
        let program = &mut *into.cast::<Vec<(usize, usize)>>();
        let headers = std::slice::from_raw_parts((*info).dlpi_phdr, usize::from((*info).dlpi_phnum));
        for header in headers.iter().filter(|header| header.p_type == libc::PT_LOAD) {
            let start = (*info).dlpi_addr as usize + header.p_vaddr as usize;
            program.push((start, start + header.p_memsz as usize));
        }
    }
    0
}

extern "C" fn on_bus_error(signal: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: the kernel gives a valid `siginfo`, and `signal` may be called here.
    unsafe {
        if !stand_in(info) {
            // The access fails again, and ends the process as it would have.
            libc::signal(signal, libc::SIG_DFL);
        }
    }
}

/// Puts a page of zeros where the access failed, if that was in a mapped file.
///
/// # Safety
/// In the handler of a SIGBUS, with its `siginfo`.
pub(super) unsafe fn stand_in(info: *mut libc::siginfo_t) -> bool {
    // SAFETY: the caller gives a valid `siginfo`; `mmap`, `kill` and `signal` may be called here; the page that is
    // replaced is one whose access just failed.
    unsafe {
        let at = (*info).si_addr() as usize;
        let replaced = KNOWN.get().is_some_and(|known| {
            let page = at & !(known.page_bytes - 1);
            let is_program = known.program.iter().any(|(start, end)| page < *end && at >= *start);
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED;
            let access = libc::PROT_READ | libc::PROT_WRITE;
            (*info).si_code == libc::BUS_ADRERR
                && !is_program
                && libc::mmap(page as *mut _, known.page_bytes, access, flags, -1, 0) != libc::MAP_FAILED
        });
        if !replaced {
            return false;
        }
        LOST.store(true, SeqCst);
        match TELL_BY.load(SeqCst) {
            0 => {}
            by => {
                libc::kill(libc::getpid(), by);
            }
        }
        true
    }
}

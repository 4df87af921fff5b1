//! Memory that only the start, or a look at every socket, has needed: given back to the kernel.

use std::ffi::c_void;
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};

/// No page is larger on the machines that this runs on.
const PAGE: usize = 64 * 1024;

/// Gives back what the allocator holds and nobody uses, and the program's code.
pub fn give_back() {
    // The allocator would keep it: a loaded object and a list of all sockets are many small pieces, and few of
    // them lie at the end of the heap.
    // SAFETY: takes any number, and releases what nobody uses.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
    forget_code();
}

/// Lets the kernel take back the code and the constants of this program. It maps 64 kB around whatever runs once,
/// which at the start is nearly all there is; what runs from here on comes back, out of the page cache.
fn forget_code() {
    // By the linker: where the program begins, and where its code ends. Both segments in between are never written.
    unsafe extern "C" {
        static __executable_start: u8;
        static etext: u8;
    }
    let begin = (&raw const __executable_start).addr().next_multiple_of(PAGE);
    let end = (&raw const etext).addr() / PAGE * PAGE;
    let Some(code) = NonNull::new((&raw const __executable_start).with_addr(begin).cast_mut())
    else {
        return;
    };
    // SAFETY: the pages are the file's, mapped for reading only and never written: each is the same when it is
    // read again.
    let forgotten = unsafe {
        madvise(code.cast::<c_void>(), end.saturating_sub(begin), MmapAdvise::MADV_DONTNEED)
    };
    if let Err(error) = forgotten {
        log::debug!("the code stays in memory: {error}");
    }
}

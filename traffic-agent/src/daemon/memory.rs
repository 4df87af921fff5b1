//! Memory that only the start, or a look at every socket, has needed.

/// Gives back to the kernel what the allocator holds and nobody uses. It would keep it: a loaded object and a list
/// of all sockets are many small pieces, and few of them lie at the end of the heap.
pub fn give_back() {
    // SAFETY: takes any number, and releases what nobody uses.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::malloc_trim(0)
    };
}

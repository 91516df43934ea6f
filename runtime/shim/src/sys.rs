//! The allocator's settings, which no safe wrapper offers.
#![allow(unsafe_code)]

/// Buffers from this size on are mapped by themselves and vanish when freed, instead of leaving holes in the heap.
const MAPPED_FROM: i32 = 16 * 1024;

/// An allocator that keeps little: one heap for both threads, a second one would cost pages in every shim of the
/// node, and nothing kept in stock at its top.
pub(crate) fn frugal_heap() {
    // SAFETY: sets parameters of the allocator before a second thread exists.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM);
        libc::mallopt(libc::M_TOP_PAD, 0);
    }
}

/// Gives freed heap pages back to the kernel.
pub(crate) fn trim_heap() {
    // SAFETY: has no preconditions.
    unsafe { libc::malloc_trim(0) };
}

//! What the daemon tells its allocator: texts of megabytes, such as a scrape of every pod, go back to
//! the kernel when they are done with, whatever thread made them.

#![allow(unsafe_code)]

/// Larger pieces get memory of their own. Left alone, the C library raises this to the largest
/// piece that was ever freed, and such pieces then fragment the heap for good.
#[cfg(target_env = "gnu")]
const OWN_MAPPING_BYTES: i32 = 256 << 10;

/// Heaps that threads share; by default there are eight for each processor.
#[cfg(target_env = "gnu")]
const HEAPS: i32 = 2;

/// To be called before there are threads.
pub(crate) fn limit_heaps() {
    #[cfg(target_env = "gnu")]
    // SAFETY: two integers each; no other thread allocates yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, HEAPS);
        libc::mallopt(libc::M_MMAP_THRESHOLD, OWN_MAPPING_BYTES);
    }
}

//! An allocator for processes that live for one container or one exec: what they need lies together.
//!
//! A forked process pays a page fault for each page that it or its parent writes to, and libc's allocator spreads a few
//! kilobytes over all the holes of the heap that it inherits. Own code, because the libraries of such arenas (`bumpalo`
//! and its like) are no allocator of a whole program, which serde and std take from.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::{Cell, UnsafeCell};
use std::sync::atomic::{AtomicBool, Ordering};

/// The program's allocator: libc's, and for a thread that has begun with it, the arena while there is room.
#[derive(Debug)]
pub struct Arena;

/// Several times what a specification with all its lists takes. A page of it costs memory when it is first used.
const SIZE: usize = 256 << 10;

/// The alignment of `Space`.
const ALIGN: usize = 4096;

#[repr(align(4096))]
struct Space(UnsafeCell<[u8; SIZE]>);

// SAFETY: only the one thread that has taken it gives out parts of it, each to one owner.
unsafe impl Sync for Space {}

static SPACE: Space = Space(UnsafeCell::new([0; SIZE]));
static TAKEN: AtomicBool = AtomicBool::new(false);

thread_local! {
    static ROUND: Cell<Option<Round>> = const { Cell::new(None) };
}

/// What has been given out since the last beginning, by offsets.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Round {
    base: usize,
    top: usize,
    blocks: usize,
}

impl Arena {
    /// From here on this thread allocates from the arena. What it frees comes back when all of the round is free: begin
    /// again with each task, so that what outlives one does not keep the room of the next.
    pub fn begin() {
        let begun = match ROUND.get() {
            Some(Round { top, .. }) => Some(Round { base: top, top, blocks: 0 }),
            None if !TAKEN.swap(true, Ordering::Relaxed) => Some(Round::default()),
            None => None,
        };
        ROUND.set(begun);
    }

    /// Runs `work` with libc's allocator, for what another thread will free.
    pub(super) fn aside<R>(work: impl FnOnce() -> R) -> R {
        let round = ROUND.take();
        let done = work();
        ROUND.set(round);
        done
    }

    /// How far this thread's round is.
    pub(super) fn mark() -> Option<Round> {
        ROUND.get()
    }

    /// What has been given out since then is nobody's any more, and nothing from before it was freed.
    pub(super) fn back_to(mark: Option<Round>) {
        ROUND.set(mark);
    }

    fn take(layout: Layout) -> Option<*mut u8> {
        let mut round = ROUND.get().filter(|_| layout.align() <= ALIGN)?;
        let at = round.top.next_multiple_of(layout.align());
        let top = at.checked_add(layout.size()).filter(|top| *top <= SIZE)?;
        (round.top, round.blocks) = (top, round.blocks + 1);
        ROUND.set(Some(round));
        // SAFETY: within the space, which is as much aligned.
        Some(unsafe { SPACE.0.get().cast::<u8>().add(at) })
    }

    /// Whether it is a part of the arena.
    fn give_back(block: *mut u8, layout: Layout) -> bool {
        let Some(at) = Self::offset(block) else { return false };
        // By another thread, or from before this round: lost to the arena, as it never was to another owner.
        let Some(mut round) = ROUND.get().filter(|round| at >= round.base) else { return true };
        round.blocks -= 1;
        if round.blocks == 0 {
            round.top = round.base;
        } else if at + layout.size() == round.top {
            round.top = at;
        }
        ROUND.set(Some(round));
        true
    }

    /// Lets the last block grow where it is; any may shrink.
    fn resize(block: *mut u8, layout: Layout, size: usize) -> bool {
        let (Some(at), Some(mut round)) = (Self::offset(block), ROUND.get()) else { return false };
        if at + layout.size() != round.top || at < round.base || size > SIZE - at {
            return size <= layout.size();
        }
        round.top = at + size;
        ROUND.set(Some(round));
        true
    }

    fn offset(block: *mut u8) -> Option<usize> {
        let at = block.addr().wrapping_sub(SPACE.0.get().addr());
        (at < SIZE).then_some(at)
    }
}

// SAFETY: blocks of the arena do not overlap: each begins behind all that are in use, since `top` moves back only over
// the last one or when none is. All others are libc's.
unsafe impl GlobalAlloc for Arena {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: as the caller's.
        Self::take(layout).unwrap_or_else(|| unsafe { System.alloc(layout) })
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if !Self::give_back(block, layout) {
            // SAFETY: as the caller's: it came from there.
            unsafe { System.dealloc(block, layout) }
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let Some(block) = Self::take(layout) else {
            // SAFETY: as the caller's.
            return unsafe { System.alloc_zeroed(layout) };
        };
        // SAFETY: it is that long. It may have been used before.
        unsafe { block.write_bytes(0, layout.size()) };
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        if Self::offset(block).is_none() {
            // SAFETY: as the caller's: it came from there.
            return unsafe { System.realloc(block, layout, size) };
        }
        if Self::resize(block, layout, size) {
            return block;
        }
        // SAFETY: the caller's size, rounded up to this alignment, does not overflow.
        let wider = unsafe { Layout::from_size_align_unchecked(size, layout.align()) };
        // SAFETY: the size is not 0, by the caller; both blocks are as long as the shorter one, and apart.
        unsafe {
            let moved = self.alloc(wider);
            if !moved.is_null() {
                block.copy_to_nonoverlapping(moved, layout.size().min(size));
                self.dealloc(block, layout);
            }
            moved
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block, what it is filled with, and how long it is.
    type Held = (*mut u8, u8, Layout);

    fn layout(size: usize) -> Layout {
        Layout::from_size_align(size, 8).expect("layout")
    }

    fn take(size: usize, byte: u8) -> Held {
        let layout = layout(size);
        // SAFETY: the size is not 0, and the block is that long.
        unsafe {
            let block = Arena.alloc_zeroed(layout);
            assert!((0..size).all(|n| *block.add(n) == 0), "zeroed");
            block.write_bytes(byte, size);
            (block, byte, layout)
        }
    }

    fn check_and_free((block, byte, layout): Held) {
        // SAFETY: it is in use and that long.
        unsafe {
            assert!((0..layout.size()).all(|n| *block.add(n) == byte), "nobody else wrote here");
            Arena.dealloc(block, layout);
        }
    }

    fn resize((block, byte, before): Held, size: usize) -> Held {
        // SAFETY: it is in use, the new size is not 0, and what is checked is in both.
        unsafe {
            let moved = Arena.realloc(block, before, size);
            assert!((0..size.min(before.size())).all(|n| *moved.add(n) == byte), "kept");
            moved.write_bytes(byte, size);
            (moved, byte, layout(size))
        }
    }

    fn is_within(held: &Held) -> bool {
        Arena::offset(held.0).is_some()
    }

    // One test, for only one thread of a process gets the arena.
    #[test]
    fn blocks_are_apart_and_a_rounds_room_comes_back() {
        let before = take(100, 1);
        assert!(!is_within(&before), "not begun");
        Arena::begin();
        let (first, second) = (take(100, 2), take(100, 3));
        assert_eq!(second.0.addr() - first.0.addr(), 104);
        let second = resize(second, 5000);
        assert_eq!(second.0.addr() - first.0.addr(), 104, "the last one grows in place");
        let first = resize(first, 200);
        assert!(first.0.addr() > second.0.addr(), "another one moves");
        let too_long = take(SIZE, 4);
        let too_aligned = Layout::from_size_align(8, 2 * ALIGN).expect("layout");
        assert!(!is_within(&too_long) && Arena::take(too_aligned).is_none());
        let elsewhere = std::thread::spawn(|| {
            Arena::begin();
            is_within(&take(8, 5))
        });
        assert!(!elsewhere.join().expect("ended"), "another thread has libc's");

        assert!(!is_within(&Arena::aside(|| take(100, 8))));
        let mark = Arena::mark();
        (0..9).for_each(|n| _ = take(500, n));
        Arena::back_to(mark);
        assert_eq!(Arena::mark().map(|round| round.top), mark.map(|round| round.top));

        // A task's memory, of which something outlives the next one.
        Arena::begin();
        let kept = take(64, 6);
        Arena::begin();
        let begin = Arena::offset(take(16, 7).0).expect("within");
        Arena::begin();
        let after_kept = || ROUND.get().expect("begun").top;
        let base = after_kept();
        chance();
        assert_eq!(after_kept(), base, "all came back");
        assert!(begin < base);
        [before, too_long, kept, first, second].into_iter().for_each(check_and_free);
        assert_eq!(after_kept(), base, "what is older than the round changes nothing");
    }

    /// Takes, resizes and frees in no order, beyond the arena's size.
    fn chance() {
        let mut held: Vec<Held> = Vec::new();
        let mut dice = 12345u32;
        for n in 0..20_000u32 {
            dice = dice.wrapping_mul(1_103_515_245).wrapping_add(12345);
            let (roll, size) = (dice >> 16, 1 + (dice >> 8) as usize % 900);
            match roll % 5 {
                0..2 => held.push(take(size, n as u8)),
                2 if !held.is_empty() => {
                    let at = roll as usize / 5 % held.len();
                    held[at] = resize(held[at], size);
                }
                _ if !held.is_empty() => {
                    check_and_free(held.swap_remove(roll as usize / 5 % held.len()));
                }
                _ => {}
            }
        }
        held.drain(..).for_each(check_and_free);
    }
}

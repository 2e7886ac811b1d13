//! Who allocates, and who frees what others have allocated.

use std::{
    alloc::{GlobalAlloc, Layout},
    cell::Cell,
    ops::Sub,
    sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
};

use mimalloc::MiMalloc;

/// Kinds of threads.
const KINDS: usize = 4;
pub(crate) const OTHER: usize = 0;
/// The proxy's workers; the tests have no more.
pub(crate) const WORKERS: [usize; 2] = [1, 2];
pub(crate) const LOG: usize = 3;

/// Notes in front of each block which kind of thread has allocated it.
pub(crate) struct Noting;

#[global_allocator]
static NOTING: Noting = Noting;

static ALLOCATED: [AtomicU64; KINDS] = [const { AtomicU64::new(0) }; KINDS];
/// By whose block it was, and who has freed it.
static FREED: [[AtomicU64; KINDS]; KINDS] = [const { [const { AtomicU64::new(0) }; KINDS] }; KINDS];
/// Threads look at their names again when it changes: the first block of one comes before its name.
static AGE: AtomicU32 = AtomicU32::new(1);

thread_local! {
    /// The age at which it was looked, and the kind. Without destructor, so it is there always.
    static ME: Cell<(u32, usize)> = const { Cell::new((0, OTHER)) };
}

fn me() -> usize {
    let age = AGE.load(Relaxed);
    ME.with(|me| {
        let (looked, kind) = me.get();
        if looked == age {
            return kind;
        }
        let kind = kind_by_name();
        me.set((age, kind));
        kind
    })
}

fn kind_by_name() -> usize {
    let mut name = [0u8; 16];
    // SAFETY: the kernel writes at most 16 bytes there, the last of them zero.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    match name.split(|byte| *byte == 0).next() {
        Some(b"proxy-0") => WORKERS[0],
        Some(b"proxy-1") => WORKERS[1],
        Some(b"access-log") => LOG,
        _ => OTHER,
    }
}

/// Bytes in front of a block, whose last word is the kind.
fn room(layout: Layout) -> Option<(Layout, usize)> {
    let before = layout.align().max(16);
    let size = layout.size().checked_add(before)?;
    Some((Layout::from_size_align(size, before).ok()?, before))
}

// SAFETY: blocks are those of the daemon's allocator, with a part at their beginning that nobody
// else sees, and which leaves them aligned.
unsafe impl GlobalAlloc for Noting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let Some((whole, before)) = room(layout) else {
            return std::ptr::null_mut();
        };
        let kind = me();
        // SAFETY: the size is not zero.
        let base = unsafe { MiMalloc.alloc(whole) };
        if base.is_null() {
            return base;
        }
        if let Some(count) = ALLOCATED.get(kind) {
            count.fetch_add(1, Relaxed);
        }
        // SAFETY: `before` bytes, at least 16 and a multiple of the alignment, lie in front.
        unsafe {
            let block = base.add(before);
            block.cast::<usize>().sub(1).write(kind);
            block
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let Some((whole, before)) = room(layout) else {
            return;
        };
        // SAFETY: it was written when the block was made.
        let kind = unsafe { block.cast::<usize>().sub(1).read() };
        if let Some(count) = FREED.get(kind).and_then(|by| by.get(me())) {
            count.fetch_add(1, Relaxed);
        }
        // SAFETY: this is where that allocator's block begins, and its layout.
        unsafe { MiMalloc.dealloc(block.sub(before), whole) };
    }
}

/// What was counted, of all threads.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Counts {
    allocated: [u64; KINDS],
    freed: [[u64; KINDS]; KINDS],
}

impl Counts {
    pub(crate) fn now() -> Self {
        Self {
            allocated: std::array::from_fn(|kind| ALLOCATED[kind].load(Relaxed)),
            freed: std::array::from_fn(|of| std::array::from_fn(|by| FREED[of][by].load(Relaxed))),
        }
    }

    /// The same, when all threads that there are have looked at their names.
    pub(crate) fn anew() -> Self {
        AGE.fetch_add(1, Relaxed);
        Self::now()
    }

    /// Blocks that threads of a kind have allocated, those that were made larger included.
    pub(crate) const fn allocated(&self, by: usize) -> u64 {
        self.allocated[by]
    }

    /// Blocks of a kind that were freed by another.
    pub(crate) const fn freed(&self, of: usize, by: usize) -> u64 {
        self.freed[of][by]
    }
}

impl Sub for Counts {
    type Output = Self;

    fn sub(self, before: Self) -> Self {
        Self {
            allocated: std::array::from_fn(|kind| self.allocated[kind] - before.allocated[kind]),
            freed: std::array::from_fn(|of| {
                std::array::from_fn(|by| self.freed[of][by] - before.freed[of][by])
            }),
        }
    }
}

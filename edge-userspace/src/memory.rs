//! Memory that is shared with the kernel, as atomics.

use std::{
    alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error},
    fmt, io,
    os::fd::{AsRawFd, BorrowedFd},
    ptr::{NonNull, null_mut},
    slice,
    sync::atomic::{AtomicU32, AtomicU64},
};

/// Alignment of heap regions: that of a bucket of the widest table, so that
/// buckets lie on cache lines as they do in a map.
const HEAP_ALIGN: usize = 128;

/// A span of memory that others may read and write at any time: the values of
/// a mappable BPF array, or plain memory in its place for tests.
///
/// It can be seen as 32-bit or as 64-bit words. Whoever uses a region keeps to
/// one width for each word of it: the two views must not be mixed on the same
/// bytes.
pub struct Region {
    start: NonNull<AtomicU64>,
    words: usize,
    origin: Origin,
}

enum Origin {
    Heap(Layout),
    Mapping { mapped_bytes: usize },
}

// SAFETY: the memory belongs to the region until it is dropped, is not bound to
// a thread, and is only reached through atomics.
unsafe impl Send for Region {}
// SAFETY: as above; atomics may be used from several threads at once.
unsafe impl Sync for Region {}

impl Region {
    /// Zeroed memory of the process, `bytes` rounded up to whole 64-bit words.
    pub fn heap(bytes: usize) -> Self {
        let words = bytes.div_ceil(8);
        let size = words
            .max(1)
            .next_multiple_of(HEAP_ALIGN / 8)
            .saturating_mul(8);
        let Ok(layout) = Layout::from_size_align(size, HEAP_ALIGN) else {
            handle_alloc_error(Layout::new::<[u64; 16]>())
        };
        // SAFETY: the layout has a size of at least one word.
        let start = unsafe { alloc_zeroed(layout) };
        let Some(start) = NonNull::new(start.cast()) else {
            handle_alloc_error(layout)
        };
        Self {
            start,
            words,
            origin: Origin::Heap(layout),
        }
    }

    /// The values of a BPF array made with `BPF_F_MMAPABLE`, of `bytes` bytes:
    /// its number of entries by the value size, which must be a multiple of 8.
    ///
    /// # Errors
    /// What `mmap` says: `EINVAL` or `EPERM` when the descriptor is no mappable
    /// array, or a smaller one. `InvalidInput` when `bytes` is zero or not a
    /// multiple of 8.
    pub fn map_array(fd: BorrowedFd<'_>, bytes: usize) -> io::Result<Self> {
        if bytes == 0 || !bytes.is_multiple_of(8) {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "the size of a mapped array must be a positive multiple of 8 bytes",
            ));
        }
        // SAFETY: no address is asked for, so that no mapping is replaced; the
        // kernel checks descriptor and size.
        let start = unsafe {
            libc::mmap(
                null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                fd.as_raw_fd(),
                0,
            )
        };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast())
            .ok_or_else(|| io::Error::other("mmap returned a null address"))?;
        Ok(Self {
            start,
            words: bytes / 8,
            origin: Origin::Mapping {
                mapped_bytes: bytes,
            },
        })
    }

    /// Size in bytes.
    pub const fn bytes(&self) -> usize {
        self.words * 8
    }

    /// The memory as 64-bit words.
    pub const fn u64s(&self) -> &[AtomicU64] {
        // SAFETY: `start` is aligned for and valid over `words` words as long as
        // `self` lives; an AtomicU64 may have any bits and be written by others.
        unsafe { slice::from_raw_parts(self.start.as_ptr(), self.words) }
    }

    /// The memory as 32-bit words.
    pub const fn u32s(&self) -> &[AtomicU32] {
        // SAFETY: as for `u64s`; two 32-bit words fill each 64-bit one, and the
        // alignment of the latter is enough.
        unsafe { slice::from_raw_parts(self.start.as_ptr().cast(), self.words * 2) }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        let start = self.start.as_ptr();
        match self.origin {
            // SAFETY: allocated in `heap` with this layout, and freed only here.
            Origin::Heap(layout) => unsafe { dealloc(start.cast(), layout) },
            // SAFETY: mapped in `map_array` with this size, and unmapped only
            // here; no borrow outlives `self`.
            Origin::Mapping { mapped_bytes } => unsafe {
                libc::munmap(start.cast(), mapped_bytes);
            },
        }
    }
}

impl fmt::Debug for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.origin {
            Origin::Heap(_) => "heap",
            Origin::Mapping { .. } => "mapping",
        };
        write!(f, "Region({kind}, {} bytes)", self.bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{fs::File, os::fd::AsFd, sync::atomic::Ordering::Relaxed};

    #[test]
    fn heap_memory_is_zeroed_and_seen_in_both_widths() {
        let r = Region::heap(129);
        assert_eq!((r.bytes(), r.u64s().len(), r.u32s().len()), (136, 17, 34));
        assert!(r.u64s().iter().all(|w| w.load(Relaxed) == 0));
        assert_eq!(r.u64s().as_ptr() as usize % HEAP_ALIGN, 0);
        r.u32s()[33].store(7, Relaxed);
        assert_eq!(r.u32s()[33].load(Relaxed), 7);
    }

    #[test]
    fn a_shared_mapping_is_written_through() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(4096).unwrap();
        let a = Region::map_array(file.as_fd(), 4096).unwrap();
        let b = Region::map_array(file.as_fd(), 4096).unwrap();
        a.u64s()[511].store(42, Relaxed);
        assert_eq!(b.u64s()[511].load(Relaxed), 42);
    }

    #[test]
    fn what_cannot_be_mapped_is_an_error() {
        let file = tempfile::tempfile().unwrap();
        for bytes in [0, 12] {
            let e = Region::map_array(file.as_fd(), bytes).unwrap_err();
            assert_eq!(e.kind(), io::ErrorKind::InvalidInput);
        }
        let directory = File::open("/").unwrap();
        assert!(Region::map_array(directory.as_fd(), 4096).is_err());
    }
}

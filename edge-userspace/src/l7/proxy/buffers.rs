//! Buffers that the connections of a worker share: who waits for the other side has none.

use std::{
    cell::RefCell,
    ops::{Deref, DerefMut},
    rc::Rc,
};

/// Buffers that are kept for later, at the most.
const KEPT: usize = 512;

/// The buffers of one worker, all of one size.
#[derive(Debug)]
pub(super) struct Buffers {
    size: usize,
    /// The last one given back is the next one given out: it is still in the cache.
    free: RefCell<Vec<Box<[u8]>>>,
}

impl Buffers {
    /// Buffers of so many bytes.
    pub(super) const fn new(size: usize) -> Self {
        Self {
            size,
            free: RefCell::new(Vec::new()),
        }
    }

    /// A buffer with whatever was in it.
    pub(super) fn take(self: &Rc<Self>) -> Buffer {
        let bytes = self.free.borrow_mut().pop();
        Buffer {
            bytes: bytes.unwrap_or_else(|| vec![0; self.size].into_boxed_slice()),
            home: self.clone(),
        }
    }
}

/// A buffer, which goes home by itself.
#[derive(Debug)]
pub(super) struct Buffer {
    bytes: Box<[u8]>,
    home: Rc<Buffers>,
}

impl Deref for Buffer {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes
    }
}

impl DerefMut for Buffer {
    fn deref_mut(&mut self) -> &mut [u8] {
        &mut self.bytes
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        let mut free = self.home.free.borrow_mut();
        if free.len() < KEPT {
            free.push(std::mem::take(&mut self.bytes));
        }
    }
}

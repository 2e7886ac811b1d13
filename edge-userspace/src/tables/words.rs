//! The single loads and stores of which all work on shared memory consists.
//!
//! In tests a hook can be put between any two of them: that is how every
//! interleaving of a reader and the writer is tried one by one.

use std::sync::atomic::{
    AtomicU32, AtomicU64,
    Ordering::{Acquire, Release},
};

/// A word of shared memory.
pub(super) trait Word {
    /// What it holds.
    type Value;

    /// Reads it, before everything that follows.
    fn load_acquire(&self) -> Self::Value;

    /// Writes it, after everything that went before.
    fn store_release(&self, value: Self::Value);
}

impl Word for AtomicU32 {
    type Value = u32;

    fn load_acquire(&self) -> u32 {
        self.load(Acquire)
    }

    fn store_release(&self, value: u32) {
        self.store(value, Release);
    }
}

impl Word for AtomicU64 {
    type Value = u64;

    fn load_acquire(&self) -> u64 {
        self.load(Acquire)
    }

    fn store_release(&self, value: u64) {
        self.store(value, Release);
    }
}

/// Reads a word as readers must.
pub(super) fn load<W: Word>(word: &W) -> W::Value {
    #[cfg(test)]
    hook::on_load();
    word.load_acquire()
}

/// Writes a word as the writer must.
pub(super) fn store<W: Word>(word: &W, value: W::Value) {
    word.store_release(value);
    #[cfg(test)]
    hook::on_store();
}

/// What tests put between loads and stores, on their own thread.
#[cfg(test)]
pub(super) mod hook {
    use std::cell::RefCell;

    type Hook = RefCell<Option<Box<dyn FnMut()>>>;

    thread_local! {
        static LOAD: Hook = const { RefCell::new(None) };
        static STORE: Hook = const { RefCell::new(None) };
    }

    fn run(hook: &'static std::thread::LocalKey<Hook>) {
        // Taken out while it runs: what it does itself is not observed.
        if let Some(mut f) = hook.take() {
            f();
            hook.set(Some(f));
        }
    }

    pub(super) fn on_load() {
        run(&LOAD);
    }

    pub(super) fn on_store() {
        run(&STORE);
    }

    /// Runs `f` before every load of `work`.
    pub(in super::super) fn before_loads<T>(
        f: impl FnMut() + 'static,
        work: impl FnOnce() -> T,
    ) -> T {
        LOAD.set(Some(Box::new(f)));
        let result = work();
        LOAD.set(None);
        result
    }

    /// Runs `f` after every store of `work`.
    pub(in super::super) fn after_stores<T>(
        f: impl FnMut() + 'static,
        work: impl FnOnce() -> T,
    ) -> T {
        STORE.set(Some(Box::new(f)));
        let result = work();
        STORE.set(None);
        result
    }
}

//! Threads that stand still wherever they are, until they may go on.
//!
//! A thread gets its signal when it has been on a processor for a while. Sent from outside, signals
//! would meet it where it waits.

use std::{
    fs, io,
    sync::atomic::{AtomicBool, AtomicI32, Ordering::SeqCst},
    thread,
    time::Instant,
};

use super::rig::{PATIENCE, until};

const SIGNAL: i32 = libc::SIGUSR2;
/// Nanoseconds.
const LONGEST: u64 = 4_000_000;
/// Both ends of a pipe: who stands still waits for a byte.
static GATE: [AtomicI32; 2] = [const { AtomicI32::new(-1) }; 2];
static STANDS: AtomicBool = AtomicBool::new(false);

extern "C" fn stand_still(_: i32) {
    let mut byte = 0u8;
    STANDS.store(true, SeqCst);
    // SAFETY: it writes one byte; read(2) is safe in a handler (signal-safety(7)).
    unsafe { libc::read(GATE[0].load(SeqCst), (&raw mut byte).cast(), 1) };
    STANDS.store(false, SeqCst);
}

/// Lets threads be stopped, from now on.
pub(crate) fn prepare() {
    let mut ends = [-1; 2];
    // SAFETY: two descriptors are written.
    let made = unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) };
    assert_eq!(made, 0);
    for (end, fd) in GATE.iter().zip(ends) {
        end.store(fd, SeqCst);
    }
    // SAFETY: all zeros is an action without flags and with an empty mask.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = stand_still as extern "C" fn(i32) as usize;
    action.sa_flags = libc::SA_RESTART;
    // SAFETY: the handler makes calls only that are allowed there.
    let set = unsafe { libc::sigaction(SIGNAL, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
}

/// A thread of this process by its name.
pub(crate) fn thread_named(name: &str) -> i32 {
    let mut named = Vec::new();
    // One that has ended may be listed a little longer.
    until("one thread of that name", || {
        let all = fs::read_dir("/proc/self/task").unwrap().flatten();
        let of_name = all.filter(|entry| {
            fs::read_to_string(entry.path().join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        });
        named = of_name.map(|entry| entry.file_name()).collect();
        named.len() == 1
    });
    named[0].to_str().unwrap().parse().unwrap()
}

/// A thread that can be made to stand still.
pub(crate) struct Stoppable {
    timer: libc::timer_t,
    random: u64,
}

impl Stoppable {
    pub(crate) fn new(thread: i32) -> Self {
        // SAFETY: all zeros is an event of no kind.
        let mut event: libc::sigevent = unsafe { std::mem::zeroed() };
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_signo = SIGNAL;
        event.sigev_notify_thread_id = thread;
        // Its time on a processor, as pthread_getcpuclockid(3) would give it.
        let clock = (!thread << 3) | 0b110;
        let mut timer = std::ptr::null_mut();
        // SAFETY: the event is read, and the timer written.
        let made = unsafe { libc::timer_create(clock, &raw mut event, &raw mut timer) };
        assert_eq!(made, 0, "{}", io::Error::last_os_error());
        Self { timer, random: 1 }
    }

    /// Makes it stand still after some time on a processor, up to [`LONGEST`], which the kernel
    /// rounds up to its next tick.
    pub(crate) fn stop(&mut self) -> Still {
        // Knuth's constants of a 64-bit linear congruential generator.
        self.random = self
            .random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        let after = 1 + (self.random >> 33) % LONGEST;
        let never = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = libc::itimerspec {
            it_interval: never,
            it_value: libc::timespec {
                tv_nsec: i64::try_from(after).unwrap(),
                ..never
            },
        };
        // SAFETY: the time is read.
        let set =
            unsafe { libc::timer_settime(self.timer, 0, &raw const once, std::ptr::null_mut()) };
        assert_eq!(set, 0, "{}", io::Error::last_os_error());
        wait_for(true);
        Still(())
    }
}

impl Drop for Stoppable {
    fn drop(&mut self) {
        // SAFETY: nobody else has it.
        unsafe { libc::timer_delete(self.timer) };
    }
}

/// A thread that stands still, until this is dropped.
pub(crate) struct Still(());

impl Drop for Still {
    fn drop(&mut self) {
        // SAFETY: reads one byte.
        let written = unsafe { libc::write(GATE[1].load(SeqCst), [0u8].as_ptr().cast(), 1) };
        assert_eq!(written, 1);
        wait_for(false);
    }
}

fn wait_for(stands: bool) {
    let deadline = Instant::now() + PATIENCE;
    while STANDS.load(SeqCst) != stands {
        assert!(
            Instant::now() < deadline,
            "the thread does not get the signal"
        );
        thread::yield_now();
    }
}

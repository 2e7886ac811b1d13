//! Waiting for a condition, with a deadline.

use std::thread;
use std::time::{Duration, Instant};

/// How long anything may take on a machine that is busy with other things.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Between two looks at a condition.
const PAUSE: Duration = Duration::from_millis(5);

/// Waits until `look` gives a value, and returns it.
///
/// # Panics
/// When there is none after [`PATIENCE`]; the message names `what`.
#[track_caller]
pub fn until_some<T>(what: &str, look: impl FnMut() -> Option<T>) -> T {
    until_some_within(PATIENCE, what, look)
}

/// The same with another deadline than [`PATIENCE`].
///
/// # Panics
/// As [`until_some`].
#[track_caller]
pub fn until_some_within<T>(
    patience: Duration,
    what: &str,
    mut look: impl FnMut() -> Option<T>,
) -> T {
    let deadline = Instant::now() + patience;
    loop {
        if let Some(value) = look() {
            return value;
        }
        assert!(Instant::now() < deadline, "waited in vain: {what}");
        pause();
    }
}

/// Waits until `look` says yes.
///
/// # Panics
/// When it does not within [`PATIENCE`]; the message names `what`.
#[track_caller]
pub fn until(what: &str, mut look: impl FnMut() -> bool) {
    until_some(what, || look().then_some(()));
}

/// A moment, for loops that look at a condition.
pub fn pause() {
    // The one place that sleeps: every caller looks again afterwards.
    #[allow(clippy::disallowed_methods)]
    thread::sleep(PAUSE);
}

//! What keeps a group of servers that fails from taking the proxy and its clients with it.
//!
//! A request passes, in this order: a [`Bulkhead`], which bounds the requests under way; a
//! [`CircuitBreaker`], which keeps requests from a group that fails; retries, which a
//! [`RetryPolicy`] allows and a [`RetryBudget`] bounds; and [`Deadlines`]. Results of each
//! try are told to [`Outliers`], which says which servers are to be ejected.
//!
//! Pure: monotonic time (nanoseconds) and random numbers are arguments. What workers share
//! is plain atomics, changed through `&self`. None of them publishes other memory: each
//! word says all by itself, so that relaxed order is enough where nothing else is said.

mod breaker;
mod budget;
mod bulkhead;
mod deadlines;
mod outliers;
mod retry;
#[cfg(test)]
mod tests;
mod window;

pub use breaker::{Admission, BreakerSettings, BreakerState, CircuitBreaker, Open};
pub use budget::RetryBudget;
pub use bulkhead::{Bulkhead, Entry, Permit, Ticket};
pub use deadlines::{Deadlines, Shorter, Timeout, Timeouts};
pub use outliers::{OutlierSettings, Outliers, Record, Sample};
pub use retry::{Failure, NoRetry, Replay, RetryPolicy};
pub use window::MAX_WINDOW;

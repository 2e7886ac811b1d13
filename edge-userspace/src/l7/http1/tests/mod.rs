//! What is refused, what goes on instead, and that it does not matter how the bytes come.

mod forward;
mod properties;
mod responses;
mod vectors;

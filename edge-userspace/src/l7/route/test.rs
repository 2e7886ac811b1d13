//! The router against a naive reading of its order.

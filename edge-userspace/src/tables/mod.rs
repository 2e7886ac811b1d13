//! The writer's side of [`edge_common::table`].

mod geometry;

pub use geometry::{Capacity, Geometry};

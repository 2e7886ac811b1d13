//! Properties of resilience.

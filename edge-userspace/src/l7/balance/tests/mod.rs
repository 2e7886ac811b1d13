//! Properties of the balancers.

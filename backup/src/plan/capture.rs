//! Capture plans.

//! Restore planner.

//! What the process does: PID 1, the environment below it, or one job as an ordinary program.
//!
//! PID 1 ([`init`]) mounts, starts the environment as its child, and reaps. The environment
//! ([`environment`]) does everything else. They are two processes so that whatever happens to the
//! environment, the machine neither panics nor restarts by itself: PID 1 says what happened and starts
//! it again, and it tells the server.
//!
//! As an ordinary program ([`native`]) it does jobs on what it was told of a running system.
//!
//! Invariant: PID 1 never ends. What is *not* here: jobs themselves ([`crate::job`]).

pub(crate) mod arguments;
pub(crate) mod environment;
pub(crate) mod init;
pub(crate) mod keys;
pub(crate) mod native;
pub(crate) mod work;

//! The recovery agent: PID 1 of the environment that captures and restores machines.

mod boot_repair;
mod capture;
mod device;
mod drivers;
mod job;
mod log;
mod net;
mod restore;
mod sys;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {}

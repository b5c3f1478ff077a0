//! `modules.alias` and `modules.dep` with a NUL between, then a modalias: whatever they say, what is
//! to be loaded is found or refused, in order, each once.

#![no_main]

use libfuzzer_sys::fuzz_target;

// The agent is a program: its parsers come in as source.
#[path = "../../../agent/src/drivers/dependencies.rs"]
#[allow(dead_code, reason = "a target uses a part of it")]
mod dependencies;
#[path = "../../../agent/src/drivers/modalias.rs"]
#[allow(dead_code, reason = "a target uses a part of it")]
mod modalias;

fuzz_target!(|text: &str| {
    let mut parts = text.splitn(3, '\0');
    let mut part = || parts.next().unwrap_or_default();
    let (aliases, dep, device) = (part(), part(), part());
    let aliases = modalias::Aliases::parse(aliases);
    let dependencies = dependencies::Dependencies::parse(dep, "");
    for module in aliases.modules(device) {
        if let Ok(order) = dependencies.order(module) {
            let mut once = order.clone();
            once.sort_unstable();
            once.dedup();
            assert_eq!(once.len(), order.len(), "{order:?}");
        }
    }
});

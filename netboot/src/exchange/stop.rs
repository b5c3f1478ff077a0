//! Ending early: Ctrl-C and `kill` let an exchange tidy up before the process ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_signal::{Signal, Signals};
use futures_lite::StreamExt;

use super::ExchangeError;

/// Whether somebody wants this to end.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Listens for signals from now on. The first one ends the work at the next safe place, the second one
    /// the process.
    pub(crate) fn on_signals() -> Self {
        let stop = Self::default();
        let Ok(mut signals) = Signals::new([Signal::Int, Signal::Term, Signal::Hup]) else {
            return stop;
        };
        let heard = stop.clone();
        std::thread::spawn(move || {
            smol::block_on(async {
                while signals.next().await.is_some() {
                    if heard.0.swap(true, Ordering::Relaxed) {
                        std::process::exit(1);
                    }
                    eprintln!("netboot: stopping and tidying up; once more to stop at once");
                }
            });
        });
        stop
    }

    /// Goes on, or not.
    ///
    /// # Errors
    /// [`ExchangeError::Stopped`].
    pub(crate) fn check(&self) -> Result<(), ExchangeError> {
        if self.0.load(Ordering::Relaxed) {
            Err(ExchangeError::Stopped)
        } else {
            Ok(())
        }
    }
}

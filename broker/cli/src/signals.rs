//! The signals that end a command: SIGINT, SIGTERM and SIGHUP mean the same. Listening replaces the default of dying
//! at once, so whoever listens must end when told.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// The signals asking this process to end.
pub(crate) struct EndSignals {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl EndSignals {
    /// Listens from now on, for the rest of the process' life.
    pub(crate) fn listen() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    /// The next such signal. Cancel safe.
    pub(crate) async fn next(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hangup.recv() => {}
        }
    }
}

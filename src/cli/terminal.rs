//! Ctrl-C that stops a generation, and otherwise the program.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use signal_hook::consts::SIGINT;
use signal_hook::flag;

use super::process::INTERRUPTED;

/// Ctrl-C ends the program at once: outside of a generation, and when asked twice.
static AT_ONCE: LazyLock<Arc<AtomicBool>> = LazyLock::new(|| Arc::new(AtomicBool::new(true)));
/// Ctrl-C has asked the generation to stop. It stays in force for the rest of a batch.
static INTERRUPT: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);

/// From here on Ctrl-C asks a running generation to stop, and otherwise ends the program.
pub fn catch_interrupt() {
    // In this order: the first Ctrl-C of a generation finds AT_ONCE false and leaves it true for the second.
    let registered = flag::register_conditional_shutdown(SIGINT, INTERRUPTED.into(), AT_ONCE.clone())
        .and_then(|_| flag::register(SIGINT, AT_ONCE.clone()))
        .and_then(|_| flag::register(SIGINT, INTERRUPT.clone()));
    if let Err(error) = registered {
        log::warn!("Ctrl-C will not stop cleanly: {error}");
    }
}

/// While it lives, the first Ctrl-C asks the generation to stop.
pub struct Generation;

impl Generation {
    pub fn begin() -> Self {
        AT_ONCE.store(false, Ordering::SeqCst);
        Generation
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        AT_ONCE.store(true, Ordering::SeqCst);
    }
}

/// What Ctrl-C sets, for whoever cannot ask [`interrupted`].
pub fn interrupt() -> &'static Arc<AtomicBool> {
    &INTERRUPT
}

/// Whether Ctrl-C asked the generation to stop.
pub fn interrupted() -> bool {
    INTERRUPT.load(Ordering::SeqCst)
}

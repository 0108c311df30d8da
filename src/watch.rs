//! Who looks on while something takes long (loading, packing, checking, extracting, reading a prompt) and may end it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, LazyLock};

use crate::error::{Error, Result};

/// What is told of the progress, and what ends the work. Work that cannot be used in part ends with
/// [`Error::Interrupted`] and leaves nothing unfinished behind; what reads a prompt or a text says what it keeps.
///
/// ```
/// use std::sync::Arc;
/// use std::sync::atomic::{AtomicBool, Ordering};
/// # fn main() -> mlx_lm::Result<()> {
/// use mlx_lm::{Checkpoint, Error, Model, Watch};
///
/// let stop = Arc::new(AtomicBool::new(false)); // clones of it go to other threads, or to a signal's handler
/// let mut half = |done, total| stop.store(done > total / 2, Ordering::Relaxed);
/// let loaded = Model::load(&Checkpoint::demo()?, &mut Watch { on_progress: &mut half, stop: &stop });
/// assert!(matches!(loaded, Err(Error::Interrupted)));
/// # Ok(())
/// # }
/// ```
pub struct Watch<'a> {
    /// Told how much is done and how much there is in all, in bytes of files or in tokens of a text; by the thread that
    /// asked for the work, before it, between its steps and at its end. Where a CPU reads many tokens, after each layer of
    /// a chunk, as if the chunk were read layer by layer.
    pub on_progress: &'a mut dyn FnMut(u64, u64),
    /// Once it is true, the work ends within a fraction of a second. Any thread may set it, and a signal's handler.
    pub stop: &'a Arc<AtomicBool>,
}

impl Watch<'_> {
    /// Nobody looks on, and the work goes on to its end.
    pub fn none() -> Watch<'static> {
        static NEVER: LazyLock<Arc<AtomicBool>> = LazyLock::new(Arc::default);
        // A function without state takes no memory, so nothing leaks.
        Watch { on_progress: Box::leak(Box::new(|_, _| ())), stop: &NEVER }
    }

    /// The same, for work that is a part of this.
    pub fn reborrow(&mut self) -> Watch<'_> {
        Watch { on_progress: &mut *self.on_progress, stop: self.stop }
    }

    /// Tell the progress, then see whether to stop.
    ///
    /// # Errors
    /// [`Error::Interrupted`].
    pub fn advance(&mut self, done: u64, total: u64) -> Result<()> {
        (self.on_progress)(done, total);
        go_on(self.stop)
    }
}

/// # Errors
/// [`Error::Interrupted`] once `stop` is true.
pub(crate) fn go_on(stop: &AtomicBool) -> Result<()> {
    if stop.load(Ordering::Relaxed) { Err(Error::Interrupted) } else { Ok(()) }
}

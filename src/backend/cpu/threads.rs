//! Work shared out to threads: rayon's, one fewer than asked for, and the one that calls.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use rayon::{ThreadPool, ThreadPoolBuilder};

/// How often the caller looks whether the last tasks have ended before it goes to sleep: some tens of microseconds.
const PATIENCE: usize = 2000;

static POOL: OnceLock<Pool> = OnceLock::new();

struct Pool {
    helpers: Option<ThreadPool>,
    threads: usize,
}

/// As many threads as this process may use physical cores: a second thread of a core finds its vector units taken.
pub(super) fn default_threads() -> usize {
    let allowed = std::thread::available_parallelism().map_or(1, usize::from);
    allowed.min(num_cpus::get_physical()).max(1)
}

fn build(threads: usize) -> Pool {
    let name = |i| format!("kernels-{i}");
    // Where no threads can be started, the caller does all the work.
    let pool = || ThreadPoolBuilder::new().num_threads(threads - 1).thread_name(name).build().ok();
    Pool { helpers: if threads > 1 { pool() } else { None }, threads }
}

/// Use `threads` threads, the caller's included. Only the first call in a process counts, and only before any work.
pub(super) fn set_threads(threads: usize) {
    POOL.get_or_init(|| build(threads.max(1)));
}

/// Threads that share the work, the caller's included.
pub(super) fn threads() -> usize {
    POOL.get_or_init(|| build(default_threads())).threads
}

/// How many of `n` items to make one task, so that threads that are held up leave work to the others.
pub(super) fn share(n: usize) -> usize {
    n.div_ceil(threads() * 8)
}

thread_local! {
    static STOP: RefCell<Option<Arc<AtomicBool>>> = const { RefCell::new(None) };
}

/// Run `work`, whose tasks are skipped once `stop` is true.
pub(super) fn until(stop: &Arc<AtomicBool>, work: impl FnOnce()) {
    /// Also where `work` panics.
    struct Reset;
    impl Drop for Reset {
        fn drop(&mut self) {
            STOP.set(None);
        }
    }
    STOP.set(Some(Arc::clone(stop)));
    let _reset = Reset;
    work();
}

/// Do `work` for each of `0..n`, once each, in any order and on any thread; see [`until`].
pub(super) fn for_each(n: usize, work: impl Fn(usize) + Sync) {
    let pool = POOL.get_or_init(|| build(default_threads()));
    let (next, done) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let stop = STOP.with_borrow(Option::clone);
    let drain = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n || stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return;
            }
            work(i);
            done.fetch_add(1, Ordering::Release);
        }
    };
    match &pool.helpers {
        Some(helpers) if n > 1 => helpers.in_place_scope(|scope| {
            for _ in 1..pool.threads.min(n) {
                scope.spawn(|_| drain());
            }
            drain();
            // Others are about to end too: going to sleep would take longer than waiting for them.
            for _ in 0..PATIENCE {
                if done.load(Ordering::Acquire) == n {
                    break;
                }
                std::hint::spin_loop();
            }
        }),
        _ => drain(),
    }
}

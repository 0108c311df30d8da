//! Work shared out to a team of threads: helpers that stay awake from one piece of a pass to the next, and the one that
//! calls. A decode step has some hundred such pieces, each of microseconds, for which waking a thread takes too long.

use std::cell::{RefCell, UnsafeCell};
use std::hint::spin_loop;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};
use std::thread;
use std::time::{Duration, Instant};

/// How long a helper looks for more work before it goes to sleep.
const AWAKE: Duration = Duration::from_micros(200);
/// How often the caller looks whether the last helpers have ended before it lets others run.
const PATIENCE: usize = 2000;

static TEAM: OnceLock<Team> = OnceLock::new();

struct Team {
    threads: usize,
    board: Arc<Board>,
    /// Held by the caller whose work the helpers do.
    caller: Mutex<()>,
}

/// Where the caller posts its work.
struct Board {
    /// How many helpers are at work, in the lowest bits; [`OPEN`] while more may begin; and a count of pieces of work above.
    state: AtomicU64,
    /// What to do. Helpers read it only while they are counted in `state`, the caller writes it only while none is.
    work: UnsafeCell<Option<&'static (dyn Fn() + Sync)>>,
    asleep: AtomicUsize,
    door: Mutex<()>,
    bell: Condvar,
}

// SAFETY: `state` keeps readers and the writer of `work` apart, as its comment says.
unsafe impl Sync for Board {}
// SAFETY: what `work` refers to is `Sync`.
unsafe impl Send for Board {}

const OPEN: u64 = 1 << 16;
const PIECE: u64 = OPEN << 1;

impl Board {
    /// Do `work` on the caller and on every helper that comes before the caller is through with it.
    fn run(&self, work: &(dyn Fn() + Sync)) {
        /// Ends a piece of work, also where the caller's part of it panics: no helper may keep what it borrows.
        struct Close<'a>(&'a Board);
        impl Drop for Close<'_> {
            fn drop(&mut self) {
                self.0.state.fetch_and(!OPEN, Ordering::SeqCst);
                let mut waited = 0;
                while self.0.state.load(Ordering::Acquire) & (OPEN - 1) != 0 {
                    waited += 1;
                    if waited < PATIENCE { spin_loop() } else { thread::yield_now() }
                }
            }
        }
        // SAFETY: the lifetime is made longer only for the board, from which no helper reads it once `Close` is dropped. No
        // helper is counted before `OPEN` is set.
        unsafe { *self.work.get() = Some(std::mem::transmute::<&(dyn Fn() + Sync), &'static (dyn Fn() + Sync)>(work)) };
        self.state.fetch_add(PIECE | OPEN, Ordering::SeqCst);
        let close = Close(self);
        if self.asleep.load(Ordering::SeqCst) > 0 {
            drop(self.door.lock());
            self.bell.notify_all();
        }
        work();
        drop(close);
    }

    /// A helper's life.
    fn help(&self) {
        let mut last = 0;
        loop {
            let state = self.wait(last);
            last = state & !(OPEN - 1);
            let entered = self
                .state
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |now| (now & !(OPEN - 1) == last).then_some(now + 1));
            if entered.is_ok() {
                // SAFETY: this helper is counted, so that the caller keeps the work until it is not.
                let work = unsafe { *self.work.get() }.expect("work is posted before it is open");
                // What a task panics with, [`for_each`] hands to the caller.
                work();
                self.state.fetch_sub(1, Ordering::Release);
            }
        }
    }

    /// The state once it is open for other work than `last`.
    fn wait(&self, last: u64) -> u64 {
        let is_new = |state: u64| state & OPEN != 0 && state & !(OPEN - 1) != last;
        let mut began = None;
        loop {
            for _ in 0..64 {
                let state = self.state.load(Ordering::Acquire);
                if is_new(state) {
                    return state;
                }
                spin_loop();
            }
            if began.get_or_insert_with(Instant::now).elapsed() < AWAKE {
                continue;
            }
            let mut guard = self.door.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            self.asleep.fetch_add(1, Ordering::SeqCst);
            while !is_new(self.state.load(Ordering::SeqCst)) {
                guard = self.bell.wait(guard).unwrap_or_else(|poisoned| poisoned.into_inner());
            }
            self.asleep.fetch_sub(1, Ordering::SeqCst);
            began = None;
        }
    }
}

/// As many threads as this process may use physical cores: a second thread of a core finds its vector units taken.
pub(super) fn default_threads() -> usize {
    let allowed = thread::available_parallelism().map_or(1, usize::from);
    allowed.min(num_cpus::get_physical()).max(1)
}

fn build(threads: usize) -> Team {
    let board = Arc::new(Board {
        state: AtomicU64::new(0),
        work: UnsafeCell::new(None),
        asleep: AtomicUsize::new(0),
        door: Mutex::new(()),
        bell: Condvar::new(),
    });
    for i in 1..threads {
        let board = Arc::clone(&board);
        // Where no threads can be started, the caller does all the work.
        let _ = thread::Builder::new().name(format!("kernels-{i}")).spawn(move || board.help());
    }
    Team { threads, board, caller: Mutex::new(()) }
}

fn team() -> &'static Team {
    TEAM.get_or_init(|| build(default_threads()))
}

/// Use `threads` threads, the caller's included. Only the first call in a process counts, and only before any work.
pub(super) fn set_threads(threads: usize) {
    TEAM.get_or_init(|| build(threads.max(1)));
}

/// Threads that share the work, the caller's included.
pub(super) fn threads() -> usize {
    team().threads
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

/// Do `work` for each of `0..n`, once each, in any order and on any thread; see [`until`]. Another thread's work that is
/// under way leaves this one to its caller alone.
pub(super) fn for_each(n: usize, work: impl Fn(usize) + Sync) {
    let next = AtomicUsize::new(0);
    let stop = STOP.with_borrow(Option::clone);
    let drain = || {
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n || stop.as_ref().is_some_and(|stop| stop.load(Ordering::Relaxed)) {
                return;
            }
            work(i);
        }
    };
    let team = team();
    let caller = if n > 1 && team.threads > 1 { team.caller.try_lock().ok() } else { None };
    if caller.is_none() {
        return drain();
    }
    let panicked = Mutex::new(None);
    team.board.run(&|| {
        if let Err(panic) = std::panic::catch_unwind(std::panic::AssertUnwindSafe(drain)) {
            next.store(n, Ordering::Relaxed);
            panicked.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(panic);
        }
    });
    if let Some(panic) = panicked.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner()) {
        drop(caller); // a panic must not poison it
        std::panic::resume_unwind(panic);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_task_is_done_once_whoever_calls() {
        let callers: Vec<_> = (0..4)
            .map(|_| {
                thread::spawn(|| {
                    for n in 0..300 {
                        let done: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                        for_each(n, |i| {
                            done[i].fetch_add(1, Ordering::Relaxed);
                        });
                        assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
                    }
                })
            })
            .collect();
        callers.into_iter().for_each(|caller| caller.join().unwrap());
    }

    #[test]
    fn a_task_that_panics_is_its_callers_panic() {
        for _ in 0..20 {
            let run = || for_each(100, |i| assert!(i != 50, "the sky fell"));
            let panic = std::panic::catch_unwind(run).unwrap_err();
            assert!(
                panic.downcast_ref::<&str>().is_some_and(|message| message.contains("the sky fell"))
                    || panic.downcast_ref::<String>().is_some_and(|message| message.contains("the sky fell"))
            );
        }
        let sum = AtomicUsize::new(0);
        for_each(10, |i| {
            sum.fetch_add(i, Ordering::Relaxed);
        });
        assert_eq!(sum.into_inner(), 45);
    }
}

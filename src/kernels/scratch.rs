//! Memory to calculate in, aligned to cache lines and kept by each thread: new pages from the system cost more than a
//! product that uses them once.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use crate::error::Error;

/// A cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

thread_local! {
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// Numbers for which all bits are a value, such as those here.
///
/// # Safety
/// Implement it only for such types, aligned to 64 bytes or less.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: all bits are a value of these.
unsafe impl Plain for f32 {}
unsafe impl Plain for i32 {}
unsafe impl Plain for u32 {}
unsafe impl Plain for half::bf16 {}

/// `len` numbers that have any values at first, from the beginning of a cache line on.
pub(super) struct Scratch<T> {
    lines: Vec<Line>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Plain> Scratch<T> {
    pub fn new(len: usize) -> Self {
        let n = (len * size_of::<T>()).div_ceil(size_of::<Line>());
        // The smallest that does; else the largest, in whose place comes a larger one.
        let best = |kept: &mut Vec<Vec<Line>>| {
            let enough = (0..kept.len()).filter(|&i| kept[i].len() >= n).min_by_key(|&i| kept[i].len());
            let best = enough.or_else(|| (0..kept.len()).max_by_key(|&i| kept[i].len()))?;
            Some(kept.swap_remove(best))
        };
        let mut lines = KEPT.with_borrow_mut(best).unwrap_or_default();
        if lines.len() < n {
            lines = Vec::new();
            if lines.try_reserve_exact(n).is_err() {
                let bytes = n * size_of::<Line>();
                super::fail(Error::OutOfMemory(format!("{bytes} bytes to calculate in were not to be had")));
            }
            lines.resize(n, Line([0; 64]));
        }
        Scratch { lines, len, of: PhantomData }
    }

    pub fn zeros(len: usize) -> Self
    where
        T: Default,
    {
        let mut zeros = Self::new(len);
        zeros.fill(T::default());
        zeros
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        // Where the thread is about to end, so does the memory.
        let _ = KEPT.try_with(|kept| kept.borrow_mut().push(lines));
    }
}

impl<T: Plain> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the lines hold `len` numbers and more, which are all initialised; any bits are a value of T.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        // SAFETY: as for `deref`; the borrow is unique.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.len) }
    }
}

//! Memory to calculate in, aligned to pages and kept by each thread: new pages from the system cost more than a
//! product that uses them once.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

use memmap2::MmapMut;

use crate::error::Error;

thread_local! {
    static KEPT: RefCell<Vec<MmapMut>> = const { RefCell::new(Vec::new()) };
}

/// Numbers for which all bits are a value, such as those here.
///
/// # Safety
/// Implement it only for such types, aligned to 64 bytes or less.
pub(super) unsafe trait Plain: Copy {}
// SAFETY: all bits are a value of these.
unsafe impl Plain for f32 {}
unsafe impl Plain for i16 {}
unsafe impl Plain for i32 {}
unsafe impl Plain for u32 {}
unsafe impl Plain for half::f16 {}
unsafe impl Plain for half::bf16 {}

/// `len` numbers that have any values at first, from the beginning of a page on.
pub(super) struct Scratch<T> {
    /// `None` only while it is dropped.
    memory: Option<MmapMut>,
    len: usize,
    of: PhantomData<T>,
}

impl<T: Plain> Scratch<T> {
    pub fn new(len: usize) -> Self {
        let bytes = (len * size_of::<T>()).max(1);
        // The smallest that does; else the largest, in whose place comes a larger one.
        let best = |kept: &mut Vec<MmapMut>| {
            let enough = (0..kept.len()).filter(|&i| kept[i].len() >= bytes).min_by_key(|&i| kept[i].len());
            let best = enough.or_else(|| (0..kept.len()).max_by_key(|&i| kept[i].len()))?;
            Some(kept.swap_remove(best))
        };
        let memory = KEPT.with_borrow_mut(best).filter(|memory| memory.len() >= bytes).unwrap_or_else(|| {
            // Not from Rust's allocator, which ends the process where the system has no more.
            let wanted = || Error::OutOfMemory(format!("{bytes} bytes to calculate in were not to be had"));
            MmapMut::map_anon(bytes).unwrap_or_else(|_| super::fail(wanted()))
        });
        Scratch { memory: Some(memory), len, of: PhantomData }
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

impl<T> Scratch<T> {
    fn memory(&self) -> &MmapMut {
        self.memory.as_ref().expect("it is not dropped")
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let memory = self.memory.take();
        // Where the thread is about to end, so does the memory.
        let _ = KEPT.try_with(|kept| kept.borrow_mut().extend(memory));
    }
}

impl<T: Plain> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        // SAFETY: the memory holds `len` numbers and more, which are all initialised; any bits are a value of T.
        unsafe { std::slice::from_raw_parts(self.memory().as_ptr().cast(), self.len) }
    }
}

impl<T: Plain> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        let memory = self.memory.as_mut().expect("it is not dropped");
        // SAFETY: as for `deref`; the borrow is unique, and the memory can be written.
        unsafe { std::slice::from_raw_parts_mut(memory.as_mut_ptr().cast(), self.len) }
    }
}

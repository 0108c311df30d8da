//! Rust's allocator for both programs: where the system has no more memory, the program ends with a message and exit code 1,
//! as after any other error, and not with an abort.
//!
//! What is large (weights, caches, what MLX and the kernels compute in) does not come from here and fails as an error.

#![allow(unsafe_code)] // an allocator is an unsafe trait

use std::alloc::{GlobalAlloc, Layout, System};

use super::FAILURE;

#[global_allocator]
static ALLOCATOR: OrExit = OrExit;

/// The system's allocator, which ends the program in place of a null.
struct OrExit;

impl OrExit {
    fn check(memory: *mut u8, bytes: usize) -> *mut u8 {
        if memory.is_null() {
            // Neither allocates.
            note!("error: out of memory: {bytes} bytes were not to be had");
            signal_hook::low_level::exit(FAILURE.into());
        }
        memory
    }
}

// SAFETY: each call is the system allocator's, under the same conditions.
unsafe impl GlobalAlloc for OrExit {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        Self::check(unsafe { System.alloc(layout) }, layout.size())
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        Self::check(unsafe { System.alloc_zeroed(layout) }, layout.size())
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        Self::check(unsafe { System.realloc(memory, layout, size) }, size)
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        unsafe { System.dealloc(memory, layout) }
    }
}

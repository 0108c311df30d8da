//! Kernels as a node of MLX's graph, with `primitive.cpp`; and the memory that nodes write to.
//!
//! MLX has memory, streams and the graph. When it evaluates such a node, the closure gets the inputs' addresses and starts kernels
//! on MLX's stream, so that they run in order with MLX's own. MLX keeps the inputs until the kernels have run.
//!
//! A node writes to inputs of it: to arrays made beforehand, of which nobody else has a handle. [`Memory`] has them.

use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use mlx_rs::error::Exception;
use mlx_rs::ops::{multiply, zeros_dtype};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype, StreamOrDevice};

use super::driver::Stream;
use crate::backend::Rotation;
use crate::error::{Error, Result, panic_message};

#[repr(C)]
struct Closure {
    state: *mut c_void,
    call: unsafe extern "C" fn(*mut c_void, *mut c_void, *const u64, usize) -> c_int,
    drop: unsafe extern "C" fn(*mut c_void),
}

unsafe extern "C" {
    fn mlx_lm_cuda_node(
        inputs: *const mlx_sys::mlx_array,
        n_inputs: usize,
        n_outputs: usize,
        stream: mlx_sys::mlx_stream,
        at_once: bool,
        closure: Closure,
        results: *mut mlx_sys::mlx_array,
        message: *mut c_char,
        room: usize,
    ) -> bool;
    fn mlx_lm_cuda_is_free(array: mlx_sys::mlx_array) -> bool;
    fn mlx_lm_cuda_is_own(array: mlx_sys::mlx_array) -> bool;
}

/// Whether this is the only handle to the array, which is computed, or will be in order, and lies in rows.
pub(super) fn is_own(array: &Array) -> bool {
    // SAFETY: the handle is valid.
    unsafe { mlx_lm_cuda_is_own(array.as_ptr()) }
}

thread_local! {
    static FAILURE: RefCell<Option<Error>> = const { RefCell::new(None) };
}

/// What went wrong in starting this thread's kernels, since it last asked.
///
/// # Errors
/// The first failure. What was computed from that node on is of no use.
pub(super) fn failure() -> Result<()> {
    FAILURE.with_borrow_mut(|failure| failure.take().map_or(Ok(()), Err))
}

/// When a node's kernels are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// When MLX evaluates what depends on it.
    Evaluated,
    /// Before [`node`] returns: where they write to memory that others know too.
    AtOnce,
}

/// Arrays in the memory of the first `outputs` of `inputs`, each of at most four dimensions, that the kernels write which `start`
/// starts: it gets the inputs' addresses, and calls in order with what MLX computes.
///
/// # Errors
/// When MLX fails to compute an input, or, [`When::AtOnce`], `start` fails; otherwise [`failure`] tells that.
pub(super) fn node<F>(inputs: &[&Array], outputs: usize, when: When, start: F) -> Result<Vec<Array>>
where
    F: Fn(Stream, &[u64]) -> Result<()> + Send + 'static,
{
    unsafe extern "C" fn call<F: Fn(Stream, &[u64]) -> Result<()>>(
        state: *mut c_void,
        stream: *mut c_void,
        addresses: *const u64,
        n_addresses: usize,
    ) -> c_int {
        // SAFETY: `state` is the closure below, alive until `drop`; the addresses are `primitive.cpp`'s for this call.
        let (start, addresses) = unsafe { (&*state.cast::<F>(), slice::from_raw_parts(addresses, n_addresses)) };
        let started = catch_unwind(AssertUnwindSafe(|| start(Stream(stream), addresses)));
        let started = started.unwrap_or_else(|panic| Err(Error::Internal(panic_message(&*panic).to_string())));
        match started {
            Ok(()) => 0,
            Err(error) => {
                FAILURE.with_borrow_mut(|failure| {
                    failure.get_or_insert(error);
                });
                1
            }
        }
    }
    unsafe extern "C" fn drop<F>(state: *mut c_void) {
        // SAFETY: `state` came from `Box::into_raw` below, and `primitive.cpp` calls this once, after the last call.
        unsafe { std::mem::drop(Box::from_raw(state.cast::<F>())) }
    }
    let handles: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
    let closure = Closure { state: Box::into_raw(Box::new(start)).cast(), call: call::<F>, drop: drop::<F> };
    let mut results = Vec::with_capacity(outputs);
    let mut message = [0u8; 500];
    // SAFETY: the handles live through the call, which copies what they refer to; the arrays that it writes are new and
    // ours, and it writes all or none.
    let made = unsafe {
        let stream = StreamOrDevice::default();
        mlx_lm_cuda_node(
            handles.as_ptr(),
            handles.len(),
            outputs,
            stream.as_ref().as_ptr(),
            when == When::AtOnce,
            closure,
            results.as_mut_ptr(),
            message.as_mut_ptr().cast(),
            message.len(),
        )
    };
    if !made {
        failure()?;
        let message = CStr::from_bytes_until_nul(&message).unwrap_or_default().to_string_lossy();
        return Err(Exception::custom(message).into());
    }
    // SAFETY: it wrote all.
    unsafe {
        results.set_len(outputs);
        Ok(results.into_iter().map(|array| Array::from_ptr(array)).collect())
    }
}

/// Arrays for nodes to write to. Each thread has its own, as it has its own stream of MLX: so all that was to read what is
/// in one has been started before the next kernel that writes to it.
#[derive(Default)]
pub(super) struct Memory {
    /// That became arrays of MLX's graph, until those are gone.
    results: Vec<Array>,
    /// That only nodes here know, by purpose.
    scratch: Vec<(&'static str, Array)>,
    turns: Vec<(Rotation, Array)>,
    /// Of matrices that are unpacked, one of each shape and type.
    unpacked: Vec<Array>,
}

/// As many arrays are kept for results; more are forgotten, oldest first.
const KEPT: usize = 64;

impl Memory {
    /// Call with this thread's.
    pub fn with<R>(run: impl FnOnce(&mut Memory) -> R) -> R {
        thread_local! {
            static MEMORY: RefCell<Memory> = RefCell::default();
        }
        MEMORY.with_borrow_mut(run)
    }

    /// An array for a node's result, which nobody uses.
    pub fn result(&mut self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        // SAFETY: the handle is valid.
        let is_free = |array: &Array| unsafe { mlx_lm_cuda_is_free(array.as_ptr()) };
        let fits = |array: &&Array| array.dtype() == dtype && array.shape() == shape && is_free(array);
        if let Some(free) = self.results.iter().find(fits) {
            return Ok(free.clone());
        }
        if self.results.len() == KEPT {
            self.results.remove(0);
        }
        let made = made(shape, dtype)?;
        self.results.push(made.clone());
        Ok(made)
    }

    /// As [`Memory::result`], of words `[n]` that the host will read: MLX moves an array for that, when nobody else may use it.
    pub fn read_by_host(&mut self, n: i32) -> Result<Array> {
        let array = self.result(&[n], Dtype::Uint32)?;
        array.eval()?;
        let _moved = array.as_slice::<u32>();
        Ok(array)
    }

    /// At least `bytes` for a purpose, which were zeros once.
    pub fn scratch(&mut self, purpose: &'static str, bytes: usize) -> Result<Array> {
        let place = self.scratch.iter().position(|(of, _)| *of == purpose);
        if let Some(at) = place {
            if self.scratch[at].1.nbytes() >= bytes {
                return Ok(self.scratch[at].1.clone());
            }
            self.scratch.remove(at);
        }
        let words = i32::try_from(bytes.div_ceil(4).next_power_of_two())
            .map_err(|_| Error::OutOfMemory(format!("{bytes} bytes for {purpose}")))?;
        let made = made(&[words], Dtype::Uint32)?;
        self.scratch.push((purpose, made.clone()));
        Ok(made)
    }

    /// For a matrix that is unpacked, and used before the next one of its shape is.
    pub fn unpacked(&mut self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        if let Some(known) = self.unpacked.iter().find(|array| array.shape() == shape && array.dtype() == dtype) {
            return Ok(known.clone());
        }
        let made = made(shape, dtype)?;
        self.unpacked.push(made.clone());
        Ok(made)
    }

    /// Cosines and sines for the positions before `end`, and more, `[positions, pairs, 2]` (f32).
    pub fn turns(&mut self, rotation: &Rotation, end: i32) -> Result<Array> {
        let place = self.turns.iter().position(|(known, _)| known == rotation);
        if let Some(at) = place {
            if self.turns[at].1.dim(0) >= end {
                return Ok(self.turns[at].1.clone());
            }
            self.turns.remove(at);
        }
        let made = turns(rotation, (end as u32).next_power_of_two().max(2048) as i32)?;
        self.turns.push((rotation.clone(), made.clone()));
        Ok(made)
    }
}

/// `[positions, pairs, 2]` (f32): cosines and sines.
fn turns(rotation: &Rotation, positions: i32) -> Result<Array> {
    let mut numbers = Vec::new();
    for at in 0..positions {
        for frequency in rotation.frequencies.iter() {
            let (sin, cos) = (f64::from(at) * frequency).sin_cos();
            numbers.extend([cos, sin].map(|number| (number * f64::from(rotation.factor)) as f32));
        }
    }
    let numbers = Array::from_slice(&numbers, &[positions, rotation.frequencies.len() as i32, 2]);
    // An array of the host's stays in memory that the host can reach.
    let turns = multiply(numbers, Array::from_f32(1.0))?;
    async_eval([&turns])?;
    Ok(turns)
}

/// Zeros in the GPU's memory.
fn made(shape: &[i32], dtype: Dtype) -> Result<Array> {
    let zeros = zeros_dtype(shape, dtype)?;
    async_eval([&zeros])?;
    Ok(zeros)
}

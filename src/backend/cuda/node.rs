//! Kernels as a node of MLX's graph, with `primitive.cpp`; and the memory that nodes write to.
//!
//! MLX has memory, streams and the graph. When it evaluates such a node, the closure gets the inputs' addresses and starts kernels
//! on MLX's stream, so that they run in order with MLX's own. MLX keeps the inputs until the kernels have run.
//!
//! A node writes to inputs of it: to arrays made beforehand, of which nobody else has a handle. [`Memory`] has them.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::ffi::{CStr, c_char, c_int, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;

use mlx_rs::error::Exception;
use mlx_rs::ops::{multiply, zeros_dtype};
use mlx_rs::transforms::async_eval;
use mlx_rs::{Array, Dtype, StreamOrDevice};

use super::driver::{self, Event, Stream};
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
    fn mlx_lm_cuda_hold(
        inputs: *const mlx_sys::mlx_array,
        n_inputs: usize,
        stream: mlx_sys::mlx_stream,
        addresses: *mut u64,
    ) -> *mut c_void;
    fn mlx_lm_cuda_release(held: *mut c_void);
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

/// Memory of arrays that are not inputs of a node, which costs MLX more for each than a kernel takes; kept until the kernels that
/// use it have run.
#[derive(Debug)]
pub(super) struct Held {
    memory: *mut c_void,
    /// Recorded behind the kernels.
    event: Event,
}

impl Held {
    /// Of arrays that are no nodes' from here; and where each lies.
    ///
    /// # Errors
    /// When MLX fails to compute one.
    pub fn new(arrays: &[&Array]) -> Result<(Self, Vec<u64>)> {
        let handles: Vec<_> = arrays.iter().map(|array| array.as_ptr()).collect();
        let mut addresses = vec![0; handles.len()];
        let event = Event::new()?;
        // SAFETY: the handles live through the call, which writes as many addresses.
        let memory = unsafe {
            let stream = StreamOrDevice::default();
            mlx_lm_cuda_hold(handles.as_ptr(), handles.len(), stream.as_ref().as_ptr(), addresses.as_mut_ptr())
        };
        if memory.is_null() {
            return Err(Error::Internal("a weight or a cache could not be computed".into()));
        }
        Ok((Held { memory, event }, addresses))
    }

    /// What the closure that starts the kernels records last.
    pub fn event(&self) -> Event {
        self.event
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.event.destroy();
        // SAFETY: `memory` came from `mlx_lm_cuda_hold`, and this is its only release.
        unsafe { mlx_lm_cuda_release(self.memory) }
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
    /// For matrices that are unpacked, and whether the product that reads the last one may not be started yet.
    unpacked: Vec<(Array, bool)>,
    /// Such products.
    products: Vec<Array>,
    /// What kernels use that may not have run, oldest first.
    held: VecDeque<Held>,
}

/// So many matrices of each shape are unpacked before the products with them are started.
const UNPACKED: usize = 2;

impl Drop for Memory {
    fn drop(&mut self) {
        self.held.iter().for_each(|held| held.event.wait());
    }
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

    /// An array for a node's numbers, which nobody uses.
    pub fn result(&mut self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        self.result_of(shape, dtype, || made(shape, dtype))
    }

    /// As [`Memory::result`], of words `[n]` that the host will read. MLX moves an array for that, when nobody else may use it, to memory
    /// that moves between host and GPU, whichever looks at it; this stays where the host is.
    pub fn read_by_host(&mut self, n: i32) -> Result<Array> {
        self.result_of(&[n], Dtype::Uint32, || {
            let array = made(&[n], Dtype::Uint32)?;
            array.eval()?;
            driver::keep_on_host(array.as_slice::<u32>());
            Ok(array)
        })
    }

    fn result_of(&mut self, shape: &[i32], dtype: Dtype, make: impl FnOnce() -> Result<Array>) -> Result<Array> {
        // SAFETY: the handle is valid.
        let is_free = |array: &Array| unsafe { mlx_lm_cuda_is_free(array.as_ptr()) };
        let fits = |array: &&Array| array.dtype() == dtype && array.shape() == shape && is_free(array);
        if let Some(free) = self.results.iter().find(fits) {
            return Ok(free.clone());
        }
        if self.results.len() == KEPT {
            self.results.remove(0);
        }
        let made = make()?;
        self.results.push(made.clone());
        Ok(made)
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

    /// For a matrix that is unpacked. What reads it is told to [`Memory::product`] next.
    pub fn unpacked(&mut self, shape: &[i32], dtype: Dtype) -> Result<Array> {
        let fits = |array: &Array| array.shape() == shape && array.dtype() == dtype;
        if self.unpacked.iter().filter(|(array, is_read)| *is_read && fits(array)).count() == UNPACKED {
            async_eval(&self.products)?;
            self.products.clear();
            self.unpacked.iter_mut().for_each(|(_, is_read)| *is_read = false);
        }
        if let Some((array, is_read)) = self.unpacked.iter_mut().find(|(array, is_read)| !is_read && fits(array)) {
            *is_read = true;
            return Ok(array.clone());
        }
        let made = made(shape, dtype)?;
        self.unpacked.push((made.clone(), true));
        Ok(made)
    }

    /// What reads a matrix that was unpacked: started before another one takes its memory.
    pub fn product(&mut self, y: &Array) {
        self.products.push(y.clone());
    }

    /// Keep what kernels that were started use.
    pub fn hold(&mut self, held: Held) {
        while self.held.front().is_some_and(|held| held.event.is_done()) {
            self.held.pop_front();
        }
        self.held.push_back(held);
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

/// These bytes in the GPU's memory. MLX would put them into memory of the host, from which they move when a kernel looks at them.
///
/// # Panics
/// When the bytes are not as many as the shape says.
pub(super) fn upload(bytes: &[u8], shape: &[i32], dtype: Dtype) -> Result<Array> {
    let array = made(shape, dtype)?;
    assert_eq!(array.nbytes(), bytes.len(), "upload: shape {shape:?} of {dtype:?}");
    array.eval()?;
    if !bytes.is_empty() {
        let (_held, addresses) = Held::new(&[&array])?;
        // SAFETY: the array has as many bytes, its zeros are there, and nobody else knows it.
        unsafe { driver::copy_to_gpu(addresses[0], bytes)? };
    }
    Ok(array)
}

/// Zeros in the GPU's memory.
fn made(shape: &[i32], dtype: Dtype) -> Result<Array> {
    let zeros = zeros_dtype(shape, dtype)?;
    async_eval([&zeros])?;
    Ok(zeros)
}

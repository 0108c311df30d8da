//! Kernels as nodes of MLX's graph: a primitive that calls a Rust closure, with `primitive.cpp`.
//!
//! The graph stays lazy. When MLX evaluates such a node, the closure runs on MLX's stream thread, in order with MLX's own
//! operations, and gets views of the inputs' and the output's memory. A panic in it does not reach C++: the node's result is
//! then no number, and [`failure`] says what happened, on the thread that described the node.

#![cfg_attr(not(cpu_kernels), allow(dead_code, unused_imports, unused_variables))]

use std::any::Any;
use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, c_char, c_void};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::slice;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use half::{bf16, f16};
use mlx_rs::{Array, Dtype, StreamOrDevice};

use super::{Floats, FloatsMut, threads};
use crate::error::{Error, Result, panic_message};
use crate::mapped::Mapped;
use crate::mlx_rs_patch::item_size;

/// Most dimensions that a view has room for.
const DIMS: usize = 4;

/// An evaluated array's memory. Laid out as `mlx_lm_view` of `primitive.cpp`.
#[repr(C)]
pub(crate) struct View {
    data: *mut c_void,
    dtype: i32,
    ndim: i32,
    shape: [i32; DIMS],
    strides: [i64; DIMS],
}

/// What a node makes. Laid out as `mlx_lm_output` of `primitive.cpp`.
#[repr(C)]
pub(crate) struct Output {
    dtype: i32,
    item_size: i32,
    ndim: i32,
    shape: [i32; DIMS],
    donor: i32,
}

impl Output {
    pub fn new(shape: &[i32], dtype: Dtype) -> Self {
        let mut padded = [0; DIMS];
        padded[..shape.len()].copy_from_slice(shape);
        let item_size = item_size(dtype) as i32;
        Output { dtype: dtype as i32, item_size, ndim: shape.len() as i32, shape: padded, donor: -1 }
    }

    /// In the memory of input number `donor`, if that has this shape and type and nothing else refers to it; see
    /// [`View::is_at`].
    pub fn in_place_of(self, donor: usize) -> Self {
        Output { donor: donor as i32, ..self }
    }
}

#[cfg(cpu_kernels)]
#[repr(C)]
struct Closure {
    name: *const c_char,
    state: *mut c_void,
    call: unsafe extern "C" fn(*mut c_void, *const View, usize, *mut View, usize),
    drop: unsafe extern "C" fn(*mut c_void),
}

#[cfg(cpu_kernels)]
unsafe extern "C" {
    fn mlx_lm_node(
        inputs: *const mlx_sys::mlx_array,
        n_inputs: usize,
        outputs: *const Output,
        n_outputs: usize,
        stream: mlx_sys::mlx_stream,
        closure: Closure,
        results: *mut mlx_sys::mlx_array,
    ) -> bool;

    fn mlx_lm_borrow(
        data: *const c_void,
        shape: *const i32,
        ndim: usize,
        dtype: i32,
        item_size: i32,
        owner: *mut c_void,
        drop: unsafe extern "C" fn(*mut c_void),
    ) -> mlx_sys::mlx_array;
}

/// An array over a part of a mapped file, which it keeps mapped. `None` where that cannot be, since the elements are not
/// aligned.
///
/// # Panics
/// When `bytes` are not in `map`, or not as many as `shape` says.
pub(crate) fn borrow(map: &Arc<Mapped>, bytes: &[u8], shape: &[i32], dtype: Dtype) -> Option<Array> {
    let item_size = item_size(dtype);
    assert!(map.as_ptr_range().start <= bytes.as_ptr() && bytes.as_ptr_range().end <= map.as_ptr_range().end);
    assert_eq!(bytes.len(), shape.iter().map(|&n| n as usize).product::<usize>() * item_size);
    if !bytes.as_ptr().addr().is_multiple_of(item_size) {
        return None;
    }
    #[cfg(not(cpu_kernels))]
    return None;
    #[cfg(cpu_kernels)]
    {
        unsafe extern "C" fn drop(owner: *mut c_void) {
            // SAFETY: `owner` came from `Arc::into_raw` below, and the array calls this once.
            unsafe { std::mem::drop(Arc::from_raw(owner.cast::<Mapped>())) }
        }
        let owner = Arc::into_raw(Arc::clone(map)).cast_mut().cast();
        // SAFETY: the memory is the map's, which the array holds until `drop`. MLX only writes to an array's memory when
        // nothing else refers to it, and a model refers to its weights for as long as it lives.
        unsafe {
            let (data, dtype) = (bytes.as_ptr().cast(), dtype as i32);
            let array = mlx_lm_borrow(data, shape.as_ptr(), shape.len(), dtype, item_size as i32, owner, drop);
            (!array.ctx.is_null()).then(|| Array::from_ptr(array))
        }
    }
}

/// What the nodes that a thread describes share: how their computation ends.
#[derive(Default)]
struct Fate {
    /// The first failure since it was last asked for.
    failure: Mutex<Option<Error>>,
    /// Once true, what is left of the computation is skipped.
    stop: Arc<AtomicBool>,
}

thread_local! {
    static FATE: RefCell<Arc<Fate>> = RefCell::default();
}

/// What went wrong in nodes that this thread described, since it last asked.
///
/// # Errors
/// The first failure. What was computed from that node on is of no use.
pub(crate) fn failure() -> Result<()> {
    FATE.with_borrow(|fate| match fate.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
        Some(error) => Err(error),
        None => Ok(()),
    })
}

/// While it lives, nodes that this thread describes stop soon after `stop` becomes true, with [`Error::Interrupted`].
pub(crate) struct Interruptible(Arc<Fate>);

impl Interruptible {
    pub fn by(stop: &Arc<AtomicBool>) -> Self {
        let fate = Fate { stop: Arc::clone(stop), ..Fate::default() };
        Interruptible(FATE.replace(fate.into()))
    }
}

impl Drop for Interruptible {
    fn drop(&mut self) {
        FATE.set(Arc::clone(&self.0));
    }
}

impl Fate {
    /// Compute a node; true when its output is complete.
    fn run(&self, work: impl FnOnce()) -> bool {
        let error = match catch_unwind(AssertUnwindSafe(|| threads::until(&self.stop, work))) {
            Ok(()) if !self.stop.load(Ordering::Relaxed) => return true,
            Ok(()) => Error::Interrupted,
            Err(panic) => panicked(panic),
        };
        self.failure.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(error);
        false
    }
}

/// A kernel's panic is a defect, unless it was raised by [`super::fail`].
fn panicked(panic: Box<dyn Any + Send>) -> Error {
    match panic.downcast::<Error>() {
        Ok(error) => *error,
        Err(panic) => Error::Internal(format!("a kernel failed: {}", panic_message(&*panic))),
    }
}

/// A [`node`] with one output.
pub(crate) fn leaf<F>(name: &'static CStr, inputs: &[&Array], shape: &[i32], dtype: Dtype, run: F) -> Result<Array>
where
    F: Fn(&[View], &mut View) + Send + Sync + 'static,
{
    let mut outputs = node(name, inputs, &[Output::new(shape, dtype)], move |inputs, outputs| {
        run(inputs, &mut outputs[0]);
    })?;
    Ok(outputs.remove(0))
}

/// Nodes are only asked for where this module's kernels may compute.
#[cfg(not(cpu_kernels))]
pub(crate) fn node<F>(name: &'static CStr, inputs: &[&Array], outputs: &[Output], run: F) -> Result<Vec<Array>>
where
    F: Fn(&[View], &mut [View]) + Send + Sync + 'static,
{
    unreachable!("this build's MLX does not run on the CPU")
}

/// Arrays that `run` computes from `inputs`, each of at most four dimensions. `run` must write all of an output, bar one that
/// took over the memory of an input. `name` says what it computes, in messages.
///
/// # Errors
/// When there is no memory for a node. What goes wrong in `run` is told by [`failure`].
#[cfg(cpu_kernels)]
pub(crate) fn node<F>(name: &'static CStr, inputs: &[&Array], outputs: &[Output], run: F) -> Result<Vec<Array>>
where
    F: Fn(&[View], &mut [View]) + Send + Sync + 'static,
{
    struct State<F> {
        run: F,
        fate: Arc<Fate>,
    }
    unsafe extern "C" fn call<F: Fn(&[View], &mut [View])>(
        state: *mut c_void,
        inputs: *const View,
        n_inputs: usize,
        outputs: *mut View,
        n_outputs: usize,
    ) {
        // SAFETY: `state` is the `State` below, alive until `drop`; the others are `primitive.cpp`'s for this call.
        let (State { run, fate }, inputs, outputs) = unsafe {
            (
                &*state.cast::<State<F>>(),
                slice::from_raw_parts(inputs, n_inputs),
                slice::from_raw_parts_mut(outputs, n_outputs),
            )
        };
        if !fate.run(|| run(inputs, outputs)) {
            outputs[0].poison();
        }
    }
    unsafe extern "C" fn drop<F>(state: *mut c_void) {
        // SAFETY: `state` came from `Box::into_raw` below, and `primitive.cpp` calls this once, after the last call.
        unsafe { std::mem::drop(Box::from_raw(state.cast::<State<F>>())) }
    }
    assert!(inputs.iter().all(|input| input.ndim() <= DIMS));
    let handles: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
    let state = Box::new(State { run, fate: FATE.with_borrow(Arc::clone) });
    let closure = Closure { name: name.as_ptr(), state: Box::into_raw(state).cast(), call: call::<F>, drop: drop::<F> };
    let mut results = Vec::with_capacity(outputs.len());
    // SAFETY: the handles live through the call, which copies what they refer to; the arrays that it writes are new and
    // ours, one for each output, and it writes all or none.
    unsafe {
        let made = mlx_lm_node(
            handles.as_ptr(),
            handles.len(),
            outputs.as_ptr(),
            outputs.len(),
            StreamOrDevice::default().as_ref().as_ptr(),
            closure,
            results.as_mut_ptr(),
        );
        if !made {
            let name = name.to_string_lossy();
            return Err(Error::OutOfMemory(format!("a node of MLX's graph, {name}, could not be made")));
        }
        results.set_len(outputs.len());
        Ok(results.into_iter().map(|array| Array::from_ptr(array)).collect())
    }
}

impl View {
    pub fn shape(&self) -> &[i32] {
        &self.shape[..self.ndim as usize]
    }

    /// Elements between neighbours of each dimension.
    pub fn strides(&self) -> &[i64] {
        &self.strides[..self.ndim as usize]
    }

    /// Whether both are the same memory.
    pub fn is_at(&self, other: &View) -> bool {
        self.data == other.data
    }

    fn len(&self) -> usize {
        self.shape().iter().map(|&n| n as usize).product()
    }

    /// Whether the elements follow one another in row-major order.
    fn is_contiguous(&self) -> bool {
        let mut expected = 1;
        self.shape().iter().zip(self.strides()).rev().all(|(&n, &stride)| {
            let fits = n == 1 || stride == expected;
            expected *= i64::from(n);
            fits
        })
    }

    /// Distance from the first element to just behind the last.
    fn extent(&self) -> usize {
        if self.len() == 0 {
            return 0;
        }
        let last = self.shape().iter().zip(self.strides()).map(|(&n, &stride)| i64::from(n - 1) * stride).sum::<i64>();
        last as usize + 1
    }

    /// # Safety
    /// The elements are of type T.
    unsafe fn slice<T>(&self) -> &[T] {
        // SAFETY: MLX keeps the memory for the length of the call, from `data` to the last element.
        unsafe { slice::from_raw_parts(self.data.cast(), self.extent()) }
    }

    /// Words that follow one another in row-major order.
    pub fn words(&self) -> &[u32] {
        assert!(self.dtype == Dtype::Uint32 as i32 && self.is_contiguous());
        // SAFETY: the type was checked.
        unsafe { self.slice() }
    }

    /// Words in row-major order, copied only where they lie otherwise.
    pub fn contiguous_words(&self) -> Cow<'_, [u32]> {
        if self.is_contiguous() {
            return self.words().into();
        }
        assert_eq!(self.dtype, Dtype::Uint32 as i32);
        // SAFETY: the type was checked.
        self.gather(unsafe { self.slice() }).into()
    }

    /// The elements in row-major order, out of all memory from the first to the last.
    fn gather<T: Copy>(&self, from: &[T]) -> Vec<T> {
        let position = |mut i: usize| {
            let coordinates = self.shape().iter().zip(self.strides()).rev().map(|(&n, &stride)| {
                let coordinate = i % n as usize;
                i /= n as usize;
                coordinate * stride as usize
            });
            coordinates.sum::<usize>()
        };
        (0..self.len()).map(|i| from[position(i)]).collect()
    }

    /// All memory from the first element to the last, of which the strides tell which are elements.
    pub fn floats(&self) -> Floats<'_> {
        // SAFETY: the type is checked.
        unsafe {
            match self.dtype {
                t if t == Dtype::Float32 as i32 => Floats::F32(self.slice()),
                t if t == Dtype::Float16 as i32 => Floats::F16(self.slice()),
                t if t == Dtype::Bfloat16 as i32 => Floats::Bf16(self.slice()),
                other => panic!("no kernel reads dtype {other}"),
            }
        }
    }

    /// Call `with` with the elements in row-major order, copied only where they lie otherwise.
    pub fn contiguous<R>(&self, with: impl FnOnce(Floats) -> R) -> R {
        if self.is_contiguous() {
            return with(self.floats());
        }
        match self.floats() {
            Floats::F32(x) => with(Floats::F32(&self.gather(x))),
            Floats::F16(x) => with(Floats::F16(&self.gather(x))),
            Floats::Bf16(x) => with(Floats::Bf16(&self.gather(x))),
        }
    }

    /// Make an output that was not computed what nobody takes for a result: floats are NaN, ids beyond any vocabulary.
    pub fn poison(&mut self) {
        let bytes =
            self.len() * if self.dtype == Dtype::Uint32 as i32 || self.dtype == Dtype::Float32 as i32 { 4 } else { 2 };
        // SAFETY: as for `floats_mut`: words have 4 bytes, and the other types that nodes have 2.
        unsafe { slice::from_raw_parts_mut(self.data.cast::<u8>(), bytes).fill(0xff) }
    }

    /// The words of an output.
    pub fn words_mut(&mut self) -> &mut [u32] {
        assert_eq!(self.dtype, Dtype::Uint32 as i32);
        // SAFETY: as for `floats_mut`.
        unsafe { slice::from_raw_parts_mut(self.data.cast(), self.len()) }
    }

    /// The elements of an output: the only view that [`node`] gives out to be changed. No input of the same memory
    /// ([`View::is_at`]) may be looked at while they are in use.
    pub fn floats_mut(&mut self) -> FloatsMut<'_> {
        let n = self.len();
        // SAFETY: `primitive.cpp` allocated it for these elements, or took it over from an input, which the caller does not look
        // at; whatever bits it holds are numbers of these types.
        unsafe {
            match self.dtype {
                t if t == Dtype::Float32 as i32 => FloatsMut::F32(slice::from_raw_parts_mut(self.data.cast(), n)),
                t if t == Dtype::Float16 as i32 => {
                    FloatsMut::F16(slice::from_raw_parts_mut(self.data.cast::<f16>(), n))
                }
                t if t == Dtype::Bfloat16 as i32 => {
                    FloatsMut::Bf16(slice::from_raw_parts_mut(self.data.cast::<bf16>(), n))
                }
                other => panic!("no kernel writes dtype {other}"),
            }
        }
    }
}

#[cfg(all(test, cpu_kernels))]
mod tests {
    use mlx_rs::Device;

    use super::*;

    /// A node that ends as `run` does, evaluated.
    fn evaluated(run: impl Fn() + Send + Sync + 'static) -> (Vec<f32>, Result<()>) {
        Device::set_default(&Device::cpu());
        let input = Array::from_slice(&[1f32, 2.0], &[2]);
        let node = leaf(c"a test", &[&input], &[2], Dtype::Float32, move |inputs, output| {
            run();
            let (FloatsMut::F32(to), Floats::F32(from)) = (output.floats_mut(), inputs[0].floats()) else {
                unreachable!()
            };
            to.copy_from_slice(from);
        });
        let node = node.unwrap();
        node.eval().unwrap();
        (node.as_slice().to_vec(), failure())
    }

    #[test]
    fn a_panic_is_an_error_of_the_thread_that_described_the_node() {
        let (numbers, failed) = evaluated(|| panic!("the sky fell"));
        assert!(numbers.iter().all(|x| x.is_nan()));
        assert!(matches!(failed, Err(Error::Internal(message)) if message.contains("the sky fell")));
        let (_, failed) = evaluated(|| crate::backend::cpu::fail(Error::OutOfMemory("7 bytes".into())));
        assert!(matches!(failed, Err(Error::OutOfMemory(wanted)) if wanted == "7 bytes"));

        // Another thread's nodes fail for themselves.
        std::thread::spawn(|| assert!(evaluated(|| panic!("elsewhere")).1.is_err())).join().unwrap();
        let (numbers, failed) = evaluated(|| ());
        assert!(numbers == [1.0, 2.0] && failed.is_ok());
    }

    /// Two outputs: one more than each number of the last input, in its memory if that can be, and whether it is there.
    fn increased(inputs: &[&Array]) -> [Array; 2] {
        let last = inputs.len() - 1;
        let outputs = [Output::new(&[1], Dtype::Float32), Output::new(&[2], Dtype::Float32).in_place_of(last)];
        let run = move |inputs: &[View], outputs: &mut [View]| {
            let [is_at, more] = outputs else { unreachable!("two outputs") };
            let is_in_place = more.is_at(&inputs[last]);
            let (FloatsMut::F32(is_at), FloatsMut::F32(more)) = (is_at.floats_mut(), more.floats_mut()) else {
                unreachable!()
            };
            if !is_in_place {
                let Floats::F32(from) = inputs[last].floats() else { unreachable!() };
                more.copy_from_slice(from);
            }
            more.iter_mut().for_each(|x| *x += 1.0);
            is_at[0] = f32::from(u8::from(is_in_place));
        };
        node(c"a test", inputs, &outputs, run).unwrap().try_into().unwrap()
    }

    #[test]
    fn memory_is_taken_over_from_an_input_that_nobody_else_has() {
        Device::set_default(&Device::cpu());
        let (go, wait) = std::sync::mpsc::channel();
        let wait = Mutex::new(wait);
        let slow = leaf(c"a test", &[&Array::from_f32(5.0)], &[2], Dtype::Float32, move |inputs, output| {
            wait.lock().unwrap().recv().unwrap();
            let (FloatsMut::F32(to), Floats::F32(from)) = (output.floats_mut(), inputs[0].floats()) else {
                unreachable!()
            };
            to.fill(from[0]);
        });
        let [is_at, numbers] = increased(&[&slow.unwrap()]);
        mlx_rs::transforms::async_eval([&is_at, &numbers]).unwrap();
        // The pass that makes the numbers is under way when this one is submitted.
        let going_on = std::thread::spawn(move || go.send(()).unwrap());
        let [is_at_again, more] = increased(&[&is_at, &{ numbers }]);
        mlx_rs::transforms::async_eval([&is_at_again, &more]).unwrap();
        going_on.join().unwrap();
        assert_eq!((is_at_again.as_slice::<f32>(), more.as_slice::<f32>()), (&[1.0][..], &[7.0, 7.0][..]));

        let [is_at, still_more] = increased(&[&more]);
        let others = more.as_slice::<f32>().to_vec();
        assert_eq!((is_at.as_slice::<f32>(), still_more.as_slice::<f32>()), (&[0.0][..], &[8.0, 8.0][..]));
        assert_eq!(others, [7.0, 7.0], "somebody else's numbers stay");
    }

    #[test]
    fn a_computation_that_is_stopped_is_interrupted() {
        let stop = Arc::new(AtomicBool::new(false));
        let interruptible = Interruptible::by(&stop);
        let (_, failed) = evaluated(|| ());
        assert!(failed.is_ok());
        stop.store(true, Ordering::Relaxed);
        let done = Arc::new(AtomicBool::new(false));
        let (numbers, failed) = evaluated({
            let done = Arc::clone(&done);
            move || threads::for_each(100, |_| done.store(true, Ordering::Relaxed))
        });
        assert!(matches!(failed, Err(Error::Interrupted)) && numbers.iter().all(|x| x.is_nan()));
        assert!(!done.load(Ordering::Relaxed), "tasks are skipped");
        drop(interruptible);
        assert!(evaluated(|| ()).1.is_ok());
    }
}

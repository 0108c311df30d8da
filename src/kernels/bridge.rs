//! Kernels as nodes of MLX's graph: a primitive that calls a Rust closure, with `primitive.cpp`.
//!
//! The graph stays lazy. When MLX evaluates such a node, the closure runs on MLX's stream thread, in order with MLX's own
//! operations, and gets views of the inputs' and the output's memory.

#![cfg_attr(not(cpu_kernels), allow(dead_code, unused_imports, unused_variables))]

use std::ffi::c_void;
use std::slice;
use std::sync::Arc;

use half::{bf16, f16};
use memmap2::Mmap;
use mlx_rs::{Array, Dtype, StreamOrDevice};

use super::{Floats, FloatsMut};
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

#[cfg(cpu_kernels)]
#[repr(C)]
struct Closure {
    state: *mut c_void,
    call: unsafe extern "C" fn(*mut c_void, *const View, usize, *mut View),
    drop: unsafe extern "C" fn(*mut c_void),
}

#[cfg(cpu_kernels)]
unsafe extern "C" {
    fn mlx_lm_leaf(
        inputs: *const mlx_sys::mlx_array,
        n_inputs: usize,
        shape: *const i32,
        ndim: usize,
        dtype: i32,
        item_size: i32,
        stream: mlx_sys::mlx_stream,
        closure: Closure,
    ) -> mlx_sys::mlx_array;

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

/// An array over a part of a mapped file, which it keeps mapped. `None` where that cannot be: the elements are not aligned,
/// or MLX computes on a GPU.
///
/// # Panics
/// When `bytes` are not in `map`, or not as many as `shape` says.
pub(crate) fn borrow(map: &Arc<Mmap>, bytes: &[u8], shape: &[i32], dtype: Dtype) -> Option<Array> {
    let item_size = item_size(dtype);
    assert!(map.as_ptr_range().start <= bytes.as_ptr() && bytes.as_ptr_range().end <= map.as_ptr_range().end);
    assert_eq!(bytes.len(), shape.iter().map(|&n| n as usize).product::<usize>() * item_size);
    if super::active().is_none() || !bytes.as_ptr().addr().is_multiple_of(item_size) {
        return None;
    }
    #[cfg(not(cpu_kernels))]
    return None;
    #[cfg(cpu_kernels)]
    {
        unsafe extern "C" fn drop(owner: *mut c_void) {
            // SAFETY: `owner` came from `Arc::into_raw` below, and the array calls this once.
            unsafe { std::mem::drop(Arc::from_raw(owner.cast::<Mmap>())) }
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

/// Nodes are only asked for where [`super::active`] has kernels.
#[cfg(not(cpu_kernels))]
pub(crate) fn leaf<F>(inputs: &[&Array], shape: &[i32], dtype: Dtype, run: F) -> Array
where
    F: Fn(&[View], &mut View) + Send + Sync + 'static,
{
    unreachable!("this build's MLX does not run on the CPU")
}

/// A node of `shape` and `dtype` that `run` computes from `inputs`, each of at most four dimensions. `run` must write all
/// of the output, and must not panic.
#[cfg(cpu_kernels)]
pub(crate) fn leaf<F>(inputs: &[&Array], shape: &[i32], dtype: Dtype, run: F) -> Array
where
    F: Fn(&[View], &mut View) + Send + Sync + 'static,
{
    unsafe extern "C" fn call<F: Fn(&[View], &mut View)>(
        state: *mut c_void,
        inputs: *const View,
        n_inputs: usize,
        output: *mut View,
    ) {
        // SAFETY: `state` is the `F` below, alive until `drop`; the others are `primitive.cpp`'s for this call. A panic ends
        // the process here, since it may not unwind into C++.
        unsafe { (*state.cast::<F>())(slice::from_raw_parts(inputs, n_inputs), &mut *output) }
    }
    unsafe extern "C" fn drop<F>(state: *mut c_void) {
        // SAFETY: `state` came from `Box::into_raw` below, and `primitive.cpp` calls this once, after the last call.
        unsafe { std::mem::drop(Box::from_raw(state.cast::<F>())) }
    }
    assert!(shape.len() <= DIMS && inputs.iter().all(|input| input.ndim() <= DIMS));
    let handles: Vec<_> = inputs.iter().map(|input| input.as_ptr()).collect();
    let closure = Closure { state: Box::into_raw(Box::new(run)).cast(), call: call::<F>, drop: drop::<F> };
    // SAFETY: the handles live through the call, which copies what they refer to; the array it returns is new and ours.
    unsafe {
        Array::from_ptr(mlx_lm_leaf(
            handles.as_ptr(),
            handles.len(),
            shape.as_ptr(),
            shape.len(),
            dtype as i32,
            item_size(dtype) as i32,
            StreamOrDevice::default().as_ref().as_ptr(),
            closure,
        ))
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

    /// Row-major words.
    pub fn words(&self) -> &[u32] {
        assert!(self.dtype == Dtype::Uint32 as i32 && self.is_contiguous());
        // SAFETY: the type was checked.
        unsafe { self.slice() }
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
        fn gather<T: Copy>(view: &View, from: &[T]) -> Vec<T> {
            let (shape, strides) = (view.shape(), view.strides());
            let position = |mut i: usize| {
                let coordinates = shape.iter().zip(strides).rev().map(|(&n, &stride)| {
                    let coordinate = i % n as usize;
                    i /= n as usize;
                    coordinate * stride as usize
                });
                coordinates.sum::<usize>()
            };
            (0..view.len()).map(|i| from[position(i)]).collect()
        }
        match self.floats() {
            Floats::F32(x) => with(Floats::F32(&gather(self, x))),
            Floats::F16(x) => with(Floats::F16(&gather(self, x))),
            Floats::Bf16(x) => with(Floats::Bf16(&gather(self, x))),
        }
    }

    /// Truth values in row-major order.
    pub fn flags(&self) -> &[bool] {
        assert!(self.dtype == Dtype::Bool as i32 && self.is_contiguous());
        // SAFETY: the type was checked; MLX writes 0 and 1 only.
        unsafe { self.slice() }
    }

    /// The words of an output.
    pub fn words_mut(&mut self) -> &mut [u32] {
        assert_eq!(self.dtype, Dtype::Uint32 as i32);
        // SAFETY: as for `floats_mut`.
        unsafe { slice::from_raw_parts_mut(self.data.cast(), self.len()) }
    }

    /// The elements of an output: the only view that [`leaf`] gives out to be changed.
    pub fn floats_mut(&mut self) -> FloatsMut<'_> {
        let n = self.len();
        // SAFETY: `primitive.cpp` allocated it for these elements, and no other view refers to it; whatever bits it holds
        // are numbers of these types.
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

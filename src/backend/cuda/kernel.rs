//! A kernel as a node of MLX's graph, through MLX's custom kernels; and what the driver tells of the GPU.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_int, c_uint, c_void};

use std::hash::Hash;
use std::sync::{Mutex, Once, PoisonError};

use mlx_rs::{Array, Dtype, StreamOrDevice};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};

/// What the driver is asked for, by its number there (`CUdevice_attribute`).
#[derive(Debug, Clone, Copy)]
pub(super) enum Attribute {
    Multiprocessors = 16,
    Major = 75,
    Minor = 76,
    SharedMemoryPerBlock = 97,
}

/// An attribute of the first GPU, which is MLX's. `None` where there is no GPU or no driver.
pub(super) fn attribute(attribute: Attribute) -> Option<i32> {
    type Init = unsafe extern "C" fn(c_uint) -> c_int;
    type Get = unsafe extern "C" fn(*mut c_int, c_int, c_int) -> c_int;
    let driver = |name: &CStr| {
        // SAFETY: the name ends in a zero.
        let symbol = unsafe { libc::dlsym(libc::RTLD_DEFAULT, name.as_ptr()) };
        (!symbol.is_null()).then_some(symbol)
    };
    let (init, get) = (driver(c"cuInit")?, driver(c"cuDeviceGetAttribute")?);
    // SAFETY: both are the driver's functions, of these types. Each returns 0 where it has done its work; the first may be
    // called any number of times, and the second writes one number.
    unsafe {
        let init = std::mem::transmute::<*mut c_void, Init>(init);
        let get = std::mem::transmute::<*mut c_void, Get>(get);
        let mut value = 0;
        (init(0) == 0 && get(&mut value, attribute as c_int, 0) == 0).then_some(value)
    }
}

/// What tells sources apart in kernels' names.
pub(super) fn hash(source: &str) -> String {
    hex::encode(&Sha256::digest(source)[..6])
}

/// A source as short as it is without its comments and indents: MLX copies it for each node, and hashes it.
fn without_comments(source: &str) -> String {
    let lines = source.lines().map(|line| line.split("//").next().unwrap_or_default().trim());
    lines.filter(|line| !line.is_empty()).flat_map(|line| [line, "\n"]).collect()
}

/// Kernels by what is compiled. `None` for those that a GPU's compiler refuses, which is told once.
pub(super) struct Compiled<F>(Mutex<Option<HashMap<F, Option<&'static Kernel>>>>);

impl<F: Clone + Eq + Hash> Compiled<F> {
    pub const fn new() -> Self {
        Compiled(Mutex::new(None))
    }

    /// The kernel of this form, made by `compile` the first time.
    pub fn get(&self, form: &F, compile: impl FnOnce() -> Result<Kernel>) -> Option<&'static Kernel> {
        static WARNED: Once = Once::new();
        let mut kernels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kernels = kernels.get_or_insert_default();
        if let Some(kernel) = kernels.get(form) {
            return *kernel;
        }
        let kernel = match compile() {
            Ok(kernel) => Some(&*Box::leak(Box::new(kernel))), // as many as a model has kinds of layers
            Err(error) => {
                WARNED.call_once(|| {
                    let message = error.to_string();
                    let first = message.lines().next().unwrap_or_default();
                    log::warn!("a kernel for this GPU could not be made, so MLX's operation computes: {first}");
                });
                None
            }
        };
        kernels.insert(form.clone(), kernel);
        kernel
    }
}

/// A custom kernel of MLX.
pub(super) struct Kernel(mlx_sys::mlx_fast_cuda_kernel);

// SAFETY: it is a function object that is not changed after it is made, and calls only read it.
unsafe impl Send for Kernel {}
// SAFETY: as above.
unsafe impl Sync for Kernel {}

/// What one use of a kernel makes, and by how many.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'a> {
    /// Of each output.
    pub shapes: &'a [&'a [i32]],
    /// Of all outputs.
    pub dtype: Dtype,
    pub blocks: i32,
    pub threads: i32,
}

impl Kernel {
    /// A kernel of these inputs and outputs: the statements of `body`, after the declarations of `header`. `bounds` are the
    /// threads of a block, and the blocks that a multiprocessor must have room for; `shared` is the dynamic shared memory in
    /// bytes.
    ///
    /// # Errors
    /// When MLX refuses. It compiles the kernel when that is first computed.
    pub fn new(
        name: &str,
        arguments: [&[String]; 2],
        header: &str,
        body: &str,
        bounds: (i32, i32),
        shared: i32,
    ) -> Result<Self> {
        // MLX writes the kernel's head, `__global__ void name(…)`, and leaves the compiler no bounds, so that it may use more
        // registers than a block can have.
        let header = format!(
            "{}#undef __global__\n#define __global__ __attribute__((global)) __launch_bounds__({}, {})\n",
            without_comments(header),
            bounds.0,
            bounds.1
        );
        let text = |text: &str| CString::new(text).map_err(|_| Error::Internal("a kernel's source has a zero".into()));
        let (name, header, body) = (text(name)?, text(&header)?, text(body)?);
        let names = |names: &[String]| names.iter().map(|name| text(name)).collect::<Result<Vec<_>>>();
        let arguments = [names(arguments[0])?, names(arguments[1])?];
        let pointers = |names: &[CString]| names.iter().map(|name| name.as_ptr()).collect::<Vec<_>>();
        let (mut inputs, mut outputs) = (pointers(&arguments[0]), pointers(&arguments[1]));
        // SAFETY: all strings live through the calls, which copy them; the vectors are freed here once.
        let kernel = unsafe {
            let inputs = mlx_sys::mlx_vector_string_new_data(inputs.as_mut_ptr(), inputs.len());
            let outputs = mlx_sys::mlx_vector_string_new_data(outputs.as_mut_ptr(), outputs.len());
            let (body, header) = (body.as_ptr(), header.as_ptr());
            let kernel = mlx_sys::mlx_fast_cuda_kernel_new(name.as_ptr(), inputs, outputs, body, header, true, shared);
            mlx_sys::mlx_vector_string_free(inputs);
            mlx_sys::mlx_vector_string_free(outputs);
            kernel
        };
        match kernel.ctx.is_null() {
            true => Err(Error::Internal("MLX made no kernel".into())),
            false => Ok(Kernel(kernel)),
        }
    }

    /// Nodes that compute the kernel's outputs.
    ///
    /// # Errors
    /// When MLX refuses them.
    pub fn apply(&self, inputs: &[&Array], launch: Launch) -> Result<Vec<Array>> {
        let handles: Vec<mlx_sys::mlx_array> = inputs.iter().map(|input| input.as_ptr()).collect();
        let Launch { shapes, dtype, blocks, threads } = launch;
        // SAFETY: the handles live through the calls, which copy what they refer to; what is made here is freed here, once,
        // but for the arrays, which are new and become ours.
        unsafe {
            let config = mlx_sys::mlx_fast_cuda_kernel_config_new();
            let inputs = mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len());
            let mut outputs = mlx_sys::mlx_vector_array_new();
            let stream = StreamOrDevice::default();
            let mut done = shapes.iter().all(|shape| {
                let (at, n) = (shape.as_ptr(), shape.len());
                mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(config, at, n, dtype as u32) == 0
            });
            // MLX counts a grid in threads.
            done = done && mlx_sys::mlx_fast_cuda_kernel_config_set_grid(config, blocks * threads, 1, 1) == 0;
            done = done && mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(config, threads, 1, 1) == 0;
            let stream = stream.as_ref().as_ptr();
            done = done && mlx_sys::mlx_fast_cuda_kernel_apply(&mut outputs, self.0, inputs, config, stream) == 0;
            let mut arrays = Vec::with_capacity(shapes.len());
            for i in 0..if done { shapes.len() } else { 0 } {
                let mut array = mlx_sys::mlx_array_new();
                done = done && mlx_sys::mlx_vector_array_get(&mut array, outputs, i) == 0;
                arrays.push(Array::from_ptr(array));
            }
            mlx_sys::mlx_vector_array_free(outputs);
            mlx_sys::mlx_vector_array_free(inputs);
            mlx_sys::mlx_fast_cuda_kernel_config_free(config);
            if done { Ok(arrays) } else { Err(Error::Internal("MLX refused a kernel".into())) }
        }
    }
}

impl Drop for Kernel {
    fn drop(&mut self) {
        // SAFETY: it was made once and is freed once.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_free(self.0) }
    }
}

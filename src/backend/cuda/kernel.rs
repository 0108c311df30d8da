//! A kernel as a node of MLX's graph, through MLX's custom kernels; and what the driver tells of the GPU.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};

use mlx_rs::{Array, Dtype, StreamOrDevice};

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

/// A custom kernel of MLX.
///
/// Each node of MLX's graph has a copy of its kernel's source, though MLX keeps what it once compiled by the kernel's name for
/// as long as the process lives. So there are two of one name: what is compiled, and, for every node but the first, the same
/// without the declarations, which are nearly all of the source.
pub(super) struct Kernel {
    whole: Handle,
    body: Handle,
}

struct Handle(mlx_sys::mlx_fast_cuda_kernel);

// SAFETY: it is a function object that is not changed after it is made, and calls only read it.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// What one use of a kernel makes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch<'a> {
    pub shape: &'a [i32],
    pub dtype: Dtype,
    pub blocks: i32,
    pub threads: i32,
}

impl Kernel {
    /// A kernel with one output, `y`: the statements of `body`, after the declarations of `header`. `bounds` are the threads
    /// of a block, and the blocks that a multiprocessor must have room for; `shared` is the dynamic shared memory in bytes.
    ///
    /// # Errors
    /// When MLX refuses. It compiles the kernel when that is first computed, which must be by [`Kernel::compile`].
    pub fn new(
        name: &str,
        inputs: &[String],
        header: &str,
        body: &str,
        bounds: (i32, i32),
        shared: i32,
    ) -> Result<Self> {
        // MLX's head of a kernel leaves the compiler no bounds, so it would use more registers than a block can have. Where
        // the head has the kernel's name, this puts them in front of it; not where MLX asks the compiler for the name.
        let function = format!("custom_kernel_{name}");
        let header = format!("{header}\n#define {function} __launch_bounds__({}, {}) {function}\n", bounds.0, bounds.1);
        let body = format!("{body}#undef {function}\n");
        let handle = |header: &str| Handle::new(name, inputs, header, &body, shared);
        Ok(Kernel { whole: handle(&header)?, body: handle("")? })
    }

    /// A node whose computing compiles the kernel.
    ///
    /// # Errors
    /// When MLX refuses it.
    pub fn compile(&self, inputs: &[&Array], launch: Launch) -> Result<Array> {
        self.whole.apply(inputs, launch)
    }

    /// A node that computes the compiled kernel's output.
    ///
    /// # Errors
    /// When MLX refuses it.
    pub fn apply(&self, inputs: &[&Array], launch: Launch) -> Result<Array> {
        self.body.apply(inputs, launch)
    }
}

impl Handle {
    fn new(name: &str, inputs: &[String], header: &str, body: &str, shared: i32) -> Result<Self> {
        let text = |text: &str| CString::new(text).map_err(|_| Error::Internal("a kernel's source has a zero".into()));
        let (name, header, body) = (text(name)?, text(header)?, text(body)?);
        let inputs: Vec<CString> = inputs.iter().map(|input| text(input)).collect::<Result<_>>()?;
        let mut inputs: Vec<*const c_char> = inputs.iter().map(|input| input.as_ptr()).collect();
        let mut outputs = [c"y".as_ptr()];
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
            false => Ok(Handle(kernel)),
        }
    }

    fn apply(&self, inputs: &[&Array], launch: Launch) -> Result<Array> {
        let handles: Vec<mlx_sys::mlx_array> = inputs.iter().map(|input| input.as_ptr()).collect();
        let Launch { shape, dtype, blocks, threads } = launch;
        // SAFETY: the handles live through the calls, which copy what they refer to; what is made here is freed here, once,
        // but for the array, which is new and becomes ours.
        unsafe {
            let config = mlx_sys::mlx_fast_cuda_kernel_config_new();
            let inputs = mlx_sys::mlx_vector_array_new_data(handles.as_ptr(), handles.len());
            let mut outputs = mlx_sys::mlx_vector_array_new();
            let mut array = mlx_sys::mlx_array_new();
            let stream = StreamOrDevice::default();
            let done = mlx_sys::mlx_fast_cuda_kernel_config_add_output_arg(config, shape.as_ptr(), shape.len(), dtype as u32)
                    == 0
                    // MLX counts a grid in threads.
                    && mlx_sys::mlx_fast_cuda_kernel_config_set_grid(config, blocks * threads, 1, 1) == 0
                    && mlx_sys::mlx_fast_cuda_kernel_config_set_thread_group(config, threads, 1, 1) == 0
                    && mlx_sys::mlx_fast_cuda_kernel_apply(
                        &mut outputs,
                        self.0,
                        inputs,
                        config,
                        stream.as_ref().as_ptr(),
                    ) == 0
                    && mlx_sys::mlx_vector_array_get(&mut array, outputs, 0) == 0;
            mlx_sys::mlx_vector_array_free(outputs);
            mlx_sys::mlx_vector_array_free(inputs);
            mlx_sys::mlx_fast_cuda_kernel_config_free(config);
            match done {
                true => Ok(Array::from_ptr(array)),
                false => {
                    mlx_sys::mlx_array_free(array);
                    Err(Error::Internal("MLX refused a kernel".into()))
                }
            }
        }
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: it was made once and is freed once.
        unsafe { mlx_sys::mlx_fast_cuda_kernel_free(self.0) }
    }
}

//! What is called of NVIDIA's driver and of its run-time compiler. MLX has both in the process, so their functions are looked up
//! there; a build needs none of NVIDIA's files.

use std::ffi::{CStr, CString, c_char, c_int, c_uint, c_void};
use std::mem::transmute;
use std::ptr;
use std::sync::OnceLock;

use crate::error::{Error, Result};

/// What the driver is asked for, by its number there (`CUdevice_attribute`).
#[derive(Debug, Clone, Copy)]
pub(super) enum Attribute {
    Multiprocessors = 16,
    Major = 75,
    Minor = 76,
    SharedMemoryPerBlock = 97,
}

unsafe extern "C" {
    /// The C library's; null instead of a library's handle means all that are in the process.
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
}

/// Makes a struct of functions, and a constructor that finds them all or gives `None`.
macro_rules! library {
    ($name:ident { $($symbol:ident($($argument:ty),*);)* }) => {
        #[allow(non_snake_case)]
        struct $name {
            $($symbol: unsafe extern "C" fn($($argument),*) -> c_int,)*
        }

        impl $name {
            fn find() -> Option<Self> {
                Some($name {
                    $($symbol: {
                        let name = CString::new(stringify!($symbol)).ok()?;
                        // SAFETY: the name ends in a zero.
                        let symbol = unsafe { dlsym(ptr::null_mut(), name.as_ptr()) };
                        if symbol.is_null() {
                            return None;
                        }
                        // SAFETY: the library's function of this name has this type.
                        unsafe { transmute::<*mut c_void, unsafe extern "C" fn($($argument),*) -> c_int>(symbol) }
                    },)*
                })
            }

            fn get() -> Option<&'static Self> {
                static LIBRARY: OnceLock<Option<$name>> = OnceLock::new();
                LIBRARY.get_or_init($name::find).as_ref()
            }
        }
    };
}

type Context = *mut c_void;
type ModuleHandle = *mut c_void;
type FunctionHandle = *mut c_void;
type EventHandle = *mut c_void;
type Program = *mut c_void;

library!(Driver {
    cuInit(c_uint);
    cuDeviceGetAttribute(*mut c_int, c_int, c_int);
    cuDevicePrimaryCtxRetain(*mut Context, c_int);
    cuCtxSetCurrent(Context);
    cuThreadExchangeStreamCaptureMode(*mut c_int);
    cuMemAdvise(u64, usize, c_int, c_int);
    cuMemcpyHtoD_v2(u64, *const c_void, usize);
    cuStreamSynchronize(*mut c_void);
    cuModuleLoadData(*mut ModuleHandle, *const c_void);
    cuModuleGetFunction(*mut FunctionHandle, ModuleHandle, *const c_char);
    cuFuncSetAttribute(FunctionHandle, c_int, c_int);
    cuEventCreate(*mut EventHandle, c_uint);
    cuEventRecord(EventHandle, *mut c_void);
    cuEventQuery(EventHandle);
    cuEventSynchronize(EventHandle);
    cuEventDestroy_v2(EventHandle);
    cuLaunchKernelEx(*const LaunchConfig, FunctionHandle, *const *const c_void, *const *const c_void);
});

library!(Compiler {
    nvrtcVersion(*mut c_int, *mut c_int);
    nvrtcCreateProgram(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char);
    nvrtcCompileProgram(Program, c_int, *const *const c_char);
    nvrtcGetCUBINSize(Program, *mut usize);
    nvrtcGetCUBIN(Program, *mut c_char);
    nvrtcGetProgramLogSize(Program, *mut usize);
    nvrtcGetProgramLog(Program, *mut c_char);
    nvrtcDestroyProgram(*mut Program);
});

/// `CUlaunchConfig`.
#[repr(C)]
struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: *mut c_void,
    attributes: *const LaunchAttribute,
    n_attributes: c_uint,
}

/// `CUlaunchAttribute`: a number, and a union of 64 bytes.
#[repr(C)]
struct LaunchAttribute {
    id: c_uint,
    pad: c_uint,
    value: [c_int; 16],
}

impl LaunchAttribute {
    fn new<const N: usize>(id: c_uint, first: [c_int; N]) -> Self {
        let mut value = [0; 16];
        value[..N].copy_from_slice(&first);
        LaunchAttribute { id, pad: 0, value }
    }

    /// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`, allowed.
    fn overlap() -> Self {
        Self::new(6, [1])
    }

    /// `CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION`: so many blocks along x.
    fn cluster(blocks: u32) -> Self {
        Self::new(4, [blocks as c_int, 1, 1])
    }
}

/// `CU_STREAM_CAPTURE_MODE_RELAXED`.
const RELAXED: c_int = 2;

/// `CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES`.
const MAX_DYNAMIC_SHARED: c_int = 8;

/// `CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED`: clusters of more than eight blocks.
const LARGE_CLUSTERS: c_int = 14;

fn done(what: &str, status: c_int) -> Result<()> {
    if status == 0 { Ok(()) } else { Err(Error::Internal(format!("{what} failed on the GPU, with error {status}"))) }
}

fn missing() -> Error {
    Error::Internal("NVIDIA's driver or compiler is not in the process".into())
}

/// An attribute of the first GPU, which is MLX's. `None` where there is no GPU or no driver.
pub(super) fn attribute(attribute: Attribute) -> Option<i32> {
    let driver = Driver::get()?;
    let mut value = 0;
    // SAFETY: the first may be called any number of times, and the second writes one number.
    let done =
        unsafe { (driver.cuInit)(0) == 0 && (driver.cuDeviceGetAttribute)(&mut value, attribute as c_int, 0) == 0 };
    done.then_some(value)
}

/// The driver, with the first GPU's context, in which MLX works too, as this thread's.
fn in_context() -> Result<&'static Driver> {
    struct Retained(Context);
    // SAFETY: a context may be used by any thread.
    unsafe impl Send for Retained {}
    // SAFETY: as above.
    unsafe impl Sync for Retained {}
    static CONTEXT: OnceLock<Retained> = OnceLock::new();
    let driver = Driver::get().ok_or_else(missing)?;
    let context = CONTEXT.get_or_init(|| {
        let mut context = ptr::null_mut();
        // SAFETY: writes the context, or leaves null. It is never given back, so it lives as long as the process.
        unsafe { (driver.cuDevicePrimaryCtxRetain)(&mut context, 0) };
        Retained(context)
    });
    // SAFETY: the context is alive, or null, which takes the thread's away.
    done("using it", unsafe { (driver.cuCtxSetCurrent)(context.0) })?;
    Ok(driver)
}

/// `CU_MEM_ADVISE_SET_PREFERRED_LOCATION` and `CU_MEM_ADVISE_SET_ACCESSED_BY`.
const PREFERRED_LOCATION: c_int = 3;
const ACCESSED_BY: c_int = 5;

/// `CU_DEVICE_CPU`.
const HOST: c_int = -1;

/// Let managed memory be the host's, and the GPU reach it from afar: otherwise its page moves to whoever looks at it, and a kernel waits
/// for that some hundred microseconds.
pub(super) fn keep_on_host(words: &[u32]) {
    if let Ok(driver) = in_context() {
        // SAFETY: advice about memory that is alive. Where it is of no use, as for memory that never moves, an error says so.
        unsafe {
            let at = words.as_ptr() as u64;
            (driver.cuMemAdvise)(at, size_of_val(words), PREFERRED_LOCATION, HOST);
            (driver.cuMemAdvise)(at, size_of_val(words), ACCESSED_BY, 0);
        }
    }
}

/// Copy to memory of the GPU; when this returns, all is there.
///
/// # Safety
/// From `to` on, there are as many bytes, and no kernel looks at them now.
pub(super) unsafe fn copy_to_gpu(to: u64, bytes: &[u8]) -> Result<()> {
    let driver = in_context()?;
    // SAFETY: reads the bytes, and writes as many by the caller's promise. Bytes of pageable memory may be under way when the first
    // returns, on the stream that null is.
    let copy = || unsafe {
        match (driver.cuMemcpyHtoD_v2)(to, bytes.as_ptr().cast(), bytes.len()) {
            0 => (driver.cuStreamSynchronize)(ptr::null_mut()),
            failed => failed,
        }
    };
    done("copying to it", relaxed(driver, copy))
}

/// Call what otherwise breaks what another thread's MLX is capturing.
fn relaxed<T>(driver: &Driver, call: impl FnOnce() -> T) -> T {
    let mut mode = RELAXED;
    // SAFETY: changes and writes the thread's mode, which becomes what it was.
    let exchange = |mode: &mut c_int| unsafe { (driver.cuThreadExchangeStreamCaptureMode)(mode) };
    exchange(&mut mode);
    let called = call();
    exchange(&mut mode);
    called
}

/// What tells one compiler's results from another's.
pub(super) fn compiler_version() -> Result<(i32, i32)> {
    let compiler = Compiler::get().ok_or_else(missing)?;
    let mut version = (0, 0);
    // SAFETY: writes two numbers.
    done("asking its compiler", unsafe { (compiler.nvrtcVersion)(&mut version.0, &mut version.1) })?;
    Ok(version)
}

/// CUDA C++ to machine code for an architecture, `sm_80`.
///
/// # Errors
/// What the compiler says.
pub(super) fn compile(source: &str, architecture: &str) -> Result<Vec<u8>> {
    let compiler = Compiler::get().ok_or_else(missing)?;
    let text = |text: String| CString::new(text).map_err(|_| Error::Internal("a kernel's source has a zero".into()));
    let source = text(source.to_owned())?;
    let options = [text(format!("--gpu-architecture={architecture}"))?, text("--std=c++17".into())?];
    let pointers = options.each_ref().map(|option| option.as_ptr());
    let mut program = ptr::null_mut();
    // SAFETY: the strings live through the calls; each buffer has the size that was asked for just before; the program is
    // destroyed once, after its last use.
    unsafe {
        let none = ptr::null();
        done(
            "compiling",
            (compiler.nvrtcCreateProgram)(&mut program, source.as_ptr(), c"mlx_lm.cu".as_ptr(), 0, none, none),
        )?;
        let status = (compiler.nvrtcCompileProgram)(program, pointers.len() as c_int, pointers.as_ptr());
        let read = |size_of: unsafe extern "C" fn(Program, *mut usize) -> c_int,
                    get: unsafe extern "C" fn(Program, *mut c_char) -> c_int| {
            let mut size = 0;
            done("compiling", size_of(program, &mut size))?;
            let mut bytes = vec![0u8; size];
            done("compiling", get(program, bytes.as_mut_ptr().cast()))?;
            Ok(bytes)
        };
        let result = match status {
            0 => read(compiler.nvrtcGetCUBINSize, compiler.nvrtcGetCUBIN),
            _ => read(compiler.nvrtcGetProgramLogSize, compiler.nvrtcGetProgramLog)
                .and_then(|log| Err(Error::Internal(String::from_utf8_lossy(&log).trim_end_matches('\0').to_owned()))),
        };
        (compiler.nvrtcDestroyProgram)(&mut program);
        result
    }
}

/// The blocks of a launch.
#[derive(Debug, Clone, Copy)]
pub(super) struct Blocks {
    pub grid: [u32; 3],
    /// Of a block.
    pub threads: u32,
    /// Bytes of dynamic shared memory of a block.
    pub shared: i32,
    /// Blocks along x of a cluster.
    pub cluster: u32,
    /// Whether they may start before the kernel before it on the stream has ended; it waits by itself before it looks at what that
    /// one wrote.
    pub overlaps: bool,
}

/// A kernel on the GPU; never unloaded.
#[derive(Debug, Clone, Copy)]
pub(super) struct Function(FunctionHandle);

// SAFETY: a handle that any thread may use.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Which is none: the driver refuses to launch it.
    pub fn none() -> Self {
        Function(ptr::null_mut())
    }

    /// The kernel `name` of machine code, with up to `shared` bytes of dynamic shared memory, and with large clusters, which not all
    /// GPUs have.
    pub fn load(code: &[u8], name: &CStr, shared: i32, has_large_clusters: bool) -> Result<Self> {
        let driver = in_context()?;
        let (mut module, mut function) = (ptr::null_mut(), ptr::null_mut());
        // SAFETY: the driver copies the code, whose length is in it, and checks it; the handles are written before they are used.
        unsafe {
            let load = || (driver.cuModuleLoadData)(&mut module, code.as_ptr().cast());
            done("loading a kernel", relaxed(driver, load))?;
            done("loading a kernel", (driver.cuModuleGetFunction)(&mut function, module, name.as_ptr()))?;
            done("loading a kernel", (driver.cuFuncSetAttribute)(function, MAX_DYNAMIC_SHARED, shared))?;
            if has_large_clusters {
                done("loading a kernel", (driver.cuFuncSetAttribute)(function, LARGE_CLUSTERS, 1))?;
            }
        }
        Ok(Function(function))
    }

    /// Start it on a stream.
    ///
    /// # Safety
    /// `arguments` has the layout of the kernel's only parameter, and its addresses are those of memory that is as large as
    /// the kernel takes it to be, until the kernel has run; `stream` is a stream of [the context](in_context).
    pub unsafe fn launch<A>(self, stream: Stream, blocks: Blocks, arguments: &A) -> Result<()> {
        let driver = in_context()?;
        let Blocks { grid, threads, shared, cluster, overlaps } = blocks;
        // Those that are meant stand together.
        let attributes = [LaunchAttribute::overlap(), LaunchAttribute::cluster(cluster)];
        let first = usize::from(!overlaps);
        let config = LaunchConfig {
            grid,
            block: [threads, 1, 1],
            shared: shared as c_uint,
            stream: stream.0,
            attributes: attributes[first..].as_ptr(),
            n_attributes: c_uint::from(overlaps) + c_uint::from(cluster > 1),
        };
        let parameters = [ptr::from_ref(arguments).cast::<c_void>()];
        // SAFETY: the driver copies the argument within the call; the rest is the caller's promise.
        done("starting a kernel", unsafe {
            (driver.cuLaunchKernelEx)(&config, self.0, parameters.as_ptr(), ptr::null())
        })
    }
}

/// A place on a stream.
#[derive(Debug, Clone, Copy)]
pub(super) struct Event(EventHandle);

// SAFETY: a handle that any thread may use.
unsafe impl Send for Event {}

/// `CU_EVENT_DISABLE_TIMING`.
const NO_TIMING: c_uint = 2;

impl Event {
    /// Until it is recorded, it counts as done.
    pub fn new() -> Result<Self> {
        let driver = in_context()?;
        let mut event = ptr::null_mut();
        // SAFETY: writes the handle.
        done("making an event", unsafe { (driver.cuEventCreate)(&mut event, NO_TIMING) })?;
        Ok(Event(event))
    }

    /// Behind all that is on the stream now.
    pub fn record(self, stream: Stream) -> Result<()> {
        let driver = in_context()?;
        // SAFETY: the event is alive, and the stream MLX's.
        done("recording an event", unsafe { (driver.cuEventRecord)(self.0, stream.0) })
    }

    /// Whether all before it has run.
    pub fn is_done(self) -> bool {
        // SAFETY: the event is alive.
        in_context().is_ok_and(|driver| unsafe { (driver.cuEventQuery)(self.0) } == 0)
    }

    /// Until all before it has run, or the driver is gone.
    pub fn wait(self) {
        if let Ok(driver) = in_context() {
            // SAFETY: the event is alive; an error is that of the GPU, which whoever reads results is told.
            unsafe { (driver.cuEventSynchronize)(self.0) };
        }
    }

    /// Not to be used any more.
    pub fn destroy(self) {
        if let Ok(driver) = in_context() {
            // SAFETY: the event is alive, and nobody uses it from now on.
            unsafe { (driver.cuEventDestroy_v2)(self.0) };
        }
    }
}

/// A stream of the driver: MLX's.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub(super) struct Stream(pub *mut c_void);

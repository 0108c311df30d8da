//! Kernels by what they are compiled for: compiled at run time for the GPU at hand, several at once, and kept on disk.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fs;
use std::hash::Hash;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::{Mutex, Once, OnceLock, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};

use super::driver::{self, Blocks, Function, Stream};
use super::{Gpu, PORTABLE_CLUSTER};
use crate::error::Result;

/// What a kernel is compiled from.
pub(super) trait Form: Clone + Eq + Hash + Send + Sync {
    /// What comes before [`Form::entry`].
    const SOURCE: &str;

    /// Threads of a block, and how many blocks a multiprocessor must have room for.
    fn bounds(&self) -> (i32, i32);

    /// The most dynamic shared memory that a launch may have, in bytes.
    fn dynamic_shared(&self) -> i32 {
        0
    }

    /// The type of the kernel's only parameter, and the statements that take it, as `a`.
    fn entry(&self) -> (String, String);
}

/// `Type` of numbers.cu.
pub(super) fn type_name(is_bf16: bool) -> &'static str {
    if is_bf16 { "mlx_lm::Type::BF16" } else { "mlx_lm::Type::F16" }
}

/// A compiled kernel.
#[derive(Debug, Clone, Copy)]
pub(super) struct Kernel {
    function: Function,
    threads: u32,
    /// Whether it waits by itself for the kernel before it.
    overlaps: bool,
}

impl Kernel {
    /// Which is none.
    fn none() -> Self {
        Kernel { function: Function::none(), threads: 0, overlaps: false }
    }

    fn new<F: Form>(form: &F, gpu: &Gpu) -> Result<Self> {
        let (threads, blocks) = form.bounds();
        let (parameter, body) = form.entry();
        let source = format!(
            "{}\nextern \"C\" __global__ void __launch_bounds__({threads}, {blocks})\n\
             mlx_lm_kernel(__grid_constant__ const {parameter} a) {{\n{body}\n}}\n",
            F::SOURCE
        );
        let load = |code: &[u8]| {
            Function::load(code, c"mlx_lm_kernel", form.dynamic_shared(), gpu.max_cluster() > PORTABLE_CLUSTER)
        };
        let kept = Kept::of(&source, gpu);
        let function = match kept.as_ref().and_then(Kept::read).and_then(|code| load(&code).ok()) {
            Some(function) => function,
            None => {
                let code = driver::compile(&source, &gpu.architecture())?;
                let function = load(&code)?;
                if let Some(kept) = kept {
                    kept.write(&code);
                }
                function
            }
        };
        Ok(Kernel { function, threads: threads as u32, overlaps: gpu.capability >= (9, 0) })
    }

    /// Start it, after another of ours on this stream in `follows`.
    ///
    /// # Safety
    /// As of [`Function::launch`].
    pub unsafe fn launch<A>(self, at: Launch, arguments: &A) -> Result<()> {
        // SAFETY: the caller's promise.
        unsafe { self.launch_clusters(at, 1, arguments) }
    }

    /// [`Kernel::launch`] with clusters of so many blocks along x.
    ///
    /// # Safety
    /// As of [`Function::launch`].
    pub unsafe fn launch_clusters<A>(self, at: Launch, cluster: u32, arguments: &A) -> Result<()> {
        let Launch { stream, grid, shared, follows } = at;
        let blocks = Blocks { grid, threads: self.threads, shared, cluster, overlaps: follows && self.overlaps };
        // SAFETY: the caller's promise.
        unsafe { self.function.launch(stream, blocks, arguments) }
    }
}

/// Where, and by how many blocks.
#[derive(Debug, Clone, Copy)]
pub(super) struct Launch {
    pub stream: Stream,
    pub grid: [u32; 3],
    /// Dynamic shared memory in bytes.
    pub shared: i32,
    /// Whether the kernel before it on the stream is one of ours.
    pub follows: bool,
}

/// The kernels of one kind, once each is compiled; `None` for those that a GPU's compiler refuses, which is told once.
pub(super) struct Compiled<F>(Mutex<Option<HashMap<F, Known>>>);

#[derive(Debug, Clone, Copy)]
enum Known {
    /// By a plan of [`all_at_once`], which compiles it.
    Asked,
    Compiled(Option<Kernel>),
}

/// What a plan of [`all_at_once`] asked for.
#[derive(Default)]
struct Asked {
    /// Each compiles a kernel and keeps it.
    jobs: Vec<Box<dyn FnOnce() + Send>>,
    /// Whether some of what it got is no kernel.
    is_incomplete: bool,
}

thread_local! {
    static ASKED: RefCell<Option<Asked>> = const { RefCell::new(None) };
}

/// What `plan` gives, all of whose kernels that are not known yet are compiled at once, together with those that `ahead` asks for.
/// Then `plan` is called twice, and the first time with kernels that must not be launched.
pub(super) fn all_at_once<T>(plan: impl Fn() -> T, ahead: impl FnOnce()) -> T {
    ASKED.set(Some(Asked::default()));
    let planned = plan();
    let is_incomplete = ASKED.with_borrow(|asked| asked.as_ref().is_some_and(|asked| asked.is_incomplete));
    if is_incomplete {
        ahead();
    }
    let asked = ASKED.take().unwrap_or_default();
    if !is_incomplete {
        return planned;
    }
    thread::scope(|scope| asked.jobs.into_iter().for_each(|job| drop(scope.spawn(job))));
    plan()
}

impl<F: Form + 'static> Compiled<F> {
    pub const fn new() -> Self {
        Compiled(Mutex::new(None))
    }

    fn with<T>(&self, f: impl FnOnce(&mut HashMap<F, Known>) -> T) -> T {
        f(self.0.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert_default())
    }

    /// The kernels of these forms; `None` if one cannot be compiled.
    pub fn get<const N: usize>(&'static self, forms: [&F; N], gpu: &Gpu) -> Option<[Kernel; N]> {
        self.get_all(&forms, gpu)?.try_into().ok()
    }

    /// [`Compiled::get`] of any number.
    pub fn get_all(&'static self, forms: &[&F], gpu: &Gpu) -> Option<Vec<Kernel>> {
        forms.iter().map(|form| self.get_one(form, gpu)).collect()
    }

    fn get_one(&'static self, form: &F, gpu: &Gpu) -> Option<Kernel> {
        let known = self.with(|known| known.get(form).copied());
        if let Some(Known::Compiled(kernel)) = known {
            return kernel;
        }
        let ask = |asked: &mut Asked| {
            asked.is_incomplete = true;
            if known.is_none() {
                self.with(|known| known.insert(form.clone(), Known::Asked));
                let (form, gpu) = (form.clone(), *gpu);
                asked.jobs.push(Box::new(move || {
                    let _ = self.compiled(&form, &gpu);
                }));
            }
            Kernel::none()
        };
        let asked = ASKED.with_borrow_mut(|asked| asked.as_mut().map(ask));
        asked.or_else(|| self.compiled(form, gpu))
    }

    fn compiled(&self, form: &F, gpu: &Gpu) -> Option<Kernel> {
        let kernel =
            catch_unwind(AssertUnwindSafe(|| Kernel::new(form, gpu).map_err(|error| warn(&error)).ok())).ok().flatten();
        self.with(|known| known.insert(form.clone(), Known::Compiled(kernel)));
        kernel
    }
}

fn warn(error: &crate::Error) {
    static WARNED: Once = Once::new();
    WARNED.call_once(|| {
        let message = error.to_string();
        let line = message.lines().find(|line| line.contains("error")).or(message.lines().next()).unwrap_or_default();
        log::warn!("a kernel for this GPU could not be made, so MLX's operation computes: {line}");
    });
}

static FOLDER: OnceLock<PathBuf> = OnceLock::new();

/// Keep compiled kernels as files of this folder, where the next process finds them: compiling takes seconds. Only the first
/// call counts, before any work.
pub fn keep_kernels_in(folder: PathBuf) {
    let _ = FOLDER.set(folder);
}

/// A kernel's machine code in a file, behind its hash.
struct Kept(PathBuf);

impl Kept {
    /// `None` where kernels are not kept. The name depends on all that the code depends on.
    fn of(source: &str, gpu: &Gpu) -> Option<Self> {
        let folder = FOLDER.get()?;
        let compiler = driver::compiler_version().ok()?;
        let key = hex::encode(&Sha256::digest(format!("{compiler:?} {source}"))[..16]);
        Some(Kept(folder.join(format!("{key}-{}.cubin", gpu.architecture()))))
    }

    fn read(&self) -> Option<Vec<u8>> {
        let kept = fs::read(&self.0).ok()?;
        let (hash, code) = kept.split_at_checked(32)?;
        (Sha256::digest(code).as_slice() == hash).then(|| code.to_vec())
    }

    /// Without it, the kernel is compiled again next time.
    fn write(&self, code: &[u8]) {
        let folder = self.0.parent().expect("a file in a folder");
        let write = || {
            fs::create_dir_all(folder)?;
            let file = tempfile::NamedTempFile::new_in(folder)?;
            fs::write(file.path(), [Sha256::digest(code).as_slice(), code].concat())?;
            file.persist(&self.0).map_err(std::io::Error::from)
        };
        if let Err(error) = write() {
            log::debug!("a compiled kernel could not be kept in {}: {error}", folder.display());
        }
    }
}

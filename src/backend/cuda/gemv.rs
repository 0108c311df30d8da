//! Linear layers with few vectors: which of the kernels that `gemv.cu` can make is meant, and its launch.

use mlx_rs::{Array, Dtype};

use super::driver::Stream;
use super::kernel::{Compiled, Form as _, Kernel, Launch};
use super::node::{Memory, When, node};
use super::{Affine, Epilogue, Fused, Gpu};
use crate::backend::{Activation, Packing};
use crate::error::Result;

/// As many layers with one input: q, k and v.
const MAX_LAYERS: usize = 3;
/// As many matrix instructions use a weight at most, once it is unpacked: registers have no room for the sums of more.
const MAX_SETS: i32 = 8;

/// `n / of`, rounded up; both positive.
fn divided_up(n: i32, of: i32) -> i32 {
    (n + of - 1) / of
}

/// What is compiled: everything but the number of rows and, up to a set, of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    packing: Packing,
    is_bf16: bool,
    columns: i32,
    layers: usize,
    /// For each layer, whether it has a bias.
    biases: [bool; MAX_LAYERS],
    swiglu: bool,
    /// Whether the vectors are normalised.
    has_norm: bool,
    /// Whether something is added to the result.
    has_residual: bool,
    /// How many matrix instructions use a weight once it is unpacked.
    sets: i32,
}

impl Form {
    /// Columns that a warp takes at a time: 64 bytes of a row.
    fn chunk(&self) -> i32 {
        512 / self.packing.bits
    }

    /// Columns of a chunk with one scale.
    fn unit(&self) -> i32 {
        self.packing.group_size.min(self.chunk())
    }

    /// Vectors in a set.
    fn vectors_of_set(&self) -> i32 {
        4 * self.unit() / self.chunk()
    }

    fn chunks(&self) -> i32 {
        divided_up(self.columns, self.chunk())
    }

    /// Warps that share a row. It decides in which order a row is added up, so only the matrix may decide it.
    fn warps(&self) -> i32 {
        if self.chunks() >= 32 { 16 } else { 8 }
    }

    /// Chunks that a warp has in registers: more for long rows of four bits, fewer where sums leave no room.
    fn ahead(&self) -> i32 {
        let most = match self.sets {
            1 if self.packing.bits == 4 => 4,
            ..5 => 2,
            _ => 1,
        };
        divided_up(self.chunks(), self.warps()).min(most)
    }

    fn blocks_per_multiprocessor(&self) -> i32 {
        16 / self.warps()
    }

    /// `vector_bytes` and `fixed_bytes` of gemv.cu.
    fn shared(&self, sets: i32) -> i32 {
        let each = 2 * (self.chunks() * self.chunk() + 16) + self.columns / self.unit() * 8;
        32 + sets * self.vectors_of_set() * (2 * self.warps() * 16 * 4 + each)
    }

    /// For so many vectors, all in one pass over the weights if shared memory has room for them, or else in equal passes;
    /// `None` where it has no room for a set.
    fn fit(mut self, vectors: i32, gpu: &Gpu) -> Option<Self> {
        let most = (1..=MAX_SETS).rev().find(|&sets| self.shared(sets) <= gpu.shared_memory)?;
        let sets = divided_up(vectors, self.vectors_of_set());
        self.sets = divided_up(sets, divided_up(sets, most));
        Some(self)
    }
}

impl super::kernel::Form for Form {
    const SOURCE: &str = concat!(include_str!("numbers.cu"), include_str!("gemv.cu"));

    fn bounds(&self) -> (i32, i32) {
        (self.warps() * 32, self.blocks_per_multiprocessor())
    }

    fn dynamic_shared(&self) -> i32 {
        self.shared(self.sets)
    }

    fn entry(&self) -> (String, String) {
        // What is not there is known to the compiler.
        let if_has = |has: bool, what: &str| if has { what.to_owned() } else { "nullptr".to_owned() };
        let layer = |i: usize| {
            let at = format!("a.layers[{i}]");
            let bias = if_has(self.biases[i], &format!("{at}.bias"));
            format!("{{{at}.words, {at}.scales, {at}.biases, {bias}, {at}.rows}}")
        };
        let body = format!(
            "const mlx_lm::Layer layers[] = {{{}}};\n\
             const mlx_lm::Fused fused = {{{}, a.fused.eps, {}}};\n\
             mlx_lm::Gemv<{}, {}, mlx_lm::Type::{}, {}, {}, {}, {}, {}, {}>(layers, fused).run(a.x, a.y, a.vectors);",
            (0..self.layers).map(layer).collect::<Vec<_>>().join(", "),
            if_has(self.has_norm, "a.fused.norm"),
            if_has(self.has_residual, "a.fused.residual"),
            self.packing.bits,
            self.packing.group_size,
            if self.is_bf16 { "BF16" } else { "F16" },
            self.columns,
            self.layers,
            self.swiglu,
            self.sets,
            self.warps(),
            self.ahead(),
        );
        ("mlx_lm::GemvArguments".to_owned(), body)
    }
}

/// `Layer` of gemv.cu; addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct LayerArguments {
    words: u64,
    scales: u64,
    biases: u64,
    bias: u64,
    rows: i32,
}

/// `GemvArguments` of gemv.cu; addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Arguments {
    layers: [LayerArguments; MAX_LAYERS],
    norm: u64,
    eps: f32,
    residual: u64,
    x: u64,
    y: u64,
    vectors: i32,
}

/// Linear layers for an input of so many vectors, checked; their kernel is not compiled yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub form: Form,
    rows: [i32; MAX_LAYERS],
    eps: f32,
    vectors: i32,
    width: i32,
    blocks: i32,
}

/// Where the numbers of a launch lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses<'a> {
    pub x: u64,
    pub y: u64,
    /// Each layer's words, scales and biases, and its bias if it has one; then the norm, if there is one.
    pub weights: &'a [u64],
    pub residual: Option<u64>,
}

impl Plan {
    /// `None` for what is not done here. Of a residual, the type and shape are those of the output.
    pub fn new(
        gpu: &Gpu,
        (vectors, columns, dtype): (i32, i32, Dtype),
        layers: &[Affine],
        epilogue: Epilogue,
        norm: Option<(&Array, f32)>,
        has_residual: bool,
    ) -> Option<Self> {
        let swiglu = match epilogue {
            Epilogue::Concat => false,
            Epilogue::Gated(Activation::Silu) => true,
            Epilogue::Gated(Activation::GeluTanh) => return None,
        };
        let packing = layers.first()?.packing;
        let is_number = |numbers: &Array| numbers.dtype() == dtype;
        let fits = |layer: &Affine| {
            let numbers = [Some(layer.scales), Some(layer.biases), layer.bias];
            layer.packing == packing
                && layer.packed.shape()[1..] == [columns * packing.bits / 32]
                && numbers.into_iter().flatten().all(is_number)
        };
        if layers.len() > MAX_LAYERS {
            return None;
        }
        let (mut rows, mut biases) = ([0; MAX_LAYERS], [false; MAX_LAYERS]);
        for (i, layer) in layers.iter().enumerate() {
            (rows[i], biases[i]) = (layer.packed.dim(0), layer.bias.is_some());
        }
        let mut width = rows.iter().sum::<i32>();
        let mut tiles = rows.iter().map(|&rows| divided_up(rows, 16)).sum::<i32>();
        if swiglu {
            width /= 2;
            tiles = divided_up(width, 8);
        }
        let is_done = matches!(packing.bits, 4 | 8)
            && matches!(dtype, Dtype::Float16 | Dtype::Bfloat16)
            && vectors > 0
            && columns % packing.group_size == 0
            && layers.iter().all(fits)
            && (!swiglu || layers.len() == 2 && rows[0] == rows[1])
            && norm.is_none_or(|(weight, _)| is_number(weight) && weight.shape() == [columns]);
        if !is_done {
            return None;
        }
        let form = Form {
            packing,
            is_bf16: dtype == Dtype::Bfloat16,
            columns,
            layers: layers.len(),
            biases,
            swiglu,
            has_norm: norm.is_some(),
            has_residual,
            sets: 1,
        };
        let form = form.fit(vectors, gpu)?;
        let blocks = tiles.min(gpu.multiprocessors * form.blocks_per_multiprocessor());
        Some(Plan { form, rows, eps: norm.map_or(0.0, |(_, eps)| eps), vectors, width, blocks })
    }

    /// The kernels of plans.
    pub fn compile<const N: usize>(plans: [&Plan; N], gpu: &Gpu) -> Option<[Kernel; N]> {
        static KERNELS: Compiled<Form> = Compiled::new();
        KERNELS.get(plans.map(|plan| &plan.form), gpu)
    }

    /// How many numbers each vector becomes.
    pub fn width(&self) -> i32 {
        self.width
    }

    /// How many addresses of weights a launch takes.
    pub fn weights(&self) -> usize {
        let biases = self.form.biases.iter().filter(|&&has_bias| has_bias).count();
        3 * self.form.layers + biases + usize::from(self.form.has_norm)
    }

    /// Start the plan's `kernel`.
    ///
    /// # Safety
    /// The addresses are of arrays as they were when it was planned.
    pub unsafe fn launch(&self, kernel: Kernel, stream: Stream, follows: bool, at: Addresses) -> Result<()> {
        let mut weights = at.weights.iter().copied();
        let mut next = || weights.next().expect("an address for each weight");
        let mut arguments = Arguments {
            eps: self.eps,
            residual: at.residual.unwrap_or_default(),
            x: at.x,
            y: at.y,
            vectors: self.vectors,
            ..Arguments::default()
        };
        for (i, layer) in arguments.layers.iter_mut().enumerate().take(self.form.layers) {
            let [words, scales, biases] = [next(), next(), next()];
            let bias = if self.form.biases[i] { next() } else { 0 };
            *layer = LayerArguments { words, scales, biases, bias, rows: self.rows[i] };
        }
        if self.form.has_norm {
            arguments.norm = next();
        }
        let grid = [self.blocks as u32, 1, 1];
        // SAFETY: `Arguments` is `GemvArguments`, which the kernel takes; the rest is the caller's promise.
        unsafe { kernel.launch(Launch { stream, grid, shared: self.form.dynamic_shared(), follows }, &arguments) }
    }
}

/// The arrays of layers and norm as [`Addresses::weights`] has them.
pub(super) fn weights<'a>(layers: &[Affine<'a>], norm: Option<&'a Array>) -> Vec<&'a Array> {
    let arrays =
        layers.iter().flat_map(|layer| [Some(layer.packed), Some(layer.scales), Some(layer.biases), layer.bias]);
    arrays.chain([norm]).flatten().collect()
}

/// See [`Gpu::affine`].
pub(super) fn linear(
    gpu: &Gpu,
    x: &Array,
    layers: &[Affine],
    epilogue: Epilogue,
    fused: Fused,
) -> Option<Result<Array>> {
    let &columns = x.shape().last()?;
    let vectors = x.size() as i32 / columns.max(1);
    let dtype = x.dtype();
    let has_residual = fused.residual.is_some();
    let plan = Plan::new(gpu, (vectors, columns, dtype), layers, epilogue, fused.norm, has_residual)?;
    let fits = |residual: &Array| residual.dtype() == dtype && residual.size() as i32 == vectors * plan.width;
    if !fused.residual.is_none_or(fits) {
        return None;
    }
    let [kernel] = Plan::compile([&plan], gpu)?;
    let mut shape = x.shape().to_vec();
    *shape.last_mut()? = plan.width;
    Some(Memory::with(|memory| memory.result(&shape, dtype)).and_then(|y| {
        let mut inputs = vec![&y, x];
        inputs.extend(fused.residual);
        inputs.extend(weights(layers, fused.norm.map(|(weight, _)| weight)));
        let mut made = node(&inputs, 1, When::Evaluated, move |stream, addresses| {
            let [y, x, ref rest @ ..] = *addresses else { unreachable!("two and more inputs") };
            let (residual, weights) = rest.split_at(usize::from(has_residual));
            let at = Addresses { x, y, weights, residual: residual.first().copied() };
            // SAFETY: these are the inputs of the node, of which the plan was made.
            unsafe { plan.launch(kernel, stream, false, at) }
        })?;
        Ok(made.remove(0))
    }))
}

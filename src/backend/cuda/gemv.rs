//! Linear layers with few vectors: which of the kernels that `gemv.cu` can make is meant, and its launch.

use half::{bf16, f16};
use mlx_rs::{Array, Dtype};

use super::driver::Stream;
use super::kernel::{Compiled, Kernel, Launch, type_name};
use super::node::{Memory, When, node};
use super::{Epilogue, Fused, Gpu, Linear, Weight};
use crate::backend::{Activation, Residual};
use crate::error::Result;

/// As many layers with one input: q, k and v.
pub(super) const MAX_LAYERS: usize = 3;
/// As many vectors are multiplied in one launch.
const AT_ONCE: i32 = 32;
/// `BUFFERS`, `ADDERS` and `SUMS_PITCH` of gemv.cu.
const BUFFERS: i32 = 8;
const ADDERS: i32 = 4;
const SUMS_PITCH: i32 = 20;
/// The fewest `stages`.
const STAGES: i32 = 2;

/// `n / of`, rounded up; both positive.
pub(super) fn divided_up(n: i32, of: i32) -> i32 {
    (n + of - 1) / of
}

/// What is compiled: everything but the number of rows and, up to a set, of vectors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Form {
    /// Of a weight: 4 or 8, or 16 of one that is not packed.
    bits: i32,
    /// Columns with one scale. Where there is none they are taken 64 at a time.
    group_size: i32,
    is_bf16: bool,
    columns: i32,
    layers: usize,
    /// For each layer, whether it has a bias.
    biases: [bool; MAX_LAYERS],
    activation: Option<Activation>,
    /// Whether the vectors are normalised.
    has_norm: bool,
    /// Whether something is added to the result.
    has_residual: bool,
    /// How many matrix instructions, for eight vectors each, use a weight once it is unpacked.
    tiles: i32,
    /// Warps of a block that multiply, and chunks that each asks for ahead, with the one that it multiplies. No number depends on
    /// them.
    warps: i32,
    stages: i32,
    /// Bytes of shared memory that a launch may have.
    room: i32,
}

/// `Packed` of gemv.cu.
impl Form {
    /// Columns in 256 bytes of a row.
    fn chunk(&self) -> i32 {
        2048 / self.bits
    }

    fn chunks(&self) -> i32 {
        divided_up(self.columns, self.chunk())
    }

    /// Chunks of a segment.
    fn segment(&self) -> i32 {
        if self.is_plain() { 4 } else { 2 }
    }

    fn segments(&self) -> i32 {
        divided_up(self.chunks(), self.segment())
    }

    /// Columns with one scale.
    fn unit(&self) -> i32 {
        self.group_size.min(64)
    }

    fn is_plain(&self) -> bool {
        self.bits == 16
    }

    /// `shared_bytes` of gemv.cu.
    fn shared(&self, vectors: i32, span: i32) -> i32 {
        let chunks = (span * self.segment()).min(self.chunks());
        let words = self.unit() / 4 * self.bits / 32;
        let (stage, summed) = if self.is_plain() {
            (16 * (256 + 16), 0)
        } else {
            let scales = self.chunk() / self.group_size * 2;
            (16 * (256 + 16 * words) + 32 * scales, self.chunk() / self.unit())
        };
        let norm = if self.has_norm { 8 * self.tiles * (self.columns / self.unit() + 1) * 4 } else { 0 };
        let sums = if span == self.segments() { BUFFERS * span * vectors * SUMS_PITCH * 4 } else { 0 };
        let pad = if self.unit() == 32 { 64 } else { 16 };
        self.warps * self.stages * stage
            + 128
            + norm
            + chunks * summed * 8 * self.tiles * 4
            + sums
            + vectors * (chunks * self.chunk() * 2 + pad)
    }

    /// Segments of a block for so many vectors: all, or the parts of equal size that shared memory has room for.
    fn span(&self, vectors: i32) -> Option<i32> {
        let segments = self.segments();
        let mut spans = (1..=segments).map(|spans| divided_up(segments, spans));
        spans.find(|&span| self.shared(vectors, span) <= self.room)
    }

    /// For so many vectors; `None` where shared memory has no room.
    fn fit(mut self, vectors: i32) -> Option<(Self, i32)> {
        self.tiles = if vectors <= 8 { 1 } else { divided_up(vectors, 16) * 2 };
        // More sums leave fewer registers.
        let most = if self.tiles == 4 { 8 } else { 12 };
        (1..=most / 2).rev().find_map(|half| {
            (self.warps, self.stages) = (2 * half, STAGES);
            let span = self.span(vectors)?;
            // Weights that need no unpacking are waited for, if there is not more of them under way.
            let ahead = Form { stages: STAGES + 1, ..self };
            Some((if self.is_plain() && ahead.span(vectors) == Some(span) { ahead } else { self }, span))
        })
    }
}

impl super::kernel::Form for Form {
    const SOURCE: &str = concat!(include_str!("numbers.cu"), include_str!("tensor.cu"), include_str!("gemv.cu"));

    fn bounds(&self) -> (i32, i32) {
        ((self.warps + ADDERS) * 32, 1)
    }

    fn dynamic_shared(&self) -> i32 {
        self.room
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
            "extern __shared__ __align__(128) unsigned char shared[];\n\
             const mlx_lm::Layer layers[] = {{{}}};\n\
             const mlx_lm::Fused fused = {{{}, a.fused.eps, {{{}, a.fused.residual.multiplier, a.fused.residual.most}}}};\n\
             mlx_lm::Gemv<{}, {}, {}, {}, {}, mlx_lm::Activation::{}, {}, {}, {}, {}>(a, layers, fused, shared).run();",
            (0..self.layers).map(layer).collect::<Vec<_>>().join(", "),
            if_has(self.has_norm, "a.fused.norm"),
            if_has(self.has_residual, "a.fused.residual.of"),
            self.bits,
            self.group_size,
            type_name(self.is_bf16),
            self.columns,
            self.layers,
            activation_name(self.activation),
            self.has_norm,
            self.tiles,
            self.warps,
            self.stages,
        );
        ("mlx_lm::GemvArguments".to_owned(), body)
    }
}

/// `Layer` of gemv.cu, and `GemmLayer` of gemm.cu; addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct LayerAddresses {
    pub words: u64,
    pub scales: u64,
    pub biases: u64,
    pub bias: u64,
    pub rows: i32,
}

impl LayerAddresses {
    /// Of `n` layers of so many bits: `next` gives each one's arrays, and its bias if it has one.
    pub fn read(
        n: usize,
        bits: i32,
        rows: [i32; MAX_LAYERS],
        biases: [bool; MAX_LAYERS],
        mut next: impl FnMut() -> u64,
    ) -> [Self; MAX_LAYERS] {
        let mut layers = [LayerAddresses::default(); MAX_LAYERS];
        for ((layer, rows), has_bias) in layers.iter_mut().zip(rows).zip(biases).take(n) {
            let words = next();
            let [scales, biases] = if bits == 16 { [0; 2] } else { [next(), next()] };
            *layer = LayerAddresses { words, scales, biases, bias: if has_bias { next() } else { 0 }, rows };
        }
        layers
    }
}

/// `Residual` of tensor.cu: what an output is added to.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Added {
    /// An address, or 0 where nothing is added.
    pub to: u64,
    multiplier: f32,
    most: f32,
}

impl Added {
    /// As the block says, of numbers of this type; the address comes later.
    pub fn new(residual: Residual, dtype: Dtype) -> Self {
        let rounded = match dtype {
            Dtype::Float16 => f16::from_f32(residual.multiplier).to_f32(),
            _ => bf16::from_f32(residual.multiplier).to_f32(),
        };
        let saturates = residual.saturates && dtype == Dtype::Float16;
        Added { to: 0, multiplier: rounded, most: if saturates { f16::MAX.to_f32() } else { f32::INFINITY } }
    }

    /// To what is at this address.
    pub fn at(self, to: u64) -> Self {
        Added { to, ..self }
    }

    /// As if what this adds to were so many bytes further.
    fn behind(self, bytes: u64) -> Self {
        if self.to == 0 { self } else { self.at(self.to + bytes) }
    }
}

impl Default for Added {
    /// Nothing.
    fn default() -> Self {
        Added { to: 0, multiplier: 1.0, most: f32::INFINITY }
    }
}

/// `Activation` of tensor.cu.
pub(super) fn activation_name(activation: Option<Activation>) -> &'static str {
    match activation {
        None => "NONE",
        Some(Activation::Silu) => "SILU",
        Some(Activation::GeluTanh) => "GELU_TANH",
    }
}

/// `GemvArguments` of gemv.cu; addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Arguments {
    layers: [LayerAddresses; MAX_LAYERS],
    norm: u64,
    eps: f32,
    residual: Added,
    x: u64,
    y: u64,
    shared: Shared,
    vectors: i32,
    span: i32,
}

/// `Shared` of gemv.cu; addresses of memory that any launches one after another may use.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shared {
    pub sums: u64,
    pub squares: u64,
    /// Zeros before and after.
    pub counts: u64,
}

/// Bytes of [`Shared`].
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct SharedBytes {
    sums: usize,
    squares: usize,
    counts: usize,
}

impl SharedBytes {
    /// For launches of any of both.
    pub fn max(self, other: Self) -> Self {
        SharedBytes {
            sums: self.sums.max(other.sums),
            squares: self.squares.max(other.squares),
            counts: self.counts.max(other.counts),
        }
    }

    /// Arrays for the addresses of [`Shared`].
    pub fn arrays(self, memory: &mut Memory) -> Result<[Array; 3]> {
        Ok([
            memory.scratch("sums of segments", self.sums)?,
            memory.scratch("squares of segments", self.squares)?,
            memory.scratch("counts of blocks", self.counts)?,
        ])
    }
}

/// Linear layers for an input of so many vectors, checked; their kernel is not compiled yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub form: Form,
    rows: [i32; MAX_LAYERS],
    eps: f32,
    vectors: i32,
    width: i32,
    /// Of sixteen rows.
    tiles: i32,
    span: i32,
    blocks: i32,
}

/// Where the numbers of a launch lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses<'a> {
    pub x: u64,
    pub y: u64,
    /// Each layer's arrays, and its bias if it has one; then the norm, if there is one.
    pub weights: &'a [u64],
    pub residual: Added,
    pub shared: Shared,
}

impl Plan {
    /// `None` for what is not done here. Of a residual, the type and shape are those of the output.
    pub fn new(
        gpu: &Gpu,
        (vectors, columns, dtype): (i32, i32, Dtype),
        layers: &[Linear],
        epilogue: Epilogue,
        norm: Option<(&Array, f32)>,
        has_residual: bool,
    ) -> Option<Self> {
        let activation = epilogue.activation();
        let (bits, group_size) = packing(layers.first()?);
        if layers.len() > MAX_LAYERS {
            return None;
        }
        let (rows, biases) = rows_and_biases(layers);
        let mut width = rows.iter().sum::<i32>();
        let mut tiles = rows.iter().map(|&rows| divided_up(rows, 16)).sum::<i32>();
        if activation.is_some() {
            width /= 2;
            tiles = divided_up(width, 8);
        }
        let is_done = matches!(bits, 4 | 8 | 16)
            && matches!(dtype, Dtype::Float16 | Dtype::Bfloat16)
            && vectors > 0
            && columns % group_size == 0
            && layers.iter().all(|layer| packing(layer) == (bits, group_size) && fits(layer, columns, dtype))
            && (activation.is_none() || layers.len() == 2 && rows[0] == rows[1])
            && norm.is_none_or(|(weight, _)| weight.dtype() == dtype && weight.shape() == [columns]);
        if !is_done {
            return None;
        }
        let form = Form {
            bits,
            group_size,
            is_bf16: dtype == Dtype::Bfloat16,
            columns,
            layers: layers.len(),
            biases,
            activation,
            has_norm: norm.is_some(),
            has_residual,
            tiles: 1,
            warps: 1,
            stages: STAGES,
            room: gpu.shared_memory,
        };
        let (form, span) = form.fit(vectors.min(AT_ONCE))?;
        let spans = divided_up(form.segments(), span);
        let blocks = tiles.min(gpu.multiprocessors / spans) * spans;
        let eps = norm.map_or(0.0, |(_, eps)| eps);
        (blocks > 0).then_some(Plan { form, rows, eps, vectors, width, tiles, span, blocks })
    }

    /// Bytes that a launch shares with others.
    pub fn shared_bytes(&self) -> SharedBytes {
        if self.span == self.form.segments() {
            return SharedBytes::default();
        }
        let each = (self.form.segments() * 8 * self.form.tiles) as usize * 4;
        SharedBytes { sums: self.tiles as usize * each * 16, squares: each, counts: self.blocks as usize * 4 }
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

    /// Start the plan's `kernel`.
    ///
    /// # Safety
    /// The addresses are of arrays as they were when it was planned.
    pub unsafe fn launch(&self, kernel: Kernel, stream: Stream, follows: bool, at: Addresses) -> Result<()> {
        let mut weights = at.weights.iter().copied();
        let mut next = || weights.next().expect("an address for each weight");
        let mut arguments = Arguments { eps: self.eps, shared: at.shared, span: self.span, ..Arguments::default() };
        let Form { layers, bits, biases, .. } = self.form;
        arguments.layers = LayerAddresses::read(layers, bits, self.rows, biases, &mut next);
        if self.form.has_norm {
            arguments.norm = next();
        }
        let grid = [self.blocks as u32, 1, 1];
        for first in (0..self.vectors).step_by(AT_ONCE as usize) {
            let before = |width: i32| first as u64 * width as u64 * 2;
            arguments.x = at.x + before(self.form.columns);
            arguments.y = at.y + before(self.width);
            arguments.residual = at.residual.behind(before(self.width));
            arguments.vectors = (self.vectors - first).min(AT_ONCE);
            let shared = self.form.shared(arguments.vectors, self.span);
            let follows = follows || first > 0;
            // SAFETY: `Arguments` is `GemvArguments`, which the kernel takes; the rest is the caller's promise.
            unsafe { kernel.launch(Launch { stream, grid, shared, follows }, &arguments)? };
        }
        Ok(())
    }
}

/// The bits of a layer's weights, 16 of one that is not packed, with the columns of a scale.
pub(super) fn packing(layer: &Linear) -> (i32, i32) {
    layer.weight.packing().map_or((16, 64), |packing| (packing.bits, packing.group_size))
}

/// How many rows each layer has, and whether it has a bias; of [`MAX_LAYERS`] at most.
pub(super) fn rows_and_biases(layers: &[Linear]) -> ([i32; MAX_LAYERS], [bool; MAX_LAYERS]) {
    let (mut rows, mut biases) = ([0; MAX_LAYERS], [false; MAX_LAYERS]);
    for ((layer, rows), has_bias) in layers.iter().zip(&mut rows).zip(&mut biases) {
        (*rows, *has_bias) = (layer.weight.arrays()[0].dim(0), layer.bias.is_some());
    }
    (rows, biases)
}

/// Whether a layer takes so many columns, and all its numbers are of this type.
pub(super) fn fits(layer: &Linear, columns: i32, dtype: Dtype) -> bool {
    let is_number = |numbers: &Array| numbers.dtype() == dtype;
    let is_as_wide = match layer.weight {
        Weight::Dense(values) => is_number(values) && values.dim(1) == columns,
        Weight::Affine { packed, scales, biases, packing } => {
            is_number(scales) && is_number(biases) && packed.dim(1) == columns * packing.bits / 32
        }
    };
    is_as_wide && layer.bias.is_none_or(is_number)
}

/// The arrays of layers and norm as [`Addresses::weights`] has them.
pub(super) fn weights<'a>(layers: &[Linear<'a>], norm: Option<&'a Array>) -> Vec<&'a Array> {
    layers.iter().flat_map(|layer| layer.weight.arrays().into_iter().chain(layer.bias)).chain(norm).collect()
}

/// See [`Gpu::linear_fused`].
pub(super) fn linear(
    gpu: &Gpu,
    x: &Array,
    layers: &[Linear],
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
    let arrays = |memory: &mut Memory| Ok((memory.result(&shape, dtype)?, plan.shared_bytes().arrays(memory)?));
    Some(Memory::with(arrays).and_then(|(y, shared)| {
        let mut inputs = vec![&y, x];
        inputs.extend(&shared);
        inputs.extend(fused.residual);
        inputs.extend(weights(layers, fused.norm.map(|(weight, _)| weight)));
        let mut made = node(&inputs, 1, When::Evaluated, move |stream, addresses| {
            let [y, x, sums, squares, counts, ref rest @ ..] = *addresses else { unreachable!("five and more inputs") };
            let (residual, weights) = rest.split_at(usize::from(has_residual));
            let shared = Shared { sums, squares, counts };
            let residual = Added::default().at(residual.first().copied().unwrap_or(0));
            let at = Addresses { x, y, weights, residual, shared };
            // SAFETY: these are the inputs of the node, of which the plan was made.
            unsafe { plan.launch(kernel, stream, false, at) }
        })?;
        Ok(made.remove(0))
    }))
}

//! Linear layers with few vectors: which of the kernels that `gemv.cu` can make is meant, and its launch.

use std::sync::OnceLock;

use mlx_rs::{Array, Dtype, ops};

use super::kernel::{Compiled, Kernel, Launch, hash};
use super::{Affine, Epilogue, Fused, Gpu};
use crate::backend::Packing;
use crate::error::Result;

const SOURCE: &str = concat!(include_str!("numbers.cu"), include_str!("gemv.cu"));

/// As many vectors are computed here; more are MLX's.
const MAX_VECTORS: i32 = 32;
/// As many layers with one input: q, k and v.
const MAX_LAYERS: usize = 3;
/// Columns of the matrix instruction's right side.
const MAX_SETS: i32 = 4;
/// A kernel may be launched with any amount of shared memory up to this; beyond, MLX asks the driver for what the first launch
/// wants, so each amount needs a kernel of its own.
const SHARED_WITHOUT_ASKING: i32 = 48_000;
/// Such amounts: what every GPU has, and Hopper's, less what the system takes.
const SHARED_AMOUNTS: [i32; 2] = [96 << 10, 220 << 10];

/// `n / of`, rounded up; both positive.
fn divided_up(n: i32, of: i32) -> i32 {
    (n + of - 1) / of
}

/// What is compiled: everything but the number of rows and, up to a power of two, of vectors.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Form {
    packing: Packing,
    is_bf16: bool,
    columns: i32,
    /// For each layer, whether it has a bias.
    biases: Vec<bool>,
    swiglu: bool,
    /// The bits of the norm's eps, if the vectors are normalised.
    norm: Option<u32>,
    /// Whether something is added to the result.
    has_residual: bool,
    /// How many matrix instructions use a weight once it is unpacked.
    sets: i32,
    /// Dynamic shared memory in bytes.
    shared: i32,
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

    /// Chunks that a warp has in registers: more for long rows of four bits, where one set leaves room.
    fn ahead(&self) -> i32 {
        let most = if self.packing.bits == 4 && self.sets == 1 { 4 } else { 2 };
        divided_up(self.chunks(), self.warps()).min(most)
    }

    fn blocks_per_multiprocessor(&self) -> i32 {
        16 / self.warps()
    }

    /// `vector_bytes` and `fixed_bytes` of gemv.cu.
    fn shared_for(&self, vectors: i32) -> i32 {
        let each = 2 * (self.chunks() * self.chunk() + 16) + self.columns / self.unit() * 8;
        32 + 2 * self.warps() * self.sets * self.vectors_of_set() * 16 * 4 + vectors * each
    }

    /// The form for so many vectors; `None` where shared memory has no room for one.
    fn fit(mut self, vectors: i32, gpu: &Gpu) -> Option<Self> {
        self.sets = divided_up(vectors, self.vectors_of_set());
        self.sets = (self.sets as u32).next_power_of_two().min(MAX_SETS as u32) as i32;
        let wanted = self.shared_for(vectors.min(self.sets * self.vectors_of_set()));
        let amounts = || SHARED_AMOUNTS.into_iter().filter(|&amount| amount <= gpu.shared_memory);
        self.shared = match wanted {
            wanted if wanted <= SHARED_WITHOUT_ASKING => wanted,
            // Vectors that find no room are multiplied in further passes.
            wanted => amounts().find(|&amount| amount >= wanted).or_else(|| amounts().next_back())?,
        };
        (self.shared >= self.shared_for(1)).then_some(self)
    }

    /// Unlike any other kernel's: MLX keeps compiled kernels by name, also on disk and for all GPUs.
    fn name(&self, gpu: &Gpu) -> String {
        static HASH: OnceLock<String> = OnceLock::new();
        let hash = HASH.get_or_init(|| hash(SOURCE));
        let Packing { group_size, bits } = self.packing;
        let biases: String = self.biases.iter().map(|&has| if has { 'b' } else { 'n' }).collect();
        format!(
            "mlx_lm_gemv_{hash}_sm{}{}_q{bits}_{group_size}_{}_{}_{biases}_{}_{}_{}_{:x}_{}",
            gpu.capability.0,
            gpu.capability.1,
            if self.is_bf16 { "bf16" } else { "f16" },
            self.columns,
            if self.swiglu { "swiglu" } else { "concat" },
            self.sets,
            if self.shared > SHARED_WITHOUT_ASKING { self.shared } else { 0 },
            self.norm.unwrap_or(0),
            if self.has_residual { "r" } else { "n" },
        )
    }

    fn inputs(&self) -> Vec<String> {
        let mut names = vec!["x".to_owned()];
        for (i, has_bias) in self.biases.iter().enumerate() {
            names.extend(["words", "scales", "biases"].map(|name| format!("{name}{i}")));
            names.extend(has_bias.then(|| format!("bias{i}")));
        }
        names.extend(self.norm.map(|_| "norm".to_owned()));
        names.extend(self.has_residual.then(|| "residual".to_owned()));
        names
    }

    /// The kernel's body. MLX writes the head, with a pointer for each input, and its shape where the body names that.
    fn body(&self) -> String {
        let numbers = |name: &str, i: usize| format!("reinterpret_cast<const unsigned short*>({name}{i})");
        let or_null = |has: bool, name: &str| {
            if has { format!("reinterpret_cast<const unsigned short*>({name})") } else { "nullptr".to_owned() }
        };
        let layers: Vec<String> = (self.biases.iter().enumerate())
            .map(|(i, &has_bias)| {
                let bias = or_null(has_bias, &format!("bias{i}"));
                let (scales, biases) = (numbers("scales", i), numbers("biases", i));
                format!("{{words{i}, {scales}, {biases}, {bias}, int(words{i}_shape[0])}}")
            })
            .collect();
        format!(
            "const mlx_lm::Layer layers[] = {{{}}};\n\
             int vectors = 1;\n\
             for (int i = 0; i + 1 < x_ndim; i++) vectors *= int(x_shape[i]);\n\
             const mlx_lm::Fused fused = {{{}, __uint_as_float({}u), {}}};\n\
             mlx_lm::Gemv<{}, {}, mlx_lm::Type::{}, {}, {}, {}, {}, {}, {}>(layers, fused).run(\n\
             reinterpret_cast<const unsigned short*>(x), reinterpret_cast<unsigned short*>(y), vectors);\n",
            layers.join(", "),
            or_null(self.norm.is_some(), "norm"),
            self.norm.unwrap_or(0),
            or_null(self.has_residual, "residual"),
            self.packing.bits,
            self.packing.group_size,
            if self.is_bf16 { "BF16" } else { "F16" },
            self.columns,
            self.biases.len(),
            self.swiglu,
            self.sets,
            self.warps(),
            self.ahead(),
        )
    }

    fn compile(&self, gpu: &Gpu) -> Result<Kernel> {
        let bounds = (self.warps() * 32, self.blocks_per_multiprocessor());
        let kernel = Kernel::new(
            &self.name(gpu),
            [&self.inputs(), &["y".to_owned()]],
            SOURCE,
            &self.body(),
            bounds,
            self.shared,
        )?;
        // MLX compiles it when it is first computed, where an error would end a generation: so here, with a row of zeros.
        let dtype = if self.is_bf16 { Dtype::Bfloat16 } else { Dtype::Float16 };
        let zeros = |columns: i32, dtype: Dtype| ops::zeros_dtype(&[1, columns], dtype);
        let words = zeros(self.columns * self.packing.bits / 32, Dtype::Uint32)?;
        let scales = zeros(self.columns / self.packing.group_size, dtype)?;
        let (x, bias) = (zeros(self.columns, dtype)?, zeros(1, dtype)?);
        let bias = bias.reshape(&[1])?;
        let mut inputs = vec![&x];
        for &has_bias in &self.biases {
            inputs.extend([&words, &scales, &scales]);
            inputs.extend(has_bias.then_some(&bias));
        }
        inputs.extend(self.norm.map(|_| &x));
        let width = if self.swiglu { 1 } else { self.biases.len() as i32 };
        let residual = zeros(width, dtype)?;
        inputs.extend(self.has_residual.then_some(&residual));
        let y = kernel.apply(&inputs, Launch { shapes: &[&[1, width]], dtype, blocks: 1, threads: bounds.0 })?;
        mlx_rs::transforms::eval(&y)?;
        Ok(kernel)
    }
}

/// Linear layers for an input of so many vectors, checked and compiled.
#[derive(Clone, Copy)]
pub(super) struct Plan {
    kernel: &'static Kernel,
    dtype: Dtype,
    width: i32,
    blocks: i32,
    threads: i32,
}

impl Plan {
    /// `None` for what is not done here. Of `fused`, the residual's type and shape are those of the output.
    pub fn new(
        gpu: &Gpu,
        (vectors, columns, dtype): (i32, i32, Dtype),
        layers: &[Affine],
        epilogue: Epilogue,
        norm: Option<(&Array, f32)>,
        has_residual: bool,
    ) -> Option<Self> {
        static KERNELS: Compiled<Form> = Compiled::new();
        let swiglu = epilogue == Epilogue::SwiGlu;
        let packing = layers.first()?.packing;
        let is_number = |numbers: &Array| numbers.dtype() == dtype;
        let fits = |layer: &Affine| {
            let numbers = [Some(layer.scales), Some(layer.biases), layer.bias];
            layer.packing == packing
                && layer.packed.shape()[1..] == [columns * packing.bits / 32]
                && numbers.into_iter().flatten().all(is_number)
        };
        let mut width = layers.iter().map(|layer| layer.packed.dim(0)).sum::<i32>();
        let mut tiles = layers.iter().map(|layer| divided_up(layer.packed.dim(0), 16)).sum::<i32>();
        if swiglu {
            width /= 2;
            tiles = divided_up(width, 8);
        }
        let is_done = matches!(packing.bits, 4 | 8)
            && matches!(dtype, Dtype::Float16 | Dtype::Bfloat16)
            && (1..=MAX_VECTORS).contains(&vectors)
            && layers.len() <= MAX_LAYERS
            && columns % packing.group_size == 0
            && layers.iter().all(fits)
            && (!swiglu || layers.len() == 2 && layers[0].packed.dim(0) == layers[1].packed.dim(0))
            && norm.is_none_or(|(weight, _)| is_number(weight) && weight.shape() == [columns]);
        if !is_done {
            return None;
        }
        let form = Form {
            packing,
            is_bf16: dtype == Dtype::Bfloat16,
            columns,
            biases: layers.iter().map(|layer| layer.bias.is_some()).collect(),
            swiglu,
            norm: norm.map(|(_, eps)| eps.to_bits()),
            has_residual,
            sets: 1,
            shared: 0,
        };
        let form = form.fit(vectors, gpu)?;
        let kernel = KERNELS.get(&form, || form.compile(gpu))?;
        let blocks = tiles.min(gpu.multiprocessors * form.blocks_per_multiprocessor());
        Some(Plan { kernel, dtype, width, blocks, threads: form.warps() * 32 })
    }

    /// The layers' output for `x`; all as it was planned.
    pub fn node(&self, x: &Array, layers: &[Affine], fused: Fused) -> Result<Array> {
        let mut inputs = vec![x];
        for layer in layers {
            inputs.extend([layer.packed, layer.scales, layer.biases]);
            inputs.extend(layer.bias);
        }
        inputs.extend(fused.norm.map(|(weight, _)| weight));
        inputs.extend(fused.residual);
        let mut shape = x.shape().to_vec();
        *shape.last_mut().expect("x has columns") = self.width;
        let &Plan { dtype, blocks, threads, .. } = self;
        let mut outputs = self.kernel.apply(&inputs, Launch { shapes: &[&shape], dtype, blocks, threads })?;
        Ok(outputs.remove(0))
    }
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
    let has_residual = fused.residual.is_some();
    let plan = Plan::new(gpu, (vectors, columns, x.dtype()), layers, epilogue, fused.norm, has_residual)?;
    let fits = |residual: &Array| residual.dtype() == x.dtype() && residual.size() as i32 == vectors * plan.width;
    fused.residual.is_none_or(fits).then(|| plan.node(x, layers, fused))
}

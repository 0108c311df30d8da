//! CPU kernels on slices: what the decoder spends its time on, for each instruction set. No MLX in here but for `bridge` and
//! `nodes`, which make them nodes of MLX's graph.
//!
//! Every kernel is written once, over the vectors of `isa`, and compiled for plain Rust (every machine), AVX2 and AVX-512;
//! products of matrices have further forms for whole numbers and for AMX. Which one runs is decided at run time. Sums are
//! made in f32 in an order that depends on the shapes and the instruction set alone, so results are the same for any number
//! of threads.

#![allow(unsafe_code)] // vector instructions, disjoint writes by threads, MLX's memory; each block says why it is sound
#![allow(clippy::needless_range_loop)] // loops with a constant count over arrays of vectors, which become registers

mod attention;
mod block;
mod block_node;
mod block_ranks;
mod bridge;
pub(crate) use bridge::Interruptible;
mod elementwise;
mod fixed;
mod gemm;
mod gemv;
mod isa;
mod nodes;
mod quantize;
mod read;
mod sampling;
mod scratch;
mod threads;
mod types;
mod unpack;

pub use attention::{Heads, Span};
pub use elementwise::Turns;
use gemm::epilogue::FusedLayers;
#[cfg(target_arch = "x86_64")]
use isa::amx;
use isa::{Op, Simd};
pub use types::{Affine, Floats, FloatsMut, Layer, Matrix, Values};

use super::{BITS, Epilogue, Filter, GROUP_SIZES, KEY_BLOCK, Key, NO_TOKEN, Packing, Phase, Residual};
use crate::error::{Error, Result};

/// The most tokens of a prompt for which unpacking the weights first does not pay.
const FEW: usize = 48;

/// What kernels are compiled for, the slowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// Plain Rust.
    Portable,
    /// AVX2, FMA and F16C; AVX-VNNI where the machine has it.
    Avx2,
    /// AVX-512 F, BW, DQ, VL and VNNI.
    Avx512,
    /// AVX-512 with BF16, and AMX for what is computed in bf16.
    Amx,
}

impl InstructionSet {
    /// Whether this machine can run them or not.
    const ALL: [InstructionSet; 4] =
        [InstructionSet::Portable, InstructionSet::Avx2, InstructionSet::Avx512, InstructionSet::Amx];

    /// Those that this machine can run, the fastest last.
    pub fn available() -> Vec<InstructionSet> {
        InstructionSet::ALL.into_iter().filter(|kernels| kernels.runs_here()).collect()
    }

    fn runs_here(self) -> bool {
        match self {
            InstructionSet::Portable => true,
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx2 => isa::Avx2::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Avx512 => isa::Avx512::detect().is_some(),
            #[cfg(target_arch = "x86_64")]
            InstructionSet::Amx => amx::Amx::detect().is_some(),
            #[cfg(not(target_arch = "x86_64"))]
            _ => false,
        }
    }

    /// The set of this name.
    ///
    /// # Errors
    /// When there is none, or this machine does not have it.
    pub fn from_name(name: &str) -> Result<Self> {
        match InstructionSet::ALL.into_iter().find(|kernels| kernels.name() == name) {
            Some(kernels) if kernels.runs_here() => Ok(kernels),
            Some(_) => Err(Error::setting("kernels", name, "a set that this machine has")),
            None => Err(Error::setting("kernels", name, "mlx, portable, avx2, avx512 or amx")),
        }
    }

    /// The fastest that this machine can run.
    pub fn best() -> Self {
        *InstructionSet::available().last().expect("portable runs everywhere")
    }

    /// As [`InstructionSet::from_name`] takes it.
    pub fn name(self) -> &'static str {
        match self {
            InstructionSet::Portable => "portable",
            InstructionSet::Avx2 => "avx2",
            InstructionSet::Avx512 => "avx512",
            InstructionSet::Amx => "amx",
        }
    }

    fn run<O: Op>(self, op: O) -> O::Output {
        #[cfg(target_arch = "x86_64")]
        match self {
            InstructionSet::Amx | InstructionSet::Avx512 => {
                return isa::Avx512::detect().expect("chosen where it runs").run(op);
            }
            InstructionSet::Avx2 => return isa::Avx2::detect().expect("chosen where it runs").run(op),
            InstructionSet::Portable => {}
        }
        isa::Portable.run(op)
    }

    /// The index of the largest logit, the first of them if there are several; `None` when one is NaN or ∞, or all are -∞.
    pub fn argmax(self, logits: Floats) -> Option<u32> {
        self.run(sampling::ArgMax(logits)).map(|token| token as u32)
    }

    /// A token at random, by its logit: the one that `mlx.core.random.categorical` draws with this key from the filtered
    /// log-probabilities over the temperature. `None` when one is NaN or ∞, or all are -∞.
    pub fn sample(self, logits: Floats, filter: Filter, key: Key) -> Option<u32> {
        self.run(sampling::Sample { logits, filter, key }).map(|token| token as u32)
    }

    /// The log-probability of `token` to `values[0]`, and those of the most likely tokens to the other values, largest first
    /// and ties by id, with their ids: as many as `ids` has room for; -∞ where there are no more.
    ///
    /// # Panics
    /// When there are not as many ids as values but one.
    pub fn logprobs(self, logits: Floats, token: u32, values: &mut [f32], ids: &mut [u32]) {
        assert_eq!(values.len(), 1 + ids.len());
        self.run(sampling::LogProbs { logits, token, values, ids });
    }

    /// Linear layers with one input: `x` `[m, columns]` to `y` `[m, width]`, whose rows are the layers' outputs as `epilogue`
    /// says. A row's numbers are the same whatever the other rows are.
    ///
    /// # Panics
    /// When the sizes do not fit together.
    pub fn linear(self, x: Floats, layers: &[Layer], epilogue: Epilogue, phase: Phase, y: FloatsMut) {
        let (fused, columns) = (FusedLayers { layers, epilogue }, layers[0].weight.columns);
        for Layer { weight, bias } in layers {
            weight.check();
            assert!(weight.columns == columns && bias.is_none_or(|bias| bias.len() == weight.rows));
        }
        assert!(epilogue.activation().is_none() || layers.len() == 2 && layers[0].weight.rows == layers[1].weight.rows);
        let m = x.len() / columns;
        assert!(x.len() == m * columns && y.len() == m * fused.width());
        if phase == Phase::Decode || m <= FEW && self.are_phases_alike(&x, layers) {
            return self.run(gemv::Gemv { x, fused, y });
        }
        #[cfg(target_arch = "x86_64")]
        match self {
            _ if self.is_for_amx(&x, layers) => {
                let amx = amx::Amx::detect().expect("chosen where it runs");
                return gemm::multiply(&amx, x, fused, y);
            }
            InstructionSet::Amx | InstructionSet::Avx512 => {
                let s = isa::Avx512::detect().expect("chosen where it runs");
                return multiply::<_, 8, 12>(s, x, fused, y);
            }
            InstructionSet::Avx2 => {
                return match (isa::AvxVnni::detect(), isa::Avx2::detect()) {
                    (Some(s), _) => multiply::<_, 6, 6>(s, x, fused, y),
                    (None, s) => multiply::<_, 4, 6>(s.expect("chosen where it runs"), x, fused, y),
                };
            }
            InstructionSet::Portable => {}
        }
        gemm::multiply(&gemm::FloatingPoint::<_, 2>(isa::Portable), x, fused, y);
    }

    /// Whether [`InstructionSet::linear`] gives the same bits in both phases: whole numbers, which are multiplied exactly, and
    /// groups in the same order.
    fn are_phases_alike(self, x: &Floats, layers: &[Layer]) -> bool {
        #[cfg(target_arch = "x86_64")]
        let in_whole_numbers = !self.is_for_amx(x, layers) && gemm::fixed_point::group(x, layers).is_some();
        #[cfg(not(target_arch = "x86_64"))]
        let in_whole_numbers = false;
        self != InstructionSet::Portable && in_whole_numbers
    }

    /// Whether AMX multiplies prompts with these layers, in bf16.
    #[cfg(target_arch = "x86_64")]
    fn is_for_amx(self, x: &Floats, layers: &[Layer]) -> bool {
        self == InstructionSet::Amx && layers.iter().all(|layer| amx::takes(x, &layer.weight))
    }

    /// `y = a + residual.multiplier · b`, all of one type and length.
    ///
    /// # Panics
    /// When they are not.
    pub fn add(self, a: Floats, b: Floats, residual: Residual, y: FloatsMut) {
        assert!(a.len() == y.len() && b.len() == y.len());
        self.run(elementwise::Add { a, b, residual, y });
    }

    /// `y = x / sqrt(mean(x²) + eps) · weight`, over each `weight.len()` numbers (arXiv 1910.07467).
    ///
    /// # Panics
    /// When the sizes do not fit together.
    pub fn rms_norm(self, x: Floats, weight: Floats, eps: f32, y: FloatsMut) {
        assert_eq!(x.len(), y.len());
        self.rms_norm_of_rows(x, weight.len(), weight, eps, y);
    }

    /// [`InstructionSet::rms_norm`] of rows that begin `stride` numbers apart in x, and lie one after another in y.
    ///
    /// # Panics
    /// When the sizes do not fit together.
    pub fn rms_norm_of_rows(self, x: Floats, stride: usize, weight: Floats, eps: f32, y: FloatsMut) {
        let rows = y.len() / weight.len();
        assert!(y.len() == rows * weight.len() && (rows == 0 || (rows - 1) * stride + weight.len() <= x.len()));
        self.run(elementwise::RmsNorm { x, stride, weight, eps, y });
    }

    /// Rotary position embedding of the half-split kind: rows of `y`, `strides` apart from one head and token to the next and
    /// of the type of `x`, are those of `x` `[H, L, D]` whose first R components are turned as `turns` of R say, i with i + R/2,
    /// from a row of theirs on (arXiv 2104.09864); without turns, as they are. Before, each row is normalised as by
    /// [`InstructionSet::rms_norm`], where `norm` has a weight `[D]` and eps.
    ///
    /// # Panics
    /// When the sizes do not fit together.
    pub fn rope(
        self,
        x: Heads,
        norm: Option<(Floats, f32)>,
        turns: Option<(&Turns, usize)>,
        y: FloatsMut,
        strides: [usize; 2],
    ) {
        x.check();
        let [heads, length, width] = x.shape;
        assert!((heads - 1) * strides[0] + (length - 1) * strides[1] + width <= y.len());
        assert!(strides[1] >= width && (strides[0] >= length * strides[1] || strides[1] >= heads * strides[0]));
        assert!(turns.is_none_or(|(turns, _)| turns.width() <= width));
        assert!(norm.is_none_or(|(weight, _)| weight.len() == width));
        self.run(elementwise::Rotate { x, norm, turns, y, strides });
    }

    /// `softmax(scale · q · kᵀ) · v` of each span, to `y` `[tokens of all spans, H, D]`; with `softcap` c, scores s become
    /// `c · tanh(s / c)` before.
    ///
    /// # Panics
    /// When the sizes do not fit together.
    pub fn attention(self, spans: &[Span], scale: f32, softcap: Option<f32>, phase: Phase, y: FloatsMut) {
        let mut numbers = 0;
        for Span { queries, keys, values, gap, .. } in spans {
            [queries, keys, values].into_iter().for_each(Heads::check);
            let ([h, l, d], [kv, t, _]) = (queries.shape, keys.shape);
            assert!(values.shape == keys.shape && keys.shape == [kv, t, d] && h % kv == 0 && l <= t);
            assert!(gap.is_empty() || gap.end() % KEY_BLOCK == 0 && gap.first as usize + l <= t);
            numbers += h * l * d;
        }
        assert_eq!(y.len(), numbers);
        let attention = attention::Attention { spans, scale, softcap, y };
        #[cfg(target_arch = "x86_64")]
        if self == InstructionSet::Amx && phase == Phase::Prefill && spans.iter().all(amx::attends) {
            return attention.by(amx::Amx::detect().expect("chosen where it runs"));
        }
        self.run(attention);
    }

    /// Row `ids[i]` of `w` as row i of `y` `[ids.len(), columns]`. What stands for no token gives no numbers, in its row alone.
    ///
    /// # Panics
    /// When another id is not below `w.rows`, or the sizes do not fit together.
    pub fn embed(self, ids: &[u32], w: &Matrix, y: FloatsMut) {
        w.check();
        assert!(y.len() == ids.len() * w.columns);
        if let Some(id) = ids.iter().find(|&&id| id as usize >= w.rows && id != NO_TOKEN) {
            fail(Error::Input(format!("token {id} has no embedding; the vocabulary ends at {}", w.rows - 1)));
        }
        unpack::rows(ids, w, y);
    }

    /// Whole groups of a weight's numbers, on this thread, to codes one after another from the lowest bit of `packed` on, and a
    /// scale and a bias for each group, of the type of `values`: the bits of `mlx.core.quantize`.
    ///
    /// # Panics
    /// When the sizes do not fit together.
    pub fn quantize(self, values: Floats, packing: Packing, packed: &mut [u8], scales: FloatsMut, biases: FloatsMut) {
        check_packing(values.len(), packing, packed.len(), [scales.len(), biases.len()]);
        self.run(quantize::Quantize { values, packing, packed, scales, biases });
    }

    /// Back from [`InstructionSet::quantize`], on this thread: the bits of `mlx.core.dequantize`. All are of one type.
    ///
    /// # Panics
    /// When the sizes do not fit together.
    pub fn dequantize(self, packed: &[u8], scales: Floats, biases: Floats, packing: Packing, values: FloatsMut) {
        check_packing(values.len(), packing, packed.len(), [scales.len(), biases.len()]);
        self.run(quantize::Dequantize { packed, scales, biases, packing, values });
    }

    /// Numbers of one type to as many of another, on this thread: the bits of `mlx.core.array.astype`.
    ///
    /// # Panics
    /// When there are not as many.
    pub fn cast(self, from: Floats, to: FloatsMut) {
        assert_eq!(from.len(), to.len());
        self.run(quantize::Cast { from, to });
    }
}

fn check_packing(values: usize, packing: Packing, packed: usize, groups: [usize; 2]) {
    assert!(GROUP_SIZES.contains(&packing.group_size) && BITS.contains(&packing.bits));
    assert!(values.is_multiple_of(packing.group_size as usize), "groups");
    assert_eq!(packed, values / 8 * packing.bits as usize, "packed weight");
    assert_eq!(groups, [values / packing.group_size as usize; 2], "scales and biases");
}

/// End a kernel for a reason that is not its own: a panic that no hook reports, and that `bridge` makes an error again.
fn fail(error: Error) -> ! {
    std::panic::resume_unwind(Box::new(error))
}

/// In whole numbers where that is possible, else in floats; so many tokens at a time as there are registers for.
#[cfg(target_arch = "x86_64")]
fn multiply<S: Simd, const IN_FIXED: usize, const IN_FLOATS: usize>(s: S, x: Floats, fused: FusedLayers, y: FloatsMut) {
    match gemm::fixed_point::FixedPoint::<_, IN_FIXED>::for_layers(s, &x, fused.layers) {
        Some(fixed) => gemm::multiply(&fixed, x, fused, y),
        None => gemm::multiply(&gemm::FloatingPoint::<_, IN_FLOATS>(s), x, fused, y),
    }
}

/// How fast these bytes are read by all threads, in bytes per second: the limit of a decode step. They are added up as f32.
pub fn read_bandwidth(bytes: &[u8]) -> f64 {
    let started = std::time::Instant::now();
    InstructionSet::best().run(read::Read { bytes });
    bytes.len() as f64 / started.elapsed().as_secs_f64()
}

/// More threads than any machine that is known has cores to compute with.
pub const MAX_THREADS: usize = 512;

/// Share the work out to so many threads, at most [`MAX_THREADS`]. Counts only before the first work in a process.
pub fn set_threads(threads: usize) {
    threads::set_threads(threads.min(MAX_THREADS));
}

/// Threads that share the work.
pub fn threads() -> usize {
    threads::threads()
}

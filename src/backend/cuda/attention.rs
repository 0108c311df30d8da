//! Attention of a token of each of several sequences, out of one projection: the launch of `attention.cu`.

use mlx_rs::Dtype;

use super::Gpu;
use super::driver::Stream;
use super::kernel::{self, Compiled, Kernel, Launch, type_name};
use crate::backend::Positions;
use crate::error::Result;

/// `MAX_SEQUENCES` of attention.cu.
const MAX_SEQUENCES: usize = 32;
/// `MAX_PARTS` of attention.cu.
const MAX_PARTS: i32 = 64;
/// `MAX_CLUSTER` of attention.cu.
const MAX_CLUSTER: i32 = 16;
/// `TILES` of attention.cu: what a sequence sees is shared out in units of so many tokens.
const UNIT: i32 = 64;
/// What a block of a cluster has room for, of the numbers of each part.
const MAX_SHARE: i32 = 512;
/// A matrix instruction has rows for so many heads of one block.
const MAX_HEADS: i32 = 8;

/// What is compiled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    is_bf16: bool,
    head_dim: i32,
    /// Heads of a block.
    heads: i32,
    turned: i32,
    is_capped: bool,
    /// Parts of a cluster.
    group: i32,
}

impl kernel::Form for Form {
    const SOURCE: &str = concat!(
        include_str!("numbers.cu"),
        include_str!("tensor.cu"),
        include_str!("heads.cu"),
        include_str!("attention.cu")
    );

    fn bounds(&self) -> (i32, i32) {
        // Larger heads take more registers.
        (128, if self.head_dim <= 128 { 4 } else { 2 })
    }

    fn entry(&self) -> (String, String) {
        let Form { is_bf16, head_dim, heads, turned, is_capped, group } = self;
        let number = type_name(*is_bf16);
        let body = format!(
            "using Attention = mlx_lm::Attention<{number}, {head_dim}, {heads}, {turned}, {is_capped}, {group}>;\n\
             __shared__ Attention::Shared shared;\n\
             Attention{{a, shared}}.run();"
        );
        ("mlx_lm::AttentionArguments".to_owned(), body)
    }
}

/// `HeadNorm` of heads.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct HeadNorm {
    pub weight: u64,
    pub eps: f32,
}

/// `Sequence` of attention.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sequence {
    keys: u64,
    values: u64,
    position: i32,
    capacity: i32,
    sees: i32,
    sinks: i32,
    skip: i32,
    units: i32,
    parts: i32,
    turns: u64,
}

impl Sequence {
    /// What a token at this position sees through a window; the addresses come later.
    pub fn new(at: &Positions, window: Option<i32>, capacity: i32) -> Self {
        let end = at.end();
        let first = window.map_or(0, |window| (end - window).max(0));
        let sinks = at.sinks.min(first);
        let skip = first - sinks;
        let sees = end - skip;
        let units = (sees + UNIT - 1) / UNIT;
        let parts = units.min(MAX_PARTS);
        Sequence { position: at.offset, capacity, sees, sinks, skip, units, parts, ..Sequence::default() }
    }

    /// With its keys and values, and what turns heads, at these addresses.
    pub fn at(self, [keys, values]: [u64; 2], turns: u64) -> Self {
        Sequence { keys, values, turns, ..self }
    }
}

/// `AttentionArguments` of attention.cu; addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Arguments {
    projected: u64,
    q_norm: HeadNorm,
    k_norm: HeadNorm,
    attended: u64,
    partial: u64,
    done: u64,
    n_heads: i32,
    n_kv_heads: i32,
    blocks_of_key: i32,
    cluster: i32,
    scale: f32,
    cap: f32,
    sequences: [Sequence; MAX_SEQUENCES],
}

/// The heads of a block.
#[derive(Debug, Clone, Copy)]
pub(super) struct Heads {
    pub n_heads: i32,
    pub n_kv_heads: i32,
    pub head_dim: i32,
    /// Pairs of components that are turned.
    pub turned: i32,
    /// What scores are multiplied with.
    pub scale: f32,
    /// See [`crate::backend::Block::softcap`].
    pub cap: Option<f32>,
}

impl Heads {
    /// Of queries, keys and values together.
    pub fn all(&self) -> i32 {
        self.n_heads + 2 * self.n_kv_heads
    }
}

/// The kernel for such heads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    of: Heads,
    kernel: Kernel,
    /// Of a block.
    heads: i32,
    /// Parts of a cluster.
    group: i32,
    max_cluster: i32,
    /// No more blocks than this are started for the sake of speed.
    max_blocks: i32,
}

/// Where the numbers of a launch lie; the norms' weights are 0 where there are none.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses {
    pub projected: u64,
    pub q_norm: HeadNorm,
    pub k_norm: HeadNorm,
    pub attended: u64,
    /// [`Plan::partial_bytes`] and [`Plan::done_bytes`].
    pub partial: u64,
    pub done: u64,
}

impl Plan {
    /// `None` for what is not done here.
    pub fn new(gpu: &Gpu, of: Heads, dtype: Dtype) -> Option<Self> {
        static KERNELS: Compiled<Form> = Compiled::new();
        let Heads { n_heads, n_kv_heads, head_dim, turned, cap, .. } = of;
        let is_done = matches!(dtype, Dtype::Float16 | Dtype::Bfloat16)
            && head_dim % 8 == 0
            && head_dim <= 256
            && n_kv_heads > 0
            && n_heads % n_kv_heads == 0;
        if !is_done {
            return None;
        }
        let of_one_key = n_heads / n_kv_heads;
        let heads = (1..=MAX_HEADS.min(of_one_key)).rev().find(|heads| of_one_key % heads == 0)?;
        let max_cluster = gpu.max_cluster();
        let group = if max_cluster > 1 { MAX_CLUSTER } else { 1 };
        let form = Form { is_bf16: dtype == Dtype::Bfloat16, head_dim, heads, turned, is_capped: cap.is_some(), group };
        let [kernel] = KERNELS.get([&form], gpu)?;
        Some(Plan { of, kernel, heads, group, max_cluster, max_blocks: 2 * gpu.multiprocessors })
    }

    /// The most groups of parts that one of the sequences has.
    fn groups<'a>(&self, sequences: impl Iterator<Item = &'a Sequence>) -> i32 {
        let parts = sequences.map(|sequence| sequence.parts).max().unwrap_or(1);
        (parts + self.group - 1) / self.group
    }

    /// How many blocks a cluster has: as many as there are parts, and some to add up few, if that does not make too many blocks. Numbers
    /// do not depend on it.
    fn cluster(&self, sequences: &[Sequence]) -> i32 {
        if self.group == 1 {
            return 1;
        }
        let parts = sequences.iter().map(|sequence| sequence.parts).max().unwrap_or(1).min(self.group);
        let clusters = sequences.len() as i32 * (self.of.n_heads / self.heads) * self.groups(sequences.iter());
        let numbers = self.heads * self.of.head_dim;
        let sizes = (0..).map(|shift| 1 << shift).take_while(|&size| size <= self.max_cluster);
        let smallest = sizes.clone().find(|size| size * MAX_SHARE >= numbers && (*size > 1 || parts == 1));
        let enough = |&size: &i32| size < 2 * parts.max(4) && size * clusters <= self.max_blocks;
        sizes.filter(enough).last().max(smallest).unwrap_or(1)
    }

    /// Bytes for the parts of sequences.
    pub fn partial_bytes<'a>(&self, sequences: impl Iterator<Item = &'a Sequence> + Clone) -> usize {
        let groups = self.groups(sequences.clone());
        let at_once = sequences.count().min(MAX_SEQUENCES);
        at_once * (self.of.n_heads * groups * (self.of.head_dim + 2)) as usize * 4
    }

    /// Bytes of counters, zeros before and after.
    pub fn done_bytes(&self) -> usize {
        MAX_SEQUENCES * (self.of.n_heads / self.heads * MAX_CLUSTER) as usize * 4
    }

    /// Start it for the sequences, whose new tokens are projected one after another.
    ///
    /// # Safety
    /// The addresses are of arrays of the sizes that were planned; each sequence has its own caches, of its capacity.
    pub unsafe fn launch(&self, stream: Stream, sequences: &[Sequence], at: &Addresses) -> Result<()> {
        let Heads { n_heads, n_kv_heads, head_dim, scale, cap, .. } = self.of;
        for (i, some) in sequences.chunks(MAX_SEQUENCES).enumerate() {
            let before = (i * MAX_SEQUENCES) as u64;
            let bytes_of = |heads: i32| u64::from((heads * head_dim) as u32) * 2 * before;
            let cluster = self.cluster(some);
            let mut arguments = Arguments {
                projected: at.projected + bytes_of(self.of.all()),
                q_norm: at.q_norm,
                k_norm: at.k_norm,
                attended: at.attended + bytes_of(n_heads),
                partial: at.partial,
                done: at.done,
                n_heads,
                n_kv_heads,
                blocks_of_key: n_heads / n_kv_heads / self.heads,
                cluster: cluster.ilog2() as i32,
                scale,
                cap: cap.unwrap_or(0.0),
                sequences: [Sequence::default(); MAX_SEQUENCES],
            };
            arguments.sequences[..some.len()].copy_from_slice(some);
            let blocks = self.groups(some.iter()) * cluster;
            let grid = [blocks as u32, (n_heads / self.heads) as u32, some.len() as u32];
            let launch = Launch { stream, grid, shared: 0, follows: true };
            // SAFETY: `Arguments` is `AttentionArguments`, which the kernel takes; the rest is the caller's promise.
            unsafe { self.kernel.launch_clusters(launch, cluster as u32, &arguments)? };
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::Phase;

    /// The positions that the kernel looks at, as `attend` of attention.cu finds them.
    fn seen(sequence: &Sequence) -> Vec<i32> {
        (0..sequence.sees).map(|i| if i < sequence.sinks { i } else { i + sequence.skip }).collect()
    }

    #[test]
    fn a_token_sees_its_window_and_the_sinks() {
        for offset in [0, 1, 7, 8, 9, 63, 64, 65, 1000, 5000, 300_000] {
            for sinks in [0, 1, 4, 8] {
                for window in [None, Some(1), Some(8), Some(64), Some(4096)] {
                    let at = Positions { phase: Phase::Decode, offset, tokens: 1, sinks, context_size: 1 << 20 };
                    let sequence = Sequence::new(&at, window, offset + 1);
                    let sees = |column: i32| window.is_none_or(|window| offset < column + window) || column < sinks;
                    let wanted: Vec<i32> = (0..=offset).filter(|&column| sees(column)).collect();
                    assert_eq!(seen(&sequence), wanted, "{at:?} {window:?}");
                    assert!((1..=MAX_PARTS).contains(&sequence.parts) && sequence.parts <= sequence.units);
                }
            }
        }
    }
}

//! Linear layers with the tokens of prompts: which of the kernels that `gemm.cu` can make is meant, and its launch.

use mlx_rs::Dtype;

use super::driver::Stream;
use super::gemv::{Added, LayerAddresses, MAX_LAYERS, activation_name, divided_up, fits, packing, rows_and_biases};
use super::kernel::{Compiled, Kernel, Launch, type_name};
use super::{Epilogue, Gpu, Linear};
use crate::backend::Activation;
use crate::error::Result;

/// `TOKENS` of gemm.cu.
const TOKENS: i32 = 128;

/// What is compiled: everything but sizes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    /// Of a weight: 4 or 8, or 16 of one that is not packed.
    bits: i32,
    /// Columns with one scale.
    group_size: i32,
    is_bf16: bool,
    layers: usize,
    activation: Option<Activation>,
    /// The bits of the weights that the output is multiplied with next, where there is an activation.
    order: i32,
    tile: Tile,
}

/// What no number depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Tile {
    rows: i32,
    /// Columns in shared memory, in parts of which one is multiplied while the others are under way.
    stages: i32,
    /// Of a multiprocessor.
    blocks: i32,
}

impl Tile {
    /// Of weights of so many bits, where there are as many tiles as multiprocessors, and more.
    fn wide(bits: i32) -> Self {
        Tile { rows: 128, stages: if bits == 16 { 3 } else { 2 }, blocks: 2 }
    }

    /// Where there are fewer.
    fn narrow(bits: i32) -> Self {
        let stages = match bits {
            4 => 3,
            8 => 2,
            _ => 4,
        };
        Tile { rows: 64, stages, blocks: 2 }
    }
}

impl Form {
    /// With as many stages as shared memory has room for; two at least.
    fn in_room(mut self, room: i32) -> Option<Self> {
        while self.shared() > room {
            self.tile.stages -= 1;
        }
        (self.tile.stages >= 2).then_some(self)
    }

    /// `SHARED` of gemm.cu.
    fn shared(&self) -> i32 {
        let Tile { rows, stages, .. } = self.tile;
        let columns = if self.bits == 16 { 64 } else { 128 };
        let scales = if self.bits == 16 { 0 } else { columns / self.group_size };
        let stage = TOKENS * columns * 2 + rows * columns * self.bits / 8 + 2 * rows * scales * 2;
        stages * divided_up(stage, 1024) * 1024
    }
}

impl super::kernel::Form for Form {
    const SOURCE: &str = concat!(include_str!("numbers.cu"), include_str!("tensor.cu"), include_str!("gemm.cu"));

    fn bounds(&self) -> (i32, i32) {
        (self.tile.rows * 2, self.tile.blocks)
    }

    fn dynamic_shared(&self) -> i32 {
        self.shared()
    }

    fn entry(&self) -> (String, String) {
        let &Form { bits, group_size, layers, order, tile: Tile { rows, stages, .. }, .. } = self;
        let number = type_name(self.is_bf16);
        let activation = activation_name(self.activation);
        let body = format!(
            "extern __shared__ __align__(1024) unsigned char shared[];\n\
             mlx_lm::Gemm<{bits}, {group_size}, {number}, {layers}, mlx_lm::Activation::{activation}, {order}, {rows}, {stages}>\
             (a, shared).run();"
        );
        ("mlx_lm::GemmArguments".to_owned(), body)
    }
}

/// `GemmArguments` of gemm.cu; addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Arguments {
    layers: [LayerAddresses; MAX_LAYERS],
    x: u64,
    y: u64,
    residual: Added,
    tokens: i32,
    columns: i32,
    width: i32,
}

/// Linear layers for so many tokens; their kernels are not compiled yet.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    wide: Form,
    narrow: Form,
    is_wide: bool,
    rows: [i32; MAX_LAYERS],
    biases: [bool; MAX_LAYERS],
    tokens: i32,
    columns: i32,
    width: i32,
}

/// Where the numbers of a launch lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct Addresses<'a> {
    /// `[tokens, columns]`, the columns in the order of the weights' bits.
    pub x: u64,
    pub y: u64,
    /// Each layer's arrays, and its bias if it has one; more is not looked at.
    pub weights: &'a [u64],
    pub residual: Added,
}

impl Plan {
    /// `None` for what is not done here. `order` are the bits of the layer that takes the output next; where there is no activation,
    /// columns are as they are.
    pub fn new(
        gpu: &Gpu,
        (tokens, columns, dtype): (i32, i32, Dtype),
        layers: &[Linear],
        epilogue: Epilogue,
        order: i32,
    ) -> Option<Self> {
        let (bits, group_size) = packing(layers.first()?);
        let (rows, biases) = rows_and_biases(layers);
        let activation = epilogue.activation();
        let is_done = matches!(bits, 4 | 8 | 16)
            && matches!(dtype, Dtype::Float16 | Dtype::Bfloat16)
            && columns % 64 == 0
            && columns % group_size == 0
            && (1..=MAX_LAYERS).contains(&layers.len())
            && layers.iter().all(|layer| packing(layer) == (bits, group_size) && fits(layer, columns, dtype))
            && rows.iter().all(|rows| rows % 2 == 0)
            && (activation.is_none() || layers.len() == 2 && rows[0] == rows[1] && rows[0] % 64 == 0);
        if !is_done {
            return None;
        }
        let form = |tile: fn(i32) -> Tile| {
            let is_bf16 = dtype == Dtype::Bfloat16;
            let tile = tile(bits);
            let form = Form { bits, group_size, is_bf16, layers: layers.len(), activation, order, tile };
            form.in_room(gpu.shared_memory)
        };
        let (wide, narrow) = (form(Tile::wide)?, form(Tile::narrow)?);
        let tiles = rows.iter().map(|&rows| divided_up(rows, wide.tile.rows)).sum::<i32>() * divided_up(tokens, TOKENS);
        let width = rows.iter().sum::<i32>() / if activation.is_some() { 2 } else { 1 };
        Some(Plan { wide, narrow, is_wide: tiles > gpu.multiprocessors, rows, biases, tokens, columns, width })
    }

    /// The kernels of plans: of any number of tokens, so that none is compiled later.
    pub fn compile<const N: usize>(plans: [&Plan; N], gpu: &Gpu) -> Option<[Kernel; N]> {
        static KERNELS: Compiled<Form> = Compiled::new();
        let forms: Vec<&Form> = plans.iter().flat_map(|plan| [&plan.narrow, &plan.wide]).collect();
        let kernels = KERNELS.get_all(&forms, gpu)?;
        let chosen = plans.iter().zip(kernels.chunks(2)).map(|(plan, kernels)| kernels[usize::from(plan.is_wide)]);
        chosen.collect::<Vec<_>>().try_into().ok()
    }

    /// How many numbers each token becomes.
    pub fn width(&self) -> i32 {
        self.width
    }

    /// Start the plan's `kernel`, behind another of ours.
    ///
    /// # Safety
    /// The addresses are of arrays as they were when it was planned.
    pub unsafe fn launch(&self, kernel: Kernel, stream: Stream, at: Addresses) -> Result<()> {
        let form = if self.is_wide { &self.wide } else { &self.narrow };
        let mut weights = at.weights.iter().copied();
        let next = || weights.next().expect("an address for each weight");
        let layers = LayerAddresses::read(form.layers, form.bits, self.rows, self.biases, next);
        let Plan { tokens, columns, width, .. } = *self;
        let arguments = Arguments { layers, x: at.x, y: at.y, residual: at.residual, tokens, columns, width };
        let tiles = self.rows.iter().map(|&rows| divided_up(rows, form.tile.rows)).sum::<i32>();
        let grid = [divided_up(tokens, TOKENS) as u32, tiles as u32, 1];
        // SAFETY: `Arguments` is `GemmArguments`, which the kernel takes; the rest is the caller's promise.
        unsafe { kernel.launch(Launch { stream, grid, shared: form.shared(), follows: true }, &arguments) }
    }
}

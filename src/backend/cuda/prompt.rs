//! A block for the tokens of prompts: eight kernels, and those of `blocks::RowSteps`. Two normalise, four are products (`gemm.rs`), two are
//! attention, the launches of `prompt.cu`.

use mlx_rs::Dtype;

use super::Gpu;
use super::attention::{HeadNorm, Heads};
use super::blocks::{At, Numbers, Part, Room, RowLaunch, RowSteps};
use super::driver::Stream;
use super::gemm;
use super::gemv::{Added, divided_up, packing};
use super::kernel::{self, Compiled, Kernel, Launch, type_name};
use super::rows::{RowAddresses, RowNorm};
use crate::backend::{Block, Epilogue, Linear, Positions};
use crate::error::Result;

/// `MAX_PROMPTS` of prompt.cu.
const MAX_PROMPTS: usize = 32;
/// `HEADS_OF_WARP` of prompt.cu.
const HEADS_OF_WARP: i32 = 4;
/// `QUERIES` of prompt.cu.
const QUERIES: i32 = 64;
const THREADS: i32 = 128;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form {
    is_bf16: bool,
    head_dim: i32,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    /// With the pairs of components that are turned.
    PlaceHeads { turned: i32 },
    /// With the bits of o_proj.
    Attention { order: i32, is_capped: bool },
}

impl Form {
    /// Of attention, `SHARED` of prompt.cu.
    fn shared(&self) -> i32 {
        match self.kind {
            Kind::PlaceHeads { .. } => 0,
            Kind::Attention { .. } => 5 * 64 * (self.head_dim * 2 + 16),
        }
    }
}

impl kernel::Form for Form {
    const SOURCE: &str = concat!(
        include_str!("numbers.cu"),
        include_str!("tensor.cu"),
        include_str!("heads.cu"),
        include_str!("prompt.cu")
    );

    fn bounds(&self) -> (i32, i32) {
        let blocks = match self.kind {
            Kind::PlaceHeads { .. } => 8,
            // More numbers of a head take more registers.
            Kind::Attention { .. } => {
                if self.head_dim <= 128 {
                    2
                } else {
                    1
                }
            }
        };
        (THREADS, blocks)
    }

    fn dynamic_shared(&self) -> i32 {
        self.shared()
    }

    fn entry(&self) -> (String, String) {
        let &Form { is_bf16, head_dim, kind } = self;
        let number = type_name(is_bf16);
        let body = match kind {
            Kind::PlaceHeads { turned } => format!("mlx_lm::place_heads<{number}, {head_dim}, {turned}>(a);"),
            Kind::Attention { order, is_capped } => format!(
                "extern __shared__ __align__(128) unsigned char shared[];\n\
                 mlx_lm::PromptAttention<{number}, {head_dim}, {order}, {is_capped}>(a, shared).run();"
            ),
        };
        ("mlx_lm::PromptArguments".to_owned(), body)
    }
}

/// `Prompt` of prompt.cu: tokens of a sequence.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Prompt {
    keys: u64,
    values: u64,
    first: i32,
    tokens: i32,
    position: i32,
    capacity: i32,
    window: i32,
    sinks: i32,
    turns: u64,
}

impl Prompt {
    /// Of tokens that come `first` in the pass, and see through a window; the addresses come later.
    pub fn new(at: &Positions, first: i32, window: Option<i32>, capacity: i32) -> Self {
        let &Positions { tokens, offset: position, sinks, .. } = at;
        Prompt { keys: 0, values: 0, first, tokens, position, capacity, window: window.unwrap_or(0), sinks, turns: 0 }
    }

    /// With its keys and values, and what turns heads, at these addresses.
    pub fn at(self, [keys, values]: [u64; 2], turns: u64) -> Self {
        Prompt { keys, values, turns, ..self }
    }
}

/// `PromptArguments` of prompt.cu; addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Arguments {
    projected: u64,
    q_norm: HeadNorm,
    k_norm: HeadNorm,
    attended: u64,
    n_heads: i32,
    n_kv_heads: i32,
    scale: f32,
    cap: f32,
    prompts: [Prompt; MAX_PROMPTS],
}

/// A product with its kernel.
#[derive(Debug)]
struct Product {
    plan: gemm::Plan,
    kernel: Kernel,
}

/// A block's kernels, for so many tokens.
#[derive(Debug)]
pub(super) struct Planned {
    tokens: i32,
    heads: Heads,
    /// In front of the projections, and of the MLP.
    before: [RowNorm; 2],
    rows: RowSteps,
    projections: Product,
    o_proj: Product,
    expansion: Product,
    down_proj: Product,
    place_heads: Kernel,
    attention: (Kernel, Form),
}

impl Planned {
    /// `None` for what is not done here.
    pub fn new(gpu: &Gpu, (tokens, d, dtype): (i32, i32, Dtype), block: &Block, heads: Heads) -> Option<Self> {
        static KERNELS: Compiled<Form> = Compiled::new();
        let Heads { n_heads, n_kv_heads, head_dim, turned, cap, .. } = heads;
        if head_dim % 16 != 0 || head_dim > 256 || n_kv_heads == 0 || n_heads % n_kv_heads != 0 {
            return None;
        }
        let expansion = [block.gate_proj, block.up_proj];
        let hidden = expansion[0].weight.arrays()[0].dim(0);
        let order = |layer: &Linear| packing(layer).0;
        let plan = |columns, layers: &[Linear], epilogue, order| {
            gemm::Plan::new(gpu, (tokens, columns, dtype), layers, epilogue, order)
        };
        let plans = [
            plan(d, &block.projections, Epilogue::Concat, 16)?,
            plan(n_heads * head_dim, &[block.o_proj], Epilogue::Concat, 16)?,
            plan(d, &expansion, Epilogue::Gated(block.activation), order(&block.down_proj))?,
            plan(hidden, &[block.down_proj], Epilogue::Concat, 16)?,
        ];
        let before = |norm, layer: &Linear| RowNorm::new(gpu, d, dtype, norm, order(layer), false);
        let before = [
            before(block.attention_norms.before, &block.projections[0])?,
            before(block.mlp_norms.before, &expansion[0])?,
        ];
        let form = |kind| Form { is_bf16: dtype == Dtype::Bfloat16, head_dim, kind };
        let attention = form(Kind::Attention { order: order(&block.o_proj), is_capped: cap.is_some() });
        if attention.shared() > gpu.shared_memory {
            return None;
        }
        let [place_heads, attention_kernel] = KERNELS.get([&form(Kind::PlaceHeads { turned }), &attention], gpu)?;
        let kernels = gemm::Plan::compile(plans.each_ref(), gpu)?;
        let mut products = plans.into_iter().zip(kernels).map(|(plan, kernel)| Product { plan, kernel });
        let mut next = || products.next().expect("four");
        Some(Planned {
            tokens,
            heads,
            before,
            rows: RowSteps::new(gpu, (d, dtype), block, heads)?,
            projections: next(),
            o_proj: next(),
            expansion: next(),
            down_proj: next(),
            place_heads,
            attention: (attention_kernel, attention),
        })
    }

    /// What it needs.
    pub fn room(&self) -> Room {
        let bytes = |width: i32| self.tokens as usize * width as usize * 2;
        Room {
            normed: bytes(self.rows.width()),
            projected: bytes(self.projections.plan.width()),
            attended: bytes(self.heads.n_heads * self.heads.head_dim),
            expanded: bytes(self.expansion.plan.width()),
            ..Room::default()
        }
    }

    /// Start its kernels, behind others of ours where they `follow`: hidden states of x to those of y, which may be x.
    ///
    /// # Safety
    /// The addresses are of the arrays of the block that was planned, and of memory as large as [`Planned::room`] says; each prompt has
    /// caches of its own, with room for its tokens, which nobody else has a handle of.
    pub unsafe fn launch(
        &self,
        stream: Stream,
        follows: bool,
        at: &At,
        numbers: &Numbers,
        prompts: &[Prompt],
    ) -> Result<()> {
        let &Numbers { x, y, normed, projected, attended, expanded, .. } = numbers;
        let product = |product: &Product, weights, x, y, residual| {
            let at = gemm::Addresses { x, y, weights, residual };
            // SAFETY: the caller's promise.
            unsafe { product.plan.launch(product.kernel, stream, at) }
        };
        let before = |norm: RowNorm, follows, x, of: &[u64]| {
            // A norm's weight comes behind the layers'.
            let at = RowAddresses { x, weight: *of.last().expect("a layer"), y: normed, pitch: self.rows.width() };
            // SAFETY: the caller's promise.
            unsafe { norm.launch(stream, follows, self.tokens, at, Added::default()) }
        };
        let launch = RowLaunch { stream, rows: self.tokens, normed, y };
        before(self.before[0], follows, x, &at.projections)?;
        product(&self.projections, &at.projections, normed, projected, Added::default())?;
        // SAFETY: the caller's promise.
        unsafe {
            let head_norms = self.rows.normalise_heads(launch, at, projected)?;
            self.attend(stream, head_norms, [projected, attended], prompts)?;
            self.rows.add(launch, Part::Attention, x, &at.o_proj, |y, added| {
                product(&self.o_proj, &at.o_proj, attended, y, added)
            })?;
            before(self.before[1], true, y, &at.expansion)?;
            product(&self.expansion, &at.expansion, normed, expanded, Added::default())?;
            self.rows.add(launch, Part::Mlp, y, &at.down_proj, |y, added| {
                product(&self.down_proj, &at.down_proj, expanded, y, added)
            })
        }
    }

    /// # Safety
    /// As of [`Planned::launch`].
    unsafe fn attend(
        &self,
        stream: Stream,
        [q_norm, k_norm]: [HeadNorm; 2],
        [projected, attended]: [u64; 2],
        prompts: &[Prompt],
    ) -> Result<()> {
        let Heads { n_heads, n_kv_heads, scale, cap, .. } = self.heads;
        for some in prompts.chunks(MAX_PROMPTS) {
            let mut arguments = Arguments {
                projected,
                q_norm,
                k_norm,
                attended,
                n_heads,
                n_kv_heads,
                scale,
                cap: cap.unwrap_or(0.0),
                prompts: [Prompt::default(); MAX_PROMPTS],
            };
            arguments.prompts[..some.len()].copy_from_slice(some);
            let tokens = some.iter().map(|prompt| prompt.tokens).max().unwrap_or(0);
            let blocks_of_heads = divided_up(self.heads.all(), THREADS / 32 * HEADS_OF_WARP);
            let place = [tokens as u32, blocks_of_heads as u32, some.len() as u32];
            let attend = [divided_up(tokens, QUERIES) as u32, n_heads as u32, some.len() as u32];
            let (kernel, form) = self.attention;
            // SAFETY: `Arguments` is `PromptArguments`, which both kernels take; the rest is the caller's promise.
            unsafe {
                self.place_heads.launch(Launch { stream, grid: place, shared: 0, follows: true }, &arguments)?;
                kernel.launch(Launch { stream, grid: attend, shared: form.shared(), follows: true }, &arguments)?;
            }
        }
        Ok(())
    }
}

//! Queries, keys and values of a token of each of several sequences, out of one projection: the launch of `heads.cu`.

use std::sync::OnceLock;

use mlx_rs::{Array, Dtype, ops};

use super::Gpu;
use super::kernel::{Compiled, Kernel, Launch, hash};
use crate::error::Result;

const SOURCE: &str = concat!(include_str!("numbers.cu"), include_str!("heads.cu"));

const THREADS: i32 = 128;

/// What is compiled.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Form {
    is_bf16: bool,
    tokens: i32,
    n_heads: i32,
    n_kv_heads: i32,
    head_dim: i32,
    /// The bits of the eps of queries and of keys, if they are normalised.
    norms: Option<[u32; 2]>,
    turned: bool,
}

impl Form {
    fn heads(&self) -> i32 {
        self.n_heads + 2 * self.n_kv_heads
    }

    fn dtype(&self) -> Dtype {
        if self.is_bf16 { Dtype::Bfloat16 } else { Dtype::Float16 }
    }

    fn blocks(&self) -> i32 {
        (self.tokens * self.heads() * 32 + THREADS - 1) / THREADS
    }

    fn name(&self, gpu: &Gpu) -> String {
        static HASH: OnceLock<String> = OnceLock::new();
        let hash = HASH.get_or_init(|| hash(SOURCE));
        let [q, k] = self.norms.unwrap_or_default();
        let (kind, turned) = (if self.is_bf16 { "bf16" } else { "f16" }, if self.turned { "t" } else { "n" });
        let Form { tokens, n_heads, n_kv_heads, head_dim, .. } = self;
        let (major, minor) = gpu.capability;
        format!(
            "mlx_lm_heads_{hash}_sm{major}{minor}_{kind}_{tokens}_{n_heads}_{n_kv_heads}_{head_dim}_{q:x}_{k:x}_{turned}"
        )
    }

    fn outputs(&self) -> Vec<String> {
        ["q", "k", "v"].iter().flat_map(|name| (0..self.tokens).map(move |i| format!("{name}{i}"))).collect()
    }

    fn body(&self) -> String {
        let numbers = |name: &str| format!("reinterpret_cast<const unsigned short*>({name})");
        let norm = |name: &str, i: usize| match self.norms {
            Some(eps) => format!("{{{}, __uint_as_float({}u)}}", numbers(name), eps[i]),
            None => "{nullptr, 0}".to_owned(),
        };
        let list = |name: &str| {
            let all: Vec<_> =
                (0..self.tokens).map(|i| format!("reinterpret_cast<unsigned short*>({name}{i})")).collect();
            format!("unsigned short* const {name}s[] = {{{}}};\n", all.join(", "))
        };
        format!(
            "{}{}{}mlx_lm::split_heads<mlx_lm::Type::{}, {}, {}, {}, {}>({}, {}, {}, {}, qs, ks, vs);\n",
            list("q"),
            list("k"),
            list("v"),
            if self.is_bf16 { "BF16" } else { "F16" },
            self.tokens,
            self.n_heads,
            self.n_kv_heads,
            self.head_dim,
            numbers("x"),
            if self.turned { "reinterpret_cast<const float2*>(turns)" } else { "nullptr" },
            norm("q_norm", 0),
            norm("k_norm", 1),
        )
    }

    fn launch<R>(&self, run: impl FnOnce(Launch) -> R) -> R {
        let (queries, keys) = ([1, self.n_heads, 1, self.head_dim], [1, self.n_kv_heads, 1, self.head_dim]);
        let tokens = self.tokens as usize;
        let mut shapes: Vec<&[i32]> = vec![&queries; tokens];
        shapes.resize(3 * tokens, &keys);
        run(Launch { shapes: &shapes, dtype: self.dtype(), blocks: self.blocks(), threads: THREADS })
    }

    fn compile(&self, gpu: &Gpu) -> Result<Kernel> {
        let mut names = vec!["x".to_owned()];
        let x = ops::zeros_dtype(&[self.tokens, self.heads() * self.head_dim], self.dtype())?;
        let turns = ops::zeros_dtype(&[self.tokens, self.head_dim / 2, 2], Dtype::Float32)?;
        let mut inputs = vec![&x];
        if self.turned {
            names.push("turns".to_owned());
            inputs.push(&turns);
        }
        if self.norms.is_some() {
            names.extend(["q_norm", "k_norm"].map(str::to_owned));
            inputs.extend([&x, &x]); // as many numbers as a norm has, and more
        }
        let kernel = Kernel::new(&self.name(gpu), [&names, &self.outputs()], SOURCE, &self.body(), (THREADS, 1), 0)?;
        let made = self.launch(|launch| kernel.apply(&inputs, launch))?;
        mlx_rs::transforms::eval(&made)?;
        Ok(kernel)
    }
}

/// How many heads there are of what.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub tokens: i32,
    pub n_heads: i32,
    pub n_kv_heads: i32,
    pub head_dim: i32,
}

/// The kernel for a projection.
pub(super) struct Plan {
    kernel: &'static Kernel,
    form: Form,
}

impl Plan {
    /// `None` for what is not done here. `norms` are weights and eps for queries and keys.
    pub fn new(gpu: &Gpu, sizes: Sizes, dtype: Dtype, norms: Option<[(&Array, f32); 2]>, turned: bool) -> Option<Self> {
        static KERNELS: Compiled<Form> = Compiled::new();
        let is_done = matches!(dtype, Dtype::Float16 | Dtype::Bfloat16)
            && norms.is_none_or(|norms| norms.iter().all(|(weight, _)| weight.dtype() == dtype));
        if !is_done {
            return None;
        }
        let Sizes { tokens, n_heads, n_kv_heads, head_dim } = sizes;
        let norms = norms.map(|norms| norms.map(|(_, eps)| eps.to_bits()));
        let form = Form { is_bf16: dtype == Dtype::Bfloat16, tokens, n_heads, n_kv_heads, head_dim, norms, turned };
        let kernel = KERNELS.get(&form, || form.compile(gpu))?;
        Some(Plan { kernel, form })
    }

    /// For each token of `projected` `[N, all heads · head_dim]` its queries `[1, n_heads, 1, head_dim]`, then for each its
    /// keys, then values. `turns` `[N, head_dim / 2, 2]` (f32) are cosines and sines. All as it was planned.
    pub fn node(&self, projected: &Array, norms: Option<[&Array; 2]>, turns: Option<&Array>) -> Result<Vec<Array>> {
        let mut inputs = vec![projected];
        inputs.extend(turns);
        inputs.extend(norms.iter().flatten());
        self.form.launch(|launch| self.kernel.apply(&inputs, launch))
    }
}

//! The one decoder that Llama, Mistral and Qwen3 share: pre-norm attention and SwiGLU blocks.
//!
//! Reference: `mlx_lm.models.llama`, `mlx_lm.models.qwen3`. Shapes: B batch, L tokens of this pass, D hidden size.

use mlx_rs::fast::{ScaledDotProductAttentionMask, rms_norm, scaled_dot_product_attention};
use mlx_rs::ops::{add, multiply, sigmoid};
use mlx_rs::transforms::eval;
use mlx_rs::{Array, Dtype};

use super::config::DecoderConfig;
use super::rope::Rope;
use crate::backend::cpu::{self as kernels, Epilogue, Kernels, nodes};
use crate::error::Result;
use crate::generate::kv_cache::{KvCache, Step};
use crate::quantized::{Embedding, Linear};
use crate::weights::{Kind, Scope};

/// Embedding, blocks, final norm and output projection.
#[derive(Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    /// `None` when the embedding is the output projection.
    lm_head: Option<Linear>,
}

impl Decoder {
    /// Build from a checkpoint's tensors, named as Hugging Face names them.
    pub fn load(w: &Scope, config: &DecoderConfig) -> Result<Self> {
        let quantization = config.quantization.as_ref();
        let model = w.scope("model");
        let head = w.scope("lm_head");
        let tied = config.tie_word_embeddings.unwrap_or(!head.has("weight"));
        Ok(Decoder {
            embed_tokens: Embedding::load(
                &model.scope("embed_tokens"),
                config.vocab_size,
                config.hidden_size,
                quantization,
            )?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Block::load(&model.scope("layers").scope(i), config))
                .collect::<Result<_>>()?,
            norm: RmsNorm::load(&model.scope("norm"), config.hidden_size, config.rms_norm_eps)?,
            lm_head: if tied {
                None
            } else {
                Some(Linear::load(&head, config.vocab_size, config.hidden_size, false, quantization)?)
            },
        })
    }

    /// Token ids `[B, L]` (u32) that follow what `cache` holds, to hidden states `[B, L, D]`. `on_layer` is told the layers
    /// that are done.
    pub fn forward(&self, tokens: &Array, cache: &mut KvCache, on_layer: &mut dyn FnMut(usize)) -> Result<Array> {
        let step = cache.reserve(tokens.dim(1))?;
        let mut x = self.embed_tokens.forward(tokens)?;
        // MLX takes memory for operations long before it computes them on a CPU: for a chunk of a prompt, for most layers.
        let is_long = kernels::active().is_some() && tokens.dim(1) >= 64;
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, i, &step, cache)?;
            if is_long {
                evaluate([&x])?;
            }
            on_layer(i + 1);
        }
        self.norm.forward(&x)
    }

    /// The type of hidden states.
    pub fn dtype(&self) -> Dtype {
        self.embed_tokens.dtype()
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(|layer| {
            let (attention, mlp) = (&layer.self_attn, &layer.mlp);
            let projections = [&attention.q_proj, &attention.k_proj, &attention.v_proj, &attention.o_proj];
            projections.into_iter().chain([&mlp.gate_proj, &mlp.up_proj, &mlp.down_proj])
        })
    }

    /// Bytes of the matrices that a decode step multiplies with.
    pub fn step_bytes(&self) -> usize {
        self.linears().chain([self.head()]).map(Linear::nbytes).sum()
    }

    /// Multiplications and additions for one token in the layers' matrices.
    pub fn token_flops(&self) -> f64 {
        self.linears().map(|linear| 2.0 * linear.size() as f64).sum()
    }

    /// Hidden states `[…, D]` to logits `[…, V]`.
    pub fn logits(&self, hidden_states: &Array) -> Result<Array> {
        self.head().forward(hidden_states)
    }

    fn head(&self) -> &Linear {
        self.lm_head.as_ref().unwrap_or(self.embed_tokens.as_linear())
    }
}

/// Compute `arrays`.
///
/// # Errors
/// When memory runs out, a kernel fails, or the computation was [interrupted](Error::Interrupted).
pub(super) fn evaluate<'a>(arrays: impl IntoIterator<Item = &'a Array>) -> Result<()> {
    let evaluated = eval(arrays);
    kernels::failure()?; // which is why MLX may have failed too
    Ok(evaluated?)
}

#[derive(Debug)]
struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    fn load(w: &Scope, config: &DecoderConfig) -> Result<Self> {
        let norm = |name| RmsNorm::load(&w.scope(name), config.hidden_size, config.rms_norm_eps);
        Ok(Block {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(&w.scope("self_attn"), config)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(&w.scope("mlp"), config)?,
        })
    }

    fn forward(&self, x: &Array, layer: usize, step: &Step, cache: &mut KvCache) -> Result<Array> {
        let attended = self.self_attn.forward(&self.input_layernorm.forward(x)?, layer, step, cache)?;
        let x = residual(x, &attended)?;
        let expanded = self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?;
        residual(&x, &expanded)
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Per-head norms of queries and keys.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    rope: Rope,
    n_heads: i32,
    n_kv_heads: i32,
    head_dim: i32,
}

impl Attention {
    fn load(w: &Scope, config: &DecoderConfig) -> Result<Self> {
        let &DecoderConfig {
            num_attention_heads: n_heads, num_key_value_heads: n_kv_heads, head_dim, hidden_size, ..
        } = config;
        let linear = |name, output, input| {
            Linear::load(&w.scope(name), output, input, config.attention_bias, config.quantization.as_ref())
        };
        let norm = |name| RmsNorm::load(&w.scope(name), head_dim, config.rms_norm_eps);
        Ok(Attention {
            q_proj: linear("q_proj", n_heads * head_dim, hidden_size)?,
            k_proj: linear("k_proj", n_kv_heads * head_dim, hidden_size)?,
            v_proj: linear("v_proj", n_kv_heads * head_dim, hidden_size)?,
            o_proj: linear("o_proj", hidden_size, n_heads * head_dim)?,
            qk_norm: if config.qk_norm { Some((norm("q_norm")?, norm("k_norm")?)) } else { None },
            rope: Rope::new(&config.rope, head_dim),
            n_heads,
            n_kv_heads,
            head_dim,
        })
    }

    fn forward(&self, x: &Array, layer: usize, step: &Step, cache: &mut KvCache) -> Result<Array> {
        let [queries, keys, values] = match kernels::active() {
            Some(kernels) => self.project_on(kernels, x, step.offset)?,
            None => self.project(x, step.offset)?,
        };
        let (keys, values) = cache.update(layer, step, keys, values)?;
        let scale = (self.head_dim as f32).powf(-0.5);
        self.o_proj.forward(&attention(&queries, &keys, &values, scale, step.mask())?)
    }

    /// Queries, keys and values `[B, heads, L, head_dim]`, normalised and rotated.
    fn project(&self, x: &Array, offset: i32) -> Result<[Array; 3]> {
        let (b, l) = (x.dim(0), x.dim(1));
        let split = |projected: Array, heads, norm: Option<&RmsNorm>| -> Result<Array> {
            let mut y = projected.reshape(&[b, l, heads, self.head_dim])?;
            if let Some(norm) = norm {
                y = norm.forward(&y)?;
            }
            Ok(y.transpose_axes(&[0, 2, 1, 3])?)
        };
        let (q_norm, k_norm) = self.qk_norm.as_ref().map_or((None, None), |(q, k)| (Some(q), Some(k)));
        let queries = split(self.q_proj.forward(x)?, self.n_heads, q_norm)?;
        let keys = split(self.k_proj.forward(x)?, self.n_kv_heads, k_norm)?;
        let values = split(self.v_proj.forward(x)?, self.n_kv_heads, None)?;
        Ok([self.rope.apply(&queries, offset)?, self.rope.apply(&keys, offset)?, values])
    }

    /// The same in four operations.
    fn project_on(&self, kernels: Kernels, x: &Array, offset: i32) -> Result<[Array; 3]> {
        let all = nodes::linear(kernels, x, &[&self.q_proj, &self.k_proj, &self.v_proj], Epilogue::Concat)?;
        let rope = self.rope.turns(offset);
        let heads = |first, n, norm: Option<&RmsNorm>, rope| {
            let norm = norm.map(|norm| (&norm.weight, norm.eps));
            nodes::heads_of(kernels, &all, first, n, self.head_dim, norm, rope)
        };
        let (q_norm, k_norm) = self.qk_norm.as_ref().map_or((None, None), |(q, k)| (Some(q), Some(k)));
        Ok([
            heads(0, self.n_heads, q_norm, rope)?,
            heads(self.n_heads, self.n_kv_heads, k_norm, rope)?,
            heads(self.n_heads + self.n_kv_heads, self.n_kv_heads, None, (&[], 0, 1.0))?,
        ])
    }
}

/// Queries `[B, n_heads, L, head_dim]` over keys and values `[B, n_kv_heads, T, head_dim]`, to `[B, L, n_heads * head_dim]`.
fn attention(
    queries: &Array,
    keys: &Array,
    values: &Array,
    scale: f32,
    mask: Option<ScaledDotProductAttentionMask>,
) -> Result<Array> {
    if let Some(kernels) = kernels::active() {
        return nodes::attention(kernels, queries, keys, values, scale, mask.as_ref());
    }
    let output = scaled_dot_product_attention(queries, keys, values, scale, mask, None)?;
    Ok(output.transpose_axes(&[0, 2, 1, 3])?.reshape(&[queries.dim(0), queries.dim(2), -1])?)
}

#[derive(Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn load(w: &Scope, config: &DecoderConfig) -> Result<Self> {
        let linear = |name, output, input| {
            Linear::load(&w.scope(name), output, input, config.mlp_bias, config.quantization.as_ref())
        };
        let (d, hidden) = (config.hidden_size, config.intermediate_size);
        Ok(Mlp {
            gate_proj: linear("gate_proj", hidden, d)?,
            up_proj: linear("up_proj", hidden, d)?,
            down_proj: linear("down_proj", d, hidden)?,
        })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        let expanded = match kernels::active() {
            Some(kernels) => nodes::linear(kernels, x, &[&self.gate_proj, &self.up_proj], Epilogue::SwiGlu)?,
            None => swiglu(&self.gate_proj.forward(x)?, &self.up_proj.forward(x)?)?,
        };
        self.down_proj.forward(&expanded)
    }
}

/// `silu(gate) · up`. Not mlx-rs' `silu`, which is a compiled function: on a CPU, MLX compiles those with the
/// machine's C++ compiler, which a machine that only runs models does not have.
fn swiglu(gate: &Array, up: &Array) -> Result<Array> {
    Ok(multiply(multiply(gate, sigmoid(gate)?)?, up)?)
}

/// What a layer adds to the hidden states.
fn residual(x: &Array, change: &Array) -> Result<Array> {
    if let Some(result) = kernels::active().and_then(|kernels| nodes::add(kernels, x, change)) {
        return result;
    }
    Ok(add(x, change)?)
}

/// Root-mean-square normalisation over the last axis (arXiv 1910.07467).
#[derive(Debug)]
struct RmsNorm {
    weight: Array,
    eps: f32,
}

impl RmsNorm {
    fn load(w: &Scope, size: i32, eps: f32) -> Result<Self> {
        Ok(RmsNorm { weight: w.get("weight", &[size], Kind::Float)?, eps })
    }

    fn forward(&self, x: &Array) -> Result<Array> {
        if let Some(kernels) = kernels::active() {
            return nodes::rms_norm(kernels, x, &self.weight, self.eps);
        }
        Ok(rms_norm(x, Some(&self.weight), self.eps)?)
    }
}

//! A decoder block: pre-norm attention and SwiGLU MLP, as a composition of smaller operations, and as the operand of
//! [`ops::blocks`] for devices that compute it whole.
//!
//! Reference: `mlx_lm.models.llama`, `mlx_lm.models.qwen3`. Shapes: N tokens of all spans, L of one, D hidden size.

use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;

use super::batch::Span;
use super::config::{DecoderConfig, LayerConfig};
use super::rope::Rope;
use crate::backend::{self, Norm, Phase, Positions};
use crate::error::Result;
use crate::ops;
use crate::quantized::Linear;
use crate::weights::{Kind, Scope};

#[derive(Debug)]
pub(super) struct Block {
    input_layernorm: RmsNorm,
    self_attn: Attention,
    post_attention_layernorm: RmsNorm,
    mlp: Mlp,
}

impl Block {
    pub fn load(w: &Scope, config: &DecoderConfig, layer: &LayerConfig) -> Result<Self> {
        let norm = |name| RmsNorm::load(&w.scope(name), config.hidden_size, config.rms_norm_eps);
        Ok(Block {
            input_layernorm: norm("input_layernorm")?,
            self_attn: Attention::load(&w.scope("self_attn"), config, layer)?,
            post_attention_layernorm: norm("post_attention_layernorm")?,
            mlp: Mlp::load(&w.scope("mlp"), config, layer)?,
        })
    }

    /// Hidden states `[N, D]` to the same; `at` are the spans' positions, `layer` this block's number.
    pub fn forward(
        &self,
        x: &Array,
        layer: usize,
        spans: &mut [Span],
        at: &[Positions],
        phase: Phase,
    ) -> Result<Array> {
        let normed = self.input_layernorm.forward(x)?;
        let x = mlx_rs::ops::add(x, &self.self_attn.forward(&normed, layer, spans, at, phase)?)?;
        let normed = self.post_attention_layernorm.forward(&x)?;
        Ok(mlx_rs::ops::add(&x, &self.mlp.forward(&normed, phase)?)?)
    }

    pub fn operand(&self) -> backend::Block<'_> {
        let (attention, mlp) = (&self.self_attn, &self.mlp);
        backend::Block {
            input_layernorm: self.input_layernorm.operand(),
            projections: [&attention.q_proj, &attention.k_proj, &attention.v_proj].map(Linear::operand),
            qk_norm: attention.qk_norm.as_ref().map(|norms| norms.each_ref().map(RmsNorm::operand)),
            rotation: attention.rope.as_ref().map(Rope::rotation),
            head_dim: attention.head_dim,
            scale: attention.scale,
            window: attention.window,
            o_proj: attention.o_proj.operand(),
            post_attention_layernorm: self.post_attention_layernorm.operand(),
            gate_proj: mlp.gate_proj.operand(),
            up_proj: mlp.up_proj.operand(),
            down_proj: mlp.down_proj.operand(),
        }
    }

    pub fn linears(&self) -> [&Linear; 7] {
        let (attention, mlp) = (&self.self_attn, &self.mlp);
        let [q, k, v, o] = [&attention.q_proj, &attention.k_proj, &attention.v_proj, &attention.o_proj];
        [q, k, v, o, &mlp.gate_proj, &mlp.up_proj, &mlp.down_proj]
    }
}

#[derive(Debug)]
struct Attention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    o_proj: Linear,
    /// Per-head norms of queries and keys.
    qk_norm: Option<[RmsNorm; 2]>,
    rope: Option<Rope>,
    head_dim: i32,
    scale: f32,
    window: Option<i32>,
}

impl Attention {
    fn load(w: &Scope, config: &DecoderConfig, layer: &LayerConfig) -> Result<Self> {
        let &DecoderConfig {
            num_attention_heads: n_heads, num_key_value_heads: n_kv_heads, head_dim, hidden_size, ..
        } = config;
        let linear = |name, output, input| {
            Linear::load(&w.scope(name), output, input, layer.attention_bias, config.quantization.as_ref())
        };
        let norm = |name| RmsNorm::load(&w.scope(name), head_dim, config.rms_norm_eps);
        Ok(Attention {
            q_proj: linear("q_proj", n_heads * head_dim, hidden_size)?,
            k_proj: linear("k_proj", n_kv_heads * head_dim, hidden_size)?,
            v_proj: linear("v_proj", n_kv_heads * head_dim, hidden_size)?,
            o_proj: linear("o_proj", hidden_size, n_heads * head_dim)?,
            qk_norm: if layer.qk_norm { Some([norm("q_norm")?, norm("k_norm")?]) } else { None },
            rope: layer.rope.as_ref().map(|rope| Rope::new(rope, head_dim)),
            head_dim,
            scale: layer.attention_scale,
            window: layer.sliding_window,
        })
    }

    fn forward(&self, x: &Array, layer: usize, spans: &mut [Span], at: &[Positions], phase: Phase) -> Result<Array> {
        let n = x.dim(0);
        // `[1, heads, N, head_dim]`.
        let heads = |linear: &Linear, norm: Option<&RmsNorm>| -> Result<Array> {
            let mut heads = linear.forward(x, phase)?.reshape(&[1, n, -1, self.head_dim])?;
            if let Some(norm) = norm {
                heads = norm.forward(&heads)?;
            }
            Ok(heads.transpose_axes(&[0, 2, 1, 3])?)
        };
        let norms = self.qk_norm.as_ref();
        let queries = heads(&self.q_proj, norms.map(|[q, _]| q))?;
        let keys = heads(&self.k_proj, norms.map(|[_, k]| k))?;
        let values = heads(&self.v_proj, None)?;
        let mut attended = Vec::with_capacity(spans.len());
        let mut first = 0;
        for (span, at) in spans.iter_mut().zip(at) {
            let part = |heads: &Array| -> Result<Array> {
                let all = at.tokens == n;
                Ok(if all { heads.clone() } else { heads.try_index((.., .., first..first + at.tokens, ..))? })
            };
            let rotated = |heads: &Array| match &self.rope {
                Some(rope) => rope.apply(&part(heads)?, at.offset),
                None => part(heads),
            };
            let (seen_keys, seen_values) = span.cache.update(layer, at, rotated(&keys)?, part(&values)?)?;
            let mask = span.cache.mask(layer, at)?;
            attended.push(ops::attention(&rotated(&queries)?, &seen_keys, &seen_values, self.scale, mask.as_mlx())?);
            first += at.tokens;
        }
        let attended = if let [one] = &attended[..] { one.clone() } else { concatenate(&attended, 0)? };
        self.o_proj.forward(&attended, phase)
    }
}

#[derive(Debug)]
struct Mlp {
    gate_proj: Linear,
    up_proj: Linear,
    down_proj: Linear,
}

impl Mlp {
    fn load(w: &Scope, config: &DecoderConfig, layer: &LayerConfig) -> Result<Self> {
        let linear = |name, output, input| {
            Linear::load(&w.scope(name), output, input, layer.mlp_bias, config.quantization.as_ref())
        };
        let (d, hidden) = (config.hidden_size, config.intermediate_size);
        Ok(Mlp {
            gate_proj: linear("gate_proj", hidden, d)?,
            up_proj: linear("up_proj", hidden, d)?,
            down_proj: linear("down_proj", d, hidden)?,
        })
    }

    fn forward(&self, x: &Array, phase: Phase) -> Result<Array> {
        let expanded = ops::gated_linear(x, self.gate_proj.operand(), self.up_proj.operand(), phase)?;
        self.down_proj.forward(&expanded, phase)
    }
}

/// Root-mean-square normalisation over the last axis (arXiv 1910.07467).
#[derive(Debug)]
pub(super) struct RmsNorm {
    weight: Array,
    eps: f32,
}

impl RmsNorm {
    pub fn load(w: &Scope, size: i32, eps: f32) -> Result<Self> {
        Ok(RmsNorm { weight: w.get("weight", &[size], Kind::Float)?, eps })
    }

    pub fn forward(&self, x: &Array) -> Result<Array> {
        ops::rms_norm(x, self.operand())
    }

    fn operand(&self) -> Norm<'_> {
        Norm { weight: &self.weight, eps: self.eps }
    }
}

//! The one decoder that Llama, Mistral and Qwen3 share: pre-norm attention and SwiGLU blocks.
//!
//! Reference: `mlx_lm.models.llama`, `mlx_lm.models.qwen3`. Shapes: B batch, L tokens of this pass, D hidden size.

use mlx_rs::{Array, Dtype};

use super::config::DecoderConfig;
use super::rope::Rope;
use crate::backend::{HeadSlice, Norm};
use crate::error::Result;
use crate::generate::kv_cache::{KvCache, Step};
use crate::ops;
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
        for (i, layer) in self.layers.iter().enumerate() {
            x = layer.forward(&x, i, &step, cache)?;
            ops::end_layer(&x, tokens.dim(1))?;
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
        let x = ops::add(x, &attended)?;
        let expanded = self.mlp.forward(&self.post_attention_layernorm.forward(&x)?)?;
        ops::add(&x, &expanded)
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
        let norms = self.qk_norm.as_ref();
        let (q_norm, k_norm) = (norms.map(|(q, _)| q.operand()), norms.map(|(_, k)| k.operand()));
        let rotation = Some(self.rope.rotation(step.offset));
        let all = HeadSlice { first: 0, count: self.n_kv_heads, head_dim: self.head_dim, norm: None, rotation: None };
        let layers = [
            (self.q_proj.operand(), HeadSlice { count: self.n_heads, norm: q_norm, rotation, ..all }),
            (self.k_proj.operand(), HeadSlice { norm: k_norm, rotation, ..all }),
            (self.v_proj.operand(), all),
        ];
        let [queries, keys, values] = ops::project_heads(x, layers, |heads| self.rope.apply(heads, step.offset))?;
        let (keys, values) = cache.update(layer, step, keys, values)?;
        let scale = (self.head_dim as f32).powf(-0.5);
        self.o_proj.forward(&ops::attention(&queries, &keys, &values, scale, step.mask())?)
    }
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
        self.down_proj.forward(&ops::gated_linear(x, self.gate_proj.operand(), self.up_proj.operand())?)
    }
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
        ops::rms_norm(x, self.operand())
    }

    fn operand(&self) -> Norm<'_> {
        Norm { weight: &self.weight, eps: self.eps }
    }
}

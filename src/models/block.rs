//! A decoder block: attention and a gated MLP with norms around them, as a composition of smaller operations, and as the operand of
//! [`ops::blocks`] for devices that compute it whole.
//!
//! Reference: `mlx_lm.models` (`llama`, `gemma2`, `olmo2`, `phi3` and others). Shapes: N tokens of all spans, L of one, D hidden size.

use mlx_rs::Array;
use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;

use super::batch::Span;
use super::config::{DecoderConfig, LayerConfig, NormPlacement, QkNorm};
use super::rope::Rope;
use crate::backend::{self, Activation, Norm, Phase, Positions, Residual};
use crate::error::{Error, Result};
use crate::mlx_rs_patch::distributed::Group;
use crate::ops;
use crate::quantized::Linear;
use crate::weights::{Kind, Scope, Split};

#[derive(Debug)]
pub(super) struct Block {
    attention_norms: Norms,
    self_attn: Attention,
    mlp_norms: Norms,
    mlp: Mlp,
    residual: Residual,
}

/// The norms around attention or the MLP.
#[derive(Debug)]
struct Norms {
    before: Option<RmsNorm>,
    after: Option<RmsNorm>,
}

impl Norms {
    fn before(&self, x: &Array) -> Result<Array> {
        self.before.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
    }

    fn after(&self, x: Array) -> Result<Array> {
        self.after.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(&x))
    }

    fn operand(&self) -> backend::Norms<'_> {
        let [before, after] = [&self.before, &self.after].map(|norm| norm.as_ref().map(RmsNorm::operand));
        backend::Norms { before, after }
    }
}

impl Block {
    pub fn load(w: &Scope, config: &DecoderConfig, layer: &LayerConfig) -> Result<Self> {
        let norm =
            |name: Option<&str>| name.map(|name| RmsNorm::load(&w.scope(name), config.hidden_size, config)).transpose();
        let [input, attended, expanding, expanded] = match layer.norms {
            NormPlacement::Before => [Some("input_layernorm"), None, Some("post_attention_layernorm"), None],
            NormPlacement::After => [None, Some("post_attention_layernorm"), None, Some("post_feedforward_layernorm")],
            NormPlacement::Around => [
                Some("input_layernorm"),
                Some("post_attention_layernorm"),
                Some("pre_feedforward_layernorm"),
                Some("post_feedforward_layernorm"),
            ],
        };
        Ok(Block {
            attention_norms: Norms { before: norm(input)?, after: norm(attended)? },
            self_attn: Attention::load(&w.scope("self_attn"), config, layer)?,
            mlp_norms: Norms { before: norm(expanding)?, after: norm(expanded)? },
            mlp: Mlp::load(&w.scope("mlp"), config, layer)?,
            residual: layer.residual,
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
        let attended = self.self_attn.forward(&self.attention_norms.before(x)?, layer, spans, at, phase)?;
        let x = ops::add_residual(x, &self.attention_norms.after(attended)?, self.residual)?;
        let expanded = self.mlp.forward(&self.mlp_norms.before(&x)?, phase)?;
        ops::add_residual(&x, &self.mlp_norms.after(expanded)?, self.residual)
    }

    pub fn operand(&self) -> backend::Block<'_> {
        let (attention, mlp) = (&self.self_attn, &self.mlp);
        backend::Block {
            attention_norms: self.attention_norms.operand(),
            projections: [&attention.q_proj, &attention.k_proj, &attention.v_proj].map(Linear::operand),
            qk_norm: attention.qk_norm.as_ref().map(|norms| norms.each_ref().map(RmsNorm::operand)),
            rotations: attention.rope.as_ref().map(Rope::rotations),
            head_dim: attention.head_dim,
            scale: attention.scale,
            softcap: attention.softcap,
            window: attention.window,
            o_proj: attention.o_proj.operand(),
            mlp_norms: self.mlp_norms.operand(),
            gate_proj: mlp.gate_proj.operand(),
            up_proj: mlp.up_proj.operand(),
            activation: mlp.activation,
            down_proj: mlp.down_proj.operand(),
            residual: self.residual,
            summed_over: mlp.down_proj.summed_over(),
        }
    }

    /// Whether heads are normalised together that several ranks share.
    pub fn normalises_over_ranks(&self) -> bool {
        self.self_attn.qk_norm.as_ref().is_some_and(|norms| norms[0].shared_by.is_some())
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
    /// Of queries and keys, of each head or of all together.
    qk_norm: Option<[RmsNorm; 2]>,
    rope: Option<Rope>,
    head_dim: i32,
    scale: f32,
    softcap: Option<f32>,
    window: Option<i32>,
}

impl Attention {
    fn load(w: &Scope, config: &DecoderConfig, layer: &LayerConfig) -> Result<Self> {
        let &DecoderConfig {
            num_attention_heads: n_heads, num_key_value_heads: n_kv_heads, head_dim, hidden_size, ..
        } = config;
        let quantization = config.quantization.as_ref();
        if let Some(size) = w.group().map(Group::size).filter(|size| n_kv_heads % size != 0) {
            return Err(Error::Ranks(format!(
                "{size} ranks cannot share {n_heads} attention heads and {n_kv_heads} key-value heads; these numbers of ranks can: {}",
                Split::possible_sizes(n_kv_heads)
            )));
        }
        let (queries, keys) = (n_heads * head_dim, n_kv_heads * head_dim);
        let names = (["q_proj", "k_proj", "v_proj"], "qkv_proj");
        let [q_proj, k_proj, v_proj] = load_projections(w, names, [queries, keys, keys], layer.qkv_bias, config)?;
        let norm = |name, width| RmsNorm::load(&w.scope(name), width, config);
        let qk_norm = match layer.qk_norm {
            None => None,
            Some(QkNorm::PerHead) => Some([norm("q_norm", head_dim)?, norm("k_norm", head_dim)?]),
            Some(QkNorm::AllHeads) => {
                let norm = |name, width| RmsNorm::load_split(&w.scope(name), width, config);
                Some([norm("q_norm", queries)?, norm("k_norm", keys)?])
            }
        };
        Ok(Attention {
            q_proj,
            k_proj,
            v_proj,
            o_proj: Linear::load(&w.scope("o_proj"), hidden_size, queries, Split::Inputs, layer.o_bias, quantization)?,
            qk_norm,
            rope: layer.rope.as_ref().map(Rope::new),
            head_dim,
            scale: layer.attention_scale,
            softcap: layer.attn_logit_softcapping,
            window: layer.sliding_window,
        })
    }

    fn forward(&self, x: &Array, layer: usize, spans: &mut [Span], at: &[Positions], phase: Phase) -> Result<Array> {
        let n = x.dim(0);
        // `[1, heads, N, head_dim]`.
        let heads = |linear: &Linear, norm: Option<&RmsNorm>| -> Result<Array> {
            let mut heads = linear.forward(x, phase)?;
            if let Some(norm) = norm {
                heads = norm.forward(&heads.reshape(&[n, -1, norm.weight.dim(0)])?)?;
            }
            Ok(heads.reshape(&[1, n, -1, self.head_dim])?.transpose_axes(&[0, 2, 1, 3])?)
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
                Some(rope) => rope.apply(&part(heads)?, at),
                None => part(heads),
            };
            let (seen_keys, seen_values) = span.cache.update(layer, at, rotated(&keys)?, part(&values)?)?;
            let mask = span.cache.mask(layer, at)?;
            let queries = rotated(&queries)?;
            attended.push(ops::attention(&queries, &seen_keys, &seen_values, self.scale, self.softcap, mask)?);
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
    activation: Activation,
    down_proj: Linear,
}

impl Mlp {
    fn load(w: &Scope, config: &DecoderConfig, layer: &LayerConfig) -> Result<Self> {
        let (d, hidden) = (config.hidden_size, config.intermediate_size);
        let names = (["gate_proj", "up_proj"], "gate_up_proj");
        let [gate_proj, up_proj] = load_projections(w, names, [hidden; 2], layer.mlp_bias, config)?;
        let (w, quantization) = (w.scope("down_proj"), config.quantization.as_ref());
        let down_proj = Linear::load(&w, d, hidden, Split::Inputs, layer.mlp_bias, quantization)?;
        Ok(Mlp { gate_proj, up_proj, activation: layer.activation, down_proj })
    }

    fn forward(&self, x: &Array, phase: Phase) -> Result<Array> {
        let expanded = ops::gated_linear(x, self.gate_proj.operand(), self.up_proj.operand(), self.activation, phase)?;
        self.down_proj.forward(&expanded, phase)
    }
}

/// Layers whose input are the hidden states: modules of their own names, or one module where a family has fused them.
fn load_projections<const N: usize>(
    w: &Scope,
    (names, fused): ([&str; N], &str),
    outputs: [i32; N],
    bias: bool,
    config: &DecoderConfig,
) -> Result<[Linear; N]> {
    let (input, quantization) = (config.hidden_size, config.quantization.as_ref());
    let layers = if config.fused_projections {
        Linear::load_fused(&w.scope(fused), &outputs, input, Split::Outputs, bias, quantization)?
    } else {
        let named = names.into_iter().zip(outputs);
        named
            .map(|(name, output)| Linear::load(&w.scope(name), output, input, Split::Outputs, bias, quantization))
            .collect::<Result<_>>()?
    };
    Ok(layers.try_into().expect("one for each"))
}

/// Root-mean-square normalisation over the last axis (arXiv 1910.07467).
#[derive(Debug)]
pub(super) struct RmsNorm {
    weight: Array,
    eps: f32,
    /// Those of whom each has a share of what is normalised.
    shared_by: Option<Group>,
}

impl RmsNorm {
    pub fn load(w: &Scope, size: i32, config: &DecoderConfig) -> Result<Self> {
        let weight = w.get("weight", &[size], Kind::Float)?;
        RmsNorm::new(weight, config, None)
    }

    /// Of `size` numbers of which each rank has a share.
    fn load_split(w: &Scope, size: i32, config: &DecoderConfig) -> Result<Self> {
        let weight = w.get_split("weight", &[size], Split::Outputs, Kind::Float)?;
        RmsNorm::new(weight, config, w.group().cloned())
    }

    fn new(mut weight: Array, config: &DecoderConfig, shared_by: Option<Group>) -> Result<Self> {
        if config.norm_weight_offset != 0.0 {
            weight = ops::offset(&weight, config.norm_weight_offset)?;
        }
        Ok(RmsNorm { weight, eps: config.rms_norm_eps, shared_by })
    }

    pub fn forward(&self, x: &Array) -> Result<Array> {
        match &self.shared_by {
            Some(group) => ops::rms_norm_of_all(x, self.operand(), group),
            None => ops::rms_norm(x, self.operand()),
        }
    }

    fn operand(&self) -> Norm<'_> {
        Norm { weight: &self.weight, eps: self.eps }
    }
}

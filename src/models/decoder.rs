//! The one decoder that all families share: embedding, blocks, final norm and output projection.
//!
//! Reference: `mlx_lm.models.llama`. Shapes: N tokens of a pass, D hidden size, V vocabulary.

use mlx_rs::{Array, Dtype};

use super::batch::{Batch, Span};
use super::block::{Block, RmsNorm};
use super::config::DecoderConfig;
use crate::backend::{CachedSpan, Phase, Positions};
use crate::error::Result;
use crate::mlx_rs_patch::distributed::Group;
use crate::ops;
use crate::quantized::{Embedding, Linear};
use crate::weights::{Scope, Split};

/// The whole network.
#[derive(Debug)]
pub struct Decoder {
    embed_tokens: Embedding,
    layers: Vec<Block>,
    norm: RmsNorm,
    /// `None` when the embedding is the output projection.
    lm_head: Option<Linear>,
    embedding_multiplier: f32,
    logits_scaling: f32,
    final_logit_softcapping: Option<f32>,
    vocab_size: i32,
    /// Those of whom each has a share of heads, MLPs and vocabulary.
    group: Option<Group>,
}

impl Decoder {
    /// Build from a checkpoint's tensors, named as Hugging Face names them.
    pub fn load(w: &Scope, config: &DecoderConfig) -> Result<Self> {
        let quantization = config.quantization.as_ref();
        let w = w.scope(config.weights_prefix);
        let model = w.scope("model");
        let head = w.scope("lm_head");
        let tied = config.tie_word_embeddings.unwrap_or(!head.has("weight"));
        let embed_tokens = model.scope("embed_tokens");
        Ok(Decoder {
            embed_tokens: Embedding::load(&embed_tokens, config.vocab_size, config.hidden_size, quantization)?,
            layers: (0..config.num_hidden_layers)
                .map(|i| Block::load(&model.scope("layers").scope(i), config, config.layer(i as usize)))
                .collect::<Result<_>>()?,
            norm: RmsNorm::load(&model.scope("norm"), config.hidden_size, config)?,
            lm_head: if tied {
                None
            } else {
                let (vocab_size, d) = (config.vocab_size, config.hidden_size);
                Some(Linear::load(&head, vocab_size, d, Split::Outputs, false, quantization)?)
            },
            embedding_multiplier: config.embedding_multiplier,
            logits_scaling: config.logits_scaling,
            final_logit_softcapping: config.final_logit_softcapping,
            vocab_size: config.vocab_size,
            group: w.group().cloned(),
        })
    }

    /// The tokens of a batch, `[N]`, to hidden states `[N, D]`. `on_layer` is told the layers that are done.
    pub fn forward(&self, batch: &mut Batch, on_layer: &mut dyn FnMut(usize)) -> Result<Array> {
        let reserve = |span: &mut Span| span.cache.reserve(span.tokens, span.phase);
        let at = batch.spans.iter_mut().map(reserve).collect::<Result<Vec<Positions>>>()?;
        let phase = batch.phase();
        // What rank 0 chose last, the others do not know.
        let ids = match &self.group {
            Some(group) => &ops::of_first_rank(&batch.ids, group)?,
            None => &batch.ids,
        };
        let mut x = self.embed_tokens.forward(ids)?;
        if self.embedding_multiplier != 1.0 {
            x = ops::scaled(&x, self.embedding_multiplier)?;
        }
        // Ranks that stop between layers would leave the others waiting.
        let by_layer = self.group.is_none() && ops::computes_by_layer(x.dim(0));
        let at_once = if by_layer { 1 } else { self.layers.len() };
        for first in (0..self.layers.len()).step_by(at_once) {
            let part = first..first + at_once;
            let blocks: Vec<_> = self.layers[part.clone()].iter().map(Block::operand).collect();
            let mut spans: Vec<CachedSpan> = Vec::with_capacity(at.len());
            for (Span { cache, .. }, at) in batch.spans.iter_mut().zip(&at) {
                spans.push(cache.span(*at, part.clone()));
            }
            let is_whole = !self.layers[first].normalises_over_ranks();
            match is_whole.then(|| ops::blocks(&x, &blocks, &mut spans)).flatten() {
                Some(computed) => x = computed?,
                None => {
                    for layer in part {
                        x = self.layers[layer].forward(&x, layer, &mut batch.spans, &at, phase)?;
                    }
                }
            }
            if at_once < self.layers.len() {
                ops::evaluate([&x])?;
            }
            on_layer(first + at_once);
        }
        self.norm.forward(&x)
    }

    /// The type of hidden states.
    pub fn dtype(&self) -> Dtype {
        self.embed_tokens.dtype()
    }

    /// Whether it is a share of the whole.
    pub fn is_shared_out(&self) -> bool {
        self.group.is_some()
    }

    fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.layers.iter().flat_map(Block::linears)
    }

    /// Bytes of the matrices that a decode step multiplies with.
    pub fn step_bytes(&self) -> usize {
        self.linears().chain([self.head()]).map(Linear::nbytes).sum()
    }

    /// Multiplications and additions for one token in the layers' matrices.
    pub fn token_flops(&self) -> f64 {
        self.linears().map(|linear| 2.0 * linear.size() as f64).sum()
    }

    /// Hidden states `[N, D]` to logits `[N, V]`.
    pub fn logits(&self, hidden_states: &Array, phase: Phase) -> Result<Array> {
        let mut logits = self.head().forward(hidden_states, phase)?;
        if let Some(group) = &self.group {
            logits = ops::all_columns(&logits, self.vocab_size, group)?;
        }
        if self.logits_scaling != 1.0 {
            logits = ops::divided(&logits, self.logits_scaling)?;
        }
        match self.final_logit_softcapping {
            Some(cap) => ops::soft_capped(&logits, cap),
            None => Ok(logits),
        }
    }

    fn head(&self) -> &Linear {
        self.lm_head.as_ref().unwrap_or(self.embed_tokens.as_linear())
    }
}

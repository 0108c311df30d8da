//! StreamingLLM as its paper describes it (Xiao et al., arXiv 2309.17453, section 3.2), in f64 and without MLX: keys are
//! kept as they were before RoPE, and at every step each is rotated to the position that it has in the cache then.
//! Slow, and shares no code with the library but the frequencies of scaled RoPE, which have a test of their own.

use std::collections::HashMap;
use std::f64::consts::PI;
use std::fs;
use std::path::Path;

use mlx_lm::models::config::{Activation, DecoderConfig, NormPlacement};
use mlx_lm::models::rope::{RopeConfig, RopeScaling};
use safetensors::SafeTensors;

/// A decoder with its cache.
pub struct Paper {
    weights: HashMap<String, Vec<f64>>,
    config: DecoderConfig,
    layers: Vec<Layer>,
    pub evicted: usize,
}

/// `[token][n_kv_heads · head_dim]`.
struct Layer {
    /// None where it does not rotate.
    frequencies: Vec<f64>,
    /// What RoPE multiplies besides rotating (yarn, longrope).
    magnitude: f64,
    /// Before RoPE.
    keys: Vec<Vec<f64>>,
    values: Vec<Vec<f64>>,
}

impl Paper {
    /// An f32 checkpoint in one file.
    pub fn load(root: &Path, config: &DecoderConfig) -> Self {
        let bytes = fs::read(root.join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        let floats = |data: &[u8]| {
            data.chunks(4).map(|four| f64::from(f32::from_le_bytes(four.try_into().unwrap()))).collect::<Vec<_>>()
        };
        let mut weights: HashMap<String, Vec<f64>> =
            tensors.iter().map(|(name, view)| (name.to_owned(), floats(view.data()))).collect();
        let fused: Vec<String> =
            weights.keys().filter(|name| name.contains("_proj.") && name.contains("qkv")).cloned().collect();
        let (queries, keys) =
            (config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim);
        for name in fused {
            let (attention, mlp) = (name.replace("qkv_proj", "{}"), name.replace("self_attn.qkv_proj", "mlp.{}"));
            let parts: [(&str, &[(&str, i32)]); 2] = [
                (&attention, &[("q_proj", queries), ("k_proj", keys), ("v_proj", keys)]),
                (&mlp, &[("gate_proj", config.intermediate_size), ("up_proj", config.intermediate_size)]),
            ];
            for ((pattern, parts), whole) in parts.into_iter().zip(["qkv_proj", "gate_up_proj"]) {
                let mut rest = weights.remove(&pattern.replace("{}", whole)).unwrap();
                for (part, rows) in parts {
                    let after = rest.split_off((rows * config.hidden_size) as usize);
                    weights.insert(pattern.replace("{}", part), std::mem::replace(&mut rest, after));
                }
            }
        }
        let layer = |i| {
            let rope = config.layer(i).rope.as_ref();
            let (frequencies, magnitude) = rope.map_or((Vec::new(), 1.0), rotation);
            Layer { frequencies, magnitude, keys: Vec::new(), values: Vec::new() }
        };
        let layers = (0..config.num_hidden_layers as usize).map(layer).collect();
        Paper { weights, config: config.clone(), layers, evicted: 0 }
    }

    pub fn len(&self) -> usize {
        self.layers[0].keys.len()
    }

    /// Forget tokens `from..to` of the cache.
    pub fn evict(&mut self, from: usize, to: usize) {
        for Layer { keys, values, .. } in &mut self.layers {
            keys.drain(from..to);
            values.drain(from..to);
        }
        self.evicted += to - from;
    }

    /// The logits after the last of `tokens`, which follow the cache.
    pub fn forward(&mut self, tokens: &[u32], sinks: usize) -> Vec<f64> {
        let d = self.config.hidden_size as usize;
        let embed = &self.weights["model.embed_tokens.weight"];
        let multiplier = f64::from(self.config.embedding_multiplier);
        let embedded = |&t: &u32| embed[t as usize * d..][..d].iter().map(|x| x * multiplier).collect();
        let mut x: Vec<Vec<f64>> = tokens.iter().map(embedded).collect();
        for layer in 0..self.layers.len() {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let config = self.config.layer(layer).clone();
            let residual = f64::from(config.residual.multiplier);
            let [before, after, before_mlp, after_mlp] = match config.norms {
                NormPlacement::Before => ["input_layernorm", "", "post_attention_layernorm", ""],
                NormPlacement::After => ["", "post_attention_layernorm", "", "post_feedforward_layernorm"],
                NormPlacement::Around => [
                    "input_layernorm",
                    "post_attention_layernorm",
                    "pre_feedforward_layernorm",
                    "post_feedforward_layernorm",
                ],
            };
            let norm = |paper: &Paper, x: &[f64], part| match part {
                "" => x.to_vec(),
                part => paper.norm(x, &name(part)),
            };
            let normed: Vec<_> = x.iter().map(|x| norm(self, x, before)).collect();
            let attended = self.attend(layer, &normed, sinks);
            for (x, attended) in x.iter_mut().zip(attended) {
                let output = self.linear(&attended, &name("self_attn.o_proj"));
                add(x, residual, &norm(self, &output, after));
                let normed = norm(self, x, before_mlp);
                let gate = self.linear(&normed, &name("mlp.gate_proj"));
                let up = self.linear(&normed, &name("mlp.up_proj"));
                let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| activated(config.activation, *g) * u).collect();
                let output = self.linear(&inner, &name("mlp.down_proj"));
                add(x, residual, &norm(self, &output, after_mlp));
            }
        }
        let last = self.norm(x.last().unwrap(), "model.norm.weight");
        let head =
            if self.weights.contains_key("lm_head.weight") { "lm_head.weight" } else { "model.embed_tokens.weight" };
        let logits = self.linear(&last, head).into_iter().map(|x| x / f64::from(self.config.logits_scaling));
        logits.map(|x| capped(x, self.config.final_logit_softcapping)).collect()
    }

    fn attend(&mut self, layer: usize, x: &[Vec<f64>], sinks: usize) -> Vec<Vec<f64>> {
        let (head_dim, heads, kv_heads) = (
            self.config.head_dim as usize,
            self.config.num_attention_heads as usize,
            self.config.num_key_value_heads as usize,
        );
        let name = |part: &str| format!("model.layers.{layer}.self_attn.{part}.weight");
        let offset = self.layers[layer].keys.len();
        for x in x {
            let biased = |part: &str| self.biased(self.linear(x, &name(part)), &name(part));
            let (key, value) = (self.head_norm(biased("k_proj"), &name("k_norm")), biased("v_proj"));
            self.layers[layer].keys.push(key);
            self.layers[layer].values.push(value);
        }
        let Layer { keys, values, .. } = &self.layers[layer];
        let config = self.config.layer(layer);
        let window = self.config.layer(layer).sliding_window.map_or(usize::MAX, |window| window as usize);
        let sees = |i: usize, j: usize| j <= i && (i - j < window || (self.evicted > 0 && j < sinks));
        let mut output = Vec::new();
        for (row, x) in x.iter().enumerate() {
            let i = offset + row;
            let query = self.biased(self.linear(x, &name("q_proj")), &name("q_proj"));
            let query = self.head_norm(query, &name("q_norm"));
            let mut merged = Vec::new();
            for head in 0..heads {
                let part = |v: &[f64], head: usize| v[head * head_dim..][..head_dim].to_vec();
                let kv_head = head * kv_heads / heads;
                let query = self.rotate(layer, part(&query, head), i);
                let seen: Vec<usize> = (0..=i).filter(|&j| sees(i, j)).collect();
                let scores = seen.iter().map(|&j| dot(&query, &self.rotate(layer, part(&keys[j], kv_head), j)));
                let scores: Vec<f64> = scores
                    .map(|score| capped(score * f64::from(config.attention_scale), config.attn_logit_softcapping))
                    .collect();
                let most = scores.iter().copied().fold(f64::MIN, f64::max);
                let shares: Vec<f64> = scores.iter().map(|score| (score - most).exp()).collect();
                let total: f64 = shares.iter().sum();
                let mut mixed = vec![0.0; head_dim];
                for (&j, share) in seen.iter().zip(&shares) {
                    for (mixed, value) in mixed.iter_mut().zip(part(&values[j], kv_head)) {
                        *mixed += share / total * value;
                    }
                }
                merged.extend(mixed);
            }
            output.push(merged);
        }
        output
    }

    fn rotate(&self, layer: usize, v: Vec<f64>, position: usize) -> Vec<f64> {
        let Layer { frequencies, magnitude, .. } = &self.layers[layer];
        let half = frequencies.len();
        let turned = |k: usize| {
            if k >= 2 * half {
                return v[k];
            }
            let (sin, cos) = (position as f64 * frequencies[k % half]).sin_cos();
            let (x, y) = (v[k % half], v[k % half + half]);
            magnitude * if k < half { x * cos - y * sin } else { y * cos + x * sin }
        };
        (0..v.len()).map(turned).collect()
    }

    /// With the bias of the layer with this weight, if it has one.
    fn biased(&self, mut y: Vec<f64>, name: &str) -> Vec<f64> {
        if let Some(bias) = self.weights.get(&name.replace(".weight", ".bias")) {
            add(&mut y, 1.0, bias);
        }
        y
    }

    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        self.weights[name].chunks(x.len()).map(|row| dot(row, x)).collect()
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let mean_square = dot(x, x) / x.len() as f64;
        let scale = 1.0 / (mean_square + f64::from(self.config.rms_norm_eps)).sqrt();
        let offset = f64::from(self.config.norm_weight_offset);
        x.iter().zip(&self.weights[name]).map(|(x, w)| x * scale * (w + offset)).collect()
    }

    /// The norm of each head, or of all together, where the checkpoint has it.
    fn head_norm(&self, x: Vec<f64>, name: &str) -> Vec<f64> {
        match self.weights.get(name) {
            Some(weight) => x.chunks(weight.len()).flat_map(|part| self.norm(part, name)).collect(),
            None => x,
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &mut [f64], multiplier: f64, b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += multiplier * b);
}

fn activated(activation: Activation, x: f64) -> f64 {
    match activation {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::GeluTanh => x / 2.0 * (1.0 + ((2.0 / PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
    }
}

fn capped(x: f64, cap: Option<f32>) -> f64 {
    cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh())
}

/// Frequencies of each pair, in short contexts, and the magnitude.
fn rotation(rope: &RopeConfig) -> (Vec<f64>, f64) {
    let plain = |i: i32| rope.rope_theta.powf(-2.0 * f64::from(i) / f64::from(rope.rotary_dim));
    let pairs = 0..rope.rotary_dim / 2;
    match &rope.scaling {
        RopeScaling::Default => (pairs.map(plain).collect(), 1.0),
        RopeScaling::Linear { factor } => (pairs.map(|i| plain(i) / factor).collect(), 1.0),
        RopeScaling::Llama3 { .. } => (rope.frequencies(), 1.0),
        RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
            (rope.frequencies(), *attention_factor)
        }
    }
}

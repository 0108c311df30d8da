//! StreamingLLM as its paper describes it (Xiao et al., arXiv 2309.17453, section 3.2), in f64 and without MLX: keys are
//! kept as they were before RoPE, and at every step each is rotated to the position that it has in the cache then.
//! Slow, and shares no code with the library but the frequencies of scaled RoPE, which have a test of their own.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use mlx_lm::models::config::DecoderConfig;
use mlx_lm::models::rope::RopeScaling;
use safetensors::SafeTensors;

/// A decoder with its cache.
pub struct Paper {
    weights: HashMap<String, Vec<f64>>,
    config: DecoderConfig,
    frequencies: Vec<f64>,
    /// What RoPE multiplies besides rotating (yarn).
    magnitude: f64,
    layers: Vec<Layer>,
    pub evicted: usize,
}

/// `[token][n_kv_heads · head_dim]`.
#[derive(Clone, Default)]
struct Layer {
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
        let weights = tensors.iter().map(|(name, view)| (name.to_owned(), floats(view.data()))).collect();
        let half = config.head_dim / 2;
        let rope = config.layer(0).rope.as_ref().unwrap();
        let plain = |i| rope.rope_theta.powf(-2.0 * f64::from(i) / f64::from(config.head_dim));
        let (frequencies, magnitude) = match rope.scaling {
            RopeScaling::Default => ((0..half).map(plain).collect(), 1.0),
            RopeScaling::Linear { factor } => ((0..half).map(|i| plain(i) / factor).collect(), 1.0),
            RopeScaling::Llama3 { .. } => (rope.frequencies(config.head_dim), 1.0),
            RopeScaling::Yarn { attention_factor, .. } => (rope.frequencies(config.head_dim), attention_factor),
        };
        let layers = vec![Layer::default(); config.num_hidden_layers as usize];
        Paper { weights, config: config.clone(), frequencies, magnitude, layers, evicted: 0 }
    }

    pub fn len(&self) -> usize {
        self.layers[0].keys.len()
    }

    /// Forget tokens `from..to` of the cache.
    pub fn evict(&mut self, from: usize, to: usize) {
        for Layer { keys, values } in &mut self.layers {
            keys.drain(from..to);
            values.drain(from..to);
        }
        self.evicted += to - from;
    }

    /// The logits after the last of `tokens`, which follow the cache.
    pub fn forward(&mut self, tokens: &[u32], sinks: usize) -> Vec<f64> {
        let d = self.config.hidden_size as usize;
        let embed = &self.weights["model.embed_tokens.weight"];
        let mut x: Vec<Vec<f64>> = tokens.iter().map(|&t| embed[t as usize * d..][..d].to_vec()).collect();
        for layer in 0..self.layers.len() {
            let name = |part: &str| format!("model.layers.{layer}.{part}.weight");
            let normed: Vec<_> = x.iter().map(|x| self.norm(x, &name("input_layernorm"))).collect();
            let attended = self.attend(layer, &normed, sinks);
            for (x, attended) in x.iter_mut().zip(attended) {
                add(x, &self.linear(&attended, &name("self_attn.o_proj")));
                let normed = self.norm(x, &name("post_attention_layernorm"));
                let gate = self.linear(&normed, &name("mlp.gate_proj"));
                let up = self.linear(&normed, &name("mlp.up_proj"));
                let inner: Vec<f64> = gate.iter().zip(&up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
                add(x, &self.linear(&inner, &name("mlp.down_proj")));
            }
        }
        let last = self.norm(x.last().unwrap(), "model.norm.weight");
        let head =
            if self.weights.contains_key("lm_head.weight") { "lm_head.weight" } else { "model.embed_tokens.weight" };
        self.linear(&last, head)
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
            let key = self.head_norm(self.linear(x, &name("k_proj")), &name("k_norm"));
            let value = self.linear(x, &name("v_proj"));
            self.layers[layer].keys.push(key);
            self.layers[layer].values.push(value);
        }
        let Layer { keys, values } = &self.layers[layer];
        let window = self.config.layer(layer).sliding_window.map_or(usize::MAX, |window| window as usize);
        let sees = |i: usize, j: usize| j <= i && (i - j < window || (self.evicted > 0 && j < sinks));
        let mut output = Vec::new();
        for (row, x) in x.iter().enumerate() {
            let i = offset + row;
            let query = self.head_norm(self.linear(x, &name("q_proj")), &name("q_norm"));
            let mut merged = Vec::new();
            for head in 0..heads {
                let part = |v: &[f64], head: usize| v[head * head_dim..][..head_dim].to_vec();
                let kv_head = head * kv_heads / heads;
                let query = self.rotate(part(&query, head), i);
                let seen: Vec<usize> = (0..=i).filter(|&j| sees(i, j)).collect();
                let scores = seen.iter().map(|&j| dot(&query, &self.rotate(part(&keys[j], kv_head), j)));
                let scores: Vec<f64> = scores.map(|score| score / (head_dim as f64).sqrt()).collect();
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

    fn rotate(&self, v: Vec<f64>, position: usize) -> Vec<f64> {
        let half = v.len() / 2;
        let turned = |k: usize| {
            let (sin, cos) = (position as f64 * self.frequencies[k % half]).sin_cos();
            let (x, y) = (v[k % half], v[k % half + half]);
            self.magnitude * if k < half { x * cos - y * sin } else { y * cos + x * sin }
        };
        (0..v.len()).map(turned).collect()
    }

    fn linear(&self, x: &[f64], name: &str) -> Vec<f64> {
        self.weights[name].chunks(x.len()).map(|row| dot(row, x)).collect()
    }

    fn norm(&self, x: &[f64], name: &str) -> Vec<f64> {
        let mean_square = dot(x, x) / x.len() as f64;
        let scale = 1.0 / (mean_square + f64::from(self.config.rms_norm_eps)).sqrt();
        x.iter().zip(&self.weights[name]).map(|(x, w)| x * scale * w).collect()
    }

    /// Qwen3's norm of each head, where the checkpoint has it.
    fn head_norm(&self, x: Vec<f64>, name: &str) -> Vec<f64> {
        if !self.weights.contains_key(name) {
            return x;
        }
        x.chunks(self.config.head_dim as usize).flat_map(|head| self.norm(head, name)).collect()
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn add(a: &mut [f64], b: &[f64]) {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
}

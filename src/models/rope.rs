//! Rotary position embedding: default, linear, llama3 and yarn.
//!
//! References: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071); `transformers.modeling_rope_utils`;
//! `mlx_lm.models.rope_utils`. Rotations are of the half-split kind: component i turns with component i + head_dim/2.

use std::f64::consts::PI;

use mlx_rs::Array;
use mlx_rs::{fast, ops};

use super::config::Fields;
use crate::backend::Rotation;
use crate::error::Result;

/// `rope_theta` with `rope_scaling`, or the newer `rope_parameters` that holds both.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub rope_theta: f64,
    /// What is done to the series.
    pub scaling: RopeScaling,
}

/// How the frequencies are changed to reach beyond the length of the original training.
#[derive(Debug, Clone, PartialEq)]
#[allow(missing_docs)] // the fields are config.json's
pub enum RopeScaling {
    /// Nothing.
    Default,
    /// Every frequency divided by `factor`.
    Linear { factor: f64 },
    /// Low frequencies divided by `factor`, high ones kept, those between blended.
    Llama3 { factor: f64, low_freq_factor: f64, high_freq_factor: f64, original_max_position_embeddings: f64 },
    /// The same idea with a ramp over dimensions, and longer vectors.
    Yarn {
        factor: f64,
        original_max_position_embeddings: f64,
        beta_fast: f64,
        beta_slow: f64,
        /// Rotated vectors are multiplied by this.
        attention_factor: f64,
        /// Whether the ends of the ramp are rounded to whole dimensions.
        truncate: bool,
    },
}

impl RopeConfig {
    pub(super) fn read(fields: &Fields, max_position_embeddings: i32) -> Result<Self> {
        let parameters = fields.optional_object("rope_parameters")?;
        let rope_theta = match (fields.optional_positive("rope_theta")?, &parameters) {
            (Some(theta), _) => theta,
            (None, Some(parameters)) => parameters.optional_positive("rope_theta")?.unwrap_or(1e4),
            (None, None) => 1e4,
        };
        if rope_theta <= 1.0 {
            return Err(fields.error("rope_theta", rope_theta, "a number above 1"));
        }
        if parameters.as_ref().is_some_and(Fields::has_nested) {
            return Err(fields.unsupported("rope_parameters by layer type", "supported: one set for all layers"));
        }
        let scaling = match fields.optional_object("rope_scaling")?.or(parameters) {
            Some(block) => RopeScaling::read(&block, max_position_embeddings)?,
            None => RopeScaling::Default,
        };
        Ok(RopeConfig { rope_theta, scaling })
    }

    /// How far each pair of components turns from one position to the next, in radians.
    pub fn frequencies(&self, head_dim: i32) -> Vec<f64> {
        self.inverse_frequencies(head_dim).into_iter().map(f64::recip).collect()
    }

    /// Wavelengths over 2π, one for each pair of components: position p turns pair i by p / frequency(i).
    fn inverse_frequencies(&self, head_dim: i32) -> Vec<f64> {
        let dims = f64::from(head_dim);
        let plain = (0..head_dim / 2).map(|i| self.rope_theta.powf(2.0 * f64::from(i) / dims));
        match self.scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::Linear { factor } => plain.map(|f| f * factor).collect(),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
                plain
                    .map(|f| {
                        let rotations = original_max_position_embeddings / (2.0 * PI * f);
                        let keep = (rotations - low_freq_factor) / (high_freq_factor - low_freq_factor);
                        if rotations > high_freq_factor {
                            f
                        } else if rotations < low_freq_factor {
                            f * factor
                        } else {
                            f / ((1.0 - keep) / factor + keep)
                        }
                    })
                    .collect()
            }
            RopeScaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } => {
                let dimension_of = |rotations: f64| {
                    dims * (original_max_position_embeddings / (rotations * 2.0 * PI)).ln()
                        / (2.0 * self.rope_theta.ln())
                };
                let (mut low, mut high) = (dimension_of(beta_fast), dimension_of(beta_slow));
                if truncate {
                    (low, high) = (low.floor(), high.ceil());
                }
                (low, high) = (low.max(0.0), high.min(dims - 1.0));
                if low == high {
                    high += 0.001;
                }
                plain
                    .enumerate()
                    .map(|(i, f)| {
                        let interpolate = ((i as f64 - low) / (high - low)).clamp(0.0, 1.0);
                        f / (interpolate / factor + (1.0 - interpolate))
                    })
                    .collect()
            }
        }
    }
}

impl RopeScaling {
    fn read(block: &Fields, max_position_embeddings: i32) -> Result<Self> {
        let kind = match block.optional_str("rope_type")? {
            Some(kind) => kind,
            None => block.optional_str("type")?.unwrap_or("default"),
        };
        let or = |key: &str, default: f64| block.optional_positive(key).map(|found| found.unwrap_or(default));
        Ok(match kind {
            "default" => RopeScaling::Default,
            "linear" => RopeScaling::Linear { factor: block.positive("factor")? },
            "llama3" => {
                let (low, high) = (or("low_freq_factor", 1.0)?, or("high_freq_factor", 4.0)?);
                if low >= high {
                    return Err(block.error("high_freq_factor", high, format!("more than low_freq_factor ({low})")));
                }
                RopeScaling::Llama3 {
                    factor: block.positive("factor")?,
                    low_freq_factor: low,
                    high_freq_factor: high,
                    original_max_position_embeddings: or("original_max_position_embeddings", 8192.0)?,
                }
            }
            "yarn" => {
                let factor = block.positive("factor")?;
                let magnitude = |mscale: f64| if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 };
                let mscales = (block.optional_positive("mscale")?, block.optional_positive("mscale_all_dim")?);
                let attention_factor = match (block.optional_positive("attention_factor")?, mscales) {
                    (Some(given), _) => given,
                    (None, (Some(mscale), Some(all_dim))) => magnitude(mscale) / magnitude(all_dim),
                    (None, _) => magnitude(1.0),
                };
                RopeScaling::Yarn {
                    factor,
                    original_max_position_embeddings: or(
                        "original_max_position_embeddings",
                        f64::from(max_position_embeddings),
                    )?,
                    beta_fast: or("beta_fast", 32.0)?,
                    beta_slow: or("beta_slow", 1.0)?,
                    attention_factor,
                    truncate: block.optional_bool("truncate")?.unwrap_or(true),
                }
            }
            other => {
                return Err(
                    block.unsupported(format!("RoPE type {other:?}"), "supported: default, linear, llama3, yarn")
                );
            }
        })
    }
}

/// The rotation, ready to apply.
#[derive(Debug, Clone)]
pub struct Rope {
    head_dim: i32,
    /// Base and position scale where MLX can compute the frequencies itself.
    base: Option<f32>,
    scale: f32,
    freqs: Option<Array>,
    /// For devices that rotate by themselves.
    rotation: Rotation,
}

impl Rope {
    /// For heads of `head_dim` components.
    pub fn new(config: &RopeConfig, head_dim: i32) -> Self {
        let rotation = Rotation { frequencies: config.frequencies(head_dim).into(), factor: 1.0 };
        let mut rope = Rope { head_dim, base: None, scale: 1.0, freqs: None, rotation };
        match config.scaling {
            RopeScaling::Default => rope.base = Some(config.rope_theta as f32),
            RopeScaling::Linear { factor } => {
                rope.base = Some(config.rope_theta as f32);
                rope.scale = (1.0 / factor) as f32;
            }
            RopeScaling::Llama3 { .. } | RopeScaling::Yarn { .. } => {
                let freqs: Vec<f32> = config.inverse_frequencies(head_dim).iter().map(|&f| f as f32).collect();
                rope.freqs = Some(Array::from_slice(&freqs, &[head_dim / 2]));
            }
        }
        if let RopeScaling::Yarn { attention_factor, .. } = config.scaling {
            rope.rotation.factor = attention_factor as f32;
        }
        rope
    }

    pub(crate) fn rotation(&self) -> &Rotation {
        &self.rotation
    }

    /// Rotate `x` `[B, heads, L, head_dim]`, whose first row is at position `offset`.
    pub fn apply(&self, x: &Array, offset: i32) -> Result<Array> {
        let rotate =
            |x: &Array| fast::rope(x, self.head_dim, false, self.base, self.scale, offset, self.freqs.as_ref());
        let factor = self.rotation.factor;
        Ok(if factor == 1.0 {
            rotate(x)?
        } else {
            let factor = Array::from_f32(factor).as_dtype(x.dtype())?;
            rotate(&ops::multiply(x, factor)?)?
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Map, Value};
    use std::path::Path;

    /// Frequencies and magnitude as transformers computes them, for every kind of scaling.
    #[test]
    fn frequencies_are_those_of_transformers() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/rope.json");
        let cases: Vec<Map<String, Value>> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        assert!(cases.len() >= 8);
        for case in &cases {
            let fields = Fields::new(Path::new("rope.json"), case);
            let (head_dim, positions) =
                (fields.size("head_dim").unwrap(), fields.size("max_position_embeddings").unwrap());
            let config = RopeConfig::read(&fields, positions).unwrap();
            let factor = match config.scaling {
                RopeScaling::Yarn { attention_factor, .. } => attention_factor,
                _ => 1.0,
            };
            assert!((factor - case["factor"].as_f64().unwrap()).abs() < 1e-6, "{}: {factor}", case["name"]);
            let expected = case["frequencies"].as_array().unwrap();
            let found = config.inverse_frequencies(head_dim);
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                // transformers computes in f32.
                let ratio = 1.0 / found / expected.as_f64().unwrap();
                assert!((ratio - 1.0).abs() < 2e-5, "{}: {} for {expected}", case["name"], 1.0 / found);
            }
        }
    }
}

//! Rotary position embedding: default, linear, llama3, yarn and longrope.
//!
//! References: RoFormer (arXiv 2104.09864); YaRN (arXiv 2309.00071); LongRoPE (arXiv 2402.13753); `transformers.modeling_rope_utils`;
//! `mlx_lm.models.rope_utils`. Rotations are of the half-split kind: component i turns with component i + head_dim/2.

use std::f64::consts::PI;

use mlx_rs::ops::concatenate;
use mlx_rs::ops::indexing::TryIndexOp;
use mlx_rs::{Array, fast};

use super::config::{Defaults, FULL_ATTENTION, Fields, SLIDING_ATTENTION};
use crate::backend::{Positions, Rotation, Rotations};
use crate::error::Result;
use crate::ops;

/// `rope_theta` with `rope_scaling`, or the newer `rope_parameters` that holds both.
#[derive(Debug, Clone, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies.
    pub rope_theta: f64,
    /// How many components of a head rotate, from the first on.
    pub rotary_dim: i32,
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
    /// Each wavelength multiplied with a factor of its own, others in contexts that are longer than the original's, and longer
    /// vectors.
    LongRope {
        short_factor: Vec<f64>,
        long_factor: Vec<f64>,
        original_max_position_embeddings: f64,
        attention_factor: f64,
    },
}

/// What is known of a model where the rotation of its heads is read.
pub(super) struct RopeFields<'a> {
    pub head_dim: i32,
    pub max_position_embeddings: i32,
    pub defaults: &'a Defaults,
}

impl RopeConfig {
    /// Of layers without a window, in families where those that have one rotate otherwise.
    pub(super) fn read(fields: &Fields, of: RopeFields) -> Result<Self> {
        let mut parameters = fields.optional_object("rope_parameters")?;
        if let Some(kinds) = parameters.take_if(|parameters| parameters.has_nested()) {
            if !of.defaults.rope_by_layer_type {
                return Err(fields.unsupported("rope_parameters by layer type", "supported: one set for all layers"));
            }
            parameters = kinds.optional_object(FULL_ATTENTION)?;
        }
        let setting = |key: &str| match (fields.optional_positive(key)?, &parameters) {
            (None, Some(parameters)) => parameters.optional_positive(key),
            (found, _) => Ok(found),
        };
        let rope_theta = setting("rope_theta")?.unwrap_or(of.defaults.rope_theta);
        if rope_theta <= 1.0 {
            return Err(fields.error("rope_theta", rope_theta, "a number above 1"));
        }
        let share = setting("partial_rotary_factor")?.unwrap_or(1.0);
        if share != 1.0 && !of.defaults.partial_rotation {
            return Err(fields.unsupported("partial_rotary_factor", "supported: heads that rotate as a whole"));
        }
        let rotary_dim = (f64::from(of.head_dim) * share) as i32;
        if share > 1.0 || rotary_dim < 2 || rotary_dim % 2 != 0 {
            let expected = format!("a share of heads of {} that is an even number, at most all", of.head_dim);
            return Err(fields.error("partial_rotary_factor", share, expected));
        }
        let original = fields.optional_positive("original_max_position_embeddings")?;
        let scaling = match fields.optional_object("rope_scaling")?.or(parameters) {
            Some(block) => RopeScaling::read(&block, of.max_position_embeddings, original, rotary_dim)?,
            None => RopeScaling::Default,
        };
        Ok(RopeConfig { rope_theta, rotary_dim, scaling })
    }

    /// Of layers that slide a window, in families where those have a rotation of their own.
    pub(super) fn read_sliding(fields: &Fields, head_dim: i32, max_position_embeddings: i32) -> Result<Self> {
        let kinds = fields.optional_object("rope_parameters")?.filter(Fields::has_nested);
        let parameters = kinds.map(|kinds| kinds.optional_object(SLIDING_ATTENTION)).transpose()?.flatten();
        let (rope_theta, scaling) = match parameters {
            Some(block) => (
                block.optional_positive("rope_theta")?,
                RopeScaling::read(&block, max_position_embeddings, None, head_dim)?,
            ),
            None => (fields.optional_positive("rope_local_base_freq")?, RopeScaling::Default),
        };
        Ok(RopeConfig { rope_theta: rope_theta.unwrap_or(1e4), rotary_dim: head_dim, scaling })
    }

    /// How far each pair of components turns from one position to the next, in radians, in short contexts.
    pub fn frequencies(&self) -> Vec<f64> {
        self.wavelengths(false).into_iter().map(f64::recip).collect()
    }

    /// How heads rotate, in short contexts and in long ones.
    pub(crate) fn rotations(&self) -> Rotations {
        let rotation = |is_long| Rotation {
            frequencies: self.wavelengths(is_long).into_iter().map(f64::recip).collect(),
            factor: self.attention_factor() as f32,
        };
        let long = match self.scaling {
            RopeScaling::LongRope { original_max_position_embeddings, .. } => {
                Some((original_max_position_embeddings as i32, rotation(true)))
            }
            _ => None,
        };
        Rotations::new(rotation(false), long)
    }

    /// What rotated vectors are multiplied with.
    fn attention_factor(&self) -> f64 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor
            }
            _ => 1.0,
        }
    }

    /// Over 2π, one for each pair of components: position p turns pair i by p / wavelength(i).
    fn wavelengths(&self, is_long: bool) -> Vec<f64> {
        let dims = f64::from(self.rotary_dim);
        let plain = (0..self.rotary_dim / 2).map(|i| self.rope_theta.powf(2.0 * f64::from(i) / dims));
        match &self.scaling {
            RopeScaling::Default => plain.collect(),
            RopeScaling::LongRope { short_factor, long_factor, .. } => {
                let factors = if is_long { long_factor } else { short_factor };
                plain.zip(factors).map(|(f, factor)| f * factor).collect()
            }
            &RopeScaling::Linear { factor } => plain.map(|f| f * factor).collect(),
            &RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
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
            &RopeScaling::Yarn { factor, original_max_position_embeddings, beta_fast, beta_slow, truncate, .. } => {
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
    /// `original` is what config.json says of it outside the block.
    fn read(block: &Fields, max_position_embeddings: i32, original: Option<f64>, rotary_dim: i32) -> Result<Self> {
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
            "longrope" | "su" => {
                let original = block.optional_positive("original_max_position_embeddings")?.or(original);
                let original = match original {
                    Some(original) => original,
                    None => block.positive("original_max_position_embeddings")?,
                };
                let extension = match block.optional_positive("factor")? {
                    Some(factor) => factor,
                    None => f64::from(max_position_embeddings) / original,
                };
                let attention_factor = match block.optional_positive("attention_factor")? {
                    Some(given) => given,
                    None if extension <= 1.0 => 1.0,
                    None => (1.0 + extension.ln() / original.ln()).sqrt(),
                };
                RopeScaling::LongRope {
                    short_factor: block.positives("short_factor", rotary_dim as usize / 2)?,
                    long_factor: block.positives("long_factor", rotary_dim as usize / 2)?,
                    original_max_position_embeddings: original,
                    attention_factor,
                }
            }
            other => {
                let supported = "supported: default, linear, llama3, yarn, longrope";
                return Err(block.unsupported(format!("RoPE type {other:?}"), supported));
            }
        })
    }
}

/// The rotation, ready to apply.
#[derive(Debug, Clone)]
pub struct Rope {
    rotary_dim: i32,
    /// Base and position scale where MLX can compute the frequencies itself.
    base: Option<f32>,
    scale: f32,
    /// Wavelengths where it cannot, in short contexts and in long ones.
    freqs: [Option<Array>; 2],
    /// For devices that rotate by themselves.
    rotations: Rotations,
}

impl Rope {
    /// Of heads of at least `config.rotary_dim` components.
    pub fn new(config: &RopeConfig) -> Self {
        let mut rope = Rope {
            rotary_dim: config.rotary_dim,
            base: None,
            scale: 1.0,
            freqs: [None, None],
            rotations: config.rotations(),
        };
        match config.scaling {
            RopeScaling::Default => rope.base = Some(config.rope_theta as f32),
            RopeScaling::Linear { factor } => {
                rope.base = Some(config.rope_theta as f32);
                rope.scale = (1.0 / factor) as f32;
            }
            RopeScaling::Llama3 { .. } | RopeScaling::Yarn { .. } | RopeScaling::LongRope { .. } => {
                rope.freqs = [false, true].map(|is_long| {
                    let freqs: Vec<f32> = config.wavelengths(is_long).iter().map(|&f| f as f32).collect();
                    Some(Array::from_slice(&freqs, &[config.rotary_dim / 2]))
                });
            }
        }
        rope
    }

    pub(crate) fn rotations(&self) -> &Rotations {
        &self.rotations
    }

    /// Rotate `x` `[B, heads, L, head_dim]`, whose rows are at these positions.
    pub fn apply(&self, x: &Array, at: &Positions) -> Result<Array> {
        let rotation = self.rotations.of(at.context_size);
        let freqs = &self.freqs[usize::from(self.rotations.is_long(at.context_size))];
        let rotate =
            |x: &Array| fast::rope(x, self.rotary_dim, false, self.base, self.scale, at.offset, freqs.as_ref());
        if rotation.factor == 1.0 {
            return Ok(rotate(x)?);
        }
        let rotated = ops::scaled(&x.try_index((.., .., .., ..self.rotary_dim))?, rotation.factor)?;
        let rest = x.try_index((.., .., .., self.rotary_dim..))?;
        Ok(rotate(&concatenate(&[rotated, rest], 3)?)?)
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
            let defaults = Defaults::default();
            let of = RopeFields { head_dim, max_position_embeddings: positions, defaults: &defaults };
            let config = RopeConfig::read(&fields, of).unwrap();
            let factor = config.attention_factor();
            assert!((factor - case["factor"].as_f64().unwrap()).abs() < 1e-6, "{}: {factor}", case["name"]);
            let expected = case["frequencies"].as_array().unwrap();
            let found = config.wavelengths(case.get("long") == Some(&Value::Bool(true)));
            assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                // transformers computes in f32.
                let ratio = 1.0 / found / expected.as_f64().unwrap();
                assert!((ratio - 1.0).abs() < 2e-5, "{}: {} for {expected}", case["name"], 1.0 / found);
            }
        }
    }
}

//! Which layers become how many bits. Reference: `mlx_lm.convert` (`mixed_quant_predicate_builder`) and `mlx_lm.utils`
//! (`quantize_model`).

use regex::Regex;
use serde_json::{Value, json};

use crate::backend::{BITS, GROUP_SIZES, Packing};
use crate::error::{Error, Result};

/// How to quantize a model.
#[derive(Debug, Clone, Default)]
pub struct QuantizeOptions {
    /// Bits of a value, one of [`BITS`]; 4 where this is `None`.
    pub bits: Option<i32>,
    /// Values that share a scale, one of [`GROUP_SIZES`]; 64 where this is `None`. Layers whose rows are not whole groups stay
    /// as they are.
    pub group_size: Option<i32>,
    /// More bits for some layers; without one, what mlx-lm does for the model's family.
    pub recipe: Option<Recipe>,
    /// Exceptions from all of that, of which the first that matches a layer decides.
    pub overrides: Vec<Override>,
}

/// Fewer bits for most layers, more for those that suffer most: `v_proj` and `down_proj` of the first and last layers and
/// of every third between them, and `lm_head`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recipe {
    low_bits: i32,
    high_bits: i32,
}

impl Recipe {
    /// By their names in mlx-lm: bits of most layers, and of the others.
    const ALL: [(&str, Recipe); 4] = [
        ("mixed_2_6", Recipe { low_bits: 2, high_bits: 6 }),
        ("mixed_3_4", Recipe { low_bits: 3, high_bits: 4 }),
        ("mixed_3_6", Recipe { low_bits: 3, high_bits: 6 }),
        ("mixed_4_6", Recipe { low_bits: 4, high_bits: 6 }),
    ];

    /// What [`Recipe::from_name`] takes.
    pub fn names() -> impl Iterator<Item = &'static str> {
        Recipe::ALL.into_iter().map(|(name, _)| name)
    }

    /// # Errors
    /// When there is no recipe of this name.
    pub fn from_name(name: &str) -> Result<Self> {
        let known = Recipe::ALL.into_iter().find(|(known, _)| *known == name);
        let names = || Recipe::names().collect::<Vec<_>>().join(", ");
        Ok(known
            .ok_or_else(|| Error::setting("quant_predicate", format!("{name:?}"), format!("one of {}", names())))?
            .1)
    }

    /// Bits of `module`, in a model of so many layers.
    fn bits(self, module: &str, layers: i32) -> i32 {
        let number = module.split('.').find_map(|part| part.parse::<i32>().ok());
        let (layer, eighth) = (number.unwrap_or(0), layers / 8);
        let use_more = layer < eighth || layer >= 7 * layers / 8 || (layer - eighth).rem_euclid(3) == 2;
        let has = |part: &str| module.contains(part);
        match has("lm_head") || (use_more && (has("v_proj") || has("down_proj"))) {
            true => self.high_bits,
            false => self.low_bits,
        }
    }
}

/// What is done with the layers whose path a regular expression matches somewhere.
#[derive(Debug, Clone)]
pub struct Override {
    modules: Regex,
    /// `None` leaves them as they are.
    packing: Option<Packing>,
}

impl Override {
    /// From `REGEX=BITS:GROUP` or `REGEX=none`, such as `lm_head=8:64`.
    ///
    /// # Errors
    /// When it is neither.
    pub fn parse(text: &str) -> Result<Self> {
        let problem = |problem: String| Error::setting("q_override", format!("{text:?}"), problem);
        let form = || problem("REGEX=BITS:GROUP or REGEX=none, such as lm_head=8:64".into());
        let (regex, packing) = text.rsplit_once('=').ok_or_else(form)?;
        let packing = match packing {
            "none" => None,
            _ => {
                let (bits, group_size) = packing.split_once(':').ok_or_else(form)?;
                let number = |text: &str| text.parse().map_err(|_| form());
                let packing = Packing { bits: number(bits)?, group_size: number(group_size)? };
                check("q_override", packing.bits, &BITS)?;
                check("q_override", packing.group_size, &GROUP_SIZES)?;
                Some(packing)
            }
        };
        let modules = Regex::new(regex).map_err(|error| {
            // The last line says what is wrong, those before it show where.
            let error = error.to_string();
            problem(format!("a regular expression before its last `=`: {}", error.lines().last().unwrap_or_default()))
        })?;
        Ok(Override { modules, packing })
    }
}

fn check(setting: &'static str, found: i32, known: &[i32]) -> Result<()> {
    let list = || known.iter().map(i32::to_string).collect::<Vec<_>>().join(", ");
    match known.contains(&found) {
        true => Ok(()),
        false => Err(Error::setting(setting, found, format!("one of {}", list()))),
    }
}

/// What mlx-lm keeps in 8 bits where its user names no recipe (a model's `quant_predicate`).
fn is_sensitive(family: &str, module: &str) -> bool {
    let ends = |end: &str| module.ends_with(end);
    family == "granite" && (ends("self_attn.o_proj") || ends("mlp.down_proj") || module == "lm_head")
}

/// What becomes of one layer.
#[derive(Debug, PartialEq)]
pub(super) enum Choice {
    Dense,
    /// As config.json says for all.
    Default,
    /// With its own entry in config.json.
    Own(Packing, Value),
}

impl QuantizeOptions {
    /// # Errors
    /// When MLX has no such packing.
    pub(super) fn default_packing(&self) -> Result<Packing> {
        let bits = self.bits.unwrap_or(Packing::DEFAULT.bits);
        let group_size = self.group_size.unwrap_or(Packing::DEFAULT.group_size);
        check("q_bits", bits, &BITS)?;
        check("q_group_size", group_size, &GROUP_SIZES)?;
        Ok(Packing { bits, group_size })
    }

    /// What becomes of `module`, of a model of so many layers and of this `model_type`, and which of the overrides says so.
    pub(super) fn choose(&self, module: &str, layers: i32, family: &str) -> (Choice, Option<usize>) {
        let matching = self.overrides.iter().position(|other| other.modules.is_match(module));
        let choice = match matching.map(|i| self.overrides[i].packing) {
            Some(None) => Choice::Dense,
            Some(Some(packing)) => {
                let Packing { bits, group_size } = packing;
                Choice::Own(packing, json!({"group_size": group_size, "bits": bits, "mode": "affine"}))
            }
            None => match self.recipe {
                None if is_sensitive(family, module) => {
                    Choice::Own(Packing { bits: 8, group_size: 64 }, json!({"group_size": 64, "bits": 8}))
                }
                None => Choice::Default,
                Some(recipe) => {
                    let bits = recipe.bits(module, layers);
                    let group_size = self.group_size.unwrap_or(Packing::DEFAULT.group_size);
                    // mlx-lm writes what its user left out as null.
                    let entry = json!({"group_size": self.group_size, "bits": bits, "mode": "affine"});
                    Choice::Own(Packing { bits, group_size }, entry)
                }
            },
        };
        (choice, matching)
    }

    /// The override that is number `i`, as it was written, for messages.
    pub(super) fn pattern(&self, i: usize) -> &str {
        self.overrides[i].modules.as_str()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overrides_say_what_is_wrong_with_them() {
        let problem = |text| Override::parse(text).unwrap_err().to_string();
        assert!(problem("lm_head").contains("REGEX=BITS:GROUP or REGEX=none"));
        assert!(problem("lm_head=8").contains("REGEX=BITS:GROUP or REGEX=none"));
        assert!(problem("lm_head=x:64").contains("REGEX=BITS:GROUP or REGEX=none"));
        assert!(problem("lm_head=7:64").contains("q_override is 7, expected one of 2, 3, 4, 5, 6, 8"));
        assert!(problem("lm_head=8:16").contains("q_override is 16, expected one of 32, 64, 128"));
        assert!(problem("lm_(head=8:64").contains("unclosed group"));
        assert!(Override::parse("a=b=none").unwrap().modules.is_match("xa=by"));
    }

    #[test]
    fn the_first_override_that_matches_decides() {
        let overrides = ["layers.0=8:32", "q_proj=none", "layers=3:128"].map(|text| Override::parse(text).unwrap());
        let options = QuantizeOptions { overrides: overrides.into(), ..QuantizeOptions::default() };
        let choose = |module| options.choose(module, 2, "llama");
        assert!(matches!(choose("layers.0.q_proj"), (Choice::Own(Packing { bits: 8, group_size: 32 }, _), Some(0))));
        assert_eq!(choose("layers.1.q_proj"), (Choice::Dense, Some(1)));
        assert!(matches!(choose("layers.1.o_proj"), (Choice::Own(Packing { bits: 3, .. }, _), Some(2))));
        assert_eq!(choose("lm_head"), (Choice::Default, None));
    }
}

//! What loading must notice or let pass.

use std::fs;
use std::path::Path;

use mlx_lm::generate::kv_cache::CacheLimits;
use mlx_lm::{Checkpoint, Model};
use mlx_rs::Array;

use crate::{fixture, unpack_demo};

/// Logits of a few tokens, through an empty cache, of a directory or a pack.
pub fn logits(root: &Path) -> Vec<f32> {
    crate::compute_on_cpu();
    let model = Model::load(&Checkpoint::open(root).unwrap(), |_, _| ()).unwrap();
    let tokens = Array::from_slice(&[3u32, 17, 60], &[1, 3]);
    let hidden = model.forward(&tokens, &mut model.new_cache(CacheLimits::new(8))).unwrap();
    model.logits(&hidden).unwrap().to_vec_cast().unwrap()
}

/// A quantized embedding's `scales` and `biases` take part in lookup and, tied, in the output projection.
#[test]
fn an_embeddings_scales_and_biases_change_the_output() {
    let scratch = tempfile::tempdir().unwrap();
    unpack_demo(scratch.path());
    let file = scratch.path().join("model.safetensors");
    let good = fs::read(&file).unwrap();
    let before = logits(scratch.path());
    let header_length = u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&good[8..8 + header_length]).unwrap();
    for tensor in ["scales", "biases"] {
        let offsets = &header[format!("model.embed_tokens.{tensor}")]["data_offsets"];
        let (start, end) = (offsets[0].as_u64().unwrap() as usize, offsets[1].as_u64().unwrap() as usize);
        let mut changed = good.clone();
        // The sign of the first value of each row of a 16-bit float tensor [2048, groups].
        let row = (end - start) / 2048;
        for value in (8 + header_length + start..8 + header_length + end).step_by(row) {
            changed[value + 1] ^= 0x80;
        }
        fs::write(&file, changed).unwrap();
        let after = logits(scratch.path());
        let moved = before.iter().zip(&after).filter(|(a, b)| a != b).count();
        assert!(moved > before.len() * 9 / 10, "{tensor}: only {moved} of {} logits moved", before.len());
    }
}

/// Copy a fixture checkpoint, without what is not part of a checkpoint.
fn copy(name: &str, to: &Path) {
    for entry in fs::read_dir(fixture("checkpoints").join(name)).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}

#[test]
fn shards_are_found_without_an_index_or_with_a_stale_one() {
    let scratch = tempfile::tempdir().unwrap();
    copy("llama-sharded", scratch.path());
    let expected = logits(scratch.path());
    let index = scratch.path().join("model.safetensors.index.json");
    fs::write(&index, r#"{"weight_map": {"model.norm.weight": "gone.safetensors"}}"#).unwrap();
    assert_eq!(logits(scratch.path()), expected);
    fs::remove_file(&index).unwrap();
    assert_eq!(logits(scratch.path()), expected);
}

#[test]
fn a_cache_grows_in_steps_and_never_beyond_the_context() {
    crate::compute_on_cpu();
    let model = Model::load(&Checkpoint::open(fixture("checkpoints/llama-f32")).unwrap(), |_, _| ()).unwrap();
    let context = 300;
    let mut cache = model.new_cache(CacheLimits::new(context));
    for chunk in [200, 50, 1, 5, 43, 1] {
        let tokens = Array::from_slice(&vec![5u32; chunk as usize], &[1, chunk]);
        model.forward(&tokens, &mut cache).unwrap();
        let capacity = if cache.len() <= 256 { 256 } else { context };
        assert!(cache.arrays().all(|a| a.dim(2) == capacity), "{} tokens", cache.len());
    }
    assert_eq!(cache.len(), context);
    for chunk in [1, 100, 1, 40] {
        let tokens = Array::from_slice(&vec![5u32; chunk as usize], &[1, chunk]);
        model.forward(&tokens, &mut cache).unwrap();
        assert!(cache.arrays().all(|a| a.dim(2) == context), "after an eviction");
    }
    assert_eq!((cache.seen(), cache.evicted() > 0), (442, true));
}

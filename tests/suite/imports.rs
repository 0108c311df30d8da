//! The direction of imports: a module uses those below it, so that each can be read, and changed, without those above.

use std::fs;
use std::path::Path;

use walkdir::WalkDir;

/// From the top down.
const LAYERS: [&str; 25] = [
    "cli",
    "server",
    "convert",
    "hub",
    "generate",
    "models",
    "tokenizer",
    "chat_template",
    "reply",
    "ranks",
    "quantized",
    "weights",
    "ops",
    "backend",
    "mlx_rs_patch",
    "checkpoint",
    "mlxpack",
    "tensor_writer",
    "tensor_index",
    "mapped",
    "atomic_directory",
    "atomic_file",
    "watch",
    "fields",
    "error",
];

/// Files whose uses of these modules go up.
const EXCEPTIONS: [(&str, &str); 8] = [
    // The cache is a leaf: models use it, it uses none of its siblings.
    ("models/mod.rs", "generate::kv_cache"),
    ("models/batch.rs", "generate::kv_cache"),
    ("models/leading.rs", "generate::kv_cache"),
    ("ranks/message.rs", "generate::kv_cache"),
    // What is told of a model when it is packed or shown; the format itself knows of none.
    ("mlxpack/loader.rs", ""),
    ("mlxpack/info.rs", "checkpoint"),
    ("mlxpack/summary.rs", ""),
    ("mlxpack/writer.rs", "checkpoint"),
];

fn rank(module: &str) -> usize {
    let layer = LAYERS.iter().position(|layer| *layer == module);
    layer.unwrap_or_else(|| panic!("{module} has no place among the layers"))
}

#[test]
fn imports_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut uses = 0;
    let mut needed = Vec::new();
    for file in
        WalkDir::new(&src).into_iter().map(Result::unwrap).filter(|f| f.path().extension() == Some("rs".as_ref()))
    {
        let name = file.path().strip_prefix(&src).unwrap().to_str().unwrap().to_owned();
        let module = name.split('/').next().unwrap().trim_end_matches(".rs").to_owned();
        if ["lib", "main", "bin"].contains(&module.as_str()) {
            continue;
        }
        for line in fs::read_to_string(file.path()).unwrap().lines() {
            let Some((_, used)) = line.split_once("use crate::") else { continue };
            let to = used.split([':', ';', ' ']).next().unwrap();
            if to == module || !line.trim_start().starts_with(['u', 'p']) {
                continue;
            }
            uses += 1;
            if rank(to) < rank(&module) {
                let exception = EXCEPTIONS.iter().find(|(file, start)| *file == name && used.starts_with(start));
                needed.push(*exception.unwrap_or_else(|| panic!("{name} uses {used} which is above it")));
            }
        }
    }
    assert!(uses > 80, "only {uses} imports were seen");
    for exception in EXCEPTIONS {
        assert!(needed.contains(&exception), "{exception:?} is an exception no more");
    }
}

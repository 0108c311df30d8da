//! The direction of imports: a module uses those below it, so that each can be read, and changed, without those above.

use std::fs;
use std::path::Path;

use walkdir::WalkDir;

/// From the top down; what lies in a module without a place of its own is where the module is.
const LAYERS: [&str; 29] = [
    "cli",
    "server",
    "convert",
    "hub",
    "generate",
    "mlxpack::info",
    "mlxpack::inspect",
    "models",
    "tokenizer",
    "chat_template",
    "reply",
    "ranks",
    "quantized",
    "weights",
    "generate::kv_cache",
    "ops",
    "backend",
    "mlx_rs_patch",
    "mlxpack::writer",
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

/// The innermost layer that a path such as `generate::kv_cache::KvCache` is in.
fn rank(path: &str) -> usize {
    let is_in = |layer: &str| path.strip_prefix(layer).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
    let innermost = (0..LAYERS.len()).filter(|layer| is_in(LAYERS[*layer])).max_by_key(|layer| LAYERS[*layer].len());
    innermost.unwrap_or_else(|| panic!("{path} has no place among the layers"))
}

#[test]
fn imports_point_down() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut uses = 0;
    for file in WalkDir::new(&src).into_iter().map(Result::unwrap) {
        let name = file.path().strip_prefix(&src).unwrap().to_str().unwrap();
        let Some(module) = name.strip_suffix(".rs").filter(|_| !name.starts_with("bin/")) else { continue };
        if ["lib", "main"].contains(&module) {
            continue;
        }
        let module = module.trim_end_matches("/mod").replace('/', "::");
        let parent = module.rsplit_once("::").map(|(parent, _)| format!("{parent}::")).unwrap_or_default();
        for line in fs::read_to_string(file.path()).unwrap().lines() {
            let Some((visibility, used)) = line.trim_start().split_once("use ") else { continue };
            if !(visibility.is_empty() || visibility.starts_with("pub")) {
                continue;
            }
            let path = match (used.strip_prefix("crate::"), used.strip_prefix("super::")) {
                (Some(path), _) => path.to_owned(),
                (_, Some(path)) if !path.starts_with('*') => format!("{parent}{path}"), // without a module's tests
                _ => continue,
            };
            uses += 1;
            let to = path.split([';', ' ', '{']).next().unwrap().trim_end_matches("::");
            assert!(rank(to) >= rank(&module), "{name} uses {path} which is above it");
        }
    }
    assert!(uses > 500, "only {uses} imports were seen");
}

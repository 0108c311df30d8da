//! Compiles the C++ halves of the kernels' bridges, and tells the linker where the MLX that `make setup` fetched lies, so
//! that the binaries start from any directory.
//!
//! `$ORIGIN/../lib` comes first: it is where `make dist` puts the libraries. The tag is the old DT_RPATH, since
//! that one also covers the libraries that libmlx.so itself loads.

const BRIDGE: &str = "src/backend/cpu/primitive.cpp";
const CUDA_BRIDGE: &str = "src/backend/cuda/primitive.cpp";

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_MLX_RPATH");
    println!("cargo::rerun-if-env-changed=DEP_MLX_VARIANT");
    println!("cargo::rerun-if-changed={BRIDGE}");
    println!("cargo::rerun-if-changed={CUDA_BRIDGE}");
    println!("cargo::rustc-check-cfg=cfg(cpu_kernels)");
    println!("cargo::rustc-check-cfg=cfg(cuda_kernels)");
    if let Ok(rpath) = std::env::var("DEP_MLX_RPATH") {
        println!("cargo::rustc-link-arg=-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib:{rpath}");
    }
    // `make setup` names the variant; without it (macOS) MLX runs on the GPU.
    if let Ok(variant) = std::env::var("DEP_MLX_VARIANT") {
        let on_gpu = variant.starts_with("cuda");
        let include = std::env::var("DEP_MLX_INCLUDE").expect("`make setup` sets both");
        let mut compiler = cc::Build::new();
        compiler.cpp(true).std("c++20").warnings(false).flag("-include").flag("setup/compat.h");
        compiler.define("MLX_LM_CPU_ALLOCATOR", if on_gpu { "0" } else { "1" });
        compiler.includes(std::env::split_paths(&include)).file(BRIDGE);
        if on_gpu {
            compiler.file(CUDA_BRIDGE);
        }
        compiler.compile("mlx_lm_bridge");
        println!("cargo::rustc-cfg=cpu_kernels");
        if on_gpu {
            println!("cargo::rustc-cfg=cuda_kernels");
        }
    }
}

//! Tells the linker where the MLX that `make setup` fetched lies; what the library's own build script says of that
//! reaches its own binaries only.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_MLX_RPATH");
    if let Ok(rpath) = std::env::var("DEP_MLX_RPATH") {
        println!("cargo::rustc-link-arg=-Wl,-rpath,{rpath}");
    }
}

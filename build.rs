//! Tells the linker where the MLX that `make setup` fetched lies, so that the binaries start from any directory.
//!
//! `$ORIGIN/../lib` comes first: it is where `make dist` puts the libraries. The tag is the old DT_RPATH, since
//! that one also covers the libraries that libmlx.so itself loads.

fn main() {
    println!("cargo::rerun-if-env-changed=DEP_MLX_RPATH");
    if let Ok(rpath) = std::env::var("DEP_MLX_RPATH") {
        println!("cargo::rustc-link-arg=-Wl,--disable-new-dtags,-rpath,$ORIGIN/../lib:{rpath}");
    }
}

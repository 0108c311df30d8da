#!/bin/sh
# Pack the release binaries with the libraries they load: dist.sh FOLDER makes FOLDER and FOLDER.tar.gz.
#
# The binaries look for libraries in $ORIGIN/../lib first (build.rs), and that path also serves what libmlx.so
# itself loads, so lib/ is flat. The C++ runtime goes along, for systems that are older or lack it; glibc cannot.
set -eu
folder=$1
release=${CARGO_TARGET_DIR:-target}/release
if ! grep -q '^variant = "cpu"' .mlx/cargo.toml; then
    # The CUDA wheels compile kernels at run time, from headers next to NVIDIA's own 2 GB of libraries.
    echo "error: make dist packs the CPU build only; switch to it with \`make setup MLX=cpu\`" >&2
    exit 1
fi
libraries=$(ldd "$release/mlx_lm" | awk '/=> \// { print $3 }' | grep -vE '/(ld-linux.*|libc|libm|libdl|librt|libpthread)\.so|/libcuda\.so')
rm -rf "$folder" "$folder.tar.gz"
mkdir -p "$folder/bin" "$folder/lib"
cp "$release/mlx_lm" "$release/mlxpack" "$folder/bin/"
for library in $libraries; do
    cp -L "$library" "$folder/lib/"
done
cp -r README.md CHANGELOG.md LICENSE-MIT LICENSE-APACHE docs "$folder/"
python3 setup/third_party.py "$folder"/lib/* >"$folder/THIRD-PARTY.txt"
tar -C "$(dirname "$folder")" -czf "$folder.tar.gz" "$(basename "$folder")"
ls -l "$folder.tar.gz"

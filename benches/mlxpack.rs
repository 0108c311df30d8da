//! How fast packs are written, unpacked, verified and opened, next to `cp` and `sha256sum` on the same bytes.
//!
//! ```sh
//! cargo bench --bench mlxpack                                    # 2 GB, in target/
//! cargo bench --bench mlxpack -- --mb 8000 --runs 3 --dir /mnt/disk
//! ```
//!
//! Everything runs in turns, `--runs` times; the table has medians. Writes count until they are on disk (fsync), on both
//! sides; reads come from the page cache, on both sides. Each step is done once without a clock before it counts, since
//! the first use of memory can cost a virtual machine more than the copy into it. A ratio is the speed relative to the
//! peer: above 1 is faster.

use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use clap::Parser;
use mlx_lm::Watch;
use mlx_lm::mlxpack::Pack;
use serde_json::json;
use sha2::{Digest, Sha256};

const MLXPACK: &str = env!("CARGO_BIN_EXE_mlxpack");
const GIB: u64 = 1 << 30;

#[derive(Parser)]
struct Args {
    /// Bytes to pack, in units of 10^6
    #[arg(long, default_value_t = 2000)]
    mb: u64,
    /// How often to measure
    #[arg(long, default_value_t = 5)]
    runs: usize,
    /// Where to write
    #[arg(long, default_value = env!("CARGO_TARGET_TMPDIR"))]
    dir: PathBuf,
    /// Cargo passes it
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    let args = Args::parse();
    let root = tempfile::tempdir_in(&args.dir).unwrap();
    let path = |name: &str| root.path().join(name);
    make_model(&path("in"), args.mb * 1_000_000);
    let mut times: [Vec<f64>; 5] = Default::default();
    for _ in 0..args.runs {
        let mut steps = times.iter_mut();
        let mut step = |output: &str, work: &dyn Fn()| {
            for is_rehearsal in [true, false] {
                remove(&path(output));
                let time = seconds(work);
                if !is_rehearsal {
                    steps.next().unwrap().push(time);
                }
            }
        };
        step("cp", &|| {
            run(Command::new("cp").arg("-r").args([path("in"), path("cp")]));
            fs::read_dir(path("cp")).unwrap().for_each(|file| sync(&file.unwrap().path()));
        });
        remove(&path("cp"));
        step("x.mlxpack", &|| {
            run(mlxpack("pack", &path("in")).arg("--output").arg(path("x.mlxpack")).args(["--include", "*"]))
        });
        step("out", &|| run(mlxpack("extract", &path("x.mlxpack")).arg("--output").arg(path("out"))));
        remove(&path("out"));
        step("no output", &|| run(Command::new("sha256sum").arg(path("x.mlxpack"))));
        step("no output", &|| run(&mut mlxpack("verify", &path("x.mlxpack"))));
    }
    let [cp, pack, extract, sha256sum, verify] = times.map(median);
    println!("{} MB, {} runs, medians in seconds", args.mb, args.runs);
    println!("{:<10} {:>7}   {:<22} {:>7}   ratio", "", "mlxpack", "peer", "");
    let row = |what: &str, ours: f64, peer: &str, theirs: f64| {
        println!("{what:<10} {ours:>7.2}   {peer:<22} {theirs:>7.2}   {:.2}", theirs / ours);
    };
    row("pack", pack, "cp -r DIR, fsync", cp);
    row("extract", extract, "cp -r DIR, fsync", cp);
    row("verify", verify, "sha256sum FILE", sha256sum);

    let big = path("big.mlxpack");
    make_sparse_pack(&big, 14 * GIB);
    let info = median((0..20).map(|_| seconds(|| run(&mut mlxpack("info", &big)))).collect());
    let open = median((0..20).map(|_| seconds(|| drop(Pack::open(&big).unwrap()))).collect());
    println!("14 GiB pack: `mlxpack info` as a process {:.1} ms, Pack::open {:.3} ms", info * 1e3, open * 1e3);
}

/// The demo model, and next to it a safetensors file of `bytes` bytes that no compression or sharing helps with.
fn make_model(root: &Path, bytes: u64) {
    let demo = Pack::open(Path::new(env!("CARGO_MANIFEST_DIR")).join("demo/demo.mlxpack")).unwrap();
    demo.extract(root, None, false, &mut Watch::none()).unwrap();
    let path = root.join("big.safetensors");
    let header = json!({"x": {"dtype": "U64", "shape": [bytes / 8], "data_offsets": [0, bytes / 8 * 8]}}).to_string();
    let mut file = BufWriter::new(File::create(&path).unwrap());
    file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
    file.write_all(header.as_bytes()).unwrap();
    let mut random = 1u64;
    for _ in 0..bytes / 8 {
        random = random.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        file.write_all(&(random ^ (random >> 29)).to_le_bytes()).unwrap();
    }
    drop(file.into_inner().unwrap());
    sync(&path);
}

/// A pack of one file of `length` bytes, made of holes and hashes that nobody checks when it is only looked at.
fn make_sparse_pack(path: &Path, length: u64) {
    let hashes = vec!["0".repeat(64); length.div_ceil(16 << 20) as usize];
    let entry = json!({"name": "model.safetensors", "offset": 1 << 20, "length": length, "sha256": hashes});
    let mut json = json!({"summary": {}, "files": [entry]}).to_string();
    json += &" ".repeat((1 << 20) - 56 - json.len());
    let start = [&b"\x89MLXP\r\n\x1a"[..], &1u64.to_le_bytes(), &(json.len() as u64).to_le_bytes()].concat();
    let hash = Sha256::new().chain_update(&start).chain_update(&json).finalize();
    fs::write(path, [&start, &hash[..], json.as_bytes()].concat()).unwrap();
    File::options().write(true).open(path).unwrap().set_len((1 << 20) + length).unwrap();
}

fn remove(path: &Path) {
    if path.is_file() {
        fs::remove_file(path).unwrap();
    } else if path.is_dir() {
        fs::remove_dir_all(path).unwrap();
    }
}

fn mlxpack(command: &str, input: &Path) -> Command {
    let mut mlxpack = Command::new(MLXPACK);
    mlxpack.arg(command).arg("--input").arg(input);
    mlxpack
}

fn run(command: &mut Command) {
    let status = command.stdout(Stdio::null()).status().unwrap();
    assert!(status.success(), "{command:?}: {status}");
}

fn sync(path: &Path) {
    File::open(path).unwrap().sync_all().unwrap();
}

fn seconds(work: impl FnOnce()) -> f64 {
    let started = Instant::now();
    work();
    started.elapsed().as_secs_f64()
}

fn median(mut times: Vec<f64>) -> f64 {
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

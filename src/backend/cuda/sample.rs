//! Tokens by their logits; the launches of `sample.cu`.

use mlx_rs::{Array, Dtype};

use super::kernel::{self, Compiled, Kernel, Launch};
use super::node::{Memory, When, node};
use super::{Gpu, PORTABLE_CLUSTER};
use crate::backend::{Choice, Filter};
use crate::error::Result;
use crate::mlx_rs_patch::item_size;

/// Rows of a launch.
const ROWS: usize = 64;

/// By the type of the logits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Form(Dtype);

impl kernel::Form for Form {
    const SOURCE: &str = concat!(include_str!("numbers.cu"), include_str!("sample.cu"));

    fn bounds(&self) -> (i32, i32) {
        (1024, 1)
    }

    fn entry(&self) -> (String, String) {
        let dtype = match self.0 {
            Dtype::Float32 => "F32",
            Dtype::Bfloat16 => "BF16",
            _ => "F16",
        };
        ("mlx_lm::SampleArguments".to_owned(), format!("mlx_lm::sample<mlx_lm::Type::{dtype}>(a);"))
    }
}

/// `Choice` of sample.cu.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Chosen {
    share: f64,
    per_temp: f32,
    top_p: f32,
    log_min_p: f32,
    top_k: i32,
}

impl Chosen {
    fn new(choice: &Choice, columns: i32) -> Self {
        match *choice {
            Choice::Greedy => Chosen { share: -1.0, per_temp: 1.0, top_p: 1.0, log_min_p: f32::NEG_INFINITY, top_k: 0 },
            Choice::Random { filter: Filter { temp, top_p, min_p, top_k }, key } => Chosen {
                share: key.uniform(),
                per_temp: 1.0 / temp,
                top_p,
                log_min_p: min_p.ln(),
                top_k: i32::try_from(top_k).ok().filter(|top_k| *top_k < columns).unwrap_or(0),
            },
        }
    }
}

/// `SampleArguments` of sample.cu; addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
struct Arguments {
    logits: u64,
    tokens: u64,
    columns: i32,
    choices: [Chosen; ROWS],
}

static KERNELS: Compiled<Form> = Compiled::new();

/// What chooses by logits of a type.
pub(super) fn kernel_for(gpu: &Gpu, dtype: Dtype) -> Option<Kernel> {
    let [kernel] = KERNELS.get([&Form(dtype)], gpu)?;
    Some(kernel)
}

/// See [`crate::backend::Backend::sample`].
pub(super) fn sample(gpu: &Gpu, logits: &Array, choices: &[Choice]) -> Option<Result<Array>> {
    let &[rows, columns] = logits.shape() else { return None };
    let dtype = logits.dtype();
    if !matches!(dtype, Dtype::Float32 | Dtype::Float16 | Dtype::Bfloat16) || rows == 0 || columns == 0 {
        return None;
    }
    let kernel = kernel_for(gpu, dtype)?;
    let cluster = gpu.max_cluster().min(PORTABLE_CLUSTER) as u32;
    let chosen: Vec<Chosen> = choices.iter().map(|choice| Chosen::new(choice, columns)).collect();
    let row_bytes = columns as u64 * item_size(dtype) as u64;
    let start = move |stream, addresses: &[u64]| {
        let [tokens, logits] = *addresses else { unreachable!("two inputs") };
        for (first, chosen) in (0..).step_by(ROWS).zip(chosen.chunks(ROWS)) {
            let mut choices = [chosen[0]; ROWS];
            choices[..chosen.len()].copy_from_slice(chosen);
            let logits = logits + first * row_bytes;
            let arguments = Arguments { logits, tokens: tokens + 4 * first, columns, choices };
            let launch = Launch { stream, grid: [cluster, chosen.len() as u32, 1], shared: 0, follows: false };
            // SAFETY: `Arguments` is `SampleArguments`, which the kernel takes; the addresses are those of the node's inputs, which
            // have a number for each of the rows and columns.
            unsafe { kernel.launch_clusters(launch, cluster, &arguments)? };
        }
        Ok(())
    };
    Some(Memory::with(|memory| memory.read_by_host(rows)).and_then(|tokens| {
        let mut made = node(&[&tokens, logits], 1, When::Evaluated, start)?;
        Ok(made.remove(0))
    }))
}

//! What a pass does with rows besides its blocks: embedding, final normalisation, and matrices unpacked for a prompt;
//! the launches of `rows.cu`.

use mlx_rs::ops::{add, matmul};
use mlx_rs::{Array, Dtype};

use super::Gpu;
use super::driver::Stream;
use super::gemv::Added;
use super::kernel::{self, Compiled, Kernel, Launch, type_name};
use super::node::{Memory, When, node};
use crate::backend::{Linear, Norm, Packing, Weight};
use crate::error::Result;

const THREADS: i32 = 512;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Form {
    /// Bits and group size; 0 bits for weights that are not packed.
    Embedding {
        is_bf16: bool,
        bits: i32,
        group_size: i32,
    },
    Unpacked {
        is_bf16: bool,
        packing: Packing,
    },
    Norm(NormForm),
}

/// What is done to rows by and by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct NormForm {
    is_bf16: bool,
    /// The bits of the weights that the rows are multiplied with next, 16 for columns as they are.
    order: i32,
    has_norm: bool,
    adds: bool,
}

impl kernel::Form for Form {
    const SOURCE: &str = concat!(include_str!("numbers.cu"), include_str!("tensor.cu"), include_str!("rows.cu"));

    fn bounds(&self) -> (i32, i32) {
        (THREADS, 1)
    }

    fn entry(&self) -> (String, String) {
        let call = match *self {
            Form::Embedding { is_bf16, bits, group_size } => {
                format!("embed<{}, {bits}, {group_size}>", type_name(is_bf16))
            }
            Form::Unpacked { is_bf16, packing: Packing { group_size, bits } } => {
                format!("unpack<{}, {bits}, {group_size}>", type_name(is_bf16))
            }
            Form::Norm(NormForm { is_bf16, order, has_norm, adds }) => {
                format!("normalise<{}, {THREADS}, {order}, {has_norm}, {adds}>", type_name(is_bf16))
            }
        };
        (
            "mlx_lm::RowsArguments".to_owned(),
            format!("mlx_lm::allow_next(); mlx_lm::await_previous(); mlx_lm::{call}(a);"),
        )
    }
}

/// `RowsArguments` of rows.cu; addresses.
#[repr(C)]
#[derive(Debug, Clone, Copy, Default)]
struct Arguments {
    x: u64,
    weight: u64,
    scales: u64,
    biases: u64,
    y: u64,
    rows: i32,
    columns: i32,
    pitch: i32,
    eps: f32,
    residual: Added,
}

static KERNELS: Compiled<Form> = Compiled::new();

fn is_bf16(dtype: Dtype) -> Option<bool> {
    matches!(dtype, Dtype::Float16 | Dtype::Bfloat16).then_some(dtype == Dtype::Bfloat16)
}

/// An array `y` that `form`'s kernel writes, in blocks of `grid`; `arguments` makes its parameter of the addresses of y and
/// `inputs`.
fn launch(
    gpu: &Gpu,
    form: Form,
    y: impl FnOnce(&mut Memory) -> Result<Array>,
    inputs: &[&Array],
    grid: [u32; 3],
    arguments: impl Fn(&[u64]) -> Arguments + Send + 'static,
) -> Option<Result<Array>> {
    let [kernel] = KERNELS.get([&form], gpu)?;
    Some(Memory::with(y).and_then(|y| {
        let inputs: Vec<&Array> = [&y].into_iter().chain(inputs.iter().copied()).collect();
        let mut made = node(&inputs, 1, When::Evaluated, move |stream, addresses| {
            let arguments = arguments(addresses);
            // SAFETY: `Arguments` is `RowsArguments`, which the kernel takes, and the addresses are those of the node's inputs,
            // whose sizes were checked.
            unsafe { kernel.launch(Launch { stream, grid, shared: 0, follows: false }, &arguments) }
        })?;
        Ok(made.remove(0))
    }))
}

/// See [`crate::backend::Backend::embedding`].
pub(super) fn embedding(gpu: &Gpu, ids: &Array, weight: &Weight) -> Option<Result<Array>> {
    let dtype = weight.dtype();
    let (bits, group_size) = weight.packing().map_or((0, 1), |packing| (packing.bits, packing.group_size));
    if !matches!(bits, 0 | 2 | 4 | 8) || ids.dtype() != Dtype::Uint32 {
        return None;
    }
    let form = Form::Embedding { is_bf16: is_bf16(dtype)?, bits, group_size };
    let arrays = weight.arrays();
    let rows = arrays[0].dim(0);
    let columns = arrays.get(1).map_or(arrays[0].dim(1), |scales| scales.dim(1) * group_size);
    let shape = [ids.dim(0), columns];
    let inputs: Vec<&Array> = [ids].into_iter().chain(arrays).collect();
    let grid = [ids.dim(0) as u32, 1, 1];
    launch(
        gpu,
        form,
        move |memory| memory.result(&shape, dtype),
        &inputs,
        grid,
        move |at| {
            let [y, x, weight, ref packed @ ..] = *at else { unreachable!("three and more inputs") };
            let [scales, biases] = *packed else {
                return Arguments { x, weight, y, rows, columns, ..Default::default() };
            };
            Arguments { x, weight, scales, biases, y, rows, columns, ..Default::default() }
        },
    )
}

/// A linear layer for the tokens of a prompt: its matrix, unpacked, in front of MLX's product.
pub(super) fn linear_of_prompt(gpu: &Gpu, x: &Array, layer: &Linear) -> Option<Result<Array>> {
    let Weight::Affine { packed, scales, biases, packing } = layer.weight else { return None };
    let (packing, bias) = (*packing, layer.bias);
    let (rows, columns) = (packed.dim(0), scales.dim(1) * packing.group_size);
    let numbers = [Some(scales), Some(biases), bias];
    if !matches!(packing.bits, 2 | 4 | 8)
        || x.dim(-1) != columns
        || numbers.into_iter().flatten().any(|numbers| numbers.dtype() != x.dtype())
    {
        return None;
    }
    let [kernel] = KERNELS.get([&Form::Unpacked { is_bf16: is_bf16(x.dtype())?, packing }], gpu)?;
    let words = u64::from(rows as u32) * u64::from((columns * packing.bits / 32) as u32);
    let grid = [words.div_ceil(THREADS as u64) as u32, 1, 1];
    let compute = |numbers: Array| -> Result<Array> {
        let made = node(&[&numbers, packed, scales, biases], 1, When::Evaluated, move |stream, at| {
            let [y, weight, scales, biases] = *at else { unreachable!("four inputs") };
            let arguments = Arguments { weight, scales, biases, y, rows, columns, ..Default::default() };
            // SAFETY: as in `launch`.
            unsafe { kernel.launch(Launch { stream, grid, shared: 0, follows: false }, &arguments) }
        })?;
        let y = matmul(x, made[0].t())?;
        let y = if let Some(bias) = bias { add(y, bias)? } else { y };
        Memory::with(|memory| memory.product(&y));
        Ok(y)
    };
    Some(Memory::with(|memory| memory.unpacked(&[rows, columns], x.dtype())).and_then(compute))
}

/// See [`crate::backend::Backend::rms_norm`]; of rows `[N, D]`.
pub(super) fn rms_norm(gpu: &Gpu, x: &Array, Norm { weight, eps }: Norm) -> Option<Result<Array>> {
    let &[rows, columns] = x.shape() else { return None };
    if weight.dtype() != x.dtype() || weight.shape() != [columns] || rows == 0 {
        return None;
    }
    let form = Form::Norm(NormForm { is_bf16: is_bf16(x.dtype())?, order: 16, has_norm: true, adds: false });
    let dtype = x.dtype();
    let y = move |memory: &mut Memory| memory.result(&[rows, columns], dtype);
    launch(gpu, form, y, &[x, weight], [rows as u32, 1, 1], move |at| {
        let [y, x, weight] = *at else { unreachable!("three inputs") };
        Arguments { x, weight, y, columns, pitch: columns, eps, ..Default::default() }
    })
}

/// What is done to the rows of a block by and by: normalisation, another order of columns, addition.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowNorm {
    kernel: Kernel,
    columns: i32,
    eps: f32,
}

/// Where the rows of a [`RowNorm`] lie.
#[derive(Debug, Clone, Copy)]
pub(super) struct RowAddresses {
    pub x: u64,
    /// Of the norm; without one, anything.
    pub weight: u64,
    /// May be x.
    pub y: u64,
    /// Numbers from row to row, of x, y and the residual.
    pub pitch: i32,
}

impl RowNorm {
    /// Of rows of `columns` numbers, in the order for weights of so many bits, 16 for columns as they are; those are a multiple of 64
    /// columns.
    pub fn new(gpu: &Gpu, columns: i32, dtype: Dtype, norm: Option<Norm>, order: i32, adds: bool) -> Option<Self> {
        let fits = |norm: Norm| norm.weight.dtype() == dtype && norm.weight.shape() == [columns];
        if order != 16 && columns % 64 != 0 || !norm.is_none_or(fits) {
            return None;
        }
        let form = NormForm { is_bf16: is_bf16(dtype)?, order, has_norm: norm.is_some(), adds };
        let [kernel] = KERNELS.get([&Form::Norm(form)], gpu)?;
        Some(RowNorm { kernel, columns, eps: norm.map_or(0.0, |norm| norm.eps) })
    }

    /// Start it, behind another kernel of ours where it `follows`; `residual` is what it adds to.
    ///
    /// # Safety
    /// The addresses are of `rows` rows, of the weight, and of memory for the result.
    pub unsafe fn launch(
        self,
        stream: Stream,
        follows: bool,
        rows: i32,
        at: RowAddresses,
        residual: Added,
    ) -> Result<()> {
        let (RowNorm { kernel, columns, eps }, RowAddresses { x, weight, y, pitch }) = (self, at);
        let arguments = Arguments { x, weight, y, columns, pitch, eps, residual, ..Default::default() };
        // SAFETY: `Arguments` is `RowsArguments`, which the kernel takes; the rest is the caller's promise.
        unsafe { kernel.launch(Launch { stream, grid: [rows as u32, 1, 1], shared: 0, follows }, &arguments) }
    }
}

//! A plan carried out: pieces of tensors are read, computed and written by all cores, so that memory holds a few pieces and no
//! tensor.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;

use half::{bf16, f16};
use safetensors::Dtype;

use super::plan::{Plan, Step, Work};
use crate::backend::Packing;
use crate::backend::cpu::{self, Floats, FloatsMut, InstructionSet};
use crate::checkpoint::WeightFile;
use crate::error::{Error, Result};
use crate::ops;
use crate::tensor_writer::TensorWriter;
use crate::watch::{Watch, go_on};
use crate::weights::Tensor;

/// Numbers of a piece: whole groups of every size.
const PIECE: usize = 1 << 20;

/// Where the outputs go.
struct Targets {
    files: Vec<TensorWriter>,
    /// By output: its file, and its number there.
    places: Vec<(usize, usize)>,
}

impl Targets {
    fn write(&self, output: usize, at: usize, bytes: &[u8]) -> Result<()> {
        let (file, tensor) = self.places[output];
        self.files[file].write(tensor, at as u64, bytes)
    }
}

/// Write the plan's tensors into `folder`, as files of the given names with the given outputs. `watch` is told the bytes read,
/// of `total`.
pub(super) fn write(
    plan: &Plan,
    folder: &Path,
    shards: &[(String, Vec<usize>)],
    total: u64,
    watch: &mut Watch,
) -> Result<()> {
    let mut targets = Targets { files: Vec::new(), places: vec![(0, 0); plan.outputs.len()] };
    for (file, (name, outputs)) in shards.iter().enumerate() {
        let heads: Vec<_> = outputs.iter().map(|&output| plan.outputs[output].clone()).collect();
        let metadata = HashMap::from([("format".to_owned(), "mlx".to_owned())]);
        targets.files.push(TensorWriter::create(&folder.join(name), &heads, metadata, false)?);
        outputs.iter().enumerate().for_each(|(tensor, &output)| targets.places[output] = (file, tensor));
    }
    let pieces = pieces(plan);
    run(&pieces, &targets, total, watch)?;
    for file in plan.steps.iter().flat_map(|step| step.work.sources()).filter_map(|tensor| tensor.file.map()) {
        file.check()?;
    }
    targets.files.into_iter().try_for_each(TensorWriter::finish)
}

/// Numbers `range` of what a step makes.
struct Piece<'p> {
    step: &'p Step<'p>,
    dtype: Dtype,
    range: Range<usize>,
}

/// In the order in which the sources lie in their files.
fn pieces<'p>(plan: &'p Plan<'p>) -> Vec<Piece<'p>> {
    let mut steps: Vec<_> = plan.steps.iter().collect();
    steps.sort_by_key(|step| {
        let first = step.work.sources()[0];
        (&first.file.path, first.entry.bytes.start)
    });
    let mut pieces = Vec::new();
    for step in steps {
        let output = &plan.outputs[step.output];
        let numbers = match step.work {
            Work::Copy(tensor) | Work::Quantize(tensor, _) => tensor.entry.shape.iter().product(),
            Work::Dequantize { .. } => output.shape.iter().product::<usize>(),
        };
        let dtype = match step.work {
            Work::Quantize(..) => plan.outputs[step.output + 1].dtype,
            _ => output.dtype,
        };
        pieces.extend((0..numbers).step_by(PIECE).map(|start| {
            let range = start..numbers.min(start + PIECE);
            Piece { step, dtype, range }
        }));
    }
    pieces
}

fn run(pieces: &[Piece], targets: &Targets, total: u64, watch: &mut Watch) -> Result<()> {
    let (next, done) = (AtomicUsize::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    let work = |tell: &mut dyn FnMut(u64) -> Result<()>| -> Result<()> {
        let mut worker = Worker::new();
        while let Some(piece) = pieces.get(next.fetch_add(1, Ordering::Relaxed)) {
            go_on(&stop)?;
            let read = worker.convert(piece, targets)?;
            tell(done.fetch_add(read, Ordering::Relaxed) + read)?;
        }
        Ok(())
    };
    // Whoever fails stops the others.
    let guarded = |tell: &mut dyn FnMut(u64) -> Result<()>| {
        let worked = work(tell);
        if worked.is_err() {
            stop.store(true, Ordering::Relaxed);
        }
        worked
    };
    watch.advance(0, total)?;
    thread::scope(|scope| {
        let others: Vec<_> =
            (1..cpu::threads().min(pieces.len())).map(|_| scope.spawn(|| guarded(&mut |_| Ok(())))).collect();
        let mut results = vec![guarded(&mut |done| watch.advance(done, total))];
        results.extend(
            others.into_iter().map(|other| other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))),
        );
        // What failed first, the others took for an interruption.
        let failed = results.iter().position(|result| !matches!(result, Ok(()) | Err(Error::Interrupted)));
        results.swap_remove(failed.or_else(|| results.iter().position(Result::is_err)).unwrap_or(0))
    })?;
    watch.advance(done.into_inner(), total)
}

/// Numbers of one type that are kept to be used again.
#[derive(Default)]
struct Numbers {
    f32: Vec<f32>,
    f16: Vec<f16>,
    bf16: Vec<bf16>,
}

impl Numbers {
    /// `len` of a type, with any values.
    fn get(&mut self, dtype: Dtype, len: usize) -> FloatsMut<'_> {
        fn sized<T: Clone + Default>(numbers: &mut Vec<T>, len: usize) -> &mut [T] {
            if numbers.len() < len {
                numbers.resize(len, T::default());
            }
            &mut numbers[..len]
        }
        match dtype {
            Dtype::F32 => FloatsMut::F32(sized(&mut self.f32, len)),
            Dtype::F16 => FloatsMut::F16(sized(&mut self.f16, len)),
            _ => FloatsMut::Bf16(sized(&mut self.bf16, len)),
        }
    }
}

fn bytes<'a>(numbers: Floats<'a>) -> &'a [u8] {
    match numbers {
        Floats::F32(x) => bytemuck::cast_slice(x),
        Floats::F16(x) => bytemuck::cast_slice(x),
        Floats::Bf16(x) => bytemuck::cast_slice(x),
    }
}

/// The numbers of a file, copied only where it is not aligned for them.
enum Source<'a> {
    F32(Cow<'a, [f32]>),
    F16(Cow<'a, [f16]>),
    Bf16(Cow<'a, [bf16]>),
}

impl<'a> Source<'a> {
    fn new(dtype: Dtype, bytes: &'a [u8]) -> Self {
        fn numbers<T: bytemuck::Pod>(bytes: &[u8]) -> Cow<'_, [T]> {
            match bytemuck::try_cast_slice(bytes) {
                Ok(numbers) => Cow::Borrowed(numbers),
                Err(_) => Cow::Owned(bytemuck::allocation::pod_collect_to_vec(bytes)),
            }
        }
        match dtype {
            Dtype::F32 => Source::F32(numbers(bytes)),
            Dtype::F16 => Source::F16(numbers(bytes)),
            _ => Source::Bf16(numbers(bytes)),
        }
    }

    fn floats(&self) -> Floats<'_> {
        match self {
            Source::F32(x) => Floats::F32(x),
            Source::F16(x) => Floats::F16(x),
            Source::Bf16(x) => Floats::Bf16(x),
        }
    }
}

/// What a thread computes with.
struct Worker {
    kernels: InstructionSet,
    cast: Numbers,
    scales: Numbers,
    biases: Numbers,
    packed: Vec<u8>,
}

impl Worker {
    fn new() -> Self {
        Worker {
            kernels: ops::cpu_backend().unwrap_or_else(InstructionSet::best),
            cast: Numbers::default(),
            scales: Numbers::default(),
            biases: Numbers::default(),
            packed: Vec::new(),
        }
    }

    /// Gives the bytes that were read.
    fn convert(&mut self, piece: &Piece, targets: &Targets) -> Result<u64> {
        let Piece { step: Step { work, output }, dtype, range } = piece;
        match *work {
            Work::Copy(tensor) => {
                let data = part(tensor, range.clone());
                let width = dtype.bitsize() / 8;
                if tensor.entry.dtype == *dtype {
                    targets.write(*output, range.start * width, data)?;
                } else {
                    let source = Source::new(tensor.entry.dtype, data);
                    let cast = cast(self.kernels, source.floats(), *dtype, &mut self.cast);
                    targets.write(*output, range.start * width, bytes(cast))?;
                }
                Ok(release(tensor, data))
            }
            Work::Quantize(tensor, packing) => {
                let data = part(tensor, range.clone());
                self.quantize(Source::new(tensor.entry.dtype, data).floats(), packing, piece, targets)?;
                Ok(release(tensor, data))
            }
            Work::Dequantize { packed, scales, biases, packing } => {
                let Packing { group_size, bits } = packing;
                let groups = range.start / group_size as usize..range.end / group_size as usize;
                let words = range.start / 32 * bits as usize..range.end / 32 * bits as usize;
                let sources = [(packed, words), (scales, groups.clone()), (biases, groups)];
                let [packed_data, scales_data, biases_data] = sources.map(|(tensor, range)| part(tensor, range));
                let [scale_source, bias_source] = [(scales, scales_data), (biases, biases_data)]
                    .map(|(tensor, data)| Source::new(tensor.entry.dtype, data));
                let scale = cast(self.kernels, scale_source.floats(), *dtype, &mut self.scales);
                let bias = cast(self.kernels, bias_source.floats(), *dtype, &mut self.biases);
                let mut values = self.cast.get(*dtype, range.len());
                self.kernels.dequantize(packed_data, scale, bias, packing, values.part(0..range.len()));
                targets.write(*output, range.start * dtype.bitsize() / 8, bytes(values.floats()))?;
                let read = [(packed, packed_data), (scales, scales_data), (biases, biases_data)];
                Ok(read.into_iter().map(|(tensor, data)| release(tensor, data)).sum())
            }
        }
    }

    fn quantize(&mut self, values: Floats, packing: Packing, piece: &Piece, targets: &Targets) -> Result<()> {
        let Piece { step: Step { output, .. }, dtype, range } = piece;
        let values = cast(self.kernels, values, *dtype, &mut self.cast);
        let Packing { group_size, bits } = packing;
        let groups = range.len() / group_size as usize;
        self.packed.resize(range.len() / 8 * bits as usize, 0);
        let mut scales = self.scales.get(*dtype, groups);
        let mut biases = self.biases.get(*dtype, groups);
        self.kernels.quantize(values, packing, &mut self.packed, scales.part(0..groups), biases.part(0..groups));
        targets.write(*output, range.start / 8 * bits as usize, &self.packed)?;
        let at = range.start / group_size as usize * dtype.bitsize() / 8;
        targets.write(output + 1, at, bytes(scales.floats()))?;
        targets.write(output + 2, at, bytes(biases.floats()))
    }
}

/// The numbers as those of a type: themselves, or cast into `buffer`.
fn cast<'a>(kernels: InstructionSet, numbers: Floats<'a>, dtype: Dtype, buffer: &'a mut Numbers) -> Floats<'a> {
    let same = match numbers {
        Floats::F32(_) => Dtype::F32,
        Floats::F16(_) => Dtype::F16,
        Floats::Bf16(_) => Dtype::BF16,
    };
    if same == dtype {
        return numbers;
    }
    let len = numbers.len();
    let mut to = buffer.get(dtype, len);
    kernels.cast(numbers, to.part(0..len));
    match to {
        FloatsMut::F32(x) => Floats::F32(x),
        FloatsMut::F16(x) => Floats::F16(x),
        FloatsMut::Bf16(x) => Floats::Bf16(x),
    }
}

/// Elements `range` of a tensor, as they lie in its file.
fn part<'f>(tensor: Tensor<'f>, range: Range<usize>) -> &'f [u8] {
    let data = WeightFile::data(tensor.file, tensor.entry).expect("the files are mapped");
    let width = tensor.entry.dtype.bitsize() / 8;
    &data[range.start * width..range.end * width]
}

/// Let the pages go that were read, and tell how many bytes they had.
fn release(tensor: Tensor, data: &[u8]) -> u64 {
    if let Some(map) = tensor.file.map() {
        map.release(data);
    }
    data.len() as u64
}

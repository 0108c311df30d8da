//! What kernels read and write: slices of the three floating-point types, and weights.

use std::ops::Range;

use half::{bf16, f16};

use crate::backend::cpu::isa::Simd;
use crate::backend::cpu::scratch::Scratch;
use crate::backend::{BITS, GROUP_SIZES};

/// A floating-point type of checkpoints and activations.
pub(super) trait Element: Copy + Send + Sync + 'static {
    /// How many lie in 32 bits.
    const OF_WORD: usize;
    /// Number `index` of each word.
    fn of_words<S: Simd>(s: S, words: S::U, index: usize) -> S::F;
    /// # Safety
    /// As [`Simd::load`].
    unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F;
    /// # Safety
    /// As [`Simd::store`].
    unsafe fn store<S: Simd>(s: S, to: *mut Self, x: S::F);
    fn to_f32(self) -> f32;
    fn from_f32(x: f32) -> Self;
    /// The slice inside.
    /// # Panics
    /// When it is of another type.
    fn slice(floats: Floats<'_>) -> &[Self];
}

macro_rules! element {
    ($type:ty, $variant:ident, $load:ident, $store:ident, $to:expr, $from:expr, $of_words:expr) => {
        impl Element for $type {
            const OF_WORD: usize = 4 / size_of::<$type>();
            #[inline(always)]
            fn of_words<S: Simd>(s: S, words: S::U, index: usize) -> S::F {
                $of_words(s, words, index)
            }
            #[inline(always)]
            unsafe fn load<S: Simd>(s: S, from: *const Self) -> S::F {
                unsafe { s.$load(from) }
            }
            #[inline(always)]
            unsafe fn store<S: Simd>(s: S, to: *mut Self, x: S::F) {
                unsafe { s.$store(to, x) }
            }
            #[inline(always)]
            fn to_f32(self) -> f32 {
                $to(self)
            }
            #[inline(always)]
            fn from_f32(x: f32) -> Self {
                $from(x)
            }
            fn slice(floats: Floats<'_>) -> &[Self] {
                match floats {
                    Floats::$variant(slice) => slice,
                    other => panic!("{other:?}"),
                }
            }
        }
    };
}
element!(f32, F32, load, store, std::convert::identity, std::convert::identity, |s: S, words, _| s.floats(words));
element!(f16, F16, load_f16, store_f16, f16::to_f32, f16::from_f32, S::f16_of_words);
element!(bf16, Bf16, load_bf16, store_bf16, bf16::to_f32, bf16::from_f32, S::bf16_of_words);

/// Numbers of one of the three types.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub enum Floats<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// Numbers of one of the three types, to be written.
#[derive(Debug)]
#[allow(missing_docs)]
pub enum FloatsMut<'a> {
    F32(&'a mut [f32]),
    F16(&'a mut [f16]),
    Bf16(&'a mut [bf16]),
}

/// Which of the three types numbers are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    F32,
    F16,
    Bf16,
}

impl Kind {
    /// The type that MLX gives the result of an operation on both.
    pub fn promoted(self, other: Kind) -> Kind {
        if self == other { self } else { Kind::F32 }
    }
}

/// Numbers of one of the three types, in memory to calculate in.
pub(super) enum Buffer {
    F32(Scratch<f32>),
    F16(Scratch<f16>),
    Bf16(Scratch<bf16>),
}

impl Buffer {
    pub fn new(kind: Kind, len: usize) -> Self {
        match kind {
            Kind::F32 => Buffer::F32(Scratch::new(len)),
            Kind::F16 => Buffer::F16(Scratch::new(len)),
            Kind::Bf16 => Buffer::Bf16(Scratch::new(len)),
        }
    }

    pub fn floats(&self) -> Floats<'_> {
        match self {
            Buffer::F32(x) => Floats::F32(x),
            Buffer::F16(x) => Floats::F16(x),
            Buffer::Bf16(x) => Floats::Bf16(x),
        }
    }

    pub fn floats_mut(&mut self) -> FloatsMut<'_> {
        match self {
            Buffer::F32(x) => FloatsMut::F32(x),
            Buffer::F16(x) => FloatsMut::F16(x),
            Buffer::Bf16(x) => FloatsMut::Bf16(x),
        }
    }
}

/// Evaluate an expression with `$slice` bound to the slice inside, whatever its type.
macro_rules! typed {
    ($enum:ident, $floats:expr, $slice:ident => $body:expr) => {
        match $floats {
            $crate::backend::cpu::types::$enum::F32($slice) => $body,
            $crate::backend::cpu::types::$enum::F16($slice) => $body,
            $crate::backend::cpu::types::$enum::Bf16($slice) => $body,
        }
    };
}
pub(super) use typed;

/// Numbers of any type to f32.
#[inline(always)]
pub(super) fn load_all<S: Simd, E: Element>(s: S, from: &[E], to: &mut [f32]) {
    assert_eq!(from.len(), to.len());
    let whole = to.len() / S::LANES * S::LANES;
    for i in (0..whole).step_by(S::LANES) {
        // SAFETY: `i + LANES` stays within both.
        unsafe { s.store(to.as_mut_ptr().add(i), E::load(s, from.as_ptr().add(i))) };
    }
    for i in whole..to.len() {
        to[i] = from[i].to_f32();
    }
}

/// As many numbers to `to` as there are in `from`.
///
/// # Safety
/// There is room for as many, which no other thread reads or writes meanwhile.
#[inline(always)]
pub(super) unsafe fn store_all<S: Simd, E: Element>(s: S, from: &[f32], to: Shared<E>) {
    let whole = from.len() / S::LANES * S::LANES;
    // SAFETY: the caller has room for as many, which no other thread writes.
    unsafe {
        for i in (0..whole).step_by(S::LANES) {
            E::store(s, to.at(i), s.load(from.as_ptr().add(i)));
        }
        for (i, x) in from.iter().enumerate().skip(whole) {
            to.at(i).write(E::from_f32(*x));
        }
    }
}

/// Numbers of one type to as many of another.
pub(super) fn convert(from: Floats, to: FloatsMut) {
    match (from, to) {
        (Floats::F32(from), FloatsMut::F32(to)) => to.copy_from_slice(from),
        (Floats::F16(from), FloatsMut::F16(to)) => to.copy_from_slice(from),
        (Floats::Bf16(from), FloatsMut::Bf16(to)) => to.copy_from_slice(from),
        (from, to) => typed!(Floats, from, from => typed!(FloatsMut, to, to => {
            assert_eq!(from.len(), to.len());
            from.iter().zip(to).for_each(|(from, to)| *to = Element::from_f32(from.to_f32()));
        })),
    }
}

/// The slice inside `floats`, which are of the type of the other slice.
pub(super) fn same_type<'a, E: Element>(_: &[E], floats: Floats<'a>) -> &'a [E] {
    E::slice(floats)
}

impl Floats<'_> {
    /// How many there are.
    pub fn len(&self) -> usize {
        typed!(Floats, self, x => x.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// A part of them.
    pub fn part(self, range: Range<usize>) -> Self {
        match self {
            Floats::F32(x) => Floats::F32(&x[range]),
            Floats::F16(x) => Floats::F16(&x[range]),
            Floats::Bf16(x) => Floats::Bf16(&x[range]),
        }
    }

    pub(super) fn kind(&self) -> Kind {
        match self {
            Floats::F32(_) => Kind::F32,
            Floats::F16(_) => Kind::F16,
            Floats::Bf16(_) => Kind::Bf16,
        }
    }

    /// Where they begin.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn bytes(&self) -> *const u8 {
        typed!(Floats, self, x => x.as_ptr().cast())
    }

    /// Bits of one number.
    pub(super) fn bits(&self) -> usize {
        if matches!(self, Floats::F32(_)) { 32 } else { 16 }
    }
}

impl FloatsMut<'_> {
    /// A part of them.
    pub fn part(&mut self, range: Range<usize>) -> FloatsMut<'_> {
        match self {
            FloatsMut::F32(y) => FloatsMut::F32(&mut y[range]),
            FloatsMut::F16(y) => FloatsMut::F16(&mut y[range]),
            FloatsMut::Bf16(y) => FloatsMut::Bf16(&mut y[range]),
        }
    }

    /// To be read.
    pub fn floats(&self) -> Floats<'_> {
        match self {
            FloatsMut::F32(y) => Floats::F32(y),
            FloatsMut::F16(y) => Floats::F16(y),
            FloatsMut::Bf16(y) => Floats::Bf16(y),
        }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        typed!(FloatsMut, self, y => y.len())
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A weight `[rows, columns]` in row-major order.
#[derive(Debug, Clone, Copy)]
pub struct Matrix<'a> {
    /// Outputs of a linear layer; tokens of an embedding.
    pub rows: usize,
    /// Inputs of a linear layer; the width of an embedding.
    pub columns: usize,
    /// The numbers.
    pub values: Values<'a>,
}

/// How a weight's numbers are stored.
#[derive(Debug, Clone, Copy)]
pub enum Values<'a> {
    /// As they are.
    Dense(Floats<'a>),
    /// In MLX's affine quantization: see [`crate::quantized`].
    Affine(Affine<'a>),
}

/// A weight in MLX's affine quantization: value k of a row is `scale * q + bias`, with q bits `k * bits..` of the row's
/// words, lowest first, and one scale and bias for `group_size` values.
#[derive(Debug, Clone, Copy)]
pub struct Affine<'a> {
    /// `[rows, columns * bits / 32]`.
    pub packed: &'a [u32],
    /// `[rows, columns / group_size]`.
    pub scales: Floats<'a>,
    /// `[rows, columns / group_size]`, of the type of `scales`.
    pub biases: Floats<'a>,
    /// One of [`GROUP_SIZES`].
    pub group_size: usize,
    /// One of [`BITS`].
    pub bits: u32,
}

impl Matrix<'_> {
    /// # Panics
    /// When the sizes do not fit together.
    pub(super) fn check(&self) {
        match self.values {
            Values::Dense(values) => assert_eq!(values.len(), self.rows * self.columns, "dense weight"),
            Values::Affine(Affine { packed, scales, biases, group_size, bits }) => {
                assert!(GROUP_SIZES.contains(&(group_size as i32)) && BITS.contains(&(bits as i32)));
                assert_eq!(self.columns % group_size, 0, "groups");
                assert_eq!(packed.len(), self.rows * self.columns / 32 * bits as usize, "packed weight");
                assert_eq!(scales.len(), self.rows * self.columns / group_size, "scales");
                assert_eq!(biases.len(), scales.len(), "biases");
                assert_eq!(std::mem::discriminant(&scales), std::mem::discriminant(&biases), "types");
            }
        }
    }
}

/// A linear layer: `x · weightᵀ + bias`.
#[derive(Debug, Clone, Copy)]
#[allow(missing_docs)]
pub struct Layer<'a> {
    pub weight: Matrix<'a>,
    pub bias: Option<Floats<'a>>,
}

impl Layer<'_> {
    /// The type of its numbers, or of its scales.
    pub(super) fn kind(&self) -> Kind {
        match self.weight.values {
            Values::Dense(values) | Values::Affine(Affine { scales: values, .. }) => values.kind(),
        }
    }

    /// Add the bias of `rows`, if there is one, to each row of `sums` `[tokens, width]`, in its first numbers.
    pub(super) fn add_bias(&self, rows: Range<usize>, width: usize, sums: &mut [f32]) {
        let Some(bias) = self.bias else { return };
        typed!(Floats, bias, bias => {
            for sums in sums.chunks_exact_mut(width) {
                sums.iter_mut().zip(&bias[rows.clone()]).for_each(|(sum, bias)| *sum += bias.to_f32());
            }
        });
    }
}

/// A pointer for threads that write disjoint parts.
pub(super) struct Shared<T>(pub *mut T);

impl<T> Clone for Shared<T> {
    fn clone(&self) -> Self {
        *self
    }
}
impl<T> Copy for Shared<T> {}

impl<T> Shared<T> {
    /// # Safety
    /// `offset` lies within what the pointer was made from, and no other thread reads or writes there meanwhile.
    #[inline(always)]
    pub unsafe fn at(self, offset: usize) -> *mut T {
        unsafe { self.0.add(offset) }
    }
}

// SAFETY: `at` leaves it to its caller that threads keep apart.
unsafe impl<T: Send> Send for Shared<T> {}
unsafe impl<T: Send> Sync for Shared<T> {}

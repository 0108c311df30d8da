//! Scales and biases of blocks of rows, turned so that a lane holds a row.

use crate::backend::cpu::isa::Simd;
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::types::{Affine, Element, same_type, typed};

/// Scales and biases of as many groups of a block of R · LANES rows as a vector of words of one row has.
pub(super) struct Numbers<'a, const R: usize> {
    affine: &'a Affine<'a>,
    /// Groups of a row.
    groups: usize,
    /// `[groups, scales and biases, R · LANES]`.
    table: Scratch<f32>,
    /// How many groups are turned at once: 2 to this power.
    shift: u32,
    /// Bytes of the scales of a row, and of the biases.
    stride: usize,
    /// Where the scales and biases begin that are read next.
    ahead: [*const u8; 2],
}

impl<'a, const R: usize> Numbers<'a, R> {
    pub fn new<S: Simd>(_: S, affine: &'a Affine<'a>, columns: usize) -> Self {
        let groups = columns / affine.group_size;
        let shift = (S::LANES * 32 / affine.scales.bits()).trailing_zeros();
        let table = Scratch::new((1 << shift) * 2 * R * S::LANES);
        let stride = groups * affine.scales.bits() / 8;
        Numbers { affine, groups, table, shift, stride, ahead: [std::ptr::null(); 2] }
    }

    /// Whether those of groups from `group` on are to be turned next.
    #[inline(always)]
    pub fn begin_with(&self, group: usize) -> bool {
        group.trailing_zeros() >= self.shift
    }

    /// Turn those of groups from `group` on, as [`Numbers::begin_with`] says, of the block that begins at row `first`, before the
    /// one that begins at `next`.
    #[inline(always)]
    pub fn turn<S: Simd>(&mut self, s: S, group: usize, first: usize, next: usize) {
        let rows = R * S::LANES;
        let following = group + (1 << self.shift);
        let (row, column) = if following < self.groups { (first, following) } else { (next, 0) };
        let Numbers { affine, groups, table, ahead, .. } = self;
        typed!(Floats, affine.scales, scales => {
            for (i, from) in [scales, same_type(scales, affine.biases)].into_iter().enumerate() {
                for lane in (0..rows).step_by(S::LANES) {
                    turn(s, from, *groups, first + lane, group, &mut table[i * rows + lane..], 2 * rows);
                }
                ahead[i] = from.as_ptr().wrapping_add(row * *groups + column).cast();
            }
        });
    }

    /// Scales and biases of group `group`, R · LANES each, a row to a lane. Those that are turned next are asked for as groups come.
    #[inline(always)]
    pub fn of_group<S: Simd>(&self, s: S, group: usize) -> [*const f32; 2] {
        let rows = R * S::LANES;
        let at = group & ((1 << self.shift) - 1);
        // As many rows as there are for each of the groups: R, or half as many where two numbers are a word.
        let asked = |groups: usize| (groups * rows) >> self.shift;
        for r in 0..R {
            let row = asked(at) + r;
            if row < asked(at + 1) {
                for ahead in self.ahead {
                    s.prefetch(ahead.wrapping_add(row * self.stride));
                }
            }
        }
        // The table has `1 << shift` groups.
        let scales = self.table.as_ptr().wrapping_add(at * 2 * rows);
        [scales, scales.wrapping_add(rows)]
    }
}

/// Values from `at` on of rows `first..first + LANES` of `values` `[rows, n]`, as many as LANES words hold, to the first LANES of
/// every `width` numbers of `to`; rows that there are not are the last one, and values that there are not are anything.
#[inline(always)]
fn turn<S: Simd, E: Element>(s: S, values: &[E], n: usize, first: usize, at: usize, to: &mut [f32], width: usize) {
    let (last, count) = (values.len() / n - 1, E::OF_WORD * S::LANES);
    assert!(at < n && values.len() == (last + 1) * n && to.len() >= (count - 1) * width + S::LANES);
    let mut rows = [std::ptr::null::<u32>(); 16];
    for lane in 0..S::LANES {
        rows[lane] = values.as_ptr().wrapping_add((first + lane).min(last) * n + at).cast();
    }
    let mut copies;
    if n - at < count {
        copies = [[0; 16]; 16];
        for lane in 0..S::LANES {
            // SAFETY: so many values are left of the row, and a copy has room for more of them.
            unsafe { std::ptr::copy_nonoverlapping(rows[lane].cast::<E>(), copies[lane].as_mut_ptr().cast(), n - at) };
            rows[lane] = copies[lane].as_ptr();
        }
    }
    // SAFETY: each row has a word for each lane, and `to` has room for a vector every `width` numbers.
    unsafe {
        let columns = s.load_columns(&rows);
        for i in 0..S::LANES {
            for j in 0..E::OF_WORD {
                s.store(to.as_mut_ptr().add((i * E::OF_WORD + j) * width), E::of_words(s, columns[i], j));
            }
        }
    }
}

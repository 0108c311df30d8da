//! Words of a block of rows, transposed so that a lane holds a row: at once, or in pieces between the products of the words before,
//! which other units of a core compute.

use std::array::from_fn;

use crate::backend::cpu::isa::Simd;
use crate::backend::cpu::scratch::Scratch;
use crate::backend::cpu::unpack::Rows;

/// The most words of a row that are transposed together: a group of 128 values of 8 bits.
pub(super) const WORDS: usize = 32;

/// Some words of each of R · LANES rows on their way to `[words, R · LANES]`.
pub(super) struct Transposing<'a, S: Simd, const R: usize> {
    s: S,
    packed: &'a [u32],
    words_of_row: usize,
    rows: [Rows<'a>; R],
    /// The first of the words, and how many of a row.
    word: usize,
    n: usize,
    /// The next piece: of LANES words of LANES rows, four rows each, then four of the columns that these make in fours.
    piece: usize,
    fours: [u32; 256],
    transposed: Scratch<u32>,
}

impl<'a, S: Simd, const R: usize> Transposing<'a, S, R> {
    /// Pieces of LANES words of LANES rows.
    const PIECES: usize = S::LANES / 4 + 4;

    /// For `packed` `[rows, words_of_row]`.
    pub fn new(s: S, packed: &'a [u32], words_of_row: usize) -> Self {
        let rows = from_fn(|_| Rows::new(packed, words_of_row, 0));
        let transposed = Scratch::new(WORDS * R * S::LANES);
        Transposing { s, packed, words_of_row, rows, word: 0, n: 0, piece: 0, fours: [0; 256], transposed }
    }

    /// Begin with `n` words from `word` on of rows from `first` on. Those of a row come one after the other.
    #[inline(always)]
    pub fn begin(&mut self, first: usize, word: usize, n: usize) {
        assert!(n <= WORDS && word + n <= self.words_of_row);
        if word == 0 {
            self.rows = from_fn(|r| Rows::new(self.packed, self.words_of_row, first + r * S::LANES));
        }
        (self.word, self.n, self.piece) = (word, n, 0);
    }

    /// Do what is left, and exchange the result for `words`, as long as it.
    #[inline(always)]
    pub fn finish(&mut self, words: &mut Scratch<u32>) {
        if self.piece > 0 {
            while self.go_on() {}
        } else {
            let (s, to) = (self.s, self.transposed.as_mut_ptr());
            for r in 0..R {
                for i in (0..self.n).step_by(S::LANES) {
                    let columns = self.rows[r].words(s, self.word + i, self.n - i);
                    for c in 0..S::LANES {
                        // SAFETY: there is room for WORDS words, a multiple of LANES, and `begin` checked that these are no more.
                        unsafe { s.store_words(to.add(((i + c) * R + r) * S::LANES), columns[c]) };
                    }
                    self.rows[r].prefetch(s, self.word + i + self.n);
                }
            }
        }
        (self.n, self.piece) = (0, 0);
        std::mem::swap(words, &mut self.transposed);
    }

    /// Do the next piece, if there is one.
    #[inline(always)]
    pub fn go_on(&mut self) -> bool {
        let s = self.s;
        // A row's end is done at once.
        if self.piece == self.n / S::LANES * R * Self::PIECES || !self.n.is_multiple_of(S::LANES) {
            return false;
        }
        let (block, part) = (self.piece / Self::PIECES, self.piece % Self::PIECES);
        let (r, first) = (block % R, block / R * S::LANES);
        self.piece += 1;
        if part < S::LANES / 4 {
            let mut words = [s.splat_word(0); 4];
            for row in 0..4 {
                let start = self.rows[r].start(4 * part + row).wrapping_add(self.word + first);
                // SAFETY: `begin` checked that rows have these words.
                words[row] = unsafe { s.load_words(start) };
                s.prefetch(start.wrapping_add(self.n));
            }
            let fours = s.transpose_in_fours(words);
            for c in 0..4 {
                // SAFETY: there are four of 16 lanes for each four rows.
                unsafe { s.store_words(self.fours.as_mut_ptr().add((4 * part + c) * S::LANES), fours[c]) };
            }
        } else {
            let c = part - S::LANES / 4;
            let mut fours = [s.splat_word(0); 4];
            for i in 0..S::LANES / 4 {
                // SAFETY: as where they were stored.
                fours[i] = unsafe { s.load_words(self.fours.as_ptr().add((4 * i + c) * S::LANES)) };
            }
            let columns = s.transpose_fours(fours);
            let to = self.transposed.as_mut_ptr();
            for h in 0..S::LANES / 4 {
                // SAFETY: as in `finish`.
                unsafe { s.store_words(to.add(((first + 4 * h + c) * R + r) * S::LANES), columns[h]) };
            }
        }
        true
    }
}

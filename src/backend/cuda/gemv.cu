//! Products of a few vectors with matrices of 4- or 8-bit weights, as MLX packs them: y = x · Wᵀ, on the tensor cores of any
//! NVIDIA GPU from compute capability 8.0 on. `gemv.rs` writes the kernels that call this, behind `numbers.cu`.
//!
//! A weight is scale · q + bias with q in whole numbers, so a group's share of a product is scale · Σ q x + bias · Σ x. The
//! vectors become whole numbers of 16 bits with a scale for each group of weights, two digits of eight bits each, and Σ q x
//! is made by `mma.m16n8k32`: four bits unpack to eight by a mask and a shift, eight bits not at all. The sums are exact;
//! their order, and that of all roundings after them, depends on the matrix alone, and not on how many vectors there are.
//!
//! The instruction multiplies 16 rows with eight columns, and four lanes share a row. Each loads 16 bytes of it, so that a
//! row is read 64 bytes at a time, a chunk. The instruction adds up over the four, who may hold different groups; so each
//! of its columns sees one group: pair u of columns holds both digits of vector u % V in the u / V-th group of the chunk,
//! and zeros elsewhere, V being as many vectors as that leaves room for. More vectors take more instructions for the same
//! unpacked weights, a set for V of them.

namespace mlx_lm {

struct Layer {
  const unsigned* words;          // [rows, columns · bits / 32]
  const unsigned short* scales;   // [rows, columns / group], as biases
  const unsigned short* biases;
  const unsigned short* bias;     // [rows], or null
  int rows;
};

// What else a kernel does. Both may be null.
struct Fused {
  const unsigned short* norm;      // [columns]: the vectors are normalised by the root of their mean square, and get these factors
  float eps;                       // added to the mean square
  const unsigned short* residual;  // of y's shape, added to it
};

struct Words {
  unsigned of[4];
};

// What is read once and by one warp need not stay in the first-level cache.
__device__ Words load_once(const void* from) {
  Words w;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(w.of[0]), "=r"(w.of[1]), "=r"(w.of[2]), "=r"(w.of[3]) : "l"(from));
  return w;
}

__device__ unsigned short load_number(const unsigned short* from) {
  unsigned short bits;
  asm volatile("ld.global.nc.u16 %0, [%1];" : "=h"(bits) : "l"(from));
  return bits;
}

// c += a · b in whole numbers: a 16 × 32 without a sign, b 32 × 8 with one.
__device__ void multiply(int (&c)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k32.row.col.s32.u8.s8.s32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+r"(c[0]), "+r"(c[1]), "+r"(c[2]), "+r"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// The larger, or NaN where one is.
__device__ float larger(float a, float b) {
  float c;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(c) : "f"(a), "f"(b));
  return c;
}

__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

// The first multiple of `of` that is not below n.
__host__ __device__ constexpr int up_to(int n, int of) { return (n + of - 1) / of * of; }

template <int BITS, int GROUP>
struct Tiling {
  static constexpr int CHUNK = 512 / BITS;                // columns in 64 bytes of a row
  static constexpr int LANE = CHUNK / 4;                  // of which a lane has so many
  static constexpr int UNIT = smaller(GROUP, CHUNK);      // columns of a chunk with one scale
  static constexpr int UNITS = CHUNK / UNIT;              // in a chunk
  static constexpr int V = 4 / UNITS;                     // vectors of a set
};

// Bytes of shared memory for each vector: its digits, and a scale and a sum for each unit. The 16 bytes between the digits
// put them into different banks.
template <int BITS, int GROUP, int COLUMNS>
__host__ __device__ constexpr int vector_bytes() {
  using S = Tiling<BITS, GROUP>;
  return 2 * (up_to(COLUMNS, S::CHUNK) + 16) + COLUMNS / S::UNIT * 8;
}

// Bytes of shared memory besides: zeros, and the warps' sums, twice.
template <int WARPS, int VECTORS>
__host__ __device__ constexpr int fixed_bytes() { return 32 + 2 * WARPS * VECTORS * 16 * 4; }

struct GemvArguments {
  Layer layers[3];
  Fused fused;
  const unsigned short* x;  // [vectors, columns]
  unsigned short* y;        // which may be the residual's memory
  int vectors;
};

// A kernel's blocks share the tiles of 16 rows of `layers`, which are concatenated in y [vectors, all rows]; or, for SWIGLU,
// of eight rows of the first and the same of the second, of which y [vectors, rows] has silu(first) · second. The WARPS of a
// block share the columns of a tile, a chunk each in turn. A warp holds AHEAD chunks, and asks for the one that comes after
// them, also across tiles, as soon as it has multiplied the first; and it asks for the first of all before the vectors are
// in shared memory. As many vectors as that has room for, and no more than SETS make, are multiplied in one pass.
template <int BITS, int GROUP, Type T, int COLUMNS, int LAYERS, bool SWIGLU, int SETS, int WARPS, int AHEAD>
struct Gemv {
  using S = Tiling<BITS, GROUP>;
  static constexpr int VECTORS = SETS * S::V, THREADS = WARPS * 32;
  static constexpr int CHUNKS = up_to(COLUMNS, S::CHUNK) / S::CHUNK;
  static constexpr int TURNS = up_to(up_to(CHUNKS, WARPS) / WARPS, AHEAD);  // chunks of a warp in a tile
  static constexpr int UNITS = COLUMNS / S::UNIT;                           // of a row
  static constexpr int PITCH = CHUNKS * S::CHUNK + 16;                      // bytes from digit to digit
  static_assert(WARPS % 2 == 0 && COLUMNS % GROUP == 0);

  struct Chunk {
    Words words[2];  // of rows `row` and `row + 8` of the tile
    unsigned short scales[2], biases[2];
  };

  // A lane's part of the warp's first chunk of a tile.
  struct Rows {
    const unsigned* words[2];
    const unsigned short *scales[2], *biases[2];
  };

  const Layer (&layers)[LAYERS];
  Fused fused;
  int warp, row, t;

  __device__ Gemv(const Layer (&layers)[LAYERS], Fused fused)
      : layers(layers), fused(fused), warp(threadIdx.x / 32), row(threadIdx.x % 32 / 4), t(threadIdx.x % 4) {}

  __device__ int tiles() const {
    if (SWIGLU) return (layers[0].rows + 7) / 8;
    int n = 0;
#pragma unroll
    for (int l = 0; l < LAYERS; l++) n += (layers[l].rows + 15) / 16;
    return n;
  }

  // The layer that has a tile, which becomes one of its own, and how many rows come before it.
  __device__ Layer layer_of(int& tile, int& before) const {
    Layer layer = layers[0];
    before = 0;
    if (SWIGLU) return layer;
    bool found = false;
#pragma unroll
    for (int l = 0; l + 1 < LAYERS; l++) {
      int n = (layers[l].rows + 15) / 16;
      if (found || tile < n) {
        found = true;
      } else {
        tile -= n;
        before += layers[l].rows;
        layer = layers[l + 1];
      }
    }
    return layer;
  }

  __device__ void find(Rows& rows, int tile) const {
    int before, column = warp * S::CHUNK, group = (column + t / S::V * S::UNIT) / GROUP;
    Layer layer = layer_of(tile, before);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      if (SWIGLU) layer = layers[half];
      // Behind the last row, that one again.
      size_t r = smaller(SWIGLU ? tile * 8 + row : tile * 16 + row + 8 * half, layer.rows - 1);
      rows.words[half] = layer.words + r * (COLUMNS * BITS / 32) + warp * 16 + 4 * t;
      rows.scales[half] = layer.scales + r * (COLUMNS / GROUP) + group;
      rows.biases[half] = layer.biases + r * (COLUMNS / GROUP) + group;
    }
  }

  // Whether a warp has a chunk in its `turn`, and a lane its part of it.
  __device__ bool has(int turn) const { return (turn + 1) * WARPS <= CHUNKS || turn * WARPS + warp < CHUNKS; }

  __device__ void load(Chunk& chunk, const Rows& rows, int turn) const {
    int from = (turn * WARPS + warp) * S::CHUNK;
    bool whole = (turn + 1) * WARPS * S::CHUNK <= COLUMNS;
    bool has_words = whole || from + t * S::LANE < COLUMNS, has_group = whole || from + t / S::V * S::UNIT < COLUMNS;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      chunk.words[half] = has_words ? load_once(rows.words[half] + turn * WARPS * 16) : Words{};
      constexpr int GROUPS = WARPS * S::CHUNK / GROUP;
      chunk.scales[half] = has_group ? load_number(rows.scales[half] + turn * GROUPS) : 0;
      chunk.biases[half] = has_group ? load_number(rows.biases[half] + turn * GROUPS) : 0;
    }
  }

  // In shared memory: zeros, digits [VECTORS, 2, PITCH], scales and sums [VECTORS, UNITS], and the warps' sums.
  static constexpr int DIGITS = 32, SUMS = DIGITS + VECTORS * 2 * PITCH, PARTIAL = SUMS + VECTORS * UNITS * 8;
  static_assert(PARTIAL + 2 * WARPS * VECTORS * 16 * 4 == fixed_bytes<WARPS, VECTORS>() + VECTORS * vector_bytes<BITS, GROUP, COLUMNS>());

  __device__ void run(const unsigned short* x, unsigned short* y, int vectors) const {
    extern __shared__ __align__(16) unsigned char shared[];
    allow_next();
    for (int first = 0; first < vectors; first += VECTORS) {
      if (first > 0) __syncthreads();
      pass(shared, x + (size_t)first * COLUMNS, y, first, smaller(VECTORS, vectors - first));
    }
  }

  // Eight numbers of a vector or a norm.
  __device__ static void load_eight(const unsigned short* from, float (&values)[8]) {
    unsigned pairs[4];
    if (reinterpret_cast<size_t>(from) % 16 == 0) {
      uint4 four = *reinterpret_cast<const uint4*>(from);
      pairs[0] = four.x, pairs[1] = four.y, pairs[2] = four.z, pairs[3] = four.w;
    } else {
#pragma unroll
      for (int k = 0; k < 4; k++) pairs[k] = from[2 * k] | unsigned(from[2 * k + 1]) << 16;
    }
#pragma unroll
    for (int k = 0; k < 8; k++) values[k] = to_float<T>(static_cast<unsigned short>(pairs[k / 2] >> 16 * (k % 2)));
  }

  // A thread's part of the sum of a vector's squares.
  __device__ static float squares(const unsigned short* x) {
    float sum = 0;
    for (int at = threadIdx.x; at < COLUMNS / 8; at += THREADS) {
      float values[8];
      load_eight(x + at * 8, values);
#pragma unroll
      for (int k = 0; k < 8; k++) sum = __fmaf_rn(values[k], values[k], sum);
    }
    return sum;
  }

  // One over the root of a vector's mean square, of the warps' sums of squares.
  __device__ float inverse_rms(const float* sums) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum = __fadd_rn(sum, sums[w]);
    return __frsqrt_rn(__fadd_rn(__fdiv_rn(sum, float(COLUMNS)), fused.eps));
  }

  // The vectors as digits, [vectors, 2, PITCH], in the order in which weights unpack, and [vectors, UNITS] of the scale and
  // the scaled sum. `partial` has room for [vectors, WARPS].
  __device__ void split(const unsigned short* x, int vectors, unsigned char* digits, float2* sums, float* partial) const {
    constexpr int EIGHTS = GROUP / 8, ALL = COLUMNS / 8;
    if (fused.norm) {
      for (int vector = 0; vector < vectors; vector++) {
        float sum = sum_over_warp(squares(x + (size_t)vector * COLUMNS));
        if (threadIdx.x % 32 == 0) partial[vector * WARPS + warp] = sum;
      }
      __syncthreads();
    }
    for (int vector = 0; vector < vectors; vector++) {
      float factor = fused.norm ? inverse_rms(partial + vector * WARPS) : 1;
      for (int at = threadIdx.x; at < ALL; at += THREADS) {
        unsigned lanes = ((1u << EIGHTS) - 1) << (threadIdx.x % 32 / EIGHTS * EIGHTS);  // which have the group
        float values[8], most = 0;
        load_eight(x + (size_t)vector * COLUMNS + at * 8, values);
        if (fused.norm) {
          float weights[8];
          load_eight(fused.norm + at * 8, weights);
#pragma unroll
          for (int k = 0; k < 8; k++) values[k] = __fmul_rn(__fmul_rn(values[k], factor), weights[k]);
        }
#pragma unroll
        for (int k = 0; k < 8; k++) most = larger(most, fabsf(values[k]));
#pragma unroll
        for (int k = 1; k < EIGHTS; k *= 2) most = larger(most, __shfl_xor_sync(lanes, most, k));
        // So small, numbers count as zeros; ∞ and NaN make the scale, and so the products, no numbers.
        bool is_zero = most < 1e-30f;
        float scale = is_zero ? 0 : __fdiv_rn(most, 32639.0f), inverse = is_zero ? 0 : __fdiv_rn(32639.0f, most);
        int sum = 0;
        unsigned low[2] = {}, high[2] = {};
#pragma unroll
        for (int k = 0; k < 8; k++) {
          // At most 127 · 256 + 127, so that each digit has eight bits.
          int number = __float2int_rn(__fmul_rn(values[k], inverse));
          sum += number;
          // Four bits unpack to even columns first, then odd ones.
          int to = BITS == 4 ? k % 2 * 4 + k / 2 : k;
          low[to / 4] |= (number & 255u) << 8 * (to % 4);
          high[to / 4] |= ((number + 128) >> 8 & 255u) << 8 * (to % 4);
        }
#pragma unroll
        for (int k = 1; k < S::UNIT / 8; k *= 2) sum += __shfl_xor_sync(lanes, sum, k);
        unsigned char* to = digits + vector * 2 * PITCH + at * 8;
        *reinterpret_cast<uint2*>(to) = {high[0], high[1]};
        *reinterpret_cast<uint2*>(to + PITCH) = {low[0], low[1]};
        if (at % (S::UNIT / 8) == 0) sums[vector * UNITS + at / (S::UNIT / 8)] = {scale, __fmul_rn(scale, float(sum))};
      }
    }
  }

  // Where a lane finds the vectors in shared memory.
  struct Vectors {
    const unsigned char* shared;
    int sees;    // ~0, or 0 where the lane's column of the instruction sees zeros, which are at the beginning
    int digits;  // of the first set's vector in the column, for the warp's first chunk
    int step;    // to its next chunk
    int sums;    // of the first set's vector in the lane's results
  };

  __device__ void multiply_chunk(const Chunk& chunk, const Vectors& vectors, int turn, float (&sums)[SETS][2]) const {
    constexpr int STEPS = S::LANE / 8;  // instructions of a set
    // Sums begin at the bits of 3 · 2²², in which an f32 counts ones: they stay below 2²².
    constexpr unsigned MIDDLE = 0x4b400000;
    unsigned a[STEPS][4];
#pragma unroll
    for (int i = 0; i < STEPS; i++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        const unsigned* words = chunk.words[half].of;
        a[i][half] = BITS == 4 ? words[i] & 0x0f0f0f0f : words[2 * i];
        a[i][2 + half] = BITS == 4 ? words[i] >> 4 & 0x0f0f0f0f : words[2 * i + 1];
      }
    float scales[2], biases[2];
#pragma unroll
    for (int half = 0; half < 2; half++) {
      scales[half] = to_float<T>(chunk.scales[half]);
      biases[half] = to_float<T>(chunk.biases[half]);
    }
    // A unit that is not there has a scale and a bias of 0, and any sums that are.
    int unit = turn * WARPS * S::UNITS, from = (turn * WARPS + warp) * S::CHUNK + t / S::V * S::UNIT;
    bool is_there = (turn + 1) * WARPS * S::CHUNK <= COLUMNS || from < COLUMNS;
#pragma unroll
    for (int s = 0; s < SETS; s++) {
      int c[4] = {MIDDLE, MIDDLE, MIDDLE, MIDDLE};
      int at = vectors.digits + turn * vectors.step + (s * S::V * 2 * PITCH & vectors.sees);
#pragma unroll
      for (int k = 0; k < STEPS / 2; k++) {
        uint4 x = *reinterpret_cast<const uint4*>(vectors.shared + at + k * 16);
        multiply(c, a[2 * k][0], a[2 * k][1], a[2 * k][2], a[2 * k][3], x.x, x.y);
        multiply(c, a[2 * k + 1][0], a[2 * k + 1][1], a[2 * k + 1][2], a[2 * k + 1][3], x.z, x.w);
      }
      const unsigned char* of = vectors.shared + vectors.sums + (s * S::V * UNITS + unit) * 8;
      float2 x = is_there ? *reinterpret_cast<const float2*>(of) : float2{};
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float high = __fsub_rn(__int_as_float(c[2 * half]), 12582912.0f), low = __fsub_rn(__int_as_float(c[2 * half + 1]), 12582912.0f);
        sums[s][half] = __fmaf_rn(__fmul_rn(scales[half], x.x), __fmaf_rn(high, 256, low), sums[s][half]);
        sums[s][half] = __fmaf_rn(biases[half], x.y, sums[s][half]);
      }
    }
  }

  __device__ void pass(unsigned char* shared, const unsigned short* x, unsigned short* y, int first, int vectors) const {
    float* partial = reinterpret_cast<float*>(shared + PARTIAL);  // [2, WARPS, VECTORS, 16]

    int all = tiles(), tile = blockIdx.x;
    Rows rows;
    find(rows, tile);
    Chunk chunks[AHEAD];
#pragma unroll
    for (int i = 0; i < AHEAD; i++)
      if (has(i)) load(chunks[i], rows, i);
    if (first == 0) await_previous();

    if (threadIdx.x < DIGITS / 4) reinterpret_cast<unsigned*>(shared)[threadIdx.x] = 0;
    split(x, vectors, shared + DIGITS, reinterpret_cast<float2*>(shared + SUMS), partial);
    __syncthreads();

    // In the right side of the instruction a lane has a column, lane / 4; in its result a pair of them, t. What is read of
    // vectors that are not there becomes results that nobody writes.
    Vectors of;
    of.shared = shared;
    bool is_there = SETS > 1 || row / 2 % S::V < vectors;
    of.sees = is_there && row / 2 / S::V == t * S::UNITS / 4 ? ~0 : 0;
    of.digits = DIGITS + (row / 2 % S::V * 2 + row % 2) * PITCH + warp * S::CHUNK + t * S::LANE;
    of.digits &= of.sees;
    of.step = WARPS * S::CHUNK & of.sees;
    of.sums = SUMS + (t % S::V * UNITS + warp * S::UNITS + t / S::V) * 8;

    for (int parity = 0; tile < all; parity ^= 1) {
      float sums[SETS][2] = {};
      int next = tile + gridDim.x;
#pragma unroll
      for (int turn = 0; turn < TURNS; turn++) {
        if (has(turn)) multiply_chunk(chunks[turn % AHEAD], of, turn, sums);
        if (turn + AHEAD == TURNS && next < all) find(rows, next);
        int then = (turn + AHEAD) % TURNS;
        if ((turn + AHEAD < TURNS || next < all) && has(then)) load(chunks[turn % AHEAD], rows, then);
      }

      float* mine = partial + (parity * WARPS + warp) * VECTORS * 16;
#pragma unroll
      for (int s = 0; s < SETS; s++)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float sum = sums[s][half];
#pragma unroll
          for (int i = S::V; i < 4; i *= 2) sum = __fadd_rn(sum, __shfl_xor_sync(~0u, sum, i));
          if (t < S::V) mine[(s * S::V + t) * 16 + half * 8 + row] = sum;
        }
      __syncthreads();
      write(partial + parity * WARPS * VECTORS * 16, y, tile, first, vectors);
      tile = next;
    }
  }

  __device__ static float total(const float* partial, int vector, int r) {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < WARPS; w++) sum = __fadd_rn(sum, partial[(w * VECTORS + vector) * 16 + r]);
    return sum;
  }

  __device__ static float biased(float sum, const Layer& layer, int r) {
    return layer.bias ? __fadd_rn(sum, to_float<T>(layer.bias[r])) : sum;
  }

  // The sums of a tile over the warps, [WARPS, VECTORS, 16], as numbers of y.
  __device__ void write(const float* partial, unsigned short* y, int tile, int first, int vectors) const {
    constexpr int ROWS = SWIGLU ? 8 : 16;
    if (threadIdx.x >= ROWS * vectors) return;
    int before, width = 0;
    Layer layer = layer_of(tile, before);
#pragma unroll
    for (int l = 0; l < (SWIGLU ? 1 : LAYERS); l++) width += layers[l].rows;
    for (int i = threadIdx.x; i < ROWS * vectors; i += THREADS) {
      int r = tile * ROWS + i % ROWS, vector = i / ROWS;
      if (r >= layer.rows) continue;
      float value = biased(total(partial, vector, i % ROWS), layer, r);
      if (SWIGLU) {
        float up = biased(total(partial, vector, i % ROWS + 8), layers[LAYERS - 1], r);
        value = __fmul_rn(__fdividef(value, __fadd_rn(1, __expf(-value))), up);
      }
      size_t to = (size_t)(first + vector) * width + before + r;
      if (fused.residual) value = __fadd_rn(value, to_float<T>(fused.residual[to]));
      y[to] = from_float<T>(value);
    }
  }
};

}  // namespace mlx_lm

//! Products of up to 32 vectors with matrices of 4- or 8-bit weights, as MLX packs them, or of numbers of the vectors' type: y = x · Wᵀ,
//! on the tensor cores of any NVIDIA GPU from compute capability 8.0 on. `gemv.rs` writes the kernels that call this, behind
//! `numbers.cu` and `tensor.cu`.
//!
//! A weight is scale · q + bias with q in whole numbers, so a unit's share of a product, a unit being columns with one scale, is
//! scale · Σ q x + bias · Σ x. Four bits together with those of 128 (bf16) or 1024 (f16) are a number of the vectors' type, so that
//! Σ (128 + q) x is made by `mma.m16n8k16` without a conversion, and exactly but for the sum's rounding; 128 Σ x is taken off
//! with the bias. Eight bits are two such numbers. A weight is unpacked once for all vectors.
//!
//! The columns of a row in 512 bytes, or 1024 of 16-bit numbers, a segment, are added up by one warp, and the sums of segments in their
//! order. So the order of all roundings depends on the matrix alone: a vector's product is the same, bit for bit, alone and among
//! others, and however many multiprocessors there are.

namespace mlx_lm {

struct Layer {
  const unsigned* words;          // [rows, columns · bits / 32]
  const unsigned short* scales;   // [rows, columns / group], as biases; of 16 bits there are none
  const unsigned short* biases;
  const unsigned short* bias;     // [rows], or null
  int rows;
};

// What else a kernel does. Its norm may be null.
struct Fused {
  const unsigned short* norm;      // [columns]: the vectors are normalised by the root of their mean square, and get these factors
  float eps;                       // added to the mean square
  Residual residual;
};

// Where there are several spans: what their blocks tell each other.
struct Shared {
  float* sums;      // [tiles, segments, 8 · TILES, 16]
  float* squares;   // [segments, 8 · TILES]
  unsigned* count;  // [groups], zeros before and after
};

struct GemvArguments {
  Layer layers[3];
  Fused fused;
  const unsigned short* x;  // [vectors, columns]
  unsigned short* y;        // which may be the residual's memory
  Shared shared;
  int vectors;              // no more than 8 · TILES
  int span;                 // segments of a block
};

// How a matrix lies in memory, and what a lane has of it. Four lanes share a row. A GROUP of 16-bit numbers is 64 columns.
template <int BITS, int GROUP, int COLUMNS>
struct Packed {
  static constexpr int CHUNK = 2048 / BITS;               // columns
  static constexpr int CHUNKS = (COLUMNS + CHUNK - 1) / CHUNK;
  static constexpr bool PLAIN = BITS == 16;
  static constexpr int SEGMENT = PLAIN ? 4 : 2, SEGMENTS = (CHUNKS + SEGMENT - 1) / SEGMENT;  // chunks; in a row
  static constexpr int UNIT = smaller(GROUP, 64);         // columns with one scale
  static constexpr int UNITS = CHUNK / UNIT;              // in a chunk
  static constexpr int LANE = UNIT / 4;                   // columns of a lane in a unit
  static constexpr int WORDS = LANE * BITS / 32;          // which are so many words
  static constexpr int SCALES = PLAIN ? 0 : CHUNK / GROUP * 2;        // bytes of a chunk of a row
  static constexpr int ROW_SCALES = PLAIN ? 0 : COLUMNS / GROUP * 2;  // bytes of a row
  static constexpr int COPY = smaller(16, smaller(SCALES, ROW_SCALES & -ROW_SCALES));  // bytes of scales that are copied at once
  static constexpr int SUMMED = PLAIN ? 0 : UNITS;        // of a chunk, units of the vectors that are added up
  // Bytes from row to row, and from vector to vector beyond a multiple of 128: so that lanes of different rows read different banks.
  static constexpr int PITCH = 256 + (PLAIN ? 16 : 16 * WORDS), PAD = LANE == 8 ? 64 : 16;
  static constexpr int STAGE = 16 * PITCH + 32 * SCALES;  // bytes of a chunk of 16 rows

  __host__ __device__ static constexpr int chunks(int span) { return smaller(span * SEGMENT, CHUNKS); }
};

// A vector's sums of a tile, of a segment, are so many numbers apart: so that lanes write to different banks.
constexpr int SUMS_PITCH = 20;
// Sums of so many tiles may wait for warps that add them up, of which there are so many.
constexpr int BUFFERS = 8, ADDERS = 4;

// Bytes of shared memory of a kernel.
template <int BITS, int GROUP, int COLUMNS>
__host__ __device__ constexpr int shared_bytes(int vectors, int tiles, int warps, int stages, int span, bool norm) {
  using P = Packed<BITS, GROUP, COLUMNS>;
  int chunks = P::chunks(span);
  return warps * stages * P::STAGE + 128 + (norm ? 8 * tiles * (COLUMNS / P::UNIT + 1) * 4 : 0) + chunks * P::SUMMED * 8 * tiles * 4 +
         (span == P::SEGMENTS ? BUFFERS * span * vectors * SUMS_PITCH * 4 : 0) + vectors * (chunks * P::CHUNK * 2 + P::PAD);
}

// A kernel's blocks share the tiles of 16 rows of `layers`, which are concatenated in y [vectors, all rows]; or, with an
// ACTIVATION, of eight rows of the first and the same of the second, of which y [vectors, rows] has activation(first) · second. Where shared
// memory has no room for all columns of the vectors, a tile has several blocks, a group, each with a span of segments.
//
// WARPS of a block take the segments of its tiles in turn. Each asks for STAGES - 1 chunks ahead, also across tiles, and for the
// first of all before it waits for the vectors. ADDERS more warps add up the sums of segments, each those of a tile.
template <int BITS, int GROUP, Type T, int COLUMNS, int LAYERS, Activation ACTIVATION, bool NORM, int TILES, int WARPS, int STAGES>
struct Gemv {
  using P = Packed<BITS, GROUP, COLUMNS>;
  static constexpr bool GATED = ACTIVATION != Activation::NONE;
  static constexpr int VECTORS = 8 * TILES, THREADS = (WARPS + ADDERS) * 32, ROWS = GATED ? 8 : 16;
  static constexpr int ROW_BYTES = COLUMNS * BITS / 8, STAGE = P::STAGE;
  static constexpr bool WHOLE = COLUMNS % P::CHUNK == 0;
  static_assert(COLUMNS % GROUP == 0);

  const GemvArguments& a;
  const Layer (&layers)[LAYERS];
  Fused fused;
  unsigned char* shared;
  int warp, lane, row, t;  // of the matrix instruction, lanes t have row `row`
  int vectors, spans, groups, group, turns;  // turns: tiles of the group
  int segment, segments, chunk, chunks;      // the block's first ones, and how many

  __device__ Gemv(const GemvArguments& a, const Layer (&layers)[LAYERS], Fused fused, unsigned char* shared)
      : a(a), layers(layers), fused(fused), shared(shared), warp(threadIdx.x / 32), lane(threadIdx.x % 32),
        row(threadIdx.x % 32 / 4), t(threadIdx.x % 4), vectors(a.vectors) {
    spans = (P::SEGMENTS + a.span - 1) / a.span;
    groups = gridDim.x / spans, group = blockIdx.x / spans;
    turns = (tiles() - group + groups - 1) / groups;
    segment = blockIdx.x % spans * a.span, segments = smaller(a.span, P::SEGMENTS - segment);
    chunk = segment * P::SEGMENT, chunks = smaller(segments * P::SEGMENT, P::CHUNKS - chunk);
  }

  // Shared memory: the warps' stages; barriers; where NORM, the factors of the vectors [VECTORS], and the squares of units of the
  // vectors, added up, [columns / UNIT, VECTORS]; sums of units of the vectors, [chunks · SUMMED, VECTORS]; where there is one span, sums
  // of tiles, [BUFFERS, segments, vectors, SUMS_PITCH]; and the vectors, [vectors, pitch].
  static constexpr int BARRIERS = WARPS * STAGES * STAGE, FACTORS = BARRIERS + 128, SQUARES = FACTORS + VECTORS * 4;
  static constexpr int UNIT_SUMS = NORM ? SQUARES + COLUMNS / P::UNIT * VECTORS * 4 : FACTORS;
  static_assert(BUFFERS * 12 <= 128 && BUFFERS % ADDERS == 0);
  __device__ unsigned long long* full(int buffer) const { return reinterpret_cast<unsigned long long*>(shared + BARRIERS) + buffer; }
  // The last tile of a buffer whose sums were added up.
  __device__ volatile int* emptied(int buffer) const { return reinterpret_cast<volatile int*>(full(BUFFERS)) + buffer; }
  __device__ float* factors() const { return reinterpret_cast<float*>(shared + FACTORS); }
  __device__ float* squares() const { return reinterpret_cast<float*>(shared + SQUARES); }
  __device__ float* unit_sums() const { return reinterpret_cast<float*>(shared + UNIT_SUMS); }
  __device__ float* sums(int buffer) const {
    return unit_sums() + P::chunks(a.span) * (P::SUMMED * VECTORS) + buffer * a.span * vectors * SUMS_PITCH;
  }
  __device__ unsigned char* numbers() const { return reinterpret_cast<unsigned char*>(sums(spans > 1 ? 0 : BUFFERS)); }
  __device__ int pitch() const { return P::chunks(a.span) * (P::CHUNK * 2) + P::PAD; }

  __device__ int tiles() const {
    if (GATED) return (layers[0].rows + 7) / 8;
    int n = 0;
#pragma unroll
    for (int l = 0; l < LAYERS; l++) n += (layers[l].rows + 15) / 16;
    return n;
  }

  __device__ int tile_of(int turn) const { return group + turn * groups; }

  // The layer that has a tile, which becomes one of its own, and how many rows come before it.
  __device__ Layer layer_of(int& tile, int& before) const {
    Layer layer = layers[0];
    before = 0;
    if (GATED) return layer;
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

  // A segment of a tile, and a chunk in that; all of the block's.
  struct Cursor {
    int turn, segment, chunk;
  };

  __device__ Cursor first() const {
    Cursor at{0, warp, 0};
    wrap(at);
    return at;
  }

  __device__ void wrap(Cursor& at) const {
    while (at.segment >= segments) at.segment -= segments, at.turn++;
  }

  __device__ int chunks_of(int segment) const { return smaller(P::SEGMENT, chunks - segment * P::SEGMENT); }

  __device__ void advance(Cursor& at) const {
    if (++at.chunk < chunks_of(at.segment)) return;
    at.chunk = 0, at.segment += WARPS;
    wrap(at);
  }

  // Ask for a chunk, unless there are no more.
  __device__ void ask(const Cursor& at, unsigned char* stage) const {
    if (at.turn >= turns) return;
    int tile = tile_of(at.turn), before, number_of_chunk = chunk + at.segment * P::SEGMENT + at.chunk;
    int byte = number_of_chunk * 256 + lane % 16 * 16;
    Layer layer = layer_of(tile, before);
    // Behind the last row, that one again.
    auto number = [&](int r) { return size_t(unsigned(smaller(tile * ROWS + r % ROWS, layer.rows - 1))); };
    bool is_there = WHOLE || byte < ROW_BYTES;
    unsigned char* to = stage + lane / 16 * P::PITCH + lane % 16 * 16;
#pragma unroll
    for (int i = 0; i < 8; i++) {
      if (GATED) layer = layers[i / 4 * (LAYERS - 1)];
      const char* from = reinterpret_cast<const char*>(layer.words) + (is_there ? number(lane / 16 + 2 * i) * ROW_BYTES + byte : 0);
      copy_async<16>(to + 2 * i * P::PITCH, from, is_there ? 16 : 0);
    }
    if constexpr (P::PLAIN) return;
    int r = lane % 16;
    if (GATED) layer = r < 8 ? layers[0] : layers[LAYERS - 1];
    const char* from = reinterpret_cast<const char*>(lane < 16 ? layer.scales : layer.biases);
    const char* row = from + number(r) * P::ROW_SCALES;
    to = stage + 16 * P::PITCH + lane * P::SCALES;
#pragma unroll
    for (int i = 0; i < P::SCALES; i += P::COPY) {
      byte = number_of_chunk * P::SCALES + i, is_there = WHOLE || byte < P::ROW_SCALES;
      if constexpr (P::COPY >= 4)
        copy_async<P::COPY>(to + i, is_there ? row + byte : from, is_there ? P::COPY : 0);
      else
        *reinterpret_cast<unsigned short*>(to + i) = is_there ? *reinterpret_cast<const unsigned short*>(row + byte) : 0;
    }
  }

  __device__ void run() {
    bool multiplies = warp < WARPS;
    allow_next();
    if (threadIdx.x == 0)
      for (int i = 0; i < BUFFERS; i++) {
        prepare_barrier(full(i), segments);
        *emptied(i) = -1;
      }
    unsigned char* stages = shared + warp * STAGES * STAGE;
    Cursor next = first();
    if (multiplies)
#pragma unroll
      for (int i = 0; i < STAGES - 1; i++) {
        ask(next, stages + i * STAGE);
        commit_copies();
        advance(next);
      }
    await_previous();
    // f16 has no room for numbers that are not normalised.
    if (NORM && T == Type::F16) {
      place<true, false>(0, P::CHUNKS);
      __syncthreads();
      add_squares(0, P::SEGMENTS);
      __syncthreads();
    }
    place<T != Type::F16, true>(chunk, chunks);
    __syncthreads();

    if (multiplies) {
      int slot = 0, ahead = STAGES - 1;
      for (Cursor at = first(); at.turn < turns; at.segment += WARPS, wrap(at)) {
        float sums[TILES][4] = {};
        for (int i = 0; i < chunks_of(at.segment); i++) {
          await_copies<STAGES - 2>();
          __syncwarp();
          ask(next, stages + ahead * STAGE);
          commit_copies();
          advance(next);
          ahead = slot;
          if constexpr (P::PLAIN)
            multiply_plain(stages + slot * STAGE, at.segment * P::SEGMENT + i, sums);
          else
            multiply(stages + slot * STAGE, at.segment * P::SEGMENT + i, sums);
          slot = slot + 1 == STAGES ? 0 : slot + 1;
        }
        if (spans > 1)
          store(a.shared.sums + ((size_t)tile_of(at.turn) * P::SEGMENTS + segment + at.segment) * (VECTORS * 16), 16, sums);
        else
          hand_over(at, sums);
      }
      await_copies<0>();
    } else {
      if (NORM && T != Type::F16) add_squares(segment, segments);
      for (int turn = warp - WARPS; spans == 1 && turn < turns; turn += ADDERS) {
        add_up(turn, turn % BUFFERS);
        __syncwarp();
        if (lane == 0) *emptied(turn % BUFFERS) = turn;
      }
    }
    if (spans > 1) join();
  }

  // A vector's numbers, and what they are multiplied with, as a thread has them.
  struct Eight {
    unsigned x[4], norm[4];
  };

  // Columns of the vectors to shared memory, in the order in which words unpack, with the sums of units; and the sums of
  // their squares. Behind the last column there are zeros.
  template <bool SQUARE, bool WRITE>
  __device__ void place(int first, int n_chunks) const {
    constexpr int EIGHTS = P::CHUNK / 8, OF_UNIT = P::UNIT / 8, AT_ONCE = NORM ? 4 : 8;
    int n = n_chunks * EIGHTS;
    for (int at = threadIdx.x, vector = 0; at < n;) {
      Eight eights[AT_ONCE];
      int ats[AT_ONCE], of[AT_ONCE];
#pragma unroll
      for (int k = 0; k < AT_ONCE; k++) {
        ats[k] = at, of[k] = vector;
        int eight = first * EIGHTS + at;
        eights[k] = {};
        if (at < n && (WHOLE || eight < COLUMNS / 8)) {
          load_eight(a.x + (size_t)vector * COLUMNS + eight * 8, eights[k].x);
          if (NORM) load_eight(fused.norm + eight * 8, eights[k].norm);
        }
        if (++vector == vectors) vector = 0, at += THREADS;
      }
#pragma unroll
      for (int k = 0; k < AT_ONCE; k++) {
        if (ats[k] >= n) break;
        float sum = 0, square = 0;
        unsigned(&x)[4] = eights[k].x;
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float2 pair = to_floats<T>(x[i]);
          if (NORM) {
            float2 norm = to_floats<T>(eights[k].norm[i]);
            square = __fmaf_rn(pair.x, pair.x, square), square = __fmaf_rn(pair.y, pair.y, square);
            float factor = T == Type::F16 && WRITE ? factors()[of[k]] : 1;
            if (T == Type::F16 && WRITE) pair.x = __fmul_rn(pair.x, factor), pair.y = __fmul_rn(pair.y, factor);
            x[i] = from_floats<T>(__fmul_rn(pair.x, norm.x), __fmul_rn(pair.y, norm.y));
            pair = to_floats<T>(x[i]);
          }
          sum = __fadd_rn(sum, __fadd_rn(pair.x, pair.y));
        }
        // Lanes of a unit are neighbours, and all there.
        unsigned lanes = ((1u << OF_UNIT) - 1) << (lane / OF_UNIT * OF_UNIT);
#pragma unroll
        for (int i = 1; i < OF_UNIT; i *= 2) {
          if (WRITE && !P::PLAIN) sum = __fadd_rn(sum, __shfl_xor_sync(lanes, sum, i));
          if (NORM && SQUARE) square = __fadd_rn(square, __shfl_xor_sync(lanes, square, i));
        }
        bool is_first = ats[k] % OF_UNIT == 0;
        if (NORM && SQUARE && is_first && (WHOLE || first * EIGHTS + ats[k] < COLUMNS / 8))
          squares()[(first * EIGHTS + ats[k]) / OF_UNIT * VECTORS + of[k]] = square;
        if (!WRITE) continue;
        if (is_first && !P::PLAIN) unit_sums()[ats[k] / OF_UNIT * VECTORS + of[k]] = sum;
        if constexpr (P::PLAIN) {
          *reinterpret_cast<uint4*>(numbers() + of[k] * pitch() + ats[k] * 16) = {x[0], x[1], x[2], x[3]};
          continue;
        }
        // Four bits unpack as columns 0, 4, 1, 5, 2, 6, 3, 7; eight as 0, 2, 1, 3, 4, 6, 5, 7.
        constexpr int OTHER = BITS == 4 ? 2 : 1;
        int low = BITS == 4 ? 1 : 2;
        uint4 pairs = {__byte_perm(x[0], x[OTHER], 0x5410), __byte_perm(x[0], x[OTHER], 0x7632),
                       __byte_perm(x[low], x[3], 0x5410), __byte_perm(x[low], x[3], 0x7632)};
        *reinterpret_cast<uint4*>(numbers() + of[k] * pitch() + ats[k] * 16) = pairs;
      }
    }
  }

  // The squares of segments, added up, by the warps that do not multiply; and one over the root of each vector's mean square,
  // where the block has them all.
  __device__ void add_squares(int first, int n) const {
    constexpr int UNITS = P::SEGMENT * P::UNITS, ALL = COLUMNS / P::UNIT;
    for (int vector = warp - WARPS; vector >= 0 && vector < vectors; vector += ADDERS) {
      float all = 0;
      for (int of = first; of < first + n; of++) {
        float sum = 0;
        for (int unit = of * UNITS + lane; unit < smaller((of + 1) * UNITS, ALL); unit += 32)
          sum = __fadd_rn(sum, squares()[unit * VECTORS + vector]);
        sum = sum_over_warp(sum);
        if (n < P::SEGMENTS && lane == 0) a.shared.squares[of * VECTORS + vector] = sum;
        all = __fadd_rn(all, sum);
      }
      if (n == P::SEGMENTS && lane == 0) factors()[vector] = factor_of(all);
    }
    if (warp >= WARPS) asm volatile("bar.sync 1, %0;" ::"n"(ADDERS * 32) : "memory");
  }

  __device__ float factor_of(float squares) const {
    return __frsqrt_rn(__fadd_rn(__fdiv_rn(squares, float(COLUMNS)), fused.eps));
  }

  // What a lane multiplies in a chunk: a column of the matrix instruction, that is a vector, of each eight. Lanes whose vector is not
  // there see the first one. What becomes of it nobody reads.
  __device__ void find_vectors(int chunk, const unsigned char* (&x)[TILES]) const {
#pragma unroll
    for (int i = 0; i < TILES; i++) {
      int vector = i * 8 + row < vectors ? i * 8 + row : 0;
      x[i] = numbers() + vector * pitch() + chunk * (P::CHUNK * 2) + t * (P::LANE * 2);
    }
  }

  // Add a chunk's products to the sums of a tile, of all vectors, where weights are numbers of the vectors' type.
  __device__ void multiply_plain(const unsigned char* stage, int chunk, float (&sums)[TILES][4]) const {
    const unsigned char* x[TILES];
    find_vectors(chunk, x);
    stage += row * P::PITCH + t * (P::LANE * 2);
#pragma unroll
    for (int eight = 0; eight < P::UNITS * P::LANE / 8; eight++) {
      int at = eight / (P::LANE / 8) * (P::UNIT * 2) + eight % (P::LANE / 8) * 16;
      uint4 low = *reinterpret_cast<const uint4*>(stage + at), high = *reinterpret_cast<const uint4*>(stage + 8 * P::PITCH + at);
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        uint4 b = *reinterpret_cast<const uint4*>(x[i] + at);
        multiply_add<T>(sums[i], false, low.x, high.x, low.y, high.y, b.x, b.y);
        multiply_add<T>(sums[i], false, low.z, high.z, low.w, high.w, b.z, b.w);
      }
    }
  }

  // The same of weights that are packed.
  __device__ void multiply(const unsigned char* stage, int chunk, float (&sums)[TILES][4]) const {
    constexpr int PART = P::UNITS / 2;  // units
    Words<P::SCALES / 2> scales[2], biases[2];
    const unsigned char* all_scales = stage + 16 * P::PITCH + row * P::SCALES;
    const unsigned char* x[TILES];
    find_vectors(chunk, x);
    stage += row * P::PITCH + t * (P::WORDS * 4);
    const float* unit_sums = this->unit_sums() + chunk * (P::UNITS * VECTORS) + 2 * t;
#pragma unroll
    for (int unit = 0; unit < P::UNITS; unit++) {
      if (unit % PART == 0)
#pragma unroll
        for (int half = 0; half < 2; half++) {
          const unsigned char* from = all_scales + half * 8 * P::SCALES + unit / PART * (P::SCALES / 2);
          scales[half].load(from);
          biases[half].load(from + 16 * P::SCALES);
        }
      Words<P::WORDS * 4> words[2];
#pragma unroll
      for (int half = 0; half < 2; half++) words[half].load(stage + half * 8 * P::PITCH + unit * (P::WORDS * 16));
      // Of eight bits, of the four higher ones in `high`.
      float low[TILES][4], high[TILES][4];
#pragma unroll
      for (int e = 0; e < P::LANE / 8; e++) {
        uint4 numbers[TILES];
#pragma unroll
        for (int i = 0; i < TILES; i++) numbers[i] = *reinterpret_cast<const uint4*>(x[i] + unit * (P::UNIT * 2) + e * 16);
#pragma unroll
        for (int s = 0; s < 2; s++) {
          int word = BITS == 4 ? e : 2 * e + s;
          auto field = [&](int half, int i) { return four_bits<T>(words[half].of[word], i); };
          int i = BITS == 4 ? 2 * s : 0, j = BITS == 4 ? 2 * s + 1 : 2;
          bool begins = e == 0 && s == 0;
#pragma unroll
          for (int k = 0; k < TILES; k++) {
            unsigned b0 = s ? numbers[k].z : numbers[k].x, b1 = s ? numbers[k].w : numbers[k].y;
            multiply_add<T>(low[k], begins, field(0, i), field(1, i), field(0, j), field(1, j), b0, b1);
            if (BITS == 8) multiply_add<T>(high[k], begins, field(0, 1), field(1, 1), field(0, 3), field(1, 3), b0, b1);
          }
        }
      }
      float scale[2], rest[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int group = unit % PART * P::UNIT / GROUP;
        scale[half] = to_float<T>(scales[half].number(group));
        rest[half] = __fmaf_rn(scale[half], -(BITS == 8 ? 17 : 1) * offset<T>(), to_float<T>(biases[half].number(group)));
      }
#pragma unroll
      for (int i = 0; i < TILES; i++) {
        float2 x = *reinterpret_cast<const float2*>(unit_sums + unit * VECTORS + i * 8);
#pragma unroll
        for (int k = 0; k < 4; k++) {
          float sum = BITS == 8 ? __fmaf_rn(high[i][k], 16, low[i][k]) : low[i][k];
          sums[i][k] = __fmaf_rn(scale[k / 2], sum, sums[i][k]);
          sums[i][k] = __fmaf_rn(rest[k / 2], k % 2 ? x.y : x.x, sums[i][k]);
        }
      }
    }
  }

  // What a lane has of the sums of a segment, of vectors that are `pitch` apart.
  __device__ void store(float* to, int pitch, const float (&sums)[TILES][4]) const {
    to += 2 * t * pitch + row;
#pragma unroll
    for (int i = 0; i < TILES; i++)
#pragma unroll
      for (int k = 0; k < 4; k++)
        if (i * 8 + 2 * t + k % 2 < vectors) to[(i * 8 + k % 2) * pitch + k / 2 * 8] = sums[i][k];
  }

  // To a warp that adds them up, once the buffer's last tile was.
  __device__ void hand_over(const Cursor& at, const float (&of)[TILES][4]) const {
    int buffer = at.turn % BUFFERS;
    while (*emptied(buffer) < at.turn - BUFFERS) {
    }
    __syncwarp();
    store(sums(buffer) + at.segment * vectors * SUMS_PITCH, SUMS_PITCH, of);
    __syncwarp();
    if (lane == 0) arrive(full(buffer));
  }

  struct Place {
    Layer layer;
    int vector, row, number;  // of the tile; of the layer
    size_t at;                // in y
    bool is_there;
  };

  // Of an output of a tile, one of ROWS · vectors.
  __device__ Place place_of(int output, int tile) const {
    int before, width = 0;
#pragma unroll
    for (int l = 0; l < (GATED ? 1 : LAYERS); l++) width += layers[l].rows;
    Place place;
    place.layer = layer_of(tile, before);
    place.vector = output / ROWS, place.row = output % ROWS, place.number = tile * ROWS + place.row;
    place.at = (size_t)place.vector * width + before + place.number;
    place.is_there = place.vector < vectors && place.number < place.layer.rows;
    return place;
  }

  // The sums of a tile, once the buffer is full, as numbers of y.
  __device__ void add_up(int turn, int buffer) const {
    constexpr int HALVES = GATED ? 2 : 1, AT_ONCE = 8;  // segments
    int tile = tile_of(turn);
    bool is_full = false;
    for (int output = lane; output < up_to(ROWS * vectors, 32); output += 32) {
      Place place = place_of(output, tile);
      unsigned short residual = residual_of(place);
      float totals[2] = {};
      if (!is_full) await_barrier(full(buffer), turn / BUFFERS % 2);
      is_full = true;
      if (place.vector >= vectors) continue;
      for (int of = 0; of < P::SEGMENTS; of += AT_ONCE)
#pragma unroll
        for (int half = 0; half < HALVES; half++) {
          const float* from = sums(buffer) + (of * vectors + place.vector) * SUMS_PITCH + place.row + 8 * half;
          float found[AT_ONCE];
#pragma unroll
          for (int k = 0; k < AT_ONCE; k++) found[k] = of + k < P::SEGMENTS ? from[k * vectors * SUMS_PITCH] : 0;
#pragma unroll
          for (int k = 0; k < AT_ONCE; k++) totals[half] = __fadd_rn(totals[half], found[k]);
        }
      write(place, totals, NORM && T != Type::F16 ? factors()[place.vector] : 1, residual);
    }
  }

  __device__ unsigned short residual_of(const Place& place) const {
    return fused.residual.of && place.is_there ? load_shared_by_all(fused.residual.of + place.at) : 0;
  }

  __device__ void write(const Place& place, const float (&totals)[2], float factor, unsigned short residual) const {
    if (!place.is_there) return;
    float values[2];
#pragma unroll
    for (int half = 0; half < (GATED ? 2 : 1); half++) {
      const Layer& layer = GATED ? layers[half * (LAYERS - 1)] : place.layer;
      values[half] = NORM && T != Type::F16 ? __fmul_rn(totals[half], factor) : totals[half];
      if (layer.bias) values[half] = __fadd_rn(values[half], to_float<T>(layer.bias[place.number]));
    }
    float value = values[0];
    if (GATED) value = __fmul_rn(activated(ACTIVATION, value), values[1]);
    if (fused.residual.of) value = fused.residual.sum(value, to_float<T>(residual));
    a.y[place.at] = from_float<T>(value);
  }

  // Once all blocks of the group have their sums, which all run at once, each adds up those of some tiles.
  __device__ void join() const {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(a.shared.count + group, 1);
      unsigned arrived;
      do asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(arrived) : "l"(a.shared.count + group) : "memory");
      while (arrived < unsigned(spans));
      // The last that has seen it makes it zero again.
      if (atomicAdd(a.shared.count + group, 1) == unsigned(2 * spans - 1)) a.shared.count[group] = 0;
    }
    __syncthreads();
    int outputs = ROWS * vectors, n = turns * outputs;
    for (int i = threadIdx.x + blockIdx.x % spans * THREADS; i < n; i += spans * THREADS) {
      int tile = tile_of(i / outputs);
      Place place = place_of(i % outputs, tile);
      unsigned short residual = residual_of(place);
      float totals[2] = {}, squares = 0;
#pragma unroll
      for (int of = 0; of < P::SEGMENTS; of++) {
#pragma unroll
        for (int half = 0; half < (GATED ? 2 : 1); half++)
          totals[half] = __fadd_rn(totals[half], load_shared_by_all(a.shared.sums + ((size_t)tile * P::SEGMENTS + of) * (VECTORS * 16) + place.vector * 16 + place.row + 8 * half));
        if (NORM && T != Type::F16) squares = __fadd_rn(squares, load_shared_by_all(a.shared.squares + of * VECTORS + place.vector));
      }
      write(place, totals, factor_of(squares), residual);
    }
  }
};

}  // namespace mlx_lm

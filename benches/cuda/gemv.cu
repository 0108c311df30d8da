// Products of a few vectors with a 4-bit matrix, as MLX packs it, on NVIDIA: which form reads memory fastest.
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90,code=sm_90 -o gemv benches/cuda/gemv.cu && ./gemv
//
// Each form is checked against f64, then timed over matrices that together are larger than the second-level cache, launch
// after launch in a captured graph. `docs/cuda.md` has the results.
//
// y[b, r] = sum_k (scale[r, k / 64] q[r, k] + bias[r, k / 64]) x[b, k], with q of 4 bits, eight to a word, lowest first;
// scales, biases, x and y are bf16, sums f32.

#include "harness.h"

using bf16 = __nv_bfloat16;

constexpr int GROUP = 64;

struct Matrix {
  const uint32_t* words;  // [rows, columns / 8]
  const bf16* scales;     // [rows, columns / 64]
  const bf16* biases;
  int rows, columns;
};

// ---- Plain: a warp for four rows, f32 arithmetic. -----------------------------------------------------------------------

template <int B>
__global__ void plain(Matrix w, const bf16* x, bf16* y) {
  constexpr int ROWS = 4;
  int lane = threadIdx.x % 32, first = (blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32) * ROWS;
  if (first >= w.rows) return;
  float sums[ROWS][B] = {};
  for (int k = lane * 32; k < w.columns; k += 1024) {
    uint4 words[ROWS];
    float scales[ROWS], biases[ROWS];
    for (int r = 0; r < ROWS; r++) {
      words[r] = *reinterpret_cast<const uint4*>(w.words + (size_t)(first + r) * (w.columns / 8) + k / 8);
      size_t group = (size_t)(first + r) * (w.columns / GROUP) + k / GROUP;
      scales[r] = __bfloat162float(w.scales[group]);
      biases[r] = __bfloat162float(w.biases[group]);
    }
    for (int b = 0; b < B; b++) {
      float values[32], all = 0;
      const uint4* from = reinterpret_cast<const uint4*>(x + (size_t)b * w.columns + k);
      for (int i = 0; i < 4; i++) {
        uint4 packed = from[i];
        const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&packed);
        for (int j = 0; j < 4; j++) {
          float2 two = __bfloat1622float2(pairs[j]);
          values[i * 8 + j * 2] = two.x;
          values[i * 8 + j * 2 + 1] = two.y;
          all += two.x + two.y;
        }
      }
      for (int r = 0; r < ROWS; r++) {
        const uint32_t* word = reinterpret_cast<const uint32_t*>(&words[r]);
        float sum = 0;
        for (int i = 0; i < 32; i++) sum += float((word[i / 8] >> (4 * (i % 8))) & 15) * values[i];
        sums[r][b] += scales[r] * sum + biases[r] * all;
      }
    }
  }
  for (int r = 0; r < ROWS; r++)
    for (int b = 0; b < B; b++) {
      float sum = sums[r][b];
      for (int i = 16; i; i /= 2) sum += __shfl_xor_sync(~0u, sum, i);
      if (lane == 0) y[(size_t)b * w.rows + first + r] = __float2bfloat16(sum);
    }
}

// ---- Matrix instructions: a warp multiplies 16 rows with up to 8 vectors. -------------------------------------------------
//
// A nibble q in the low bits of a bf16 whose exponent says 128 is the number 128 + q, without a conversion. Products and
// sums are then exact but for f32's rounding: sum (128 + q) x = sum q x + 128 sum x, and the sums of x are made once.
// The columns go to the instruction in any order, if x goes in the same one: pairs of nibbles that are 16 bits apart.
//
// Four lanes share a row: each takes 16 bytes, so that a row is read 64 bytes at a time, which are two groups: the first is in
// the first two lanes. The instruction adds up over the four, so x is masked: its first four columns see the first group
// only, the other four the second. One instruction does that for four vectors.

__device__ void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

__device__ uint32_t pair(uint32_t word, int i) { return ((word >> (4 * i)) & 0x000f000f) | 0x43004300; }

__device__ uint4 load_once(const uint4* from) {
  uint4 words;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(words.x), "=r"(words.y), "=r"(words.z), "=r"(words.w) : "l"(from));
  return words;
}

__device__ float number(uint32_t two, bool second) { return __uint_as_float(second ? two & 0xffff0000 : two << 16); }

// What a warp multiplies next: N times two groups of rows `row` and `row + 8` of a tile.
template <int N>
struct Chunk {
  uint4 words[2][N];
  struct alignas(4 * N) Numbers {
    uint32_t of[N];  // of two groups
  } scales[2], biases[2];

  __device__ void load(const Matrix& w, int tile, int from, int row, int t) {
    int groups = w.columns / GROUP;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      size_t r = tile * 16 + row + 8 * half;
      const uint4* at = reinterpret_cast<const uint4*>(w.words) + r * (w.columns / 32) + from * 4 + t;
#pragma unroll
      for (int i = 0; i < N; i++) words[half][i] = load_once(at + i * 4);
      scales[half] = *reinterpret_cast<const Numbers*>(w.scales + r * groups + from * 2);
      biases[half] = *reinterpret_cast<const Numbers*>(w.biases + r * groups + from * 2);
    }
  }

  // `order` [B, columns] and `x_sums` [groups, 8] are in shared memory. `sums` are of rows `row` and `row + 8`, of vectors
  // 4 s + 2 (t % 2) and the next, of the first groups in lanes 0 and 1, of the second in the others.
  template <int B>
  __device__ void multiply_with(
      const bf16* order, const float* x_sums, int columns, int from, int row, int t, float (&sums)[(B + 3) / 4][4]) const {
    bool second = t >= 2;
#pragma unroll
    for (int i = 0; i < N; i++) {
#pragma unroll
      for (int s = 0; s < (B + 3) / 4; s++) {
        int b = 4 * s + row % 4;
        const uint4* x = reinterpret_cast<const uint4*>(order + (size_t)b * columns + (from + i) * 2 * GROUP + 32 * t);
        bool is_mine = b < B && row / 4 == t / 2;
        float c[4] = {};
#pragma unroll
        for (int k = 0; k < 4; k++) {
          uint4 xs = is_mine ? x[k] : uint4{};
          uint32_t up = (&words[0][i].x)[k], low = (&words[1][i].x)[k];
          multiply(c, pair(up, 0), pair(low, 0), pair(up, 1), pair(low, 1), xs.x, xs.y);
          multiply(c, pair(up, 2), pair(low, 2), pair(up, 3), pair(low, 3), xs.z, xs.w);
        }
        const float* all = x_sums + ((from + i) * 2 + second) * 8 + 4 * s + 2 * (t % 2);
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float scale = number(scales[half].of[i], second);
          float bias = number(biases[half].of[i], second) - 128 * scale;
          sums[s][2 * half] += scale * c[2 * half] + bias * all[0];
          sums[s][2 * half + 1] += scale * c[2 * half + 1] + bias * all[1];
        }
      }
    }
  }
};

// WARPS share the columns of 16 rows, N times two groups at a time in turn, and a block goes through tiles of 16 rows. A warp
// asks for its next chunk before it multiplies this one, also across tiles, and for the first before x is in shared memory.
template <int B, int WARPS, int N, int BLOCKS>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS) matrix(Matrix w, const bf16* x, bf16* y) {
  extern __shared__ uint4 shared[];
  int groups = w.columns / GROUP, tiles = w.rows / 16, pairs = groups / 2;
  bf16* order = reinterpret_cast<bf16*>(shared);                            // [B, columns], in the order of the pairs
  float* x_sums = reinterpret_cast<float*>(order + (size_t)B * w.columns);  // [groups, 8]
  float* partial = x_sums + groups * 8;                                     // [2, WARPS, 16, 8]
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, t = lane % 4;

  Chunk<N> chunk;
  if (warp * N < pairs) chunk.load(w, blockIdx.x, warp * N, row, t);

  for (int i = threadIdx.x; i < B * w.columns / 8; i += WARPS * 32) {
    uint4 from = reinterpret_cast<const uint4*>(x)[i];
    const uint32_t* two = reinterpret_cast<const uint32_t*>(&from);
    uint4 to = {__byte_perm(two[0], two[2], 0x5410), __byte_perm(two[0], two[2], 0x7632),
                __byte_perm(two[1], two[3], 0x5410), __byte_perm(two[1], two[3], 0x7632)};
    reinterpret_cast<uint4*>(order)[i] = to;
    // Eight lanes have a group.
    float sum = 0;
    for (int j = 0; j < 4; j++) sum += number(two[j], false) + number(two[j], true);
    for (int j = 4; j; j /= 2) sum += __shfl_xor_sync(__activemask(), sum, j);
    int group = i / 8;
    if (i % 8 == 0) x_sums[(group % groups) * 8 + group / groups] = sum;
  }
  if (B % 4)
    for (int i = threadIdx.x; i < groups * 8; i += WARPS * 32)
      if (i % 8 >= B) x_sums[i] = 0;
  __syncthreads();

  int parity = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, parity ^= 1) {
    float sums[(B + 3) / 4][4] = {};
    for (int from = warp * N; from < pairs; from += WARPS * N) {
      bool last = from + WARPS * N >= pairs;
      int next_tile = last ? tile + gridDim.x : tile, next = last ? warp * N : from + WARPS * N;
      Chunk<N> ahead;
      if (next_tile < tiles) ahead.load(w, next_tile, next, row, t);
      chunk.template multiply_with<B>(order, x_sums, w.columns, from, row, t, sums);
      chunk = ahead;
    }
    float* mine = partial + parity * WARPS * 128;
#pragma unroll
    for (int s = 0; s < (B + 3) / 4; s++)
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float sum = sums[s][i] + __shfl_xor_sync(~0u, sums[s][i], 2);
        if (t < 2) mine[(warp * 16 + row + 8 * (i / 2)) * 8 + 4 * s + 2 * t + i % 2] = sum;
      }
    __syncthreads();
    for (int i = threadIdx.x; i < 16 * B; i += WARPS * 32) {
      int r = i % 16, b = i / 16;
      float sum = 0;
      for (int from = 0; from < WARPS; from++) sum += mine[(from * 16 + r) * 8 + b];
      y[(size_t)b * w.rows + tile * 16 + r] = __float2bfloat16(sum);
    }
  }
}

// ---- The same with x in registers: a warp meets the same columns in every tile. --------------------------------------------
//
// For up to four vectors. WARPS share columns = 256 WARPS N; a warp has two chunks of each tile, and asks for the next tile's
// as soon as it has multiplied this one's.
template <int B, int WARPS, int N, int BLOCKS>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS) resident(Matrix w, const bf16* x, bf16* y) {
  static_assert(B <= 4);
  __shared__ float partial[2][WARPS][16][4];
  int tiles = w.rows / 16;
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = lane / 4, t = lane % 4;
  bool second = t >= 2;

  Chunk<N> chunks[2];
#pragma unroll
  for (int j = 0; j < 2; j++) chunks[j].load(w, blockIdx.x, (j * WARPS + warp) * N, row, t);

  // Of vector row % 4, where the lane's group is the column's; and sums over a group, of vectors 2 (t % 2) and the next.
  uint4 xs[2][N][4];
  float2 all[2][N];
#pragma unroll
  for (int j = 0; j < 2; j++)
#pragma unroll
    for (int i = 0; i < N; i++) {
      int from = (j * WARPS + warp) * N + i, b = row % 4;
      bool is_mine = b < B && row / 4 == t / 2;
      const uint4* at = reinterpret_cast<const uint4*>(x + (size_t)b * w.columns + from * 2 * GROUP + 32 * t);
      float sum = 0;
#pragma unroll
      for (int k = 0; k < 4; k++) {
        uint4 eight = is_mine ? at[k] : uint4{};
        sum += number(eight.x, 0) + number(eight.x, 1) + number(eight.y, 0) + number(eight.y, 1);
        sum += number(eight.z, 0) + number(eight.z, 1) + number(eight.w, 0) + number(eight.w, 1);
        xs[j][i][k] = {__byte_perm(eight.x, eight.z, 0x5410), __byte_perm(eight.x, eight.z, 0x7632),
                       __byte_perm(eight.y, eight.w, 0x5410), __byte_perm(eight.y, eight.w, 0x7632)};
      }
      // The two lanes of a vector's group, and from there to the lanes that have its sums.
      sum += __shfl_xor_sync(~0u, sum, 1);
      int vector = 2 * (t % 2);
      all[j][i].x = __shfl_sync(~0u, sum, ((second ? 4 : 0) + vector) * 4 + (second ? 2 : 0));
      all[j][i].y = __shfl_sync(~0u, sum, ((second ? 4 : 0) + vector + 1) * 4 + (second ? 2 : 0));
    }

  int parity = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, parity ^= 1) {
    float sums[4] = {};
#pragma unroll
    for (int j = 0; j < 2; j++) {
#pragma unroll
      for (int i = 0; i < N; i++) {
        float c[4] = {};
#pragma unroll
        for (int k = 0; k < 4; k++) {
          uint32_t up = (&chunks[j].words[0][i].x)[k], low = (&chunks[j].words[1][i].x)[k];
          multiply(c, pair(up, 0), pair(low, 0), pair(up, 1), pair(low, 1), xs[j][i][k].x, xs[j][i][k].y);
          multiply(c, pair(up, 2), pair(low, 2), pair(up, 3), pair(low, 3), xs[j][i][k].z, xs[j][i][k].w);
        }
#pragma unroll
        for (int half = 0; half < 2; half++) {
          float scale = number(chunks[j].scales[half].of[i], second);
          float bias = number(chunks[j].biases[half].of[i], second) - 128 * scale;
          sums[2 * half] += scale * c[2 * half] + bias * all[j][i].x;
          sums[2 * half + 1] += scale * c[2 * half + 1] + bias * all[j][i].y;
        }
      }
      if (tile + gridDim.x < tiles) chunks[j].load(w, tile + gridDim.x, (j * WARPS + warp) * N, row, t);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float sum = sums[i] + __shfl_xor_sync(~0u, sums[i], 2);
      if (t < 2) partial[parity][warp][row + 8 * (i / 2)][2 * t + i % 2] = sum;
    }
    __syncthreads();
    int r = threadIdx.x % 16, b = threadIdx.x / 16;
    if (b < B) {
      float sum = 0;
#pragma unroll
      for (int from = 0; from < WARPS; from++) sum += partial[parity][from][r][b];
      y[(size_t)b * w.rows + tile * 16 + r] = __float2bfloat16(sum);
    }
  }
}

// ---- The same, with tiles copied in bulk into shared memory, STAGES ahead, by a warp of its own. Hopper and later. ------------

__device__ uint32_t shared_address(const void* p) { return static_cast<uint32_t>(__cvta_generic_to_shared(p)); }

__device__ void wait(uint64_t* barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n.reg .pred done;\nagain:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n@!done bra again;\n}"
      :: "r"(shared_address(barrier)), "r"(parity) : "memory");
#endif
}

__device__ void copy(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
               :: "r"(shared_address(to)), "l"(from), "r"(bytes), "r"(shared_address(barrier)) : "memory");
#endif
}

template <int B, int WARPS, int J, int STAGES>
__global__ void __launch_bounds__(WARPS * 32 + 32, 1) bulk(Matrix w, const bf16* x, bf16* y) {
#if __CUDA_ARCH__ >= 900
  static_assert(B <= 4);
  constexpr int COLUMNS = 128 * WARPS * J, WORDS = COLUMNS / 2, NUMBERS = COLUMNS / GROUP * 2;
  constexpr int WORD_ROW = WORDS + 64, NUMBER_ROW = NUMBERS;  // eight rows of words in eight parts of the banks
  constexpr int STAGE = 16 * (WORD_ROW + 2 * NUMBER_ROW);
  extern __shared__ __align__(128) uint8_t stages[];
  __shared__ float partial[2][WARPS][16][4];
  __shared__ uint64_t full[STAGES], empty[STAGES];
  int tiles = w.rows / 16, lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" :: "r"(shared_address(&full[i])));
      asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" :: "r"(shared_address(&empty[i])), "r"(WARPS));
    }
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  }
  __syncthreads();

  if (warp == WARPS) {
    int n = 0;
    for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, n++) {
      int stage = n % STAGES;
      if (n >= STAGES) wait(&empty[stage], (n / STAGES - 1) % 2);
      if (lane == 0)
        asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;"
                     :: "r"(shared_address(&full[stage])), "r"(16 * (WORDS + 2 * NUMBERS)) : "memory");
      __syncwarp();
      if (lane < 16) {
        uint8_t* to = stages + stage * STAGE;
        size_t row = tile * 16 + lane;
        copy(to + lane * WORD_ROW, w.words + row * (COLUMNS / 8), WORDS, &full[stage]);
      } else if (lane < 18) {
        const bf16* numbers = (lane == 16 ? w.scales : w.biases) + (size_t)tile * 16 * (COLUMNS / GROUP);
        copy(stages + stage * STAGE + 16 * (WORD_ROW + (lane - 16) * NUMBER_ROW), numbers, 16 * NUMBERS, &full[stage]);
      }
    }
    return;
  }

  int row = lane / 4, t = lane % 4;
  bool second = t >= 2;
  uint4 xs[J][4];
  float2 all[J];
#pragma unroll
  for (int j = 0; j < J; j++) {
    int from = j * WARPS + warp, b = row % 4;
    bool is_mine = b < B && row / 4 == t / 2;
    const uint4* at = reinterpret_cast<const uint4*>(x + (size_t)b * w.columns + from * 2 * GROUP + 32 * t);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < 4; k++) {
      uint4 eight = is_mine ? at[k] : uint4{};
      sum += number(eight.x, 0) + number(eight.x, 1) + number(eight.y, 0) + number(eight.y, 1);
      sum += number(eight.z, 0) + number(eight.z, 1) + number(eight.w, 0) + number(eight.w, 1);
      xs[j][k] = {__byte_perm(eight.x, eight.z, 0x5410), __byte_perm(eight.x, eight.z, 0x7632),
                  __byte_perm(eight.y, eight.w, 0x5410), __byte_perm(eight.y, eight.w, 0x7632)};
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    int vector = 2 * (t % 2);
    all[j].x = __shfl_sync(~0u, sum, ((second ? 4 : 0) + vector) * 4 + (second ? 2 : 0));
    all[j].y = __shfl_sync(~0u, sum, ((second ? 4 : 0) + vector + 1) * 4 + (second ? 2 : 0));
  }

  int n = 0;
  for (int tile = blockIdx.x; tile < tiles; tile += gridDim.x, n++) {
    int stage = n % STAGES;
    const uint8_t* from = stages + stage * STAGE;
    wait(&full[stage], n / STAGES % 2);
    float sums[4] = {};
#pragma unroll
    for (int j = 0; j < J; j++) {
      int unit = j * WARPS + warp;
      uint4 words[2];
      uint32_t scales[2], biases[2];
#pragma unroll
      for (int half = 0; half < 2; half++) {
        words[half] = *reinterpret_cast<const uint4*>(from + (row + 8 * half) * WORD_ROW + unit * 64 + t * 16);
        const uint8_t* numbers = from + 16 * WORD_ROW + (row + 8 * half) * NUMBER_ROW + unit * 4;
        scales[half] = *reinterpret_cast<const uint32_t*>(numbers);
        biases[half] = *reinterpret_cast<const uint32_t*>(numbers + 16 * NUMBER_ROW);
      }
      float c[4] = {};
#pragma unroll
      for (int k = 0; k < 4; k++) {
        uint32_t up = (&words[0].x)[k], low = (&words[1].x)[k];
        multiply(c, pair(up, 0), pair(low, 0), pair(up, 1), pair(low, 1), xs[j][k].x, xs[j][k].y);
        multiply(c, pair(up, 2), pair(low, 2), pair(up, 3), pair(low, 3), xs[j][k].z, xs[j][k].w);
      }
#pragma unroll
      for (int half = 0; half < 2; half++) {
        float scale = number(scales[half], second);
        float bias = number(biases[half], second) - 128 * scale;
        sums[2 * half] += scale * c[2 * half] + bias * all[j].x;
        sums[2 * half + 1] += scale * c[2 * half + 1] + bias * all[j].y;
      }
    }
    __syncwarp();
    if (lane == 0) asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" :: "r"(shared_address(&empty[stage])) : "memory");
    float(*mine)[16][4] = partial[n % 2];
#pragma unroll
    for (int i = 0; i < 4; i++) {
      float sum = sums[i] + __shfl_xor_sync(~0u, sums[i], 2);
      if (t < 2) mine[warp][row + 8 * (i / 2)][2 * t + i % 2] = sum;
    }
    asm volatile("bar.sync 1, %0;" :: "n"(WARPS * 32) : "memory");
    int r = threadIdx.x % 16, b = threadIdx.x / 16;
    if (b < B) {
      float sum = 0;
#pragma unroll
      for (int from = 0; from < WARPS; from++) sum += mine[from][r][b];
      y[(size_t)b * w.rows + tile * 16 + r] = __float2bfloat16(sum);
    }
  }
#endif
}

// ---- The check and the clock. ------------------------------------------------------------------------------------------

template <int B>
__global__ void exact(Matrix w, const bf16* x, double* y, double* magnitude) {
  int r = blockIdx.x, lane = threadIdx.x;
  for (int b = 0; b < B; b++) {
    double sum = 0, all = 0;
    for (int k = lane; k < w.columns; k += 32) {
      uint32_t q = (w.words[(size_t)r * (w.columns / 8) + k / 8] >> (4 * (k % 8))) & 15;
      size_t group = (size_t)r * (w.columns / GROUP) + k / GROUP;
      double value = double(__bfloat162float(w.scales[group])) * q + double(__bfloat162float(w.biases[group]));
      double product = value * double(__bfloat162float(x[(size_t)b * w.columns + k]));
      sum += product;
      all += fabs(product);
    }
    for (int i = 16; i; i /= 2) {
      sum += __shfl_xor_sync(~0u, sum, i);
      all += __shfl_xor_sync(~0u, all, i);
    }
    if (lane == 0) {
      y[(size_t)b * w.rows + r] = sum;
      magnitude[(size_t)b * w.rows + r] = all;
    }
  }
}

template <int B>
struct Form {
  const char* name;
  void (*kernel)(Matrix, const bf16*, bf16*);
  int threads, rows;
  bool matrix;
  bool persistent;  // as many blocks as there is room for
  int columns = 0;  // where it is made for so many
  int stages = 0;   // tiles of 16 rows in shared memory
};

int multiprocessors;

template <int B>
void run(int rows, int columns) {
  size_t words = (size_t)rows * columns / 8, groups = (size_t)rows * columns / GROUP;
  double bytes = words * 4.0 + groups * 4.0;
  int copies = std::max(2, int(400e6 / bytes));
  std::vector<Matrix> all;
  for (int i = 0; i < copies; i++)
    // Scales of 1/256 to 1/128, biases of -1/32 to -1/16, x of either sign, 1/2 to 1.
    all.push_back({make<uint32_t>(words * 4, 3 * i, ~0u, 0), make<bf16>(groups * 2, 3 * i + 1, 0x007f007f, 0x3b803b80),
                   make<bf16>(groups * 2, 3 * i + 2, 0x007f007f, 0xbd00bd00), rows, columns});
  bf16* x = make<bf16>((size_t)B * columns * 2, 99, 0x807f807f, 0x3f003f00);
  bf16* y;
  double *expected, *magnitude;
  size_t n = (size_t)B * rows;
  CHECK(cudaMalloc(&y, n * sizeof(bf16)));
  CHECK(cudaMalloc(&expected, n * sizeof(double)));
  CHECK(cudaMalloc(&magnitude, n * sizeof(double)));
  exact<B><<<rows, 32>>>(all[0], x, expected, magnitude);
  std::vector<double> e = on_host(expected, n), m = on_host(magnitude, n);

  std::vector<Form<B>> forms = {
      {"plain", plain<B>, 256, 32, false, false},
      {"4 x 2, 4", matrix<B, 4, 2, 4>, 128, 16, true, true},
      {"8 x 2, 3", matrix<B, 8, 2, 3>, 256, 16, true, true},
      {"16 x 2, 1", matrix<B, 16, 2, 1>, 512, 16, true, true},
  };
  if constexpr (B <= 4) {
    std::vector<Form<B>> more = {
        {"r 16 x 1, 1", resident<B, 16, 1, 1>, 512, 16, false, true, 4096},
        {"r 8 x 2, 1", resident<B, 8, 2, 1>, 256, 16, false, true, 4096},
        {"r 8 x 1, 2", resident<B, 8, 1, 2>, 256, 16, false, true, 2048},
        {"r 4 x 2, 4", resident<B, 4, 2, 4>, 128, 16, false, true, 2048},
        {"b 16 x 2, 3", bulk<B, 16, 2, 3>, 544, 16, false, true, 4096, 3},
        {"b 16 x 2, 5", bulk<B, 16, 2, 5>, 544, 16, false, true, 4096, 5},
        {"b 8 x 4, 5", bulk<B, 8, 4, 5>, 288, 16, false, true, 4096, 5},
        {"b 8 x 2, 6", bulk<B, 8, 2, 6>, 288, 16, false, true, 2048, 6},
        {"b 8 x 2, 10", bulk<B, 8, 2, 10>, 288, 16, false, true, 2048, 10},
        {"b 16 x 1, 10", bulk<B, 16, 1, 10>, 544, 16, false, true, 2048, 10},
    };
    forms.insert(forms.end(), more.begin(), more.end());
  }
  for (auto& form : forms) {
    if (form.columns && form.columns != columns) continue;
    size_t shared = form.matrix ? (size_t)B * columns * 2 + columns / GROUP * 32 + form.threads / 32 * 1024 : 0;
    shared += form.stages * 16 * (columns / 2 + 64 + 2 * columns / GROUP * 2);
    if (shared > 220 << 10) continue;
    CHECK(cudaFuncSetAttribute((const void*)form.kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared)));
    int blocks, grid = (rows + form.rows - 1) / form.rows;
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, form.kernel, form.threads, shared));
    if (form.persistent) grid = std::min(grid, blocks * multiprocessors);
    CHECK(cudaMemset(y, 0xff, n * sizeof(bf16)));  // NaN
    form.kernel<<<grid, form.threads, shared>>>(all[0], x, y);
    CHECK(cudaDeviceSynchronize());
    std::vector<bf16> found = on_host(y, n);
    double worst = 0;  // beyond what rounding the result to bf16 costs, as a share of the sum of all magnitudes
    for (size_t i = 0; i < n; i++) {
      double error = std::fabs(double(__bfloat162float(found[i])) - e[i]) - std::fabs(e[i]) / 256;
      worst = std::isnan(error) ? INFINITY : std::max(worst, error / m[i]);
    }
    double us = median_time([&](cudaStream_t stream) {
      for (auto& w : all) form.kernel<<<grid, form.threads, shared, stream>>>(w, x, y);
    });
    us /= copies;
    std::printf("%7d x %-6d B %d  %-10s %8.2f us  %5.2f TB/s  error %.1e, %d blocks\n", rows, columns, B, form.name, us, bytes / us / 1e6, worst, grid);
  }
  for (auto& w : all) {
    CHECK(cudaFree((void*)w.words));
    CHECK(cudaFree((void*)w.scales));
    CHECK(cudaFree((void*)w.biases));
  }
  for (void* p : {(void*)x, (void*)y, (void*)expected, (void*)magnitude}) CHECK(cudaFree(p));
}

int main() {
  multiprocessors = multiprocessors_of_gpu();
  float *a, *b;  // the rate of a copy, read and written
  size_t bytes = 1u << 30;
  CHECK(cudaMalloc(&a, bytes));
  CHECK(cudaMalloc(&b, bytes));
  cudaEvent_t start, end;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&end));
  for (int i = 0; i < 3; i++) {
    CHECK(cudaEventRecord(start));
    CHECK(cudaMemcpyAsync(b, a, bytes, cudaMemcpyDeviceToDevice));
    CHECK(cudaEventRecord(end));
    CHECK(cudaEventSynchronize(end));
  }
  float ms;
  CHECK(cudaEventElapsedTime(&ms, start, end));
  std::printf("copy: %.2f TB/s\n", 2.0 * bytes / ms / 1e9);
  CHECK(cudaFree(a));
  CHECK(cudaFree(b));
  // Mistral-7B's products, then Llama-3.2-1B's.
  int shapes[][2] = {{28672, 4096}, {14336, 4096}, {4096, 14336}, {6144, 4096}, {4096, 4096}, {16384, 2048}, {2048, 8192}, {2048, 2048}, {128256, 2048}};
  for (auto& shape : shapes) run<1>(shape[0], shape[1]);
  for (auto& shape : {shapes[0], shapes[2], shapes[4]}) {
    run<4>(shape[0], shape[1]);
    run<8>(shape[0], shape[1]);
  }
}

//! Products of a prompt's tokens with matrices of 4- or 8-bit weights, as MLX packs them, or of numbers of the tokens' type: y = x · Wᵀ, on
//! the tensor cores of any NVIDIA GPU from compute capability 8.0 on. Behind `numbers.cu` and `tensor.cu`; `gemm.rs` starts it.
//!
//! Weights are unpacked in registers, each rounded once to the tokens' type, and are the first factor of a matrix instruction: of Hopper's
//! `wgmma`, which four warps give together, where the compiler has it, else of `mma`. A number of y is one sum over the columns in their
//! order, sixteen at a time, whatever tile it is part of: a token's numbers do not depend on how many tokens are multiplied together.
//!
//! A lane unpacks a word to pairs of weights that are no neighbours, so the tokens' columns lie in another order, of each 64 (`column_at`).
//! Whoever writes x writes it so.

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define MLX_LM_WGMMA
#endif

namespace mlx_lm {

struct GemmLayer {
  const unsigned char* words;     // [rows, columns · bits / 8]
  const unsigned short* scales;   // [rows, columns / group], as biases; of 16 bits there are none
  const unsigned short* biases;
  const unsigned short* bias;     // [rows], or null
  int rows;                       // even
};

struct GemmArguments {
  GemmLayer layers[3];
  const unsigned short* x;         // [tokens, columns], in the order of the weights
  unsigned short* y;               // [tokens, width]
  Residual residual;               // which may be y
  int tokens, columns, width;      // columns: a multiple of 64
};

#ifdef MLX_LM_WGMMA

// The sums of eight tokens, and of 32, as operands; and by number those of 32, and the others of 128.
#define EIGHT(i) "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3])
#define FOUR_EIGHTS(i) EIGHT(i), EIGHT(i + 1), EIGHT(i + 2), EIGHT(i + 3)
#define FIRST_SUMS "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define OTHER_SUMS \
  "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63"
// d += a · b; PREDICATE is what `wgmma` asks for where it does not begin anew.
#define PREDICATE "{ .reg .pred p; setp.eq.u32 p, 0, 0; "
#define PRODUCT_128(KIND)                                                                                                    \
  asm volatile(PREDICATE "wgmma.mma_async.sync.aligned.m64n128k16.f32." KIND "." KIND " {" FIRST_SUMS ", " OTHER_SUMS "}, " \
               "{%64, %65, %66, %67}, %68, p, 1, 1, 0; }"                                                                    \
               : FOUR_EIGHTS(0), FOUR_EIGHTS(4), FOUR_EIGHTS(8), FOUR_EIGHTS(12)                                             \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))
#define PRODUCT_32(KIND)                                                                                                     \
  asm volatile(PREDICATE "wgmma.mma_async.sync.aligned.m64n32k16.f32." KIND "." KIND " {" FIRST_SUMS "}, "                   \
               "{%16, %17, %18, %19}, %20, p, 1, 1, 0; }"                                                                    \
               : FOUR_EIGHTS(0)                                                                                              \
               : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

// What four warps begin: d = a · b + d, of 64 rows, 16 of each warp, with TOKENS columns of 128 bytes in shared memory, as `place_of_token`
// has them. Neither a nor d may be touched until `await_products`.
template <Type T, int TOKENS>
__device__ void begin_product(float (&d)[TOKENS / 8][4], const unsigned (&a)[4], unsigned long long b) {
  static_assert(TOKENS == 128 || TOKENS == 32);
  asm volatile("wgmma.fence.sync.aligned;" ::: "memory");
  if constexpr (TOKENS == 128 && T == Type::BF16) PRODUCT_128("bf16");
  if constexpr (TOKENS == 128 && T == Type::F16) PRODUCT_128("f16");
  if constexpr (TOKENS == 32 && T == Type::BF16) PRODUCT_32("bf16");
  if constexpr (TOKENS == 32 && T == Type::F16) PRODUCT_32("f16");
  asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Until no more than PENDING products are under way.
template <int PENDING>
__device__ void await_products() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(PENDING) : "memory");
}

#endif

// A block's tile is ROWS by TOKENS; of two layers with an ACTIVATION, eight rows of the first are next to the same of the second, and y,
// whose width is one layer's, has activation(first) · second, in the ORDER of a product with so many bits.
template <int BITS, int GROUP, Type T, int LAYERS, Activation ACTIVATION, int ORDER, int ROWS, int STAGES>
struct Gemm {
  static constexpr bool PLAIN = BITS == 16, GATED = ACTIVATION != Activation::NONE;
  static constexpr int TOKENS = 128, FEW = 32;     // of a tile, and of one that has no more
  static constexpr int THREADS = ROWS / 16 * 32;   // a warp for 16 rows
  static constexpr int K = PLAIN ? 64 : 128;       // columns of a stage
  static constexpr int W_PITCH = K * BITS / 8;          // bytes of a row in a stage
  static constexpr int SCALES = PLAIN ? 0 : K / GROUP;  // of a row in a stage
  // A stage: the tokens' columns, 64 after 64; rows; scales, and biases. What is written lies there in the end.
  static constexpr int WORDS = TOKENS * K * 2, SCALES_AT = WORDS + ROWS * W_PITCH, STAGE = up_to(SCALES_AT + 2 * ROWS * SCALES * 2, 1024);
  static constexpr int OUTPUTS = GATED ? ROWS / 2 : ROWS, Y_PITCH = OUTPUTS * 2 + 16;
  static constexpr int SHARED = STAGES * STAGE;  // from a multiple of 1024 bytes on
  static_assert((!GATED || LAYERS == 2) && TOKENS * Y_PITCH <= SHARED);

  const GemmArguments& a;
  unsigned char* shared;
  int warp, lane, row, t;   // of the matrix instruction, lanes t have row `row`
  int token, tokens;        // the block's first, and how many are there
  int tile, layer, before;  // the tile, of its layer where there is no activation, and how many rows come before that

  __device__ Gemm(const GemmArguments& a, unsigned char* shared)
      : a(a), shared(shared), warp(threadIdx.x / 32), lane(threadIdx.x % 32), row(lane / 4), t(lane % 4),
        token(blockIdx.x * TOKENS), tokens(smaller(TOKENS, a.tokens - token)), tile(blockIdx.y), layer(0), before(0) {
#pragma unroll
    for (int l = 0; l + 1 < LAYERS && !GATED; l++) {
      int n = (a.layers[l].rows + ROWS - 1) / ROWS;
      if (layer == l && tile >= n) tile -= n, before += a.layers[l].rows, layer = l + 1;
    }
  }

  // Of a row of the tile, its layer, and its number there.
  struct Row {
    int layer, number;
  };
  __device__ Row row_of(int of_tile) const {
    if (!GATED) return {layer, tile * ROWS + of_tile};
    int place = tile * OUTPUTS + of_tile / 16 * 8 + of_tile % 8;
    return {of_tile / 8 % 2, place / 64 * 64 + column_at<ORDER>(place % 64)};
  }

  // Where sixteen bytes of a row are, so that lanes of different rows read different banks.
  __device__ static int place_of_chunk(int row, int chunk) {
    if (BITS == 4) return chunk ^ (row & 2);
    if (BITS == 8) return chunk ^ (row & 1) * 4;
    return chunk ^ (row & 7);
  }

  // Where sixteen bytes of a token are: as `wgmma` takes columns that are turned within 128 bytes.
  __device__ static int place_of_token(int number, int chunk) { return chunk / 8 * (TOKENS * 128) + number * 128 + (chunk % 8 ^ number & 7) * 16; }

  // Ask for a stage's weights. Behind the last row, that one again; behind the last column, zeros.
  __device__ void ask_weights(int stage) const {
    unsigned char* to = shared + stage % STAGES * STAGE;
    constexpr int CHUNKS = W_PITCH / 16;
    int row_bytes = a.columns * BITS / 8;
#pragma unroll
    for (int i = 0; i < ROWS * CHUNKS; i += THREADS) {
      int of_tile = (i + threadIdx.x) / CHUNKS, chunk = (i + threadIdx.x) % CHUNKS;
      Row at = row_of(of_tile);
      const GemmLayer& from = a.layers[at.layer];
      int byte = stage * W_PITCH + chunk * 16;
      bool is_there = byte < row_bytes;
      const unsigned char* source = from.words + (size_t)smaller(at.number, from.rows - 1) * row_bytes + (is_there ? byte : 0);
      copy_async<16>(to + WORDS + of_tile * W_PITCH + place_of_chunk(of_tile, chunk) * 16, source, is_there ? 16 : 0);
    }
    if constexpr (PLAIN) return;
    int groups = a.columns / GROUP, first = stage * SCALES, of_tile = threadIdx.x % ROWS;
    Row at = row_of(of_tile);
    const GemmLayer& from = a.layers[at.layer];
#pragma unroll
    for (int which = threadIdx.x / ROWS; which < 2; which += THREADS / ROWS) {
      const unsigned short* source = (which ? from.biases : from.scales) + (size_t)smaller(at.number, from.rows - 1) * groups + first;
      unsigned short* target = reinterpret_cast<unsigned short*>(to + SCALES_AT) + (which * ROWS + of_tile) * SCALES;
      if (SCALES > 1 && groups % 2 == 0) {
#pragma unroll
        for (int k = 0; k + 1 < SCALES; k += 2) {
          bool is_there = first + k < groups;
          copy_async<4>(target + k, is_there ? source + k : from.scales, is_there ? 4 : 0);
        }
      } else {
#pragma unroll
        for (int k = 0; k < SCALES; k++) target[k] = first + k < groups ? source[k] : 0;
      }
    }
  }

  // The same of its first N tokens; of those that are not there, zeros.
  template <int N>
  __device__ void ask_tokens(int stage) const {
    unsigned char* to = shared + stage % STAGES * STAGE;
    constexpr int CHUNKS = K / 8, AT_ONCE = THREADS / CHUNKS;
    int chunk = threadIdx.x % CHUNKS, first = threadIdx.x / CHUNKS, column = stage * K + chunk * 8;
    const unsigned short* from = a.x + (size_t)(token + first) * a.columns + column;
#pragma unroll
    for (int i = 0; i < N; i += AT_ONCE) {
      bool is_there = first + i < tokens && column < a.columns;
      copy_async<16>(to + place_of_token(first + i, chunk), is_there ? from + (size_t)i * a.columns : a.x, is_there ? 16 : 0);
    }
  }

  __device__ void run() {
    if (tokens <= FEW)
      compute<FEW>();
    else
      compute<TOKENS>();
  }

  template <int N>
  __device__ void compute() {
    allow_next();
    int stages = (a.columns + K - 1) / K;
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++)
      if (i < stages) ask_weights(i);
    await_previous();
#pragma unroll
    for (int i = 0; i < STAGES - 1; i++) {
      if (i < stages) ask_tokens<N>(i);
      commit_copies();
    }
    float sums[N / 8][4] = {};
    for (int stage = 0; stage < stages; stage++) {
      await_copies<STAGES - 2>();
#ifdef MLX_LM_WGMMA
      asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
      __syncthreads();
      if (stage + STAGES - 1 < stages) ask_weights(stage + STAGES - 1), ask_tokens<N>(stage + STAGES - 1);
      commit_copies();
      multiply<N>(shared + stage % STAGES * STAGE, sums);
    }
    __syncthreads();
    write<N>(sums);
  }

  // a · b + c of pairs, rounded once.
  __device__ static unsigned multiply_add_pairs(unsigned a, unsigned b, unsigned c) {
    unsigned d;
    if constexpr (T == Type::BF16)
      asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    else
      asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
    return d;
  }

  // Whole numbers of a word, as a pair.
  __device__ static unsigned whole_numbers(unsigned word, int i) {
    constexpr bool BF = T == Type::BF16;
    constexpr unsigned ONES = BF ? 0x3f803f80 : 0x3c003c00, MINUS_OFFSETS = BF ? 0xc300c300 : 0xe400e400;
    if constexpr (BITS == 4) return multiply_add_pairs(four_bits<T>(word, i), ONES, MINUS_OFFSETS);
    if constexpr (!BF) {
      unsigned pair;
      asm("lop3.b32 %0, %1, 0x00ff00ff, %2, 0xea;" : "=r"(pair) : "r"(word >> 8 * i), "n"(OFFSETS<T>));
      return multiply_add_pairs(pair, ONES, MINUS_OFFSETS);
    }
    unsigned low = multiply_add_pairs(four_bits<T>(word, 2 * i), ONES, MINUS_OFFSETS);
    unsigned high = multiply_add_pairs(four_bits<T>(word, 2 * i + 1), ONES, MINUS_OFFSETS);
    return multiply_add_pairs(high, 0x41804180, low);  // 16 of each
  }

  // A lane's words of 64 columns of two rows, with their scales.
  struct Words {
    static constexpr int OF_ROW = PLAIN ? 1 : BITS / 2;
    unsigned of[2][OF_ROW], scale[2], bias[2];
  };
  __device__ Words words_of(const unsigned char* stage, int block) const {
    Words words;
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int of_tile = warp * 16 + half * 8 + row, chunk = BITS == 4 ? block * 2 + t / 2 : block * 4 + t;
      const unsigned char* from = stage + WORDS + of_tile * W_PITCH + place_of_chunk(of_tile, chunk) * 16;
      if constexpr (BITS == 4) {
        uint2 two = *reinterpret_cast<const uint2*>(from + t % 2 * 8);
        words.of[half][0] = two.x, words.of[half][1] = two.y;
      } else {
        uint4 four = *reinterpret_cast<const uint4*>(from);
        words.of[half][0] = four.x, words.of[half][1] = four.y, words.of[half][2] = four.z, words.of[half][3] = four.w;
      }
      int group = GROUP == 32 ? block * 2 + t / 2 : block * 64 / GROUP;
      const unsigned short* scales = reinterpret_cast<const unsigned short*>(stage + SCALES_AT) + of_tile * SCALES + group;
      words.scale[half] = scales[0] * 0x10001u, words.bias[half] = scales[ROWS * SCALES] * 0x10001u;
    }
    return words;
  }

  // The weights of 16 rows and columns, as the matrix instruction takes them.
  __device__ void load_weights(const unsigned char* stage, int step, const Words& words, unsigned (&weights)[4]) const {
    if constexpr (PLAIN) {
      int of_tile = warp * 16 + lane % 16;
      load_matrices(stage + WORDS + of_tile * W_PITCH + place_of_chunk(of_tile, 2 * step + lane / 16) * 16, weights);
    } else {
#pragma unroll
      for (int i = 0; i < 4; i++) {
        unsigned word = words.of[i % 2][BITS == 4 ? step / 2 % 2 : step % Words::OF_ROW];
        unsigned whole = whole_numbers(word, BITS == 4 ? step % 2 * 2 + i / 2 : i / 2);
        weights[i] = multiply_add_pairs(whole, words.scale[i % 2], words.bias[i % 2]);
      }
    }
  }

  template <int N>
  __device__ void multiply(const unsigned char* stage, float (&sums)[N / 8][4]) const {
    Words words;
    unsigned weights[2][4];
#ifdef MLX_LM_WGMMA
    // Rows of 128 bytes, turned; 1024 from eight of them to the next.
    unsigned long long tokens = (__cvta_generic_to_shared(stage) & 0x3ffff) >> 4 | 1ull << 16 | 64ull << 32 | 1ull << 62;
#endif
#pragma unroll
    for (int step = 0; step < K / 16; step++) {
      if (!PLAIN && step % 4 == 0) words = words_of(stage, step / 4);
      load_weights(stage, step, words, weights[step % 2]);
#ifdef MLX_LM_WGMMA
      begin_product<T, N>(sums, weights[step % 2], tokens + (step / 4 * (TOKENS * 128) + step % 4 * 32 >> 4));
      await_products<1>();
#else
#pragma unroll
      for (int j = 0; j < N / 8; j += 2) {
        unsigned b[4];
        load_matrices(stage + place_of_token((j + lane / 16) * 8 + lane % 8, 2 * step + lane / 8 % 2), b);
        const unsigned(&w)[4] = weights[step % 2];
        multiply_add<T>(sums[j], false, w[0], w[1], w[2], w[3], b[0], b[1]);
        multiply_add<T>(sums[j + 1], false, w[0], w[1], w[2], w[3], b[2], b[3]);
      }
#endif
    }
#ifdef MLX_LM_WGMMA
    await_products<0>();
#endif
  }

  // Sixteen bytes at a time between the tile of y in shared memory and an array of y's shape.
  template <typename F>
  __device__ void each_chunk(F move) const {
    int first = GATED ? tile * OUTPUTS : before + tile * ROWS, n = smaller(OUTPUTS, (GATED ? a.width : before + a.layers[layer].rows) - first);
    for (int i = threadIdx.x; i < tokens * (OUTPUTS / 8); i += THREADS) {
      int number = i / (OUTPUTS / 8), output = i % (OUTPUTS / 8) * 8;
      if (output < n) move(shared + number * Y_PITCH + output * 2, (size_t)(token + number) * a.width + first + output, smaller(8, n - output));
    }
  }

  template <int N>
  __device__ void write(const float (&sums)[N / 8][4]) const {
    if (a.residual.of) {
      each_chunk([&](unsigned char* tile, size_t at, int n) {
        // y and its rows may not be multiples of sixteen bytes.
        for (int k = 0; k < n; k += 2) *reinterpret_cast<unsigned*>(tile + k * 2) = *reinterpret_cast<const unsigned*>(a.residual.of + at + k);
      });
      __syncthreads();
    }
    float bias[2] = {};
#pragma unroll
    for (int half = 0; half < 2; half++) {
      Row at = row_of(warp * 16 + half * 8 + row);
      const GemmLayer& of = a.layers[at.layer];
      if (of.bias && at.number < of.rows) bias[half] = to_float<T>(of.bias[at.number]);
    }
#pragma unroll
    for (int j = 0; j < N / 8; j++)
#pragma unroll
      for (int k = 0; k < 2; k++) {
        unsigned char* to = shared + (j * 8 + 2 * t + k) * Y_PITCH;
        float values[2] = {__fadd_rn(sums[j][k], bias[0]), __fadd_rn(sums[j][2 + k], bias[1])};
        if (GATED) values[0] = __fmul_rn(activated(ACTIVATION, values[0]), values[1]);
#pragma unroll
        for (int half = 0; half < (GATED ? 1 : 2); half++) {
          unsigned short* place = reinterpret_cast<unsigned short*>(to) + (GATED ? warp * 8 : warp * 16 + half * 8) + row;
          if (a.residual.of) values[half] = a.residual.sum(values[half], to_float<T>(*place));
          *place = from_float<T>(values[half]);
        }
      }
    __syncthreads();
    each_chunk([&](const unsigned char* tile, size_t at, int n) {
      if (n == 8 && at % 8 == 0)
        *reinterpret_cast<uint4*>(a.y + at) = *reinterpret_cast<const uint4*>(tile);
      else
        for (int k = 0; k < n; k += 2) *reinterpret_cast<unsigned*>(a.y + at + k) = *reinterpret_cast<const unsigned*>(tile + k * 2);
    });
  }
};

}  // namespace mlx_lm

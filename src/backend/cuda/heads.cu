//! What attention in prompts and in decoding share, behind `numbers.cu`: a head out of the projection of queries, keys and values, normalised
//! by the root of its mean square and turned (arXiv 2104.09864); powers, and capped scores.

namespace mlx_lm {

struct HeadNorm {
  const unsigned short* weight;  // [HEAD_DIM], or null
  float eps;
};

// What turns the first TURNED pairs of a head at a position, as a warp has it.
template <int HEAD_DIM, int TURNED>
struct Turns {
  static constexpr int PAIRS = (HEAD_DIM / 2 + 31) / 32;

  float2 of[PAIRS];

  __device__ void load(const float2* turns) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      int i = threadIdx.x % 32 + 32 * j;
      if (i < TURNED) of[j] = turns[i];
    }
  }
};

// A head as a warp has it: two components each of pairs `lane` + 32 j. The first TURNED pairs are components TURNED apart; what comes
// behind them is not turned, and paired by halves.
template <Type T, int HEAD_DIM, int TURNED>
struct Head {
  static constexpr int HALF = HEAD_DIM / 2, PAIRS = (HALF + 31) / 32;
  static_assert(TURNED <= HALF);

  float values[PAIRS][2], weights[PAIRS][2];

  __device__ static int component(int pair, int half) { return pair < TURNED ? pair + half * TURNED : pair + (half ? HALF : TURNED); }

  // Calls `f` with each component that the lane has, its pair and half.
  template <typename F>
  __device__ static void for_each(F f) {
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int i = threadIdx.x % 32 + 32 * j;
        if (i < HALF) f(component(i, half), j, half);
      }
  }

  // The norm's weights, before there is a head.
  __device__ void prepare(HeadNorm norm) {
    if (norm.weight) for_each([&](int c, int j, int half) { weights[j][half] = to_float<T>(norm.weight[c]); });
  }

  __device__ void load(const unsigned short* from) {
    for_each([&](int c, int j, int half) { values[j][half] = to_float<T>(from[c]); });
  }

  // Normalise, by the norm that was prepared, and turn.
  __device__ void place(HeadNorm norm, const Turns<HEAD_DIM, TURNED>& turns) {
    if (norm.weight) {
      float squares = 0;
      for_each([&](int, int j, int half) { squares = __fmaf_rn(values[j][half], values[j][half], squares); });
      float factor = __frsqrt_rn(__fadd_rn(__fdiv_rn(sum_over_warp(squares), float(HEAD_DIM)), norm.eps));
      for_each([&](int, int j, int half) { values[j][half] = __fmul_rn(__fmul_rn(values[j][half], factor), weights[j][half]); });
    }
#pragma unroll
    for (int j = 0; j < PAIRS; j++) {
      if (int(threadIdx.x % 32) + 32 * j >= TURNED) continue;
      float first = values[j][0], second = values[j][1];
      float2 turn = turns.of[j];
      values[j][0] = __fmaf_rn(first, turn.x, -__fmul_rn(second, turn.y));
      values[j][1] = __fmaf_rn(second, turn.x, __fmul_rn(first, turn.y));
    }
  }

  // Calls `store` with each component that the lane has, and its value.
  template <typename F>
  __device__ void each(F store) const {
    for_each([&](int c, int j, int half) { store(c, values[j][half]); });
  }
};

// 2^x, and 0 for -∞.
__device__ inline float power(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float infinity() { return __int_as_float(0x7f800000); }

// cap · tanh(s / cap) of a score s (Gemma 2, arXiv 2408.00118, section 2).
__device__ inline float capped(float score, float cap) {
  float e = __expf(__fdividef(__fmul_rn(2, score), cap));
  return __fmul_rn(cap, __fsub_rn(1, __fdividef(2, __fadd_rn(e, 1))));
}

}  // namespace mlx_lm

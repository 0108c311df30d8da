//! Queries, keys and values out of a projection, behind `numbers.cu`: each head normalised by the root of its mean square,
//! and turned (arXiv 2104.09864). One warp computes a head of a token.

namespace mlx_lm {

struct HeadNorm {
  const unsigned short* weight;  // [HEAD_DIM], or null
  float eps;
};

// `projected` [TOKENS, all heads · HEAD_DIM] has a token's N_HEADS heads of queries, then N_KV_HEADS of keys and as many of
// values; each token has arrays of its own for them. `turns` [TOKENS, HEAD_DIM / 2], or null, are cosines and sines: component
// i turns with component i + HEAD_DIM / 2.
template <Type T, int TOKENS, int N_HEADS, int N_KV_HEADS, int HEAD_DIM>
__device__ void split_heads(
    const unsigned short* projected, const float2* turns, HeadNorm q_norm, HeadNorm k_norm, unsigned short* const (&q)[TOKENS],
    unsigned short* const (&k)[TOKENS], unsigned short* const (&v)[TOKENS]) {
  constexpr int HEADS = N_HEADS + 2 * N_KV_HEADS, HALF = HEAD_DIM / 2, PAIRS = (HALF + 31) / 32;
  int lane = threadIdx.x % 32, index = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
  if (index >= TOKENS * HEADS) return;
  int token = index / HEADS, head = index % HEADS;
  bool is_query = head < N_HEADS, is_value = head >= N_HEADS + N_KV_HEADS;

  const unsigned short* from = projected + (size_t)index * HEAD_DIM;
  float values[PAIRS][2], squares = 0;
#pragma unroll
  for (int j = 0; j < PAIRS; j++)
#pragma unroll
    for (int half = 0; half < 2; half++) {
      int i = lane + 32 * j;
      values[j][half] = i < HALF ? to_float<T>(from[i + half * HALF]) : 0;
      squares = __fmaf_rn(values[j][half], values[j][half], squares);
    }
  HeadNorm norm = is_query ? q_norm : k_norm;
  if (norm.weight && !is_value) {
    float factor = __frsqrt_rn(__fadd_rn(__fdiv_rn(sum_over_warp(squares), float(HEAD_DIM)), norm.eps));
#pragma unroll
    for (int j = 0; j < PAIRS; j++)
#pragma unroll
      for (int half = 0; half < 2; half++) {
        int i = lane + 32 * j;
        if (i < HALF) values[j][half] = __fmul_rn(__fmul_rn(values[j][half], factor), to_float<T>(norm.weight[i + half * HALF]));
      }
  }
  // Not by the token's number: an array of pointers that is indexed at run time would be in memory.
  unsigned short* to = nullptr;
#pragma unroll
  for (int other = 0; other < TOKENS; other++)
    if (other == token) to = is_query ? q[other] : is_value ? v[other] : k[other];
  to += (size_t)(is_query ? head : is_value ? head - N_HEADS - N_KV_HEADS : head - N_HEADS) * HEAD_DIM;
#pragma unroll
  for (int j = 0; j < PAIRS; j++) {
    int i = lane + 32 * j;
    if (i >= HALF) continue;
    float first = values[j][0], second = values[j][1];
    if (turns && !is_value) {
      float2 turn = turns[token * HALF + i];
      float turned = __fmaf_rn(first, turn.x, -__fmul_rn(second, turn.y));
      second = __fmaf_rn(second, turn.x, __fmul_rn(first, turn.y));
      first = turned;
    }
    to[i] = from_float<T>(first);
    to[i + HALF] = from_float<T>(second);
  }
}

}  // namespace mlx_lm

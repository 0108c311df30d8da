//! Attention of the tokens of prompts over the keys and values in their sequences' caches, behind `numbers.cu`, `tensor.cu` and `heads.cu`:
//! `place_heads` normalises and turns the heads of a projection, and puts keys and values into the caches; `PromptAttention` follows.
//!
//! A block has 64 queries of a head, and takes keys 64 at a time, from positions that are multiples of 64 on, whichever tokens are computed
//! together; keys that a query does not see add nothing, to the bit. So a token's numbers do not depend on how its prompt is cut.
//! Softmax is that of arXiv 1805.02867; weights of values are rounded to their type.

namespace mlx_lm {

struct Prompt {
  unsigned short* keys;  // [n_kv_heads, capacity, HEAD_DIM], as values
  unsigned short* values;
  int first;             // its first token's row in the pass's arrays
  int tokens;
  int position;          // of that token
  int capacity;
  int window;            // positions that a token sees, itself included; 0 where it sees all
  int sinks;             // first positions that it sees too
  const float2* turns;   // [positions, TURNED]: cosines and sines
};

constexpr int MAX_PROMPTS = 32;

struct PromptArguments {
  unsigned short* projected;  // [tokens, n_heads + 2 n_kv_heads, HEAD_DIM]; queries are turned in place
  HeadNorm q_norm, k_norm;
  unsigned short* attended;   // [tokens, n_heads · HEAD_DIM], in the order of o_proj
  int n_heads, n_kv_heads;
  float scale, cap;           // of scores
  Prompt prompts[MAX_PROMPTS];
};

// A warp takes HEADS_OF_WARP heads of a token, blockIdx.x; blocks along y share the heads.
constexpr int HEADS_OF_WARP = 4;

template <Type T, int HEAD_DIM, int TURNED>
__device__ void place_heads(const PromptArguments& a) {
  allow_next();
  await_previous();
  const Prompt& prompt = a.prompts[blockIdx.z];
  int token = blockIdx.x, heads = a.n_heads + 2 * a.n_kv_heads, lane = threadIdx.x % 32;
  if (token >= prompt.tokens) return;
  int position = prompt.position + token, first = (blockIdx.y * (blockDim.x / 32) + threadIdx.x / 32) * HEADS_OF_WARP;
  Turns<HEAD_DIM, TURNED> turns;
  turns.load(prompt.turns + (size_t)position * TURNED);
#pragma unroll
  for (int head = first; head < first + HEADS_OF_WARP; head++) {
    if (head >= heads) break;
    unsigned short* from = a.projected + ((size_t)(prompt.first + token) * heads + head) * HEAD_DIM;
    bool is_query = head < a.n_heads, is_value = head >= a.n_heads + a.n_kv_heads;
    size_t at = ((size_t)(head - a.n_heads - is_value * a.n_kv_heads) * prompt.capacity + position) * HEAD_DIM;
    if (is_value) {
      for (int i = lane; i < HEAD_DIM; i += 32) prompt.values[at + i] = from[i];
      continue;
    }
    unsigned short* to = is_query ? from : prompt.keys + at;
    HeadNorm norm = is_query ? a.q_norm : a.k_norm;
    Head<T, HEAD_DIM, TURNED> placed;
    placed.prepare(norm);
    placed.load(from);
    placed.place(norm, turns);
    placed.each([&](int i, float value) { to[i] = from_float<T>(value); });
  }
}

// ORDER is the bits of o_proj.
template <Type T, int HEAD_DIM, int ORDER, bool CAPPED>
struct PromptAttention {
  static constexpr int THREADS = 128, QUERIES = 64, KEYS = 64;
  static constexpr int PITCH = HEAD_DIM * 2 + 16, TILE = 64 * PITCH, SHARED = 5 * TILE;  // bytes; queries, and keys and values of two blocks
  static constexpr int STEPS = HEAD_DIM / 16, DIMS = HEAD_DIM / 8, CHUNKS = HEAD_DIM / 8;
  static_assert(HEAD_DIM % 16 == 0 && HEAD_DIM <= 256);

  const PromptArguments& a;
  const Prompt& prompt;
  unsigned char* shared;
  int lane, row, t, warp, tile, head, kv_head;

  __device__ PromptAttention(const PromptArguments& a, unsigned char* shared)
      : a(a), prompt(a.prompts[blockIdx.z]), shared(shared), lane(threadIdx.x % 32), row(lane / 4), t(lane % 4), warp(threadIdx.x / 32),
        tile(gridDim.x - 1 - blockIdx.x), head(blockIdx.y), kv_head(head / (a.n_heads / a.n_kv_heads)) {}

  // Rows to shared memory; behind the last that is there, zeros.
  __device__ void ask(unsigned char* to, const unsigned short* from, size_t pitch, int rows) const {
#pragma unroll
    for (int i = threadIdx.x; i < 64 * CHUNKS; i += THREADS) {
      int number = i / CHUNKS, chunk = i % CHUNKS;
      bool is_there = number < rows;
      copy_async<16>(to + number * PITCH + chunk * 16, from + (is_there ? number * pitch + chunk * 8 : 0), is_there ? 16 : 0);
    }
  }

  // Keys and values from a position on.
  __device__ void ask_block(int first, int buffer) const {
    size_t at = ((size_t)kv_head * prompt.capacity + first) * HEAD_DIM;
    int rows = prompt.position + prompt.tokens - first;
    ask(shared + (1 + buffer) * TILE, prompt.keys + at, HEAD_DIM, rows);
    ask(shared + (3 + buffer) * TILE, prompt.values + at, HEAD_DIM, rows);
  }

  __device__ void run() const {
    allow_next();
    await_previous();
    int begin = tile * QUERIES;
    if (begin >= prompt.tokens) return;
    int queries = smaller(QUERIES, prompt.tokens - begin), first = prompt.position + begin, last = first + queries - 1;
    size_t width = (size_t)(a.n_heads + 2 * a.n_kv_heads) * HEAD_DIM;
    ask(shared, a.projected + (prompt.first + begin) * width + head * HEAD_DIM, width, queries);
    // Blocks with sinks come before those that are in the window.
    int in_window = prompt.window && first >= prompt.window ? (first - prompt.window + 1) / KEYS : 0;
    int with_sinks = smaller((prompt.sinks + KEYS - 1) / KEYS, in_window), blocks = with_sinks + last / KEYS - in_window + 1;
    auto position_of = [&](int block) { return (block < with_sinks ? block : block - with_sinks + in_window) * KEYS; };
    ask_block(position_of(0), 0);
    commit_copies();

    unsigned q[STEPS][4];
    float values[DIMS][4] = {}, most[2] = {-infinity(), -infinity()}, sum[2] = {};
    for (int block = 0; block < blocks; block++) {
      await_copies<0>();
      __syncthreads();
      if (block + 1 < blocks) ask_block(position_of(block + 1), (block + 1) % 2);
      commit_copies();
      if (block == 0)
#pragma unroll
        for (int k = 0; k < STEPS; k++) load_matrices(shared + (warp * 16 + lane % 16) * PITCH + (2 * k + lane / 16) * 16, q[k]);
      if (warp * 16 >= queries) continue;
      attend(q, first + warp * 16, position_of(block), block % 2, values, most, sum);
    }

#pragma unroll
    for (int half = 0; half < 2; half++) {
      sum[half] = __fadd_rn(sum[half], __shfl_xor_sync(~0u, sum[half], 1));
      sum[half] = __fadd_rn(sum[half], __shfl_xor_sync(~0u, sum[half], 2));
      int number = warp * 16 + half * 8 + row;
      if (number >= queries) continue;
      unsigned short* to = a.attended + (size_t)(prompt.first + begin + number) * (a.n_heads * HEAD_DIM);
#pragma unroll
      for (int d = 0; d < DIMS; d++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
          int column = head * HEAD_DIM + d * 8 + 2 * t + k;
          to[column / 64 * 64 + place_of<ORDER>(column % 64)] = from_float<T>(__fdiv_rn(values[d][2 * half + k], sum[half]));
        }
    }
  }

  // -∞ for what the queries do not see.
  __device__ void hide(int first, int position, float (&scores)[KEYS / 8][4]) const {
#pragma unroll
    for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
      for (int k = 0; k < 4; k++) {
        int query = first + k / 2 * 8 + row, key = position + j * 8 + 2 * t + k % 2;
        if (key > query || prompt.window && query >= key + prompt.window && key >= prompt.sinks) scores[j][k] = -infinity();
      }
  }

  // A block of keys and values, for 16 queries from position `first` on.
  __device__ void attend(const unsigned (&q)[STEPS][4], int first, int position, int buffer, float (&values)[DIMS][4], float (&most)[2], float (&sum)[2]) const {
    const unsigned char *keys = shared + (1 + buffer) * TILE, *of_values = shared + (3 + buffer) * TILE;
    float scores[KEYS / 8][4] = {};
#pragma unroll
    for (int k = 0; k < STEPS; k++)
#pragma unroll
      for (int j = 0; j < KEYS / 8; j += 2) {
        unsigned b[4];
        load_matrices(keys + ((j + lane / 16) * 8 + lane % 8) * PITCH + (2 * k + lane / 8 % 2) * 16, b);
        multiply_add<T>(scores[j], false, q[k][0], q[k][1], q[k][2], q[k][3], b[0], b[1]);
        multiply_add<T>(scores[j + 1], false, q[k][0], q[k][1], q[k][2], q[k][3], b[2], b[3]);
      }
    // Weights are powers of two.
    float scale = __fmul_rn(CAPPED ? 1 : a.scale, 1.44269504f);
    if (CAPPED)
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int k = 0; k < 4; k++) scores[j][k] = capped(__fmul_rn(scores[j][k], a.scale), a.cap);
    if (position + KEYS - 1 > first || prompt.window && first + 15 >= position + prompt.window) hide(first, position, scores);
#pragma unroll
    for (int half = 0; half < 2; half++) {
      float before = most[half];
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++) most[half] = fmaxf(most[half], fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
      most[half] = fmaxf(most[half], __shfl_xor_sync(~0u, most[half], 1));
      most[half] = fmaxf(most[half], __shfl_xor_sync(~0u, most[half], 2));
      // Of a maximum that stays, the factor is 1 exactly.
      float zero = most[half] == -infinity() ? 0 : __fmul_rn(most[half], scale), factor = power(__fsub_rn(__fmul_rn(before, scale), zero));
      // A lane's share, of the keys that it has.
      sum[half] = __fmul_rn(sum[half], factor);
#pragma unroll
      for (int j = 0; j < KEYS / 8; j++)
#pragma unroll
        for (int k = 0; k < 2; k++) {
          float& score = scores[j][2 * half + k];
          score = power(__fmaf_rn(score, scale, -zero));
          sum[half] = __fadd_rn(sum[half], score);
        }
#pragma unroll
      for (int d = 0; d < DIMS; d++)
#pragma unroll
        for (int k = 0; k < 2; k++) values[d][2 * half + k] = __fmul_rn(values[d][2 * half + k], factor);
    }
#pragma unroll
    for (int k = 0; k < KEYS / 16; k++) {
      unsigned weights[4] = {from_floats<T>(scores[2 * k][0], scores[2 * k][1]), from_floats<T>(scores[2 * k][2], scores[2 * k][3]),
                             from_floats<T>(scores[2 * k + 1][0], scores[2 * k + 1][1]), from_floats<T>(scores[2 * k + 1][2], scores[2 * k + 1][3])};
#pragma unroll
      for (int d = 0; d < DIMS; d += 2) {
        unsigned b[4];
        load_matrices<true>(of_values + (k * 16 + lane % 16) * PITCH + (d + lane / 16) * 16, b);
        multiply_add<T>(values[d], false, weights[0], weights[1], weights[2], weights[3], b[0], b[1]);
        multiply_add<T>(values[d + 1], false, weights[0], weights[1], weights[2], weights[3], b[2], b[3]);
      }
    }
  }
};

}  // namespace mlx_lm

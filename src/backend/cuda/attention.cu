//! Attention of one token of each of several sequences over the keys and values in their caches, behind `numbers.cu` and `heads.cu`, out of the
//! projection of queries, keys and values: heads normalised by the root of their mean square, and turned (arXiv 2104.09864);
//! the token's key and value written to the cache.
//!
//! A block has HEADS heads of queries that share a head of keys, and a part of the tokens that the query sees. LANES lanes
//! share a token's numbers, eight each; so many are a team, which takes several tokens at a time and keeps its own maximum,
//! sum and weighted values (arXiv 1805.02867). The block adds up its teams, and the block that comes last adds up the parts.
//! All orders depend on how many tokens the sequence sees, and on nothing else.

namespace mlx_lm {

// What the tokens of a sequence see: the first `sinks` positions, and from there on those behind `skip` more.
struct Sequence {
  unsigned short* keys;    // [n_kv_heads, capacity, HEAD_DIM], as values
  unsigned short* values;
  int position;            // of the new token, the last that it sees
  int capacity;
  int sees;                // tokens, itself included
  int sinks, skip;
  int part;                // tokens of a part
  const float2* turns;     // [positions, TURNED]: cosines and sines
};

constexpr int MAX_SEQUENCES = 32;

struct AttentionArguments {
  const unsigned short* projected;  // [sequences, n_heads + 2 n_kv_heads, HEAD_DIM]
  HeadNorm q_norm, k_norm;
  unsigned short* attended;         // [sequences, n_heads, HEAD_DIM]
  float* partial;                   // [sequences, n_heads, gridDim.x, HEAD_DIM + 2]
  unsigned* done;                   // [sequences, gridDim.y]: parts that are, zero before and after
  int n_heads, n_kv_heads;
  float scale, cap;                 // of scores
  Sequence sequences[MAX_SEQUENCES];
};

template <Type T, int HEAD_DIM, int HEADS, int TURNED, bool CAPPED>
struct Attention {
  static constexpr int THREADS = 128, WARPS = THREADS / 32;
  static constexpr int LANES = HEAD_DIM <= 64 ? 8 : HEAD_DIM <= 128 ? 16 : 32, TEAMS = THREADS / LANES;
  static constexpr int AT_ONCE = 4;
  static constexpr int MAX_PARTS = 64;
  static constexpr float LOG2E = 1.44269504f;  // weights are powers of two
  static_assert(HEAD_DIM % 8 == 0 && HEAD_DIM <= 256);

  struct Shared {
    float queries[HEADS][HEAD_DIM];
    float values[TEAMS][HEADS][HEAD_DIM];
    float most[TEAMS][HEADS], sum[TEAMS][HEADS];
    float weights[HEADS][MAX_PARTS];
    float sum_of_parts[HEADS];
    bool is_last;
  };

  const AttentionArguments& a;
  const Sequence& sequence;
  Shared& shared;

  // The block's queries to shared memory; and the new key and value to the cache, by the block that sees them. Where several
  // blocks do, they write the same.
  __device__ void prepare(int kv_head, int first_head, bool sees_new) const {
    int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const unsigned short* token = a.projected + (size_t)blockIdx.z * (a.n_heads + 2 * a.n_kv_heads) * HEAD_DIM;
    float scale = CAPPED ? a.scale : __fmul_rn(a.scale, LOG2E);
    size_t at = ((size_t)kv_head * sequence.capacity + sequence.position) * HEAD_DIM;
    for (int head = warp; head < HEADS + 2 * sees_new; head += WARPS) {
      bool is_key = head == HEADS, is_value = head == HEADS + 1;
      int number = is_value ? a.n_heads + a.n_kv_heads + kv_head : is_key ? a.n_heads + kv_head : first_head + head;
      const unsigned short* from = token + (size_t)number * HEAD_DIM;
      if (is_value) {
        for (int i = lane; i < HEAD_DIM; i += 32) sequence.values[at + i] = from[i];
        continue;
      }
      const float2* turns = sequence.turns + (size_t)sequence.position * TURNED;
      Head<T, HEAD_DIM, TURNED>(from, is_key ? a.k_norm : a.q_norm, turns).each([&](int i, float value) {
        if (is_key)
          sequence.keys[at + i] = from_float<T>(value);
        else
          shared.queries[head][i] = __fmul_rn(value, scale);
      });
    }
    __syncthreads();
  }

  __device__ static void to_floats(uint4 of, float (&values)[8]) {
    unsigned pairs[4] = {of.x, of.y, of.z, of.w};
#pragma unroll
    for (int k = 0; k < 8; k++) values[k] = to_float<T>(static_cast<unsigned short>(pairs[k / 2] >> 16 * (k % 2)));
  }

  // A lane's part of the keys or values of tokens of its team: `first` and those TEAMS further each, below `to`.
  __device__ void load(uint4 (&numbers)[AT_ONCE], const unsigned short* of, int first, int to) const {
    int lane = threadIdx.x % LANES;
#pragma unroll
    for (int u = 0; u < AT_ONCE; u++) {
      int i = first + u * TEAMS;
      size_t at = (size_t)(i < sequence.sinks ? i : i + sequence.skip) * HEAD_DIM + lane * 8;
      numbers[u] = i < to && lane * 8 < HEAD_DIM ? *reinterpret_cast<const uint4*>(of + at) : uint4{};
    }
  }

  // A team's tokens of [from, to): their maximum, sum and weighted values, of each head, to shared memory.
  __device__ void attend(int kv_head, int first_head, int from, int to) const {
    int team = threadIdx.x / LANES, lane = threadIdx.x % LANES;
    bool has = lane * 8 < HEAD_DIM, sees_new = to == sequence.sees;
    const unsigned short* keys = sequence.keys + (size_t)kv_head * sequence.capacity * HEAD_DIM;
    const unsigned short* all_values = sequence.values + (size_t)kv_head * sequence.capacity * HEAD_DIM;
    uint4 key[AT_ONCE], value[AT_ONCE];
    // The new token is not there yet. The others came with earlier passes, and the first kernel of a pass waits for all of those
    // to end before it starts.
    load(key, keys, from + team, to - sees_new);
    load(value, all_values, from + team, to - sees_new);
    await_previous();
    prepare(kv_head, first_head, sees_new);
    if (sees_new && to - from <= TEAMS * AT_ONCE) {
      load(key, keys, from + team, to);
      load(value, all_values, from + team, to);
    }

    float most[HEADS], sum[HEADS], values[HEADS][8];
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      most[h] = -infinity(), sum[h] = 0;
#pragma unroll
      for (int k = 0; k < 8; k++) values[h][k] = 0;
    }
    for (int base = from; base < to; base += TEAMS * AT_ONCE) {
      int next = base + TEAMS * AT_ONCE + team;
      float scores[AT_ONCE][HEADS];
#pragma unroll
      for (int u = 0; u < AT_ONCE; u++) {
        float numbers[8];
        to_floats(key[u], numbers);
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
          float score = 0;
          if (has) {
            const float4* query = reinterpret_cast<const float4*>(&shared.queries[h][lane * 8]);
            float4 q[2] = {query[0], query[1]};
            score = __fmul_rn(numbers[0], q[0].x);
            score = __fmaf_rn(numbers[1], q[0].y, score);
            score = __fmaf_rn(numbers[2], q[0].z, score);
            score = __fmaf_rn(numbers[3], q[0].w, score);
            score = __fmaf_rn(numbers[4], q[1].x, score);
            score = __fmaf_rn(numbers[5], q[1].y, score);
            score = __fmaf_rn(numbers[6], q[1].z, score);
            score = __fmaf_rn(numbers[7], q[1].w, score);
          }
          scores[u][h] = score;
        }
      }
      load(key, keys, next, to);
#pragma unroll
      for (int u = 0; u < AT_ONCE; u++)
#pragma unroll
        for (int h = 0; h < HEADS; h++) {
#pragma unroll
          for (int k = LANES / 2; k; k /= 2) scores[u][h] = __fadd_rn(scores[u][h], __shfl_xor_sync(~0u, scores[u][h], k));
          if (CAPPED) scores[u][h] = __fmul_rn(capped(scores[u][h], a.cap), LOG2E);
          if (base + u * TEAMS + team >= to) scores[u][h] = -infinity();
        }
#pragma unroll
      for (int h = 0; h < HEADS; h++) {
        float before = most[h];
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) most[h] = fmaxf(most[h], scores[u][h]);
        float zero = most[h] == -infinity() ? 0 : most[h], factor = power(__fsub_rn(before, zero));
        sum[h] = __fmul_rn(sum[h], factor);
#pragma unroll
        for (int k = 0; k < 8; k++) values[h][k] = __fmul_rn(values[h][k], factor);
#pragma unroll
        for (int u = 0; u < AT_ONCE; u++) {
          scores[u][h] = power(__fsub_rn(scores[u][h], zero));
          sum[h] = __fadd_rn(sum[h], scores[u][h]);
        }
      }
#pragma unroll
      for (int u = 0; u < AT_ONCE; u++) {
        float numbers[8];
        to_floats(value[u], numbers);
#pragma unroll
        for (int h = 0; h < HEADS; h++)
#pragma unroll
          for (int k = 0; k < 8; k++) values[h][k] = __fmaf_rn(scores[u][h], numbers[k], values[h][k]);
      }
      load(value, all_values, next, to);
    }
#pragma unroll
    for (int h = 0; h < HEADS; h++) {
      if (lane == 0) shared.most[team][h] = most[h], shared.sum[team][h] = sum[h];
      if (!has) continue;
      float4* to = reinterpret_cast<float4*>(&shared.values[team][h][lane * 8]);
      to[0] = {values[h][0], values[h][1], values[h][2], values[h][3]};
      to[1] = {values[h][4], values[h][5], values[h][6], values[h][7]};
    }
    __syncthreads();
  }

  __device__ void run() const {
    int parts = (sequence.sees + sequence.part - 1) / sequence.part, part = blockIdx.x;
    if (part >= parts) return;
    int first_head = blockIdx.y * HEADS, kv_head = first_head / (a.n_heads / a.n_kv_heads);
    allow_next();
    int from = part * sequence.part, to = from + sequence.part < sequence.sees ? from + sequence.part : sequence.sees;
    attend(kv_head, first_head, from, to);

    size_t head = (size_t)blockIdx.z * a.n_heads + first_head;  // of all sequences
    for (int i = threadIdx.x; i < HEADS * HEAD_DIM; i += THREADS) {
      int h = i / HEAD_DIM, k = i % HEAD_DIM;
      float most = -infinity(), sum = 0, value = 0;
#pragma unroll
      for (int team = 0; team < TEAMS; team++) most = fmaxf(most, shared.most[team][h]);
      float zero = most == -infinity() ? 0 : most;
#pragma unroll
      for (int team = 0; team < TEAMS; team++) {
        float weight = power(__fsub_rn(shared.most[team][h], zero));
        sum = __fmaf_rn(shared.sum[team][h], weight, sum);
        value = __fmaf_rn(shared.values[team][h][k], weight, value);
      }
      if (parts == 1) {
        a.attended[(head + h) * HEAD_DIM + k] = from_float<T>(__fdiv_rn(value, sum));
      } else {
        float* to = a.partial + ((head + h) * gridDim.x + part) * (HEAD_DIM + 2);
        to[2 + k] = value;
        if (k == 0) to[0] = most, to[1] = sum;
      }
    }
    if (parts > 1) join(parts, head);
  }

  // The block that comes last has all parts.
  __device__ void join(int parts, size_t head) const {
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* done = a.done + blockIdx.z * gridDim.y + blockIdx.y;
      shared.is_last = atomicAdd(done, 1) == parts - 1;
      if (shared.is_last) *done = 0;
    }
    __syncthreads();
    if (!shared.is_last) return;
    __threadfence();
    const float* partial = a.partial + head * gridDim.x * (HEAD_DIM + 2);
    auto at = [&](int h, int part) { return ((size_t)h * gridDim.x + part) * (HEAD_DIM + 2); };
    int lane = threadIdx.x % 32;
    for (int h = threadIdx.x / 32; h < HEADS; h += WARPS) {
      float most[MAX_PARTS / 32], sum[MAX_PARTS / 32], all = -infinity(), total = 0;
#pragma unroll
      for (int i = 0; i < MAX_PARTS / 32; i++) {
        int part = lane + 32 * i;
        most[i] = part < parts ? load_shared_by_all(partial + at(h, part)) : -infinity();
        sum[i] = part < parts ? load_shared_by_all(partial + at(h, part) + 1) : 0;
        all = fmaxf(all, most[i]);
      }
#pragma unroll
      for (int k = 16; k; k /= 2) all = fmaxf(all, __shfl_xor_sync(~0u, all, k));
      float zero = all == -infinity() ? 0 : all;
#pragma unroll
      for (int i = 0; i < MAX_PARTS / 32; i++) {
        float weight = power(__fsub_rn(most[i], zero));
        total = __fmaf_rn(sum[i], weight, total);
        shared.weights[h][lane + 32 * i] = weight;
      }
      total = sum_over_warp(total);
      if (lane == 0) shared.sum_of_parts[h] = total;
    }
    __syncthreads();
    constexpr int N = (HEADS * HEAD_DIM + THREADS - 1) / THREADS;  // numbers of a thread
    float values[N] = {};
#pragma unroll 4
    for (int part = 0; part < parts; part++)
#pragma unroll
      for (int j = 0; j < N; j++) {
        int i = threadIdx.x + j * THREADS, h = i / HEAD_DIM;
        if (i < HEADS * HEAD_DIM)
          values[j] = __fmaf_rn(load_shared_by_all(partial + at(h, part) + 2 + i % HEAD_DIM), shared.weights[h][part], values[j]);
      }
#pragma unroll
    for (int j = 0; j < N; j++) {
      int i = threadIdx.x + j * THREADS, h = i / HEAD_DIM;
      if (i < HEADS * HEAD_DIM) a.attended[head * HEAD_DIM + i] = from_float<T>(__fdiv_rn(values[j], shared.sum_of_parts[h]));
    }
  }
};

}  // namespace mlx_lm

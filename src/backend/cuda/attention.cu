//! Attention of one token of each of several sequences over the keys and values in their caches, behind `numbers.cu`, `tensor.cu` and
//! `heads.cu`, out of the projection of queries, keys and values: heads normalised by the root of their mean square, and turned
//! (arXiv 2104.09864); the token's key and value written to the cache.
//!
//! HEADS heads of queries that share a head of keys are computed together, over the tokens that the query sees in parts. A block takes a
//! part 64 tokens at a time, a warp 16 of them for the scores and a quarter of the components for the weighted values (online softmax,
//! arXiv 1805.02867). Keys, and turned values, are the first factor of matrix instructions, heads the columns of the second; a query
//! and a weight are two numbers each, so that they count with 16 bits or more. GROUP parts are computed by a cluster of blocks,
//! each of which gets its share of all parts' numbers into its shared memory and adds it up; groups add up through memory, by the block
//! that comes last. All orders depend on how many tokens the sequence sees; how many blocks a cluster has changes nothing.

namespace mlx_lm {

// What the tokens of a sequence see: the first `sinks` positions, and from there on those behind `skip` more.
struct Sequence {
  unsigned short* keys;    // [n_kv_heads, capacity, HEAD_DIM], as values
  unsigned short* values;
  int position;            // of the new token, the last that it sees
  int capacity;
  int sees;                // tokens, itself included
  int sinks, skip;
  int units, parts;        // 64 tokens each, of which the last may have less; and what units are shared out to
  const float2* turns;     // [positions, TURNED]: cosines and sines
};

constexpr int MAX_SEQUENCES = 32;

struct AttentionArguments {
  const unsigned short* projected;  // [sequences, n_heads + 2 n_kv_heads, HEAD_DIM]
  HeadNorm q_norm, k_norm;
  unsigned short* attended;         // [sequences, n_heads, HEAD_DIM]
  float* partial;                   // [sequences, n_heads, groups, HEAD_DIM + 2]
  unsigned* done;                   // [sequences, gridDim.y, 16]: groups that are, zero before and after
  int n_heads, n_kv_heads;
  int blocks_of_key;                // of HEADS heads each, for a head of keys
  int cluster;                      // the logarithm to base 2 of how many blocks are one
  float scale, cap;                 // of scores
  Sequence sequences[MAX_SEQUENCES];
};

// The blocks along x that write to each other's shared memory.
struct Cluster {
  int shift, size, rank;
  unsigned long long* arrived;  // ends its phase when all is there that is written to this block

  __device__ Cluster(int shift, unsigned long long* arrived) : shift(shift), size(1 << shift), rank(blockIdx.x & size - 1), arrived(arrived) {}

  // Before all else, in each block: so many bytes are going to be written to it.
  __device__ void expect(int bytes) const {
#if __CUDA_ARCH__ >= 900
    if (size == 1) return;
    if (threadIdx.x == 0) {
      unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(arrived));
      prepare_barrier(arrived, 1);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
      asm volatile("mbarrier.arrive.expect_tx.shared.b64 _, [%0], %1;" ::"r"(at), "r"(bytes) : "memory");
    }
    asm volatile("barrier.cluster.arrive.relaxed;" ::: "memory");
#endif
  }

  // Until all blocks expect what they are going to get.
  __device__ void await_others() const {
#if __CUDA_ARCH__ >= 900
    if (size > 1) asm volatile("barrier.cluster.wait.acquire;" ::: "memory");
#endif
  }

  // Two numbers to where `at` stands, in a block's shared memory.
  __device__ void store(float* at, int block, float first, float second) const {
#if __CUDA_ARCH__ >= 900
    if (size > 1) {
      unsigned to, signal;
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(static_cast<unsigned>(__cvta_generic_to_shared(at))), "r"(block));
      asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(signal) : "r"(static_cast<unsigned>(__cvta_generic_to_shared(arrived))), "r"(block));
      asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.f32 [%0], {%1, %2}, [%3];"
                   ::"r"(to), "f"(first), "f"(second), "r"(signal) : "memory");
      return;
    }
#endif
    *reinterpret_cast<float2*>(at) = {first, second};
  }

  // Until all that was expected is there.
  __device__ void await_all() const {
    if (size > 1)
      await_barrier(arrived, 0);
    else
      __syncthreads();
  }
};

// What another lane has: of an 8 × 8 matrix whose rows are pairs in four lanes, the columns.
__device__ inline unsigned transposed(unsigned pair) {
  unsigned other;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(other) : "r"(pair));
  return other;
}

// CAPPED: capped scores. GROUP: parts of a cluster; 1 where there are no clusters.
template <Type T, int HEAD_DIM, int HEADS, int TURNED, bool CAPPED, int GROUP>
struct Attention {
  static constexpr int THREADS = 128, WARPS = THREADS / 32, TILE = 16, TILES = WARPS * TILE;
  static constexpr int MAX_PARTS = 64, MAX_CLUSTER = 16, NUMBERS = HEADS * HEAD_DIM;
  // A lane has eight numbers of each 32 of a key, and of a value as many as a warp's share, in rows of 16, needs.
  static constexpr int KEY_CHUNKS = (HEAD_DIM + 31) / 32, STEPS = 2 * KEY_CHUNKS, ROWS = HEAD_DIM <= 64 ? 1 : HEAD_DIM <= 128 ? 2 : 4, WIDTH = 2 * ROWS;
  // What blocks add up each: all, or a share, of those of the smallest cluster that is started.
  static constexpr int ALL = up_to(NUMBERS, 4 * MAX_CLUSTER), MAX_SHARE = GROUP == 1 ? ALL : smaller(512, ALL);
  static constexpr float LOG2E = 1.44269504f;  // weights are powers of two
  static_assert(HEAD_DIM % 8 == 0 && HEAD_DIM <= 256 && HEADS <= 8);

  struct Shared {
    uint4 queries[STEPS][32], weights[WARPS][32];  // as the matrix instruction takes them
    alignas(16) unsigned short key[KEY_CHUNKS * 32], value[ROWS * 64];  // of the new token
    float most[WARPS][8], sum[WARPS][8];
    // What parts say to this block: their maximum and the sum of weights relative to it, and its share of their weighted values.
    alignas(8) float of_parts[GROUP][HEADS][2];
    alignas(16) float shares[GROUP][MAX_SHARE];
    unsigned long long arrived;
    bool is_last;
  };

  // What a lane has of 64 tokens: keys `row` and `row` + 8 of the warp's 16; and components of values 2 t, 2 t + 1, 2 t + 8 and 2 t + 9 of
  // each 16.
  struct Tokens {
    uint4 keys[KEY_CHUNKS][2];
    Words<WIDTH * 2> values[TILES / 16][4];
  };

  const AttentionArguments& a;
  const Sequence& sequence;
  Shared& shared;
  const Cluster cluster;
  const int lane, row, t, warp, first_head, kv_head;
  // The head's, and where their tokens stand.
  unsigned short *const key_cache, *const value_cache;
  const int sinks, skip;

  __device__ Attention(const AttentionArguments& a, Shared& shared)
      : a(a), sequence(a.sequences[blockIdx.z]), shared(shared), cluster(a.cluster, &shared.arrived), lane(threadIdx.x % 32), row(lane / 4),
        t(lane % 4), warp(threadIdx.x / 32), first_head(blockIdx.y * HEADS),
        kv_head(a.blocks_of_key == 1 ? blockIdx.y : blockIdx.y / a.blocks_of_key),
        key_cache(sequence.keys + (size_t)kv_head * sequence.capacity * HEAD_DIM), value_cache(sequence.values + (size_t)kv_head * sequence.capacity * HEAD_DIM),
        sinks(sequence.sinks), skip(sequence.skip) {}

  // What a block of the cluster adds up.
  __device__ int share() const { return ALL >> cluster.shift; }
  __device__ int numbers() const { return smaller(share(), NUMBERS - cluster.rank * share()); }

  // Where a component of a head's query stands among the operands of the lanes.
  __device__ unsigned short* query(int head, int i, bool is_low) const {
    int lane = head * 4 + i / 8 % 4, word = is_low * 2 + i / 2 % 2;
    return reinterpret_cast<unsigned short*>(&shared.queries[i / 32 * 2 + i / 4 % 2][lane]) + word * 2 + i % 2;
  }

  static constexpr int ROUNDS = (HEADS + 2 + WARPS - 1) / WARPS;
  using Placed = Head<T, HEAD_DIM, TURNED>;

  // What is known of the heads that this warp places before they are: queries, the new key, the new value.
  __device__ void prepare(Placed (&heads)[ROUNDS], Turns<HEAD_DIM, TURNED>& turns) const {
    turns.load(sequence.turns + (size_t)sequence.position * TURNED);
#pragma unroll
    for (int j = 0; j < ROUNDS; j++) heads[j].prepare(warp + j * WARPS < HEADS ? a.q_norm : a.k_norm);
  }

  // The queries to shared memory; and the new key and value there and to the cache, by the block that sees them. Where several
  // blocks do, they write the same.
  __device__ void place(Placed (&heads)[ROUNDS], const Turns<HEAD_DIM, TURNED>& turns, bool sees_new) const {
    const unsigned short* token = a.projected + (size_t)blockIdx.z * (a.n_heads + 2 * a.n_kv_heads) * HEAD_DIM;
    int n = HEADS + 2 * sees_new;
#pragma unroll
    for (int j = 0; j < ROUNDS; j++) {
      int i = warp + j * WARPS, number = i < HEADS ? first_head + i : a.n_heads + (i - HEADS) * a.n_kv_heads + kv_head;
      if (i < n) heads[j].load(token + (size_t)number * HEAD_DIM);
    }
    size_t at = (size_t)sequence.position * HEAD_DIM;
#pragma unroll
    for (int j = 0; j < ROUNDS; j++) {
      int i = warp + j * WARPS;
      if (i >= n) break;
      bool is_key = i == HEADS, is_value = i == HEADS + 1;
      if (!is_value) heads[j].place(is_key ? a.k_norm : a.q_norm, turns);
      heads[j].each([&](int c, float number) {
        unsigned short high = from_float<T>(number);
        if (is_key) {
          key_cache[at + c] = shared.key[c] = high;
        } else if (is_value) {
          value_cache[at + c] = shared.value[c] = high;
        } else {
          *query(i, c, false) = high, *query(i, c, true) = from_float<T>(__fsub_rn(number, to_float<T>(high)));
        }
      });
    }
    __syncthreads();
  }

  // Where a token that the query sees stands.
  __device__ size_t place_of(int token) const { return (size_t)unsigned(token < sinks ? token : token + skip) * HEAD_DIM; }

  // Of the 64 tokens from `first` on, those below `to`; zeros for others.
  __device__ void load_keys(Tokens& tokens, int first, int to) const {
#pragma unroll
    for (int n = 0; n < 2; n++) {
      int token = first + warp * TILE + n * 8 + row;
      const unsigned short* from = key_cache + place_of(token) + t * 8;
#pragma unroll
      for (int c = 0; c < KEY_CHUNKS; c++)
        tokens.keys[c][n] = token < to && c * 32 + t * 8 < HEAD_DIM ? *reinterpret_cast<const uint4*>(from + c * 32) : uint4{};
    }
  }

  // The first component of values that the lane has.
  __device__ int column() const { return warp * ROWS * 16 + row * WIDTH; }

  __device__ void load_values(Tokens& tokens, int first, int to) const {
    int end = column() < HEAD_DIM ? to : 0;
#pragma unroll
    for (int s = 0; s < TILES / 16; s++)
#pragma unroll
      for (int n = 0; n < 4; n++) {
        int token = first + s * 16 + n / 2 * 8 + 2 * t + n % 2;
        const unsigned short* from = value_cache + place_of(token) + column();
        tokens.values[s][n] = {};
        if (token < end) tokens.values[s][n].load(reinterpret_cast<const unsigned char*>(from));
      }
  }

  // The new token's key and value, where it is one of the 64 from `first` on.
  __device__ void take_new(Tokens& tokens, int first) const {
    int place = sequence.sees - 1 - first;
#pragma unroll
    for (int n = 0; n < 2; n++)
      if (place == warp * TILE + n * 8 + row)
#pragma unroll
        for (int c = 0; c < KEY_CHUNKS; c++) tokens.keys[c][n] = *reinterpret_cast<const uint4*>(&shared.key[c * 32 + t * 8]);
#pragma unroll
    for (int s = 0; s < TILES / 16; s++)
#pragma unroll
      for (int n = 0; n < 4; n++)
        if (place == s * 16 + n / 2 * 8 + 2 * t + n % 2)
          tokens.values[s][n].load(reinterpret_cast<const unsigned char*>(&shared.value[column()]));
  }

  __device__ static unsigned word(const uint4& of, int i) { return i == 0 ? of.x : i == 1 ? of.y : i == 2 ? of.z : of.w; }

  // Products of the warp's 16 keys with the queries: keys `row` and `row` + 8, heads 2 t and 2 t + 1.
  __device__ void multiply_keys(const Tokens& tokens, float (&products)[4]) const {
    float low[4];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
      uint4 q = shared.queries[s][lane];
      const uint4(&key)[2] = tokens.keys[s / 2];
      unsigned k[4] = {word(key[0], s % 2 * 2), word(key[1], s % 2 * 2), word(key[0], s % 2 * 2 + 1), word(key[1], s % 2 * 2 + 1)};
      multiply_add<T>(products, s == 0, k[0], k[1], k[2], k[3], q.x, q.y);
      multiply_add<T>(low, s == 0, k[0], k[1], k[2], k[3], q.z, q.w);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) products[i] = __fadd_rn(products[i], low[i]);
  }

  // The tokens of [from, to), whose first 64 were asked for; and those of [next, next_to) asked for: the weighted values of heads 2 t and
  // 2 t + 1 of the lane's components, their maximum, and the lane's share of the sum of weights.
  __device__ void attend(Tokens& tokens, int from, int to, int next, int next_to, float (&values)[ROWS][4], float (&most)[2], float (&sum)[2]) const {
    bool sees_new = to == sequence.sees;
    int old = to - sees_new, next_old = next_to - (next_to == sequence.sees);
#pragma unroll
    for (int h = 0; h < 2; h++) {
      most[h] = -infinity(), sum[h] = 0;
#pragma unroll
      for (int r = 0; r < ROWS; r++) values[r][h] = values[r][2 + h] = 0;
    }
    for (int first = from; first < to; first += TILES) {
      bool continues = first + TILES < to;
      if (sees_new && !continues) take_new(tokens, first);
      float products[4], weights[4];
      multiply_keys(tokens, products);
      if (continues || next < next_to) load_keys(tokens, continues ? first + TILES : next, continues ? old : next_old);
#pragma unroll
      for (int i = 0; i < 4; i++) {
        float score = __fmul_rn(products[i], a.scale);
        bool is_seen = first + warp * TILE + i / 2 * 8 + row < to;
        weights[i] = is_seen ? __fmul_rn(CAPPED ? capped(score, a.cap) : score, LOG2E) : -infinity();
      }
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float of_warp = fmaxf(weights[h], weights[2 + h]);
#pragma unroll
        for (int k = 4; k < 32; k *= 2) of_warp = fmaxf(of_warp, __shfl_xor_sync(~0u, of_warp, k));
        if (row == 0) shared.most[warp][2 * t + h] = of_warp;
      }
      __syncthreads();
      float factors[2];
#pragma unroll
      for (int h = 0; h < 2; h++) {
        float before = most[h];
#pragma unroll
        for (int w = 0; w < WARPS; w++) most[h] = fmaxf(most[h], shared.most[w][2 * t + h]);
        float zero = most[h] == -infinity() ? 0 : most[h];
        factors[h] = power(__fsub_rn(before, zero));
        weights[h] = power(__fsub_rn(weights[h], zero)), weights[2 + h] = power(__fsub_rn(weights[2 + h], zero));
        sum[h] = __fadd_rn(__fmul_rn(sum[h], factors[h]), __fadd_rn(weights[h], weights[2 + h]));
      }
      unsigned high[2], low[2];
#pragma unroll
      for (int k = 0; k < 2; k++) {
        high[k] = from_floats<T>(weights[2 * k], weights[2 * k + 1]);
        float2 rounded = to_floats<T>(high[k]);
        low[k] = from_floats<T>(__fsub_rn(weights[2 * k], rounded.x), __fsub_rn(weights[2 * k + 1], rounded.y));
      }
      shared.weights[warp][lane] = {transposed(high[0]), transposed(high[1]), transposed(low[0]), transposed(low[1])};
      __syncthreads();
      multiply_values(tokens, factors, values);
      if (continues || next < next_to) load_values(tokens, continues ? first + TILES : next, continues ? old : next_old);
    }
  }

  __device__ void multiply_values(const Tokens& tokens, const float (&factors)[2], float (&values)[ROWS][4]) const {
    float low[ROWS][4];
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int k = 0; k < 4; k++) values[r][k] = __fmul_rn(values[r][k], factors[k % 2]);
#pragma unroll
    for (int s = 0; s < TILES / 16; s++) {
      uint4 weights = shared.weights[s][lane];
#pragma unroll
      for (int r = 0; r < ROWS; r++) {
        // The numbers of two tokens side by side: a component, and the next.
        auto pair = [&](int n, int half) { return __byte_perm(tokens.values[s][n].of[r], tokens.values[s][n + 1].of[r], half ? 0x7632 : 0x5410); };
        unsigned v[4] = {pair(0, 0), pair(0, 1), pair(2, 0), pair(2, 1)};
        multiply_add<T>(values[r], false, v[0], v[1], v[2], v[3], weights.x, weights.y);
        multiply_add<T>(low[r], s == 0, v[0], v[1], v[2], v[3], weights.z, weights.w);
      }
    }
#pragma unroll
    for (int r = 0; r < ROWS; r++)
#pragma unroll
      for (int k = 0; k < 4; k++) values[r][k] = __fadd_rn(values[r][k], low[r][k]);
  }

  // What was found for a part, to the blocks that add it up.
  __device__ void give(int part, const float (&values)[ROWS][4], const float (&most)[2], float (&sum)[2]) const {
#pragma unroll
    for (int h = 0; h < 2; h++) {
      int head = 2 * t + h;
#pragma unroll
      for (int k = 4; k < 32; k *= 2) sum[h] = __fadd_rn(sum[h], __shfl_xor_sync(~0u, sum[h], k));
      if (row == 0) shared.sum[warp][head] = sum[h];
      if (row == 0 && warp == 0) shared.most[0][head] = most[h];
      if (head >= HEADS || column() >= HEAD_DIM) continue;
      int i = head * HEAD_DIM + column();
#pragma unroll
      for (int r = 0; r < ROWS; r++, i += 2) {
        int block = (i << cluster.shift) / ALL;
        cluster.store(&shared.shares[part][i - block * share()], block, values[r][h], values[r][2 + h]);
      }
    }
    __syncthreads();
    if (threadIdx.x < HEADS * cluster.size) {
      int head = threadIdx.x % HEADS;
      float all = 0;
#pragma unroll
      for (int w = 0; w < WARPS; w++) all = __fadd_rn(all, shared.sum[w][head]);
      cluster.store(shared.of_parts[part][head], threadIdx.x / HEADS, shared.most[0][head], all);
    }
    __syncthreads();  // the next part writes to the same places
  }

  // A maximum, the sum of weights relative to it, and a weighted value.
  struct Added {
    float most = -infinity(), sum = 0, value = 0;

    // With n more, of which there are no more than N.
    template <int N, typename F>
    __device__ void add(int n, F more) {
      Added all[N];
      float before = most;
#pragma unroll
      for (int i = 0; i < N; i++)
        if (i < n) all[i] = more(i);
#pragma unroll
      for (int i = 0; i < N; i++) most = fmaxf(most, all[i].most);
      float zero = most == -infinity() ? 0 : most, factor = power(__fsub_rn(before, zero));
      sum = __fmul_rn(sum, factor), value = __fmul_rn(value, factor);
#pragma unroll
      for (int i = 0; i < N; i++) {
        float weight = power(__fsub_rn(all[i].most, zero));
        sum = __fmaf_rn(all[i].sum, weight, sum);
        value = __fmaf_rn(all[i].value, weight, value);
      }
    }
  };

  __device__ void run() const {
    int group = blockIdx.x >> cluster.shift, first_part = group * GROUP, n = smaller(GROUP, sequence.parts - first_part);
    if (n <= 0) return;
    allow_next();
    cluster.expect(n * 4 * (2 * HEADS + (numbers() > 0 ? numbers() : 0)));
    // Parts have as many units as the others, or one more.
    bool is_one = sequence.units <= MAX_PARTS;
    auto begin_of = [&](int part) { return (is_one ? first_part + part : (first_part + part) * sequence.units / MAX_PARTS) * TILES; };
    auto end_of = [&](int part) { return part < n ? smaller(begin_of(part + 1), sequence.sees) : 0; };
    // The group's last part is this block's.
    bool sees_new = first_part + n == sequence.parts && (n - 1 & cluster.size - 1) == cluster.rank;

    Tokens tokens;
    Placed heads[ROUNDS];
    Turns<HEAD_DIM, TURNED> turns;
    // The new token is not there yet. The others came with earlier passes, and the first kernel of a pass waits for all of those
    // to end before it starts.
    int first_old = end_of(cluster.rank) - (end_of(cluster.rank) == sequence.sees);
    load_keys(tokens, begin_of(cluster.rank), first_old);
    load_values(tokens, begin_of(cluster.rank), first_old);
    prepare(heads, turns);
    if (HEAD_DIM % 64 != 0) {  // components that there are not are zeros
      for (int i = threadIdx.x; i < STEPS * 32; i += THREADS) shared.queries[i / 32][i % 32] = uint4{};
      for (int i = threadIdx.x; i < ROWS * 64; i += THREADS) {
        shared.value[i] = 0;
        if (i < KEY_CHUNKS * 32) shared.key[i] = 0;
      }
      __syncthreads();
    }
    await_previous();
    if (cluster.rank < n) place(heads, turns, sees_new);

    for (int part = cluster.rank; part < n; part += cluster.size) {
      int next = part + cluster.size;
      float values[ROWS][4], most[2], sum[2];
      attend(tokens, begin_of(part), end_of(part), begin_of(next), end_of(next), values, most, sum);
      if (part == cluster.rank) cluster.await_others();
      give(part, values, most, sum);
    }
    if (cluster.rank >= n) cluster.await_others();
    cluster.await_all();
    add_up(n, group);
  }

  // The block's share of all parts of its group, and of all groups, by the block that comes last.
  __device__ void add_up(int n, int group) const {
    int groups = (sequence.parts + GROUP - 1) / GROUP, stride = gridDim.x >> cluster.shift;
    size_t first = (size_t)blockIdx.z * a.n_heads + first_head;  // head of all sequences
    auto partial = [&](int i, int group) { return a.partial + ((first + i / HEAD_DIM) * stride + group) * (HEAD_DIM + 2); };
    auto finish = [&](int i, const Added& all) { a.attended[first * HEAD_DIM + i] = from_float<T>(__fdiv_rn(all.value, all.sum)); };
    for (int j = threadIdx.x; j < numbers(); j += THREADS) {
      int i = cluster.rank * share() + j, head = i / HEAD_DIM;
      Added all;
      all.template add<GROUP>(n, [&](int part) {
        const float(&of)[2] = shared.of_parts[part][head];
        return Added{of[0], of[1], shared.shares[part][j]};
      });
      if (groups == 1) {
        finish(i, all);
        continue;
      }
      float* to = partial(i, group);
      // Blocks that share a head write the same.
      to[0] = all.most, to[1] = all.sum, to[2 + i % HEAD_DIM] = all.value;
    }
    if (groups == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) {
      unsigned* done = a.done + (blockIdx.z * gridDim.y + blockIdx.y) * MAX_CLUSTER + cluster.rank;
      shared.is_last = atomicAdd(done, 1) == groups - 1;
      if (shared.is_last) *done = 0;
    }
    __syncthreads();
    if (!shared.is_last) return;
    __threadfence();
    constexpr int AT_ONCE = GROUP == 1 ? 16 : MAX_PARTS / GROUP;
    for (int j = threadIdx.x; j < numbers(); j += THREADS) {
      int i = cluster.rank * share() + j;
      Added all;
      for (int begin = 0; begin < groups; begin += AT_ONCE)
        all.template add<AT_ONCE>(groups - begin, [&](int k) {
          const float* from = partial(i, begin + k);
          return Added{load_shared_by_all(from), load_shared_by_all(from + 1), load_shared_by_all(from + 2 + i % HEAD_DIM)};
        });
      finish(i, all);
    }
  }
};

}  // namespace mlx_lm

//! A token for each row of logits, behind `numbers.cu`: the first of the largest, or one at random as `mlx.core.random.categorical` draws:
//! the first whose weight, with those of all tokens before it, is more than a share of all weights. A cluster of blocks has a row, and each of
//! its warps a range of tokens. All sums have one order.

namespace mlx_lm {

constexpr int ROWS = 64;         // of a launch
constexpr int MAX_CLUSTER = 16;  // blocks
constexpr int WARPS = 32;        // of a block
constexpr int ENDS = 7;          // into how many ranges, less one, `least` divides a range at a time

// How a row's token is chosen.
struct Choice {
  double share;     // of the weights, from 0 up to 1; below 0 for the first of the largest
  float per_temp;   // what logits are multiplied with
  float top_p;      // 1 keeps all
  float log_min_p;  // -∞ keeps all
  int top_k;        // 0 keeps all
};

struct SampleArguments {
  const void* logits;  // [n, columns]
  unsigned* tokens;    // [n]
  int columns;
  Choice choices[ROWS];
};

// Orders a number as the bits of a whole number; 0 is -0.
__device__ inline unsigned order_of(float value) {
  unsigned bits = __float_as_uint(__fadd_rn(value, 0.0f));
  return bits & 0x80000000 ? ~bits : bits | 0x80000000;
}

struct Sum {
  __device__ double operator()(double a, double b) const { return __dadd_rn(a, b); }
};

struct Largest {
  __device__ unsigned long long operator()(unsigned long long a, unsigned long long b) const { return a > b ? a : b; }
};

template <Type T>
struct Sampler {
  // Bits at the end of an order that say nothing of a logit's.
  static constexpr int SHIFT = T == Type::F32 ? 0 : T == Type::BF16 ? 16 : 13;

  // Of each warp, and of each block, what they last brought together: numbers of eight bytes.
  struct Shared {
    unsigned long long warps[WARPS][ENDS];
    unsigned long long blocks[2][MAX_CLUSTER][ENDS];
  };

  const void* row;
  Shared& shared;
  int rank = 0, size = 1;  // of and in the cluster
  int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int begin, end;          // of the warp's tokens
  int round = 0;
  float largest;

  __device__ Sampler(const SampleArguments& a, Shared& shared) : shared(shared) {
#if __CUDA_ARCH__ >= 900
    asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
    asm("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
    row = static_cast<const char*>(a.logits) + (size_t)blockIdx.y * a.columns * (T == Type::F32 ? 4 : 2);
    int each = (a.columns + size * WARPS * 32 - 1) / (size * WARPS * 32) * 32;
    begin = (rank * WARPS + warp) * each;
    end = begin + each < a.columns ? begin + each : a.columns;
  }

  // All threads of the cluster, and what they wrote to each other's shared memory.
  __device__ void await_cluster() const {
#if __CUDA_ARCH__ >= 900
    asm volatile("barrier.cluster.arrive.release;\nbarrier.cluster.wait.acquire;" ::: "memory");
#else
    __syncthreads();
#endif
  }

  __device__ void store(unsigned long long* at, int block, unsigned long long value) const {
#if __CUDA_ARCH__ >= 900
    unsigned to;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(to) : "r"(static_cast<unsigned>(__cvta_generic_to_shared(at))), "r"(block));
    asm volatile("st.shared::cluster.u64 [%0], %1;" ::"r"(to), "l"(value) : "memory");
#else
    *at = value;
#endif
  }

  // What the values of all threads come to, in every thread.
  template <int N, typename V, typename Join>
  __device__ void join_all(V (&values)[N], Join join) {
    static_assert(sizeof(V) == 8 && N <= ENDS, "what `Shared` has room for");
    auto join_warp = [&] {
#pragma unroll
      for (int k = 0; k < N; k++)
#pragma unroll
        for (int other = 16; other; other /= 2) values[k] = join(values[k], __shfl_xor_sync(~0u, values[k], other));
    };
    join_warp();
    if (lane == 0)
#pragma unroll
      for (int k = 0; k < N; k++) reinterpret_cast<V&>(shared.warps[warp][k]) = values[k];
    __syncthreads();
    auto& blocks = shared.blocks[round];
    if (warp == 0) {
#pragma unroll
      for (int k = 0; k < N; k++) values[k] = reinterpret_cast<V&>(shared.warps[lane][k]);
      join_warp();
      if (lane < size)
#pragma unroll
        for (int k = 0; k < N; k++) store(&blocks[rank][k], lane, reinterpret_cast<unsigned long long&>(values[k]));
    }
    // Two rounds later, when all have read them, they are written again.
    await_cluster();
#pragma unroll
    for (int k = 0; k < N; k++) {
      values[k] = reinterpret_cast<V&>(blocks[0][k]);
      for (int block = 1; block < size; block++) values[k] = join(values[k], reinterpret_cast<V&>(blocks[block][k]));
    }
    round ^= 1;
  }

  __device__ float logit(int i) const {
    if constexpr (T == Type::F32)
      return static_cast<const float*>(row)[i];
    else
      return to_float<T>(static_cast<const unsigned short*>(row)[i]);
  }

  template <typename F>
  __device__ void for_each(F f) const {
#pragma unroll 4
    for (int i = begin + lane; i < end; i += 32) f(i, logit(i));
  }

  // The first of the largest, whose logit becomes `largest`; ~0 where one is NaN or ∞, or all are -∞.
  __device__ unsigned first_of_largest() {
    unsigned long long best[1] = {0};  // the order, above how many come behind it
    for_each([&](int i, float value) {
      unsigned order = value < __int_as_float(0x7f800000) ? order_of(value) : ~0u;
      unsigned long long key = (unsigned long long)order << 32 | ~unsigned(i);
      if (key > best[0]) best[0] = key;
    });
    join_all(best, Largest());
    unsigned order = unsigned(best[0] >> 32);
    largest = __uint_as_float(order & 0x80000000 ? order & ~0x80000000 : ~order);
    bool is_number = order != ~0u && order > 0x007fffffu;  // that of -∞
    return is_number ? ~unsigned(best[0]) : ~0u;
  }

  // The least order that is kept when the largest are kept until their weights, or where it COUNTS, they themselves, add up to `goal`; not
  // less than `low`, from where on they do.
  template <bool COUNTS>
  __device__ unsigned least(unsigned low, double goal) {
    low >>= SHIFT;
    unsigned high = (order_of(largest) >> SHIFT) + 1;  // from here on they do not
    while (high - low > 1) {
      unsigned ends[ENDS];
      float parts[ENDS] = {};
      double sums[ENDS];
#pragma unroll
      for (int k = 0; k < ENDS; k++) ends[k] = low + unsigned((unsigned long long)(high - low) * (k + 1) / (ENDS + 1));
      for_each([&](int, float value) {
        unsigned order = order_of(value) >> SHIFT;
        if (order < ends[0]) return;
        float amount = COUNTS ? 1.0f : expf(__fsub_rn(value, largest));
#pragma unroll
        for (int k = 0; k < ENDS; k++)
          if (order >= ends[k]) parts[k] = __fadd_rn(parts[k], amount);
      });
#pragma unroll
      for (int k = 0; k < ENDS; k++) sums[k] = parts[k];
      join_all(sums, Sum());
#pragma unroll
      for (int k = 0; k < ENDS; k++) {
        if (sums[k] < goal) {
          high = ends[k];
          break;
        }
        low = ends[k];
      }
    }
    return low << SHIFT;
  }

  __device__ unsigned least_kept(const Choice& choice, int columns) {
    unsigned kept = order_of(-3.402823466e38f);
    if (choice.top_p < 1) {
      float part = 0;
      for_each([&](int, float value) { part = __fadd_rn(part, expf(__fsub_rn(value, largest))); });
      double sum[1] = {part};
      join_all(sum, Sum());
      double goal = choice.top_p * sum[0];
      // All that are less likely than this are less than what is left out.
      float unlikely = __fadd_rn(largest, logf(float((sum[0] - goal) / (2.0 * columns))));
      unsigned order = order_of(unlikely);
      kept = least<false>(order > kept ? order : kept, goal);
    }
    if (choice.top_k > 0) kept = least<true>(kept, choice.top_k);
    unsigned order = order_of(__fadd_rn(largest, choice.log_min_p));
    return order > kept ? order : kept;
  }

  // The first of n sums at whose end more than `left` is passed, or else the last that is not 0; `left` becomes what is left before it.
  static __device__ int first_beyond(const unsigned long long (*sums)[ENDS], int n, double& left) {
    int found = 0;
    double before = left;
    for (int i = 0; i < n; i++) {
      double sum = __longlong_as_double(sums[i][0]);
      if (sum == 0) continue;
      found = i;
      before = left;
      if (left < sum) break;
      left = __dsub_rn(left, sum);
    }
    left = before;
    return found;
  }

  // A token at random; in one of the threads, and -1 in the others.
  __device__ int draw(const Choice& choice, int columns) {
    unsigned kept = least_kept(choice, columns);
    auto weigh = [&](float value) {
      return order_of(value) >= kept ? expf(__fmul_rn(__fsub_rn(value, largest), choice.per_temp)) : 0.0f;
    };
    float part = 0;
    for_each([&](int, float value) { part = __fadd_rn(part, weigh(value)); });
    double sum[1] = {part};
    join_all(sum, Sum());
    double left = choice.share * sum[0];
    if (first_beyond(shared.blocks[round ^ 1], size, left) != rank) return -1;
    if (first_beyond(shared.warps, WARPS, left) != warp) return -1;
    int found = 0;
    for (int first = begin; first < end; first += 32) {
      float weight = first + lane < end ? weigh(logit(first + lane)) : 0.0f;
      double passed = weight;
#pragma unroll
      for (int k = 1; k < 32; k *= 2) {
        double before = __shfl_up_sync(~0u, passed, k);
        if (lane >= k) passed = __dadd_rn(passed, before);
      }
      unsigned beyond = __ballot_sync(~0u, weight > 0 && left < passed), any = __ballot_sync(~0u, weight > 0);
      if (any) found = first + 31 - __clz(any);
      if (beyond) {
        found = first + __ffs(beyond) - 1;
        break;
      }
      left = __dsub_rn(left, __shfl_sync(~0u, passed, 31));
    }
    return lane == 0 ? found : -1;
  }
};

// A cluster of blocks of 32 · WARPS threads for each row.
template <Type T>
__device__ void sample(const SampleArguments& a) {
  __shared__ typename Sampler<T>::Shared shared;
  Sampler<T> sampler(a, shared);
  sampler.await_cluster();  // until all have shared memory
  allow_next();
  await_previous();
  const Choice& choice = a.choices[blockIdx.y];
  unsigned first = sampler.first_of_largest();
  if (first == ~0u || choice.share < 0) {
    if (threadIdx.x == 0 && sampler.rank == 0) a.tokens[blockIdx.y] = first;
    return;
  }
  int drawn = sampler.draw(choice, a.columns);
  if (drawn >= 0) a.tokens[blockIdx.y] = drawn;
}

}  // namespace mlx_lm

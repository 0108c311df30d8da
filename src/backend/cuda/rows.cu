//! What a pass does with rows besides its blocks, behind `numbers.cu` and `tensor.cu`: rows of an embedding, the numbers of a packed matrix, and
//! a normalisation.

namespace mlx_lm {

struct RowsArguments {
  const void* x;                 // ids [n] (u32) of an embedding; rows [n, columns]
  const void* weight;            // [rows, columns]: words, or numbers; of a norm [columns]
  const unsigned short* scales;  // [rows, columns / group], as biases
  const unsigned short* biases;
  void* y;                       // [n, columns]
  int rows, columns;
  int pitch;                     // from row to row, of x and y, where rows are normalised
  float eps;
  Residual residual;             // of y's shape, where rows are added
};

// A block for each id; no numbers for an id that is no row's. BITS is 0 for weights that are not packed.
template <Type T, int BITS, int GROUP>
__device__ void embed(const RowsArguments& a) {
  unsigned id = static_cast<const unsigned*>(a.x)[blockIdx.x];
  unsigned short* y = static_cast<unsigned short*>(a.y) + (size_t)blockIdx.x * a.columns;
  for (int i = threadIdx.x; i < a.columns; i += blockDim.x) {
    unsigned short bits = T == Type::BF16 ? 0x7fc0 : 0x7e00;
    if (id < unsigned(a.rows)) {
      if constexpr (BITS == 0) {
        bits = static_cast<const unsigned short*>(a.weight)[(size_t)id * a.columns + i];
      } else {
        size_t group = (size_t)id * (a.columns / GROUP) + i / GROUP;
        unsigned word = static_cast<const unsigned*>(a.weight)[(size_t)id * (a.columns * BITS / 32) + i / (32 / BITS)];
        unsigned q = word >> BITS * (i % (32 / BITS)) & ((1u << BITS) - 1);
        bits = from_float<T>(__fmaf_rn(to_float<T>(a.scales[group]), float(q), to_float<T>(a.biases[group])));
      }
    }
    y[i] = bits;
  }
}

// All numbers of a packed matrix, [rows, columns]: a thread for each word.
template <Type T, int BITS, int GROUP>
__device__ void unpack(const RowsArguments& a) {
  constexpr int COUNT = 32 / BITS;
  size_t word = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
  if (word >= (size_t)a.rows * a.columns / COUNT) return;
  unsigned q = static_cast<const unsigned*>(a.weight)[word];
  size_t group = word * COUNT / GROUP;
  float scale = to_float<T>(a.scales[group]), bias = to_float<T>(a.biases[group]);
  unsigned pairs[COUNT / 2];
#pragma unroll
  for (int i = 0; i < COUNT; i += 2) {
    unsigned short pair[2];
#pragma unroll
    for (int k = 0; k < 2; k++) pair[k] = from_float<T>(__fmaf_rn(scale, float(q >> BITS * (i + k) & ((1u << BITS) - 1)), bias));
    pairs[i / 2] = pair[0] | unsigned(pair[1]) << 16;
  }
  unsigned* y = static_cast<unsigned*>(a.y) + word * (COUNT / 2);
  if constexpr (COUNT == 4) {
    *reinterpret_cast<uint2*>(y) = {pairs[0], pairs[1]};
  } else {
#pragma unroll
    for (int i = 0; i < COUNT / 2; i += 4) *reinterpret_cast<uint4*>(y + i) = {pairs[i], pairs[i + 1], pairs[i + 2], pairs[i + 3]};
  }
}

// A block of THREADS for each row, of which y may be x: normalised, or as it is; in the order of a product with weights of ORDER bits, or
// where it ADDS, added to the residual.
template <Type T, int THREADS, int ORDER, bool NORM, bool ADDS>
__device__ void normalise(const RowsArguments& a) {
  __shared__ float sums[THREADS / 32];
  const unsigned short* x = static_cast<const unsigned short*>(a.x) + (size_t)blockIdx.x * a.pitch;
  unsigned short* y = static_cast<unsigned short*>(a.y) + (size_t)blockIdx.x * a.pitch;
  float factor = 1;
  if (NORM) {
    float sum = 0;
    for (int i = threadIdx.x; i < a.columns; i += THREADS) {
      float value = to_float<T>(x[i]);
      sum = __fmaf_rn(value, value, sum);
    }
    sum = sum_over_warp(sum);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = sum;
    __syncthreads();
    sum = 0;
    for (int w = 0; w < THREADS / 32; w++) sum = __fadd_rn(sum, sums[w]);
    factor = __frsqrt_rn(__fadd_rn(__fdiv_rn(sum, float(a.columns)), a.eps));
  }
  for (int place = threadIdx.x; place < a.columns; place += THREADS) {
    int i = place / 64 * 64 + column_at<ORDER>(place % 64);
    float value = to_float<T>(x[i]);
    if (NORM) value = __fmul_rn(__fmul_rn(value, factor), to_float<T>(static_cast<const unsigned short*>(a.weight)[i]));
    if (ADDS) value = a.residual.sum(value, to_float<T>(a.residual.of[(size_t)blockIdx.x * a.pitch + i]));
    y[place] = from_float<T>(value);
  }
}

}  // namespace mlx_lm

// The product's kernel for linear layers with a few vectors, src/backend/cuda/gemv.cu: checked against f64, and timed.
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90,code=sm_90 -o linear benches/cuda/linear.cu && ./linear
//
// `./linear check` leaves out the clock, for compute-sanitizer. Times are of matrices that together are larger than the
// second-level cache, launch after launch in a captured graph. `docs/cuda.md` has the results.

#include "harness.h"

#include "../../src/backend/cuda/numbers.cu"
#include "../../src/backend/cuda/gemv.cu"

using namespace mlx_lm;

template <int LAYERS>
struct Layers {
  Layer of[LAYERS];
};

template <int BITS, int GROUP, Type T, int COLUMNS, int LAYERS, bool SWIGLU, int SETS, int WARPS, int AHEAD, int BLOCKS>
__global__ void __launch_bounds__(WARPS * 32, BLOCKS)
kernel(Layers<LAYERS> layers, const unsigned short* x, unsigned short* y, int vectors) {
  Layer all[LAYERS];
#pragma unroll
  for (int i = 0; i < LAYERS; i++) all[i] = layers.of[i];
  Gemv<BITS, GROUP, T, COLUMNS, LAYERS, SWIGLU, SETS, WARPS, AHEAD>(all, Fused{}).run(x, y, vectors);
}

template <Type T>
__host__ __device__ float number(unsigned short bits) {
  if constexpr (T == Type::BF16) {
    __nv_bfloat16_raw raw{bits};
    return __bfloat162float(__nv_bfloat16(raw));
  } else {
    __half_raw raw{bits};
    return __half2float(__half(raw));
  }
}

// y and the sum of the magnitudes that it is made of, for one layer.
template <int BITS, int GROUP, Type T>
__global__ void exact(Layer w, const unsigned short* x, int columns, double* y, double* magnitude) {
  int r = blockIdx.x, b = blockIdx.y, lane = threadIdx.x;
  double sum = 0, all = 0;
  for (int k = lane; k < columns; k += 32) {
    size_t word = (size_t)r * (columns * BITS / 32) + k / (32 / BITS), group = (size_t)r * (columns / GROUP) + k / GROUP;
    unsigned q = w.words[word] >> BITS * (k % (32 / BITS)) & ((1 << BITS) - 1);
    double scale = number<T>(w.scales[group]), bias = number<T>(w.biases[group]), of = number<T>(x[(size_t)b * columns + k]);
    sum += (scale * q + bias) * of;
    all += (fabs(scale * q) + fabs(bias)) * fabs(of);
  }
  for (int i = 16; i; i /= 2) {
    sum += __shfl_xor_sync(~0u, sum, i);
    all += __shfl_xor_sync(~0u, all, i);
  }
  if (lane == 0) {
    double bias = w.bias ? number<T>(w.bias[r]) : 0;
    y[(size_t)b * w.rows + r] = sum + bias;
    magnitude[(size_t)b * w.rows + r] = all + fabs(bias);
  }
}

// Numbers of either sign of about 2^exponent.
template <Type T>
unsigned short* numbers(size_t n, uint32_t seed, int exponent) {
  uint32_t bits = T == Type::BF16 ? (127 + exponent) << 7 : (15 + exponent) << 10;
  uint32_t fraction = T == Type::BF16 ? 0x807f : 0x83ff;
  return make<unsigned short>(n * 2, seed, fraction << 16 | fraction, bits << 16 | bits);
}

int multiprocessors, wrong = 0;
bool only_check = false;

template <int BITS, int GROUP, Type T, int COLUMNS, int LAYERS, bool SWIGLU, int SETS, int WARPS, int AHEAD, int BLOCKS>
void run(std::vector<int> rows, int vectors, bool bias) {
  constexpr int columns = COLUMNS;
  auto* function = kernel<BITS, GROUP, T, COLUMNS, LAYERS, SWIGLU, SETS, WARPS, AHEAD, BLOCKS>;
  constexpr int V = Tiling<BITS, GROUP>::V * SETS;
  int width = 0, tiles = 0;
  double bytes = 0;
  for (int r : rows) {
    width += r;
    tiles += (r + 15) / 16;
    bytes += (double)r * columns * BITS / 8 + (double)r * columns / GROUP * 4;
  }
  if (SWIGLU) width /= 2, tiles = (rows[0] + 7) / 8;
  int copies = only_check ? 1 : std::max(2, int(400e6 / bytes));
  std::vector<Layers<LAYERS>> all(copies);
  for (int i = 0; i < copies; i++)
    for (int l = 0; l < LAYERS; l++) {
      size_t n = (size_t)rows[l] * columns;
      uint32_t seed = (i * LAYERS + l) * 4;
      all[i].of[l] = {make<unsigned>(n * BITS / 8, seed, ~0u, 0), numbers<T>(n / GROUP, seed + 1, BITS == 4 ? -8 : -12), numbers<T>(n / GROUP, seed + 2, -5), bias ? numbers<T>(rows[l], seed + 3, 0) : nullptr, rows[l]};
    }
  unsigned short *x = numbers<T>((size_t)vectors * columns, 99, -1), *y;
  size_t n = (size_t)vectors * width;
  CHECK(cudaMalloc(&y, n * 2));
  // f64 on the host, from each layer's on the device.
  std::vector<double> expected(n), magnitude(n), slope(n);
  int before = 0;
  std::vector<std::vector<double>> e(LAYERS), m(LAYERS);
  for (int l = 0; l < LAYERS; l++) {
    size_t count = (size_t)vectors * rows[l];
    double *de, *dm;
    CHECK(cudaMalloc(&de, count * 8));
    CHECK(cudaMalloc(&dm, count * 8));
    exact<BITS, GROUP, T><<<dim3(rows[l], vectors), 32>>>(all[0].of[l], x, columns, de, dm);
    e[l].resize(count), m[l].resize(count);
    CHECK(cudaMemcpy(e[l].data(), de, count * 8, cudaMemcpyDeviceToHost));
    CHECK(cudaMemcpy(m[l].data(), dm, count * 8, cudaMemcpyDeviceToHost));
    CHECK(cudaFree(de));
    CHECK(cudaFree(dm));
    if (!SWIGLU)
      for (int b = 0; b < vectors; b++)
        for (int r = 0; r < rows[l]; r++) {
          expected[(size_t)b * width + before + r] = e[l][(size_t)b * rows[l] + r];
          magnitude[(size_t)b * width + before + r] = m[l][(size_t)b * rows[l] + r];
        }
    before += rows[l];
  }
  if constexpr (SWIGLU)
    for (size_t i = 0; i < n; i++) {
      double g = e[0][i], u = e[LAYERS - 1][i], s = 1 / (1 + std::exp(-g));
      expected[i] = g * s * u;
      // How far a relative error of the two sums reaches; silu's slope is at most 1.1.
      magnitude[i] = 1.1 * m[0][i] * std::fabs(u) + std::fabs(g * s) * m[LAYERS - 1][i];
    }

  int fixed = fixed_bytes<WARPS, V>(), each = vector_bytes<BITS, GROUP, COLUMNS>();
  int shared = fixed + V * each, blocks;
  CHECK(cudaFuncSetAttribute((const void*)function, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function, WARPS * 32, shared));
  int grid = std::min(tiles, blocks * multiprocessors);
  auto compute = [&](const unsigned short* x, int vectors) {
    CHECK(cudaMemset(y, 0xff, n * 2));  // NaN
    function<<<grid, WARPS * 32, shared>>>(all[0], x, y, vectors);
    CHECK(cudaGetLastError());
    std::vector<unsigned short> found(n);
    CHECK(cudaMemcpy(found.data(), y, n * 2, cudaMemcpyDeviceToHost));
    return found;
  };
  auto found = compute(x, vectors);
  double worst = 0;  // beyond what rounding the result costs, as a share of the sum of all magnitudes
  for (size_t i = 0; i < n; i++) {
    double error = std::fabs(number<T>(found[i]) - expected[i]) - std::fabs(expected[i]) / (T == Type::BF16 ? 256 : 2048);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error / magnitude[i]);
  }
  bool same = true;
  for (int b = 0; b < vectors && vectors > 1; b++)
    same &= std::memcmp(compute(x + (size_t)b * columns, 1).data(), found.data() + (size_t)b * width, width * 2) == 0;
  bool good = worst < 4e-6 && same;
  wrong += !good;

  double us = 0;
  if (!only_check) {
    us = median_time([&](cudaStream_t stream) {
      for (auto& w : all) function<<<grid, WARPS * 32, shared, stream>>>(w, x, y, vectors);
    });
    us /= copies;
  }
  std::printf("%d bits, %3d, %s, %d%s %6d x %-6d B %2d  %2d x %d, %d %8.2f us  %5.2f TB/s  error %.1e%s, %d blocks%s\n", BITS, GROUP,
              T == Type::BF16 ? "bf16" : "f16 ", LAYERS, SWIGLU ? "g" : " ", SWIGLU ? 2 * width : width, columns, vectors, WARPS, AHEAD, BLOCKS, us,
              us ? bytes / us / 1e6 : 0, worst, same ? "" : ", differs alone", grid, good ? "" : "  WRONG");
  std::fflush(stdout);
  for (auto& layers : all)
    for (auto& w : layers.of)
      for (const void* p : {(const void*)w.words, (const void*)w.scales, (const void*)w.biases, (const void*)w.bias}) CHECK(cudaFree((void*)p));
  CHECK(cudaFree(x));
  CHECK(cudaFree(y));
}

constexpr Type BF = Type::BF16;

// SETS for long rows are fewer: shared memory has no room for more.
template <int SETS, int LONG, int AHEAD>
void shapes(int vectors) {
  run<4, 64, BF, 4096, 2, true, SETS, 16, AHEAD, 1>({14336, 14336}, vectors, false);
  run<4, 64, BF, 14336, 1, false, LONG, 16, AHEAD, 1>({4096}, vectors, false);
  run<4, 64, BF, 4096, 1, false, SETS, 16, AHEAD, 1>({4096}, vectors, false);
  run<4, 64, BF, 4096, 3, false, SETS, 16, AHEAD, 1>({4096, 1024, 1024}, vectors, false);
}

int main(int argc, char** argv) {
  only_check = argc > 1 && !std::strcmp(argv[1], "check");
  multiprocessors = multiprocessors_of_gpu();
  // Forms, with odd sizes: rows that fill no tile, columns that fill no chunk.
  run<4, 64, BF, 896, 1, false, 1, 8, 2, 2>({2432}, 2, true);
  run<4, 64, BF, 960, 2, true, 4, 8, 1, 2>({1001, 1001}, 8, true);
  run<4, 32, Type::F16, 96, 1, false, 1, 8, 2, 2>({96}, 3, true);
  run<4, 128, BF, 1152, 3, false, 1, 8, 2, 2>({130, 7, 24}, 4, false);
  run<8, 64, Type::F16, 448, 2, true, 1, 8, 2, 2>({515, 515}, 4, false);
  run<8, 32, BF, 1120, 3, false, 2, 4, 3, 2>({130, 7, 24}, 11, true);
  run<8, 128, BF, 896, 1, false, 2, 8, 2, 2>({2432}, 8, true);
  run<4, 64, BF, 14336, 1, false, 3, 16, 2, 1>({64}, 8, false);
  if (!only_check) {
    shapes<1, 1, 2>(1);
    shapes<1, 1, 4>(1);
    shapes<1, 1, 2>(2);
    shapes<2, 2, 2>(4);
    shapes<4, 2, 2>(8);
    shapes<8, 3, 1>(16);
    shapes<8, 3, 1>(32);
    run<8, 64, BF, 4096, 2, true, 1, 16, 2, 1>({14336, 14336}, 1, false);
    run<8, 64, BF, 4096, 2, true, 1, 16, 4, 1>({14336, 14336}, 1, false);
    run<4, 64, BF, 2048, 1, false, 1, 8, 2, 2>({128256}, 1, false);
    run<4, 64, BF, 4096, 1, false, 1, 16, 2, 1>({32768}, 1, false);
  }
  std::printf("%d wrong\n", wrong);
  return wrong > 0;
}

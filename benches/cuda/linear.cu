// The product's kernel for linear layers with a few vectors, src/backend/cuda/gemv.cu: checked against f64, and timed.
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90,code=sm_90 -o linear benches/cuda/linear.cu && ./linear
//
// `./linear check` leaves out the clock, for compute-sanitizer. Times are of matrices that together are larger than the
// second-level cache, launch after launch in a captured graph. `docs/cuda.md` has the results.

#include "harness.h"

#include "../../src/backend/cuda/tensor.cu"
#include "../../src/backend/cuda/gemv.cu"

using namespace mlx_lm;

template <int LAYERS>
struct Layers {
  Layer of[LAYERS];
};

template <int BITS, int GROUP, Type T, int COLUMNS, int LAYERS, bool SWIGLU, bool NORM, int TILES, int WARPS, int STAGES, int BLOCKS>
__global__ void __launch_bounds__((WARPS + ADDERS) * 32, BLOCKS) kernel(const __grid_constant__ GemvArguments a) {
  extern __shared__ __align__(128) unsigned char shared[];
  Layer layers[LAYERS];
#pragma unroll
  for (int i = 0; i < LAYERS; i++) layers[i] = a.layers[i];
  Gemv<BITS, GROUP, T, COLUMNS, LAYERS, SWIGLU ? Activation::SILU : Activation::NONE, NORM, TILES, WARPS, STAGES>(a, layers, a.fused, shared).run();
}

// y and the sum of the magnitudes that it is made of, for one layer.
template <int BITS, int GROUP, Type T>
__global__ void exact(Layer w, const unsigned short* x, int columns, double* y, double* magnitude) {
  int r = blockIdx.x, b = blockIdx.y, lane = threadIdx.x;
  double sum = 0, all = 0;
  for (int k = lane; k < columns; k += 32) {
    size_t word = (size_t)r * (columns * BITS / 32) + k / (32 / BITS), group = (size_t)r * (columns / GROUP) + k / GROUP;
    unsigned q = w.words[word] >> BITS * (k % (32 / BITS)) & ((1 << BITS) - 1);
    bool plain = BITS == 16;
    double scale = plain ? number<T>(q) : number<T>(w.scales[group]), bias = plain ? 0 : number<T>(w.biases[group]);
    double product = plain ? scale : scale * q, of = number<T>(x[(size_t)b * columns + k]);
    sum += (product + bias) * of;
    all += (fabs(product) + fabs(bias)) * fabs(of);
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

int multiprocessors, wrong = 0;
bool only_check = false;

// A kernel with its launch.
template <int BITS, int GROUP, Type T, int COLUMNS, int LAYERS, bool SWIGLU, bool NORM, int TILES, int WARPS, int STAGES, int BLOCKS>
struct Launch {
  using P = Packed<BITS, GROUP, COLUMNS>;
  int tiles = 0, width = 0, vectors, spans = 1, span, shared, grid;
  Shared told;

  // As few spans as shared memory has room for, but at least so many.
  Launch(const std::vector<int>& rows, int vectors, int fewest = 1) : vectors(vectors) {
    for (int r : rows) width += r, tiles += (r + 15) / 16;
    if (SWIGLU) width /= 2, tiles = (rows[0] + 7) / 8;
    int room = (228 * 1024 / BLOCKS) - 1024;
    for (spans = fewest;; spans++) {
      span = (P::SEGMENTS + spans - 1) / spans;
      shared = shared_bytes<BITS, GROUP, COLUMNS>(vectors, TILES, WARPS, STAGES, span, NORM);
      if (shared <= room || span == 1) break;
    }
    spans = (P::SEGMENTS + span - 1) / span;
    CHECK(cudaFuncSetAttribute((const void*)function(), cudaFuncAttributeMaxDynamicSharedMemorySize, 227 * 1024));
    int blocks;
    CHECK(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, function(), (WARPS + ADDERS) * 32, shared));
    if (blocks == 0) std::printf("does not fit: %d bytes\n", shared);
    grid = std::min(tiles, std::min(blocks, BLOCKS) * multiprocessors / spans) * spans;
    CHECK(cudaMalloc(&told.sums, (size_t)tiles * P::SEGMENTS * 8 * TILES * 16 * 4));
    CHECK(cudaMalloc(&told.squares, P::SEGMENTS * 8 * TILES * 4));
    CHECK(cudaMalloc(&told.count, grid * 4));
    CHECK(cudaMemset(told.sums, 0xff, (size_t)tiles * P::SEGMENTS * 8 * TILES * 16 * 4));
    CHECK(cudaMemset(told.squares, 0xff, P::SEGMENTS * 8 * TILES * 4));
    CHECK(cudaMemset(told.count, 0, grid * 4));
  }

  ~Launch() {
    CHECK(cudaDeviceSynchronize());
    for (void* p : {(void*)told.sums, (void*)told.squares, (void*)told.count}) CHECK(cudaFree(p));
  }

  static auto function() { return kernel<BITS, GROUP, T, COLUMNS, LAYERS, SWIGLU, NORM, TILES, WARPS, STAGES, BLOCKS>; }

  void start(cudaStream_t stream, const Layers<LAYERS>& layers, const unsigned short* x, unsigned short* y, bool follows = false, Fused fused = {}) const {
    cudaLaunchConfig_t config = {dim3(grid), dim3((WARPS + ADDERS) * 32), size_t(shared), stream, nullptr, 0};
    cudaLaunchAttribute overlap;
    overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    overlap.val.programmaticStreamSerializationAllowed = 1;
    config.attrs = &overlap, config.numAttrs = follows;
    GemvArguments a{};
    for (int i = 0; i < LAYERS; i++) a.layers[i] = layers.of[i];
    a.fused = fused, a.x = x, a.y = y, a.shared = told, a.vectors = vectors, a.span = span;
    CHECK(cudaLaunchKernelEx(&config, function(), a));
  }
};

template <int BITS, int GROUP, Type T, int LAYERS>
Layers<LAYERS> make_layers(const std::vector<int>& rows, int columns, bool bias, uint32_t seed) {
  Layers<LAYERS> layers;
  for (int l = 0; l < LAYERS; l++, seed += 4) {
    size_t n = (size_t)rows[l] * columns;
    unsigned short* added = bias ? numbers<T>(rows[l], seed + 3, 0) : nullptr;
    if (BITS == 16) {
      layers.of[l] = {reinterpret_cast<unsigned*>(numbers<T>(n, seed, -5)), nullptr, nullptr, added, rows[l]};
      continue;
    }
    layers.of[l] = {make<unsigned>(n * BITS / 8, seed, ~0u, 0), numbers<T>(n / GROUP, seed + 1, BITS == 4 ? -8 : -12), numbers<T>(n / GROUP, seed + 2, -5), added, rows[l]};
  }
  return layers;
}

template <int BITS, int GROUP, Type T, int COLUMNS, int LAYERS, bool SWIGLU, bool NORM, int TILES, int WARPS, int STAGES, int BLOCKS>
void run(std::vector<int> rows, int vectors, bool bias, int fewest = 1) {
  constexpr int columns = COLUMNS;
  using L = Launch<BITS, GROUP, T, COLUMNS, LAYERS, SWIGLU, NORM, TILES, WARPS, STAGES, BLOCKS>;
  L launch(rows, vectors, fewest), alone(rows, 1);
  int width = launch.width;
  double bytes = 0;
  for (int r : rows) bytes += (double)r * columns * BITS / 8 + (BITS == 16 ? 0 : (double)r * columns / GROUP * 4);
  int copies = only_check ? 1 : std::max(2, int(400e6 / bytes));
  std::vector<Layers<LAYERS>> all(copies);
  for (int i = 0; i < copies; i++) all[i] = make_layers<BITS, GROUP, T, LAYERS>(rows, columns, bias, i * LAYERS * 4);
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

  auto compute = [&](const unsigned short* x, const L& with) {
    CHECK(cudaMemset(y, 0xff, n * 2));  // NaN
    with.start(nullptr, all[0], x, y);
    CHECK(cudaDeviceSynchronize());
    std::vector<unsigned short> found(n);
    CHECK(cudaMemcpy(found.data(), y, n * 2, cudaMemcpyDeviceToHost));
    return found;
  };
  auto found = compute(x, launch);
  double worst = 0;  // beyond what rounding the result costs, as a share of the sum of all magnitudes
  for (size_t i = 0; i < n; i++) {
    double error = std::fabs(number<T>(found[i]) - expected[i]) - std::fabs(expected[i]) / (T == Type::BF16 ? 256 : 2048);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error / magnitude[i]);
  }
  bool same = true;
  for (int b = 0; b < vectors && vectors > 1; b++)
    same &= std::memcmp(compute(x + (size_t)b * columns, alone).data(), found.data() + (size_t)b * width, width * 2) == 0;
  bool good = worst < 4e-6 && same;
  wrong += !good;

  double us = 0;
  if (!only_check) {
    us = median_time([&](cudaStream_t stream) {
      for (auto& w : all) launch.start(stream, w, x, y);
    });
    us /= copies;
  }
  std::printf("%d bits, %3d, %s, %d%s %6d x %-6d B %2d  %d x %2d, %d stages, %d %8.2f us  %5.2f TB/s  error %.1e%s, %d blocks, %d spans, %d KB%s\n", BITS, GROUP,
              T == Type::BF16 ? "bf16" : "f16 ", LAYERS, SWIGLU ? "g" : " ", SWIGLU ? 2 * width : width, columns, vectors, TILES, WARPS, STAGES, BLOCKS, us,
              us ? bytes / us / 1e6 : 0, worst, same ? "" : ", differs alone", launch.grid, launch.spans, launch.shared / 1024, good ? "" : "  WRONG");
  std::fflush(stdout);
  for (auto& layers : all)
    for (auto& w : layers.of)
      for (const void* p : {(const void*)w.words, (const void*)w.scales, (const void*)w.biases, (const void*)w.bias}) CHECK(cudaFree((void*)p));
  CHECK(cudaFree(x));
  CHECK(cudaFree(y));
}

constexpr Type BF = Type::BF16;

template <int TILES, int WARPS, int STAGES, int BLOCKS>
void shapes(int vectors) {
  run<4, 64, BF, 4096, 2, true, false, TILES, WARPS, STAGES, BLOCKS>({14336, 14336}, vectors, false);
  run<4, 64, BF, 14336, 1, false, false, TILES, WARPS, STAGES, BLOCKS>({4096}, vectors, false);
  run<4, 64, BF, 4096, 1, false, false, TILES, WARPS, STAGES, BLOCKS>({4096}, vectors, false);
}

// The linear layers of a model's blocks, one after another as the program starts them.
template <int BITS, int D, int HEADS, int KV, int HIDDEN, int TILES, int WARPS, int STAGES, int BLOCKS>
void blocks(const char* name, int vectors) {
  Launch<BITS, 64, BF, D, 3, false, true, TILES, WARPS, STAGES, BLOCKS> qkv({HEADS, KV, KV}, vectors);
  Launch<BITS, 64, BF, HEADS, 1, false, false, TILES, WARPS, STAGES, BLOCKS> o({D}, vectors);
  Launch<BITS, 64, BF, D, 2, true, true, TILES, WARPS, STAGES, BLOCKS> expansion({HIDDEN, HIDDEN}, vectors);
  Launch<BITS, 64, BF, HIDDEN, 1, false, false, TILES, WARPS, STAGES, BLOCKS> down({D}, vectors);
  constexpr int N = 12;
  static std::vector<Layers<3>> a;
  static std::vector<Layers<1>> b, d;
  static std::vector<Layers<2>> c;
  static unsigned short *x, *y, *h, *norm;
  if (a.empty()) {
    for (uint32_t i = 0; i < N; i++) {
      a.push_back(make_layers<BITS, 64, BF, 3>({HEADS, KV, KV}, D, false, i * 100));
      b.push_back(make_layers<BITS, 64, BF, 1>({D}, HEADS, false, i * 100 + 20));
      c.push_back(make_layers<BITS, 64, BF, 2>({HIDDEN, HIDDEN}, D, false, i * 100 + 40));
      d.push_back(make_layers<BITS, 64, BF, 1>({D}, HIDDEN, false, i * 100 + 60));
    }
    x = numbers<BF>((size_t)32 * D, 99, -1), y = numbers<BF>((size_t)32 * HIDDEN, 98, -1), h = numbers<BF>((size_t)32 * (HEADS + 2 * KV), 97, -1);
    norm = numbers<BF>(D, 96, 0);
  }
  Fused normed{norm, 1e-5f, {}}, added{nullptr, 0, {x, 1, INFINITY}};
  double us = median_time([&](cudaStream_t stream) {
    for (int i = 0; i < N; i++) {
      qkv.start(stream, a[i], x, h, i > 0, normed);
      o.start(stream, b[i], h, x, true, added);
      expansion.start(stream, c[i], x, y, true, normed);
      down.start(stream, d[i], y, x, true, added);
    }
  });
  double bytes = ((double)D * (HEADS + 2 * KV) + (double)HEADS * D + 3.0 * D * HIDDEN) * (BITS == 16 ? 16 : BITS + 0.5) / 8;
  std::printf("%s %d bits, B %2d, %d x %d, %d stages, %d blocks: %7.2f us a block, %.2f TB/s, spans %d %d %d %d\n", name, BITS, vectors, TILES, WARPS, STAGES, BLOCKS, us / N, bytes * N / us / 1e6, qkv.spans, o.spans, expansion.spans, down.spans);
  std::fflush(stdout);
}

template <int BITS, int TILES, int WARPS, int STAGES, int BLOCKS>
void models(int vectors) {
  blocks<BITS, 4096, 4096, 1024, 14336, TILES, WARPS, STAGES, BLOCKS>("Mistral-7B", vectors);
  blocks<BITS, 2560, 4096, 1024, 9728, TILES, WARPS, STAGES, BLOCKS>("Qwen3-4B  ", vectors);
  blocks<BITS, 2048, 2048, 512, 8192, TILES, WARPS, STAGES, BLOCKS>("Llama-1B  ", vectors);
}

int main(int argc, char** argv) {
  only_check = argc > 1 && !std::strcmp(argv[1], "check");
  multiprocessors = multiprocessors_of_gpu();
  // Forms, with odd sizes: rows that fill no tile, columns that fill no chunk, and several spans.
  run<4, 64, BF, 896, 1, false, false, 1, 8, 2, 1>({2432}, 2, true);
  run<4, 64, BF, 960, 2, true, false, 1, 12, 2, 1>({1001, 1001}, 8, true);
  run<4, 32, Type::F16, 96, 1, false, false, 1, 12, 2, 1>({96}, 3, true);
  run<4, 32, Type::F16, 5216, 1, false, false, 2, 8, 3, 1>({96}, 11, true, 2);
  run<4, 128, BF, 1152, 3, false, false, 1, 12, 2, 1>({130, 7, 24}, 4, false);
  run<8, 64, Type::F16, 448, 2, true, false, 1, 12, 2, 1>({515, 515}, 4, false);
  run<8, 32, BF, 3168, 3, false, false, 2, 4, 2, 2>({130, 7, 24}, 11, true, 2);
  run<8, 128, BF, 896, 1, false, false, 1, 12, 2, 1>({2432}, 8, true);
  run<8, 64, BF, 4096, 2, true, false, 4, 8, 2, 1>({3000, 3000}, 27, true);
  run<4, 64, BF, 14336, 1, false, false, 4, 8, 2, 1>({600}, 30, false);
  run<4, 64, BF, 2560, 3, false, false, 2, 12, 2, 1>({256, 64, 64}, 16, false);
  run<16, 64, BF, 960, 2, true, false, 1, 12, 2, 1>({1001, 1001}, 8, true);
  run<16, 64, Type::F16, 64, 1, false, false, 1, 12, 2, 1>({96}, 3, true);
  run<16, 64, BF, 14336, 1, false, false, 1, 12, 2, 1>({600}, 7, false);
  run<16, 64, Type::F16, 4096, 3, false, false, 2, 12, 2, 1>({130, 7, 24}, 11, true, 2);
  run<16, 64, BF, 2560, 1, false, false, 4, 8, 2, 1>({200}, 30, false);
  if (!only_check) {
    for (int vectors : {1, 8}) models<16, 1, 12, 2, 1>(vectors);
    models<16, 4, 8, 2, 1>(32);
    run<16, 64, BF, 4096, 2, true, false, 1, 12, 2, 1>({14336, 14336}, 1, false);
    for (int vectors : {1, 8}) models<4, 1, 12, 2, 1>(vectors);
    models<4, 2, 12, 2, 1>(16);
    models<4, 4, 8, 2, 1>(32);
    models<4, 4, 12, 2, 1>(32);
    run<8, 64, BF, 4096, 2, true, false, 1, 12, 2, 1>({14336, 14336}, 1, false);
    run<4, 64, BF, 2048, 1, false, false, 1, 12, 2, 1>({128256}, 1, false);
    run<4, 64, BF, 4096, 1, false, false, 1, 12, 2, 1>({32768}, 1, false);
  }
  std::printf("%d wrong\n", wrong);
  return wrong > 0;
}

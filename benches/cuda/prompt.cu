// The product's kernels for prompts, src/backend/cuda/gemm.cu and prompt.cu: checked against f64, and timed.
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90a,code=sm_90a -o prompt benches/cuda/prompt.cu && ./prompt
//
// `./prompt check` leaves out the clock, for compute-sanitizer; `./prompt profile` is for ncu. `docs/cuda.md` has the results.

#include "harness.h"

#include "../../src/backend/cuda/tensor.cu"
#include "../../src/backend/cuda/heads.cu"
#include "../../src/backend/cuda/gemm.cu"
#include "../../src/backend/cuda/prompt.cu"

using namespace mlx_lm;

int wrong = 0;
bool only_check = false;

// y and the sum of the magnitudes that it is made of, for one layer: of weights rounded to their type, as the kernel has them.
template <int BITS, int GROUP, Type T>
__global__ void exact(GemmLayer w, const unsigned short* x, int columns, double* y, double* magnitude) {
  int r = blockIdx.x, b = blockIdx.y, lane = threadIdx.x;
  double sum = 0, all = 0;
  for (int k = lane; k < columns; k += 32) {
    size_t at = (size_t)r * columns + k, group = (size_t)r * (columns / GROUP) + k / GROUP;
    double weight;
    if (BITS == 16) {
      weight = number<T>(reinterpret_cast<const unsigned short*>(w.words)[at]);
    } else {
      unsigned q = w.words[at * BITS / 8] >> (BITS == 4 ? k % 2 * 4 : 0) & ((1 << BITS) - 1);
      double value = (double)number<T>(w.scales[group]) * q + number<T>(w.biases[group]);
      weight = T == Type::BF16 ? (double)__bfloat162float(__double2bfloat16(value)) : (double)__half2float(__double2half(value));
    }
    double of = number<T>(x[(size_t)b * columns + k / 64 * 64 + place_of<BITS>(k % 64)]);
    sum += weight * of;
    all += fabs(weight * of);
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

template <int BITS, int GROUP, Type T, int LAYERS, Activation ACTIVATION, int ORDER, int ROWS, int STAGES, int BLOCKS>
__global__ void __launch_bounds__(Gemm<BITS, GROUP, T, LAYERS, ACTIVATION, ORDER, ROWS, STAGES>::THREADS, BLOCKS)
product(const __grid_constant__ GemmArguments a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  Gemm<BITS, GROUP, T, LAYERS, ACTIVATION, ORDER, ROWS, STAGES>(a, shared).run();
}

template <typename A>
void start(void (*kernel)(A), dim3 grid, int threads, int shared, cudaStream_t stream, bool follows, const A& a) {
  CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared));
  cudaLaunchConfig_t config = {grid, dim3(threads), size_t(shared), stream, nullptr, 0};
  cudaLaunchAttribute overlap;
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  config.attrs = &overlap, config.numAttrs = follows;
  CHECK(cudaLaunchKernelEx(&config, kernel, a));
}

template <int BITS, int GROUP, Type T, int LAYERS, Activation ACTIVATION, int ORDER, int ROWS, int STAGES, int BLOCKS>
struct Product {
  GemmArguments a{};
  int tiles = 0;
  double flops = 0, bytes = 0;

  Product(const std::vector<int>& rows, int columns, uint32_t seed, bool bias = false) {
    a.columns = columns;
    for (int l = 0; l < LAYERS; l++, seed += 4) {
      size_t n = (size_t)rows[l] * columns;
      GemmLayer& layer = a.layers[l];
      layer.rows = rows[l];
      layer.bias = bias ? numbers<T>(rows[l], seed + 3, 0) : nullptr;
      if (BITS == 16) {
        layer.words = reinterpret_cast<unsigned char*>(numbers<T>(n, seed, -5));
      } else {
        layer.words = make<unsigned char>(n * BITS / 8, seed, ~0u, 0);
        layer.scales = numbers<T>(n / GROUP, seed + 1, BITS == 4 ? -8 : -12);
        layer.biases = numbers<T>(n / GROUP, seed + 2, -5);
      }
      bool gated = ACTIVATION != Activation::NONE;
      if (!gated || l == 0) a.width += rows[l];
      if (!gated) tiles += (rows[l] + ROWS - 1) / ROWS;
      flops += 2.0 * n, bytes += n * BITS / 8;
    }
    if (ACTIVATION != Activation::NONE) tiles = (rows[0] + ROWS / 2 - 1) / (ROWS / 2);
  }

  void start(cudaStream_t stream, const unsigned short* x, unsigned short* y, int tokens, const unsigned short* residual = nullptr, bool follows = false) const {
    GemmArguments b = a;
    b.x = x, b.y = y, b.residual = {residual, 1, INFINITY}, b.tokens = tokens;
    using G = Gemm<BITS, GROUP, T, LAYERS, ACTIVATION, ORDER, ROWS, STAGES>;
    ::start(product<BITS, GROUP, T, LAYERS, ACTIVATION, ORDER, ROWS, STAGES, BLOCKS>, dim3((tokens + 127) / 128, tiles), G::THREADS, G::SHARED, stream, follows, b);
  }
};

template <int BITS, int GROUP, Type T, int LAYERS, Activation ACTIVATION, int ORDER, int ROWS, int STAGES = BITS == 16 ? 3 : 2, int BLOCKS = 2>
void check(std::vector<int> rows, int columns, int tokens, bool bias, bool residual) {
  Product<BITS, GROUP, T, LAYERS, ACTIVATION, ORDER, ROWS, STAGES, BLOCKS> of(rows, columns, 1, bias);
  int width = of.a.width;
  size_t n = (size_t)tokens * width;
  unsigned short *x = numbers<T>((size_t)tokens * columns, 99, -1), *y, *more = residual ? numbers<T>(n, 98, 1) : nullptr;
  CHECK(cudaMalloc(&y, n * 2));
  std::vector<double> e[LAYERS], m[LAYERS], expected(n), magnitude(n);
  int before = 0;
  for (int l = 0; l < LAYERS; l++) {
    size_t count = (size_t)tokens * rows[l];
    double *de, *dm;
    CHECK(cudaMalloc(&de, count * 8));
    CHECK(cudaMalloc(&dm, count * 8));
    exact<BITS, GROUP, T><<<dim3(rows[l], tokens), 32>>>(of.a.layers[l], x, columns, de, dm);
    e[l] = on_host(de, count), m[l] = on_host(dm, count);
    if (ACTIVATION == Activation::NONE)
      for (int b = 0; b < tokens; b++)
        for (int r = 0; r < rows[l]; r++) {
          expected[(size_t)b * width + before + r] = e[l][(size_t)b * rows[l] + r];
          magnitude[(size_t)b * width + before + r] = m[l][(size_t)b * rows[l] + r];
        }
    before += rows[l];
  }
  if (ACTIVATION != Activation::NONE)
    for (size_t i = 0; i < n; i++) {
      double g = e[0][i], u = e[LAYERS - 1][i];
      double of = ACTIVATION == Activation::SILU ? g : 2 * std::sqrt(2 / M_PI) * (g + 0.044715 * g * g * g);
      double gate = g / (1 + std::exp(-of));
      size_t at = i / width * width + i % width / 64 * 64 + place_of<ORDER>(i % width % 64);
      expected[at] = gate * u;
      magnitude[at] = 1.2 * m[0][i] * std::fabs(u) + std::fabs(gate) * m[LAYERS - 1][i];
    }
  if (residual) {
    std::vector<unsigned short> added = on_host(more, n);
    for (size_t i = 0; i < n; i++) expected[i] += number<T>(added[i]);
  }
  auto compute = [&](int first, int count) {
    CHECK(cudaMemset(y, 0xff, n * 2));  // NaN
    of.start(nullptr, x + (size_t)first * columns, y, count, more ? more + (size_t)first * width : nullptr);
    CHECK(cudaDeviceSynchronize());
    return on_host(y, (size_t)count * width);
  };
  auto found = compute(0, tokens);
  double worst = 0;
  for (size_t i = 0; i < n; i++) {
    double error = std::fabs(number<T>(found[i]) - expected[i]) - std::fabs(expected[i]) / (T == Type::BF16 ? 256 : 2048);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error / magnitude[i]);
  }
  bool same = true;
  for (int first : {0, 1, 17, 64, 100, 130})
    for (int count : {1, 5, 16, 60, 129})
      if (first + count <= tokens) same &= std::memcmp(compute(first, count).data(), found.data() + (size_t)first * width, (size_t)count * width * 2) == 0;
  bool good = worst < 4e-6 && same;
  wrong += !good;
  std::printf("%2d bits, %3d, %s, %d layers of %d x %d, %d tokens, activation %d, order %d, rows %d: error %.1e%s%s\n", BITS, GROUP,
              T == Type::BF16 ? "bf16" : "f16 ", LAYERS, rows[0], columns, tokens, int(ACTIVATION), ORDER, ROWS, worst, same ? "" : ", differs with others",
              good ? "" : "  WRONG");
  std::fflush(stdout);
}

// The products of a block of a model: each alone, of layers that together do not fit into the second-level cache.
template <int BITS, int ROWS, int STAGES, int BLOCKS>
void time_block(const char* name, int d, int heads, int kv, int hidden, int tokens) {
  constexpr Type T = Type::BF16;
  constexpr Activation NONE = Activation::NONE;
  constexpr int COPIES = 6;
  std::vector<Product<BITS, 64, T, 3, NONE, 16, ROWS, STAGES, BLOCKS>> qkv;
  std::vector<Product<BITS, 64, T, 1, NONE, 16, ROWS, STAGES, BLOCKS>> o, down;
  std::vector<Product<BITS, 64, T, 2, Activation::SILU, BITS, ROWS, STAGES, BLOCKS>> up;
  for (uint32_t i = 0; i < COPIES; i++) {
    qkv.emplace_back(std::vector<int>{heads, kv, kv}, d, i * 100);
    o.emplace_back(std::vector<int>{d}, heads, i * 100 + 20);
    up.emplace_back(std::vector<int>{hidden, hidden}, d, i * 100 + 40);
    down.emplace_back(std::vector<int>{d}, hidden, i * 100 + 60);
  }
  unsigned short *x = numbers<T>((size_t)tokens * d, 99, -1), *y = numbers<T>((size_t)tokens * hidden, 98, -1), *h = numbers<T>((size_t)tokens * (heads + 2 * kv), 97, -1);
  auto each = [&](const char* what, auto& of, unsigned short* in, unsigned short* out, const unsigned short* residual) {
    double us = median_time([&](cudaStream_t stream) {
      for (auto& p : of) p.start(stream, in, out, tokens, residual, &p != &of[0]);
    }, 5) / COPIES;
    std::printf("  %s %6.1f us %3.0f TF", what, us, of[0].flops * tokens / us / 1e6);
    return us;
  };
  std::printf("%s %2d bits, %4d tokens, %3d rows, %d stages, %d blocks:", name, BITS, tokens, ROWS, STAGES, BLOCKS);
  double us = each("qkv", qkv, x, h, nullptr) + each("o", o, h, x, x) + each("up", up, x, y, nullptr) + each("down", down, y, x, x);
  std::printf("  sum %6.1f us\n", us);
  std::fflush(stdout);
}

template <Type T, int HEAD_DIM>
__global__ void __launch_bounds__(128, 8) heads_kernel(const __grid_constant__ PromptArguments a) {
  place_heads<T, HEAD_DIM, HEAD_DIM / 2>(a);
}

template <Type T, int HEAD_DIM, int ORDER>
__global__ void __launch_bounds__(128, HEAD_DIM <= 128 ? 2 : 1) attention_kernel(const __grid_constant__ PromptArguments a) {
  extern __shared__ __align__(1024) unsigned char shared[];
  PromptAttention<T, HEAD_DIM, ORDER, false>(a, shared).run();
}

template <Type T, int HEAD_DIM, int ORDER>
void start_attention(cudaStream_t stream, const PromptArguments& a, int prompts, int tokens, bool follows) {
  int heads = a.n_heads + 2 * a.n_kv_heads, of_block = 4 * HEADS_OF_WARP;
  start(heads_kernel<T, HEAD_DIM>, dim3(tokens, (heads + of_block - 1) / of_block, prompts), 128, 0, stream, follows, a);
  start(attention_kernel<T, HEAD_DIM, ORDER>, dim3((tokens + 63) / 64, a.n_heads, prompts), 128, PromptAttention<T, HEAD_DIM, ORDER, false>::SHARED, stream, true, a);
}

// Attention of a query and head in f64, of keys and values as they are in the cache, and queries as they are then.
template <Type T, int HEAD_DIM, int ORDER>
__global__ void exact_attention(const __grid_constant__ PromptArguments a, int prompt, double* y) {
  const Prompt& p = a.prompts[prompt];
  int token = blockIdx.x, head = blockIdx.y, kv = head / (a.n_heads / a.n_kv_heads), d = threadIdx.x, query = p.position + token;
  const unsigned short* q = a.projected + ((size_t)(p.first + token) * (a.n_heads + 2 * a.n_kv_heads) + head) * HEAD_DIM;
  double most = -1e300, sum = 0, value = 0;
  for (int pass = 0; pass < 2; pass++)
    for (int key = 0; key <= query; key++) {
      if (p.window && !(query < key + p.window) && key >= p.sinks) continue;
      const unsigned short* k = p.keys + ((size_t)kv * p.capacity + key) * HEAD_DIM;
      double score = 0;
      for (int i = 0; i < HEAD_DIM; i++) score += (double)number<T>(q[i]) * number<T>(k[i]);
      score *= a.scale;
      if (pass == 0) {
        most = fmax(most, score);
      } else {
        double weight = exp(score - most);
        sum += weight, value += weight * number<T>(p.values[((size_t)kv * p.capacity + key) * HEAD_DIM + d]);
      }
    }
  int column = head * HEAD_DIM + d;
  y[(size_t)(p.first + token) * (a.n_heads * HEAD_DIM) + column / 64 * 64 + place_of<ORDER>(column % 64)] = value / sum;
}

struct Case {
  int position, tokens, window, sinks;
};

template <Type T, int HEAD_DIM, int ORDER>
void check_attention(int n_heads, int n_kv_heads, std::vector<Case> cases) {
  PromptArguments a{};
  a.n_heads = n_heads, a.n_kv_heads = n_kv_heads, a.scale = 1 / std::sqrt(float(HEAD_DIM));
  int heads = n_heads + 2 * n_kv_heads, rows = 0, most = 0, end = 0;
  for (size_t i = 0; i < cases.size(); i++) {
    auto& [position, tokens, window, sinks] = cases[i];
    int capacity = position + tokens + 5;
    size_t n = (size_t)n_kv_heads * capacity * HEAD_DIM;
    a.prompts[i] = {numbers<T>(n, 10 + i, 0), numbers<T>(n, 50 + i, 0), rows, tokens, position, capacity, window, sinks, nullptr};
    rows += tokens, most = std::max(most, tokens), end = std::max(end, position + tokens);
  }
  size_t n = (size_t)rows * n_heads * HEAD_DIM, of_projected = (size_t)rows * heads * HEAD_DIM;
  unsigned short* projected = numbers<T>(of_projected, 3, 0);
  std::vector<float2> turns((size_t)end * HEAD_DIM / 2);
  for (size_t i = 0; i < turns.size(); i++) {
    double angle = double(i / (HEAD_DIM / 2)) * std::pow(10000.0, -2.0 * (i % (HEAD_DIM / 2)) / HEAD_DIM);
    turns[i] = {float(std::cos(angle)), float(std::sin(angle))};
  }
  float2* device_turns;
  CHECK(cudaMalloc(&device_turns, turns.size() * 8));
  CHECK(cudaMemcpy(device_turns, turns.data(), turns.size() * 8, cudaMemcpyHostToDevice));
  for (size_t i = 0; i < cases.size(); i++) a.prompts[i].turns = device_turns;
  a.q_norm = {numbers<T>(HEAD_DIM, 5, 0), 1e-5f}, a.k_norm = {numbers<T>(HEAD_DIM, 6, 0), 1e-5f};
  CHECK(cudaMalloc(&a.projected, of_projected * 2));
  CHECK(cudaMalloc(&a.attended, n * 2));
  auto compute = [&](PromptArguments b, int prompts, int tokens) {
    CHECK(cudaMemcpy(a.projected, projected, of_projected * 2, cudaMemcpyDeviceToDevice));
    CHECK(cudaMemset(a.attended, 0xff, n * 2));
    start_attention<T, HEAD_DIM, ORDER>(nullptr, b, prompts, tokens, false);
    CHECK(cudaDeviceSynchronize());
    return on_host(a.attended, n);
  };
  auto found = compute(a, int(cases.size()), most);
  double* y;
  CHECK(cudaMalloc(&y, n * 8));
  double worst = 0;
  // Queries and keys are turned here; the same by hand, of the first prompt's first head and last token.
  std::vector<unsigned short> before = on_host(projected, of_projected), after = on_host(a.projected, of_projected), weight = on_host(a.q_norm.weight, HEAD_DIM);
  {
    int token = cases[0].tokens - 1, position = cases[0].position + token;
    const unsigned short* head = &before[(size_t)token * heads * HEAD_DIM];
    double squares = 0;
    for (int i = 0; i < HEAD_DIM; i++) squares += (double)number<T>(head[i]) * number<T>(head[i]);
    double factor = 1 / std::sqrt(squares / HEAD_DIM + 1e-5);
    for (int i = 0; i < HEAD_DIM / 2; i++) {
      double first = number<T>(head[i]) * factor * number<T>(weight[i]), second = number<T>(head[i + HEAD_DIM / 2]) * factor * number<T>(weight[i + HEAD_DIM / 2]);
      double angle = position * std::pow(10000.0, -2.0 * i / HEAD_DIM), wanted = first * std::cos(angle) - second * std::sin(angle);
      worst = std::max(worst, std::fabs(number<T>(after[(size_t)token * heads * HEAD_DIM + i]) - wanted) - std::fabs(wanted) / 128);
    }
  }
  for (size_t i = 0; i < cases.size(); i++) exact_attention<T, HEAD_DIM, ORDER><<<dim3(cases[i].tokens, n_heads), HEAD_DIM>>>(a, int(i), y);
  std::vector<double> expected = on_host(y, n);
  for (size_t i = 0; i < n; i++) {
    double error = std::fabs(number<T>(found[i]) - expected[i]);
    worst = std::isnan(error) ? INFINITY : std::max(worst, error);
  }
  // In two parts, cut anywhere.
  bool same = true;
  for (size_t i = 0; i < cases.size(); i++)
    for (int cut : {1, 37, 64, 100}) {
      if (cut >= cases[i].tokens) continue;
      for (int part = 0; part < 2; part++) {
        PromptArguments b = a;
        Prompt& p = b.prompts[0] = a.prompts[i];
        if (part) p.first += cut, p.position += cut, p.tokens -= cut; else p.tokens = cut;
        auto alone = compute(b, 1, p.tokens);
        size_t from = (size_t)p.first * n_heads * HEAD_DIM;
        same &= std::memcmp(&alone[from], &found[from], (size_t)p.tokens * n_heads * HEAD_DIM * 2) == 0;
      }
    }
  bool good = worst < (T == Type::BF16 ? 2e-2 : 3e-3) && same;
  wrong += !good;
  std::printf("attention, %s, heads %d of %d over %d, order %d: error %.1e%s%s\n", T == Type::BF16 ? "bf16" : "f16 ", n_heads, HEAD_DIM, n_kv_heads, ORDER, worst,
              same ? "" : ", differs when cut", good ? "" : "  WRONG");
  std::fflush(stdout);
}

template <int HEAD_DIM>
void time_attention(int n_heads, int n_kv_heads, int position, int tokens) {
  constexpr Type T = Type::BF16;
  PromptArguments a{};
  a.n_heads = n_heads, a.n_kv_heads = n_kv_heads, a.scale = 0.1f;
  size_t n = (size_t)n_kv_heads * (position + tokens) * HEAD_DIM;
  a.prompts[0] = {numbers<T>(n, 1, 0), numbers<T>(n, 2, 0), 0, tokens, position, position + tokens, 0, 0, nullptr};
  a.projected = numbers<T>((size_t)tokens * (n_heads + 2 * n_kv_heads) * HEAD_DIM, 3, 0);
  CHECK(cudaMalloc(&a.attended, (size_t)tokens * n_heads * HEAD_DIM * 2));
  float2* turns;
  CHECK(cudaMalloc(&turns, (size_t)(position + tokens) * HEAD_DIM * 4));
  a.prompts[0].turns = turns;
  double us = median_time([&](cudaStream_t stream) {
    for (int i = 0; i < 8; i++) start_attention<T, HEAD_DIM, 4>(stream, a, 1, tokens, i > 0);
  }) / 8;
  int of_block = 4 * HEADS_OF_WARP, heads = n_heads + 2 * n_kv_heads;
  double placed = median_time([&](cudaStream_t stream) {
    for (int i = 0; i < 8; i++) start(heads_kernel<T, HEAD_DIM>, dim3(tokens, (heads + of_block - 1) / of_block), 128, 0, stream, i > 0, a);
  }) / 8;
  double flops = 4.0 * n_heads * HEAD_DIM * tokens * (position + tokens / 2.0);
  std::printf("attention, %d heads of %d over %d, %d tokens after %d: %.1f us, of which placing heads %.1f; %.0f TFLOP/s\n", n_heads, HEAD_DIM, n_kv_heads, tokens, position, us,
              placed, flops / us / 1e6);
  std::fflush(stdout);
}

int main(int argc, char** argv) {
  only_check = argc > 1 && !std::strcmp(argv[1], "check");
  multiprocessors_of_gpu();
  if (argc > 1 && !std::strcmp(argv[1], "profile")) {
    time_block<4, 128, 2, 2>("Mistral", 4096, 4096, 1024, 14336, 512);
    time_attention<128>(32, 8, 32768, 512);
    return 0;
  }
  constexpr Type BF = Type::BF16, F = Type::F16;
  constexpr Activation NONE = Activation::NONE, SILU = Activation::SILU, GELU = Activation::GELU_TANH;
  check<4, 64, BF, 1, NONE, 16, 128>({300}, 960, 200, true, true);
  check<4, 64, BF, 1, NONE, 16, 64>({300}, 960, 200, true, true);
  check<4, 32, F, 3, NONE, 16, 128>({130, 30, 24}, 192, 300, false, false);
  check<4, 128, BF, 3, NONE, 16, 64>({256, 64, 64}, 1152, 140, true, false);
  check<4, 64, BF, 2, SILU, 4, 128>({320, 320}, 448, 133, true, false);
  check<4, 64, F, 2, GELU, 8, 64>({192, 192}, 4096, 133, false, false);
  check<8, 64, BF, 2, SILU, 8, 128>({128, 128}, 448, 133, false, false);
  check<8, 32, F, 1, NONE, 16, 128>({130}, 320, 200, true, true);
  check<8, 128, BF, 1, NONE, 16, 64>({130}, 2560, 150, false, true);
  check<16, 64, BF, 3, NONE, 16, 128>({256, 64, 64}, 960, 200, true, false);
  check<16, 64, F, 2, SILU, 16, 64>({192, 192}, 192, 200, false, false);
  std::vector<Case> cases = {{0, 130, 0, 0}, {0, 1, 0, 0}, {100, 70, 0, 4}, {300, 200, 70, 4}, {64, 64, 64, 0}, {700, 129, 9, 3}, {0, 300, 100, 70}};
  check<4, 64, BF, 1, NONE, 16, 128, 5, 1>({300}, 1024, 200, true, true);
  check<16, 64, F, 1, NONE, 16, 128, 6, 1>({300}, 192, 30, true, true);
  check_attention<BF, 128, 4>(8, 2, cases);
  check_attention<F, 64, 8>(4, 4, cases);
  check_attention<BF, 80, 16>(4, 1, cases);
  check_attention<F, 96, 4>(4, 2, cases);
  check_attention<BF, 256, 16>(2, 1, cases);
  check_attention<F, 16, 16>(4, 2, cases);
  if (!only_check) {
    auto models = [](auto time, int tokens) {
      time("Mistral", 4096, 4096, 1024, 14336, tokens);
      time("Qwen3  ", 2560, 4096, 1024, 9728, tokens);
      time("Llama  ", 2048, 2048, 512, 8192, tokens);
    };
    for (int tokens : {512, 64, 20}) {
      models(time_block<4, 128, 2, 2>, tokens);
      models(time_block<4, 128, 5, 1>, tokens);
      models(time_block<4, 128, 4, 1>, tokens);
      models(time_block<4, 64, 2, 3>, tokens);
      models(time_block<4, 64, 3, 2>, tokens);
      models(time_block<4, 64, 5, 1>, tokens);
    }
    time_block<4, 128, 2, 2>("Mistral", 4096, 4096, 1024, 14336, 2048);
    time_block<4, 128, 5, 1>("Mistral", 4096, 4096, 1024, 14336, 2048);
    for (int tokens : {512, 64}) {
      time_block<16, 128, 3, 2>("Mistral", 4096, 4096, 1024, 14336, tokens);
      time_block<16, 128, 6, 1>("Mistral", 4096, 4096, 1024, 14336, tokens);
      time_block<8, 128, 2, 2>("Mistral", 4096, 4096, 1024, 14336, tokens);
      time_block<8, 128, 4, 1>("Mistral", 4096, 4096, 1024, 14336, tokens);
    }
    time_attention<128>(32, 8, 0, 512);
    time_attention<128>(32, 8, 0, 4096);
    time_attention<128>(32, 8, 32768, 512);
    time_attention<64>(32, 8, 0, 512);
  }
  std::printf("%d wrong\n", wrong);
  return wrong > 0;
}

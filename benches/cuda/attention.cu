// The product's attention of one token of each sequence, src/backend/cuda/attention.cu: checked against f64, and timed.
//
//     nvcc -O3 -std=c++17 -gencode=arch=compute_90,code=sm_90 -o attention benches/cuda/attention.cu && ./attention
//
// `./attention check` leaves out the clock, for compute-sanitizer. `docs/cuda.md` has the results.

#include "harness.h"

#include "../../src/backend/cuda/tensor.cu"
#include "../../src/backend/cuda/heads.cu"
#include "../../src/backend/cuda/attention.cu"

using namespace mlx_lm;

template <Type T, int HEAD_DIM, int HEADS, int TURNED, int GROUP>
__global__ void __launch_bounds__(128, HEAD_DIM <= 128 ? 4 : 2) kernel(__grid_constant__ const AttentionArguments a) {
  using A = Attention<T, HEAD_DIM, HEADS, TURNED, false, GROUP>;
  __shared__ typename A::Shared shared;
  A{a, shared}.run();
}

// What a sequence is checked with: where its token is, and what that sees.
struct Case {
  int position, window, sinks;  // a window of 0 hides nothing
};

int wrong = 0;
bool only_check = false;

template <Type T>
std::vector<double> values_of(const unsigned short* data, size_t n) {
  std::vector<double> wide(n);
  std::vector<unsigned short> narrow = on_host(data, n);
  for (size_t i = 0; i < n; i++) wide[i] = number<T>(narrow[i]);
  return wide;
}

// With clusters of several sizes where a group has several parts, all of which must have the same numbers.
template <Type T, int HEAD_DIM, int HEADS, int GROUP>
void run_form(int n_heads, int n_kv_heads, std::vector<Case> cases, bool norms, bool turned) {
  auto chosen = turned ? kernel<T, HEAD_DIM, HEADS, HEAD_DIM / 2, GROUP> : kernel<T, HEAD_DIM, HEADS, 0, GROUP>;
  CHECK(cudaFuncSetAttribute(chosen, cudaFuncAttributeNonPortableClusterSizeAllowed, 1));
  int n = int(cases.size()), all_heads = n_heads + 2 * n_kv_heads, capacity = 0;
  for (Case& c : cases) capacity = std::max(capacity, c.position + 1);
  size_t cache = (size_t)n_kv_heads * capacity * HEAD_DIM, token = (size_t)all_heads * HEAD_DIM;
  int copies = only_check ? 1 : std::max(1, int(200e6 / (4.0 * cache * n)));
  unsigned short* projected = numbers<T>(token * n, 1, 0);
  unsigned short *weights[2] = {numbers<T>(HEAD_DIM, 2, -1), numbers<T>(HEAD_DIM, 3, -1)};
  std::vector<float2> turns((size_t)capacity * HEAD_DIM / 2);
  for (int p = 0; p < capacity; p++)
    for (int i = 0; i < HEAD_DIM / 2; i++) {
      double angle = p * std::pow(10000.0, -2.0 * i / HEAD_DIM);
      turns[(size_t)p * HEAD_DIM / 2 + i] = {float(std::cos(angle)), float(std::sin(angle))};
    }
  float2* on_gpu;
  CHECK(cudaMalloc(&on_gpu, turns.size() * 8));
  CHECK(cudaMemcpy(on_gpu, turns.data(), turns.size() * 8, cudaMemcpyHostToDevice));
  unsigned short* attended;
  CHECK(cudaMalloc(&attended, (size_t)n * n_heads * HEAD_DIM * 2));
  CHECK(cudaMemset(attended, 0xff, (size_t)n * n_heads * HEAD_DIM * 2));  // NaN
  std::vector<AttentionArguments> arguments(copies);
  std::vector<std::vector<double>> keys, values;
  int parts = 1;
  for (int copy = 0; copy < copies; copy++) {
    AttentionArguments& a = arguments[copy];
    a = {projected, {norms ? weights[0] : nullptr, 1e-5f}, {norms ? weights[1] : nullptr, 1e-6f}, attended};
    a.n_heads = n_heads, a.n_kv_heads = n_kv_heads, a.blocks_of_key = n_heads / n_kv_heads / HEADS, a.scale = 1 / std::sqrt(float(HEAD_DIM));
    for (int s = 0; s < n; s++) {
      Sequence& q = a.sequences[s];
      q = {numbers<T>(cache, 10 + copy * 64 + s, -1), numbers<T>(cache, 42 + copy * 64 + s, -1)};
      int end = cases[s].position + 1, first = cases[s].window ? std::max(0, end - cases[s].window) : 0;
      q.position = end - 1, q.capacity = capacity, q.sinks = std::min(cases[s].sinks, first), q.skip = first - q.sinks;
      q.sees = end - q.skip, q.turns = on_gpu;
      q.units = (q.sees + 63) / 64, q.parts = std::min(q.units, 64);
      parts = std::max(parts, q.parts);
      if (copy == 0) keys.push_back(values_of<T>(q.keys, cache)), values.push_back(values_of<T>(q.values, cache));
    }
  }
  float* partial;
  unsigned* done;
  CHECK(cudaMalloc(&partial, (size_t)n * n_heads * parts * (HEAD_DIM + 2) * 4));
  CHECK(cudaMemset(partial, 0xff, (size_t)n * n_heads * parts * (HEAD_DIM + 2) * 4));
  CHECK(cudaMalloc(&done, n * n_heads * 64));
  CHECK(cudaMemset(done, 0, n * n_heads * 64));
  for (auto& a : arguments) a.partial = partial, a.done = done;
  auto start = [&](int sequences, int in_cluster, AttentionArguments a, cudaStream_t stream) {
    a.cluster = int(std::log2(in_cluster));
    cudaLaunchAttribute attribute;
    attribute.id = cudaLaunchAttributeClusterDimension;
    attribute.val.clusterDim = {unsigned(in_cluster), 1, 1};
    dim3 grid((parts + GROUP - 1) / GROUP * in_cluster, n_heads / HEADS, sequences);
    cudaLaunchConfig_t config = {grid, dim3(128), 0, stream, &attribute, in_cluster > 1};
    CHECK(cudaLaunchKernelEx(&config, chosen, a));
  };
  std::vector<int> clusters;
  for (int size = 1; size <= GROUP; size *= 2)
    if (GROUP == 1 || HEADS * HEAD_DIM <= 512 * size) clusters.push_back(size);
  start(n, clusters.back(), arguments[0], 0);
  CHECK(cudaDeviceSynchronize());

  std::vector<double> x = values_of<T>(projected, token * n), found = values_of<T>(attended, (size_t)n * n_heads * HEAD_DIM);
  std::vector<double> norm[2] = {values_of<T>(weights[0], HEAD_DIM), values_of<T>(weights[1], HEAD_DIM)};
  double step = T == Type::BF16 ? 1.0 / 256 : 1.0 / 2048, worst = 0;  // rounding; the error beyond it, relative to the largest value
  auto head = [&](int s, int number, int which, double eps) {
    std::vector<double> h(x.begin() + token * s + (size_t)number * HEAD_DIM, x.begin() + token * s + (size_t)(number + 1) * HEAD_DIM);
    if (norms) {
      double squares = 0;
      for (double v : h) squares += v * v;
      for (int i = 0; i < HEAD_DIM; i++) h[i] *= norm[which][i] / std::sqrt(squares / HEAD_DIM + eps);
    }
    if (turned)
      for (int i = 0; i < HEAD_DIM / 2; i++) {
        double angle = cases[s].position * std::pow(10000.0, -2.0 * i / HEAD_DIM), a = h[i], b = h[i + HEAD_DIM / 2];
        h[i] = a * std::cos(angle) - b * std::sin(angle), h[i + HEAD_DIM / 2] = b * std::cos(angle) + a * std::sin(angle);
      }
    return h;
  };
  for (int s = 0; s < n; s++) {
    Sequence& q = arguments[0].sequences[s];
    std::vector<double> new_keys = values_of<T>(q.keys, cache), new_values = values_of<T>(q.values, cache);
    for (int kv = 0; kv < n_kv_heads; kv++) {
      size_t at = ((size_t)kv * capacity + q.position) * HEAD_DIM;
      auto key = head(s, n_heads + kv, 1, 1e-6);
      for (int i = 0; i < HEAD_DIM; i++) {
        double error = std::fabs(new_keys[at + i] - key[i]) - std::fabs(key[i]) * step;
        worst = std::isnan(error) ? INFINITY : std::max(worst, error);
        if (new_values[at + i] != x[token * s + (size_t)(n_heads + n_kv_heads + kv) * HEAD_DIM + i]) worst = INFINITY;
        keys[s][at + i] = new_keys[at + i], values[s][at + i] = new_values[at + i];
      }
    }
    if (keys[s] != new_keys || values[s] != new_values) worst = INFINITY;  // nothing else may be written
    for (int h = 0; h < n_heads; h++) {
      int kv = h / (n_heads / n_kv_heads);
      auto query = head(s, h, 0, 1e-5);
      std::vector<double> scores;
      std::vector<int> seen;
      for (int p = 0; p <= q.position; p++)
        if (!cases[s].window || q.position < p + cases[s].window || p < cases[s].sinks) {
          double score = 0;
          for (int i = 0; i < HEAD_DIM; i++) score += query[i] * keys[s][((size_t)kv * capacity + p) * HEAD_DIM + i];
          scores.push_back(score / std::sqrt(double(HEAD_DIM))), seen.push_back(p);
        }
      double most = *std::max_element(scores.begin(), scores.end()), sum = 0;
      for (double& score : scores) sum += score = std::exp(score - most);
      for (int i = 0; i < HEAD_DIM; i++) {
        double wanted = 0;
        for (size_t k = 0; k < seen.size(); k++) wanted += scores[k] / sum * values[s][((size_t)kv * capacity + seen[k]) * HEAD_DIM + i];
        double error = std::fabs(found[((size_t)s * n_heads + h) * HEAD_DIM + i] - wanted) - std::fabs(wanted) * step;
        worst = std::isnan(error) ? INFINITY : std::max(worst, error);
      }
    }
  }
  // Each alone, bit for bit.
  bool same = true;
  std::vector<unsigned short> together = on_host(attended, (size_t)n * n_heads * HEAD_DIM);
  for (int i = 0; i < n * int(clusters.size()); i++) {
    int s = i / int(clusters.size());
    AttentionArguments a = arguments[0];
    a.projected += token * s, a.sequences[0] = a.sequences[s];
    start(1, clusters[i % clusters.size()], a, 0);
    CHECK(cudaDeviceSynchronize());
    size_t count = (size_t)n_heads * HEAD_DIM;
    same &= std::memcmp(on_host(attended, count).data(), together.data() + count * s, count * 2) == 0;
  }
  bool good = worst < 3e-5 && same;
  wrong += !good;
  std::printf("%s %3d, %2d over %d%s%s, %2d sequences, %6d tokens, %2d parts, groups of %2d: error %.1e%s%s", T == Type::BF16 ? "bf16" : "f16 ", HEAD_DIM, n_heads,
              n_kv_heads, norms ? ", norms" : "", turned ? ", turned" : "", n, arguments[0].sequences[0].sees, parts, GROUP, worst,
              same ? "" : ", differs alone", good ? "" : "  WRONG");
  double bytes = 0;
  for (int s = 0; s < n; s++) bytes += 4.0 * arguments[0].sequences[s].sees * n_kv_heads * HEAD_DIM;
  if (!only_check)
    for (int size : clusters) {
      int launches = std::max(copies, 10);
      double us = median_time([&](cudaStream_t stream) {
        for (int i = 0; i < launches; i++) start(n, size, arguments[i % copies], stream);
      });
      std::printf("  %d: %.2f us, %.2f TB/s", size, us / launches, bytes / us * launches / 1e6);
    }
  std::printf("\n");
  std::fflush(stdout);
  for (auto& a : arguments)
    for (int s = 0; s < n; s++) {
      CHECK(cudaFree(a.sequences[s].keys));
      CHECK(cudaFree(a.sequences[s].values));
    }
  for (void* p : {(void*)projected, (void*)weights[0], (void*)weights[1], (void*)on_gpu, (void*)attended, (void*)partial, (void*)done}) CHECK(cudaFree(p));
}

template <Type T, int HEAD_DIM, int HEADS>
void run(int n_heads, int n_kv_heads, std::vector<Case> cases, bool norms, bool turned) {
  run_form<T, HEAD_DIM, HEADS, 1>(n_heads, n_kv_heads, cases, norms, turned);
  run_form<T, HEAD_DIM, HEADS, 16>(n_heads, n_kv_heads, cases, norms, turned);
}

constexpr Type BF = Type::BF16, F = Type::F16;

int main(int argc, char** argv) {
  only_check = argc > 1 && !std::strcmp(argv[1], "check");
  multiprocessors_of_gpu();
  run<BF, 128, 4>(8, 2, {{0, 0, 0}, {1, 0, 0}, {63, 0, 0}, {64, 0, 0}, {200, 0, 0}}, true, true);
  run<F, 64, 4>(8, 2, {{31, 0, 0}, {32, 0, 0}, {127, 0, 0}, {130, 64, 0}, {300, 100, 4}}, false, true);
  run<F, 64, 8>(16, 1, {{500, 0, 0}, {2, 1, 1}}, true, false);
  run<BF, 80, 1>(3, 3, {{99, 50, 4}, {7, 0, 0}}, false, true);
  run<F, 96, 3>(6, 2, {{150, 0, 0}}, true, true);
  run<BF, 256, 2>(4, 2, {{190, 0, 0}, {70, 65, 10}}, true, true);
  run<F, 256, 8>(8, 1, {{130, 0, 0}}, false, true);
  run<BF, 128, 8>(8, 1, {{5000, 0, 0}, {4095, 0, 0}}, false, true);
  run<F, 128, 1>(1, 1, {{9000, 8000, 4}}, false, true);
  run<BF, 64, 4>(8, 2, {{4095, 0, 0}, {4096, 0, 0}, {6400, 0, 0}, {4200, 4160, 10}}, false, true);
  if (!only_check) {
    for (int tokens : {64, 512, 1024, 8192, 32768, 32800}) {
      run<BF, 128, 4>(32, 8, {{tokens - 1, 0, 0}}, false, true);
      run<BF, 64, 4>(32, 8, {{tokens - 1, 0, 0}}, false, true);
    }
    run<BF, 128, 4>(32, 8, std::vector<Case>(8, {600, 0, 0}), false, true);
    run<BF, 128, 4>(32, 8, std::vector<Case>(32, {600, 0, 0}), false, true);
  }
  std::printf("%d wrong\n", wrong);
  return wrong > 0;
}

// A node of MLX's graph whose kernels Rust starts on MLX's stream: the C++ half of node.rs, which documents it.

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/array.h"
#include "mlx/c/array.h"
#include "mlx/c/stream.h"
#include "mlx/ops.h"
#include "mlx/primitives.h"
#include "mlx/transforms.h"
#include "mlx/version.h"

namespace mx = mlx::core;

// The two layouts below are those of this version's backend/cuda/device.h and allocator.h, which cannot be included without
// NVIDIA's headers. Another version: compare them first.
static_assert(MLX_VERSION_NUMERIC == 32002);

namespace mlx::core::cu {

// The first members of MLX's, which has no virtual functions.
class CommandEncoder {
 public:
  void* device;
  void* stream;  // of the driver
};

CommandEncoder& get_command_encoder(Stream s);

// What an allocator::Buffer points to.
struct CudaBuffer {
  void* data;
  size_t size;
  int device;
};

} // namespace mlx::core::cu

extern "C" struct mlx_lm_cuda_closure {
  void* state;
  // 0, or what went wrong.
  int (*call)(void* state, void* stream, void* const* addresses, size_t n_addresses);
  void (*drop)(void* state);
};

namespace {

// MLX keeps the graphs that it has captured, by their shape. Without this it counts how often a shape is new, over the whole life of a
// stream, and refuses to compute from twice the cache's size on: prompts of all lengths reach that after some hundred requests. It
// reads the variable when it makes a stream's encoder, so this runs before any thread does. A user's own setting stays.
__attribute__((constructor)) void never_refuse() { setenv("MLX_ENABLE_CACHE_THRASHING_CHECK", "0", 0); }

// How many handles there are to an array: a private member, which an explicit instantiation may name.
template <auto Member>
struct Handles {
  friend long handles(const mx::array& a) { return (a.*Member).use_count(); }
};
template struct Handles<&mx::array::array_desc_>;
long handles(const mx::array& a);

mx::array& array(mlx_array a) { return *static_cast<mx::array*>(a.ctx); }

void* address(const mx::array& a) {
  auto* buffer = static_cast<const mx::cu::CudaBuffer*>(a.buffer().ptr());
  return static_cast<char*>(buffer->data) + a.offset();
}

using Held = std::vector<std::shared_ptr<mx::array::Data>>;

struct Closure : mlx_lm_cuda_closure {
  explicit Closure(mlx_lm_cuda_closure c) : mlx_lm_cuda_closure(c) {}
  Closure(const Closure&) = delete;
  ~Closure() { drop(state); }
};

class Launches : public mx::Primitive {
 public:
  Launches(mx::Stream stream, std::unique_ptr<Closure> closure) : Primitive(stream), closure_(std::move(closure)) {}

  const char* name() const override { return "mlx_lm::Launches"; }

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("a GPU's kernels do not run on the CPU");
  }

  // MLX keeps the buffers of inputs and outputs until all that is on the stream now has run.
  void eval_gpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    for (size_t i = 0; i < outputs.size(); i++) outputs[i].copy_shared_buffer(inputs[i]);
    std::vector<void*> addresses;
    addresses.reserve(inputs.size());
    for (const auto& input : inputs) addresses.push_back(address(input));
    void* on = mx::cu::get_command_encoder(stream()).stream;
    if (closure_->call(closure_->state, on, addresses.data(), addresses.size()) != 0)
      throw std::runtime_error("a kernel could not be started on the GPU");
  }

 private:
  std::unique_ptr<Closure> closure_;
};

// Whether all that an array is made of is on the stream, or will be before whatever is evaluated after it: kernels of ours are
// started when their node is evaluated, but MLX's own are collected first.
bool is_started(const mx::array& a) {
  return a.status() != mx::array::Status::unscheduled ||
      (a.has_primitive() && dynamic_cast<const Launches*>(&a.primitive()) != nullptr);
}

// Arrays in rows, of which all is on the stream, or will be.
std::vector<mx::array> started(const mlx_array* inputs, size_t n_inputs, mx::Stream stream) {
  std::vector<mx::array> arrays, waiting;
  arrays.reserve(n_inputs);
  for (size_t i = 0; i < n_inputs; i++) {
    auto& input = array(inputs[i]);
    if (!is_started(input)) waiting.push_back(input);
    arrays.push_back(input);
  }
  if (!waiting.empty()) mx::async_eval(std::move(waiting));
  waiting = {};
  for (auto& input : arrays) {
    if (input.status() == mx::array::Status::unscheduled) continue; // ours, in rows
    if (input.status() == mx::array::Status::evaluated && input.event().valid() && input.event().stream() != stream)
      input.wait();
    if (!input.flags().row_contiguous) waiting.push_back(input = mx::contiguous(input, false, stream));
  }
  if (!waiting.empty()) mx::async_eval(std::move(waiting));
  return arrays;
}

} // namespace

// `results` has room for `n_outputs` arrays; output i has the type, shape and memory of input i. Where `at_once`, all has been
// started when this returns. False where MLX fails, with what it says in `message`, which has room for `room` bytes.
extern "C" bool mlx_lm_cuda_node(
    const mlx_array* inputs, size_t n_inputs, size_t n_outputs, mlx_stream on, bool at_once, mlx_lm_cuda_closure closure,
    mlx_array* results, char* message, size_t room) try {
  auto owned = std::make_unique<Closure>(closure);
  auto stream = *static_cast<mx::Stream*>(on.ctx);
  auto arrays = started(inputs, n_inputs, stream);
  std::vector<mx::Shape> shapes;
  std::vector<mx::Dtype> dtypes;
  for (size_t i = 0; i < n_outputs; i++) {
    shapes.push_back(arrays[i].shape());
    dtypes.push_back(arrays[i].dtype());
  }
  auto primitive = std::make_shared<Launches>(stream, std::move(owned));
  auto made = mx::array::make_arrays(std::move(shapes), dtypes, std::move(primitive), arrays);
  if (at_once) mx::async_eval(made);
  std::vector<std::unique_ptr<mx::array>> boxed;
  for (auto& array : made) boxed.push_back(std::make_unique<mx::array>(std::move(array)));
  for (size_t i = 0; i < n_outputs; i++) results[i] = mlx_array{boxed[i].release()};
  return true;
} catch (const std::exception& error) {
  std::snprintf(message, room, "%s", error.what());
  return false;
}

// The memory of arrays, kept until `mlx_lm_cuda_release`, and their addresses. It is no handle to them. Null where MLX fails, or an
// array is a node's of this kind that is not evaluated yet.
extern "C" void* mlx_lm_cuda_hold(const mlx_array* inputs, size_t n_inputs, mlx_stream on, void** addresses) try {
  auto held = std::make_unique<Held>();
  held->reserve(n_inputs);
  for (auto& input : started(inputs, n_inputs, *static_cast<mx::Stream*>(on.ctx))) {
    if (input.status() == mx::array::Status::unscheduled) return nullptr;
    *addresses++ = address(input);
    held->push_back(input.data_shared_ptr());
  }
  return held.release();
} catch (const std::exception&) {
  return nullptr;
}

extern "C" void mlx_lm_cuda_release(void* held) {
  delete static_cast<Held*>(held);
}

// Whether nothing else refers to the array's memory, nor will any kernel of MLX that is under way.
extern "C" bool mlx_lm_cuda_is_free(mlx_array a) {
  return array(a).is_donatable();
}

// Whether this is the only handle to the array, which is in rows; others may still read parts of its memory.
extern "C" bool mlx_lm_cuda_is_own(mlx_array a) {
  return handles(array(a)) == 1 && array(a).status() != mx::array::Status::unscheduled && array(a).flags().row_contiguous;
}

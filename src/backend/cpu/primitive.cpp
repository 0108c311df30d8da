// A node of MLX's graph that calls a Rust closure: the C++ half of bridge.rs, which documents it.

#include <dlfcn.h>

#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "mlx/allocator.h"
#include "mlx/backend/cpu/encoder.h"
#include "mlx/c/array.h"
#include "mlx/c/stream.h"
#include "mlx/primitives.h"

namespace mx = mlx::core;

extern "C" {

// `View` of bridge.rs.
struct mlx_lm_view {
  void* data;
  int dtype;
  int ndim;
  int shape[4];
  int64_t strides[4];
};

struct mlx_lm_closure {
  // What it computes, for messages.
  const char* name;
  void* state;
  void (*call)(void* state, const mlx_lm_view* inputs, size_t n_inputs, mlx_lm_view* outputs, size_t n_outputs);
  void (*drop)(void* state);
};

// `Output` of bridge.rs.
struct mlx_lm_output {
  int dtype;
  int item_size;
  int ndim;
  int shape[4];
  // The input whose memory it takes over where nothing else refers to it; -1 for none.
  int donor;
};
}

namespace {

std::string wanted(size_t bytes, const std::string& purpose) {
  // `OUT_OF_MEMORY` of error.rs.
  return "out of memory: " + std::to_string(bytes) + " bytes for " + purpose + " were not to be had";
}

#if MLX_LM_CPU_ALLOCATOR

// Where the system has no memory, MLX's CPU allocator hands out null, and MLX's operations write through it. This one throws.
class CheckedAllocator : public mx::allocator::Allocator {
 public:
  explicit CheckedAllocator(Allocator& inner) : inner_(inner) {}

  mx::allocator::Buffer malloc(size_t size) override {
    auto buffer = inner_.malloc(size);
    if (!buffer.ptr()) throw std::runtime_error(wanted(size, "an array of MLX"));
    return buffer;
  }
  void free(mx::allocator::Buffer buffer) override { inner_.free(buffer); }
  size_t size(mx::allocator::Buffer buffer) const override { return inner_.size(buffer); }
  mx::allocator::Buffer make_buffer(void* data, size_t size) override { return inner_.make_buffer(data, size); }
  void release(mx::allocator::Buffer buffer) override { inner_.release(buffer); }

 private:
  Allocator& inner_;
};

#endif

mlx_lm_view view(const mx::array& a) {
  mlx_lm_view v{const_cast<void*>(a.data<void>()), static_cast<int>(a.dtype().val()), static_cast<int>(a.ndim()), {}, {}};
  for (int i = 0; i < v.ndim; i++) {
    v.shape[i] = a.shape(i);
    v.strides[i] = a.strides(i);
  }
  return v;
}

struct Closure : mlx_lm_closure {
  explicit Closure(mlx_lm_closure c) : mlx_lm_closure(c) {}
  Closure(const Closure&) = delete;
  ~Closure() { drop(state); }
};

class OnCpu : public mx::Primitive {
 public:
  using Primitive::Primitive;

  void eval_gpu(const std::vector<mx::array>&, std::vector<mx::array>&) override {
    throw std::runtime_error("CPU kernels do not run on a GPU");
  }
};

// What a node makes besides its first output, until the arrays for it take it over.
using Others = std::vector<std::optional<mx::array>>;

class Node : public OnCpu {
 public:
  // `made` has the arrays to make, without memory; of all outputs, `donors` says whose they take over.
  Node(mx::Stream stream, std::shared_ptr<Closure> closure, std::vector<int> donors, std::shared_ptr<Others> made)
      : OnCpu(stream), closure_(std::move(closure)), donors_(std::move(donors)), made_(std::move(made)) {}

  const char* name() const override { return "mlx_lm::Node"; }

  // MLX keeps the buffers of inputs and of the first output until all that is dispatched here has run; not the arrays.
  void eval_cpu(const std::vector<mx::array>& inputs, std::vector<mx::array>& outputs) override {
    std::vector<mlx_lm_view> from, to;
    for (const auto& input : inputs) from.push_back(view(input));
    bool waited = false;
    for (size_t i = 0; i < donors_.size(); i++) {
      auto& output = i == 0 ? outputs[0] : *(*made_)[i - 1];
      bool takes = donors_[i] >= 0 && fits(inputs[donors_[i]], output);
      // What made the input may be under way, and MLX holds it until then. Copying would take longer than waiting.
      if (takes && !waited && !inputs[donors_[i]].is_donatable()) {
        mx::synchronize(stream());
        waited = true;
      }
      if (takes && inputs[donors_[i]].is_donatable()) {
        output.copy_shared_buffer(inputs[donors_[i]]);
      } else {
        try {
          output.set_data(mx::allocator::malloc(output.nbytes()));
        } catch (const std::runtime_error&) {
          throw std::runtime_error(wanted(output.nbytes(), closure_->name));
        }
      }
      to.push_back(view(output));
    }
    mx::cpu::get_command_encoder(stream()).dispatch(
        [closure = closure_, made = *made_, from = std::move(from), to = std::move(to)]() mutable {
          closure->call(closure->state, from.data(), from.size(), to.data(), to.size());
        });
  }

 private:
  static bool fits(const mx::array& input, const mx::array& output) {
    return input.flags().row_contiguous && input.shape() == output.shape() && input.dtype() == output.dtype() &&
        input.buffer_size() >= output.nbytes();
  }

  std::shared_ptr<Closure> closure_;
  std::vector<int> donors_;
  std::shared_ptr<Others> made_;
};
// An output of a node that is not its first. No sibling of that one, as MLX would have it: each of n siblings refers to all
// others and to all inputs, which is work for n squared, and inputs with so many users are never given away.
class Other : public OnCpu {
 public:
  Other(mx::Stream stream, std::shared_ptr<Others> made, size_t at) : OnCpu(stream), made_(std::move(made)), at_(at) {}

  const char* name() const override { return "mlx_lm::Other"; }

  void eval_cpu(const std::vector<mx::array>&, std::vector<mx::array>& outputs) override {
    auto& made = (*made_)[at_];
    if (!made || !made->data_shared_ptr()) throw std::runtime_error("the node that makes this array was not computed");
    outputs[0].copy_shared_buffer(*made);
    made.reset();
  }

 private:
  std::shared_ptr<Others> made_;
  size_t at_;
};

} // namespace

#if MLX_LM_CPU_ALLOCATOR

// The dynamic linker finds this before libmlx.so's own, for libmlx.so too.
mx::allocator::Allocator& mx::allocator::allocator() {
  static CheckedAllocator checked([]() -> Allocator& {
    auto* own = dlsym(RTLD_NEXT, "_ZN3mlx4core9allocator9allocatorEv");
    return reinterpret_cast<Allocator& (*)()>(own)();
  }());
  return checked;
}

// An array over memory of another's. MLX's CPU allocator puts the length of a buffer before it, and hands out the address
// after that; here nothing frees or asks for the length, so any address can be handed out. Null when it is not.
extern "C" mlx_array mlx_lm_borrow(
    const void* data, const int* shape, size_t ndim, int dtype, int item_size, void* owner, void (*drop)(void*)) try {
  mx::array array(mx::Shape(shape, shape + ndim), mx::Dtype(static_cast<mx::Dtype::Val>(dtype), item_size), nullptr, {});
  auto* buffer = static_cast<char*>(const_cast<void*>(data)) - sizeof(size_t);
  array.set_data(mx::allocator::Buffer{buffer}, [owner, drop](mx::allocator::Buffer) { drop(owner); });
  array.set_status(mx::array::Status::available);
  if (array.data<void>() != data) return mlx_array{nullptr};
  return mlx_array{new mx::array(std::move(array))};
} catch (const std::exception&) {
  return mlx_array{nullptr};
}

#else

// MLX for a GPU has one allocator for all devices, which reports errors itself, and whose buffers are no plain addresses: the
// file is copied.
extern "C" mlx_array mlx_lm_borrow(const void*, const int*, size_t, int, int, void* owner, void (*drop)(void*)) {
  drop(owner);
  return mlx_array{nullptr};
}

#endif

// False when there is no memory for it; `results` has room for as many arrays as there are outputs.
extern "C" bool mlx_lm_node(
    const mlx_array* inputs, size_t n_inputs, const mlx_lm_output* outputs, size_t n_outputs, mlx_stream stream,
    mlx_lm_closure closure, mlx_array* results) try {
  auto owned = std::make_shared<Closure>(closure);
  std::vector<mx::array> arrays;
  arrays.reserve(n_inputs);
  for (size_t i = 0; i < n_inputs; i++) arrays.push_back(*static_cast<mx::array*>(inputs[i].ctx));
  std::vector<int> donors;
  auto others = std::make_shared<Others>();
  const auto like = [&](const mlx_lm_output& output, std::shared_ptr<mx::Primitive> by, std::vector<mx::array> inputs) {
    const mx::Dtype dtype(static_cast<mx::Dtype::Val>(output.dtype), output.item_size);
    return mx::array(mx::Shape(output.shape, output.shape + output.ndim), dtype, std::move(by), std::move(inputs));
  };
  for (size_t i = 0; i < n_outputs; i++) {
    donors.push_back(outputs[i].donor);
    if (i > 0) others->push_back(like(outputs[i], nullptr, {}));
  }
  const auto on = *static_cast<mx::Stream*>(stream.ctx);
  auto node = std::make_shared<Node>(on, std::move(owned), std::move(donors), others);
  std::vector<std::unique_ptr<mx::array>> made;
  made.push_back(std::make_unique<mx::array>(like(outputs[0], std::move(node), std::move(arrays))));
  for (size_t i = 1; i < n_outputs; i++) {
    auto other = std::make_shared<Other>(on, others, i - 1);
    made.push_back(std::make_unique<mx::array>(like(outputs[i], std::move(other), {*made[0]})));
  }
  for (size_t i = 0; i < n_outputs; i++) results[i] = mlx_array{made[i].release()};
  return true;
} catch (const std::exception&) {
  return false;
}

// The observer: sees every operator call of every thread, through one RecordFunction callback.
// In: PyTorch's dispatcher calling. Out: frames with operands for the engine, and where in the program they are.
// Must not know: memory, I/O, plans.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

namespace teraio::observer {

// With `meta`, storages of the meta device are blocks as well, from the first op that gets or makes them.
void enable(bool meta = false);
void disable();
// The engine has begun or ended to want results of ops; call it whenever it records or follows a plan, or no longer.
void mode_changed();
// A process forks: whoever changes callbacks holds a mutex of PyTorch's, which a child could never take.
void before_fork();
void after_fork(bool in_child);

// [Note: compiled graphs]
// What torch.compile makes of a graph runs fused kernels that the dispatcher never sees. So whoever calls such a graph
// says when it begins and ends, and one call counts as one op: the tensors it gets are operands, nested ops are part of
// it, and what it makes is there until it ends. A graph may give up operands before its end, while they are pinned.
struct GraphInput {
  const at::Tensor* tensor;
  bool written;
};
// A graph of this name begins on this thread. Hooks of modules are not called within what is compiled, so `module` is
// where it belongs, kNoModule if only the modules that run say so. Throws, with no op begun, if it can't have its
// inputs.
constexpr uint32_t kNoModule = ~uint32_t{0};
enum class GraphKind : uint8_t { kForward, kBackward, kInference };
class Graph {
 public:
  Graph(const std::string& name, GraphKind kind, uint32_t module, const std::vector<GraphInput>& inputs);
  ~Graph();  // it ends
  Graph(const Graph&) = delete;
  Graph& operator=(const Graph&) = delete;
  // What it gives to the program; nothing if it fails. `reuses_inputs`: a result on the storage of an input has other
  // data than the input had.
  void give(const std::vector<const at::Tensor*>& results, bool reuses_inputs);

 private:
  static void leave();
};
// Whether this thread runs a compiled graph.
bool in_graph();

// This thread's ops belong to training (a forward or optimizer hook ran on it).
void mark_training_thread();
void enter_module(uint32_t module);
void exit_module(uint32_t module);
void begin_optimizer();
void end_optimizer();
// Forgets what backward ops belong to which module; at the end of an iteration.
void end_iteration();

}  // namespace teraio::observer

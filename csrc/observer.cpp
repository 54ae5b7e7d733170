#include "observer.h"

#include <ATen/NestedTensorImpl.h>
#include <ATen/SequenceNumber.h>
#include <ATen/SparseCsrTensorImpl.h>
#include <ATen/SparseTensorImpl.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/function_schema.h>
#include <ATen/core/grad_mode.h>
#include <ATen/quantized/QTensorImpl.h>
#include <ATen/quantized/Quantizer.h>
#include <ATen/record_function.h>
#include <torch/csrc/autograd/function.h>

#include <algorithm>
#include <atomic>
#include <bitset>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <unordered_map>
#include <variant>
#include <vector>

#include "allocator.h"
#include "calls.h"
#include "collectives.h"
#include "engine.h"
#include "recipe.h"
#include "result_bytes.h"

// The public accessors copy the whole schema, or only give the name.
namespace {
using Function = std::variant<std::string, at::RecordFunction::schema_ref_t>;
const Function& function_of(const at::RecordFunction& op);

template <Function at::RecordFunction::* Member>
struct Reach {
  friend const Function& function_of(const at::RecordFunction& op) { return op.*Member; }
};
template struct Reach<&at::RecordFunction::fn_>;
}  // namespace

namespace teraio::observer {
namespace {

// Operands after that many are taken to be written, which is always safe. No op of PyTorch's has as many.
constexpr size_t kDescribed = 64;

// What an operator's schema says about its operands. Read before every op, when the one before has just filled the
// caches with its own data: so what most ops need lies together, in front.
struct OpInfo {
  const c10::Argument* arguments = nullptr;
  std::bitset<kDescribed> written;  // per argument
  std::bitset<kDescribed> viewed;   // per argument: the result is another view of it, its data is not touched
  uint32_t id = 0;
  bool nested = false;        // it makes nested tensors of others
  bool collective = false;    // see [Note: collectives]
  bool kernel = false;        // it is implemented per device, not by calls of other ops
  bool on_lists = false;      // it computes a list of results from lists
  bool casts = false;         // to another type
  bool packs = false;         // what it makes may hide its operands: packed weights
  std::optional<c10::OperatorHandle> repeatable;  // it can be run again, see [Note: recipes]
  std::optional<c10::OperatorHandle> measurable;  // what it makes can be known before, see [Note: what ops need]
};

// [Note: writes that a schema doesn't tell]
// PyTorch's own ops write running statistics, and what recurrent ones of cuDNN keep, without saying so. An op of an
// extension may have a schema that was inferred from its function, which never says it; and what returns nothing and
// writes nothing would be of no use. Such ops are taken to write to all that they are given.
constexpr std::array<std::string_view, 4> kWrittenUndeclared = {"running_mean", "running_var", "dropout_state", "reserve"};

bool is_of_pytorch(const c10::FunctionSchema& schema) { return schema.name().rfind("aten::", 0) == 0; }

bool may_write_all(const c10::FunctionSchema& schema) {
  if (schema.aliasAnalysis() == c10::AliasAnalysisKind::CONSERVATIVE) return true;
  return !is_of_pytorch(schema) && schema.returns().empty() && !schema.is_mutable();
}

OpInfo describe(const c10::FunctionSchema& schema) {
  OpInfo info;
  info.arguments = schema.arguments().data();
  info.id = Engine::instance().intern(schema.name());
  const auto op = c10::Dispatcher::singleton().findOp(schema.operator_name());
  info.kernel = !op || !op->hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
  info.nested = schema.name().find("nested") != std::string::npos;
  info.on_lists = schema.name().rfind("aten::_foreach_", 0) == 0;
  info.casts = schema.name() == "aten::to" || schema.name() == "aten::_to_copy";
  info.collective = collectives::is_one(schema);
  if (op && Recipe::possible(*op)) info.repeatable = op;
  if (op && info.kernel && !info.collective) info.measurable = op;
  info.packs = !info.collective && std::any_of(schema.returns().begin(), schema.returns().end(), [](const auto& made) {
    return made.type()->kind() == c10::TypeKind::ClassType;
  });
  const bool writes_all = info.collective || may_write_all(schema);
  const size_t described = std::min(schema.arguments().size(), kDescribed);
  for (size_t argument = 0; argument < described; ++argument) {
    const auto* alias = schema.arguments()[argument].alias_info();
    const std::string_view name = schema.arguments()[argument].name();
    const bool undeclared = std::find(kWrittenUndeclared.begin(), kWrittenUndeclared.end(), name) != kWrittenUndeclared.end();
    info.written[argument] = writes_all || undeclared || (alias != nullptr && alias->isWrite());
    // What an extension calls a view it may have read.
    info.viewed[argument] = is_of_pytorch(schema) && alias != nullptr && !alias->isWrite();
  }
  return info;
}

// [Note: what is an op]
// RecordFunction also reports stretches of a program that have a name but no schema: autograd's evaluation of a
// node (which may run hooks, or the recomputation of a whole layer), Python's autograd functions. Their operands
// would stay pinned much too long, and the ops inside are reported anyway. So only calls with a schema count.
const c10::FunctionSchema* schema_of(const at::RecordFunction& op) {
  const auto* schema = std::get_if<at::RecordFunction::schema_ref_t>(&function_of(op));
  return schema == nullptr ? nullptr : &schema->get();
}

const OpInfo& info_of(const c10::FunctionSchema& schema) {
  static thread_local std::unordered_map<const void*, OpInfo> known;
  auto found = known.find(&schema);
  // A library that is unloaded may leave its operator's address to another one.
  if (found != known.end() && found->second.arguments != schema.arguments().data()) {
    known.erase(found);
    found = known.end();
  }
  if (found == known.end()) found = known.emplace(&schema, describe(schema)).first;
  return found->second;
}

// Where blocks come from: PyTorch's CPU allocator is ours and makes them; on other devices a storage becomes a block
// when an op first has it as an operand or as its result.
enum class Births { kAllocator, kDevice, kMeta };
std::atomic<Births> births{Births::kAllocator};
bool with_results = false;  // whether the callback is given the results of ops

// [Note: ops of the meta device]
// There an op that is one kernel elsewhere may be made of others: Python functions that find out the shapes, with
// casts and temporaries that no other device has. So what a kernel calls is not looked at, only its results are; ops
// that are made of other ops everywhere are looked into. Storages there have no allocator of ours, so what a kernel
// gives is where births are seen.
thread_local int kernel_depth = 0;  // the depth of the running kernel, or 0
// The frame and the depth of the collective that begins.
thread_local const Frame* collective_frame = nullptr;
thread_local int collective_depth = 0;

Block* block_at_sight(c10::StorageImpl* storage) {
  switch (births.load(std::memory_order_relaxed)) {
    case Births::kAllocator: return block_of(storage);
    case Births::kDevice: return block_on_device(storage);
    case Births::kMeta: return block_of_meta(storage);
  }
  return nullptr;
}

Block* add(std::vector<Operand>& operands, c10::StorageImpl* storage, bool data, bool write) {
  Block* block = block_at_sight(storage);
  if (block != nullptr) operands.push_back({block, storage, data, write});
  return block;
}

void add(std::vector<Operand>& operands, Frame& frame, const at::Tensor& tensor, bool data, bool write);

// The tensors that a sparse one, which has no storage of its own, is made of.
bool add_parts(std::vector<Operand>& operands, Frame& frame, at::TensorImpl* sparse, bool data, bool write) {
  if (const auto* coo = dynamic_cast<at::SparseTensorImpl*>(sparse)) {
    for (const at::Tensor& part : {coo->indices(), coo->values()}) add(operands, frame, part, data, write);
    return true;
  }
  if (const auto* compressed = dynamic_cast<at::SparseCsrTensorImpl*>(sparse)) {
    for (const at::Tensor& part : {compressed->compressed_indices(), compressed->plain_indices(), compressed->values()}) {
      add(operands, frame, part, data, write);
    }
    return true;
  }
  return false;
}

// What a tensor has beside its storage: scales of each channel, sizes of each component.
void add_companions(std::vector<Operand>& operands, Frame& frame, const at::Tensor& tensor) {
  if (const auto* quantized = dynamic_cast<at::QTensorImpl*>(tensor.unsafeGetTensorImpl())) {
    const auto quantizer = const_cast<at::QTensorImpl*>(quantized)->quantizer();
    if (const auto* channels = dynamic_cast<at::PerChannelAffineQuantizer*>(quantizer.get())) {
      for (const at::Tensor& part : {channels->scales(), channels->zero_points()}) add(operands, frame, part, true, false);
    }
  } else if (const auto* nested = dynamic_cast<at::native::NestedTensorImpl*>(tensor.unsafeGetTensorImpl())) {
    frame.nested = true;
    for (const at::Tensor& part : {nested->get_nested_sizes(), nested->get_nested_strides(), nested->get_storage_offsets()}) {
      add(operands, frame, part, true, false);
    }
  }
}

void add(std::vector<Operand>& operands, Frame& frame, const at::Tensor& tensor, bool data, bool write) {
  if (!tensor.defined()) return;
  if (!tensor.has_storage()) {
    if (tensor.layout() == at::kStrided) return;
    if (!add_parts(operands, frame, tensor.unsafeGetTensorImpl(), data, write)) frame.opaque = true;
    return;
  }
  if (tensor.is_quantized() || tensor.is_nested()) add_companions(operands, frame, tensor);
  Block* block = add(operands, tensor.storage().unsafeGetStorageImpl(), data, write);
  if (block != nullptr) block->note_dtype(tensor.scalar_type());
}

void add(std::vector<Operand>& operands, Frame& frame, const c10::IValue& value, bool data, bool write) {
  if (value.isTensor()) {
    add(operands, frame, value.toTensor(), data, write);
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) add(operands, frame, element, data, write);
  } else if (value.isStorage()) {
    add(operands, value.toStorage().unsafeGetStorageImpl(), data, write);
  } else if (births == Births::kDevice && value.isStream()) {
    frame.also_stream = value.toStream();
  }
}

// Gives a block to storages that an op made without the allocator that makes blocks.
void note_births(const c10::IValue& value) {
  if (value.isTensor()) {
    const at::Tensor& tensor = value.toTensor();
    if (tensor.defined() && tensor.has_storage()) block_at_sight(tensor.storage().unsafeGetStorageImpl());
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) note_births(element);
  }
}

// Which module the backward ops belong to: the one whose forward made their node. Nodes are numbered as they are
// made, so the numbers at which modules were entered and left tell them apart.
struct ModuleMap {
  struct Entry {
    uint64_t sequence;
    uint32_t module;
  };
  std::vector<uint32_t> stack;  // of its own thread

  void note() {
    const uint64_t sequence = at::sequence_number::peek();
    const uint32_t module = stack.empty() ? kNoModule : stack.back();
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!entries_.empty() && entries_.back().sequence == sequence) {
      entries_.back().module = module;
    } else {
      entries_.push_back({sequence, module});
    }
  }
  uint32_t module_of(uint64_t sequence) const {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto after = std::upper_bound(entries_.begin(), entries_.end(), sequence,
                                        [](uint64_t s, const Entry& entry) { return s < entry.sequence; });
    return after == entries_.begin() ? kNoModule : std::prev(after)->module;
  }
  void forget() {
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_.clear();
  }

 private:
  std::vector<Entry> entries_;
  mutable std::mutex mutex_;
};

const std::shared_ptr<ModuleMap>& shared_modules() {
  static thread_local const auto map = std::make_shared<ModuleMap>();
  return map;
}

ModuleMap& modules() { return *shared_modules(); }

// Backward may run on threads of autograd's own; they read the map of the thread that ran the forward, which may have
// ended since.
class ForwardModules {
 public:
  void set(const std::shared_ptr<ModuleMap>& map) {
    const std::lock_guard<std::mutex> lock(mutex_);
    map_ = map;
  }
  uint32_t module_of(uint64_t sequence) {
    const std::lock_guard<std::mutex> lock(mutex_);
    return map_ ? map_->module_of(sequence) : kNoModule;
  }
  void lock() { mutex_.lock(); }
  void unlock() { mutex_.unlock(); }

 private:
  std::shared_ptr<ModuleMap> map_;
  std::mutex mutex_;
};

ForwardModules& forward_modules() {
  static auto* made = new ForwardModules;  // leaked: threads may outlive static destruction
  return *made;
}

// A step runs on one thread; in the backward pass others may compute meanwhile.
thread_local bool in_optimizer = false;

thread_local int graph_depth = 0;
thread_local uint32_t graph_module = kNoModule;  // that the running graph belongs to

Place place_of_op() {
  if (in_optimizer) return {Phase::kOptimizer, kNoModule};
  if (const auto node = torch::autograd::get_current_node()) {
    if (graph_module != kNoModule) return {Phase::kBackward, graph_module};
    return {Phase::kBackward, forward_modules().module_of(node->sequence_nr())};
  }
  if (graph_module != kNoModule) return {Phase::kForward, graph_module};
  const auto& stack = modules().stack;
  return stack.empty() ? Place{Phase::kOther, kNoModule} : Place{Phase::kForward, stack.back()};
}

// A module begins here, which is a place to be found again.
void note_module(uint32_t module, bool with_grad) {
  const bool in_backward = static_cast<bool>(torch::autograd::get_current_node());
  const AnchorKind kind = in_backward ? kRecomputeAnchor : with_grad ? kForwardAnchor : kNoGradAnchor;
  Engine::instance().anchor(anchor_key(kind, module));
}

void end_kernel(const at::RecordFunction& op, const c10::FunctionSchema& schema) {
  kernel_depth = 0;
  for (const c10::IValue& value : op.outputs()) note_births(value);
  if (calls::logging()) calls::end(op, schema);
}

// Without a recipe the result is moved in place of being made again.
void take_recipe(const at::RecordFunction& op, const c10::OperatorHandle& repeatable, Frame& frame) {
  try {
    frame.recipe = Recipe::of(repeatable, op.inputs(), &block_at_sight);
  } catch (const std::exception&) {
    frame.recipe = nullptr;  // no memory for the copy of an operand
  }
}

// [Note: results that autograd keeps]
// An op that autograd records may make what only its backward reads: a mask, indices, statistics. No other op has
// that as an operand until then, so it is from the results that its storage is known, and that it may leave. Results
// of other ops wait for the op that uses them: foreign code may make memory by an op and fill it by itself. It does not
// do so by ops on lists, and what they make for all parameters is too much to wait.
void let_results_leave(const at::RecordFunction& op, bool on_lists, Frame& frame) {
  static thread_local std::vector<Operand> results;
  results.clear();
  const bool opaque = frame.opaque;  // of operands; what hides in a result can't leave anyway
  bool recorded = false;
  const auto add_result = [&](const at::Tensor& tensor) {
    recorded = recorded || (tensor.defined() && tensor.requires_grad());
    add(results, frame, tensor, false, false);
  };
  for (const c10::IValue& value : op.outputs()) {
    if (value.isTensor()) {
      add_result(value.toTensor());
    } else if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) add_result(tensor);
    }
  }
  frame.opaque = opaque;
  if ((!recorded && !on_lists) || frame.apart) return;
  const auto other = [&frame](const Operand& result) {
    const Block& block = *result.block;
    return block.frame.load(std::memory_order_relaxed) != &frame || block.guarded || block.exempt;
  };
  results.erase(std::remove_if(results.begin(), results.end(), other), results.end());
  if (!results.empty()) Engine::instance().give(frame, results);
}

void end_collective(const at::RecordFunction& op, Frame& frame) {
  collective_frame = nullptr;
  collectives::begun(frame, op.outputs());
  if (op.outputs().empty()) mode_changed();  // from now on results are wanted
}

// The op's result, if the op can be run again and has just made it.
void note_result(const at::RecordFunction& op, Frame& frame) {
  if (!frame.recipe || op.outputs().size() != 1 || !op.outputs()[0].isTensor()) return;
  if (frame.casts < frame.recipe->casts()) return;  // autocast had a cast of an operand at hand, maybe of what it was before
  const at::Tensor& result = op.outputs()[0].toTensor();
  if (!result.defined() || !result.has_storage()) return;
  const Block* block = block_at_sight(result.storage().unsafeGetStorageImpl());
  const bool born = std::any_of(frame.pinned.begin(), frame.pinned.end(), [block](const Frame::Pinned& pinned) {
    return pinned.born && pinned.block == block;
  });
  // One without a guard may be filled by foreign code before the next op uses it, see [Note: results that autograd keeps].
  // On the meta device no storage has one.
  if (born && (births == Births::kMeta ? result.requires_grad() : block->guarded.load())) frame.made = block;
}

std::unique_ptr<at::ObserverContext> on_start(const at::RecordFunction& op) {
  const c10::FunctionSchema* schema = schema_of(op);
  if (schema == nullptr) return nullptr;
  Frame& frame = Engine::frame();
  const OpInfo& info = info_of(*schema);
  frame.nested = frame.nested || info.nested;
  frame.opaque = frame.opaque || info.packs;
  if (frame.depth++ == 0) {
    frame.name = info.id;
    frame.results = 0;
    frame.casts = 0;
    if (collectives::any()) collectives::release_done(false);
    if (!frame.training && torch::autograd::get_current_node()) frame.training = true;
    if (info.repeatable && Engine::instance().wants_recipe(frame)) take_recipe(op, *info.repeatable, frame);
  } else if (frame.depth == 2 && info.casts) {
    ++frame.casts;
  }
  if (kernel_depth > 0) return nullptr;
  if (births == Births::kMeta && info.kernel) {
    kernel_depth = frame.depth;
    if (calls::logging()) calls::begin(op, *schema);
  }
  static thread_local std::vector<Operand> operands;
  operands.clear();
  size_t argument = 0;
  for (const c10::IValue& value : op.inputs()) {
    const bool described = argument < kDescribed;
    add(operands, frame, value, !described || !info.viewed[argument], !described || info.written[argument]);
    ++argument;
  }
  if (births == Births::kDevice) {
    if (frame.depth == 1) frame.unforeseen = !Engine::instance().foresees(frame, operands);
    if (frame.unforeseen && info.measurable) {
      const c10::DeviceType device = Engine::instance().accelerator()->device().type();
      frame.results = std::max(frame.results, result_bytes(*info.measurable, op.inputs(), device));
    }
  }
  Engine::instance().begin(frame, operands);
  if (info.collective && births != Births::kMeta && collective_frame == nullptr) {
    collective_frame = &frame;
    collective_depth = frame.depth;
  }
  return nullptr;
}

void on_end(const at::RecordFunction& op, at::ObserverContext* /*context*/) {
  const c10::FunctionSchema* schema = schema_of(op);
  if (schema == nullptr) return;
  Frame& frame = Engine::frame();
  const bool wants_results = Engine::instance().wants_results();
  try {
    if (kernel_depth == frame.depth) end_kernel(op, *schema);
    if (collective_frame == &frame && collective_depth == frame.depth) end_collective(op, frame);
    if (births == Births::kDevice) {
      for (const c10::IValue& value : op.outputs()) note_births(value);
    }
    if (wants_results && births != Births::kMeta) let_results_leave(op, info_of(*schema).on_lists, frame);
  } catch (const std::exception&) {
    // No memory to note them: such results stay. The op must end all the same, for PyTorch swallows what is thrown.
  }
  if (--frame.depth > 0) return;
  if (wants_results) note_result(op, frame);
  if (calls::logging() && Engine::instance().counts(frame)) frame.calls = calls::take_pattern();
  Engine::instance().end(frame, place_of_op);
}

at::CallbackHandle handle = 0;
bool enabled = false;
// Ops of any thread may find out that results are wanted.
std::mutex& callback_mutex() {
  static auto* mutex = new std::mutex;
  return *mutex;
}

// Results of collectives say when they are done.
bool needs_results() {
  const Engine& engine = Engine::instance();
  return births != Births::kAllocator || engine.guards_quietly() || engine.wants_results();
}

void add_callback() {
  with_results = needs_results();
  handle = at::addGlobalCallback(at::RecordFunctionCallback(on_start, on_end)
                                     .needsInputs(true)
                                     .needsOutputs(with_results)
                                     .scopes({at::RecordScope::FUNCTION}));
}

}  // namespace

void enable(bool meta) {
  const std::lock_guard<std::mutex> lock(callback_mutex());
  if (enabled) return;
  const bool device = Engine::instance().accelerator() != nullptr;
  births = meta ? Births::kMeta : device ? Births::kDevice : Births::kAllocator;
  add_callback();
  enabled = true;
  // The run before may have ended within a module or a step.
  modules().stack.clear();
  in_optimizer = false;
}

void mode_changed() {
  const std::lock_guard<std::mutex> lock(callback_mutex());
  if (!enabled || with_results == needs_results()) return;
  // An op may begin between the two calls: one that is seen twice does no harm.
  const at::CallbackHandle old = handle;
  add_callback();
  at::removeCallback(old);
}

// A thread's first op, and the first one after the callbacks have changed, takes a lock of PyTorch's, which another thread
// may hold just when the process forks. So the forking thread takes it once more before: its ops in the child don't.
void before_fork() {
  callback_mutex().lock();
  at::getStepCallbacksUnlessEmpty(at::RecordScope::FUNCTION);
  forward_modules().lock();
}

void after_fork(bool in_child) {
  forward_modules().unlock();
  // The thread of that map, which is no more, may have been writing to it.
  if (in_child) forward_modules().set(shared_modules());
  callback_mutex().unlock();
}

void disable() {
  {
    const std::lock_guard<std::mutex> lock(callback_mutex());
    if (enabled) at::removeCallback(handle);
    enabled = false;
  }
  collectives::end_run();
  births = Births::kAllocator;
}

Graph::Graph(const std::string& name, GraphKind kind, uint32_t module, const std::vector<GraphInput>& inputs) {
  Frame& frame = Engine::frame();
  ++frame.depth;
  ++graph_depth;
  try {
    if (frame.depth == 1) {
      frame.name = Engine::instance().intern(name);
      graph_module = in_optimizer ? kNoModule : module;
      const auto& running = modules().stack;
      if (graph_module != kNoModule && kind != GraphKind::kBackward) {
        mark_training_thread();
        const bool entered = std::find(running.begin(), running.end(), module) != running.end();
        if (!entered) note_module(module, kind == GraphKind::kForward);
      }
      if (!frame.training && torch::autograd::get_current_node()) frame.training = true;
    }
    std::vector<Operand> operands;
    for (const GraphInput& input : inputs) add(operands, frame, *input.tensor, true, input.written);
    Engine::instance().begin(frame, operands);
    Engine::raise_if_failed(frame);
  } catch (...) {
    leave();
    throw;
  }
}

Graph::~Graph() { leave(); }

void Graph::give(const std::vector<const at::Tensor*>& results, bool reuses_inputs) {
  Frame& frame = Engine::frame();
  std::vector<Operand> given;
  for (const at::Tensor* result : results) add(given, frame, *result, true, false);
  for (const Frame::Pinned& pinned : frame.pinned) {
    if (!reuses_inputs || pinned.born) continue;
    for (Operand& result : given) result.write = result.write || result.block == pinned.block;
  }
  Engine::instance().give(frame, given);
}

void Graph::leave() {
  Frame& frame = Engine::frame();
  --graph_depth;
  if (--frame.depth > 0) return;
  Engine::instance().end(frame, place_of_op);
  graph_module = kNoModule;
}

bool in_graph() { return graph_depth > 0; }

void mark_training_thread() {
  Engine::frame().training = true;
  forward_modules().set(shared_modules());
}

void enter_module(uint32_t module) {
  mark_training_thread();
  in_optimizer = false;  // a closure of the step computes, or the step before has ended in an exception
  modules().stack.push_back(module);
  modules().note();
  note_module(module, at::GradMode::is_enabled());
}

void exit_module(uint32_t module) {
  auto& map = modules();
  // Where a compiler takes over or gives up in the middle of a module, only one of its two hooks may be called.
  const auto entered = std::find(map.stack.rbegin(), map.stack.rend(), module);
  if (entered != map.stack.rend()) map.stack.erase(std::prev(entered.base()), map.stack.end());
  map.note();
}

void begin_optimizer() {
  in_optimizer = true;
  // A step within the backward pass is no place to be found again: it lies between places of modules.
  if (torch::autograd::get_current_node()) return;
  mark_training_thread();
  Engine::instance().anchor(anchor_key(kOptimizerAnchor, 0));
}

void end_optimizer() { in_optimizer = false; }

void end_iteration() {
  modules().forget();
  collectives::end_iteration();
}

}  // namespace teraio::observer

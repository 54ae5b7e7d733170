#include "calls.h"

#include <ATen/core/Tensor.h>
#include <c10/core/ScalarType.h>

#include <atomic>
#include <mutex>
#include <unordered_map>
#include <utility>

namespace teraio::calls {
namespace {

// Numbers things by a key that tells them apart; what comes up first is number 0.
template <class Thing>
struct Numbered {
  std::unordered_map<std::string, uint32_t> numbers;
  std::vector<Thing> things;

  template <class Make>
  uint32_t number(const std::string& key, Make&& make) {
    const auto [entry, added] = numbers.try_emplace(key, static_cast<uint32_t>(things.size()));
    if (added) things.push_back(make());
    return entry->second;
  }
  void clear() { *this = {}; }
};

struct Known {
  std::mutex mutex;
  Numbered<Signature> signatures;
  Numbered<Pattern> patterns;
};

Known& known() {
  static auto* instance = new Known;
  return *instance;
}

std::atomic<bool> on{false};
std::atomic<uint64_t> generation{0};

// What one thread called since its last pattern, and what it calls now. Kernels don't nest.
struct ThreadLog {
  uint64_t generation = 0;
  Pattern calls;
  Signature running;
};

ThreadLog& thread_log() {
  static thread_local ThreadLog log;
  const uint64_t now = generation.load();
  if (log.generation != now) log = {now, {}, {}};
  return log;
}

int64_t bytes_in_memory(const at::Tensor& tensor) {
  int64_t count = 1;
  for (int64_t d = 0; d < tensor.dim(); ++d) count *= tensor.stride(d) == 0 ? 1 : tensor.size(d);
  return tensor.numel() == 0 ? 0 : count * static_cast<int64_t>(tensor.element_size());
}

void add(std::vector<TensorShape>& shapes, const at::Tensor& tensor, bool written) {
  if (!tensor.defined() || !tensor.has_storage()) return;
  shapes.push_back({c10::toString(tensor.scalar_type()), tensor.sizes().vec(), bytes_in_memory(tensor), written});
}

void add(std::vector<TensorShape>& shapes, const c10::IValue& value, bool written) {
  if (value.isTensor()) {
    add(shapes, value.toTensor(), written);
  } else if (value.isList()) {
    for (const c10::IValue& element : value.toListRef()) add(shapes, element, written);
  }
}

void add(std::string& key, const std::vector<TensorShape>& shapes) {
  for (const TensorShape& shape : shapes) {
    key += shape.dtype;
    for (const int64_t size : shape.sizes) key += ',' + std::to_string(size);
    key += '/' + std::to_string(shape.nbytes) + (shape.written ? '!' : ';');
  }
}

std::string key_of(const Signature& signature) {
  std::string key = signature.name + (signature.view ? '~' : '(');
  add(key, signature.inputs);
  key += '>';
  add(key, signature.outputs);
  for (const bool flag : signature.flags) key += flag ? '1' : '0';
  return key;
}

std::string key_of(const Pattern& calls) {
  return {reinterpret_cast<const char*>(calls.data()), calls.size() * sizeof calls[0]};
}

}  // namespace

void log(bool enabled) {
  const std::lock_guard<std::mutex> lock(known().mutex);
  if (enabled) {
    known().signatures.clear();
    known().patterns.clear();
    ++generation;
  }
  on = enabled;
}

bool logging() { return on.load(std::memory_order_relaxed); }

void begin(const at::RecordFunction& op, const c10::FunctionSchema& schema) {
  Signature& running = thread_log().running;
  running = {schema.name(), false, {}, {}, {}};
  auto argument = schema.arguments().begin();
  for (const c10::IValue& value : op.inputs()) {
    const auto* alias = argument == schema.arguments().end() ? nullptr : argument++->alias_info();
    const bool written = alias != nullptr && alias->isWrite();
    running.view = running.view || (alias != nullptr && !written);
    if (value.isBool()) running.flags.push_back(value.toBool());
    add(running.inputs, value, written);
  }
}

void end(const at::RecordFunction& op, const c10::FunctionSchema& schema) {
  ThreadLog& log = thread_log();
  if (log.running.name.empty()) return;  // it began before the log did
  Signature ended = std::exchange(log.running, {});
  auto result = schema.returns().begin();
  for (const c10::IValue& value : op.outputs()) {
    const bool fresh = result == schema.returns().end() || result++->alias_info() == nullptr;
    if (fresh) add(ended.outputs, value, true);
  }
  const std::lock_guard<std::mutex> lock(known().mutex);
  log.calls.push_back(known().signatures.number(key_of(ended), [&] { return std::move(ended); }));
}

uint32_t take_pattern() {
  ThreadLog& log = thread_log();
  const std::lock_guard<std::mutex> lock(known().mutex);
  const uint32_t pattern = known().patterns.number(key_of(log.calls), [&] { return log.calls; });
  log.calls.clear();
  return pattern;
}

std::vector<Signature> signatures() {
  const std::lock_guard<std::mutex> lock(known().mutex);
  return known().signatures.things;
}

std::vector<Pattern> patterns() {
  const std::lock_guard<std::mutex> lock(known().mutex);
  return known().patterns.things;
}

}  // namespace teraio::calls

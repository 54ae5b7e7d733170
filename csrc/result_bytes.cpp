#include "result_bytes.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/record_function.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels_only.h"

namespace teraio {
namespace {

struct Silence final : c10::WarningHandler {
  void process(const c10::Warning& /*warning*/) override {}
};

// The arguments of the same call on the meta device.
class MetaCall {
 public:
  explicit MetaCall(c10::DeviceType device) : device_(device) {}

  // False if there is no such call.
  bool add(const c10::IValue& argument) {
    if (argument.isTensor()) return append(argument.toTensor(), stack);
    if (argument.isTensorList()) {
      c10::List<at::Tensor> list;
      for (const at::Tensor& tensor : argument.toTensorVector()) {
        if (!append(tensor, list)) return false;
      }
      stack.emplace_back(std::move(list));
    } else if (argument.isOptionalTensorList()) {
      c10::List<std::optional<at::Tensor>> list;
      for (const std::optional<at::Tensor>& tensor : argument.toOptionalTensorVector()) {
        if (tensor && !append(*tensor, list)) return false;
        if (!tensor) list.push_back(std::nullopt);
      }
      stack.emplace_back(std::move(list));
    } else if (argument.isDevice()) {
      wanted_ = argument.toDevice().type();
      stack.emplace_back(c10::Device(c10::kMeta));
    } else if (argument.isGenerator()) {
      stack.emplace_back();
    } else {
      if (argument.isStorage() || argument.isStream() || argument.isObject()) return false;
      stack.push_back(argument);
    }
    return true;
  }

  bool on_device() const { return wanted_ ? *wanted_ == device_ : sees_device_; }

  uint64_t bytes_made() const {
    std::vector<const c10::StorageImpl*> seen;
    for (const at::Tensor& tensor : given_) seen.push_back(tensor.storage().unsafeGetStorageImpl());
    uint64_t nbytes = 0;
    const auto count = [&](const at::Tensor& tensor) {
      if (!tensor.defined() || !tensor.has_storage()) return;
      const c10::StorageImpl* storage = tensor.storage().unsafeGetStorageImpl();
      if (std::find(seen.begin(), seen.end(), storage) != seen.end()) return;
      seen.push_back(storage);
      nbytes += storage->nbytes();
    };
    for (const c10::IValue& result : stack) {
      if (result.isTensor()) count(result.toTensor());
      if (result.isTensorList()) {
        for (const at::Tensor& tensor : result.toTensorVector()) count(tensor);
      }
    }
    return nbytes;
  }

  std::vector<c10::IValue> stack;

 private:
  template <class List>
  bool append(const at::Tensor& tensor, List& list) {
    if (!tensor.defined()) {
      list.emplace_back(tensor);
      return true;
    }
    const bool plain = tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.is_quantized() &&
                       !tensor.is_nested() && !tensor.unsafeGetTensorImpl()->is_python_dispatch();
    if (!plain) return false;
    sees_device_ = sees_device_ || tensor.device().type() == device_;
    const auto options = at::TensorOptions().dtype(tensor.dtype()).device(c10::kMeta);
    given_.push_back(at::empty_strided(tensor.sizes(), tensor.strides(), options));
    at::Tensor& meta = given_.back();
    if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) meta.unsafeGetTensorImpl()->set_wrapped_number(true);
    list.emplace_back(meta);
    return true;
  }

  c10::DeviceType device_;
  std::optional<c10::DeviceType> wanted_;  // what the call says of the device of its result
  bool sees_device_ = false;
  std::vector<at::Tensor> given_;  // the call takes them off the stack, but what it returns may be references to them
};

uint64_t measured(const c10::OperatorHandle& op, c10::ArrayRef<const c10::IValue> arguments, c10::DeviceType device) {
  if (!op.hasComputedKernelForDispatchKey(c10::DispatchKey::Meta)) return 0;
  const at::DisableRecordFunctionGuard unobserved;
  const auto guard = kernels_only();
  const at::AutoGradMode no_grad(false);
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard silent(&silence);
  try {
    MetaCall call(device);
    for (const c10::IValue& argument : arguments) {
      if (!call.add(argument)) return 0;
    }
    if (!call.on_device()) return 0;
    op.callBoxed(call.stack);
    return call.bytes_made();
  } catch (const std::exception&) {
    return 0;  // it depends on data, say
  }
}

void add(std::string& key, int64_t value) { key.append(reinterpret_cast<const char*>(&value), sizeof value); }

void add(std::string& key, const at::Tensor& tensor) {
  if (!tensor.defined()) return add(key, -1);
  const auto* impl = tensor.unsafeGetTensorImpl();
  add(key, static_cast<int64_t>(impl->key_set().raw_repr()));
  add(key, static_cast<int64_t>(tensor.scalar_type()) * 2 + (impl->is_wrapped_number() ? 1 : 0));
  add(key, tensor.dim());
  if (tensor.layout() != at::kStrided || tensor.is_nested()) return;
  for (const int64_t size : tensor.sizes()) add(key, size);
  for (const int64_t stride : tensor.strides()) add(key, stride);
}

void add(std::string& key, const c10::IValue& value) {
  key += value.tagKind();
  if (value.isTensor()) {
    add(key, value.toTensor());
  } else if (value.isInt()) {
    add(key, value.toInt());
  } else if (value.isBool()) {
    add(key, value.toBool());
  } else if (value.isDevice()) {
    add(key, static_cast<int64_t>(value.toDevice().type()));
  } else if (value.isDouble()) {
    const double number = value.toDouble();
    key.append(reinterpret_cast<const char*>(&number), sizeof number);
  } else if (value.isString()) {
    key += value.toStringRef();
  } else if (value.isList()) {
    const auto elements = value.toListRef();
    add(key, static_cast<int64_t>(elements.size()));
    for (const c10::IValue& element : elements) add(key, element);
  }
}

}  // namespace

// A program calls the same ops with operands of the same shapes again and again, and asking takes up to milliseconds.
uint64_t result_bytes(const c10::OperatorHandle& op, c10::ArrayRef<const c10::IValue> arguments,
                      c10::DeviceType device) {
  constexpr size_t kKept = 10'000;
  static thread_local std::unordered_map<std::string, uint64_t> known;
  static thread_local std::string key;
  key.clear();
  add(key, static_cast<int64_t>(std::hash<c10::OperatorHandle>()(op)));
  for (const c10::IValue& argument : arguments) add(key, argument);
  const auto found = known.find(key);
  if (found != known.end()) return found->second;
  const uint64_t nbytes = measured(op, arguments, device);
  if (known.size() >= kKept) known.clear();
  known.emplace(key, nbytes);
  return nbytes;
}

}  // namespace teraio

// Arguments and results of ops as PyTorch boxes them, and the tensors in them.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <optional>
#include <vector>

#include "device.h"

namespace sim {

using c10::IValue;
using Values = std::vector<IValue>;

inline bool on_device(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kDeviceType; }
inline bool on_cpu(const at::Tensor& tensor) { return tensor.defined() && tensor.is_cpu(); }

inline bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

inline bool takes_generator(const c10::Argument& argument) {
  const c10::Type& type = *argument.type();
  if (type.kind() == c10::TypeKind::GeneratorType) return true;
  const auto* optional = type.castRaw<c10::OptionalType>();
  return optional != nullptr && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
}

// The value with `change` applied to each tensor in it.
template <class Change>
IValue with_tensors(const IValue& value, Change change) {
  if (value.isTensor()) return change(value.toTensor());
  if (value.isTensorList()) {
    c10::List<at::Tensor> changed;
    for (const at::Tensor& tensor : value.toTensorVector()) changed.push_back(change(tensor));
    return changed;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> changed;
    for (const IValue& element : value.toListRef()) {
      changed.push_back(element.isNone() ? std::nullopt : std::make_optional(change(element.toTensor())));
    }
    return changed;
  }
  return value;
}

template <class Visit>
void for_each_tensor(const IValue& value, Visit visit) {
  with_tensors(value, [&](const at::Tensor& tensor) {
    visit(tensor);
    return tensor;
  });
}

template <class Change>
Values with_tensors(const Values& values, c10::DeviceType device_type, Change change) {
  Values changed;
  for (const IValue& value : values) {
    const bool names_device = value.isDevice() && value.toDevice().type() == kDeviceType;
    changed.push_back(names_device ? IValue(c10::Device(device_type)) : with_tensors(value, change));
  }
  return changed;
}

// Kernels of several out arguments return references to them, which die with the stack's.
inline Values results_of(const c10::OperatorHandle& op, const Values& operands) {
  torch::jit::Stack stack = operands;
  op.callBoxed(&stack);
  return stack;
}

}  // namespace sim

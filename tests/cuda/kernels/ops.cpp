// CUDA's ops, computed by the CPU's kernels when their turn in the stream has come.
//
// In: ops of PyTorch's CUDA build. Out: the same ops without a GPU. What moves memory rather than computes stays
// PyTorch's own: the allocator, views, plain copies, reading a number.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <string>
#include <unordered_set>

#include "device.h"
#include "kernel.h"
#include "pace.h"
#include "values.h"

namespace sim {
namespace {

const std::unordered_set<std::string> kPyTorchs = {
    "aten::empty.memory_format", "aten::empty_strided", "aten::resize_", "aten::set_", "aten::set_.source_Storage",
    "aten::set_.source_Storage_storage_offset", "aten::set_.source_Tensor", "aten::as_strided", "aten::view",
    "aten::_reshape_alias", "aten::unfold", "aten::view_as_real", "aten::view_as_complex", "aten::record_stream",
    "aten::_local_scalar_dense", "aten::_pin_memory", "aten::is_pinned", "aten::_efficientzerotensor"};

// What has a kernel of its own here or in the simulated device's sources.
const std::unordered_set<std::string> kOurs = {
    "aten::convolution", "aten::convolution_backward", "aten::native_dropout",
    "aten::native_dropout_backward", "aten::_fused_sdp_choice", "aten::histc", "aten::native_layer_norm",
    "aten::native_layer_norm_backward", "aten::native_group_norm", "aten::native_group_norm_backward"};

// The kernel that ops have on devices without one of their own.
void call_composite(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  op.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::PrivateUse1), stack);
}

bool is_plain(const at::Tensor& to, const at::Tensor& from) {
  return to.scalar_type() == from.scalar_type() && to.sizes() == from.sizes() && to.strides() == from.strides() &&
         to.is_non_overlapping_and_dense() && to.is_conj() == from.is_conj() && to.is_neg() == from.is_neg();
}

// Bytes as they are go by the runtime, and so do copies between devices; PyTorch makes plain ones of these.
void copy(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const at::Tensor to = torch::jit::peek(*stack, 0, 3).toTensor();
  const at::Tensor from = torch::jit::peek(*stack, 1, 3).toTensor();
  if (!on_device(to) || !on_device(from) || is_plain(to, from)) return call_composite(op, stack);
  at::Tensor target = as_cpu(to), source = as_cpu(from);
  target._set_conj(to.is_conj());
  target._set_neg(to.is_neg());
  source._set_conj(from.is_conj());
  source._set_neg(from.is_neg());
  if (has_pace()) return spend_time(op, stack);
  launch([target, source]() mutable { target.copy_(source); });
  torch::jit::drop(*stack, 3);
  stack->emplace_back(to);
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("copy_", torch::CppFunction::makeFromBoxedFunction<&copy>());
  if (!has_pace()) {
    m.impl("convolution", torch::CppFunction::makeFromBoxedFunction<&launch_op>());
    m.impl("convolution_backward", torch::CppFunction::makeFromBoxedFunction<&launch_op>());
  }
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const std::string text = c10::toString(name);
    const auto op = c10::Dispatcher::singleton().findOp(name);
    if (!op || name.getNamespace() != "aten" || kPyTorchs.count(text) > 0) continue;
    if (text == "aten::copy_" || (!has_pace() && kOurs.count(text) > 0)) continue;
    const auto has = [&](c10::DispatchKey key) { return op->hasKernelForDispatchKey(key); };
    const bool composite =
        has(c10::DispatchKey::CompositeExplicitAutograd) || has(c10::DispatchKey::CompositeImplicitAutograd) ||
        has(c10::DispatchKey::CompositeExplicitAutogradNonFunctional);
    if (has_pace() && has(c10::DispatchKey::CUDA)) {
      m.impl(text.c_str(), torch::CppFunction::makeFromBoxedFunction<&spend_time>());
    } else if (has(c10::DispatchKey::CPU) && (has(c10::DispatchKey::CUDA) || composite)) {
      m.impl(text.c_str(), torch::CppFunction::makeFromBoxedFunction<&launch_op>());
    } else if (has(c10::DispatchKey::CUDA) && composite) {
      m.impl(text.c_str(), torch::CppFunction::makeFromBoxedFunction<&call_composite>());
    }
  }
}

}  // namespace
}  // namespace sim

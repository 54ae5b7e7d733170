#include "recipe.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/clone.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <array>
#include <utility>

#include "engine.h"
#include "kernels_only.h"

namespace teraio {
namespace {

// Functions of their operands alone, though not pointwise.
constexpr std::array kOthers = {"aten::to",         "aten::_to_copy",   "aten::type_as",     "aten::contiguous",
                                "aten::layer_norm", "aten::softmax",    "aten::_softmax",    "aten::log_softmax",
                                "aten::group_norm", "aten::_log_softmax"};

bool tagged(const c10::OperatorHandle& op, at::Tag tag) {
  const auto tags = op.getTags();
  return std::find(tags.begin(), tags.end(), tag) != tags.end();
}

bool is_plain(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.unsafeGetTensorImpl()->is_python_dispatch() &&
         !tensor.is_conj() && !tensor.is_neg() && !tensor._is_zerotensor();
}

// No mode of the thread has a hand in the op. Autocast has none in ops without a kernel for it that call no others.
bool nothing_special(const c10::OperatorHandle& op, c10::DeviceType device) {
  if (c10::impl::tls_local_dispatch_key_set().included_ != c10::default_included_set || at::in_parallel_region()) {
    return false;
  }
  if (!at::autocast::is_autocast_available(device) || !at::autocast::is_autocast_enabled(device)) return true;
  return !op.hasKernelForDispatchKey(at::autocast::get_autocast_dispatch_key_from_device_type(device)) &&
         !op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd);
}

at::Tensor shared(const at::Tensor& tensor) {
  return at::Tensor(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), false));
}

// With its strides and offset, for results are laid out like their operands.
at::Tensor copied(const at::Tensor& tensor) {
  const auto guard = kernels_only();
  const at::DisableRecordFunctionGuard unobserved;
  const auto elements = static_cast<int64_t>(tensor.storage().nbytes() / tensor.element_size());
  const at::Tensor whole = at::as_strided(tensor, {elements}, {1}, 0);
  at::Tensor copy = at::as_strided(at::clone(whole), tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) copy.unsafeGetTensorImpl()->set_wrapped_number(true);
  return copy;
}

}  // namespace

Surroundings::Surroundings()
    : threads_(at::get_num_threads()),
      default_dtype_(c10::get_default_dtype()),
      onednn_(at::globalContext().userEnabledMkldnn()) {
  std::fegetenv(&floating_point_);
}

void Surroundings::restore() const {
  if (at::get_num_threads() != threads_) at::set_num_threads(threads_);
  if (c10::get_default_dtype() != default_dtype_) c10::set_default_dtype(default_dtype_);
  if (at::globalContext().userEnabledMkldnn() != onednn_) at::globalContext().setUserEnabledMkldnn(onednn_);
  std::fesetenv(&floating_point_);
}

bool Recipe::possible(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  if (op.operator_name().getNamespace() != "aten") return false;  // other people's tags may say too much
  if (schema.returns().size() != 1 || schema.returns()[0].type()->kind() != c10::TypeKind::TensorType) return false;
  const auto& arguments = schema.arguments();
  const bool writes = std::any_of(arguments.begin(), arguments.end(), [](const c10::Argument& argument) {
    return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
  });
  if (writes || tagged(op, at::Tag::nondeterministic_seeded)) return false;
  return tagged(op, at::Tag::pointwise) || std::find(kOthers.begin(), kOthers.end(), schema.name()) != kOthers.end();
}

std::unique_ptr<Recipe> Recipe::of(const c10::OperatorHandle& op, c10::ArrayRef<const c10::IValue> arguments,
                                   Block* (*block_of)(c10::StorageImpl*)) {
  std::unique_ptr<Recipe> recipe(new Recipe(op));
  for (const c10::IValue& argument : arguments) {
    if (!argument.isTensor()) {
      const bool holds_none = argument.isNone() || argument.isScalar() || argument.isString() || argument.isIntList() ||
                              argument.isDoubleList() || argument.isBoolList() || argument.isDevice();
      if (!holds_none) return nullptr;
      recipe->arguments_.push_back(argument);
      continue;
    }
    const at::Tensor& tensor = argument.toTensor();
    if (!tensor.defined()) {
      recipe->arguments_.emplace_back(tensor);
      continue;
    }
    if (!nothing_special(op, tensor.device().type()) || !is_plain(tensor)) return nullptr;
    if (const Block* block = block_of(tensor.storage().unsafeGetStorageImpl())) {
      recipe->operands_.push_back(block->id);
      recipe->arguments_.emplace_back(shared(tensor));
    } else if (tensor.storage().nbytes() < Engine::instance().min_block()) {
      recipe->arguments_.emplace_back(copied(tensor));
    } else {
      return nullptr;  // whoever else has this memory may write to it unseen
    }
  }
  return recipe;
}

at::Tensor Recipe::run() const {
  const auto guard = kernels_only();
  const at::AutoGradMode no_grad(false);
  std::vector<c10::IValue> stack = arguments_;
  const Surroundings here;
  surroundings_.restore();
  try {
    op_.callBoxed(stack);
  } catch (...) {
    here.restore();
    throw;
  }
  here.restore();
  return stack.at(0).toTensor();
}

}  // namespace teraio

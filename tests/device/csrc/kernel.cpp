#include "kernel.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_strided.h>
#include <ATen/ops/from_blob.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <torch/library.h>

#include <optional>
#include <utility>
#include <vector>

#include "allocator.h"
#include "generator.h"
#include "stream.h"

namespace sim {
namespace {

using c10::IValue;
using Values = std::vector<IValue>;

bool on_device(const at::Tensor& tensor) { return tensor.defined() && tensor.device().type() == kDeviceType; }
bool on_cpu(const at::Tensor& tensor) { return tensor.defined() && tensor.is_cpu(); }

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

at::Tensor as_meta(const at::Tensor& tensor) {
  // A single number of the CPU takes part in type promotion in another way than a tensor of the device.
  if (!tensor.defined() || (on_cpu(tensor) && tensor.dim() == 0)) return tensor;
  return at::Tensor(at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type()));
}

at::Tensor empty_like_meta(const at::Tensor& meta) {
  if (!meta.defined()) return meta;
  return at::Tensor(at::detail::empty_strided_generic(meta.sizes(), meta.strides(), &allocator(),
                                                      c10::DispatchKeySet(c10::DispatchKey::PrivateUse1),
                                                      meta.scalar_type()));
}

// Host memory is read now: the program may change it before the kernel runs.
at::Tensor as_operand(const at::Tensor& tensor) {
  if (on_device(tensor)) return as_cpu(tensor);
  if (!on_cpu(tensor)) return tensor;
  at::Tensor copy = tensor.clone();
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) copy.unsafeGetTensorImpl()->set_wrapped_number(true);
  return copy;
}

bool is_written(const c10::Argument& argument) {
  return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
}

bool takes_generator(const c10::Argument& argument) {
  const c10::Type& type = *argument.type();
  if (type.kind() == c10::TypeKind::GeneratorType) return true;
  const auto* optional = type.castRaw<c10::OptionalType>();
  return optional != nullptr && optional->getElementType()->kind() == c10::TypeKind::GeneratorType;
}

bool is_fresh_tensor(const c10::Argument& result) {
  return result.alias_info() == nullptr && result.type()->isSubtypeOf(*c10::OptionalType::ofTensor());
}

// [Note: an op in three parts]
// While an op is issued: its CPU kernel's double on the meta device checks the arguments and tells what the results
// look like; memory for them is taken. Later, on the stream's thread: the CPU kernel runs on the operands' memory,
// and what it returns is copied into the results. So a kernel touches memory only in stream order, and nothing it
// does can be seen before then.
class Call {
 public:
  Call(const c10::OperatorHandle& op, torch::jit::Stack& stack)
      : op_(op), schema_(op.schema()), arguments_(torch::jit::pop(stack, schema_.arguments().size())) {
    check_devices();
  }

  Values run() {
    std::optional<Values> metas = needs_data() ? std::nullopt : run_on_meta();
    return metas ? launch(*metas) : run_at_once();
  }

 private:
  // Single numbers and indices may come from the CPU.
  void check_devices() const {
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const bool indices = arguments_[i].isOptionalTensorList();
      for_each_tensor(arguments_[i], [&](const at::Tensor& tensor) {
        if (!tensor.defined()) return;
        TORCH_CHECK(tensor.layout() == at::kStrided, schema_.name(), ": the sim device has dense tensors only");
        const bool number = tensor.is_cpu() && tensor.dim() == 0 && !is_written(schema_.arguments()[i]);
        TORCH_CHECK(on_device(tensor) || number || (indices && tensor.is_cpu()), schema_.name(), ": argument '",
                    schema_.arguments()[i].name(), "' is on ", tensor.device(), ", but others are on ", device());
      });
    }
    TORCH_CHECK_NOT_IMPLEMENTED(op_.hasComputedKernelForDispatchKey(c10::DispatchKey::CPU), schema_.name(),
                                " has no kernel for the CPU, so it has none for the sim device");
  }

  // What the results look like depends on data, or they are no tensors.
  bool needs_data() const {
    if (has_mask()) return true;
    if (op_.hasTag(at::Tag::dynamic_output_shape) || op_.hasTag(at::Tag::data_dependent_output)) return true;
    for (const auto& result : schema_.returns()) {
      if (!is_written(result) && !is_fresh_tensor(result)) return true;
    }
    return false;
  }

  // Masks are indices whose number depends on data.
  bool has_mask() const {
    bool found = false;
    for (const IValue& argument : arguments_) {
      if (!argument.isOptionalTensorList()) continue;
      for_each_tensor(argument, [&](const at::Tensor& index) {
        found = found || (index.defined() && (index.scalar_type() == at::kBool || index.scalar_type() == at::kByte));
      });
    }
    return found;
  }

  // Nothing if the op has no kernel for the meta device.
  std::optional<Values> run_on_meta() {
    torch::jit::Stack stack = with_tensors(arguments_, c10::DeviceType::Meta, as_meta);
    const torch::jit::Stack operands = stack;
    drop_generators(stack);
    try {
      op_.callBoxed(&stack);
    } catch (const c10::NotImplementedError&) {
      return std::nullopt;
    }
    for (size_t i = 0; i < operands.size(); ++i) {
      if (is_written(schema_.arguments()[i]) && operands[i].isTensor()) resize_like(arguments_[i], operands[i].toTensor());
    }
    return stack;
  }

  static void resize_like(const IValue& argument, const at::Tensor& meta) {
    const at::Tensor& out = argument.toTensor();
    if (!out.defined() || out.sizes() == meta.sizes()) return;
    out.resize_(meta.sizes());
    out.unsafeGetTensorImpl()->set_sizes_and_strides(meta.sizes(), meta.strides());
  }

  void drop_generators(torch::jit::Stack& stack) const {
    for (size_t i = 0; i < stack.size(); ++i) {
      if (takes_generator(schema_.arguments()[i])) stack[i] = IValue();
    }
  }

  // The arguments for the CPU kernel. Draws a seed for it if it takes random numbers.
  torch::jit::Stack operands() const {
    torch::jit::Stack stack = with_tensors(arguments_, c10::DeviceType::CPU, as_operand);
    for (size_t i = 0; i < stack.size(); ++i) {
      if (!takes_generator(schema_.arguments()[i])) continue;
      const auto generator = arguments_[i].toOptional<at::Generator>();
      stack[i] = at::detail::createCPUGenerator(draw_seed(generator));
    }
    return stack;
  }

  Values launch(const Values& metas) {
    Values results;
    std::vector<std::pair<size_t, at::Tensor>> targets;
    for (size_t i = 0; i < metas.size(); ++i) {
      if (is_written(schema_.returns()[i])) {
        results.push_back(written_argument(schema_.returns()[i]));
        continue;
      }
      results.emplace_back(metas[i].isTensor() ? empty_like_meta(metas[i].toTensor()) : at::Tensor());
      if (results.back().toTensor().defined()) targets.emplace_back(i, as_cpu(results.back().toTensor()));
    }
    current_stream().launch([op = op_, stack = operands(), targets = std::move(targets)]() mutable {
      op.callBoxed(&stack);
      for (const auto& [i, target] : targets) store(op, stack[i].toTensor(), target);
    });
    return results;
  }

  static void store(const c10::OperatorHandle& op, const at::Tensor& result, const at::Tensor& target) {
    TORCH_CHECK(result.sizes() == target.sizes() && result.scalar_type() == target.scalar_type(), op.schema().name(),
                ": its CPU kernel gave ", result.sizes(), " of ", result.scalar_type(), ", on the meta device it is ",
                target.sizes(), " of ", target.scalar_type());
    target.copy_(result);
  }

  Values run_at_once() {
    torch::jit::Stack stack = operands();
    current_stream().synchronize();
    op_.callBoxed(&stack);
    Values results;
    for (size_t i = 0; i < stack.size(); ++i) {
      const c10::Argument& result = schema_.returns()[i];
      TORCH_CHECK_NOT_IMPLEMENTED(result.alias_info() == nullptr || is_written(result), schema_.name(),
                                  ": this view is not implemented for the sim device");
      results.push_back(is_written(result) ? written_argument(result) : with_tensors(stack[i], to_device));
    }
    return results;
  }

  static at::Tensor to_device(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    at::Tensor copy = empty_like_meta(tensor);
    current_stream().launch([target = as_cpu(copy), tensor] { target.copy_(tensor); });
    return copy;
  }

  const IValue& written_argument(const c10::Argument& result) const {
    for (size_t i = 0; i < arguments_.size(); ++i) {
      const auto* alias = schema_.arguments()[i].alias_info();
      if (alias != nullptr && alias->beforeSets() == result.alias_info()->beforeSets()) return arguments_[i];
    }
    TORCH_CHECK(false, schema_.name(), ": its result ", result.name(), " is none of its arguments");
  }

  const c10::OperatorHandle op_;
  const c10::FunctionSchema& schema_;
  const Values arguments_;
};

}  // namespace

at::Tensor as_cpu(const at::Tensor& tensor) {
  if (!tensor.defined()) return tensor;
  auto* data = static_cast<char*>(tensor.storage().unsafeGetStorageImpl()->mutable_data());
  data += tensor.storage_offset() * static_cast<int64_t>(tensor.element_size());
  return at::from_blob(data, tensor.sizes(), tensor.strides(), at::TensorOptions(tensor.scalar_type()));
}

void launch_op(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const at::DisableRecordFunctionGuard unobserved;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::AutoGradMode no_grad(false);
  for (IValue& result : Call(op, *stack).run()) stack->push_back(std::move(result));
}

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&launch_op>()); }

}  // namespace sim

#include "kernel.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/from_blob.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>

#include <optional>
#include <utility>
#include <vector>

#include "device.h"
#include "shapes.h"
#include "values.h"

namespace sim {
namespace {

at::Tensor empty_like_meta(const at::Tensor& meta) {
  if (!meta.defined()) return meta;
  return at::Tensor(at::detail::empty_strided_generic(meta.sizes(), meta.strides(), &device_allocator(),
                                                      c10::DispatchKeySet(kDispatchKey), meta.scalar_type()));
}

// Host memory is read now: the program may change it before the kernel runs.
at::Tensor as_operand(const at::Tensor& tensor) {
  if (on_device(tensor)) return as_cpu(tensor);
  if (!on_cpu(tensor)) return tensor;
  at::Tensor copy = tensor.clone();
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) copy.unsafeGetTensorImpl()->set_wrapped_number(true);
  return copy;
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
    const auto shapes = needs_data() ? nullptr : shapes_of(op_, arguments_);
    return shapes ? launch(*shapes) : run_at_once();
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

  static void resize_like(const at::Tensor& out, const at::Tensor& model) {
    if (out.sizes() == model.sizes()) return;
    out.resize_(model.sizes());
    out.unsafeGetTensorImpl()->set_sizes_and_strides(model.sizes(), model.strides());
  }

  // The arguments for the CPU kernel. Draws a seed for it if it takes random numbers.
  Values operands() const {
    Values stack = with_tensors(arguments_, c10::DeviceType::CPU, as_operand);
    for (size_t i = 0; i < stack.size(); ++i) {
      if (is_out(i)) make_resizable(stack[i].toTensor());
      if (!takes_generator(schema_.arguments()[i])) continue;
      const auto generator = arguments_[i].toOptional<at::Generator>();
      stack[i] = at::detail::createCPUGenerator(draw_seed(generator));
    }
    return stack;
  }

  bool is_out(size_t i) const {
    return is_written(schema_.arguments()[i]) && arguments_[i].isTensor() && arguments_[i].toTensor().defined();
  }

  // Some kernels resize what they write even if it ends up in its old size. Then its data is no longer where it was.
  static void make_resizable(const at::Tensor& out) {
    c10::StorageImpl* storage = out.storage().unsafeGetStorageImpl();
    storage->set_allocator(c10::GetAllocator(c10::DeviceType::CPU));
    storage->set_resizable(true);
  }

  Values launch(const Shapes& shapes) {
    for (const auto& [i, model] : shapes.outs) resize_like(arguments_[i].toTensor(), model);
    Values results;
    std::vector<at::Tensor> targets;  // the device memory of each result
    for (size_t i = 0; i < shapes.results.size(); ++i) {
      const c10::Argument& result = schema_.returns()[i];
      if (is_written(result)) {
        results.push_back(written_argument(result));
      } else {
        const IValue& model = shapes.results[i];
        results.emplace_back(model.isTensor() ? empty_like_meta(model.toTensor()) : at::Tensor());
      }
      targets.push_back(results.back().isTensor() ? as_cpu(results.back().toTensor()) : at::Tensor());
    }
    sim::launch([op = op_, operands = operands(), targets = std::move(targets)] {
      const Values computed = results_of(op, operands);
      for (size_t i = 0; i < targets.size(); ++i) {
        if (targets[i].defined()) store(op, computed[i].toTensor(), targets[i]);
      }
    });
    return results;
  }

  static void store(const c10::OperatorHandle& op, const at::Tensor& result, const at::Tensor& target) {
    if (result.const_data_ptr() == target.const_data_ptr()) return;
    // What a kernel does not need to compute it may leave empty, such as the statistics of a batch in evaluation.
    if (result.numel() == 0) return;
    TORCH_CHECK(result.sizes() == target.sizes() && result.scalar_type() == target.scalar_type(), op.schema().name(),
                ": its CPU kernel gave ", result.sizes(), " of ", result.scalar_type(), ", on the meta device it is ",
                target.sizes(), " of ", target.scalar_type());
    target.copy_(result);
  }

  Values run_at_once() {
    const Values inputs = operands();
    synchronize();
    const Values computed = results_of(op_, inputs);
    Values results;
    for (size_t i = 0; i < computed.size(); ++i) {
      const c10::Argument& result = schema_.returns()[i];
      TORCH_CHECK_NOT_IMPLEMENTED(result.alias_info() == nullptr || is_written(result), schema_.name(),
                                  ": this view is not implemented for the sim device");
      if (is_written(result)) {
        results.push_back(written_argument(result));
        if (computed[i].isTensor()) store_resized(computed[i].toTensor(), results.back().toTensor());
      } else {
        results.push_back(with_tensors(computed[i], to_device));
      }
    }
    return results;
  }

  static void store_resized(const at::Tensor& result, const at::Tensor& out) {
    if (result.const_data_ptr() == as_cpu(out).const_data_ptr()) return;
    resize_like(out, result);
    launch_copy(result, out);
  }

  static at::Tensor to_device(const at::Tensor& tensor) {
    if (!tensor.defined()) return tensor;
    at::Tensor copy = empty_like_meta(tensor);
    launch_copy(tensor, copy);
    return copy;
  }

  static void launch_copy(const at::Tensor& from, const at::Tensor& to) {
    sim::launch([from, target = as_cpu(to)] { target.copy_(from); });
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
  char* data = bytes_of(tensor.storage().unsafeGetStorageImpl()->mutable_data());
  data += tensor.storage_offset() * static_cast<int64_t>(tensor.element_size());
  return at::from_blob(data, tensor.sizes(), tensor.strides(), at::TensorOptions(tensor.scalar_type()));
}

void launch_op(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const at::DisableRecordFunctionGuard unobserved;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::AutoGradMode no_grad(false);
  for (IValue& result : Call(op, *stack).run()) stack->push_back(std::move(result));
}

}  // namespace sim

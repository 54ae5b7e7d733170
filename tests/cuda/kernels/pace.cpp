#include "pace.h"

#include <ATen/EmptyTensor.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDAStream.h>

#include <algorithm>
#include <string>
#include <unordered_set>
#include <utility>

#include "../runtime/stream.h"
#include "device.h"
#include "kernel.h"
#include "shapes.h"
#include "values.h"

extern "C" double cuda_double_pace();
extern "C" void cuda_double_be_busy(cudaStream_t stream, double seconds);

namespace sim {
namespace {

// Of an H200, as seen in training: per second.
constexpr double kTensorCoreFlops = 600e12, kFloatFlops = 45e12, kBytes = 4.0e12;
constexpr double kLaunch = 2e-6;

at::Tensor on_the_device(const at::Tensor& meta) {
  if (!meta.defined()) return meta;
  return at::Tensor(at::detail::empty_strided_generic(meta.sizes(), meta.strides(), &device_allocator(),
                                                      c10::DispatchKeySet(kDispatchKey), meta.scalar_type()));
}

double bytes_in(const Values& values) {
  std::unordered_set<const void*> seen;
  double nbytes = 0;
  for (const IValue& value : values) {
    for_each_tensor(value, [&](const at::Tensor& tensor) {
      if (!tensor.defined() || !seen.insert(tensor.unsafeGetTensorImpl()).second) return;
      // Expanded dimensions are read once.
      nbytes += static_cast<double>(std::min<size_t>(tensor.nbytes(), tensor.storage().nbytes()));
    });
  }
  return nbytes;
}

// Of products of matrices and attention, which take more time than their bytes do.
double flops_of(const std::string& name, const Values& arguments) {
  const auto shape = [&](size_t i) { return arguments[i].toTensor().sizes(); };
  if (name == "aten::mm" || name == "aten::bmm" || name == "aten::addmm" || name == "aten::baddbmm") {
    const size_t first = name.find("add") == std::string::npos ? 0 : 1;
    return 2.0 * static_cast<double>(arguments[first].toTensor().numel()) * static_cast<double>(shape(first + 1).back());
  }
  if (name.find("_scaled_dot_product_") != std::string::npos) {
    const bool backward = name.ends_with("_backward");
    const auto query = shape(backward ? 1 : 0), key = shape(backward ? 2 : 1);
    const double products = 4.0 * static_cast<double>(query[0] * query[1] * query[2] * key[2] * query[3]);
    return backward ? 2.5 * products : products;
  }
  return 0;
}

bool is_16_bit(const Values& arguments) {
  bool found = false;
  for (const IValue& value : arguments) {
    for_each_tensor(value, [&](const at::Tensor& t) { found |= t.defined() && c10::isReducedFloatingType(t.scalar_type()); });
  }
  return found;
}

double seconds_of(const std::string& name, const Values& arguments, const Values& results) {
  const double rate = is_16_bit(arguments) ? kTensorCoreFlops : kFloatFlops;
  return kLaunch + std::max(flops_of(name, arguments) / rate, (bytes_in(arguments) + bytes_in(results)) / kBytes);
}

bool depends_on_data(const c10::OperatorHandle& op) {
  return op.hasTag(at::Tag::dynamic_output_shape) || op.hasTag(at::Tag::data_dependent_output);
}

// Programs look at such numbers: whether sequences are packed, say, by their positions.
bool decides(const Values& values) {
  bool found = true;
  for (const IValue& value : values) {
    for_each_tensor(value, [&](const at::Tensor& t) {
      if (!t.defined()) return;
      found &= c10::isIntegralType(t.scalar_type(), /*includeBool=*/true) && t.nbytes() <= cuda_double::kFewBytes;
    });
  }
  return found;
}

const IValue& argument_of(const c10::FunctionSchema& schema, const Values& arguments, const c10::Argument& result) {
  for (size_t i = 0; i < arguments.size(); ++i) {
    const auto* alias = schema.arguments()[i].alias_info();
    if (alias != nullptr && alias->beforeSets() == result.alias_info()->beforeSets()) return arguments[i];
  }
  TORCH_CHECK(false, schema.name(), ": its result ", result.name(), " is none of its arguments");
}

}  // namespace

bool has_pace() { return cuda_double_pace() > 0; }

void spend_time(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const at::DisableRecordFunctionGuard unobserved;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::AutoGradMode no_grad(false);
  const auto& schema = op.schema();
  const Values arguments = torch::jit::last(*stack, schema.arguments().size()).vec();
  const auto shapes = depends_on_data(op) ? nullptr : shapes_of(op, arguments);
  if (!shapes || (decides(arguments) && decides(shapes->results))) return launch_op(op, stack);
  torch::jit::drop(*stack, schema.arguments().size());
  for (const auto& [i, model] : shapes->outs) {
    const at::Tensor& out = arguments[i].toTensor();
    if (out.sizes() != model.sizes()) out.resize_(model.sizes());
  }
  Values results;
  for (size_t i = 0; i < shapes->results.size(); ++i) {
    const c10::Argument& result = schema.returns()[i];
    results.push_back(is_written(result) ? argument_of(schema, arguments, result)
                                         : with_tensors(shapes->results[i], on_the_device));
  }
  cuda_double_be_busy(c10::cuda::getCurrentCUDAStream(), seconds_of(schema.name(), arguments, results));
  for (IValue& result : results) stack->push_back(std::move(result));
}

}  // namespace sim

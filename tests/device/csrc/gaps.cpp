// Ops that devices have and the CPU has not, or not as they need it, made of others.
#include <ATen/Context.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/native_dropout_backward_native.h>
#include <ATen/ops/ones_like.h>
#include <torch/library.h>

#include <cstddef>
#include <optional>
#include <tuple>
#include <utility>

#include "device.h"
#include "kernel.h"

namespace sim {
namespace {

// The CPU has no fused dropout that it would use in training.
std::tuple<at::Tensor, at::Tensor> native_dropout(const at::Tensor& input, double p, std::optional<bool> train) {
  if (!train.value_or(true)) return {input.clone(), at::ones_like(input, at::kBool)};
  const double scale = p == 1.0 ? 0.0 : 1.0 / (1.0 - p);
  at::Tensor mask = at::empty_like(input, at::kBool).bernoulli_(1.0 - p);
  at::Tensor output = input.mul(mask).mul_(scale);
  return {std::move(output), std::move(mask)};
}

class Undemanding {
 public:
  Undemanding() { at::globalContext().setDeterministicAlgorithms(false, false); }
  ~Undemanding() { at::globalContext().setDeterministicAlgorithms(demanded_, warned_); }
  Undemanding(const Undemanding&) = delete;
  Undemanding& operator=(const Undemanding&) = delete;

 private:
  const bool demanded_ = at::globalContext().deterministicAlgorithms();
  const bool warned_ = at::globalContext().deterministicAlgorithmsWarnOnly();
};

// The CPU makes histograms of fractions only, CUDA of whole numbers as well.
void launch_histogram(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  c10::IValue& values = *(stack->end() - static_cast<std::ptrdiff_t>(op.schema().arguments().size()));
  const c10::ScalarType type = values.toTensor().scalar_type();
  const bool whole = c10::isIntegralType(type, /*includeBool=*/false);
  if (!whole) return launch_op(op, stack);
  values = values.toTensor().to(at::kDouble);
  const Undemanding fractions;  // histograms of them need not be deterministic
  launch_op(op, stack);
  stack->back() = stack->back().toTensor().to(type);
}

// Norms of 16-bit values have statistics in float32 on CUDA and on the meta device, but not on the CPU.
void launch_norm(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const size_t first = stack->size() - schema.arguments().size();
  const auto argument = [&](const char* name) -> const c10::IValue& {
    return (*stack)[first + static_cast<size_t>(*schema.argumentIndexWithName(name))];
  };
  const c10::ScalarType type = argument("input").toTensor().scalar_type();
  if (!c10::isReducedFloatingType(type)) return launch_op(op, stack);
  const c10::IValue& weight = argument("weight");
  const bool weighs = weight.isTensor() && weight.toTensor().defined();
  const c10::ScalarType weight_type = weighs ? weight.toTensor().scalar_type() : type;
  for (size_t i = first; i < stack->size(); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor() && value.toTensor().defined()) value = value.toTensor().to(at::kFloat);
  }
  launch_op(op, stack);
  // Statistics stay as they are; gradients are those of the input, the weight and the bias.
  const bool backward = schema.name().ends_with("_backward");
  for (size_t i = first; i < (backward ? stack->size() : first + 1); ++i) {
    c10::IValue& value = (*stack)[i];
    if (value.isTensor() && value.toTensor().defined()) {
      value = value.toTensor().to(i == first ? type : weight_type);
    }
  }
}

constexpr int64_t kMathAttention = 0;  // at::SDPBackend::math

int64_t choose_attention(const at::Tensor& /*query*/, const at::Tensor& /*key*/, const at::Tensor& /*value*/,
                         const std::optional<at::Tensor>& /*mask*/, double /*dropout*/, bool /*causal*/,
                         std::optional<double> /*scale*/, bool /*grouped*/) {
  return kMathAttention;
}

TORCH_LIBRARY_IMPL(aten, SIM_DEVICE_TYPE, m) {
  m.impl("native_dropout", &native_dropout);
  m.impl("native_dropout_backward", &at::native::native_dropout_backward);
  m.impl("_fused_sdp_choice", &choose_attention);
  m.impl("histc", torch::CppFunction::makeFromBoxedFunction<&launch_histogram>());
  for (const char* norm : {"native_layer_norm", "native_layer_norm_backward", "native_group_norm",
                           "native_group_norm_backward"}) {
    m.impl(norm, torch::CppFunction::makeFromBoxedFunction<&launch_norm>());
  }
}

}  // namespace
}  // namespace sim

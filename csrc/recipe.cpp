#include "recipe.h"

#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <ATen/SavedTensorHooks.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/as_strided.h>
#include <ATen/ops/clone.h>
#include <c10/core/InferenceMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <array>
#include <shared_mutex>
#include <utility>

#include "engine.h"
#include "kernels_only.h"

namespace teraio {
namespace {

// Functions of their operands alone, though not pointwise.
constexpr std::array kOthers = {
    "aten::to",         "aten::_to_copy", "aten::type_as",    "aten::contiguous",  "aten::reshape",
    "aten::layer_norm", "aten::rms_norm", "aten::group_norm", "aten::softmax",     "aten::_softmax",
    "aten::log_softmax", "aten::_log_softmax", "aten::embedding"};
// So are these, and autocast, where it is on, casts their operands to its type. Attention draws random numbers only if
// it is asked to drop some.
constexpr std::array kProducts = {"aten::linear", "aten::matmul",  "aten::mm", "aten::bmm",
                                  "aten::addmm",  "aten::baddbmm", "aten::scaled_dot_product_attention"};
constexpr auto kRandomness = "dropout_p";

template <class Names>
bool is_one_of(const Names& names, const c10::FunctionSchema& schema) {
  return std::find(names.begin(), names.end(), schema.name()) != names.end();
}

using at::Float32Backend, at::Float32Op;

struct Setting {
  int64_t (*get)(c10::DeviceType device);
  void (*set)(c10::DeviceType device, int64_t value);
};

template <bool (at::Context::*get)() const, void (at::Context::*set)(bool)>
constexpr Setting flag() {
  return {[](c10::DeviceType) -> int64_t { return (at::globalContext().*get)(); },
          [](c10::DeviceType, int64_t value) { (at::globalContext().*set)(value != 0); }};
}

// PyTorch has it since 2.15. Of earlier versions it is a setting that never changes.
template <class Context = at::Context>
constexpr Setting fa4() {
  if constexpr (requires { &Context::setSDPUseFA4; }) {
    return flag<&Context::userEnabledFA4SDP, &Context::setSDPUseFA4>();
  } else {
    return {[](c10::DeviceType) -> int64_t { return 0; }, [](c10::DeviceType, int64_t) {}};
  }
}

using Precision = at::Float32Precision;

Precision precision_of(Float32Backend backend, Float32Op op) { return at::globalContext().float32Precision(backend, op); }

}  // namespace

// Of products of one backend. Where none is set for them, the backend's counts, and else that for all backends. What
// counts can be read, but not whether it was set here; so that is tried out by setting what would count else.
class ProductPrecision {
 public:
  explicit ProductPrecision(Float32Backend backend) : backend_(backend), value_(precision_of(backend, Float32Op::MATMUL)) {}

  void set(Precision value) {
    own_ = own();
    at::globalContext().setFloat32Precision(backend_, Float32Op::MATMUL, value == Precision::NONE ? Precision::IEEE : value);
    then_ = precision_of(backend_, Float32Op::MATMUL);
  }
  ~ProductPrecision() {
    const bool still = precision_of(backend_, Float32Op::MATMUL) == then_;  // no other thread has set it meanwhile
    if (own_ && still) at::globalContext().setFloat32Precision(backend_, Float32Op::MATMUL, *own_);
  }
  ProductPrecision(const ProductPrecision&) = delete;
  ProductPrecision& operator=(const ProductPrecision&) = delete;

 private:
  // Its own, or NONE.
  Precision own() const {
    at::Context& context = at::globalContext();
    const auto changes_with = [&](Float32Op op, Float32Backend other, Precision others) {
      const Precision now = precision_of(backend_, op);
      context.setFloat32Precision(other, Float32Op::ALL, now == Precision::IEEE ? Precision::TF32 : Precision::IEEE);
      const bool changes = precision_of(backend_, op) != now;
      context.setFloat32Precision(other, Float32Op::ALL, others);
      return changes;
    };
    const Precision for_all = precision_of(Float32Backend::GENERIC, Float32Op::ALL);
    const Precision of_backend = changes_with(Float32Op::ALL, Float32Backend::GENERIC, for_all)
                                     ? Precision::NONE
                                     : precision_of(backend_, Float32Op::ALL);
    return changes_with(Float32Op::MATMUL, backend_, of_backend) ? Precision::NONE : value_;
  }

  const Float32Backend backend_;
  const Precision value_;
  std::optional<Precision> own_;  // once it is another
  Precision then_ = value_;
};

namespace {

template <at::CuBLASReductionOption (at::Context::*get)() const, void (at::Context::*set)(bool, bool)>
constexpr Setting reduction() {
  return {[](c10::DeviceType) { return static_cast<int64_t>((at::globalContext().*get)()); },
          [](c10::DeviceType, int64_t value) {
            using Option = at::CuBLASReductionOption;
            const auto option = static_cast<Option>(value);
            (at::globalContext().*set)(option == Option::AllowReducedPrecisionWithSplitK,
                                       option != Option::DisallowReducedPrecisionDisallowSplitK);
          }};
}

using at::Context;
constexpr size_t kOfThread = 2;  // the first of these; the others are the process's
constexpr std::array kSettings = {
    Setting{[](c10::DeviceType) -> int64_t { return at::GradMode::is_enabled(); },
            [](c10::DeviceType, int64_t value) { at::GradMode::set_enabled(value != 0); }},
    Setting{[](c10::DeviceType device) -> int64_t {
              if (!at::autocast::is_autocast_available(device)) return 0;
              return static_cast<int64_t>(at::autocast::get_autocast_dtype(device));
            },
            [](c10::DeviceType device, int64_t value) {
              at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(value));
            }},
    Setting{[](c10::DeviceType) -> int64_t { return at::get_num_threads(); },
            [](c10::DeviceType, int64_t value) { at::set_num_threads(static_cast<int>(value)); }},
    Setting{[](c10::DeviceType) -> int64_t {
              const Context& context = at::globalContext();
              return context.deterministicAlgorithms() + 2 * context.deterministicAlgorithmsWarnOnly();
            },
            [](c10::DeviceType, int64_t value) {
              at::globalContext().setDeterministicAlgorithms((value & 1) != 0, (value & 2) != 0);
            }},
    reduction<&Context::allowFP16ReductionCuBLAS, &Context::setAllowFP16ReductionCuBLAS>(),
    reduction<&Context::allowBF16ReductionCuBLAS, &Context::setAllowBF16ReductionCuBLAS>(),
    flag<&Context::allowFP16AccumulationCuBLAS, &Context::setAllowFP16AccumulationCuBLAS>(),
    flag<&Context::allowFP16ReductionCPU, &Context::setAllowFP16ReductionCPU>(),
    flag<&Context::userEnabledMkldnn, &Context::setUserEnabledMkldnn>(),
    flag<&Context::deterministicMkldnn, &Context::setDeterministicMkldnn>(),
    flag<&Context::userEnabledFlashSDP, &Context::setSDPUseFlash>(),
    flag<&Context::userEnabledMemEfficientSDP, &Context::setSDPUseMemEfficient>(),
    flag<&Context::userEnabledMathSDP, &Context::setSDPUseMath>(),
    flag<&Context::userEnabledCuDNNSDP, &Context::setSDPUseCuDNN>(),
    flag<&Context::userEnabledFA3SDP, &Context::setSDPUseFA3>(),
    fa4(),
    flag<&Context::userEnabledOverrideableSDP, &Context::setSDPUseOverrideable>(),
    Setting{[](c10::DeviceType) {
              int64_t order = 0;  // a digit each
              for (const at::SDPBackend backend : at::globalContext().sDPPriorityOrder()) {
                order = order * at::num_sdp_backends + static_cast<int64_t>(backend);
              }
              return order;
            },
            [](c10::DeviceType, int64_t value) {
              std::vector<int64_t> order(at::num_sdp_backends);
              for (size_t i = order.size(); i-- > 0; value /= at::num_sdp_backends) order[i] = value % at::num_sdp_backends;
              at::globalContext().setSDPPriorityOrder(order);
            }},
    flag<&Context::allowFP16BF16ReductionMathSDP, &Context::setAllowFP16BF16ReductionMathSDP>(),
    Setting{[](c10::DeviceType) { return static_cast<int64_t>(at::globalContext().blasPreferredBackend()); },
            [](c10::DeviceType, int64_t value) {
              at::globalContext().setBlasPreferredBackend(static_cast<at::BlasBackend>(value));
            }},
};

bool tagged(const c10::OperatorHandle& op, at::Tag tag) {
  const auto tags = op.getTags();
  return std::find(tags.begin(), tags.end(), tag) != tags.end();
}

bool is_plain(const at::Tensor& tensor) {
  return tensor.layout() == at::kStrided && tensor.has_storage() && !tensor.unsafeGetTensorImpl()->is_python_dispatch() &&
         !tensor.is_conj() && !tensor.is_neg() && !tensor._is_zerotensor();
}

// No mode of the thread has a hand in the op.
bool nothing_special() {
  return c10::impl::tls_local_dispatch_key_set().included_ == c10::default_included_set && !at::in_parallel_region();
}

bool draws_numbers(const c10::FunctionSchema& schema, c10::ArrayRef<const c10::IValue> arguments) {
  const auto at = schema.argumentIndexWithName(kRandomness);
  return at && !(arguments[static_cast<size_t>(*at)].isDouble() && arguments[static_cast<size_t>(*at)].toDouble() == 0);
}

// By the op itself, as autocast is on.
bool is_cast(const c10::OperatorHandle& op, const at::Tensor& tensor) {
  const c10::DeviceType device = tensor.device().type();
  const c10::ScalarType type = tensor.scalar_type();
  return at::autocast::is_autocast_available(device) && at::autocast::is_autocast_enabled(device) &&
         is_one_of(kProducts, op.schema()) && c10::isFloatingType(type) && type != at::kDouble &&
         type != at::autocast::get_autocast_dtype(device);
}

c10::DeviceType device_of(c10::ArrayRef<const c10::IValue> arguments) {
  for (const c10::IValue& argument : arguments) {
    if (argument.isTensor() && argument.toTensor().defined() && argument.toTensor().dim() > 0) {
      return argument.toTensor().device().type();
    }
  }
  return c10::DeviceType::CPU;
}

at::Tensor shared(const at::Tensor& tensor) {
  at::Tensor made(tensor.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), false));
  if (tensor.requires_grad()) made.set_requires_grad(true);
  return made;
}

// With its strides and offset, for results are laid out like their operands.
at::Tensor copied(const at::Tensor& tensor) {
  const auto guard = kernels_only();
  const at::DisableRecordFunctionGuard unobserved;
  const auto elements = static_cast<int64_t>(tensor.storage().nbytes() / tensor.element_size());
  const at::Tensor whole = at::as_strided(tensor, {elements}, {1}, 0);
  at::Tensor copy = at::as_strided(at::clone(whole), tensor.sizes(), tensor.strides(), tensor.storage_offset());
  if (tensor.unsafeGetTensorImpl()->is_wrapped_number()) copy.unsafeGetTensorImpl()->set_wrapped_number(true);
  if (tensor.requires_grad()) copy.set_requires_grad(true);
  return copy;
}

// What autograd saves of an op that is run again is nobody's.
class NoHooks {
 public:
  NoHooks() { at::SavedTensorDefaultHooks::set_tls_state({}); }
  ~NoHooks() { at::SavedTensorDefaultHooks::set_tls_state(hooks_); }
  NoHooks(const NoHooks&) = delete;
  NoHooks& operator=(const NoHooks&) = delete;

 private:
  const at::impl::SavedTensorDefaultHooksTLS hooks_ = at::SavedTensorDefaultHooks::get_tls_state();
};

// Casts of weights that autocast keeps would be found by what is no op of the program.
class NoCastsKept {
 public:
  NoCastsKept() { at::autocast::set_autocast_cache_enabled(false); }
  ~NoCastsKept() { at::autocast::set_autocast_cache_enabled(kept_); }
  NoCastsKept(const NoCastsKept&) = delete;
  NoCastsKept& operator=(const NoCastsKept&) = delete;

 private:
  const bool kept_ = at::autocast::is_autocast_cache_enabled();
};

constexpr std::array kProductBackends = {Float32Backend::CUDA, Float32Backend::MKLDNN};

std::array<Precision, kProductBackends.size()> products_of_now() {
  return {precision_of(kProductBackends[0], Float32Op::MATMUL), precision_of(kProductBackends[1], Float32Op::MATMUL)};
}

// Held by those that run recipes: alone where these change settings of the process, else by several.
std::shared_mutex turns;

}  // namespace

Surroundings::Surroundings(c10::DeviceType device) : device_(device), default_dtype_(c10::get_default_dtype()) {
  static_assert(kSettings.size() <= kMost);
  for (size_t i = 0; i < kSettings.size(); ++i) values_[i] = kSettings[i].get(device);
  products_ = products_of_now();
  std::fegetenv(&floating_point_);
}

void Surroundings::restore(const Surroundings* then) const {
  for (size_t i = 0; i < kSettings.size(); ++i) {
    const int64_t now = kSettings[i].get(device_);
    const bool ours = then == nullptr || i < kOfThread || now == then->values_[i];
    if (now != values_[i] && ours) kSettings[i].set(device_, values_[i]);
  }
  const caffe2::TypeMeta dtype = c10::get_default_dtype();
  if (dtype != default_dtype_ && (then == nullptr || dtype == then->default_dtype_)) c10::set_default_dtype(default_dtype_);
  std::fesetenv(&floating_point_);
}

bool Surroundings::are_of_process() const {
  for (size_t i = kOfThread; i < kSettings.size(); ++i) {
    if (kSettings[i].get(device_) != values_[i]) return false;
  }
  return c10::get_default_dtype() == default_dtype_ && products_of_now() == products_;
}

thread_local Surroundings::Scope* Surroundings::Scope::innermost_ = nullptr;

Surroundings::Scope::Scope(const Surroundings& then) : then_(then) {
  if (outer_ != nullptr) outer_->leave();
  try {
    enter();
  } catch (...) {
    if (outer_ != nullptr) outer_->enter();
    throw;
  }
  innermost_ = this;
}

Surroundings::Scope::~Scope() {
  leave();
  innermost_ = outer_;
  if (outer_ != nullptr) outer_->enter();
}

void Surroundings::Scope::enter() {
  turns.lock_shared();
  alone_ = !then_.are_of_process();
  if (alone_) {
    turns.unlock_shared();
    turns.lock();
  }
  here_.emplace(then_.device_);
  try {
    then_.restore();
    for (size_t i = 0; i < kProductBackends.size(); ++i) {
      if (here_->products_[i] == then_.products_[i]) continue;
      precisions_.emplace_back(std::make_unique<ProductPrecision>(kProductBackends[i]))->set(then_.products_[i]);
    }
  } catch (...) {
    leave();
    throw;
  }
}

void Surroundings::Scope::leave() {
  here_->restore(&then_);
  precisions_.clear();
  alone_ ? turns.unlock() : turns.unlock_shared();
}

Surroundings::Scope::Pause::Pause() {
  if (innermost_ != nullptr) innermost_->leave();
}

Surroundings::Scope::Pause::~Pause() {
  if (innermost_ != nullptr) innermost_->enter();
}

bool Recipe::possible(const c10::OperatorHandle& op) {
  const c10::FunctionSchema& schema = op.schema();
  if (op.operator_name().getNamespace() != "aten") return false;  // other people's tags may say too much
  if (schema.returns().size() != 1 || schema.returns()[0].type()->kind() != c10::TypeKind::TensorType) return false;
  const auto& arguments = schema.arguments();
  const bool writes = std::any_of(arguments.begin(), arguments.end(), [](const c10::Argument& argument) {
    return argument.alias_info() != nullptr && argument.alias_info()->isWrite();
  });
  if (writes) return false;
  if (is_one_of(kProducts, schema)) return true;
  if (tagged(op, at::Tag::nondeterministic_seeded)) return false;
  return tagged(op, at::Tag::pointwise) || is_one_of(kOthers, schema);
}

std::unique_ptr<Recipe> Recipe::of(const c10::OperatorHandle& op, c10::ArrayRef<const c10::IValue> arguments,
                                   Block* (*block_of)(c10::StorageImpl*)) {
  if (!nothing_special() || draws_numbers(op.schema(), arguments)) return nullptr;
  std::unique_ptr<Recipe> recipe(new Recipe(op, device_of(arguments)));
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
    if (!is_plain(tensor)) return nullptr;
    if (is_cast(op, tensor)) ++recipe->casts_;
    if (const Block* block = block_of(tensor.storage().unsafeGetStorageImpl())) {
      recipe->operands_.push_back(block->id);
      recipe->arguments_.emplace_back(shared(tensor));
    } else if (tensor.storage().nbytes() < Engine::instance().min_block()) {
      recipe->copies_.push_back(copied(tensor));
      recipe->arguments_.emplace_back(recipe->copies_.back());
    } else {
      return nullptr;  // whoever else has this memory may write to it unseen
    }
  }
  return recipe;
}

at::Tensor Recipe::run() const {
  // What is made in inference mode could not be saved for the backward pass.
  std::optional<c10::InferenceMode> as_in_training;
  if (c10::InferenceMode::is_enabled()) as_in_training.emplace(false);
  const c10::impl::ForceDispatchKeyGuard dispatched_as_then(dispatch_);
  const NoCastsKept no_casts_kept;
  const NoHooks no_hooks;
  std::vector<c10::IValue> stack = arguments_;
  const Surroundings::Scope as_then(surroundings_);
  op_.callBoxed(stack);
  // Without what autograd has recorded.
  const at::Tensor& result = stack.at(0).toTensor();
  return at::Tensor(result.unsafeGetTensorImpl()->shallow_copy_and_detach(c10::VariableVersion(0), false));
}

}  // namespace teraio

#include "shapes.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/DefaultDtype.h>

#include <optional>
#include <string>
#include <unordered_map>

namespace sim {
namespace {

// A program repeats its ops, and most kernels of the meta device are slow, for they are written in Python.
constexpr size_t kMostKnown = 1 << 14;

at::Tensor as_meta(const at::Tensor& tensor) {
  // A single number of the CPU takes part in type promotion in another way than a tensor of the device.
  if (!tensor.defined() || (on_cpu(tensor) && tensor.dim() == 0)) return tensor;
  return at::Tensor(at::detail::empty_strided_meta(tensor.sizes(), tensor.strides(), tensor.scalar_type()));
}

// All that the shapes of an op's results depend on, as bytes.
class Key {
 public:
  Key(const c10::OperatorHandle& op, const Values& arguments) {
    add(&op.schema());
    add(c10::get_default_dtype().id());
    const bool fractions = fractions_matter(op.schema(), arguments);
    for (const IValue& argument : arguments) add_value(argument, fractions);
  }
  // Nothing if there are values whose kind is not known here.
  const std::optional<std::string>& bytes() const { return bytes_; }

 private:
  // Optimizers pass another step size each time to ops that write their operands, whose shapes don't depend on it;
  // in ranges, which have no operands, they do.
  static bool fractions_matter(const c10::FunctionSchema& schema, const Values& arguments) {
    bool writes = false;
    bool reads = false;
    for (size_t i = 0; i < arguments.size(); ++i) {
      const bool written = is_written(schema.arguments()[i]);
      writes = writes || written;
      reads = reads || (!written && (arguments[i].isTensor() || arguments[i].isTensorList()));
    }
    return !(writes && reads);
  }

  template <class Plain>
  void add(const Plain& plain) {
    if (bytes_) bytes_->append(reinterpret_cast<const char*>(&plain), sizeof plain);
  }

  void add_text(const std::string& text) {
    add(text.size());
    if (bytes_) bytes_->append(text);
  }

  void add_numbers(at::IntArrayRef numbers) {
    add(numbers.size());
    for (const int64_t number : numbers) add(number);
  }

  void add_tensor(const at::Tensor& tensor) {
    add(tensor.defined());
    if (!tensor.defined()) return;
    add(tensor.scalar_type());
    add(tensor.device());
    add(tensor.unsafeGetTensorImpl()->is_wrapped_number());
    add_numbers(tensor.sizes());
    add_numbers(tensor.strides());
  }

  void add_value(const IValue& value, bool fractions) {
    add_text(value.tagKind());
    if (value.isTensor()) {
      add_tensor(value.toTensor());
    } else if (value.isList()) {
      add(value.toListRef().size());
      for (const IValue& element : value.toListRef()) add_value(element, fractions);
    } else if (value.isInt()) {
      add(value.toInt());
    } else if (value.isBool()) {
      add(value.toBool());
    } else if (value.isDevice()) {
      add(value.toDevice());
    } else if (value.isString()) {
      add_text(value.toStringRef());
    } else if (value.isDouble()) {
      if (fractions) add(value.toDouble());
    } else if (!value.isNone() && !value.isGenerator()) {
      bytes_.reset();
    }
  }

  std::optional<std::string> bytes_ = std::string();
};

std::shared_ptr<const Shapes> run_on_meta(const c10::OperatorHandle& op, const Values& arguments) {
  const auto& schema = op.schema();
  Values operands = with_tensors(arguments, c10::DeviceType::Meta, as_meta);
  for (size_t i = 0; i < operands.size(); ++i) {
    if (takes_generator(schema.arguments()[i])) operands[i] = IValue();
  }
  auto shapes = std::make_shared<Shapes>();
  try {
    shapes->results = results_of(op, operands);
  } catch (const c10::NotImplementedError&) {
    return nullptr;
  }
  for (size_t i = 0; i < operands.size(); ++i) {
    const bool out = is_written(schema.arguments()[i]) && operands[i].isTensor() && operands[i].toTensor().defined();
    if (out) shapes->outs.emplace_back(i, operands[i].toTensor());
  }
  return shapes;
}

}  // namespace

std::shared_ptr<const Shapes> shapes_of(const c10::OperatorHandle& op, const Values& arguments) {
  static thread_local std::unordered_map<std::string, std::shared_ptr<const Shapes>> known;
  const Key key(op, arguments);
  if (!key.bytes()) return run_on_meta(op, arguments);
  if (const auto found = known.find(*key.bytes()); found != known.end()) return found->second;
  if (known.size() >= kMostKnown) known.clear();
  return known[*key.bytes()] = run_on_meta(op, arguments);
}

}  // namespace sim

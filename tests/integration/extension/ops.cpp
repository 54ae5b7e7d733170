// Ops as extensions have them, whose schemas don't say that they write an operand, and a function that is no op.
#include <ATen/ATen.h>
#include <torch/library.h>

namespace {

void fill(at::Tensor x, double value) {
  auto* values = x.data_ptr<float>();
  std::fill(values, values + x.numel(), static_cast<float>(value));
}

at::Tensor add_into(at::Tensor from, std::optional<at::Tensor> into) {
  at::Tensor sum = into ? *into : at::zeros_like(from);
  auto* values = sum.data_ptr<float>();
  const auto* others = from.const_data_ptr<float>();
  for (int64_t i = 0; i < sum.numel(); ++i) values[i] += others[i];
  return sum;
}

at::Tensor checked(at::Tensor x) {
  TORCH_CHECK(x.const_data_ptr<float>()[0] >= 0, "negative");
  return x;
}

}  // namespace

// As functions have it that are no ops at all.
extern "C" void write_unseen(c10::StorageImpl* storage, float value) {
  auto* values = static_cast<float*>(storage->mutable_data());
  std::fill(values, values + storage->nbytes() / sizeof(float), value);
}

TORCH_LIBRARY(teraio_extension, library) {
  library.def("inferred_fill", &fill);
  library.def("inferred_add_into", &add_into);
  library.def("fill(Tensor x, float value) -> ()", &fill);
  library.def("checked(Tensor(a) x) -> Tensor(a)", &checked);
}

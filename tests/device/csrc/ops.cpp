#include "ops.h"

#include <ATen/EmptyTensor.h>
#include <ATen/ExpandUtils.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/native/Resize.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/set_native.h>
#include <ATen/ops/unfold_native.h>
#include <ATen/ops/view_as_complex_native.h>
#include <ATen/ops/view_as_real_native.h>
#include <ATen/ops/view_native.h>
#include <ATen/record_function.h>
#include <torch/library.h>

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <optional>
#include <utility>
#include <vector>

#include "allocator.h"
#include "device.h"
#include "kernel.h"

namespace sim {
namespace {

constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

void check_layout(std::optional<c10::Layout> layout, std::optional<bool> pinned) {
  TORCH_CHECK(c10::layout_or_default(layout) == c10::Layout::Strided, "the sim device has dense tensors only");
  TORCH_CHECK(!c10::pinned_memory_or_default(pinned), "only tensors of the CPU can be pinned");
}

at::Tensor empty(at::IntArrayRef size, std::optional<c10::ScalarType> dtype, std::optional<c10::Layout> layout,
                 std::optional<c10::Device> /*device*/, std::optional<bool> pinned,
                 std::optional<c10::MemoryFormat> format) {
  check_layout(layout, pinned);
  return at::Tensor(at::detail::empty_generic(size, &allocator(), kKeys, c10::dtype_or_default(dtype), format));
}

at::Tensor empty_strided(at::IntArrayRef size, at::IntArrayRef stride, std::optional<c10::ScalarType> dtype,
                         std::optional<c10::Layout> layout, std::optional<c10::Device> /*device*/,
                         std::optional<bool> pinned) {
  check_layout(layout, pinned);
  return at::Tensor(
      at::detail::empty_strided_generic(size, stride, &allocator(), kKeys, c10::dtype_or_default(dtype)));
}

const at::Tensor& resize_(const at::Tensor& self, at::IntArrayRef size, std::optional<c10::MemoryFormat> format) {
  c10::TensorImpl* tensor = self.unsafeGetTensorImpl();
  const auto offset = static_cast<size_t>(self.storage_offset());
  const size_t nbytes = at::detail::computeStorageNbytesContiguous(size, self.element_size(), offset);
  if (self.storage().nbytes() < nbytes) resize_bytes(*self.storage().unsafeGetStorageImpl(), nbytes);
  tensor->set_sizes_contiguous(size);
  if (format) tensor->empty_tensor_restride(*format);
  return self;
}

at::Tensor& set_to_part_of_storage(at::Tensor& self, at::Storage source, int64_t offset, at::IntArrayRef size,
                                   at::IntArrayRef stride) {
  at::native::checkSetStorage(self, std::move(source), offset, size, stride);
  c10::TensorImpl* tensor = self.unsafeGetTensorImpl();
  tensor->set_storage_offset(offset);
  if (stride.data() == nullptr) {
    tensor->set_sizes_contiguous(size);
  } else {
    tensor->set_sizes_and_strides(size, stride);
  }
  const auto nbytes = at::detail::computeStorageNbytes(size, self.strides(), self.element_size(),
                                                       static_cast<size_t>(offset));
  TORCH_CHECK(nbytes <= self.storage().nbytes(), "set_: ", nbytes, " bytes are wanted of a storage of ",
              self.storage().nbytes());
  return self;
}

at::Tensor& set_to_nothing(at::Tensor& self) {
  at::Storage storage(c10::Storage::use_byte_size_t(), 0, allocator().allocate(0), &allocator(), /*resizable=*/true);
  return set_to_part_of_storage(self, std::move(storage), 0, {0}, {});
}

// What the CPU's copy kernel reads or writes; the other device's memory by its address.
at::Tensor as_host(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor;
  at::Tensor host = as_cpu(tensor);
  host._set_conj(tensor.is_conj());
  host._set_neg(tensor.is_neg());
  return host;
}

// [Note: copies and the host]
// As on hardware: a copy between the device and pinned memory that need not block runs when its turn comes, and the
// program must leave the pinned memory alone until then. From memory that is not pinned the data is read at once;
// into such memory every copy blocks.
at::Tensor copy_from(const at::Tensor& source, const at::Tensor& target, bool non_blocking) {
  const at::DisableRecordFunctionGuard unobserved;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  TORCH_CHECK(at::is_expandable_to(source.sizes(), target.sizes()), "copy_: a tensor of ", source.sizes(),
              " does not fit into one of ", target.sizes());
  const bool from_host = source.is_cpu();
  const bool to_host = target.is_cpu();
  TORCH_CHECK((from_host || source.device() == device()) && (to_host || target.device() == device()),
              "copy_: no copies from ", source.device(), " to ", target.device());
  const bool pinned = !(from_host || to_host) || is_pinned((from_host ? source : target).storage().data());
  const bool blocks = (from_host || to_host) && !(non_blocking && (pinned || from_host));
  at::Tensor from = as_host(source);
  if (from_host && !pinned && !blocks) from = from.clone();
  launch([from = std::move(from), to = as_host(target)] { to.copy_(from); });
  if (blocks) synchronize();
  return target;
}

at::Tensor copy_from_and_resize(const at::Tensor& source, const at::Tensor& target) {
  target.resize_(source.sizes());
  return copy_from(source, target, /*non_blocking=*/false);
}

at::Scalar local_scalar(const at::Tensor& self) {
  const at::DisableRecordFunctionGuard unobserved;
  synchronize();
  return as_cpu(self).item();
}

void record_stream(at::Tensor& self, c10::Stream stream) { allocator().recordStream(self.storage().data_ptr(), stream); }

// Convolutions of devices that PyTorch knows nothing of go through ops of their own.
void launch_convolution(const c10::OperatorHandle& /*op*/, torch::jit::Stack* stack) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", "");
  launch_op(op, stack);
}

void launch_convolution_backward(const c10::OperatorHandle& overridable, torch::jit::Stack* stack) {
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution_backward", "");
  const auto first = stack->end() - static_cast<std::ptrdiff_t>(overridable.schema().arguments().size());
  const std::vector<int64_t> bias_size = {first->toTensor().size(1)};  // the gradient's channels
  stack->insert(first + 3, c10::IValue(bias_size));
  launch_op(op, stack);
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("resize_", &resize_);
  m.impl("set_", &set_to_nothing);
  m.impl("set_.source_Tensor", static_cast<at::Tensor& (*)(at::Tensor&, const at::Tensor&)>(&at::native::set_tensor_));
  m.impl("set_.source_Storage", static_cast<at::Tensor& (*)(at::Tensor&, at::Storage)>(&at::native::set_));
  m.impl("set_.source_Storage_storage_offset", &set_to_part_of_storage);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("_local_scalar_dense", &local_scalar);
  m.impl("record_stream", &record_stream);
  m.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&launch_convolution>());
  m.impl("convolution_backward_overrideable",
         torch::CppFunction::makeFromBoxedFunction<&launch_convolution_backward>());

  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("unfold", &at::native::unfold);
  m.impl("view_as_real", &at::native::view_as_real);
  m.impl("view_as_complex", &at::native::view_as_complex);
}

// Conjugated and negated views are resolved by copying them, so a copy has to take them as they are.
TORCH_LIBRARY_IMPL(aten, Conjugate, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }
TORCH_LIBRARY_IMPL(aten, Negative, m) { m.impl("_copy_from", torch::CppFunction::makeFallthrough()); }

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) { m.fallback(torch::CppFunction::makeFromBoxedFunction<&launch_op>()); }

// [Note: the CPU's own kernels]
// Some ops have a kernel of the CPU's own and are made of other ops everywhere else, which gives other bits. So that
// the results are the CPU's, such ops are kernels here too.
TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  for (const c10::OperatorName& name : c10::Dispatcher::singleton().getAllOpNames()) {
    const auto op = c10::Dispatcher::singleton().findOp(name);
    const auto has = [&](c10::DispatchKey key) { return op && op->hasKernelForDispatchKey(key); };
    const bool composite =
        has(c10::DispatchKey::CompositeExplicitAutograd) || has(c10::DispatchKey::CompositeImplicitAutograd);
    if (name.getNamespace() == "aten" && has(c10::DispatchKey::CPU) && composite) {
      m.impl(c10::toString(name).c_str(), torch::CppFunction::makeFromBoxedFunction<&launch_op>());
    }
  }
}

}  // namespace

void resize_bytes(c10::StorageImpl& storage, size_t nbytes) {
  TORCH_CHECK(storage.resizable(), "a storage of the sim device that is not resizable can't be resized");
  c10::DataPtr data = allocator().allocate(nbytes);
  if (const size_t kept = std::min(storage.nbytes(), nbytes); kept > 0) {
    launch([to = data.get(), from = storage.data(), kept] { std::memcpy(to, from, kept); });
  }
  storage.set_data_ptr_noswap(std::move(data));
  storage.set_nbytes(nbytes);
}

}  // namespace sim

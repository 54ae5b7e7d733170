#include "device.h"

#include <ATen/ATen.h>
#include <ATen/RedispatchFunctions.h>
#include <ATen/record_function.h>
#include <c10/core/StreamGuard.h>
#include <c10/util/Registry.h>
#include <dlfcn.h>

#include <memory>
#include <string>
#include <unordered_map>
#include <vector>

namespace teraio {
namespace {

at::Tensor bytes_at(char* memory, size_t nbytes, c10::Device device) {
  return at::for_blob(memory, {static_cast<int64_t>(nbytes)})
      .options(at::TensorOptions().dtype(at::kByte).device(device))
      .target_device(device)
      .make_tensor();
}

// [Note: work of our own]
// It must pass by everything that watches or changes a program's ops: observers (us above all), autograd, modes
// written in Python. So it goes straight to the device's kernels.
c10::DispatchKeySet kernels_of(c10::Device device) {
  return c10::DispatchKeySet(c10::computeDispatchKey(at::kByte, at::kStrided, device));
}

void copy(const at::Tensor& to, const at::Tensor& from, c10::Stream stream) {
  const at::DisableRecordFunctionGuard unseen;
  const c10::StreamGuard on(stream);
  at::Tensor target = to;
  at::redispatch::copy_(kernels_of(stream.device()), target, from, /*non_blocking=*/true);
}

constexpr size_t kLeastRequest = 512;

size_t aggregate() { return static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE); }

}  // namespace

Accelerator::Accelerator(c10::Device device)
    : device_(device), guard_(device.type()), allocator_(c10::getDeviceAllocator(device.type())) {}

at::DataPtr Accelerator::allocate(size_t nbytes) const {
  const c10::DeviceGuard on(device_);
  return allocator_->allocate(nbytes);
}

bool Accelerator::can_allocate(size_t nbytes) const {
  try {
    allocate(nbytes);
    return true;
  } catch (const c10::OutOfMemoryError&) {
    return false;
  }
}

bool Accelerator::can_allocate_up_to(size_t nbytes) const {
  // Allocators keep small requests apart from larger ones, and the largest small one is a power of two.
  std::vector<size_t> sizes{nbytes};
  for (size_t size = kLeastRequest; size < nbytes; size *= 2) sizes.insert(sizes.begin() + 1, size);
  for (const size_t size : sizes) {
    if (!can_allocate(size)) return false;
  }
  // For one size the allocator may have given up what it had for another. Then it does so again.
  const int64_t reserved = allocated().reserved;
  for (const size_t size : sizes) {
    if (!can_allocate(size) || allocated().reserved != reserved) return false;
  }
  return true;
}

void Accelerator::keep_until_done(const at::DataPtr& memory, c10::Stream stream) const {
  allocator_->recordStream(memory, stream);
}

Accelerator::Allocated Accelerator::allocated() const {
  const auto stats = allocator_->getDeviceStats(device_.index());
  const auto& bytes = stats.allocated_bytes[aggregate()];
  return {bytes.current, bytes.peak, stats.reserved_bytes[aggregate()].current};
}

c10::Event Accelerator::event(c10::Stream stream, bool timed) const {
  c10::Event event(device_.type(), timed ? c10::EventFlag::BACKEND_DEFAULT : c10::EventFlag::PYTORCH_DEFAULT);
  event.record(stream);
  return event;
}

void Accelerator::wait_for(const std::vector<c10::Event>& events) {
  for (const c10::Event& event : events) event.synchronize();
}

void Accelerator::copy_out(char* host, const char* memory, size_t nbytes, c10::Stream stream) const {
  copy(bytes_at(host, nbytes, c10::kCPU), bytes_at(const_cast<char*>(memory), nbytes, device_), stream);
}

void Accelerator::copy_in(char* memory, const char* host, size_t nbytes, c10::Stream stream) const {
  copy(bytes_at(memory, nbytes, device_), bytes_at(const_cast<char*>(host), nbytes, c10::kCPU), stream);
}

void Accelerator::poison(char* memory, size_t nbytes, c10::Stream stream) const {
  const at::DisableRecordFunctionGuard unseen;
  const c10::StreamGuard on(stream);
  at::Tensor target = bytes_at(memory, nbytes, device_);
  at::redispatch::fill_(kernels_of(device_), target, 0xFF);
}

const Accelerator* accelerator_of(const std::string& device) {
  static auto* known = new std::unordered_map<std::string, std::unique_ptr<Accelerator>>;
  auto& accelerator = (*known)[device];
  if (accelerator == nullptr) accelerator = std::make_unique<Accelerator>(c10::Device(device));
  return accelerator.get();
}

// ---------------------------------------------------------------- CUDA's callback

namespace {

bool (*free_memory_function)() = nullptr;

// The interface of c10/cuda/CUDACachingAllocator.h, whose headers need a CUDA toolkit. The registry is a template of
// c10 that an exported function of libc10_cuda hands out, so its name is all that has to be known.
class FreeMemoryCallback {
 public:
  virtual ~FreeMemoryCallback() = default;
  virtual bool Execute() = 0;
};

class FreeMemory final : public FreeMemoryCallback {
 public:
  bool Execute() override { return free_memory_function != nullptr && free_memory_function(); }
};

using CallbackRegistry = c10::Registry<std::string, std::unique_ptr<FreeMemoryCallback>>;
constexpr const char* kLibrary = "libc10_cuda.so";
constexpr const char* kRegistryFunction = "_ZN3c1031FreeCudaMemoryCallbacksRegistryB5cxx11Ev";

}  // namespace

bool install_free_memory_callback(bool (*free_memory)()) {
  // Python loads PyTorch's libraries without making their names known to others.
  void* library = ::dlopen(kLibrary, RTLD_LAZY | RTLD_NOLOAD);
  if (library == nullptr) return false;
  auto* registry = reinterpret_cast<CallbackRegistry* (*)()>(::dlsym(library, kRegistryFunction));
  if (registry == nullptr) return false;
  free_memory_function = free_memory;
  if (!registry()->Has("teraio")) registry()->Register("teraio", [] { return std::make_unique<FreeMemory>(); });
  return true;
}

}  // namespace teraio

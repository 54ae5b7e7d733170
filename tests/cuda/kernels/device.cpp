// CUDA's double as a device of kernels: its streams through CUDA's runtime, its memory and seeds through PyTorch.
#include "device.h"

#include <ATen/cuda/CUDAGeneratorImpl.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/Parallel.h>
#include <ATen/record_function.h>
#include <c10/core/GradMode.h>
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAStream.h>
#include <c10/util/Exception.h>

#include <exception>
#include <memory>
#include <mutex>
#include <utility>

extern "C" void* cuda_double_view(const void* address);

namespace sim {
namespace {

std::mutex error_mutex;
std::exception_ptr first_error;

void raise_what_kernels_threw() {
  const std::lock_guard<std::mutex> lock(error_mutex);
  if (auto error = std::exchange(first_error, nullptr)) std::rethrow_exception(error);
}

// What there is to warn of was said when the op was issued.
struct Silence final : c10::WarningHandler {
  void process(const c10::Warning& /*warning*/) override {}
};

void run(void* data) {
  const std::unique_ptr<Work> kernel(static_cast<Work*>(data));
  // Kernels are no ops of the program: observers must not see what they call, nor autograd record it.
  const at::DisableRecordFunctionGuard unobserved;
  const at::AutoDispatchBelowADInplaceOrView below_autograd;
  const c10::AutoGradMode no_grad(false);
  Silence silence;
  const c10::WarningUtils::WarningHandlerGuard silent(&silence);
  try {
    at::init_num_threads();  // as many as the program has set by now
    (*kernel)();
  } catch (...) {
    const std::lock_guard<std::mutex> lock(error_mutex);
    if (!first_error) first_error = std::current_exception();
  }
}

}  // namespace

void launch(Work kernel) {
  raise_what_kernels_threw();
  C10_CUDA_CHECK(cudaLaunchHostFunc(c10::cuda::getCurrentCUDAStream(), &run, new Work(std::move(kernel))));
}

void synchronize() {
  c10::cuda::getCurrentCUDAStream().synchronize();
  raise_what_kernels_threw();
}

c10::Allocator& device_allocator() { return *c10::cuda::CUDACachingAllocator::get(); }

char* bytes_of(void* pointer) { return static_cast<char*>(cuda_double_view(pointer)); }

uint64_t draw_seed(const std::optional<at::Generator>& generator) {
  auto* source = at::get_generator_or_default<at::CUDAGeneratorImpl>(
      generator, at::cuda::detail::getDefaultCUDAGenerator());
  const std::lock_guard<std::mutex> lock(source->mutex_);
  const auto [seed, offset] = source->philox_engine_inputs(4);
  return seed * 0x9E3779B97F4A7C15U + offset;
}

}  // namespace sim

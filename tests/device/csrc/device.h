// What kernels need to know of the device whose ops they are: the simulated one, or the double of CUDA (tests/cuda).
//
// In: SIM_DEVICE_TYPE, as PyTorch names the backend. Out: its streams, memory and random numbers. Must not know: ops.
#pragma once

#include <ATen/core/Generator.h>
#include <c10/core/Allocator.h>
#include <c10/core/Device.h>
#include <c10/core/DispatchKey.h>

#include <cstdint>
#include <functional>
#include <optional>

#ifndef SIM_DEVICE_TYPE
#define SIM_DEVICE_TYPE PrivateUse1
#endif

namespace sim {

constexpr auto kDeviceType = c10::DeviceType::SIM_DEVICE_TYPE;
constexpr auto kDispatchKey = c10::DispatchKey::SIM_DEVICE_TYPE;
inline c10::Device device() { return {kDeviceType, 0}; }

using Work = std::function<void()>;

// On the calling thread's current stream; what it throws is raised by a later call of either.
void launch(Work kernel);
void synchronize();

c10::Allocator& device_allocator();
// Where the host finds the bytes of a device pointer.
char* bytes_of(void* pointer);

// The seed of the next kernel that draws numbers from `generator`, by default the device's.
// Errors: a generator of another device.
uint64_t draw_seed(const std::optional<at::Generator>& generator);

}  // namespace sim

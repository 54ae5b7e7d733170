// Ops as kernels: any op of PyTorch, run later by its CPU kernel on the memory of the simulated device.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace sim {

// The device memory of `tensor` as a tensor of the CPU. It holds no reference: what runs in stream order may use it,
// for until then the memory is not given to anybody else.
// Errors: what the storage raises if its data must not be accessed.
at::Tensor as_cpu(const at::Tensor& tensor);

// The boxed fallback of the backend.
void launch_op(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace sim

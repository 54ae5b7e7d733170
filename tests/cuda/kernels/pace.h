// Ops on a device that has a pace: the time that they take on a GPU, and the memory, but no arithmetic.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

namespace sim {

bool has_pace();

// In place of any op's kernel. Results hold whatever their memory holds.
// Errors: ops whose results' shapes the meta device can't tell, and the CPU has no kernel to ask.
void spend_time(const c10::OperatorHandle& op, torch::jit::Stack* stack);

}  // namespace sim

// How much memory an op's results will take, before it runs.
// In: an operator and its arguments. Out: bytes. Must not know: budgets, blocks, plans.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/ivalue.h>
#include <c10/core/Device.h>

#include <cstdint>

namespace teraio {

// Of the storages that the call makes on the device, as its kernel for meta tensors tells. 0 where there is no such
// kernel, where it depends on data, or where the operands are no plain tensors.
uint64_t result_bytes(const c10::OperatorHandle& op, c10::ArrayRef<const c10::IValue> arguments,
                      c10::DeviceType device);

}  // namespace teraio

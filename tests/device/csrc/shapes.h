// What the results of an op look like, found out without data.
#pragma once

#include <memory>
#include <utility>
#include <vector>

#include "values.h"

namespace sim {

struct Shapes {
  Values results;                                   // tensors of the meta device, undefined ones, or others' values
  std::vector<std::pair<size_t, at::Tensor>> outs;  // what arguments that are written have to look like, by number
};

// Null if the op has no kernel for the meta device. Errors: the op's own, for arguments that don't fit.
std::shared_ptr<const Shapes> shapes_of(const c10::OperatorHandle& op, const Values& arguments);

}  // namespace sim

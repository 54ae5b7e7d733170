// Random numbers of the simulated device: seeds drawn in the order in which ops are issued, one for each op's kernel.
#pragma once

#include <ATen/core/Generator.h>

namespace sim {

const at::Generator& default_generator();
at::Generator new_generator();

}  // namespace sim

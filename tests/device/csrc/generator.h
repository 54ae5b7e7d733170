// Random numbers of the simulated device: seeds drawn in the order in which ops are issued, one for each op's kernel.
#pragma once

#include <ATen/core/Generator.h>

#include <cstdint>
#include <optional>

namespace sim {

const at::Generator& default_generator();
at::Generator new_generator();

// The seed of the next kernel that draws numbers from `generator`, by default the default one.
// Errors: a generator of another device.
uint64_t draw_seed(const std::optional<at::Generator>& generator);

}  // namespace sim

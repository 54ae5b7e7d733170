// The Python class teraio._C.SpillSpace.
// In: a module. Out: the class in it. Must not know: how spilling works.
#pragma once
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <string>
#include <vector>

#include "spill.h"

namespace teraio {

// A spill space while Python sets it up. Then the engine takes it over, or it runs alone, to be tested.
class SpillHandle {
 public:
  SpillHandle();
  ~SpillHandle() { close(); }
  SpillHandle(const SpillHandle&) = delete;
  SpillHandle& operator=(const SpillHandle&) = delete;

  // Raises where the engine has it already.
  SpillSpace& space();
  std::unique_ptr<SpillSpace> take();
  // Lets move() be used. Without a `device` all memory of devices takes the path that was set for it.
  void start_alone(const std::vector<unsigned>& weights, uint64_t nbytes, const std::string& device);
  void move(Transfer& transfer);
  void close();

 private:
  std::shared_ptr<bool> alone_ = std::make_shared<bool>(false);
  std::unique_ptr<SpillSpace> space_;
};

void bind_spill_space(pybind11::module_& m);

}  // namespace teraio

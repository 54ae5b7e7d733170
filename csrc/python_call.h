// What calls into Python from I/O threads have in common.
// In: Python objects. Out: ones that any thread may drop, and errors in words. Must not know: what is called.
#pragma once
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <string>

namespace teraio {

// For an owner that goes on any thread, perhaps when there is no Python any more.
std::shared_ptr<pybind11::object> held(pybind11::object object);

// What an exception says, in one line. Needs the GIL.
std::string text_of(const pybind11::handle& exception);

}  // namespace teraio

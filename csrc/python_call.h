// What calls into Python from I/O threads have in common.
// In: Python objects. Out: ones that any thread may drop, and errors in words. Must not know: what is called.
#pragma once
#include <torch/csrc/utils/pybind.h>

#include <memory>
#include <string>

namespace teraio {

// Holds the GIL. The thread, if it is none of Python's, keeps the state that Python has of it until it ends, see
// [Note: Python on I/O threads].
class __attribute__((visibility("hidden"))) InPython {  // as pybind11's own classes are
 private:
  struct Enrolled {
    Enrolled();
  };
  Enrolled thread_;
  pybind11::gil_scoped_acquire gil_;
};

// For an owner that goes on any thread, perhaps when there is no Python any more.
std::shared_ptr<pybind11::object> held(pybind11::object object);

// What an exception says, in one line. Needs the GIL.
std::string text_of(const pybind11::handle& exception);

}  // namespace teraio

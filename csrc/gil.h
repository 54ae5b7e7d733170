// Gives up Python's global lock where the thread has it, and takes it back at the end of the scope.
// Declare it before the engine's lock: the GIL must be taken back only after that lock is given up.
#pragma once
#include <Python.h>

namespace teraio {

class GilRelease {
 public:
  GilRelease() : state_(Py_IsInitialized() && PyGILState_Check() ? PyEval_SaveThread() : nullptr) {}
  ~GilRelease() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

 private:
  PyThreadState* state_;
};

}  // namespace teraio

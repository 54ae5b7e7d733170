// Gives up Python's global lock where the thread has it, and takes it back at the end of the scope.
// Declare it before the engine's lock: the GIL must be taken back only after that lock is given up.
#pragma once
#include <Python.h>

#include <mutex>

namespace teraio {

// Whether Python has run, or runs, on this thread.
inline bool on_python_thread() { return PyGILState_GetThisThreadState() != nullptr; }

class GilRelease {
 public:
  GilRelease() { release(); }
  // Not yet; release() does.
  explicit GilRelease(std::defer_lock_t) {}
  ~GilRelease() {
    if (state_ != nullptr) PyEval_RestoreThread(state_);
  }
  GilRelease(const GilRelease&) = delete;
  GilRelease& operator=(const GilRelease&) = delete;

  void release() {
    if (state_ == nullptr && Py_IsInitialized() && PyGILState_Check()) state_ = PyEval_SaveThread();
  }

 private:
  PyThreadState* state_ = nullptr;
};

}  // namespace teraio

#include "python_call.h"

#include <utility>

#include "gil.h"

namespace py = pybind11;

namespace teraio {
namespace {

// [Note: Python on I/O threads]
// Python has a list of its threads, with a lock of its own. A fork may find it taken by another thread that enrolls or
// leaves, and the child of CPython 3.11 then waits for it for ever. So a thread does that once, and not for each call,
// which takes longer as well.
class ThreadState {
 public:
  ThreadState() {
    if (on_python_thread()) return;
    PyGILState_Ensure();
    state_ = PyEval_SaveThread();
  }
  ~ThreadState() {
    if (state_ == nullptr || !Py_IsInitialized()) return;
    PyEval_RestoreThread(state_);
    PyGILState_Release(PyGILState_UNLOCKED);
  }
  ThreadState(const ThreadState&) = delete;
  ThreadState& operator=(const ThreadState&) = delete;

 private:
  PyThreadState* state_ = nullptr;
};

}  // namespace

InPython::Enrolled::Enrolled() { static thread_local const ThreadState state; }

std::shared_ptr<py::object> held(py::object object) {
  return {new py::object(std::move(object)), [](py::object* mine) {
            if (!Py_IsInitialized()) return;
            const py::gil_scoped_acquire gil;
            delete mine;
          }};
}

std::string text_of(const py::handle& value) {
  try {
    const py::object words = py::getattr(value, "strerror", py::none());
    if (py::isinstance<py::str>(words)) return words.cast<std::string>();
    return py::str(py::type::handle_of(value).attr("__name__")).cast<std::string>() + ": " + py::str(value).cast<std::string>();
  } catch (const py::error_already_set&) {
    return "an error that can't be put into words";
  } catch (const py::cast_error&) {
    return "an error that can't be put into words";
  }
}

}  // namespace teraio

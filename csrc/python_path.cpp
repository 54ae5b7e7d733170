#include "python_path.h"

#include <cerrno>
#include <string>
#include <utility>

#include "python_call.h"

namespace py = pybind11;

namespace teraio {
namespace {

constexpr size_t kMiB = size_t{1} << 20;

// [Note: requests of a Python path]
// The GIL is held for the call alone, but it must be had: a thread that computes in pure Python gives it up only
// after the switch interval (5 ms), and a path that lets go of it while the drive works takes it back two or three
// times for each request. At 10 GB/s, 5 ms are 50 MB. So requests are as large as the file is contiguous, up to
// 64 MiB, and files are striped so coarsely that a run of one file is worth a call. PyTorch's ops let go of the GIL
// all the time, so the wait is microseconds in most training loops; with requests of this size even one that is
// busy in Python leaves most of the drive's speed.
constexpr size_t kRequest = 64 * kMiB;
constexpr size_t kStripeUnit = 16 * kMiB;

int errno_of(const py::handle& value) {
  if (PyObject_IsInstance(value.ptr(), PyExc_OSError) != 1) return EIO;
  const py::object number = py::getattr(value, "errno", py::none());
  const long error = PyLong_Check(number.ptr()) ? PyLong_AsLong(number.ptr()) : 0;
  PyErr_Clear();
  return error > 0 && error < 4096 ? static_cast<int>(error) : EIO;
}

Moved call(const py::object& callable, const Request& r) {
  const InPython python;
  try {
    const int device = r.device.is_cpu() ? -1 : r.device.index();
    const auto moved =
        callable(r.folder, r.write, reinterpret_cast<uintptr_t>(r.memory), device, r.nbytes, r.offset).cast<int64_t>();
    if (moved >= 0 && static_cast<uint64_t>(moved) <= r.nbytes) return {static_cast<size_t>(moved), 0, ""};
    return {0, EIO,
            "the path says that it moved " + std::to_string(moved) + " of " + std::to_string(r.nbytes) + " bytes"};
  } catch (const py::error_already_set& error) {
    return {0, errno_of(error.value()), text_of(error.value())};
  } catch (const py::cast_error&) {
    return {0, EIO, "the path gave no number of bytes"};
  }
}

}  // namespace

Path python_path(py::object callable) {
  return {[path = held(std::move(callable))](const Request& request) { return call(*path, request); }, kRequest,
          kStripeUnit};
}

}  // namespace teraio

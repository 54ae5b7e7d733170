#include "python_call.h"

#include <utility>

namespace py = pybind11;

namespace teraio {

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

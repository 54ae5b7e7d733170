#include "errors.h"

namespace teraio {

ErrorTypes& error_types() {
  static ErrorTypes types;
  return types;
}

namespace {
PyObject* or_runtime_error(PyObject* type) { return type != nullptr ? type : PyExc_RuntimeError; }
}  // namespace

PyObject* BudgetError::python_type() { return or_runtime_error(error_types().budget); }
PyObject* SpillError::python_type() { return or_runtime_error(error_types().spill); }

}  // namespace teraio

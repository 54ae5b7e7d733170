// Errors that reach Python with a type of their own.
// In: a message. Out: an exception that PyTorch's bindings turn into the Python class registered for it.
#pragma once
#include <Python.h>
#include <torch/csrc/Exceptions.h>

#include <string>

namespace teraio {

// Set once by the bindings; borrowed from the Python module teraio.errors for the life of the process.
struct ErrorTypes {
  PyObject* budget = nullptr;
  PyObject* spill = nullptr;
};
ErrorTypes& error_types();

struct BudgetError final : torch::PyTorchError {
  using PyTorchError::PyTorchError;
  PyObject* python_type() override;
};

struct SpillError final : torch::PyTorchError {
  using PyTorchError::PyTorchError;
  PyObject* python_type() override;
};

}  // namespace teraio

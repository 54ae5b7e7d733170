// A path written in Python.
// In: a callable. Out: a Path that calls it. Must not know: what it does.
#pragma once
#include <torch/csrc/utils/pybind.h>

#include "io_path.h"

namespace teraio {

// `callable(folder, write, address, device, nbytes, offset)` moves up to `nbytes` bytes between memory at `address`
// (`device` -1: host memory, else the index of a device) and the folder's file from `offset` on, and gives how many
// it moved. An OSError that it raises keeps its errno, anything else becomes EIO; both keep their text.
Path python_path(pybind11::object callable);

}  // namespace teraio

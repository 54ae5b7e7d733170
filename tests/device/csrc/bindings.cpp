// The Python side of the simulated device; tests/device/sim.py makes torch.sim of it.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>

#include "allocator.h"
#include "generator.h"
#include "stream.h"

namespace py = pybind11;

PYBIND11_MODULE(TORCH_EXTENSION_NAME, m) {
  using NoGil = py::call_guard<py::gil_scoped_release>;

  m.def("set_delay", &sim::set_delay, py::arg("max_us"));
  m.def("synchronize", &sim::synchronize_all, NoGil());
  m.def("idle", [](int64_t stream_id) { return sim::stream_of(stream_id).idle(); });
  m.def("pause", [](int64_t stream_id) { sim::stream_of(stream_id).pause(); });
  m.def("resume", [](int64_t stream_id) { sim::stream_of(stream_id).resume(); });

  m.def("allocated", [] { return sim::memory_counts().allocated; });
  m.def("peak", [] { return sim::memory_counts().peak; });
  m.def("reserved", [] { return sim::memory_counts().reserved; });
  m.def("get_memory_info", [] { return sim::allocator().getMemoryInfo(0); });
  m.def("reset_peak", &sim::reset_peak);
  m.def("empty_cache", [] { sim::allocator().emptyCache(); }, NoGil());
  m.def("set_memory_limit", &sim::set_memory_limit, py::arg("nbytes"));
  m.def(
      "set_free_memory_callback",
      [](uintptr_t address, bool every_miss) {
        sim::set_free_memory_callback(reinterpret_cast<sim::FreeMemoryCallback>(address), every_miss);
      },
      py::arg("address"), py::arg("every_miss"));
  m.def("host_register", [](uintptr_t address, size_t nbytes) { sim::pin(reinterpret_cast<void*>(address), nbytes); });
  m.def("host_unregister", [](uintptr_t address) { sim::unpin(reinterpret_cast<void*>(address)); });

  m.def("default_generator", &sim::default_generator);
}

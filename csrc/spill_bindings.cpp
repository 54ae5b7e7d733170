#include "spill_bindings.h"

#include <pybind11/stl.h>

#include <future>
#include <stdexcept>
#include <string>
#include <utility>

#include "engine.h"
#include "gil.h"
#include "pages.h"
#include "python_codec.h"
#include "python_path.h"

namespace py = pybind11;

namespace teraio {

SpillHandle::SpillHandle()
    : space_(std::make_unique<SpillSpace>([alone = alone_](Transfer* transfer) {
        if (*alone) {
          static_cast<std::promise<void>*>(transfer->user)->set_value();
        } else {
          Engine::instance().transfer_done(transfer);
        }
      })) {}

SpillSpace& SpillHandle::space() {
  if (!space_) throw std::logic_error("this spill space is closed, or the engine's");
  return *space_;
}

std::unique_ptr<SpillSpace> SpillHandle::take() {
  space();
  return std::move(space_);
}

void SpillHandle::start_alone(const std::vector<unsigned>& weights, uint64_t nbytes, const std::string& device) {
  *alone_ = true;
  space().start(weights, device.empty() ? nullptr : accelerator_of(device));
  space().reserve(nbytes);
}

void SpillHandle::move(Transfer& transfer) {
  if (!*alone_) throw std::logic_error("this spill space was not started alone");
  std::promise<void> done;
  transfer.user = &done;
  space().submit(&transfer, false);
  done.get_future().wait();
}

void SpillHandle::close() {
  const GilRelease gil;  // its threads may need it to end
  space_.reset();
}

namespace {

char* memory_at(uintptr_t address) { return reinterpret_cast<char*>(address); }

py::dict add_folder(SpillHandle& handle, const std::string& path) {
  SpillSpace& space = handle.space();
  const size_t folder = space.folders();
  {
    const py::gil_scoped_release no_gil;
    space.add_folder(path);
  }
  py::dict result;
  result["direct"] = space.direct(folder);
  result["fd"] = space.fd(folder);
  return result;
}

py::dict measure(SpillHandle& handle, size_t folder, size_t nbytes, const std::string& device, uintptr_t address,
                 size_t span, uintptr_t staging) {
  FolderSpeed speed;
  {
    const py::gil_scoped_release no_gil;
    speed = handle.space().measure(folder, nbytes, {memory_at(address), span, c10::Device(device), memory_at(staging)});
  }
  py::dict result;
  result["read_bytes_per_s"] = speed.read_bytes_per_s;
  result["write_bytes_per_s"] = speed.write_bytes_per_s;
  result["mixed_bytes_per_s"] = speed.mixed_bytes_per_s;
  result["latency_s"] = speed.latency_s;
  return result;
}

py::dict move(SpillHandle& handle, bool write, uintptr_t address, size_t nbytes, uint64_t offset,
              const std::string& device, bool natively) {
  Transfer transfer;
  transfer.direction = write ? Transfer::Direction::kWrite : Transfer::Direction::kRead;
  transfer.memory = memory_at(address);
  transfer.nbytes = nbytes;
  transfer.device = c10::Device(device);
  transfer.extent = {offset, round_up(nbytes, kPage)};
  transfer.natively = natively;
  {
    const py::gil_scoped_release no_gil;
    handle.move(transfer);
  }
  py::dict result;
  result["error"] = transfer.error;
  result["text"] = transfer.error_text;
  result["path"] = transfer.error_path;
  result["offset"] = transfer.error_offset;
  result["checksum"] = transfer.checksum;
  return result;
}

}  // namespace

void bind_spill_space(py::module_& m) {
  py::class_<PythonCodec, std::shared_ptr<PythonCodec>>(m, "Codec")
      .def(py::init<py::object, py::object>())
      .def("close", &PythonCodec::close);
  py::class_<SpillHandle>(m, "SpillSpace")
      .def(py::init<>())
      .def("add_folder", &add_folder)
      .def("measure", &measure, py::arg("folder"), py::arg("nbytes"), py::arg("device") = "cpu",
           py::arg("address") = 0, py::arg("span") = 0, py::arg("staging") = 0)
      .def("set_host_path",
           [](SpillHandle& handle, py::object callable) {
             handle.space().set_host_path(python_path(std::move(callable)));
           })
      .def("set_device_path",
           [](SpillHandle& handle, py::object callable, const std::vector<bool>& takes) {
             handle.space().set_device_path(python_path(std::move(callable)), takes);
           })
      .def("set_codec",
           [](SpillHandle& handle, PythonCodec& codec, const std::vector<uintptr_t>& buffers, size_t buffer_nbytes,
              size_t piece_nbytes) {
             std::vector<char*> memory;
             for (const uintptr_t address : buffers) memory.push_back(memory_at(address));
             handle.space().set_codec(codec.codec(std::move(memory), buffer_nbytes, piece_nbytes));
           })
      .def("encoding_threads", [](SpillHandle& handle) { return handle.space().encoding_threads(); })
      .def("forget_device_path", [](SpillHandle& handle) { handle.space().forget_device_path(); })
      .def("start_alone", &SpillHandle::start_alone, py::arg("weights"), py::arg("nbytes"), py::arg("device") = "",
           py::call_guard<py::gil_scoped_release>())
      .def("move", &move, py::arg("write"), py::arg("address"), py::arg("nbytes"), py::arg("offset"),
           py::arg("device") = "cpu", py::arg("natively") = false)
      .def("close", &SpillHandle::close);
}

}  // namespace teraio

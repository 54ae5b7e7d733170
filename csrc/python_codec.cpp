#include "python_codec.h"

#include <ATen/ATen.h>
#include <ATen/record_function.h>
#include <c10/core/StreamGuard.h>
#include <torch/csrc/autograd/python_variable.h>

#include <optional>
#include <stdexcept>
#include <utility>

#include "gil.h"
#include "python_call.h"

namespace py = pybind11;

namespace teraio {
namespace {

py::object tensor_at(char* memory, size_t nbytes, c10::ScalarType dtype, c10::Device device) {
  const auto count = static_cast<int64_t>(nbytes / c10::elementSize(dtype));
  return py::reinterpret_steal<py::object>(THPVariable_Wrap(at::for_blob(memory, {count})
                                                                .options(at::TensorOptions().dtype(dtype).device(device))
                                                                .target_device(device)
                                                                .make_tensor()));
}

// With the GIL, on the codec's stream, seen by no observer. Errors of Python become ones that need no GIL.
template <class Call>
void in_python(const Coding& coding, Call&& call) {
  const at::DisableRecordFunctionGuard unseen;
  std::optional<c10::StreamGuard> on;
  if (coding.stream) on.emplace(*coding.stream);
  const InPython python;
  try {
    call();
  } catch (const py::error_already_set& error) {
    throw std::runtime_error(text_of(error.value()));
  } catch (const py::cast_error&) {
    throw std::runtime_error("the codec gave no number of bytes");
  }
}

}  // namespace

class PythonCodec::Visit {
 public:
  explicit Visit(PythonCodec& codec) : codec_(codec) {
    const std::lock_guard<std::mutex> lock(codec_.mutex_);
    admitted_ = !codec_.closed_;
    if (admitted_) ++codec_.inside_;
  }
  ~Visit() {
    if (!admitted_) return;
    const std::lock_guard<std::mutex> lock(codec_.mutex_);
    --codec_.inside_;
    codec_.left_.notify_all();
  }
  Visit(const Visit&) = delete;
  Visit& operator=(const Visit&) = delete;
  bool admitted() const { return admitted_; }

 private:
  PythonCodec& codec_;
  bool admitted_;
};

PythonCodec::PythonCodec(py::object encode, py::object decode)
    : encode_(held(std::move(encode))), decode_(held(std::move(decode))) {}

Codec PythonCodec::codec(std::vector<char*> buffers, size_t buffer_nbytes, size_t piece_nbytes) {
  buffer_nbytes_ = buffer_nbytes;
  const auto self = shared_from_this();
  return {[self](const Coding& coding) { return self->encode(coding); },
          [self](const Coding& coding) { self->decode(coding); }, std::move(buffers), buffer_nbytes,
          piece_nbytes};
}

void PythonCodec::close() {
  const GilRelease gil;
  std::unique_lock<std::mutex> lock(mutex_);
  closed_ = true;
  left_.wait(lock, [&] { return inside_ == 0; });
}

size_t PythonCodec::encode(const Coding& c) {
  const Visit visit(*this);
  if (!visit.admitted()) return 0;
  size_t encoded = 0;
  in_python(c, [&] {
    encoded = (*encode_)(tensor_at(c.values, c.nbytes, c.dtype, c.device),
                         tensor_at(c.buffer, buffer_nbytes_, c10::kByte, c.device), c.codec)
                  .cast<size_t>();
  });
  if (encoded > buffer_nbytes_) throw std::runtime_error("the codec says that it took more bytes than its buffer has");
  return encoded;
}

void PythonCodec::decode(const Coding& c) {
  const Visit visit(*this);
  if (!visit.admitted()) throw std::runtime_error("the program ends: encoded storages can't be read any more");
  in_python(c, [&] {
    (*decode_)(tensor_at(c.values, c.nbytes, c.dtype, c.device),
               tensor_at(c.buffer, buffer_nbytes_, c10::kByte, c.device), c.codec, c.encoded);
  });
}

}  // namespace teraio

// A codec written in Python.
// In: two callables. Out: a Codec that calls them. Must not know: what they do.
#pragma once
#include <torch/csrc/utils/pybind.h>

#include <condition_variable>
#include <memory>
#include <mutex>
#include <vector>

#include "encoding.h"

namespace teraio {

class [[gnu::visibility("hidden")]] PythonCodec : public std::enable_shared_from_this<PythonCodec> {
 public:
  // `encode(values, buffer, codec)` gives the bytes that it took, 0 where that gains nothing; `decode(values, buffer,
  // codec, nbytes)` fills `values` again. Both get 1-D tensors on memory that is theirs during the call alone: values
  // of the storage's dtype, a buffer of bytes. Observers don't see their ops.
  PythonCodec(pybind11::object encode, pybind11::object decode);

  Codec codec(std::vector<char*> buffers, size_t buffer_nbytes, size_t piece_nbytes);
  // Waits for calls that run. From now on nothing is encoded, and decoding fails without a call: threads that ask for
  // the GIL when the interpreter ends would never return.
  void close();

 private:
  class Visit;
  size_t encode(const Coding& coding);
  void decode(const Coding& coding);

  std::shared_ptr<pybind11::object> encode_, decode_;
  size_t buffer_nbytes_ = 0;
  std::mutex mutex_;
  std::condition_variable left_;
  size_t inside_ = 0;
  bool closed_ = false;
};

}  // namespace teraio

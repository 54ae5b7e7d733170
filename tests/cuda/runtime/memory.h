// The device's memory: addresses that programs hold, and the bytes behind them, which only kernels and copies reach.
//
// In: sizes and addresses. Out: memory that exists or does not. Must not know: streams, the names of the API.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <mutex>

namespace cuda_double {

// [Note: two views of memory]
// A device pointer is an address in a range that the host may not touch: a program that reads it dies, as it would
// with a GPU. The bytes lie at a fixed distance from it, where copies and kernels find them (`view`).
class Memory {
 public:
  static constexpr size_t kGranularity = size_t{2} << 20;

  explicit Memory(size_t total_bytes);

  // Addresses without bytes; 0 if there are none left.
  uintptr_t reserve(size_t nbytes, size_t alignment);
  void give_back(uintptr_t address, size_t nbytes);

  // Bytes are counted when they are taken, and exist where they are mapped. New ones are all ones: NaN.
  bool take(size_t nbytes);
  void release(size_t nbytes);
  void map(uintptr_t address, size_t nbytes);
  void unmap(uintptr_t address, size_t nbytes);

  bool contains(const void* address) const;
  // Where the bytes of a device pointer are; other pointers as they are.
  void* view(const void* address) const;

  size_t total_bytes() const { return total_; }
  size_t free_bytes() const;

 private:
  const size_t total_;
  uintptr_t begin_ = 0;
  mutable std::mutex mutex_;
  size_t taken_ = 0;
  std::map<uintptr_t, size_t> free_;  // ranges of addresses
};

Memory& memory();

}  // namespace cuda_double

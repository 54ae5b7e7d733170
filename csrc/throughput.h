// How long a tier was at work, and what it moved meanwhile.
// In: begins and ends of reads and writes. Out: Work. Must not know: threads, what is moved.
#pragma once
#include <cstddef>
#include <cstdint>

namespace teraio {

// Seconds in which it only read, only wrote, and did both.
struct Work {
  double reading_s = 0;
  double writing_s = 0;
  double both_s = 0;
  uint64_t read_bytes = 0;
  uint64_t written_bytes = 0;
};

// Not thread-safe.
class Throughput {
 public:
  void begin(bool write);
  void end(bool write, size_t nbytes);
  // Since it was last asked.
  Work take();

 private:
  void count_time();

  Work work_;
  int64_t counted_until_ns_ = 0;
  size_t reads_ = 0;
  size_t writes_ = 0;
};

}  // namespace teraio

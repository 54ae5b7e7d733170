#include "throughput.h"

#include <algorithm>
#include <utility>

#include "clock.h"

namespace teraio {
namespace {

// When nothing began or ended for longer than this, the process was stopped, or the machine asleep.
constexpr int64_t kLongestNs = 100'000'000;

}  // namespace

void Throughput::count_time() {
  const int64_t now = now_ns();
  const double seconds = static_cast<double>(std::min(now - counted_until_ns_, kLongestNs)) * 1e-9;
  counted_until_ns_ = now;
  if (reads_ > 0 && writes_ > 0) {
    work_.both_s += seconds;
  } else if (reads_ > 0) {
    work_.reading_s += seconds;
  } else if (writes_ > 0) {
    work_.writing_s += seconds;
  }
}

void Throughput::begin(bool write) {
  count_time();
  ++(write ? writes_ : reads_);
}

void Throughput::end(bool write, size_t nbytes) {
  count_time();
  --(write ? writes_ : reads_);
  (write ? work_.written_bytes : work_.read_bytes) += nbytes;
}

Work Throughput::take() {
  count_time();
  return std::exchange(work_, {});
}

}  // namespace teraio

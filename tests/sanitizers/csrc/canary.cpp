// Mistakes that a sanitizer has to report, else it isn't at work: an overflow, a race, a read of freed memory.
#include <thread>

namespace {
int shared;
void add() {
  for (int i = 0; i < 1000; ++i) shared += 1;
}
}  // namespace

extern "C" int mistakes(int value) {
  shared = value + 2147483647;
  std::thread one(add), other(add);
  one.join();
  other.join();
  volatile int* freed = new int(value);
  delete freed;
  return *freed;
}

// The recorder: what one iteration does with memory, event by event.
// In: calls by the engine, under its mutex. Out: flat columns for Python. Must not know: plans, I/O.
#pragma once
#include <cstdint>
#include <vector>

namespace teraio {

struct Recording {
  struct Op {
    uint32_t name;
    uint32_t module;
    uint8_t phase;
    int64_t duration_ns;
    int64_t workspace_bytes;
    uint32_t calls;
  };
  struct Use {
    uint64_t block;
    uint32_t op;
    bool write;
    uint8_t dtype;  // of the block, a c10::ScalarType
  };
  struct Birth {
    uint64_t block;
    uint64_t nbytes;
    uint32_t op;
  };
  struct Death {
    uint64_t block;
    int64_t op;  // the op after which; -1 before op 0
  };
  // The block is the result of the op, which can be run again to the same result.
  struct Repeatable {
    uint64_t block;
    uint32_t op;
  };
  struct AnchorEvent {
    uint64_t key;
    uint32_t occurrence;
    uint32_t op;
  };
  std::vector<Op> ops;
  std::vector<Use> uses;
  std::vector<Birth> births;
  std::vector<Death> deaths;
  std::vector<Repeatable> repeatables;
  std::vector<AnchorEvent> anchors;
  int64_t untracked_peak_bytes = 0;
};

}  // namespace teraio

// The schedule: a plan in the form that ops can follow, and where in it the program is just now.
// In: ops and anchors as they happen. Out: positions, and the actions due there. Must not know: blocks, I/O.
#pragma once
#include <cstdint>
#include <unordered_map>
#include <utility>
#include <vector>

#include "encoding.h"
#include "transfer.h"

namespace teraio {

class Schedule {
 public:
  // A copy is written while ops still read the data, so that it can leave at once later on.
  enum class ActionKind : uint8_t { kLeave, kCopy, kFetch };
  struct Action {
    int32_t storage;
    ActionKind kind;
    TierKind tier;   // where it is kept meanwhile
    int64_t extent;  // -1: none, the data is made again
  };
  // Columns as Python hands them over; offsets have one entry more than there are ops or storages.
  std::vector<uint32_t> names;
  std::vector<uint32_t> signatures;
  std::vector<uint32_t> action_offsets;
  std::vector<Action> actions;
  std::vector<uint32_t> birth_offsets;
  std::vector<int32_t> births;
  std::vector<uint32_t> use_offsets;
  std::vector<uint32_t> uses;
  std::vector<bool> persistent;
  std::vector<uint64_t> sizes;      // bytes per storage
  std::vector<CodecNumber> codecs;  // per storage
  std::vector<uint64_t> needs;  // bytes that each op takes beside its operands
  // Ops whose result is made again in place of being kept, and the storage that it is; by storage, what it is then.
  std::unordered_map<uint32_t, int32_t> repeats;
  std::vector<int32_t> again;
  std::unordered_map<uint64_t, std::vector<uint32_t>> anchors;  // key -> position per occurrence

  uint32_t size() const { return static_cast<uint32_t>(signatures.size()); }

  // The op that has just ended. Returns its position, or -1 if the plan doesn't know it here (drift).
  // Actions of positions that were passed by unseen are due too: see due().
  int64_t match(uint32_t signature);
  // A place found again by name. Positions in between are passed by.
  void jump(uint64_t key, uint32_t occurrence);
  void restart();

  // The next position whose actions are due, up to where the program is; -1 when there is none.
  int64_t due();
  // Ops from here to the storage's next use, counted cyclically for persistent storages; a large number
  // when it isn't used again.
  uint64_t distance(int32_t storage) const;
  uint32_t position() const { return next_; }
  // Whether the program is somewhere that the plan doesn't know.
  bool lost() const { return lost_ || next_ >= size(); }
  // Whether the op expected next has this name.
  bool expects(uint32_t name) const { return !lost() && names[next_] == name; }
  // The same, and its result is made again.
  bool repeats_next(uint32_t name) const { return expects(name) && repeats.count(next_) > 0; }
  // What the op that is expected next takes beside its operands.
  uint64_t need() const { return needs[next_]; }

 private:
  uint32_t next_ = 0;     // the op expected next
  uint32_t fired_ = 0;    // actions of positions below this have been handed out
  bool lost_ = false;
};

}  // namespace teraio

// One memory range on its way to or from one extent of a tier.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/Event.h>

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "encoding.h"
#include "extents.h"

namespace teraio {

// The tiers that storages move to: the spill space, and host memory beside a device's.
enum class TierKind : uint8_t { kSpill, kHost };

// Whoever submits it owns it, the memory and the extent, and keeps all three until the tier is done with it.
struct Transfer {
  enum class Direction { kRead, kWrite };
  Direction direction = Direction::kRead;
  char* memory = nullptr;
  size_t nbytes = 0;  // of the memory; the extent is as long or longer, up to the next page
  c10::Device device{c10::kCPU};
  std::vector<c10::Event> after;  // not a byte moves before these
  Extent extent;
  void* user = nullptr;
  bool natively = false;  // by threads that never need Python
  // To write it encoded, or what was written so; the tier fills in `pieces` when it writes.
  std::optional<Encoding> encoding;

  // Filled in by the tier; read them after the transfer is done.
  int error = 0;  // errno; 0 when all bytes were moved
  std::string error_text;  // what a library said, where there is more than errno
  std::string error_path;
  uint64_t error_offset = 0;
  size_t pieces_left = 0;
  uint64_t moved = 0;  // bytes, as they are on the tier
  // Over a sample of the bytes, eight of each page: tells a file that lost or mixed up what was written to it. 0
  // where a path moves the bytes that shows them to nobody.
  uint64_t checksum = 0;
};

}  // namespace teraio

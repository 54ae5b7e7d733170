// Encoded copies: what a storage is written as where it is not written as it is, and what encodes it.
// In: bytes of one dtype. Out: fewer bytes in a buffer, and the first ones again. Must not know: files, blocks, which
// codecs there are.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>
#include <c10/core/Stream.h>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

namespace teraio {

// By number, as Python counts them; 0 leaves bytes as they are.
using CodecNumber = uint8_t;

struct EncodedPiece {
  size_t nbytes = 0;      // 0: it is written as it is
  uint64_t checksum = 0;  // looked at before it is decoded, for decoders trust what they get
};

// How the copy of a storage is encoded. Each piece is encoded by itself and begins in its extent where it would begin
// otherwise, so that extents and plans don't depend on what encoding gains.
struct Encoding {
  CodecNumber codec = 0;
  c10::ScalarType dtype = c10::ScalarType::Undefined;
  size_t nbytes = 0;  // of values; behind them there is only padding
  std::vector<EncodedPiece> pieces;
};

// One piece to encode or to decode.
struct Coding {
  CodecNumber codec;
  c10::ScalarType dtype;
  c10::Device device;
  std::optional<c10::Stream> stream;  // of the device; work is issued there
  char* values;
  size_t nbytes;
  char* buffer;
  size_t encoded;  // bytes in the buffer, to decode
};

struct Codec {
  // Called on I/O threads, by several at once, without locks and without the GIL. `encode` fills the buffer and gives
  // the bytes that it took, or 0 where encoding gains nothing; the values may change meanwhile. Both throw
  // std::exception.
  std::function<size_t(const Coding&)> encode;
  std::function<void(const Coding&)> decode;
  // Memory of the device, at multiples of a page, one buffer for each thread that encodes or decodes. A piece is no
  // larger than `piece_nbytes`.
  std::vector<char*> buffers;
  size_t buffer_nbytes = 0;
  size_t piece_nbytes = 0;
};

}  // namespace teraio

// The call log: which kernels an op comes down to, with the shapes of their tensors.
// In: calls of kernels that begin and end on a thread. Out: patterns, by number. Must not know: memory, times, what a
// kernel costs.
//
// [Note: patterns]
// A model repeats few shapes, so calls that look alike share one signature, and ops that come down to like kernels in
// like order share one pattern. A recording holds one number per op. Kernels of ops that don't count (all their tensors
// are small) belong to the pattern of the next op that does, as their time does.
#pragma once
#include <ATen/core/function_schema.h>
#include <ATen/record_function.h>

#include <cstdint>
#include <string>
#include <vector>

namespace teraio::calls {

struct TensorShape {
  std::string dtype;
  std::vector<int64_t> sizes;
  int64_t nbytes;  // that lie in memory: what is only expanded counts once
  bool written;
};

struct Signature {
  std::string name;
  bool view;  // the result is another view of an argument
  std::vector<TensorShape> inputs;
  std::vector<TensorShape> outputs;  // without those that are inputs, or views of them
  std::vector<bool> flags;  // the arguments that are bool, in order
};

using Pattern = std::vector<uint32_t>;  // signatures, in order

// Starts anew, or ends. Signatures and patterns of before are forgotten when it starts.
void log(bool on);
bool logging();

void begin(const at::RecordFunction& op, const c10::FunctionSchema& schema);
void end(const at::RecordFunction& op, const c10::FunctionSchema& schema);
// The pattern of this thread's calls since the last time.
uint32_t take_pattern();

std::vector<Signature> signatures();
std::vector<Pattern> patterns();

}  // namespace teraio::calls

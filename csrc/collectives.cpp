#include "collectives.h"

#include <torch/csrc/distributed/c10d/Work.hpp>

#include <algorithm>
#include <cstdint>
#include <mutex>
#include <string_view>
#include <typeinfo>
#include <utility>

#include "clock.h"

namespace teraio::collectives {
namespace {

// Asking a Work costs up to a microsecond, and there may be a hundred of them.
constexpr int64_t kAskedEveryNs = 100'000;

struct UnderWay {
  c10::intrusive_ptr<c10d::Work> work;  // none where it is not known
  std::vector<Block*> blocks;
};

struct List {
  std::mutex mutex;
  std::vector<UnderWay> entries;
};

List& list() {
  static auto* made = new List;  // leaked: threads may outlive static destruction
  return *made;
}

std::atomic<int64_t> asked_ns{0};

// [Note: works that never say that they are done]
// Gloo's reduce-scatter copies its input, lets the copies be reduced, and takes its part of them when it is waited for, by
// ops of the thread that waits. It never says that it is done. So only what it made stays, until nobody else has it; its
// threads keep what they have not finished.
bool is_lambda(const c10d::Work& work) {
  return std::string_view(typeid(work).name()).find("LambdaWork") != std::string_view::npos;
}

bool is_done(const c10::intrusive_ptr<c10d::Work>& work) {
  return work->isCompleted() || (Engine::instance().accelerator() == nullptr && work.use_count() == 1);
}

template <class Done>
void release_if(Done&& done) {
  if (!any() || Engine::instance().forked()) return;  // a child can't know what its parent's are doing
  // Works of process groups in Python take the GIL, so they are asked with nothing locked.
  std::vector<UnderWay> entries;
  {
    const std::lock_guard<std::mutex> lock(list().mutex);
    entries.swap(list().entries);
  }
  const auto first_done = std::stable_partition(entries.begin(), entries.end(), [&](UnderWay& e) { return !done(e); });
  const auto count = static_cast<size_t>(entries.end() - first_done);
  for (auto entry = first_done; entry != entries.end(); ++entry) {
    for (Block* block : entry->blocks) Engine::instance().release(block, false);
  }
  {
    const std::lock_guard<std::mutex> lock(list().mutex);
    list().entries.insert(list().entries.begin(), std::make_move_iterator(entries.begin()),
                          std::make_move_iterator(first_done));
  }
  under_way -= count;
}

}  // namespace

std::atomic<size_t> under_way{0};

bool is_one(const c10::FunctionSchema& schema) {
  constexpr std::string_view kNamespace = "c10d::";
  return std::string_view(schema.name()).substr(0, kNamespace.size()) == kNamespace;
}

void begun(Frame& frame, const std::vector<c10::IValue>& results) {
  Engine::instance().guard_quietly();
  UnderWay entry;
  const auto work = std::find_if(results.begin(), results.end(), [](const auto& r) { return r.isCustomClass(); });
  if (work != results.end()) {
    entry.work = work->toCustomClass<c10d::Work>();
    if (!entry.work) return;  // it was waited for, or goes on in the order of the stream like any op
  }
  entry.blocks = Engine::instance().hold_pinned(frame, entry.work && is_lambda(*entry.work));
  if (entry.blocks.empty()) return;
  // In a group of collectives that is still open, those of NCCL say at once that they are done.
  const bool grouped = Engine::instance().accelerator() != nullptr && entry.work && entry.work->isCompleted();
  if (grouped) entry.work.reset();
  ++under_way;
  const std::lock_guard<std::mutex> lock(list().mutex);
  list().entries.push_back(std::move(entry));
}

void release_done(bool at_once) {
  if (!any()) return;
  const int64_t now = now_ns();
  if (!at_once && now - asked_ns.load(std::memory_order_relaxed) < kAskedEveryNs) return;
  asked_ns = now;
  release_if([](UnderWay& entry) { return entry.work && is_done(entry.work); });
}

void end_iteration() {
  release_if([](UnderWay& entry) { return !entry.work; });
}

void end_run() {
  release_if([](UnderWay& entry) { return !entry.work || is_done(entry.work); });
}

}  // namespace teraio::collectives

// The engine: which block is where, under which budget, and what moves next.
// In: allocations and frees, ops that begin and end, a schedule. Out: blocks resident when an op needs them,
// counted memory within the budget. Must not know: PyTorch's dispatcher, Python (but for giving up the GIL).
#pragma once
#include <c10/core/StorageImpl.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <unordered_map>
#include <vector>

#include "block.h"
#include "device.h"
#include "host_tier.h"
#include "pages.h"
#include "recipe.h"
#include "recorder.h"
#include "schedule.h"
#include "spill.h"
#include "throughput.h"

namespace teraio {

class GilRelease;

enum class Phase : uint8_t { kForward, kBackward, kOptimizer, kOther };

// What the observer knows of an op's operand.
struct Operand {
  Block* block;
  c10::StorageImpl* storage;
  bool data;   // the op touches its bytes; false for views, which only make another tensor of it
  bool write;
};

// An op of the training loop waited for data that was coming, or for memory that was still leaving.
struct Stall {
  uint32_t op;      // by the trace's count, as far as it is known
  int32_t storage;  // of the trace: what was coming; -1 for one it doesn't know, or a new one
  bool memory;
  int64_t ns;
};

// One outermost op of a thread, with all that it calls; between ops it is empty.
struct Frame {
  struct Pinned {
    Block* block;
    bool write;
    bool born;
  };
  int depth = 0;
  bool entered = false;   // the engine counts it among the threads that may pin
  bool training = false;  // this thread's ops are what the trace and the plan are about
  bool opaque = false;    // an operand hides its storages (mkldnn), or what the op makes hides its operands
  bool nested = false;    // it deals with nested tensors; PyTorch looks at their sizes without an op
  uint32_t name = 0;
  std::vector<Pinned> pinned;
  int64_t logical_begin = 0;
  int64_t logical_peak = 0;
  uint32_t calls = 0;        // the pattern of kernels that it came down to (see calls.h)
  bool waited = false;       // for data or memory, before it began
  bool began = false;        // its operands are there, as far as they can be
  std::optional<c10::Stream> stream;       // of the device; where the op's work is issued
  std::optional<c10::Stream> also_stream;  // another that the op says will use its operand (record_stream)
  std::optional<c10::Event> resumed;       // when the device went on after a wait
  std::optional<c10::Event> wait_begun;    // what the device does until it may have to wait
  std::vector<Stall> stalls;               // what the host has waited for since then
  int64_t beside_before = 0;               // bytes of the device that no block had, as the op began
  int64_t used_before = 0;                 // bytes of blocks, when its operands were there
  int64_t born_before = 0;                 // of these, bytes that no op had had before
  int64_t most = 0;                        // bytes that it took beyond these, where needs are measured
  uint64_t largest = 0;                    // bytes of the largest block born in it
  int64_t peak = 0;                        // the most that the allocator gave out, before it was tried what it can give
  bool unforeseen = false;                 // no plan tells what it needs
  uint64_t results = 0;                    // bytes that it makes on the device, where that is so
  uint64_t taking = 0;                     // bytes that the engine itself takes just now
  bool freeing = false;                    // inside free_memory()
  bool unguarded = false;                  // what is born gets no guard, see [Note: threads of process groups]
  bool apart = false;                      // of an op that the engine runs itself, within another one
  uint64_t apart_need = 0;                 // bytes that such a one takes beside its operands
  bool refused = false;                    // it was not given memory; some ops catch that and compute in another way
  uint32_t casts = 0;                      // ops of casting that it has called
  const Block* made = nullptr;             // the op's result, if the op could be run again
  std::shared_ptr<const Recipe> recipe;    // how to, if the plan wants to
  bool over_budget = false;  // `error` is a matter of the budget, else of the spill space
  std::string error;         // why an operand could not be made resident; the op fails with it
};

// Where the running op belongs; the observer finds it out only for ops that count.
struct Place {
  Phase phase;
  uint32_t module;
};

struct IterationStats {
  int64_t duration_ns = 0;
  int64_t stall_ns = 0;
  uint64_t peak_bytes = 0;
  uint64_t live_bytes = 0;  // the most of live blocks, wherever they are
  uint64_t read_bytes = 0;
  uint64_t written_bytes = 0;
  uint64_t recomputed_bytes = 0;
  uint64_t ops = 0;
  uint64_t drift_ops = 0;
  Work spill;  // what the SSDs did
  std::vector<Stall> stalls;  // the longest, the longest first
  std::string over_budget;    // the op that needed more than the budget by most, and how much; see [Note: looking on]
};

class Engine {
 public:
  static Engine& instance();
  static Frame& frame();

  // An op of the engine's own within the op of a thread: it has a frame apart, as operands of the one are not yet in
  // memory for the other.
  class OwnFrame {
   public:
    explicit OwnFrame(uint64_t need);  // bytes that the op takes beside its operands
    ~OwnFrame();
    OwnFrame(const OwnFrame&) = delete;
    OwnFrame& operator=(const OwnFrame&) = delete;

   private:
    Frame frame_;
    Frame* outer_;
  };

  // --- life ---
  // Takes over the tiers; ops are watched from now on. The budget is of the accelerator's memory if there is one, which
  // must live for ever, else of the CPU's; `limit` is what the accelerator's allocator may reserve.
  void start(std::unique_ptr<SpillSpace> spill, std::unique_ptr<HostTier> host, const Accelerator* accelerator,
             uint64_t budget, uint64_t limit, uint64_t min_block);
  // Brings everything back (over the budget if need be) and opens all guards, for good. Ops of other threads may go
  // on; they must be watched until this returns.
  void bring_back();
  // Closes the tiers, after bring_back(). Their host memory goes after `before_memory_goes`. Throws SpillError if
  // something could not be brought back.
  void stop(const std::function<void()>& before_memory_goes);
  bool active() const { return active_.load(std::memory_order_relaxed); }
  // The device whose memory is limited; nullptr for the CPU.
  const Accelerator* accelerator() const { return accelerator_; }
  uint64_t min_block() const { return min_block_; }
  void set_min_block(uint64_t nbytes) { min_block_ = nbytes; }

  // --- memory ---
  // A new block with memory, within the budget; what leaves for it has left when this returns. With
  // `pin_to_frame` the running op keeps it. Throws BudgetError, SpillError or std::bad_alloc.
  Block* allocate(size_t nbytes, bool pin_to_frame = true);
  // A new block of a storage that has a size but no data. It never moves and takes nothing from the budget.
  Block* allocate_without_memory(size_t nbytes);
  // A block of memory that PyTorch's allocator of the device gave to a new storage.
  Block* take_over(at::DataPtr memory, c10::StorageImpl* storage);
  void storage_died(Block* block);
  // Makes the device's allocator find memory: see [Note: out of memory]. True if some was given back.
  bool free_memory();
  // Counts an allocation too small to be a block. Throws as allocate() does; then it is not counted.
  void small_allocated(size_t nbytes);
  // Returns memory kept for reuse to the system, for work that needs memory beside the budget. As far as it goes,
  // so much of the budget is among that.
  void release_free_pages(uint64_t nbytes);
  void small_freed(size_t nbytes) { small_ -= static_cast<int64_t>(nbytes); }

  // --- ops ---
  // Both take no lock for ops, nested ones above all, of which there is nothing new to note.
  void begin(Frame& frame, const std::vector<Operand>& operands);
  // `place` is asked only for ops that count.
  template <class PlaceOf>
  void end(Frame& frame, PlaceOf&& place_of);
  // The running op gives these to the program: they may leave once it has ended, without having been an operand first.
  void give(Frame& frame, const std::vector<Operand>& results);
  // Throws why the operands of the op could not be made resident, if so: BudgetError or SpillError.
  static void raise_if_failed(const Frame& frame);

  // Whether results are looked at: they may have to leave before another op uses them.
  bool wants_results() const { return wants_results_.load(std::memory_order_relaxed); }
  // Whether the plan will run the op that begins again, or the recording wants to know if it could.
  bool wants_recipe(const Frame& frame);
  // Whether it is known what the op that begins needs, or nothing has to leave for it; see [Note: what ops need].
  bool foresees(const Frame& frame, const std::vector<Operand>& operands);

  // --- places of the program ---
  void anchor(uint64_t key);
  IterationStats end_iteration();  // the next one begins with it
  void begin_iteration();          // it begins now instead: what was in between is no part of it

  // --- profile and plan ---
  void record(bool on);
  Recording take_recording();
  void follow(std::unique_ptr<Schedule> schedule, const std::vector<std::pair<int32_t, uint64_t>>& bound);
  void unfollow();
  // How far and how long ops may go beyond the budget to find out what an iteration needs, see [Note: looking on].
  void look_on(uint64_t nbytes, int64_t duration_ns);
  // Whether anything may have to leave; not where iterations fit the budget. Then results are not looked at.
  void expect_moves(bool any);
  // From now on somebody asks for pointers without an op, though not to read through them: PyTorch where other
  // processes train with this one, or a profile with stacks or shapes. See [Note: loud and quiet guards].
  void guard_quietly();
  bool guards_quietly() const;
  void reserve_spill(uint64_t nbytes);
  // Encodes what the plan doesn't know on its way to the spill space; 0: as it is.
  void encode_by_default(CodecNumber codec);
  // Grows the host tier; gives the memory that it took anew.
  std::vector<std::pair<char*, size_t>> reserve_host(uint64_t nbytes);
  // What copies of so many bytes, or fewer where there is little room, do between the device and the host tier.
  HostSpeeds host_speeds(uint64_t nbytes);
  std::vector<std::pair<char*, size_t>> staging_memory() { return spill_->staging_memory(); }

  // --- single storages ---
  // Lets the storage leave from now on, under a name for messages.
  void adopt(Block* block, c10::StorageImpl* storage, std::string name);
  // Keeps it in memory, guard open, until the matching release(). Throws BudgetError or SpillError.
  void hold(Block* block, c10::StorageImpl* storage);
  void release(Block* block, bool written);
  // Holds all that the frame has pinned, or of it what was born in it; gives what to release.
  std::vector<Block*> hold_pinned(const Frame& frame, bool only_born);
  // Sends it to the spill space now and waits; false where it can't leave. Throws SpillError.
  bool send_away(Block* block, c10::StorageImpl* storage);
  // An address that stays the storage's own for life, wherever its data is. Brings the data in. When it is `lent`, to
  // be read or written there, the data stays until the iteration ends; else it only tells storages apart.
  void* publish(Block* block, c10::StorageImpl* storage, bool lent);
  State state_of(Block* block);
  // Seeks races: transfers are delayed at random, and memory that is taken or given back is filled with NaN.
  void stress(unsigned max_delay_us);
  // How long an op that lacks memory waits for ops of other threads to end.
  void be_patient(int64_t duration_ns);

  struct Totals {
    uint64_t used, budget, cached, spill_reserved, away;
  };
  Totals totals();

  struct Live {
    uint64_t id, nbytes;
    bool movable;
  };
  std::vector<Live> live_blocks();

  uint32_t intern(const std::string& name);
  std::vector<std::string> op_names();

  // The spill space's callback; runs on I/O threads.
  void transfer_done(Transfer* transfer);

  void before_fork() { mutex_.lock(); }
  void after_fork_in_parent() { mutex_.unlock(); }
  void after_fork_in_child();
  bool forked() const { return forked_; }

 private:
  static constexpr uint32_t kNoModule = ~uint32_t{0};

  // [Note: two locks]
  // PyTorch's allocators of devices have a lock of their own and call us back while they hold it (free_memory). So
  // they are never called under the engine's mutex: memory is taken with the mutex given up meanwhile, and what is
  // given back under it waits in `garbage_` and goes when the mutex is given up. So do recipes: storages die with them.
  class Lock {
   public:
    explicit Lock(Engine& engine) : engine_(engine), lock_(engine.mutex_) {}
    ~Lock() {
      if (lock_.owns_lock()) unlock();
    }
    Lock(const Lock&) = delete;
    Lock& operator=(const Lock&) = delete;
    void lock() { lock_.lock(); }
    void unlock();
    // Before the thread waits for what others do: they may need the GIL, and hold it while they wait for the mutex.
    void release_gil(GilRelease& gil);
    void free_garbage() {
      if (!engine_.garbage_.empty() || !engine_.old_recipes_.empty()) unlock(), lock();
    }
    template <class Changed>
    void wait(std::condition_variable& condition, Changed&& changed) {
      free_garbage();
      condition.wait(lock_, changed);
    }
    template <class Duration, class Changed>
    void wait_for(std::condition_variable& condition, Duration most, Changed&& changed) {
      free_garbage();
      condition.wait_for(lock_, most, changed);
    }

   private:
    Engine& engine_;
    std::unique_lock<std::mutex> lock_;
  };
  struct Garbage {
    DeviceMemory memory;
    uint64_t nbytes;
    uint64_t data_bytes;
  };

  void enter(Frame& frame);
  void bring_in(Frame& frame, const std::vector<Operand>& operands, bool begins);
  void pin(Frame& frame, const Operand& operand);
  void open(Block* block, c10::StorageImpl* storage);
  void shut(Block* block, c10::StorageImpl* storage);
  bool may_guard(const Block* block) const;
  void link(Block* block, c10::StorageImpl* storage);
  void mark_written(Block* block);
  void unpin(Block* block);
  c10::StorageImpl* owner(Block* block) const;

  // [Note: waiting]
  // These may wait, with the mutex given up meanwhile. Their callers must not hold the GIL (see GilRelease),
  // and must look again at everything they knew before the call.
  void make_resident(Frame& frame, Lock& lock);
  void fetch_now(Block* block, Lock& lock);
  void hold_locked(Block* block, c10::StorageImpl* storage, Lock& lock);
  void let_others_have_room(Lock& lock);
  void make_room(uint64_t nbytes, Lock& lock, int32_t storage = -1);
  void make_room_if_possible(uint64_t nbytes, Lock& lock);
  bool wait_for_collective(Lock& lock, int64_t& begun_ns);
  bool looks_on(uint64_t nbytes);
  bool leave_natively(uint64_t nbytes, Lock& lock);
  enum class Part { kWhole, kAny };
  bool let_go(uint64_t nbytes, Part part);
  bool find_pieces(const Frame& frame, Lock& lock);
  bool has_pieces(uint64_t nbytes, Lock& lock) const;
  uint64_t need_of(const Frame& frame) const;
  // Of the storage of the trace that the block is.
  uint64_t planned_bytes(const Block* block) const { return schedule_->sizes[static_cast<size_t>(block->trace_index)]; }
  void wait(Lock& lock, int32_t storage = -1, bool memory = false, int64_t most_ns = -1);
  void note_stall(int32_t storage, bool memory, int64_t ns);
  void count_stall(const Stall& stall);
  int64_t noted_ns() const;
  void begin_wait();
  void end_wait();
  struct OpTime {
    std::optional<c10::Event> begin;  // where it isn't the end of the op before
    c10::Event end;
    int64_t waited_ns = 0;  // in its middle
  };
  // See [Note: stalls of a device].
  struct DeviceWait {
    c10::Event begin, end;
    std::vector<Stall> stalls;   // what the host waited for meanwhile
    std::optional<size_t> op;    // of the recording, in the middle of which it was
  };
  void settle_waits();
  void settle_wait(DeviceWait& wait, std::vector<OpTime>& op_times);

  struct Slot {
    TierKind tier;
    uint64_t offset;
  };
  void start_leaving(Block* block, bool urgent, std::optional<Slot> planned = std::nullopt, bool natively = false);
  void start_copying(Block* block, bool urgent, std::optional<Slot> planned, bool natively = false);
  void copy_to_host(Block* block, const std::vector<c10::Event>& after);
  void leave(Block* block);
  void stay(Block* block);
  void arrived(Block* block, uint64_t moved);
  void find_extent(Block* block, std::optional<Slot> planned);
  bool allocate_at(TierKind tier, const Extent& extent);
  void own(Block* block, TierKind tier, const Extent& extent);
  void drop_spare_copies(TierKind tier, const Extent& extent);
  std::map<uint64_t, Block*>& copies_of(TierKind tier) { return tier == TierKind::kSpill ? spilled_ : in_host_; }
  // May give the mutex up; false when the block died meanwhile. Throws BudgetError and std::bad_alloc; then the block
  // is still away.
  bool start_coming(Block* block, bool urgent, Lock& lock);
  std::unique_ptr<Transfer> transfer_of(Block* block, Transfer::Direction direction);
  void submit(Block* block, std::unique_ptr<Transfer> transfer, bool urgent);  // to the spill space
  void drain();
  void finish(Transfer* transfer);
  void detach(Block* block);
  void has_left(Block* block);
  bool can_leave(const Block* block) const;
  // In memory that the budget is not of: what a run on the CPU has left behind, in one on a device.
  bool is_elsewhere(const Block* block) const {
    return accelerator_ != nullptr && !block->device && block->memory != nullptr;
  }
  Block* victim();
  void find_victims();
  void start_waiting_fetches(Lock& lock);
  bool start_prefetch(Block* block, Lock& lock);
  void run_due_actions();
  void keep_recipe(Frame& frame, int32_t storage, size_t op);
  bool drop(Block* block);
  void recompute(Block* block, Lock& lock);
  void keep_here(Block* made, Lock& lock);
  void take_from(Block* made, Block* block);
  void note_reading(const Recipe& recipe);
  void keep_copies(const Recipe& recipe) const;
  void settle(Block* block, Lock& lock);
  void discard_recipe(Block* block);
  void forget_recipes();
  void bind(Block* block, int32_t storage);
  void unbind(Block* block);
  void anchor_locked(uint64_t key);
  void unfollow_locked();
  void begin_iteration_locked();
  void mode_changed();

  void enroll(Block* block, Frame& frame, bool pin_to_frame);
  Block* find_block(uint64_t id) const;  // nullptr for one that is no more
  uint64_t room_for_new_pages() const;
  void take_memory(Block* block);
  void take_device_memory(Block* block, Lock& lock);
  void give_memory(Block* block);
  bool is_over(const std::optional<c10::Event>& event) const;
  void let_wait(const c10::Stream& stream, const std::optional<c10::Event>& event) const;
  void free_garbage(std::vector<Garbage> garbage) noexcept;
  void look_at_device(Frame& frame);
  void begin_measuring(Frame& frame);
  void note_need(Frame& frame);
  void use_on(Block* block, const c10::Stream& stream);
  void use_in(const Frame& frame, Block* block);
  void drop_extent(Block* block);
  void bury(Block* block);
  void count_use(Frame& frame, const Place& place);
  void time_ops(Recording& recording, Lock& lock);
  std::vector<std::pair<c10::weak_intrusive_ptr<c10::StorageImpl>, DeviceMemory>> give_device_memory_back();
  std::optional<Encoding> encoding_of(Block* block) const;
  std::string describe(const Block* block) const;
  std::string describe_failure(const Block* block, const Transfer& transfer) const;
  std::string describe_guard(const Block* block) const;
  std::string describe_others() const;
  std::string describe_elsewhere(const Block* block) const;
  uint64_t needed_for(uint64_t nbytes) const;
  std::string over_budget(uint64_t nbytes, bool looking_on = false) const;
  uint64_t used() const {
    const int64_t beside = accelerator_ != nullptr ? beside_.load() : small_.load();
    return static_cast<uint64_t>(std::max<int64_t>(0, static_cast<int64_t>(used_.load()) + beside));
  }
  void note_peak();
  void notify();

  std::mutex mutex_;
  std::condition_variable changed_;
  std::atomic<bool> active_{false};
  bool closing_ = false;
  std::string failure_;  // of bring_back()
  bool forked_ = false;
  std::atomic<uint64_t> min_block_{16384};

  const Accelerator* accelerator_ = nullptr;
  std::vector<Garbage> garbage_;
  std::vector<std::shared_ptr<const Recipe>> old_recipes_;  // their tensors may die with them
  std::unique_ptr<SpillSpace> spill_;
  std::unique_ptr<HostTier> host_;
  CodecNumber default_codec_ = 0;
  PagePool pages_;
  uint64_t most_used_ = 0;  // at once, since the start
  bool poison_ = false;
  std::atomic<uint64_t> budget_{~uint64_t{0}};
  uint64_t beyond_ = 0;         // see look_on()
  int64_t look_on_ns_ = 0;
  uint64_t needed_ = 0;         // the most that an op of this iteration needed beyond the budget, with all else in memory
  int64_t looking_since_ns_ = 0;
  uint64_t limit_ = 0;  // of what the device's allocator may reserve
  std::atomic<uint64_t> used_{0};  // bytes of blocks that hold memory
  // Bytes of the CPU's allocations too small to be blocks.
  std::atomic<int64_t> small_{0};
  std::atomic<int64_t> beside_{0};  // bytes that a device's allocator gave out beside blocks
  std::atomic<int64_t> small_peak_{0};
  std::atomic<uint64_t> peak_{0};  // of the iteration
  int64_t logical_ = 0;            // bytes of all live blocks, wherever they are
  int64_t logical_peak_ = 0;       // of the iteration
  uint64_t leaving_ = 0;           // bytes that running writes will free
  std::vector<Block*> leaving_to_host_;  // the first that began to leave is the first
  uint64_t leaving_natively_ = 0;  // those of them that don't need Python, see [Note: out of memory]
  std::optional<c10::Stream> first_stream_;  // that an op of this run was on
  std::atomic<uint64_t> headroom_{0};  // the most that an op has needed beside its operands, on a device
  std::vector<uint64_t> pieces_;       // the most that an op has needed in one piece, by its name's number
  std::vector<Block*> blocks_;
  std::unordered_map<uint64_t, size_t> place_of_block_;
  struct Victim {
    uint64_t block, last_use, distance;
  };
  std::map<uint64_t, Block*> spilled_, in_host_;  // blocks that have an extent there, by its offset
  std::vector<Victim> victims_;  // what may leave; the last one is the best choice
  uint64_t victims_found_at_ = 0;
  uint64_t next_block_ = 1;
  std::vector<Transfer*> done_;
  std::atomic<bool> any_done_{false};  // may be asked without the mutex
  uint64_t in_flight_ = 0;
  std::string write_failure_;  // why the last write failed, for who sees the number of failures change
  uint64_t write_failures_ = 0;
  uint64_t events_ = 0;        // grows with every change that a waiting thread may wait for
  int waiters_ = 0;
  int pinning_threads_ = 0;  // threads inside an op that has touched a block
  int waiting_threads_ = 0;  // those of them that wait for memory
  int64_t patience_ns_ = 60'000'000'000;
  int short_of_room_ = 0;    // threads that wait until others have left, see [Note: taking turns]

  std::unordered_map<std::string, uint32_t> op_ids_;
  std::vector<std::string> op_names_;

  uint64_t op_counter_ = 0;
  uint64_t iteration_ = 1;
  std::atomic<bool> watching_{false};   // ops are recorded or followed
  std::atomic<bool> wants_results_{false};
  std::atomic<bool> wants_recipes_{false};
  bool expects_moves_ = true;
  std::atomic<bool> measuring_{false};  // what each op needs on the device
  uint32_t last_backward_module_ = kNoModule;
  std::unordered_map<uint64_t, uint32_t> occurrences_;
  std::unique_ptr<Recording> recording_;
  std::vector<OpTime> op_times_;  // of the recording, on a device
  std::deque<DeviceWait> device_waits_;
  int64_t last_op_end_ns_ = 0;
  int64_t last_op_stall_ns_ = 0;
  int64_t recompute_ns_ = 0;  // of ops run again within this op
  std::unique_ptr<Schedule> schedule_;
  std::vector<Block*> bound_;          // block of each storage of the trace
  std::deque<uint64_t> fetch_queue_;   // blocks whose fetch is due and waits for memory
  IterationStats stats_;
  std::vector<Stall> stalls_;  // of this iteration, in the order of their ends
  int64_t iteration_begin_ns_ = 0;

 public:
  // Part of end() that the template needs.
  bool counts(const Frame& frame) const;
  void end_op(Frame& frame, const std::optional<Place>& place);
};

template <class PlaceOf>
void Engine::end(Frame& frame, PlaceOf&& place_of) {
  const bool untouched = !frame.entered && frame.pinned.empty();
  if (untouched && !any_done_.load(std::memory_order_relaxed)) {
    frame.opaque = frame.nested = false;
    frame.made = nullptr;
    frame.recipe.reset();
    return;
  }
  std::optional<Place> place;
  if (counts(frame)) place = place_of();
  end_op(frame, place);
}

// What identifies an op in a plan.
uint32_t signature_of(uint32_t name, uint32_t module, Phase phase);
// Anchor keys: what kind of place (see AnchorKind), and which module.
enum AnchorKind : uint8_t { kForwardAnchor, kBackwardAnchor, kNoGradAnchor, kRecomputeAnchor, kOptimizerAnchor };
constexpr uint64_t anchor_key(uint8_t kind, uint32_t module) { return (uint64_t{kind} << 32) | module; }

}  // namespace teraio

// The Python module teraio._C: the engine's calls, with plain numbers, strings, lists and tensors.
// In and out: Python objects. Must not know: how anything works.
#include <ATen/ops/from_blob.h>
#include <pthread.h>
#include <torch/csrc/DynamicTypes.h>
#include <torch/csrc/autograd/python_variable.h>
#include <torch/csrc/utils/pybind.h>

#include <pybind11/stl.h>

#include <memory>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "allocator.h"
#include "calls.h"
#include "engine.h"
#include "errors.h"
#include "observer.h"
#include "spill_bindings.h"

namespace py = pybind11;

namespace teraio {
namespace {

Engine& engine() { return Engine::instance(); }

std::vector<std::pair<uintptr_t, size_t>> addresses(const std::vector<std::pair<char*, size_t>>& pieces) {
  std::vector<std::pair<uintptr_t, size_t>> numbers;
  for (const auto& [memory, size] : pieces) numbers.emplace_back(reinterpret_cast<uintptr_t>(memory), size);
  return numbers;
}

// A tensor's or storage's StorageImpl; nullptr for tensors without one (sparse, meta subclasses).
c10::intrusive_ptr<c10::StorageImpl> storage_of(py::handle object) {
  c10::Storage storage;
  if (THPVariable_Check(object.ptr())) {
    const at::Tensor& tensor = THPVariable_Unpack(object.ptr());
    if (!tensor.has_storage()) return {};
    storage = tensor.storage();
  } else {
    storage = torch::createStorage(object.ptr());
  }
  return c10::intrusive_ptr<c10::StorageImpl>::reclaim_copy(storage.unsafeGetStorageImpl());
}

// Calls `action(block, storage)` for an object whose memory is ours, and gives its result; else `otherwise`.
template <class Action, class Result>
Result with_block(py::handle object, Result otherwise, Action&& action) {
  const auto storage = storage_of(object);
  Block* block = storage ? teraio::block_of(storage.get()) : nullptr;
  return block == nullptr ? otherwise : action(block, storage.get());
}

// Holds a storage in memory while Python needs its raw bytes.
class Hold {
 public:
  Hold(const py::handle& object, bool write) : storage_(storage_of(object)), write_(write) {
    block_ = storage_ ? teraio::block_of(storage_.get()) : nullptr;
    if (block_ != nullptr) engine().hold(block_, storage_.get());
  }
  ~Hold() { release(); }
  Hold(const Hold&) = delete;
  Hold& operator=(const Hold&) = delete;
  void release() {
    if (block_ == nullptr) return;
    // Dropping the storage may free it; the block must be unpinned first.
    engine().release(std::exchange(block_, nullptr), write_);
    storage_.reset();
  }
  const Block* block() const { return block_; }  // nullptr: the memory is not ours, or has been released

 private:
  c10::intrusive_ptr<c10::StorageImpl> storage_;
  Block* block_ = nullptr;
  bool write_;
};

// A tensor on the same memory, which stays where it is as long as this one lives: for whoever is told of no ops, DLPack
// for example. The tensor itself if its memory is not ours.
at::Tensor window(const at::Tensor& tensor) {
  if (!tensor.has_storage()) return tensor;
  auto hold = std::make_unique<Hold>(py::cast(tensor), true);
  if (hold->block() == nullptr) return tensor;
  char* memory = hold->block()->memory;
  return at::for_blob(memory, tensor.sizes())
      .strides(tensor.strides())
      .storage_offset(tensor.storage_offset())
      .context(hold.release(), [](void* context) { delete static_cast<Hold*>(context); })
      .options(tensor.options())
      .target_device(tensor.device())
      .make_tensor();
}

bool free_memory() { return engine().free_memory(); }

// `device` is empty for the CPU.
void start(SpillHandle& handle, const std::vector<unsigned>& weights, uint64_t spill_bytes, const std::string& device,
           uint64_t host_bytes, uint64_t budget, uint64_t limit, uint64_t min_block) {
  auto spill = handle.take();
  const Accelerator* accelerator = device.empty() ? nullptr : accelerator_of(device);
  std::unique_ptr<HostTier> host;
  {
    const py::gil_scoped_release no_gil;
    spill->start(weights, accelerator);
    spill->reserve(spill_bytes);
    if (accelerator != nullptr && host_bytes > 0) {
      host = std::make_unique<HostTier>(*accelerator, host_bytes);
    }
  }
  engine().start(std::move(spill), std::move(host), accelerator, budget, limit, min_block);
  if (accelerator == nullptr) install_allocator();
  observer::enable();
}

// Watches training on the meta device: no memory is taken, nothing moves.
void watch_meta(uint64_t min_block) {
  engine().set_min_block(min_block);
  observer::enable(true);
}

void unwatch_meta() {
  calls::log(false);
  observer::disable();
}

void stop(const std::optional<py::function>& before_memory_goes) {
  engine().bring_back();
  observer::disable();
  uninstall_allocator();
  engine().stop([&] {
    const py::gil_scoped_acquire gil;
    if (before_memory_goes) (*before_memory_goes)();
  });
}

// Gives `call(inputs)`, as one op. Its operands are `constants`, and the tensors among `inputs`, which may hold anything
// and may be emptied by the call; those at `written` are written to. Whatever ends the call ends the op.
py::object run_graph(const py::object& call, const py::sequence& inputs, const py::sequence& constants,
                     const std::string& name, uint8_t kind, uint32_t module, const std::vector<size_t>& written,
                     bool reuses_inputs) {
  std::vector<bool> writes(inputs.size());
  for (const size_t i : written) {
    if (i < writes.size()) writes[i] = true;
  }
  std::vector<py::object> held;  // until the op has begun
  std::vector<observer::GraphInput> tensors;
  for (size_t i = 0; i < writes.size(); ++i) {
    held.emplace_back(inputs[i]);
    PyObject* input = held.back().ptr();
    if (THPVariable_Check(input)) tensors.push_back({&THPVariable_Unpack(input), writes[i]});
  }
  for (const auto& constant : constants) {
    if (THPVariable_Check(constant.ptr())) tensors.push_back({&THPVariable_Unpack(constant.ptr()), false});
  }
  observer::Graph running(name, static_cast<observer::GraphKind>(kind), module, tensors);
  held.clear();
  py::object results = call(inputs);
  std::vector<const at::Tensor*> given;
  for (const py::handle result : results) {
    if (THPVariable_Check(result.ptr())) given.push_back(&THPVariable_Unpack(result.ptr()));
  }
  running.give(given, reuses_inputs);
  return results;
}

bool adopt(const py::handle& object, std::string name) {
  const auto storage = storage_of(object);
  if (!storage) return false;
  Block* block = nullptr;
  {
    const py::gil_scoped_release no_gil;
    block = storage->device_type() == c10::kMeta ? block_of_meta(storage.get()) : rehome(storage.get());
  }
  if (block == nullptr) return false;
  if (THPVariable_Check(object.ptr())) block->note_dtype(THPVariable_Unpack(object.ptr()).scalar_type());
  engine().adopt(block, storage.get(), std::move(name));
  return true;
}

py::dict end_iteration() {
  observer::end_iteration();
  const IterationStats stats = engine().end_iteration();
  py::dict result;
  result["duration_ns"] = stats.duration_ns;
  result["stall_ns"] = stats.stall_ns;
  result["peak_bytes"] = stats.peak_bytes;
  result["live_bytes"] = stats.live_bytes;
  result["read_bytes"] = stats.read_bytes;
  result["written_bytes"] = stats.written_bytes;
  result["recomputed_bytes"] = stats.recomputed_bytes;
  result["ops"] = stats.ops;
  result["drift_ops"] = stats.drift_ops;
  const Work& work = stats.spill;
  result["spill"] =
      py::make_tuple(work.reading_s, work.writing_s, work.both_s, work.read_bytes, work.written_bytes);
  py::list stalls;
  for (const Stall& stall : stats.stalls) {
    stalls.append(py::make_tuple(stall.op, stall.storage, stall.memory, stall.ns));
  }
  result["stalls"] = stalls;
  result["over_budget"] = stats.over_budget;
  return result;
}

// One Python list per field of a list of events.
template <class Event, class... Fields>
py::tuple columns(const std::vector<Event>& events, Fields... fields) {
  const auto column = [&](auto field) {
    py::list values(events.size());
    for (size_t i = 0; i < events.size(); ++i) values[i] = py::cast(events[i].*field);
    return values;
  };
  return py::make_tuple(column(fields)...);
}

// Names of the dtypes that blocks have, by number. One that is not there stands for none, or for several.
py::dict dtype_names(const std::vector<Recording::Use>& uses) {
  std::set<uint8_t> numbers;
  for (const auto& use : uses) numbers.insert(use.dtype);
  numbers.erase(static_cast<uint8_t>(c10::ScalarType::Undefined));
  numbers.erase(static_cast<uint8_t>(Block::kSeveralDtypes));
  py::dict names;
  for (const uint8_t number : numbers) {
    names[py::int_(number)] = py::cast(c10::getDtypeNames(static_cast<c10::ScalarType>(number)).first);
  }
  return names;
}

py::dict take_recording() {
  const Recording recording = engine().take_recording();
  observer::mode_changed();
  using R = Recording;
  py::dict result;
  result["ops"] =
      columns(recording.ops, &R::Op::name, &R::Op::module, &R::Op::phase, &R::Op::duration_ns, &R::Op::workspace_bytes);
  result["uses"] = columns(recording.uses, &R::Use::block, &R::Use::op, &R::Use::write, &R::Use::dtype);
  result["dtype_names"] = dtype_names(recording.uses);
  result["births"] = columns(recording.births, &R::Birth::block, &R::Birth::nbytes, &R::Birth::op);
  result["deaths"] = columns(recording.deaths, &R::Death::block, &R::Death::op);
  result["anchors"] =
      columns(recording.anchors, &R::AnchorEvent::key, &R::AnchorEvent::occurrence, &R::AnchorEvent::op);
  result["repeatables"] = columns(recording.repeatables, &R::Repeatable::block, &R::Repeatable::op);
  result["calls"] = columns(recording.ops, &R::Op::calls)[0];
  result["untracked_peak_bytes"] = recording.untracked_peak_bytes;
  result["op_names"] = engine().op_names();
  return result;
}

py::list shapes(const std::vector<calls::TensorShape>& tensors) {
  py::list list;
  for (const auto& tensor : tensors) list.append(py::make_tuple(tensor.dtype, tensor.sizes, tensor.nbytes, tensor.written));
  return list;
}

// Signatures as (name, view, inputs, outputs, flags), patterns as lists of signatures.
py::tuple take_calls() {
  py::list signatures;
  for (const auto& signature : calls::signatures()) {
    signatures.append(py::make_tuple(signature.name, signature.view, shapes(signature.inputs),
                                     shapes(signature.outputs), signature.flags));
  }
  py::list patterns = py::cast(calls::patterns());
  calls::log(false);
  return py::make_tuple(signatures, patterns);
}

// (storage, kind, tier, extent), kind and tier as numbers of ActionKind and TierKind.
using Action = std::tuple<int32_t, uint8_t, uint8_t, int64_t>;
// (op, storage that it makes, the storage's number once it is made again).
using Again = std::tuple<uint32_t, int32_t, int32_t>;

void follow(const std::vector<std::string>& op_names, const std::vector<uint32_t>& modules, const std::vector<uint8_t>& phases,
            std::vector<uint64_t> needs, const std::vector<std::vector<Action>>& actions,
            const std::vector<std::vector<int32_t>>& births, const std::vector<std::vector<uint32_t>>& uses,
            const std::vector<bool>& persistent, std::vector<uint64_t> sizes, std::vector<CodecNumber> codecs,
            const std::vector<std::tuple<uint64_t, uint32_t, uint32_t>>& anchors,
            const std::vector<std::pair<int32_t, uint64_t>>& bound, const std::vector<Again>& again) {
  auto schedule = std::make_unique<Schedule>();
  for (size_t i = 0; i < op_names.size(); ++i) {
    const uint32_t name = engine().intern(op_names[i]);
    schedule->names.push_back(name);
    schedule->signatures.push_back(signature_of(name, modules[i], static_cast<Phase>(phases[i])));
  }
  schedule->action_offsets.push_back(0);
  for (const auto& at : actions) {
    for (const auto& [storage, kind, tier, extent] : at) {
      schedule->actions.push_back(
          {storage, static_cast<Schedule::ActionKind>(kind), static_cast<TierKind>(tier), extent});
    }
    schedule->action_offsets.push_back(static_cast<uint32_t>(schedule->actions.size()));
  }
  schedule->birth_offsets.push_back(0);
  for (const auto& at : births) {
    schedule->births.insert(schedule->births.end(), at.begin(), at.end());
    schedule->birth_offsets.push_back(static_cast<uint32_t>(schedule->births.size()));
  }
  schedule->use_offsets.push_back(0);
  for (const auto& of : uses) {
    schedule->uses.insert(schedule->uses.end(), of.begin(), of.end());
    schedule->use_offsets.push_back(static_cast<uint32_t>(schedule->uses.size()));
  }
  schedule->persistent = persistent;
  schedule->sizes = std::move(sizes);
  schedule->codecs = std::move(codecs);
  schedule->needs = std::move(needs);
  for (const auto& [key, occurrence, op] : anchors) {
    auto& positions = schedule->anchors[key];
    if (positions.size() <= occurrence) positions.resize(occurrence + 1, op);
    positions[occurrence] = op;
  }
  schedule->again.assign(persistent.size(), -1);
  for (const auto& [op, storage, then] : again) {
    schedule->repeats[op] = storage;
    schedule->again[static_cast<size_t>(storage)] = then;
  }
  engine().follow(std::move(schedule), bound);
  observer::mode_changed();
}

const char* state_name(State state) {
  switch (state) {
    case State::kResident: return "resident";
    case State::kLeaving: return "leaving";
    case State::kAway: return "away";
    case State::kComing: return "coming";
  }
  return "";
}

void install_fork_handlers() {
  pthread_atfork(
      [] {
        observer::before_fork();
        first_sight_mutex().lock();
        engine().before_fork();
        fresh_blocks_mutex().lock();
      },
      [] {
        fresh_blocks_mutex().unlock();
        engine().after_fork_in_parent();
        first_sight_mutex().unlock();
        observer::after_fork(false);
      },
      [] {
        fresh_blocks_mutex().unlock();
        engine().after_fork_in_child();
        first_sight_mutex().unlock();
        observer::after_fork(true);
      });
}

}  // namespace
}  // namespace teraio

PYBIND11_MODULE(_C, m) {
  using namespace teraio;
  install_fork_handlers();

  m.def("set_error_types", [](const py::object& budget, const py::object& spill) {
    error_types() = {py::object(budget).release().ptr(), py::object(spill).release().ptr()};
  });
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (torch::PyTorchError& error) {
      PyErr_SetString(error.python_type(), error.what());
    }
  });

  bind_spill_space(m);
  m.def("start", &start);
  m.def("stop", &stop, py::arg("before_memory_goes") = py::none());
  m.def("watch_meta", &watch_meta);
  m.def("unwatch_meta", &unwatch_meta);
  m.def("log_calls", [] { calls::log(true); });
  m.def("take_calls", &take_calls);
  m.def("on_io_thread", &SpillSpace::on_io_thread);
  m.def("active", [] { return engine().active(); });
  m.def("forked", [] { return engine().forked(); });
  m.def("release_free_pages", [](uint64_t nbytes) { engine().release_free_pages(nbytes); }, py::arg("nbytes") = 0);
  m.def("reserve_host", [](uint64_t nbytes) { return addresses(engine().reserve_host(nbytes)); });
  m.def("host_speeds", [](size_t nbytes) {
    const py::gil_scoped_release no_gil;
    const HostSpeeds speeds = engine().host_speeds(nbytes);
    return std::make_tuple(speeds.read_bytes_per_s, speeds.write_bytes_per_s, speeds.mixed_bytes_per_s);
  });
  m.def("staging_memory", [] { return addresses(engine().staging_memory()); });
  m.def("allocated", [](const std::string& device) { return accelerator_of(device)->allocated().current; });
  m.def("install_free_memory_callback", [] { return install_free_memory_callback(&free_memory); });
  // For devices whose allocators take a function's address.
  m.def("free_memory_address", [] { return reinterpret_cast<uintptr_t>(&free_memory); });
  m.def("encode_by_default", [](CodecNumber codec) { engine().encode_by_default(codec); });
  m.def("reserve_spill", [](uint64_t nbytes) { engine().reserve_spill(nbytes); });

  m.def("adopt", &adopt);
  m.def("block_id", [](const py::handle& object) {
    return with_block(object, uint64_t{0}, [](Block* block, c10::StorageImpl*) { return block->id; });
  });
  m.def("name", [](const py::handle& object) {
    return with_block(object, std::string(), [](Block* block, c10::StorageImpl*) { return block->name; });
  });
  m.def("state", [](const py::handle& object) -> std::string {
    return with_block(object, "foreign", [](Block* block, c10::StorageImpl*) {
      return state_name(engine().state_of(block));
    });
  });
  m.def("send_away", [](const py::handle& object) {
    return with_block(object, false,
                      [](Block* block, c10::StorageImpl* storage) { return engine().send_away(block, storage); });
  });
  m.def("stress", [](unsigned max_delay_us) { engine().stress(max_delay_us); });
  m.def("be_patient", [](int64_t duration_ns) { engine().be_patient(duration_ns); });
  m.def("publish", [](const py::handle& object, bool lent) {
    return with_block(object, uintptr_t{0}, [lent](Block* block, c10::StorageImpl* storage) {
      return reinterpret_cast<uintptr_t>(engine().publish(block, storage, lent));
    });
  });
  m.def("window", &window);
  py::class_<Hold>(m, "Hold").def(py::init<const py::handle&, bool>()).def("release", &Hold::release);
  m.def("live_blocks", [] {
    std::vector<std::tuple<uint64_t, uint64_t, bool>> live;
    for (const auto& block : engine().live_blocks()) live.emplace_back(block.id, block.nbytes, block.movable);
    return live;
  });
  m.def("totals", [] {
    const auto totals = engine().totals();
    py::dict result;
    result["used"] = totals.used;
    result["budget"] = totals.budget;
    result["cached"] = totals.cached;
    result["spill_reserved"] = totals.spill_reserved;
    result["away"] = totals.away;
    return result;
  });

  m.def("run_graph", &run_graph);
  m.def("in_graph", &observer::in_graph);
  m.def("mark_training_thread", &observer::mark_training_thread);
  m.def("enter_module", &observer::enter_module);
  m.def("exit_module", &observer::exit_module);
  m.def("begin_optimizer", &observer::begin_optimizer);
  m.def("end_optimizer", &observer::end_optimizer);
  m.def("end_iteration", &end_iteration);
  m.def("begin_iteration", [] { engine().begin_iteration(); });
  m.def("record", [](bool on) {
    engine().record(on);
    observer::mode_changed();
  });
  m.def("take_recording", &take_recording);
  m.def("follow", &follow);
  m.def("look_on", [](uint64_t nbytes, int64_t duration_ns) { engine().look_on(nbytes, duration_ns); });
  m.def("guard_births", [](bool guarded) { Engine::frame().unguarded = !guarded; });
  m.def("guard_quietly", [] {
    engine().guard_quietly();
    observer::mode_changed();
  });
  m.def("expect_moves", [](bool any) {
    engine().expect_moves(any);
    observer::mode_changed();
  });
  m.def("unfollow", [] {
    engine().unfollow();
    observer::mode_changed();
  });
}

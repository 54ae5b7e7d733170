// CUDA's runtime and the part of its driver that PyTorch and kvikio call, on the CPU.
//
// In: calls of libcudart and libcuda. Out: memory, streams, events and copies, in the order and as late as on a GPU.
// Must not know: PyTorch. Kernels there are none: who launches one is told its name, and that it failed.
#include <cuda.h>
#include <cuda_runtime_api.h>
#include <cxxabi.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <vector>

#include "memory.h"
#include "stream.h"

using cuda_double::Event;
using cuda_double::memory;
using cuda_double::Memory;
using cuda_double::Stream;

namespace {

constexpr int kVersion = CUDART_VERSION;
constexpr size_t kPage = 4096;

thread_local cudaError_t last_error = cudaSuccess;

cudaError_t answer(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) last_error = error;
  return error;
}

cudaError_t missing(const char* name) {
  std::fprintf(stderr, "cuda_double: %s is not there\n", name);
  return answer(cudaErrorNotSupported);
}

Stream& stream_of(const void* handle) {
  const bool null = handle == nullptr || handle == cudaStreamLegacy || handle == cudaStreamPerThread;
  return null ? cuda_double::null_stream() : *static_cast<Stream*>(const_cast<void*>(handle));
}

// ---------------------------------------------------------------- memory

std::mutex tables_mutex;
std::unordered_map<uintptr_t, size_t> allocations;  // of cudaMalloc
std::map<uintptr_t, size_t> pinned;                 // page-locked host memory
struct Mapping {
  CUmemGenericAllocationHandle handle;
  size_t nbytes;
};
std::unordered_map<uintptr_t, Mapping> mappings;
struct Physical {
  size_t nbytes;
  int users;
};
std::unordered_map<CUmemGenericAllocationHandle, Physical> physical;
CUmemGenericAllocationHandle next_handle = 1;

size_t whole(size_t nbytes) {
  return (nbytes + Memory::kGranularity - 1) / Memory::kGranularity * Memory::kGranularity;
}

bool is_pinned(const void* address) {
  const auto at = reinterpret_cast<uintptr_t>(address);
  const std::lock_guard<std::mutex> lock(tables_mutex);
  auto after = pinned.upper_bound(at);
  return after != pinned.begin() && std::prev(after)->first + std::prev(after)->second > at;
}

void drop(CUmemGenericAllocationHandle handle) {
  const auto found = physical.find(handle);
  if (--found->second.users > 0) return;
  memory().release(found->second.nbytes);
  physical.erase(found);
}

// Of an H200 on PCIe 5.0, in bytes per second.
constexpr double kLink = 54e9, kDeviceCopy = 2.1e12, kDeviceFill = 4.0e12;
constexpr double kCopyLatency = 8e-6;
constexpr double kMappingTime = 50e-6;  // of a segment's 20 MiB

// Only the time of the copy is kept.
bool is_left_out(size_t nbytes) { return cuda_double::pace() > 0 && nbytes > cuda_double::kFewBytes; }

// The host works so long on this on a GPU.
void take_time(double seconds) {
  if (cuda_double::pace() == 0) return;
  std::this_thread::sleep_for(std::chrono::duration<double>(cuda_double::pace() * seconds));
}

// [Note: copies and the host]
// A copy between the device and page-locked memory runs when its turn comes. From other memory the data is read at
// once; into such memory the call returns when the copy is done.
cudaError_t copy(void* to, const void* from, size_t nbytes, Stream& stream, bool blocks) {
  const bool from_host = !memory().contains(from);
  const bool to_host = !memory().contains(to);
  void* target = memory().view(to);
  const void* source = memory().view(from);
  const double rate = from_host || to_host ? kLink : kDeviceCopy;
  const double seconds = kCopyLatency + static_cast<double>(nbytes) / rate;
  if (is_left_out(nbytes)) {
    stream.launch([] {}, seconds);
  } else if (from_host && !is_pinned(from) && !blocks) {
    const auto* bytes = static_cast<const char*>(source);
    stream.launch([target, held = std::vector<char>(bytes, bytes + nbytes)] {
      std::memcpy(target, held.data(), held.size());
    }, seconds);
  } else {
    stream.launch([target, source, nbytes] { std::memmove(target, source, nbytes); }, seconds);
  }
  if (blocks || (to_host && !is_pinned(to))) stream.synchronize();
  return cudaSuccess;
}

cudaError_t fill(void* at, int value, size_t nbytes, Stream& stream) {
  const size_t filled = is_left_out(nbytes) ? 0 : nbytes;
  stream.launch([target = memory().view(at), value, filled] { std::memset(target, value, filled); },
                kCopyLatency + static_cast<double>(nbytes) / kDeviceFill);
  return cudaSuccess;
}

// ---------------------------------------------------------------- kernels

std::mutex kernels_mutex;
std::unordered_map<const void*, const char*>& kernels() {
  static auto* made = new std::unordered_map<const void*, const char*>;
  return *made;
}

cudaError_t refuse_kernel(const void* function) {
  const char* name = nullptr;
  {
    const std::lock_guard<std::mutex> lock(kernels_mutex);
    const auto found = kernels().find(function);
    if (found != kernels().end()) name = found->second;
  }
  char* readable = name == nullptr ? nullptr : abi::__cxa_demangle(name, nullptr, nullptr, nullptr);
  std::fprintf(stderr, "cuda_double: a kernel of the GPU was launched: %s\n",
               readable != nullptr ? readable : (name != nullptr ? name : "one without a name"));
  std::free(readable);
  return answer(cudaErrorNoKernelImageForDevice);
}

}  // namespace

extern "C" {

// ---------------------------------------------------------------- tests

void cuda_double_set_delay(int64_t max_us) { cuda_double::set_delay(max_us); }
// Where the bytes of a device pointer are.
void* cuda_double_view(const void* address) { return memory().view(address); }
double cuda_double_pace() { return cuda_double::pace(); }
// A kernel that a GPU would take so long for, where there is a pace.
void cuda_double_be_busy(cudaStream_t stream, double seconds) { stream_of(stream).launch([] {}, seconds); }

// ---------------------------------------------------------------- the device

cudaError_t cudaGetDeviceCount(int* count) { return *count = 1, cudaSuccess; }
cudaError_t cudaGetDevice(int* device) { return *device = 0, cudaSuccess; }
cudaError_t cudaSetDevice(int device) { return answer(device == 0 ? cudaSuccess : cudaErrorInvalidDevice); }
cudaError_t cudaDriverGetVersion(int* version) { return *version = kVersion, cudaSuccess; }
cudaError_t cudaRuntimeGetVersion(int* version) { return *version = kVersion, cudaSuccess; }

cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int /*device*/) {
  std::memset(properties, 0, sizeof *properties);
  std::strcpy(properties->name, "Double of a GPU");
  properties->totalGlobalMem = memory().total_bytes();
  properties->sharedMemPerBlock = 48 << 10;
  properties->sharedMemPerMultiprocessor = 228 << 10;
  properties->sharedMemPerBlockOptin = 227 << 10;
  properties->regsPerBlock = properties->regsPerMultiprocessor = 64 << 10;
  properties->warpSize = 32;
  properties->maxThreadsPerBlock = 1024;
  properties->maxThreadsPerMultiProcessor = 2048;
  properties->multiProcessorCount = 4;
  properties->major = 9;
  properties->l2CacheSize = 50 << 20;
  properties->pciBusID = 1;
  for (int i = 0; i < 3; ++i) properties->maxThreadsDim[i] = 1024, properties->maxGridSize[i] = 65535;
  properties->unifiedAddressing = properties->managedMemory = properties->concurrentKernels = 1;
  return cudaSuccess;
}

cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int /*device*/) {
  switch (attribute) {
    case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
    case cudaDevAttrMultiProcessorCount: *value = 4; break;
    case cudaDevAttrMaxThreadsPerBlock: *value = 1024; break;
    case cudaDevAttrWarpSize: *value = 32; break;
    case cudaDevAttrUnifiedAddressing: *value = 1; break;
    default: *value = 0;
  }
  return cudaSuccess;
}

cudaError_t cudaDeviceGetStreamPriorityRange(int* least, int* greatest) {
  *least = 0;
  *greatest = -5;
  return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char* id, int size, int /*device*/) {
  std::snprintf(id, static_cast<size_t>(size), "0000:01:00.0");
  return cudaSuccess;
}
cudaError_t cudaDeviceCanAccessPeer(int* can, int, int) { return *can = 0, cudaSuccess; }
cudaError_t cudaDeviceSynchronize() { return cuda_double::synchronize_all(), cudaSuccess; }
cudaError_t cudaGetLastError() {
  const cudaError_t error = last_error;
  last_error = cudaSuccess;
  return error;
}
cudaError_t cudaPeekAtLastError() { return last_error; }
const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
    case cudaSuccess: return "cudaSuccess";
    case cudaErrorMemoryAllocation: return "cudaErrorMemoryAllocation";
    case cudaErrorNotReady: return "cudaErrorNotReady";
    case cudaErrorNotSupported: return "cudaErrorNotSupported";
    case cudaErrorNoKernelImageForDevice: return "cudaErrorNoKernelImageForDevice";
    default: return "cudaErrorUnknown";
  }
}
const char* cudaGetErrorString(cudaError_t error) { return cudaGetErrorName(error); }

// ---------------------------------------------------------------- memory

cudaError_t cudaMalloc(void** address, size_t nbytes) {
  const size_t size = whole(nbytes);
  if (!memory().take(size)) return answer(cudaErrorMemoryAllocation);
  const uintptr_t at = memory().reserve(size, Memory::kGranularity);
  memory().map(at, size);
  const std::lock_guard<std::mutex> lock(tables_mutex);
  allocations[at] = size;
  *address = reinterpret_cast<void*>(at);
  return cudaSuccess;
}

cudaError_t cudaFree(void* address) {
  cuda_double::synchronize_all();
  if (address == nullptr) return cudaSuccess;
  const auto at = reinterpret_cast<uintptr_t>(address);
  size_t nbytes = 0;
  {
    const std::lock_guard<std::mutex> lock(tables_mutex);
    const auto found = allocations.find(at);
    if (found == allocations.end()) return answer(cudaErrorInvalidValue);
    nbytes = found->second;
    allocations.erase(found);
  }
  memory().unmap(at, nbytes);
  memory().release(nbytes);
  memory().give_back(at, nbytes);
  return cudaSuccess;
}

cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  *free = memory().free_bytes();
  *total = memory().total_bytes();
  return cudaSuccess;
}

cudaError_t cudaHostRegister(void* address, size_t nbytes, unsigned /*flags*/) {
  const std::lock_guard<std::mutex> lock(tables_mutex);
  const bool fresh = pinned.emplace(reinterpret_cast<uintptr_t>(address), nbytes).second;
  return answer(fresh ? cudaSuccess : cudaErrorHostMemoryAlreadyRegistered);
}
cudaError_t cudaHostUnregister(void* address) {
  const std::lock_guard<std::mutex> lock(tables_mutex);
  return answer(pinned.erase(reinterpret_cast<uintptr_t>(address)) == 1 ? cudaSuccess
                                                                        : cudaErrorHostMemoryNotRegistered);
}
cudaError_t cudaHostAlloc(void** address, size_t nbytes, unsigned flags) {
  if (posix_memalign(address, kPage, nbytes) != 0) return answer(cudaErrorMemoryAllocation);
  return cudaHostRegister(*address, nbytes, flags);
}
cudaError_t cudaFreeHost(void* address) {
  cuda_double::synchronize_all();
  const cudaError_t error = cudaHostUnregister(address);
  if (error == cudaSuccess) std::free(address);
  return error;
}

cudaError_t cudaPointerGetAttributes(cudaPointerAttributes* attributes, const void* address) {
  std::memset(attributes, 0, sizeof *attributes);
  const bool here = memory().contains(address);
  const bool locked = !here && is_pinned(address);
  attributes->type = here ? cudaMemoryTypeDevice : (locked ? cudaMemoryTypeHost : cudaMemoryTypeUnregistered);
  attributes->device = here || locked ? 0 : -2;
  if (here) attributes->devicePointer = const_cast<void*>(address);
  if (!here) attributes->hostPointer = locked ? const_cast<void*>(address) : nullptr;
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t nbytes, cudaMemcpyKind /*kind*/, cudaStream_t stream) {
  return copy(to, from, nbytes, stream_of(stream), /*blocks=*/false);
}
cudaError_t cudaMemcpy(void* to, const void* from, size_t nbytes, cudaMemcpyKind /*kind*/) {
  return copy(to, from, nbytes, cuda_double::null_stream(), /*blocks=*/true);
}
cudaError_t cudaMemsetAsync(void* at, int value, size_t nbytes, cudaStream_t stream) {
  return fill(at, value, nbytes, stream_of(stream));
}
cudaError_t cudaMemset(void* at, int value, size_t nbytes) {
  return fill(at, value, nbytes, cuda_double::null_stream());
}

// ---------------------------------------------------------------- streams and events

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* stream, unsigned flags, int /*priority*/) {
  *stream = reinterpret_cast<cudaStream_t>(cuda_double::new_stream((flags & cudaStreamNonBlocking) == 0));
  return cudaSuccess;
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags) {
  return cudaStreamCreateWithPriority(stream, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* stream) { return cudaStreamCreateWithPriority(stream, 0, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  cuda_double::destroy(&stream_of(stream));
  return cudaSuccess;
}
cudaError_t cudaStreamGetPriority(cudaStream_t, int* priority) { return *priority = 0, cudaSuccess; }
cudaError_t cudaStreamSynchronize(cudaStream_t stream) { return stream_of(stream).synchronize(), cudaSuccess; }
cudaError_t cudaStreamQuery(cudaStream_t stream) { return stream_of(stream).idle() ? cudaSuccess : cudaErrorNotReady; }
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned /*flags*/) {
  reinterpret_cast<Event*>(event)->block(stream_of(stream));
  return cudaSuccess;
}
cudaError_t cudaStreamIsCapturing(cudaStream_t, cudaStreamCaptureStatus* status) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaStreamGetCaptureInfo(cudaStream_t, cudaStreamCaptureStatus* status, unsigned long long* /*id*/,
                                     cudaGraph_t*, const cudaGraphNode_t**, const cudaGraphEdgeData**, size_t*) {
  return *status = cudaStreamCaptureStatusNone, cudaSuccess;
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode*) { return cudaSuccess; }
cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) { return missing("cudaStreamBeginCapture"); }

// The way kernels of tests get into a stream.
cudaError_t cudaLaunchHostFunc(cudaStream_t stream, cudaHostFn_t function, void* data) {
  stream_of(stream).launch([function, data] { function(data); });
  return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
  *event = reinterpret_cast<cudaEvent_t>(new Event((flags & cudaEventDisableTiming) == 0));
  return cudaSuccess;
}
cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, 0); }
cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete reinterpret_cast<Event*>(event), cudaSuccess; }
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  reinterpret_cast<Event*>(event)->record(stream_of(stream));
  return cudaSuccess;
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t event, cudaStream_t stream, unsigned /*flags*/) {
  return cudaEventRecord(event, stream);
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
  return reinterpret_cast<Event*>(event)->reached() ? cudaSuccess : cudaErrorNotReady;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  return reinterpret_cast<Event*>(event)->synchronize(), cudaSuccess;
}
cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t from, cudaEvent_t to) {
  const auto& begin = *reinterpret_cast<Event*>(from);
  const auto& end = *reinterpret_cast<Event*>(to);
  if (!begin.timed() || !end.timed()) return answer(cudaErrorInvalidResourceHandle);
  if (!begin.reached() || !end.reached()) return answer(cudaErrorNotReady);
  *milliseconds = static_cast<float>(Event::elapsed_ms(begin, end));
  return cudaSuccess;
}

// ---------------------------------------------------------------- kernels

void** __cudaRegisterFatBinary(void*) {
  static void* handle = nullptr;
  return &handle;
}
void __cudaRegisterFatBinaryEnd(void**) {}
void __cudaUnregisterFatBinary(void**) {}
char __cudaInitModule(void**) { return 0; }
void __cudaRegisterFunction(void**, const char* host, char*, const char* name, int, void*, void*, void*, void*, int*) {
  const std::lock_guard<std::mutex> lock(kernels_mutex);
  kernels()[host] = name;
}
void __cudaRegisterVar(void**, char*, char*, const char*, int, size_t, int, int) {}
unsigned __cudaPushCallConfiguration(dim3, dim3, size_t, void*) { return 0; }
cudaError_t __cudaPopCallConfiguration(dim3*, dim3*, size_t*, void*) { return cudaSuccess; }
cudaError_t __cudaGetKernel(cudaKernel_t* kernel, const void* function) {
  *kernel = static_cast<cudaKernel_t>(const_cast<void*>(function));
  return cudaSuccess;
}
cudaError_t __cudaLaunchKernel(cudaKernel_t kernel, dim3, dim3, void**, size_t, cudaStream_t) {
  return refuse_kernel(kernel);
}
cudaError_t cudaLaunchKernel(const void* function, dim3, dim3, void**, size_t, cudaStream_t) {
  return refuse_kernel(function);
}
cudaError_t cudaLaunchKernelExC(const cudaLaunchConfig_t*, const void* function, void**) {
  return refuse_kernel(function);
}

// ---------------------------------------------------------------- the driver

CUresult cuInit(unsigned) { return CUDA_SUCCESS; }
CUresult cuDriverGetVersion(int* version) { return *version = kVersion, CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice* device, int) { return *device = 0, CUDA_SUCCESS; }
CUresult cuDeviceGetCount(int* count) { return *count = 1, CUDA_SUCCESS; }
CUresult cuDeviceGetAttribute(int* value, CUdevice_attribute attribute, CUdevice) {
  *value = attribute == CU_DEVICE_ATTRIBUTE_VIRTUAL_MEMORY_MANAGEMENT_SUPPORTED ||
           attribute == CU_DEVICE_ATTRIBUTE_UNIFIED_ADDRESSING;
  if (attribute == CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR) *value = 9;
  return CUDA_SUCCESS;
}
CUresult cuGetErrorString(CUresult error, const char** text) {
  *text = error == CUDA_ERROR_OUT_OF_MEMORY ? "out of memory" : (error == CUDA_SUCCESS ? "no error" : "unknown error");
  return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult error, const char** text) { return cuGetErrorString(error, text); }
CUresult cuDevicePrimaryCtxGetState(CUdevice, unsigned* flags, int* active) {
  *flags = 0;
  *active = 1;
  return CUDA_SUCCESS;
}
// There is one context, and only its address is known.
static CUcontext the_context() {
  static char context;
  return reinterpret_cast<CUcontext>(&context);
}
CUresult cuDevicePrimaryCtxRetain(CUcontext* context, CUdevice) { return *context = the_context(), CUDA_SUCCESS; }
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice) { return CUDA_SUCCESS; }
CUresult cuCtxGetCurrent(CUcontext* context) { return *context = the_context(), CUDA_SUCCESS; }
CUresult cuCtxSetCurrent(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPushCurrent_v2(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxPopCurrent_v2(CUcontext* context) {
  if (context != nullptr) *context = the_context();
  return CUDA_SUCCESS;
}
CUresult cuCtxCreate_v4(CUcontext* context, CUctxCreateParams*, unsigned, CUdevice) {
  return *context = the_context(), CUDA_SUCCESS;
}
CUresult cuCtxDestroy_v2(CUcontext) { return CUDA_SUCCESS; }
CUresult cuCtxGetDevice(CUdevice* device) { return *device = 0, CUDA_SUCCESS; }
CUresult cuCtxSynchronize() { return cuda_double::synchronize_all(), CUDA_SUCCESS; }

CUresult cuMemAddressReserve(CUdeviceptr* address, size_t nbytes, size_t alignment, CUdeviceptr, unsigned long long) {
  *address = memory().reserve(nbytes, alignment == 0 ? Memory::kGranularity : alignment);
  return *address == 0 ? CUDA_ERROR_OUT_OF_MEMORY : CUDA_SUCCESS;
}
CUresult cuMemAddressFree(CUdeviceptr address, size_t nbytes) {
  return memory().give_back(address, nbytes), CUDA_SUCCESS;
}
CUresult cuMemGetAllocationGranularity(size_t* nbytes, const CUmemAllocationProp*, CUmemAllocationGranularity_flags) {
  return *nbytes = Memory::kGranularity, CUDA_SUCCESS;
}
CUresult cuMemCreate(CUmemGenericAllocationHandle* handle, size_t nbytes, const CUmemAllocationProp*,
                     unsigned long long) {
  if (!memory().take(nbytes)) return CUDA_ERROR_OUT_OF_MEMORY;
  take_time(kMappingTime);
  const std::lock_guard<std::mutex> lock(tables_mutex);
  physical[*handle = next_handle++] = {nbytes, 1};
  return CUDA_SUCCESS;
}
CUresult cuMemRelease(CUmemGenericAllocationHandle handle) {
  const std::lock_guard<std::mutex> lock(tables_mutex);
  return drop(handle), CUDA_SUCCESS;
}
CUresult cuMemMap(CUdeviceptr address, size_t nbytes, size_t, CUmemGenericAllocationHandle handle,
                  unsigned long long) {
  memory().map(address, nbytes);
  const std::lock_guard<std::mutex> lock(tables_mutex);
  ++physical.at(handle).users;
  mappings[address] = {handle, nbytes};
  return CUDA_SUCCESS;
}
CUresult cuMemUnmap(CUdeviceptr address, size_t nbytes) {
  if (cuda_double::pace() == 0) cuda_double::synchronize_all();  // it may or may not; programs must wait themselves
  take_time(kMappingTime);
  const std::lock_guard<std::mutex> lock(tables_mutex);
  memory().unmap(address, nbytes);
  for (size_t done = 0; done < nbytes;) {
    const auto found = mappings.find(address + done);
    if (found == mappings.end()) return CUDA_ERROR_INVALID_VALUE;
    done += found->second.nbytes;
    drop(found->second.handle);
    mappings.erase(found);
  }
  return CUDA_SUCCESS;
}
CUresult cuMemSetAccess(CUdeviceptr, size_t, const CUmemAccessDesc*, size_t) { return CUDA_SUCCESS; }

CUresult cuPointerGetAttribute(void* value, CUpointer_attribute attribute, CUdeviceptr address) {
  const auto* at = reinterpret_cast<const void*>(address);
  const bool here = memory().contains(at);
  if (!here && !is_pinned(at)) return CUDA_ERROR_INVALID_VALUE;
  switch (attribute) {
    case CU_POINTER_ATTRIBUTE_MEMORY_TYPE:
      *static_cast<unsigned*>(value) = here ? CU_MEMORYTYPE_DEVICE : CU_MEMORYTYPE_HOST;
      return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_CONTEXT: *static_cast<CUcontext*>(value) = the_context(); return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_ORDINAL: *static_cast<int*>(value) = 0; return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_DEVICE_POINTER: *static_cast<CUdeviceptr*>(value) = address; return CUDA_SUCCESS;
    case CU_POINTER_ATTRIBUTE_IS_MANAGED: *static_cast<unsigned*>(value) = 0; return CUDA_SUCCESS;
    default: return CUDA_ERROR_NOT_SUPPORTED;
  }
}
CUresult cuPointerGetAttributes(unsigned count, CUpointer_attribute* attributes, void** values, CUdeviceptr address) {
  for (unsigned i = 0; i < count; ++i) {
    // What does not apply reads as zero here, where the call for one attribute fails.
    if (cuPointerGetAttribute(values[i], attributes[i], address) != CUDA_SUCCESS) std::memset(values[i], 0, 4);
  }
  return CUDA_SUCCESS;
}
CUresult cuMemGetAddressRange_v2(CUdeviceptr* begin, size_t* nbytes, CUdeviceptr address) {
  const std::lock_guard<std::mutex> lock(tables_mutex);
  for (const auto& [at, size] : allocations) {
    if (address >= at && address < at + size) return *begin = at, *nbytes = size, CUDA_SUCCESS;
  }
  for (const auto& [at, mapping] : mappings) {
    if (address >= at && address < at + mapping.nbytes) return *begin = at, *nbytes = mapping.nbytes, CUDA_SUCCESS;
  }
  return CUDA_ERROR_INVALID_VALUE;
}

CUresult cuMemHostAlloc(void** address, size_t nbytes, unsigned flags) {
  return cudaHostAlloc(address, nbytes, flags) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFreeHost(void* address) {
  return cudaFreeHost(address) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemHostRegister_v2(void* address, size_t nbytes, unsigned flags) {
  return cudaHostRegister(address, nbytes, flags) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemHostUnregister(void* address) {
  return cudaHostUnregister(address) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void* from, size_t nbytes, CUstream stream) {
  copy(reinterpret_cast<void*>(to), from, nbytes, stream_of(stream), /*blocks=*/false);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyDtoHAsync_v2(void* to, CUdeviceptr from, size_t nbytes, CUstream stream) {
  copy(to, reinterpret_cast<const void*>(from), nbytes, stream_of(stream), /*blocks=*/false);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyAsync(CUdeviceptr to, CUdeviceptr from, size_t nbytes, CUstream stream) {
  copy(reinterpret_cast<void*>(to), reinterpret_cast<const void*>(from), nbytes, stream_of(stream), /*blocks=*/false);
  return CUDA_SUCCESS;
}
CUresult cuMemcpyBatchAsync_v2(CUdeviceptr* to, CUdeviceptr* from, size_t* nbytes, size_t count, CUmemcpyAttributes*,
                               size_t*, size_t, CUstream stream) {
  for (size_t i = 0; i < count; ++i) cuMemcpyAsync(to[i], from[i], nbytes[i], stream);
  return CUDA_SUCCESS;
}
CUresult cuStreamCreate(CUstream* stream, unsigned flags) {
  return cudaStreamCreateWithFlags(stream, flags), CUDA_SUCCESS;
}
CUresult cuStreamDestroy_v2(CUstream stream) { return cudaStreamDestroy(stream), CUDA_SUCCESS; }
CUresult cuStreamSynchronize(CUstream stream) { return cudaStreamSynchronize(stream), CUDA_SUCCESS; }
CUresult cuLaunchHostFunc(CUstream stream, CUhostFn function, void* data) {
  return cudaLaunchHostFunc(stream, function, data), CUDA_SUCCESS;
}
CUresult cuStreamWaitEvent(CUstream stream, CUevent event, unsigned flags) {
  return cudaStreamWaitEvent(stream, event, flags), CUDA_SUCCESS;
}
CUresult cuStreamQuery(CUstream stream) {
  return cudaStreamQuery(stream) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuEventCreate(CUevent* event, unsigned flags) { return cudaEventCreateWithFlags(event, flags), CUDA_SUCCESS; }
CUresult cuEventDestroy_v2(CUevent event) { return cudaEventDestroy(event), CUDA_SUCCESS; }
CUresult cuEventRecord(CUevent event, CUstream stream) { return cudaEventRecord(event, stream), CUDA_SUCCESS; }
CUresult cuEventQuery(CUevent event) {
  return cudaEventQuery(event) == cudaSuccess ? CUDA_SUCCESS : CUDA_ERROR_NOT_READY;
}
CUresult cuEventSynchronize(CUevent event) { return cudaEventSynchronize(event), CUDA_SUCCESS; }
CUresult cuStreamGetCtx(CUstream, CUcontext* context) { return *context = the_context(), CUDA_SUCCESS; }

cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned /*version*/,
                                             unsigned long long /*flags*/, cudaDriverEntryPointQueryResult* status) {
  static const std::unordered_map<std::string, void*> known = {
#define KNOWN(name) {#name, reinterpret_cast<void*>(&name)}
      KNOWN(cuDeviceGet),      KNOWN(cuDeviceGetAttribute), KNOWN(cuMemAddressReserve), KNOWN(cuMemRelease),
      KNOWN(cuMemMap),         KNOWN(cuMemAddressFree),     KNOWN(cuMemSetAccess),      KNOWN(cuMemUnmap),
      KNOWN(cuMemCreate),      KNOWN(cuGetErrorString),     KNOWN(cuCtxGetCurrent),     KNOWN(cuCtxSetCurrent),
      KNOWN(cuMemGetAllocationGranularity),
  };
  const auto found = known.find(name);
  if (found != known.end()) {
    *function = found->second;
  } else {
    // It must be there, or PyTorch has none of the others either; nobody calls it.
    static const auto absent = +[]() -> CUresult { return CUDA_ERROR_NOT_SUPPORTED; };
    *function = reinterpret_cast<void*>(absent);
  }
  if (status != nullptr) *status = cudaDriverEntryPointSuccess;
  return cudaSuccess;
}

// ---------------------------------------------------------------- NVML

// PyTorch asks it whether devices are joined by a fabric. 3: not supported.
int nvmlInit_v2() { return 0; }
int nvmlDeviceGetHandleByPciBusId_v2(const char*, void** device) { return *device = nullptr, 0; }
int nvmlDeviceGetNvLinkRemoteDeviceType(void*, unsigned, void*) { return 3; }
int nvmlDeviceGetNvLinkRemotePciInfo_v2(void*, unsigned, void*) { return 3; }
int nvmlDeviceGetComputeRunningProcesses(void*, unsigned* count, void*) { return *count = 0, 0; }
int nvmlSystemGetCudaDriverVersion_v2(int* version) { return *version = kVersion, 0; }
int nvmlDeviceGetGpuFabricInfoV(void*, void*) { return 3; }

}  // extern "C"

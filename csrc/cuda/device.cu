// The devices that there are, and what went wrong on them.
#include <mutex>

#include "entry.cuh"

namespace ofa {

static thread_local const char* last_error = "none";

int keep_error(int error) {
    if (!error) return OFA_OK;
    last_error = cudaGetErrorString(static_cast<cudaError_t>(error));
    cudaGetLastError();  // it is told here, and must not be found by another's call
    return OFA_CUDA_ERROR;
}

static int attribute(cudaDeviceAttr name, int device) {
    int value = 0;
    keep_error(cudaDeviceGetAttribute(&value, name, device));
    return value;
}

static Device described(int device) {
    Device found;
    found.multiprocessors = attribute(cudaDevAttrMultiProcessorCount, device);
    found.threads = MAX_THREADS;
    found.shared_block = attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    found.shared_multiprocessor = attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor, device);
    // 8 is what every device with clusters takes
    found.cluster = attribute(cudaDevAttrClusterLaunch, device) ? 8 : 1;
    found.early = attribute(cudaDevAttrComputeCapabilityMajor, device) >= 9;
    return found;
}

const Device* device_of(int64_t number) {
    constexpr int MOST = 64;
    static Device devices[MOST];
    static std::once_flag known[MOST];
    int count = 0;
    if (keep_error(cudaGetDeviceCount(&count))) return nullptr;
    if (number < 0 || number >= std::min(count, MOST)) {
        last_error = "there is no device of this number";
        return nullptr;
    }
    std::call_once(known[number], [number] { devices[number] = described(static_cast<int>(number)); });
    return &devices[number];
}

Current::Current(int64_t device) {
    int now = 0;
    if (!keep_error(cudaGetDevice(&now)) && now != device) {
        before_ = now;
        keep_error(cudaSetDevice(static_cast<int>(device)));
    }
}

Current::~Current() {
    if (before_ >= 0) keep_error(cudaSetDevice(before_));
}

}  // namespace ofa

extern "C" OFA_EXPORT const char* ofa_cuda_last_error(void) { return ofa::last_error; }
extern "C" OFA_EXPORT const char* ofa_cuda_architectures(void) { return OFA_CUDA_ARCHITECTURES; }

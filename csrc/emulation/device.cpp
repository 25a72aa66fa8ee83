// A device whose size the tests choose, so that short rows are long ones to it.
#include "entry.cuh"

namespace ofa {

static Device emulated = {4, 64, 16, 227 * 1024, 228 * 1024, false};
static thread_local std::string last_error = "none";

int keep_error(int) { return OFA_OK; }

int keep_fault(const std::string& fault) {
    if (fault.empty()) return OFA_OK;
    last_error = fault;
    return OFA_CUDA_ERROR;
}

const Device* device_of(int64_t) { return &emulated; }

Current::Current(int64_t) {}
Current::~Current() {}

}  // namespace ofa

extern "C" OFA_EXPORT const char* ofa_cuda_last_error(void) { return ofa::last_error.c_str(); }
extern "C" OFA_EXPORT const char* ofa_cuda_architectures(void) { return "emulated"; }

// The device's size, and the seed of what may happen in any order.
extern "C" OFA_EXPORT void ofa_emulation_configure(int64_t multiprocessors, int64_t threads, int64_t cluster,
                                                   int64_t shared, int64_t seed) {
    const std::size_t bytes(shared);
    ofa::emulated = {int(multiprocessors), int(threads), int(cluster), bytes, bytes + 1024, false};
    emulation::shared_limit = bytes;
    emulation::seed = uint32_t(seed);
}

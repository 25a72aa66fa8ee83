// Small kernels that do what a device does not forgive, or what it may do in several ways; test_emulation.py runs them.
#include <cmath>

#include "entry.cuh"

namespace {

constexpr unsigned THREADS = 64;  // two warps
constexpr std::size_t SHARED = 1024;
constexpr int ROWS = 4;

double* doubles() { return reinterpret_cast<double*>(ofa::shared_memory()); }
uint64_t* deliveries() { return reinterpret_cast<uint64_t*>(ofa::shared_memory() + SHARED / 2); }
uint4* vectors() { return reinterpret_cast<uint4*>(ofa::shared_memory()); }

alignas(16) uint32_t numbers[8] = {1, 2, 3, 4, 5, 6, 7, 8};
double seen;  // by a kernel that is not wrong

struct Kernel {
    const char* name;
    unsigned cluster;
    void (*body)();
};

const Kernel KERNELS[] = {
    {"a thread that leaves before a barrier", 1,
     [] {
         if (threadIdx.x != 40) __syncthreads();
     }},
    {"a block that leaves before the cluster's barrier", 4,
     [] {
         if (ofa::cluster_rank() != 2) ofa::cluster_sync();
     }},
    {"a lane that is not in a shuffle", 1,
     [] {
         if (threadIdx.x != 3) __shfl_xor_sync(~0u, 1.0, 1);
     }},
    {"lanes at another barrier than the shuffle", 1,
     [] {
         if (threadIdx.x % 2)
             __syncwarp();
         else
             __shfl_xor_sync(~0u, 1.0, 2);
     }},
    {"a lane that leaves before the warp's barrier", 1,
     [] {
         if (threadIdx.x != 63) __syncwarp();
     }},
    {"a vector read across two", 1, [] { ofa::load_vector(numbers + 1); }},
    {"a vector written across two", 1, [] { ofa::store_vector(numbers + 2, {}); }},
    {"a copy from across two", 1, [] { ofa::copy_async(vectors(), numbers + 1, 16); }},
    {"a write behind shared memory", 1, [] { ofa::shared_memory()[SHARED + threadIdx.x] = 0; }},
    {"a sum behind shared memory", 1, [] { doubles()[SHARED / sizeof(double) + threadIdx.x] += 0.5; }},
    {"a block that may not have begun", 4,
     [] { ofa::load_from_block(vectors(), (ofa::cluster_rank() + 1) % 4); }},
    {"a block that may have ended", 4,
     [] {
         ofa::cluster_sync();
         if (ofa::cluster_rank() == 0) ofa::load_from_block(vectors(), 3);
     }},
    {"a block that is not there", 4,
     [] {
         if (threadIdx.x == 0) ofa::begin_deliveries(deliveries());
         ofa::cluster_sync();
         ofa::send(doubles(), 4, 1.0, deliveries());
         ofa::cluster_sync();
     }},
    {"a delivery that has not begun", 4,
     [] {
         ofa::cluster_sync();
         ofa::send(doubles(), 0, 1.0, deliveries());
         ofa::cluster_sync();
     }},
    {"a delivery of which a part is not sent", 4,
     [] {
         if (threadIdx.x == 0) ofa::begin_deliveries(deliveries());
         ofa::cluster_sync();
         if (threadIdx.x) return;
         ofa::expect(deliveries(), 4 * sizeof(double));
         if (ofa::cluster_rank() != 2) ofa::send(doubles() + ofa::cluster_rank(), 0, 1.0, deliveries());
         ofa::wait_for_delivery(deliveries(), 0);
     }},
    {"a place that is not in shared memory", 4,
     [] {
         if (threadIdx.x == 0) ofa::begin_deliveries(deliveries());
         ofa::cluster_sync();
         ofa::send(&seen, 0, 1.0, deliveries());
         ofa::cluster_sync();
     }},
    // --- nothing wrong: what a thread sees ---
    {"whether a copy has arrived before it is waited for", 1,
     [] {
         if (threadIdx.x) return;
         ofa::copy_async(vectors(), numbers, 8);
         ofa::end_group();
         seen = vectors()->x == 1;
     }},
    {"a copy that is waited for, and what follows it", 1,
     [] {
         if (threadIdx.x) return;
         ofa::copy_async(vectors(), numbers, 8);
         ofa::end_group();
         ofa::copy_async(vectors() + 1, numbers, 16);
         ofa::end_group();
         ofa::wait_for_groups<1>();
         seen = vectors()->x + 10 * vectors()->y + 100 * vectors()->z + 100 * vectors()->w;
     }},
    {"whether a value has arrived before its delivery has", 1,
     [] {
         if (threadIdx.x) return;
         ofa::begin_deliveries(deliveries());
         ofa::expect(deliveries(), 2 * sizeof(double));
         ofa::send(doubles(), 0, 1.0, deliveries());
         seen = doubles()[0] == 1;
         ofa::send(doubles() + 1, 0, 1.0, deliveries());
         ofa::wait_for_delivery(deliveries(), 0);
         if (doubles()[0] + doubles()[1] != 2) seen = -1;
     }},
    {"whether shared memory is NaN", 4, [] { seen += std::isnan(doubles()[threadIdx.x]); }},
    {"which block runs last", 1, [] { seen = blockIdx.x; }},
    {"which warp runs last", 1, [] { seen = threadIdx.x / ofa::WARP; }},
    {"which lane runs last", 1, [] { seen = threadIdx.x % ofa::WARP; }},
};

}  // namespace

// How many kernels there are; a kernel's name; what went wrong in it, and what it has seen.
extern "C" OFA_EXPORT int64_t kernel_count() { return sizeof KERNELS / sizeof *KERNELS; }
extern "C" OFA_EXPORT const char* kernel_name(int64_t number) { return KERNELS[number].name; }
extern "C" OFA_EXPORT const char* kernel_fault(int64_t number) {
    static std::string fault;
    const Kernel& kernel = KERNELS[number];
    seen = 0;
    fault = emulation::launch(dim3(ROWS), THREADS, kernel.cluster, SHARED, kernel.body);
    return fault.c_str();
}
extern "C" OFA_EXPORT double kernel_seen() { return seen; }

// The same for a launch of any size, of a kernel that does nothing.
extern "C" OFA_EXPORT const char* launch_fault(int64_t blocks, int64_t threads, int64_t cluster, int64_t shared) {
    static std::string fault;
    fault = emulation::launch(dim3(unsigned(blocks)), unsigned(threads), unsigned(cluster), std::size_t(shared), [] {});
    return fault.c_str();
}

// What the host decides: how many threads, blocks and bytes of shared memory a kernel gets on a device.
#pragma once

#include <algorithm>
#include <cstddef>

#include "team.cuh"

namespace ofa {

// What a device has of what the plans need.
struct Device {
    int multiprocessors;
    int threads;  // that a block may have, MAX_THREADS at most
    int cluster;  // blocks that a cluster may have, 1 where there are none
    std::size_t shared_block, shared_multiprocessor;  // bytes
    bool early;  // whether a kernel may begin before the one in front of it has ended
};

// The device of this number, or null: then CUDA's error is kept.
const Device* device_of(int64_t number);

// Keep CUDA's error for ofa_cuda_last_error; OFA_OK for none, else OFA_CUDA_ERROR.
int keep_error(int error);

constexpr unsigned BLOCK_SHARED = 1024;  // bytes of shared memory that the device takes for itself, a block
constexpr int ITEMS_OF_TEAM = 4;         // rows and tangents, below which a team's sums outweigh what they are of
constexpr int ITEMS_OF_ONE_LAUNCH = 4;   // up to which a team is done before a second kernel could have added up

struct Plan {
    unsigned threads = 0, cluster = 1, blocks = 1, passes = 1;
    std::size_t shared = 0;
    bool gathers = false;       // each block of the only cluster is a team, and their sums are added up in it
    bool begins_early = false;  // before the kernels in front of it have ended, for which it waits itself

    bool possible() const { return threads > 0; }
    // How many teams leave their sums for a second kernel to add up.
    int64_t partials() const { return gathers || blocks == cluster ? 0 : blocks / cluster; }
};

// Threads and cluster for rows of `columns`, of which a thread has `vectors` vectors of T, and a block's shared memory of
// `fixed` bytes and `of_thread` for each of its threads. No threads: the rows are too long for the device.
template <class T>
inline Plan plan_row(const Device& device, int64_t columns, int vectors, std::size_t fixed, std::size_t of_thread) {
    const int64_t needed = (columns + LANES<T> - 1) / LANES<T>;
    for (unsigned cluster = 1; int64_t(cluster) <= device.cluster; cluster *= 2) {
        const int64_t share = (needed + vectors * cluster - 1) / (vectors * cluster);
        const int64_t threads = (share + WARP - 1) / WARP * WARP;
        if (threads > device.threads || fixed + threads * of_thread > device.shared_block) continue;
        Plan plan;
        plan.threads = static_cast<unsigned>(threads);
        plan.cluster = cluster;
        plan.shared = fixed + threads * of_thread;
        return plan;
    }
    return Plan();
}

// Threads of a block that goes through rows of any length part by part, `vectors` vectors of T a thread.
template <class T>
inline Plan plan_parts(const Device& device, int64_t columns, int vectors, std::size_t fixed, std::size_t of_thread) {
    if (columns > INT32_MAX / 2) return Plan();  // a part may end past a row's end
    const int64_t part = int64_t(device.threads) * vectors * LANES<T>;
    return plan_row<T>(device, std::min(columns, part), vectors, fixed, of_thread);
}

// A block for each of so many items, or as many as a grid may have.
inline void plan_items(Plan& plan, int64_t items) {
    plan.blocks = static_cast<unsigned>(std::max<int64_t>(1, std::min<int64_t>(items, INT32_MAX)));
}

// As many teams as run at once, and no more than `most`.
inline void plan_teams(const Device& device, Plan& plan, int64_t most) {
    // registers let MAX_THREADS threads run on a multiprocessor
    const std::size_t by_shared = device.shared_multiprocessor / (plan.shared + BLOCK_SHARED);
    const int64_t blocks = std::max<int64_t>(1, std::min<int64_t>(MAX_THREADS / plan.threads, by_shared));
    const int64_t teams = blocks * device.multiprocessors / (plan.cluster * plan.passes);
    plan.blocks = plan.cluster * static_cast<unsigned>(std::max<int64_t>(1, std::min(teams, most)));
}

// The same for teams that each end with sums over their rows, which have `items` to fetch each. Few rows are shared by
// the blocks of one cluster, which add their sums up; otherwise that is a second kernel's.
inline void plan_teams_with_sums(const Device& device, Plan& plan, int64_t rows, int64_t items) {
    const int64_t crew = device.cluster, of_block = (rows + crew - 1) / crew;
    if (plan.cluster == 1 && (of_block <= 1 || of_block * items <= ITEMS_OF_ONE_LAUNCH)) {
        while (int64_t(plan.cluster) < std::min(rows, crew)) plan.cluster *= 2;
        plan.gathers = true;
        plan_teams(device, plan, 1);
    } else {
        const int64_t of_team = std::max<int64_t>(1, ITEMS_OF_TEAM / items);
        plan_teams(device, plan, (rows + of_team - 1) / of_team);
    }
}

// How many tangents each pass of a plan has; the last may have fewer.
__host__ __device__ inline int tangents_of_pass(int64_t tangents, unsigned passes) {
    return static_cast<int>((tangents + passes - 1) / passes);
}

#ifdef __CUDACC__

// Queue a kernel. More shared memory than usual has to be asked for, once for a kernel and device.
template <class... Parameters, class... Arguments>
inline int launch(void (*kernel)(Parameters...), const Plan& plan, const ofa_cuda_launch& where, Arguments... arguments) {
    static thread_local const void* allowed_kernel = nullptr;
    static thread_local int64_t allowed_device = -1;
    const void* address = reinterpret_cast<const void*>(kernel);
    if (allowed_kernel != address || allowed_device != where.device) {
        const Device* device = device_of(where.device);
        if (int error = cudaFuncSetAttribute(address, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             static_cast<int>(device->shared_block)))
            return keep_error(error);
        allowed_kernel = address;
        allowed_device = where.device;
    }
    cudaLaunchAttribute attributes[1];
    unsigned n_attributes = 0;
    if (plan.cluster > 1) {
        attributes[n_attributes].id = cudaLaunchAttributeClusterDimension;
        attributes[n_attributes++].val.clusterDim = {plan.cluster, 1, 1};
    } else if (plan.begins_early) {
        attributes[n_attributes].id = cudaLaunchAttributeProgrammaticStreamSerialization;
        attributes[n_attributes++].val.programmaticStreamSerializationAllowed = 1;
    }
    cudaLaunchConfig_t config = {};
    config.gridDim = dim3(plan.blocks, plan.passes);
    config.blockDim = dim3(plan.threads);
    config.dynamicSmemBytes = plan.shared;
    config.stream = static_cast<cudaStream_t>(where.stream);
    config.attrs = attributes;
    config.numAttrs = n_attributes;
    return keep_error(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

#else

int keep_fault(const std::string& fault);

template <class... Parameters, class... Arguments>
inline int launch(void (*kernel)(Parameters...), const Plan& plan, const ofa_cuda_launch&, Arguments... arguments) {
    return keep_fault(emulation::launch(dim3(plan.blocks, plan.passes), plan.threads, plan.cluster,
                                        plan.shared, [=] { kernel(Parameters(arguments)...); }));
}

#endif

}  // namespace ofa

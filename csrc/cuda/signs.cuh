// Rademacher signs from Philox-4x32-10 (Salmon et al. 2011), made where they are used. Which bit is whose:
// ofa_kernels/probes.py.
#pragma once

#include "team.cuh"

namespace ofa {

constexpr int SIGNS_OF_CALL = 128;

struct Key {
    uint32_t low, high;
};

// From memory where the seed is there: a CUDA graph would replay a number.
__device__ __forceinline__ Key key_of(uint64_t seed, const int64_t* seed_pointer) {
    if (seed_pointer) seed = static_cast<uint64_t>(*seed_pointer);
    return {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
}

// Whose signs they are; the low 32 bits of each number count.
struct Probe {
    int64_t layer, index, example;
};

// The signs of columns 128 group to 128 group + 127, a bit each.
__device__ __forceinline__ uint4 philox(Key key, uint32_t group, Probe probe) {
    uint4 c = {group, static_cast<uint32_t>(probe.example), static_cast<uint32_t>(probe.index),
               static_cast<uint32_t>(probe.layer)};
#pragma unroll
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t(c.x) * 0xD2511F53u, product1 = uint64_t(c.z) * 0xCD9E8D57u;
        c = {static_cast<uint32_t>(product1 >> 32) ^ c.y ^ key.low, static_cast<uint32_t>(product1),
             static_cast<uint32_t>(product0 >> 32) ^ c.w ^ key.high, static_cast<uint32_t>(product0)};
        key.low += 0x9E3779B9u;
        key.high += 0xBB67AE85u;
    }
    return c;
}

// The signs of the columns that a warp has, of PROBES probes at once. 16 threads or more have columns of the same call:
// would each of them make it, its ten rounds would be more instructions than all else that a probe does with a vector.
// So each thread of the warp makes another call, of these probes and vectors, and leaves it where all read their signs.
template <class T, int VECTORS>
class Signs {
    static constexpr int CALLS_OF_VECTOR = (WARP * LANES<T> + SIGNS_OF_CALL - 1) / SIGNS_OF_CALL;
    static constexpr int CALLS = VECTORS * CALLS_OF_VECTOR;  // of a probe
    static_assert(WARP % CALLS == 0, "a warp's threads are dealt out evenly");

  public:
    static constexpr int PROBES = WARP / CALLS;

    // `memory` in shared memory, `bytes` long, of which a warp uses its own part.
    __device__ Signs(void* memory, Key key, Columns<T, VECTORS> columns)
        : calls_(static_cast<uint4*>(memory) + threadIdx.x / WARP * WARP), key_(key), columns_(columns) {}

    // Of a thread.
    __host__ __device__ static constexpr std::size_t bytes() { return sizeof(uint4); }

    // Make those of a probe and the ones that follow it. Every thread of the warp calls it.
    __device__ void make(Probe probe) {
        const int lane = lane_of_warp(), call = lane % CALLS;
        const int begin = columns_(call / CALLS_OF_VECTOR) - lane * LANES<T>;  // the warp's columns of that vector
        probe.index += lane / CALLS;
        const uint4 words = philox(key_, begin / SIGNS_OF_CALL + call % CALLS_OF_VECTOR, probe);
        __syncwarp();  // the ones before have been read
        calls_[lane] = words;
        __syncwarp();
    }

    // Those of a vector from bit 0 on, a set bit for -1; `place` is the probe's among those that were made.
    __device__ uint32_t operator()(int place, int vector) const {
        const int column = columns_(vector) % SIGNS_OF_CALL;
        const int call = place * CALLS + vector * CALLS_OF_VECTOR + lane_of_warp() * LANES<T> / SIGNS_OF_CALL;
        return reinterpret_cast<const uint32_t*>(calls_ + call)[column / 32] >> column % 32;
    }

  private:
    __device__ static int lane_of_warp() { return threadIdx.x % WARP; }

    uint4* calls_;
    Key key_;
    Columns<T, VECTORS> columns_;
};

// The value times sign j of `bits`.
__device__ __forceinline__ float flipped(float value, uint32_t bits, int j) {
    return as_float(as_bits(value) ^ (bits >> j << 31));
}
__device__ __forceinline__ double flipped(double value, uint32_t bits, int j) {
    return as_double(low_bits(value), high_bits(value) ^ (bits >> j << 31));
}

}  // namespace ofa

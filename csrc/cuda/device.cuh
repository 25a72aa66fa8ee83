// What the kernels need of a device, by CUDA or by its emulation on a CPU.
#pragma once

#include <cstdint>

#ifdef __CUDACC__
#include <cuda_runtime.h>
#else
#include <cmath>

#include "emulation.hpp"
#endif

namespace ofa {

#ifdef __CUDACC__

__device__ __forceinline__ char* shared_memory() {
    extern __shared__ __align__(16) char memory[];
    return memory;
}

// Clusters: blocks that run at the same time and reach each other's shared memory. Before compute capability 9.0 every
// block is alone.
__device__ __forceinline__ unsigned cluster_size() {
#if __CUDA_ARCH__ >= 900
    unsigned size;
    asm("mov.u32 %0, %%cluster_nctaid.x;" : "=r"(size));
    return size;
#else
    return 1;
#endif
}

__device__ __forceinline__ unsigned cluster_rank() {
#if __CUDA_ARCH__ >= 900
    unsigned rank;
    asm("mov.u32 %0, %%cluster_ctaid.x;" : "=r"(rank));
    return rank;
#else
    return 0;
#endif
}

__device__ __forceinline__ void cluster_sync() {
#if __CUDA_ARCH__ >= 900
    __syncwarp();  // a warp arrives as one
    asm volatile(
        "barrier.cluster.arrive.release.aligned;\n\t"
        "barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}

// Wait for the kernels before this one in the stream, where it may begin before they end.
__device__ __forceinline__ void wait_for_previous_kernels() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// A delivery is where a block waits for what other blocks of its cluster send it. It has phases that follow each other:
// in each the block expects some bytes, and waits until they have arrived. Unlike a barrier of the cluster, which waits
// for all that its threads have written to global memory too, it waits for these bytes alone.
__device__ __forceinline__ void begin_deliveries(uint64_t* delivery) {
#if __CUDA_ARCH__ >= 900
    const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(delivery));
    asm volatile(
        "mbarrier.init.shared::cta.b64 [%0], 1;\n\t"
        "fence.mbarrier_init.release.cluster;" ::"r"(own)
        : "memory");
#endif
}

__device__ __forceinline__ void expect(uint64_t* delivery, unsigned bytes) {
#if __CUDA_ARCH__ >= 900
    const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(delivery));
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(own), "r"(bytes) : "memory");
#endif
}

// Send a value to the same place in the shared memory of another block, as part of the same delivery there.
__device__ __forceinline__ void send(double* place, unsigned rank, double value, uint64_t* delivery) {
#if __CUDA_ARCH__ >= 900
    const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(place));
    const unsigned own_delivery = static_cast<unsigned>(__cvta_generic_to_shared(delivery));
    asm volatile(
        "{\n\t.reg .u32 other, other_delivery;\n\t"
        "mapa.shared::cluster.u32 other, %0, %2;\n\t"
        "mapa.shared::cluster.u32 other_delivery, %1, %2;\n\t"
        "st.async.shared::cluster.mbarrier::complete_tx::bytes.b64 [other], %3, [other_delivery];\n\t}" ::"r"(own),
        "r"(own_delivery), "r"(rank), "l"(__double_as_longlong(value))
        : "memory");
#endif
}

// Wait for the end of a phase, of which the last bit counts.
__device__ __forceinline__ void wait_for_delivery(uint64_t* delivery, unsigned phase) {
#if __CUDA_ARCH__ >= 900
    const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(delivery));
    unsigned arrived;
    do {
        asm volatile(
            "{\n\t.reg .pred arrived;\n\t"
            "mbarrier.try_wait.parity.shared::cta.b64 arrived, [%1], %2;\n\t"
            "selp.u32 %0, 1, 0, arrived;\n\t}"
            : "=r"(arrived)
            : "r"(own), "r"(phase)
            : "memory");
    } while (!arrived);
#endif
}

// Read from the same place in the shared memory of another block of the cluster.
__device__ __forceinline__ uint4 load_from_block(const uint4* place, unsigned rank) {
    uint4 vector = {};
#if __CUDA_ARCH__ >= 900
    const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(place));
    asm volatile(
        "{\n\t.reg .u32 other;\n\t"
        "mapa.shared::cluster.u32 other, %4, %5;\n\t"
        "ld.shared::cluster.v4.u32 {%0, %1, %2, %3}, [other];\n\t}"
        : "=r"(vector.x), "=r"(vector.y), "=r"(vector.z), "=r"(vector.w)
        : "r"(own), "r"(rank)
        : "memory");
#else
    vector = *place;
#endif
    return vector;
}

// Copy `bytes` (0 to 16) to 16 bytes of shared memory, followed by zeros, without waiting.
__device__ __forceinline__ void copy_async(uint4* to, const void* from, unsigned bytes) {
    const unsigned own = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(own), "l"(from), "r"(bytes) : "memory");
}

// The copies since the last call are a group.
__device__ __forceinline__ void end_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Wait until no more than the last PENDING of this thread's groups are on their way.
template <int PENDING>
__device__ __forceinline__ void wait_for_groups() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
}

__device__ __forceinline__ uint4 load_vector(const void* from) { return __ldg(static_cast<const uint4*>(from)); }
__device__ __forceinline__ void store_vector(void* to, uint4 vector) { *static_cast<uint4*>(to) = vector; }

__device__ __forceinline__ float as_float(uint32_t bits) { return __uint_as_float(bits); }
__device__ __forceinline__ uint32_t as_bits(float value) { return __float_as_uint(value); }
__device__ __forceinline__ double as_double(uint32_t low, uint32_t high) {
    return __hiloint2double(static_cast<int>(high), static_cast<int>(low));
}
__device__ __forceinline__ uint32_t low_bits(double value) { return __double2loint(value); }
__device__ __forceinline__ uint32_t high_bits(double value) { return __double2hiint(value); }

__device__ __forceinline__ float from_half(uint16_t bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}
__device__ __forceinline__ uint16_t to_half(float value) {
    uint16_t bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
__device__ __forceinline__ uint16_t to_bfloat16(float value) {
    uint16_t bits;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}

// Each rounded once: the compiler may not join them to a multiplication and addition that is.
__device__ __forceinline__ float multiplied(float a, float b) { return __fmul_rn(a, b); }
__device__ __forceinline__ float added(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ float multiplied_added(float a, float b, float c) { return __fmaf_rn(a, b, c); }
__device__ __forceinline__ float divided(float a, float b) { return __fdiv_rn(a, b); }
__device__ __forceinline__ float root(float a) { return __fsqrt_rn(a); }

#else

inline char* shared_memory() { return emulation::own_block().shared; }
inline unsigned cluster_size() { return emulation::running->cluster; }
inline unsigned cluster_rank() { return emulation::self().rank; }
inline void cluster_sync() { emulation::wait(emulation::running->cluster_barrier); }
inline void wait_for_previous_kernels() {}
inline void begin_deliveries(uint64_t* delivery) { emulation::begin_deliveries(delivery); }
inline void expect(uint64_t* delivery, unsigned bytes) { emulation::expect(delivery, bytes); }
inline void send(double* place, unsigned rank, double value, uint64_t* delivery) {
    emulation::send(place, rank, value, delivery);
}
inline void wait_for_delivery(uint64_t* delivery, unsigned phase) { emulation::wait_for_delivery(delivery, phase); }

inline uint4 load_from_block(const uint4* place, unsigned rank) {
    emulation::check_aligned(place, sizeof(uint4));
    uint4 vector;
    std::memcpy(&vector, emulation::shared_of(place, rank), sizeof vector);
    return vector;
}

inline void copy_async(uint4* to, const void* from, unsigned bytes) { emulation::copy_async(to, from, bytes); }
inline void end_group() { ++emulation::self().group; }
template <int PENDING>
inline void wait_for_groups() {
    emulation::wait_for_groups(PENDING);
}

inline uint4 load_vector(const void* from) {
    emulation::check_aligned(from, sizeof(uint4));
    uint4 vector;
    std::memcpy(&vector, from, sizeof vector);
    return vector;
}
inline void store_vector(void* to, uint4 vector) {
    emulation::check_aligned(to, sizeof(uint4));
    std::memcpy(to, &vector, sizeof vector);
}

inline float as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t as_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline double as_double(uint32_t low, uint32_t high) {
    const uint64_t bits = uint64_t(high) << 32 | low;
    double value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t low_bits(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return uint32_t(bits);
}
inline uint32_t high_bits(double value) {
    uint64_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return uint32_t(bits >> 32);
}

inline float from_half(uint16_t bits) {
    const uint32_t sign = uint32_t(bits & 0x8000) << 16, rest = bits & 0x7FFF;
    if (rest >= 0x7C00) return as_float(sign | 0x7F800000 | (rest & 0x3FF) << 13);
    // as if the exponent's bias were float's, and then scaled to it: exact for subnormal numbers too
    return as_float(sign | as_bits(as_float(rest << 13) * 0x1p112f));
}
inline uint16_t to_half(float value) {
    const uint32_t bits = as_bits(value), sign = bits >> 16 & 0x8000, rest = bits & 0x7FFFFFFF;
    if (rest > 0x7F800000) return 0x7FFF;
    if (rest >= 0x477FF000) return uint16_t(sign | 0x7C00);  // from half above the largest on
    if (rest < 0x38800000) return uint16_t(sign | uint32_t(std::nearbyint(as_float(rest) * 0x1p24f)));
    return uint16_t(sign | (rest + 0xFFF + (rest >> 13 & 1) - 0x38000000) >> 13);
}
inline uint16_t to_bfloat16(float value) {
    const uint32_t bits = as_bits(value);
    if ((bits & 0x7FFFFFFF) > 0x7F800000) return 0x7FFF;
    return uint16_t((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// The compiler is told not to join multiplications and additions (-ffp-contract=off).
inline float multiplied(float a, float b) { return a * b; }
inline float added(float a, float b) { return a + b; }
inline float multiplied_added(float a, float b, float c) { return std::fma(a, b, c); }
inline float divided(float a, float b) { return a / b; }
inline float root(float a) { return std::sqrt(a); }

#endif

}  // namespace ofa

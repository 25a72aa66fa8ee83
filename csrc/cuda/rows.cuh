// Rows in memory, and which of their columns a thread has: vectors of 16 bytes, the widest access there is.
#pragma once

#include <type_traits>

#include "device.cuh"
#include "ofa_cuda.h"

namespace ofa {

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

template <class T>
constexpr int LANES = 16 / sizeof(T);  // values of a vector

template <class T>
__device__ __forceinline__ bool is_aligned(const T* place) {
    return reinterpret_cast<uintptr_t>(place) % sizeof(uint4) == 0;
}

__device__ __forceinline__ float value_of(bfloat16 v) { return as_float(uint32_t(v.bits) << 16); }
__device__ __forceinline__ float value_of(float16 v) { return from_half(v.bits); }
__device__ __forceinline__ float value_of(float v) { return v; }
__device__ __forceinline__ double value_of(double v) { return v; }

// A value of the accumulation type in T, rounded to the nearest.
template <class T, class A>
__device__ __forceinline__ T packed(A value) {
    if constexpr (std::is_same_v<T, bfloat16>)
        return {to_bfloat16(static_cast<float>(value))};
    else if constexpr (std::is_same_v<T, float16>)
        return {to_half(static_cast<float>(value))};
    else
        return static_cast<T>(value);
}

template <class T>
__device__ __forceinline__ Acc<T> rounded(Acc<T> value) {
    return value_of(packed<T>(value));
}

// The values of a vector, and the vector of values.
template <class T>
__device__ __forceinline__ void unpack(uint4 vector, Acc<T> (&values)[LANES<T>]) {
    const uint32_t words[4] = {vector.x, vector.y, vector.z, vector.w};
#pragma unroll
    for (int j = 0; j < LANES<T>; ++j) {
        if constexpr (sizeof(T) == 2)
            values[j] = value_of(T{uint16_t(words[j / 2] >> (j % 2 * 16))});
        else if constexpr (sizeof(T) == 4)
            values[j] = as_float(words[j]);
        else
            values[j] = as_double(words[2 * j], words[2 * j + 1]);
    }
}

template <class T, class A>
__device__ __forceinline__ uint4 pack(const A (&values)[LANES<T>]) {
    uint32_t words[4] = {};
#pragma unroll
    for (int j = 0; j < LANES<T>; ++j) {
        if constexpr (sizeof(T) == 2) {
            words[j / 2] |= uint32_t(packed<T>(values[j]).bits) << (j % 2 * 16);
        } else if constexpr (sizeof(T) == 4) {
            words[j] = as_bits(packed<T>(values[j]));
        } else {
            words[2 * j] = low_bits(values[j]);
            words[2 * j + 1] = high_bits(values[j]);
        }
    }
    return {words[0], words[1], words[2], words[3]};
}

// `count` values of a row, followed by zeros, as a vector; for rows that are not aligned.
template <class T>
__device__ __forceinline__ uint4 gathered(const T* from, int count) {
    Acc<T> values[LANES<T>];
#pragma unroll
    for (int j = 0; j < LANES<T>; ++j) values[j] = j < count ? value_of(from[j]) : Acc<T>(0);
    return pack<T>(values);
}

// The vector of a row's columns from `column` on, with zeros past the end.
template <class T>
__device__ __forceinline__ uint4 vector_at(const T* row, int column, int columns) {
    const T* from = row + column;
    return column + LANES<T> <= columns && is_aligned(from) ? load_vector(from) : gathered(from, columns - column);
}

// Write the values that lie in the row, whole where it may be done.
template <class T, class A>
__device__ __forceinline__ void write(T* row, int column, int columns, const A (&values)[LANES<T>]) {
    T* to = row + column;
    if (column + LANES<T> <= columns && is_aligned(to)) {
        store_vector(to, pack<T>(values));
    } else {
#pragma unroll
        for (int j = 0; j < LANES<T>; ++j)
            if (column + j < columns) to[j] = packed<T>(values[j]);
    }
}

// Which columns a thread has: VECTORS vectors of its block's part of a row, as many columns apart as the block has.
// `rank` is the block's in its team. Where a block goes through a row part by part, `begin` is the part's first column.
template <class T, int VECTORS>
class Columns {
  public:
    __device__ Columns(unsigned rank, int64_t columns, int begin = 0)
        : first_(begin + static_cast<int>((rank * VECTORS * blockDim.x + threadIdx.x) * LANES<T>)),
          columns_(static_cast<int>(columns)) {}

    // The first column of a vector; it may lie past the end.
    __device__ int operator()(int vector) const { return first_ + vector * static_cast<int>(blockDim.x) * LANES<T>; }
    // How many columns of a vector lie in the row.
    __device__ int count(int vector) const {
        const int left = columns_ - (*this)(vector);
        return left < 0 ? 0 : left < LANES<T> ? left : LANES<T>;
    }
    __device__ int end() const { return columns_; }

  private:
    int first_, columns_;
};

// Call f with a null pointer to the storage type that dtype names.
template <class F>
__device__ __forceinline__ void with_type(int64_t dtype, F&& f) {
    switch (dtype) {
        case OFA_FLOAT64: f(static_cast<double*>(nullptr)); break;
        case OFA_FLOAT32: f(static_cast<float*>(nullptr)); break;
        case OFA_BFLOAT16: f(static_cast<bfloat16*>(nullptr)); break;
        default: f(static_cast<float16*>(nullptr)); break;
    }
}

// COUNT weights from `column` on, in the type that dtype names, plus offset; zeros past the end.
template <class A, int COUNT>
__device__ __forceinline__ void read_weight(const void* weight, int64_t dtype, int64_t row, int column, int columns,
                                            double offset, A (&values)[COUNT]) {
    with_type(dtype, [&](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        const W* from = static_cast<const W*>(weight) + row * columns + column;
        constexpr int vectors = COUNT / LANES<W>;
        if (vectors > 0 && column + COUNT <= columns && is_aligned(from)) {
#pragma unroll
            for (int v = 0; v < vectors; ++v) {
                Acc<W> lanes[LANES<W>];
                unpack<W>(load_vector(from + v * LANES<W>), lanes);
#pragma unroll
                for (int j = 0; j < LANES<W>; ++j) values[v * LANES<W> + j] = static_cast<A>(lanes[j]);
            }
        } else {
#pragma unroll
            for (int j = 0; j < COUNT; ++j)
                values[j] = column + j < columns ? static_cast<A>(value_of(from[j])) : A(0);
        }
    });
#pragma unroll
    for (int j = 0; j < COUNT; ++j)
        if (column + j < columns) values[j] += static_cast<A>(offset);
}

// The same the other way, without an offset.
template <class A, int COUNT>
__device__ __forceinline__ void write_weight(void* weight, int64_t dtype, int64_t row, int column, int columns,
                                             const A (&values)[COUNT]) {
    with_type(dtype, [&](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        W* to = static_cast<W*>(weight) + row * columns;
        constexpr int lanes = COUNT < LANES<W> ? COUNT : LANES<W>;
#pragma unroll
        for (int v = 0; v < COUNT / lanes; ++v) {
            const int begin = column + v * lanes;
            if (lanes == LANES<W> && begin + lanes <= columns && is_aligned(to + begin)) {
                Acc<W> part[LANES<W>];
#pragma unroll
                for (int j = 0; j < lanes; ++j) part[j] = static_cast<Acc<W>>(values[v * lanes + j]);
                store_vector(to + begin, pack<W>(part));
            } else {
#pragma unroll
                for (int j = 0; j < lanes; ++j)
                    if (begin + j < columns) to[begin + j] = packed<W>(static_cast<Acc<W>>(values[v * lanes + j]));
            }
        }
    });
}

}  // namespace ofa

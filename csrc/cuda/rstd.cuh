// r = (mean(x^2) + eps)^(-1/2) of a row, the one number whose error reaches every output.
#pragma once

#include "team.cuh"

namespace ofa {

// The sum of squares, as good as one in float64 and without a float64 for each value, at which many cards are slow.
template <class T>
struct SumOfSquares;

template <>
struct SumOfSquares<double> {
    double sum = 0;
    __device__ void add(double v) { sum += v * v; }
    __device__ void add(const double (&values)[LANES<double>]) {
#pragma unroll
        for (int j = 0; j < LANES<double>; ++j) add(values[j]);
    }
    __device__ double value() const { return sum; }
};

// With the rounding errors beside it (Ogita, Rump & Oishi 2005, Dot2).
template <>
struct SumOfSquares<float> {
    float sum = 0, error = 0;
    __device__ void add(float v) {
        const float square = multiplied(v, v), missing = multiplied_added(v, v, -square);
        const float before = sum;
        sum = added(before, square);
        const float gained = added(sum, -before);
        error = added(error, added(added(before, -added(sum, -gained)), added(added(square, -gained), missing)));
    }
    __device__ void add(const float (&values)[LANES<float>]) {
#pragma unroll
        for (int j = 0; j < LANES<float>; ++j) add(values[j]);
    }
    __device__ double value() const { return static_cast<double>(sum) + static_cast<double>(error); }
};

// The squares of 16-bit numbers are exact in float32, so a sum of two is rounded once: by 2^-24 of it at most, of which
// a quarter of an ULP to half of one reaches r.
template <class T>
struct SumOfSquares {
    double sum = 0;
    __device__ void add(const float (&values)[LANES<T>]) {
#pragma unroll
        for (int j = 0; j < LANES<T>; j += 2)
            sum += static_cast<double>(multiplied_added(values[j], values[j], values[j + 1] * values[j + 1]));
    }
    __device__ double value() const { return sum; }
};

// r from the sum of squares and columns * eps: the float32 nearest to it, but for the sum's error.
template <class A>
__device__ __forceinline__ A reciprocal_root(double total, int columns) {
    if constexpr (std::is_same_v<A, double>) {
        return 1.0 / sqrt(total / columns);
    } else {
        // float32 has no room for squares of what is above 1e19 or, without an eps, below 1e-19
        const float scale = total > 0x1p100 ? 0x1p-100f : total < 0x1p-100 ? 0x1p100f : 1.0f;
        const float scaled = static_cast<float>(total * scale * scale);
        const float r = root(divided(static_cast<float>(columns), scaled)) * scale;
        // one Newton step, because each of these two roundings can cost half an ULP; its residual alone is float64, in
        // which roots and quotients would be slow
        const double residual = columns - total * (static_cast<double>(r) * static_cast<double>(r));
        const float step = 0.5f * r * (static_cast<float>(residual) / static_cast<float>(columns));
        return step == step ? r + step : r;  // 0 and infinity have no residual
    }
}

// Whether float32 had room for the squares that were added up to `total`.
__device__ __forceinline__ bool squares_fit(double total, int columns) {
    return total >= columns * 0x1p-100 && total <= 0x1p1000;
}

// The squares of some values in float64.
template <int COUNT, class A>
__device__ __forceinline__ double squares_of(const A (&values)[COUNT]) {
    double sum = 0;
#pragma unroll
    for (int j = 0; j < COUNT; ++j) sum += static_cast<double>(values[j]) * static_cast<double>(values[j]);
    return sum;
}

// r of a row from its squares' sum over the team, `squares`. Squares that float32 did not hold are added up again in
// float64, this thread's by `again`: everybody sees the same total, so the whole team does.
template <class A, int SUMS, class Again>
__device__ __forceinline__ A rstd_of(double squares, int columns, double eps, TeamSum<SUMS>& team_sum, Again again) {
    double total = squares + columns * eps;
    if (std::is_same_v<A, float> && !squares_fit(total, columns)) {
        double sums[SUMS] = {again()};
        team_sum(sums);
        total = sums[0] + columns * eps;
    }
    return reciprocal_root<A>(total, columns);
}

// The same for values that this thread has at hand.
template <int VECTORS, int COUNT, int SUMS, class A>
__device__ __forceinline__ A rstd_of(double squares, const A (&values)[VECTORS][COUNT], int columns, double eps,
                                     TeamSum<SUMS>& team_sum) {
    return rstd_of<A>(squares, columns, eps, team_sum, [&] {
        double sum = 0;
#pragma unroll
        for (int v = 0; v < VECTORS; ++v) sum += squares_of(values[v]);
        return sum;
    });
}

}  // namespace ofa

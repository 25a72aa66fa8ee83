// Sums over rows: each team leaves its own in scratch memory, and a second kernel adds them up in their order.
#pragma once

#include "launch.cuh"

namespace ofa {

constexpr int SUM_COLUMNS = WARP;                       // of a block: a line of memory in float32
constexpr int SUM_SHARES = MAX_THREADS / SUM_COLUMNS;   // of the teams

// out[columns] = the sum over teams of partials[teams, columns], in the type that dtype names.
template <class A>
__global__ void __launch_bounds__(MAX_THREADS)
    add_up_teams(const A* partials, void* out, int64_t dtype, int64_t teams, int64_t columns) {
    double* shares = reinterpret_cast<double*>(shared_memory());  // [SUM_SHARES, SUM_COLUMNS]
    const int lane = threadIdx.x % SUM_COLUMNS, share = threadIdx.x / SUM_COLUMNS;
    const int n_shares = blockDim.x / SUM_COLUMNS;
    const int64_t column = int64_t(blockIdx.x) * SUM_COLUMNS + lane;
    wait_for_previous_kernels();
    A sum = 0;
    if (column < columns) {
#pragma unroll 4
        for (int64_t team = share; team < teams; team += n_shares) sum += partials[team * columns + column];
    }
    shares[share * SUM_COLUMNS + lane] = sum;
    __syncthreads();
    if (share == 0 && column < columns) {
        double total = 0;
        for (int i = 0; i < n_shares; ++i) total += shares[i * SUM_COLUMNS + lane];
        with_type(dtype, [&](auto* type) {
            using W = std::remove_pointer_t<decltype(type)>;
            static_cast<W*>(out)[column] = packed<W>(static_cast<Acc<W>>(total));
        });
    }
}

template <class A>
inline int finish_sums(const Device& device, const A* partials, void* out, int64_t dtype, int64_t teams,
                       int64_t columns, const ofa_cuda_launch& where) {
    Plan plan;
    plan.threads = device.threads;
    plan.teams = static_cast<unsigned>((columns + SUM_COLUMNS - 1) / SUM_COLUMNS);
    plan.shared = plan.threads * sizeof(double);
    plan.begins_early = device.early;
    return launch(add_up_teams<A>, plan, where, partials, out, dtype, teams, columns);
}

// A thread's share of its team's sum: into the result where there is one team, else into scratch memory.
template <class T, int VECTORS>
__device__ __forceinline__ void leave_sum(const Acc<T> (&sums)[VECTORS][LANES<T>], Columns<T, VECTORS> columns,
                                          Acc<T>* partials, void* out, int64_t dtype, int64_t row) {
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) {
        if (!columns.count(v)) continue;
        if (partials)
            write_weight(partials, std::is_same_v<T, double> ? OFA_FLOAT64 : OFA_FLOAT32, row, columns(v),
                         columns.end(), sums[v]);
        else
            write_weight(out, dtype, row, columns(v), columns.end(), sums[v]);
    }
}

}  // namespace ofa

// Sums over rows. Each team has its own; the blocks of a cluster add theirs up in its shared memory, more teams leave
// them in scratch memory to a second kernel. Either way the order is fixed.
#pragma once

#include "launch.cuh"

namespace ofa {

constexpr int SUM_COLUMNS = WARP;  // of a block: a line of memory in float32

// out[columns] = the sum over teams of partials[teams, columns], in the type that dtype names.
template <class A>
__global__ void __launch_bounds__(MAX_THREADS)
    add_up_teams(const A* partials, void* out, int64_t dtype, int64_t teams, int64_t columns) {
    double* shares = reinterpret_cast<double*>(shared_memory());  // [shares of the teams, SUM_COLUMNS]
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
    plan.blocks = static_cast<unsigned>((columns + SUM_COLUMNS - 1) / SUM_COLUMNS);
    plan.shared = plan.threads * sizeof(double);
    plan.begins_early = device.early;
    return launch(add_up_teams<A>, plan, where, partials, out, dtype, teams, columns);
}

// How a team's sums over rows end: in scratch memory, as `partials` [teams, ...]; or, without it, in the result, which
// is either the only team's or that of a cluster of teams of one block each.
template <class T>
struct Ends {
    using A = Acc<T>;
    A* partials;
    void* out;
    int64_t dtype;
};

// Rows of sums in shared memory, of which each thread has its own columns.
template <class T, int VECTORS>
class SharedSums {
  public:
    using A = Acc<T>;
    // `memory` as long as `bytes` says, for each row and thread.
    __device__ SharedSums(void* memory, int rows) : memory_(static_cast<uint4*>(memory) + threadIdx.x), rows_(rows) {
        for (int i = 0; i < rows * PLACES; ++i) memory_[i * blockDim.x] = {0, 0, 0, 0};
    }
    // Of a row and thread.
    static constexpr std::size_t bytes() { return PLACES * sizeof(uint4); }

    __device__ void add(int row, int vector, const A (&values)[LANES<T>]) {
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            uint4* place = memory_ + (row * PLACES + vector * PIECES + p) * blockDim.x;
            A piece[LANES<A>];
            unpack<A>(*place, piece);
#pragma unroll
            for (int j = 0; j < LANES<A>; ++j) piece[j] += values[p * LANES<A> + j];
            *place = pack<A>(piece);
        }
    }
    // Bring the rows to their end, where the first of them is `first` of `n_rows`. Every thread of the team calls it.
    __device__ void leave(Team team, int first, int n_rows, Columns<T, VECTORS> columns, Ends<T> ends) const {
        const bool shared = team.blocks() < cluster_size();  // by the teams of a cluster
        const unsigned blocks = shared ? cluster_size() : 1, rank = shared ? cluster_rank() : 0;
        const int64_t begin = (ends.partials ? team.first_row() * n_rows : 0) + first;
        if (shared) cluster_sync();
        for (int i = static_cast<int>(rank); i < rows_ * PLACES; i += static_cast<int>(blocks)) {
            const int column = columns(i % PLACES / PIECES) + i % PIECES * LANES<A>;
            if (column >= columns.end()) continue;
            A sums[LANES<A>];
            unpack<A>(memory_[i * blockDim.x], sums);
            if (shared) {
#pragma unroll
                for (int j = 0; j < LANES<A>; ++j) sums[j] = 0;
                for (unsigned block = 0; block < blocks; ++block) {
                    A of_block[LANES<A>];
                    unpack<A>(load_from_block(memory_ + i * blockDim.x, block), of_block);
#pragma unroll
                    for (int j = 0; j < LANES<A>; ++j) sums[j] += of_block[j];
                }
            }
            void* to = ends.partials ? ends.partials : ends.out;
            const int64_t dtype = ends.partials ? ACCUMULATED : ends.dtype;
            write_weight(to, dtype, begin + i / PLACES, column, columns.end(), sums);
        }
        if (shared) cluster_sync();  // a block whose memory is read must not end
    }

  private:
    static constexpr int64_t ACCUMULATED = std::is_same_v<A, double> ? OFA_FLOAT64 : OFA_FLOAT32;
    static constexpr int PIECES = LANES<T> / LANES<A>;  // vectors of sums to one of the row
    static constexpr int PLACES = VECTORS * PIECES;     // that a thread has of a row

    uint4* memory_;
    int rows_;
};

// Bring one row of sums to its end that a thread has in registers; `memory` is what the rows were fetched into.
template <class T, int VECTORS>
__device__ __forceinline__ void leave_sums(Team team, const Acc<T> (&sums)[VECTORS][LANES<T>],
                                           Columns<T, VECTORS> columns, void* memory, Ends<T> ends) {
    SharedSums<T, VECTORS> row(memory, 1);
#pragma unroll
    for (int v = 0; v < VECTORS; ++v) row.add(0, v, sums[v]);
    row.leave(team, 0, 1, columns, ends);
}

}  // namespace ofa

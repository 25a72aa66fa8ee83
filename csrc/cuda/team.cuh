// A team works on a row: one block, or a cluster of blocks where the row is long. How its threads add up, and how they
// have the next rows fetched while they work on one.
#pragma once

#include "rows.cuh"

namespace ofa {

constexpr int MAX_THREADS = 512;  // of a block: a thread may have 128 registers where one such block is enough
constexpr int WARP = 32;
constexpr int STAGES = 3;  // rows of a ring: the one that is worked on, and two on their way

// Vectors of a row that a thread has: 16 values; in float64 fewer, since each takes two registers.
template <class T>
constexpr int FULL_VECTORS = sizeof(T) == 8 ? 4 : sizeof(T);
// The same beside sums over rows, which take registers too.
template <class T>
constexpr int SUM_VECTORS = sizeof(T) == 8 ? 2 : sizeof(T);

// A block's team. Where the blocks of a cluster have rows of their own, each is a team (`single`).
class Team {
  public:
    __device__ explicit Team(bool single = false)
        : blocks_(single ? 1 : cluster_size()), rank_(single ? 0 : cluster_rank()) {}

    __device__ unsigned blocks() const { return blocks_; }
    __device__ unsigned rank() const { return rank_; }
    // Rows are dealt out in turn: this team's first, and how many teams there are.
    __device__ int64_t first_row() const { return blockIdx.x / blocks_; }
    __device__ int64_t count() const { return gridDim.x / blocks_; }

  private:
    unsigned blocks_, rank_;
};

// Sums over the team, the same for each of its threads, in an order that depends on nothing but its size.
template <int SUMS>
class TeamSum {
  public:
    // `memory` in shared memory, `bytes` long.
    __device__ TeamSum(Team team, void* memory)
        : team_(team), of_warps_(static_cast<double*>(memory)), of_blocks_(of_warps_ + 2 * PARTS * SUMS),
          deliveries_(reinterpret_cast<uint64_t*>(of_blocks_ + 2 * PARTS * SUMS)) {
        if (team.blocks() == 1) return;
        if (threadIdx.x < 2) begin_deliveries(deliveries_ + threadIdx.x);
        cluster_sync();  // a block may be sent to from here on: it must have begun
    }

    __host__ __device__ static constexpr std::size_t bytes() {
        return 4 * PARTS * SUMS * sizeof(double) + 2 * sizeof(uint64_t);
    }

    // Every thread of the team calls it. The two halves of the memory take turns: whoever writes to one again has
    // passed a barrier that all who read it reach later, and for another block a delivery that they sent later.
    __device__ void operator()(double (&sums)[SUMS]) {
        const unsigned blocks = team_.blocks();
        add_up<WARP>(sums);
        double* own = of_warps_ + half_ * PARTS * SUMS;
        if (threadIdx.x % WARP == 0)
#pragma unroll
            for (int s = 0; s < SUMS; ++s) own[threadIdx.x / WARP * SUMS + s] = sums[s];
        __syncthreads();
        read(own, blockDim.x / WARP, sums);
        if (blocks > 1) {
            double* all = of_blocks_ + half_ * PARTS * SUMS;
            uint64_t* delivery = deliveries_ + half_;
            if (threadIdx.x == 0) expect(delivery, blocks * SUMS * sizeof(double));
            if (threadIdx.x < blocks)
#pragma unroll
                for (int s = 0; s < SUMS; ++s)
                    send(all + team_.rank() * SUMS + s, threadIdx.x, sums[s], delivery);
            wait_for_delivery(delivery, phase_);
            read(all, blocks, sums);
        }
        phase_ ^= half_;
        half_ ^= 1;
    }

  private:
    static constexpr int PARTS = 16;  // warps of a block and blocks of a cluster, at most
    static_assert(MAX_THREADS / WARP <= PARTS);

    // The sum over WIDTH lanes that follow each other, in each of them.
    template <int WIDTH>
    __device__ static void add_up(double (&sums)[SUMS]) {
#pragma unroll
        for (int s = 0; s < SUMS; ++s)
#pragma unroll
            for (int distance = WIDTH / 2; distance; distance /= 2)
                sums[s] += __shfl_xor_sync(~0u, sums[s], distance);
    }
    // The sum of `count` parts: a lane reads one.
    __device__ static void read(const double* parts, unsigned count, double (&sums)[SUMS]) {
        const unsigned part = threadIdx.x % PARTS;
#pragma unroll
        for (int s = 0; s < SUMS; ++s) sums[s] = part < count ? parts[part * SUMS + s] : 0;
        add_up<PARTS>(sums);
    }

    Team team_;
    double *of_warps_, *of_blocks_;
    uint64_t* deliveries_;
    unsigned half_ = 0, phase_ = 0;  // of the memory and of its deliveries, the next ones
};

// What a team fetches for each of its items: OPERANDS rows, STAGES items deep. A thread fetches the columns that it will
// read, so that it waits for its own copies and for no other thread.
template <class T, int VECTORS>
class Ring {
  public:
    __device__ Ring(void* memory, int operands)
        : memory_(static_cast<uint4*>(memory) + threadIdx.x), operands_(operands) {}

    // Of a thread.
    __host__ __device__ static constexpr std::size_t bytes(int operands) {
        return std::size_t(STAGES) * operands * VECTORS * sizeof(uint4);
    }

    // Fetch a row as an operand of the item that is STAGES - 1 ahead (before the first `advance`: of the next one).
    __device__ void fetch(int operand, const T* row, Columns<T, VECTORS> columns) {
        const bool aligned = is_aligned(row);
        uint4* to = place(ahead_, operand);
#pragma unroll
        for (int v = 0; v < VECTORS; ++v, to += blockDim.x) {
            const int count = columns.count(v);
            const T* from = count ? row + columns(v) : row;
            if (aligned)
                copy_async(to, from, count * sizeof(T));
            else
                *to = gathered(from, count);
        }
    }
    // That item is complete.
    __device__ void end_item() {
        end_group();
        ahead_ = next(ahead_);
    }
    // Wait for the item to work on.
    __device__ void wait() { wait_for_groups<STAGES - 1>(); }
    // A vector of it.
    __device__ void read(int operand, int vector, Acc<T> (&values)[LANES<T>]) const {
        unpack<T>(place(now_, operand)[vector * blockDim.x], values);
    }
    // Go on to the next item.
    __device__ void advance() { now_ = next(now_); }

  private:
    __device__ static int next(int stage) { return stage + 1 == STAGES ? 0 : stage + 1; }
    __device__ uint4* place(int stage, int operand) const {
        return memory_ + (stage * operands_ + operand) * VECTORS * blockDim.x;
    }

    uint4* memory_;
    int operands_, ahead_ = 0, now_ = 0;
};

}  // namespace ofa

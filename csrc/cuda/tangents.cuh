// K tangents share a row's primal, which is read once for all of them: what their kernels have in common.
#pragma once

#include "row_sums.cuh"
#include "rstd.cuh"

namespace ofa {

// 8 values a thread: a kernel holds six rows' and more
template <class T>
constexpr int TANGENT_VECTORS = sizeof(T) == 2 ? 1 : 2;

// What a team fetches, in this order: a row's primal, then each of its tangents from `begin` to `end`.
class Items {
  public:
    __device__ Items(int begin, int end) : begin_(begin), end_(end), row_(first_row()), tangent_(begin - 1) {}
    __device__ int64_t row() const { return row_; }
    __device__ bool is_primal() const { return tangent_ < begin_; }
    __device__ int64_t tangent() const { return tangent_; }  // wide, for products with strides
    __device__ void advance() {
        if (++tangent_ < end_) return;
        tangent_ = begin_ - 1;
        row_ += n_teams();
    }

  private:
    int begin_, end_;
    int64_t row_;
    int tangent_;
};

// A thread's share of a sum over rows for each tangent, in shared memory: registers hold no more than a few.
template <class T, int VECTORS>
class TangentSums {
  public:
    using A = Acc<T>;
    // `memory` as long as `bytes` says.
    __device__ TangentSums(void* memory, int tangents) : memory_(static_cast<uint4*>(memory) + threadIdx.x) {
        for (int i = 0; i < tangents * VECTORS * PIECES; ++i) memory_[i * blockDim.x] = {0, 0, 0, 0};
    }
    static std::size_t bytes(unsigned threads) { return std::size_t(VECTORS) * PIECES * threads * sizeof(uint4); }

    __device__ void read(int tangent, int vector, A (&values)[LANES<T>]) const {
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            A piece[LANES<A>];
            unpack<A>(*place(tangent, vector, p), piece);
#pragma unroll
            for (int j = 0; j < LANES<A>; ++j) values[p * LANES<A> + j] = piece[j];
        }
    }
    __device__ void add(int tangent, int vector, const A (&values)[LANES<T>]) {
#pragma unroll
        for (int p = 0; p < PIECES; ++p) {
            A piece[LANES<A>];
            unpack<A>(*place(tangent, vector, p), piece);
#pragma unroll
            for (int j = 0; j < LANES<A>; ++j) piece[j] += values[p * LANES<A> + j];
            *place(tangent, vector, p) = pack<A>(piece);
        }
    }
    // Leave the sums of `count` tangents, the first of which is `first` of `tangents`.
    __device__ void leave(int first, int count, int tangents, Columns<T, VECTORS> columns, A* partials, void* out,
                          int64_t dtype) const {
        for (int k = 0; k < count; ++k) {
            A sums[VECTORS][LANES<T>];
#pragma unroll
            for (int v = 0; v < VECTORS; ++v) read(k, v, sums[v]);
            leave_sum<T, VECTORS>(sums, columns, partials, out, dtype,
                                  (partials ? first_row() * tangents : 0) + first + k);
        }
    }

  private:
    static constexpr int PIECES = LANES<T> / LANES<A>;  // vectors of sums to one of the row
    __device__ uint4* place(int tangent, int vector, int piece) const {
        return memory_ + ((tangent * VECTORS + vector) * PIECES + piece) * blockDim.x;
    }

    uint4* memory_;
};

// Plan for rows that are fetched `operands` at a time, whose threads keep sums for each tangent where `sums` says so:
// as many passes as it takes until a pass's sums fit shared memory.
template <class T, int VECTORS, int SUMS>
inline Plan plan_tangents(const Device& device, int64_t rows, int64_t columns, int64_t tangents, int operands, bool sums,
                          bool any_sums) {
    Plan plan = plan_row<T>(device, columns, VECTORS);
    if (!plan.possible()) return plan;
    const std::size_t fixed = TeamSum<SUMS>::bytes() + Ring<T, VECTORS>::bytes(plan.threads, operands);
    const std::size_t of_tangent = sums ? TangentSums<T, VECTORS>::bytes(plan.threads) : 0;
    if (fixed + of_tangent > device.shared_block) return Plan();
    const int64_t most = of_tangent ? (device.shared_block - fixed) / of_tangent : std::max<int64_t>(tangents, 1);
    plan.passes = static_cast<unsigned>(std::max<int64_t>(1, (tangents + most - 1) / most));
    plan.shared = fixed + of_tangent * tangents_of_pass(tangents, plan.passes);
    plan_teams(device, plan, any_sums ? teams_with_sums(rows) : rows);
    return plan;
}

}  // namespace ofa

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
    __device__ Items(Team team, int begin, int end)
        : begin_(begin), end_(end), tangent_(begin - 1), row_(team.first_row()), rows_(team.count()) {}
    __device__ int64_t row() const { return row_; }
    __device__ bool is_primal() const { return tangent_ < begin_; }
    __device__ int64_t tangent() const { return tangent_; }  // wide, for products with strides
    __device__ void advance() {
        if (++tangent_ < end_) return;
        tangent_ = begin_ - 1;
        row_ += rows_;
    }

  private:
    int begin_, end_, tangent_;
    int64_t row_, rows_;
};

// Plan for rows that are fetched `operands` at a time, whose threads keep sums for each tangent where `sums` says so:
// as many passes as it takes until a pass's sums fit shared memory.
template <class T, int VECTORS, int SUMS>
inline Plan plan_tangents(const Device& device, int64_t rows, int64_t columns, int64_t tangents, int operands, bool sums,
                          bool any_sums) {
    const std::size_t fixed = TeamSum<SUMS>::bytes(), ring = Ring<T, VECTORS>::bytes(operands);
    const std::size_t of_tangent = sums ? SharedSums<T, VECTORS>::bytes() : 0;
    Plan plan = plan_row<T>(device, columns, VECTORS, fixed, ring + of_tangent);
    if (!plan.possible()) return plan;
    const int64_t room = (device.shared_block - fixed) / plan.threads - ring;
    const int64_t most = sums ? room / of_tangent : std::max<int64_t>(tangents, 1);
    plan.passes = static_cast<unsigned>(std::max<int64_t>(1, (tangents + most - 1) / most));
    plan.shared = fixed + plan.threads * (ring + of_tangent * tangents_of_pass(tangents, plan.passes));
    if (any_sums)
        plan_teams_with_sums(device, plan, rows, 1 + tangents_of_pass(tangents, plan.passes));
    else
        plan_teams(device, plan, rows);
    return plan;
}

}  // namespace ofa

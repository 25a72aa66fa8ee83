// The lengths of the steps between successive states, which the step ratio divides, and their gradient.
#include "rows.hpp"

namespace ofa {
namespace OFA_ISA {

template <class T>
static void lengths(const ofa_step_lengths& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, all = c.steps * c.examples;
    const T* z = static_cast<const T*>(c.states);
    A* out = static_cast<A*>(c.lengths);
    const int64_t shares = threads_for(c.threads, all, all * n);
    parallel(shares, [=, &c](int64_t share) {
        const Part part(all, share, shares);
        for (int64_t at = part.begin; at < part.end; ++at) {
            const T* before = z + at / c.examples * c.states_t + at % c.examples * c.states_b;
            const T* after = before + c.states_t;
            SumOfSquares<A> sum;
            sweep<COLUMNS<A>>(0, n, [&sum, before, after](int64_t j, auto span) {
                sum.add(get(after + j, span) - get(before + j, span));
            });
            out[at] = static_cast<A>(std::sqrt(sum.value()));
        }
    });
}

// dZ_t = a_t (Z_t - Z_{t-1}) - a_{t+1} (Z_{t+1} - Z_t) with a = dlength / length
template <class T>
static void lengths_backward(const ofa_step_lengths_backward& c) {
    using A = Acc<T>;
    const int64_t n = c.columns;
    const T* z = static_cast<const T*>(c.states);
    const A* length = static_cast<const A*>(c.lengths);
    const A* dlength = static_cast<const A*>(c.dlengths);
    T* out = static_cast<T*>(c.dstates);
    const auto factor = [=, &c](int64_t t, int64_t b) {
        if (t < 0 || t >= c.steps) return A(0);
        const int64_t at = t * c.examples + b;
        return length[at] > 0 ? plain_nan(dlength[at] / length[at]) : A(0);
    };
    const int64_t all = (c.steps + 1) * c.examples;
    const bool streamed = prepare(out, all * n * sizeof(T));
    const int64_t shares = threads_for(c.threads, all, all * n);
    parallel(shares, [=, &c](int64_t share) {
        const Part part(all, share, shares);
        for (int64_t at = part.begin; at < part.end; ++at) {
            const int64_t t = at / c.examples, b = at % c.examples;
            const A arriving = factor(t - 1, b), leaving = factor(t, b);
            const T* here = z + t * c.states_t + b * c.states_b;
            const T* before = t > 0 ? here - c.states_t : here;
            const T* after = t < c.steps ? here + c.states_t : here;
            T* row = out + at * n;
            sweep<COLUMNS<A>>(0, n, [=](int64_t j, auto span) {
                const auto v = get(here + j, span);
                const auto step = (v - get(before + j, span)) * arriving;
                put(row + j, step - (get(after + j, span) - v) * leaving, streamed, span);
            });
        }
    });
}

int step_lengths(const ofa_step_lengths& c) {
    return run(c.dtype, [&](auto* type) { lengths<std::remove_pointer_t<decltype(type)>>(c); });
}
int step_lengths_backward(const ofa_step_lengths_backward& c) {
    return run(c.dtype, [&](auto* type) { lengths_backward<std::remove_pointer_t<decltype(type)>>(c); });
}

}  // namespace OFA_ISA
}  // namespace ofa

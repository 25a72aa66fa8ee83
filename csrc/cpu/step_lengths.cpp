// The lengths of the steps between successive states, which the step ratio divides, and their gradient.
#include "in_double.hpp"

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
        const Part part = part_of(all, share, shares);
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

template <class T>
static void lengths_backward(const ofa_step_lengths_backward& c);

// The gradient in double, for state `t` of example `b` alone; it needs the states before and after.
template <class T>
[[gnu::noinline, gnu::cold]] static void lengths_backward_in_double(const ofa_step_lengths_backward& c, int64_t t,
                                                                    int64_t b) {
    using A = Acc<T>;
    const int64_t n = c.columns, first = std::max<int64_t>(t - 1, 0), last = std::min(t + 1, c.steps);
    RowsInDouble rows(6, n);
    ofa_step_lengths_backward own = c;
    own.dtype = OFA_FLOAT64;
    own.threads = own.examples = 1;
    own.steps = last - first;
    double lengths[2], dlengths[2];
    for (int64_t step = first; step < last; ++step) {
        lengths[step - first] = static_cast<const A*>(c.lengths)[step * c.examples + b];
        dlengths[step - first] = static_cast<const A*>(c.dlengths)[step * c.examples + b];
    }
    own.lengths = lengths, own.dlengths = dlengths;
    own.states_t = padded<double>(n);  // one behind the other
    own.states = rows.next();
    for (int64_t at = first; at <= last; ++at)
        rows.input(static_cast<const T*>(c.states) + at * c.states_t + b * c.states_b, c.dtype);
    double* dstates = rows.output();
    own.dstates = dstates;
    lengths_backward<double>(own);
    pack_row<double>(dstates + (t - first) * n, n, c.dstates, c.dtype, t * c.examples + b);
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
        if (t < 0 || t >= c.steps) return 0.0;
        const int64_t at = t * c.examples + b;
        return length[at] > 0 ? plain_nan(static_cast<double>(dlength[at]) / length[at]) : 0.0;
    };
    const int64_t all = (c.steps + 1) * c.examples;
    const bool streamed = prepare(out, all * n * sizeof(T));
    const int64_t shares = threads_for(c.threads, all, all * n);
    parallel(shares, [=, &c](int64_t share) {
        const Part part = part_of(all, share, shares);
        for (int64_t at = part.begin; at < part.end; ++at) {
            const int64_t t = at / c.examples, b = at % c.examples;
            const double factors[] = {factor(t - 1, b), factor(t, b)};
            if (!fit<A>(1, {factors[0], factors[1]})) {
                lengths_backward_in_double<T>(c, t, b);
                continue;
            }
            const A arriving = static_cast<A>(factors[0]), leaving = static_cast<A>(factors[1]);
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

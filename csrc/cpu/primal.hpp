// What all tangents of one row share: r, and c of its gradient. Notation as in rms_norm.cpp.
#pragma once

#include "rows.hpp"

namespace ofa {
namespace OFA_ISA {

template <class T>
struct PrimalSums {
    SumOfSquares<T> xx;
    Sum<Acc<T>> gx;
    void flush() { gx.flush(); }
};

struct Primal {
    double r, c;  // in double: the scalars below cancel
};

// r, and c where there is a dy.
template <class T>
static Primal primal_of(const T* x, const Acc<T>* w, const T* dy, int64_t n, double eps) {
    PrimalSums<T> sums;
    constexpr int64_t panel = PANEL_PAIRS * COLUMNS<Acc<T>>;
    for (int64_t begin = 0; begin < n; begin += panel) {
        sweep<COLUMNS<Acc<T>>>(begin, std::min(begin + panel, n), [&sums, x, w, dy](int64_t j, auto span) {
            const auto v = get(x + j, span);
            sums.xx.add(v);
            if (dy) sums.gx.add_product(load(w + j) * get(dy + j, span), v);
        });
        sums.flush();
    }
    const double r = reciprocal_root<double>(sums.xx, x, n, eps);
    return {r, r * sums.gx.value() / static_cast<double>(n)};
}

}  // namespace OFA_ISA
}  // namespace ofa

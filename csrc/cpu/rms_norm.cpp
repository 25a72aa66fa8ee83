// RMSNorm, first order. Notation: r = (mean(x^2) + eps)^(-1/2), x_hat = r x, w the weight plus offset,
// g = w dy, c = mean(g x_hat).
#include "in_double.hpp"

namespace ofa {
namespace OFA_ISA {

template <class T>
struct ForwardSums {
    SumOfSquares<T> xx;
    void flush() {}
};

template <class A>
struct ForwardScalars {
    A r;
    static constexpr bool fit = true;
};

template <class T, bool ROUND_X_HAT, bool ADD>
static void forward(const ofa_norm_forward& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, x_stride = c.x_stride, residual_stride = c.residual_stride;
    const double eps = c.eps;
    const T* x = static_cast<const T*>(c.x);
    const T* residual = static_cast<const T*>(c.residual);
    T* y = static_cast<T*>(c.y);
    T* s = static_cast<T*>(c.s);
    A* rstd = static_cast<A*>(c.rstd);
    const T* normed = ADD ? s : x;
    const int64_t normed_stride = ADD ? n : x_stride;
    const bool streamed = prepare(y, c.rows * n * sizeof(T));
    if (ADD) prepare(s, c.rows * n * sizeof(T));

    const Rows rows(c, c.rows * n);
    parallel(rows.shares, [=, &c, &rows](int64_t share) {
        const OwnWeight<T> weight(c.weight, c.weight_dtype, 1, c.weights, n, c.offset);
        rows.each_segment(share, [=, &weight](const Segment& segment) {
            const A* w = weight.unpack(segment.weight);
            row_groups<ForwardSums<T>, COLUMNS<A>>(
                segment.rows, n,
                [=](int64_t i, ForwardSums<T>& sums) {
                    const T* in = x + i * x_stride;
                    const T* added = residual + i * residual_stride;
                    T* sum = s + i * n;
                    return [=, &sums](int64_t j, auto span) {
                        auto v = get(in + j, span);
                        if constexpr (ADD) {
                            v = rounded<T>(v + get(added + j, span));
                            put(sum + j, v, false, span);
                        }
                        sums.xx.add(v);
                    };
                },
                [=](const ForwardSums<T>& sums, int64_t i) {
                    const A r = reciprocal_root<A>(sums.xx, normed + i * normed_stride, n, eps);
                    if (rstd) rstd[i] = r;
                    return ForwardScalars<A>{r};
                },
                [=](int64_t i, ForwardScalars<A> k) {
                    const T* in = normed + i * normed_stride;
                    T* out = y + i * n;
                    return [=](int64_t j, auto span) {
                        auto x_hat = get(in + j, span) * k.r;
                        if constexpr (ROUND_X_HAT) x_hat = rounded<T>(x_hat);
                        put(out + j, load(w + j) * x_hat, streamed, span);
                    };
                },
                [](int64_t) {});
        });
    });
}

template <class T>
struct BackwardSums {
    SumOfSquares<T> xx;
    Sum<Acc<T>> gx;
    void flush() { gx.flush(); }
};

template <class A>
struct BackwardScalars {
    A r, x_hat_factor;
    bool fit;
};

template <class T, bool NEED_DX, bool NEED_DW, bool ADD>
static void backward(const ofa_norm_backward& c);

// The backward in double, for row i alone, whose r is computed too; its share of dw is added to own_dw.
template <class T, bool NEED_DX, bool NEED_DW, bool ADD>
[[gnu::noinline, gnu::cold]] static void backward_in_double(const ofa_norm_backward& c, int64_t i, Acc<T>* own_dw) {
    const int64_t n = c.columns;
    RowsInDouble rows(6, n);
    ofa_norm_backward row = c;
    make_double(row, rows, i);
    row.rstd = nullptr;
    row.x = rows.input(static_cast<const T*>(c.x) + i * c.x_stride, c.dtype);
    row.dy = rows.input(static_cast<const T*>(c.dy) + i * c.dy_stride, c.dtype);
    if (ADD) row.ds = rows.input(static_cast<const T*>(c.ds) + i * c.ds_stride, c.dtype);
    double* dx = rows.output();
    double* dw = rows.output();
    row.dx = dx, row.dw = dw;
    backward<double, NEED_DX, NEED_DW, ADD>(row);
    if (NEED_DX) pack_row<double>(dx, n, c.dx, c.dtype, i);
    if (NEED_DW) add_row<T>(dw, n, own_dw);
}

template <class T, bool NEED_DX, bool NEED_DW, bool ADD>
static void backward(const ofa_norm_backward& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, x_stride = c.x_stride, dy_stride = c.dy_stride, ds_stride = c.ds_stride;
    const double eps = c.eps;
    const T* x = static_cast<const T*>(c.x);
    const T* dy = static_cast<const T*>(c.dy);
    const T* ds = static_cast<const T*>(c.ds);
    const A* rstd = static_cast<const A*>(c.rstd);
    T* dx = static_cast<T*>(c.dx);
    const bool streamed = NEED_DX && prepare(dx, c.rows * n * sizeof(T));

    const Rows rows(c, c.rows * n);
    const RowSums<T> dw(rows, 1, NEED_DW ? c.dw : nullptr, c.weight_dtype, n);
    parallel(rows.shares, [=, &c, &rows, &dw](int64_t share) {
        const OwnWeight<T> weight(c.weight, c.weight_dtype, 1, c.weights, n, c.offset);
        rows.each_segment(share, [=, &c, &rows, &dw, &weight](const Segment& segment) {
            const A* w = weight.unpack(segment.weight);
            A* own_dw = dw.begin(segment);
            rows.each_chain(
                segment,
                [=, &c](Part part) {
                    row_groups<BackwardSums<T>, COLUMNS<A>>(
                        part, n,
                        [=](int64_t i, BackwardSums<T>& sums) {
                            const T* in = x + i * x_stride;
                            const T* up = dy + i * dy_stride;
                            return [=, &sums](int64_t j, auto span) {
                                const auto v = get(in + j, span);
                                sums.xx.add(v);
                                if constexpr (NEED_DX) sums.gx.add_product(load(w + j) * get(up + j, span), v);
                            };
                        },
                        [=](const BackwardSums<T>& sums, int64_t i) {
                            const double r = rstd ? rstd[i] : reciprocal_root<A>(sums.xx, x + i * x_stride, n, eps);
                            // r c = r^2 mean(g x)
                            const double factor = r * r * (sums.gx.value() / static_cast<double>(n));
                            return BackwardScalars<A>{static_cast<A>(r), static_cast<A>(factor),
                                                      fit<A>(r, {sums.gx.value(), factor})};
                        },
                        [=](int64_t i, BackwardScalars<A> k) {
                            const T* in = x + i * x_stride;
                            const T* up = dy + i * dy_stride;
                            const T* added = ds + i * ds_stride;
                            T* out = dx + i * n;
                            return [=](int64_t j, auto span) {
                                const auto v = get(in + j, span);
                                const auto d = get(up + j, span);
                                const auto x_hat = v * k.r;
                                if constexpr (NEED_DX) {
                                    auto result = load(w + j) * d * k.r - x_hat * k.x_hat_factor;
                                    if constexpr (ADD) result = result + get(added + j, span);
                                    put(out + j, result, streamed, span);
                                }
                                if constexpr (NEED_DW) store(own_dw + j, load(own_dw + j) + d * x_hat);
                            };
                        },
                        [=, &c](int64_t i) { backward_in_double<T, NEED_DX, NEED_DW, ADD>(c, i, own_dw); });
                },
                dw);
            dw.end(segment);
        });
    });
    dw.finish();
}

int norm_forward(const ofa_norm_forward& c) {
    return run(c.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if (c.round_x_hat)
            c.residual ? forward<T, true, true>(c) : forward<T, true, false>(c);
        else
            c.residual ? forward<T, false, true>(c) : forward<T, false, false>(c);
    });
}

int norm_backward(const ofa_norm_backward& c) {
    return run(c.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if (!c.dx) {
            if (c.dw) backward<T, false, true, false>(c);
        } else if (c.dw) {
            c.ds ? backward<T, true, true, true>(c) : backward<T, true, true, false>(c);
        } else {
            c.ds ? backward<T, true, false, true>(c) : backward<T, true, false, false>(c);
        }
    });
}

}  // namespace OFA_ISA
}  // namespace ofa

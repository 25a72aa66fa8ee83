// RMSNorm, second order, for K tangents of one primal: x, dy and w are read once for a group of tangents.
// Notation as in rms_norm.cpp, and m = mean(x_hat x_dot), x_hat' = r (x_dot - x_hat m), g' = w dy' + w' dy,
// c' = mean(g' x_hat + g x_hat').
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
    const double r = reciprocal_root<double>(sum_of_squares(sums.xx, x, n), n, eps);
    return {r, r * sums.gx.value() / static_cast<double>(n)};
}

template <class A>
struct JvpSums {
    Sum<A> x_dot_x;
    void flush() { x_dot_x.flush(); }
};

template <class A>
struct JvpScalars {
    A r, x_factor;
};

// y' = w r (x_dot - x_hat m) + w' x_hat
template <class T, bool WEIGHT_DOT>
static void jvp(const ofa_norm_jvp& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, rows = c.rows, x_dot_k = c.x_dot_k, width = padded<T>(n);
    Scratch<A> weights, weight_dots;
    Scratch<T> no_rows;
    const A* w = unpack<T>(c.weight, c.weight_dtype, 1, n, c.offset, weights);
    const A* w_dot = WEIGHT_DOT ? unpack<T>(c.weight_dot, c.weight_dtype, c.tangents, n, 0, weight_dots) : nullptr;
    const T* x = static_cast<const T*>(c.x);
    const T* x_dot = c.x_dot ? static_cast<const T*>(c.x_dot) : no_rows.zeros(n);
    T* y_dot = static_cast<T*>(c.y_dot);
    const bool streamed = prepare(y_dot, c.tangents * rows * n * sizeof(T));

    const int64_t shares = threads_for(c.threads, rows, (c.tangents + 1) * rows * n);
    parallel(shares, [=, &c](int64_t share) {
        const Part part(rows, share, shares);
        for (int64_t i = part.begin; i < part.end; ++i) {
            const T* in = x + i * c.x_stride;
            const T* dot = x_dot + i * c.x_dot_stride;
            const double r = primal_of<T>(in, w, nullptr, n, c.eps).r;
            row_groups<JvpSums<A>, COLUMNS<A>>(
                0, c.tangents, n,
                [=](int64_t k, JvpSums<A>& sums) {
                    const T* direction = dot + k * x_dot_k;
                    return [=, &sums](int64_t j, auto span) {
                        sums.x_dot_x.add_product(get(direction + j, span), get(in + j, span));
                    };
                },
                [=](const JvpSums<A>& sums, int64_t) {
                    const double m = r * sums.x_dot_x.value() / static_cast<double>(n);
                    return JvpScalars<A>{static_cast<A>(r), static_cast<A>(r * r * m)};
                },
                [=](int64_t k, JvpScalars<A> f) {
                    const T* direction = dot + k * x_dot_k;
                    const A* change = w_dot + k * width;
                    T* out = y_dot + (k * rows + i) * n;
                    return [=](int64_t j, auto span) {
                        const auto v = get(in + j, span);
                        auto result = load(w + j) * (get(direction + j, span) * f.r - v * f.x_factor);
                        if constexpr (WEIGHT_DOT) result = result + load(change + j) * (v * f.r);
                        put(out + j, result, streamed, span);
                    };
                });
        }
    });
}

template <class A>
struct TangentSums {
    Sum<A> x_dot_x, x_dot_g, g_dot_x;
    void flush() {
        x_dot_x.flush();
        x_dot_g.flush();
        g_dot_x.flush();
    }
};

// dx' = r g' + of_g g + of_x_dot x_dot + of_x x, and x_hat' = r x_dot - x_hat_x x
template <class A>
struct TangentScalars {
    A r, of_g, of_x_dot, of_x, x_hat_x;
};

// dx' = -r^2 m (g - x_hat c) + r (g' - x_hat' c - x_hat c'), sorted by vectors
template <class A>
static TangentScalars<A> tangent_scalars(const TangentSums<A>& sums, Primal p, int64_t columns) {
    const double n = static_cast<double>(columns), r = p.r, c = p.c;
    const double m = r * sums.x_dot_x.value() / n;
    const double c_dot = r * sums.g_dot_x.value() / n + r * (sums.x_dot_g.value() / n - m * c);
    return {static_cast<A>(r), static_cast<A>(-r * r * m), static_cast<A>(-r * r * c),
            static_cast<A>(r * r * (2 * r * m * c - c_dot)), static_cast<A>(r * r * m)};
}

// G_DOT: whether there is a weight_dot or a dy_dot; where one is absent it reads zeros.
template <class T, bool G_DOT, bool NEED_DW>
static void backward_tangent(const ofa_norm_backward_tangent& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, rows = c.rows, width = padded<T>(n), tangents = c.tangents;
    const int64_t x_dot_k = c.x_dot_k, dy_dot_k = c.dy_dot_k, weight_dot_k = c.weight_dot ? width : 0;
    Scratch<A> weights, weight_dots, partial;
    Scratch<T> no_rows;
    const A* w = unpack<T>(c.weight, c.weight_dtype, 1, n, c.offset, weights);
    const A* w_dot =
        G_DOT ? unpack<T>(c.weight_dot, c.weight_dtype, c.weight_dot ? tangents : 1, n, 0, weight_dots) : nullptr;
    const T* x = static_cast<const T*>(c.x);
    const T* dy = static_cast<const T*>(c.dy);
    const T* zeros = c.x_dot && (c.dy_dot || !G_DOT) ? nullptr : no_rows.zeros(n);
    const T* x_dot = c.x_dot ? static_cast<const T*>(c.x_dot) : zeros;
    const T* dy_dot = c.dy_dot ? static_cast<const T*>(c.dy_dot) : zeros;
    T* dx_dot = static_cast<T*>(c.dx_dot);
    const bool streamed = prepare(dx_dot, tangents * rows * n * sizeof(T));

    const int64_t shares = threads_for(c.threads, rows, (tangents + 1) * rows * n);
    A* dw_dot = NEED_DW ? partial.zeros(shares * tangents * width) : nullptr;
    parallel(shares, [=, &c](int64_t share) {
        const Part part(rows, share, shares);
        A* own_dw = dw_dot + share * tangents * width;
        for (int64_t i = part.begin; i < part.end; ++i) {
            const T* in = x + i * c.x_stride;
            const T* up = dy + i * c.dy_stride;
            const T* dot = x_dot + i * c.x_dot_stride;
            const T* up_dot = dy_dot + i * c.dy_dot_stride;
            const Primal primal = primal_of<T>(in, w, up, n, c.eps);
            row_groups<TangentSums<A>, COLUMNS<A>>(
                0, tangents, n,
                [=](int64_t k, TangentSums<A>& sums) {
                    const T* direction = dot + k * x_dot_k;
                    const T* up_change = up_dot + k * dy_dot_k;
                    const A* change = w_dot + k * weight_dot_k;
                    return [=, &sums](int64_t j, auto span) {
                        const auto v = get(in + j, span);
                        const auto d = get(up + j, span);
                        const auto t = get(direction + j, span);
                        sums.x_dot_x.add_product(t, v);
                        sums.x_dot_g.add_product(t, load(w + j) * d);
                        if constexpr (G_DOT)
                            sums.g_dot_x.add_product(load(w + j) * get(up_change + j, span) + load(change + j) * d, v);
                    };
                },
                [=](const TangentSums<A>& sums, int64_t) { return tangent_scalars(sums, primal, n); },
                [=](int64_t k, TangentScalars<A> f) {
                    const T* direction = dot + k * x_dot_k;
                    const T* up_change = up_dot + k * dy_dot_k;
                    const A* change = w_dot + k * weight_dot_k;
                    T* out = dx_dot + (k * rows + i) * n;
                    A* dw = own_dw + k * width;
                    return [=](int64_t j, auto span) {
                        const auto v = get(in + j, span);
                        const auto d = get(up + j, span);
                        const auto t = get(direction + j, span);
                        auto result = load(w + j) * d * f.of_g + t * f.of_x_dot + v * f.of_x;
                        auto dw_row = d * (t * f.r - v * f.x_hat_x);
                        if constexpr (G_DOT) {
                            const auto e = get(up_change + j, span);
                            result = result + (load(w + j) * e + load(change + j) * d) * f.r;
                            dw_row = dw_row + e * (v * f.r);
                        }
                        put(out + j, result, streamed, span);
                        if constexpr (NEED_DW) store(dw + j, load(dw + j) + dw_row);
                    };
                });
        }
    });
    if (NEED_DW)
        with_type(c.weight_dtype, [&](auto* type) {
            using W = std::remove_pointer_t<decltype(type)>;
            for (int64_t k = 0; k < tangents; ++k)
                pack_sum<T>(dw_dot + k * width, shares, tangents * width, n, static_cast<W*>(c.dw_dot) + k * n,
                            c.weight_dtype);
        });
}

// Gradients of the JVP: in x and w those of backward_tangent with dy_k for dy, summed over k; in x_dot and
// w_dot those of the norm itself.
template <class T, bool WEIGHT_DOT>
static void jvp_backward(const ofa_norm_jvp_backward& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, rows = c.rows, width = padded<T>(n), tangents = c.tangents;
    const int64_t x_dot_k = c.x_dot_k, dy_k = c.dy_k;
    Scratch<A> weights, weight_dots, partial, partial_dot, sums_over_k;
    Scratch<T> no_rows;
    const A* w = unpack<T>(c.weight, c.weight_dtype, 1, n, c.offset, weights);
    const A* w_dot = WEIGHT_DOT ? unpack<T>(c.weight_dot, c.weight_dtype, tangents, n, 0, weight_dots) : nullptr;
    const T* x = static_cast<const T*>(c.x);
    const T* dy = static_cast<const T*>(c.dy);
    const T* x_dot = c.x_dot ? static_cast<const T*>(c.x_dot) : no_rows.zeros(n);
    T* dx = static_cast<T*>(c.dx);
    T* dx_dot = static_cast<T*>(c.dx_dot);
    const bool streamed = prepare(dx_dot, tangents * rows * n * sizeof(T));

    struct Sums {
        TangentSums<A> tangent;
        Sum<A> gx;
        void flush() {
            tangent.flush();
            gx.flush();
        }
    };
    struct Scalars {
        TangentScalars<A> tangent;
        A x_factor;
    };
    const int64_t shares = threads_for(c.threads, rows, (2 * tangents + 1) * rows * n);
    A* dw = c.dw ? partial.zeros(shares * width) : nullptr;
    A* dw_dot = c.dw_dot ? partial_dot.zeros(shares * tangents * width) : nullptr;
    A* dx_sums = sums_over_k.zeros(shares * width);
    parallel(shares, [=, &c](int64_t share) {
        const Part part(rows, share, shares);
        A* dx_sum = dx_sums + share * width;
        A* own_dw = dw ? dw + share * width : nullptr;
        A* own_dw_dot = dw_dot ? dw_dot + share * tangents * width : nullptr;
        for (int64_t i = part.begin; i < part.end; ++i) {
            const T* in = x + i * c.x_stride;
            const T* up = dy + i * c.dy_stride;
            const T* dot = x_dot + i * c.x_dot_stride;
            const double r = primal_of<T>(in, w, nullptr, n, c.eps).r;
            std::fill(dx_sum, dx_sum + width, A(0));
            row_groups<Sums, COLUMNS<A>>(
                0, tangents, n,
                [=](int64_t k, Sums& sums) {
                    const T* direction = dot + k * x_dot_k;
                    const T* up_k = up + k * dy_k;
                    const A* change = w_dot + k * width;
                    return [=, &sums](int64_t j, auto span) {
                        const auto v = get(in + j, span);
                        const auto d = get(up_k + j, span);
                        const auto t = get(direction + j, span);
                        const auto g = load(w + j) * d;
                        sums.gx.add_product(g, v);
                        sums.tangent.x_dot_x.add_product(t, v);
                        sums.tangent.x_dot_g.add_product(t, g);
                        if constexpr (WEIGHT_DOT) sums.tangent.g_dot_x.add_product(load(change + j) * d, v);
                    };
                },
                [=](const Sums& sums, int64_t) {
                    const double mean_gx = sums.gx.value() / static_cast<double>(n);
                    const Primal primal{r, r * mean_gx};
                    return Scalars{tangent_scalars(sums.tangent, primal, n), static_cast<A>(r * r * r * mean_gx)};
                },
                [=](int64_t k, Scalars f) {
                    const T* direction = dot + k * x_dot_k;
                    const T* up_k = up + k * dy_k;
                    const A* change = w_dot + k * width;
                    T* out = dx_dot + (k * rows + i) * n;
                    A* dw_k = own_dw_dot + k * width;
                    const TangentScalars<A> a = f.tangent;
                    return [=](int64_t j, auto span) {
                        const auto v = get(in + j, span);
                        const auto d = get(up_k + j, span);
                        const auto t = get(direction + j, span);
                        const auto g = load(w + j) * d;
                        auto result = g * a.of_g + t * a.of_x_dot + v * a.of_x;
                        if constexpr (WEIGHT_DOT) result = result + load(change + j) * d * a.r;
                        store(dx_sum + j, load(dx_sum + j) + result);
                        put(out + j, g * a.r - v * f.x_factor, streamed, span);
                        if (own_dw) store(own_dw + j, load(own_dw + j) + d * (t * a.r - v * a.x_hat_x));
                        if (own_dw_dot) store(dw_k + j, load(dw_k + j) + d * (v * a.r));
                    };
                });
            T* out = dx + i * n;
            sweep<COLUMNS<A>>(0, n, [=](int64_t j, auto span) { put(out + j, load(dx_sum + j), false, span); });
        }
    });
    if (dw) pack_sum<T>(dw, shares, width, n, c.dw, c.weight_dtype);
    if (dw_dot)
        with_type(c.weight_dtype, [&](auto* type) {
            using W = std::remove_pointer_t<decltype(type)>;
            for (int64_t k = 0; k < tangents; ++k)
                pack_sum<T>(dw_dot + k * width, shares, tangents * width, n, static_cast<W*>(c.dw_dot) + k * n,
                            c.weight_dtype);
        });
}

int norm_jvp(const ofa_norm_jvp& c) {
    return run(c.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        c.weight_dot ? jvp<T, true>(c) : jvp<T, false>(c);
    });
}

int norm_backward_tangent(const ofa_norm_backward_tangent& c) {
    return run(c.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        if (c.weight_dot || c.dy_dot)
            c.dw_dot ? backward_tangent<T, true, true>(c) : backward_tangent<T, true, false>(c);
        else
            c.dw_dot ? backward_tangent<T, false, true>(c) : backward_tangent<T, false, false>(c);
    });
}

int norm_jvp_backward(const ofa_norm_jvp_backward& c) {
    return run(c.dtype, [&](auto* type) {
        using T = std::remove_pointer_t<decltype(type)>;
        c.weight_dot ? jvp_backward<T, true>(c) : jvp_backward<T, false>(c);
    });
}

}  // namespace OFA_ISA
}  // namespace ofa

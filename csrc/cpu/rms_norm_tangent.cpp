// RMSNorm, second order, for K tangents of one primal: x, dy and w are read once for a group of tangents.
// Notation as in rms_norm.cpp, and m = mean(x_hat x_dot), x_hat' = r (x_dot - x_hat m), g' = w dy' + w' dy,
// c' = mean(g' x_hat + g x_hat').
#include "in_double.hpp"
#include "primal.hpp"

namespace ofa {
namespace OFA_ISA {

template <class A>
struct JvpSums {
    Sum<A> x_dot_x;
    void flush() { x_dot_x.flush(); }
};

template <class A>
struct JvpScalars {
    A r, x_factor;
    bool fit;
};

// What the operators on tangents have in common: the call in double for row i of tangent k.
template <class T, class Call>
static void make_double(Call& c, RowsInDouble& rows, int64_t i, int64_t k) {
    const auto row_of = [&](const void* data, int64_t at) {
        return data ? rows.input(static_cast<const T*>(data) + at, c.dtype) : nullptr;
    };
    c.x = row_of(c.x, i * c.x_stride);
    c.x_dot = row_of(c.x_dot, k * c.x_dot_k + i * c.x_dot_stride);
    c.weight_dot = rows.input(c.weight_dot, c.weight_dtype, k * c.weights + weight_of(c, i));
    c.tangents = 1;
    make_double(c, rows, i);
}

template <class T, bool WEIGHT_DOT>
static void jvp(const ofa_norm_jvp& c);

template <class T, bool WEIGHT_DOT>
[[gnu::noinline, gnu::cold]] static void jvp_in_double(const ofa_norm_jvp& c, int64_t i, int64_t k) {
    RowsInDouble rows(5, c.columns);
    ofa_norm_jvp row = c;
    make_double<T>(row, rows, i, k);
    double* y_dot = rows.output();
    row.y_dot = y_dot;
    jvp<double, WEIGHT_DOT>(row);
    pack_row<double>(y_dot, c.columns, c.y_dot, c.dtype, k * c.rows + i);
}

// y' = w r (x_dot - x_hat m) + w' x_hat
template <class T, bool WEIGHT_DOT>
static void jvp(const ofa_norm_jvp& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, rows = c.rows, x_dot_k = c.x_dot_k, width = padded<T>(n);
    Scratch<T> no_rows;
    const T* x = static_cast<const T*>(c.x);
    const T* x_dot = c.x_dot ? static_cast<const T*>(c.x_dot) : no_rows.zeros(n);
    T* y_dot = static_cast<T*>(c.y_dot);
    const bool streamed = prepare(y_dot, c.tangents * rows * n * sizeof(T));

    const Rows all(c, (c.tangents + 1) * rows * n);
    parallel(all.shares, [=, &c, &all](int64_t share) {
        const OwnWeight<T> weight(c.weight, c.weight_dtype, 1, c.weights, n, c.offset);
        const OwnWeight<T> weight_dot(c.weight_dot, c.weight_dtype, WEIGHT_DOT ? c.tangents : 0, c.weights, n, 0);
        all.each_segment(share, [=, &c, &weight, &weight_dot](const Segment& segment) {
            const A* w = weight.unpack(segment.weight);
            const A* w_dot = weight_dot.unpack(segment.weight);
            for (int64_t place = segment.rows.begin; place < segment.rows.end; ++place) {
                const int64_t i = segment.rows.row_at(place);
                const T* in = x + i * c.x_stride;
                const T* dot = x_dot + i * c.x_dot_stride;
                const double r = primal_of<T>(in, w, nullptr, n, c.eps).r;
                row_groups<JvpSums<A>, COLUMNS<A>>(
                    Part{0, c.tangents}, n,
                    [=](int64_t k, JvpSums<A>& sums) {
                        const T* direction = dot + k * x_dot_k;
                        return [=, &sums](int64_t j, auto span) {
                            sums.x_dot_x.add_product(get(direction + j, span), get(in + j, span));
                        };
                    },
                    [=](const JvpSums<A>& sums, int64_t) {
                        const double m = r * sums.x_dot_x.value() / static_cast<double>(n);
                        return JvpScalars<A>{static_cast<A>(r), static_cast<A>(r * r * m), fit<A>(r, {m, r * r * m})};
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
                    },
                    [=, &c](int64_t k) { jvp_in_double<T, WEIGHT_DOT>(c, i, k); });
            }
        });
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
    bool fit;
};

// dx' = -r^2 m (g - x_hat c) + r (g' - x_hat' c - x_hat c'), sorted by vectors
template <class A>
static TangentScalars<A> tangent_scalars(const TangentSums<A>& sums, Primal p, int64_t columns) {
    const double n = static_cast<double>(columns), r = p.r, c = p.c;
    const double m = r * sums.x_dot_x.value() / n;
    const double c_dot = r * sums.g_dot_x.value() / n + r * (sums.x_dot_g.value() / n - m * c);
    const double of_x_dot = -r * r * c, of_x = r * r * (2 * r * m * c - c_dot), x_hat_x = r * r * m;
    return {static_cast<A>(r), static_cast<A>(-x_hat_x), static_cast<A>(of_x_dot), static_cast<A>(of_x),
            static_cast<A>(x_hat_x), fit<A>(r, {m, c, c_dot, of_x_dot, of_x, x_hat_x})};
}

template <class T, bool G_DOT, bool NEED_DW>
static void backward_tangent(const ofa_norm_backward_tangent& c);

// The tangent in double, for row i of tangent k alone; its share of dw_dot is added to own_dw.
template <class T, bool G_DOT, bool NEED_DW>
[[gnu::noinline, gnu::cold]] static void backward_tangent_in_double(const ofa_norm_backward_tangent& c, int64_t i,
                                                                    int64_t k, Acc<T>* own_dw) {
    const int64_t n = c.columns;
    RowsInDouble rows(8, n);
    ofa_norm_backward_tangent row = c;
    make_double<T>(row, rows, i, k);
    row.dy = rows.input(static_cast<const T*>(c.dy) + i * c.dy_stride, c.dtype);
    if (c.dy_dot)
        row.dy_dot = rows.input(static_cast<const T*>(c.dy_dot) + k * c.dy_dot_k + i * c.dy_dot_stride, c.dtype);
    double* dx_dot = rows.output();
    double* dw_dot = rows.output();
    row.dx_dot = dx_dot, row.dw_dot = dw_dot;
    backward_tangent<double, G_DOT, NEED_DW>(row);
    pack_row<double>(dx_dot, n, c.dx_dot, c.dtype, k * c.rows + i);
    if (NEED_DW) add_row<T>(dw_dot, n, own_dw);
}

// G_DOT: whether there is a weight_dot or a dy_dot; where one is absent it reads zeros.
template <class T, bool G_DOT, bool NEED_DW>
static void backward_tangent(const ofa_norm_backward_tangent& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, rows = c.rows, width = padded<T>(n), tangents = c.tangents;
    const int64_t x_dot_k = c.x_dot_k, dy_dot_k = c.dy_dot_k, weight_dot_k = c.weight_dot ? width : 0;
    const int64_t dotted = !G_DOT ? 0 : c.weight_dot ? tangents : 1;
    Scratch<T> no_rows;
    const T* x = static_cast<const T*>(c.x);
    const T* dy = static_cast<const T*>(c.dy);
    const T* zeros = c.x_dot && (c.dy_dot || !G_DOT) ? nullptr : no_rows.zeros(n);
    const T* x_dot = c.x_dot ? static_cast<const T*>(c.x_dot) : zeros;
    const T* dy_dot = c.dy_dot ? static_cast<const T*>(c.dy_dot) : zeros;
    T* dx_dot = static_cast<T*>(c.dx_dot);
    const bool streamed = prepare(dx_dot, tangents * rows * n * sizeof(T));

    const Rows all(c, (tangents + 1) * rows * n);
    const RowSums<T> dw_dot(all, tangents, NEED_DW ? c.dw_dot : nullptr, c.weight_dtype, n);
    parallel(all.shares, [=, &c, &all, &dw_dot](int64_t share) {
        const OwnWeight<T> weight(c.weight, c.weight_dtype, 1, c.weights, n, c.offset);
        const OwnWeight<T> weight_dot(c.weight_dot, c.weight_dtype, dotted, c.weights, n, 0);
        all.each_segment(share, [=, &c, &all, &dw_dot, &weight, &weight_dot](const Segment& segment) {
            const A* w = weight.unpack(segment.weight);
            const A* w_dot = weight_dot.unpack(segment.weight);
            A* own_dw = dw_dot.begin(segment);
            const auto row = [=, &c](int64_t i) {
                const T* in = x + i * c.x_stride;
                const T* up = dy + i * c.dy_stride;
                const T* dot = x_dot + i * c.x_dot_stride;
                const T* up_dot = dy_dot + i * c.dy_dot_stride;
                const Primal primal = primal_of<T>(in, w, up, n, c.eps);
                row_groups<TangentSums<A>, COLUMNS<A>>(
                    Part{0, tangents}, n,
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
                            if constexpr (G_DOT) {
                                const auto e = get(up_change + j, span);
                                sums.g_dot_x.add_product(load(w + j) * e + load(change + j) * d, v);
                            }
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
                    },
                    [=, &c](int64_t k) { backward_tangent_in_double<T, G_DOT, NEED_DW>(c, i, k, own_dw + k * width); });
            };
            all.each_row(segment, row, dw_dot);
            dw_dot.end(segment);
        });
    });
    dw_dot.finish();
}

// Padded rows that the gradients of one row and tangent are added to. dw and dw_dot may be unwanted.
template <class A>
struct JvpGradients {
    A *dx, *dw, *dw_dot;
};

template <class T, bool WEIGHT_DOT>
static void jvp_backward(const ofa_norm_jvp_backward& c);

// jvp_backward in double, for row i of tangent k alone; what it gives is added to the sums.
template <class T, bool WEIGHT_DOT>
[[gnu::noinline, gnu::cold]] static void jvp_backward_in_double(const ofa_norm_jvp_backward& c, int64_t i, int64_t k,
                                                                JvpGradients<Acc<T>> sums) {
    const int64_t n = c.columns;
    RowsInDouble rows(9, n);
    ofa_norm_jvp_backward row = c;
    make_double<T>(row, rows, i, k);
    row.dy = rows.input(static_cast<const T*>(c.dy) + k * c.dy_k + i * c.dy_stride, c.dtype);
    double* dx = rows.output();
    double* dw = rows.output();
    double* dx_dot = rows.output();
    double* dw_dot = rows.output();
    row.dx = dx, row.dw = dw, row.dx_dot = dx_dot, row.dw_dot = dw_dot;
    jvp_backward<double, WEIGHT_DOT>(row);
    pack_row<double>(dx_dot, n, c.dx_dot, c.dtype, k * c.rows + i);
    add_row<T>(dx, n, sums.dx);
    add_row<T>(dw, n, sums.dw);
    add_row<T>(dw_dot, n, sums.dw_dot);
}

// Gradients of the JVP. In x and w they are what backward_tangent gives with dy_k for dy, summed over k; in x_dot
// and w_dot they are the gradients of the norm itself.
template <class T, bool WEIGHT_DOT>
static void jvp_backward(const ofa_norm_jvp_backward& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, rows = c.rows, width = padded<T>(n), tangents = c.tangents;
    const int64_t x_dot_k = c.x_dot_k, dy_k = c.dy_k;
    Scratch<A> sums_over_k;
    Scratch<T> no_rows;
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
        bool fit;
    };
    const Rows all(c, (2 * tangents + 1) * rows * n, tangents);
    const RowSums<T> dw(all, 1, c.dw, c.weight_dtype, n), dw_dot(all, tangents, c.dw_dot, c.weight_dtype, n);
    A* dx_sums = sums_over_k.zeros(all.shares * width);
    parallel(all.shares, [=, &c, &all, &dw, &dw_dot](int64_t share) {
        A* dx_sum = dx_sums + share * width;
        const OwnWeight<T> weight(c.weight, c.weight_dtype, 1, c.weights, n, c.offset);
        const OwnWeight<T> weight_dot(c.weight_dot, c.weight_dtype, WEIGHT_DOT ? tangents : 0, c.weights, n, 0);
        all.each_segment(share, [=, &c, &all, &dw, &dw_dot, &weight, &weight_dot](const Segment& segment) {
            const A* w = weight.unpack(segment.weight);
            const A* w_dot = weight_dot.unpack(segment.weight);
            A* own_dw = c.dw ? dw.begin(segment) : nullptr;
            A* own_dw_dot = c.dw_dot ? dw_dot.begin(segment) : nullptr;
            const auto row = [=, &c](int64_t i) {
                const T* in = x + i * c.x_stride;
                const T* up = dy + i * c.dy_stride;
                const T* dot = x_dot + i * c.x_dot_stride;
                const double r = primal_of<T>(in, w, nullptr, n, c.eps).r;
                std::fill(dx_sum, dx_sum + width, A(0));
                row_groups<Sums, COLUMNS<A>>(
                    Part{0, tangents}, n,
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
                        const TangentScalars<A> tangent = tangent_scalars(sums.tangent, primal, n);
                        return Scalars{tangent, static_cast<A>(r * r * r * mean_gx), tangent.fit};
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
                    },
                    [=, &c](int64_t k) {
                        A* dw_k = own_dw_dot ? own_dw_dot + k * width : nullptr;
                        jvp_backward_in_double<T, WEIGHT_DOT>(c, i, k, {dx_sum, own_dw, dw_k});
                    });
                T* out = dx + i * n;
                sweep<COLUMNS<A>>(0, n, [=](int64_t j, auto span) { put(out + j, load(dx_sum + j), false, span); });
            };
            all.each_row(segment, row, dw, dw_dot);
            dw.end(segment);
            dw_dot.end(segment);
        });
    });
    dw.finish();
    dw_dot.finish();
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

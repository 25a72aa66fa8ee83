// Rademacher probes from Philox-4x32-10, regenerated wherever they are read. Which bit is whose:
// ofa_kernels/probes.py.
#include "in_double.hpp"

namespace ofa {
namespace OFA_ISA {

constexpr int64_t SIGNS_PER_CALL = 128;

struct Signs {
    uint32_t words[4];
};

static Signs philox(uint64_t seed, uint32_t group, uint32_t example, uint32_t probe, uint32_t layer) {
    uint32_t c0 = group, c1 = example, c2 = probe, c3 = layer;
    uint32_t k0 = static_cast<uint32_t>(seed), k1 = static_cast<uint32_t>(seed >> 32);
    for (int round = 0; round < 10; ++round) {
        const uint64_t product0 = uint64_t(c0) * 0xD2511F53u, product1 = uint64_t(c2) * 0xCD9E8D57u;
        c0 = static_cast<uint32_t>(product1 >> 32) ^ c1 ^ k0;
        c2 = static_cast<uint32_t>(product0 >> 32) ^ c3 ^ k1;
        c1 = static_cast<uint32_t>(product1);
        c3 = static_cast<uint32_t>(product0);
        k0 += 0x9E3779B9u;
        k1 += 0xBB67AE85u;
    }
    return {{c0, c1, c2, c3}};
}

// The sign bits of one pair, at the places where T's order puts its columns.
template <class T>
struct SignMask;

template <>
struct SignMask<double> {
    static Pair<double> of(uint32_t bits) {
        typedef uint64_t Long __attribute__((vector_size(64), may_alias));
        const Long b = Long{} + bits;
        const Long low = {63, 62, 61, 60, 59, 58, 57, 56}, high = low - 8;
        const Long top = Long{} + (uint64_t(1) << 63);
        return {(Vec<double>)(b << low & top), (Vec<double>)(b << high & top)};
    }
};

template <>
struct SignMask<float> {
    static Pair<float> of(uint32_t bits) {
        const Words b = Words{} + bits;
        const Words low = {31, 30, 29, 28, 27, 26, 25, 24, 23, 22, 21, 20, 19, 18, 17, 16}, high = low - 16;
        const Words top = Words{} + 0x80000000u;
        return {(Vec<float>)(b << low & top), (Vec<float>)(b << high & top)};
    }
};

template <>
struct SignMask<float16> : SignMask<float> {};

template <>
struct SignMask<bfloat16> {
    static Pair<float> of(uint32_t bits) {
        const Words b = Words{} + bits;
        const Words even = {31, 29, 27, 25, 23, 21, 19, 17, 15, 13, 11, 9, 7, 5, 3, 1};
        const Words top = Words{} + 0x80000000u;
        return {(Vec<float>)(b << even & top), (Vec<float>)(b << (even - 1) & top)};
    }
};

template <class A>
inline Pair<A> flip(Pair<A> v, Pair<A> signs) {
    return {(Vec<A>)((Words)v.a ^ (Words)signs.a), (Vec<A>)((Words)v.b ^ (Words)signs.b)};
}

struct Probe {
    uint64_t seed;
    uint32_t example, index, layer;
};

// Probe k of row i.
template <class Call>
inline Probe probe_of(const Call& c, int64_t k, int64_t i) {
    return {c.seeds ? static_cast<uint64_t>(c.seeds[i]) : c.seed, static_cast<uint32_t>(c.example_ids[i]),
            static_cast<uint32_t>(k), static_cast<uint32_t>(c.layer)};
}

// Call body(column, signs, span) for each pair of a row of n columns.
template <class T, class Body>
inline void sweep_signs(const Probe& p, int64_t n, Body body) {
    constexpr int columns = COLUMNS<Acc<T>>;
    for (int64_t group = 0; group * SIGNS_PER_CALL < n; ++group) {
        const Signs signs = philox(p.seed, static_cast<uint32_t>(group), p.example, p.index, p.layer);
        const int64_t begin = group * SIGNS_PER_CALL;
        sweep<columns>(begin, std::min(begin + SIGNS_PER_CALL, n), [&](int64_t j, auto span) {
            const int64_t bit = j - begin;
            body(j, SignMask<T>::of(signs.words[bit / 32] >> bit % 32), span);
        });
    }
}

template <class A>
inline Pair<A> splat(A value) {
    return {value - Vec<A>{}, value - Vec<A>{}};
}

template <class T>
static void signs(const ofa_rademacher& c) {
    T* out = static_cast<T*>(c.signs);
    const int64_t rows = c.layers * c.probes * c.examples, n = c.columns;
    const bool streamed = prepare(out, rows * n * sizeof(T));
    const int64_t shares = threads_for(c.threads, rows, rows * n);
    parallel(shares, [=, &c](int64_t share) {
        const Part part = part_of(rows, share, shares);
        for (int64_t i = part.begin; i < part.end; ++i) {
            const Probe probe{c.seed, static_cast<uint32_t>(c.example_ids[i % c.examples]),
                              static_cast<uint32_t>(i / c.examples % c.probes),
                              static_cast<uint32_t>(c.layer_ids[i / c.examples / c.probes])};
            T* row = out + i * n;
            sweep_signs<T>(probe, n, [=](int64_t j, auto mask, auto span) {
                put(row + j, flip(splat(Acc<T>(1)), mask), streamed, span);
            });
        }
    });
}

template <class T>
static Acc<T> reciprocal_root(const T* row, int64_t n, double eps) {
    SumOfSquares<T> xx;
    sweep<COLUMNS<Acc<T>>>(0, n, [&xx, row](int64_t j, auto span) { xx.add(get(row + j, span)); });
    return reciprocal_root<Acc<T>>(xx, row, n, eps);
}

template <class T>
static void probes(const ofa_preconditioned_probes& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, rows = c.rows;
    const T* z = static_cast<const T*>(c.z);
    T* out = static_cast<T*>(c.out);
    const bool streamed = prepare(out, c.probes * rows * n * sizeof(T));
    const Rows all(c, c.probes * rows * n);
    parallel(all.shares, [=, &c, &all](int64_t share) {
        const OwnWeight<T> weight(c.weight, c.weight_dtype, 1, c.weights, n, c.offset);
        all.each_segment(share, [=, &c, &weight](const Segment& segment) {
            const A* w = weight.unpack(segment.weight);
            for (int64_t place = segment.rows.begin; place < segment.rows.end; ++place) {
                const int64_t i = segment.rows.row_at(place);
                const A r = reciprocal_root(z + i * c.z_stride, n, c.eps);
                for (int64_t k = 0; k < c.probes; ++k) {
                    T* row = out + (k * rows + i) * n;
                    sweep_signs<T>(probe_of(c, k, i), n, [=](int64_t j, auto mask, auto span) {
                        put(row + j, flip(load(w + j) * r, mask), streamed, span);
                    });
                }
            }
        });
    });
}

template <class T>
static void probes_backward(const ofa_preconditioned_probes_backward& c);

// dz of row i.
template <class T>
[[gnu::noinline, gnu::cold]] static void dz_in_double(const ofa_preconditioned_probes_backward& c, int64_t i) {
    const int64_t n = c.columns;
    RowsInDouble rows(4 + c.probes, n);
    ofa_preconditioned_probes_backward row = c;
    make_double(row, rows, i);
    row.example_ids = c.example_ids + i;
    if (c.seeds) row.seeds = c.seeds + i;
    row.z = rows.input(static_cast<const T*>(c.z) + i * c.z_stride, c.dtype);
    double* dz = rows.output();
    double* dw = rows.output();
    row.dz = dz, row.dw = dw;
    row.dp_k = padded<double>(n);  // one behind the other
    row.dp = rows.next();
    for (int64_t k = 0; k < c.probes; ++k)
        rows.input(static_cast<const T*>(c.dp) + k * c.dp_k + i * c.dp_stride, c.dtype);
    probes_backward<double>(row);
    pack_row<double>(dz, n, c.dz, c.dtype, i);
}

// With q = sum_k nu_k dp_k: dz = -r^2 z_hat mean(w q), dw = sum over rows of q r.
template <class T>
static void probes_backward(const ofa_preconditioned_probes_backward& c) {
    using A = Acc<T>;
    Scratch<A> sums_over_k;
    const int64_t n = c.columns, width = padded<T>(n);
    const T* z = static_cast<const T*>(c.z);
    const T* dp = static_cast<const T*>(c.dp);
    T* dz = static_cast<T*>(c.dz);
    const Rows rows(c, c.probes * c.rows * n);
    const RowSums<T> dw(rows, 1, c.dw, c.weight_dtype, n);
    A* all_q = sums_over_k.zeros(rows.shares * width);
    parallel(rows.shares, [=, &c, &rows, &dw](int64_t share) {
        A* q = all_q + share * width;
        const OwnWeight<T> weight(c.weight, c.weight_dtype, 1, c.weights, n, c.offset);
        rows.each_segment(share, [=, &c, &rows, &dw, &weight](const Segment& segment) {
            const A* w = weight.unpack(segment.weight);
            A* own_dw = dw.begin(segment);
            const auto row = [=, &c](int64_t i) {
                const T* in = z + i * c.z_stride;
                const A r = reciprocal_root(in, n, c.eps);
                std::fill(q, q + width, A(0));
                for (int64_t k = 0; k < c.probes; ++k) {
                    const T* up = dp + k * c.dp_k + i * c.dp_stride;
                    sweep_signs<T>(probe_of(c, k, i), n, [=](int64_t j, auto mask, auto span) {
                        store(q + j, load(q + j) + flip(get(up + j, span), mask));
                    });
                }
                Sum<A> wq;
                constexpr int64_t panel = PANEL_PAIRS * COLUMNS<A>;
                for (int64_t begin = 0; begin < n; begin += panel) {
                    sweep<COLUMNS<A>>(begin, std::min(begin + panel, n), [&wq, own_dw, q, w, r](int64_t j, auto) {
                        wq.add_product(load(w + j), load(q + j));
                        store(own_dw + j, load(own_dw + j) + load(q + j) * r);
                    });
                    wq.flush();
                }
                const double mean = wq.value() / static_cast<double>(n);
                const double factor = -static_cast<double>(r) * r * r * mean;
                if (!fit<A>(r, {mean, factor})) return dz_in_double<T>(c, i);
                T* out = dz + i * n;
                sweep<COLUMNS<A>>(0, n, [=](int64_t j, auto span) {
                    put(out + j, get(in + j, span) * static_cast<A>(factor), false, span);
                });
            };
            rows.each_row(segment, row, dw);
            dw.end(segment);
        });
    });
    dw.finish();
}

[[gnu::noinline, gnu::cold]] static double dot_in_double(const Probe& probe, const void* t, int64_t dtype, int64_t n) {
    RowsInDouble rows(1, n);
    const double* row = rows.input(t, dtype);
    Sum<double> sum;
    sweep_signs<double>(probe, n, [&sum, row](int64_t j, auto mask, auto span) {
        sum.add_product(flip(get(row + j, span), mask), splat(1.0));
    });
    sum.flush();
    return sum.value();
}

template <class T>
static void dot(const ofa_probe_dot& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, all = c.probes * c.rows;
    const T* t = static_cast<const T*>(c.t);
    A* dots = static_cast<A*>(c.dots);
    const int64_t shares = threads_for(c.threads, all, all * n);
    parallel(shares, [=, &c](int64_t share) {
        const Part part = part_of(all, share, shares);
        for (int64_t at = part.begin; at < part.end; ++at) {
            const int64_t k = at / c.rows, i = at % c.rows;
            const Probe probe = probe_of(c, k, i);
            const T* row = t + k * c.t_k + i * c.t_stride;
            Sum<A> sum;
            sweep_signs<T>(probe, n, [&sum, row](int64_t j, auto mask, auto span) {
                sum.add_product(flip(get(row + j, span), mask), splat(A(1)));
                if ((j + COLUMNS<A>) % (PANEL_PAIRS * COLUMNS<A>) == 0) sum.flush();
            });
            sum.flush();
            // terms of both signs may be larger together than their sum
            const bool finite = std::isfinite(sum.value());
            dots[at] = static_cast<A>(finite ? sum.value() : dot_in_double(probe, row, c.dtype, n));
        }
    });
}

template <class T>
static void scale(const ofa_probe_scale& c) {
    using A = Acc<T>;
    const int64_t n = c.columns, all = c.probes * c.rows;
    const A* factors = static_cast<const A*>(c.scale);
    T* out = static_cast<T*>(c.out);
    const bool streamed = prepare(out, all * n * sizeof(T));
    const int64_t shares = threads_for(c.threads, all, all * n);
    parallel(shares, [=, &c](int64_t share) {
        const Part part = part_of(all, share, shares);
        for (int64_t at = part.begin; at < part.end; ++at) {
            const Probe probe = probe_of(c, at / c.rows, at % c.rows);
            const Pair<A> factor = splat(plain_nan(factors[at]));
            T* row = out + at * n;
            sweep_signs<T>(probe, n, [=](int64_t j, auto mask, auto span) {
                put(row + j, flip(factor, mask), streamed, span);
            });
        }
    });
}

int rademacher(const ofa_rademacher& c) {
    return run(c.dtype, [&](auto* type) { signs<std::remove_pointer_t<decltype(type)>>(c); });
}
int preconditioned_probes(const ofa_preconditioned_probes& c) {
    return run(c.dtype, [&](auto* type) { probes<std::remove_pointer_t<decltype(type)>>(c); });
}
int preconditioned_probes_backward(const ofa_preconditioned_probes_backward& c) {
    return run(c.dtype, [&](auto* type) { probes_backward<std::remove_pointer_t<decltype(type)>>(c); });
}
int probe_dot(const ofa_probe_dot& c) {
    return run(c.dtype, [&](auto* type) { dot<std::remove_pointer_t<decltype(type)>>(c); });
}
int probe_scale(const ofa_probe_scale& c) {
    return run(c.dtype, [&](auto* type) { scale<std::remove_pointer_t<decltype(type)>>(c); });
}

}  // namespace OFA_ISA
}  // namespace ofa

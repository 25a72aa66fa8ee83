// Vectors of the accumulation type for every instruction set: 64 bytes each, which the compiler splits where
// registers are narrower. Rows are read and written a pair of vectors at a time.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#if defined(__AVX__)
#include <immintrin.h>
#endif

namespace ofa {
namespace OFA_ISA {

template <class A>
struct VectorOf;
template <>
struct VectorOf<float> {
    typedef float type __attribute__((vector_size(64), may_alias));
};
template <>
struct VectorOf<double> {
    typedef double type __attribute__((vector_size(64), may_alias));
};
template <class A>
using Vec = typename VectorOf<A>::type;
typedef uint32_t Words __attribute__((vector_size(64), may_alias));

struct bfloat16 {
    uint16_t bits;
};
struct float16 {
    uint16_t bits;
};

// What a storage type is computed in.
template <class T>
using Acc = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Two vectors. Those of bfloat16 hold the even and the odd columns, which costs one shift and one mask where
// consecutive columns would have to be shuffled; weights and their sums are kept in the same order.
template <class A>
struct Pair {
    Vec<A> a, b;
};
template <class A>
constexpr int COLUMNS = 2 * 64 / sizeof(A);

template <class A>
inline Pair<A> operator+(Pair<A> x, Pair<A> y) {
    return {x.a + y.a, x.b + y.b};
}
template <class A>
inline Pair<A> operator-(Pair<A> x, Pair<A> y) {
    return {x.a - y.a, x.b - y.b};
}
template <class A>
inline Pair<A> operator*(Pair<A> x, Pair<A> y) {
    return {x.a * y.a, x.b * y.b};
}
template <class A>
inline Pair<A> operator*(Pair<A> x, A factor) {
    return {x.a * factor, x.b * factor};
}

#if defined(__clang__)
#define OFA_SHUFFLE(a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else
#define OFA_SHUFFLE(a, b, ...) __builtin_shuffle(a, b, Words{__VA_ARGS__})
#endif

// The lanes of a pair in bfloat16's order, and back.
inline Pair<float> even_then_odd(Pair<float> v) {
    return {OFA_SHUFFLE(v.a, v.b, 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30),
            OFA_SHUFFLE(v.a, v.b, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31)};
}
inline Pair<float> in_turns(Pair<float> v) {
    return {OFA_SHUFFLE(v.a, v.b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23),
            OFA_SHUFFLE(v.a, v.b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31)};
}

// A pair in W's order of columns in T's.
template <class T, class W, class A>
inline Pair<A> reordered(Pair<A> v) {
    if constexpr (std::is_same_v<T, bfloat16> == std::is_same_v<W, bfloat16>) {
        return v;
    } else if constexpr (std::is_same_v<T, bfloat16>) {
        return even_then_odd(v);
    } else {
        return in_turns(v);
    }
}

// The column within a pair that stands at `lane` of it.
template <class T>
constexpr int column_of(int lane) {
    return std::is_same_v<T, bfloat16> ? (lane % 16) * 2 + lane / 16 : lane;
}

// --- whole pairs; pointers need no alignment -----------------------------------------------------------

template <class A, std::enable_if_t<std::is_floating_point_v<A>, int> = 0>
inline Pair<A> load(const A* p) {
    typedef A Unaligned __attribute__((vector_size(64), aligned(sizeof(A)), may_alias));
    const Unaligned* vectors = reinterpret_cast<const Unaligned*>(p);
    return {vectors[0], vectors[1]};
}

inline Pair<float> load(const bfloat16* p) {
    typedef uint32_t Unaligned __attribute__((vector_size(64), aligned(2), may_alias));
    const Words words = *reinterpret_cast<const Unaligned*>(p);
    return {(Vec<float>)(words << 16), (Vec<float>)(words & 0xffff0000u)};
}

inline Pair<float> load(const float16* p) {
    Pair<float> v;
#if defined(__AVX512F__)
    v.a = (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
    v.b = (Vec<float>)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p) + 1));
#elif defined(__F16C__)
    __m256 quarter[4];
    for (int i = 0; i < 4; ++i)
        quarter[i] = _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p) + i));
    std::memcpy(&v, quarter, sizeof v);
#else
    float lanes[32];
    for (int i = 0; i < 32; ++i) {
        _Float16 h;
        std::memcpy(&h, p + i, sizeof h);
        lanes[i] = static_cast<float>(h);
    }
    std::memcpy(&v, lanes, sizeof v);
#endif
    return v;
}

template <class A, std::enable_if_t<std::is_floating_point_v<A>, int> = 0>
inline void store(A* p, Pair<A> v) {
    typedef A Unaligned __attribute__((vector_size(64), aligned(sizeof(A)), may_alias));
    Unaligned* vectors = reinterpret_cast<Unaligned*>(p);
    vectors[0] = v.a;
    vectors[1] = v.b;
}

// The bits of v rounded to bfloat16, to nearest even, with what is below them left over. In integers, since
// vcvtneps2bf16 would flush subnormal numbers. A NaN stays one if its low 16 bits are zero: those of bfloat16
// rows and those that arithmetic makes are such, and unpack_row() sees to it for weights.
inline Words round_to_bfloat16(Vec<float> v) {
    const Words bits = (Words)v;
#if defined(__AVX512F__)
    const __mmask16 odd = _mm512_test_epi32_mask((__m512i)bits, _mm512_set1_epi32(0x10000));
    const __m512i half = _mm512_add_epi32((__m512i)bits, _mm512_set1_epi32(0x7fff));
    return (Words)_mm512_mask_add_epi32(half, odd, half, _mm512_set1_epi32(1));
#else
    return bits + (((bits >> 16) & 1) + 0x7fff);
#endif
}

inline void store(bfloat16* p, Pair<float> v) {
    typedef uint32_t Unaligned __attribute__((vector_size(64), aligned(2), may_alias));
    *reinterpret_cast<Unaligned*>(p) = (round_to_bfloat16(v.a) >> 16) | (round_to_bfloat16(v.b) & 0xffff0000u);
}

inline void store(float16* p, Pair<float> v) {
#if defined(__AVX512F__)
    __m256i* out = reinterpret_cast<__m256i*>(p);
    _mm256_storeu_si256(out, _mm512_cvtps_ph((__m512)v.a, _MM_FROUND_TO_NEAREST_INT));
    _mm256_storeu_si256(out + 1, _mm512_cvtps_ph((__m512)v.b, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__F16C__)
    __m256 quarter[4];
    std::memcpy(quarter, &v, sizeof v);
    for (int i = 0; i < 4; ++i)
        _mm_storeu_si128(reinterpret_cast<__m128i*>(p) + i, _mm256_cvtps_ph(quarter[i], _MM_FROUND_TO_NEAREST_INT));
#else
    float lanes[32];
    std::memcpy(lanes, &v, sizeof v);
    for (int i = 0; i < 32; ++i) {
        const _Float16 h = static_cast<_Float16>(lanes[i]);
        std::memcpy(p + i, &h, sizeof h);
    }
#endif
}

// v rounded to the storage type T and back.
template <class T>
inline Pair<Acc<T>> rounded(Pair<Acc<T>> v) {
    if constexpr (std::is_same_v<T, bfloat16>) {
        return {(Vec<float>)(round_to_bfloat16(v.a) & 0xffff0000u),
                (Vec<float>)(round_to_bfloat16(v.b) & 0xffff0000u)};
    } else if constexpr (std::is_same_v<T, float16>) {
        float16 h[32];
        store(h, v);
        return load(h);
    } else {
        return v;
    }
}

#if defined(__AVX512F__)
constexpr unsigned STREAM_BYTES = 64;
inline void stream_vector(char* to, const char* from) {
    _mm512_stream_si512(reinterpret_cast<__m512i*>(to), _mm512_load_si512(from));
}
#elif defined(__AVX2__)
constexpr unsigned STREAM_BYTES = 32;
inline void stream_vector(char* to, const char* from) {
    _mm256_stream_si256(reinterpret_cast<__m256i*>(to), _mm256_load_si256(reinterpret_cast<const __m256i*>(from)));
}
#endif

// A store that goes past the caches, where the instruction set and the alignment allow it.
template <class T>
inline void stream(T* p, Pair<Acc<T>> v) {
#if defined(__AVX512F__) || defined(__AVX2__)
    if (reinterpret_cast<uintptr_t>(p) % 64 == 0) {
        alignas(64) T lanes[COLUMNS<Acc<T>>];
        store(static_cast<T*>(lanes), v);
        for (unsigned at = 0; at < sizeof lanes; at += STREAM_BYTES)
            stream_vector(reinterpret_cast<char*>(p) + at, reinterpret_cast<const char*>(lanes) + at);
        return;
    }
#endif
    store(p, v);
}

// --- spans: a whole pair, or the first columns of the last one -----------------------------------------

struct Whole {};
struct First {
    int count;
};

template <class T>
inline Pair<Acc<T>> get(const T* p, Whole) {
    return load(p);
}
template <class T>
inline Pair<Acc<T>> get(const T* p, First span) {
    T lanes[COLUMNS<Acc<T>>] = {};
    std::memcpy(lanes, p, span.count * sizeof(T));
    return load(static_cast<const T*>(lanes));
}
template <class T>
inline void put(T* p, Pair<Acc<T>> v, bool streamed, Whole) {
    streamed ? stream(p, v) : store(p, v);
}
template <class T>
inline void put(T* p, Pair<Acc<T>> v, bool, First span) {
    T lanes[COLUMNS<Acc<T>>];
    store(static_cast<T*>(lanes), v);
    std::memcpy(p, lanes, span.count * sizeof(T));
}

// Call body(column, span) for each pair of the columns [begin, end).
template <int COLUMNS_, class Body>
inline void sweep(int64_t begin, int64_t end, Body body) {
    int64_t j = begin;
    for (; j + COLUMNS_ <= end; j += COLUMNS_) body(j, Whole{});
    if (j < end) body(j, First{static_cast<int>(end - j)});
}

// --- sums ----------------------------------------------------------------------------------------------

inline double total(Vec<double> v) {
    return ((v[0] + v[4]) + (v[2] + v[6])) + ((v[1] + v[5]) + (v[3] + v[7]));
}

// The lanes of v in double, in their order.
inline Pair<double> widened(Vec<float> v) {
    typedef float Half __attribute__((vector_size(32), may_alias));
    Half half[2];
    std::memcpy(half, &v, sizeof v);
#if defined(__AVX512F__)
    return {(Vec<double>)_mm512_cvtps_pd((__m256)half[0]), (Vec<double>)_mm512_cvtps_pd((__m256)half[1])};
#else
    return {__builtin_convertvector(half[0], Vec<double>), __builtin_convertvector(half[1], Vec<double>)};
#endif
}

// The sum of many products: chains of one panel in the accumulation type, added up in double, so that a mean
// is right to about one rounding whatever the row's length.
template <class A>
struct Sum {
    Pair<A> chain{};
    Vec<double> low{}, high{};

    void add_product(Pair<A> x, Pair<A> y) { chain = chain + x * y; }
    void flush() {
        if constexpr (std::is_same_v<A, double>) {
            low += chain.a;
            high += chain.b;
        } else {
            const Pair<double> both = widened(chain.a + chain.b);
            low += both.a;
            high += both.b;
        }
        chain = Pair<A>{};
    }
    double value() const { return total(low + high); }
};

// The sum of squares of values of type T, right to one rounding in float32 whichever elements dominate, so that
// its root is too: a chain in float32 would lose what is small beside the largest element.
template <class T>
struct SumOfSquares {
    Vec<double> parts[4]{};

    void add(Pair<Acc<T>> v) {
        if constexpr (std::is_same_v<T, double>) {
            parts[0] += v.a * v.a;
            parts[1] += v.b * v.b;
        } else if constexpr (sizeof(T) == 2) {
            // these products are exact in float32, unless they overflow: sum_of_squares() repairs that
            const Pair<double> wide = widened(v.a * v.a + v.b * v.b);
            parts[0] += wide.a;
            parts[1] += wide.b;
        } else {
            add(v.a, parts[0], parts[1]);
            add(v.b, parts[2], parts[3]);
        }
    }
    double value() const { return total((parts[0] + parts[1]) + (parts[2] + parts[3])); }

  private:
    static void add(Vec<float> v, Vec<double>& low, Vec<double>& high) {
        const Pair<double> wide = widened(v);
        low += wide.a * wide.a;
        high += wide.b * wide.b;
    }
};

}  // namespace OFA_ISA
}  // namespace ofa

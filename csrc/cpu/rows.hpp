// How rows are shared among threads, where scratch memory comes from, and the order in which rows are walked.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <new>
#include <utility>

#ifdef __linux__
#include <sys/mman.h>
#endif

#include "ofa.h"
#include "vec.hpp"

namespace ofa {
namespace OFA_ISA {

// torch's own grain: below it waking the other threads takes longer than they save
constexpr int64_t SERIAL_ELEMENTS = 32 * 1024;
// An output of this size is written past the caches: with its input, a gradient and the other output it would
// fill a last-level cache of 32 MiB, and push out what is still to be read. (What sysconf says of the cache is
// that of the whole machine, which others share.)
constexpr int64_t STREAMED_BYTES = int64_t(8) << 20;
// as numpy: from here on huge pages pay
constexpr int64_t HUGE_PAGE_BYTES = int64_t(4) << 20;

inline int64_t threads_for(int64_t threads, int64_t shares, int64_t elements) {
    return elements < SERIAL_ELEMENTS ? 1 : std::max<int64_t>(1, std::min(threads, shares));
}

// Call share(i) for i < shares, each exactly once; which thread runs it changes nothing.
template <class Share>
inline void parallel(int64_t shares, Share&& share) {
    if (shares == 1) {
        share(int64_t(0));
        return;
    }
    bool failed = false;  // no exception may leave a thread
#pragma omp parallel for num_threads(static_cast<int>(shares)) schedule(static, 1) reduction(|| : failed)
    for (int64_t i = 0; i < shares; ++i) try {
            share(i);
        } catch (const std::bad_alloc&) {
            failed = true;
        }
    if (failed) throw std::bad_alloc();
}

// Places [begin, end) in an order of rows; without one each row stands at its own number.
struct Part {
    int64_t begin, end;
    const int64_t* order = nullptr;

    int64_t row_at(int64_t place) const { return order ? order[place] : place; }
};

// The i-th of `shares` contiguous parts of [0, n).
inline Part part_of(int64_t n, int64_t i, int64_t shares) { return {n * i / shares, n * (i + 1) / shares}; }

// Whether an output is written past the caches. Asks for the pages of a large one 2 MiB at a time: where they
// are fresh, faulting in 4 KiB pages takes longer than the arithmetic.
inline bool prepare(void* output, int64_t bytes) {
#ifdef MADV_HUGEPAGE
    constexpr uintptr_t page = uintptr_t(2) << 20;
    const uintptr_t begin = (reinterpret_cast<uintptr_t>(output) + page - 1) / page * page;
    const uintptr_t end = (reinterpret_cast<uintptr_t>(output) + bytes) / page * page;
    if (bytes >= HUGE_PAGE_BYTES && begin < end) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
    return bytes >= STREAMED_BYTES;
}

// Memory for one call, in cache lines; throws std::bad_alloc, which entry points turn into OFA_NO_MEMORY.
template <class A>
class Scratch {
  public:
    Scratch() = default;
    Scratch(const Scratch&) = delete;
    Scratch& operator=(const Scratch&) = delete;
    ~Scratch() { std::free(memory_); }

    A* zeros(int64_t count) {
        const std::size_t bytes = (std::max<int64_t>(count, 1) * sizeof(A) + 63) / 64 * 64;
        memory_ = std::aligned_alloc(64, bytes);
        if (!memory_) throw std::bad_alloc();
        std::memset(memory_, 0, bytes);
        return static_cast<A*>(memory_);
    }

  private:
    void* memory_ = nullptr;
};

// Call f with a null pointer to the storage type that dtype names.
template <class F>
inline void with_type(int64_t dtype, F&& f) {
    switch (dtype) {
        case OFA_FLOAT64: f(static_cast<double*>(nullptr)); break;
        case OFA_FLOAT32: f(static_cast<float*>(nullptr)); break;
        case OFA_BFLOAT16: f(static_cast<bfloat16*>(nullptr)); break;
        default: f(static_cast<float16*>(nullptr)); break;
    }
}

struct BadIndex {};

// The same for an operator's entry point, with what it has to return.
template <class F>
inline int run(int64_t dtype, F&& f) {
    try {
        with_type(dtype, f);
    } catch (const std::bad_alloc&) {
        return OFA_NO_MEMORY;
    } catch (const BadIndex&) {
        return OFA_BAD_INDEX;
    }
    return OFA_OK;
}

// How long a weight, its tangent or its gradient is in memory: whole pairs, in T's order of columns.
template <class T>
inline int64_t padded(int64_t n) {
    constexpr int64_t columns = COLUMNS<Acc<T>>;
    return (n + columns - 1) / columns * columns;
}

// Where a column stands in a padded row: the inverse of column_of.
template <class T>
inline int64_t place_of(int64_t column) {
    if (!std::is_same_v<T, bfloat16>) return column;
    return column / 32 * 32 + column % 2 * 16 + column % 32 / 2;
}

// A NaN whose low bits are zero, which is what rounding to bfloat16 relies on.
template <class A>
inline A plain_nan(A value) {
    return value == value ? value : std::numeric_limits<A>::quiet_NaN();
}
template <class A>
inline Vec<A> plain_nans(Vec<A> v) {
    const auto number = v == v;
    const auto nan = (decltype(number))(std::numeric_limits<A>::quiet_NaN() + Vec<A>{});
    return (Vec<A>)(((decltype(number))v & number) | (nan & ~number));
}

// Row `i` of n columns in `dtype` as a padded row of the accumulation type, plus offset.
template <class T>
inline void unpack_row(const void* data, int64_t dtype, int64_t i, int64_t n, double offset, Acc<T>* to) {
    using A = Acc<T>;
    with_type(dtype, [=](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        const W* from = static_cast<const W*>(data) + i * n;
        const A plus = static_cast<A>(offset);
        sweep<COLUMNS<Acc<W>>>(0, n, [=](int64_t j, auto span) {
            if constexpr (std::is_same_v<A, Acc<W>> && std::is_same_v<decltype(span), Whole>) {
                const Pair<A> v = reordered<T, W>(get(from + j, span));
                store(to + j, Pair<A>{plain_nans<A>(v.a + plus), plain_nans<A>(v.b + plus)});
                return;
            }
            Acc<W> lanes[COLUMNS<Acc<W>>];
            store(static_cast<Acc<W>*>(lanes), get(from + j, span));
            for (int lane = 0; lane < COLUMNS<Acc<W>>; ++lane) {
                const int64_t column = j + column_of<W>(lane);
                if (column < n) to[place_of<T>(column)] = plain_nan(static_cast<A>(lanes[lane]) + plus);
            }
        });
    });
}

// Row `i` of n columns in `dtype` = row, whose columns are in T's order, rounded.
template <class T, class A>
inline void pack_row(const A* row, int64_t n, void* out, int64_t dtype, int64_t i) {
    with_type(dtype, [=](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        W* to = static_cast<W*>(out) + i * n;
        sweep<COLUMNS<Acc<W>>>(0, n, [=](int64_t j, auto span) {
            if constexpr (std::is_same_v<A, Acc<W>> && std::is_same_v<A, Acc<T>>) {
                const Pair<A> v = reordered<W, T>(load(row + j));
                put(to + j, Pair<A>{plain_nans<A>(v.a), plain_nans<A>(v.b)}, false, span);
                return;
            }
            Acc<W> lanes[COLUMNS<Acc<W>>] = {};
            for (int lane = 0; lane < COLUMNS<Acc<W>>; ++lane) {
                const int64_t column = j + column_of<W>(lane);
                if (column < n) lanes[lane] = plain_nan(static_cast<Acc<W>>(row[place_of<T>(column)]));
            }
            put(to + j, load(static_cast<const Acc<W>*>(lanes)), false, span);
        });
    });
}

// r of a row that was read. bfloat16's squares are added up again in double where float32 did not hold them.
template <class A, class T>
inline A reciprocal_root(const SumOfSquares<T>& sum, const T* row, int64_t n, double eps) {
    double mean = sum.value() / static_cast<double>(n) + eps;
    if (std::is_same_v<T, bfloat16> && !(mean > 0x1p-90 && mean <= std::numeric_limits<double>::max())) {
        SumOfSquares<Acc<T>> wide;
        sweep<COLUMNS<Acc<T>>>(0, n, [&wide, row](int64_t j, auto span) { wide.add(get(row + j, span)); });
        mean = wide.value() / static_cast<double>(n) + eps;
    }
    return static_cast<A>(1.0 / std::sqrt(mean));
}

// Columns that are worked on in all rows of a group before the next: what the rows share stays in the nearest
// cache, and a chain of sums is no longer than this.
constexpr int PANEL_PAIRS = 32;
constexpr int GROUP_ROWS = 2;

// For each row: gather sums over it, turn them into scalars, write the row, a group at a time. gather(i, sums) and
// write(i, scalars) return what is called per pair, so that a row's pointers are found once. A row whose
// scalars do not fit (`in_double.hpp`) is left to again(i).
template <class Sums, int COLUMNS_, class Gather, class Finish, class Write, class Again>
[[gnu::noinline]] void row_groups(Part part, int64_t n, Gather gather, Finish finish, Write write, Again again) {
    using Scalars = decltype(finish(std::declval<const Sums&>(), int64_t(0)));
    constexpr int64_t panel = PANEL_PAIRS * COLUMNS_;
    for (int64_t first = part.begin; first < part.end; first += GROUP_ROWS) {
        const int64_t rows = std::min<int64_t>(GROUP_ROWS, part.end - first);
        int64_t at[GROUP_ROWS];
        Sums sums[GROUP_ROWS]{};
        Scalars scalars[GROUP_ROWS];
        for (int64_t i = 0; i < rows; ++i) at[i] = part.row_at(first + i);
        for (int64_t j = 0; j < n; j += panel)
            for (int64_t i = 0; i < rows; ++i) {
                Sums s = sums[i];
                sweep<COLUMNS_>(j, std::min(j + panel, n), gather(at[i], s));
                s.flush();
                sums[i] = s;
            }
        for (int64_t i = 0; i < rows; ++i) scalars[i] = finish(sums[i], at[i]);
        for (int64_t j = 0; j < n; j += panel)
            for (int64_t i = 0; i < rows; ++i)
                if (scalars[i].fit) sweep<COLUMNS_>(j, std::min(j + panel, n), write(at[i], scalars[i]));
        for (int64_t i = 0; i < rows; ++i)
            if (!scalars[i].fit) again(at[i]);
    }
}

}  // namespace OFA_ISA
}  // namespace ofa

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

struct Part {
    int64_t begin, end;
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

// The same for an operator's entry point, with what it has to return.
template <class F>
inline int run(int64_t dtype, F&& f) {
    try {
        with_type(dtype, f);
    } catch (const std::bad_alloc&) {
        return OFA_NO_MEMORY;
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

// Row `i` of n columns in `dtype` as a padded row of the accumulation type, plus offset.
template <class T>
inline void unpack_row(const void* data, int64_t dtype, int64_t i, int64_t n, double offset, Acc<T>* to) {
    using A = Acc<T>;
    with_type(dtype, [=](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        const W* from = static_cast<const W*>(data) + i * n;
        sweep<COLUMNS<Acc<W>>>(0, n, [=](int64_t j, auto span) {
            Acc<W> lanes[COLUMNS<Acc<W>>];
            store(static_cast<Acc<W>*>(lanes), get(from + j, span));
            for (int lane = 0; lane < COLUMNS<Acc<W>>; ++lane) {
                const int64_t column = j + column_of<W>(lane);
                if (column < n)
                    to[place_of<T>(column)] = plain_nan(static_cast<A>(lanes[lane]) + static_cast<A>(offset));
            }
        });
    });
}

// `rows` weights of n columns in `dtype` as padded rows of the accumulation type, plus offset; zeros for null.
template <class T>
inline Acc<T>* unpack(const void* data, int64_t dtype, int64_t rows, int64_t n, double offset,
                      Scratch<Acc<T>>& scratch) {
    Acc<T>* out = scratch.zeros(rows * padded<T>(n));
    for (int64_t i = 0; data && i < rows; ++i) unpack_row<T>(data, dtype, i, n, offset, out + i * padded<T>(n));
    return out;
}

// Row `i` of n columns in `dtype` = row, whose columns are in T's order, rounded.
template <class T>
inline void pack_row(const double* row, int64_t n, void* out, int64_t dtype, int64_t i) {
    with_type(dtype, [=](auto* type) {
        using W = std::remove_pointer_t<decltype(type)>;
        W* to = static_cast<W*>(out) + i * n;
        sweep<COLUMNS<Acc<W>>>(0, n, [=](int64_t j, auto span) {
            Acc<W> lanes[COLUMNS<Acc<W>>] = {};
            for (int lane = 0; lane < COLUMNS<Acc<W>>; ++lane) {
                const int64_t column = j + column_of<W>(lane);
                if (column < n) lanes[lane] = plain_nan(static_cast<Acc<W>>(row[place_of<T>(column)]));
            }
            put(to + j, load(static_cast<const Acc<W>*>(lanes)), false, span);
        });
    });
}

// The terms that a sum over rows adds up in the accumulation type before it goes on in double.
constexpr int64_t CHAIN_TERMS = 128;

// A call's rows: as many shares as threads, and each share cut into the rows of one chain.
struct Rows {
    int64_t count, shares, chain;

    Rows(int64_t rows, int64_t threads, int64_t terms_a_row = 1)
        : count(rows), shares(threads), chain(std::max<int64_t>(1, CHAIN_TERMS / std::max<int64_t>(1, terms_a_row))) {}

    // Call body for the rows of each chain of a share, and flush its sums in between.
    template <class Body, class... Sums>
    void each_chain(int64_t share, Body body, Sums&... sums) const {
        const Part part = part_of(count, share, shares);
        for (int64_t begin = part.begin; begin < part.end; begin += chain) {
            if (begin > part.begin) (sums.flush(share), ...);
            body(Part{begin, std::min(begin + chain, part.end)});
        }
    }
};

// `sums` padded rows of sums over a call's rows for each share: chains in the accumulation type, added up in
// double, so that they are as right for millions of rows as for one chain.
template <class T>
class RowSums {
  public:
    RowSums(Rows rows, int64_t sums, int64_t n)
        : shares_(rows.shares), columns_(n), width_(padded<T>(n)), size_(sums * width_),
          chains_(chain_memory_.zeros(shares_ * size_)),
          totals_((rows.count + shares_ - 1) / shares_ > rows.chain ? total_memory_.zeros(shares_ * size_) : nullptr) {}

    Acc<T>* of(int64_t share) const { return chains_ + share * size_; }

    void flush(int64_t share) const {
        for (int64_t j = share * size_; j < (share + 1) * size_; ++j) {
            totals_[j] += chains_[j];
            chains_[j] = 0;
        }
    }

    // Row `i` of out, in `dtype`, is the sum of the shares' i-th, in their order.
    void pack(int64_t i, void* out, int64_t dtype) const {
        Scratch<double> memory;
        double* row = memory.zeros(width_);
        for (int64_t share = 0; share < shares_; ++share) {
            const int64_t begin = share * size_ + i * width_;
            for (int64_t j = 0; j < width_; ++j) row[j] += chains_[begin + j];
            for (int64_t j = 0; totals_ && j < width_; ++j) row[j] += totals_[begin + j];
        }
        pack_row<T>(row, columns_, out, dtype, i);
    }

  private:
    int64_t shares_, columns_, width_, size_;
    Scratch<Acc<T>> chain_memory_;
    Scratch<double> total_memory_;
    Acc<T>* chains_;
    double* totals_;
};

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
inline void row_groups(Part part, int64_t n, Gather gather, Finish finish, Write write, Again again) {
    using Scalars = decltype(finish(std::declval<const Sums&>(), int64_t(0)));
    constexpr int64_t panel = PANEL_PAIRS * COLUMNS_;
    for (int64_t first = part.begin; first < part.end; first += GROUP_ROWS) {
        const int64_t rows = std::min<int64_t>(GROUP_ROWS, part.end - first);
        Sums sums[GROUP_ROWS]{};
        Scalars scalars[GROUP_ROWS];
        for (int64_t j = 0; j < n; j += panel)
            for (int64_t i = 0; i < rows; ++i) {
                Sums s = sums[i];
                sweep<COLUMNS_>(j, std::min(j + panel, n), gather(first + i, s));
                s.flush();
                sums[i] = s;
            }
        for (int64_t i = 0; i < rows; ++i) scalars[i] = finish(sums[i], first + i);
        for (int64_t j = 0; j < n; j += panel)
            for (int64_t i = 0; i < rows; ++i)
                if (scalars[i].fit) sweep<COLUMNS_>(j, std::min(j + panel, n), write(first + i, scalars[i]));
        for (int64_t i = 0; i < rows; ++i)
            if (!scalars[i].fit) again(first + i);
    }
}

}  // namespace OFA_ISA
}  // namespace ofa

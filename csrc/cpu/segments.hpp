// How rows that have a weight each are shared among threads: in the order of their weights, of which a thread gets a
// contiguous part and walks it weight by weight. All rows of one weight in it are a segment.
#pragma once

#include "rows.hpp"

namespace ofa {
namespace OFA_ISA {

// The weight that row i has.
template <class Call>
inline int64_t weight_of(const Call& c, int64_t i) {
    return c.weight_index ? c.weight_index[i] : 0;
}

// The terms that a sum over rows adds up in the accumulation type before it goes on in double.
constexpr int64_t CHAIN_TERMS = 128;

struct Segment {
    int64_t share, weight;
    Part rows;
    bool first, last;  // of its thread's
};

// A call's rows: as many shares as threads, each share cut into segments, and these into the rows of one chain.
class Rows {
  public:
    const int64_t count, shares, chain, weights;

    // Throws BadIndex. `elements` are those that the call works on, `terms_a_row` those of a sum over rows.
    template <class Call>
    Rows(const Call& c, int64_t elements, int64_t terms_a_row = 1)
        : count(c.rows), shares(threads_for(c.threads, c.rows, elements)),
          chain(std::max<int64_t>(1, CHAIN_TERMS / std::max<int64_t>(1, terms_a_row))), weights(c.weights),
          index_(c.weight_index) {
        bool inside = true, sorted = true;
        for (int64_t i = 0; index_ && i < count; ++i) {
            inside = inside && index_[i] >= 0 && index_[i] < weights;
            sorted = sorted && (i == 0 || index_[i - 1] <= index_[i]);
        }
        if (!inside) throw BadIndex();
        if (weights == 1) index_ = nullptr;  // every row has the only one
        if (!sorted) sort();
    }

    bool have_one_weight() const { return !index_; }

    int64_t weight_at(int64_t place) const { return index_ ? index_[order_ ? order_[place] : place] : 0; }

    template <class Body>
    void each_segment(int64_t share, Body body) const {
        const Part part = part_of(count, share, shares);
        for (int64_t begin = part.begin, end; begin < part.end; begin = end) {
            const int64_t weight = weight_at(begin);
            end = index_ ? begin + 1 : part.end;
            while (end < part.end && weight_at(end) == weight) ++end;
            body(Segment{share, weight, Part{begin, end, order_}, begin == part.begin, end == part.end});
        }
    }

    // Call body for the rows of each chain of a segment, and flush its sums in between.
    template <class Body, class... Sums>
    void each_chain(const Segment& segment, Body body, Sums&... sums) const {
        const Part rows = segment.rows;
        for (int64_t begin = rows.begin; begin < rows.end; begin += chain) {
            if (begin > rows.begin) (sums.flush(segment), ...);
            body(Part{begin, std::min(begin + chain, rows.end), order_});
        }
    }

    // The same for each row alone.
    template <class Body, class... Sums>
    void each_row(const Segment& segment, Body body, Sums&... sums) const {
        each_chain(
            segment,
            [=](Part part) {
                for (int64_t place = part.begin; place < part.end; ++place) body(part.row_at(place));
            },
            sums...);
    }

  private:
    // Rows by their weights, those of one weight as they come: a counting sort.
    void sort() {
        Scratch<int64_t> memory;
        int64_t* next = memory.zeros(weights + 1);
        int64_t* order = order_memory_.zeros(count);
        for (int64_t i = 0; i < count; ++i) ++next[index_[i] + 1];
        for (int64_t weight = 0; weight < weights; ++weight) next[weight + 1] += next[weight];
        for (int64_t i = 0; i < count; ++i) order[next[index_[i]]++] = i;
        order_ = order;
    }

    Scratch<int64_t> order_memory_;
    const int64_t* index_;
    const int64_t* order_ = nullptr;  // none where rows come in the order of their weights
};

// A thread's own copy of one weight plus offset, or of its tangents: padded rows of the accumulation type.
template <class T>
class OwnWeight {
  public:
    // Of data [tangents, weights, n] in `dtype`, or of zeros for null.
    OwnWeight(const void* data, int64_t dtype, int64_t tangents, int64_t weights, int64_t n, double offset)
        : data_(data), dtype_(dtype), tangents_(tangents), weights_(weights), columns_(n), offset_(offset),
          rows_(memory_.zeros(tangents * padded<T>(n))) {}

    const Acc<T>* unpack(int64_t weight) const {
        for (int64_t k = 0; data_ && k < tangents_; ++k)
            unpack_row<T>(data_, dtype_, k * weights_ + weight, columns_, offset_, rows_ + k * padded<T>(columns_));
        return rows_;
    }

  private:
    const void* data_;
    int64_t dtype_, tangents_, weights_, columns_;
    double offset_;
    Scratch<Acc<T>> memory_;
    Acc<T>* rows_;
};

// The sums over each weight's rows, [sums, weights, n] in `dtype`: chains in the accumulation type, added up in double,
// so that they are as right for millions of rows as for one chain. A weight without rows gets zeros.
//
// A thread has memory for the sums of two segments. What lies between its first segment and its last is no other
// thread's, and is written at once; those two may go on elsewhere and are added up afterwards, in the threads' order.
template <class T>
class RowSums {
  public:
    RowSums(const Rows& rows, int64_t sums, void* out, int64_t dtype, int64_t n)
        : rows_(rows), out_(out), dtype_(dtype), sums_(out ? sums : 0), columns_(n), width_(padded<T>(n)),
          size_(sums_ * width_), slots_(rows.have_one_weight() ? 1 : 2),
          chains_(chain_memory_.zeros(rows.shares * slots_ * size_)),
          totals_((rows.count + rows.shares - 1) / rows.shares > rows.chain
                      ? total_memory_.zeros(rows.shares * slots_ * size_)
                      : nullptr),
          left_(left_memory_.zeros(rows.shares * slots_)) {}

    // Where the sums of a segment are to be added to, one padded row behind the other; they are zeros.
    Acc<T>* begin(const Segment& segment) const {
        const int64_t place = segment.rows.begin;
        write_zeros(place ? rows_.weight_at(place - 1) + 1 : 0, segment.weight);
        return chains_ + slot(segment) * size_;
    }

    void flush(const Segment& segment) const {
        for (int64_t j = slot(segment) * size_; j < (slot(segment) + 1) * size_; ++j) {
            totals_[j] += chains_[j];
            chains_[j] = 0;
        }
    }

    void end(const Segment& segment) const {
        if (segment.first || segment.last) {
            left_[slot(segment)] = segment.weight + 1;
        } else if (segment.rows.end - segment.rows.begin > rows_.chain) {
            flush(segment);
            write(segment, totals_ + slot(segment) * size_);
        } else {
            write(segment, chains_ + slot(segment) * size_);
        }
    }

    // After all threads have ended.
    void finish() const {
        if (!out_) return;
        Scratch<double> memory;
        double* row = memory.zeros(width_);
        int64_t weights = 0;  // that are written, of which the last is in `row`
        for (int64_t i = 0; i < sums_; ++i) {
            weights = 0;
            for (int64_t slot = 0; slot < rows_.shares * slots_; ++slot) {
                if (!left_[slot]) continue;
                if (weights && left_[slot] != weights) write_left(i, weights - 1, row);
                weights = left_[slot];
                const int64_t begin = slot * size_ + i * width_;
                for (int64_t j = 0; j < width_; ++j) row[j] += chains_[begin + j];
                for (int64_t j = 0; totals_ && j < width_; ++j) row[j] += totals_[begin + j];
            }
            if (weights) write_left(i, weights - 1, row);
        }
        write_zeros(weights, rows_.weights);
    }

  private:
    int64_t slot(const Segment& segment) const { return segment.share * slots_ + (segment.first ? 0 : slots_ - 1); }

    template <class A>
    void write(const Segment& segment, A* sums) const {
        for (int64_t i = 0; i < sums_; ++i)
            pack_row<T>(sums + i * width_, columns_, out_, dtype_, i * rows_.weights + segment.weight);
        std::fill(sums, sums + size_, A(0));
    }

    void write_left(int64_t i, int64_t weight, double* row) const {
        pack_row<T>(row, columns_, out_, dtype_, i * rows_.weights + weight);
        std::fill(row, row + width_, 0.0);
    }

    // Of the weights [begin, end), which no row has.
    void write_zeros(int64_t begin, int64_t end) const {
        for (int64_t i = 0; begin < end && i < sums_; ++i)
            with_type(dtype_, [=](auto* type) {
                auto* to = static_cast<decltype(type)>(out_) + i * rows_.weights * columns_;
                std::memset(to + begin * columns_, 0, (end - begin) * columns_ * sizeof *type);
            });
    }

    const Rows& rows_;
    void* out_;
    int64_t dtype_, sums_, columns_, width_, size_, slots_;
    Scratch<Acc<T>> chain_memory_;
    Scratch<double> total_memory_;
    Scratch<int64_t> left_memory_;
    Acc<T>* chains_;
    double* totals_;
    int64_t* left_;  // for each slot: the weight whose sums it holds in the end, counted from 1
};

}  // namespace OFA_ISA
}  // namespace ofa

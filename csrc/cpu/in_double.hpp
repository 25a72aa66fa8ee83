// Rows that float32 does not hold: it has room for the inputs, but not for all products of them, nor for all the
// scalars that they are multiplied by. A row whose scalars tell of that is computed again: the same operator is
// called in double, for that row alone, on copies of its inputs.
//
// So the results of float32 and its narrower types are as right as ever where one of x, dy, the weight and the
// tangents lies anywhere from 1e-38 to 1e37 and the others near 1, and where two of them do of which one is large,
// as long as the terms of the result fit its type. Where all are small, products below 1e-38 lose digits.
#pragma once

#include <initializer_list>

#include "segments.hpp"

namespace ofa {
namespace OFA_ISA {

// Whether r and what it was multiplied with, all sums among them, leave float32 room for their products. A sum
// that is not finite leaves none, nor does a sum of which a term underflowed; where all terms are zero, none did.
template <class A>
inline bool fit(double r, std::initializer_list<double> scalars) {
    if (std::is_same_v<A, double>) return true;
    bool all = r >= 0x1p-90 && r <= 0x1p20;
    for (const double s : scalars) all = all && (s == 0 || (std::abs(s) >= 0x1p-90 && std::abs(s) <= 0x1p90));
    return all;
}

// Memory for a row's inputs and outputs in double.
class RowsInDouble {
  public:
    RowsInDouble(int64_t rows, int64_t n) : columns_(n), next_(memory_.zeros(rows * padded<double>(n))) {}

    const double* next() const { return next_; }
    double* output() {
        double* row = next_;
        next_ += padded<double>(columns_);
        return row;
    }
    // A copy of row i, plus offset; an absent one stays absent.
    double* input(const void* data, int64_t dtype, int64_t i = 0, double offset = 0) {
        if (!data) return nullptr;
        double* row = output();
        unpack_row<double>(data, dtype, i, columns_, offset, row);
        return row;
    }

  private:
    int64_t columns_;
    Scratch<double> memory_;
    double* next_;
};

// Add a row in double to a padded row of sums, where there is one.
template <class T>
inline void add_row(const double* row, int64_t n, Acc<T>* sums) {
    for (int64_t column = 0; sums && column < n; ++column)
        sums[place_of<T>(column)] += static_cast<Acc<T>>(row[column]);
}

// What the norm's operators have in common: the call for row i alone in double.
template <class Call>
inline void make_double(Call& c, RowsInDouble& rows, int64_t i) {
    c.weight = rows.input(c.weight, c.weight_dtype, weight_of(c, i), c.offset);
    c.weight_index = nullptr;
    c.weights = 1;
    c.dtype = c.weight_dtype = OFA_FLOAT64;
    c.threads = c.rows = 1;
    c.offset = 0;
}

}  // namespace OFA_ISA
}  // namespace ofa

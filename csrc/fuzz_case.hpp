// What a case of the fuzzer calls an operator with: random sizes and types, and buffers that end with their last element.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <iterator>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "ofa.h"

// the sanitizers' runtime, where it is linked
extern "C" void __sanitizer_set_death_callback(void (*)()) __attribute__((weak));

static std::string current;  // the case that runs, for the message when it fails

static void say_which() { std::fprintf(stderr, "in %s\n", current.c_str()); }

[[noreturn]] static void fail(const char* what) {
    std::fprintf(stderr, "%s ", what);
    say_which();
    std::exit(1);
}

static std::size_t bytes_of(int64_t dtype) { return dtype == OFA_FLOAT64 ? 8 : dtype == OFA_FLOAT32 ? 4 : 2; }

static void write_number(char* to, int64_t dtype, double value) {
    const float single = static_cast<float>(value);
    const _Float16 half = static_cast<_Float16>(single);
    if (dtype == OFA_FLOAT64) std::memcpy(to, &value, 8);
    if (dtype == OFA_FLOAT32) std::memcpy(to, &single, 4);
    if (dtype == OFA_BFLOAT16) std::memcpy(to, reinterpret_cast<const char*>(&single) + 2, 2);
    if (dtype == OFA_FLOAT16) std::memcpy(to, &half, 2);
}

constexpr int64_t POOL = 8191;  // of so many numbers inputs are made, over and over: drawing them anew is slow

static const std::vector<char>& numbers(int64_t dtype) {
    static std::vector<char> pools[4];
    std::vector<char>& pool = pools[dtype];
    if (pool.empty()) {
        std::mt19937_64 random(dtype);
        std::normal_distribution<double> normal;
        pool.resize(POOL * bytes_of(dtype));
        for (int64_t i = 0; i < POOL; ++i) write_number(&pool[i * bytes_of(dtype)], dtype, normal(random));
    }
    return pool;
}

// NaNs, infinities, subnormal and huge numbers of every type.
static const std::vector<char>& any_bits() {
    static std::vector<char> pool;
    std::mt19937_64 random;
    while (pool.size() < 8 * POOL) pool.push_back(static_cast<char>(random()));
    return pool;
}

// Memory that ends where its last element does and starts at any multiple of the element's size.
struct Buffer {
    std::unique_ptr<char, void (*)(void*)> memory{nullptr, std::free};
    std::size_t offset = 0, size = 0;
    std::vector<char> before;  // an input's contents

    char* data() const { return memory ? memory.get() + offset : nullptr; }
};

// Where the rows of an input lie; of an absent one, all zeros.
struct Rows {
    char* data = nullptr;
    int64_t k = 0, stride = 0;
};

// the first cases of the norm's operators are large enough for stores that go past the caches
constexpr uint64_t LARGE_CASES = 5;
constexpr int64_t LARGE_ROWS = 4100, LARGE_COLUMNS = 4101;

class Case {
  public:
    Case(uint64_t seed, bool large) : large_(large), random_(seed) {}

    int64_t below(int64_t n) { return static_cast<int64_t>(random_() % static_cast<uint64_t>(n)); }
    bool one_in(int64_t n) { return below(n) == 0; }
    uint64_t word() { return random_(); }
    int64_t dtype() { return large_ ? int64_t(OFA_BFLOAT16) : below(4); }
    int64_t threads() { return 1 + below(4); }
    int64_t tangents() { return large_ ? 1 : below(5); }

    // lengths around the sizes that kernels step by
    int64_t columns() {
        if (large_) return LARGE_COLUMNS;
        static const int64_t steps[] = {16, 32, 128, 512, 1024, 2048};
        if (one_in(3)) return below(70);
        return std::max<int64_t>(0, steps[below(6)] * (1 + below(2)) + below(5) - 2);
    }
    int64_t rows() { return large_ ? LARGE_ROWS : one_in(8) ? 40 + below(80) : below(6); }

    char* input(int64_t dtype, int64_t count) {
        Buffer& buffer = allocate(dtype, count);
        const std::vector<char>& from = one_in(4) ? any_bits() : numbers(dtype);
        for (std::size_t at = 0; at < buffer.size; at += from.size())
            std::memcpy(buffer.data() + at, from.data(), std::min(from.size(), buffer.size - at));
        buffer.before.assign(buffer.data(), buffer.data() + buffer.size);
        return buffer.data();
    }
    Rows rows_of(int64_t dtype, int64_t ks, int64_t rows, int64_t columns) {
        static const int64_t gaps[] = {0, 1, 9};
        Rows r;
        r.stride = large_ || one_in(5) ? 0 : columns + gaps[below(3)];
        r.k = one_in(5) ? 0 : rows * r.stride + gaps[below(3)];
        if (one_in(4)) std::swap(r.k, r.stride);  // rows outside, tangents inside: they may overlap, being read only
        const bool none = !ks || !rows || !columns;
        r.data = input(dtype, none ? 0 : (ks - 1) * r.k + (rows - 1) * r.stride + columns);
        return r;
    }
    char* output(int64_t dtype, int64_t count) {
        Buffer& buffer = allocate(dtype, count);
        outputs_.push_back(&buffer);
        return buffer.data();
    }
    const int64_t* integers(const std::vector<int64_t>& values) {
        Buffer& buffer = allocate(OFA_FLOAT64, static_cast<int64_t>(values.size()));
        if (buffer.size) std::memcpy(buffer.data(), values.data(), buffer.size);
        buffer.before.assign(buffer.data(), buffer.data() + buffer.size);
        return reinterpret_cast<const int64_t*>(buffer.data());
    }
    const int64_t* ids(int64_t count) {
        std::vector<int64_t> values(count);
        for (int64_t& id : values) id = static_cast<int64_t>(word());
        return integers(values);
    }

    // Which weight each row of a call has: random, sorted, reversed or constant; now and then one that there is not.
    template <class Call>
    void weights_of_rows(Call& c) {
        c.weights = 1;
        if (one_in(2)) return;
        static const int64_t counts[] = {1, 2, 3, 70, 1000};
        c.weights = counts[below(large_ ? 4 : 5)];
        std::vector<int64_t> index(c.rows);
        for (int64_t& weight : index) weight = below(c.weights);
        if (one_in(2)) std::sort(index.begin(), index.end());
        if (one_in(4)) std::reverse(index.begin(), index.end());
        if (one_in(6)) std::fill(index.begin(), index.end(), below(c.weights));
        if (c.rows && one_in(8)) {
            const int64_t wrong[] = {-1, c.weights, INT64_MIN, INT64_MAX};
            index[below(c.rows)] = wrong[below(4)];
            expected_ = OFA_BAD_INDEX;
        }
        c.weight_index = integers(index);
    }

    // No output is wanted: then no index is looked at.
    void expect_nothing() { expected_ = OFA_OK; }

    template <class Call>
    void run(int (*function)(const Call*), const Call& call) {
        std::vector<std::vector<char>> first;
        for (int fill : {0x00, 0xff}) {
            for (const Buffer* out : outputs_)
                if (out->size) std::memset(out->data(), fill, out->size);
            const int code = function(&call);
            if (code != expected_) fail(code == OFA_NO_MEMORY ? "no memory" : "another code");
            for (std::size_t i = 0; i < outputs_.size(); ++i) {
                const Buffer& out = *outputs_[i];
                if (!fill) first.emplace_back(out.data(), out.data() + out.size);
                else if (code == OFA_OK && out.size && std::memcmp(first[i].data(), out.data(), out.size))
                    fail("unwritten output");
            }
        }
        for (const auto& buffer : buffers_)
            if (!buffer->before.empty() && std::memcmp(buffer->before.data(), buffer->data(), buffer->size))
                fail("written input");
    }

  private:
    Buffer& allocate(int64_t dtype, int64_t count) {
        buffers_.push_back(std::make_unique<Buffer>());
        Buffer& buffer = *buffers_.back();
        buffer.size = count * bytes_of(dtype);
        buffer.offset = one_in(2) ? 0 : below(8) * bytes_of(dtype);
        void* memory = nullptr;
        if (!count && one_in(2)) return buffer;  // torch gives empty tensors a null pointer
        if (posix_memalign(&memory, 64, buffer.offset + buffer.size)) fail("no memory for the buffers");
        buffer.memory.reset(static_cast<char*>(memory));
        return buffer;
    }

    bool large_;
    int expected_ = OFA_OK;
    std::mt19937_64 random_;
    std::vector<std::unique_ptr<Buffer>> buffers_;
    std::vector<Buffer*> outputs_;
};

// Calls every operator with random types, shapes, strides, absent tensors and misaligned rows, in buffers that end
// with their last element, to be compiled with sanitizers (python -m tools.sanitize).
//
//     OFA_NATIVE_ISA=avx2 fuzz SEED CASES
//
// Each case runs twice, its outputs first filled with zeros, then with ones: what differs afterwards was not written
// or depends on what was never read in. Inputs must come back unchanged.
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
    const int64_t* ids(int64_t count) {
        Buffer& buffer = allocate(OFA_FLOAT64, count);
        for (int64_t i = 0; i < count; ++i) {
            const uint64_t id = word();
            std::memcpy(buffer.data() + 8 * i, &id, 8);
        }
        buffer.before.assign(buffer.data(), buffer.data() + buffer.size);
        return reinterpret_cast<const int64_t*>(buffer.data());
    }

    template <class Call>
    void run(int (*function)(const Call*), const Call& call) {
        std::vector<std::vector<char>> first;
        for (int fill : {0x00, 0xff}) {
            for (const Buffer* out : outputs_)
                if (out->size) std::memset(out->data(), fill, out->size);
            if (function(&call) != OFA_OK) fail("no memory");
            for (std::size_t i = 0; i < outputs_.size(); ++i) {
                const Buffer& out = *outputs_[i];
                if (!fill) first.emplace_back(out.data(), out.data() + out.size);
                else if (out.size && std::memcmp(first[i].data(), out.data(), out.size)) fail("unwritten output");
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
    std::mt19937_64 random_;
    std::vector<std::unique_ptr<Buffer>> buffers_;
    std::vector<Buffer*> outputs_;
};

static int64_t computed_in(int64_t dtype) { return dtype == OFA_FLOAT64 ? OFA_FLOAT64 : OFA_FLOAT32; }

static void describe(const char* name, int64_t dtype, int64_t rows, int64_t columns, int64_t tangents) {
    current = std::string(name) + ": type " + std::to_string(dtype) + ", " + std::to_string(tangents) + " x " +
              std::to_string(rows) + " rows of " + std::to_string(columns);
}

// What the operators on a norm have in common.
template <class Call>
static void norm(Case& t, const char* name, Call& c, int64_t tangents) {
    c.dtype = t.dtype(), c.weight_dtype = t.dtype(), c.threads = t.threads();
    c.rows = t.rows(), c.columns = t.columns(), c.eps = 1e-6, c.offset = static_cast<double>(t.below(2));
    describe(name, c.dtype, c.rows, c.columns, tangents);
    const Rows x = t.rows_of(c.dtype, 1, c.rows, c.columns);
    c.x = x.data, c.x_stride = x.stride;
    c.weight = t.input(c.weight_dtype, c.columns);
}

static void norm_forward(Case& t) {
    ofa_norm_forward c{};
    norm(t, "norm_forward", c, 1);
    c.round_x_hat = t.below(2);
    if (t.one_in(2)) {
        const Rows residual = t.rows_of(c.dtype, 1, c.rows, c.columns);
        c.residual = residual.data, c.residual_stride = residual.stride;
    }
    c.y = t.output(c.dtype, c.rows * c.columns);
    if (c.residual) c.s = t.output(c.dtype, c.rows * c.columns);
    if (t.one_in(2)) c.rstd = t.output(computed_in(c.dtype), c.rows);
    t.run(ofa_run_norm_forward, c);
}

static void norm_backward(Case& t) {
    ofa_norm_backward c{};
    norm(t, "norm_backward", c, 1);
    const Rows dy = t.rows_of(c.dtype, 1, c.rows, c.columns);
    c.dy = dy.data, c.dy_stride = dy.stride;
    if (!t.one_in(4)) c.dx = t.output(c.dtype, c.rows * c.columns);
    if (!t.one_in(4)) c.dw = t.output(c.weight_dtype, c.columns);
    if (t.one_in(2)) {
        const Rows ds = t.rows_of(c.dtype, 1, c.rows, c.columns);
        c.ds = ds.data, c.ds_stride = ds.stride;
    }
    if (t.one_in(2)) c.rstd = t.input(computed_in(c.dtype), c.rows);
    t.run(ofa_run_norm_backward, c);
}

// The tangents that may be absent.
template <class Call>
static void directions(Case& t, Call& c) {
    if (!t.one_in(4)) {
        const Rows x_dot = t.rows_of(c.dtype, c.tangents, c.rows, c.columns);
        c.x_dot = x_dot.data, c.x_dot_k = x_dot.k, c.x_dot_stride = x_dot.stride;
    }
    if (t.one_in(2)) c.weight_dot = t.input(c.weight_dtype, c.tangents * c.columns);
}

static void norm_jvp(Case& t) {
    ofa_norm_jvp c{};
    c.tangents = t.tangents();
    norm(t, "norm_jvp", c, c.tangents);
    directions(t, c);
    c.y_dot = t.output(c.dtype, c.tangents * c.rows * c.columns);
    t.run(ofa_run_norm_jvp, c);
}

static void norm_backward_tangent(Case& t) {
    ofa_norm_backward_tangent c{};
    c.tangents = t.tangents();
    norm(t, "norm_backward_tangent", c, c.tangents);
    directions(t, c);
    const Rows dy = t.rows_of(c.dtype, 1, c.rows, c.columns);
    c.dy = dy.data, c.dy_stride = dy.stride;
    if (t.one_in(2)) {
        const Rows dy_dot = t.rows_of(c.dtype, c.tangents, c.rows, c.columns);
        c.dy_dot = dy_dot.data, c.dy_dot_k = dy_dot.k, c.dy_dot_stride = dy_dot.stride;
    }
    c.dx_dot = t.output(c.dtype, c.tangents * c.rows * c.columns);
    if (!t.one_in(3)) c.dw_dot = t.output(c.weight_dtype, c.tangents * c.columns);
    t.run(ofa_run_norm_backward_tangent, c);
}

static void norm_jvp_backward(Case& t) {
    ofa_norm_jvp_backward c{};
    c.tangents = t.tangents();
    norm(t, "norm_jvp_backward", c, c.tangents);
    directions(t, c);
    const Rows dy = t.rows_of(c.dtype, c.tangents, c.rows, c.columns);
    c.dy = dy.data, c.dy_k = dy.k, c.dy_stride = dy.stride;
    c.dx = t.output(c.dtype, c.rows * c.columns);
    c.dx_dot = t.output(c.dtype, c.tangents * c.rows * c.columns);
    if (!t.one_in(3)) c.dw = t.output(c.weight_dtype, c.columns);
    if (!t.one_in(3)) c.dw_dot = t.output(c.weight_dtype, c.tangents * c.columns);
    t.run(ofa_run_norm_jvp_backward, c);
}

static void rademacher(Case& t) {
    ofa_rademacher c{};
    c.dtype = t.dtype(), c.threads = t.threads(), c.seed = t.word();
    c.layers = t.below(4), c.probes = t.tangents(), c.examples = t.rows(), c.columns = t.columns();
    describe("rademacher", c.dtype, c.layers * c.examples, c.columns, c.probes);
    c.layer_ids = t.ids(c.layers), c.example_ids = t.ids(c.examples);
    c.signs = t.output(c.dtype, c.layers * c.probes * c.examples * c.columns);
    t.run(ofa_run_rademacher, c);
}

// What the other operators on probes have in common.
template <class Call>
static void probed(Case& t, const char* name, Call& c) {
    c.dtype = t.dtype(), c.threads = t.threads(), c.seed = t.word(), c.layer = static_cast<int64_t>(t.word());
    c.probes = t.tangents(), c.rows = t.rows(), c.columns = t.columns();
    describe(name, c.dtype, c.rows, c.columns, c.probes);
    c.example_ids = t.ids(c.rows);
}

template <class Call>
static void preconditioned(Case& t, Call& c) {
    const Rows z = t.rows_of(c.dtype, 1, c.rows, c.columns);
    c.z = z.data, c.z_stride = z.stride;
    c.weight_dtype = t.dtype(), c.weight = t.input(c.weight_dtype, c.columns);
    c.eps = 1e-6, c.offset = static_cast<double>(t.below(2));
}

static void preconditioned_probes(Case& t) {
    ofa_preconditioned_probes c{};
    probed(t, "preconditioned_probes", c);
    preconditioned(t, c);
    c.out = t.output(c.dtype, c.probes * c.rows * c.columns);
    t.run(ofa_run_preconditioned_probes, c);
}

static void preconditioned_probes_backward(Case& t) {
    ofa_preconditioned_probes_backward c{};
    probed(t, "preconditioned_probes_backward", c);
    preconditioned(t, c);
    const Rows dp = t.rows_of(c.dtype, c.probes, c.rows, c.columns);
    c.dp = dp.data, c.dp_k = dp.k, c.dp_stride = dp.stride;
    c.dz = t.output(c.dtype, c.rows * c.columns), c.dw = t.output(c.weight_dtype, c.columns);
    t.run(ofa_run_preconditioned_probes_backward, c);
}

static void probe_dot(Case& t) {
    ofa_probe_dot c{};
    probed(t, "probe_dot", c);
    const Rows rows = t.rows_of(c.dtype, c.probes, c.rows, c.columns);
    c.t = rows.data, c.t_k = rows.k, c.t_stride = rows.stride;
    c.dots = t.output(computed_in(c.dtype), c.probes * c.rows);
    t.run(ofa_run_probe_dot, c);
}

static void probe_scale(Case& t) {
    ofa_probe_scale c{};
    probed(t, "probe_scale", c);
    c.scale = t.input(computed_in(c.dtype), c.probes * c.rows);
    c.out = t.output(c.dtype, c.probes * c.rows * c.columns);
    t.run(ofa_run_probe_scale, c);
}

template <class Call>
static void stepped(Case& t, const char* name, Call& c) {
    c.dtype = t.dtype(), c.threads = t.threads();
    c.steps = t.tangents(), c.examples = t.rows(), c.columns = t.columns();
    describe(name, c.dtype, c.examples, c.columns, c.steps);
    const Rows states = t.rows_of(c.dtype, c.steps + 1, c.examples, c.columns);
    c.states = states.data, c.states_t = states.k, c.states_b = states.stride;
}

static void step_lengths(Case& t) {
    ofa_step_lengths c{};
    stepped(t, "step_lengths", c);
    c.lengths = t.output(computed_in(c.dtype), c.steps * c.examples);
    t.run(ofa_run_step_lengths, c);
}

static void step_lengths_backward(Case& t) {
    ofa_step_lengths_backward c{};
    stepped(t, "step_lengths_backward", c);
    c.lengths = t.input(computed_in(c.dtype), c.steps * c.examples);
    c.dlengths = t.input(computed_in(c.dtype), c.steps * c.examples);
    c.dstates = t.output(c.dtype, (c.steps + 1) * c.examples * c.columns);
    t.run(ofa_run_step_lengths_backward, c);
}

int main(int count, char** arguments) {
    if (count != 3) {
        std::fprintf(stderr, "usage: OFA_NATIVE_ISA=avx2 fuzz SEED CASES\n");
        return 2;
    }
    if (__sanitizer_set_death_callback) __sanitizer_set_death_callback(say_which);
    using Operator = void (*)(Case&);
#define FUZZ_NAME(name) name,
    const Operator operators[] = {OFA_OPERATORS(FUZZ_NAME)};
    const uint64_t seed = std::strtoull(arguments[1], nullptr, 10), cases = std::strtoull(arguments[2], nullptr, 10);
    for (uint64_t i = 0; i < cases; ++i) {
        Case t(seed + i, i < LARGE_CASES);
        operators[i % std::size(operators)](t);
    }
    std::printf("%s: %llu cases\n", ofa_instruction_set(), static_cast<unsigned long long>(cases));
}

// Calls every operator with random types, shapes, strides, absent tensors and misaligned rows, in buffers that end
// with their last element, to be compiled with sanitizers (python -m tools.sanitize).
//
//     OFA_NATIVE_ISA=avx2 fuzz SEED CASES
//
// Each case runs twice, its outputs first filled with zeros, then with ones: what differs afterwards was not written
// or depends on what was never read in. Inputs must come back unchanged. An index that names a weight which there is
// not has to be refused.
#include "fuzz_case.hpp"

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
    t.weights_of_rows(c);
    c.weight = t.input(c.weight_dtype, c.weights * c.columns);
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
    if (!t.one_in(4)) c.dw = t.output(c.weight_dtype, c.weights * c.columns);
    if (t.one_in(2)) {
        const Rows ds = t.rows_of(c.dtype, 1, c.rows, c.columns);
        c.ds = ds.data, c.ds_stride = ds.stride;
    }
    if (t.one_in(2)) c.rstd = t.input(computed_in(c.dtype), c.rows);
    if (!c.dx && !c.dw) t.expect_nothing();
    t.run(ofa_run_norm_backward, c);
}

// The tangents that may be absent.
template <class Call>
static void directions(Case& t, Call& c) {
    if (!t.one_in(4)) {
        const Rows x_dot = t.rows_of(c.dtype, c.tangents, c.rows, c.columns);
        c.x_dot = x_dot.data, c.x_dot_k = x_dot.k, c.x_dot_stride = x_dot.stride;
    }
    if (t.one_in(2)) c.weight_dot = t.input(c.weight_dtype, c.tangents * c.weights * c.columns);
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
    if (!t.one_in(3)) c.dw_dot = t.output(c.weight_dtype, c.tangents * c.weights * c.columns);
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
    if (!t.one_in(3)) c.dw = t.output(c.weight_dtype, c.weights * c.columns);
    if (!t.one_in(3)) c.dw_dot = t.output(c.weight_dtype, c.tangents * c.weights * c.columns);
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
    if (t.one_in(2)) c.seeds = t.ids(c.rows);
}

template <class Call>
static void preconditioned(Case& t, Call& c) {
    const Rows z = t.rows_of(c.dtype, 1, c.rows, c.columns);
    c.z = z.data, c.z_stride = z.stride;
    t.weights_of_rows(c);
    c.weight_dtype = t.dtype(), c.weight = t.input(c.weight_dtype, c.weights * c.columns);
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
    c.dz = t.output(c.dtype, c.rows * c.columns), c.dw = t.output(c.weight_dtype, c.weights * c.columns);
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

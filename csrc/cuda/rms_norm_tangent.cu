// RMSNorm's derivatives along K tangents. Notation as in rms_norm.cu, and d = r x_dot, m = mean(x_hat d),
// x_hat' = d - x_hat m, g' = w dy' + w' dy, c' = mean(g' x_hat + g x_hat') = mean(g' x_hat + g d) - m c.
#include "entry.cuh"
#include "tangents.cuh"

namespace ofa {

// y' = w x_hat' + w' x_hat
// Without the 1, blocks that a multiprocessor must hold, ptxas makes do with 64 registers on sm_100 and spills.
template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) jvp(ofa_norm_jvp c) {
    constexpr int V = TANGENT_VECTORS<T>, L = LANES<T>;
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns);
    const Team team;
    const Columns<T, V> columns(team.rank(), c.columns);
    TeamSum<1> team_sum(team, shared_memory());
    Ring<T, V> ring(shared_memory() + TeamSum<1>::bytes(), 1);
    const T* x_dot = static_cast<const T*>(c.x_dot);

    const int tangents = static_cast<int>(c.tangents);
    Items ahead(team, 0, tangents);
    const auto fetch = [&] {
        if (ahead.row() < c.rows) {
            if (ahead.is_primal())
                ring.fetch(0, static_cast<const T*>(c.x) + ahead.row() * c.x_stride, columns);
            else if (x_dot)
                ring.fetch(0, x_dot + ahead.tangent() * c.x_dot_k + ahead.row() * c.x_dot_stride, columns);
        }
        ring.end_item();
        ahead.advance();
    };
    for (int i = 0; i < STAGES - 1; ++i) fetch();
    A w[V][L];
#pragma unroll
    for (int v = 0; v < V; ++v) read_weight(c.weight, c.weight_dtype, 0, columns(v), n, c.offset, w[v]);

    for (int64_t row = team.first_row(); row < c.rows; row += team.count()) {
        fetch();
        ring.wait();
        A x_hat[V][L];
        SumOfSquares<T> squares;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            ring.read(0, v, x_hat[v]);
            squares.add(x_hat[v]);
        }
        double total[1] = {squares.value()};
        team_sum(total);
        const A r = rstd_of(total[0], x_hat, n, c.eps, team_sum);
#pragma unroll
        for (int v = 0; v < V; ++v)
#pragma unroll
            for (int j = 0; j < L; ++j) x_hat[v][j] *= r;
        ring.advance();
        for (int k = 0; k < tangents; ++k, ring.advance()) {
            fetch();
            ring.wait();
            A d[V][L] = {}, change[V][L] = {};
            A along = 0;
#pragma unroll
            for (int v = 0; v < V; ++v) {
                if (c.weight_dot) read_weight(c.weight_dot, c.weight_dtype, k, columns(v), n, 0, change[v]);
                if (!x_dot) continue;
                ring.read(0, v, d[v]);
#pragma unroll
                for (int j = 0; j < L; ++j) {
                    d[v][j] *= r;
                    along += x_hat[v][j] * d[v][j];
                }
            }
            A m = 0;
            if (x_dot) {
                total[0] = along;
                team_sum(total);
                m = static_cast<A>(total[0] / n);
            }
#pragma unroll
            for (int v = 0; v < V; ++v) {
                A y_dot[L];
#pragma unroll
                for (int j = 0; j < L; ++j)
                    y_dot[j] = w[v][j] * (d[v][j] - x_hat[v][j] * m) + change[v][j] * x_hat[v][j];
                write(static_cast<T*>(c.y_dot) + (k * c.rows + row) * n, columns(v), n, y_dot);
            }
        }
    }
}

// The tangent of the backward: dx' = r (g' - c d - m g + (2 m c - c') x_hat), dw' = sum over rows of dy' x_hat + dy x_hat'.
// A block's second index is its pass over the tangents.
template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) backward_tangent(ofa_norm_backward_tangent c, bool gathers, Acc<T>* partials) {
    constexpr int V = TANGENT_VECTORS<T>, L = LANES<T>;
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns);
    const int tangents = static_cast<int>(c.tangents), of_pass = tangents_of_pass(tangents, gridDim.y);
    const int begin = static_cast<int>(blockIdx.y) * of_pass;
    const int end = begin + of_pass < tangents ? begin + of_pass : tangents;
    const Team team(gathers);
    const Columns<T, V> columns(team.rank(), c.columns);
    char* memory = shared_memory();
    TeamSum<2> team_sum(team, memory);
    memory += TeamSum<2>::bytes();
    Ring<T, V> ring(memory, 2);
    SharedSums<T, V> dw_dot(memory + blockDim.x * Ring<T, V>::bytes(2), c.dw_dot ? end - begin : 0);
    const T* x_dot = static_cast<const T*>(c.x_dot);
    const T* dy_dot = static_cast<const T*>(c.dy_dot);

    Items ahead(team, begin, end);
    const auto fetch = [&] {
        const int64_t row = ahead.row(), k = ahead.tangent();
        if (row < c.rows) {
            if (ahead.is_primal()) {
                ring.fetch(0, static_cast<const T*>(c.x) + row * c.x_stride, columns);
                ring.fetch(1, static_cast<const T*>(c.dy) + row * c.dy_stride, columns);
            } else {
                if (x_dot) ring.fetch(0, x_dot + k * c.x_dot_k + row * c.x_dot_stride, columns);
                if (dy_dot) ring.fetch(1, dy_dot + k * c.dy_dot_k + row * c.dy_dot_stride, columns);
            }
        }
        ring.end_item();
        ahead.advance();
    };
    for (int i = 0; i < STAGES - 1; ++i) fetch();
    A w[V][L];
#pragma unroll
    for (int v = 0; v < V; ++v) read_weight(c.weight, c.weight_dtype, 0, columns(v), n, c.offset, w[v]);

    for (int64_t row = team.first_row(); row < c.rows; row += team.count()) {
        fetch();
        ring.wait();
        A x_hat[V][L], up[V][L];
        SumOfSquares<T> squares;
        A gx = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            ring.read(0, v, x_hat[v]);
            ring.read(1, v, up[v]);
            squares.add(x_hat[v]);
#pragma unroll
            for (int j = 0; j < L; ++j) gx += w[v][j] * up[v][j] * x_hat[v][j];
        }
        double totals[2] = {squares.value(), gx};
        team_sum(totals);
        const A r = rstd_of(totals[0], x_hat, n, c.eps, team_sum);
        const double mean = r * totals[1] / n;  // c
#pragma unroll
        for (int v = 0; v < V; ++v)
#pragma unroll
            for (int j = 0; j < L; ++j) x_hat[v][j] *= r;
        ring.advance();
        for (int k = begin; k < end; ++k, ring.advance()) {
            fetch();
            ring.wait();
            A change[V][L] = {};
            A along = 0, terms = 0;  // sums of x_hat d, and of g' x_hat + g d
#pragma unroll
            for (int v = 0; v < V; ++v) {
                A d[L] = {}, up_change[L] = {};
                if (c.weight_dot) read_weight(c.weight_dot, c.weight_dtype, k, columns(v), n, 0, change[v]);
                if (x_dot) ring.read(0, v, d);
                if (dy_dot) ring.read(1, v, up_change);
#pragma unroll
                for (int j = 0; j < L; ++j) {
                    d[j] *= r;
                    along += x_hat[v][j] * d[j];
                    terms += (w[v][j] * up_change[j] + change[v][j] * up[v][j]) * x_hat[v][j];
                    terms += w[v][j] * up[v][j] * d[j];
                }
            }
            totals[0] = along;
            totals[1] = terms;
            team_sum(totals);
            const double wide_m = totals[0] / n, mean_dot = totals[1] / n - wide_m * mean;  // c'
            const A m = static_cast<A>(wide_m), of_d = static_cast<A>(mean);
            const A of_x_hat = static_cast<A>(2 * wide_m * mean - mean_dot);
#pragma unroll
            for (int v = 0; v < V; ++v) {
                // read again rather than kept: registers are short
                A d[L] = {}, up_change[L] = {}, row_dot[L];
                if (x_dot) ring.read(0, v, d);
                if (dy_dot) ring.read(1, v, up_change);
#pragma unroll
                for (int j = 0; j < L; ++j) {
                    d[j] *= r;
                    const A g_dot = w[v][j] * up_change[j] + change[v][j] * up[v][j];
                    row_dot[j] = r * (g_dot - of_d * d[j] - m * (w[v][j] * up[v][j]) + of_x_hat * x_hat[v][j]);
                }
                write(static_cast<T*>(c.dx_dot) + (k * c.rows + row) * n, columns(v), n, row_dot);
                if (!c.dw_dot) continue;
#pragma unroll
                for (int j = 0; j < L; ++j)
                    row_dot[j] = up_change[j] * x_hat[v][j] + up[v][j] * (d[j] - x_hat[v][j] * m);
                dw_dot.add(k - begin, v, row_dot);
            }
        }
    }
    if (c.dw_dot)
        dw_dot.leave(team, begin, tangents, columns, {partials, c.dw_dot, c.weight_dtype});
}

// Gradients of the JVP. In x and w they are what backward_tangent gives with dy_k for dy and no dy', summed over k; in
// x_dot and w_dot they are the gradients of the norm itself. Passes after the first have dw_dot of their tangents only.
template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1)
    jvp_backward(ofa_norm_jvp_backward c, bool gathers, Acc<T>* dw_partials, Acc<T>* dw_dot_partials) {
    constexpr int V = TANGENT_VECTORS<T>, L = LANES<T>;
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns);
    const bool all = blockIdx.y == 0;
    const int tangents = static_cast<int>(c.tangents), of_pass = tangents_of_pass(tangents, gridDim.y);
    const int begin = static_cast<int>(blockIdx.y) * of_pass;
    const int own_end = begin + of_pass < tangents ? begin + of_pass : tangents;  // of those with a dw_dot
    const int end = all ? tangents : own_end;
    const Team team(gathers);
    const Columns<T, V> columns(team.rank(), c.columns);
    char* memory = shared_memory();
    TeamSum<3> team_sum(team, memory);
    memory += TeamSum<3>::bytes();
    Ring<T, V> ring(memory, 2);
    SharedSums<T, V> dw_dot(memory + blockDim.x * Ring<T, V>::bytes(2),
                             c.dw_dot ? own_end - begin : 0);
    const T* x_dot = all ? static_cast<const T*>(c.x_dot) : nullptr;

    Items ahead(team, begin, end);
    const auto fetch = [&] {
        const int64_t row = ahead.row(), k = ahead.tangent();
        if (row < c.rows) {
            if (ahead.is_primal()) {
                ring.fetch(0, static_cast<const T*>(c.x) + row * c.x_stride, columns);
            } else {
                ring.fetch(0, static_cast<const T*>(c.dy) + k * c.dy_k + row * c.dy_stride, columns);
                if (x_dot) ring.fetch(1, x_dot + k * c.x_dot_k + row * c.x_dot_stride, columns);
            }
        }
        ring.end_item();
        ahead.advance();
    };
    for (int i = 0; i < STAGES - 1; ++i) fetch();
    A w[V][L], dw[V][L] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) read_weight(c.weight, c.weight_dtype, 0, columns(v), n, c.offset, w[v]);

    for (int64_t row = team.first_row(); row < c.rows; row += team.count()) {
        fetch();
        ring.wait();
        A x_hat[V][L], dx[V][L] = {};
        SumOfSquares<T> squares;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            ring.read(0, v, x_hat[v]);
            squares.add(x_hat[v]);
        }
        double totals[3] = {squares.value(), 0, 0};
        team_sum(totals);
        const A r = rstd_of(totals[0], x_hat, n, c.eps, team_sum);
#pragma unroll
        for (int v = 0; v < V; ++v)
#pragma unroll
            for (int j = 0; j < L; ++j) x_hat[v][j] *= r;
        ring.advance();
        for (int k = begin; k < end; ++k, ring.advance()) {
            fetch();
            ring.wait();
            A up[V][L], change[V][L] = {};
            A gx = 0, along = 0, terms = 0;  // sums of g x_hat, of x_hat d, and of w' dy x_hat + g d
#pragma unroll
            for (int v = 0; v < V; ++v) {
                A d[L] = {};
                ring.read(0, v, up[v]);
                if (!all) continue;
                if (c.weight_dot) read_weight(c.weight_dot, c.weight_dtype, k, columns(v), n, 0, change[v]);
                if (x_dot) ring.read(1, v, d);
#pragma unroll
                for (int j = 0; j < L; ++j) {
                    d[j] *= r;
                    const A g = w[v][j] * up[v][j];
                    gx += g * x_hat[v][j];
                    along += x_hat[v][j] * d[j];
                    terms += change[v][j] * up[v][j] * x_hat[v][j] + g * d[j];
                }
            }
            if (all) {
                totals[0] = gx;
                totals[1] = along;
                totals[2] = terms;
                team_sum(totals);
                const double mean = totals[0] / n, wide_m = totals[1] / n, mean_dot = totals[2] / n - wide_m * mean;
                const A m = static_cast<A>(wide_m), of_d = static_cast<A>(mean);
                const A of_x_hat = static_cast<A>(2 * wide_m * mean - mean_dot);
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    A d[L] = {}, dx_dot[L];
                    if (x_dot) ring.read(1, v, d);
#pragma unroll
                    for (int j = 0; j < L; ++j) {
                        d[j] *= r;
                        const A g = w[v][j] * up[v][j];
                        dx[v][j] += r * (change[v][j] * up[v][j] - of_d * d[j] - m * g + of_x_hat * x_hat[v][j]);
                        dx_dot[j] = r * (g - x_hat[v][j] * of_d);
                        dw[v][j] += up[v][j] * (d[j] - x_hat[v][j] * m);
                    }
                    write(static_cast<T*>(c.dx_dot) + (k * c.rows + row) * n, columns(v), n, dx_dot);
                }
            }
            if (c.dw_dot && k < own_end) {
#pragma unroll
                for (int v = 0; v < V; ++v) {
                    A dw_row[L];
#pragma unroll
                    for (int j = 0; j < L; ++j) dw_row[j] = up[v][j] * x_hat[v][j];
                    dw_dot.add(k - begin, v, dw_row);
                }
            }
        }
        if (all)
#pragma unroll
            for (int v = 0; v < V; ++v) write(static_cast<T*>(c.dx) + row * n, columns(v), n, dx[v]);
    }
    if (c.dw && all) leave_sums<T, V>(team, dw, columns, memory, {dw_partials, c.dw, c.weight_dtype});
    if (c.dw_dot)
        dw_dot.leave(team, begin, tangents, columns, {dw_dot_partials, c.dw_dot, c.weight_dtype});
}

template <class T>
struct NormJvp {
    static Plan plan(const Device& device, const ofa_norm_jvp& c) {
        return plan_tangents<T, TANGENT_VECTORS<T>, 1>(device, c.rows, c.columns, c.tangents, 1, false, false);
    }
    static int64_t workspace(const Plan&, const ofa_norm_jvp&) { return 0; }
    static int run(const Device&, const Plan& plan, const ofa_norm_jvp& c, const ofa_cuda_launch& where) {
        return launch(jvp<T>, plan, where, c);
    }
};

template <class T>
struct NormBackwardTangent {
    static Plan plan(const Device& device, const ofa_norm_backward_tangent& c) {
        return plan_tangents<T, TANGENT_VECTORS<T>, 2>(device, c.rows, c.columns, c.tangents, 2, c.dw_dot, c.dw_dot);
    }
    static int64_t workspace(const Plan& plan, const ofa_norm_backward_tangent& c) {
        return c.dw_dot ? plan.partials() * c.tangents * c.columns * sizeof(Acc<T>) : 0;
    }
    static int run(const Device& device, const Plan& plan, const ofa_norm_backward_tangent& c,
                   const ofa_cuda_launch& where) {
        Acc<T>* partials = workspace(plan, c) ? static_cast<Acc<T>*>(where.workspace) : nullptr;
        if (int error = launch(backward_tangent<T>, plan, where, c, plan.gathers, partials)) return error;
        if (!partials) return OFA_OK;
        return finish_sums(device, partials, c.dw_dot, c.weight_dtype, plan.partials(), c.tangents * c.columns, where);
    }
};

template <class T>
struct NormJvpBackward {
    static Plan plan(const Device& device, const ofa_norm_jvp_backward& c) {
        const bool any_sums = c.dw || c.dw_dot;
        return plan_tangents<T, TANGENT_VECTORS<T>, 3>(device, c.rows, c.columns, c.tangents, 2, c.dw_dot, any_sums);
    }
    static int64_t workspace(const Plan& plan, const ofa_norm_jvp_backward& c) {
        const int64_t sums = (c.dw ? 1 : 0) + (c.dw_dot ? c.tangents : 0);
        return plan.partials() * sums * c.columns * sizeof(Acc<T>);
    }
    static int run(const Device& device, const Plan& plan, const ofa_norm_jvp_backward& c,
                   const ofa_cuda_launch& where) {
        const bool several = workspace(plan, c) > 0;
        Acc<T>* dw = several && c.dw ? static_cast<Acc<T>*>(where.workspace) : nullptr;
        Acc<T>* dw_dot = several && c.dw_dot ? static_cast<Acc<T>*>(where.workspace) : nullptr;
        if (dw && dw_dot) dw_dot += plan.partials() * c.columns;
        int error = launch(jvp_backward<T>, plan, where, c, plan.gathers, dw, dw_dot);
        if (!error && dw) error = finish_sums(device, dw, c.dw, c.weight_dtype, plan.partials(), c.columns, where);
        if (!error && dw_dot)
            error = finish_sums(device, dw_dot, c.dw_dot, c.weight_dtype, plan.partials(), c.tangents * c.columns, where);
        return error;
    }
};

OFA_CUDA_ENTRY(norm_jvp, NormJvp)
OFA_CUDA_ENTRY(norm_backward_tangent, NormBackwardTangent)
OFA_CUDA_ENTRY(norm_jvp_backward, NormJvpBackward)

}  // namespace ofa

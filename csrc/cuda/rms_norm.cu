// RMSNorm, first order. Notation: r = (mean(x^2) + eps)^(-1/2), x_hat = r x, w the weight plus offset, g = w dy,
// c = mean(g x_hat).
#include "entry.cuh"
#include "row_sums.cuh"
#include "rstd.cuh"

namespace ofa {

template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) forward(ofa_norm_forward c) {
    constexpr int V = FULL_VECTORS<T>, L = LANES<T>;
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns), operands = c.residual ? 2 : 1;
    const Team team;
    const Columns<T, V> columns(team.rank(), c.columns);
    TeamSum<1> team_sum(team, shared_memory());
    Ring<T, V> ring(shared_memory() + TeamSum<1>::bytes(), operands);
    const T* x = static_cast<const T*>(c.x);
    const T* residual = static_cast<const T*>(c.residual);

    const auto fetch = [&](int64_t row) {
        if (row < c.rows) {
            ring.fetch(0, x + row * c.x_stride, columns);
            if (residual) ring.fetch(1, residual + row * c.residual_stride, columns);
        }
        ring.end_item();
    };
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) fetch(team.first_row() + ahead * team.count());
    A w[V][L];
#pragma unroll
    for (int v = 0; v < V; ++v) read_weight(c.weight, c.weight_dtype, 0, columns(v), n, c.offset, w[v]);

    for (int64_t row = team.first_row(); row < c.rows; row += team.count(), ring.advance()) {
        fetch(row + (STAGES - 1) * team.count());
        ring.wait();
        A values[V][L];
        SumOfSquares<T> squares;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            ring.read(0, v, values[v]);
            if (residual) {
                A more[L];
                ring.read(1, v, more);
#pragma unroll
                for (int j = 0; j < L; ++j) values[v][j] = rounded<T>(values[v][j] + more[j]);
                write(static_cast<T*>(c.s) + row * n, columns(v), n, values[v]);
            }
            squares.add(values[v]);
        }
        double total[1] = {squares.value()};
        team_sum(total);
        const A r = rstd_of(total[0], values, n, c.eps, team_sum);
#pragma unroll
        for (int v = 0; v < V; ++v) {
#pragma unroll
            for (int j = 0; j < L; ++j) {
                A x_hat = values[v][j] * r;
                if (c.round_x_hat) x_hat = rounded<T>(x_hat);
                values[v][j] = w[v][j] * x_hat;
            }
            write(static_cast<T*>(c.y) + row * n, columns(v), n, values[v]);
        }
        if (c.rstd && team.rank() == 0 && threadIdx.x == 0) static_cast<A*>(c.rstd)[row] = r;
    }
}

template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) backward(ofa_norm_backward c, bool gathers, Acc<T>* partials) {
    constexpr int V = SUM_VECTORS<T>, L = LANES<T>;
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns), operands = c.ds ? 3 : 2;
    const Team team(gathers);
    const Columns<T, V> columns(team.rank(), c.columns);
    TeamSum<2> team_sum(team, shared_memory());
    char* memory = shared_memory() + TeamSum<2>::bytes();
    Ring<T, V> ring(memory, operands);
    const T* x = static_cast<const T*>(c.x);
    const T* dy = static_cast<const T*>(c.dy);
    const T* ds = static_cast<const T*>(c.ds);

    const auto fetch = [&](int64_t row) {
        if (row < c.rows) {
            ring.fetch(0, x + row * c.x_stride, columns);
            ring.fetch(1, dy + row * c.dy_stride, columns);
            if (ds) ring.fetch(2, ds + row * c.ds_stride, columns);
        }
        ring.end_item();
    };
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) fetch(team.first_row() + ahead * team.count());
    A w[V][L], dw[V][L] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) read_weight(c.weight, c.weight_dtype, 0, columns(v), n, c.offset, w[v]);

    for (int64_t row = team.first_row(); row < c.rows; row += team.count(), ring.advance()) {
        fetch(row + (STAGES - 1) * team.count());
        ring.wait();
        A values[V][L], up[V][L];
        SumOfSquares<T> squares;
        A gx = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            ring.read(0, v, values[v]);
            ring.read(1, v, up[v]);
            if (!c.rstd) squares.add(values[v]);
#pragma unroll
            for (int j = 0; j < L; ++j) gx += w[v][j] * up[v][j] * values[v][j];
        }
        double total[2] = {squares.value(), gx};
        team_sum(total);
        const A r = c.rstd ? static_cast<const A*>(c.rstd)[row] : rstd_of(total[0], values, n, c.eps, team_sum);
        const A mean = static_cast<A>(r * total[1] / n);  // c
#pragma unroll
        for (int v = 0; v < V; ++v) {
            A dx[L], more[L] = {};
            if (ds) ring.read(2, v, more);
#pragma unroll
            for (int j = 0; j < L; ++j) {
                const A x_hat = values[v][j] * r;
                dx[j] = r * (w[v][j] * up[v][j] - x_hat * mean) + more[j];
                dw[v][j] += up[v][j] * x_hat;
            }
            if (c.dx) write(static_cast<T*>(c.dx) + row * n, columns(v), n, dx);
        }
    }
    if (c.dw) leave_sums<T, V>(team, dw, columns, memory, {partials, c.dw, c.weight_dtype});
}

template <class T>
struct NormForward {
    static Plan plan(const Device& device, const ofa_norm_forward& c) {
        constexpr int V = FULL_VECTORS<T>;
        const std::size_t of_thread = Ring<T, V>::bytes(c.residual ? 2 : 1);
        Plan plan = plan_row<T>(device, c.columns, V, TeamSum<1>::bytes(), of_thread);
        if (!plan.possible()) return plan;
        plan_teams(device, plan, c.rows);
        return plan;
    }
    static int64_t workspace(const Plan&, const ofa_norm_forward&) { return 0; }
    static int run(const Device&, const Plan& plan, const ofa_norm_forward& c, const ofa_cuda_launch& where) {
        return launch(forward<T>, plan, where, c);
    }
};

template <class T>
struct NormBackward {
    static Plan plan(const Device& device, const ofa_norm_backward& c) {
        constexpr int V = SUM_VECTORS<T>;
        Plan plan = plan_row<T>(device, c.columns, V, TeamSum<2>::bytes(), Ring<T, V>::bytes(c.ds ? 3 : 2));
        if (!plan.possible()) return plan;
        if (c.dw)
            plan_teams_with_sums(device, plan, c.rows, 1);
        else
            plan_teams(device, plan, c.rows);
        return plan;
    }
    static int64_t workspace(const Plan& plan, const ofa_norm_backward& c) {
        return c.dw ? plan.partials() * c.columns * sizeof(Acc<T>) : 0;
    }
    static int run(const Device& device, const Plan& plan, const ofa_norm_backward& c, const ofa_cuda_launch& where) {
        Acc<T>* partials = workspace(plan, c) ? static_cast<Acc<T>*>(where.workspace) : nullptr;
        if (int error = launch(backward<T>, plan, where, c, plan.gathers, partials)) return error;
        return partials ? finish_sums(device, partials, c.dw, c.weight_dtype, plan.partials(), c.columns, where) : OFA_OK;
    }
};

OFA_CUDA_ENTRY(norm_forward, NormForward)
OFA_CUDA_ENTRY(norm_backward, NormBackward)

}  // namespace ofa

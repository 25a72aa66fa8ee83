// The lengths of the steps between successive states, which the step ratio divides, and their gradient.
#include "entry.cuh"
#include "rstd.cuh"

namespace ofa {

// 8 values of each of three states a thread
template <class T>
constexpr int STATES_VECTORS = sizeof(T) == 8 ? 2 : sizeof(T) / 2;

// The sum of a step's squares over this thread's columns, added up by `sum`.
template <class T, class Sum>
__device__ __forceinline__ double squared_step(const T* before, const T* after, int n, Sum sum) {
    constexpr int V = FULL_VECTORS<T>, L = LANES<T>;
    for (int begin = 0; begin < n; begin += static_cast<int>(blockDim.x) * V * L) {
        const Columns<T, V> columns(0, n, begin);
        uint4 from[V], to[V];
#pragma unroll
        for (int v = 0; v < V; ++v) {
            from[v] = vector_at(before, columns(v), n);
            to[v] = vector_at(after, columns(v), n);
        }
#pragma unroll
        for (int v = 0; v < V; ++v) {
            Acc<T> a[L], b[L];
            unpack<T>(from[v], a);
            unpack<T>(to[v], b);
#pragma unroll
            for (int j = 0; j < L; ++j) sum.add(b[j] - a[j]);
        }
    }
    return sum.value();
}

template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) lengths(ofa_step_lengths c) {
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns);
    TeamSum<1> team_sum(Team(), shared_memory());
    for (int64_t item = blockIdx.x; item < c.steps * c.examples; item += gridDim.x) {
        const T* before = static_cast<const T*>(c.states) + item / c.examples * c.states_t +
                          item % c.examples * c.states_b;
        const T* after = before + c.states_t;
        double total[1] = {squared_step(before, after, n, SumOfSquares<A>())};
        team_sum(total);
        if (std::is_same_v<A, float> && !squares_fit(total[0], n)) {
            total[0] = squared_step(before, after, n, SumOfSquares<double>());
            team_sum(total);
        }
        if (threadIdx.x == 0) static_cast<A*>(c.lengths)[item] = static_cast<A>(sqrt(total[0]));
    }
}

// What a step is multiplied with, dlength / length, as two factors: for the longest steps that float32 holds, one alone
// would be too small to have all its digits.
template <class A>
struct Pull {
    A unit = 1, factor = 0;

    __device__ A operator()(A step) const { return step * unit * factor; }
};

// dZ_t = a_t (Z_t - Z_{t-1}) - a_{t+1} (Z_{t+1} - Z_t) with a = dlength / length. An item is a part of one state, which
// is read again for its neighbours: few items run at once, where a walk along the states would wait for each.
template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) backward(ofa_step_lengths_backward c) {
    constexpr int V = STATES_VECTORS<T>, L = LANES<T>;
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns), part = static_cast<int>(blockDim.x) * V * L;
    const int64_t parts = (n + part - 1) / part;
    const auto pull_of = [&](int64_t t, int64_t b) {
        Pull<A> pull;
        if (t < 0 || t >= c.steps) return pull;
        const A length = static_cast<const A*>(c.lengths)[t * c.examples + b];
        if (length > A(0x1p64)) pull.unit = A(0x1p-64);
        if (length > 0) pull.factor = static_cast<const A*>(c.dlengths)[t * c.examples + b] / (length * pull.unit);
        return pull;
    };
    for (int64_t item = blockIdx.x; item < (c.steps + 1) * c.examples * parts; item += gridDim.x) {
        const int64_t row = item / parts, t = row / c.examples, b = row % c.examples;
        const Columns<T, V> columns(0, n, static_cast<int>(item % parts) * part);
        const T* here = static_cast<const T*>(c.states) + t * c.states_t + b * c.states_b;
        const T* before = t > 0 ? here - c.states_t : here;
        const T* after = t < c.steps ? here + c.states_t : here;
        uint4 vectors[3][V];
#pragma unroll
        for (int v = 0; v < V; ++v) {
            vectors[0][v] = vector_at(before, columns(v), n);
            vectors[1][v] = vector_at(here, columns(v), n);
            vectors[2][v] = vector_at(after, columns(v), n);
        }
        const Pull<A> arriving = pull_of(t - 1, b), leaving = pull_of(t, b);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            A states[3][L], out[L];
#pragma unroll
            for (int s = 0; s < 3; ++s) unpack<T>(vectors[s][v], states[s]);
#pragma unroll
            for (int j = 0; j < L; ++j)
                out[j] = arriving(states[1][j] - states[0][j]) - leaving(states[2][j] - states[1][j]);
            write(static_cast<T*>(c.dstates) + row * n, columns(v), n, out);
        }
    }
}

template <class T>
struct StepLengths {
    static Plan plan(const Device& device, const ofa_step_lengths& c) {
        Plan plan = plan_parts<T>(device, c.columns, FULL_VECTORS<T>, TeamSum<1>::bytes(), 0);
        if (!plan.possible()) return plan;
        plan_items(plan, c.steps * c.examples);
        return plan;
    }
    static int64_t workspace(const Plan&, const ofa_step_lengths&) { return 0; }
    static int run(const Device&, const Plan& plan, const ofa_step_lengths& c, const ofa_cuda_launch& where) {
        return launch(lengths<T>, plan, where, c);
    }
};

template <class T>
struct StepLengthsBackward {
    static Plan plan(const Device& device, const ofa_step_lengths_backward& c) {
        Plan plan = plan_parts<T>(device, c.columns, STATES_VECTORS<T>, 0, 0);
        if (!plan.possible()) return plan;
        const int64_t part = int64_t(plan.threads) * STATES_VECTORS<T> * LANES<T>;
        plan_items(plan, (c.steps + 1) * c.examples * ((c.columns + part - 1) / part));
        return plan;
    }
    static int64_t workspace(const Plan&, const ofa_step_lengths_backward&) { return 0; }
    static int run(const Device&, const Plan& plan, const ofa_step_lengths_backward& c, const ofa_cuda_launch& where) {
        return launch(backward<T>, plan, where, c);
    }
};

OFA_CUDA_ENTRY(step_lengths, StepLengths)
OFA_CUDA_ENTRY(step_lengths_backward, StepLengthsBackward)

}  // namespace ofa

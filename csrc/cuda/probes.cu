// Rademacher probes and their products, the signs made again wherever they are read. Notation: r, z_hat and w as in
// rms_norm.cu, of z; nu_k the signs of probe k; q = sum over k of nu_k dp_k.
#include "entry.cuh"
#include "row_sums.cuh"
#include "rstd.cuh"
#include "signs.cuh"

namespace ofa {

// Where nothing but the signs is read, as many vectors as a warp can make signs for at once; rows so short that a block
// would not have SHORT_VECTORS a thread get fewer threads.
template <class T>
constexpr int SIGNS_VECTORS = sizeof(T) == 2 ? WARP / 2 : WARP;
constexpr int SHORT_VECTORS = 4;

// out[row] = a factor times signs, for `rows` rows of n columns; of_row(row, factor) says whose, and sets the factor.
template <class T, class OfRow>
__device__ __forceinline__ void write_signs(T* out, int64_t rows, int n, Key key, OfRow of_row) {
    constexpr int V = SIGNS_VECTORS<T>, L = LANES<T>;
    const int part = static_cast<int>(blockDim.x) * V * L;
    const int64_t parts = (n + part - 1) / part;
    for (int64_t item = blockIdx.x; item < rows * parts; item += gridDim.x) {
        const int64_t row = item / parts;
        const Columns<T, V> columns(0, n, static_cast<int>(item % parts) * part);
        Signs<T, V> signs(shared_memory(), key, columns);
        Acc<T> factor = 1;
        signs.make(of_row(row, factor));
#pragma unroll 4
        for (int v = 0; v < V; ++v) {
            if (!columns.count(v)) break;
            const uint32_t bits = signs(0, v);
            Acc<T> values[L];
#pragma unroll
            for (int j = 0; j < L; ++j) values[j] = flipped(factor, bits, j);
            write(out + row * n, columns(v), n, values);
        }
    }
}

template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) rademacher(ofa_rademacher c, const int64_t* seed_pointer) {
    write_signs(static_cast<T*>(c.signs), c.layers * c.probes * c.examples, static_cast<int>(c.columns),
                key_of(c.seed, seed_pointer), [&](int64_t row, Acc<T>&) {
                    const int64_t of_probe = row / c.examples;
                    return Probe{c.layer_ids[of_probe / c.probes], of_probe % c.probes,
                                 c.example_ids[row % c.examples]};
                });
}

template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) scale(ofa_probe_scale c, const int64_t* seed_pointer) {
    write_signs(static_cast<T*>(c.out), c.probes * c.rows, static_cast<int>(c.columns), key_of(c.seed, seed_pointer),
                [&](int64_t row, Acc<T>& factor) {
                    factor = static_cast<const Acc<T>*>(c.scale)[row];
                    return Probe{c.layer, row / c.rows, c.example_ids[row % c.rows]};
                });
}

template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) dot(ofa_probe_dot c, const int64_t* seed_pointer) {
    constexpr int V = FULL_VECTORS<T>, L = LANES<T>;
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns), part = static_cast<int>(blockDim.x) * V * L;
    const Key key = key_of(c.seed, seed_pointer);
    TeamSum<1> team_sum(Team(), shared_memory());
    for (int64_t item = blockIdx.x; item < c.probes * c.rows; item += gridDim.x) {
        const int64_t k = item / c.rows, row = item % c.rows;
        const T* t = static_cast<const T*>(c.t) + k * c.t_k + row * c.t_stride;
        double total[1] = {};
        for (int begin = 0; begin < n; begin += part) {
            const Columns<T, V> columns(0, n, begin);
            uint4 vectors[V];
#pragma unroll
            for (int v = 0; v < V; ++v) vectors[v] = vector_at(t, columns(v), n);
            Signs<T, V> signs(shared_memory() + TeamSum<1>::bytes(), key, columns);
            signs.make({c.layer, k, c.example_ids[row]});
            A sum = 0;
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const uint32_t bits = signs(0, v);
                A values[L];
                unpack<T>(vectors[v], values);
#pragma unroll
                for (int j = 0; j < L; ++j) sum += flipped(values[j], bits, j);
            }
            total[0] += sum;
        }
        team_sum(total);
        if (threadIdx.x == 0) static_cast<A*>(c.dots)[item] = static_cast<A>(total[0]);
    }
}

// out_k = w r nu_k; the passes share the probes.
template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1) probes(ofa_preconditioned_probes c, const int64_t* seed_pointer) {
    constexpr int V = FULL_VECTORS<T>, L = LANES<T>;
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns);
    const Team team;
    const Columns<T, V> columns(team.rank(), c.columns);
    char* memory = shared_memory();
    TeamSum<1> team_sum(team, memory);
    memory += TeamSum<1>::bytes();
    Signs<T, V> signs(memory, key_of(c.seed, seed_pointer), columns);
    Ring<T, V> ring(memory + blockDim.x * Signs<T, V>::bytes(), 1);
    const int64_t share = (c.probes + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * share;
    const int64_t end = begin + share < c.probes ? begin + share : c.probes;

    const auto fetch = [&](int64_t row) {
        if (row < c.rows) ring.fetch(0, static_cast<const T*>(c.z) + row * c.z_stride, columns);
        ring.end_item();
    };
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) fetch(team.first_row() + ahead * team.count());
    A w[V][L];
#pragma unroll
    for (int v = 0; v < V; ++v) read_weight(c.weight, c.weight_dtype, 0, columns(v), n, c.offset, w[v]);

    for (int64_t row = team.first_row(); row < c.rows; row += team.count(), ring.advance()) {
        fetch(row + (STAGES - 1) * team.count());
        signs.make({c.layer, begin, c.example_ids[row]});  // while the row is on its way
        ring.wait();
        A values[V][L];
        SumOfSquares<T> squares;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            ring.read(0, v, values[v]);
            squares.add(values[v]);
        }
        double total[1] = {squares.value()};
        team_sum(total);
        const A r = rstd_of(total[0], values, n, c.eps, team_sum);
        for (int64_t k = begin; k < end; ++k) {
            const int place = static_cast<int>(k - begin) % Signs<T, V>::PROBES;
            if (place == 0 && k > begin) signs.make({c.layer, k, c.example_ids[row]});
            T* out = static_cast<T*>(c.out) + (k * c.rows + row) * n;
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const uint32_t bits = signs(place, v);
                A p[L];
#pragma unroll
                for (int j = 0; j < L; ++j) p[j] = flipped(w[v][j] * r, bits, j);
                write(out, columns(v), n, p);
            }
        }
    }
}

// dz = -r^2 z_hat mean(w q), dw = sum over rows of r q. A row's items are dp of each probe, and last z.
template <class T>
__global__ void __launch_bounds__(MAX_THREADS, 1)
    backward(ofa_preconditioned_probes_backward c, bool gathers, Acc<T>* partials, const int64_t* seed_pointer) {
    constexpr int V = SUM_VECTORS<T>, L = LANES<T>;
    using A = Acc<T>;
    const int n = static_cast<int>(c.columns);
    const Team team(gathers);
    const Columns<T, V> columns(team.rank(), c.columns);
    char* memory = shared_memory();
    TeamSum<2> team_sum(team, memory);
    memory += TeamSum<2>::bytes();
    Signs<T, V> signs(memory, key_of(c.seed, seed_pointer), columns);
    memory += blockDim.x * Signs<T, V>::bytes();
    Ring<T, V> ring(memory, 1);

    int64_t next_row = team.first_row();
    int next_k = 0;
    const auto fetch_next = [&] {
        if (next_row < c.rows)
            ring.fetch(0,
                       next_k < c.probes ? static_cast<const T*>(c.dp) + next_k * c.dp_k + next_row * c.dp_stride
                                         : static_cast<const T*>(c.z) + next_row * c.z_stride,
                       columns);
        ring.end_item();
        if (next_k++ == c.probes) {
            next_k = 0;
            next_row += team.count();
        }
    };
    for (int ahead = 0; ahead < STAGES - 1; ++ahead) fetch_next();
    A w[V][L], dw[V][L] = {};
#pragma unroll
    for (int v = 0; v < V; ++v) read_weight(c.weight, c.weight_dtype, 0, columns(v), n, c.offset, w[v]);

    for (int64_t row = team.first_row(); row < c.rows; row += team.count(), ring.advance()) {
        A q[V][L] = {};
        for (int k = 0; k < c.probes; ++k, ring.advance()) {
            fetch_next();
            const int place = k % Signs<T, V>::PROBES;
            if (place == 0) signs.make({c.layer, k, c.example_ids[row]});
            ring.wait();
#pragma unroll
            for (int v = 0; v < V; ++v) {
                const uint32_t bits = signs(place, v);
                A up[L];
                ring.read(0, v, up);
#pragma unroll
                for (int j = 0; j < L; ++j) q[v][j] += flipped(up[j], bits, j);
            }
        }
        fetch_next();
        ring.wait();
        SumOfSquares<T> squares;
        A wq = 0;
#pragma unroll
        for (int v = 0; v < V; ++v) {
            A values[L];
            ring.read(0, v, values);
            squares.add(values);
#pragma unroll
            for (int j = 0; j < L; ++j) wq += w[v][j] * q[v][j];
        }
        double total[2] = {squares.value(), wq};
        team_sum(total);
        // the row is read from the ring each time: beside w, q and dw there are no registers left to keep it in
        const A r = rstd_of<A>(total[0], n, c.eps, team_sum, [&] {
            double sum = 0;
#pragma unroll 1
            for (int v = 0; v < V; ++v) {
                A values[L];
                ring.read(0, v, values);
                sum += squares_of(values);
            }
            return sum;
        });
        const A mean = static_cast<A>(r * total[1] / n);
#pragma unroll
        for (int v = 0; v < V; ++v) {
            A dz[L];
            ring.read(0, v, dz);
#pragma unroll
            for (int j = 0; j < L; ++j) {
                dz[j] = dz[j] * r * (-r * mean);
                dw[v][j] += q[v][j] * r;
            }
            write(static_cast<T*>(c.dz) + row * n, columns(v), n, dz);
        }
    }
    leave_sums<T, V>(team, dw, columns, memory, {partials, c.dw, c.weight_dtype});
}

template <class T>
inline Plan plan_signs(const Device& device, int64_t rows, int64_t columns) {
    Plan plan = plan_parts<T>(device, columns, SHORT_VECTORS, 0, Signs<T, SIGNS_VECTORS<T>>::bytes());
    if (!plan.possible()) return plan;
    const int64_t part = int64_t(plan.threads) * SIGNS_VECTORS<T> * LANES<T>;
    plan_items(plan, rows * ((columns + part - 1) / part));
    return plan;
}

template <class T>
struct Rademacher {
    static Plan plan(const Device& device, const ofa_rademacher& c) {
        return plan_signs<T>(device, c.layers * c.probes * c.examples, c.columns);
    }
    static int64_t workspace(const Plan&, const ofa_rademacher&) { return 0; }
    static int run(const Device&, const Plan& plan, const ofa_rademacher& c, const ofa_cuda_launch& where) {
        return launch(rademacher<T>, plan, where, c, where.seed_pointer);
    }
};

template <class T>
struct ProbeScale {
    static Plan plan(const Device& device, const ofa_probe_scale& c) {
        return plan_signs<T>(device, c.probes * c.rows, c.columns);
    }
    static int64_t workspace(const Plan&, const ofa_probe_scale&) { return 0; }
    static int run(const Device&, const Plan& plan, const ofa_probe_scale& c, const ofa_cuda_launch& where) {
        return launch(scale<T>, plan, where, c, where.seed_pointer);
    }
};

template <class T>
struct ProbeDot {
    static Plan plan(const Device& device, const ofa_probe_dot& c) {
        constexpr int V = FULL_VECTORS<T>;
        Plan plan = plan_parts<T>(device, c.columns, V, TeamSum<1>::bytes(), Signs<T, V>::bytes());
        if (!plan.possible()) return plan;
        plan_items(plan, c.probes * c.rows);
        return plan;
    }
    static int64_t workspace(const Plan&, const ofa_probe_dot&) { return 0; }
    static int run(const Device&, const Plan& plan, const ofa_probe_dot& c, const ofa_cuda_launch& where) {
        return launch(dot<T>, plan, where, c, where.seed_pointer);
    }
};

template <class T>
struct PreconditionedProbes {
    static Plan plan(const Device& device, const ofa_preconditioned_probes& c) {
        constexpr int V = FULL_VECTORS<T>;
        const std::size_t of_thread = Signs<T, V>::bytes() + Ring<T, V>::bytes(1);
        Plan plan = plan_row<T>(device, c.columns, V, TeamSum<1>::bytes(), of_thread);
        if (!plan.possible()) return plan;
        // few rows leave room for several teams on each, with some of the probes
        const int64_t room = device.multiprocessors / std::max<int64_t>(1, c.rows * plan.cluster);
        plan.passes = static_cast<unsigned>(std::max<int64_t>(1, std::min(room, c.probes)));
        plan_teams(device, plan, c.rows);
        return plan;
    }
    static int64_t workspace(const Plan&, const ofa_preconditioned_probes&) { return 0; }
    static int run(const Device&, const Plan& plan, const ofa_preconditioned_probes& c, const ofa_cuda_launch& where) {
        return launch(probes<T>, plan, where, c, where.seed_pointer);
    }
};

template <class T>
struct PreconditionedProbesBackward {
    static Plan plan(const Device& device, const ofa_preconditioned_probes_backward& c) {
        constexpr int V = SUM_VECTORS<T>;
        const std::size_t of_thread = Signs<T, V>::bytes() + Ring<T, V>::bytes(1);
        Plan plan = plan_row<T>(device, c.columns, V, TeamSum<2>::bytes(), of_thread);
        if (!plan.possible()) return plan;
        plan_teams_with_sums(device, plan, c.rows, 1 + c.probes);
        return plan;
    }
    static int64_t workspace(const Plan& plan, const ofa_preconditioned_probes_backward& c) {
        return plan.partials() * c.columns * sizeof(Acc<T>);
    }
    static int run(const Device& device, const Plan& plan, const ofa_preconditioned_probes_backward& c,
                   const ofa_cuda_launch& where) {
        Acc<T>* partials = workspace(plan, c) ? static_cast<Acc<T>*>(where.workspace) : nullptr;
        if (int error = launch(backward<T>, plan, where, c, plan.gathers, partials, where.seed_pointer)) return error;
        return partials ? finish_sums(device, partials, c.dw, c.weight_dtype, plan.partials(), c.columns, where) : OFA_OK;
    }
};

OFA_CUDA_ENTRY(rademacher, Rademacher)
OFA_CUDA_ENTRY(preconditioned_probes, PreconditionedProbes)
OFA_CUDA_ENTRY(preconditioned_probes_backward, PreconditionedProbesBackward)
OFA_CUDA_ENTRY(probe_dot, ProbeDot)
OFA_CUDA_ENTRY(probe_scale, ProbeScale)

}  // namespace ofa

"""Bugs to plant into the kernels' sources, each with the check that must notice it."""

from collections.abc import Callable
from dataclasses import dataclass

from tests.ofa_kernels.cuda_emulated.cases import BF16, DEVICES, F32, LITTLE, Case
from tests.ofa_kernels.cuda_emulated.checks import check
from tests.ofa_kernels.cuda_emulated.driver import Device
from tests.ofa_kernels.cuda_emulated.edges import check_root, check_rounding

WIDE, CLUSTER = DEVICES[0], DEVICES[3]
NORM, TANGENT, PROBES, STEPS = "rms_norm.cu", "rms_norm_tangent.cu", "probes.cu", "step_lengths.cu"


@dataclass(frozen=True)
class Bug:
    """A change of one place in one file."""

    name: str
    file: str  # of csrc/cuda
    old: str  # which is there once
    new: str
    check: Callable
    kernel: str = NORM  # of the library that the check needs


def case(operator, **fields):
    """The check of one case under many orders of threads."""
    return lambda library: check(library, Case(operator, **fields), seeds=range(1, 9))


# a block of several warps; several rows for a team, whose rings and parities turn; a cluster
several_warps = case("norm_forward", rows=9, columns=4096, device=Device(512, multiprocessors=1))
many_rows = case("norm_backward", rows=40, columns=250, device=Device(64, multiprocessors=1))
in_a_cluster = case("norm_backward", rows=40, columns=2000, device=CLUSTER)
odd_columns = case("norm_backward", rows=5, columns=131, layout="wider")
dots = case("probe_dot", rows=5, columns=2500, tangents=3)
preconditioned = case("preconditioned_probes", rows=5, columns=1000, tangents=3)
signs = case("rademacher", rows=5, columns=1000, tangents=3)
steps = case("step_lengths_backward", rows=5, columns=131, tangents=3)
several_teams = case("norm_backward", rows=40, columns=131, device=WIDE)
gathered = case("norm_backward", rows=8, columns=131, device=CLUSTER)
in_passes = case("norm_backward_tangent", rows=9, columns=500, tangents=10, device=LITTLE)
gradients_in_passes = case("norm_jvp_backward", rows=9, columns=500, tangents=10, device=LITTLE)

BUGS = [
    # --- threads that don't wait for each other ---
    Bug(
        "no barrier between a block's sums and their reading",
        "team.cuh",
        "        __syncthreads();\n",
        "",
        several_warps,
    ),
    Bug(
        "the halves of a sum's memory don't take turns",
        "team.cuh",
        "        half_ ^= 1;\n",
        "",
        several_warps,
    ),
    Bug(
        "a team's blocks are sent to before they have begun",
        "team.cuh",
        "        cluster_sync();  // a block may be sent to",
        "        // a block may be sent to",
        in_a_cluster,
    ),
    Bug(
        "no wait between a cluster's sums and their reading",
        "team.cuh",
        "            wait_for_delivery(delivery, phase_);\n",
        "",
        in_a_cluster,
    ),
    Bug(
        "the second phase of a delivery is not waited for",
        "team.cuh",
        "        phase_ ^= half_;\n",
        "",
        in_a_cluster,
    ),
    Bug(
        "a delivery ends before the last block's sums",
        "team.cuh",
        "expect(delivery, blocks * SUMS",
        "expect(delivery, (blocks - 1) * SUMS",
        in_a_cluster,
    ),
    Bug(
        "no barrier before the sums of teams are added up",
        "row_sums.cuh",
        "    __syncthreads();\n",
        "",
        several_teams,
    ),
    # --- copies ---
    Bug("no wait for a copy", "team.cuh", "{ wait_for_groups<STAGES - 1>(); }", "{}", many_rows),
    Bug(
        "a wait for one copy too few",
        "team.cuh",
        "wait_for_groups<STAGES - 1>",
        "wait_for_groups<STAGES>",
        many_rows,
    ),
    Bug(
        "a ring that is one stage short: rows arrive over the one that is read",
        "team.cuh",
        "return stage + 1 == STAGES ? 0 : stage + 1;",
        "return stage + 2 == STAGES ? 0 : stage + 1;",
        many_rows,
    ),
    Bug(
        "a copy's end is not filled with zeros",
        "team.cuh",
        "copy_async(to, from, count * sizeof(T))",
        "copy_async(to, from, count ? sizeof(uint4) : 0)",
        odd_columns,
    ),
    Bug(
        "nor is the end of a row that is not aligned",
        "rows.cuh",
        "values[j] = j < count ? value_of(from[j]) : Acc<T>(0);",
        "values[j] = j < count || count ? value_of(from[j]) : Acc<T>(0);",
        case("norm_backward", rows=5, columns=131, layout="shifted"),
    ),
    # --- places ---
    Bug(
        "a column too many",
        "rows.cuh",
        "columns_(static_cast<int>(columns)) {}",
        "columns_(static_cast<int>(columns + 1)) {}",
        odd_columns,
    ),
    Bug(
        "a block's sum at another's place",
        "team.cuh",
        "all + team_.rank() * SUMS + s",
        "all + threadIdx.x * SUMS + s",
        in_a_cluster,
    ),
    Bug(
        "a block's sum for itself alone",
        "team.cuh",
        "SUMS + s, threadIdx.x, sums[s], delivery)",
        "SUMS + s, team_.rank(), sums[s], delivery)",
        in_a_cluster,
    ),
    Bug(
        "a vector of a row that is not aligned",
        "team.cuh",
        "const bool aligned = is_aligned(row);",
        "const bool aligned = true;",
        case("norm_backward", columns=131, layout="shifted"),
    ),
    Bug(
        "a vector written where none can be",
        "rows.cuh",
        "if (column + LANES<T> <= columns && is_aligned(to)) {",
        "if (column + LANES<T> <= columns) {",
        odd_columns,
    ),
    Bug(
        "a vector of weights that are not aligned",
        "rows.cuh",
        "vectors > 0 && column + COUNT <= columns && is_aligned(from)",
        "vectors > 0 && column + COUNT <= columns",
        case("norm_forward", layout="shifted"),
    ),
    # --- sums ---
    Bug("dw starts as anything", NORM, "A w[V][L], dw[V][L] = {};", "A w[V][L], dw[V][L];", many_rows),
    Bug(
        "zeros of dw are not written",
        "rows.cuh",
        "if (begin + j < columns) to[begin + j] = packed<W>",
        "if (begin + j < columns && values[v * lanes + j] != 0) to[begin + j] = packed<W>",
        case("norm_backward", rows=0, columns=131),
    ),
    Bug(
        "the last team's sum is left out",
        "row_sums.cuh",
        "for (int64_t team = share; team < teams;",
        "for (int64_t team = share; team + 1 < teams;",
        several_teams,
    ),
    Bug(
        "the first share of the teams is left out",
        "row_sums.cuh",
        "for (int i = 0; i < n_shares; ++i)",
        "for (int i = 1; i < n_shares; ++i)",
        several_teams,
    ),
    Bug(
        "a block's sums are read before they are there",
        "row_sums.cuh",
        "        if (shared) cluster_sync();\n        for",
        "        for",
        gathered,
    ),
    Bug(
        "a block ends while its sums are read",
        "row_sums.cuh",
        "        if (shared) cluster_sync();  // a block whose memory is read must not end\n",
        "",
        gathered,
    ),
    Bug(
        "the last block's sums are left out",
        "row_sums.cuh",
        "block < blocks; ++block",
        "block + 1 < blocks; ++block",
        gathered,
    ),
    Bug(
        "a block's own sums in place of the others'",
        "row_sums.cuh",
        "memory_ + i * blockDim.x, block)",
        "memory_ + i * blockDim.x, rank)",
        gathered,
    ),
    Bug(
        "sums of tangents start as anything",
        "row_sums.cuh",
        "i < rows * PLACES; ++i) memory_",
        "i < rows * PLACES - 1; ++i) memory_",
        in_passes,
        TANGENT,
    ),
    Bug(
        "a pass leaves its sums at the first's place",
        "row_sums.cuh",
        "(ends.partials ? team.first_row() * n_rows : 0) + first;",
        "(ends.partials ? team.first_row() * n_rows : 0) + first / 2;",
        in_passes,
        TANGENT,
    ),
    Bug(
        "passes share a tangent",
        TANGENT,
        "c.dw_dot && k < own_end",
        "c.dw_dot && k <= own_end",
        gradients_in_passes,
        TANGENT,
    ),
    Bug(
        "every pass sums dw",
        TANGENT,
        "if (c.dw && all) leave_sums",
        "if (c.dw) leave_sums",
        gradients_in_passes,
        TANGENT,
    ),
    # --- signs and steps ---
    Bug(
        "signs are read before they are there",
        "signs.cuh",
        "        calls_[lane] = words;\n        __syncwarp();\n",
        "        calls_[lane] = words;\n",
        dots,
        PROBES,
    ),
    Bug(
        "signs are overwritten while they are read",
        "signs.cuh",
        "        __syncwarp();  // the ones before have been read\n",
        "",
        dots,
        PROBES,
    ),
    Bug(
        "another word of signs",
        "signs.cuh",
        "(calls_ + call)[column / 32]",
        "(calls_ + call)[column / 32 ^ 1]",
        signs,
        PROBES,
    ),
    Bug("another key", "signs.cuh", "key.high += 0xBB67AE85u;", "key.high += 0xBB67AE87u;", signs, PROBES),
    Bug("one probe's signs for all", "signs.cuh", "probe.index += lane / CALLS;", "", preconditioned, PROBES),
    Bug(
        "the seed in memory is ignored",
        "signs.cuh",
        "if (seed_pointer) seed",
        "if (seed_pointer && !seed) seed",
        signs,
        PROBES,
    ),
    Bug(
        "the last state has no neighbour",
        STEPS,
        "t < c.steps ? here",
        "t + 1 < c.steps ? here",
        steps,
        STEPS,
    ),
    # --- numbers ---
    Bug(
        "x_hat is not rounded",
        NORM,
        "if (c.round_x_hat) x_hat = rounded<T>(x_hat);",
        "",
        lambda library: check_rounding(library, BF16, F32),
    ),
    Bug(
        "the norm is that of a sum that is not rounded",
        NORM,
        "values[v][j] = rounded<T>(values[v][j] + more[j])",
        "values[v][j] = values[v][j] + more[j]",
        case("norm_forward", dtype=BF16, rows=40, columns=250),
    ),
    Bug(
        "no Newton step",
        "rstd.cuh",
        "return step == step ? r + step : r;",
        "return step == step ? r + 0 * step : r;",
        lambda library: check_rounding(library, F32, F32),
    ),
    Bug(
        "squares that float32 does not hold",
        "rstd.cuh",
        "if (std::is_same_v<A, float> &&",
        "if (std::is_same_v<A, int> &&",
        lambda library: check_root(library, F32, "huge"),
    ),
    Bug(
        "an offset in the padding",
        "rows.cuh",
        "        if (column + j < columns) values[j] += static_cast<A>(offset);",
        "        values[j] += static_cast<A>(offset) + 1;",
        odd_columns,
    ),
]

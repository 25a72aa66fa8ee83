"""What the Triton kernels launch, by the plan that their launchers use."""

import math
from dataclasses import replace

import torch

from benchmarks.prediction import builds
from benchmarks.prediction.cards import Card
from benchmarks.prediction.model import WARP, Launch, Work
from ofa_kernels.triton import plan as plans
from ofa_kernels.triton.plan import Plan, Residency

ALIGNED = 8  # the unit of rows that begin at multiples of 16 bytes
FLOAT64 = 2  # a conversion and a multiplication with addition, for each value of x
PAIRS = 13  # instructions for the same in pairs of float32, which cards with less float64 than this take
FAST_FLOAT64 = 32  # operations of a multiprocessor in a clock


def _plan(residency: Residency, columns: int) -> Plan:
    return plans.plan(residency, columns, torch.bfloat16, ALIGNED)


def _launches(
    card: Card, p: Plan, kernel: str, teams: tuple[int, int], work: dict[str, Work]
) -> list[Launch]:
    """A launch for each stage.

    Args:
        card: Where.
        p: The kernel's plan.
        kernel: Its name.
        teams: Rows, and programs that share them; blocks of a row are apart.
        work: What a row is to each stage; to "apply" the same as to "row".
    """
    rows, programs = (count * p.n_blocks for count in teams)
    # of the loop over rows, where a program has several
    ahead = p.pipeline - 1 if kernel == "rms_norm_backward" and programs < rows else 0
    in_flight = f", {p.pipeline} rows in flight" if ahead else ""
    launches = []
    for stage in p.stages:
        registers, shared = builds.of_triton(
            kernel, f"{stage}, {p.block} × {p.num_warps}{in_flight}", card.triton
        )
        of = work["sums" if stage == "sums" else "row"]
        first = stage != "apply"  # its sums have been taken, and the weight has been read
        pairs = first and not p.sum_f64 and card.float64 < FAST_FLOAT64
        of = replace(
            of,
            instructions=of.instructions + (PAIRS * _values(p) if pairs else 0),
            read=of.read / p.n_blocks,
            written=of.written / p.n_blocks,
            cached=of.cached / p.n_blocks,
            once=of.once if first else 0,
            sums=of.sums if first else 1,
            doubles=FLOAT64 * _values(p) if first and not pairs else 0,
        )
        launches.append(
            Launch(kernel, of, rows, programs, p.num_warps * WARP, registers, shared, ahead=ahead)
        )
    return launches


def _values(p: Plan) -> int:
    """Of a row that a thread has."""
    return p.block // (p.num_warps * WARP)


def _finish(card: Card, p: Plan, programs: int, columns: int) -> Launch:
    """The launch that adds up what the programs left."""
    block_p, block_n = p.partials
    warps, rounds = max(block_p * block_n // 512, 1), math.ceil(programs / block_p)
    blocks, line = math.ceil(columns / block_n), 4 * block_n
    registers, shared = builds.of_triton("sum_partials", f"{block_n} × {warps}", card.triton, "float32")
    work = Work(100 + 30 * rounds, 0, line, cached=line * programs, steps=rounds, sums=0)
    return Launch("sum_partials", work, blocks, blocks, warps * WARP, registers, shared, finishes=True)


# Instructions of a thread are estimates, of a third or so.
def forward(card: Card, rows: int, columns: int) -> list[Launch]:
    """Of bfloat16."""
    p, row = _plan(plans.FORWARD, columns), 2 * columns
    work = {
        "row": Work(150 + 8 * _values(p), read=row, written=row, once=2 * row),
        "sums": Work(100 + 3 * _values(p), read=row, written=0),
    }
    return _launches(card, p, "rms_norm_forward", (rows, rows), work)


def backward(card: Card, rows: int, columns: int) -> list[Launch]:
    """Of bfloat16."""
    p, row = _plan(plans.BACKWARD, columns), 2 * columns
    programs = p.programs(rows)
    left = 2 * row * programs / rows  # a row of sums a program, which stays in the cache
    work = {
        "row": Work(200 + 18 * _values(p), 2 * row, row, cached=left, once=2 * row),
        "sums": Work(150 + 8 * _values(p), 2 * row, 0, once=2 * row),
    }
    launches = _launches(card, p, "rms_norm_backward", (rows, programs), work)
    return [*launches, _finish(card, p, programs, columns)]


def jvp(card: Card, rows: int, columns: int) -> list[Launch]:
    """Of bfloat16 along one tangent of x, after the forward."""
    p, row = _plan(plans.JVP, columns), 2 * columns
    work = {
        "row": Work(250 + 16 * _values(p), 2 * row, row, once=2 * row, steps=2),
        "sums": Work(150 + 6 * _values(p), 2 * row, 0, once=2 * row, steps=2),
    }
    return [*forward(card, rows, columns), *_launches(card, p, "rms_norm_jvp", (rows, rows), work)]


def tangents(card: Card, rows: int, columns: int, k: int) -> list[Launch]:
    """Of bfloat16: k tangents of the backward, of dy too, with a float32 weight."""
    p, row = _plan(plans.TANGENT, columns), 2 * columns
    programs = p.programs(rows)
    # the sums over rows grow in scratch memory, read and written for every row; the cache has half of itself
    # for them, beside what passes through
    grows, once = 4 * row * k, 2 * row * (1 + k)
    lost = grows if 2 * row * k * programs > card.cache / 2 else 0
    read, written, steps = (2 + 2 * k) * row, k * row, 1 + k
    work = {
        "row": Work(
            200 + 14 * _values(p) + k * (150 + 32 * _values(p)),
            read=read + lost / 2,
            written=written + lost / 2,
            cached=2 * row * k + grows - lost,
            once=once,
            steps=steps,
        ),
        "sums": Work(
            200 + 10 * _values(p) + k * (100 + 10 * _values(p)),
            read=read,
            written=0,
            cached=2 * row * k,
            once=once,
            steps=steps,
        ),
    }
    launches = _launches(card, p, "rms_norm_backward_tangent", (rows, programs), work)
    return [*launches, _finish(card, p, programs, k * columns)]

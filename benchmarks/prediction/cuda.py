"""What the CUDA kernels launch, planned by the rules of `csrc/cuda/launch.cuh` and `tangents.cuh`."""

import math
from dataclasses import dataclass, replace

from benchmarks.prediction import builds
from benchmarks.prediction.cards import Card
from benchmarks.prediction.model import WARP, Launch, Work

MAX_THREADS, STAGES, PARTS = 512, 3, 16
BLOCK_SHARED, SUM_COLUMNS = 1024, 32
ITEMS_OF_TEAM, ITEMS_OF_ONE_LAUNCH = 4, 8
VECTOR = 16  # bytes


@dataclass(frozen=True)
class Device:
    """What a device has of what the plans need; as in launch.cuh."""

    multiprocessors: int
    threads: int
    cluster: int
    shared_block: int
    shared_multiprocessor: int

    @classmethod
    def of(cls, card: Card) -> "Device":
        """A card's."""
        return cls(card.multiprocessors, MAX_THREADS, card.cluster, card.shared, card.shared + 1024)


@dataclass(frozen=True)
class Plan:
    """As in launch.cuh."""

    threads: int
    cluster: int
    shared: int
    blocks: int = 1
    passes: int = 1
    gathers: bool = False

    def partials(self) -> int:
        """How many teams leave their sums for a second kernel to add up."""
        return 0 if self.gathers or self.blocks == self.cluster else self.blocks // self.cluster


def vectors_of(kernel: str, itemsize: int) -> int:
    """Vectors of a row that a thread has."""
    of_double = {"forward": 4, "backward": 2, "tangents": 2}
    of_others = {"forward": itemsize, "backward": itemsize, "tangents": 1 if itemsize == 2 else 2}
    return (of_double if itemsize == 8 else of_others)[kernel]


def team_sum_bytes(sums: int) -> int:
    """Shared memory to add up over a team."""
    return 4 * PARTS * sums * 8


def ring_bytes(vectors: int, operands: int) -> int:
    """Shared memory of a thread for what is fetched ahead."""
    return STAGES * operands * vectors * VECTOR


def sums_bytes(vectors: int, itemsize: int) -> int:
    """Shared memory of a thread for a row of sums, in float32 or float64."""
    return vectors * VECTOR * (1 if itemsize == 8 else 4 // itemsize)


def plan_row(device: Device, vectors: int, needed: int, fixed: int, of_thread: int) -> Plan | None:
    """Threads and cluster for rows of as many vectors as needed, of which a thread has `vectors`.

    Args:
        device: Where.
        vectors: Of a thread.
        needed: Vectors of a row.
        fixed: Bytes of shared memory of a block.
        of_thread: Bytes more for each of its threads.

    Returns:
        None for rows that are too long.
    """
    cluster = 1
    while cluster <= device.cluster:
        threads = math.ceil(math.ceil(needed / (vectors * cluster)) / WARP) * WARP
        shared = fixed + threads * of_thread
        if threads <= device.threads and shared <= device.shared_block:
            return Plan(threads, cluster, shared)
        cluster *= 2
    return None


def plan_teams(device: Device, plan: Plan, most: int) -> Plan:
    """As many teams as run at once, and no more than `most`."""
    by_shared = device.shared_multiprocessor // (plan.shared + BLOCK_SHARED)
    blocks = max(1, min(MAX_THREADS // plan.threads, by_shared))
    teams = blocks * device.multiprocessors // (plan.cluster * plan.passes)
    return replace(plan, blocks=plan.cluster * max(1, min(teams, most)))


def plan_teams_with_sums(device: Device, plan: Plan, rows: int, items: int) -> Plan:
    """The same for teams that end with sums over their rows."""
    of_block = math.ceil(rows / device.cluster)
    if plan.cluster == 1 and (of_block <= 1 or of_block * items <= ITEMS_OF_ONE_LAUNCH):
        cluster = 1
        while cluster < min(rows, device.cluster):
            cluster *= 2
        return plan_teams(device, replace(plan, cluster=cluster, gathers=True), 1)
    return plan_teams(device, plan, math.ceil(rows / max(1, ITEMS_OF_TEAM // items)))


def plan_forward(device: Device, rows: int, columns: int, itemsize: int) -> Plan | None:
    """Of the forward without a residual."""
    vectors, needed = vectors_of("forward", itemsize), math.ceil(columns * itemsize / VECTOR)
    plan = plan_row(device, vectors, needed, team_sum_bytes(1), ring_bytes(vectors, 1))
    return plan and plan_teams(device, plan, rows)


def plan_backward(device: Device, rows: int, columns: int, itemsize: int) -> Plan | None:
    """Of the backward with a dw and without a ds."""
    vectors, needed = vectors_of("backward", itemsize), math.ceil(columns * itemsize / VECTOR)
    plan = plan_row(device, vectors, needed, team_sum_bytes(2), ring_bytes(vectors, 2))
    return plan and plan_teams_with_sums(device, plan, rows, 1)


def plan_jvp(device: Device, rows: int, columns: int, itemsize: int) -> Plan | None:
    """Of the JVP."""
    vectors, needed = vectors_of("tangents", itemsize), math.ceil(columns * itemsize / VECTOR)
    plan = plan_row(device, vectors, needed, team_sum_bytes(1), ring_bytes(vectors, 1))
    return plan and plan_teams(device, plan, rows)


def plan_tangents(device: Device, rows: int, columns: int, itemsize: int, tangents: int) -> Plan | None:
    """Of the backward's tangents with a dw_dot."""
    vectors, needed = vectors_of("tangents", itemsize), math.ceil(columns * itemsize / VECTOR)
    fixed, ring, of_tangent = team_sum_bytes(2), ring_bytes(vectors, 2), sums_bytes(vectors, itemsize)
    plan = plan_row(device, vectors, needed, fixed, ring + of_tangent)
    if not plan:
        return None
    most = ((device.shared_block - fixed) // plan.threads - ring) // of_tangent
    passes = max(1, math.ceil(tangents / most))
    of_pass = math.ceil(tangents / passes)
    plan = replace(plan, passes=passes, shared=fixed + plan.threads * (ring + of_tangent * of_pass))
    return plan_teams_with_sums(device, plan, rows, 1 + of_pass)


def _launch(card: Card, plan: Plan, kernel: str, rows: int, work: Work) -> Launch:
    """A launch of a plan's for bfloat16."""
    teams = plan.blocks if plan.gathers else plan.blocks // plan.cluster
    return Launch(
        kernel,
        work,
        rows * plan.passes,
        teams * plan.passes,
        plan.threads,
        builds.of_cuda(kernel, "bfloat16", card.cuda),
        plan.shared,
        blocks=1 if plan.gathers else plan.cluster,
        ahead=STAGES - 1,
    )


def _finish(card: Card, partials: int, columns: int) -> list[Launch]:
    """The launch that adds up what that many teams left, if they did."""
    if not partials:
        return []
    kernel = "row_sums.add_up_teams"
    blocks, each = math.ceil(columns / SUM_COLUMNS), math.ceil(partials / (MAX_THREADS // SUM_COLUMNS))
    line = 4 * SUM_COLUMNS
    steps = math.ceil(each / 4)  # four loads are on their way at once
    work = Work(100 + 4 * each, 0, line, cached=line * partials, steps=steps, sums=0)
    registers, early = builds.of_cuda(kernel, "float", card.cuda), card.cluster > 1
    shared = MAX_THREADS * 8
    return [Launch(kernel, work, blocks, blocks, MAX_THREADS, registers, shared, finishes=True, early=early)]


# Instructions of a thread, by the row and by the value, were counted in the machine code for sm_90a, along
# the way that aligned rows take, to a tenth or so.
def forward(card: Card, rows: int, columns: int) -> list[Launch] | None:
    """Of bfloat16."""
    plan = plan_forward(Device.of(card), rows, columns, 2)
    if not plan:
        return None
    row = 2 * columns
    # the squares of two values: one conversion and one addition
    work = Work(200 + 9 * 16, read=row, written=row, once=2 * row, doubles=16)
    return [_launch(card, plan, "rms_norm.forward", rows, work)]


def backward(card: Card, rows: int, columns: int) -> list[Launch] | None:
    """Of bfloat16, with an rstd that the forward saved."""
    plan = plan_backward(Device.of(card), rows, columns, 2)
    if not plan:
        return None
    row = 2 * columns
    left = 2 * row * plan.partials() / rows  # a row of sums a team, which stays in the cache
    work = Work(220 + 14 * 16, read=2 * row, written=row, cached=left, once=2 * row)
    launch = _launch(card, plan, "rms_norm.backward", rows, work)
    return [launch, *_finish(card, plan.partials(), columns)]


def jvp(card: Card, rows: int, columns: int) -> list[Launch] | None:
    """Of bfloat16 along one tangent of x, after the forward."""
    plan, before = plan_jvp(Device.of(card), rows, columns, 2), forward(card, rows, columns)
    if not plan or not before:
        return None
    row = 2 * columns
    work = Work(420 + 8 * 8, read=2 * row, written=row, once=2 * row, steps=2, doubles=8)
    return [*before, _launch(card, plan, "rms_norm_tangent.jvp", rows, work)]


def tangents(card: Card, rows: int, columns: int, k: int) -> list[Launch] | None:
    """Of bfloat16: k tangents of the backward, of dy too, with a float32 weight."""
    plan = plan_tangents(Device.of(card), rows, columns, 2, k)
    if not plan:
        return None
    row, each = 2 * columns, k / plan.passes
    work = Work(
        350 + each * (240 + 28 * 8),
        read=(2 + 2 * each) * row,
        written=each * row,
        cached=2
        * row
        * each
        * (1 + plan.partials() / rows),  # the weight's tangents, and the sums at the end
        once=2 * row * (1 + k),
        steps=1 + math.ceil(each),
        doubles=8,
    )
    launch = _launch(card, plan, "rms_norm_tangent.backward_tangent", rows, work)
    return [launch, *_finish(card, plan.partials(), k * columns)]

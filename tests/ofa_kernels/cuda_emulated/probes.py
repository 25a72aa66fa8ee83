"""The probes' operators as problems: their inputs, and the truth of what they write."""

import torch

from ofa_kernels import reference
from tests.ofa_kernels.bounds import EPS, LAYER, SEED, doubles
from tests.ofa_kernels.cuda_emulated.checks import Problem, within
from tests.ofa_kernels.cuda_emulated.norms import of_rows, of_weight

LAYERS = torch.tensor([LAYER, 2**40 + 3])


def ids(case):
    return torch.arange(case.rows) * 2**31 - 5


def seeds(case):
    """The call's seed and the one in memory, which is the one that counts where it is there."""
    if "seed_pointer" in case.absent:
        return SEED, None
    return 7, torch.tensor([SEED - 2**64])


def signs(case, layers=LAYERS[:1], dtype=torch.float64):
    """±1 [layers, probes, rows, columns]."""
    return reference.rademacher_signs(case.columns, ids(case), case.tangents, layers, SEED, dtype)


def problem(case, operands, inputs, outputs, check, **sizes):
    seed, pointer = seeds(case)
    inputs = {"example_ids": operands.given("example_ids", ids(case)), **inputs}
    if pointer is not None:
        operands.given("seed_pointer", pointer)
    usual = {"probes": case.tangents, "rows": case.rows, "layer": LAYER, "eps": EPS, "offset": case.offset}
    return Problem(usual | sizes | {"seed": seed}, inputs, outputs, check, pointer)


def rademacher(case, operands):
    def check(got):
        assert torch.equal(got["signs"], signs(case, LAYERS, case.dtype))

    inputs = {"layer_ids": operands.given("layer_ids", LAYERS.clone())}
    outputs = {"signs": of_rows(case, len(LAYERS), case.tangents)}
    return problem(case, operands, inputs, outputs, check, layers=len(LAYERS), examples=case.rows)


def preconditioned_probes(case, operands):
    z, weight = operands.rows("z", case.rows, case.columns), operands.weight("weight", case.columns)

    def check(got):
        truth = reference.preconditioner(*doubles(z, weight), EPS, case.offset) * signs(case)[0]
        within(got["out"], truth, truth.abs(), z, case.dtype)

    outputs = {"out": of_rows(case, case.tangents)}
    return problem(case, operands, {"z": z, "weight": weight}, outputs, check)


def preconditioned_probes_backward(case, operands):
    z, weight = operands.rows("z", case.rows, case.columns), operands.weight("weight", case.columns)
    dp = operands.rows("dp", case.tangents, case.rows, case.columns)

    def check(got):
        call = doubles(z, weight, signs(case)[0], dp)
        dz, dw = reference.preconditioned_probes_backward(*call, EPS, case.offset)
        # the same with every term positive: q = sum |dp|
        z_hat, r = reference.normalise(z.double(), EPS)
        q, w = dp.double().abs().sum(0), (weight.double() + case.offset).abs()
        scale = r**2 * z_hat.abs() * reference.mean(w * q)
        within(got["dz"], dz, scale, z, case.dtype, sums=3, terms=case.tangents)
        terms = case.tangents + case.rows
        within(got["dw"], dw, (q * r).sum(0), z, case.weight_dtype, terms=terms)

    outputs = {"dz": of_rows(case), "dw": of_weight(case)}
    return problem(case, operands, {"z": z, "weight": weight, "dp": dp}, outputs, check)


def probe_dot(case, operands):
    t = operands.rows("t", case.tangents, case.rows, case.columns)

    def check(got):
        truth, scale = (t.double() * signs(case)[0]).sum(-1), t.double().abs().sum(-1)
        within(got["dots"], truth, scale, t, got["dots"].dtype)

    outputs = {"dots": ((case.tangents, case.rows), operands.accumulator)}
    return problem(case, operands, {"t": t}, outputs, check)


def probe_scale(case, operands):
    scale = operands.flat("scale", (case.tangents, case.rows), operands.accumulator)

    def check(got):
        expected = scale[..., None] * signs(case, dtype=scale.dtype)[0]
        assert torch.equal(got["out"], expected.to(case.dtype))

    return problem(case, operands, {"scale": scale}, {"out": of_rows(case, case.tangents)}, check)


PROBLEMS = {
    builder.__name__: builder
    for builder in (
        rademacher,
        preconditioned_probes,
        preconditioned_probes_backward,
        probe_dot,
        probe_scale,
    )
}

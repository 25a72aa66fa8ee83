"""RMSNorm's operators as problems: their inputs, and the float64 truth of what they write."""

import torch

from ofa_kernels import reference
from tests.ofa_kernels.bounds import EPS, doubles, magnitudes
from tests.ofa_kernels.cuda_emulated.checks import Problem, within


def sizes(case, **more):
    return {"rows": case.rows, "eps": EPS, "offset": case.offset, **more}


def of_rows(case, *leading):
    return (*leading, case.rows, case.columns), case.dtype


def of_weight(case, *leading):
    return (*leading, case.columns), case.weight_dtype


def check_rstd(got, x):
    """r to one unit in its last place; float64's own sum is rounded, too."""
    truth = (x.double().pow(2).mean(-1) + EPS).rsqrt()
    if got.dtype == torch.float64:
        within(got, truth, truth, x, got.dtype)
    else:
        ulp = torch.nextafter(truth.float(), torch.tensor(torch.inf)).double() - truth.float()
        assert ((got.double() - truth).abs() <= ulp).all(), "rstd is more than a unit off"


def norm_forward(case, operands):
    row = case.rows, case.columns
    x, residual = operands.rows("x", *row), operands.rows("residual", *row)
    weight = operands.weight("weight", case.columns)
    round_x_hat = case.offset == 0 and case.rows % 2  # half of those where it may be asked for

    def check(got):
        s = x if residual is None else x + residual
        if residual is not None:
            assert torch.equal(got["s"], s)
        truth = reference.rms_norm(*doubles(s, weight), EPS, case.offset)
        within(got["y"], truth, truth.abs(), x, case.dtype, *([case.dtype] if round_x_hat else []))
        if "rstd" in got:
            check_rstd(got["rstd"], s)

    return Problem(
        sizes(case, round_x_hat=int(round_x_hat)),
        {"x": x, "residual": residual, "weight": weight},
        {"y": of_rows(case), "s": of_rows(case), "rstd": ((case.rows,), operands.accumulator)},
        check,
    )


def norm_backward(case, operands):
    row = case.rows, case.columns
    x, dy, ds = (operands.rows(name, *row) for name in ("x", "dy", "ds"))
    weight = operands.weight("weight", case.columns)
    rstd = None
    if "rstd" not in case.absent:
        r = (x.double().pow(2).mean(-1) + EPS).rsqrt().to(operands.accumulator)
        rstd = operands.given("rstd", r)

    def check(got):
        dx, dw = reference.rms_norm_backward(*doubles(x, weight, dy), EPS, case.offset)
        scale = magnitudes(x, weight, case.offset, dy)
        added = torch.zeros(()) if ds is None else ds.double()
        if "dx" in got:
            within(got["dx"], dx + added, scale.dx + added.abs(), x, case.dtype, sums=3)
        if "dw" in got:
            within(got["dw"], dw, scale.dw.sum(0), x, case.weight_dtype, sums=2, terms=case.rows)

    return Problem(
        sizes(case),
        {"x": x, "weight": weight, "dy": dy, "ds": ds, "rstd": rstd},
        {"dx": of_rows(case), "dw": of_weight(case)},
        check,
    )


def norm_jvp(case, operands):
    k, row = case.tangents, (case.rows, case.columns)
    x, x_dot = operands.rows("x", *row), operands.rows("x_dot", k, *row)
    weight = operands.weight("weight", case.columns)
    weight_dot = operands.weight("weight_dot", k, case.columns)

    def check(got):
        call = x, weight, x_dot, weight_dot
        truth = reference.rms_norm_jvp(*doubles(*call), EPS, case.offset)
        scale = magnitudes(x, weight, case.offset, x_dot=x_dot, weight_dot=weight_dot).y_dot
        within(got["y_dot"], truth, scale, x, case.dtype, sums=3)

    return Problem(
        sizes(case, tangents=k),
        {"x": x, "weight": weight, "x_dot": x_dot, "weight_dot": weight_dot},
        {"y_dot": of_rows(case, k)},
        check,
    )


def norm_backward_tangent(case, operands):
    k, row = case.tangents, (case.rows, case.columns)
    x, dy = operands.rows("x", *row), operands.rows("dy", *row)
    x_dot, dy_dot = operands.rows("x_dot", k, *row), operands.rows("dy_dot", k, *row)
    weight = operands.weight("weight", case.columns)
    weight_dot = operands.weight("weight_dot", k, case.columns)
    call = x, weight, dy, x_dot, weight_dot, dy_dot

    def check(got):
        dx_dot, dw_dot = reference.rms_norm_backward_tangent(*doubles(*call), EPS, case.offset)
        scale = magnitudes(x, weight, case.offset, *call[2:])
        within(got["dx_dot"], dx_dot, scale.dx_dot, x, case.dtype, sums=6)
        if "dw_dot" in got:
            truth, scales = (t.expand(k, case.columns) for t in (dw_dot, scale.dw_dot.sum(-2)))
            within(got["dw_dot"], truth, scales, x, case.weight_dtype, sums=3, terms=case.rows)

    inputs = dict(zip(("x", "weight", "dy", "x_dot", "weight_dot", "dy_dot"), call, strict=True))
    outputs = {"dx_dot": of_rows(case, k), "dw_dot": of_weight(case, k)}
    return Problem(sizes(case, tangents=k), inputs, outputs, check)


def norm_jvp_backward(case, operands):
    k, row = case.tangents, (case.rows, case.columns)
    x, dy, x_dot = operands.rows("x", *row), operands.rows("dy", k, *row), operands.rows("x_dot", k, *row)
    weight = operands.weight("weight", case.columns)
    weight_dot = operands.weight("weight_dot", k, case.columns)
    call = x, weight, dy, x_dot, weight_dot

    def check(got):
        truths = reference.rms_norm_jvp_backward(*doubles(*call), EPS, case.offset)
        scale = magnitudes(x, weight, case.offset, *call[2:])
        over_rows = scale.dw_dot.sum(-2).expand(k, case.columns), scale.dw.sum(-2).expand(k, case.columns)
        scales = scale.dx_dot.expand(dy.shape).sum(0), over_rows[0].sum(0), scale.dx, over_rows[1]
        names, sums = ("dx", "dw", "dx_dot", "dw_dot"), (6, 3, 3, 2)
        for name, truth, of, n_sums in zip(names, truths, scales, sums, strict=True):
            if name in got:
                within(got[name], truth, of, x, got[name].dtype, sums=n_sums, terms=k * case.rows)

    inputs = dict(zip(("x", "weight", "dy", "x_dot", "weight_dot"), call, strict=True))
    outputs = {"dx": of_rows(case), "dw": of_weight(case)}
    outputs |= {"dx_dot": of_rows(case, k), "dw_dot": of_weight(case, k)}
    return Problem(sizes(case, tangents=k), inputs, outputs, check)


PROBLEMS = {
    builder.__name__: builder
    for builder in (norm_forward, norm_backward, norm_jvp, norm_backward_tangent, norm_jvp_backward)
}

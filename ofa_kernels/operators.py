"""The kernels as registered operators, `torch.ops.ofa_kernels.*`: what tracers record and fake tensors run.

The functions here are called as the kernels' own. They have no derivatives; the Functions of `autograd.py`
call them where a dispatch mode or a fake tensor is at hand, and the kernels directly elsewhere, which takes
microseconds less. Asked for a derivative themselves the operators raise: under forward AD one without a rule
would return a zero tangent in silence.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ofa_kernels import dispatch
from ofa_kernels.dtypes import accumulation_dtype

NAMESPACE = "ofa_kernels"
_UINT64 = (1 << 64) - 1
_definitions = torch.library.Library(NAMESPACE, "DEF")


def _is_differentiated(t: Tensor) -> bool:
    if torch.is_grad_enabled() and t.requires_grad:
        return True
    return forward_ad._current_level >= 0 and forward_ad.unpack_dual(t).tangent is not None


def _register(schema: str, fake: Callable) -> Callable:
    """Register a kernel by its schema; the result is called with the kernel's own arguments.

    Args:
        schema: As PyTorch writes them. A seed is `Tensor? seed, int number` there: no type is either. An
            output that is left out is None, for which schemas have no word. An index comes last.
        fake: The outputs, unwritten, from the kernel's arguments.
    """
    name, _, rest = schema.partition("(")
    names = [argument.split()[-1].partition("=")[0] for argument in rest.partition(")")[0].split(", ")]
    seed_at = names.index("seed") if "seed" in names else len(names)
    indexed = names[-1] == "index"

    def own(given: tuple) -> tuple:
        if seed_at == len(names):
            return given
        seed, number = given[seed_at : seed_at + 2]
        return *given[:seed_at], number & _UINT64 if seed is None else seed, *given[seed_at + 2 :]

    def whole(given: tuple) -> tuple:
        """With the index, which PyTorch leaves out where it is the default."""
        return given if len(given) == len(names) else (*given, None)

    def kernel(*given):
        given = whole(given)
        tensors = [a for a in given if isinstance(a, Tensor)]
        real = [t for t in tensors if t.is_floating_point()] or [tensors[0].new_empty(0, dtype=torch.float32)]
        given, index = (given[:-1], given[-1]) if indexed else (given, None)
        kernels = dispatch.kernels_of(real[0], index)
        return getattr(kernels, name)(*own(given), **({"index": index} if indexed else {}))

    def guarded(*given):
        if any(isinstance(t, Tensor) and _is_differentiated(t) for t in given):
            raise RuntimeError(
                f"torch.ops.{NAMESPACE}.{name} has no derivative; call the functions of ofa_kernels, which "
                "have them of every order"
            )
        with torch._C._AutoDispatchBelowAutograd():
            return operator(*given)

    _definitions.define(schema)
    _definitions.impl(name, kernel, "CompositeExplicitAutograd")
    _definitions.impl(name, guarded, "Autograd")
    torch.library.register_fake(
        f"{NAMESPACE}::{name}", lambda *given: fake(*own(whole(given))), lib=_definitions
    )
    operator = getattr(getattr(torch.ops, NAMESPACE), name).default

    def call(*given, index: Tensor | None = None):
        last = (index,) if indexed else ()
        if seed_at == len(names):
            return operator(*given, *last)
        seed = given[seed_at]
        # a schema's integers have a sign
        pair = (seed, 0) if isinstance(seed, Tensor) else (None, seed - (seed >> 63 << 64))
        return operator(*given[:seed_at], *pair, *given[seed_at + 1 :], *last)

    return call


def _like(t: Tensor) -> Tensor:
    return torch.empty_like(t, memory_format=torch.contiguous_format)


def _tangents(
    t: Tensor, of_x: Tensor | None, x: Tensor, weight: Tensor, of_weight: Tensor | None = None
) -> Tensor:
    """[*K, *t.shape], where of_x is [*K, *x.shape] or of_weight [*K, *weight.shape]."""
    if of_x is not None:
        sizes = of_x.shape[: of_x.dim() - x.dim()]
    else:
        assert of_weight is not None  # a call has a tangent of one of the two
        sizes = of_weight.shape[: of_weight.dim() - weight.dim()]
    return t.new_empty((*sizes, *t.shape))


def _norm(x, weight, eps, offset, rounding, index):
    return _like(x)


def _add_norm(x, residual, weight, eps, offset, rounding, index):
    return _like(x), _like(x)


def _norm_backward(x, weight, dy, ds, eps, offset, need_dx, need_dw, index):
    return _like(x) if need_dx else None, _like(weight) if need_dw else None


def _norm_jvp(x, weight, x_dot, weight_dot, eps, offset, index):
    return _tangents(x, x_dot, x, weight, weight_dot)


def _norm_backward_tangent(x, weight, dy, x_dot, weight_dot, dy_dot, eps, offset, need_dw, index):
    of_x = dy_dot if x_dot is None else x_dot
    dw_dot = _tangents(weight, of_x, x, weight, weight_dot) if need_dw else None
    return _tangents(x, of_x, x, weight, weight_dot), dw_dot


def _norm_jvp_backward(x, weight, dy, x_dot, weight_dot, eps, offset, need_dw, need_dw_dot, index):
    dw_dot = _tangents(weight, dy, x, weight) if need_dw_dot else None
    return _like(x), _like(weight) if need_dw else None, _tangents(x, dy, x, weight), dw_dot


def _rademacher(n_cols, example_ids, n_probes, layers, seed, dtype):
    return example_ids.new_empty((layers.numel(), n_probes, example_ids.numel(), n_cols), dtype=dtype)


def _probes(z, weight, eps, offset, seed, n_probes, example_ids, layer, index):
    return z.new_empty((n_probes, *z.shape))


def _probes_backward(z, weight, dp, eps, offset, seed, example_ids, layer, index):
    return _like(z), _like(weight)


def _dots(t, seed, example_ids, layer):
    return t.new_empty(t.shape[:2], dtype=accumulation_dtype(t))


def _scaled(scale, n_cols, seed, example_ids, layer, dtype):
    return scale.new_empty((*scale.shape, n_cols), dtype=dtype)


def _lengths(states):
    return states.new_empty((states.shape[0] - 1, states.shape[1]), dtype=accumulation_dtype(states))


def _lengths_backward(states, lengths, dlengths):
    return _like(states)


_X, _NUMBERS, _INDEX = "Tensor x, Tensor weight", "float eps, float offset", "Tensor? index=None"
_SEED, _IDS = "Tensor? seed, int number", "Tensor example_ids, int layer"

rms_norm_forward = _register(f"rms_norm_forward({_X}, {_NUMBERS}, str rounding, {_INDEX}) -> Tensor", _norm)
add_rms_norm_forward = _register(
    f"add_rms_norm_forward(Tensor x, Tensor residual, Tensor weight, {_NUMBERS}, str rounding, {_INDEX}) "
    "-> (Tensor, Tensor)",
    _add_norm,
)
rms_norm_backward = _register(
    f"rms_norm_backward({_X}, Tensor dy, Tensor? ds, {_NUMBERS}, bool need_dx, bool need_dw, {_INDEX}) "
    "-> (Tensor, Tensor)",
    _norm_backward,
)
rms_norm_jvp = _register(
    f"rms_norm_jvp({_X}, Tensor? x_dot, Tensor? weight_dot, {_NUMBERS}, {_INDEX}) -> Tensor", _norm_jvp
)
rms_norm_backward_tangent = _register(
    f"rms_norm_backward_tangent({_X}, Tensor dy, Tensor? x_dot, Tensor? weight_dot, Tensor? dy_dot, "
    f"{_NUMBERS}, bool need_dw, {_INDEX}) -> (Tensor, Tensor)",
    _norm_backward_tangent,
)
rms_norm_jvp_backward = _register(
    f"rms_norm_jvp_backward({_X}, Tensor dy, Tensor? x_dot, Tensor? weight_dot, {_NUMBERS}, bool need_dw, "
    f"bool need_dw_dot, {_INDEX}) -> (Tensor, Tensor, Tensor, Tensor)",
    _norm_jvp_backward,
)
rademacher = _register(
    f"rademacher(int n_cols, Tensor example_ids, int n_probes, Tensor layers, {_SEED}, ScalarType dtype) "
    "-> Tensor",
    _rademacher,
)
preconditioned_probes = _register(
    f"preconditioned_probes(Tensor z, Tensor weight, {_NUMBERS}, {_SEED}, int n_probes, {_IDS}, {_INDEX}) "
    "-> Tensor",
    _probes,
)
preconditioned_probes_backward = _register(
    f"preconditioned_probes_backward(Tensor z, Tensor weight, Tensor dp, {_NUMBERS}, {_SEED}, {_IDS}, "
    f"{_INDEX}) -> (Tensor, Tensor)",
    _probes_backward,
)
probe_dot = _register(f"probe_dot(Tensor t, {_SEED}, {_IDS}) -> Tensor", _dots)
probe_scale = _register(
    f"probe_scale(Tensor scale, int n_cols, {_SEED}, {_IDS}, ScalarType dtype) -> Tensor", _scaled
)
step_lengths = _register("step_lengths(Tensor states) -> Tensor", _lengths)
step_lengths_backward = _register(
    "step_lengths_backward(Tensor states, Tensor lengths, Tensor dlengths) -> Tensor", _lengths_backward
)

"""Operators whose derivatives are composed from a formula, and how a Function meets PyTorch's transforms."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import TransformType, get_interpreter_stack, is_legacy_batchedtensor
from torch._functorch.utils import unwrap_dead_wrappers
from torch.autograd import Function, forward_ad


def plain_call() -> bool:
    """Whether no transform of torch.func and no level of forward AD is watching, so a kernel may be called.

    They see `Function.apply` only: called past it, a tangent would be lost in silence.
    """
    return not torch._C._are_functorch_transforms_active() and forward_ad._current_level < 0


def recorded(*tensors: Tensor) -> bool:
    """Whether a plain call is recorded for a backward pass."""
    if torch.is_grad_enabled():
        for t in tensors:
            if t.requires_grad:
                return True
    return False


def first_order() -> bool:
    """Whether a backward pass runs without being recorded itself."""
    return not torch.is_grad_enabled() and plain_call()


def legacy_batched(*tensors: Tensor | None) -> bool:
    """Whether `autograd.grad(is_grads_batched=True)` is calling, whose vmap knows no Function."""
    for t in tensors:  # noqa: SIM110 - a generator takes as long as the rest of a small norm's backward
        if t is not None and is_legacy_batchedtensor(t):
            return True
    return False


def in_forward_mode(ctx, rule: Callable, tangents: Sequence[Tensor | None]):
    """Call rule(primals, tangents) so that enclosing levels of forward AD see it.

    PyTorch runs `jvp` with forward AD switched off and the primals still dual at this level; left so, a
    jvp of a jvp silently loses the inner tangent's own tangent.
    """
    primals = [None if p is None else forward_ad.unpack_dual(p).primal for p in ctx.saved_tensors]
    with forward_ad._set_fwd_grad_enabled(True):
        return rule(primals, list(tangents[: len(primals)]))


def _present(
    formula: Callable, tensors: Sequence[Tensor | None], integers: bool = False
) -> tuple[Callable, list[Tensor], list[int]]:
    """The formula of the (real) tensors that are not None, a list of these tensors, and their places."""
    there = [(i, t) for i, t in enumerate(tensors) if t is not None and (integers or t.is_floating_point())]
    places = [i for i, _ in there]

    def of_present(*present: Tensor):
        arguments = list(tensors)
        for i, t in zip(places, present, strict=True):
            arguments[i] = t
        return formula(*arguments)

    return of_present, [t for _, t in there], places


def _functionalizing() -> bool:
    """Whether `torch.func.functionalize` is among the transforms: it has no rule for a Function."""
    return any(level.key() == TransformType.Functionalize for level in get_interpreter_stack())


class Operator(Function):
    """A Function of tensors, which may be None, and of a tuple of options, which comes last.

    A subclass states `formula` and `forward`.
    """

    record: Callable[..., Any]
    """As `Function.apply`, for a plain call whose tensors are memory (`boundary.ready`).

    It is the C++ below `Function.apply`, whose own look-up of default arguments takes longer than a kernel.
    """

    def __init_subclass__(cls, **options) -> None:
        """Find `record`, which the stubs leave out."""
        super().__init_subclass__(**options)
        cls.record = super(Function, cls).apply  # pyright: ignore[reportAttributeAccessIssue]

    @staticmethod
    def formula(options: tuple) -> Callable:
        """What the operator computes from its tensors, in PyTorch."""
        raise NotImplementedError

    @classmethod
    def apply(cls, *arguments) -> Any:
        """As `Function.apply`, for any call."""
        if not torch._C._are_functorch_transforms_active():
            return cls.record(*arguments)
        if _functionalizing():
            return cls.composed(*arguments)
        return super().apply(*arguments)

    @classmethod
    def composed(cls, *arguments):
        """The value by the formula, which PyTorch differentiates by itself."""
        *tensors, options = arguments
        return cls.formula(options)(*tensors)


def _vjp(fn: Callable, *primals: Tensor) -> tuple[Any, Callable]:
    """`torch.func.vjp` of a function that has no auxiliary output."""
    return torch.func.vjp(fn, *primals)  # pyright: ignore[reportReturnType] - typed as if it might have one


def jvp_by_pullbacks(fn: Callable, primals: tuple[Tensor, ...], tangents: tuple[Tensor, ...]):
    """Tangents of fn's outputs, by two backward passes: plain forward AD does not nest."""
    outputs, pull = _vjp(fn, *primals)
    single = isinstance(outputs, Tensor)

    def pulled(*cotangents: Tensor):
        return pull(cotangents[0] if single else cotangents)

    zeros = tuple(torch.zeros_like(out) for out in ((outputs,) if single else outputs))
    _, pull_again = _vjp(pulled, *zeros)  # linear in the cotangents, so its transpose is the jvp
    found = pull_again(tangents)
    return found[0] if single else found


class Composed(Operator):
    """An operator with a kernel for its value, whose derivatives are composed from its formula.

    The methods are PyTorch's protocol for a Function. Where a subclass has several outputs, `wanted` says
    which of them are not None.
    """

    @classmethod
    def apply(cls, *arguments) -> Any:
        """As `Operator.apply`; composed where `is_grads_batched` asks, whose vmap knows no Function."""
        if not torch._C._are_functorch_transforms_active():
            if legacy_batched(*arguments[:-1]):
                return cls.composed(*arguments)
            # what is saved within a level outlives it
            arguments = *unwrap_dead_wrappers(arguments[:-1]), arguments[-1]
        return super().apply(*arguments)

    @classmethod
    def composed(cls, *arguments):
        """The value by the formula, without what is not wanted."""
        return cls._keep(arguments[-1], super().composed(*arguments))

    @staticmethod
    def wanted(options: tuple) -> tuple[bool, ...] | None:
        """Which outputs are there, None for an operator with a single one."""
        return None

    @classmethod
    def setup_context(cls, ctx, inputs, output):
        """Keep the tensors and the options."""
        *tensors, ctx.options = inputs
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)
        ctx.set_materialize_grads(False)

    @classmethod
    def backward(cls, ctx, *cotangents):
        """Gradients of ⟨cotangents, formula⟩; differentiable again."""
        gradients: list[Tensor | None] = [None] * len(ctx.needs_input_grad)
        if all(c is None for c in cotangents):
            return tuple(gradients)
        # a level of torch.func that has ended leaves wrappers behind, which the next would take for its own
        tensors, cotangents = unwrap_dead_wrappers(ctx.saved_tensors), unwrap_dead_wrappers(cotangents)
        of_present, present, places = _present(cls.formula(ctx.options), tensors)
        outputs, pull = _vjp(of_present, *present)
        if isinstance(outputs, Tensor):
            pulled = pull(*cotangents)
        else:
            given = zip(cotangents, outputs, strict=True)
            pulled = pull(tuple(torch.zeros_like(out) if c is None else c for c, out in given))
        for i, gradient in zip(places, pulled, strict=True):
            gradients[i] = gradient
        return tuple(gradients)

    @classmethod
    def jvp(cls, ctx, *tangents):
        """Tangents of the formula."""
        options = ctx.options

        def rule(primals, tangents):
            of_present, present, places = _present(cls.formula(options), primals)
            given = tuple(
                torch.zeros_like(p) if tangents[i] is None else tangents[i]
                for i, p in zip(places, present, strict=True)
            )
            return cls._keep(options, jvp_by_pullbacks(of_present, tuple(present), given))

        return in_forward_mode(ctx, rule, tangents)

    @classmethod
    def vmap(cls, info, in_dims, *arguments):
        """The formula for each member of the batch."""
        *tensors, options = arguments
        of_present, present, places = _present(cls.formula(options), tensors, integers=True)
        out = torch.func.vmap(of_present, in_dims=tuple(in_dims[i] for i in places))(*present)
        return cls._keep(options, out), cls.out_dims(options)

    @classmethod
    def out_dims(cls, options: tuple):
        """Where `vmap` puts the batch: in front of each output that is there."""
        wanted = cls.wanted(options)
        return 0 if wanted is None else tuple(0 if want else None for want in wanted)

    @classmethod
    def _keep(cls, options: tuple, outputs):
        wanted = cls.wanted(options)
        if wanted is None:
            return outputs
        return tuple(out if want else None for out, want in zip(outputs, wanted, strict=True))

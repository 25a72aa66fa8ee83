"""The trace of a function's Hessian, with its error bar, by `ofa_kernels` alone: no language model.

    python examples/hessian_trace.py --probes 256

The function is a small network's output for each of some inputs. Its gradient maps an input to a vector of
the same length, and the gradient's Jacobian is the Hessian. `hutchinson_trace` needs Hessian-vector products
only, so it works where the Hessian is too large to write down. Here it is small, so the exact trace is shown
beside the estimate.
"""

import argparse

import torch
from torch.func import grad, hessian, vmap

import ofa_kernels as ok


def main(arguments: list[str] | None = None) -> tuple[ok.TraceEstimate, torch.Tensor]:
    """Print and return the estimates [rows] and the exact traces [rows]."""
    parser = argparse.ArgumentParser(description="The trace of a Hessian, with its error bar.")
    parser.add_argument("--probes", type=int, default=256, help="more probes, smaller error bars")
    parser.add_argument("--width", type=int, default=32)
    options = parser.parse_args(arguments)
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    width = options.width
    gamma, hidden, out = random(width), random(width, width) / width**0.5, random(width)

    def network(x: torch.Tensor) -> torch.Tensor:
        """[D] to a scalar, with a norm inside that is right at second order."""
        return torch.tanh(ok.rms_norm(x, gamma) @ hidden) @ out

    inputs = random(5, width)
    gradients = vmap(grad(network))  # [rows, D] to [rows, D], each row by itself
    identity = torch.ones(width, dtype=torch.float64)
    estimate = ok.hutchinson_trace(gradients, inputs, identity, n_probes=options.probes, seed=0)
    exact = vmap(hessian(network))(inputs).diagonal(dim1=-2, dim2=-1).sum(-1)
    for value, error, truth in zip(estimate.value, estimate.stderr, exact, strict=True):
        print(f"{value:8.3f} ± {error:.3f}   exact {truth:8.3f}   off by {(value - truth) / error:+.1f} σ")
    return estimate, exact


if __name__ == "__main__":
    main()

"""`ofa info`: versions, the machine, and which backend serves what."""

import importlib.metadata
import os
import platform
import sys

import torch
from rich.console import Console
from rich.table import Table

import ofa_kernels
from ofa.decoder.families import FAMILIES
from ofa.download import cache_dir
from ofa.models import SMOLLM2_Q4, SOURCE_FILE, fast_dtype
from ofa_kernels import cuda, native

PACKAGES = ("torch", "triton", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")


def show_info(console: Console) -> None:
    """Print it, with what is missing and why."""
    report = ofa_kernels.backend_report()
    table = Table(show_header=False)
    for name, value in _facts().items():
        table.add_row(name, value)
    console.print(table)
    backends = Table("backend", "state", "operators")
    for row in report.by_backend():
        backends.add_row(*row)
    console.print(backends)


def _facts() -> dict[str, str]:
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    cached = (cache_dir() / SMOLLM2_Q4 / SOURCE_FILE).is_file()
    return {
        "ofa-kernels": _version("ofa-kernels"),
        "python": f"{platform.python_version()} ({sys.executable})",
        **{name: _version(name) for name in PACKAGES},
        "processor": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads, {platform.machine()}",
        "GPU": gpu,
        "CUDA kernels": cuda.description(),
        "CPU kernels": native.missing() or f"built, {native.description()}",
        "fast type": f"{fast_dtype(device)}".removeprefix("torch."),
        "model families": ", ".join(FAMILIES),
        "cache": f"{cache_dir()} ({SMOLLM2_Q4} {'is there' if cached else 'not yet downloaded'})",
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"

"""What the numbers were measured on."""

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _git(*arguments: str) -> str:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""


def describe(device: str = "cpu") -> dict[str, str | int]:
    """Hardware, versions, commit and date, for a result's JSON."""
    commit = _git("rev-parse", "--short=10", "HEAD") or "unknown"
    about = {
        "cpu": _cpu(),
        "cores": os.cpu_count() or 0,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "transformers": importlib.metadata.version("transformers"),
        "python": platform.python_version(),
        "commit": commit + (" + changes" if _git("status", "--porcelain") else ""),
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
    }
    if device == "cuda":
        card = torch.cuda.get_device_properties(0)
        about |= {
            "card": card.name,
            "card_memory": card.total_memory,
            "cuda": torch.version.cuda or "unknown",
        }
    return about


def line(about: dict) -> str:
    """`describe`'s answer as one line of text."""
    gpu = f"{about['card']}, CUDA {about['cuda']}, " if "card" in about else ""
    return (
        f"{gpu}{about['cpu']}, {about['cores']} cores, {about['threads']} threads, torch {about['torch']}, "
        f"transformers {about['transformers']}, Python {about['python']}, commit {about['commit']}, "
        f"{about['date']}"
    )

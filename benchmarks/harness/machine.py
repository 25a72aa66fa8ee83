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
    found = {
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
        found |= {
            "card": card.name,
            "card_memory": card.total_memory,
            "cuda": torch.version.cuda or "unknown",
        }
    return found


def line(found: dict) -> str:
    """`describe`'s answer as one line of text."""
    gpu = f"{found['card']}, CUDA {found['cuda']}, " if "card" in found else ""
    return (
        f"{gpu}{found['cpu']}, {found['cores']} cores, {found['threads']} threads, torch {found['torch']}, "
        f"transformers {found['transformers']}, Python {found['python']}, commit {found['commit']}, "
        f"{found['date']}"
    )

"""From a sweep to `plan.py`: each number of its table as the sweep speaks for it, with the reason beside it.

Nothing is changed: what is proposed is for reading, and for the compile gate, before it is copied.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from benchmarks.gpu import sweep
from benchmarks.gpu.sweep import Choice

Times = Mapping[int, Mapping[Choice, float]]  # seconds by columns and choice, the present choice first
NOISE = 1.02  # a smaller ratio is the difference between two runs of one choice, and changes nothing


def varied(times: Times, name: str) -> Times:
    """The choices that differ from the present one in this respect only."""
    of_columns = {}
    for columns, of_length in times.items():
        now = next(iter(of_length))
        of_columns[columns] = {
            choice: seconds
            for choice, seconds in of_length.items()
            if replace(choice, **{name: getattr(now, name)}) == now
        }
    return of_columns


def relative(times: Times, value_of: Callable[[Choice], object]) -> dict[object, float]:
    """By value, the mean over lengths of its best time over the best of all.

    The mean is geometric, over the lengths at which there is more than one value; a value that is missing at
    any of them is left out, since its mean would be of other lengths.
    """
    ratios: dict[object, list[float]] = {}
    n_lengths = 0
    for of_length in times.values():
        best: dict[object, float] = {}
        for choice, seconds in of_length.items():
            best[value_of(choice)] = min(seconds, best.get(value_of(choice), math.inf))
        if len(best) > 1:
            n_lengths += 1
            for value, seconds in best.items():
                ratios.setdefault(value, []).append(seconds / min(best.values()))
    return {
        value: math.exp(sum(map(math.log, of_value)) / n_lengths)
        for value, of_value in ratios.items()
        if len(of_value) == n_lengths
    }


def best(ratios: Mapping[object, float], now: object) -> tuple[object, str]:
    """The fastest value, the present one where noise may be all there is between them, and the reason."""
    if not ratios:
        return now, "not measured"
    ordered = sorted(ratios.items(), key=lambda item: item[1])
    fastest = now if ratios.get(now, math.inf) <= ordered[0][1] * NOISE else ordered[0][0]
    return fastest, "time by value: " + ", ".join(f"{value} {ratio:.2f}" for value, ratio in ordered)


def longest_whole(times: Times, now: int) -> tuple[int, str]:
    """Up to which length a program should hold a whole row: as long as that is no slower than blocks."""
    ratios = {}
    for of_length in times.values():
        whole, blocks = ([s for c, s in of_length.items() if c.whole is kind] for kind in (True, False))
        if whole and blocks:
            ratios[next(c.block for c in of_length if c.whole)] = min(whole) / min(blocks)
    if not ratios:
        return now, "not measured"
    longest = min(ratios) // 2
    for size, ratio in sorted(ratios.items()):
        if ratio > (NOISE if size <= now else 1 / NOISE):
            break
        longest = size
    listed = ", ".join(f"{size} {ratio:.2f}" for size, ratio in sorted(ratios.items()))
    return longest, f"time of whole rows over that of blocks, by length: {listed}"


def residency(name: str, times: Times) -> list[str]:
    """A line of the table, after the reason of each of its numbers."""
    from ofa_kernels.triton import plan

    now = getattr(plan, name)
    of_kind = {
        kind: {n: {c: s for c, s in of.items() if c.whole is kind} for n, of in times.items()}
        for kind in (True, False)
    }
    chosen = {
        "whole": longest_whole(times, now.whole),
        "block": best(relative(of_kind[False], lambda c: c.block), now.block),
        "per_warp": best(relative(of_kind[True], lambda c: c.block // c.warps), now.per_warp),
        "registers": best(relative(varied(times, "registers"), lambda c: c.registers), now.registers),
    }
    lines = [f"# {part}: {value}, now {getattr(now, part)}; {why}" for part, (value, why) in chosen.items()]
    values = [str(value) for value, _ in chosen.values()] + ["sum_f64=True"] * now.sum_f64
    return [*lines, f"{name} = Residency({', '.join(values)})", ""]


def proposal(rows: Sequence[dict]) -> list[str]:
    """The lines of `plan.py`'s table."""
    by_item = sweep.timed(rows)
    lines = []
    for name in sweep.CASES:
        times = {columns: of for (kernel, columns), of in by_item.items() if kernel == name}
        if times:
            lines += residency(name, times)
        for shared in ("programs", "pipeline", "partials"):
            ratios = relative(varied(times, shared), lambda c, shared=shared: getattr(c, shared))
            if ratios:
                value, why = best(ratios, None)
                lines += [f"# {shared} of {name}: {value}; {why}", ""]
    return lines


def main(path: Path, console: Console) -> int:
    """Print the proposal; the exit status is 2 where the file is no sweep."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        lines = proposal(data["rows"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        console.print(f"{path} is no sweep.json of a run ({type(error).__name__}: {error})", style="red")
        return 2
    about = data["machine"]
    console.print(f"# from {path}: {about.get('card', 'unknown card')}, {about.get('date', 'no date')}")
    console.print("\n".join(lines), highlight=False, markup=False, soft_wrap=True)
    return 0

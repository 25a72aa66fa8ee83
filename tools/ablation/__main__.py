"""What a search for settings found, as a page: each setting against one, what it varies, λ as a picture.

    python -m tools.ablation results/tuning --against "ln-tuning:lr=3e-3+epochs=30" --write docs/ablation.md

The folder holds cells*.jsonl of `ofa compare`. The picture is written beside the page, as .png. Cells of
different models, types, protocols or test sets are refused.
"""

import argparse
import sys
from pathlib import Path

from rich.console import Console

from ofa.compare.cells import read_cells
from ofa.compare.statistics import values_of
from ofa.compare.variants import one_of
from tools.ablation.page import page
from tools.ablation.picture import plot_lambdas
from tools.ablation.results import check, results


def main(argv: list[str] | None = None) -> int:
    """Write the page and its picture; the exit status is 1 where the cells are refused."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.ablation", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="where cells*.jsonl are")
    parser.add_argument("--against", required=True, metavar="METHOD", help="the reference")
    parser.add_argument("--write", type=Path, required=True, metavar="FILE", help="the page, a .md file")
    options = parser.parse_args(argv)

    console = Console(highlight=False, soft_wrap=True)
    try:
        rows = read_cells(options.folder)
        if not rows:
            raise ValueError(f"{options.folder} holds no cells*.jsonl with finished cells")
        check(rows)
        reference = one_of(sorted(values_of(rows, "method")), options.against)
        found = results(rows, reference)
    except ValueError as error:
        console.print(f"FAIL {error}", style="red", markup=False)
        return 1
    picture = options.write.with_suffix(".png")
    drawn = plot_lambdas(found, picture)
    command = f'python -m tools.ablation {options.folder} --against "{reference}" --write {options.write}'
    text = page(rows, found, command, picture.name if drawn else None)
    options.write.write_text(text, encoding="utf-8")
    written = [options.write, *([picture] if drawn else [])]
    console.print(f"written: {', '.join(map(str, written))}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

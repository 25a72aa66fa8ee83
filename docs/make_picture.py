"""Make docs/accuracy-time.png from the finished cells under results/: `python docs/make_picture.py`."""

from pathlib import Path

from ofa.compare.cells import read_cells
from ofa.compare.plots import plot_accuracy_time

ROOT = Path(__file__).parent.parent
PICTURE = Path(__file__).with_name("accuracy-time.png")
FOLDERS = ("smollm2-135m-instruct-q4", "smollm2-135m-instruct-q4-200")


def panels(results: Path = ROOT / "results") -> dict[str, list[dict]]:
    """The panels' titles and cells: protocol A of the two folders that hold the methods."""
    by_folder = {name: read_cells(results / name) for name in FOLDERS}
    return {
        f"{name}: {rows[0]['n_test']} test rows a task": [row for row in rows if row["protocol"] == "A"]
        for name, rows in by_folder.items()
    }


if __name__ == "__main__":
    plot_accuracy_time(panels(), PICTURE)

"""Progress bars, and what advances them."""

from collections.abc import Callable, Iterable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

# wraps the iteration over batches
Track = Callable[[Iterable], Iterable]


def progress_bar(visible: bool = True) -> Progress:
    """A bar on standard error with free text and the time that remains."""
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[info]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        disable=not visible,
    )


def tracker(bar: Progress, name: str) -> Track:
    """A wrapper of an iteration over batches that advances a line of the bar."""

    def track(batches: Iterable) -> Iterator:
        batches = list(batches)
        line = bar.add_task(name, total=len(batches), info="")
        for batch in batches:
            yield batch
            bar.advance(line)

    return track

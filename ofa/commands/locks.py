"""One run at a time in a folder."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout


def check_folder(folder: Path) -> None:
    """Refuse a place that can't become a folder.

    Raises:
        ValueError: it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file; give a folder")


@contextmanager
def only_run(folder: Path, part: str = "run") -> Iterator[None]:
    """Hold a folder against a second run; made where it is missing, and removed again if it stays empty.

    The operating system keeps the lock, so that a process that was killed holds nobody up.

    Args:
        folder: where the run writes.
        part: what of the folder is held, where several processes share it.

    Raises:
        ValueError: another run holds it, or it is a file.
        OSError: it can't be written to.
    """
    check_folder(folder)
    made = [place for place in (folder, *folder.parents) if not place.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f".{part}.lock"
    lock = FileLock(file)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        raise ValueError(
            f"another run is writing to {folder}; let it end, or give another folder (--out)"
        ) from None
    try:
        yield
    finally:
        # before the lock is free: afterwards the file may be another run's; Windows removes it later
        with suppress(OSError):
            file.unlink()
        lock.release()
        with suppress(OSError):  # it holds something
            for place in made:
                place.rmdir()

"""The command `ofa`, also as `python -m ofa`."""

from ofa.interrupts import stop_at_once


def main() -> None:
    """Run a command."""
    stop_at_once()
    from ofa.cli import app

    app()


if __name__ == "__main__":
    main()

"""`python -m ofa` is `ofa`."""

from ofa.cli import app

app()

"""The page of a search, as Markdown."""

import math
import statistics
import textwrap
from collections.abc import Sequence

from ofa.compare.statistics import in_set, values_of
from tools.ablation.picture import CAPTION
from tools.ablation.results import Result
from tools.ablation.tables import code, draws_text, group_table, round_table
from tools.ablation.variations import grouped


def _luck(n: int) -> float:
    """The expected largest of n independent standard normal numbers (Blom 1958)."""
    return statistics.NormalDist().inv_cdf((n - 0.375) / (n + 0.25))


def _paragraph(text: str) -> str:
    return textwrap.fill(" ".join(text.split()), 120, break_long_words=False, break_on_hyphens=False) + "\n"


def introduction(rows: Sequence[dict], found: Sequence[Result], command: str) -> list[str]:
    """What the page is, from how many cells, and how to read it."""
    tasks, seeds, first = values_of(rows, "task"), sorted(values_of(rows, "seed")), rows[0]
    sizes = " or ".join(map(str, sorted(values_of(rows, "n_test"))))
    hours = sum(row["seconds_fit"] for row in rows) / 3600
    shared = ", where a cell of a set counts its share of the set's time" * any(map(in_set, rows))
    known = 100 / math.sqrt(2 * max(1, len(tasks) - 1))  # of a standard deviation of so many numbers
    paragraphs = (
        f"""{len(found)} settings, {len(rows)} cells, {hours:.1f} hours of training{shared}: {len(tasks)}
        tasks ({", ".join(tasks)}), {draws_text(seeds)} of the shots, {sizes} test rows a task, protocol
        {first["protocol"]}, {first["model"]} in {first["dtype"]}. This page and its picture are made from the
        finished cells by""",
        f"""Differences are points of accuracy against {code(found[0])}, paired: what is subtracted is its
        accuracy on the very same tasks and draws. Standard errors by task say what other tasks would change,
        by draw what other shots would; by cell they take all cells for independent. From {len(tasks)} tasks
        an error is itself known to about {known:.0f} %. And the best of many is partly the luckiest: the
        first of {len(found)} settings that change nothing would come out about {_luck(len(found)):.1f}
        standard errors above their mean.""",
        """Accuracy, log-loss (in nats), calibration error, and [J and H](method.md) at test texts are means
        over the setting's cells.""",
    )
    texts = [_paragraph(text) for text in paragraphs]
    return ["# Settings of norm tuning\n", texts[0], f"```sh\n{command}\n```\n", *texts[1:]]


def page(rows: Sequence[dict], found: Sequence[Result], command: str, picture: str | None) -> str:
    """The Markdown of it all.

    Args:
        rows: finished cells, which `check` lets through.
        found: what `results` makes of them.
        command: that makes the page.
        picture: the file of `plot_lambdas`, None where it has nothing to draw.
    """
    parts = [*introduction(rows, found, command), *_rounds(found), *_groups(found)]
    if picture:
        parts += ["## λ\n", f"![λ against accuracy, J and H]({picture})\n", _paragraph(CAPTION)]
    return "\n".join(parts)


def _rounds(found: Sequence[Result]) -> list[str]:
    rounds = sorted({result.draws for result in found[1:] if result.draws}, key=lambda d: (-len(d), d))
    text = """Settings that were run on the same draws, the best first. Those that lack cells say how many
        they have, and stand below: their means are of other tasks."""
    if len(rounds) > 1:
        text += """ Settings with more draws were chosen by the earlier ones: part of their difference is the
            luck that they were chosen for."""
    parts = ["## All settings\n", _paragraph(text), *(round_table(found, d).markdown() for d in rounds)]
    apart = ", ".join(code(result) for result in found[1:] if not result.draws)
    return [*parts, _paragraph(f"No cell in common with the reference: {apart}.")] if apart else parts


def _groups(found: Sequence[Result]) -> list[str]:
    by_name = {result.variation.name: result for result in found[1:] if result.draws}
    text = """By the options that differ from the reference's, in the order of their values. Every number is
        minus the reference's on the same cells; lines of fewer draws say less."""
    groups = grouped([result.variation for result in by_name.values()])
    tables = (
        group_table(title, [by_name[member.name] for member in members]).markdown()
        for title, members in groups.items()
    )
    return ["## What was varied\n", _paragraph(text), *tables]

"""What is written: every row as JSON, the tables as Markdown, what was printed, and the sweep by itself."""

import json
import re
from collections.abc import Mapping
from pathlib import Path

from benchmarks.gpu.runner import Outcome
from benchmarks.gpu.section import SECTIONS, Section
from benchmarks.harness import machine
from benchmarks.harness.measure import first_line
from benchmarks.harness.tables import to_markdown

DATA, TEXT, LOG, SWEEP = "gpu.json", "gpu.md", "gpu.log", "sweep.json"
LARGEST = 15 * 2**20  # bytes of a file


class Record:
    """The results of a run, and of earlier runs into the same folder where it does not replace them.

    Attributes:
        folder: where the files are.
        sections: by name, what became of each.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.sections: dict[str, Outcome] = {}
        path = folder / DATA
        if path.exists():
            saved = json.loads(path.read_text(encoding="utf-8"))["sections"]
            self.sections = {name: Outcome(**outcome, log="") for name, outcome in saved.items()}

    def add(self, section: Section, outcome: Outcome) -> None:
        """Take a section's outcome, and write everything there is by now."""
        self.sections[section.name] = outcome
        self.write()

    @property
    def machine(self) -> dict:
        """What the card and its machine are; empty until the environment is known."""
        outcome = self.sections.get("environment", Outcome(""))
        return next((row for row in outcome.rows if row["kind"] == "machine"), {})

    def write(self) -> None:
        """All files; each is whole at any moment."""
        self.folder.mkdir(parents=True, exist_ok=True)
        ordered = [(s.name, self.sections[s.name]) for s in SECTIONS if s.name in self.sections]
        sections = {
            name: {"status": of.status, "seconds": of.seconds, "rows": of.rows} for name, of in ordered
        }
        self._replace(DATA, json.dumps({"sections": sections}, indent=1))
        self._replace(TEXT, self.markdown())
        # of a section that an earlier run left there is no output
        logs = [f"===== {name}: {of.status}, {of.seconds:.0f} s\n{of.log}" for name, of in ordered if of.log]
        if logs:
            self._replace(LOG, "\n".join(logs))
        if "sweep" in sections:
            self._replace(
                SWEEP, json.dumps({"machine": self.machine, "rows": sections["sweep"]["rows"]}, indent=1)
            )

    def _replace(self, name: str, text: str) -> None:
        unfinished = self.folder / f"{name}.part"
        unfinished.write_bytes(text.encode()[-LARGEST:])
        unfinished.replace(self.folder / name)

    def finding(self, section: Section) -> str:
        """A section's rows in one line."""
        try:
            return section.module.finding(self.sections[section.name].rows)
        except Exception as error:  # a row that can't be read must not hide the other sections
            return first_line(error)

    def summary(self) -> list[tuple[str, ...]]:
        """A line a section: name, status, seconds, and what it says."""
        return [
            (section.name, outcome.status, f"{outcome.seconds:.0f}", self.finding(section))
            for section in SECTIONS
            if (outcome := self.sections.get(section.name)) is not None
        ]

    def markdown(self) -> str:
        """Everything for reading."""
        about: Mapping = self.machine
        lines = [f"# {about.get('card', 'a card whose name was not read')}", ""]
        if about:
            lines += [machine.line(dict(about)), ""]
        lines += to_markdown("Sections", ("section", "status", "s", "finding"), self.summary())
        for section in SECTIONS:
            outcome = self.sections.get(section.name)
            if outcome is None:
                continue
            lines += [f"## {section.name}: {section.title}", ""]
            try:
                tables = section.module.tables(outcome.rows)
            except Exception as error:  # as above
                lines += [first_line(error), ""]
                continue
            for title, header, cells in tables:
                escaped = [
                    tuple(re.sub(r"\s+", " ", cell).replace("|", "\\|") for cell in row) for row in cells
                ]
                lines += to_markdown(title, header, escaped)
        return "\n".join(lines)

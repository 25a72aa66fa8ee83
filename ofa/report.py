"""One table of text for the screen, for Markdown and for files."""

import re
from dataclasses import dataclass

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table


def folded(name: str, width: int) -> str:
    """A method's name in lines of up to `width` characters, broken before its options only."""
    lines = [""]
    for part in re.split(r"(?<=[:+])(?=\S)", name):
        if lines[-1] and len(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


@dataclass(frozen=True)
class Section:
    """A titled table of text, for the screen and for Markdown."""

    title: str
    header: tuple[str, ...]
    rows: list[tuple[str, ...]]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """For the screen; where it is too narrow, columns go on below, beside the first one again."""
        # a space on both sides and a line
        widths = [3 + max(map(len, column)) for column in zip(self.header, *self.rows, strict=True)]
        # long names take several lines and leave room for numbers
        widths[0] = min(widths[0], options.max_width // 2, options.max_width - 1 - max(widths[1:]))
        blocks, room = [], 0
        for i, width in enumerate(widths[1:], 1):
            if not blocks or width > room:
                blocks.append([0])
                room = options.max_width - 1 - widths[0]
            blocks[-1].append(i)
            room -= width
        for block in blocks:
            table = Table(title=self.title if block is blocks[0] else None)
            for i in block:
                table.add_column(self.header[i], justify="right" if i else "left", overflow="fold")
            for name, *cells in self.rows:
                table.add_row(folded(name, widths[0] - 3), *(cells[i - 1] for i in block[1:]))
            yield table

    def markdown(self) -> str:
        """For a file."""
        lines = [f"**{self.title}**", "", "| " + " | ".join(self.header) + " |"]
        lines.append("| --- |" + " ---: |" * (len(self.header) - 1))
        lines += ["| " + " | ".join(row) + " |" for row in self.rows]
        return "\n".join([*lines, ""])

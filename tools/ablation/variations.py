"""What a setting of a search varies: the options in which it differs from a reference."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ofa.compare.methods import Method
from ofa.compare.variants import method_of
from ofa.config import Schedule

# titles of the groups that no option tells apart
SAME, OTHERS = "the reference's options by another name", "other methods"
# of the options that any training has
SCHEDULE = tuple(item.name for item in fields(Schedule))


@dataclass(frozen=True)
class Variation:
    """A setting beside a reference.

    Attributes:
        name: of the setting, as in its cells.
        options: of the setting, by name and with the defaults; none for a method without.
        differing: the names of those that the reference has with another value, in the method's order. None
            for a method of another kind, whose options say nothing of the reference's.
    """

    name: str
    options: dict[str, Any]
    differing: tuple[str, ...] | None

    @classmethod
    def of(cls, name: str, reference: str) -> "Variation":
        """Of two names that `method_of` reads.

        Raises:
            ValueError: it does not read them.
        """
        method, other = method_of(name), method_of(reference)
        values, others = _options(method), _options(other)
        if type(method) is not type(other):
            return cls(name, values, None)
        return cls(name, values, tuple(key for key in values if values[key] != others[key]))

    @property
    def group(self) -> tuple[str, ...]:
        """What the setting is an example of: the options that differ, or where the schedule alone does, it.

        A schedule that differs as well makes no other group: it is the same idea at another learning rate.
        """
        if self.differing is None:
            return (OTHERS,)
        if not self.differing:
            return (SAME,)
        return tuple(key for key in self.differing if key not in SCHEDULE) or SCHEDULE

    @property
    def label(self) -> str:
        """The differing options with their values; the setting's name where there is nothing to tell."""
        return self.without("") or self.name

    def without(self, left_out: str) -> str:
        """The differing options with their values, but one; empty for none."""
        differing = (key for key in self.differing or () if key != left_out)
        return ", ".join(f"{key}={_text(self.options[key])}" for key in differing)

    def others(self, left_out: str) -> tuple:
        """All options but one: what the settings of a family have in common."""
        return tuple((key, value) for key, value in self.options.items() if key != left_out)

    @property
    def place(self) -> tuple:
        """Where the setting stands in its group: by value, numbers before all else, then by name."""
        values = [self.options[key] for key in self.group if key in self.options]
        ordered = [
            (0, value, "") if isinstance(value, int | float) else (1, 0, str(value)) for value in values
        ]
        return (*ordered, self.name)


def _options(method: Method) -> dict[str, Any]:
    """All of a method's options, an ablation's among them; none for one without."""
    options = getattr(method, "options", None)
    values = {} if options is None else dict(vars(options))
    ablation = values.pop("ablation", None)
    return values if ablation is None else values | vars(ablation)


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def grouped(variations: Sequence[Variation]) -> dict[str, list[Variation]]:
    """A group's title: its settings by value.

    First comes the schedule, of which the title names the options that do vary, then the groups of few
    options in the order of their names, and what no option tells apart.
    """
    groups: dict[tuple[str, ...], list[Variation]] = {}
    for variation in variations:
        groups.setdefault(variation.group, []).append(variation)
    titled = {}
    for key in sorted(groups, key=lambda key: (key != SCHEDULE, key[0] in (SAME, OTHERS), len(key), key)):
        members = sorted(groups[key], key=lambda member: member.place)
        varied = {name for member in members for name in member.differing or ()}
        titled[", ".join(name for name in key if key != SCHEDULE or name in varied)] = members
    return titled

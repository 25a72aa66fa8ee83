"""What Python knows of the library is what its header says."""

import re
from pathlib import Path

import pytest

from ofa_kernels.structs import DTYPES, STRUCTS, struct_format

HEADER = (Path(__file__).parents[3] / "csrc" / "include" / "ofa.h").read_text(encoding="utf-8")
CODES = {"int64_t": "q", "uint64_t": "Q", "double": "d"}


def structs(header):
    """{struct: (its members in their order, its format)}, as the header declares them."""
    found = {}
    text = re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)
    for body, name in re.findall(r"typedef struct \{(.*?)\} ofa_(\w+);", text, re.DOTALL):
        members, codes = [], "@"
        for declaration in body.split(";")[:-1]:
            kind, names = re.fullmatch(r"(?:const )?(\w+\*?) ([\w, ]+)", declaration.strip()).groups()
            members += names.split(", ")
            codes += ("q" if kind.endswith("*") else CODES[kind]) * len(names.split(", "))
        found[name] = " ".join(members), codes
    return found


def packed():
    """The same, as calls are packed."""
    return {name: (members, struct_format(members)) for name, members in STRUCTS.items()}


def test_structs_are_those_of_the_header():
    assert packed() == structs(HEADER)


def test_every_operator_of_the_header_has_its_struct():
    assert re.findall(r"    X\((\w+)\)", HEADER) == list(STRUCTS)


def test_numbers_of_types_are_those_of_the_header():
    numbers = dict(re.findall(r"OFA_(\w*\d+) = (\d)", HEADER))
    assert {name.lower(): int(number) for name, number in numbers.items()} == {
        str(dtype).removeprefix("torch."): number for dtype, number in DTYPES.items()
    }


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("double eps, offset;", "double offset, eps;"),
        ("void* dx; /* [rows, columns], may", "void* dw; /* [rows, columns], may"),
        ("    void* lengths;", "    int64_t more;\n    void* lengths;"),
        ("    int64_t layer;\n", ""),
        ("uint64_t seed;", "int64_t seed;"),
        ("int64_t states_t, states_b;", "double states_t, states_b;"),
    ],
)
def test_another_header_is_noticed(before, after):
    assert before in HEADER
    assert packed() != structs(HEADER.replace(before, after, 1))

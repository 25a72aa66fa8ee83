"""The checks of the emulated kernels notice what they are for: each planted bug fails the one it names.

A CPU, whose memory is one and whose kernels follow each other, can't show a missing fence, a kernel that
begins early and doesn't wait for the one in front, or a cluster that a card has no room for. Nor do these
tests notice reads of memory that change no result, and sums in another order that is as fixed.
"""

import shutil

import pytest

from tests.ofa_kernels.cuda_emulated.driver import Library
from tests.ofa_kernels.cuda_emulated.planted import BUGS
from tools import emulation


def replace(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert text.count(old) == 1
    file.write_text(text.replace(old, new), encoding="utf-8")


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_noticed(library, tmp_path, bug):
    for folder in emulation.FOLDERS:
        shutil.copytree(emulation.CSRC / folder, tmp_path / folder)
    replace(tmp_path / "cuda" / bug.file, bug.old, bug.new)
    # of the rows' types two are enough, and compiled in half the time
    replace(
        tmp_path / "cuda" / "entry.cuh", "f(static_cast<double*>(nullptr))", "f(static_cast<float*>(nullptr))"
    )
    replace(
        tmp_path / "cuda" / "entry.cuh",
        "f(static_cast<float16*>(nullptr))",
        "f(static_cast<bfloat16*>(nullptr))",
    )
    changed = Library(emulation.library(tmp_path, [tmp_path / "cuda" / bug.kernel]))

    bug.check(library)
    with pytest.raises(AssertionError):
        bug.check(changed)

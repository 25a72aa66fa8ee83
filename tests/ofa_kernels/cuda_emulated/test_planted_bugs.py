"""The checks of the emulated kernels notice what they are for: each planted bug fails the one it names."""

import shutil

import pytest

from tests.ofa_kernels.cuda_emulated.driver import Library
from tests.ofa_kernels.cuda_emulated.planted import BUGS
from tools import emulation


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_is_noticed(library, tmp_path, bug):
    for folder in emulation.FOLDERS:
        shutil.copytree(emulation.CSRC / folder, tmp_path / folder)
    file = tmp_path / "cuda" / bug.file
    text = file.read_text(encoding="utf-8")
    assert text.count(bug.old) == 1
    file.write_text(text.replace(bug.old, bug.new), encoding="utf-8")
    changed = Library(emulation.library(tmp_path, [tmp_path / "cuda" / bug.kernel]))

    bug.check(library)
    with pytest.raises(AssertionError):
        bug.check(changed)

"""Launch choices: which are tried, that they are launched, and that a wrong one is never the fastest."""

from dataclasses import replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import sweep
from benchmarks.gpu.card import Rehearsal
from benchmarks.gpu.launches import watching
from benchmarks.gpu.section import SECTIONS, Task
from ofa_kernels.triton import launch


@pytest.mark.parametrize(("residency", "columns"), sweep.items())
def test_choices_begin_with_the_present_one_and_can_be_launched(residency, columns):
    choices = sweep.choices(residency, columns)
    assert choices[0] == sweep.present(residency, columns)
    assert len(choices) == len(set(choices)) > 3
    for choice in choices:
        assert choice.registers * choice.warps * sweep.WARP_THREADS <= sweep.REGISTER_FILE
        assert choice.whole == (choice.block >= columns)
    shared = residency in sweep.SHARED_ROWS
    assert all((choice.programs is not None) == shared == (choice.partials is not None) for choice in choices)
    assert len({choice.pipeline for choice in choices}) == (3 if residency == "BACKWARD" else 1)
    long = columns >= 2 * sweep.BLOCKS[0]
    assert len({choice.whole for choice in choices}) == (2 if long and columns <= sweep.LONGEST_WHOLE else 1)


def test_a_choice_is_what_is_launched():
    x, w = torch.randn(6, 700), torch.randn(700)
    choice = sweep.Choice(256, False, 2, 96, programs=3, pipeline=2, partials=(16, 128))
    seen = {}
    note = watching(lambda kernel, args, options: seen.update({kernel.fn.__name__: options}))
    with note, sweep.launching(choice):
        dx, dw = launch.rms_norm_backward(x, w, x, None, 1e-6, 0.0, True, True)
    backward, sums = seen["rms_norm_backward"], seen["sum_partials"]
    names = ("BLOCK_N", "STAGE", "num_warps", "maxnreg", "PIPELINE")
    assert [backward[name] for name in names] == [256, "apply", 2, 96, 2]
    assert (sums["BLOCK_P"], sums["BLOCK_N"]) == (16, 128)
    now = launch.rms_norm_backward(x, w, x, None, 1e-6, 0.0, True, True)
    torch.testing.assert_close((dx, dw), now)


def test_a_choice_that_is_wrong_or_fails_is_not_timed(monkeypatch):
    right, calls = launch.rms_norm_forward, []

    def forward(*args):
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("out of resource: registers")
        return right(*args) * (2 if len(calls) == 3 else 1)

    monkeypatch.setattr(launch, "rms_norm_forward", forward)
    card = Rehearsal()
    card.rehearsal = False  # so that none is left out
    monkeypatch.setattr(card, "graph", lambda run: lambda: None)  # each choice runs once, to be checked
    found = list(sweep.measure(card, "FORWARD", 64, 3))
    assert [bool(row["seconds"]) for row in found] == [True, False, False, *[True] * (len(found) - 3)]
    assert "out of resource" in found[1]["note"] and "wrong by" in found[2]["note"]
    assert found[0]["present"] and not any(row["present"] for row in found[1:])


def test_kernels_in_doubt_are_left_out(monkeypatch):
    monkeypatch.setattr(sweep, "measure", lambda card, residency, *_: iter([{"residency": residency}]))
    found = list(sweep.rows(Rehearsal(), Task("out", wrong=("sum_partials", "rms_norm_jvp"))))
    assert found == [{"residency": "FORWARD"}]


def test_the_table_names_the_fastest_choice():
    now = sweep.Choice(4096, True, 8, 128)
    found = [
        {
            "kind": "choice",
            "residency": "FORWARD",
            "columns": 4096,
            "choice": {**vars(choice)},
            "seconds": seconds,
            "percent_of_copy": 100 / seconds,
            "note": "",
        }
        for choice, seconds in ((now, 2.0), (replace(now, warps=4), 1.0))
    ]
    ((_, _, ((name, present, _, fastest, share, ratio),)),) = sweep.tables(found)
    assert (name, present) == ("FORWARD, 4096", "4096 × 8 warps, 128 registers")
    assert (fastest, share, ratio) == ("4096 × 4 warps, 128 registers", "100", "0.50")
    assert sweep.finding(found) == "the fastest choices are 2.00 to 2.00 times as fast as the present ones"


def test_the_sweep_fits_its_section():
    (section,) = (section for section in SECTIONS if section.name == "sweep")
    count = sum(len(sweep.choices(*item)) for item in sweep.items())
    # checked, captured and timed, and compiled where that was not done ahead
    assert count * (0.1 + 0.25) <= section.seconds <= section.limit


def test_what_is_compiled_ahead_is_launched_on_nothing():
    assert len(list(sweep.launches())) == sum(len(sweep.choices(*item)) for item in sweep.items())

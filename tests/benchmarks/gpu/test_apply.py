"""What a sweep speaks for, from times that are made up so that the answer is known."""

import json
from dataclasses import asdict, replace

import pytest
from rich.console import Console

pytest.importorskip("triton", reason="Triton is not installed")

from benchmarks.gpu import apply
from benchmarks.gpu.__main__ import main
from benchmarks.gpu.sweep import Choice

NOW = Choice(4096, True, 8, 128)


def rows(residency, columns, times):
    """Rows as the sweep writes them; the first choice is the present one."""
    return [
        {
            "kind": "choice",
            "residency": residency,
            "columns": columns,
            "choice": asdict(choice),
            "seconds": seconds,
            "note": "",
        }
        for choice, seconds in times.items()
    ]


def whole(columns, warps=8):
    return replace(NOW, block=columns, warps=warps)


def blocks(warps=8):
    return replace(NOW, whole=False, warps=warps)


def test_rows_are_held_whole_for_as_long_as_that_is_no_slower():
    times = {
        8192: {whole(8192, 16): 1.0, blocks(): 1.5},
        16384: {whole(16384, 16): 2.0, blocks(): 2.5},
        32768: {blocks(): 4.0, whole(32768, 32): 3.0},
        65536: {blocks(): 8.0},
    }
    longest, why = apply.longest_whole(times, now=16384)
    assert longest == 32768
    assert "8192 0.67, 16384 0.80, 32768 0.75" in why
    slower = {**times, 16384: {whole(16384, 16): 2.0, blocks(): 1.0}}
    assert apply.longest_whole(slower, now=16384)[0] == 8192, "what is longer than a slower one is not whole"
    none = {columns: {blocks(): 1.0, whole(columns): 2.0} for columns in (8192, 16384)}
    assert apply.longest_whole(none, now=16384)[0] == 4096
    assert apply.longest_whole({}, now=16384) == (16384, "not measured")


def test_noise_changes_nothing():
    times = {16384: {whole(16384, 16): 1.01, blocks(): 1.0}, 32768: {blocks(): 1.01, whole(32768): 1.0}}
    assert apply.longest_whole(times, now=16384)[0] == 16384
    assert apply.best({512: 1.015, 1024: 1.0}, 512)[0] == 512
    assert apply.best({512: 1.03, 1024: 1.0}, 512)[0] == 1024


def test_values_are_compared_where_all_of_them_were_measured():
    times = {
        4096: {whole(4096, 8): 1.0, whole(4096, 4): 1.2},
        8192: {whole(8192, 16): 2.0, whole(8192, 8): 4.0, whole(8192, 32): 1.0},
        576: {whole(1024, 2): 1.0},  # a single value compares nothing
    }
    found = apply.relative(times, lambda choice: choice.block // choice.warps)
    assert set(found) == {512, 1024}
    assert found[512] == pytest.approx((1.0 * 2.0) ** 0.5)
    assert found[1024] == pytest.approx((1.2 * 4.0) ** 0.5)


def test_a_choice_is_varied_in_one_respect():
    times = {4096: {NOW: 1.0, replace(NOW, registers=64): 0.5, replace(NOW, registers=64, warps=4): 0.1}}
    assert list(apply.varied(times, "registers")[4096]) == [NOW, replace(NOW, registers=64)]


def test_the_table_of_a_file_is_printed_with_its_reasons(tmp_path, capsys):
    found = rows("FORWARD", 16384, {whole(16384, 16): 1.0, blocks(): 2.0})
    found += rows("FORWARD", 32768, {blocks(): 2.0, whole(32768, 32): 1.0})
    found += rows("BACKWARD", 4096, {replace(NOW, programs=264): 2.0, replace(NOW, programs=528): 1.0})
    found.append(
        {"kind": "choice", "residency": "FORWARD", "columns": 4, "choice": {}, "seconds": None, "note": "n"}
    )
    path = tmp_path / "sweep.json"
    path.write_text(json.dumps({"machine": {"card": "Some Card", "date": "2026-01-01"}, "rows": found}))
    assert main(["--apply", str(path)]) == 0
    printed = capsys.readouterr().out
    assert "Some Card, 2026-01-01" in printed
    assert "FORWARD = Residency(32768, 4096," in printed
    assert "# whole: 32768, now 16384; time of whole rows over that of blocks" in printed
    assert "# programs of BACKWARD: 528; time by value: 528 1.00, 264 2.00" in printed


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"rows": 1, "machine": {}}'])
def test_what_is_no_sweep_is_refused(tmp_path, text):
    path = tmp_path / "sweep.json"
    path.write_text(text)
    console = Console(width=200, record=True)
    assert apply.main(path, console) == 2
    assert "is no sweep.json of a run" in console.export_text()
    assert apply.main(tmp_path / "none.json", console) == 2

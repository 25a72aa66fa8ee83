"""The plan, the budget and the files; the device is a fake."""

import json

import pytest
import torch

from benchmarks import gpu, gpu_plan, machine, norms
from benchmarks.alternate import Pace
from benchmarks.gpu_plan import Item, Result
from benchmarks.measure import WrongError
from benchmarks.table import Entry, Group

MACHINE = machine.describe() | {"card": "Some Card 80GB", "cuda": "13.0", "backend": "triton"}


def group_of(item):
    entries = (
        Entry(norms.OURS, 1e-3, 0.0, 10, 1.0, 90.0, 1.0, 0.5),
        Entry(norms.LIGER, note="wrong by 7 times"),
    )
    return Group(item.case.name, item.rows, item.columns, item.dtype, entries)


def run(items, make=group_of, seconds=0.0, free=10**12, deadline=1e9):
    now = [0.0]

    def make_in_time(item):
        now[0] += seconds
        return make(item)

    return gpu_plan.run(items, make_in_time, lambda: now[0], deadline, lambda: free)


def test_the_plan_covers_what_it_says():
    items = gpu_plan.plan()
    for case in gpu_plan.CASES:
        for dtype in ("bfloat16", "float32"):
            sizes = {(i.rows, i.columns) for i in items if (i.case, i.dtype) == (case, dtype)}
            assert {rows for rows, _ in sizes} >= {16, 16384}
            assert {columns for _, columns in sizes} >= {576, 4096, 65536}
    assert {item.case.operator for item in items} >= {"forward", "backward", "forward + backward", "JVP"}
    assert any(item.case.k == 16 for item in items)
    assert len(items) == len({str(item) for item in items})


def test_the_plan_fits_into_eight_minutes():
    for memory in (24e9, 80e9, 141e9):
        assert sum(gpu_plan.estimate(gpu_plan.plan(), memory).values()) < gpu_plan.BUDGET == 480


def test_the_plan_can_be_cut():
    assert {item.case.name for item in gpu_plan.plan("JVP")} == {"JVP"}


def test_torch_compile_runs_at_a_few_sizes_only():
    items = gpu_plan.plan()
    compiled = [item for item in items if item.compiled]
    assert 0 < len(compiled) < len(items) / 10
    assert all(norms.COMPILED not in item.skip for item in compiled)
    assert all(norms.COMPILED in item.skip for item in items if not item.compiled)


def test_memory_covers_tensors_and_results():
    small, large = (Item(gpu_plan.CASES[-1], 16384, columns, "bfloat16") for columns in (576, 65536))
    assert small.memory() < 10e9
    assert large.memory() > large.bytes() > 100e9


def test_everything_is_made_where_there_is_time_and_memory():
    items = gpu_plan.plan("JVP")
    result = run(items)
    assert len(result.tables) == len(items) and not result.left_out and not result.failed


def test_nothing_is_begun_that_would_end_too_late():
    result = run(gpu_plan.plan("JVP"), seconds=10.0, deadline=35.0)
    assert len(result.tables) == 4
    assert set(result.left_out.values()) == {"the time was up"}


def test_what_does_not_fit_into_the_memory_is_left_out():
    result = run(gpu_plan.plan("tangent"), free=10**9)
    assert "JVP" not in str(result.left_out)
    assert result.tables and "needs about" in next(iter(result.left_out.values()))
    assert "1 GB are free" in next(iter(result.left_out.values()))


def test_running_out_of_memory_and_failing_are_not_the_same():
    items = gpu_plan.plan("JVP")[:3]
    errors = {
        str(items[0]): torch.OutOfMemoryError("CUDA"),
        str(items[1]): RuntimeError("launch failed\n..."),
    }

    def make(item):
        if str(item) in errors:
            raise errors[str(item)]
        return group_of(item)

    result = run(items, make)
    assert result.left_out == {str(items[0]): "out of memory"}
    assert result.failed == {str(items[1]): "raises RuntimeError: launch failed"}
    assert len(result.tables) == 1


def test_a_wrong_result_stops_everything():
    def make(item):
        raise WrongError("wrong")

    with pytest.raises(WrongError):
        run(gpu_plan.plan("JVP"), make)


def test_files_are_named_after_the_card(tmp_path):
    items = gpu_plan.plan("JVP")[:2]
    result = Result([group_of(item) for item in items], {"a": "the time was up"}, {"b": "raises X"})
    as_json, as_markdown = gpu.write(tmp_path / "results", MACHINE, "7 passed", result)
    assert as_json.name == f"some-card-80gb-{MACHINE['date']}.json"
    data, text = json.loads(as_json.read_text()), as_markdown.read_text()
    assert data["machine"]["card"] == "Some Card 80GB" and data["parity"] == "7 passed"
    assert [group["rows"] for group in data["groups"]] == [16, 256]
    assert (data["left_out"], data["failed"]) == ({"a": "the time was up"}, {"b": "raises X"})
    assert text.startswith("# Some Card 80GB\n")
    assert "7 passed" in text and "| 16 x 576, bfloat16 | 1 ms |" in text
    assert "* JVP: Liger-Kernel: wrong by more (sizes: 2)" in text
    assert "* a: the time was up" in text and "* b: raises X" in text


def test_dry_run_lists_the_plan_without_a_gpu(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main(["--dry-run"]) == 0
    shown = capsys.readouterr().out
    for text in (*(case.name for case in gpu_plan.CASES), "576 to 65,536", "16 to 16,384", "estimate"):
        assert text in shown


def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert gpu.main([]) == 2
    assert "no GPU" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("code", "passed"), [("print('3 passed')", True), ("print('1 failed'); exit(1)", False)]
)
def test_parity_is_the_exit_status(code, passed):
    assert gpu.parity(command=("-c", code)) == (passed, code.split("'")[1])


def test_parity_ends_in_time():
    passed, why = gpu.parity(limit=0.5, command=("-c", "import time; time.sleep(60)"))
    assert not passed and "took longer than" in why


def test_parity_runs_on_the_device(monkeypatch):
    monkeypatch.setenv("OFA_BACKEND", "reference")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    code = "import os; print(os.environ.keys() & {'OFA_BACKEND', 'TRITON_INTERPRET'})"
    assert gpu.parity(command=("-c", code)) == (True, "set()")


def test_no_speed_is_reported_where_the_parity_suite_fails(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu, "parity", lambda: (False, "1 failed"))
    monkeypatch.setattr(gpu.gpu_plan, "run", lambda *_: pytest.fail("something was timed"))
    assert gpu.main(["--results", str(tmp_path / "results")]) == 1
    assert "no speed is reported" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize("outcome", ["made", "wrong", "failed"])
def test_the_whole_command(outcome, capsys, monkeypatch, tmp_path):
    def table_of(item, device, host):
        if outcome == "wrong":
            raise WrongError("forward is wrong")
        if outcome == "failed":
            raise RuntimeError("launch failed")
        return group_of(item)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (10**12, 10**12))
    monkeypatch.setattr(gpu, "parity", lambda: (True, "7 passed"))
    monkeypatch.setattr(gpu, "describe_device", lambda: MACHINE)
    monkeypatch.setattr(gpu, "paces", lambda: (None, None))
    monkeypatch.setattr(gpu, "table_of", table_of)
    status = gpu.main(["--only", "JVP", "--results", str(tmp_path / "results")])
    shown, files = capsys.readouterr().out, list(tmp_path.glob("results/*"))
    assert status == (0 if outcome == "made" else 1)
    assert len(files) == (0 if outcome == "wrong" else 2)
    assert {"made": "0 left out", "wrong": "no speed is reported", "failed": "launch failed"}[
        outcome
    ] in shown


def test_an_item_is_measured_with_either_clock(monkeypatch):
    monkeypatch.setattr(gpu, "DEVICE", "cpu")
    pace = Pace(0.0, (1, 1), clock=lambda call, iterations: 1.0)
    monkeypatch.setattr(norms, "COMPILERS", ())
    item = Item(gpu_plan.CASES[0], 2, 16, "float32")
    group = gpu.table_of(item, pace, None)
    assert str(group) == "forward, 2 x 16, float32"
    assert {entry.median for entry in group.entries if not entry.note} == {1.0}
    host = Item(gpu_plan.CASES[0], 2, 16, "float32", host=True)
    assert str(gpu.table_of(host, None, pace)) == "forward, seen from the host, 2 x 16, float32"


def test_parity_runs_the_kernels_suite():
    assert gpu.PARITY[2] == "tests/ofa_kernels" and (gpu.ROOT / gpu.PARITY[2]).is_dir()

import argparse
import json

import pytest

from benchmarks import cpu
from benchmarks.harness import allocator, contenders
from benchmarks.harness.measure import WrongError


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """No compiler, and no change to how this process gets its memory."""
    monkeypatch.setattr(contenders, "COMPILERS", ())
    monkeypatch.setattr(allocator, "settle", lambda: None)


def test_shapes_and_types_are_parsed():
    assert cpu.shapes("64x576,1x2") == ((64, 576), (1, 2))
    assert cpu.dtypes("bfloat16") == ("bfloat16",)


@pytest.mark.parametrize("text", ["64", "64x", "ax2", "0x2", "1x2x3"])
def test_other_shapes_are_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="is not like 64x576"):
        cpu.shapes(text)


def test_unknown_types_are_refused():
    with pytest.raises(argparse.ArgumentTypeError, match="int8 is not one of float32, bfloat16"):
        cpu.dtypes("float32,int8")


def test_the_plan_has_what_is_to_be_shown():
    planned = {(case.name, shape, dtype) for case, shape, dtype in cpu.plan("", None, tuple(cpu.DTYPES))}
    for dtype in ("float32", "bfloat16"):
        for case in ("forward", "forward + backward"):
            for shape in ((512, 4096), (2048, 4096), (4096, 8192)):
                assert (case, shape, dtype) in planned
            for rows in (16, 64, 256):
                assert (case, (rows, 4096), dtype) in planned
        assert ("tangent-backward, K = 16", (512, 4096), dtype) in planned


def test_the_plan_can_be_cut():
    planned = cpu.plan("step ratio", ((2, 3),), ("bfloat16",))
    assert [(case.name, shape, dtype) for case, shape, dtype in planned] == [
        ("step ratio, forward + backward, 31 states", (2, 3), "bfloat16")
    ]


def test_a_whole_name_chooses_one_case():
    assert {case.name for case, *_ in cpu.plan("forward", ((2, 3),), ("float32",))} == {"forward"}
    assert len({case.name for case, *_ in cpu.plan("forw", ((2, 3),), ("float32",))}) > 1


def test_an_unknown_case_is_refused(capsys):
    with pytest.raises(SystemExit):
        cpu.main(["--only", "softmax"])
    assert "no case's name contains 'softmax'" in capsys.readouterr().err


def test_tables_json_and_markdown(tmp_path, capsys):
    files = tmp_path / "c.json", tmp_path / "c.md"
    arguments = ["--only", "JVP", "--shapes", "3x16", "--dtypes", "float32", "--rounds", "2"]
    assert cpu.main([*arguments, "--json", str(files[0]), "--markdown", str(files[1])]) == 0
    data, text, shown = json.loads(files[0].read_text()), files[1].read_text(), capsys.readouterr().out
    assert [group["case"] for group in data["groups"]] == ["JVP"]
    assert data["machine"]["backend"] in ("native", "reference")
    for output in (text, shown):
        assert "JVP, 3 x 16, float32" in output and "torch.compile needs a C++ compiler" in output
        assert "threads" in output.split("\n\n")[0]
    assert "| 3 x 16, float32 |" in text


def test_nothing_is_reported_where_ours_is_wrong(monkeypatch, tmp_path, capsys):
    def wrong(*_, **__):
        raise WrongError("forward is wrong")

    monkeypatch.setattr(cpu, "measure", wrong)
    file = tmp_path / "c.json"
    assert cpu.main(["--only", "JVP", "--shapes", "3x16", "--json", str(file)]) == 1
    assert "nothing is reported: forward is wrong" in capsys.readouterr().out
    assert not file.exists()

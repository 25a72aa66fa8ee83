import re

import pytest
import torch

from benchmarks import roofline
from benchmarks.harness.traffic import KERNELS
from benchmarks.prediction.cards import CARDS


def test_times_are_bytes_over_rates():
    rates = {"a": 1e9, "b": 2e9}
    table = {row[0]: row[1:] for row in roofline.rows(1000, 1000, torch.float32, 16, rates)}
    assert set(table) == set(KERNELS)
    assert table["rms_norm_forward"] == ("2", "8.0", "8 ms", "4 ms")
    assert table["rms_norm_backward_tangent"] == ("2 + 3K", "200.1", "200 ms", "100 ms")
    assert roofline.header(rates) == ("kernel", "row passes", "MB", "a, 1 GB/s", "b, 2 GB/s")


def test_the_table_is_printed_and_written(tmp_path, capsys):
    file = tmp_path / "r.md"
    arguments = ["--rows", "512", "--dtype", "float32", "-k", "2", "--cpu-rate", "8"]
    assert roofline.main([*arguments, "--markdown", str(file)]) == 0
    for text in (capsys.readouterr().out, file.read_text()):
        assert "512 x 4096, float32, K = 2" in text
        for name in ("H100, 3,350 GB/s", "H200, 4,800 GB/s", "this CPU's copy, 8 GB/s", *KERNELS):
            assert name in text


def test_a_copy_has_a_rate():
    assert roofline.copy_rate(rounds=1) > 0


@pytest.mark.parametrize("option", ["--rows", "--columns", "-k"])
def test_sizes_below_one_are_refused(option, capsys):
    with pytest.raises(SystemExit):
        roofline.main([option, "0"])
    assert "must be at least 1" in capsys.readouterr().err


def test_the_committed_predictions_are_what_the_command_writes(tmp_path, capsys):
    committed = (roofline.Path(roofline.__file__).parents[1] / "docs" / "gpu.md").read_text(encoding="utf-8")
    copy = tmp_path / "gpu.md"
    copy.write_text(
        re.sub(f"(?s){roofline.BEGIN}.*{roofline.END}", f"{roofline.BEGIN}{roofline.END}", committed)
    )
    assert copy.read_text(encoding="utf-8") != committed
    assert roofline.main(["--predict", "--markdown", str(copy)]) == 0
    assert copy.read_text(encoding="utf-8") == committed
    printed = capsys.readouterr().out
    for card in CARDS:
        assert f"**{card.name}**" in printed


def test_a_file_without_a_place_for_the_tables_is_left_alone(tmp_path):
    file = tmp_path / "other.md"
    file.write_text("text\n")
    with pytest.raises(ValueError, match="no place"):
        roofline.main(["--predict", "--markdown", str(file)])
    assert file.read_text() == "text\n"


def test_one_shape_is_explained(capsys):
    assert roofline.main(["--predict", "--rows", "64"]) == 0
    printed = capsys.readouterr().out
    assert "64 x 4096, bfloat16, predicted" in printed and "launches" in printed and "latency" in printed

import pytest
import torch

from benchmarks import roofline
from benchmarks.harness.traffic import KERNELS


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

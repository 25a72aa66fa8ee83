import json

import pytest

from benchmarks import report


def entry(label, median, baseline=False, group="g", **extra):
    return {
        "name": label,
        "group": group,
        "stats": {"median": median, "iqr": 1e-4},
        "extra_info": {"label": label, "baseline": baseline, **extra},
    }


@pytest.fixture
def data():
    return {
        "machine_info": {"cpu": {"brand_raw": "Some CPU", "count": 2}, "torch": "2.13.0", "torch_threads": 2},
        "commit_info": {"id": "abcdef0123456789", "dirty": True},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": [
            entry("copy", 5e-4, copy=True, bytes=8e6),
            entry("eager", 2e-3, True, bytes=8e6),
            entry("ours", 1e-3, bytes=16e6),
            entry("x", 3, group="h"),
        ],
    }


def test_medians_ratios_and_rates(data):
    assert report.groups(data) == {
        "g": [
            ("copy", "500 µs", "100 µs", "0.25", "16.0", "100"),
            ("eager", "2 ms", "100 µs", "1.00", "4.0", "25"),
            ("ours", "1 ms", "100 µs", "0.50", "16.0", "100"),
        ],
        "h": [("x", "3 s", "100 µs", "", "", "")],
    }


def test_the_machine_is_on_top_of_table_and_file(data, tmp_path, capsys):
    (tmp_path / "b.json").write_text(json.dumps(data))
    assert report.main([str(tmp_path / "b.json"), "--markdown", str(tmp_path / "b.md")]) == 0
    shown, written = capsys.readouterr().out, (tmp_path / "b.md").read_text()
    for text in (shown, written):
        first = " ".join(text.split()[:14])
        assert (
            first.startswith("Some CPU, 2 cores, 2 threads, torch 2.13.0") and "abcdef0123 + changes" in first
        )
    assert "| ours | 1 ms | 100 µs | 0.50 | 16.0 | 100 |" in written


@pytest.mark.parametrize("role", ["baseline", "copy"])
def test_two_of_one_role_are_refused(data, role):
    data["benchmarks"][2]["extra_info"][role] = True
    with pytest.raises(ValueError, match=f"g has 2 entries marked {role}"):
        report.groups(data)

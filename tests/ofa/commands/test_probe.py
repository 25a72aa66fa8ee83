import json

from typer.testing import CliRunner

from ofa.cli import app


def test_probe_writes_curves_of_every_variant(model_folder, tmp_path):
    folder = tmp_path / "data" / "sst2"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        rows = [{"text": f"{split} {i}", "label": i % 2} for i in range(6)]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = ["probe", "--task", "sst2", "--data", folder.parent, "--shots", 1, "--model", model_folder]
    arguments += ["--out", tmp_path / "out", "--n-probes", 2, "--dtype", "float32"]
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    record = json.loads((tmp_path / "out" / "probe.json").read_text())
    assert list(record["curves"]) == ["raw", "CE", "CE + J", "CE + H", "OFA"]
    assert "CE + H" in result.output and (tmp_path / "out" / "probe.png").is_file()

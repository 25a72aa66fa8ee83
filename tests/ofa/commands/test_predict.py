import pytest

from ofa.commands.predict import check_output


def test_a_file_that_can_be_written_is_left_as_it_is(tmp_path):
    old = tmp_path / "old.csv"
    old.write_text("rows")
    check_output(old)
    check_output(tmp_path / "new.csv")
    assert old.read_text() == "rows" and list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (".", r"is a folder; give a file, such as .*labels\.csv"),
        ("none/x.csv", "the folder .*none does not exist"),
        ("file/x.csv", "the folder .*file does not exist"),
        ("/proc/x.csv", r"--out /proc/x.csv can't be written: "),
        ("/proc/version", r"--out /proc/version can't be written: "),
    ],
)
def test_what_can_t_be_written_is_named(tmp_path, place, message):
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match=message):
        check_output(tmp_path / place)

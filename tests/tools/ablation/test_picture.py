import itertools

import pytest
from matplotlib.figure import Figure

from tools.ablation.picture import families, plot_lambdas
from tools.ablation.results import results

REFERENCE = "ln-tuning:lr=0.003+epochs=30"
OFA = "ofa:lambda_step={}+lambda_sharp={}+lr={}+epochs=30"


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved from here on."""
    found, save = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda figure, *a, **k: found.append(figure) or save(figure, *a, **k)
    )
    return found


def values(found, option):
    drawn = families(found, option)
    return {name: [r.variation.options[option] for r in members] for name, members in drawn.items()}


def test_a_family_differs_in_one_lambda_and_begins_at_plain_norm_tuning(run):
    names = [OFA.format(0, value, 0.003) for value in (10, 0, -1, 0.1)]
    names += [OFA.format(0.1, value, 0.01) for value in (1, 2, 3)]
    rows = [*run(REFERENCE, 0), *itertools.chain(*(run(name, 1, (100,)) for name in names))]
    found = results([*rows, *run("lora", 0), *run("ofa", 0)], REFERENCE)
    assert values(found, "lambda_sharp") == {
        "as the reference": [-1, 0, 0.1, 10], "lambda_step=0.1, lr=0.01": [1, 2, 3],
    }  # fmt: skip
    (at_zero,) = (r for r in families(found, "lambda_sharp")["as the reference"] if len(r.rows) == 18)
    assert at_zero.variation.name == REFERENCE, "of two names of one setting the one of more cells"
    assert values(found, "lambda_step") == {}


def test_families_of_two_are_drawn_where_none_is_longer(run):
    rows = [*run(REFERENCE, 0), *run(OFA.format(0, 1, 0.003), 0), *run(OFA.format(0.5, 0, 0.003), 0)]
    found = results(rows, REFERENCE)
    assert values(found, "lambda_sharp") == {"as the reference": [0, 1]}
    longer = results([*rows, *run(OFA.format(0.5, 1, 0.003), 0), *run(OFA.format(0, 2, 0.003), 0)], REFERENCE)
    assert values(longer, "lambda_sharp") == {"as the reference": [0, 1, 2]}
    assert len(values(longer, "lambda_step")) == 2


def test_points_errors_and_their_names_are_inside_the_picture(search, tmp_path, figures):
    assert plot_lambdas(results(search, REFERENCE), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes()[:4] == b"\x89PNG"
    (figure,) = figures
    assert len(figure.axes) == 8
    figure.canvas.draw()
    page, panels, legends = figure.bbox, figure.axes[:6], [axis.get_legend() for axis in figure.axes[6:]]
    for axis in panels:
        frame = axis.get_window_extent()
        for line in axis.lines[1:]:
            shown = line.get_transform().transform(line.get_xydata())
            assert all(frame.contains(*point) for point in shown if line.get_marker() != "None"), line
        assert axis.get_xscale() == "symlog"
        named = [label.get_window_extent() for label in axis.get_xticklabels() if label.get_text()]
        assert not any(a.overlaps(b) for a, b in itertools.pairwise(named))
        names = axis.yaxis.label.get_window_extent()
        assert page.y0 <= names.y0 and names.y1 <= page.y1 and page.x0 <= names.x0
    for legend, axis in zip(legends, panels[4:], strict=True):
        box = legend.get_window_extent()
        assert page.y0 <= box.y0 and box.x1 <= page.x1 and box.y1 < axis.get_window_extent().y0
        assert [text.get_text() for text in legend.get_texts()] == ["as the reference", "lr=0.01"]


def test_heights_are_differences_and_few_cells_are_open(search, tmp_path, figures):
    plot_lambdas(results(search, REFERENCE), tmp_path / "plot.png")
    axes = figures[0].axes
    (sharp,) = (c for c in axes[0].containers if c.get_label() == "as the reference")
    assert list(sharp[0].get_xdata()) == [-10, -1, -0.1, 0, 0.1, 1, 10]
    assert list(sharp[0].get_ydata()) == pytest.approx([0, 0.1, 0.2, 0, 2.0, 0.4, 0.5])
    (of_h,) = (c for c in axes[4].containers if c.get_label() == "as the reference")
    assert list(of_h[0].get_ydata()) == pytest.approx([1000, 1, 0.001, 0, -0.001, -1, -1000])
    assert axes[4].get_yscale() == "symlog" and axes[0].get_yscale() == "linear"

    def hollow(axis):
        return [line for line in axis.lines if line.get_markerfacecolor() == "white"]

    assert all(len(line.get_xdata()) == 0 for line in hollow(axes[0]))
    assert sorted(x for line in hollow(axes[1]) for x in line.get_xdata()) == sorted(
        2 * [-10, -1, -0.1, 0.1, 1, 10]
    )


def test_nothing_is_drawn_where_no_lambda_varies(run, tmp_path):
    assert not plot_lambdas(results([*run(REFERENCE, 0), *run("lora", 0)], REFERENCE), tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()

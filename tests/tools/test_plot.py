"""The pictures of one run and of several, and the command that draws them."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from common.curves import draw, smooth
from common.errors import UserError
from common.runs import Run, load_run
from support.folders import GOOD, write_run
from support.pictures import cut_off, lines_of, overlapping
from tools import plot


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that are written, for a look at what is in them."""
    written, original = [], Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda *a, **k: (written.append(a[0]), original(*a, **k))
    )
    return written


LONG = ["$^$", "a_rather_long_objective_name", "and_an_even_longer_one", "lost", "rare"]
HUGE = {"a": [-1.2e6, 3e6, -9.9e6], "b": [12345.0, 2e4, 99999.0], "c": [-1e9, -2e9, -3e9]}


@pytest.mark.parametrize("names", [["accuracy"], list(GOOD), LONG, list(HUGE)])
def test_one_run(tmp_path, figures, names):
    means = dict(zip(names, [*GOOD.values(), [0.9, 0.5, 0.1], [0.01, 0.02, 0.03]], strict=False))
    means = HUGE if names == list(HUGE) else means
    folder = write_run(tmp_path / ("run $^$ of" + "_a_long_name" * 12), means, model="a/model" * 12)
    draw(load_run(folder), folder / "curves.png")
    (figure,) = figures
    assert len(list(folder.iterdir())) == 3  # nothing temporary is left
    assert not overlapping(figure) + cut_off(figure)
    assert figure.get_figwidth() < 12
    said = [text.get_text() for text in figure.legends[0].get_texts()]
    assert said == ["sampled", "greedy", "start", "± 1 standard error", *names]
    objectives, weights = figure.axes[:-3], figure.axes[-2]
    assert [panel.get_title().split("\n")[0] for panel in objectives] == names
    assert list(lines_of(objectives[0])["sampled"].get_ydata()) == means[names[0]]
    assert len({line.get_linestyle() for line in weights.lines}) == min(3, len(names))
    band = objectives[0].collections[0].get_datalim(objectives[0].transData)
    first = means[names[0]]
    assert (band.y0, band.y1) == pytest.approx((min(first) - 0.02, max(first) + 0.02))
    for panel in figure.axes[:-2]:  # the length among them
        low, high = panel.get_ylim()
        band = panel.collections[0].get_datalim(panel.transData)
        assert low <= min(0, band.y0)
        assert high - band.y1 > 0.02 * (high - low)
    if "lost" in names:
        lost, rare = objectives[3:]
        assert lost.get_title() == "lost\nheld-out 0.9 → 0.1 degraded"
        assert [panel.title.get_weight() for panel in (lost, rare)] == ["bold", "normal"]
        assert lost.get_ylim()[1] >= 1 > 0.1 > rare.get_ylim()[1]  # small values fill their panel


@pytest.mark.parametrize("kind", [OSError, RuntimeError])
def test_a_picture_that_fails_is_one_line_and_leaves_the_old_one(tmp_path, monkeypatch, kind):
    folder = write_run(tmp_path / "run", GOOD)
    (folder / "curves.png").write_text("old")
    before = sorted(folder.iterdir())

    def full(figure, file, **options):
        file.write_text("half")
        raise kind("disk full")

    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(UserError, match="curves.png cannot be written .disk full"):
        draw(load_run(folder), folder / "curves.png")
    assert (folder / "curves.png").read_text() == "old"
    assert sorted(folder.iterdir()) == before


def test_several_runs(tmp_path, figures):
    """Seeds of a setting are averaged, and other settings are named by what differs."""
    low = {name: [value - 0.2 for value in values] for name, values in GOOD.items()}
    far = {"beta": 1, "gamma": 1, "delta": 1}
    folders = [
        write_run(tmp_path / "a", GOOD, seed=1),
        write_run(tmp_path / "b", low, seed=2, track="wandb"),
        write_run(tmp_path / "c", GOOD, script="linear", lr=0.1, model="m"),
        write_run(
            tmp_path / ("d" * 99 + "_" + "d" * 49), GOOD, script="linear", lr=0.2, model="m", **far
        ),
    ]
    plot.compare([load_run(folder) for folder in folders], tmp_path / "x.pdf")
    (figure,) = figures
    assert not overlapping(figure) + cut_off(figure)
    assert figure.get_figwidth() < 12
    lines = lines_of(figure.axes[0])
    names = ["ctwa model testbed (mean of 2)", "linear model m lr 0.1 (mean of 1)"]
    assert list(lines) == [*names, f"{'d' * 49} (mean of 1)"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lines)
    mean = lines[names[0]]
    assert list(mean.get_ydata()) == pytest.approx(np.subtract(GOOD["accuracy"], 0.1))
    thin = [line for line in figure.axes[0].lines if line.get_color() == mean.get_color()][:-1]
    assert [list(line.get_ydata()) for line in thin] == [GOOD["accuracy"], low["accuracy"]]
    assert len({(line.get_color(), line.get_linestyle()) for line in lines.values()}) == 3
    assert (tmp_path / "x.pdf").read_bytes().startswith(b"%PDF")


def test_means_and_smoothed_values():
    longer, shorter = ([0, 10, 20], [1.0, 2.0, 3.0]), ([0, 10], [3.0, 4.0])
    assert plot._mean([longer, shorter]) == ([0, 10], [2.0, 3.0])
    rows = [{"step": step, "a": float(step == 3)} for step in range(25)]
    assert smooth(Run(None, {}, rows), "a")[1][:6] == pytest.approx([0, 0, *[1 / 3] * 3, 0])


def test_one_run_by_its_default_and_several_by_theirs(tmp_path, monkeypatch, capsys, figures):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", GOOD)
    write_run(tmp_path / "b", GOOD)
    for runs, told, verdicts in (
        (["a", "./a"], "wrote a/curves.png", 1),  # one run
        (["a", "b"], "wrote comparison.png", 2),
        (["a"], "replaced a/curves.png", 1),
    ):
        plot.main(runs)
        said = capsys.readouterr().out
        assert said.endswith(f"\n\n{told}\n")
        assert said.count("All objectives improved") == verdicts
    assert [text.get_text() for text in figures[1].legends[0].get_texts()] == ["ctwa (mean of 2)"]


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "which run?"),
        (["ctwa_s1"], "did you mean ctwa-s1?"),
        (["ctwa-s1", "--out", "x.jpg"], "--out x.jpg: .*png"),
        (["ctwa-s1", "--out", "none/x.png"], "--out none/x.png: .*folder"),
    ],
)
def test_mistakes_are_refused_before_any_work(tmp_path, monkeypatch, capsys, arguments, told):
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "ctwa-s1", GOOD)
    with pytest.raises(UserError, match=told):
        plot.main(arguments)
    assert capsys.readouterr().out == ""

"""One palette and one way to name lines, for all pictures and pages: what can be told apart, and without colour."""

import json
from itertools import combinations
from unittest.mock import patch

import numpy as np
import pytest

from tools import looks
from tools.curves import draw
from tools.leaderboard import draw_ends, leaderboard
from tools.looks import Name, algorithm_look, name_lines, objective_look, setting_looks
from tools.runs import load_run
from tools.verdict import STATUSES, change_of
from tools.scripts import algorithms
from support.folders import GOOD, write_run
from support.pictures import cut_off, lines_of, overlapping

# Machado, Oliveira, Fernandes (2009), severity 1, in linear RGB
BLIND = {
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


def linear_rgb(colour: str) -> np.ndarray:
    values = np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
    return np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(to_xyz @ rgb, 1e-4, None) / [0.95047, 1, 1.08883])
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def apart(one: str, other: str, kind: str) -> float:
    matrix = np.array(BLIND[kind]) if kind in BLIND else np.eye(3)
    return float(np.linalg.norm(lab(np.clip(matrix @ linear_rgb(one), 0, 1)) - lab(np.clip(matrix @ linear_rgb(other), 0, 1))))


def shape(look: looks.Look) -> tuple:
    return look.dash, look.marker, look.filled


def test_every_algorithm_has_a_look_of_its_own():
    scripts = algorithms()
    assert set(scripts) == {"linear", *(name for names in looks.BY_NAME for name in names if name)}, (
        "give a new script its place in BY_NAME"
    )
    assert len({algorithm_look(name) for name in scripts}) == len(scripts)
    assert len({shape(algorithm_look(name)) for name in scripts}) == len(scripts)  # also without colour


@pytest.mark.parametrize("kind", ["normal", *BLIND])
def test_colours_stay_apart_for_every_eye(kind):
    for palette, least in (([looks.BASELINE, *looks.PALETTE.values()], 15), (looks.COLOURS[:3], 15)):
        for one, other in combinations(palette, 2):
            assert apart(one, other, kind) > least, (kind, one, other)


def test_names_are_dark_enough_to_read():
    for look in [objective_look(k) for k in range(3)] + [algorithm_look(name) for name in algorithms()]:
        luminance = linear_rgb(look.word) @ [0.2126, 0.7152, 0.0722]
        assert 1.05 / (luminance + 0.05) > 4, look


def test_objectives_differ_without_colour():
    assert len({objective_look(k).dash for k in range(5)}) == 5
    assert len({objective_look(k) for k in range(12)}) == 12


def test_settings_of_one_algorithm_share_its_colour():
    found = setting_looks(["ctwa", "linear", "ctwa", "ctwa", "mine", "mine"])
    assert len(set(found)) == 6
    assert found[0] == algorithm_look("ctwa")
    assert found[0].colour == found[2].colour == found[3].colour
    assert found[4].colour == found[5].colour
    assert len({shape(look) for look in found}) == 6


def test_one_algorithm_has_one_colour_everywhere(tmp_path):
    """In the comparison and in the leaderboard's picture, whatever else is beside it."""
    scripts = ("linear", "ctwa", "ratchet")
    flags = {"steps": 20, "seed": 1, "eval_prompts": 8}
    runs = [load_run(write_run(tmp_path / name, GOOD, script=name, **flags)) for name in reversed(scripts)]
    figures = []
    with patch("tools.curves.write_figure", lambda figure, out: figures.append(figure)):
        draw(runs, tmp_path / "x.png")
    with patch("tools.leaderboard.write_figure", lambda figure, out: figures.append(figure)):
        (section,) = leaderboard(runs)["sections"]
        draw_ends(section, tmp_path / "x.png")
    for row, setting in enumerate(section["rows"]):
        colour = algorithm_look(setting["script"]).colour
        assert lines_of(figures[0].axes[0])[setting["algorithm"]].get_color() == colour
        assert {line.get_color() for line in figures[1].axes[0].lines if list(line.get_ydata()) == [row] * len(line.get_ydata())} == {
            colour
        }


def panel(height: float = 1.5):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, height))
    FigureCanvasAgg(figure)
    axes = figure.add_axes((0.1, 0.2, 0.5, 0.7))
    axes.set(xlim=(0, 10), ylim=(0, 1))
    return axes


@pytest.mark.parametrize("ends", [[0.5, 0.5, 0.5], [0.0, 1.0, 0.01], [0.99, 1.0, 0.98], [-3.0, 0.2, 8.0]])
@pytest.mark.parametrize("sample", [False, True])
def test_names_do_not_cover_each_other(ends, sample):
    axes = panel()
    name_lines(axes, [Name(f"name {k}", objective_look(k), 10, end) for k, end in enumerate(ends)], sample)
    assert not overlapping(axes.figure)
    assert not cut_off(axes.figure)
    assert [text.get_text() for text in axes.texts] == ["name 0", "name 1", "name 2"]


def test_a_line_that_ends_early_is_named_beside_the_panel_and_led_to():
    """A name inside would cover the lines that go on."""
    axes = panel()
    name_lines(axes, [Name("short", objective_look(0), 4, 0.5), Name("long", objective_look(1), 10, 0.5)])
    right = axes.bbox.x1
    assert all(text.get_window_extent().x0 > right for text in axes.texts)
    assert [(list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines if line.get_label() == "_end"] == [([0.4], [0.5])]


def test_looks_are_plain_enough_for_a_page():
    json.dumps([algorithm_look(name) for name in algorithms()])


@pytest.mark.parametrize(
    ("status", "sampled", "greedy"),
    [
        ("improved", (0.4, 0.8), (0.4, 0.8)),
        ("mixed", (0.4, 0.8), (0.9, 0.5)),
        ("degraded", (0.8, 0.4), (0.8, 0.4)),
        ("unchanged", (0.5, 0.5), (0.5, 0.5)),
    ],
)
def test_every_verdict_is_drawn_with_its_own_sign(status, sampled, greedy, tmp_path):
    """In the picture of a run, in a comparison and in a leaderboard."""
    folder = write_run(tmp_path / "run", {"accuracy": list(sampled), "clarity": [0.4, 0.9]}, steps=10, eval_prompts=8)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row, value in ((rows[0], greedy[0]), (rows[-1], greedy[1])):
        row |= {"eval/greedy/accuracy": value, "eval/greedy/accuracy_se": 0.01}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run, figures = load_run(folder), []
    assert change_of(run, "accuracy").status == status
    with patch("tools.curves.write_figure", lambda figure, out: figures.append(figure)):
        draw([run], tmp_path / "x.png")
        draw([run, run], tmp_path / "x.png")
    draw_ends(leaderboard([run])["sections"][0], tmp_path / "x.png")
    said = f"{looks.SIGNS[status]} {status}"
    assert said in [text.get_text() for text in figures[0].axes[0].texts]
    assert set(looks.SIGNS) == set(STATUSES)
    assert len(set(looks.SIGNS.values())) == len(STATUSES)

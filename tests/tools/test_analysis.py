"""Run folders read back, verdicts and figures, on synthetic runs whose truth is known."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tools import curves, looks
from tools.curves import draw
from tools.runs import load_run
from tools.verdict import verdict
from common.errors import UserError
from common.evaluate import fell
from support.folders import GOOD, NAMES, write_run
from support.pictures import cut_off, leaving, lines_of, overlapping


def judge(tmp_path: Path, **evaluations: list[float]):
    return verdict(load_run(write_run(tmp_path / "run", evaluations)))


@pytest.fixture
def figures(monkeypatch) -> list:
    """The figures that `draw` writes, for a look at what is in them."""
    written = []
    original = curves.write_figure
    monkeypatch.setattr(curves, "write_figure", lambda figure, out: (written.append(figure), original(figure, out)))
    return written


def titles(figure) -> list[str]:
    return [axes.get_title(loc="left") for axes in figure.axes]


# --- reading ---


def test_series_drops_what_is_missing(tmp_path):
    folder = write_run(tmp_path / "run", {"accuracy": [0.1, 0.2]})
    run = load_run(folder)
    assert run.name == "run"
    assert run.objectives == ["accuracy"]
    assert run.series("eval/accuracy") == ([0, 10], [0.1, 0.2])
    assert run.series("loss/policy") == ([], [])  # null
    assert run.series("no/such") == ([], [])
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "grad/norm": NaN}\n{"step": 12, "grad/norm": 2.0}\n')
    assert load_run(folder).series("grad/norm") == ([12], [2.0])


@pytest.mark.parametrize("tail", ['{"step": 21, "cov/accu', '{"step": 21', "{"])
def test_half_a_last_line_is_ignored(tmp_path, tail):
    folder = write_run(tmp_path / "run", {"accuracy": [0.1, 0.2, 0.3]})
    rows = load_run(folder).rows
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(tail)
    assert load_run(folder).rows == rows


def test_a_whole_last_line_counts_without_its_line_break(tmp_path):
    folder = write_run(tmp_path / "run", {"accuracy": [0.1, 0.2]})
    metrics = folder / "metrics.jsonl"
    rows = load_run(folder).rows
    metrics.write_text(metrics.read_text().rstrip("\n"))
    assert load_run(folder).rows == rows


def test_a_picture_that_cannot_be_written_is_one_line(tmp_path):
    run = load_run(write_run(tmp_path / "a", {"accuracy": [0.5, 0.6]}))
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(UserError, match=r"the picture .*folder\.png cannot be written \(.*give --out FILE in another folder"):
        draw([run], tmp_path / "folder.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "folder.png"]


@pytest.mark.parametrize("broken", ['{"step": 3, "cov', "", "[3]", '{"loss/kl": 1.0}', '{"step": 1}', "\udcff"])
def test_a_broken_line_is_refused_with_its_number(tmp_path, broken):
    folder = write_run(tmp_path / "run", {"accuracy": [0.1, 0.2]})
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    lines[3] = broken
    (folder / "metrics.jsonl").write_bytes(("\n".join(lines) + "\n").encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"metrics\.jsonl line 4: "):
        load_run(folder)


def test_a_broken_last_line_with_its_line_break_is_refused(tmp_path):
    folder = write_run(tmp_path / "run", {"accuracy": [0.1, 0.2]})
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 11, "cov\n')
    with pytest.raises(UserError, match="line 12"):
        load_run(folder)


def test_a_missing_run_suggests_the_nearest(tmp_path, monkeypatch):
    write_run(tmp_path / "runs" / "ctwa-s1", {"accuracy": [0.1]})
    write_run(tmp_path / "runs" / "linear-s1", {"accuracy": [0.1]})
    monkeypatch.chdir(tmp_path)
    for typed in ("runs/ctwa_s1", "ctwa-s1"):  # misspelt; without its folder
        with pytest.raises(UserError, match=rf"no run folder {typed}; did you mean runs/ctwa-s1\?$"):
            load_run(typed)
    with pytest.raises(UserError, match=r"did you mean runs/ctwa-s1\?$"):
        load_run("runs/ctwa-s1/metrics.jsonl")
    with pytest.raises(UserError, match="no run folder zzz$"):
        load_run("zzz")


def test_what_is_no_run_folder_says_so(tmp_path):
    with pytest.raises(UserError, match=r"has no args\.json"):
        load_run(tmp_path)
    folder = write_run(tmp_path / "run", {"accuracy": [0.1]})
    (folder / "metrics.jsonl").write_text('{"step": 0')
    with pytest.raises(UserError, match="no complete line yet"):
        load_run(folder)
    for text, message in (("{", "not JSON"), ("{}", "names no objectives")):
        (folder / "args.json").write_text(text)
        with pytest.raises(UserError, match=message):
            load_run(folder)


# --- verdict ---


def test_interference(tmp_path):
    v = judge(tmp_path, accuracy=[0.63, 0.05, 0.06], conciseness=[0.4, 0.8, 0.9], clarity=[0.6, 0.9, 0.99])
    accuracy = v.objectives[0]
    assert [c.status for c in v.objectives] == ["degraded", "improved", "improved"]
    assert v.interference
    assert (accuracy.start, accuracy.end, accuracy.lowest, accuracy.lowest_step) == (0.63, 0.06, 0.05, 10)
    assert accuracy.change == pytest.approx(-0.57)
    assert accuracy.se == pytest.approx(math.sqrt(2) * 0.02)
    assert accuracy.greedy == (0.315, 0.03)
    assert (v.length.start, v.length.end, v.length.status) == (30, 28, "shorter")
    last = v.text.splitlines()[-1]
    assert last == "accuracy was degraded (0.63 -> 0.06) while conciseness and clarity improved: cross-objective interference."


def test_table_is_aligned_and_complete(tmp_path):
    v = judge(tmp_path, accuracy=[0.63, 0.05, 0.06], conciseness=[0.4, 0.8, 0.9])
    head, *rows, _ = v.text.splitlines()
    assert [row.split()[0] for row in rows] == ["accuracy", "conciseness", "length"]
    for row, status in zip(rows, ("degraded", "improved", "shorter"), strict=True):
        assert row.index(status) == head.index("verdict")  # a column starts where its head does
    assert " ".join(rows[0].split()) == "accuracy 0.630 0.050 (10) 0.060 -0.570 ± 0.057 degraded 0.315 -> 0.030 ± 0.057"
    assert " ".join(rows[2].split()) == "length 30.0 28.0 (20) 28.0 -2.0 ± 0.8 shorter 33.0 -> 33.0 ± 0.8"


@pytest.mark.parametrize(
    ("end", "status"), [(0.5566, "improved"), (0.5565, "unchanged"), (0.5, "unchanged"), (0.4435, "unchanged"), (0.4434, "degraded")]
)
def test_a_change_counts_beyond_two_standard_errors(tmp_path, end, status):
    v = judge(tmp_path, accuracy=[0.5, end])  # 2 * sqrt(2) * 0.02 = 0.05657
    assert v.objectives[0].status == status


def test_one_degraded_alone_is_no_interference(tmp_path):
    v = judge(tmp_path, accuracy=[0.6, 0.1], clarity=[0.5, 0.51])
    assert not v.interference
    assert v.text.endswith("accuracy was degraded (0.60 -> 0.10) and no other objective improved.")


def test_several_degraded(tmp_path):
    v = judge(tmp_path, accuracy=[0.6, 0.1], conciseness=[0.5, 0.9], clarity=[0.7, 0.2])
    assert v.interference
    assert "accuracy and clarity were degraded (0.60 -> 0.10, 0.70 -> 0.20) while conciseness improved" in v.text


def test_a_dip_is_told_only_beyond_noise_and_after_recovery(tmp_path):
    v = judge(tmp_path, accuracy=[0.63, 0.50, 0.40, 0.87], conciseness=[0.4, 0.8, 0.9, 0.9], clarity=[0.6, 0.56, 0.99, 0.99])
    assert v.text.endswith("All three objectives improved; accuracy dipped to 0.40 at step 20 before it recovered.")
    assert [c.dipped for c in v.objectives] == [True, False, False]
    assert not v.interference


def test_a_degraded_objective_has_not_dipped(tmp_path):
    v = judge(tmp_path, accuracy=[0.63, 0.05, 0.2], conciseness=[0.5, 0.2, 0.5], clarity=[0.5, 0.1, 0.5])
    assert not v.objectives[0].dipped
    assert "; conciseness dipped to 0.20 at step 10 and clarity dipped to 0.10 at step 10 before they recovered." in v.text


def test_nothing_changed(tmp_path):
    v = judge(tmp_path, accuracy=[0.63, 0.62], clarity=[0.5, 0.53])
    assert v.text.endswith("No objective changed beyond noise.")


def test_some_improved(tmp_path):
    v = judge(tmp_path, accuracy=[0.63, 0.62], clarity=[0.5, 0.8])
    assert v.text.endswith("clarity improved, accuracy did not change beyond noise.")


def test_one_objective(tmp_path):
    assert judge(tmp_path, accuracy=[0.1, 0.9]).text.endswith("\naccuracy improved.")


def test_one_objective_degraded(tmp_path):
    assert judge(tmp_path, accuracy=[0.9, 0.1]).text.endswith("\naccuracy was degraded (0.90 -> 0.10).")


def test_five_objectives(tmp_path):
    v = judge(tmp_path, **{name: [0.2, 0.8] for name in "abcde"})
    assert len(v.objectives) == 5
    assert v.text.endswith("All five objectives improved.")


def test_evaluated_once(tmp_path):
    v = judge(tmp_path, accuracy=[0.5], clarity=[0.6])
    assert [c.status for c in v.objectives] == ["unchanged", "unchanged"]
    assert v.text.endswith("Evaluated only once, at step 0: nothing to compare yet.")
    assert "±" not in v.text  # no column of changes that are not there


def greedily(tmp_path, sampled: list[float], greedy: list[float], se: float | None = None, **others):
    """The verdict of a run whose greedy accuracy is given, with its standard error if one was logged."""
    folder = write_run(tmp_path / "run", {"accuracy": sampled, **others})
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        if "eval/accuracy" in row:
            row |= {"eval/greedy/accuracy": greedy[row["step"] // 10]} | ({"eval/greedy/accuracy_se": se} if se else {})
            row |= {key: 0.5 for key in row if key.startswith("eval/greedy/") and key.split("/")[2] in others}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return verdict(load_run(folder))


def test_what_fell_greedily_is_not_called_improved(tmp_path):
    v = greedily(tmp_path, [0.55, 0.77], [0.97, 0.92], 0.01, clarity=[0.4, 0.9])
    assert [c.status for c in v.objectives] == ["mixed", "improved"]
    assert (v.objectives[0].sampled, v.objectives[0].greedy_status, v.interference) == ("improved", "degraded", False)
    assert v.text.endswith("clarity improved, accuracy rose in samples alone. Greedily accuracy fell (0.97 -> 0.92).")
    assert "mixed     0.970 -> 0.920 ± 0.028" in v.text


@pytest.mark.parametrize(("greedy", "se"), [([0.97, 0.942], 0.01), ([0.97, 0.92], None), ([0.97, 0.98], 0.01), ([0.90, 0.97], 0.01)])
def test_what_fell_greedily_within_noise_or_rose_is_improved(tmp_path, greedy, se):
    """Without a standard error of its own, that of the samples of the same prompts, .02 here, stands for it: .057 is noise."""
    v = greedily(tmp_path, [0.55, 0.77], greedy, se)
    assert v.objectives[0].status == "improved"
    assert v.text.endswith("\naccuracy improved.")


def test_interference_is_of_what_is_sampled(tmp_path):
    v = greedily(tmp_path, [0.55, 0.77], [0.97, 0.92], 0.01, clarity=[0.9, 0.4])
    assert v.interference
    told = "clarity was degraded (0.90 -> 0.40) while accuracy rose in samples alone: cross-objective interference."
    assert v.text.endswith(f"{told} Greedily accuracy fell (0.97 -> 0.92).")


@pytest.mark.parametrize(
    ("sampled", "greedy", "status", "told"),
    [
        ([0.5, 0.5], [0.9, 0.5], "unchanged", "No objective changed beyond noise. Greedily accuracy fell (0.90 -> 0.50)."),
        ([0.9, 0.5], [0.3, 0.5], "degraded", "accuracy was degraded (0.90 -> 0.50). Greedily accuracy rose (0.30 -> 0.50)."),
        ([0.9, 0.5], [0.9, 0.5], "degraded", "accuracy was degraded (0.90 -> 0.50)."),
    ],
)
def test_what_greedy_decoding_says_otherwise_is_told(tmp_path, sampled, greedy, status, told):
    v = greedily(tmp_path, sampled, greedy, 0.01)
    assert v.objectives[0].status == status
    assert v.text.endswith(f"\n{told}")


def test_without_greedy_evaluation_there_is_no_such_column(tmp_path):
    v = verdict(load_run(write_run(tmp_path / "run", {"accuracy": [0.5, 0.6]}, greedy=False)))
    assert v.objectives[0].greedy is None
    assert "greedy" not in v.text


def test_an_objective_never_evaluated(tmp_path):
    run = load_run(write_run(tmp_path / "run", {"accuracy": [0.5, 0.6]}, objectives=["accuracy", "clarity"]))
    with pytest.raises(UserError, match=r"no eval/clarity .* --eval-every"):
        verdict(run)


def test_no_standard_error_no_verdict(tmp_path):
    run = load_run(write_run(tmp_path / "run", {"accuracy": [0.5, 0.6]}, se=math.nan))
    with pytest.raises(UserError, match="--eval-prompts 2"):
        verdict(run)


# --- figures ---


def test_picture_of_one_run(tmp_path, figures):
    folder = write_run(tmp_path / "run", GOOD)
    out = folder / "curves.png"
    out.write_text("what was there before")
    before = sorted(path.name for path in folder.iterdir())
    draw([load_run(folder)], out)
    from PIL import Image

    with Image.open(out) as image:
        image.load()
        assert image.format == "PNG"
        assert 1000 < image.width < 2500
        assert 500 < image.height < 1200
    assert sorted(path.name for path in folder.iterdir()) == before  # nothing temporary is left
    assert titles(figures[0]) == [*NAMES, "response length", "weights", "covariance with the update"]
    assert {"0.60 → 0.90", "▲ improved"} <= {text.get_text() for text in figures[0].axes[0].texts}
    assert [text.get_text() for text in figures[0].axes[4].texts] == list(NAMES)  # lines are named where they end
    words = [text.get_text() for text in figures[0].texts]
    assert {"sampled, ± 1 standard error", "greedy", "start"} <= set(words)  # what bands and dashes mean
    assert not overlapping(figures[0])
    assert not cut_off(figures[0])
    assert not leaving(figures[0])


def test_a_degraded_objective_stands_out_without_colour(tmp_path, figures):
    draw([load_run(write_run(tmp_path / "run", {"kept": [0.5, 0.5], "lost": [0.9, 0.1]}))], tmp_path / "figure.png")
    kept, lost = (next(text for text in axes.texts if text.get_text() in ("= unchanged", "▼ degraded")) for axes in figures[0].axes[:2])
    assert lost.get_text() == "▼ degraded"
    assert lost.get_weight() == "bold" != kept.get_weight()
    assert lost.get_bbox_patch().get_facecolor()[:3] == (0, 0, 0)
    assert kept.get_bbox_patch() is None
    assert not overlapping(figures[0])


def test_equal_lines_are_all_seen(tmp_path, figures):
    """Weights that stay equal: each line is narrower than the one below it, and dashed otherwise."""
    draw([load_run(write_run(tmp_path / "run", GOOD))], tmp_path / "figure.png")
    weights = list(lines_of(figures[0].axes[4]).values())
    assert [line.get_label() for line in weights] == list(NAMES)
    assert all(list(line.get_ydata()) == list(weights[0].get_ydata()) for line in weights)
    assert all(below.get_linewidth() > above.get_linewidth() for below, above in pairwise(weights))
    assert len({line._dash_pattern[1] and tuple(line._dash_pattern[1]) for line in weights}) == 3


def test_a_failed_drawing_leaves_the_old_picture(tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    def fail(self, file, **options):
        Path(file).write_bytes(b"half a pic")
        raise OSError("disk full")

    folder = write_run(tmp_path / "run", GOOD)
    (folder / "curves.png").write_text("old")
    before = sorted(path.name for path in folder.iterdir())
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(UserError, match="curves.png cannot be written .disk full"):
        draw([load_run(folder)], folder / "curves.png")
    assert (folder / "curves.png").read_text() == "old"
    assert sorted(path.name for path in folder.iterdir()) == before


def test_suffix_decides_the_format(tmp_path):
    run = load_run(write_run(tmp_path / "run", GOOD))
    draw([run], tmp_path / "figure.pdf")
    first = (tmp_path / "figure.pdf").read_bytes()
    assert first.startswith(b"%PDF")
    assert b"CreationDate" not in first
    draw([run], tmp_path / "figure.pdf")
    assert (tmp_path / "figure.pdf").read_bytes() == first  # the same runs give the same file
    for name, message in (("figure.jpg", r"\.png or a \.pdf"), ("no/figure.png", "no folder")):
        with pytest.raises(UserError, match=message):
            draw([run], tmp_path / name)


@pytest.mark.parametrize(("count", "panels"), [(1, 1 + 2), (2, 2 + 3), (5, 5 + 3)])
def test_any_number_of_objectives(tmp_path, figures, count, panels):
    names = [f"objective_{k}" for k in range(count)]
    folder = write_run(tmp_path / "run", {name: [0.5, 0.7, 0.6] for name in names})
    draw([load_run(folder)], tmp_path / "figure.png")
    assert len(figures[0].axes) == panels
    assert titles(figures[0])[:count] == names


@pytest.mark.parametrize("length", [1, 2])
def test_a_run_just_begun_can_be_drawn(tmp_path, length):
    folder = write_run(tmp_path / "run", {name: values[:length] for name, values in GOOD.items()})
    draw([load_run(folder)], tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


def test_every_reward_has_a_scale_on_which_it_is_seen(tmp_path, figures):
    folder = write_run(tmp_path / "run", {"score": [-3.0, 4.0], "clarity": [0.2, 0.4], "rare": [0.01, 0.05]}, se=0.01)
    draw([load_run(folder)], tmp_path / "figure.png")
    score, clarity, rare = (axes.get_ylim() for axes in figures[0].axes[:3])
    assert score[0] < -3 < 4 < score[1]
    assert clarity == pytest.approx((-0.03, 1.03))
    assert rare[0] < 0 < 0.05 < rare[1] < 0.1  # not a flat line at the bottom, and it says so
    told = [["own scale" in [text.get_text() for text in axes.texts]] for axes in figures[0].axes[:3]]
    assert told == [[True], [False], [True]]


def test_seeds_are_averaged_and_settings_kept_apart(tmp_path, figures):
    shifted = {name: [value - 0.2 for value in values] for name, values in GOOD.items()}
    runs = [
        load_run(write_run(tmp_path / "a", GOOD, seed=1)),
        load_run(write_run(tmp_path / "b", shifted, seed=2)),
        load_run(write_run(tmp_path / "c", GOOD, script="linear")),
        load_run(write_run(tmp_path / "d", GOOD, script="linear", lr=0.1)),
    ]
    draw(runs, tmp_path / "figure.png")
    accuracy = figures[0].axes[0]
    assert titles(figures[0])[0] == "accuracy"
    names = [text.get_text() for text in accuracy.texts if text.get_text()]
    assert not overlapping(figures[0])
    assert not cut_off(figures[0])
    assert sorted(names) == ["ctwa", "linear lr 0.1", "linear lr None"]
    drawn = {tuple(round(y, 6) for y in line.get_ydata()): line for line in accuracy.lines if len(line.get_ydata()) == 3}
    mean, one, two = (drawn[tuple(round(v, 6) for v in values)] for values in ([0.5, 0.3, 0.8], [0.6, 0.4, 0.9], [0.4, 0.2, 0.7]))
    assert mean.get_linewidth() > two.get_linewidth()
    assert mean.get_color() == two.get_color()
    assert one is not mean
    note = figures[0].texts[-1].get_text()
    assert "ctwa: 2 runs" in note
    assert "linear lr 0.1: 1 run\n" in note


def test_mean_stands_only_where_all_seeds_are(tmp_path):
    assert curves._mean([([0, 10, 20], [1.0, 2.0, 3.0]), ([0, 10], [3.0, 4.0]), ([], [])]) == ([0, 10], [2.0, 3.0])
    assert curves._mean([([], [])]) == ([], [])


def test_smoothing_keeps_steps_and_shortens_at_the_ends():
    assert curves.smooth(([1, 2, 3, 4], [0.0, 3.0, 6.0, 3.0]), 1) == ([1, 2, 3, 4], [1.5, 3.0, 4.0, 4.5])


@pytest.mark.parametrize("wanted", [[0.5, 0.5, 0.5], [0.0, 1.0, 0.01], [0.99, 1.0, 0.98, 0.2], [0.3, 0.1, 0.6], [0.0] * 8])
def test_names_do_not_overlap(wanted):
    gap = 0.1
    places = looks.spread(wanted, gap)
    ranked = sorted(places)
    assert all(b - a > gap - 1e-9 for a, b in pairwise(ranked))
    assert ranked[0] > -1e-9
    assert ranked[-1] < 1 + 1e-9
    pairs = [(i, j) for i in range(len(wanted)) for j in range(len(wanted)) if wanted[i] < wanted[j]]
    assert all(places[i] < places[j] for i, j in pairs)  # never crosses
    if wanted == [0.3, 0.1, 0.6]:
        assert places == pytest.approx(wanted)  # room enough: nothing moves


def test_drawing_leaves_matplotlib_as_it_was(tmp_path):
    import matplotlib

    with matplotlib.rc_context({"font.size": 31.0}):
        before = dict(matplotlib.rcParams)
        draw([load_run(write_run(tmp_path / "run", GOOD))], tmp_path / "figure.png")
        assert dict(matplotlib.rcParams) == before


def test_ten_settings_can_be_told_apart(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "write_figure", lambda figure, out: figures.append(figure))
    runs = [load_run(write_run(tmp_path / f"r{k}", GOOD, script=f"algorithm_{k}")) for k in range(10)]
    draw(runs, tmp_path / "figure.png")
    lines = lines_of(figures[0].axes[0]).values()
    looks = {(line.get_color(), str(line._dash_pattern), line.get_marker(), line.get_markerfacecolor()) for line in lines}
    assert len(looks) == 10
    assert not overlapping(figures[0])
    assert not cut_off(figures[0])


@pytest.mark.parametrize(("hard", "least", "most"), [((1.1, 0.9), 0.03, 0.07), ((1e6, 0.82e6), 0.09, 0.16)])
def test_how_often_nothing_seems_to_fall_is_as_the_glossary_says(hard, least, most):
    """Ten evaluations of 256 prompts after the first, nothing trained. hard: of the beta distribution of the prompts' chances."""
    draw = np.random.default_rng(0)

    def seems_to_fall() -> bool:
        right = draw.random((11, 256)) < draw.beta(*hard, 256)
        rows = [{"eval/a": row.mean(), "eval/a_se": row.std(ddof=1) / 16} for row in right]
        return any(fell(rows[0], row, "a") for row in rows[1:])

    assert least < np.mean([seems_to_fall() for _ in range(1500)]) < most

"""The figures from runs whose truth is known: which runs are chosen, what the lines carry, what is said where runs are missing."""

import argparse
import json
import math
import shlex
from importlib import import_module
from pathlib import Path

import pytest

from study import pictures as figures
from study.pictures import band, choose, cosines, find_runs
from tools.looks import algorithm_look
from common.runs import load_run
from study import figures as command
from study import results, targets
from tools.bench import plan
from common.errors import UserError
from support.pictures import cut_off, leaving, lines_of, overlapping
from support.running import ROOT

NAMES = ("accuracy", "conciseness", "clarity")
GRAM = [[4.0, 3.0, -2.0], [3.0, 9.0, 0.0], [-2.0, 0.0, 1.0]]
FLAGS = {"model": "testbed", "dataset": "arithmetic", "estimator": "reinforce", "steps": 20, "eval_split": "test", "seed": 1}
FLAGS |= {"objectives": list(NAMES), "rewards": list(NAMES), "eval_prompts": 8, "temperature": 1.0}


def write_run(folder: Path, script: str, end: float = 0.8, steps: int = 20, grams: dict[int, list] | None = None, **flags) -> Path:
    """A run evaluated at steps 0, 10 and 20, accuracy from .5 to `end` on a straight line; `grams` are the lines of gradients.jsonl."""
    folder.mkdir(parents=True)
    own = {"cov_targets": []} if script == "ctwa" else {}
    (folder / "args.json").write_text(json.dumps(FLAGS | own | {"script": script, "out": str(folder)} | flags))
    rows = []
    for step in range(steps + 1):
        row = {"step": step}
        for k, name in enumerate(NAMES):
            if step:
                row |= {f"cov/{name}": end * (k + 1), f"weight/{name}": 1.0 + step * (k == 0), f"weight_share/{name}": 1 / 3}
                row |= {f"ctwa/deficit/{name}": 0.1 * k} if script == "ctwa" else {}
            if step % 10 == 0:
                row[f"eval/{name}"] = 0.5 + (end - 0.5) * step / 20 if k == 0 else 0.9
        rows.append(json.dumps(row) + "\n")
    (folder / "metrics.jsonl").write_text("".join(rows))
    if grams:
        (folder / "gradients.jsonl").write_text("".join(json.dumps({"step": step, "gram": gram}) + "\n" for step, gram in grams.items()))
    return folder


@pytest.fixture
def drawn(monkeypatch) -> dict:
    """The figure objects by the files that they were written into. Intervals are rougher, for the time that they take."""
    monkeypatch.setattr(figures, "RESAMPLES", 200)
    written = {}
    original = command.write_figure
    monkeypatch.setattr(command, "write_figure", lambda figure, out: (written.update({out.name: figure}), original(figure, out)))
    return written


def draw(out: Path, *numbers: str, runs: Path) -> None:
    command.main(command.Args(numbers, (str(runs),), str(out)))


def line(panel, label: str) -> list[float]:
    (found,) = (line for line in panel.lines if line.get_label() == label)
    return list(found.get_ydata())


def panels(figure) -> dict[str, object]:
    return {axes.get_title(loc="left"): axes for axes in figure.axes}


def heading(figure) -> str:
    return " ".join(text.get_text().replace("\n", " ") for text in figure.texts)


# --- all of them ---


def test_every_figure_from_one_folder_of_runs(tmp_path, drawn, capsys, monkeypatch):
    """Names of folders say nothing, and runs that serve several figures lie beside each other. In none do words cover words."""
    monkeypatch.setattr(command, "write_figure", lambda figure, out: drawn.update({out.name: figure}))  # others write theirs
    names = (f"x{i}" for i in range(1000))
    runs = tmp_path / "results" / "runs"
    write_run(runs / next(names), "ratchet")
    for script in ("linear", "ctwa", "mgda"):
        for model in (*command.THREE_MODELS, "testbed:fragile-gpt2"):
            for estimator in ("reinforce", "grpo"):
                write_run(runs / next(names), script, model=model, estimator=estimator)
        write_run(runs / next(names), script, model="testbed:fragile3", dataset="arithmetic3")
    for values in targets.SETTINGS.values():
        write_run(runs / next(names), "ctwa", cov_targets=values)
    for script in ("linear", "ctwa"):
        write_run(runs / next(names), script, seed=7, grams={0: GRAM, 10: GRAM})
    out = tmp_path / "figures"
    draw(out, "all", runs=tmp_path / "results")
    for number in (*range(1, 9), "readme"):
        figure = drawn[f"figure-{number}.png"]
        assert not overlapping(figure), number
        assert not cut_off(figure), number
        assert not leaving(figure), number
    counts = [len(drawn[f"figure-{number}.png"].axes) for number in range(1, 9)]
    settings = len(targets.SETTINGS)
    assert counts == [3 * 3 + 1, 4 * 3, 2 * 3, 3 + settings, 3 + 3, 3, 3, 3 * 3]  # mgda does not weigh rewards: not in figure 3
    for number, words in ((1, "reinforce"), (6, "testbed:fragile3 · arithmetic3"), (7, "testbed:fragile-gpt2"), (8, "grpo")):
        assert words in heading(drawn[f"figure-{number}.png"])
    assert "figure-8.png" in capsys.readouterr().out


# --- what the lines carry ---


def test_lines_are_means_over_seeds_and_bands_their_interval(tmp_path, drawn):
    for seed, end in ((1, 0.1), (2, 0.3)):
        write_run(tmp_path / f"a{seed}", "linear", end, seed=seed)
    for seed, end in ((1, 0.7), (2, 0.9)):
        write_run(tmp_path / f"b{seed}", "ctwa", end, seed=seed)
    draw(tmp_path / "out", "1", "3", runs=tmp_path)
    for number in (1, 3):
        assert (tmp_path / "out" / f"figure-{number}.png").read_bytes().startswith(b"\x89PNG")
        assert (tmp_path / "out" / f"figure-{number}.pdf").read_bytes().startswith(b"%PDF")
    curves, rows = drawn["figure-1.png"], drawn["figure-3.png"].axes
    linear, ctwa = panels(curves)["linear"], panels(curves)["ctwa"]
    assert line(linear, "accuracy") == pytest.approx([0.5, 0.35, 0.2])
    assert line(ctwa, "accuracy") == pytest.approx([0.5, 0.65, 0.8])
    assert line(ctwa, "clarity") == pytest.approx([0.9] * 3)
    assert line(ctwa, "linear") == line(linear, "accuracy")  # behind it, in grey
    assert "linear" not in [found.get_label() for found in linear.lines]
    assert not ctwa.collections  # of two seeds, the interval is their range: each is drawn instead, of every objective
    ends = [line.get_ydata()[-1] for line in ctwa.lines if line.get_label() == "_seed"]
    assert sorted(ends) == pytest.approx([0.7, 0.9, 0.9, 0.9, 0.9, 0.9])
    assert "2 seeds" in heading(curves)
    assert "thin: each seed; no band: their range is seen" in heading(curves)
    assert "bootstrap" not in heading(curves)
    assert line(rows[0], "linear") == pytest.approx([0.2] * 20)  # rows are algorithms, columns objectives
    assert line(rows[2], "linear") == pytest.approx([0.6] * 20)
    assert line(rows[0], "ctwa") == line(rows[3], "ctwa") == pytest.approx([0.8] * 20)


def test_more_seeds_have_a_band(tmp_path, drawn):
    for seed, end in enumerate((0.1, 0.3, 0.5, 0.7)):
        write_run(tmp_path / f"{seed}", "linear", end, seed=seed)
    draw(tmp_path / "out", "1", runs=tmp_path)
    (panel,) = drawn["figure-1.png"].axes
    low, high = (f(y for x, y in panel.collections[-1].get_paths()[0].vertices if x == 20) for f in (min, max))
    assert 0.1 - 1e-9 < low < 0.4 < high < 0.7 + 1e-9
    assert len([line for line in panel.lines if line.get_label() == "_seed"]) == 4 * 3
    assert "95% bootstrap interval of the mean" in heading(drawn["figure-1.png"])


def test_the_baseline_is_grey_wherever_it_is_drawn(tmp_path, drawn):
    for script in ("linear", "ctwa"):
        write_run(tmp_path / script, script, grams={0: GRAM})
    draw(tmp_path / "out", "1", "5", runs=tmp_path)
    grey = algorithm_look("linear").colour
    assert lines_of(panels(drawn["figure-1.png"])["ctwa"])["linear"].get_color() == grey
    for panel in drawn["figure-5.png"].axes:
        assert {name: line.get_color() for name, line in lines_of(panel).items()} == {
            name: algorithm_look(name).colour for name in ("linear", "ctwa")
        }


@pytest.mark.parametrize(("number", "axes", "seeds"), [("readme", 3, 13), ("7", 10, 20)])
def test_the_kept_evaluations_are_drawn_where_there_are_no_runs(tmp_path, drawn, monkeypatch, number, axes, seeds):
    monkeypatch.chdir(tmp_path)
    command.main(command.Args((number,), (), str(tmp_path / "out")))
    figure = drawn[f"figure-{number}.png"]
    assert len(figure.axes) == axes
    assert sum(line.get_label() == "_seed" for panel in figure.axes for line in panel.lines) == 3 * seeds
    assert not overlapping(figure)
    assert not cut_off(figure)


def test_the_kept_evaluations_are_unpacked_as_they_were(tmp_path):
    results.unpack(tmp_path)
    kept = results.evaluations([(results.DATA.parent / "curves.csv").read_text()])
    assert len(list(tmp_path.iterdir())) == len(kept)
    for key in (("testbed", "arithmetic", "reinforce", "ctwa", "1"), ("testbed:fragile3", "arithmetic3", "reinforce", "pama", "2")):
        run = load_run(tmp_path / "-".join(key).replace(":", "-"))
        assert [run.args[flag] for flag in results.RUN] == [*key[:4], int(key[4])]
        for name in NAMES:
            assert run.series(f"eval/{name}") == (kept[key]["step"], kept[key][name])


def test_one_seed_has_no_band_and_the_heading_says_so(tmp_path, drawn):
    write_run(tmp_path / "a", "linear")
    draw(tmp_path / "out", "1", runs=tmp_path)
    (panel,) = drawn["figure-1.png"].axes
    assert all(math.isnan(y) or not len(path.vertices) for c in panel.collections for path in c.get_paths() for _, y in path.vertices)
    assert "1 seed " in heading(drawn["figure-1.png"]) + " "
    assert "no band" in heading(drawn["figure-1.png"])
    assert "interval" not in heading(drawn["figure-1.png"])


def test_the_mean_is_interquartile_and_a_gap_leaves_a_seed_out():
    seeds = [([0, 10], [value, value]) for value in (0.0, 0.4, 0.6, 9.0)]
    assert band(seeds).middle == pytest.approx([0.5, 0.5])
    gaps = band([([0, 5], [0.2, math.nan]), ([0, 5], [math.nan, math.nan])])
    assert gaps.steps == [0, 5]
    assert gaps.middle[0] == 0.2
    assert math.isnan(gaps.middle[1])
    assert all(map(math.isnan, gaps.low))


def test_weights_and_what_drives_them(tmp_path, drawn):
    write_run(tmp_path / "a", "ctwa")
    draw(tmp_path / "out", "2", runs=tmp_path)
    weight, share, deficit, held_out = drawn["figure-2.png"].axes
    assert weight.get_yscale() == "log"
    assert "log" in weight.get_ylabel()
    assert line(weight, "accuracy") == pytest.approx([1 + step for step in range(1, 21)])
    assert line(share, "clarity") == pytest.approx([1 / 3] * 20)
    assert line(deficit, "clarity") == pytest.approx([0.2] * 20)
    assert line(held_out, "accuracy") == pytest.approx([0.5, 0.65, 0.8])


def test_settings_are_compared_on_the_seeds_that_all_have(tmp_path, drawn):
    for seed, end in ((1, 0.7), (2, 0.9), (3, 0.0)):
        write_run(tmp_path / f"default{seed}", "ctwa", end, seed=seed)
        write_run(tmp_path / f"linear{seed}", "linear", end, seed=seed)
    for seed, end in ((1, 0.2), (2, 0.4)):
        write_run(tmp_path / f"negative{seed}", "ctwa", end, seed=seed, cov_targets=(-0.15, -0.08, -0.08))
    draw(tmp_path / "out", "4", runs=tmp_path)
    figure = drawn["figure-4.png"]
    accuracy = figure.axes[0]
    ends = {found.get_label(): found.get_xdata()[0] for found in accuracy.lines if found.get_marker() == "o"}
    # the end is the mean of the evaluations at steps 10 and 20
    assert list(ends.values()) == pytest.approx([0.725, 0.725, 0.35])
    rows = [label.get_text() for label in accuracy.get_yticklabels()]
    assert rows == ["linear", "default  0.15 0.08 0.08", "negative  -0.15 -0.08 -0.08"]
    assert line(panels(figure)["negative\n-0.15 -0.08 -0.08"], "accuracy") == pytest.approx([0.5, 0.4, 0.3])


def test_cosines(tmp_path, drawn):
    noisy = [[4.0, 3.0, -2.0], [3.0, -0.1, 0.0], [-2.0, 0.0, 1.0]]
    run = load_run(write_run(tmp_path / "a", "linear", grams={0: GRAM, 10: noisy}))
    found = cosines(run)
    assert found[0, 1][0] == [0, 10]
    assert found[0, 1][1][0] == 0.5  # 3 / sqrt(4 * 9)
    assert math.isnan(found[0, 1][1][1])  # a diagonal entry below 0
    assert found[0, 2][1] == [-1, -1]
    assert found[1, 2][1][0] == 0
    draw(tmp_path / "out", "5", runs=tmp_path)
    figure = drawn["figure-5.png"]
    pair = panels(figure)["accuracy, conciseness"]
    assert line(pair, "linear")[0] == 0.5
    assert math.isnan(line(pair, "linear")[1])
    assert line(panels(figure)["accuracy"], "linear") == pytest.approx([0.5, 0.65, 0.8])
    assert "A gap" in heading(figure)
    (tmp_path / "a" / "gradients.jsonl").write_text('{"step": 0, "gram": [[1.0, 0.5]]}\n')
    with pytest.raises(UserError, match="step 0 has no gram of 3 x 3 numbers"):
        cosines(run)


def test_a_cosine_of_a_vanishing_gradient_leaves_the_others_to_be_seen(tmp_path, drawn):
    vanishing = [[4.0, -3.0, -2.0], [-3.0, 1e-4, 0.0], [-2.0, 0.0, 1.0]]  # -150 between the first two
    write_run(tmp_path / "a", "linear", grams={0: GRAM, 10: vanishing})
    draw(tmp_path / "out", "5", runs=tmp_path)
    pair = panels(drawn["figure-5.png"])["accuracy, conciseness"]
    low, high = pair.get_ylim()
    assert -1.7 < low < -1
    assert 1 < high < 1.7
    (beyond,) = (mark for mark in pair.lines if mark.get_label() == "_beyond")
    assert (beyond.get_marker(), list(beyond.get_xdata())) == ("v", [10])


# --- which runs ---


def test_runs_are_chosen_by_their_flags(tmp_path):
    write_run(tmp_path / "runs" / "ctwa-testbed-grpo-s1", "linear")  # the name lies
    write_run(tmp_path / "runs" / "linear-s2", "linear", seed=2, model="testbed:fragile")  # the same model
    write_run(tmp_path / "runs" / "linear-s3", "linear", seed=3, estimator="grpo")
    write_run(tmp_path / "runs" / "linear-s4", "linear", seed=4, model="testbed:robust")
    write_run(tmp_path / "runs" / "linear-s5", "linear", seed=5, steps=7)  # of 20: not finished
    write_run(tmp_path / "more" / "runs" / "again", "linear")
    write_run(tmp_path / "runs" / "ctwa", "ctwa", cov_targets=[0.15, 0.08, 0.08])
    write_run(tmp_path / "runs" / "negative", "ctwa", cov_targets=[-0.15, -0.08, -0.08])
    runs, notes = choose(find_runs([tmp_path]), command.wanted(("testbed:fragile",)))
    assert {script: [run.name for run in seeds] for script, seeds in runs.items()} == {
        "linear": ["ctwa-testbed-grpo-s1", "linear-s2"],
        "ctwa": ["ctwa"],
    }
    assert any("at step 7 of 20" in note for note in notes)
    assert "left out: 1 with the flags and the seed of another" in notes


def test_runs_that_do_not_compare_are_refused(tmp_path):
    write_run(tmp_path / "a", "linear", lr=1e-4)
    write_run(tmp_path / "b", "linear", lr=3e-4, seed=2)
    with pytest.raises(UserError, match="differ in --lr: .*a has 0.0001, .*b has 0.0003"):
        choose(find_runs([tmp_path]), command.wanted(("testbed:fragile",)))
    write_run(tmp_path / "c" / "linear", "linear")
    write_run(tmp_path / "c" / "ctwa", "ctwa", eval_prompts=9)
    with pytest.raises(UserError, match="differ in --eval-prompts"):
        draw(tmp_path / "out", "1", runs=tmp_path / "c")
    with pytest.raises(UserError, match="--runs .*nowhere: no such folder"):
        find_runs([tmp_path / "nowhere"])


def test_missing_runs_are_told_with_the_command_that_makes_them(tmp_path, drawn, capsys):
    write_run(tmp_path / "a", "linear")
    with pytest.raises(UserError, match="figure 8: no finished run .*--models testbed .*--estimator grpo makes them"):
        draw(tmp_path / "out", "all", runs=tmp_path)
    printed = capsys.readouterr()
    assert set(drawn) == {f"figure-{number}.{ending}" for number in (1, 3, "readme") for ending in ("png", "pdf")}  # what can be drawn is
    assert "without ctwa, tchebycheff, " in printed.out
    assert f"to make what is missing: {command.TESTBED}" in printed.out
    for number, made_by in (("4", "python -m study.targets"), ("5", "python -m study.gradients"), ("6", "arithmetic3")):
        assert f"figure {number}: " in printed.err
        assert made_by in printed.err


@pytest.mark.parametrize("number", "123678")
def test_the_command_of_a_figure_makes_its_runs(tmp_path, number):
    parser = argparse.ArgumentParser()
    for flag in ("--algos", "--models", "--estimator"):
        parser.add_argument(flag, nargs="+", default=())
    parser.add_argument("--seeds", type=int)
    parser.add_argument("--out")
    words = shlex.split(command.FIGURES[number][2])
    assert words[:3] == ["python", "run.py", "bench"]
    cut = words.index("--") if "--" in words else len(words)
    flags = parser.parse_args(words[3:cut])
    assert flags.out == command.STUDY
    scripts = {"ctwa": (ROOT / "algos" / "ctwa.py", import_module("algos.ctwa").Args)}
    for job in plan(scripts, flags.seeds, flags.models, flags.estimator, 20, words[cut + 1 :], tmp_path):
        write_run(job.folder, **job.args | {"objectives": list(NAMES)})
    figure, _ = command.FIGURES[number][0](find_runs([tmp_path]))
    assert len(figure.axes) == {"1": 3, "2": 12, "3": 3, "6": 1, "7": 1, "8": 3}[number]
    assert f"{flags.seeds} seeds" in heading(figure)


def test_the_settings_of_figure_4_are_planned_as_they_are_looked_for(tmp_path):
    planned = targets.plans(targets.Args(seeds=2, steps=5, out=str(tmp_path)), ["--prompts", "4"])
    assert [folder.name for folder in planned] == list(targets.SETTINGS)
    assert len(set(targets.SETTINGS.values())) == len(targets.SETTINGS)
    for folder, jobs in planned.items():
        assert [job.folder for job in jobs] == [folder / "runs" / f"ctwa-testbed-reinforce-s{seed}" for seed in (1, 2)]
        assert all(job.args["cov_targets"] == list(targets.SETTINGS[folder.name]) for job in jobs)
        assert all(job.args["prompts"] == 4 and job.steps == 5 for job in jobs)
    with pytest.raises(UserError, match="--cov-targets"):
        targets.plans(targets.Args(out=str(tmp_path)), ["--cov-targets", "1", "1", "1"])


def test_order_names_scripts_that_there_are():
    assert set(figures.ORDER) <= {path.stem for path in (ROOT / "algos").glob("[a-z]*.py")}  # those of the study; others follow
    assert len(set(figures.ORDER)) == len(figures.ORDER)

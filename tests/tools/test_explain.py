"""Explanations: sums and reasons on runs written by hand, words on these and on trained ones; and
what of a run's statistics reaches the controllers, whose choices test_controllers.py compares."""

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from algos.famo import FAMO
from algos.famo import Args as FAMOArgs
from algos.linear import scalarize
from common.controllers import within_prompt_covariance
from common.errors import UserError
from common.runs import load_run
from support.folders import write_predicted_run as write_run
from support.own_rewards import OWN
from support.pictures import cut_off, overlapping
from tools.counterfactual import choices
from tools.explain import (
    PLAIN,
    agreement,
    draw,
    explain,
    intervals,
    load_statistics,
    main,
    outvoted,
    phases,
    reason,
)
from tools.explore import page_data


def test_predictions_are_added_up_between_evaluations(tmp_path):
    laws, held = [0.05, 0.03, -0.02, -0.04, 0.0, 0.01], [0.5, 0.58, 0.5, 0.51]
    found = intervals(load_run(write_run(tmp_path / "run", laws, held)), "hard")
    assert found[["start", "end"]].to_numpy().tolist() == [[0, 2], [2, 4], [4, 6]]
    assert [*found.move_se] == pytest.approx(np.std(np.reshape(laws, (3, 2)), 1, ddof=1) * 2**0.5)
    run = load_run(write_run(tmp_path / "gap", [0.05, None, 0.03, 0.01], [0.5, 0.5, 0.6]))
    del run.rows[2]["eval/hard"], run.rows[2]["eval/hard_se"]  # one interval, a step of it unknown
    assert [*intervals(run, "hard").move_se] == pytest.approx([4 * 0.02 / 3**0.5])
    # cov/* divides by 4 completions, a prediction by 3
    assert [*found.score] == pytest.approx([2 * 0.5 * 0.1 * 4 / 3] * 3)
    # slope: (.08² + .06 · .08 + .01²) / (.08² + .06² + .01²)
    assert agreement(found, "move") == ["+0.03", "2 of 2", "1.00", "1.12"]
    assert agreement(found, "score")[1:3] == ["1 of 2", "–"]  # what does not vary


NULL = [[None, None], [None, None]]
DOWN = {"move": -0.2, "measured": -0.2}
CALM = {"move": 0.01, "measured": 0.0}
NEGATIVE, POSITIVE = "negative covariance with the score", "positive covariance with the score"


@pytest.mark.parametrize(
    ("changed", "kind", "number"),
    [
        ({"signal": 0.03, "reward": 0.98}, "saturated", "3% of the prompts"),
        ({"signal": 0.03, "reward": 0.1}, "no variance within groups", "3% of the prompts"),
        ({"cov_active": -0.04}, "clipped away", "-0.040 after clipping"),
        (DOWN | {"cov": -0.1}, NEGATIVE, "-0.100"),
        (DOWN | {"cosine": -0.4}, "conflicting gradients", "-0.40"),
        (DOWN | {"cosine": 0.4}, "moved against its own gradient", "+0.40"),
        (DOWN, "moved against the score", "-0.200"),
        ({"cov": -0.1}, "carried along against the score", "+0.100"),
        ({}, POSITIVE, "+0.100"),
        (CALM, "no push beyond noise", "+0.010 ± 0.020"),
        # what was measured beyond noise confirms it, or does not
        (CALM | {"measured": 0.1, "beyond": True}, POSITIVE, ""),
        (CALM | {"measured": -0.1, "beyond": True}, "no push beyond noise", ""),
    ],
)
def test_each_reason_has_its_number(changed, kind, number):
    usual = {"measured": 0.1, "beyond": False, "move": 0.1, "move_se": 0.01, "cov": 0.1}
    usual |= {"cov_active": 0.1, "signal": 0.5, "reward": 0.5, "cosine": np.nan} | changed
    name, words = reason(SimpleNamespace(**usual), -1.0, 1.0, usual["cosine"])
    assert name == kind
    assert number in words
    assert name in PLAIN or name.startswith("carried")  # for which nothing falls


@pytest.mark.parametrize(
    ("laws", "held", "gram", "wanted", "number"),
    [
        (
            [-0.02, -0.1, -0.03, 0.05],
            [0.6, 0.55, 0.35, 0.3, 0.4],
            [],
            [[0, 6, "moved against the score"], [6, 8, POSITIVE]],
            "-0.200",  # of the strongest interval
        ),
        # of the first with the sum of both: (1 - 3) / (1 * 2), and (9 - 3) / (3 * 2)
        ([-1], [1, 0], [NULL, [[1, -3], [-3, 9]]], [[0, 2, "conflicting gradients"]], "-1.00"),
        ([-1], [1, 0], [[[9, -3], [-3, 1]]], [[0, 2, "moved against its own gradient"]], "+1.00"),
    ],
)
def test_intervals_of_one_reason_are_one_phase(laws, held, gram, wanted, number, tmp_path):
    laws = np.repeat(laws, 2).tolist()
    folder = write_run(tmp_path / "run", laws, held, line=lambda step: {"gram": gram * (step < 2)})
    found = phases(load_run(folder), "hard")
    assert found[["start", "end", "reason"]].to_numpy().tolist() == wanted
    assert number in found.number.iloc[0]


VOTED = {"cov/hard": -0.1, "weight_share/hard": 0.1, "weight_share/easy": 0.9}
VOTES = "(-0.100), outvoted: its own weight +0.025, easy -0.028"
NO_MOVE = {"law/hard": None, "law/easy": None, "law/rate": None, "law/nats": None}
REACH = {"linear/target/easy": 0.08, "linear/reachable/easy": 0.03, **VOTED}
SINK = "the weight went to easy, whose target is out of reach (target 0.08, at most 0.03 possible;"


@pytest.mark.parametrize(
    ("law", "row", "script", "words", "absent"),
    [
        (-0.05, VOTED, "linear", VOTES, "wrong"),
        (-0.05, VOTED, "mine", "(-0.100)", VOTES),  # a script that is no longer there
        (-0.05, {}, "linear", "hard has the wrong sign in steps 1–2, 3–4:", "law is wrong"),
        (0.05, {}, "linear", "moved by -0.10 ± 0.03, predicted +0.10 by the move:", VOTES),
        (0, NO_MOVE, "linear", "--mini-batches 2", "nats"),
        (-0.05, REACH, "linear", SINK, "moved against"),
        (-0.05, REACH | {"linear/reachable/easy": 0.09}, "linear", VOTES, SINK),
        (-0.05, REACH | {"weight_share/easy": 0.4}, "linear", "negative covariance", SINK),
    ],
)
def test_what_is_said_of_a_fall(law, row, script, words, absent, tmp_path):
    folder = write_run(tmp_path / "run", [law] * 4, [0.5, 0.4, 0.3], row, script=script)
    text = " ".join(explain(load_run(folder)).split())
    assert text.startswith(
        "hard fell from 0.50 to 0.30 while nothing rose, most of it in steps 1–4"
    )
    assert words in text
    assert absent not in text


def test_what_fell_beyond_noise_is_told_though_another_fell_further_within_it(tmp_path):
    run = load_run(write_run(tmp_path / "run", [0.0] * 2, [0.5, 0.43]))
    run.rows[2] |= {"eval/hard_se": 0.05, "eval/easy": 0.45}
    assert explain(run).startswith("easy fell from 0.50 to 0.45 while nothing rose")


def test_what_rose_in_samples_alone_is_called_mixed_as_in_the_verdict(tmp_path):
    laws = [*np.repeat([0.05, -0.05, 0.05, -0.05, 0.05], 2)]
    run = load_run(write_run(tmp_path / "run", laws, [0.5, 0.6, 0.5, 0.65, 0.5, 0.7]))
    run.rows[0]["eval/greedy/hard"] = 0.9
    text = " ".join(explain(run).split())
    assert text.startswith("No objective fell beyond noise in samples; hard rose.")
    assert "mixed (greedily 0.90 → 0.70); rose by 0.15 in steps 5–6" in text


def test_a_run_without_predictions_is_explained_without_them(tmp_path):
    """Whether they are null, as where a step is a single mini-batch, or not there at all."""
    run = load_run(write_run(tmp_path / "run", [-0.05] * 4, [0.5, 0.4, 0.3], NO_MOVE))
    wanted = explain(run)
    for row in run.rows:
        for key in [*row]:
            if key.startswith("law/"):
                del row[key]
    assert explain(run) == wanted
    assert " ".join(wanted.split()).count("is not known") == 1
    assert page_data(run)["steps"][0]["rate"] is None
    draw(run, tmp_path / "x.png")


# --- what reaches the controllers ---


def chosen(folder, **changed) -> dict:
    """What the controllers choose with other statistics: functions of a line."""
    run = load_run(folder)
    lines = load_statistics(run)
    for line in lines:
        line |= {key: change(line) for key, change in changed.items()}
    return choices(run, lines)


def test_what_a_run_did_not_keep_leaves_weights_unknown(trained):
    found = chosen(trained("linear"), age=lambda line: [0] * 16)
    unknown = {"ratchet", "gradnorm", "dynamic_weighting"}
    assert {name for name in found if None in found[name].weights} == unknown
    rewards = [[[p + 1, 1, 0], [p, 0, 10], [p, 1, 1], [p, 0, 0]] for p in range(4)]
    found = chosen(trained("linear"), rewards=lambda line: np.vstack(rewards))
    assert found["famo"].weights == [None] * 3  # above --reward-max
    # the shortest combination of three vectors with the products .58, -.38 and -.53
    assert found["mgda"].weights[0] == pytest.approx([0.18, 0.35, 0.47], abs=0.01)


def test_gradients_that_were_not_finite_are_passed_over(trained):
    lost = [[[None] * 3] * 3]
    found = chosen(trained("mgda"), gram=lambda line: line["gram"] if line["step"] < 2 else lost)
    assert all(np.isfinite(own.weights).all() for own in found.values())
    first, second, _ = found["dynamic_weighting"].weights
    assert first == second != [1 / 3] * 3  # nothing was learned in step 2
    # the gradients of a whole batch are those of each of its updates
    once = chosen(trained("mgda"), gram=lambda line: line["gram"][:1])
    assert once == chosen(trained("mgda"), gram=lambda line: line["gram"][:1] * 2)


def test_a_reward_that_does_not_apply_is_left_out_as_in_training(trained):
    run = load_run(trained("linear", rewards=("rewards.accuracy:accuracy", f"{OWN}:absent")))
    lines = load_statistics(run)
    rewards = [torch.tensor(np.array(line["rewards"], dtype=float)) for line in lines]
    assert all(own.isnan().any() and not own.isnan().all() for own in rewards)
    for k, name in enumerate(run.objectives):
        scores = [scalarize(own, torch.full((2,), 0.5)) for own in rewards]
        each = zip(scores, rewards, strict=True)
        wanted = [within_prompt_covariance(score, own, 4)[k] for score, own in each]
        assert outvoted(run, name, 0, 3).sum() == pytest.approx(np.mean(wanted), rel=1e-6)
    found = choices(run, lines)
    famo, learned = FAMO(torch.ones(2), FAMOArgs.weight_lr, FAMOArgs.gamma), []
    for own, after in zip(rewards, [*rewards[1:], None], strict=True):
        learned.append(famo.weights(own.float()))
        if after is not None:
            famo.reached(after.nanmean(0))
    np.testing.assert_allclose(found["famo"].weights, torch.stack(learned), rtol=1e-4)
    assert famo.state["t"] == 2
    assert found["mgda"].weights[0] == pytest.approx([0.5, 0.5])  # of two gradients of one length


def test_a_preset_gives_the_other_controllers_their_rates(trained):
    run, moved = load_run(trained("linear")), []
    for run.args["preset"] in ("", "qwen2.5-1.5b-math500"):
        weights = np.log(choices(run, load_statistics(run))["ctwa"].weights)
        moved.append(abs(np.diff(weights[2] - weights[0])).max())
    assert moved[1] / moved[0] == pytest.approx(0.05, rel=1e-2)


# --- as a user types it ---


def test_the_command_explains_and_draws(trained, capsys, tmp_path, monkeypatch):
    written, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda *a, **k: (written.append(a[0]), save(*a, **k)))
    one = str(trained("linear", rewards=("rewards.accuracy:accuracy",)))
    main([str(trained("mgda")), one, "--steps", "1", "3"])
    main([one, "--out", str(tmp_path / "$^$.pdf")])
    said = capsys.readouterr().out
    for words in ("\nWhy\n", "\nWhere the law stops\n", "mgda ←"):
        assert words in said
    assert len(written) == 3
    assert not any(overlapping(figure) + cut_off(figure) for figure in written)


@pytest.mark.parametrize(
    ("command", "told"),
    [
        ("explain", "which run"),
        ("explain run run --steps 3", "--steps 3: .* has the steps 1 to 2"),
        ("explain run once", "once: hard was evaluated 1 time"),
        ("explain run run --out x.png", "--out x.png"),
        ("explain run --out x.gif", "--out x.gif"),
        ("explain run --out none/x.png", "--out none/x.png"),
        ("explore ran", "no run folder .* did you mean run"),
        ("explore run --out none/page.html", r"--out none/page.html cannot be written \(.*No such"),
        ("explore run --out notes.html", "--out notes.html exists and is no page of explore"),
        ("explore one", "has one objective"),
        ("explain new --steps 1", "hard was evaluated 1 time"),
        ("explore new", "no step yet"),
    ],
)
def test_mistakes_are_told_before_anything_else(command, told, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("notes.html").write_text("mine")
    for name, laws in {"run": [0.1] * 2, "once": [0.1], "new": []}.items():
        write_run(tmp_path / name, laws, [0.5, 0.6])
    (tmp_path / "new" / "statistics.jsonl").unlink()  # it comes with the first step
    write_run(tmp_path / "one", [0.1], [0.5], objectives=["hard"])
    tool, *words = command.split()
    with pytest.raises(UserError, match=told):
        import_module(f"tools.{tool}").main(words)
    assert not capsys.readouterr().out
    assert not list(tmp_path.rglob("*.png"))

"""Explanations of runs: sums and reasons on runs written by hand, and controllers that must choose again what they chose in training."""

import json
import re
from importlib import import_module
from unittest.mock import patch

import numpy as np
import pytest
import torch

from tools.counterfactual import CONTROLLERS, counterfactual_weights
from tools.looks import objective_look
from common.runs import load_run, load_statistics
from tools.explain import (
    Interval,
    agreement,
    by_length,
    counterfactual_table,
    draw,
    explain,
    intervals,
    outvoted,
    phases,
    reason,
    scalarised,
)
from common.errors import UserError
from support.folders import write_predicted_run as write_run
from support.pictures import leaving, lines_of, overlapping
from support.running import NAMES, run_script, train

SCRIPTS = {name: import_module(f"algos.{name}") for name in NAMES}


def test_predictions_are_added_up_between_evaluations(tmp_path):
    run = load_run(write_run(tmp_path / "run", [0.05, 0.03, -0.02, -0.04, 0.0, 0.01], [0.5, 0.58, 0.5, 0.51]))
    found = intervals(run, "hard")
    assert [(i.start, i.end) for i in found] == [(0, 2), (2, 4), (4, 6)]
    assert [i.move for i in found] == pytest.approx([0.08, -0.06, 0.01])
    assert [i.move_se for i in found] == pytest.approx([2**0.5 * np.std(m, ddof=1) for m in ([0.05, 0.03], [-0.02, -0.04], [0.0, 0.01])])
    assert [i.score for i in found] == pytest.approx([2 * 0.5 * 0.1 * 4 / 3] * 3)  # cov/* divides by 4 completions, a prediction by 3
    assert [i.measured for i in found] == pytest.approx([0.08, -0.08, 0.01])
    assert [i.beyond_noise for i in found] == [True, True, False]
    move, score = agreement(found, "move"), agreement(found, "score")
    assert (move.right, move.judged, score.right, score.judged) == (2, 2, 1, 2)
    assert move.correlation == pytest.approx(np.corrcoef([0.08, -0.06, 0.01], [0.08, -0.08, 0.01])[0, 1])
    assert move.slope == pytest.approx((0.08**2 + 0.06 * 0.08 + 0.01**2) / (0.08**2 + 0.06**2 + 0.01**2))
    assert move.total == pytest.approx(0.03)
    assert score.correlation is None  # the same prediction each time has no correlation
    text = explain(run)
    assert "By the score, hard has the wrong sign in steps 3–4" in " ".join(text.split())
    assert "the law is wrong" not in text


def test_a_run_whose_first_steps_logged_no_law_is_refused(tmp_path):
    """Begun by an older version and resumed by this one."""
    folder = write_run(tmp_path / "run", [0.05] * 4, [0.5, 0.6, 0.7])
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    del rows[1]["law/hard"]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(UserError, match="logs no law/hard in step 1"):
        explain(load_run(folder))


def test_a_prediction_that_failed_is_said_to_have_failed(tmp_path):
    run = load_run(write_run(tmp_path / "run", [0.05] * 4, [0.5, 0.4, 0.3]))
    text = " ".join(explain(run).split())
    assert "Steps 1–2: hard moved by -0.10 ± 0.03, predicted +0.10 by the move: the law is wrong." in text
    assert agreement(intervals(run, "hard"), "move").right == 0


def interval(**changed) -> Interval:
    usual = {"start": 0, "end": 10, "measured": 0.1, "se": 0.01, "move": 0.1, "move_se": 0.01, "score": 0.1}
    return Interval(**usual | {"cov": 0.1, "cov_active": 0.1, "signal": 0.5, "level": 0.5} | changed)


@pytest.mark.parametrize(
    ("changed", "cosine", "expected", "number"),
    [
        ({"signal": 0.03, "level": 0.98}, None, "saturated", "3% of the prompts"),
        ({"signal": 0.03, "level": 0.1}, None, "no variance within groups", "3% of the prompts"),
        ({"cov_active": 0.04}, None, "clipped away", "+0.040 after clipping"),
        ({"cov_active": -0.04}, None, "clipped away", "-0.040 after clipping"),
        ({"cov": -0.1, "cov_active": -0.1, "move": -0.2, "measured": -0.2}, None, "negative covariance with the score", "-0.100"),
        ({"move": -0.2, "measured": -0.2}, -0.4, "conflicting gradients", "-0.40"),
        ({"move": -0.2, "measured": -0.2}, 0.4, "moved against its own gradient", "+0.40"),
        ({"move": -0.2, "measured": -0.2}, None, "moved against the score", "-0.200"),
        ({"cov": -0.1, "cov_active": -0.1}, None, "carried along against the score", "+0.100"),
        ({}, None, "positive covariance with the score", "+0.100"),
        ({"move": 0.01, "measured": 0.0}, None, "no push beyond noise", "+0.010 ± 0.020"),
        ({"move": 0.01, "measured": -0.1}, None, "no push beyond noise", "+0.010 ± 0.020"),
        ({"move": 0.01, "measured": 0.1}, None, "positive covariance with the score", "+0.100"),  # what was measured confirms it
        ({"move": None, "move_se": None, "score": None, "cov": -0.1}, None, "negative covariance with the score", "-0.100"),
    ],
)
def test_each_reason_has_its_number(changed, cosine, expected, number):
    name, words = reason(interval(**changed), 0.0, 1.0, cosine)
    assert name == expected
    assert number in words


def test_a_reward_of_another_scale_can_be_saturated():
    assert reason(interval(signal=0.0, level=49.0), -10.0, 50.0)[0] == "saturated"
    assert reason(interval(signal=0.0, level=1.0), -10.0, 50.0)[0] == "no variance within groups"


def test_intervals_of_one_reason_are_one_phase(tmp_path):
    laws = [-0.05] * 4 + [0.05] * 4
    run = load_run(write_run(tmp_path / "run", laws, [0.5, 0.4, 0.3, 0.4, 0.5], cov=0.1))
    found = phases(run, "hard", intervals(run, "hard"))
    assert [(p.start, p.end, p.reason) for p in found] == [
        (0, 4, "moved against the score"),
        (4, 8, "positive covariance with the score"),
    ]
    assert [p.measured for p in found] == pytest.approx([-0.2, 0.2])


def test_a_phase_has_the_number_of_its_strongest_interval(tmp_path):
    run = load_run(write_run(tmp_path / "run", [-0.02, -0.02, -0.1, -0.1, -0.03, -0.03], [0.6, 0.55, 0.35, 0.3]))
    (phase,) = phases(run, "hard", intervals(run, "hard"))
    assert "the steps moved it by -0.200" in phase.number


@pytest.mark.parametrize(
    ("gram", "expected", "cosine"),
    [  # of `hard`, the first, with the sum of both: (1 - 3) / (1 * 2), and (9 - 3) / (3 * 2)
        ([[1.0, -3.0], [-3.0, 9.0]], "conflicting gradients", "-1.00"),
        ([[9.0, -3.0], [-3.0, 1.0]], "moved against its own gradient", "+1.00"),
    ],
)
def test_a_gradient_in_conflict_with_the_step_is_told_from_one_that_is_not(gram, expected, cosine, tmp_path):
    folder = write_run(tmp_path / "run", [-0.05] * 2, [0.5, 0.4])
    lines = [json.loads(line) for line in (folder / "statistics.jsonl").read_text().splitlines()]
    (folder / "statistics.jsonl").write_text("".join(json.dumps(line | {"gram": [gram]}) + "\n" for line in lines))
    run = load_run(folder)
    (phase,) = phases(run, "hard", intervals(run, "hard"))
    assert phase.reason == expected
    assert cosine in phase.number


def test_who_outvoted_an_objective_adds_up_to_the_covariance_of_the_scalar_reward(tmp_path):
    run = load_run(write_run(tmp_path / "run", [0.0] * 2, [0.5, 0.4]))
    rewards = np.array([[1, 0], [0, 1], [1, 1], [0, 1]])
    parts = dict(outvoted(run, "hard", 0, 2))
    assert sum(parts.values()) == pytest.approx(np.cov(rewards[:, 0], rewards @ [0.5, 0.5], bias=True)[0, 1])
    assert parts["hard"] == pytest.approx(0.5 * rewards[:, 0].var())
    assert parts["easy"] < 0


def test_votes_are_told_of_scores_that_are_a_sum_of_rewards_alone(tmp_path):
    folder = write_run(tmp_path / "run", [-0.05] * 2, [0.5, 0.4], cov=-0.1)
    line = {"step": 1, "rewards": [[1, 0], [0, 1], [0, 1], [0, 1]], "lengths": [9, 5, 9, 5]}
    summed = {"advantages": [-1.5, 0.5, 0.5, 0.5]}  # of weights .2 and .8: 3 * (s - mean), as scaled within a prompt
    other = {"advantages": [-1.5, 0.5, 0.5, -0.5]}
    rows = [
        json.loads(row) | {"weight_share/hard": 0.2, "weight_share/easy": 0.8}
        for row in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for advantages, told in ((summed, True), (other, False)):
        (folder / "statistics.jsonl").write_text("".join(json.dumps(line | advantages | {"step": step}) + "\n" for step in (1, 2)))
        run = load_run(folder)
        assert scalarised(run, 0, 2) == told
        assert ("outvoted" in explain(run)) == told


def test_a_covariance_is_divided_into_lengths_and_the_rest(tmp_path):
    """A policy that chooses between a short wrong mode and a long one, right half of the time: what the choice does is between lengths."""
    folder = write_run(tmp_path / "run", [0.0] * 2, [0.5, 0.4])
    rewards, lengths, advantages = [[0, 1], [0, 1], [1, 0], [0, 0]], [16, 16, 32, 32], [1.0, 1.0, 0.0, -2.0]
    line = {"step": 1, "rewards": rewards, "lengths": lengths, "advantages": advantages}
    (folder / "statistics.jsonl").write_text(json.dumps(line) + "\n")
    between, within = by_length(load_run(folder), "hard", 0, 2)
    assert between == pytest.approx(np.cov(advantages, [0, 0, 0.5, 0.5], bias=True)[0, 1])
    assert between + within == pytest.approx(np.cov(advantages, [row[0] for row in rewards], bias=True)[0, 1])
    assert between < 0 < within
    # a second prompt, of which every advantage is high: only differences within a prompt count, and the mean over the prompts
    raised = [value + 5 for value in advantages]
    line |= {"rewards": rewards * 2, "lengths": lengths * 2, "advantages": [*advantages, *raised]}
    (folder / "statistics.jsonl").write_text(json.dumps(line) + "\n")
    assert by_length(load_run(folder), "hard", 0, 2) == pytest.approx((between, within))


def test_runs_that_cannot_be_explained_are_refused(tmp_path):
    once = load_run(write_run(tmp_path / "once", [0.1], [0.5]))
    with pytest.raises(UserError, match="evaluated 1 time"):
        explain(once)
    older = write_run(tmp_path / "older", [0.1] * 2, [0.5, 0.6])
    rows = [json.loads(line) for line in (older / "metrics.jsonl").read_text().splitlines()]
    (older / "metrics.jsonl").write_text("".join(json.dumps({k: v for k, v in r.items() if "law" not in k}) + "\n" for r in rows))
    with pytest.raises(UserError, match="logs no law/hard"):
        explain(load_run(older))
    (older / "statistics.jsonl").unlink()
    with pytest.raises(UserError, match="statistics.jsonl: cannot be read"):
        load_statistics(load_run(older))
    with pytest.raises(UserError, match="--out"):
        draw(load_run(tmp_path / "once"), tmp_path / "picture.gif")


# --- counterfactual weights ---


@pytest.mark.parametrize("name", CONTROLLERS)
def test_a_controller_chooses_again_what_it_chose_in_training(name, tmp_path):
    """Its weights computed anew from statistics.jsonl are those that the run logged. CTWA weighs completions after its update, so lr is
    too small here for that to differ; FAMO reads its gaps after the update on the training batch, so only its first step is the same."""
    rows = train(name, tmp_path / "run", steps=4, eval_every=4, lr=1e-6 if name == "ctwa" else 1e-3)
    run = load_run(tmp_path / "run")
    steps, chosen, estimated = counterfactual_weights(run, SCRIPTS)
    assert steps == [1, 2, 3, 4]
    assert chosen.keys() == CONTROLLERS.keys()
    assert estimated == (name not in ("mgda", "gradnorm", "nash_mtl", "dynamic_weighting"))
    for row, weights in list(zip(rows[1:], chosen[name], strict=True))[: 1 if name == "famo" else None]:
        assert weights.tolist() == pytest.approx([row[f"weight_share/{o}"] for o in run.objectives], abs=2e-4)
    for other, found in chosen.items():
        if estimated and other in ("dynamic_weighting", "gradnorm"):
            assert found == [None] * 4
        else:
            assert all(float(weights.sum()) == pytest.approx(1, abs=1e-5) and bool((weights >= 0).all()) for weights in found)
    table = counterfactual_table(run, steps, chosen, estimated)
    assert f"{name}" in table
    assert table.count("←") == 2  # the explanation and the run's own row
    with pytest.raises(UserError, match="--steps 9"):
        counterfactual_table(run, steps, chosen, estimated, [9])


RATCHET = {"weights": (3.0, 2.0, 1.0), "release": 0.3, "kp": 0.0, "max_multiplier": 0.5, "warmup": 1}
RATCHET |= {"steps": 6, "prompts": 8, "lr": 1e-3}  # in which it loses, meets its bound and wins back


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("tchebycheff", {"variant": "smooth"}),
        ("tchebycheff", {"variant": "classical", "preference": (3.0, 2.0, 1.0)}),
        ("ctwa", {"cov_targets": (10.0, 10.0, 10.0), "obj_caps": (0.0, 2.0, 2.0)}),
        ("ctwa", {"cov_targets": (0.5, 0.5, 0.5), "outlier_factor": 1.0}),
        ("hypervolume", {"weights": (3.0, 2.0, 1.0)}),
        ("ratchet", RATCHET),
    ],
)
def test_so_does_each_of_its_variants(name, flags, tmp_path):
    rows = train(name, tmp_path / "run", **({"steps": 3, "eval_every": 6, "lr": 1e-6} | flags))
    run = load_run(tmp_path / "run")
    for row, weights in zip(rows[1:], counterfactual_weights(run, SCRIPTS)[1][name], strict=True):
        assert weights.tolist() == pytest.approx([row[f"weight_share/{o}"] for o in run.objectives], abs=2e-4)


def test_rewards_beyond_the_best_ones_leave_gaps_open(tmp_path):
    """FAMO's gap to a best reward of 1 would be negative, its logarithm no number."""
    (tmp_path / "ten.py").write_text("def ten(completions, **columns):\n    return [10.0 * (len(c) % 2) for c in completions]\n")
    train("linear", tmp_path / "run", steps=2, eval_every=2, rewards=("rewards.accuracy:accuracy", f"{tmp_path / 'ten.py'}:ten"))
    run = load_run(tmp_path / "run")
    found = counterfactual_weights(run, SCRIPTS)
    assert found[1]["famo"] == [None, None]
    assert re.search("famo +– +–\n", counterfactual_table(run, *found))
    with patch("tools.curves.write_figure") as written:
        draw(run, tmp_path / "explain.png")
    (figure, _), _ = written.call_args
    above = figure.axes[:2]
    assert above[0].get_ylim() == pytest.approx((-0.05, 1.05))
    assert above[1].get_ylim()[1] > max(run.series("eval/ten")[1]) > 1
    assert not leaving(figure)
    assert not overlapping(figure)
    words = [text.get_text() for text in figure.texts]
    assert {"measured, ± 1 standard error", "predicted by the move", "predicted by the score, the paper's law"} <= set(words)
    lines = lines_of(above[0])
    assert lines["accuracy"].get_color() == objective_look(0).colour  # as in every picture; the predictions are neither
    assert not {lines[key].get_color() for key in ("move", "score")} & {objective_look(k).colour for k in range(3)}
    assert lines["move"].get_marker() != lines["score"].get_marker()


def test_a_gradient_that_was_not_finite_is_passed_over(tmp_path):
    train("mgda", tmp_path / "run", steps=3, eval_every=3)
    file = tmp_path / "run" / "statistics.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    lines[0]["gram"][1][0][2] = None
    lines[1]["gram"] = [[[None] * 3] * 3] * 2
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = load_run(tmp_path / "run")
    assert [len(line["gram"]) for line in load_statistics(run)] == [1, 0, 2]
    explain(run)
    _, chosen, estimated = counterfactual_weights(run, SCRIPTS)
    assert not estimated
    for name in ("gradnorm", "dynamic_weighting", "mgda"):
        assert all(bool(weights.isfinite().all()) for weights in chosen[name])
    assert torch.equal(chosen["dynamic_weighting"][0], chosen["dynamic_weighting"][1])  # nothing was learned in step 2


def test_gradients_of_a_whole_batch_count_for_each_of_its_updates(tmp_path):
    """GradNorm moves its weights in every mini-batch; a run of dynamic weighting has one Gram matrix a step."""
    train("dynamic_weighting", tmp_path / "run", steps=2, eval_every=2, prompts=8, mini_batches=4)
    run = load_run(tmp_path / "run")
    file, chosen = tmp_path / "run" / "statistics.jsonl", counterfactual_weights(run, SCRIPTS)[1]["gradnorm"]
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(line | {"gram": line["gram"] * 4}) + "\n" for line in lines))
    again = counterfactual_weights(run, SCRIPTS)[1]["gradnorm"]
    assert all(torch.equal(a, b) for a, b in zip(chosen, again, strict=True))


def test_without_gradients_mgda_gets_the_covariance_of_the_rewards(tmp_path):
    """Whose shortest combination lowers no objective's covariance with the scalar reward: (C w)_k >= w'Cw."""
    train("linear", tmp_path / "run", steps=1, eval_every=1, prompts=8)
    run = load_run(tmp_path / "run")
    _, chosen, _ = counterfactual_weights(run, SCRIPTS)
    rewards = np.array(load_statistics(run)[0]["rewards"], dtype=float).reshape(8, 4, 3)
    centred = (rewards - rewards.mean(1, keepdims=True)).reshape(-1, 3)
    covariance = centred.T @ centred
    scale = np.sqrt(np.diag(covariance))
    covariance = covariance / scale[:, None] / scale
    weights = chosen["mgda"][0].double().numpy()
    assert (covariance @ weights >= weights @ covariance @ weights - 1e-6).all()


def test_a_preset_gives_the_other_controllers_their_rates_for_it(tmp_path):
    train("linear", tmp_path / "run", steps=3, eval_every=3)
    args = json.loads((tmp_path / "run" / "args.json").read_text())
    _, usual, _ = counterfactual_weights(load_run(tmp_path / "run"), SCRIPTS)
    (tmp_path / "run" / "args.json").write_text(json.dumps(args | {"preset": "qwen2.5-1.5b-math500"}))
    _, slower, _ = counterfactual_weights(load_run(tmp_path / "run"), SCRIPTS)
    moved = [float((weights["ctwa"][2].log() - weights["ctwa"][0].log()).diff().abs().max()) for weights in (usual, slower)]
    assert moved[1] == pytest.approx(moved[0] * 0.05, rel=1e-2)


# --- as a user types it ---


def test_the_command_explains_a_run_and_draws_it(tmp_path):
    train("mgda", tmp_path / "run", steps=4, eval_every=2, lr=1e-3)
    done = run_script("run.py", "explain", str(tmp_path / "run"), "--steps", "1", "4")
    assert done.returncode == 0, done.stderr
    for words in ("by the move", "by the score", "Why", "Where the law stops", "Had they watched this run", "mgda ←", "step 4"):
        assert words in done.stdout
    assert (tmp_path / "run" / "explain.png").stat().st_size > 10_000
    assert run_script("run.py", "explain", str(tmp_path / "none")).stderr.count("\n") <= 2
    picture = run_script("run.py", "explain", str(tmp_path / "run"), "--out", str(tmp_path / "x.gif"))
    assert "--out" in picture.stderr
    assert not picture.stdout  # told before the work is done
    unknown = run_script("run.py", "explain", str(tmp_path / "run"), "--steps", "7")
    assert "--steps 7" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_single_mini_batch_tells_no_move_and_is_said_so(tmp_path):
    train("linear", tmp_path / "run", steps=4, eval_every=2, mini_batches=1)
    text = explain(load_run(tmp_path / "run"))
    assert "--mini-batches 2" in text
    assert all(i.move is None for i in intervals(load_run(tmp_path / "run"), "accuracy"))
    draw(load_run(tmp_path / "run"), tmp_path / "picture.pdf")
    assert (tmp_path / "picture.pdf").stat().st_size > 5000


def test_what_rose_in_samples_alone_is_called_mixed_as_in_the_verdict(tmp_path):
    folder = write_run(tmp_path / "run", [0.05] * 4, [0.5, 0.6, 0.7])
    assert "0.50 → 0.70 improved;" in explain(load_run(folder))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row, greedy in zip(rows[::4], (0.9, 0.8), strict=True):
        row |= {"eval/greedy/hard": greedy, "eval/greedy/hard_se": 0.01, "eval/greedy/easy": 0.5, "eval/greedy/length": 20.0}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = " ".join(explain(load_run(folder)).split())
    assert "0.50 → 0.70 mixed (improved in samples, greedy 0.90 → 0.80);" in told


def test_a_target_that_no_covariance_can_reach_is_named(tmp_path):
    """CTWA with a reward of small spread: its weight grew for a target out of reach, and that is why the other fell."""
    folder = write_run(tmp_path / "run", [-0.05] * 4, [0.5, 0.4, 0.3], cov=0.02)
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]

    def told(reachable: float, share: float) -> str:
        for row in rows[1:]:
            row |= {
                "linear/target/easy": 0.08,
                "linear/reachable/easy": reachable,
                "linear/target/hard": 0.08,
                "linear/reachable/hard": 0.4,
            }
            row |= {"weight_share/easy": share, "weight_share/hard": 1 - share}
        (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        return " ".join(explain(load_run(folder)).split())

    words = "the weight went to easy, whose target is out of reach (target 0.08, at most 0.03 possible; its share of the weights 0.90)"
    assert words in told(0.03, 0.9)
    assert "moved against the score" not in told(0.03, 0.9)
    assert "moved against the score" in told(0.09, 0.9)
    assert "moved against the score" in told(0.03, 0.4)

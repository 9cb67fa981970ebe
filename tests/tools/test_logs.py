"""The logs of other trainers: a real one of TRL, verl's layout, and those whose truth is known."""

import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from common.errors import UserError
from common.runs import load_run
from support.folders import GOOD, write_run
from tools.counterfactual import choices
from tools.explain import explain
from tools.explain import main as explain_main
from tools.explore import main as explore_main
from tools.explore import page, page_data
from tools.logs import Columns, implied_weights, load, load_statistics

# GRPOTrainer of TRL 1.16.0, as in study/trl_interference.py with 16 prompts of 8 completions, TRL's
# own sum, logging_steps=1, log_completions=True: its files of 48 steps, two for each generation
TRL = Path(__file__).parents[1] / "data" / "trl_completions.parquet"


def made(rewards: dict, steps: int = 6, prompts: int = 4, G: int = 4, **columns) -> pd.DataFrame:
    """A log with random numbers of 0 to 1 for each reward, falling by its slope from step to step;
    columns: more of them, functions of the log."""
    rng = np.random.default_rng(1)
    index = pd.MultiIndex.from_product([range(1, steps + 1), range(prompts), range(G)])
    frame = index.to_frame(index=False, name=["step", "prompt", "place"]).drop(columns="place")
    frame["prompt"] = "What is " + frame["prompt"].astype(str)
    for name, slope in rewards.items():
        frame[name] = rng.random(len(frame)) + slope * frame["step"]
    return frame.assign(**columns)


def told(path: Path, *words: str, **columns) -> str:
    return " ".join(explain(load(path, Columns(**columns))).split())


def test_a_log_of_trl(tmp_path, capsys):
    run = load(TRL, Columns())
    assert run.objectives == ["accuracy", "conciseness", "clarity"]
    assert [line["step"] for line in run.lines] == [*range(1, 48, 2)]  # the even ones repeat them
    assert run.rows[1]["weight_share/accuracy"] == pytest.approx(1 / 3, abs=1e-6)
    explain_main([str(TRL), "--steps", "1", "47", "--out", str(tmp_path / "x.png")])
    text = " ".join(capsys.readouterr().out.split())
    assert text.startswith("accuracy fell from 0.58 to 0.11 while conciseness and clarity rose")
    assert "24 more steps repeat" in text
    assert "paid: advantage, of 0.33 accuracy + 0.33 conciseness + 0.33 clarity" in text
    assert "accuracy -0.47 ± 0.07 78% -0.080 +0.046 -0.040 -0.018" in text
    assert "outvoted: its own weight +0.047, conciseness -0.041, clarity -0.019" in text
    assert len(re.findall("no log-probabilities", text)) == 1
    assert re.search(r"ctwa \.33 \.33 \.33 \.\d\d .* ratchet – – rvpo", text)
    explore_main([str(TRL), "--out", str(tmp_path / "page.html")])
    steps = page_data(run)["steps"]
    assert "advantages" not in steps[0]  # they are those of the sum, which the page can turn
    assert steps[1]["texts"][0].endswith(r"\boxed{11}")


def test_a_run_and_its_log_tell_the_same(trained, tmp_path):
    """Covariances, and what controllers choose that need nothing that a log lacks."""
    folder = trained("linear", estimator="grpo")
    run, G = load_run(folder), 4
    frames = []
    for line in load_statistics(run):
        own = pd.DataFrame(line["rewards"], columns=run.objectives)
        own = own.assign(step=line["step"], advantage=line["advantages"], it=own.index // G)
        frames.append(own.sample(frac=1, random_state=1))  # in any order
    pd.concat(frames).to_csv(tmp_path / "log.csv", index=False)
    log = load(tmp_path / "log.csv", Columns(prompt="it"))
    for row, wanted in zip(log.rows[1:], run.rows[1:], strict=True):
        for key in ("cov", "signal", "reward", "weight_share"):
            for name in run.objectives:
                own, other = row[f"{key}/{name}"], wanted[f"{key}/{name}"]
                assert own == pytest.approx(other, abs=1e-4), (key, name)
    wanted, found = (choices(each, load_statistics(each)) for each in (run, log))
    unknown = {"ratchet", "gradnorm", "dynamic_weighting"}
    assert {name for name, own in found.items() if None in own.weights} == unknown
    for name in found.keys() - unknown:
        np.testing.assert_allclose(found[name].weights, wanted[name].weights, atol=1e-4)


def test_the_layout_of_verl(tmp_path):
    """As `_write_generations` of its verl/trainer/ppo/ray_trainer.py (1dda039) writes it to
    trainer.rollout_data_dir: <step>.jsonl, a line per response, of which the dictionary that the
    reward function returned is a part; the batch is not in the prompts' order."""
    frame = made({"format": 0.0, "length": -0.1}, steps=11)
    frame["acc"] = frame["format"] < 0.5
    frame["score"] = 2 * frame["acc"] + frame["format"] + 0 * frame["length"]
    for step, own in frame.groupby("step"):
        lines = [
            {"input": row.prompt, "output": "an answer", "gts": row.prompt[-1], "score": row.score}
            | {"step": step, "acc": row.acc, "format": row.format, "length": row.length}
            | {"pred": "7", "request_id": f"{step}-{row.Index}"}
            for row in own.sample(frac=1, random_state=1).itertuples()
        ]
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (tmp_path / f"{step}.jsonl").write_text(text)
    run = load(tmp_path, Columns())
    assert run.objectives == ["acc", "format", "length_reward"]  # a run has a length of its own
    assert [line["step"] for line in run.lines] == [*range(1, 12)]
    assert "paid: score, of 0.67 acc + 0.33 format + 0.00 length_reward" in run.facts
    text = told(tmp_path)
    assert text.startswith("length_reward fell from 0.")
    assert [run.samples[0][key] for key in ("prompt", "completion")] == ["What is 0", "an answer"]
    page(page_data(run))
    page(page_data(load(tmp_path / "9.jsonl", Columns())))  # of a single step


def test_columns_are_found_or_named(tmp_path):
    """What is the prompt's or the row's is no reward; incomplete prompts are left out; a reward
    that does not apply is."""
    frame = made({"helpful": -0.2, "harmless": 0.1}, hard=1.0)
    frame["difficulty"] = frame["prompt"].str[-1].astype(int)
    frame.loc[frame.index % 4 == 1, "harmless"] = None
    frame = frame.drop(index=5)
    frame.to_csv(tmp_path / "log.csv")  # with the number of the row
    text = told(tmp_path / "log.csv")
    assert text.startswith("helpful fell from")
    assert "3 completions left out, of prompts that have not 4" in text
    assert "paid: not logged, so the sum of the rewards is taken" in text
    assert "shares of the weights of helpful, harmless, hard " in text
    asked = frame.rename(columns={"prompt": "task", "step": "it", "helpful": "a"})
    asked["got"] = asked["hard"] % 0.1
    asked.to_parquet(tmp_path / "log.parquet")
    names = {"rewards": ("a", "harmless"), "paid": "got", "prompt": "task", "step": "it"}
    text = told(tmp_path / "log.parquet", **names)
    assert "paid: got, which is no weighted sum of these rewards" in text
    assert load(tmp_path / "log.parquet", Columns(**names)).rows[1]["weight_share/a"] == 0.5
    assert "outvoted" not in text
    assert "shares of the weights of a, harmless " in text


def test_a_reward_named_like_anothers_error_has_a_name_of_its_own(tmp_path):
    """And a step whose prompts are all incomplete is not one that repeats another."""
    frame = made({"a": -0.2, "a_se": 0.1})
    frame.loc[frame["step"] == 3, "a"] += 1.0
    frame.drop(index=frame.index[(frame["step"] == 3) & (frame.index % 4 == 0)]).to_csv(
        tmp_path / "log.csv", index=False
    )
    run = load(tmp_path / "log.csv", Columns())
    assert run.objectives == ["a", "a_se_reward"]
    assert run.rows[1]["eval/a_se"] < 0.2 < run.rows[1]["eval/a_se_reward"]
    assert "1 more steps repeat the one before, or have no whole prompt" in run.facts


def test_weights_are_read_from_what_was_paid():
    rng, weights = np.random.default_rng(1), np.array([0.5, -0.3, 0.2, 0.0])
    rewards = rng.integers(0, 2, (30, 4, 4)).astype(float)
    rewards[..., 3] = 1.0  # never differs
    rewards -= rewards.mean(1, keepdims=True)
    total = rewards @ weights
    found, known = implied_weights(total, rewards.reshape(-1, 4) * [1e7, 1, 1, 1])
    assert [*found[1:3] / found[0], known] == pytest.approx([-6e6, 4e6, 1.0])
    for paid in (total, total / (total.std(1, keepdims=True) + 1e-4)):
        found, known = implied_weights(paid, rewards.reshape(-1, 4))
        assert [*found, known] == pytest.approx([*weights, 1.0])
    assert implied_weights(rewards.min(-1), rewards.reshape(-1, 4))[1] < 0.9
    assert implied_weights(0 * total, rewards.reshape(-1, 4))[1] == 0
    assert implied_weights(total, 0 * rewards.reshape(-1, 4))[1] == 0


@pytest.mark.parametrize(
    ("changed", "words", "wanted"),
    [
        ({"prompt": None}, "", "no column is called prompt or input or .*; --prompt says which it"),
        ({"step": None}, "", "no column is called step .*; --step says .* are prompt, a, b"),
        ({"a": None, "b": None}, "", "no column of rewards found; --rewards says which; its col"),
        ({"prompt": lambda f: f.index}, "", "alone with their --prompt prompt and --step step"),
        ({"step": "last"}, "", r"--step step: no column of whole numbers, but with \['last'\]"),
        ({"step": lambda f: f.step / 2}, "", r"--step step: no column of whole .* \[0.5\] .*; its"),
        ({"score": np.nan}, "", r"--paid score: no column of numbers, but with \[nan\]"),
        ({"b": np.nan}, "--rewards a b", "--rewards b: no column of numbers"),
        ({"b": np.inf}, "--rewards a b", r"--rewards b: no column of numbers, but with \[inf\]"),
        ({"b": "good"}, "--rewards a b", r"--rewards b: no column of numbers, but with \['good'\]"),
        ({}, "--rewards a c", "--rewards c: no such column; its columns are step, p"),
        ({}, "--paid total", "--paid total: no such column; its columns"),
        ({}, "--steps 9", "--steps 9: .* has the steps 1 to 6"),
        ({"step": 1}, "", "1 steps, 4 prompts × 24 completions.* takes four prompts"),
        (
            {"b": lambda f: f.b.where(f.step > 1)},
            "",
            "steps 1 to 1 have no b; leave it out of --rewards",
        ),
    ],
)
def test_mistakes_are_one_line_with_the_flag(changed, words, wanted, tmp_path, capsys):
    frame = made({"a": 0.0, "b": 0.1})
    for name, value in changed.items():
        frame[name] = value(frame) if callable(value) else value
    frame = frame.drop(columns=[name for name, value in changed.items() if value is None])
    frame.to_csv(tmp_path / "log.csv", index=False)
    with pytest.raises(UserError, match=wanted):
        explain_main([str(tmp_path / "log.csv"), *words.split()])
    assert not capsys.readouterr().out
    assert len([*tmp_path.iterdir()]) == 1


def test_what_is_no_log_is_told(tmp_path):
    for name, text, wanted in [
        ("a.txt", "step", "is no .parquet, .csv or .jsonl"),
        ("a.jsonl", "{", "cannot be read"),
        ("a.csv", "", "cannot be read"),
    ]:
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=wanted):
            load(tmp_path / name, Columns())
    write_run(tmp_path / "run", GOOD)
    with pytest.raises(UserError, match="--paid, --step: .*run is a run, whose columns are known"):
        load(tmp_path / "run", Columns(step="it", paid="score"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty is no run folder"):
        load(tmp_path / "empty", Columns())

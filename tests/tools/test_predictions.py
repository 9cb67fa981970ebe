"""The table of what the law predicts beside what happened: the first step's covariances by hand, and outcomes from their files."""

import numpy as np
import pytest

from study.predictions import MARKS, PAGE, Args, first_step, merged, outcomes, table
from common.errors import UserError
from support.decoupled import batches
from support.folders import write_run
from support.running import NAMES, train


def test_the_first_steps_covariance_is_that_of_the_batch(tmp_path):
    found = first_step("gated", Args(prompts=4, seed=7))
    train("gated", tmp_path / "run", steps=1, prompts=4, completions=16, seed=7, eval_prompts=2)
    ((rewards, _, advantages),) = batches(tmp_path / "run")
    unit = advantages / advantages.std()
    for k, name in enumerate(("accuracy", "conciseness", "clarity")):
        by_prompt = [np.cov(unit[s : s + 16], rewards[s : s + 16, k], bias=True)[0, 1] for s in range(0, 64, 16)]
        assert found[name] == pytest.approx(np.mean(by_prompt), abs=1e-3)


def test_a_script_that_refuses_is_named():
    with pytest.raises(UserError, match="linear: error: --prompts 3 must be divisible"):
        first_step("linear", Args(prompts=3))


def test_outcomes_are_those_of_the_study_and_of_runs(tmp_path):
    values = {"accuracy": [0.5, 0.2, 0.4, 0.6, 0.8], "conciseness": [0.3] * 5, "clarity": [0.4] * 5}
    write_run(tmp_path / "mine", values, script="gdpo", estimator="reinforce", seed=9)
    found = outcomes(Args(runs=(str(tmp_path / "mine"),)))
    *kept, mine = found["gdpo"]
    assert len(kept) == 3
    assert mine["accuracy"] == pytest.approx((0.5, 0.2, 0.6))
    assert mine["conciseness"] == pytest.approx((0.3, 0.3, 0.3))
    assert len(found["linear"]) >= 3
    assert all(run["accuracy"][0] == pytest.approx(0.55, abs=0.01) for run in found["linear"])
    text = table({"gdpo": {"accuracy": -0.13, "conciseness": 0.2, "clarity": 0.3}, "new": dict.fromkeys(values, 0.1)}, found)
    assert "| `gdpo` | -0.13 | +0.20 | +0.30 | 4 | " in text
    assert " / 0.60 | " in text
    assert "| `new` | +0.10 | +0.10 | +0.10 | 0 | – | – | – | – |" in text
    assert text.index("gdpo") < text.index("new")


def test_runs_are_added_and_those_that_are_there_replaced():
    head = "model,dataset,estimator,script,seed,step,accuracy,conciseness,clarity,length\n"
    old = "testbed,arithmetic,grpo,pama,1,0,0.5,0.3,0.4,28\n"
    both = [old.replace("0.5", "0.6"), "testbed:robust,arithmetic,grpo,pama,1,0,0.5,0.3,0.4,28\n"]
    assert merged(head + old, head + both[1] + both[0]) == head + both[0] + both[1]
    assert merged(head + old, head + both[1]) == head + old + both[1]
    assert merged(head + old, head + old) == head + old


def test_the_page_has_every_script_and_the_outcomes_that_are_kept():
    rows = [row.split("|")[1:-1] for row in PAGE.read_text().split(MARKS[0])[1].split(MARKS[1])[0].strip().splitlines()[2:]]
    page = {row[0].strip(" `"): [cell.strip() for cell in row[1:]] for row in rows}
    assert sorted(page) == NAMES
    for script, runs in outcomes(Args()).items():
        assert page[script][3:5] == [str(len(runs)), " / ".join(f"{run['accuracy'][2]:.2f}" for run in runs)]

"""The checkpoint of the last evaluation at which every objective held, kept beside the last two and named at the end."""

import json
from pathlib import Path

import pytest

from common.runs import load_run
from common.verdict import verdict
from tools.export import main
from common.errors import UserError
from support.folders import write_run
from support.running import policy_of, train, weights_of

# `falling` holds for the first two evaluations, of 8 sampled and 8 greedy completions each, and is lost at the third, of step 4. Training
# batches are of 16 completions.
FALLING = """
evaluations = []


def falling(completions, **kwargs):
    if len(completions) == 8:
        evaluations.append(1)
    return [(0.9 if len(evaluations) <= 4 else 0.2) + 0.1 * (i % 2) for i in range(len(completions))]


def steady(completions, **kwargs):
    return [0.5 + 0.1 * (i % 2) for i in range(len(completions))]
"""


def steps_of(run: Path) -> list[int]:
    return sorted(int(folder.name[5:]) for folder in (run / "checkpoints").iterdir())


def test_it_outlives_the_others_and_a_resume_and_its_model_can_be_had(tmp_path, capsys):
    (tmp_path / "falls.py").write_text(FALLING)
    run, rewards = tmp_path / "run", tuple(f"{tmp_path / 'falls.py'}:{name}" for name in ("falling", "steady"))
    train("linear", run, rewards=rewards, keep_safe=True, steps=5, eval_every=2, checkpoint_every=1)
    assert steps_of(run) == [2, 4, 5]
    before = policy_of(run / "checkpoints/step_000002")
    saved = json.loads((run / "args.json").read_text())
    assert saved["keep_safe"]
    train("linear", run, rewards=rewards, keep_safe=True, steps=7, eval_every=2, checkpoint_every=1, resume=str(run))
    assert steps_of(run) == [2, 6, 7]
    told = f"Step 2 was the last with no objective below its start beyond noise: `python run.py export {run} --step 2` writes its model."
    assert verdict(load_run(run)).endswith(told)
    main([str(run), "--step", "2"])
    assert "the model of step 2" in capsys.readouterr().out
    written = weights_of(run / "model-step2")
    assert all((written[name] == before[name]).all() for name in written.keys() & before.keys())
    with pytest.raises(UserError, match=r"--step 3: .*checkpoints has none of that step; there are 2, 6, 7$"):
        main([str(run), "--step", "3"])


def test_it_is_written_at_evaluations_only_with_the_flag(tmp_path):
    for keep, expected in ((True, [2, 3]), (False, [3])):
        train("linear", tmp_path / str(keep), keep_safe=keep, steps=3, checkpoint_every=100)
        assert steps_of(tmp_path / str(keep)) == expected


@pytest.mark.parametrize(
    ("accuracy", "told"),
    [
        ([0.5, 0.7, 0.2, 0.6], "at step 20 before it recovered."),  # the end itself
        ([0.5, 0.7, 0.48, 0.2], "--step 20` writes its model."),  # .48 is within noise, 2 * sqrt(2) * .02
        ([0.5, 0.7, 0.44, 0.2], "--step 10` writes its model."),
        ([0.5, 0.1, 0.2, 0.3], "so --keep-safe has kept no checkpoint."),
    ],
)
def test_the_verdict_names_it(tmp_path, accuracy, told):
    run = load_run(write_run(tmp_path / "run", {"accuracy": accuracy, "clarity": [0.5, 0.6, 0.7, 0.8]}, keep_safe=True))
    assert verdict(run).endswith(told)
    without = load_run(write_run(tmp_path / "without", {"accuracy": accuracy}))
    assert "safe" not in verdict(without)
    assert "export" not in verdict(without)

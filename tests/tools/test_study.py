"""The commands of the study: tables and figures from runs whose truth is known, and pages that say
what their data say."""

import json
import os
import select
import shlex
import shutil
from contextlib import contextmanager
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
import tyro
from matplotlib.figure import Figure

from common.errors import UserError
from common.model import load_whole, token_logprobs
from common.runs import load_run
from study import figures, gpu, gradients, law, results, same_numbers, step_time, words
from support.running import NAMES as SCRIPTS
from support.running import ROOT
from testbed.arithmetic import base_path
from testbed.words import problems

NAMES = results.NAMES
GRAM = [[4.0, 3.0, -2.0], [3.0, 9.0, 0.0], [-2.0, 0.0, -1.0]]
FLAGS = {"model": "testbed", "dataset": "arithmetic", "estimator": "reinforce", "seed": 1}


def write_run(folder, script="linear", accuracy=(0.5, 0.4, 0.8), **flags):
    """A run evaluated at every step; the other objectives are half of accuracy."""
    folder.mkdir(parents=True)
    args = FLAGS | {"script": script, "objectives": NAMES, "completions": 4, "lr": 1e-4}
    args |= {"steps": len(accuracy) - 1, "cov_targets": [0.1] * 3} | flags
    (folder / "args.json").write_text(json.dumps(args))
    with (folder / "metrics.jsonl").open("w") as file:
        for step, value in enumerate(accuracy):
            row = {"step": step, "eval/length": 20.0, "law/nats": 0.1, "law/rate": 0.5}
            for name in NAMES:
                own = value if name == "accuracy" else value / 2
                row |= {
                    f"eval/{name}": own,
                    f"eval/{name}_se": 0.03,
                    f"cov/{name}": 0.1 + step / 10,
                }
                row |= {f"law/{name}": -0.1, f"weight/{name}": 2.0, f"weight_share/{name}": 1 / 3}
                row |= {f"ctwa/deficit/{name}": 0.1, f"reward/{name}": own}
            file.write(json.dumps(row) + "\n")
    return folder


# --- tables ---


def rows(script, seed, accuracy, model="testbed"):
    values = dict.fromkeys(NAMES, accuracy) | {"step": np.arange(len(accuracy)) * 10, "length": 9}
    return pd.DataFrame(FLAGS | {"model": model, "script": script, "seed": seed} | values)


@pytest.mark.parametrize(
    ("accuracy", "reached"),  # two standard errors of a change from .5 to about .58 are .088
    [
        ([0.5, 0.6, 0.6, 0.6], 10),
        ([0.5, 0.9, 0.58, 0.6], 30),
        ([0.5, 0.9, 0.9, 0.58], np.nan),
        ([0.5, 0.3, 0.2, 0.1], np.nan),
    ],
)
def test_a_start_is_beaten_when_it_is_left_for_good(accuracy, reached):
    found = results.summary(rows("pama", 1, accuracy)).iloc[0]
    assert found["reached"] == pytest.approx(reached, nan_ok=True)
    assert (
        found["dip"] == pytest.approx(found["lowest"] - 0.5) == pytest.approx(min(accuracy) - 0.5)
    )


def test_the_tables_count_and_sort():
    runs = [rows("loser", seed, [0.5, *[end] * 3]) for seed, end in enumerate((0.1, 0.9, 0.58))]
    runs += [rows("keeper", seed, [0.5, *[end] * 3]) for seed, end in enumerate((0.6, 0.42))]
    runs.append(rows("keeper", 1, [0.5, 0.9, 0.9, 0.9], model="testbed:robust"))
    found = pd.concat(runs)
    head, _, *lines = results.by_base(results.summary(found)).splitlines()
    assert head.startswith("| script | accuracy lost | all three up | kept all the way | `fra")
    assert lines == [  # the scripts of most bases come first
        "| `keeper` | 0/3 | 2/3 | 2/3 | 1↑ 1= 0.42 | 1↑ 0.50 |",
        "| `loser` | 1/3 | 1/3 | 2/3 | 1↑ 1= 1↓ 0.10 | – |",
    ]
    *_, first, second = results.ends(found.query("model == 'testbed'")).splitlines()
    assert first == "| `loser` | 0.10, 0.90, 0.58 | 0.10 | 0.10–0.90 | 0.10–0.90 |"
    assert second == "| `keeper` | 0.60, 0.42 | 0.42 | 0.42–0.60 | 0.42–0.60 |"


def test_the_pages_say_what_their_data_say():
    page, rows = (results.DOCS / "results.md").read_text(), results.kept("curves.csv", "field.csv")
    assert results.by_base(results.summary(rows)) in page
    fragile = rows.query("model == 'testbed' and estimator == 'reinforce'")
    assert results.ends(fragile) in page
    assert words.table(pd.read_csv(words.DATA)) in (results.DOCS / "realmodel.md").read_text()


def test_runs_are_added_to_what_is_kept_and_replace_their_own(tmp_path):
    for name in ("curves.csv", "field.csv"):  # numbers come back as they were
        text = results.kept(name).to_csv(index=False, float_format="%.5g")
        assert text == (results.DOCS / "results" / name).read_text()
    new = results.metrics([load_run(write_run(tmp_path / "a", "pama"))])
    old = pd.concat([rows("pama", 1, [0.1, 0.2]), rows("pama", 2, [0.3, 0.4])])
    both = results.in_order(results.merged(old, new))
    assert both["accuracy"].tolist() == [0.5, 0.4, 0.8, 0.3, 0.4]
    assert list(both.columns) == list(old.columns)
    with pytest.raises(UserError, match="--runs: other runs have the flags and the seed of .*b"):
        results.metrics(
            [load_run(path) for path in (tmp_path / "a", write_run(tmp_path / "b", "pama"))]
        )
    with pytest.raises(UserError, match="--eval-samples had more"):
        results.metrics([load_run(write_run(tmp_path / "c", eval_samples=4))])
    with pytest.raises(UserError, match="--eval-split was tune"):
        words.rows_of(load_run(write_run(tmp_path / "d", eval_split="tune")))


def test_what_the_kept_completions_of_the_real_model_say(tmp_path):
    asked = problems("train")
    before, question = asked["question"][:2]  # a prompt shows another problem first
    right = asked["answer"][1]
    texts = (r"\boxed{-1}", f"4 and {right}", f"{right}0", "none", "")
    paid = ((1, 0, 1), (0, 1, 0), (1, 0, 0), (0, 0, 1), (0, 0, 0))
    lines = [
        {"step": 1, "prompt": f"{before} {question}", "completion": text}
        | dict(zip(words.OBJECTIVES, rewards, strict=True))
        for text, rewards in zip(texts, paid, strict=True)
    ]
    run = write_run(tmp_path / "run")
    (run / "training_completions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    found = words.read_texts(load_run(run)).loc[1]
    told = {"boxed": 0.2, "last number": 0.2, "nothing": 0.2, "right": 1, "with another": 0.2}
    assert found.to_dict() == told


# --- figures ---


@pytest.fixture
def drawn(monkeypatch):
    """The figures by the names of their files."""
    found = {}

    @contextmanager
    def picture(out, width, height):
        yield found.setdefault(out.name, Figure((width, height), layout="constrained"))

    for module in (figures, law):
        monkeypatch.setattr(module, "picture", picture)
    return found


def lines(axes) -> list[list[float]]:
    return [list(line.get_ydata()) for line in axes.lines]


def test_a_line_is_the_mean_of_its_seeds(tmp_path, drawn):
    for seed, end in enumerate((0.1, 0.2, 0.6, 0.9)):
        write_run(tmp_path / "runs" / str(seed), "ctwa", (0.5, end), seed=seed)
    figures.main(figures.Args(("2", "4"), (str(tmp_path),), out=tmp_path))
    *_, held_out = drawn["figure-2.png"].axes
    assert lines(held_out)[4] == pytest.approx([0.5, 0.4])  # without the lowest and the highest
    assert lines(held_out)[-1] == [0.5, 0.5]  # the start
    assert lines(drawn["figure-2.png"].axes[0])[4] == [2.0, 2.0]
    assert lines(drawn["figure-4.png"].axes[0])[4] == pytest.approx([0.5, 0.4])


def test_covariances_are_smoothed_and_cosines_need_two_gradients(tmp_path, drawn):
    for script in ("linear", "mgda"):
        run = write_run(tmp_path / "runs" / script, script)
        (run / "gradients.jsonl").write_text(json.dumps({"step": 0, "gram": GRAM}) + "\n")
    figures.main(figures.Args(("3", "5"), (str(tmp_path),), out=tmp_path, kind="pdf"))
    (panel,) = drawn["figure-3.pdf"].axes  # mgda weighs gradients: no covariance tells its update
    assert lines(panel)[1] == pytest.approx([0.2] * 3)  # of .1, .2 and .3
    assert figures.cosines(GRAM) == {"accuracy, conciseness": 0.5}  # clarity's square is negative
    assert figures.cosines([[1, -9, 0], [-9, 1, 0], [0, 0, 1]])["accuracy, conciseness"] == -1.5
    assert [axes.get_title() for axes in drawn["figure-5.pdf"].axes] == [
        "accuracy, conciseness",
        *NAMES,
    ]


def test_the_kept_evaluations_are_drawn(tmp_path, drawn):
    with pytest.raises(UserError, match="no finished run"):
        figures.main(figures.Args(("7", "records", "words", "2"), (str(tmp_path),), out=tmp_path))
    caps = pd.read_csv(words.DATA)["cap"].nunique()
    assert [len(figure.axes) for figure in drawn.values()] == [10, 15, 3 * caps]
    with pytest.raises(UserError, match="which figure"):
        figures.main(figures.Args(("9",)))


# --- the law ---


def test_predictions_are_added_up_between_evaluations(tmp_path, drawn, capsys):
    run = write_run(tmp_path / "run", accuracy=(0.5, 0.4, 0.8))
    found = law.intervals(load_run(run)).query("objective == 'accuracy'")
    assert found["measured"].tolist() == pytest.approx([-0.1, 0.4])
    assert found["move"].tolist() == pytest.approx([-0.1, -0.1])
    assert found["score"].tolist() == pytest.approx([0.5 * 0.2 * 4 / 3, 0.5 * 0.3 * 4 / 3])
    assert found["se"].tolist() == pytest.approx([0.03 * 2**0.5] * 2)
    still = load_run(run)
    for row in still.rows:
        row |= dict.fromkeys((f"law/{name}" for name in NAMES), None)  # as with one mini-batch
    assert law.intervals(still).empty
    told = law.judged(found)
    assert told["by the move: sign"] == "1/2"
    assert told["move: error"] == f"{(0.25 / 0.17) ** 0.5:.2f}"
    law.main(law.Args((str(run),), out=tmp_path))
    assert "| `linear` | 0.0001 | 0.10 | 1/4 |" in capsys.readouterr().out
    assert len(drawn["law.png"].axes) == 3


# --- gradients ---


def test_policy_gradients_leave_one_out_and_halves_are_multiplied():
    policy, prompts = load_whole(str(base_path("fragile")), "cpu"), gradients.training_prompts(2, 1)
    batch, scored = gradients.sampled(policy, prompts, 4, [1, 2])
    found = gradients.policy_gradients(policy, batch, scored)
    others = (scored.sum(1, keepdim=True) - scored) / 3
    own = (scored - others).flatten(0, 1)[:, 1]
    (own * token_logprobs(policy, batch, 1.0).sum(1)).mean().backward()
    expected = torch.cat([parameter.grad.flatten() for parameter in policy.parameters()])
    torch.testing.assert_close(found[1].float(), expected, rtol=1e-3, atol=1e-5)
    one, other = torch.tensor([[1.0, 2.0], [0.0, 1.0]]), torch.eye(2)
    assert gradients.cross_gram(one, other).tolist() == [[1, 1], [1, 1]]


def test_a_run_is_measured_on_its_way_and_continued(tmp_path, monkeypatch):
    commands, run = [], tmp_path / "runs" / "linear-s1"

    def train(command, check):
        commands.append(command[2])
        if not run.exists():
            write_run(run)
            (run / "model").symlink_to(base_path("fragile"))

    monkeypatch.setattr(gradients.subprocess, "run", train)
    for steps in (1, 2):
        args = gradients.Args(("linear",), 1, steps, 1, prompts=4, completions=2, out=tmp_path)
        gradients.main(args)
    assert commands == ["--out", "--resume"]
    found = [json.loads(line) for line in (run / "gradients.jsonl").read_text().splitlines()]
    assert [line["step"] for line in found] == [0, 1, 2]
    for line in found:
        assert line["gap"] == pytest.approx(1 - np.mean(line["objective"]))
        assert line["pl_ratio"] == pytest.approx(np.mean(line["gram"]) / 2 / line["gap"], rel=1e-5)


# --- two checkouts, and the clock ---


def test_two_checkouts_are_compared_byte_by_byte(tmp_path, capsys):
    left, right = tmp_path / "left", tmp_path / "right"
    for side in (left, right):
        run = write_run(side / "a-grpo")
        (run / "args.json").write_text(json.dumps({"lr": 1, "out": str(side), side.name: 0}))
        (run / "metrics.jsonl").write_text(json.dumps({"time/update": side.name}))
        for file in ("statistics.jsonl", "completions.jsonl", "model/weights"):
            (run / file).parent.mkdir(exist_ok=True)
            (run / file).write_text("{}")
        (side / "a-grpo.log").touch()
        (side / "b-one-update.log").touch()  # refused
    assert not same_numbers.compare(left, right)
    assert "1 pairs of runs compared, 0 differ; 1 failed in both" in capsys.readouterr().out
    (run / "model" / "weights").write_text("other")
    (run / "args.json").write_text(json.dumps({"lr": 2}))
    (run / "completions.jsonl").unlink()
    assert same_numbers.compare(left, right)
    told = capsys.readouterr().out
    assert "a-grpo: completions.jsonl, model/weights, --lr differ" in told
    assert "left" in told.splitlines()[1]
    shutil.rmtree(run)
    assert same_numbers.compare(left, right)
    assert "1 pairs of runs compared, 1 differ" in capsys.readouterr().out  # one alone has run
    shutil.rmtree(left / run.name)
    assert same_numbers.compare(left, right)  # nothing has


def test_a_step_is_timed_in_its_parts(capsys):
    small = {"prompts": 2, "completions": 2, "max_new_tokens": 8, "steps": 1, "rounds": 1}
    step_time.main(step_time.Args(("linear",), **small), ["--kl-coef=0"])
    head, _, line = capsys.readouterr().out.splitlines()
    cells = dict(zip(head.split(), line.removeprefix(f"{ROOT}/linear").split(), strict=True))
    assert cells.keys() >= {"rollout", "update", "s/step"}
    assert cells["ratio"] == "1.000"


def test_all_scripts_are_timed_and_beside_trl_linear(monkeypatch, capsys):
    def run_script(checkout, script, *args):
        timed.append(script)
        return pd.DataFrame({"time/update": [1.0], "length/mean": [2.0]})

    monkeypatch.setattr(step_time, "run_script", run_script)
    monkeypatch.setattr(step_time, "run_trl", lambda args, out: run_script("", "TRL"))
    for trl, sides in ((False, SCRIPTS), (True, ["linear", "TRL"])):
        timed = []
        step_time.main(step_time.Args(trl=trl, rounds=1), [])
        assert timed == sides


def test_every_flag_of_the_gpu_commands_is_known():
    modules = {"study.step_time": step_time.Args, "bench": import_module("tools.bench").Args}
    for command in (command for commands in gpu.PARTS.values() for command in commands):
        _, *own = shlex.split(command)
        cut = own.index("--") if "--" in own else len(own)
        if len(own) > 1 and own[1] in modules:
            tyro.cli(modules[own[1]], args=own[2:cut])
            tyro.cli(import_module("algos.ratchet").Args, args=own[cut + 1 :])


def test_a_command_that_fails_does_not_stop_the_next(tmp_path, capsys):
    with (tmp_path / "out.txt").open("w") as file:
        for command in (
            "python -c 'raise SystemExit(3)'",
            "no-such-program",
            "python -c 'print(42)'",
        ):
            gpu.run(command, file)
    assert capsys.readouterr().out.count("\n") == 2
    assert "42" in (tmp_path / "out.txt").read_text()


def test_a_command_that_takes_too_long_is_stopped_with_all_that_it_started(tmp_path, monkeypatch):
    """What it started has the file open until it ends, as it would hold a GPU."""
    monkeypatch.setattr(gpu, "LIMIT", 1)
    read, write = os.pipe()
    with os.fdopen(read), os.fdopen(write, "w") as file:
        gpu.run("sh -c 'sleep 60 & wait'", file)
        file.close()
        assert select.select([read], [], [], 5)[0]  # no writer is left

"""The scripts as their users run them: they train, repeat, resume and refuse."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import asdict, fields, replace
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tools.command_line import parse
from common.batch import pad
from common.errors import UserError
from common.model import load_model, load_tokenizer, token_logprobs
from common.rollout import TransformersEngine
from common.seeds import derive
from prompts import load_prompts
from support.own_rewards import OWN
from support.running import NAMES, ROOT, SMALL, policy_of, read_metrics, run_script, train, weights_of
from support.tree import own_files
from testbed.arithmetic import base_path


@pytest.fixture(scope="module")
def of_linear(tmp_path_factory) -> list[dict]:
    return train("linear", tmp_path_factory.mktemp("linear") / "run")


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
@pytest.mark.parametrize("name", NAMES)
def test_a_run_trains_and_leaves_everything(name, estimator, tmp_path, capsys, of_linear):
    """Whatever the script, under the same keys. A picture is drawn of one of its two runs."""
    drawn = estimator == "reinforce"
    rows = train(name, tmp_path / "run", picture=drawn, estimator=estimator, lr=1e-3)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(f"eval/{objective}" in rows[step] for step in (0, 2, 3) for objective in ("accuracy", "conciseness", "clarity"))
    assert "eval/accuracy" not in rows[1]
    assert all(value is not None for row in rows for value in row.values())
    left = {path.name for path in (tmp_path / "run").iterdir()}
    expected = {"args.json", "metrics.jsonl", "completions.jsonl", "training_completions.jsonl", "statistics.jsonl", "checkpoints", "model"}
    assert left == expected | ({"curves.png"} if drawn else set())
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step_000002", "step_000003"]
    printed = capsys.readouterr().out
    assert all(objective in printed for objective in ("accuracy", "conciseness", "clarity"))
    before, after = weights_of(base_path("fragile")), weights_of(tmp_path / "run" / "model")
    assert before.keys() == after.keys()
    assert [key for key in before if torch.equal(before[key], after[key])] == []  # every parameter moved
    sample = json.loads((tmp_path / "run" / "completions.jsonl").read_text().splitlines()[0])
    assert sample.keys() == {"step", "prompt", "completion", "accuracy", "conciseness", "clarity"}
    config = json.loads((tmp_path / "run" / "args.json").read_text())
    assert config["script"] == name
    assert config["estimator"] == estimator
    keys, linears = ({key for row in rows for key in row if not key.startswith(f"{name}/")} for rows in (rows, of_linear))
    assert keys == linears


@pytest.mark.parametrize("name", ["ctwa", "nash_mtl"])
def test_statistics_are_what_the_metrics_were_computed_from(name, tmp_path):
    """Each line of statistics.jsonl gives back the step's covariances and its predicted change, by a loop over prompts."""
    rows = train(name, tmp_path / "run", lr=1e-3, estimator="grpo", mini_batches=4, epochs=2)
    lines = [json.loads(line) for line in (tmp_path / "run" / "statistics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3]
    for row, line in zip(rows[1:], lines, strict=True):
        assert sorted(line["age"]) == [age for age in range(4) for _ in range(4)]  # four mini-batches of a prompt each
        assert all(abs(drift) < 1e-4 for drift, age in zip(line["drift"], line["age"], strict=True) if age == 0)
        assert any(abs(drift) > 1e-3 for drift in line["drift"])
        for k, objective in enumerate(("accuracy", "conciseness", "clarity")):
            rewards = [values[k] for values in line["rewards"]]
            assert row[f"reward/{objective}"] == pytest.approx(sum(rewards) / 16, abs=1e-5)
            assert row[f"reward_std/{objective}"] == pytest.approx(np.std(rewards, ddof=1), abs=1e-5)
            groups = [slice(start, start + 4) for start in range(0, 16, 4)]
            covariances = [float(np.cov(line["advantages"][g], rewards[g], bias=True)[0, 1]) for g in groups]
            assert row[f"cov/{objective}"] == pytest.approx(np.mean(covariances), abs=1e-4)
            later = [g for g in groups if line["age"][g][0] > 0]
            changes = [np.cov(np.array(line["drift"][g]) * 8 / line["age"][g][0], rewards[g])[0, 1] for g in later]
            assert len(changes) == 3
            assert row[f"law/{objective}"] == pytest.approx(np.mean(changes), abs=1e-3)
        assert ("gram" in line) == (name == "nash_mtl")
        if name == "nash_mtl":
            assert np.shape(line["gram"]) == (8, 3, 3)  # one of each mini-batch
            norms = np.sqrt(np.diagonal(line["gram"], axis1=1, axis2=2)).mean(0)
            assert norms == pytest.approx([row[f"nash_mtl/grad_norm/{o}"] for o in ("accuracy", "conciseness", "clarity")], rel=1e-4)


def test_completions_of_training_are_kept_in_whole_prompts(tmp_path):
    """At the first step, the evaluated ones and the last, beside the rewards that statistics.jsonl has in their rows. What is trained
    stays the same to the last bit."""
    how = {"steps": 4, "eval_every": 3}
    rows = train("linear", tmp_path / "some", **how, log_completions=5)  # of 4 prompts with 4 completions
    assert rows == train("linear", tmp_path / "none", **how, log_completions=0)
    models = [(tmp_path / name / "model/model.safetensors").read_bytes() for name in ("some", "none")]
    assert models[0] == models[1]
    assert not (tmp_path / "none/training_completions.jsonl").exists()
    kept, lines = ((tmp_path / "some" / f"{name}.jsonl").read_text().splitlines() for name in ("training_completions", "statistics"))
    kept, statistics = [json.loads(row) for row in kept], {line["step"]: line for line in map(json.loads, lines)}
    assert [(row["step"], row["row"]) for row in kept] == [(step, i) for step in (1, 3, 4) for i in range(8)]
    for row in kept:
        rewards = statistics[row["step"]]["rewards"][row["row"]]
        assert [row[o] for o in ("accuracy", "conciseness", "clarity")] == pytest.approx(rewards, rel=1e-5)
        own = [other["prompt"] for other in kept if (other["step"], other["row"] // 4) == (row["step"], row["row"] // 4)]
        assert own == [row["prompt"]] * 4
    lengths = [statistics[row["step"]]["lengths"][row["row"]] for row in kept]
    assert np.corrcoef([len(row["completion"]) for row in kept], lengths)[0, 1] > 0.9  # each stands in its own row


@pytest.mark.parametrize("name", ["linear", "mgda"])
def test_one_seed_is_one_run_bit_for_bit(name, tmp_path):
    """So it is for those that remember something, too, whose killed and whole runs on two ranks are one: test_ranks.py."""
    first, second = train(name, tmp_path / "a"), train(name, tmp_path / "b")
    assert first == second
    assert (tmp_path / "a/model/model.safetensors").read_bytes() == (tmp_path / "b/model/model.safetensors").read_bytes()
    for file in ("completions.jsonl", "training_completions.jsonl", "statistics.jsonl"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()
    assert train(name, tmp_path / "c", seed=2)[1:] != first[1:]


def test_a_killed_run_resumes_as_a_user_resumes_it(tmp_path):
    """By the command line, with a learning rate that depends on the step. All scripts, on 2 ranks: test_ranks.py."""
    small = {k: v for k, v in SMALL.items() if k != "steps"} | {"lr_schedule": "linear", "steps": 6}
    whole = train("linear", tmp_path / "whole", **small)
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in small.items()]
    killed = tmp_path / "killed"
    process = subprocess.Popen(
        [sys.executable, "algos/linear.py", *flags, "--out", str(killed)],
        cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.time() + 120
    while not any((killed / "checkpoints").glob("step_000002")):  # the kill comes in step 3 or later, after this checkpoint
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.time() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    with open(killed / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "rewa')  # killed while it wrote
    resumed = run_script("algos/linear.py", "--resume", str(killed))
    assert resumed.returncode == 0, resumed.stderr
    assert read_metrics(killed) == whole
    assert (killed / "model/model.safetensors").read_bytes() == (tmp_path / "whole/model/model.safetensors").read_bytes()
    for file in ("completions.jsonl", "training_completions.jsonl"):  # every step once
        assert (killed / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()


def test_resume_uses_the_checkpoint_before_a_corrupt_one_and_can_train_longer(tmp_path, capsys):
    whole = train("ctwa", tmp_path / "whole", steps=5, checkpoint_every=1)
    train("ctwa", tmp_path / "short", steps=3, checkpoint_every=1)
    newest = tmp_path / "short/checkpoints/step_000003/__0_0.distcp"
    newest.write_bytes(newest.read_bytes()[:1000])
    script = import_module("algos.ctwa")
    script.main(parse(script.Args, "ctwa", ["--resume", str(tmp_path / "short"), "--steps", "5"]))
    assert "step_000003 cannot be read" in capsys.readouterr().out.replace("\n", "")
    resumed = read_metrics(tmp_path / "short")
    assert [row["step"] for row in resumed] == [0, 1, 2, 3, 4, 5]
    evaluation = re.compile("eval/")  # the shorter run evaluated its own last step as well
    assert [{k: v for k, v in row.items() if not evaluation.match(k)} for row in resumed] == [
        {k: v for k, v in row.items() if not evaluation.match(k)} for row in whole
    ]


def test_a_reward_that_draws_lots_resumes_as_well(tmp_path):
    """From the global generators of Python, NumPy and torch, which nobody saved: each step seeds them."""
    (tmp_path / "lots.py").write_text(
        "import random\nimport numpy as np\nimport torch\n\n\ndef lots(completions, **kwargs):\n"
        "    return [random.random() + np.random.rand() + torch.rand(()).item() for _ in completions]\n"
    )
    rewards = ("rewards.accuracy:accuracy", f"{tmp_path / 'lots.py'}:lots")
    whole = train("ctwa", tmp_path / "whole", steps=4, rewards=rewards)
    train("ctwa", tmp_path / "part", steps=2, rewards=rewards)
    script = import_module("algos.ctwa")
    script.main(parse(script.Args, "ctwa", ["--resume", str(tmp_path / "part"), "--steps", "4"]))
    resumed = read_metrics(tmp_path / "part")
    assert [row["reward/lots"] for row in resumed[1:]] == [row["reward/lots"] for row in whole[1:]]
    assert len({row["reward/lots"] for row in whole[1:]}) == 4
    assert resumed[4]["weight/accuracy"] == whole[4]["weight/accuracy"]


LIMITED = """
import resource, runpy
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))  # a write beyond it fails as on a full disk
runpy.run_path({script!r}, run_name="__main__")
"""


@pytest.mark.parametrize(("file", "steps"), [("checkpoints/step_000002", [0, 1, 2]), ("metrics.jsonl", [0, 1])])
def test_a_full_disk_is_one_line_and_what_was_there_stays_readable(file, steps, tmp_path):
    """Room for the metrics but not for a checkpoint; room for two lines of metrics and for nothing larger."""
    train("linear", tmp_path / "healthy")
    lines = (tmp_path / "healthy" / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    limit = sum(map(len, lines[:2])) + 200 if file == "metrics.jsonl" else 400_000
    flags = [f"--{key.replace('_', '-')}={value}" for key, value in (SMALL | {"log_completions": 0}).items()]  # a larger file than metrics
    (tmp_path / "limited.py").write_text(LIMITED.format(limit=limit, script=str(ROOT / "algos" / "linear.py")))
    done = run_script(str(tmp_path / "limited.py"), *flags, "--out", str(tmp_path / "run"))
    assert done.returncode == 2, done.stderr
    said = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(said) == 1
    assert file in said[0]
    assert ("--resume" if file == "metrics.jsonl" else "there is none before it") in said[0]
    assert "Traceback" not in done.stderr
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert [json.loads(line)["step"] for line in lines if line.endswith("\n")] == steps
    assert not list((tmp_path / "run").rglob("*.tmp"))


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path, capsys):
    import pickle

    train("linear", tmp_path / "run", steps=1)

    class Payload:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    for folder in (tmp_path / "run/checkpoints").iterdir():
        for file in folder.iterdir():
            file.write_bytes(pickle.dumps(Payload(), protocol=2))
    with pytest.raises(UserError, match="no readable checkpoint"):
        import_module("algos.linear").main(import_module("algos.linear").Args(**SMALL, resume=str(tmp_path / "run")))
    assert not (tmp_path / "executed").exists()


def test_the_exported_model_is_the_trained_policy(tmp_path):
    train("linear", tmp_path / "run", lr=1e-3)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run/model")
    tok = AutoTokenizer.from_pretrained(tmp_path / "run/model")
    saved = policy_of(tmp_path / "run/checkpoints/step_000003")
    assert all(torch.equal(value, saved[key]) for key, value in model.named_parameters())
    assert tok("Q(6+7)+2=?\n")["input_ids"] == load_tokenizer("testbed")("Q(6+7)+2=?\n")["input_ids"]
    again = train("linear", tmp_path / "again", model=str(tmp_path / "run/model"), steps=1)
    assert again[0]["eval/accuracy"] == read_metrics(tmp_path / "run")[-1]["eval/accuracy"]


def test_one_objective_is_plain_reinforce(tmp_path):
    """One on-policy step of `linear` on one reward against REINFORCE written down directly: grad of -mean_t A log pi."""
    train("linear", tmp_path / "run", steps=1, mini_batches=1, kl_coef=0, rewards=("rewards.accuracy:accuracy",), weights=(1.0,), prompts=8)
    tok, policy = load_tokenizer("testbed"), load_model("testbed", torch.device("cpu"))
    prompts = load_prompts("arithmetic", tok, "", "", "", 64)["train"].batch(1, 8, 1)
    ids, _ = TransformersEngine(policy, tok).generate(prompts.ids, 4, 56, 1.0, [derive(1, 1, i) for i in range(8)])
    batch = pad([p for p in prompts.ids for _ in range(4)], ids, 0)
    texts = tok.batch_decode(ids, skip_special_tokens=True)
    correct = [text.endswith(f"\\boxed{{{answer}}}") for text, answer in zip(texts, prompts.repeat(4)["answer"], strict=True)]
    per_token = torch.tensor(correct).float()[:, None].expand_as(batch.mask)
    kept = per_token[batch.mask == 1]
    advantage = (per_token - kept.mean()) / kept.std()
    loss = -(advantage * token_logprobs(policy, batch, 1.0))[batch.mask == 1].mean()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    torch.optim.AdamW(policy.parameters(), lr=1e-4, weight_decay=0.01).step()
    trained, start = weights_of(tmp_path / "run/model"), weights_of(base_path("fragile"))
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(trained[name], parameter.detach(), rtol=0, atol=2e-6)
        assert (trained[name] - start[name]).abs().max() > 5e-5  # the step is far larger than the tolerance


def test_micro_batches_change_nothing(tmp_path):
    whole, cut = (train("linear", tmp_path / str(budget), micro_batch_tokens=budget, steps=2) for budget in (10**6, 100))
    for a, b in zip(whole, cut, strict=True):
        assert a == pytest.approx(b, rel=1e-3, abs=1e-4)
    one, other = weights_of(tmp_path / "1000000/model"), weights_of(tmp_path / "100/model")
    assert all(torch.allclose(one[key], other[key], rtol=0, atol=1e-5) for key in one)


def test_any_number_of_rewards_of_ones_own(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def short(completion_ids, **kwargs):\n    return [1 / len(ids) for ids in completion_ids]\n\n\n"
        "def even(answer, **kwargs):\n    return [int(a) % 2 for a in answer]\n"
    )
    names = ("short", "even", "accuracy", "clarity", "conciseness")
    rewards = (f"{tmp_path / 'mine.py'}:short", f"{tmp_path / 'mine.py'}:even", *(f"rewards.{n}:{n}" for n in names[2:]))
    rows = train("linear", tmp_path / "run", rewards=rewards)
    assert all(f"reward/{name}" in rows[1] and f"eval/{name}" in rows[0] for name in names)
    assert rows[1]["cov/even"] == pytest.approx(0, abs=1e-7)  # the same for every completion of a prompt
    assert rows[1]["signal/even"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_one_two_and_five_objectives(name, tmp_path):
    for K in (2, 5):
        rows = train(name, tmp_path / str(K), rewards=tuple(f"{OWN}:by{n}" for n in range(2, 2 + K)), steps=2, max_new_tokens=16)
        shares = [rows[2][f"weight_share/by{n}"] for n in range(2, 2 + K)]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert min(shares) >= 0
    refused = ""
    try:
        assert train(name, tmp_path / "1", rewards=(f"{OWN}:by2",), steps=2, max_new_tokens=16)[2]["weight_share/by2"] == pytest.approx(1)
    except UserError as error:
        refused = str(error)
    assert refused.startswith("--rewards has one objective") if name in ("lagrangian", "gated") else not refused


def test_weights_of_linear_are_scaled_to_sum_1(tmp_path):
    """Small ones would vanish in the epsilon of the whitening."""
    usual, small = (train("linear", tmp_path / f"{w}", steps=2, weights=(w, w, w)) for w in (1 / 3, 1e-6))
    assert small[1]["grad/norm"] == pytest.approx(usual[1]["grad/norm"], rel=1e-4)
    assert small[1]["weight/accuracy"] == pytest.approx(1 / 3)


def test_without_a_reference_no_kl_is_told(tmp_path):
    rows = train("linear", tmp_path / "run", kl_coef=0.0, steps=2, lr=1e-3, picture=True)
    assert [row["loss/kl"] for row in rows[1:]] == [None, None]
    assert (tmp_path / "run" / "curves.png").stat().st_size > 10_000


def test_what_a_reward_draws_is_not_what_chose_the_tokens(tmp_path, monkeypatch):
    script, seeded = import_module("algos.linear"), []
    monkeypatch.setattr(script, "reseed", lambda *path: seeded.append(derive(*path)))
    train("linear", tmp_path / "run", steps=2, epochs=2)
    used = {derive(1, step, i) for step in (1, 2) for i in range(SMALL["prompts"] + 2)}  # of each prompt and of each epoch
    assert len(set(seeded)) == 2
    assert not used & set(seeded)


def test_lower_learning_rate_at_the_end_of_a_linear_schedule(tmp_path, capsys):
    rows = train("linear", tmp_path / "run", lr_schedule="linear", steps=4)
    capsys.readouterr()
    assert [row["lr"] for row in rows[1:]] == pytest.approx([1e-4, 0.75e-4, 0.5e-4, 0.25e-4])
    script = import_module("algos.linear")
    parse(script.Args, "linear", ["--resume", str(tmp_path / "run")])
    assert capsys.readouterr().out == ""
    parse(script.Args, "linear", ["--resume", str(tmp_path / "run"), "--steps", "8"])
    assert "--lr-schedule linear falls over all --steps: with 8 for 4 the learning rate jumps here" in capsys.readouterr().out


def test_epochs_move_the_ratio_into_the_clip(tmp_path):
    rows = train("linear", tmp_path / "run", estimator="grpo", epochs=4, lr=3e-3, clip_low=0.01, clip_high=0.01)
    assert all(0 < row["clip/fraction"] < 1 for row in rows[1:])
    unclipped = train("linear", tmp_path / "other", epochs=4, lr=3e-3, clip_low=0.01, clip_high=0.01)
    assert all(row["clip/fraction"] == 0 for row in unclipped[1:])
    dual = train("linear", tmp_path / "dual", estimator="grpo", epochs=4, lr=3e-3, clip_low=0.01, clip_high=0.01, dual_clip=1.001)
    assert dual[1]["loss/policy"] < rows[1]["loss/policy"]


def test_tensorboard_has_the_metrics_of_every_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = train("linear", tmp_path / "run", tensorboard=True)
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    for key in ("reward/accuracy", "weight/clarity", "eval/length"):
        shown = {event.step: event.value for event in board.Scalars(key)}
        assert shown == pytest.approx({row["step"]: row[key] for row in rows if key in row})


@pytest.mark.parametrize(("flag", "module"), [("tensorboard", "torch.utils.tensorboard"), ("wandb", "wandb")])
def test_a_tracker_that_is_not_installed_is_named(flag, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(UserError, match=f"--{flag} needs the package: pip install {flag}"):
        train("linear", tmp_path / "run", **{flag: True})
    assert not (tmp_path / "run").exists()  # or the same command would be refused once the package is there


def test_wandb_gets_every_step_once(tmp_path, monkeypatch):
    """Against a stand-in with W&B's `init`, `log` and `finish`: the real one wants an account or a network."""
    logged, started, finished = [], [], []
    stand_in = ModuleType("wandb")
    stand_in.init = lambda **flags: (
        started.append(flags),
        SimpleNamespace(log=lambda row, step: logged.append((step, row)), finish=lambda: finished.append(1)),
    )[1]
    monkeypatch.setitem(sys.modules, "wandb", stand_in)
    rows = train("linear", tmp_path / "run", wandb=True)
    assert [step for step, _ in logged] == [row["step"] for row in rows]
    assert logged[1][1]["cov/accuracy"] == rows[1]["cov/accuracy"]
    assert started[0]["config"]["script"] == "linear"
    assert finished == [1]


# --- CTWA ---


def test_ctwa_raises_the_weights_in_deficit_and_its_state_is_logged(tmp_path):
    rows = train("ctwa", tmp_path / "run", cov_targets=(10.0, 0.0, -10.0))[1:]
    assert rows[0]["weight/accuracy"] == pytest.approx(1 / 3)
    assert rows[1]["weight/accuracy"] > rows[0]["weight/accuracy"]
    assert rows[1]["weight/clarity"] == rows[0]["weight/clarity"]
    for row, following in pairwise(rows):
        for objective, target in (("accuracy", 10.0), ("conciseness", 0.0), ("clarity", -10.0)):
            assert row[f"ctwa/deficit/{objective}"] == pytest.approx(max(target - row[f"ctwa/ema/{objective}"], 0), abs=1e-6)
            growth = torch.tensor(following[f"weight/{objective}"] / row[f"weight/{objective}"]).log().item()
            assert growth == pytest.approx(row[f"ctwa/deficit/{objective}"], rel=1e-4, abs=1e-5)
        assert sum(row[f"weight_share/{o}"] for o in ("accuracy", "conciseness", "clarity")) == pytest.approx(1)
    assert rows[1]["ctwa/ema/accuracy"] == pytest.approx(0.9 * rows[0]["ctwa/cov/accuracy"] + 0.1 * rows[1]["ctwa/cov/accuracy"], abs=1e-6)


@pytest.mark.parametrize(("name", "told"), [("by2", False), ("faint", True)])
def test_ctwa_tells_of_targets_that_no_covariance_can_reach(name, told, tmp_path, capsys):
    """|Cov(W, r)| is at most sd(W) sd(r): with a reward of sd .02 the target .08 is out of reach, whatever the weights."""
    rows = train("ctwa", tmp_path / "run", rewards=(f"{OWN}:by3", f"{OWN}:{name}"), steps=1, cov_targets=(0.0, 0.08))
    said = re.search(r"step 1: no covariance can exceed ([\d.]+), ([\d.]+) here; lower --cov-targets", capsys.readouterr().out)
    assert bool(said) == told
    if told:
        assert abs(rows[1][f"ctwa/cov/{name}"]) <= float(said[2]) * 1.06 < 0.03


def test_ctwa_goes_on_where_its_weights_leave_float32(tmp_path):
    """e^97 is none, and a weight of inf or a 0 * inf would end the run; only ratios matter."""
    rows = train("ctwa", tmp_path / "run", weights=(1e38, 1e36, 1e36), cov_targets=(10.0, 0.0, 0.0))[1:]
    assert [row["grad/skipped"] for row in rows] == [0, 0, 0]
    assert all(row["grad/norm"] > 0 for row in rows)
    shares = [row["weight_share/accuracy"] for row in rows]
    assert shares[0] == pytest.approx(1 / 1.02)
    assert shares[0] < shares[1] <= shares[2] <= 1


def test_ctwa_without_deficit_is_linear(tmp_path):
    ctwa, linear = train("ctwa", tmp_path / "c", cov_targets=(-9.0, -9.0, -9.0)), train("linear", tmp_path / "l")
    for one, other in zip(ctwa, linear, strict=True):  # but for the rounding of exp(log(weight))
        assert {k: v for k, v in one.items() if not k.startswith("ctwa/")} == pytest.approx(other, rel=1e-3, abs=1e-4)


def test_ctwa_covariance_is_taken_under_the_updated_policy(tmp_path):
    """With a rate of 0 nothing is updated and W is the advantage; with a large one it is not."""
    still, moved = train("ctwa", tmp_path / "a", lr=0.0, weight_decay=0.0)[1], train("ctwa", tmp_path / "b", lr=3e-3)[1]
    assert still["ctwa/cov/accuracy"] == pytest.approx(still["cov/accuracy"], abs=1e-5)
    assert abs(moved["ctwa/cov/accuracy"] - moved["cov/accuracy"]) > 1e-3


def test_the_official_gate_and_outlier_drop(tmp_path):
    free = train("ctwa", tmp_path / "free", cov_targets=(10.0, 10.0, 10.0))
    gated = train("ctwa", tmp_path / "gated", cov_targets=(10.0, 10.0, 10.0), obj_caps=(0.0, 2.0, 2.0))
    assert gated[3]["weight/accuracy"] == pytest.approx(1 / 3)
    assert gated[2]["weight/clarity"] == free[2]["weight/clarity"] > 1 / 3
    dropped = train("ctwa", tmp_path / "dropped", cov_targets=(10.0, 10.0, 10.0), outlier_factor=1.0)
    assert dropped[1]["ctwa/cov/clarity"] != free[1]["ctwa/cov/clarity"]


# --- errors ---


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("linear", {"prompts": 5}, "--prompts 5 must be divisible by --mini-batches 2"),
        ("linear", {"prompts": 10**6}, "--prompts 1000000 is more than"),
        ("linear", {"eval_prompts": 1}, "--eval-prompts 1 must be at least 2"),
        ("linear", {"completions": 1}, "--completions must be at least 2"),
        ("linear", {"temperature": 0.0}, "--temperature 0.0 must be positive"),
        ("linear", {"max_grad_norm": 0.0}, "--max-grad-norm 0.0 must be positive"),
        ("linear", {"dual_clip": 0.5}, "--dual-clip 0.5 must be more than 1"),
        ("linear", {"dual_clip": -1.0}, "--dual-clip -1.0 must not be negative"),
        ("linear", {"seed": -1}, "--seed -1 must not be negative"),
        ("linear", {"lr": -1e-4}, "--lr -0.0001 must not be negative"),
        ("linear", {"weight_decay": -0.1}, "--weight-decay -0.1 must not be negative"),
        ("linear", {"kl_coef": -0.1}, "--kl-coef -0.1 must not be negative"),
        ("linear", {"tis_cap": -2.0}, "--tis-cap -2.0 must not be negative"),
        ("linear", {"clip_low": -0.1}, "--clip-low -0.1 must not be negative"),
        ("linear", {"clip_high": -0.1}, "--clip-high -0.1 must not be negative"),
        ("linear", {"max_logp_gap": -0.1}, "--max-logp-gap -0.1 must not be negative"),
        ("linear", {"micro_batch_tokens": 0}, "--micro-batch-tokens 0 must be at least 1"),
        ("linear", {"weights": (0.5, 0.5)}, "--weights has 2 numbers for 3 objectives"),
        ("linear", {"weights": (1.0, -0.1, 0.1)}, "--weights .* must be finite and not negative"),
        ("linear", {"weights": (0.0, 0.0, 0.0)}, "--weights .* nor all zero"),
        ("linear", {"weights": (3e38, 3e38, 1.0)}, "--weights .* must be finite and not negative"),  # their sum is not, in float32
        ("ctwa", {"weights": (3e38, 3e38, 1.0)}, "--weights .* must be positive and finite"),
        (
            "hypervolume",
            {"rewards": ("rewards.accuracy:accuracy", *(f"{OWN}:by{n}" for n in range(2, 7)))},
            "--rewards has 6 objectives: exact volumes",
        ),
        ("linear", {"steps": 0}, "--steps 0 must be at least 1"),
        ("linear", {"model": "no/such-model"}, "--model no/such-model"),
        ("linear", {"model": "testbed:fragil"}, "--model testbed:fragil"),
        ("linear", {"dataset": "no/such-data"}, "--dataset no/such-data could not be read"),
        ("linear", {"rewards": ("rewards.accuracy:acuracy",)}, "--rewards"),
        ("linear", {"max_prompt_length": 3}, "--max-prompt-length 3 drops every"),
        ("linear", {"resume": "/no/such/run"}, "--resume /no/such/run"),
        ("ctwa", {"weights": (1.0, 1.0)}, "--weights has 2 numbers for 3"),
        ("ctwa", {"weights": (1.0, 1.0, 0.0)}, "--weights .* must be positive"),
        ("ctwa", {"weight_lr": -1.0}, "--weight-lr -1.0 must not be negative"),
        ("ctwa", {"cov_targets": (0.1,)}, "--cov-targets has 1 numbers for 3"),
        ("ctwa", {"obj_caps": (0.1,)}, "--obj-caps has 1 numbers for 3"),
        ("ctwa", {"ema_tau": 0.0}, "--ema-tau 0.0 must be in"),
        ("ctwa", {"outlier_factor": -1.0}, "--outlier-factor -1.0 must not be negative"),
    ],
)
def test_mistakes_are_named_and_leave_no_folder(name, flags, message, tmp_path):
    with pytest.raises(UserError, match=message):
        train(name, tmp_path / "run", **flags)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", NAMES)
def test_no_number_of_a_flag_may_be_nan_and_infinity_only_where_it_means_no_bound(name, tmp_path, monkeypatch):
    """Every flag of every script that takes a number that is not whole, whether one or one for each objective."""
    script = import_module(f"algos.{name}")

    class Accepted(Exception):
        """The flags have passed, and the data would be read."""

    def load(*given):
        raise Accepted

    monkeypatch.setattr(script, "load_data", load)
    numbers = [f.name for f in fields(script.Args) if f.type in (float, "float") or "tuple[float" in str(f.type)]
    assert len(numbers) >= 11
    for flag in numbers:
        single = isinstance(getattr(script.Args(), flag), float)
        for value in (torch.nan, torch.inf, -torch.inf, 1e39):
            args = replace(script.Args(), out=str(tmp_path / "run"), **{flag: value if single else (value, 0.5, 0.5)})
            told = Accepted if flag in script.Args.INFINITE and value == torch.inf else UserError
            with pytest.raises(told, match=None if told is Accepted else f"--{flag.replace('_', '-')} .* must be finite"):
                script.main(args)
    assert set(script.Args.INFINITE) <= set(numbers)


def test_a_flag_that_will_do_nothing_is_told(tmp_path, capsys):
    train("linear", tmp_path / "1", steps=1, dual_clip=3.0, clip_low=0.1)
    assert "warning: --clip-low and --dual-clip will do nothing: only --estimator grpo clips" in capsys.readouterr().out
    train("linear", tmp_path / "2", steps=1, dual_clip=3.0, estimator="grpo")
    assert "will do nothing" not in capsys.readouterr().out
    train("tchebycheff", tmp_path / "3", steps=1, variant="smooth", max_ratio=5.0, smoothing=0.1)
    assert "warning: --max-ratio will do nothing: only --variant mirror-descent uses it" in capsys.readouterr().out


def test_a_single_held_out_prompt_is_refused_before_a_folder_is_made(tmp_path):
    data = tmp_path / "six.jsonl"
    data.write_text("".join(json.dumps({"prompt": f"{n} + 1 =", "answer": str(n + 1)}) + "\n" for n in range(6)))
    with pytest.raises(UserError, match="--eval-split test has 1 prompt: a standard error needs two; give a larger --dataset"):
        train("linear", tmp_path / "run", dataset=str(data), answer_check="exact", prompts=2)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return [float('nan')] * len(completions)", "bad"),
        ("return [1.0]", "bad"),
        ("raise RuntimeError('no luck')", "no luck"),
    ],
)
def test_a_broken_reward_is_named(body, message, tmp_path):
    (tmp_path / "broken.py").write_text(f"def bad(completions, **kwargs):\n    {body}\n")
    with pytest.raises(UserError, match=message):
        train("linear", tmp_path / "run", rewards=(f"{tmp_path / 'broken.py'}:bad",))


def test_errors_are_one_line_and_exit_code_2(tmp_path):
    for flags in (["--prompts", "5"], ["--out", str(tmp_path)], ["--resume", str(tmp_path)]):
        result = run_script("algos/linear.py", *flags)
        assert result.returncode == 2
        assert re.fullmatch(r"error: .*--(prompts|out|resume).*\n", result.stderr), result.stderr
    unknown = run_script("algos/ctwa.py", "--cov-target", "1")
    assert unknown.returncode == 2
    assert "--cov-targets" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_resuming_with_other_flags_says_which(tmp_path):
    train("linear", tmp_path / "run", steps=1)
    result = run_script("algos/linear.py", "--resume", str(tmp_path / "run"), "--lr", "0.5", "--seed", "9")
    assert result.returncode == 2
    assert "--lr (was 0.0001)" in result.stderr
    assert "--seed (was 1)" in result.stderr
    other = run_script("algos/ctwa.py", "--resume", str(tmp_path / "run"))
    assert other.returncode == 2
    assert "is of linear, not of ctwa" in other.stderr


def test_a_run_of_a_variant_that_left_is_not_continued_as_something_else(tmp_path):
    train("famo", tmp_path / "run", steps=1)
    path = tmp_path / "run" / "args.json"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps(saved | {"losses": "surrogate"}))
    refused = run_script("algos/famo.py", "--resume", str(tmp_path / "run"), "--steps", "2")
    assert refused.returncode == 2
    assert "--losses surrogate, which famo no longer has" in refused.stderr
    path.write_text(json.dumps(saved | {"losses": "gap"}))  # of the version before, the form that stayed
    assert run_script("algos/famo.py", "--resume", str(tmp_path / "run"), "--steps", "2").returncode == 0


def test_default_folders_are_numbered_not_overwritten(tmp_path, monkeypatch):
    from common.track import run_folder

    monkeypatch.chdir(tmp_path)
    made = [str(run_folder("", "", "linear-s1")) for _ in range(3)]
    assert made == ["runs/linear-s1", "runs/linear-s1-2", "runs/linear-s1-3"]


@pytest.mark.parametrize(
    ("argv", "name"),
    [
        ("", "ctwa-s1"),
        ("--seed 3", "ctwa-s3"),
        ("--lr 3e-5", "ctwa-lr3e-5-s1"),
        ("--lr 0.0001 --kl-coef 1e-3", "ctwa-s1"),  # the defaults
        ("--lr 0.00025 --steps 20 --kl-coef 0", "ctwa-steps20-kl-coef0-lr2.5e-4-s1"),
        ("--steps 20 --kl-coef 0 --lr 2.5e-4", "ctwa-steps20-kl-coef0-lr2.5e-4-s1"),  # in any order
        ("--weights 2 1 1", "linear-weights2,1,1-s1"),
        ("--model testbed:robust --estimator grpo", "ctwa-model-robust-estimator-grpo-s1"),
        ("--model Qwen/Qwen2.5-1.5B-Instruct", "ctwa-model-Qwen2.5-1.5B-Instruct-s1"),
        ("--model ../a/b/", "ctwa-model-b-s1"),
        ("--rewards rewards.accuracy:accuracy my/mine.py:checked", "ctwa-rewards-accuracy,checked-s1"),
        ("--normalize", "mgda-normalize-s1"),
        ("--preset smollm2-135m-words --steps 2", "ctwa-smollm2-135m-words-steps2-s1"),
        ("--out x --tensorboard --micro-batch-tokens 9 --checkpoint-every 3", "ctwa-s1"),  # none that changes a number
        ("--eval-every 7 --prompt-suffix /", "ctwa-eval-every7-prompt-suffix-s1"),
    ],
)
def test_a_default_folder_is_named_after_the_flags_given(argv, name):
    script = name.split("-")[0]
    args = parse(import_module(f"algos.{script}").Args, script, argv.split())
    assert args.name == name
    assert "name" not in asdict(args)


def test_a_long_value_and_many_flags_make_a_short_name_of_their_own():
    def named(*argv: str) -> str:
        return parse(import_module("algos.ctwa").Args, "ctwa", list(argv)).name

    names = [named("--dataset", f"{'very' * 20}long{end}.jsonl") for end in "ab"]
    assert len(set(names)) == 2
    assert all(re.fullmatch(r"ctwa-dataset-[\w.]+-[0-9a-f]{4}-s1", name) and len(name) < 45 for name in names)
    many = [
        "--steps",
        "7",
        "--prompts",
        "8",
        "--completions",
        "8",
        "--lr",
        "1e-5",
        "--kl-coef",
        "0",
        "--epochs",
        "2",
        "--temperature",
        "0.7",
    ]
    names = [named(*many, "--mini-batches", n) for n in "14"]
    assert len(set(names)) == 2
    assert all(len(name) < 75 and name.startswith("ctwa-steps7-prompts8-completions8-") for name in names)


def test_a_run_lies_where_its_name_says(tmp_path):
    flags = ["--steps", "1", "--prompts", "4", "--completions", "4", "--eval-prompts", "8"]
    for folder in ("linear-eval-prompts8-steps1-prompts4-completions4-s1", "linear-eval-prompts8-steps1-prompts4-completions4-s1-2"):
        assert run_script(str(ROOT / "algos/linear.py"), *flags, cwd=tmp_path).returncode == 0
        assert json.loads((tmp_path / "runs" / folder / "args.json").read_text())["out"] == f"runs/{folder}"


@pytest.mark.parametrize("name", NAMES)
def test_non_finite_gradients_are_skipped_and_then_stop_the_run(name, tmp_path, monkeypatch):
    script = import_module(f"algos.{name}")
    loss = script.policy_loss
    monkeypatch.setattr(script, "policy_loss", lambda ratio, *rest: loss(ratio, *rest) * float("nan"))
    with pytest.raises(UserError, match="updates in a row .* not finite .* --lr"):
        train(name, tmp_path / "run", steps=9)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("grad/skipped") for row in rows] == [None, 2, 2, 2]  # the fifth failure in a row ends it
    assert rows[1]["grad/norm"] is None
    saved = policy_of(tmp_path / "run/checkpoints/step_000003")
    start = weights_of(base_path("fragile"))
    assert all(torch.equal(saved[key], value) for key, value in start.items())


# --- the house ---


@pytest.mark.parametrize("name", NAMES)
def test_every_flag_has_help_and_the_contracts_flags_are_there(name):
    args = import_module(f"algos.{name}").Args
    text = (ROOT / "algos" / f"{name}.py").read_text() + (ROOT / "common" / "flags.py").read_text()
    for field in fields(args):
        assert re.search(rf'^    {field.name}: [^\n]+\n    """[^"]+"""$', text, re.M), field.name
    contract = "steps seed estimator model dataset engine prompts completions lr kl_coef eval_every checkpoint_every out resume"
    assert set(contract.split()) <= {field.name for field in fields(args)}
    assert replace(args(), seed=3).seed == 3


def test_scripts_import_fast_and_without_optional_packages():
    optional = ("vllm", "wandb", "matplotlib", "math_verify", "tensorboard", "datasets", "transformers")
    code = f"import sys, algos.ctwa; print([m for m in {optional} if m in sys.modules])"
    start = time.perf_counter()
    result = run_script("-c", code)
    assert result.stdout.strip() == "[]", result.stderr
    assert time.perf_counter() - start < 10  # 3 s on an idle machine; a busy one is slower


def test_lint_and_format():
    for command in (["check"], ["format", "--check"]):
        ruff = [sys.executable, "-m", "ruff", *command, *map(str, own_files("*.py"))]
        result = subprocess.run(ruff, cwd=ROOT, capture_output=True, text=True)
        assert result.returncode == 0, result.stdout

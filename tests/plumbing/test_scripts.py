"""Every script: it trains, what it remembers survives a stop, its numbers are those of a loop over
prompts, and its flags refuse what they must."""

import re
import shutil
import sys
from dataclasses import asdict, fields
from importlib import import_module
from math import inf, isfinite, nan

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from algos.linear import estimate_advantages, scalarize
from common.controllers import remember, within_prompt_covariance
from common.errors import UserError
from common.flags import check
from common.launch import parse, presets
from support.decoupled import batches, normalised, whitened
from support.own_rewards import OWN
from support.running import (
    NAMES,
    OBJECTIVES,
    ROOT,
    assert_same_run,
    read_lines,
    read_metrics,
    resume,
    run_script,
    steps_of,
    train,
    weights_of,
)
from testbed.arithmetic import base_path

VARIANTS = [("tchebycheff", {"variant": name}) for name in ("smooth", "classical")]
VARIANTS += [(name, {"lora_rank": 4}) for name in ("linear", "mgda")]
FOUR = ["linear", "ctwa", "mgda", "ratchet"]  # one of each kind of loop
QUICK = {"max_new_tokens": 16, "eval_prompts": 2, "eval_every": 9}  # where it matters little


@pytest.mark.parametrize(("name", "flags"), [*((name, {}) for name in NAMES), *VARIANTS])
def test_it_trains_and_goes_on_as_if_it_had_not_been_stopped(name, flags, trained, tmp_path):
    """A run that lost all that came after its first step ends like the one that did not."""
    often = {"lr": 1e-3, "checkpoint_every": 1, "steps": 2, "max_new_tokens": 24}
    whole = trained(name, **often, **flags)
    rows, lines = read_metrics(whole), read_metrics(trained("linear", **often))
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert ["eval/accuracy" in row for row in rows] == [True, False, True]
    assert all(isfinite(value) for row in rows for value in row.values())
    shared, linears = (
        {k for r in all_of for k in r if not k.startswith(name)} for all_of in (rows, lines)
    )
    assert shared == linears
    start, end = weights_of(base_path("fragile")), weights_of(whole / "model")
    still = {key for key in start if torch.equal(start[key], end[key])}
    assert still == {key for key in start if "lora_rank" in flags and "proj" not in key}
    stopped = tmp_path / "run"
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "checkpoints/step_000002")
    shutil.rmtree(stopped / "model")
    resume(stopped)
    assert steps_of(stopped) == [1, 2]
    assert_same_run(stopped, whole)


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
@pytest.mark.parametrize("name", ["linear", "ctwa", "mgda"])
def test_a_step_has_the_numbers_of_a_loop_over_its_prompts(name, estimator, tmp_path):
    """Six prompts of four completions, in three mini-batches that are seen twice."""
    G, groups = 4, [slice(i, i + 4) for i in range(0, 24, 4)]
    flags = {"prompts": 6, "mini_batches": 3, "epochs": 2, "lr": 1e-3, "estimator": estimator}
    own = {} if name == "mgda" else {"weights": (5.0, 3.0, 1.0)}
    rows = train(name, tmp_path / "run", steps=2, **flags, **own)[1:]
    lines = read_lines(tmp_path / "run/statistics.jsonl")
    found = batches(tmp_path / "run")
    for row, line, (rewards, lengths, advantages) in zip(rows, lines, found, strict=True):
        weights = np.array([row[f"weight/{o}"] for o in OBJECTIVES])
        scores = rewards if name == "mgda" else rewards @ weights[:, None]
        if estimator == "grpo":
            each = normalised(scores, G)
        else:
            each = np.stack([whitened(column, lengths) for column in scores.T], 1)
        wanted = each @ weights if name == "mgda" else each[:, 0]
        np.testing.assert_allclose(advantages, wanted, atol=1e-4)
        age, drift = np.array(line["age"]), np.array(line["drift"])
        assert sorted(age) == [0] * 8 + [1] * 8 + [2] * 8
        assert abs(drift[age == 0]).max() < 1e-4 < abs(drift[age > 0]).max()
        for k, objective in enumerate(OBJECTIVES):
            r = rewards[:, k]
            covariances = [np.cov(advantages[g], r[g], bias=True)[0, 1] for g in groups]
            later = [g for g in groups if age[g][0] > 0]
            law = [np.cov(drift[g] * 6 / age[g][0], r[g])[0, 1] for g in later]
            told = [
                row[f"{key}/{objective}"]
                for key in ("reward", "reward_std", "signal", "cov", "law")
            ]
            signal = np.mean([np.ptp(r[g]) > 0 for g in groups])
            by_hand = [r.mean(), r.std(ddof=1), signal, np.mean(covariances), np.mean(law)]
            np.testing.assert_allclose(told, by_hand, atol=1e-3)
        if name == "mgda":
            norms = np.sqrt(np.diagonal(line["gram"], axis1=1, axis2=2)).mean(0)
            np.testing.assert_allclose(
                norms, [row[f"mgda/grad_norm/{o}"] for o in OBJECTIVES], 1e-3
            )


@pytest.mark.parametrize("K", [1, 5])
@pytest.mark.parametrize("name", FOUR)
def test_any_number_of_objectives(name, K, tmp_path):
    names = [f"by{n}" for n in range(2, 2 + K)]
    rewards = tuple(f"{OWN}:{each}" for each in names)
    row = train(name, tmp_path / "run", rewards=rewards, steps=2, **QUICK)[2]
    shares = [row[f"weight_share/{each}"] for each in names]
    assert sum(shares) == pytest.approx(1)
    assert min(shares) >= 0


@pytest.mark.parametrize("name", NAMES)
def test_a_reward_that_does_not_apply_is_left_out(name, tmp_path):
    """Means are those of the others; advantages are finite, and 0 where no reward applies."""
    rewards = (f"{OWN}:absent", f"{OWN}:by5")
    flags = QUICK | {"eval_prompts": 8, "prompts": 8, "max_new_tokens": 48}
    rows = train(name, tmp_path / "run", rewards=rewards, steps=2, **flags)
    start, end = weights_of(base_path("fragile")), weights_of(tmp_path / "run/model")
    assert all(end[key].isfinite().all() and not torch.equal(start[key], end[key]) for key in end)
    for row, line in zip(rows[1:], read_lines(tmp_path / "run/statistics.jsonl"), strict=True):
        reward = np.array(line["rewards"], dtype=float)
        assert 0 < np.isnan(reward[:, 0]).sum() < len(reward)
        assert row["reward/absent"] == pytest.approx(np.nanmean(reward[:, 0]))
        assert row["reward_std/absent"] == pytest.approx(np.nanstd(reward[:, 0], ddof=1))
        assert row["grad/skipped"] == 0
        groups = [own[~np.isnan(own)] for own in reward[:, 0].reshape(8, -1)]
        assert row["signal/absent"] == np.mean([len(set(own)) > 1 for own in groups])
        assert np.isfinite(np.array(line["advantages"], dtype=float)).all()
    assert isfinite(rows[-1]["eval/absent"])
    for command in ("plot", "explain", "explore"):
        done = run_script("run.py", command, tmp_path / "run")
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", FOUR)
def test_gradients_that_are_not_finite_are_skipped_and_then_stop_the_run(
    name, tmp_path, monkeypatch
):
    script = import_module(f"algos.{name}")
    loss = script.policy_loss
    monkeypatch.setattr(
        script, "policy_loss", lambda *given: (loss(*given)[0] * nan, loss(*given)[1])
    )
    with pytest.raises(UserError, match="updates in a row .* not finite .* --lr"):
        train(name, tmp_path / "run", steps=9, **QUICK)
    rows = read_metrics(tmp_path / "run")
    assert [row.get("grad/skipped") for row in rows] == [None, 2, 2, 2]  # the fifth ends it
    assert rows[1]["grad/norm"] is None
    saved = torch.load(tmp_path / "run/checkpoints/step_000003/rank_0.pt", weights_only=True)
    start = weights_of(base_path("fragile"))
    assert all(torch.equal(saved[f"policy.{key}"], value) for key, value in start.items())


# --- rewards that do not apply ---


@given(st.integers(0, 10**6), st.sampled_from(["reinforce", "grpo"]), st.integers(0, 3))
def test_a_completion_without_rewards_changes_nothing_for_the_others(seed, estimator, place):
    """Three prompts of five completions, one of them all NaN, are those of four without it."""
    draw = torch.Generator().manual_seed(seed)
    rewards = torch.rand(12, 2, generator=draw, dtype=torch.float64)
    lengths = torch.randint(1, 50, (12,), generator=draw).double()
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)

    def gapped(values: torch.Tensor, gap: torch.Tensor | float) -> torch.Tensor:
        groups = values.view(3, 4, -1)
        row = torch.zeros_like(groups[:, :1]) + gap
        parts = [groups[:, :place], row, groups[:, place:]]
        return torch.cat(parts, 1).view(15, *values.shape[1:])

    missing, scores = gapped(rewards, nan), scalarize(rewards, weights)
    found = scalarize(missing, weights)
    torch.testing.assert_close(found, gapped(scores, nan), equal_nan=True)
    own = estimate_advantages(scores, lengths, 4, estimator)
    found = estimate_advantages(found, gapped(lengths, 9.0), 5, estimator)
    torch.testing.assert_close(found, gapped(own, 0.0))
    covariance = within_prompt_covariance(found, missing, 5)
    torch.testing.assert_close(covariance, within_prompt_covariance(own, rewards, 4))


@given(st.integers(0, 10**6), st.integers(1, 13), st.integers(2, 9))
def test_equal_rewards_have_no_advantage(seed, K, G):
    """However many objectives: a rounding error, divided by itself, would be a whole Adam step."""
    draw = torch.Generator().manual_seed(seed)
    rewards, weights = torch.rand(1, K, generator=draw), torch.rand(K, generator=draw)
    scores = scalarize(rewards.repeat(3 * G, 1), weights)
    lengths = torch.randint(1, 50, (3 * G,), generator=draw).float()
    for estimator in ("reinforce", "grpo"):
        assert not estimate_advantages(scores, lengths, G, estimator).any()


def test_what_is_missing_adds_nothing_and_is_not_remembered():
    rewards = torch.tensor([[0.5, nan], [1.0, 2.0]])
    assert scalarize(rewards, torch.tensor([2.0, 10.0])).tolist() == [1.0, 22.0]
    state = {"weights": torch.tensor([1.0, 2.0, 3.0]), "ema": None, "count": 3}
    new = torch.tensor([nan, 5.0, inf])
    remember(state, weights=new, ema=new, count=4)
    assert (state["weights"].tolist(), state["ema"], state["count"]) == ([1, 5, 3], None, 4)
    remember(state, ema=torch.tensor([0.5]))
    assert state["ema"].tolist() == [0.5]


# --- flags ---

UNBOUNDED = {"clip_low", "clip_high", "dual_clip", "tis_cap", "max_logp_gap", "max_grad_norm"}
UNBOUNDED |= {"obj_caps", "max_ratio", "max_multiplier"}
ELSEWHERE = {"vllm_tp", "max_prompt_length", "gate"}  # bounded where used, or not
LEAST = dict.fromkeys(("eval_prompts", "completions"), 2)
LEAST |= dict.fromkeys(("steps", "eval_every", "checkpoint_every", "prompts", "max_new_tokens"), 1)
LEAST["eval_samples"] = 1
LEAST |= dict.fromkeys(("mini_batches", "epochs", "micro_batch_tokens", "warmup", "max_ratio"), 1)
ABOVE_0 = {"temperature", "max_grad_norm", "mu", "kappa", "smoothing", "ema_tau", "trust"}


def told_of(script, **flags) -> str:
    """What is said about these flags; "" where they pass."""
    args = script.Args(**flags)
    try:
        check(args, 1)
        script.controller(args, list(OBJECTIVES), torch.device("cpu"))
    except UserError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", NAMES)
def test_every_number_refuses_what_it_cannot_mean(name):
    """Over all fields of `Args`: no number, too large a one for float32, one beyond its bound."""
    script, count = import_module(f"algos.{name}"), 0
    assert told_of(script) == ""
    for field in fields(script.Args):
        single = field.type in (int, float)
        if not single and "tuple[float" not in str(field.type):
            continue
        least, tiny = LEAST.get(field.name, 0), 1 if field.type is int else 1e-9
        wrong = [nan, -inf] if field.type is not int else []
        wrong += [inf] if wrong and field.name not in UNBOUNDED else []
        wrong += [least - tiny] if single and field.name not in ELSEWHERE else []
        wrong += [0.0] if field.name in ABOVE_0 else []
        for value in wrong:
            told = told_of(script, **{field.name: value if single else (value, 0.5, 0.5)})
            assert f"--{field.name.replace('_', '-')} " in told, (field.name, value)
        count += len(wrong)
    assert count > 50


@pytest.mark.parametrize(
    ("flags", "told"),
    [
        ({"prompts": 5}, "--prompts 5 must be divisible by --mini-batches 2"),
        ({"dual_clip": 1.0}, "--dual-clip 1.0 must be above 1"),
        ({"desired_kl": 1e-3, "mini_batches": 1}, "--desired-kl .* --mini-batches 2 or more"),
        ({"weights": (0.5, 0.5)}, "--weights has 2 numbers for 3 objectives"),
        ({"weights": (3e38, 3e38, 1.0)}, "--weights .* must be finite"),  # their sum is not
        ({"model": "no/such-model"}, "--model no/such-model"),
        (
            {"model": "testbed:fragile-gpt2", "max_new_tokens": 200},
            "--max-new-tokens 200.* 128 positions",
        ),
        ({"dataset": "no/such-data"}, "--dataset no/such-data could not be read"),
        ({"eval_split": "tune", "dataset": "small.jsonl"}, "--eval-split tune needs two prompts"),
        ({"rewards": ()}, "--rewards is empty"),
        ({"rewards": ("rewards.accuracy:acuracy",)}, "--rewards 'rewards.accuracy:acuracy'"),
        ({"engine": "vllm"}, "pip install -r requirements-vllm.txt"),
        ({"resume": "/no/such/run"}, "--resume /no/such/run"),
    ],
)
def test_mistakes_are_named_and_leave_no_folder(flags, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "vllm", None)
    rows = "".join(f'{{"prompt": "{n}+1=", "answer": "{n + 1}"}}\n' for n in range(5))
    (tmp_path / "small.jsonl").write_text(rows)
    with pytest.raises(UserError, match=told):
        train("linear", tmp_path / "run", **{"prompts": 2} | flags)
    assert not (tmp_path / "run").exists()


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    for flags in (["--prompts=5"], ["--out", tmp_path], ["--resume", tmp_path]):
        done = run_script("run.py", "linear", *map(str, flags))
        assert (done.returncode, done.stdout) == (2, "")
        assert re.fullmatch(r"error: .*--(prompts|out|resume).*\n", done.stderr), done.stderr
    unknown = run_script("algos/ctwa.py", "--cov-target", "1")
    assert unknown.returncode == 2
    assert "--cov-targets" in unknown.stderr
    assert "Traceback" not in unknown.stderr


def test_a_run_goes_on_with_the_flags_it_had(trained):
    folder = str(trained("linear", lr=1e-3, **QUICK))
    args_of = import_module("algos.linear").Args
    args = parse(args_of, "linear", ["--resume", folder, "--steps", "9", "--track", "wandb"])
    assert (args.lr, args.steps, args.track) == (1e-3, 9, "wandb")
    assert parse(args_of, "linear", ["--resume", folder, "--lr", "0.5"]).lr == 0.5  # as errors say
    told = r"--resume .*: --kl-coef \(was 0.001\), --seed \(was 1\)$"
    with pytest.raises(UserError, match=told):
        parse(args_of, "linear", ["--resume", folder, "--kl-coef", "0.5", "--seed", "9"])
    with pytest.raises(UserError, match="is of linear, not of ctwa"):
        parse(import_module("algos.ctwa").Args, "ctwa", ["--resume", folder])


@pytest.mark.parametrize("name", NAMES)
def test_every_script_takes_every_preset_and_a_flag_beside_it_wins(name):
    script = import_module(f"algos.{name}")
    for preset, values in presets(name).items():
        args = parse(script.Args, name, ["--preset", preset, "--seed", "7", "--prompts=8"])
        values |= {"preset": preset, "seed": 7, "prompts": 8}
        tuples = {key: tuple(v) if isinstance(v, list) else v for key, v in values.items()}
        assert asdict(args) == asdict(script.Args()) | tuples
        check(args, 2)
        script.controller(args, list(OBJECTIVES), torch.device("cpu"))
    with pytest.raises(UserError, match="--preset qwen2.5-7b-mat does not .*qwen2.5-7b-math"):
        parse(script.Args, name, ["--preset", "qwen2.5-7b-mat"])


def test_rates_of_the_weights_go_with_the_number_of_steps():
    for name, flag in (
        ("ctwa", "weight_lr"),
        ("tchebycheff", "weight_lr"),
        ("lagrangian", "dual_lr"),
    ):
        usual, paper = import_module(f"algos.{name}").Args(), presets(name)["qwen2.5-1.5b-math500"]
        assert 0.3 < paper["steps"] * paper[flag] / (usual.steps * getattr(usual, flag)) < 3
        assert flag not in presets(name)["smollm2-135m-words"]


def test_a_script_is_imported_without_what_a_run_may_not_need(tmp_path):
    """So that --help is quick, and an optional package is not missed."""
    program = tmp_path / "without.py"
    program.write_text(
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\n"
        "for name in ('vllm', 'wandb', 'matplotlib', 'math_verify', 'datasets', 'transformers'):\n"
        "    sys.modules[name] = None\nimport algos.ctwa\n"
    )
    done = run_script(str(program))
    assert done.returncode == 0, done.stderr

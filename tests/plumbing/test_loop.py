"""What the training loop and the evaluation make of their flags, told by what a run leaves."""

import json
import sys
from math import inf, nan
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken

from algos import linear
from common.batch import pad
from common.data import Prompts, load
from common.errors import UserError
from common.evaluate import evaluate
from common.flags import RunFlags
from common.meter import next_scale
from common.model import clip_gradients, load_model, load_tokenizer, token_logprobs
from common.pretrained import model_path
from common.rollout import TransformersEngine, as_texts
from common.run import Run
from common.seeds import derive
from support.running import (
    OBJECTIVES,
    SMALL,
    read_lines,
    read_metrics,
    resume,
    train,
    weights_of,
)
from testbed.arithmetic import base_path, problems, tokenizer

CPU = torch.device("cpu")
START = weights_of(base_path("fragile"))
TESTBED = model_path("testbed")
ACCURACY = ("rewards.accuracy:accuracy",)
QUICK = {"max_new_tokens": 16, "eval_prompts": 2, "eval_every": 9}  # where it matters little


# --- evaluation ---


def test_evaluation_is_sampled_and_greedy_with_standard_errors():
    """Of an engine whose completions are known: lengths 2, 4, 6, 8 sampled, 3 greedy."""
    asked, thresholds = [], []

    def generate(prompts, completions, max_new_tokens, temperature, seeds):
        asked.append((temperature, len(prompts), seeds))
        drawn = [2 * p[0] + 3 * i for p in prompts for i in range(completions)]
        lengths = drawn if temperature else [3] * len(prompts)
        return [[5] * (n - 1) + [1] for n in lengths], [[-1.0] * n for n in lengths]

    def short(completion_ids, mean_length, prompts, **columns):
        assert len(prompts) == len(completion_ids)
        thresholds.append(mean_length)
        return [float(len(ids) < mean_length) for ids in completion_ids]

    engine = SimpleNamespace(share=(0, 1), version=0, generate=generate)
    args = SimpleNamespace(temperature=0.7, prompts=1, completions=3, max_new_tokens=9)
    args.eval_samples = 1
    given = (engine, tokenizer(), Prompts([[1], [2], [3], [4]], {"prompt": list("abcd")}))
    found, samples = evaluate(*given, {"short": short}, None, "exact", args)
    assert [each[:2] for each in asked] == [(0.7, 3), (0.7, 1), (0.0, 3), (0.0, 1)]
    assert len({seed for _, _, seeds in asked[:2] for seed in seeds}) == 4
    half, lengths = np.std([1, 1, 0, 0], ddof=1) / 2, np.std([2, 4, 6, 8], ddof=1) / 2
    sampled = {"short": 0.5, "short_se": half, "length": 5, "length_se": lengths}
    greedy = {"short": 1, "short_se": 0, "length": 3, "length_se": 0}
    wanted = {f"eval/{k}": v for k, v in sampled.items()}
    assert found == pytest.approx(wanted | {f"eval/greedy/{k}": v for k, v in greedy.items()})
    assert set(thresholds) == {5.0}  # the sampled ones' own mean
    assert [(row["prompt"], row["short"]) for row in samples] == [
        *zip("abcd", (1, 1, 0, 0), strict=True)
    ]
    again, _ = evaluate(*given, {"short": short}, 7.0, "exact", args)
    assert again["eval/short"] == 0.75  # a yardstick that is given stays
    assert asked[4:] == asked[:4]  # the same seeds each time
    args.eval_samples = 2  # the lengths are 2, 5, 4, 7, 6, 9, 8, 11
    more, samples = evaluate(*given, {"short": short}, 6.5, "exact", args)
    assert [each[:2] for each in asked[8:]] == [*[(0.7, 1)] * 4, (0.0, 3), (0.0, 1)]
    assert (more["eval/short"], more["eval/length"]) == (0.5, 6.5)
    error = np.std([1, 0.5, 0.5, 0], ddof=1) / 2  # of prompts, whose completions are alike
    assert more["eval/short_se"] == pytest.approx(error)
    assert [(row["prompt"], row["short"]) for row in samples] == [
        *zip("abcd", (1, 1, 1, 0), strict=True)
    ]
    short_ones = lambda completion_ids, **_: [  # noqa: E731
        float(len(ids) < 6) if len(ids) % 2 else None for ids in completion_ids
    ]
    with pytest.raises(UserError, match="--eval-prompts 4: never applies to 0 of them"):
        evaluate(
            *given, {"never": lambda completions, **_: [None] * len(completions)}, 1, "exact", args
        )
    some, _ = evaluate(*given, {"short": short_ones}, 6.5, "exact", args)
    assert some["eval/short"] == 0.25  # where it applies: 5 of 5, 7, 9, 11


def test_rewards_see_the_tags_of_thoughts_and_no_other_special_token():
    encoder = tokenizer()
    added = [AddedToken(tag, special=True) for tag in ("<think>", "</think>", "[/THINK]", "<turn>")]
    encoder.add_tokens(added)
    text = "<turn><think>so</think>\\boxed{ 5}[/THINK]<eos><pad>"
    (seen,) = as_texts(encoder, [encoder(text)["input_ids"]])
    assert seen.replace(" ", "") == "<think>so</think>\\boxed{5}[/THINK]"


def test_conciseness_has_a_yardstick_that_stays_and_a_threshold_of_the_past(tmp_path, monkeypatch):
    yardsticks = []

    def recorded(*given):
        yardsticks.append(given[4])
        return evaluate(*given)

    monkeypatch.setattr("common.run.evaluate", recorded)
    rows = train("linear", tmp_path / "run", steps=4, lr=1e-3, eval_split="tune", max_new_tokens=32)
    assert yardsticks == [None, *[rows[0]["eval/length"]] * 2]
    lengths = [row["length/mean"] for row in rows[1:]]
    past = [lengths[0], *(np.mean(lengths[:n]) for n in (1, 2, 3))]  # before the first: its own
    assert [row["length/threshold"] for row in rows[1:]] == pytest.approx(past, rel=1e-6)
    shown = {row["prompt"] for row in read_lines(tmp_path / "run/completions.jsonl")}
    assert shown < set(problems("tune")["prompt"])


# --- the update ---


def test_one_objective_is_plain_reinforce(tmp_path):
    """One on-policy step on one reward against REINFORCE written down: -mean_t A log pi."""
    train(
        "linear", tmp_path / "run", steps=1, mini_batches=1, kl_coef=0, rewards=ACCURACY, prompts=8
    )
    encoder, policy = load_tokenizer(TESTBED), load_model(TESTBED, CPU, False, torch.float32)
    prompts = load(RunFlags(), encoder, {}, "exact")["train"].batch(1, 8, 1)
    engine = TransformersEngine(None, {1}, 0, CPU)
    engine.sync(policy, 0)
    ids, _ = engine.generate(prompts.ids, 4, 56, 1.0, [derive(1, 1, i) for i in range(8)])
    batch = pad(prompts.repeat(4).ids, ids, 0)
    texts = encoder.batch_decode(ids, skip_special_tokens=True)
    answers = prompts.repeat(4).columns["answer"]
    correct = [t.endswith(f"\\boxed{{{a}}}") for t, a in zip(texts, answers, strict=True)]
    per_token = torch.tensor(correct).float()[:, None].expand_as(batch.mask)
    kept = per_token[batch.mask == 1]
    advantage = (per_token - kept.mean()) / kept.std()
    (-(advantage * token_logprobs(policy, batch, 1.0))[batch.mask == 1].mean()).backward()
    torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
    torch.optim.AdamW(policy.parameters(), lr=1e-4, weight_decay=0.01).step()
    end = weights_of(tmp_path / "run/model")
    for name, parameter in policy.named_parameters():
        torch.testing.assert_close(end[name], parameter.detach(), rtol=0, atol=2e-6)
        assert (end[name] - START[name]).abs().max() > 5e-5  # far larger than the tolerance


@pytest.mark.parametrize("name", ["linear", "mgda"])
def test_micro_batches_change_nothing(name, trained):
    whole, cut = (trained(name, steps=2, micro_batch_tokens=size, **QUICK) for size in (10**6, 100))
    for one, other in zip(*map(read_metrics, (whole, cut)), strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-4)
    one, other = weights_of(whole / "model"), weights_of(cut / "model")
    assert all(torch.allclose(one[key], other[key], rtol=0, atol=1e-5) for key in one)


def test_a_loss_is_a_mean_over_the_tokens_of_its_mini_batch(tmp_path):
    """A policy that does not move has ratios of 1, and a loss known from what is logged."""
    flags = {"lr": 0.0, "estimator": "grpo", "steps": 1, "max_new_tokens": 32, "eval_prompts": 2}
    row = train("linear", tmp_path / "run", **flags)[1]
    (line,) = read_lines(tmp_path / "run/statistics.jsonl")
    age, lengths, advantages = (np.array(line[key]) for key in ("age", "lengths", "advantages"))
    losses = [-np.average(advantages[age == n], weights=lengths[age == n]) for n in (0, 1)]
    assert abs(np.mean(losses)) > 1e-2
    assert row["loss/policy"] == pytest.approx(np.mean(losses), rel=1e-3)


def test_gradients_are_clipped_to_the_norm_and_their_own_is_told():
    parameter = torch.nn.Parameter(torch.zeros(2))
    for raw, after in (([3.0, 4.0], [0.6, 0.8]), ([0.3, 0.4], [0.3, 0.4])):
        parameter.grad = torch.tensor(raw)
        assert clip_gradients([parameter], 1.0) == pytest.approx(np.linalg.norm(raw))
        torch.testing.assert_close(parameter.grad, torch.tensor(after))


@pytest.mark.parametrize("name", ["linear", "mgda"])  # with one gradient, and one per objective
def test_the_norm_of_a_flag_clips_in_the_loop(name, tmp_path):
    """AdamW's steps do not depend on a gradient's scale, until it is as small as its epsilon."""
    flags = {"max_grad_norm": 1e-11, "weight_decay": 0.0, "steps": 1, "rewards": ACCURACY}
    row = train(name, tmp_path / "run", **flags)[1]
    assert row["grad/norm"] > 1e-2
    end = weights_of(tmp_path / "run/model")
    assert 0 < max((end[key] - START[key]).abs().max() for key in START) < 1e-5  # of 1e-4


@pytest.mark.parametrize("name", ["linear", "mgda"])
def test_gradients_take_no_memory_while_sampling(name, tmp_path, monkeypatch):
    sync, seen = Run.sync, []

    def recorded(run, *rest):
        seen.append([parameter.grad for parameter in run.policy.parameters()])
        sync(run, *rest)

    monkeypatch.setattr(Run, "sync", recorded)
    train(name, tmp_path / "run", steps=1, **QUICK)
    assert seen == [[None] * len(START)]


@pytest.mark.parametrize("name", ["linear", "mgda"])
def test_the_kl_term_holds_the_policy_near_its_start(name, tmp_path):
    flags = QUICK | {"lr": 1e-3, "steps": 5, "max_new_tokens": 32}
    free, held = (
        train(name, tmp_path / str(b), kl_coef=b, **flags)[-1]["loss/kl"] for b in (1e-6, 3.0)
    )
    assert 0 <= held < 0.5 * free
    assert train(name, tmp_path / "none", kl_coef=0.0, steps=1, **QUICK)[1]["loss/kl"] is None


def test_kl_is_taken_to_the_reference(tmp_path, monkeypatch):
    """A reference that is another model: the divergence is there before the policy has moved."""

    def load(model, *rest, frozen=False, **options):
        model = str(base_path("robust")) if frozen else model
        return load_model(model, *rest, frozen=frozen, **options)

    flags = QUICK | {"steps": 1, "mini_batches": 1}
    own = train("linear", tmp_path / "own", **flags)[1]["loss/kl"]
    monkeypatch.setattr("common.run.load_model", load)
    other = train("linear", tmp_path / "other", **flags)[1]["loss/kl"]
    assert own < 1e-6 < 3e-4 < other


def test_the_update_is_at_the_sampling_temperature(tmp_path):
    """So that a policy that has not moved has ratio 1, and the sampler's log-probabilities."""
    rows = train("linear", tmp_path / "run", steps=2, temperature=0.7, mini_batches=1, **QUICK)
    drifts = [line["drift"] for line in read_lines(tmp_path / "run/statistics.jsonl")]
    assert np.abs(drifts).max() < 1e-4
    assert all(row["sampler/gap"] < 1e-5 for row in rows[1:])


def test_weight_decay_is_a_share_of_the_weights(tmp_path):
    for decay in (0.0, 20.0):
        flags = QUICK | {"steps": 1, "mini_batches": 1, "lr": 1e-3}
        train("linear", tmp_path / str(decay), weight_decay=decay, **flags)
    plain, decayed = (weights_of(tmp_path / decay / "model") for decay in ("0.0", "20.0"))
    for key, value in START.items():
        torch.testing.assert_close(decayed[key], plain[key] - 0.02 * value, rtol=0, atol=1e-6)


def test_the_learning_rate_rises_and_falls_as_its_flags_say(tmp_path):
    flags = QUICK | {"lr_schedule": "linear", "warmup": 2, "steps": 4}
    rows = train("linear", tmp_path / "run", lr=1e-3, **flags)
    assert [row["lr"] for row in rows[1:]] == pytest.approx([0.5e-3, 0.75e-3, 0.5e-3, 0.25e-3])
    train("linear", tmp_path / "still", **flags | {"warmup": 10**9, "weight_decay": 0.0})
    end = weights_of(tmp_path / "still/model")
    assert max((end[key] - START[key]).abs().max() for key in START) < 1e-8


@given(st.floats(1e-6, 1), st.floats(1e-6, 10), st.floats(1e-8, 1))
def test_a_step_that_was_too_long_is_shortened_and_one_too_short_may_grow(scale, nats, desired_kl):
    """A step's divergence goes with the square of its rate: the next one has the desired one."""
    found = next_scale(scale, nats, desired_kl)
    aim = scale * (desired_kl / (nats**2 / 2)) ** 0.5
    assert found <= 1
    if scale * 2 / 3 < aim < min(scale * 5 / 4, 1):
        assert found == pytest.approx(aim)
    else:
        assert found == pytest.approx(min(max(aim, scale * 2 / 3), scale * 5 / 4, 1))
    assert next_scale(scale, nan, desired_kl) == next_scale(scale, 0.0, desired_kl) == scale


@pytest.mark.parametrize("name", ["linear", "mgda"])
def test_the_rate_of_a_step_is_what_the_one_before_asks_for(name, tmp_path):
    """The first is a tenth of --lr; the length that was asked for is reached, whatever --lr is."""
    flags = {"lr": 3e-2, "desired_kl": 2e-3, "prompts": 8, "completions": 8, "max_new_tokens": 40}
    rows = train(name, tmp_path / "run", steps=16, eval_every=99, **flags)[1:]
    scale = 0.1
    for row in rows:
        assert row["lr"] == pytest.approx(3e-2 * scale)
        scale = next_scale(scale, row["law/nats"], 2e-3)
    assert rows[-1]["lr"] < 3e-3
    assert 0.02 < np.median([row["law/nats"] for row in rows[-6:]]) < 0.2  # for .063


@pytest.mark.parametrize("estimator", ["grpo", "reinforce"])
def test_the_clips_are_those_of_the_flags_and_act_where_there_is_grpo(
    estimator, tmp_path, monkeypatch
):
    given, loss = [], linear.policy_loss
    recorded = lambda *args: (given.append(args[2:]), loss(*args))[1]  # noqa: E731
    monkeypatch.setattr(linear, "policy_loss", recorded)
    flags = {"clip_low": 0.01, "clip_high": 0.02, "dual_clip": 3.0, "epochs": 2, "lr": 3e-3}
    flags |= {"estimator": estimator, "steps": 1, "max_new_tokens": 40, "eval_prompts": 2}
    row = train("linear", tmp_path / "run", **flags)[1]
    clips = (0.01, 0.02, 3.0) if estimator == "grpo" else (inf, inf, 0.0)
    assert set(given) == {clips}
    assert (0 < row["clip/fraction"] < 1) == (estimator == "grpo")
    both = [[row[f"{key}/{o}"] for o in OBJECTIVES] for key in ("cov_active", "cov")]
    assert (both[0] == pytest.approx(both[1], abs=1e-6)) == (estimator == "reinforce")


def test_a_completion_that_ends_with_the_last_token_is_not_truncated(tmp_path):
    """`rush` takes 16 tokens, its stop token included; longer habits are cut off there."""
    flags = {"steps": 1, "max_new_tokens": 16, "prompts": 16, "completions": 8}
    row = train("linear", tmp_path / "run", **flags)[1]
    (line,) = read_lines(tmp_path / "run/statistics.jsonl")
    full = np.mean([length == 16 for length in line["lengths"]])
    assert 0.3 < row["length/truncated"] < full - 0.1


def test_seeds_decide_and_what_a_reward_draws_is_not_what_chose_the_tokens(tmp_path, monkeypatch):
    seeded, flags = [], QUICK | {"steps": 2, "epochs": 2}
    usual = train("linear", tmp_path / "usual", **flags)
    monkeypatch.setattr("common.run.reseed", lambda *path: seeded.append(derive(*path)))
    rows = train("linear", tmp_path / "run", seed=2, **flags)
    assert rows[0] == usual[0]
    assert rows[1] != usual[1]
    used = {derive(2, step, i) for step in (1, 2) for i in range(SMALL["prompts"] + 2)}
    assert len(set(seeded)) == 2
    assert not used & set(seeded)


# --- what is told and kept ---


def test_completions_of_training_are_kept_in_whole_prompts(trained):
    """At the first step, the evaluated ones and the last, beside the rewards that statistics.jsonl
    has in their rows. What is trained stays the same to the last bit."""
    some, none = (trained("linear", steps=4, eval_every=3, log_completions=n) for n in (5, 0))
    models = [(run / "model/model.safetensors").read_bytes() for run in (some, none)]
    assert models[0] == models[1]
    assert (none / "training_completions.jsonl").read_text() == ""
    kept = read_lines(some / "training_completions.jsonl")
    statistics = {line["step"]: line for line in read_lines(some / "statistics.jsonl")}
    places = [(row["step"], row["row"]) for row in kept]
    assert places == [(step, i) for step in (1, 3, 4) for i in range(8)]
    for (step, i), row in zip(places, kept, strict=True):
        assert [row[o] for o in OBJECTIVES] == pytest.approx(statistics[step]["rewards"][i])
    lengths = [statistics[step]["lengths"][i] for step, i in places]
    assert np.corrcoef([len(row["completion"]) for row in kept], lengths)[0, 1] > 0.9


def test_the_picture_is_drawn_at_every_evaluation(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr("common.run.draw", lambda run, out: drawn.append((len(run.rows), out.name)))
    train("linear", tmp_path / "run", picture=True, steps=4, max_new_tokens=8)
    assert drawn == [(rows, "curves.png") for rows in (1, 3, 5)]


@pytest.mark.parametrize("name", ["wandb", "trackio"])
def test_a_tracker_gets_every_step_once(name, tmp_path, monkeypatch):
    """Against a stand-in: the real ones want an account or a network."""
    calls, stand_in = [], ModuleType(name)

    def init(config: dict, project: str, name: str, **resumed) -> None:
        calls.append(("init", config["script"], resumed))
        (tmp_path / "run/wandb/offline-run-20260101_000000-abc").mkdir(parents=True, exist_ok=True)

    stand_in.init = init
    stand_in.log = lambda row, step: calls.append((step, row["eval/length" if not step else "lr"]))
    stand_in.finish = lambda: calls.append("finish")
    monkeypatch.setitem(sys.modules, name, stand_in)
    rows = train("linear", tmp_path / "run", track=name, **QUICK)
    logged = [(row["step"], row["lr"]) for row in rows[1:]]
    assert calls == [("init", "linear", {}), (0, rows[0]["eval/length"]), *logged, "finish"]
    calls.clear()
    resume(tmp_path / "run")
    assert calls == [("init", "linear", {"resume": "allow", "id": "abc"}), "finish"]

    def refuses(**given):
        raise RuntimeError("api_key not configured\nmore")

    stand_in.init = refuses
    with pytest.raises(
        UserError, match=f"--track {name} could not start .api_key not configured.: pip"
    ):
        train("linear", tmp_path / "other", track=name)


def test_tensorboard_has_the_metrics_of_every_step(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    rows = train("linear", tmp_path / "run", track="tensorboard", **QUICK)
    board = EventAccumulator(str(tmp_path / "run")).Reload()
    for key in ("reward/accuracy", "eval/length"):
        shown = {event.step: event.value for event in board.Scalars(key)}
        assert shown == pytest.approx({row["step"]: row[key] for row in rows if key in row})


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "trackio"])
def test_a_tracker_that_is_not_installed_is_one_line(name, tmp_path, monkeypatch):
    module = "torch.utils.tensorboard" if name == "tensorboard" else name
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        UserError, match=rf"^--track {name} could not start [^\n]*: pip install {name}"
    ):
        train("linear", tmp_path / "run", track=name)


@pytest.mark.parametrize(
    ("given", "size", "threads"), [(None, 10**7, 1), (None, 9, 2), ("2", 10**7, 2)]
)
def test_a_tiny_model_has_one_thread_unless_told_otherwise(
    given, size, threads, tmp_path, monkeypatch, capsys
):
    """size: parameters up to which a model is a tiny one. The first line says how many."""
    monkeypatch.setattr("common.run.SMALL", size)
    monkeypatch.delenv("OMP_NUM_THREADS")
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    set_to = [2]
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    monkeypatch.setattr(torch, "get_num_threads", lambda: set_to[-1])
    train("linear", tmp_path / "run", steps=1, **QUICK)
    told = f"{tmp_path / 'run'}: testbed on 1 x cpu, OMP_NUM_THREADS={threads}"
    assert capsys.readouterr().out.splitlines()[0] == told


@pytest.mark.parametrize(
    ("signals", "spreads", "told"),
    [
        ("99999999", (0.3, 0.3), []),
        ("99999999", (0.04, 0.3), ["step 5: a hardly varied"]),
        (
            "9990000000",
            (0.04, 0.04),
            ["step 5: a, b hardly varied", "step 8: for 5 steps no prompt's"],
        ),
        ("00009000", (0.3, 0.3), []),
    ],
)
def test_what_does_not_vary_is_told_once(signals, spreads, told, monkeypatch):
    """signals: of each step, the tenths of prompts whose completions differ."""
    said = []
    monkeypatch.setattr("common.ranks.say", said.append)
    run = SimpleNamespace(objectives=["a", "b"], flat=0)
    row = {f"reward_std/{name}": value for name, value in zip("ab", spreads, strict=True)}
    for step, signal in enumerate(signals, 1):
        Run._alarm(run, step, row | {"signal/a": int(signal), "signal/b": 0})
    assert [text[: len(start)] for text, start in zip(said, told, strict=True)] == told


# --- data and models of one's own ---


def test_a_users_rewards_prompts_and_answers_reach_a_run(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def short(completion_ids, **kwargs):\n"
        "    return [1 / len(ids) for ids in completion_ids]\n"
        "def even(answer, **kwargs):\n    return [int(a) % 2 for a in answer]\n"
    )
    rewards = tuple(f"{tmp_path / 'mine.py'}:{name}" for name in ("short", "even"))
    asked = problems("train")
    rows = [{"problem": p, "answer": a} for p, a in [*zip(*asked.values(), strict=True)][:40]]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = {"dataset": str(tmp_path / "mine.jsonl"), "rewards": (*rewards, *ACCURACY), "steps": 1}
    found = {}
    for check, suffix in (("exact", ""), ("boxed", "1.")):
        run = tmp_path / check
        found[check] = train("linear", run, prompt_suffix=suffix, answer_check=check, **flags)[1]
        shown = read_lines(run / "completions.jsonl")
        assert all(row["prompt"].endswith("=?\n" + suffix) for row in shown)
    row = found["exact"]
    assert row["cov/even"] == pytest.approx(0, abs=1e-7)  # the same within a prompt
    assert row["signal/even"] == 0 < row["signal/short"]
    assert row["reward/accuracy"] > 0


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_model_runs_where_the_flag_says_so_alone(trusted, tmp_path, monkeypatch):
    model, mark = tmp_path / "model", tmp_path / "ran"
    model.mkdir()
    for file in base_path("fragile").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tokenizer().save_pretrained(model)
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    config = json.loads((model / "config.json").read_text()) | {"auto_map": own}
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(
        "from pathlib import Path\nfrom transformers import LlamaConfig, LlamaForCausalLM\n"
        f"Path({str(mark)!r}).touch()\nclass OwnConfig(LlamaConfig):\n    pass\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    modules = "transformers.dynamic_module_utils.HF_MODULES_CACHE"
    monkeypatch.setattr(modules, str(tmp_path / "modules"))
    train("linear", tmp_path / "run", steps=1, model=str(model), trust_remote_code=trusted, **QUICK)
    assert mark.exists() == trusted

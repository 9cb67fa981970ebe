"""What the training loop and the evaluation make of their flags, each at a value that is not its default, told by what a run leaves."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch

from algos.gradnorm import FLOOR, gradnorm_step
from algos.hypervolume import extend, step_factor
from algos.mgda import min_norm_weights
from common.runs import load_run, load_statistics
from tools.command_line import parse
from common.evaluate import evaluate
from common.grads import clip_gradients
from common.model import load_model
from common.setup import Data
from prompts import Prompts
from support.running import NAMES, ROOT, policy_of, read_metrics, train, weights_of
from support.tensors import tensor
from testbed.arithmetic import base_path, problems, tokenizer

OBJECTIVES = ("accuracy", "conciseness", "clarity")


def statistics(folder: Path) -> list[dict]:
    return load_statistics(load_run(folder))


# --- evaluation ---


def test_evaluation_is_sampled_and_greedy_with_standard_errors():
    """Of an engine whose completions are known: lengths 2, 4, 6, 8 at the temperature, 3 under greedy decoding."""
    asked, thresholds = [], []

    def generate(prompts, completions, max_new_tokens, temperature, seeds):
        asked.append((temperature, len(prompts), seeds))
        lengths = [3] * len(prompts) if temperature == 0 else [2 * prompt[0] for prompt in prompts]
        return [[5] * (n - 1) + [1] for n in lengths], [[-1.0] * n for n in lengths]

    def short(completion_ids, mean_length, **columns):
        thresholds.append(mean_length)
        return [float(len(ids) < mean_length) for ids in completion_ids]

    engine = SimpleNamespace(share=(0, 1), version=0, generate=generate)
    prompts = Prompts([[1], [2], [3], [4]], {"prompt": list("abcd")})
    data = Data(tokenizer(), prompts, prompts, "exact")
    metrics, samples = evaluate(engine, data, {"short": short}, None, 3, 9, 0.7)
    assert [(temperature, size) for temperature, size, _ in asked] == [(0.7, 3), (0.7, 1), (0.0, 3), (0.0, 1)]
    assert len({seed for _, _, seeds in asked[:2] for seed in seeds}) == 4
    assert metrics["eval/length"] == 5
    assert metrics["eval/length_se"] == pytest.approx(np.std([2, 4, 6, 8], ddof=1) / 2)
    assert metrics["eval/short"] == 0.5  # shorter than the sampled ones' own mean
    assert metrics["eval/short_se"] == pytest.approx(np.std([1, 1, 0, 0], ddof=1) / 2)
    assert (metrics["eval/greedy/short"], metrics["eval/greedy/length"]) == (1, 3)
    assert (metrics["eval/greedy/short_se"], metrics["eval/greedy/length_se"]) == (0, 0)
    assert set(thresholds) == {5.0}
    assert [(row["prompt"], row["short"]) for row in samples] == [("a", 1), ("b", 1), ("c", 0), ("d", 0)]
    again, _ = evaluate(engine, data, {"short": short}, 7.0, 3, 9, 0.7)
    assert again["eval/short"] == 0.75  # a yardstick that is given stays
    assert asked[4:] == asked[:4]  # the same seeds each time


def test_conciseness_has_a_yardstick_that_stays_and_a_threshold_of_the_past(tmp_path, monkeypatch):
    yardsticks = []

    def recorded(*given, mean_length, **rest):
        yardsticks.append(mean_length)
        return evaluate(*given, mean_length=mean_length, **rest)

    monkeypatch.setattr("common.run.evaluate", recorded)
    rows = train("linear", tmp_path / "run", steps=4, lr=1e-3)
    assert yardsticks == [None, *[rows[0]["eval/length"]] * 2]
    lengths = [row["length/mean"] for row in rows[1:]]
    expected = [lengths[0], *(np.mean(lengths[:n]) for n in (1, 2, 3))]  # before the first batch there is nothing else
    assert [row["length/threshold"] for row in rows[1:]] == pytest.approx(expected, rel=1e-6)


def test_the_split_of_the_evaluation(tmp_path):
    for split in ("test", "tune"):
        train("linear", tmp_path / split, steps=1, eval_split=split)
        shown = [json.loads(line)["prompt"] for line in (tmp_path / split / "completions.jsonl").read_text().splitlines()]
        assert shown
        assert set(shown) <= set(problems(split, 2)["prompt"])


# --- the update ---


def test_gradients_are_clipped_to_the_norm_and_their_own_is_told():
    parameter = torch.nn.Parameter(torch.zeros(2))
    for given, limit, after in (([3.0, 4.0], 1.0, [0.6, 0.8]), ([0.3, 0.4], 1.0, [0.3, 0.4])):
        parameter.grad = torch.tensor(given)
        assert clip_gradients([parameter], limit) == pytest.approx(float(np.linalg.norm(given)))
        torch.testing.assert_close(parameter.grad, torch.tensor(after))


@pytest.mark.parametrize("name", ["linear", "mgda"])  # with one gradient, and with one of each objective
def test_the_kl_term_holds_the_policy_near_its_start(name, tmp_path):
    free, held = (train(name, tmp_path / str(beta), kl_coef=beta, lr=1e-3, steps=6)[-1]["loss/kl"] for beta in (1e-6, 3.0))
    assert 0 <= held < 0.5 * free


def test_kl_is_taken_to_the_reference(tmp_path, monkeypatch):
    """A reference that is another model: the divergence is there before the policy has moved."""

    def load(model, *rest, frozen=False, **options):
        return load_model("testbed:robust" if frozen else model, *rest, frozen=frozen, **options)

    monkeypatch.setattr("common.setup.load_model", load)
    assert train("linear", tmp_path / "other", steps=1, mini_batches=1)[1]["loss/kl"] > 3e-4
    monkeypatch.setattr("common.setup.load_model", load_model)
    assert train("linear", tmp_path / "own", steps=1, mini_batches=1)[1]["loss/kl"] < 1e-6


def test_the_update_is_at_the_sampling_temperature(tmp_path):
    """So that a policy that has not moved has the ratio 1, and the sampler's log-probabilities."""
    rows = train("linear", tmp_path / "run", steps=2, temperature=0.7, mini_batches=1)
    assert max(abs(drift) for line in statistics(tmp_path / "run") for drift in line["drift"]) < 1e-4
    assert all(row["sampler/gap"] < 1e-5 for row in rows[1:])


def test_weight_decay_is_a_share_of_the_weights(tmp_path):
    start = weights_of(base_path("fragile"))
    for decay in (0.0, 20.0):
        train("linear", tmp_path / str(decay), steps=1, mini_batches=1, weight_decay=decay, lr=1e-3)
    plain, decayed = (policy_of(tmp_path / decay / "checkpoints/step_000001") for decay in ("0.0", "20.0"))
    for key, value in start.items():
        torch.testing.assert_close(decayed[key], plain[key] - 1e-3 * 20.0 * value, rtol=0, atol=1e-6)


def test_each_clip_acts_on_its_own_side(tmp_path):
    """Rewards of a single good completion: few advantages are positive and large, so they, or all others, meet the clip."""
    flags = {"estimator": "grpo", "epochs": 4, "lr": 3e-3, "rewards": ("rewards.accuracy:accuracy",), "steps": 1}
    none = train("linear", tmp_path / "none", clip_low=1.0, clip_high=1e9, **flags)[1]
    high = train("linear", tmp_path / "high", clip_low=1.0, clip_high=0.01, **flags)[1]
    low = train("linear", tmp_path / "low", clip_low=0.01, clip_high=1e9, **flags)[1]
    assert none["clip/fraction"] == 0
    assert none["cov_active/accuracy"] == pytest.approx(none["cov/accuracy"], abs=1e-6)
    (line,) = statistics(tmp_path / "none")
    rewards, advantages = np.array(line["rewards"]).reshape(4, 4), np.array(line["advantages"]).reshape(4, 4)
    shares = {}
    for side, row in (("high", high), ("low", low)):
        assert row["clip/fraction"] > 0
        mine = advantages > 0 if side == "high" else advantages < 0
        others_kept = np.where(mine, 0, advantages)  # what would be left if each of this side's were clipped away
        centred = rewards - rewards.mean(1, keepdims=True)
        full, least = ((centred * (a - a.mean(1, keepdims=True))).mean() for a in (advantages, others_kept))
        assert least - 1e-6 <= row["cov_active/accuracy"] < full - 1e-4  # clipping this side takes from the covariance, down to that
        shares[side] = (full - row["cov_active/accuracy"]) / (full - least)
    assert all(0 < share <= 1 + 1e-6 for share in shares.values())


def test_a_completion_that_ends_with_the_last_token_is_not_truncated(tmp_path):
    """`rush` takes 16 tokens, its stop token included; longer habits are cut off there."""
    row = train("linear", tmp_path / "run", steps=1, max_new_tokens=16, prompts=16, completions=8)[1]
    (line,) = statistics(tmp_path / "run")
    full = np.mean([length == 16 for length in line["lengths"]])
    assert 0.3 < row["length/truncated"] < full - 0.1


# --- flags of the algorithms, by the weights they lead to ---


def test_ctwa_starts_and_moves_as_its_flags_say(tmp_path):
    flags = {"weights": (0.5, 0.3, 0.2), "weight_lr": 0.3, "ema_tau": 0.5, "cov_targets": (10.0, 10.0, 10.0)}
    rows = train("ctwa", tmp_path / "run", steps=3, **flags)[1:]
    log_weights, ema = tensor([0.5, 0.3, 0.2]).log(), None
    for row in rows:
        assert [row[f"weight/{o}"] for o in OBJECTIVES] == pytest.approx(log_weights.exp().tolist(), rel=1e-4)
        covariance = tensor([row[f"ctwa/cov/{o}"] for o in OBJECTIVES])
        ema = covariance if ema is None else 0.5 * ema + 0.5 * covariance
        log_weights = log_weights + 0.3 * (10.0 - ema)


def test_gradnorm_moves_as_its_flags_say(tmp_path):
    flags = {"alpha": 0.5, "reward_max": (1.5, 2.0, 1.0), "weight_lr": 0.2, "ema_tau": 0.6, "mini_batches": 1, "prompts": 8}
    rows = train("gradnorm", tmp_path / "run", steps=4, **flags)[1:]
    weights, ema, first = torch.ones(3, dtype=torch.float64), None, []
    for row in rows:
        assert [row[f"weight/{o}"] for o in OBJECTIVES] == pytest.approx((weights / 3).tolist(), rel=1e-4)
        mean = tensor([row[f"reward/{o}"] for o in OBJECTIVES])
        ema = mean if ema is None else 0.4 * ema + 0.6 * mean
        losses = (tensor([1.5, 2.0, 1.0]) - ema).clamp(min=FLOOR)
        first.append(losses)
        norms = tensor([row[f"gradnorm/grad_norm/{o}"] for o in OBJECTIVES])
        weights = gradnorm_step(weights, norms, losses, torch.stack(first).mean(0), 0.5, 0.2)
    assert max(abs(float(w) - 1) for w in weights) > 0.05


def test_famo_has_its_own_best_rewards_and_decays_its_logits(tmp_path):
    spreads = {}
    for gamma in (0.0, 100.0):
        rows = train("famo", tmp_path / str(gamma), steps=6, prompts=8, weight_lr=0.5, gamma=gamma, reward_max=(2.0, 1.5, 1.0))[1:]
        for row, best in ((row, best) for row in rows for best in zip(OBJECTIVES, (2.0, 1.5, 1.0), strict=True)):
            assert row[f"famo/gap/{best[0]}"] == pytest.approx(best[1] - row[f"reward/{best[0]}"] + 0.02, abs=1e-6)
        logits = np.log([[row[f"famo/z/{o}"] for o in OBJECTIVES] for row in rows])
        spreads[gamma] = np.ptp(logits[-1])
    assert spreads[0.0] > 1.5
    assert spreads[100.0] < 1.2  # it pulls back whatever Adam moved; away from 0 it would have driven them to 5


def test_the_front_of_hypervolume_is_kept(tmp_path):
    rows = train("hypervolume", tmp_path / "run", steps=5, lr=2e-3, prompts=8)[1:]
    means = [torch.tensor(line["rewards"], dtype=torch.float64).mean(0) for line in statistics(tmp_path / "run")]
    front = torch.zeros(0, 3, dtype=torch.float64)
    for row, mean in zip(rows, means, strict=True):
        gain, front = extend(front, mean, means[0])
        assert row["lr"] == pytest.approx(2e-3 * step_factor(gain), rel=1e-4)


def test_mgda_of_gradients_of_norm_1(tmp_path):
    rows = train("mgda", tmp_path / "run", normalize=True, mini_batches=1, steps=2, prompts=8)[1:]
    for row, line in zip(rows, statistics(tmp_path / "run"), strict=True):
        gram = torch.tensor(line["gram"][0], dtype=torch.float64)
        norms = gram.diagonal().sqrt()
        weights = min_norm_weights(gram / norms[:, None] / norms) / norms
        assert [row[f"weight/{o}"] for o in OBJECTIVES] == pytest.approx((weights / weights.sum()).tolist(), abs=1e-4)


# --- data and models of one's own ---


def test_the_suffix_and_the_answer_check_reach_a_run(tmp_path):
    problem = problems("train", 2)
    rows = [{"problem": p, "answer": a} for p, a in zip(problem["prompt"][:40], problem["answer"], strict=False)]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for check, suffix in (("exact", "1."), ("exact", ""), ("boxed", "")):
        flags = {"dataset": str(tmp_path / "mine.jsonl"), "prompt_suffix": suffix, "answer_check": check, "completions": 8}
        train("linear", tmp_path / f"{check}{suffix}", steps=1, **flags)
        shown = [json.loads(line) for line in (tmp_path / f"{check}{suffix}" / "completions.jsonl").read_text().splitlines()]
        assert all(row["prompt"].endswith("=?\n" + suffix) for row in shown)
    accuracy = {name: load_run(tmp_path / name).rows[1]["reward/accuracy"] for name in ("exact", "boxed")}
    assert accuracy["exact"] == accuracy["boxed"] > 0.2


@pytest.mark.parametrize("trusted", [False, True])
def test_code_of_a_model_runs_where_the_flag_says_so_alone(trusted, tmp_path, monkeypatch):
    model, mark = tmp_path / "model", tmp_path / "ran"
    model.mkdir()
    for file in base_path("fragile").iterdir():
        (model / file.name).write_bytes(file.read_bytes())
    tokenizer().save_pretrained(model)
    config = json.loads((model / "config.json").read_text())
    own = {"AutoConfig": "own.OwnConfig", "AutoModelForCausalLM": "own.OwnModel"}
    (model / "config.json").write_text(json.dumps(config | {"auto_map": own}))
    (model / "own.py").write_text(
        "from pathlib import Path\n\nfrom transformers import LlamaConfig, LlamaForCausalLM\n\n"
        f"Path({str(mark)!r}).touch()\n\n\nclass OwnConfig(LlamaConfig):\n    pass\n\n\n"
        "class OwnModel(LlamaForCausalLM):\n    config_class = OwnConfig\n"
    )
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    train("linear", tmp_path / "run", steps=1, model=str(model), trust_remote_code=trusted)
    assert mark.exists() == trusted


REMEMBER = [name for name in NAMES if "    state = {}\n" not in (ROOT / "algos" / f"{name}.py").read_text()]


@pytest.mark.parametrize(
    ("name", "flags"),
    [(name, {}) for name in REMEMBER]
    + [("tchebycheff", {"variant": "smooth"}), ("tchebycheff", {"variant": "classical"}), ("ratchet", {"warmup": 1})],
)
def test_what_is_remembered_between_steps_outlives_a_stop(name, flags, tmp_path):
    small = {"lr": 1e-3, "eval_prompts": 2}
    script = import_module(f"algos.{name}")
    whole = train(name, tmp_path / "whole", steps=4, **small, **flags)
    train(name, tmp_path / "cut", steps=2, **small, **flags)
    with patch("common.curves.draw"):
        script.main(parse(script.Args, name, ["--resume", str(tmp_path / "cut"), "--steps", "4"]))
    assert read_metrics(tmp_path / "cut") == whole
    # what is remembered itself, too: where it need not tell within four steps
    for file in ("model/model.safetensors", "checkpoints/step_000004/state.pt"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes(), file

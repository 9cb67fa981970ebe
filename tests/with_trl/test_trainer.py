"""multi_objective against real TRL, in the environment of requirements-trl.txt; the command is CONTRIBUTING's.

What a method did to a trainer is compared with the functions of its script in loops of their own, from what was seen outside of it. The
folder is not called trl, for then `import trl` would find it from the tests beside it.
"""

import copy
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import trl
from tiny import G, Seen, even, logged, logprobs, make, run, small, third
from transformers import TrainerCallback

import integrations.trl as methods
from integrations.trl import SettingsError, multi_objective
from integrations.trl.scripts import mathematics

ROOT = Path(__file__).resolve().parents[2]
TWO_UPDATES = {"steps_per_generation": 2, "max_steps": 6}


def test_to_import_the_integration_takes_none_of_the_scripts_needs():
    told = "import sys, integrations.trl; print(*sorted({name.split('.')[0] for name in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"tyro", "vllm", "common", "rewards", "tools", "algos"} & set(done.stdout.split())


def scaled(rewards, weights):
    """TRL's advantages: the weighted sum, centred and scaled within prompts."""
    groups = (rewards * weights).nansum(1).view(-1, G)
    return ((groups - groups.mean(1, keepdim=True)) / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def ctwa_weights(seen):
    script, log_weights, ema = mathematics("ctwa"), torch.tensor([0.5, 0.5]).log().double(), None
    for rewards, advantages in zip(seen.rewards, seen.before, strict=True):
        yield log_weights.softmax(0)
        covariance = script.within_prompt_covariance(advantages, rewards, G)
        log_weights, ema = script.update_log_weights(log_weights, ema, covariance, torch.tensor([0.15, 0.08]).double(), 1.0, 0.1)


def lagrangian_weights(seen):
    script, multipliers = mathematics("lagrangian"), torch.tensor([0.2]).double()
    for rewards in seen.rewards:
        multipliers = script.dual_step(multipliers, rewards.mean(0)[:1], torch.tensor([0.9]).double(), 0.5).clamp(max=0.9)
        yield script.lagrangian_weights(multipliers, 1)


def tchebycheff_weights(seen, smooth):
    script, share = mathematics("tchebycheff"), torch.tensor([0.25, 0.75]).double()
    log_weights, ideal, ema = share.log(), torch.full((2,), -torch.inf).double(), None
    for rewards in seen.rewards:
        mean, ideal = rewards.mean(0), torch.maximum(ideal, rewards.amax(0))
        ema = mean if ema is None else 0.7 * ema + 0.3 * mean
        yield script.smooth_weights(ema, share, ideal, 0.05) if smooth else log_weights.softmax(0)
        log_weights = script.mirror_descent_step(log_weights, share, mean, ideal, 1.0).log_softmax(0)
        log_weights = log_weights.clamp(min=log_weights.max() - torch.tensor(20.0).log())


WEIGHTS = {
    "Linear": (methods.Linear((1, 3)), lambda seen: (torch.tensor([0.25, 0.75]) for _ in seen.rewards)),
    "CTWA": (methods.CTWA(), ctwa_weights),
    "Lagrangian": (methods.Lagrangian("even", dual_lr=0.5, multipliers=(0.2,), max_multiplier=0.9), lagrangian_weights),
    "MirrorDescent": (methods.MirrorDescent((1, 3)), lambda seen: tchebycheff_weights(seen, False)),
    "SmoothTchebycheff": (methods.SmoothTchebycheff((1, 3)), lambda seen: tchebycheff_weights(seen, True)),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_weights_are_the_scripts_and_are_what_trl_sums_with(name, tmp_path):
    method, loop = WEIGHTS[name]
    trainer, seen = run(tmp_path, copy.deepcopy(method))
    wanted = torch.stack([weights.double() for weights in loop(seen)])
    assert len(wanted) == 3
    torch.testing.assert_close(torch.tensor(logged(trainer, "weight")).double(), wanted, rtol=1e-5, atol=1e-6)
    for rewards, weights, advantages, used in zip(seen.rewards, wanted, seen.before, seen.advantages, strict=True):
        torch.testing.assert_close(advantages, scaled(rewards, weights), rtol=1e-3, atol=2e-3)
        assert torch.equal(used, advantages)
    covariances = [mathematics("linear").within_prompt_covariance(a, r, G).tolist() for a, r in zip(seen.before, seen.rewards, strict=True)]
    torch.testing.assert_close(torch.tensor(logged(trainer, "cov")), torch.tensor(covariances), rtol=1e-4, atol=1e-5)


def each(script, rewards):
    return torch.stack([script.estimate_advantages(r, torch.zeros(len(r)), G, "grpo") for r in rewards.T], 1)


def summed(script, rewards, lengths, weights, estimator):
    return script.estimate_advantages(each(script, rewards) @ weights, lengths, G, estimator)


def pama(script, rewards, lengths):
    return script.pareto_scalar(each(script, rewards).clamp(min=0))


def gated(script, rewards, lengths):
    return script.estimate_advantages(script.gated_scores(rewards, HALF, 0.55), lengths, G, "grpo")


def rvpo(script, rewards, lengths):
    return script.estimate_advantages(script.soft_minimum(each(script, rewards), HALF, 2.0), lengths, G, "reinforce")


def sa_mrpo(script, rewards, lengths):
    weights = script.saturation_weights(HALF, rewards, torch.zeros(2), torch.ones(2), 1.0)
    return summed(script, rewards, lengths, weights, "reinforce")


def tchebycheff(script, rewards, lengths):
    """Of a first generation, whose own best is the ideal."""
    return script.estimate_advantages(script.tchebycheff(rewards, HALF, rewards.amax(0)), lengths, G, "grpo")


HALF = torch.tensor([0.5, 0.5]).double()
ADVANTAGES = {
    "PAMA": (methods.PAMA(), "pama", pama),
    "Gated": (methods.Gated(gate=0.55), "gated", gated),
    "RVPO": (methods.RVPO(kappa=2.0), "rvpo", rvpo),
    "GDPO": (methods.GDPO(), "gdpo", lambda script, rewards, lengths: summed(script, rewards, lengths, HALF, "reinforce")),
    "SAMRPO": (methods.SAMRPO(), "sa_mrpo", sa_mrpo),
    "Tchebycheff": (methods.Tchebycheff(), "tchebycheff", tchebycheff),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_are_the_scripts(name, tmp_path):
    method, script, wanted = ADVANTAGES[name]
    trainer, seen = run(tmp_path, copy.deepcopy(method), max_steps=1)
    out = seen.outputs[0]
    found = wanted(mathematics(script), seen.rewards[0], out["completion_mask"].sum(1).double())
    assert found.abs().max() > 0.1
    torch.testing.assert_close(seen.advantages[0], found, rtol=1e-5, atol=1e-6)
    assert not torch.allclose(seen.before[0], found, atol=0.05)  # TRL's own were others
    table = getattr(trainer, "_logs", None) or trainer._textual_logs
    assert list(table["advantages"]) == pytest.approx(found.tolist(), abs=1e-5)


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}, {"gradient_accumulation_steps": 2}])
def test_a_method_learns_once_per_generation(settings, tmp_path):
    trainer, seen = run(tmp_path, methods.CTWA(), **({"steps_per_generation": 2, "max_steps": 4} | settings))
    generations = {"num_iterations": 1, "gradient_accumulation_steps": 4}.get(next(iter(settings), ""), 2)
    assert len(seen.rewards) == len(logged(trainer, "weight")) == generations
    script, total = mathematics("ctwa"), torch.zeros(2).double()
    state = trainer._multi_objective.method.state
    ema = None
    for rewards, advantages in zip(seen.rewards, seen.before, strict=True):
        covariance = script.within_prompt_covariance(advantages, rewards, G)
        total, ema = script.update_log_weights(total, ema, covariance, torch.tensor([0.15, 0.08]).double(), 1.0, 0.1)
    torch.testing.assert_close(state["ema"], ema)
    torch.testing.assert_close(state["log_weights"] - torch.tensor(0.5).double().log(), total)


def reference(trainer, seen, moments):
    """Log-probabilities [B, T] of the last generation's completions, noted by the model itself at the beginning and after every update."""

    class Note(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            moments.append((len(seen.outputs), logprobs(trainer, seen.outputs[-1])))

    return Note()


def looked(folder, method, **settings):
    """Train with a method that looks at the updated policy; (trainer, seen, [(generation, log-probabilities)] after every update, those
    before the first update of every generation)."""
    trainer = make(folder, **settings)
    seen, after, before = Seen(trainer, method), [], []
    trainer.add_callback(reference(trainer, seen, after))
    generate = trainer._generate_and_score_completions

    def note(inputs):
        out = generate(inputs)
        before.append(logprobs(trainer, out))
        return out

    trainer._generate_and_score_completions = note
    trainer.train()
    return trainer, seen, after, before


@pytest.mark.parametrize("settings", [{}, TWO_UPDATES])
def test_ctwa_after_the_update_weighs_with_the_ratio(settings, tmp_path):
    trainer, seen, after, before = looked(tmp_path, methods.CTWA(after_update=True), epsilon=0.1, epsilon_high=0.3, **settings)
    script, found = mathematics("ctwa"), logged(trainer, "ctwa/cov")
    assert len(found) == len(before) == 3
    for number, (out, rewards, old) in enumerate(zip(seen.outputs, seen.rewards, before, strict=True), 1):
        last = [logps for generation, logps in after if generation == number][-1]
        ratio = (last - old).exp()
        assert (ratio - 1).abs().max() > 0.01
        mask = out["completion_mask"]
        weight = script.completion_weights(out["advantages"], ratio, mask, mask.sum(1), 0.1, 0.3)
        wanted = script.within_prompt_covariance(weight.double(), rewards, G)
        torch.testing.assert_close(torch.tensor(found[number - 1]).double(), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("settings", [{}, TWO_UPDATES])
def test_famo_learns_from_the_gaps_before_and_after(settings, tmp_path):
    trainer, seen, after, before = looked(tmp_path, methods.FAMO(), **settings)
    script, weights, found = mathematics("famo"), logged(trainer, "weight"), logged(trainer, "famo/improvement")
    assert len(found) == len(weights) == 3
    logits, m, v, t = *torch.zeros(3, 2, dtype=torch.float64), 0
    for number, (out, rewards, old) in enumerate(zip(seen.outputs, seen.rewards, before, strict=True), 1):
        last = [logps for generation, logps in after if generation == number][-1]
        nats = ((last - old) * out["completion_mask"]).sum(1).double()
        gaps, left = 1.02 - rewards.mean(0), 1.02 - script.reweighted_rewards(rewards, nats, G)
        torch.testing.assert_close(torch.tensor(weights[number - 1]).double(), script.famo_weights(logits, gaps), rtol=1e-4, atol=1e-5)
        improvement = gaps.log() - left.log()
        assert improvement.abs().max() > 1e-3
        torch.testing.assert_close(torch.tensor(found[number - 1]).double(), improvement, rtol=1e-3, atol=1e-4)
        logits, m, v, t = script.adam_step(logits, script.famo_direction(logits, gaps, left) + 1e-5 * logits, m, v, t, 0.025)


@pytest.mark.parametrize("settings", [TWO_UPDATES, {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 6}])
def test_ratchet_measures_the_completions_not_trained_on_yet(settings, tmp_path):
    trainer, seen, after, before = looked(tmp_path, methods.Ratchet(), **settings)
    script, found = mathematics("ratchet"), [logged(trainer, f"ratchet/{name}") for name in ("change", "alignment")]
    assert len(found[0]) == len(seen.outputs) == 3
    weights = logged(trainer, "weight")
    drawdown, multipliers = torch.zeros(2, 2).double()
    for number, (out, rewards, old) in enumerate(zip(seen.outputs, seen.rewards, before, strict=True), 1):
        expected = summed(script, rewards, torch.zeros(len(rewards)), 1 + multipliers, "grpo")
        torch.testing.assert_close(seen.advantages[number - 1], expected, rtol=1e-4, atol=1e-5)
        assert weights[number - 1] == pytest.approx((1 + multipliers).tolist(), abs=1e-5)
        first = next(logps for generation, logps in after if generation == number)
        nats = ((first - old) * out["completion_mask"]).sum(1).double() * 2  # updates
        fresh = second_half(trainer, seen, number)
        assert fresh.sum() == len(rewards) / 2
        change, alignment = [], []
        for k in range(2):
            scatter, freedom = torch.zeros(2, 2).double(), 0
            for prompt, have in enumerate(fresh.view(-1, G)):
                rows = have.nonzero().flatten() + prompt * G
                if len(rows) > 1:
                    pair = torch.stack([nats[rows].exp(), rewards[rows, k]])
                    centred = pair - pair.mean(1, keepdim=True)
                    scatter, freedom = scatter + centred @ centred.T, freedom + len(rows) - 1
            pooled = scatter / freedom
            change.append((pooled[0, 1] / pooled[1, 1].sqrt().clamp(min=1e-6)).item())
            alignment.append((pooled[0, 1] / (pooled[0, 0] * pooled[1, 1]).sqrt()).item())
        assert found[0][number - 1] == pytest.approx(change, rel=1e-2, abs=1e-3)
        assert found[1][number - 1] == pytest.approx(alignment, rel=1e-2, abs=1e-3)
        drawdown = script.update_drawdown(drawdown, torch.tensor(found[0][number - 1]).double(), 0.7).clamp(max=7 / 35)
        multipliers = script.multipliers(drawdown, torch.tensor(found[1][number - 1]).double(), 35.0, 4.0, 7.0)
    assert weights[-1] != [1.0, 1.0]


def second_half(trainer, seen, number):
    """Which rows of a generation the later half of the passes trained on, by their tokens. bool [B]."""
    out = seen.outputs[number - 1]
    later = seen.trained[number - 1][len(seen.trained[number - 1]) // 2 :]
    rows = {tuple(ids) for inputs in later for ids in torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], 1).tolist()}
    everything = torch.cat([out["prompt_ids"], out["completion_ids"]], 1).tolist()
    return torch.tensor([tuple(ids) in rows for ids in everything])


@pytest.mark.parametrize("method", [methods.CTWA, methods.MirrorDescent, methods.FAMO, methods.Ratchet])
def test_evaluation_leaves_the_method_alone(method, tmp_path):
    trainer = make(tmp_path, eval_prompts=2, per_device_eval_batch_size=8, **TWO_UPDATES)
    multi_objective(trainer, method())
    trainer.train()
    session, weights = trainer._multi_objective, trainer.reward_weights.clone()
    before = json.dumps(session.save()), session.passes, session.updates, dict(trainer._metrics["train"])
    assert "eval_loss" in trainer.evaluate()
    assert (json.dumps(session.save()), session.passes, session.updates, dict(trainer._metrics["train"])) == before
    assert torch.equal(trainer.reward_weights, weights)


def test_an_evaluation_amid_a_generation_changes_nothing_that_is_looked_at(tmp_path):
    """Its completions have losses, too, which must not be taken for those of training."""
    trainer = make(tmp_path, eval_prompts=2, per_device_eval_batch_size=8, eval_strategy="steps", eval_steps=1, **TWO_UPDATES)
    multi_objective(trainer, methods.Ratchet())
    ages = []
    updated = trainer._multi_objective.method.updated
    trainer._multi_objective.method.updated = lambda generation, measured, age, updates: (
        ages.append((age.tolist(), updates)),
        updated(generation, measured, age, updates),
    )
    trainer.train()
    assert [updates for _, updates in ages] == [2, 2, 2]
    assert all(sorted(age) == [0.0] * 8 + [1.0] * 8 for age, _ in ages)


def test_rows_without_a_reward_are_masked(tmp_path):
    rewards = small, third
    trainer, seen = run(tmp_path, methods.CTWA(), rewards, max_steps=2)
    script, found = mathematics("ctwa"), logged(trainer, "ctwa/cov", rewards)
    assert len(found) == 2
    for line, values, advantages in zip(found, seen.rewards, seen.before, strict=True):
        missing = values[:, 1].isnan()
        assert 0 < missing.sum() < len(missing)
        whole = script.within_prompt_covariance(advantages, values[:, :1], G)
        assert line[0] == pytest.approx(whole.item(), abs=1e-5)
        parts = []
        for a, r in zip(advantages.view(-1, G), values[:, 1].view(-1, G), strict=True):
            have = ~r.isnan()
            if have.sum() > 1:
                parts.append(((a[have] - a[have].mean()) * (r[have] - r[have].mean())).mean().item())
        assert line[1] == pytest.approx(sum(parts) / len(parts), abs=1e-5)


def same(one, other):
    mine, its = one._multi_objective.save(), other._multi_objective.save()
    assert mine == its
    for (name, a), b in zip(one.model.named_parameters(), other.model.parameters(), strict=True):
        assert torch.equal(a, b), name


RESUMED = [methods.CTWA, methods.MirrorDescent, methods.FAMO, methods.Ratchet]


@pytest.mark.parametrize("method", RESUMED)
def test_a_resumed_run_is_the_run_that_was_not_stopped(method, tmp_path):
    settings = {"steps_per_generation": 2, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}
    whole, _ = run(tmp_path, method(), **settings)
    stopped = make(tmp_path, **settings)
    multi_objective(stopped, method())
    stopped.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    same(whole, stopped)
    saved = json.loads((tmp_path / "checkpoint-2/trainer_state.json").read_text())["stateful_callbacks"]["MultiObjective"]
    assert saved["attributes"]["saved"] != whole._multi_objective.save()  # it had gone on


def test_a_checkpoint_amid_a_generation_drops_what_was_seen_of_its_updates(tmp_path):
    """TRL samples a new generation there, whose updates are looked at like any other's."""
    settings = TWO_UPDATES | {"save_strategy": "steps", "save_steps": 3}
    run(tmp_path, methods.Ratchet(), **settings)
    stopped = make(tmp_path, **settings)
    multi_objective(stopped, methods.Ratchet())
    stopped.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    steps = [line["step"] for line in stopped.state.log_history if "ratchet/change/even" in line]
    assert steps == [2, 5]


def test_transformers_may_restore_the_callback_itself(tmp_path):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "restore_callback_states_from_checkpoint": True}
    whole, _ = run(tmp_path, methods.CTWA(), **settings)
    stopped = make(tmp_path, **settings)
    multi_objective(stopped, methods.CTWA())
    stopped.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    same(whole, stopped)


def test_a_checkpoint_of_another_method_or_of_none(tmp_path, caplog):
    settings = {"max_steps": 2, "save_strategy": "steps", "save_steps": 1}
    run(tmp_path / "ctwa", methods.CTWA(), **settings)
    other = make(tmp_path / "ctwa", **settings)
    multi_objective(other, methods.MirrorDescent())
    with pytest.raises(SettingsError, match="the checkpoint is of CTWA on small, even, this trainer has MirrorDescent on small, even"):
        other.train(resume_from_checkpoint=str(tmp_path / "ctwa/checkpoint-1"))
    make(tmp_path / "none", **settings).train()
    late = make(tmp_path / "none", **settings)
    multi_objective(late, methods.CTWA())
    late.train(resume_from_checkpoint=str(tmp_path / "none/checkpoint-1"))
    assert "has no state of multi_objective" in caplog.text
    assert (tmp_path / "none/checkpoint-2/trainer_state.json").read_text().count("MultiObjective") == 1


def small_too(completion_ids, **kwargs):
    return small(completion_ids)


small_too.__name__ = "small"
NEW = hasattr(trl.GRPOConfig, "multi_objective_aggregation")
ERRORS = [
    ({"rewards": (small,)}, methods.CTWA, "reward_funcs has one function, small: there is nothing to weigh"),
    ({"rewards": (small, small_too)}, methods.CTWA, "reward_funcs has two functions named small"),
    ({"reward_weights": [1.0, 2.0]}, methods.CTWA, r"GRPOConfig\(reward_weights=\[1.0, 2.0\]\) would be overwritten"),
    ({"scale_rewards": False}, methods.CTWA, r"GRPOConfig\(scale_rewards=.*\) does not go with CTWA.* or 'batch'"),
    ({"scale_rewards": False}, methods.PAMA, r"GRPOConfig\(scale_rewards=.*\) does not go with PAMA.*old TRL\)$"),
    ({}, methods.Ratchet, "Ratchet judges an update by completions it was not trained on: set steps_per_generation to 2 or more, it is 1"),
    ({"gradient_accumulation_steps": 2, "steps_per_generation": 1}, methods.FAMO, "must be a multiple of gradient_accumulation_steps=2"),
]


@pytest.mark.parametrize(("settings", "method", "message"), ERRORS)
def test_settings_that_contradict_a_method_are_named(settings, method, message, tmp_path):
    trainer = make(tmp_path, **settings)
    with pytest.raises(SettingsError, match=message) as caught:
        multi_objective(trainer, method())
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(not NEW, reason="this TRL does not have the setting")
def test_another_aggregation_is_refused(tmp_path):
    trainer = make(tmp_path, multi_objective_aggregation="normalize_then_sum")
    with pytest.raises(SettingsError, match="multi_objective_aggregation='normalize_then_sum'"):
        multi_objective(trainer, methods.CTWA())


def test_scale_rewards_none_goes_with_what_reads_no_advantages(tmp_path):
    run(tmp_path, methods.Lagrangian(), scale_rewards=False, max_steps=1)


def test_what_is_no_grpo_trainer_or_has_a_method_is_refused(tmp_path, monkeypatch):
    trainer = make(tmp_path)
    with pytest.raises(SettingsError, match=r"needs a method such as CTWA\(\).*call the class"):
        multi_objective(trainer, methods.CTWA)
    multi_objective(trainer, methods.CTWA())
    with pytest.raises(SettingsError, match="has a method already"):
        multi_objective(trainer, methods.PAMA())
    with pytest.raises(SettingsError, match=r"needs a trl\.GRPOTrainer, got a object"):
        multi_objective(object(), methods.CTWA())
    other = make(tmp_path)
    monkeypatch.setattr(trl.GRPOTrainer, "_calculate_rewards", lambda self, batch: None)
    with pytest.raises(SettingsError, match=r"wraps _calculate_rewards\(inputs, .*\), which takes \(batch\) there"):
        multi_objective(other, methods.CTWA())
    monkeypatch.delattr(trl.GRPOTrainer, "_calculate_rewards")
    with pytest.raises(SettingsError, match="which has no such method"):
        multi_objective(other, methods.CTWA())
    monkeypatch.setattr(trl, "__version__", "0.18.2")
    with pytest.raises(SettingsError, match=r"needs TRL 0\.19\.1 or newer, this is 0\.18\.2"):
        multi_objective(other, methods.CTWA())


def test_a_trainer_that_scores_otherwise_is_told(tmp_path):
    trainer = make(tmp_path, (small, even))
    calculate = trainer._calculate_rewards
    trainer._calculate_rewards = lambda inputs, prompts, completions, completion_ids_list: calculate(
        inputs, prompts, completions, completion_ids_list
    )[:4]
    multi_objective(trainer, methods.CTWA())
    with pytest.raises(SettingsError, match="4 rewards for 8 completions of groups of 4"):
        trainer.train()

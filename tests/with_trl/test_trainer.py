"""multi_objective against real TRL, in the environment of requirements-trl.txt; the command is
CONTRIBUTING's.

What a method did to a trainer is compared with its controller alone, driven by what was seen of the
trainer from outside. The folder is not called trl, for then `import trl` would find it.
"""

import json

import pytest
import torch
import trl
from tiny import G, Seen, even, logged, make, run, small, third

import integrations.trl as methods
from integrations.trl import SettingsError, multi_objective
from integrations.trl.scripts import load

TWO_UPDATES = {"steps_per_generation": 2, "max_steps": 6}
FOUR_PASSES = {"steps_per_generation": 4, "gradient_accumulation_steps": 2, "max_steps": 6}
TWICE = TWO_UPDATES | {"num_iterations": 2, "max_steps": 12}
LOOKS = [(methods.CTWA, {"after_update": True}), (methods.FAMO, {}), (methods.Ratchet, {})]


def scaled(rewards, weights):
    """TRL's advantages: the weighted sum, centred and scaled within prompts."""
    groups = (rewards * weights).nansum(1).view(-1, G)
    centred = groups - groups.mean(1, keepdim=True)
    return (centred / (groups.std(1, keepdim=True) + 1e-4)).flatten()


def close(found, wanted, tolerance=1e-4):
    torch.testing.assert_close(found, wanted, rtol=tolerance, atol=tolerance)


METHODS = [
    methods.Linear(weights=(1, 3)),
    methods.CTWA(),
    methods.Lagrangian(primary="even", dual_lr=0.5, multipliers=(0.2,), max_multiplier=0.9),
    methods.MirrorDescent(preference=(1, 3)),
    methods.SmoothTchebycheff(preference=(1, 3)),
    *(
        getattr(methods, name)()
        for name in ("Tchebycheff", "PAMA", "RVPO", "GDPO", "GD2PO", "DVAO", "SAMRPO")
    ),
    methods.Gated(gate=0.55),
]


@pytest.mark.parametrize("rewards", [(small, even), (small, third)])
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_trl_trains_with_what_the_controller_says(method, rewards, tmp_path):
    """Also where a reward does not apply to some completions."""
    names = [reward.__name__ for reward in rewards]
    if names[1] == "third" and method.settings.get("primary"):
        pytest.skip("its primary is not there")
    trainer, seen = run(tmp_path, method, rewards)
    alone, shown = method.start(names), logged(trainer, "weight", names)
    assert len(seen.outputs) == len(shown) == 3
    batches = zip(seen.rewards, seen.before, seen.outputs, shown, strict=True)
    for scores, before, out, row in batches:
        advantages, lengths = out["advantages"], out["completion_mask"].sum(1)
        if hasattr(alone, "weights"):
            weights = alone.weights(scores)
            assert torch.equal(before, advantages)
            close(before, scaled(scores, weights), 2e-3)
            close(torch.tensor(row), weights / weights.sum())
            if hasattr(alone, "learn"):
                alone.learn(scores, before, G)
        else:
            wanted, weights = alone.advantages(scores, lengths, G, "grpo")
            close(advantages, wanted.nan_to_num(0.0))
            assert not torch.allclose(before, advantages, atol=0.05)  # TRL's own were others
            close(torch.tensor(row), weights)
    table = getattr(trainer, "_logs", None) or trainer._textual_logs
    close(torch.tensor(list(table["advantages"])), advantages)
    covariance = load("common/controllers").within_prompt_covariance(advantages, scores, G)
    close(torch.tensor(logged(trainer, "cov", names)[-1]), covariance)
    assert names[1] != "third" or scores.isnan().any()


@pytest.mark.parametrize("settings", [{}, {"num_iterations": 2}, FOUR_PASSES])
def test_a_method_learns_once_per_generation(settings, tmp_path):
    settings = TWO_UPDATES | {"max_steps": 4} | settings
    trainer, seen = run(tmp_path, methods.CTWA(), **settings)
    alone = methods.CTWA().start(["small", "even"])
    generations = 3 if "gradient_accumulation_steps" in settings else 2
    generations = 1 if "num_iterations" in settings else generations
    assert len(seen.rewards) == len(logged(trainer, "weight")) == generations
    for rewards, advantages in zip(seen.rewards, seen.before, strict=True):
        alone.learn(rewards, advantages, G)
    close(trainer._multi_objective.controller.state, alone.state)


@pytest.mark.parametrize("settings", [{}, TWO_UPDATES, FOUR_PASSES, TWICE])
@pytest.mark.parametrize(("kind", "own"), LOOKS)
def test_a_method_learns_what_the_updates_did(kind, own, settings, tmp_path):
    """CTWA and FAMO from the completions that were trained on, after the last update; Ratchet from
    those of the later passes, as they are reached."""
    method, fresh = kind(**own), kind is methods.Ratchet
    if fresh and not settings:
        pytest.skip("there is one update, as it is refused")
    trainer = make(tmp_path, epsilon=0.1, epsilon_high=0.3, **settings)
    seen, alone = Seen(trainer, method), method.start(["small", "even"])
    trainer.train()
    assert len(seen.outputs) == len(logged(trainer, f"{kind.__name__.lower()}/{shown(kind)}")) == 3
    for number, (out, rewards) in enumerate(zip(seen.outputs, seen.rewards, strict=True)):
        advantages, mask = out["advantages"], out["completion_mask"]
        before, *after = seen.policies[number]
        if fresh:
            advantages, _ = alone.advantages(rewards, mask.sum(1), G, "grpo")
            close(out["advantages"], advantages, 1e-3)
            age = seen.later_half(number).float()
            assert age.sum() == len(rewards) / 2
            drift = ((after[0] - before) * mask).sum(1) * age
            alone.learn(rewards, drift, age, len(after), G)
        else:
            alone.weights(rewards)
            log_ratio = after[-1] - before
            assert log_ratio.abs().max() > 0.01
            alone.learn(rewards, alone.measure(log_ratio, mask, advantages, 0.1, 0.3), G)
    close(trainer._multi_objective.controller.state, alone.state, 1e-2)


def shown(kind):
    return {"CTWA": "cov", "FAMO": "gap", "Ratchet": "change"}[kind.__name__]


@pytest.mark.parametrize("kind", [methods.CTWA, methods.FAMO, methods.Ratchet])
def test_evaluation_leaves_the_method_alone(kind, tmp_path):
    """Also amid a generation: its completions have losses, too."""
    states = []
    for more in ({}, {"eval_strategy": "steps", "eval_steps": 1}):
        trainer = make(
            tmp_path, eval_prompts=2, per_device_eval_batch_size=8, **TWO_UPDATES, **more
        )
        multi_objective(trainer, kind())
        torch.manual_seed(0)
        trainer.train()
        session, weights = trainer._multi_objective, trainer.reward_weights.clone()
        states.append((json.dumps(session.save()), session.updates, session.passes))
        metrics = dict(trainer._metrics["train"])
        assert "eval_loss" in trainer.evaluate()
        assert (json.dumps(session.save()), session.updates, session.passes) == states[-1]
        assert dict(trainer._metrics["train"]) == metrics
        assert torch.equal(trainer.reward_weights, weights)
    assert states[0][1:] == states[1][1:]


SAVES = {"save_strategy": "steps", "save_steps": 2}


def resumed(folder, kind, checkpoint, **settings):
    trainer = make(folder, **settings)
    multi_objective(trainer, kind())
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{checkpoint}"))
    return trainer


@pytest.mark.parametrize("itself", [False, True])  # whether transformers restores callbacks
@pytest.mark.parametrize(
    "kind", [methods.CTWA, methods.MirrorDescent, methods.FAMO, methods.Ratchet]
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(kind, itself, tmp_path):
    settings = SAVES | {"steps_per_generation": 2, "max_steps": 4}
    settings["restore_callback_states_from_checkpoint"] = itself
    whole, _ = run(tmp_path, kind(), **settings)
    stopped = resumed(tmp_path, kind, 2, **settings)
    assert stopped._multi_objective.save() == whole._multi_objective.save()
    pairs = zip(whole.model.parameters(), stopped.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
    saved = json.loads((tmp_path / "checkpoint-2/trainer_state.json").read_text())
    saved = saved["stateful_callbacks"]["MultiObjective"]["attributes"]["saved"]
    assert saved != whole._multi_objective.save()  # it had gone on


def test_a_checkpoint_amid_a_generation_drops_what_was_seen_of_its_updates(tmp_path):
    """TRL samples a new generation there, whose updates are looked at like any other's."""
    settings = TWO_UPDATES | SAVES | {"save_steps": 3}
    run(tmp_path, methods.Ratchet(), **settings)
    stopped = resumed(tmp_path, methods.Ratchet, 3, **settings)
    steps = [row["step"] for row in stopped.state.log_history if "ratchet/change/even" in row]
    assert steps == [2, 5]


def test_a_checkpoint_of_another_method_or_of_none(tmp_path, caplog):
    settings = SAVES | {"max_steps": 2, "save_steps": 1}
    run(tmp_path / "ctwa", methods.CTWA(), **settings)
    with pytest.raises(SettingsError, match="its method 'CTWA', this trainer's 'MirrorDescent'"):
        resumed(tmp_path / "ctwa", methods.MirrorDescent, 1, **settings)
    make(tmp_path / "none", **settings).train()
    resumed(tmp_path / "none", methods.CTWA, 1, **settings)
    assert "has no state of multi_objective" in caplog.text
    text = (tmp_path / "none/checkpoint-2/trainer_state.json").read_text()
    assert text.count("MultiObjective") == 1


def renamed(completion_ids, **kwargs):
    return small(completion_ids)


renamed.__name__ = "small"
ERRORS = [
    ({"rewards": (small,)}, methods.CTWA, "one function, small: there is nothing to weigh"),
    ({"rewards": (small, renamed)}, methods.CTWA, "two functions of one name: small, small"),
    ({"reward_weights": [1.0, 2.0]}, methods.CTWA, r"reward_weights=\[1.0, 2.0\]\) would be overw"),
    ({"scale_rewards": False}, methods.CTWA, r"scale_rewards=.*CTWA: .*'group', 'batch'\]$"),
    ({"scale_rewards": False}, methods.PAMA, r"scale_rewards=.*PAMA: .*'group'\]$"),
    ({}, methods.Ratchet, "steps_per_generation=1 must be 2 or more"),
    (
        {"gradient_accumulation_steps": 2, "steps_per_generation": 1},
        methods.FAMO,
        "must be a multiple of gradient_accumulation_steps=2",
    ),
]
if hasattr(trl.GRPOConfig, "multi_objective_aggregation"):
    how = {"multi_objective_aggregation": "normalize_then_sum"}
    ERRORS.append((how, methods.CTWA, "multi_objective_aggregation='normalize_then_sum'"))


@pytest.mark.parametrize(("settings", "kind", "message"), ERRORS)
def test_settings_that_contradict_a_method_are_named(settings, kind, message, tmp_path):
    trainer = make(tmp_path, **settings)
    with pytest.raises(SettingsError, match=message) as caught:
        multi_objective(trainer, kind())
    assert "\n" not in str(caught.value)


def test_scale_rewards_none_goes_with_what_reads_no_advantages(tmp_path):
    run(tmp_path, methods.Lagrangian(), scale_rewards=False, max_steps=1)


def test_what_is_no_grpo_trainer_or_has_a_method_is_refused(tmp_path, monkeypatch):
    trainer, other = make(tmp_path), make(tmp_path, **TWO_UPDATES)
    with pytest.raises(SettingsError, match=r"needs a method such as CTWA\(\).*call the class"):
        multi_objective(trainer, methods.CTWA)
    multi_objective(trainer, methods.CTWA())
    with pytest.raises(SettingsError, match="has a method already"):
        multi_objective(trainer, methods.PAMA())
    with pytest.raises(SettingsError, match=r"needs a trl\.GRPOTrainer, got a object"):
        multi_objective(object(), methods.CTWA())
    other.use_liger_kernel = True
    with pytest.raises(SettingsError, match="the liger kernel hides"):
        multi_objective(other, methods.Ratchet())
    monkeypatch.delattr(trl.GRPOTrainer, "_calculate_rewards")
    with pytest.raises(SettingsError, match=r"needs TRL 0\.19\.1 or newer"):
        multi_objective(other, methods.CTWA())

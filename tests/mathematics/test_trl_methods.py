"""The methods for TRL without TRL: that their mathematics is the scripts', that their defaults are, and what a missing reward does."""

import builtins
import dis
import inspect
import subprocess
import sys
from importlib import import_module

import pytest
import torch

import integrations.trl as methods
from integrations.trl.generation import Generation
from integrations.trl.scripts import mathematics
from support.running import NAMES, ROOT

G = 4
OF = {  # class -> (script, arguments of the script's that it leaves out)
    "CTWA": ("ctwa", {"obj_caps", "outlier_factor"}),
    "FAMO": ("famo", set()),
    "GDPO": ("gdpo", set()),
    "Gated": ("gated", set()),
    "Lagrangian": ("lagrangian", set()),
    "Linear": ("linear", set()),
    "MirrorDescent": ("tchebycheff", {"variant", "smoothing", "ema_tau"}),
    "PAMA": ("pama", set()),
    "RVPO": ("rvpo", set()),
    "Ratchet": ("ratchet", {"warmup"}),
    "SAMRPO": ("sa_mrpo", set()),
    "SmoothTchebycheff": ("tchebycheff", {"variant", "weight_lr", "max_ratio"}),
    "Tchebycheff": ("tchebycheff", {"variant", "weight_lr", "max_ratio", "smoothing", "ema_tau"}),
}


def a_generation(seed: int = 0, prompts: int = 3, K: int = 3) -> Generation:
    draw = torch.Generator().manual_seed(seed)
    rewards = torch.rand(prompts * G, K, generator=draw, dtype=torch.float64).round(decimals=1)
    return Generation(rewards, torch.randint(3, 9, (prompts * G,), generator=draw).double(), G)


def started(method):
    method.start(["a", "b", "c"])
    return method


def without(generation: Generation, *places: tuple[int, int]) -> Generation:
    rewards = generation.rewards.clone()
    for row, k in places:
        rewards[row, k] = torch.nan
    return Generation(rewards, generation.lengths, G)


def own_flags(script: str) -> dict:
    """The flags of a script that linear's first part does not have, with their defaults."""
    shared = set(vars(import_module("algos.mgda").Args())) | {"weights"}
    flags = vars(import_module(f"algos.{script}").Args())
    return {name: value for name, value in flags.items() if name not in shared} | ({"weights": ()} if "weights" in flags else {})


@pytest.mark.parametrize("name", NAMES)
def test_the_functions_are_those_of_the_script(name):
    loaded, script = mathematics(name), import_module(f"algos.{name}")
    functions = {key: value for key, value in vars(loaded).items() if inspect.isfunction(value)}
    own = {key for key, value in vars(script).items() if inspect.isfunction(value) and value.__module__ == script.__name__} - {"main"}
    assert set(functions) == own
    for key, function in functions.items():
        assert inspect.getsource(function) == inspect.getsource(getattr(script, key))


@pytest.mark.parametrize("script", sorted({script for script, _ in OF.values()} | {"linear"}))
def test_the_functions_that_are_used_find_all_they_name(script):
    loaded = vars(mathematics(script))
    for function in filter(inspect.isfunction, list(loaded.values())):
        named = {step.argval for step in dis.get_instructions(function) if step.opname == "LOAD_GLOBAL"}
        assert named <= loaded.keys() | vars(builtins).keys()


def test_a_script_is_loaded_without_a_trace():
    told = (
        "import sys; before = list(sys.path); from integrations.trl.scripts import mathematics; mathematics('ctwa');"
        "assert sys.path == before, sys.path; print(*sorted(name.split('.')[0] for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", told], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"common", "rewards", "tools", "prompts", "algos", "tyro", "vllm", "trl"} & set(done.stdout.split())


@pytest.mark.parametrize("name", OF)
def test_defaults_are_the_scripts(name):
    script, left_out = OF[name]
    own = {key: parameter.default for key, parameter in inspect.signature(getattr(methods, name)).parameters.items()}
    own.pop("after_update", None)
    wanted = {key: value for key, value in own_flags(script).items() if key not in left_out}
    wanted.pop("variant", None)
    assert own == wanted


def test_every_method_is_known_here():
    assert set(OF) == {name for name in methods.__all__ if inspect.isclass(getattr(methods, name)) and name != "SettingsError"}


def test_without_a_missing_reward_the_script_is_asked_once():
    """So that nothing is added up in another order than there."""
    generation, script = a_generation(), mathematics("ctwa")
    weight = torch.linspace(-1, 1, 12, dtype=torch.float64)
    found = generation.over_prompts(script.within_prompt_covariance, weight)
    assert torch.equal(found, script.within_prompt_covariance(weight, generation.rewards, G))
    scores = generation.rewards @ torch.ones(3, dtype=torch.float64)
    for estimator in ("grpo", "reinforce"):
        wanted = script.estimate_advantages(scores, generation.lengths, G, estimator)
        assert torch.equal(generation.estimate(script, scores, estimator), wanted)


def test_an_objective_is_judged_by_the_completions_that_have_it():
    """Prompt 0 has all, prompt 1 three of four, prompt 2 one, which has nothing to be compared with."""
    generation = without(a_generation(), (5, 1), (8, 1), (9, 1), (11, 1))
    weight = torch.linspace(-1, 1, 12, dtype=torch.float64) ** 3
    found = generation.over_prompts(mathematics("ctwa").within_prompt_covariance, weight)
    each = [torch.cov(torch.stack([weight[rows], generation.rewards[rows, 1]]), correction=0)[0, 1] for rows in ([0, 1, 2, 3], [4, 6, 7])]
    assert found[1].item() == pytest.approx((each[0] + each[1]).item() / 2)
    whole = a_generation().over_prompts(mathematics("ctwa").within_prompt_covariance, weight)
    torch.testing.assert_close(found[[0, 2]], whole[[0, 2]])


def test_an_advantage_is_normalised_over_the_completions_that_have_a_score():
    generation, script = a_generation(), mathematics("linear")
    scores = generation.rewards[:, 0].clone()
    scores[[5, 8, 9, 11]] = torch.nan
    found = generation.estimate(script, scores, "grpo")
    assert found.isnan().tolist() == scores.isnan().tolist()
    assert found[10] == 0
    rows = torch.tensor([4, 6, 7])
    torch.testing.assert_close(found[rows], (scores[rows] - scores[rows].mean()) / (scores[rows].std() + 1e-6))
    kept = ~scores.isnan()
    whitened = generation.estimate(script, scores, "reinforce")
    torch.testing.assert_close(whitened[kept], script.estimate_advantages(scores[kept], generation.lengths[kept], 1, "reinforce"))


def test_ctwa_keeps_what_it_knows_of_an_objective_that_no_completion_has():
    method = started(methods.CTWA(weight_lr=0.5))
    everywhere, nowhere = a_generation(), without(a_generation(1), *[(row, 2) for row in range(12)])
    advantages = torch.linspace(-1, 1, 12, dtype=torch.float64)
    method.learn(nowhere, advantages)
    assert method.state["ema"].isnan().tolist() == [False, False, True]
    assert method.state["log_weights"][2].item() == pytest.approx(torch.tensor(1 / 3).log().item())
    method.learn(everywhere, advantages)
    script = mathematics("ctwa")
    first = script.within_prompt_covariance(advantages, everywhere.rewards, G)[2]
    assert method.state["ema"][2].item() == pytest.approx(first.item())  # the first that is known starts the average
    before = method.state["log_weights"][2].item()
    method.learn(nowhere, advantages)
    assert method.state["log_weights"][2].item() == before


def test_ctwa_gives_no_weight_to_completions_that_the_loss_leaves_out():
    generation = a_generation()
    lengths = generation.lengths.clone()
    lengths[3] = 0
    method, advantages = started(methods.CTWA()), torch.linspace(-1, 1, 12, dtype=torch.float64)
    method.learn(Generation(generation.rewards, lengths, G), advantages)
    masked = advantages.clone()
    masked[3] = 0
    wanted = mathematics("ctwa").within_prompt_covariance(masked, generation.rewards, G)
    torch.testing.assert_close(method.log["ctwa/cov"], wanted)


@pytest.mark.parametrize("name", ["PAMA", "RVPO", "Tchebycheff", "GDPO", "SAMRPO", "Gated", "Ratchet"])
def test_a_completion_without_any_reward_has_no_advantage_and_changes_no_other(name):
    """The others are as if it had not been sampled, wherever normalising looks at one prompt alone."""
    method = started(getattr(methods, name)())
    generation = without(a_generation(), (2, 0), (2, 1), (2, 2))
    method.weigh(generation)
    found = method.advantages(generation)
    assert found.isnan().nonzero().flatten().tolist() == [2]
    kept = [row for row in range(12) if row != 2]
    assert found[kept].isfinite().all()


def test_a_reward_that_does_not_apply_is_never_the_least():
    generation = without(a_generation(), *[(row, 1) for row in range(4)])
    two = Generation(generation.rewards[:4][:, [0, 2]], generation.lengths[:4], G)
    pair = methods.PAMA()
    pair.start(["a", "c"])
    torch.testing.assert_close(started(methods.PAMA()).advantages(generation)[:4], pair.advantages(two))
    soft, pair = started(methods.RVPO()), methods.RVPO()
    pair.start(["a", "c"])
    (values, weights), script = soft.parts(generation), mathematics("rvpo")
    own, share = pair.parts(two)
    torch.testing.assert_close(script.soft_minimum(values, weights, 2.0)[:4], script.soft_minimum(own, share, 2.0))


def test_ratchet_measures_whole_fresh_prompts_as_its_script():
    generation, method = a_generation(prompts=4), started(methods.Ratchet())
    drift = torch.linspace(-0.3, 0.4, 16, dtype=torch.float64) ** 2
    age = torch.tensor([0.0] * 4 + [1.0] * 4 + [0.0] * 4 + [2.0] * 4, dtype=torch.float64)
    found = method.moved(generation, drift, age, 3)
    wanted = mathematics("ratchet").what_moved(drift, age, generation.rewards, G, 3)
    torch.testing.assert_close(found, wanted)


def test_ratchet_pools_prompts_of_unequally_many_fresh_completions():
    generation, method = without(a_generation(prompts=3), (9, 1)), started(methods.Ratchet())
    drift = torch.linspace(-0.3, 0.4, 12, dtype=torch.float64) ** 2
    age = torch.tensor([0, 1, 1, 0, 1, 1, 1, 1, 0, 1, 0, 1], dtype=torch.float64)
    for k, groups in enumerate([[[1, 2], [4, 5, 6, 7], [9, 11]], [[1, 2], [4, 5, 6, 7]], [[1, 2], [4, 5, 6, 7], [9, 11]]]):
        scatter, freedom = torch.zeros(2, 2, dtype=torch.float64), 0
        for rows in groups:
            pair = torch.stack([(2 * drift[rows]).exp(), generation.rewards[rows, k]])
            centred = pair - pair.mean(1, keepdim=True)
            scatter, freedom = scatter + centred @ centred.T, freedom + len(rows) - 1
        pooled = scatter / freedom
        change, alignment = method.moved(generation, drift, age, 2)
        assert change[k].item() == pytest.approx((pooled[0, 1] / pooled[1, 1].sqrt()).item())
        assert alignment[k].item() == pytest.approx((pooled[0, 1] / (pooled[0, 0] * pooled[1, 1]).sqrt()).item())


def test_ratchet_has_seen_nothing_of_an_objective_without_two_fresh_completions():
    generation, method = without(a_generation(), *[(row, 0) for row in range(12)]), started(methods.Ratchet())
    change, alignment = method.moved(generation, torch.ones(12).double(), torch.ones(12).double(), 2)
    assert change[0] == alignment[0] == 0


def test_famo_learns_from_the_gaps_of_the_reweighted_completions():
    generation, method, script = a_generation(), started(methods.FAMO(gamma=0.1)), mathematics("famo")
    nats = torch.linspace(-1, 1, 12, dtype=torch.float64)
    before = 1 - generation.rewards.mean(0) + script.FLOOR
    torch.testing.assert_close(method.weigh(generation), script.famo_weights(torch.zeros(3, dtype=torch.float64), before))
    method.updated(generation, nats, torch.ones(12), 1)
    after = 1 - script.reweighted_rewards(generation.rewards, nats, G) + script.FLOOR
    zero = torch.zeros(3, dtype=torch.float64)
    wanted = script.adam_step(zero, script.famo_direction(zero, before, after), zero, zero, 0, 0.025)
    torch.testing.assert_close(method.state["logits"], wanted[0])
    assert method.state["t"] == 1


ERRORS = [
    (methods.Linear, {"weights": (1.0, 1.0)}, r"Linear\(weights=\(1.0, 1.0\)\) has 2 numbers for 3 objectives, a, b, c"),
    (methods.Linear, {"weights": (0.0, 0.0, 0.0)}, "not negative, nor all 0"),
    (methods.CTWA, {"weights": (1.0, 0.0, 1.0)}, "CTWA.*positive"),
    (methods.CTWA, {"ema_tau": 0.0}, r"CTWA\(ema_tau=0.0\) must be finite, above 0 and at most 1"),
    (methods.CTWA, {"weight_lr": float("nan")}, "weight_lr"),
    (methods.Lagrangian, {"primary": "d"}, "primary='d'.* there are a, b, c"),
    (methods.Lagrangian, {"targets": (0.5,)}, "has 1 numbers for 2 objectives, b, c"),
    (methods.Lagrangian, {"multipliers": (0.5, 9.0)}, "between 0 and max_multiplier"),
    (methods.MirrorDescent, {"max_ratio": 0.5}, "at least 1"),
    (methods.SmoothTchebycheff, {"smoothing": 0.0}, "smoothing"),
    (methods.RVPO, {"kappa": 0.0}, "kappa"),
    (methods.Gated, {"gate": float("nan")}, "gate"),
    (methods.SAMRPO, {"lowest": (1.0, 0.0, 0.0)}, "highest"),
    (methods.Ratchet, {"release": 2.0}, "release"),
]


@pytest.mark.parametrize(("kind", "arguments", "message"), ERRORS)
def test_an_argument_that_cannot_be_meant_is_named(kind, arguments, message):
    with pytest.raises(methods.SettingsError, match=message) as caught:
        started(kind(**arguments))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [methods.FAMO, methods.SAMRPO])
def test_a_reward_above_the_best_is_named(kind):
    generation = a_generation()
    high = Generation(generation.rewards * 3, generation.lengths, G)
    with pytest.raises(methods.SettingsError, match="give the best value each objective can have"):
        started(kind()).weigh(high)

"""What the algorithms' own flags refuse, before anything is loaded: a line that names the flag.
A single number beyond its bound is test_scripts.py's."""

from importlib import import_module

import pytest
import torch

from common.errors import UserError

THREE, ONE, MANY = ["accuracy", "conciseness", "clarity"], ["accuracy"], list("abcdefghijklm")
REFUSED = [
    ("linear", THREE, {"weights": (1.0, -1.0, 1.0)}, "--weights .* not negative, nor all zero"),
    ("linear", THREE, {"weights": (0.0, 0.0, 0.0)}, "--weights .* nor all zero"),
    ("ctwa", THREE, {"weights": (1.0, 0.0, 1.0)}, "--weights .* must be finite and positive"),
    ("ctwa", THREE, {"cov_targets": (0.1,)}, "--cov-targets has 1 numbers"),
    ("dynamic_weighting", THREE, {"weights": (1.0, 1.0, 0.0)}, "--weights .* positive"),
    ("dynamic_weighting", THREE, {"weight_floor": 0.5}, "--weight-floor 0.5"),
    ("famo", THREE, {"reward_max": (1.0,)}, "--reward-max has 1 numbers"),
    ("gated", ONE, {}, "--rewards has one objective"),
    ("gradnorm", THREE, {"ema_tau": 1.5}, "--ema-tau 1.5"),
    (
        "lagrangian",
        THREE,
        {"targets": (0.9,)},
        "--targets has 1 numbers for 2 .*conciseness, clarity",
    ),
    ("lagrangian", THREE, {"targets": (0.9, 1.5)}, "--targets .* must be in"),
    ("lagrangian", THREE, {"multipliers": (0.1, -0.1)}, "--multipliers .* between 0"),
    (
        "lagrangian",
        THREE,
        {"primary": "speed"},
        "--primary speed .* accuracy, conciseness, clarity",
    ),
    ("lagrangian", THREE, {"max_multiplier": 0.0}, "--max-multiplier 0.0"),
    ("lagrangian", ONE, {}, "--rewards has one objective"),
    ("gd2po", THREE, {"agreement": 1.5}, "--agreement 1.5 must be between 0 and 1"),
    ("mgda", MANY, {}, "--rewards has 13 objectives"),
    ("upgrad", MANY, {}, "--rewards has 13 objectives"),
    ("ratchet", THREE, {"mini_batches": 1}, "--mini-batches must be 2 or more"),
    ("sa_mrpo", THREE, {"lowest": (0.0, 1.0, 0.0)}, "--highest minus --lowest .* positive"),
    ("tchebycheff", THREE, {"preference": (1.0, 1.0, 0.0)}, "--preference .* positive"),
]


@pytest.mark.parametrize(("name", "objectives", "flags", "told"), REFUSED)
def test_a_wrong_flag_is_named(name, objectives, flags, told):
    script = import_module(f"algos.{name}")
    with pytest.raises(UserError, match=told):
        script.controller(script.Args(**flags), objectives, "cpu")


@pytest.mark.parametrize(
    ("name", "flag"), [("famo", "reward_max"), ("gradnorm", "reward_max"), ("sa_mrpo", "highest")]
)
def test_a_best_reward_that_is_exceeded_is_named(name, flag):
    script = import_module(f"algos.{name}")
    made = script.controller(script.Args(**{flag: (0.5, 1.0)}), ["one", "two"], "cpu")
    before, given = next(
        (getattr(made, method), given)
        for method, given in (
            ("see", ()),
            ("weights", ()),
            ("advantages", (torch.ones(4), 2, "grpo")),
        )
        if hasattr(made, method)
    )
    with pytest.raises(UserError, match=f"--{flag.replace('_', '-')} .*is below a reward"):
        before(torch.ones(4, 2), *given)


UNBOUNDED = [("ctwa", {"obj_caps": (torch.inf,) * 3}), ("tchebycheff", {"max_ratio": torch.inf})]
UNBOUNDED += [("lagrangian", {"max_multiplier": torch.inf})]


@pytest.mark.parametrize(("name", "flags"), UNBOUNDED)
def test_infinity_is_no_bound_where_that_can_be_meant(name, flags):
    script = import_module(f"algos.{name}")
    script.controller(script.Args(**flags), THREE, "cpu")

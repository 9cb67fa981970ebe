"""The scripts' controllers as methods for TRL, without TRL: how they are loaded, what settings they
have, and what becomes of a generation."""

import json
import subprocess
import sys
import traceback
from importlib import import_module

import pytest
import torch

import integrations.trl as methods
from integrations.trl import SettingsError
from integrations.trl.scripts import controllers, load
from support.pretended_trl import Trainer
from support.running import ROOT

MASK = torch.ones(8, 5)
REWARDS = torch.tensor([[k * i % 7 / 7 for k in (1, 3, 5)] for i in range(8)])


def test_a_script_is_loaded_without_a_trace():
    told = (
        "import sys; before = list(sys.path); import integrations.trl as t; t.CTWA().start(['a'])\n"
        "assert sys.path == before; print(*(name.split('.')[0] for name in sys.modules))"
    )
    command = [sys.executable, "-c", told]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"common", "rewards", "algos", "tyro", "trl"} & set(done.stdout.split())


def test_a_traceback_leads_to_the_script():
    with pytest.raises(TypeError) as caught:
        load("algos/linear").scalarize(REWARDS, "no weights")
    assert traceback.extract_tb(caught.tb)[-1].line in (ROOT / "algos/linear.py").read_text()


@pytest.mark.parametrize(("name", "script"), controllers().items())
def test_settings_are_the_scripts_own_flags(name, script):
    own, flags = getattr(methods, name).defaults, vars(import_module(f"algos.{script}").Args())
    assert own == {key: flags.get(key, False) for key in own}
    shared = vars(import_module("algos.pama").Args()).keys()  # which has none of its own
    assert own.keys() == flags.keys() - shared - {"variant"} | own.keys() & {"after_update"}


ERRORS = [
    ("MGDA", {}, "MGDA wants a gradient of each objective"),
    ("CTWA", {"weight": (1, 2, 1)}, r"CTWA has no setting weight; it has \['weights', "),
    ("CTWA", {"weights": (1.0, 0.0, 1.0)}, r"CTWA\(weights=\(1.0, 0.0, 1.0\)\): weights 1, 0, 1"),
    ("CTWA", {"cov_targets": (0.1,)}, r"cov_targets has 1 numbers for 3 objectives \(a, b, c\)"),
    ("CTWA", {"cov_targets": 0.1}, r"CTWA\(cov_targets=0.1\): "),
    ("Lagrangian", {"multipliers": (0.5, 9.0)}, "between 0 and max_multiplier 5.0"),
]


@pytest.mark.parametrize(("name", "settings", "message"), ERRORS)
def test_a_setting_that_cannot_be_meant_is_named(name, settings, message):
    with pytest.raises(SettingsError, match=message) as caught:
        getattr(methods, name)(**settings).start(["a", "b", "c"])
    assert "\n" not in str(caught.value)
    assert "--" not in str(caught.value)


@pytest.mark.parametrize("name", ["FAMO", "SAMRPO"])
def test_a_reward_above_the_best_is_named(name):
    with pytest.raises(SettingsError, match=f"{name}.*give the best value each objective can"):
        Trainer(getattr(methods, name)()).step(REWARDS * 3, MASK)


def test_ctwa_learns_before_the_update_from_the_advantages():
    """And gives no weight to a completion that the loss leaves out."""
    trainer, mask = Trainer(methods.CTWA()), MASK.clone()
    mask[3], advantages = 0, torch.linspace(-1, 1, 8)
    trainer.step(REWARDS, mask, advantages)
    wanted = load("algos/ctwa").within_prompt_covariance(advantages * mask[:, 0], REWARDS, 4)
    assert torch.equal(trainer.session.controller.state["ema"], wanted)


@pytest.mark.parametrize(
    "name", ["CTWA", "PAMA", "RVPO", "GD2PO", "DVAO", "Tchebycheff", "Gated", "Ratchet"]
)
def test_a_completion_without_any_reward_moves_nothing(name):
    rewards = REWARDS.clone()
    rewards[2] = torch.nan
    trainer = Trainer(getattr(methods, name)())
    found = trainer.step(rewards, MASK)
    assert found[2] == 0
    assert found.any()
    # nor is what cannot be known of it logged
    json.dumps([found.tolist(), trainer._metrics], allow_nan=False)


def test_famo_learns_in_float64():
    """In float32 Adam makes a full step of a rounding error, where all rewards are alike."""
    trainer, moved = Trainer(methods.FAMO()), MASK * REWARDS[:, :1]
    flat = torch.tensor([[0.25, 0.5, 0.75]]).expand(8, 3)
    trainer.step(flat, MASK, moved=moved, rows=torch.arange(8).split(4))
    assert trainer.session.controller.state["logits"].abs().max() < 1e-6


@pytest.mark.parametrize("name", ["CTWA", "FAMO", "Ratchet", "MirrorDescent", "SmoothTchebycheff"])
def test_state_is_plain_numbers_and_comes_back(name):
    kind = getattr(methods, name)
    first, trained = Trainer(kind()), Trainer(kind())
    advantages, moved = REWARDS[:, 0] - 0.4, -MASK * REWARDS[:, :1]
    trained.step(REWARDS, MASK, advantages, moved, torch.arange(8).split(4))
    assert trained.session.save() != first.session.save()
    for session in (first.session, trained.session):
        saved, other = json.dumps(session.save(), allow_nan=False), Trainer(kind()).session
        other.restore(json.loads(saved))
        assert json.dumps(other.save()) == saved
    assert str(other.controller.state) == str(session.controller.state)  # float64 is float64
    with pytest.raises(SettingsError, match="its method '.*', this trainer's 'PAMA'"):
        Trainer(methods.PAMA()).session.restore(json.loads(saved))
    with pytest.raises(SettingsError, match="objectives"):
        Trainer(kind(), ("a", "b", "d")).session.restore(json.loads(saved))

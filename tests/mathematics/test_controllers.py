"""One recorded run of every controller, and what else drives it: with the run's batches and nothing
else of the run, each finds what the run used. And what must be true of several scripts' runs."""

import copy
from functools import cache
from importlib import import_module

import pytest
import torch

import integrations.trl
from common.runs import load_run
from integrations.trl.scripts import controllers
from support.own_rewards import EQUAL, OWN
from support.pretended_trl import Trainer
from support.running import OBJECTIVES, read_metrics, train
from tools.counterfactual import choices
from tools.explain import load_statistics

ASKED = ("weights", "advantages", "follow", "see", "weigh", "measure", "learn")
FIRST = ASKED[:4]  # in a step
FLAGS = {"SmoothTchebycheff": {"variant": "smooth"}, "Tchebycheff": {"variant": "classical"}}
GRADIENTS = {"DynamicWeighting", "GradNorm", "MGDA", "NashMTL", "UPGrad"}


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    """recorded(name) -> (folder of a run, its script, its args, for each step what the script asked
    of its controller: {method: [(inputs, answer), ...]})."""

    @cache
    def run(name: str) -> tuple:
        stem, steps = controllers()[name], []
        script, out = import_module(f"algos.{stem}"), tmp_path_factory.mktemp(name) / "run"
        kind, flags = getattr(script, name), {"estimator": "grpo", **FLAGS.get(name, {})}

        def noted(asked, function):
            def wrapped(self, *inputs):
                if asked in FIRST or not steps:
                    steps.append({})
                before, answer = copy.deepcopy(inputs), function(self, *inputs)
                steps[-1].setdefault(asked, []).append((before, copy.deepcopy(answer)))
                return answer

            return wrapped

        with pytest.MonkeyPatch.context() as patch:
            for asked in vars(kind).keys() & ASKED:
                patch.setattr(kind, asked, noted(asked, getattr(kind, asked)))
            train(stem, out, **flags)
        return out, script, script.Args(**flags), steps

    return run


@pytest.mark.parametrize("name", controllers())
def test_a_controller_remembers_nothing_but_its_state(name, recorded):
    """Another one every step, which is given the state of the one before."""
    (_, script, args, steps), state = recorded(name), {}
    assert steps
    for step in steps:
        controller = script.controller(args, list(OBJECTIVES), torch.device("cpu"))
        controller.state.update(copy.deepcopy(state))
        for asked, calls in step.items():
            for inputs, answer in calls:
                found = getattr(controller, asked)(*inputs)
                torch.testing.assert_close(found, answer, rtol=0, atol=0)
        state = controller.state


@pytest.mark.parametrize("name", sorted(controllers().keys() - GRADIENTS))
def test_trl_has_the_weights_and_advantages_of_the_run(name, recorded):
    method = getattr(integrations.trl, name)
    trainer = Trainer(method(**{"after_update": True} if "after_update" in method.defaults else {}))
    exact = 1e-6 if name == "FAMO" else 0  # its float64 goes through a gather in float32
    for step in recorded(name)[-1]:
        [(rewards, *others), answer] = step.get("weights", step.get("advantages"))[0]
        batch = {"mask": torch.ones(len(rewards), 1)}
        if "advantages" in step:
            batch["mask"] = (torch.arange(others[0].max()) < others[0][:, None]).float()
        if "measure" in step:
            [(moved, mask, advantages, *_), _] = step["measure"][0]
            rows = torch.arange(len(rewards)).split(8)
            batch = {"mask": mask, "advantages": advantages, "moved": moved, "rows": rows}
        elif "learn" in step:
            [(_, drift, age, *_), _] = step["learn"][0]
            rows = [(age == updates).nonzero().flatten() for updates in (0, 1)]
            batch |= {"mask": torch.ones(len(drift), 1), "moved": drift[:, None], "rows": rows}
        advantages = trainer.step(rewards, **batch)
        weights = answer / answer.sum() if "weights" in step else answer[1]
        shown = [trainer._metrics["train"][f"weight/{each}"][-1] for each in "abc"]
        torch.testing.assert_close(torch.tensor(shown), weights, rtol=exact, atol=exact)
        assert "weights" in step or torch.equal(advantages, answer[0])


@pytest.mark.parametrize("name", sorted(controllers().keys() - GRADIENTS))
def test_an_objective_that_no_completion_has_yet_is_weighed_and_waited_for(name, recorded):
    """Rewards that do not apply are NaN, as TRL gives them. At last none applies at all."""
    _, script, args, _ = recorded(name)
    controller = script.controller(args, list(OBJECTIVES), torch.device("cpu"))
    for present in (False, True, False, None):
        rewards, lengths = (
            torch.rand(8, 3, generator=torch.Generator().manual_seed(1)),
            torch.ones(8),
        )
        rewards[:, 1] = rewards[:, 1] if present else torch.nan
        rewards = torch.full_like(rewards, torch.nan) if present is None else rewards
        if hasattr(controller, "weights"):
            weights = controller.weights(rewards)
        else:
            advantages, weights = controller.advantages(rewards, lengths, 4, "grpo")
            assert advantages.isfinite().all()
        assert weights.isfinite().all()
        assert (weights >= 0).all()
        assert weights.sum() > 0
        for value in controller.log.values() if present else ():
            assert torch.as_tensor(value).isfinite().all()


@pytest.mark.parametrize("name", controllers())
def test_explain_has_the_weights_of_the_run(name, recorded):
    """FAMO, which looks at the updated policy, is told the next batch's means in its place; CTWA
    that nothing moved."""
    out, script, args, steps = recorded(name)
    run = load_run(out)
    found = choices(run, load_statistics(run))[run.args["script"]].weights
    used = [[row[f"weight_share/{each}"] for each in OBJECTIVES] for row in run.rows[1:]]
    if name == "FAMO":
        controller, used = script.controller(args, list(OBJECTIVES), torch.device("cpu")), []
        rewards = [step["weights"][0][0][0] for step in steps]
        for own, after in zip(rewards, [*rewards[1:], rewards[0]], strict=True):
            used.append(controller.weights(own).tolist())
            controller.reached(after.mean(0))
    near = 1e-2 if name == "CTWA" else 1e-5
    torch.testing.assert_close(torch.tensor(found), torch.tensor(used), rtol=0, atol=near)


# --- several scripts, trained ---

ALIKE = [
    ("mgda", {}),
    ("upgrad", {}),
    ("nash_mtl", {}),
    ("lagrangian", {}),
    ("famo", {}),
    ("pama", {}),
]
ALIKE += [("dynamic_weighting", {}), ("gradnorm", {"weight_lr": 0.0})]
ALIKE += [("tchebycheff", {"variant": each}) for each in ("mirror-descent", "smooth", "classical")]


@pytest.mark.parametrize(("name", "flags"), ALIKE)
def test_equal_objectives_are_one_objective(name, flags, trained):
    """Three names for one reward train exactly as the reward alone in the plainest script, KL and
    all; PAMA, which clamps, as alone in its own."""
    three = read_metrics(trained(name, rewards=EQUAL, **flags))
    alone = read_metrics(trained("pama" if name == "pama" else "linear", rewards=EQUAL[:1]))
    near = 2e-3 if name == "nash_mtl" else 1e-3  # but for the ridge
    for row, other in zip(three[1:], alone[1:], strict=True):
        for key in ("loss/policy", "loss/kl", "grad/norm", "reward/one", "cov/one"):
            assert row[key] == pytest.approx(other[key], rel=near, abs=1e-5)
    assert three[1]["cov/one"] > 0


@pytest.mark.parametrize("name", ["mgda", "upgrad", "nash_mtl"])
def test_an_objective_without_a_gradient_is_named_and_does_not_stop_the_others(name, tmp_path):
    rewards = (f"{OWN}:flat", "rewards.accuracy:accuracy", "rewards.clarity:clarity")
    row = train(name, tmp_path / "run", rewards=rewards, steps=1, prompts=8)[1]
    assert row[f"{name}/no_gradient/flat"] == 1
    assert row[f"{name}/no_gradient/accuracy"] == 0
    assert row["weight/flat"] == 0
    assert row["weight/accuracy"] + row["weight/clarity"] > 0
    assert row["grad/norm"] > 0.01

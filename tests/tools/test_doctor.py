"""The doctor: well on a healthy machine, and for each thing that is broken on purpose one line."""

import re
from importlib import import_module
from math import nan

import pytest

from common import ranks, rollout
from common.errors import UserError
from common.model import load_whole
from support.running import SMALL, run_script, train
from testbed.arithmetic import base_path
from tools import doctor


def told(script: str = "linear", **flags) -> str:
    """The one line with which the doctor ends."""
    args = import_module(f"algos.{script}").Args(**SMALL | flags)
    with pytest.raises(UserError) as caught:
        doctor.examine(script, args)
    return str(caught.value)


@pytest.mark.parametrize(("count", "flags"), [(1, ["ctwa"]), (2, ["mgda"])])
def test_all_is_well(count, flags, tmp_path):
    command = ["run.py", "doctor", *flags, "--prompts", "4", "--completions", "4"]
    done = run_script(str(doctor.ROOT / command[0]), *command[1:], ranks=count, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(f"\npython run.py {flags[-1]} can start with these flags\n")
    assert re.search(rf"ranks +{count}, .* add up to {count * (count + 1) // 2}\n", done.stdout)
    assert not list(tmp_path.glob("runs/*"))


class Stale(rollout.TransformersEngine):
    """Has the weights of the file, whatever is synced."""

    def sync(self, model, version):
        self.model, self.version = load_whole(str(base_path("fragile")), "cpu"), version


class Hot(rollout.TransformersEngine):
    """Samples at another temperature than it is told."""

    def generate(self, prompts, completions, longest, temperature, seeds):
        return super().generate(prompts, completions, longest, temperature * 1.1, seeds)


class Lost(rollout.TransformersEngine):
    """Does not know its log-probabilities."""

    def generate(self, *given):
        ids, logp = super().generate(*given)
        return ids, [[nan] * len(row) for row in logp]


@pytest.mark.parametrize(("engine", "sync"), [(Stale, 2), (Hot, 1), (Lost, 1)])
def test_a_sampler_that_does_not_follow(engine, sync, monkeypatch):
    monkeypatch.setattr(rollout, "TransformersEngine", engine)
    assert re.search(f"--engine transformers has old .*after sync {sync}, --max-logp-gap", told())


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("[0.5] * len(prompts)", "nothing can be learned: of 4 prompts, .* differ by mine in 0"),
        ("[float(len(prompt)) for prompt in prompts]", "nothing can be learned"),
        ("[None] * len(prompts)", "nothing can be learned"),
        ("{}['gold']", "the reward 'mine' raised KeyError"),
    ],
)
def test_a_reward_that_teaches_nothing(body, said, tmp_path, capsys):
    (tmp_path / "own.py").write_text(f"def mine(prompts, **kwargs):\n    return {body}\n")
    mine = f"{tmp_path / 'own.py'}:mine"
    assert re.search(said, told(rewards=(mine,)))
    if "raised" not in said:  # beside another it is told
        both = SMALL | {"rewards": (mine, "rewards.clarity:clarity")}
        doctor.examine("linear", import_module("algos.linear").Args(**both))
        assert re.search("by mine in 0, clarity in [1-4]\n", capsys.readouterr().out)


@pytest.mark.parametrize(
    "flags",
    [
        {"prompts": 7},
        {"model": "./no/such/model"},
        {"max_prompt_length": 3},
        {"rewards": ("rewards.accuracy:acuracy",)},
        {"weights": (1.0,)},
        {"out": "."},
    ],
)
def test_what_a_start_refuses_is_refused_in_the_same_words(flags):
    script = import_module("algos.linear")
    with pytest.raises(UserError) as caught:
        script.main(script.Args(**SMALL | flags))
    assert told(**flags) == str(caught.value)


def test_steps_that_rounding_hides_are_refused_as_by_a_run():
    flags = {"compute_dtype": "bfloat16", "desired_kl": 1e-8}
    assert "--desired-kl 1e-08 cannot be measured" in told(**flags)


def test_a_run_that_was_stopped_is_examined_as_it_is(tmp_path):
    run = tmp_path / "run"
    train("linear", run, steps=2)
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
    asked = ["linear", "--resume", str(run), "--steps", "4"]
    doctor.main(asked)
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
    with pytest.raises(UserError, match="--kl-coef"):
        doctor.main([*asked, "--kl-coef", "1"])
    for file in run.rglob("state.pt"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match="no readable checkpoint"):
        doctor.main(asked)


def test_versions_that_do_not_agree(tmp_path, monkeypatch):
    def install(**versions):
        installed = tmp_path / "-".join(versions)
        for name, version in versions.items():
            folder = installed / f"{name}-{version}.dist-info"
            folder.mkdir(parents=True)
            (folder / "METADATA").write_text(f"Name: {name}\nVersion: {version}\n")
        monkeypatch.setattr("sys.path", [str(installed)])

    install(torch="2.13.0+cpu", transformers="5.17.0", vllm="0.1", pytest="1.0")
    assert doctor.versions("transformers") == "torch 2.13.0+cpu, transformers 5.17.0"
    with pytest.raises(UserError, match="vllm is 0.1: pip install 'vllm==0.32.0'"):
        doctor.versions("vllm")
    install(torch="2.12.0")
    with pytest.raises(UserError, match="torch is 2.12.0: pip install 'torch==2.13.0'"):
        doctor.versions("transformers")
    install(Markdown="3.5")  # as it spells itself
    with pytest.raises(UserError, match="markdown is 3.5: pip install 'markdown>=3.6'"):
        doctor.versions("transformers")


def test_ranks_that_do_not_add_up(monkeypatch):
    monkeypatch.setattr(ranks, "all_sum", lambda tensor: tensor * 3)
    assert "ranks: 1, and the numbers from 1 to 1 add up to 3" in told()


def test_an_algorithm_that_there_is_not():
    with pytest.raises(UserError, match="no algorithm mdga; did you mean 'mgda'?"):
        doctor.main(["mdga", "--lr", "1"])

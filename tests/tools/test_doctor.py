"""The doctor: well on a healthy machine, and for each thing that is broken on purpose, a FAIL with its fix."""

import json
import os
import re
import sys
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import common.model
import common.rollout
from tools import doctor
from common import ranks
from common.model import load_whole
from rewards import accuracy as checker
from support.models import Q, copy_of_base
from support.running import ROOT, run_script

CPU = torch.device("cpu")


@pytest.fixture
def examine(capsys, monkeypatch, tmp_path):
    """Run the checks with these flags, in an empty folder; returns {check: (state, text)} and puts the page into examine.page."""
    monkeypatch.chdir(tmp_path)

    def run(algorithm: str = "linear", **flags) -> dict[str, tuple[str, str]]:
        args = import_module(f"algos.{algorithm}").Args(**flags)
        failed = doctor.examine(args, algorithm)
        run.page = capsys.readouterr().out
        entries = re.split(r"\n(?! )", run.page.split("\n\n")[1])
        found = {entry[6:21].strip(): (entry[:4], " ".join(entry[21:].split())) for entry in entries}
        assert list(found) == [name for name, _, _ in doctor.CHECKS]
        assert failed == sum(state == "FAIL" for state, _ in found.values())
        assert all(("fix: " in text) == (state == "FAIL") for state, text in found.values())
        assert "Traceback" not in run.page
        return found

    return run


def failures(found: dict[str, tuple[str, str]]) -> set[str]:
    return {name for name, (state, _) in found.items() if state == "FAIL"}


# --- healthy ---


def test_a_healthy_machine_passes(tmp_path):
    done = run_script(str(ROOT / "run.py"), "doctor", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("\n14 passed, 0 failed, 2 skipped\n")
    assert "skip  prefix cache     the transformers engine has none" in done.stdout
    assert list(tmp_path.iterdir()) == []  # it cleans up after itself


@pytest.mark.parametrize(("terminal", "width"), [(40, 80), (100, 100), (400, 140)])
def test_the_page_fills_the_terminal_within_reason(terminal, width, examine, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(terminal))
    assert failures(examine()) == set()
    assert width - 20 < max(map(len, examine.page.splitlines())) <= width


def test_two_ranks(tmp_path):
    command = [str(ROOT / "run.py"), "doctor"]
    done = run_script(*command, "--algorithm", "mgda", "--kl-coef", "0", ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("14 passed, 0 failed, 2 skipped") == done.stdout.count("mgda: testbed") == 1  # rank 0 prints
    assert re.search(r"pass  ranks +2 ranks, .*gloo.*, a sum of ones is 2", done.stdout)
    assert "tied, as the config says, loaded and sharded" in done.stdout
    refused = run_script(*command, "--prompts", "6", ranks=2, cwd=tmp_path)
    assert refused.returncode != 0
    assert "take a multiple of 4 for --prompts" in refused.stdout


def test_the_flags_of_a_run_that_was_stopped_are_its_own(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    saved = {"script": "ctwa", **asdict(import_module("algos.ctwa").Args(prompts=6)), "resume": "", "out": str(run)}
    (run / "args.json").write_text(json.dumps(saved))
    done = run_script(str(ROOT / "run.py"), "doctor", "--algorithm", "ctwa", "--resume", str(run), "--mini-batches", "4", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "--mini-batches (was 2)" in done.stderr
    assert [path.name for path in run.iterdir()] == ["args.json"]


def test_an_unknown_algorithm_is_named(tmp_path):
    done = run_script(str(ROOT / "run.py"), "doctor", "--algorithm", "mdga", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (2, "error: doctor: --algorithm mdga does not exist; did you mean 'mgda'?\n")


# --- broken on purpose ---


def test_a_file_in_the_way_of_the_out_folder(examine, tmp_path):
    (tmp_path / "file").touch()
    for out in ("file", "file/deeper/run"):
        found = examine(out=str(tmp_path / out))
        assert failures(found) == {"out folder"}
        assert f"{tmp_path / out}: " in found["out folder"][1]
        assert "fix: give another --out" in found["out folder"][1]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_that_is_there_is_left_as_it_was(examine, tmp_path):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "doctor.txt").write_text("mine")
    assert failures(examine()) == failures(examine(out="runs/mine/new/newer")) == set()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["runs", "runs/mine", "runs/mine/doctor.txt"]


def test_too_little_memory_and_what_would_help(examine, monkeypatch):
    monkeypatch.setattr(doctor, "available_memory", lambda: 2**20)
    found = examine(prompts=2, completions=2, max_prompt_length=64)
    assert failures(found) == {"memory"}
    assert re.search(r"host needs [\d.]+ MiB of 1.0 MiB free; largest: ", found["memory"][1])
    assert "fix: try --activation-checkpointing, a --micro-batch-tokens below 4096, more ranks" in found["memory"][1]
    assert found["tied embeddings"] == ("skip", "needs memory to pass")  # nothing is loaded that would not fit
    many = examine(completions=1000, activation_checkpointing=True)
    assert "fix: try a smaller --prompts, --completions or --max-new-tokens, more ranks" in many["memory"][1]


def test_the_cache_is_as_long_as_the_data_not_as_they_may_be(examine, monkeypatch):
    monkeypatch.setattr(doctor, "available_memory", lambda: 0)
    monkeypatch.setattr(doctor.memory, "readable", str)
    flags = {"prompts": 64, "completions": 64, "max_new_tokens": 5, "micro_batch_tokens": 1}
    for allowed in (1024, 11):  # the prompts have 11 tokens
        told = examine(max_prompt_length=allowed, **flags)["memory"][1]
        assert f"key-value cache {2 * 4 * 2 * 64 * 64 * 64 * (11 + 5)}" in told  # 2 c layers kv_heads head_dim rows length
    told = examine(max_prompt_length=1024, dataset="no/such-data", **flags)["memory"][1]
    assert f"key-value cache {2 * 4 * 2 * 64 * 64 * 64 * (1024 + 5)}" in told  # not known: what is allowed


@pytest.fixture
def own_group(monkeypatch):
    """What bfloat16 starts in this process, a group of one rank and the variables that say so, ends with the test."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    yield
    ranks.stop()


@pytest.mark.parametrize(("dtype", "native", "slow"), [("bfloat16", False, 1), ("bfloat16", True, 0), ("auto", False, 0)])
@pytest.mark.skipif(torch.cuda.is_available(), reason="of processors")
def test_a_processor_that_is_slow_in_bfloat16_is_told(dtype, native, slow, monkeypatch):
    monkeypatch.setattr(doctor.torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: native)
    told = doctor.devices(doctor.Visit(import_module("algos.linear").Args(compute_dtype=dtype), "linear"))
    assert told.count("no instructions for bfloat16") == slow


def test_weights_that_are_badly_spread_are_told(examine, tmp_path, own_group):
    """Half of the q_proj midway between two bfloat16 numbers, all of k_proj on one; of 4,096 weights each."""

    def change(weights):
        middle, on = weights[Q], weights[Q.replace("q_proj", "k_proj")]
        middle[:32] = (middle[:32].bfloat16().float().view(torch.int32) + 2**15).view(torch.float32)
        on.copy_(on.bfloat16())
        return weights

    model = copy_of_base(tmp_path / "model", change)
    told = examine(model=model, compute_dtype="bfloat16")["rounding"]
    share = [f"{count / 111_424:.1%}" for count in (2048, 4096)]
    said = f"{share[0]} of the weights lie midway between two bfloat16 numbers, {share[1]} on one: a run spreads them evenly"
    assert told[0] == "pass"
    assert told[1].startswith(said)
    assert examine(model=model)["rounding"] == ("skip", "computes in float32, in which every step of the optimizer counts")


def test_gradients_per_objective_are_counted(examine, monkeypatch):
    monkeypatch.setattr(doctor, "available_memory", lambda: 0)
    small = {"prompts": 2, "completions": 2, "max_prompt_length": 4, "max_new_tokens": 4, "kl_coef": 0.0}
    monkeypatch.setattr(doctor.memory, "readable", str)
    needs = {}
    for name in ("linear", "mgda"):
        needs[name] = int(re.search(r"host needs (\d+)", examine(name, **small)["memory"][1])[1])
    assert needs["mgda"] - needs["linear"] == 2 * 4 * 111_424  # three, not one; their sum is formed in the first


def test_too_little_disk(examine, monkeypatch):
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    found = examine()
    assert failures(found) == {"disk"}
    assert "for two checkpoints, one more being written, and the model; 1.0 MiB are free" in found["disk"][1]
    assert "for three checkpoints, one more" in examine(keep_safe=True)["disk"][1]
    assert "fix: free some, or give --out on a larger disk" in found["disk"][1]


def own_reward(folder: Path, body: str) -> str:
    (folder / "doctored.py").write_text(f"def mine(completions, prompts, **kwargs):\n    {body}\n")
    return f"{folder / 'doctored.py'}:mine"


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("return [0.5] * len(prompts)", "mine 0.5 for all"),
        ("return [float(sum(map(ord, prompt))) for prompt in prompts]", "mine the same within every prompt"),
        ("return [float(len(set(completions)) > 1)] * len(prompts)", "mine 1 for all"),
    ],
)
def test_a_reward_that_does_not_vary_is_told_and_alone_fails(body, told, examine, tmp_path):
    mine = own_reward(tmp_path, body)
    alone = examine(rewards=(mine,))
    assert failures(alone) == {"rewards vary"}
    assert f"of 32 completions: {told}: nothing can be learned" in alone["rewards vary"][1]
    beside = examine(rewards=("rewards.clarity:clarity", mine))
    assert failures(beside) == set()
    assert re.search(rf"clarity 0.\d\d on average, differs in [1-8] of 8 prompts; {told}", beside["rewards vary"][1])


def test_a_reward_that_raises_is_found(examine, tmp_path):
    found = examine(rewards=(own_reward(tmp_path, "raise KeyError('gold')"),))
    assert failures(found) == {"rewards vary"}
    assert "the reward 'mine' raised KeyError: 'gold'" in found["rewards vary"][1]


@pytest.mark.parametrize(("check", "verdict"), [("exact", True), ("boxed", False), ("math-verify", True)])
def test_a_broken_answer_checker(check, verdict, examine, monkeypatch):
    monkeypatch.setitem(checker._CHECKS, check, lambda content, gold: verdict)
    found = examine()
    assert failures(found) == {"answer checker"}
    assert f"{check} says that " in found["answer checker"][1]
    assert f"is {'right' if verdict else 'wrong'} for " in found["answer checker"][1]
    assert "undo changes to rewards/accuracy.py" in found["answer checker"][1]


def test_math_verify_is_missing(examine, monkeypatch):
    checker._math_verify.cache_clear()
    checker._gold_expression.cache_clear()
    monkeypatch.setitem(sys.modules, "math_verify", None)
    found = examine()
    assert failures(found) == {"answer checker"}
    assert "pip install math-verify" in found["answer checker"][1]


@pytest.mark.parametrize(
    ("flags", "failed", "said"),
    [
        ({"model": "no/such-model"}, "model", "--model no/such-model: .* fix: give --model a hub name"),
        ({"model": "testbed:fragil"}, "model", "fragil"),
        ({"dataset": "no/such-data"}, "dataset", "--dataset no/such-data could not be read.* fix: correct --dataset"),
        ({"max_new_tokens": 200}, "dataset", "do not fit in the 128 positions of --model testbed;.* fix: lower --max-new-tokens"),
        ({"max_prompt_length": 3}, "dataset", "--max-prompt-length 3 drops every"),
        ({"prompts": 7}, "dataset", "--prompts 7 cannot be divided .* fix: take a multiple of 2 for --prompts"),
        ({"prompts": 1400, "completions": 2}, "dataset", "--prompts 1400 is more than the 1387 training prompts fix: lower --prompts"),
        ({"rewards": ("rewards.accuracy:acuracy",)}, "rewards", "has no 'acuracy'.* fix: correct --rewards"),
    ],
)
def test_mistakes_in_the_flags(flags, failed, said, examine):
    found = examine(**flags)
    assert failures(found) == {failed}
    assert re.search(said, found[failed][1])


def test_versions_that_do_not_agree(examine, monkeypatch):
    pins = [("torch", "==1.0"), ("numpy", ">=2"), ("no-such-package", ">=1")]
    monkeypatch.setattr(doctor, "requirements", lambda path: pins)
    found = examine()
    assert failures(found) == {"versions"}
    assert (
        f"torch {torch.__version__}, not ==1.0; no-such-package is not installed fix: pip install -r requirements.txt"
        in found["versions"][1]
    )


def test_the_requirements_files_are_read():
    pins = dict(doctor.requirements(ROOT / "requirements.txt"))
    assert {"torch", "transformers", "datasets", "tyro", "math-verify"} <= pins.keys()
    assert pins["torch"] == "==2.13.0"
    assert pins["transformers"] == ">=5.16.1,<5.20"
    assert dict(doctor.requirements(ROOT / "requirements-vllm.txt"))["vllm"].startswith("==")


def test_memory_that_the_kernel_gives_back_is_free(tmp_path, monkeypatch):
    """In a container that has just downloaded a model, most of `memory.current` is pages of its files."""
    files = {
        "proc/meminfo": "MemTotal: 900 kB\nMemAvailable:   800 kB\n",
        "sys/fs/cgroup/memory.max": "600000\n",
        "sys/fs/cgroup/memory.current": "590000\n",
        "sys/fs/cgroup/memory.stat": "anon 90000\nfile 500000\ninactive_file 450000\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(doctor, "Path", lambda path: tmp_path / path.lstrip("/"))
    assert doctor.available_memory() == 600000 - 590000 + 450000
    (tmp_path / "sys/fs/cgroup/memory.max").write_text("max\n")
    assert doctor.available_memory() == 800 * 1024
    (tmp_path / "proc/meminfo").unlink()
    monkeypatch.delattr(os, "sysconf")  # as on Windows
    with pytest.raises(doctor.Skipped):
        doctor.available_memory()


def test_ranks_that_do_not_add_up(examine, monkeypatch):
    monkeypatch.setattr(ranks, "all_sum", lambda tensor: tensor * 3)
    found = examine()
    assert failures(found) == {"ranks"}
    assert "the sum of ones over 1 ranks, on cpu, is 3" in found["ranks"][1]
    assert found["model"] == ("skip", "needs ranks to pass")


def test_embeddings_that_came_untied(examine, monkeypatch):
    load = common.model.load_model

    def untied(*args, **kwargs):
        policy = load(*args, **kwargs)
        policy.lm_head.weight = torch.nn.Parameter(policy.lm_head.weight.clone())
        return policy

    monkeypatch.setattr(common.model, "load_model", untied)
    found = examine()
    assert failures(found) == {"tied embeddings"}
    assert "the config says tied, and the loaded policy is untied" in found["tied embeddings"][1]


class Stale(common.rollout.TransformersEngine):
    """Has the weights of the file, whatever is synced."""

    def sync(self, model, version):
        self.model, self.version = load_whole("testbed", CPU), version


class Hot(common.rollout.TransformersEngine):
    """Samples at another temperature than it is told."""

    def generate(self, prompts, completions, max_new_tokens, temperature, seeds):
        return super().generate(prompts, completions, max_new_tokens, temperature * 1.1, seeds)


class Asleep(common.rollout.TransformersEngine):
    """Forgets to say that it has new weights."""

    def sync(self, model, version):
        self.model, self.version = model, 0


@pytest.mark.parametrize(
    ("engine", "failed", "said"),
    [
        (Stale, "weights arrive", "nats over .* fix: sync does not reach the sampler"),
        (Hot, "sampler canary", "nats over .* fix: compare with --engine transformers"),
        (Asleep, "weights arrive", "the sampler has the weights of step 0, not of 1"),
    ],
)
def test_a_broken_sampler(engine, failed, said, examine, monkeypatch):
    monkeypatch.setattr(common.rollout, "TransformersEngine", engine)
    found = examine()
    assert failures(found) == {failed}
    assert re.search(said, found[failed][1])


def test_a_check_that_raises_is_a_failure_of_one_line(examine, monkeypatch):
    def broken(*args):
        raise RuntimeError("first line\nsecond line")

    monkeypatch.setattr(common.rollout, "make_engine", broken)
    found = examine()
    assert failures(found) == {"tied embeddings"}
    assert "RuntimeError: first line fix: " in found["tied embeddings"][1]
    assert "second line" not in examine.page


def test_one_rank_that_fails_fails_the_check():
    passed, skipped, failed = ("pass", "fine", ""), ("skip", "not here", ""), ("FAIL", "broken", "mend it")
    assert doctor._worst([passed, passed]) == passed
    assert doctor._worst([passed, skipped]) == ("skip", "rank 1: not here", "")
    assert doctor._worst([passed, skipped, failed]) == ("FAIL", "rank 2: broken", "mend it")
    assert doctor._worst([failed, failed]) == failed

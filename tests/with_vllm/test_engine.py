"""The vLLM engine on a CPU, against the Hugging Face model; the environment is
requirements-vllm-cpu.txt, the command CONTRIBUTING's.

One engine serves all tests, because vLLM starts slowly and once per process; every test begins with
the first weights. The folder is not called vllm, for then `import vllm` would find it from the
tests beside it.
"""

import functools
import json
import subprocess
import sys
import types
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
import wide
from sampled import STOP, disturbed, gap, logprobs_of, prompts, start
from torch import nn

from common import ranks
from common.errors import UserError
from common.vllm_engine import VLLMEngine

HERE = Path(__file__).parent
pytest.importorskip("vllm", reason="the vLLM environment only: requirements-vllm-cpu.txt")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return wide.write(tmp_path_factory.mktemp("wide"))


@pytest.fixture(scope="module")
def policy(folder) -> nn.Module:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def started(folder) -> VLLMEngine:
    import vllm

    ranks.start(single=True)
    with pytest.MonkeyPatch.context() as patch:
        # the prefix cache keeps whole blocks, on a CPU of 128 tokens: too long for prompts of this
        # model
        patch.setattr(vllm, "LLM", functools.partial(vllm.LLM, block_size=32))
        return start(folder, seed=2**40)


@pytest.fixture
def engine(started, policy) -> VLLMEngine:
    started.sync(policy, 0)
    return started


@pytest.mark.parametrize("temperature", [1.0, 0.7, 1.3])
def test_logprobs_are_those_of_the_model_at_this_temperature(engine, policy, temperature):
    assert gap(engine, policy, prompts(12), temperature) < 1e-5


def test_a_completion_ends_with_its_stop_token_or_at_the_longest_length(engine):
    ids, logprobs = engine.generate(prompts(12), 4, 10, 1.0, list(range(12)))
    assert len(ids) == 48
    assert [len(row) for row in ids] == [len(row) for row in logprobs]
    assert all(STOP not in row[:-1] and len(row) <= 10 for row in ids)
    assert all(row[-1] == STOP for row in ids if len(row) < 10)
    assert {row[-1] == STOP for row in ids} == {True, False}
    engine.stop_ids = {STOP, 23}  # a chat model may have several
    ids, _ = engine.generate(prompts(12), 4, 10, 1.0, list(range(12)))
    engine.stop_ids = {STOP}
    assert {row[-1] for row in ids if len(row) < 10} == {STOP, 23}
    assert all(not {STOP, 23} & set(row[:-1]) for row in ids)


def test_sync_brings_the_weights_and_nothing_else_does(engine, policy):
    trained = disturbed(policy)
    assert gap(engine, trained, prompts(12)) > 0.05
    engine.sync(trained, 7)
    assert engine.version == 7
    assert gap(engine, trained, prompts(12)) < 1e-5
    with torch.no_grad():
        for parameter in (
            trained.parameters()
        ):  # the engine has tensors of its own, also where nothing had to be gathered or cast
            parameter += 0.1 * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(2)
            )
    assert gap(engine, trained, prompts(12)) > 0.05


def test_sync_empties_the_prefix_cache_and_stops_where_it_cannot(engine, policy, monkeypatch):
    long, trained = prompts(6, length=70), disturbed(policy)  # two blocks of 32 tokens and a rest
    assert gap(engine, policy, long) < 1e-5
    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "reset_prefix_cache", lambda: True)
        engine.sync(trained, 1)
    assert gap(engine, trained, long) > 0.01  # new weights on old keys and values
    engine.sync(trained, 1)
    assert gap(engine, trained, long) < 1e-5
    with monkeypatch.context() as patch:
        patch.setattr(engine.llm, "reset_prefix_cache", lambda: False)
        with pytest.raises(RuntimeError, match="prefix cache"):
            engine.sync(trained, 2)
    assert engine.version == -1  # of no step: the canary would stop the run


def test_a_completion_depends_on_its_prompt_and_seed_alone(engine):
    asked, seeds = prompts(8), [2**63 - 1 - i * 10**15 for i in range(8)]
    ids, logprobs = engine.generate(asked, 4, 24, 1.0, seeds)
    again, same = engine.generate(asked, 4, 24, 1.0, seeds)
    assert (ids, logprobs) == (again, same)
    alone, _ = engine.generate(asked[5:6], 4, 24, 1.0, seeds[5:6])
    assert alone == ids[20:24]
    backwards, _ = engine.generate(asked[::-1], 4, 24, 1.0, seeds[::-1])
    assert backwards[8:12] == ids[20:24]
    other, _ = engine.generate(asked, 4, 24, 1.0, [seed - 1000 for seed in seeds])
    assert sum(a == b for a, b in zip(ids, other, strict=True)) < 8
    assert (
        sum(len({tuple(row) for row in ids[4 * i : 4 * i + 4]}) for i in range(8)) > 20
    )  # of 32; some prompts leave little choice
    assert engine.generate([], 4, 24, 1.0, []) == ([], [])


def test_tokens_come_with_the_frequency_of_their_probability(engine, policy):
    asked = prompts(1) * 50  # the same prompt under different seeds
    ids, _ = engine.generate(asked, 40, 1, 0.7, [1000 * i for i in range(50)])
    with torch.no_grad():
        probability = (policy(torch.tensor(asked[:1])).logits[0, -1] / 0.7).softmax(-1)
    seen = torch.bincount(torch.tensor(ids).flatten(), minlength=len(probability)) / 2000
    error = (probability * (1 - probability) / 2000).sqrt()
    assert ((seen - probability).abs() <= 4 * error + 1e-3).all()


def test_temperature_0_takes_the_likeliest_token(engine, policy):
    ids, logprobs = engine.generate(prompts(3), 2, 12, 0.0, [0, 1, 2])
    assert ids[::2] == ids[1::2]
    for prompt, row, own in zip(prompts(3), ids[::2], logprobs[::2], strict=True):
        text = list(prompt)
        while len(text) < len(prompt) + 12 and text[-1] != STOP:
            text.append(policy(torch.tensor([text])).logits[0, -1].argmax().item())
        assert text[len(prompt) :] == row
        assert torch.allclose(
            torch.tensor(own).double(), logprobs_of(policy, prompt, row, 1.0), atol=1e-5
        )


def test_what_cannot_be_sampled_is_refused(engine, policy):
    assert len(engine.generate([[5] * 100], 1, 28, 1.0, [0])[0]) == 1
    engine.sync(disturbed(policy, float("nan")), 1)
    with pytest.raises(UserError, match="not finite.*--lr"):
        engine.generate([[5, 6]], 1, 4, 1.0, [0])


def test_flags_that_cannot_work_are_named(folder, monkeypatch):
    with pytest.raises(UserError, match="--vllm-tp 2 must divide the ranks"):
        start(folder, vllm_tp=2)
    with pytest.raises(UserError, match="--vllm-sleep"):
        start(folder, vllm_sleep=True)
    with monkeypatch.context() as patch:
        patch.setattr("vllm.LLM", Mock(side_effect=ValueError("no memory left;\n try more")))
        with pytest.raises(UserError, match="--engine vllm could not start.*no memory left;"):
            start(folder)
    monkeypatch.setattr(ranks, "count", lambda: 6)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")  # two nodes of three
    with pytest.raises(UserError, match="--vllm-tp 2 must divide .*of a node"):
        start(folder, vllm_tp=2)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(UserError, match="pip install -r requirements-vllm.txt"):
        start(folder)


def test_sleep_gives_memory_back_between_calls_and_never_samples_what_it_threw_away(
    folder, policy, monkeypatch
):
    """With a stand-in for vLLM that records the calls: a CPU cannot sleep."""
    calls, token = [], types.SimpleNamespace(logprob=-1.0)

    class Recorder:
        def __init__(self, *args, **kwargs):
            self.llm_engine = types.SimpleNamespace(
                engine_core=types.SimpleNamespace(_finalizer=types.SimpleNamespace(detach=list))
            )

        def sleep(self, level):
            calls.append(f"sleep {level}")

        def wake_up(self, tags):
            calls.extend(tags)

        def collective_rpc(self, method, kwargs):
            calls.append(f"{method} {len(list(kwargs['weights_iterator']))}")

        def reset_prefix_cache(self):
            return True

        def generate(self, asked, requests, use_tqdm):
            calls.append("generate")
            return [
                types.SimpleNamespace(
                    outputs=[types.SimpleNamespace(token_ids=(STOP,), logprobs=[{STOP: token}])]
                )
                for _ in asked
            ]

    monkeypatch.setitem(
        sys.modules, "vllm", types.SimpleNamespace(LLM=Recorder, SamplingParams=dict)
    )
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine = start(folder, vllm_sleep=True)
    engine.sync(policy, 0)
    for _ in range(2):
        assert engine.generate([[5]], 1, 1, 1.0, [0]) == ([[STOP]], [[-1.0]])
    engine.sync(policy, 1)
    reload = f"reload_weights {len(list(policy.parameters()))}"
    first = ["sleep 2", "weights", reload, "kv_cache", "generate", "sleep 1"]
    assert calls == [*first, "weights", "kv_cache", "generate", "sleep 1", "weights", reload]


@pytest.mark.parametrize("tensor_parallel", [1, 2])
def test_two_ranks(folder, tmp_path, tensor_parallel):
    """Two processes with a sharded policy: two engines with a share each, or one engine of both."""
    command = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node",
        "2",
        str(HERE / "two_ranks.py"),
    ]
    command += [str(folder), str(tensor_parallel), str(tmp_path / "result.json")]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Traceback" not in done.stderr
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["shares"] == ([[0, 2], [1, 2]] if tensor_parallel == 1 else [[0, 1], [0, 1]])
    assert max(result["stale"]) > 0.05
    assert max(result["gaps"]) < 1e-5
    assert result["same"]
    assert result["local"] == ["2", "2"]

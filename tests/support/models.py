"""Sizes of tiny models of random weights, as transformers' configs take them; copies of a base that something is wrong with, and what is
said about them."""

import json
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from commands import doctor
from common.errors import UserError
from testbed.arithmetic import base_path, tokenizer

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

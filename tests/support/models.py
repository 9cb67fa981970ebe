"""Tiny models of random weights, copies of a base that something is wrong with, and what is said
about them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

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
    "head_dim": 8,
    "max_position_embeddings": 128,
    "eos_token_id": 1,
    "pad_token_id": 0,
    "bos_token_id": None,
}


def random_model(kind: str, auto=AutoModelForCausalLM, **sizes):
    """Of an architecture, with weights so large that a wrong position or mask shows."""
    torch.manual_seed(0)
    model = auto.from_config(CONFIG_MAPPING[kind](**SHAPE | sizes)).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def copy_of_base(folder: Path, change=lambda weights: weights, encoder=None, **config) -> str:
    """The testbed's base as a local folder, its weights changed and its config extended."""
    folder.mkdir()
    (encoder or tokenizer()).save_pretrained(folder)
    own = json.loads((BASE / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(own | config))
    weights = change(load_file(BASE / "model.safetensors"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def refusal(call, *given) -> str:
    """The one line about --model that a call raises."""
    with pytest.raises(UserError) as caught:
        call(*given)
    message = str(caught.value)
    assert message.startswith("--model ")
    assert "\n" not in message
    return message

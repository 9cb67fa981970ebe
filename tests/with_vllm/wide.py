"""A testbed base that vLLM can run on a CPU: `python tests/with_vllm/wide.py FOLDER [BASE]` writes
it, for `--model FOLDER`.

vLLM's attention on CPUs has no heads of 16 dimensions, which the bases have, but of 32. Rotary
embedding turns the pair (i, i + d/2) of a head of d dimensions with frequency theta^(-2i/d), so
pair i of 16 dimensions is pair 2i of 32. With zeros between, and queries longer by the square root
of 2 because attention divides by the square root of d, the wide model is the same function.
"""

import sys
from pathlib import Path

import torch
from torch import Tensor


def widen(weight: Tensor, heads: int) -> Tensor:
    """Projection rows [heads * d, width] of heads of d dimensions -> [heads * 2d, width]: row r of
    a head becomes row 2r."""
    wide = weight.new_zeros(heads, weight.size(0) // heads, 2, weight.size(1))
    wide[:, :, 0] = weight.view(heads, -1, weight.size(1))
    return wide.flatten(0, 2)


def write(folder: Path, base: str = "fragile") -> Path:
    """Write the wide base and its tokenizer into the folder and return it."""
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    from testbed.arithmetic import base_path, tokenizer

    narrow = AutoModelForCausalLM.from_pretrained(base_path(base), dtype=torch.float32)
    config = narrow.config.from_dict(
        narrow.config.to_dict() | {"head_dim": 2 * narrow.config.head_dim}
    )
    state, heads = narrow.state_dict(), config.num_attention_heads
    for name, weight in state.items():
        if name.endswith(("q_proj.weight", "k_proj.weight", "v_proj.weight")):
            state[name] = widen(weight, heads) * (2**0.5 if "q_proj" in name else 1.0)
        elif name.endswith("o_proj.weight"):
            state[name] = widen(weight.T, heads).T.contiguous()
    wide = LlamaForCausalLM(config)
    wide.load_state_dict(state)
    wide.generation_config = narrow.generation_config
    wide.save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[2]))
    print(write(*map(Path, sys.argv[1:2]), *sys.argv[2:3]))

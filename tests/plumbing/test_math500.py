"""MATH-500 end to end with a tiny model of random weights: chat template, instruction, length limits, sampling, answer checking, training.

The files are ../shared/data/math500 beside the repository; where they are not, these tests say so and skip. `--dataset math500` loads the
same problems by their hub name.
"""

import json

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from common.model import load_tokenizer
from common.rollout import TransformersEngine
from prompts import BOXED_SUFFIX, load_prompts
from support.models import SHAPE
from support.running import ROOT, read_metrics, train

MATH500 = ROOT.parent / "shared" / "data" / "math500"
pytestmark = pytest.mark.skipif(not MATH500.is_dir(), reason="MATH-500 is not beside the repository (../shared/data/math500)")
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    """A Qwen2 of 60k parameters whose tokens are bytes, with ChatML's special tokens: end of turn stops, as in Qwen's chat models."""
    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({c: i for i, c in enumerate(alphabet)}, []))
    backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|endoftext|>", additional_special_tokens=special[1:]
    )
    tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = SHAPE | {"vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    ids = tokenizer.convert_tokens_to_ids(["<|endoftext|>", "<|im_end|>"])
    made = Qwen2ForCausalLM(Qwen2Config(**shape | {"eos_token_id": ids[1], "pad_token_id": ids[0]}))
    made.generation_config.eos_token_id = [ids[1], ids[0]]
    made.save_pretrained(folder)
    return str(folder)


def test_prompts_carry_template_instruction_and_respect_the_limit(model, capsys):
    tokenizer = load_tokenizer(model)
    data = load_prompts(str(MATH500), tokenizer, "", "", "", 400)
    printed = capsys.readouterr().out
    for split, total in (("train", 300), ("tune", 100), ("test", 100)):
        prompts = data[split]
        assert f"dropped {total - len(prompts)} of {total} {split} prompts longer than --max-prompt-length 400 tokens" in printed
        assert max(map(len, prompts.ids)) <= 400
        for text, ids in zip(prompts.columns["prompt"], prompts.ids, strict=True):
            assert text.startswith("<|im_start|>user\n")
            assert text.endswith(BOXED_SUFFIX.strip() + "<|im_end|>\n<|im_start|>assistant\n")
            assert text.count(BOXED_SUFFIX.strip()) == 1
            assert ids[0] == tokenizer.convert_tokens_to_ids("<|im_start|>")  # one token, added once
            assert tokenizer.decode(ids) == text


@pytest.mark.parametrize("name", ["ctwa", "mgda"])
def test_training_on_math500(name, model, tmp_path):
    flags = {"model": model, "dataset": str(MATH500), "max_prompt_length": 300, "max_new_tokens": 24, "micro_batch_tokens": 800}
    rows = train(name, tmp_path / "run", steps=2, lr=1e-2, **flags)
    assert [row["step"] for row in rows] == [0, 1, 2]
    assert max(row["sampler/gap"] for row in rows[1:]) < 1e-4
    assert all(row["length/mean"] <= 24 for row in rows[1:])
    assert rows[1]["length/truncated"] > 0.5  # a random model seldom ends by itself
    assert rows[2]["loss/kl"] > 0
    assert all(row["reward/accuracy"] == 0 for row in rows[1:])  # nor does it solve anything
    sample = json.loads((tmp_path / "run" / "completions.jsonl").read_text().splitlines()[0])
    assert sample["prompt"].startswith("<|im_start|>user\n")


@pytest.mark.parametrize("check", ["auto", "boxed"])
def test_right_answers_are_right_from_the_sampler_to_the_log(check, model, tmp_path, monkeypatch):
    """A sampler that solves every problem in half of its completions: accuracy is .5 in every step, evaluation and prompt."""
    tokenizer, generate = load_tokenizer(model), TransformersEngine.generate
    table = {}
    for prompts in load_prompts(str(MATH500), tokenizer, "", "", "", 600).values():
        table |= {tuple(ids): answer for ids, answer in zip(prompts.ids, prompts.columns["answer"], strict=True)}

    def solve(self, prompts, completions, max_new_tokens, temperature, seeds):
        ids, _ = generate(self, prompts, completions, 2, temperature, seeds)
        texts = [
            rf"1. Thus the answer is \boxed{{{table[tuple(p)] if (i + n) % 2 else 'unknown'}}}."
            for n, p in enumerate(prompts)
            for i in range(completions)
        ]
        ids = [[*tokenizer(text)["input_ids"], tokenizer.eos_token_id] for text in texts]
        return ids, [[0.0] * len(row) for row in ids]

    monkeypatch.setattr(TransformersEngine, "generate", solve)
    flags = {"model": model, "dataset": str(MATH500), "max_prompt_length": 600, "answer_check": check, "max_logp_gap": 99.0}
    rows = train("linear", tmp_path / "run", steps=2, **flags)
    assert [row["reward/accuracy"] for row in rows[1:]] == [0.5, 0.5]
    assert rows[0]["eval/accuracy"] == 0.5
    assert rows[1]["signal/accuracy"] == 1
    assert read_metrics(tmp_path / "run")[2]["length/truncated"] == 0

"""The testbed: exact round trips, disjoint splits, right answers, styles that earn what they should, and bases that can be rebuilt."""

import ast
import operator
import random
from dataclasses import replace
from itertools import product

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.errors import UserError
from common.rollout import TransformersEngine
from rewards.accuracy import accuracy
from rewards.clarity import clarity
from support.running import run_script
from testbed import arithmetic
from testbed.arithmetic import BASES, SLIPS, VOCABULARY, Problem, base_path, build, pretrain, problems, solution, split, tokenizer

TOKENIZER = tokenizer()


def encode(text: str) -> list[int]:
    return TOKENIZER(text)["input_ids"]


def value(expression: str) -> int:
    """An arithmetic oracle of its own: walks Python's syntax tree."""
    operators = {ast.Add: operator.add, ast.Sub: operator.sub}

    def walk(node) -> int:
        return node.value if isinstance(node, ast.Constant) else operators[type(node.op)](walk(node.left), walk(node.right))

    return walk(ast.parse(expression, mode="eval").body)


# --- tokenizer ---


@settings(deadline=None, max_examples=300)
@given(st.lists(st.integers(3, len(VOCABULARY) - 1), max_size=60))
def test_any_ids_survive_decoding_and_encoding(ids):
    assert encode(TOKENIZER.decode(ids)) == ids


@pytest.mark.parametrize("operations", [2, 3])
def test_every_problem_and_solution_survives_encoding_and_decoding(operations):
    rng = random.Random(0)
    for name in ("train", "tune", "test"):
        for problem in split(name, operations)[:1500]:
            for text in (problem.prompt, solution(problem, rng.choice(list(SLIPS)), rng)):
                ids = encode(text)
                assert TOKENIZER.decode(ids) == text
                assert TOKENIZER.unk_token_id not in ids


@pytest.mark.parametrize("base", ["fragile", "fragile-gpt2"])
def test_the_tokenizer_is_the_same_after_saving_beside_a_base(base, tmp_path):
    AutoModelForCausalLM.from_pretrained(base_path(base)).save_pretrained(tmp_path)
    TOKENIZER.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    texts = [problem.prompt for problem in split("test")]
    assert loaded(texts)["input_ids"] == TOKENIZER(texts)["input_ids"]
    ids = [list(range(3, len(VOCABULARY)))]
    assert loaded.batch_decode(ids) == TOKENIZER.batch_decode(ids)
    assert (loaded.pad_token_id, loaded.eos_token_id, loaded.padding_side) == (0, 1, "left")


def test_what_is_not_in_the_vocabulary_is_unknown():
    assert encode("so 77 the") == [VOCABULARY.index("so"), 2, VOCABULARY.index("the")]


# --- problems ---


@pytest.mark.parametrize("operations", [2, 3])
def test_splits_partition_all_problems(operations):
    parts = {name: set(split(name, operations)) for name in ("train", "tune", "test")}
    assert len(parts["tune"]) == len(parts["test"]) == arithmetic.HELD_OUT
    assert sum(map(len, parts.values())) == len(set.union(*parts.values()))
    everything = sum(
        all(0 <= v < arithmetic.NUMBERS for v in Problem(operands, signs).values)
        for operands in product(range(1, 10), repeat=operations + 1)
        for signs in product("+-", repeat=operations)
    )
    assert sum(map(len, parts.values())) == everything


def test_answers_are_right():
    for name in ("train", "tune", "test"):
        columns = problems(name, 3 if name == "tune" else 2)
        for prompt, answer in zip(columns["prompt"], columns["answer"], strict=True):
            assert prompt.startswith("Q")
            assert value(prompt.removeprefix("Q").removesuffix("=?\n")) == int(answer)


def test_unknown_split_and_base_name_the_known_ones():
    with pytest.raises(UserError, match="train, tune and test"):
        problems("dev")
    with pytest.raises(UserError, match="testbed:fragil: no such base; known are fragile, wavering, robust"):
        base_path("fragil")


# --- styles ---

#      tokens with <eos> for 2 operations and for 3, clear, boxed
STYLES = {
    "long": (32, 44, False, True),
    "verbose": (40, 55, True, True),
    "compact": (24, 32, True, True),
    "rush": (16, 20, True, True),
    "prose": (17, 23, False, False),
    "direct": (4, 4, False, True),
}


@pytest.mark.parametrize("operations", [2, 3])
@pytest.mark.parametrize("style", SLIPS)
def test_what_a_right_answer_in_each_style_earns(style, operations, monkeypatch):
    monkeypatch.setitem(SLIPS, style, 0.0)
    *tokens, clear, boxed = STYLES[style]
    rng = random.Random(1)
    for problem in split("train", operations)[:200]:
        text = solution(problem, style, rng)
        assert len(encode(text)) + 1 == tokens[operations - 2]
        assert clarity(completions=[text]) == [float(clear)]
        assert accuracy(completions=[text], answer=[str(problem.values[-1])]) == [float(boxed)]


@pytest.mark.parametrize("style", [s for s in SLIPS if s != "prose"])
def test_writers_slip_as_often_as_the_recipe_says(style):
    rng, count = random.Random(2), 4000
    chosen = rng.choices(split("train"), k=count)
    texts = [solution(problem, style, rng) for problem in chosen]
    wrong = count - sum(accuracy(completions=texts, answer=[str(p.values[-1]) for p in chosen]))
    slip = SLIPS[style]
    # rush and direct slip once, in the last operand; elsewhere a slip in either step makes the answer wrong, but for two that cancel
    expected = slip if style in ("rush", "direct") else 1 - (1 - slip) ** 2
    assert abs(wrong / count - expected) < 5 * (expected * (1 - expected) / count) ** 0.5 + slip**2 / 4


# --- bases ---


@pytest.mark.parametrize("name", BASES)
def test_shipped_bases_are_small_and_solve_their_problems(name):
    folder, operations = base_path(name), BASES[name].operations
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors"}
    assert sum(path.stat().st_size for path in folder.iterdir()) < 500_000
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    assert model.config.model_type == BASES[name].family
    assert sum(parameter.numel() for parameter in model.parameters()) < 120_000
    sample = split("tune", operations)[:64]
    prompts, longest = [encode(problem.prompt) for problem in sample], max(tokens[operations - 2] for tokens in STYLES.values())
    assert max(map(len, prompts)) + longest <= model.config.max_position_embeddings
    ids, _ = TransformersEngine(model, TOKENIZER).generate(prompts, 1, longest, 0.0, [0] * 64)
    texts = TOKENIZER.batch_decode(ids, skip_special_tokens=True)
    assert sum(accuracy(completions=texts, answer=[str(problem.values[-1]) for problem in sample])) > 0.85 * 64


def test_bases_differ_in_one_share_alone_and_the_other_two_in_nothing_but_problems_or_architecture():
    alike = [recipe.stages[-1].mixture for recipe in BASES.values() if (recipe.operations, recipe.family) == (2, "llama")]
    assert len({mixture["compact"] for mixture in alike}) == len(alike) == 3
    assert all(sum(mixture.values()) == pytest.approx(1) for mixture in alike)
    assert len({tuple(v for k, v in mixture.items() if k not in ("compact", "long")) for mixture in alike}) == 1
    assert replace(BASES["fragile3"], operations=2) == replace(BASES["fragile-gpt2"], family="llama") == BASES["fragile"]


@pytest.mark.parametrize("name", ["fragile3", "fragile-gpt2"])
def test_a_recipe_decides_problems_and_architecture(name, monkeypatch):
    asked = set()
    whole = arithmetic.split
    monkeypatch.setattr(arithmetic, "split", lambda *which: asked.add(which) or whole(*which))
    recipe = BASES[name]
    model, losses = pretrain(replace(recipe, stages=(replace(recipe.stages[0], steps=3),)))
    assert asked == {("train", 3 if name == "fragile3" else 2)}
    shipped = AutoModelForCausalLM.from_pretrained(base_path(name))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in shipped.state_dict().items()}
    assert losses[-1] < losses[0]
    model.train()  # nothing is random in training mode either
    ids = torch.arange(3, 30)[None]
    assert torch.equal(model(ids).logits, model(ids).logits)


def test_a_short_rebuild_learns_repeats_and_sees_training_problems_only(tmp_path, monkeypatch):
    asked = []
    whole = arithmetic.split
    monkeypatch.setattr(arithmetic, "split", lambda name, *rest: asked.append(name) or whole(name, *rest))
    recipe = BASES["fragile"]
    short = replace(recipe, stages=tuple(replace(stage, steps=14) for stage in recipe.stages))
    monkeypatch.setitem(BASES, "fragile", short)
    build("fragile", tmp_path / "a")
    model, losses = pretrain(short)
    assert set(asked) == {"train"}
    model.save_pretrained(tmp_path / "b")
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()
    assert len(losses) == 28
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])
    shipped = AutoModelForCausalLM.from_pretrained(base_path("fragile"))
    assert {k: v.shape for k, v in model.state_dict().items()} == {k: v.shape for k, v in shipped.state_dict().items()}
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_build_overwrites_nothing_and_names_unknown_bases(tmp_path):
    (tmp_path / "there").mkdir()
    for flags, message in ((["--out", str(tmp_path / "there")], "--out"), (["--base", "x", "--out", str(tmp_path / "new")], "testbed:x")):
        result = run_script("-m", "testbed.arithmetic", "build", *flags)
        assert result.returncode == 2
        assert result.stderr.startswith("error: ")
        assert message in result.stderr
        assert result.stderr.count("\n") == 1

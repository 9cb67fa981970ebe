"""Prompts: files as they stand, columns, splits, chat templates, batches, and the testbed's."""

import ast
import json
import operator
import random
import re
from dataclasses import replace
from functools import partial
from math import ceil

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet
from transformers import AutoModelForCausalLM

from common import data
from common.data import BOXED_SUFFIX, Prompts
from common.errors import UserError
from common.flags import RunFlags
from common.rollout import TransformersEngine
from prompts.chat import render
from prompts.tables import read_splits, read_table
from rewards.accuracy import accuracy
from rewards.clarity import clarity
from testbed import arithmetic, build, words

LARGE = 10**25 + 1  # a float would lose its last digit
TOKENIZER = arithmetic.tokenizer()
CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"


def load(dataset, check="math-verify", tokenizer=TOKENIZER, **flags) -> dict[str, Prompts]:
    args = RunFlags(dataset=str(dataset), **flags)
    return data.load(args, tokenizer, {"accuracy": accuracy}, check)


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def rows(count: int, start: int = 0) -> list[dict]:
    return [{"problem": f"Q{i}", "answer": i, "n": i} for i in range(start, start + count)]


def sizes(found: dict) -> tuple[int, ...]:
    return tuple(len(found[split]) for split in ("train", "tune", "test"))


def numbers(found: dict) -> list[int]:
    return sorted(n for prompts in found.values() for n in prompts.columns["n"])


def templated(template: str):
    tokenizer = arithmetic.tokenizer()
    tokenizer.chat_template = template
    return tokenizer


# --- Files ---

TABLE = {"prompt": ["a", "b\u2028c", "d"], "answer": [LARGE, "7", None], "n": [{"x": [1]}, 0.5, 7]}
LINES = [
    json.dumps(dict(zip(TABLE, row, strict=True))) for row in zip(*TABLE.values(), strict=True)
]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("x.jsonl", "\n".join(LINES)),
        ("x.jsonl", "\ufeff" + "\r\n\n".join(LINES) + "\n"),
        ("x.jsonl", "\n".join(LINES).replace("\\u2028", "\u2028").replace(', "answer": null', "")),
        ("x.json", f"[{', '.join(LINES)}]"),
    ],
)
def test_values_of_json_stand_as_they_are(name, text, tmp_path):
    (tmp_path / name).write_text(text, encoding="utf-8", newline="")
    assert read_table(tmp_path / name) == TABLE


def test_values_of_csv_are_texts_and_parquet_has_its_own(tmp_path):
    cells = ["7", "007", str(LARGE), "None", "nan", "1e5", " 7 ", "", 'a, "b"\nc', "½"]
    written = ['"a, ""b""\nc"' if "b" in cell else cell for cell in cells]
    text = "\ufeffn,answer\n" + "".join(f"0,{cell}\n" for cell in written)
    (tmp_path / "x.csv").write_text(text, encoding="utf-8")
    assert read_table(tmp_path / "x.csv") == {"n": ["0"] * len(cells), "answer": cells}
    table = {"answer": ["None", "007", None], "n": [2**62 + 1, None, 3]}
    parquet.write_table(pa.table(table), tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet") == table


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.jsonl", b"", "rows"),
        ("x.json", b'{"train": []}', "rows"),
        ("x.json", b'[{"a": 1}, {"a"', "line 1"),
        ("x.jsonl", b'{"a": 1}\n\n{"a": \n{"a": 2}\n', "line 4"),
        ("x.jsonl", b'{"a": "\xe9"}', "utf-8"),
        ("x.csv", b"a,b\n1,2\n1,2,3\n", "row 3"),
        ("x.csv", b'a,b\n1,2\n"1,2\n', "unexpected end"),
        ("x.parquet", b"a,b\n1,2\n", "arquet"),
        ("x.xlsx", b"PK", ".parquet, .json, .jsonl, .csv"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(name, content, told, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=told) as caught:
        load(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(f"--dataset: {tmp_path / name} ")
    assert "\n" not in message


def test_the_hub_is_asked_for_a_name_and_its_config(monkeypatch):
    asked = []

    class Table:
        to_dict = staticmethod(lambda: {"problem": ["a"]})

    def load_dataset(*name):
        if name[1] is None:
            raise ValueError("Config name is missing.\nmain, socratic")
        asked.append(name)
        return {"train": Table, "test": Table}

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    expected = {"train": {"problem": ["a"]}, "test": {"problem": ["a"]}}
    assert read_splits("openai/gsm8k:main") == expected
    assert asked == [("openai/gsm8k", "main")]
    with pytest.raises(UserError, match="^--dataset openai/gsm8k .* .Config name is missing.*$"):
        read_splits("openai/gsm8k")


# --- Splits ---


@pytest.mark.parametrize("count", [5, 50, 51])
def test_one_file_is_divided_60_20_20_whatever_the_seed(count, tmp_path):
    file = write(tmp_path / "x.jsonl", rows(count))
    found = load(file)
    held = ceil(0.4 * count)
    assert sizes(found) == (count - held, ceil(held / 2), held // 2)
    assert numbers(found) == list(range(count))
    for split, prompts in load(file, seed=7).items():
        assert prompts.columns == found[split].columns
        assert list(map(str, prompts.columns["n"])) == prompts.columns["answer"]


def test_the_division_does_not_move(tmp_path):
    """With a new version of a library, say."""
    assert load(write(tmp_path / "x.jsonl", rows(10)))["test"].columns["n"] == [6, 5]


def test_a_folder_keeps_its_splits(tmp_path):
    write(tmp_path / "train.jsonl", rows(25))
    write(tmp_path / "test.jsonl", rows(3, 25))
    (tmp_path / "notes.txt").write_text("-")
    without = load(tmp_path)
    assert sizes(without) == (22, 3, 3)
    assert numbers(without) == list(range(28))
    write(tmp_path / "validation.jsonl", rows(4, 28))
    assert sizes(load(tmp_path)) == (25, 4, 3)
    assert load(tmp_path)["test"].columns["n"] == without["test"].columns["n"] == [25, 26, 27]


@pytest.mark.parametrize("names", [["x"], ["train", "test"]])
def test_rows_of_one_prompt_stay_together(names, tmp_path):
    """However it is written."""
    for name in names:
        table = rows(200) if name != "test" else rows(1, 900)
        for row in table:
            text = f"Q{row['n'] % 50 if row['n'] < 900 else 900}"
            row["problem"] = [{"role": "user", "content": text}] if row["n"] % 4 else text
        write(tmp_path / f"{name}.jsonl", table)
    found = load(tmp_path)
    assert len(numbers(found)) == 200 + len(names) - 1
    texts = [set(prompts.columns["prompt"]) for prompts in found.values()]
    assert len(set.union(*texts)) == sum(map(len, texts)) == 50 + len(names) - 1


# --- Columns, and rows that are of no use ---


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        ({"prompt": "Q", "answer": "5"}, {}),
        ({"question": "Q", "solution": r"First \boxed{0}, so \boxed{5}."}, {}),
        ({"problem": "Q", "answer": "4 + 1 = 5\n#### 5"}, {}),
        ({"prompt": "Q", "reward_model": {"ground_truth": 5}}, {}),
        ({"prompt": "Q", "reward_model.ground_truth": 5}, {}),
        ({"asked": {"of": {"me": "Q"}}, "gold": 5.0},
         {"prompt_column": "asked.of.me", "answer_column": "gold"}),
    ],
)  # fmt: skip
def test_columns_are_found(row, flags):
    columns = {name: [cell] for name, cell in row.items()}
    found = data.usable(RunFlags(**flags), "train", columns, {}, "exact")
    assert (found["prompt"], found["answer"]) == (["Q"], ["5"])
    assert row.keys() <= found.keys()  # all reach the rewards


@pytest.mark.parametrize("bad", [None, "", ["1", "2"], {"value": 5}, float("nan"), "?!"])
def test_unusable_answers_are_told_or_dropped(bad, tmp_path, capsys):
    table = rows(60)
    for row in (11, 23, 59):
        table[row]["answer"] = bad
    file = write(tmp_path / "x.jsonl", table)
    told = "--answer-column answer: 3 of 60 rows of train are unusable; in row 11 it is "
    with pytest.raises(UserError, match=f"^{told}.*--drop-unusable$"):
        load(file)
    found = load(file, drop_unusable=True)
    assert f"dropped: {told}" in capsys.readouterr().out
    assert numbers(found) == sorted({*range(60)} - {11, 23, 59})
    assert sizes(found) == (34, 12, 11)
    write(file, [row | {"answer": bad} for row in table])
    with pytest.raises(UserError, match="60 of 60 rows"):
        load(file, drop_unusable=True)


def test_prompts_that_are_empty_or_long_are_dropped_and_counted(tmp_path, capsys):
    prompts = ["", *("1+" * (n % 8) + f"{n}" for n in range(60))]
    write(tmp_path / "train.jsonl", [{"problem": text, "answer": 1} for text in prompts])
    write(tmp_path / "test.jsonl", rows(3))
    found = load(tmp_path, max_prompt_length=9)
    kept = [text for split in ("train", "tune") for text in found[split].columns["prompt"]]
    assert sorted(kept) == sorted(t for t in prompts if 0 < len(TOKENIZER(t)["input_ids"]) <= 9)
    counts = re.findall(r"dropped (\d+) of \d+ (?:train|tune) ", capsys.readouterr().out)
    assert sum(map(int, counts)) == len(prompts) - len(kept) > 1


@pytest.mark.parametrize(
    ("row", "flags", "told"),
    [
        ({}, {"max_prompt_length": 1}, "--max-prompt-length 1 drops every train"),
        ({}, {"prompt_column": "promt"}, "--prompt-column, .* no promt in train.* problem, answer"),
        ({}, {"answer_column": "answer.gold"}, "--answer-column: there is no answer.gold"),
        ({"problem": None}, {}, "a prompt of train is 'None': it must be a text"),
        ({"problem": [{"role": "user", "content": None}]}, {}, "a prompt of train is .* a text"),
    ],
)
def test_mistakes_name_the_flag(row, flags, told, tmp_path):
    file = write(tmp_path / "x.jsonl", [each | row for each in rows(9)])
    with pytest.raises(UserError, match=told) as caught:
        load(file, **flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({}, "the folder has no .parquet"),
        ({"x": rows(1) * 9}, "too few prompts to divide"),
        ({"train": rows(1) * 9, "test": rows(2)}, "too few prompts to divide"),
        ({"train": rows(9), "eval": rows(9)}, "has eval, train; it needs train and test"),
        ({name: rows(9) for name in ("train", "test", "val", "dev")}, "a single one to tune with"),
        ({"x": [{"a": 1}] * 9}, "--prompt-column is needed: .* columns a"),
        ({"train": rows(9), "test": [{"a": 1}] * 9}, "--prompt-column is needed"),
    ],
)
def test_folders_that_cannot_be_used(files, told, tmp_path):
    for name, table in files.items():
        write(tmp_path / f"{name}.jsonl", table)
    with pytest.raises(UserError, match=told):
        load(tmp_path)
    with pytest.raises(UserError, match=r"missing.jsonl: no such file"):
        load(tmp_path / "missing.jsonl")


def test_how_accuracy_compares():
    resolved = {data.answer_check("auto", name) for name in ("arithmetic", "arithmetic3", "words")}
    assert resolved == {"exact"}
    assert data.answer_check("auto", "x.jsonl") == "math-verify"
    assert data.answer_check("boxed", "arithmetic") == "boxed"


# --- What the model reads ---

SYSTEM, USER = {"role": "system", "content": "S"}, {"role": "user", "content": "U"}
SAID, OPEN = ({"role": "assistant", "content": text} for text in ("A", "<think>\n"))
SEARCH = [{"type": "function", "function": {"name": "search"}}]


@pytest.mark.parametrize(
    ("prompt", "text", "plain"),
    [
        ("U", "<user>U!</><assistant>", "U!"),
        (7, "<user>7!</><assistant>", "7!"),
        ([{"content": "U"}], "<user>U!</><assistant>", "U!"),
        ([SYSTEM, USER], "<system>S</><user>U!</><assistant>", "S\nU!"),
        (json.dumps([SYSTEM, USER]), "<system>S</><user>U!</><assistant>", "S\nU!"),
        ('[{"a": 1}, so', '<user>[{"a": 1}, so!</><assistant>', '[{"a": 1}, so!'),
        ([USER, OPEN], "<user>U!</><assistant><think>\n", "U!\n<think>\n"),
        ([USER, SAID, USER, OPEN],
         "<user>U</><assistant>A</><user>U!</><assistant><think>\n", "U\nA\nU!\n<think>\n"),
    ],
)  # fmt: skip
def test_a_prompt_through_a_template_and_without(prompt, text, plain):
    before = json.dumps(prompt)
    assert render(prompt, "!", templated(CHAT), "it") == text
    assert render(prompt, "!", TOKENIZER, "it") == plain
    assert json.dumps(prompt) == before


def test_tools_reach_the_template(tmp_path):
    tokenizer = templated("{% if tools %}{{ tools | tojson }}{% endif %}" + CHAT)
    table = [{"prompt": f"Q{n}", "answer": n, "tools": SEARCH} for n in range(9)]
    for prompts in load(write(tmp_path / "x.jsonl", table), tokenizer=tokenizer).values():
        for text in prompts.columns["prompt"]:
            assert text.startswith('[{"type": "function", "function": {"name": "search"}}]<user>Q')


@pytest.mark.parametrize(
    ("template", "told"),
    [
        ("{{ raise_exception('No system\nrole') }}", "No system"),
        ("{% for m in messages %}{{ m.content }", "unexpected"),
        ("{{ messages[0].content + 1 }}", "concatenate"),
    ],
)
def test_what_a_template_refuses_is_one_line(template, told):
    with pytest.raises(UserError, match=f"^a prompt is refused by the chat template.*{told}") as e:
        render([SYSTEM, USER], "", templated(template), "a prompt")
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("template", ["", "<s>{{ messages[0].content }}"])
def test_special_tokens_are_written_once(template, tmp_path):
    """By the template, or where there is none by the tokenizer."""
    from tokenizers.processors import TemplateProcessing

    tokenizer = templated(template)
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    once = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)])
    tokenizer.backend_tokenizer.post_processor = once
    found = load(write(tmp_path / "x.jsonl", rows(9)), tokenizer=tokenizer)
    ids = [row for prompts in found.values() for row in prompts.ids]
    assert all(row[0] == tokenizer.bos_token_id not in row[1:] for row in ids)


def test_math500_gets_the_papers_instruction_once(monkeypatch):
    hub = {"HuggingFaceH4/MATH-500": {"test": {"problem": list("abcdefghi"), "answer": ["1"] * 9}}}
    monkeypatch.setattr(data, "read_splits", hub.get)
    for flags, suffix in ({}, BOXED_SUFFIX), ({"prompt_suffix": " Go."}, " Go."):
        for prompts in load("math500", tokenizer=templated(CHAT), **flags).values():
            for text in prompts.columns["prompt"]:
                assert re.fullmatch(rf"<user>[a-i]{re.escape(suffix)}</><assistant>", text)


# --- Batches ---


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 12), st.integers(1, 9), st.integers(0, 99))
def test_batches_are_epochs_end_to_end(count, size, seed):
    prompts = Prompts([[i] for i in range(count)], {"prompt": [f"{i}" for i in range(count)]})
    batches = [prompts.batch(step, size, seed) for step in range(1, 2 * count + 1)]
    drawn = [row[0] for batch in batches for row in batch.ids]
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count]) == list(range(count))
    texts = [int(text) for batch in batches for text in batch.columns["prompt"]]
    assert texts == drawn
    assert prompts.batch(2, size, seed) == batches[1]
    of_completions = [one for batch in batches for one in batch.seeds]
    assert len(set(of_completions)) == len(of_completions)


def test_epochs_and_seeds_differ():
    prompts = Prompts([[i] for i in range(30)], {"prompt": [""] * 30})
    orders = [prompts.batch(step, 30, seed).ids for step in (1, 2) for seed in (1, 2)]
    assert len({str(order) for order in orders}) == 4
    repeated = prompts.repeat(2)
    assert [row[0] for row in repeated.ids[:4]] == [0, 0, 1, 1]


# --- The testbed ---


def worth(expression: str) -> int:
    """An oracle of its own: walks Python's syntax tree."""
    signs = {ast.Add: operator.add, ast.Sub: operator.sub}

    def walk(node) -> int:
        if isinstance(node, ast.Constant):
            return node.value
        return signs[type(node.op)](walk(node.left), walk(node.right))

    return walk(ast.parse(expression, mode="eval").body)


@pytest.mark.parametrize(
    ("problems", "count", "first"),
    [
        (arithmetic.problems, 1899, "Q(9+4)+8=?\n"),
        (partial(arithmetic.problems, operations=3), 30036, "Q((3+5)+1)-5=?\n"),
        (words.problems, 2560, "Tom has 12 books and gets 20 more. How many books now?"),
    ],
)
def test_built_in_splits_are_disjoint_right_and_do_not_move(problems, count, first):
    found = {split: problems(split) for split in ("train", "tune", "test")}
    asked = {split: one.get("question", one["prompt"]) for split, one in found.items()}
    assert len({text for texts in asked.values() for text in texts}) == count
    assert sum(map(len, asked.values())) == count
    assert len(asked["tune"]) == len(asked["test"]) == 256
    assert asked["test"][0] == first
    for split, texts in asked.items():
        for text, answer in list(zip(texts, found[split]["answer"], strict=True))[:2000]:
            term = text.strip("Q=?\n")
            if problems is words.problems:
                sign = "+" if re.search(r" (buys|finds|gets) \d+ more\. ", text) else "-"
                assert (sign == "-") == bool(re.search(r" (loses|sells|gives away) \d+\. ", text))
                term = sign.join(re.findall(r"\d+", text))
            assert worth(term) == int(answer) >= 0


def test_word_problems_go_through_a_template_and_show_a_right_example():
    found = words.problems("tune")
    turns = "".join(f"<{turn['role']}>{turn['content']}</>" for turn in words.SHOT)
    text = render(found["prompt"][0], "", templated(CHAT), "it")
    assert text == f"{turns}<user>{found['question'][0]}</><assistant>"
    assert f" {found['unit'][0]} " in found["question"][0]
    assert accuracy([words.SHOT[-1]["content"]], ["9"]) == [1.0]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.integers(3, len(arithmetic.VOCABULARY) - 1), max_size=60))
def test_any_ids_survive_decoding_and_encoding(ids):
    assert TOKENIZER(TOKENIZER.decode(ids))["input_ids"] == ids


#      tokens with <eos> for 2 operations and for 3, clear, boxed
STYLES = {
    "long": (32, 44, 0, 1),
    "verbose": (40, 55, 1, 1),
    "compact": (24, 32, 1, 1),
    "rush": (16, 20, 1, 1),
    "prose": (17, 23, 0, 0),
    "direct": (4, 4, 0, 1),
}


@pytest.mark.parametrize("operations", [2, 3])
@pytest.mark.parametrize("style", STYLES)
def test_what_a_solution_earns_and_how_often_its_writer_slips(style, operations, monkeypatch):
    *tokens, clear, boxed = STYLES[style]
    rng, slip, count = random.Random(1), build.SLIPS[style], 1000
    chosen = rng.choices(arithmetic.split("train", operations), k=count)
    answers = [str(problem.values[-1]) for problem in chosen]
    wrong = [build.solution(problem, style, rng) for problem in chosen]
    monkeypatch.setitem(build.SLIPS, style, 0.0)
    right = [build.solution(problem, style, rng) for problem in chosen]
    for texts in ([problem.prompt for problem in chosen], right, wrong):
        ids = TOKENIZER(texts)["input_ids"]
        assert TOKENIZER.batch_decode(ids) == texts
        assert not any(TOKENIZER.unk_token_id in row for row in ids)
    assert {len(ids) + 1 for ids in TOKENIZER(right)["input_ids"]} == {tokens[operations - 2]}
    assert set(accuracy(right, answers)) == {boxed}
    assert set(clarity(completions=right)) == {clear}
    if boxed:  # rush and direct slip once, the others in any step, where two slips may cancel
        share = slip if slip > 0.5 else 1 - (1 - slip) ** operations
        off = abs(1 - sum(accuracy(wrong, answers)) / count - share)
        assert off < 5 * (share * (1 - share) / count) ** 0.5 + slip**2 / 4


@pytest.mark.parametrize("name", build.BASES)
def test_shipped_bases_solve_their_problems(name):
    folder, recipe = arithmetic.base_path(name), build.BASES[name]
    model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    assert model.config.model_type == recipe.family
    assert sum(parameter.numel() for parameter in model.parameters()) < 120_000
    chosen = arithmetic.split("tune", recipe.operations)[:64]
    prompts = TOKENIZER([problem.prompt for problem in chosen])["input_ids"]
    engine = TransformersEngine(model, {TOKENIZER.eos_token_id}, TOKENIZER.pad_token_id, "cpu")
    ids, _ = engine.generate(prompts, 1, 56, 0.0, [0] * 64)
    texts = TOKENIZER.batch_decode(ids, skip_special_tokens=True)
    assert sum(accuracy(texts, [str(problem.values[-1]) for problem in chosen])) > 0.85 * 64


@pytest.mark.parametrize("name", ["fragile3", "fragile-gpt2"])
def test_a_short_rebuild_learns_and_sees_training_problems_only(name, monkeypatch):
    asked, whole, recipe = set(), build.split, build.BASES[name]
    monkeypatch.setattr(build, "split", lambda *which: asked.add(which) or whole(*which))
    short = replace(recipe, stages=tuple(replace(stage, steps=3) for stage in recipe.stages))
    model, losses = build.pretrain(short)
    assert asked == {("train", recipe.operations)}
    assert sum(losses[-2:]) < 0.95 * sum(losses[:2])
    shipped = AutoModelForCausalLM.from_pretrained(arithmetic.base_path(name)).state_dict()
    assert {key: weight.shape for key, weight in model.state_dict().items()} == {
        key: weight.shape for key, weight in shipped.items()
    }


def test_a_base_is_not_overwritten(tmp_path):
    with pytest.raises(UserError, match="--out .* exists already"):
        build.build("fragile", tmp_path)
    assert not list(tmp_path.iterdir())

"""Rewards of other people's making: what they change, send to other processes, or end stays theirs."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import UserError
from rewards import load, score
from support.running import ROOT

BATCH = {"prompts": ["p", "q"], "completions": ["a b", "c"], "completion_ids": [[1, 2], [3]], "mean_length": 1.0}
COLUMNS = {"prompt": ["p", "q"], "answer": ["1", "2"], "chat": [[{"role": "user", "content": "p"}], []], "meta": [{"k": [1]}, {"k": []}]}

MUTATORS = {
    "sort the completions": "completions.sort(reverse=True)",
    "empty the ids": "[ids.clear() for ids in completion_ids]",
    "change a message": "chat[0][0]['content'] = 'x'",
    "append to a nested list": "meta[0]['k'].append(9)",
    "overwrite the answers": "answer[:] = ['0', '0']",
    "drop a row": "prompts.pop()",
}


@pytest.mark.parametrize("statement", MUTATORS.values(), ids=MUTATORS)
def test_what_one_reward_changes_the_next_one_does_not_see(statement, tmp_path):
    keywords = "prompts, completions, completion_ids, answer, chat, meta"
    (tmp_path / "first_of_two.py").write_text(
        f"def first({keywords}, **rest):\n    n = len(completions)\n    {statement}\n    return [0.0] * n\n"
    )
    seen = {}

    def second(prompts, completions, completion_ids, answer, chat, meta, **rest):
        seen.update(prompts=prompts, completions=completions, completion_ids=completion_ids, answer=answer, chat=chat, meta=meta)
        return [1.0] * len(completions)

    functions = load([f"{tmp_path / 'first_of_two.py'}:first"]) | {"second": second}
    score(functions, **BATCH, columns=COLUMNS)
    assert seen["chat"] == [[{"role": "user", "content": "p"}], []]
    assert seen["meta"] == [{"k": [1]}, {"k": []}]
    assert seen == {k: v for k, v in (BATCH | COLUMNS).items() if k in seen}
    sys.modules.pop("first_of_two", None)
    sys.path.remove(str(tmp_path))


@pytest.mark.parametrize("statement", ["sys.exit()", "sys.exit('no key')", "raise SystemExit(3)"])
def test_a_reward_that_ends_the_program_is_named(statement, tmp_path):
    path = tmp_path / "leaves_the_program.py"
    path.write_text(f"import sys\n\n\ndef leaves(completions, **rest):\n    {statement}\n")
    with pytest.raises(UserError, match=r"the reward 'leaves' raised SystemExit.*leaves_the_program.py, line 5"):
        score(load([f"{path}:leaves"]), **BATCH, columns={})
    sys.modules.pop("leaves_the_program", None)
    sys.path.remove(str(tmp_path))


def test_a_module_that_ends_the_program_when_imported_is_named(tmp_path):
    (tmp_path / "ends_at_once.py").write_text("raise SystemExit('no licence')\n")
    with pytest.raises(UserError, match=r"importing .*ends_at_once.py raised SystemExit: no licence"):
        load([f"{tmp_path / 'ends_at_once.py'}:any"])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_reward_of_a_file_may_use_a_process_pool(method, tmp_path):
    """Whose workers import the function they are sent by its module's name."""
    (tmp_path / "pooled_reward.py").write_text(
        "from concurrent.futures import ProcessPoolExecutor\nfrom multiprocessing import get_context\n\n\n"
        "def length(text):\n    return float(len(text))\n\n\n"
        "def pooled(completions, **rest):\n"
        f"    with ProcessPoolExecutor(2, mp_context=get_context('{method}')) as pool:\n"
        "        return list(pool.map(length, completions))\n"
    )
    program = (
        "from rewards import load, score\n"
        "if __name__ == '__main__':\n"
        f"    functions = load([{str(tmp_path / 'pooled_reward.py')!r} + ':pooled'])\n"
        f"    print(score(functions, **{BATCH!r}, columns={{}}).tolist())\n"
    )
    (tmp_path / "program.py").write_text(program)
    done = subprocess.run(
        [sys.executable, tmp_path / "program.py"], env={"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120
    )
    assert done.stdout == "[[3.0], [1.0]]\n", done.stderr


def test_a_file_named_like_a_module_hides_nothing(tmp_path):
    path = tmp_path / "math.py"
    path.write_text("def five(completions, **rest):\n    return [5.0] * len(completions)\n")
    assert score(load([f"{path}:five"]), **BATCH, columns={}).tolist() == [[5.0], [5.0]]
    import math

    assert math.sqrt(4) == 2
    assert str(tmp_path) not in sys.path


def test_two_files_of_one_name_are_two_modules(tmp_path):
    for folder, value in (("one", 1.0), ("two", 2.0)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "same_name_twice.py").write_text(
            f"def {folder}(completions, **rest):\n    return [{value}] * len(completions)\n"
        )
    functions = load([f"{tmp_path / folder / 'same_name_twice.py'}:{folder}" for folder in ("one", "two")])
    assert score(functions, **BATCH, columns={}).tolist() == [[1.0, 2.0]] * 2
    sys.modules.pop("same_name_twice", None)
    sys.path.remove(str(Path(tmp_path / "one")))

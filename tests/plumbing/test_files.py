"""Data files as users have them: values as they stand in the file, and one line that says where a file is broken."""

import codecs
import gzip
import json
from pathlib import Path

import pytest

from common.errors import UserError
from prompts.files import read_splits, read_table

LARGE = 10**25 + 1  # a float would lose its last digit


def write(file: Path, content: str | bytes) -> Path:
    content = content.encode() if isinstance(content, str) else content
    file.write_bytes(gzip.compress(content) if file.name.endswith(".gz") else content)
    return file


def rows_of(columns: dict[str, list]) -> list[tuple]:
    return list(zip(*columns.values(), strict=True))


# --- Values are what the file says ---

JSON_ROWS = [
    {"prompt": "a", "answer": LARGE},
    {"prompt": "b", "answer": "007"},
    {"prompt": "c", "answer": 7},
    {"prompt": "2024-01-02", "answer": 0.5, "more": {"x": [1, "2"]}},
]
COLUMNS = {"prompt": ["a", "b", "c", "2024-01-02"], "answer": [LARGE, "007", 7, 0.5], "more": [None] * 3 + [{"x": [1, "2"]}]}
LINES = "".join(json.dumps(row) + "\n" for row in JSON_ROWS)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", LINES),
        ("x.jsonl", LINES.replace("\n", "\r\n\r\n")),
        ("x.jsonl", codecs.BOM_UTF8 + LINES.encode()),
        ("x.jsonl", LINES.encode("utf-16")),
        ("x.JSONL", LINES.rstrip("\n")),
        ("x.jsonl.gz", LINES),
        ("x.json", LINES),  # by another name
        ("x.jsonl", json.dumps(JSON_ROWS, indent=1)),
        ("x.json", json.dumps(JSON_ROWS)),
        ("x.json.gz", json.dumps({"data": JSON_ROWS})),
        ("x.json", json.dumps({"version": "1", "examples": JSON_ROWS})),
        ("x.json", json.dumps(COLUMNS)),
        ("x.json", json.dumps({name: {str(i): value for i, value in enumerate(values)} for name, values in COLUMNS.items()})),  # pandas
    ],
)
def test_json(name, content, tmp_path):
    assert read_table(write(tmp_path / name, content), "--dataset x") == COLUMNS


def test_columns_of_numbered_cells_are_read_by_their_numbers(tmp_path):
    file = write(tmp_path / "x.json", '{"prompt": {"0": "a", "1": "b"}, "answer": {"1": "y", "0": "x"}}')
    assert read_table(file, "--dataset x") == {"prompt": ["a", "b"], "answer": ["x", "y"]}


def test_one_row_of_chat_messages_is_no_table_of_messages(tmp_path):
    row = {"messages": [{"role": "user", "content": "U"}], "answer": "1"}
    table = read_table(write(tmp_path / "x.json", json.dumps(row)), "--dataset x")
    assert (
        table == {name: [value] for name, value in row.items()} == read_table(write(tmp_path / "x.jsonl", json.dumps(row)), "--dataset x")
    )


def test_a_column_that_is_empty_for_long_is_read(tmp_path):
    """Table libraries take its type from the first megabytes."""
    lines = [json.dumps({"prompt": "x" * 1000, "note": None})] * 40_000 + [json.dumps({"prompt": "y", "note": "here"})]
    table = read_table(write(tmp_path / "x.jsonl", "\n".join(lines)), "--dataset x")
    assert table["note"] == [None] * 40_000 + ["here"]


def test_texts_may_hold_what_other_readers_take_for_the_end_of_a_line(tmp_path):
    text = "one\u2028two\x85three\x0cfour"
    file = write(tmp_path / "x.jsonl", json.dumps({"prompt": text}, ensure_ascii=False) + "\n" + json.dumps({"prompt": "b"}))
    assert read_table(file, "--dataset x") == {"prompt": [text, "b"]}


@pytest.mark.parametrize("name", ["x.csv", "x.csv.gz"])
def test_csv_is_text(name, tmp_path):
    cells = ["7", "007", str(LARGE), "None", "NA", "null", "nan", "True", "1e5", "2024-01-02", " 7 ", "", '"a, ""b""\nc"', "½"]
    content = "prompt,answer\n" + "".join(f"Q{i},{cell}\n" for i, cell in enumerate(cells))
    table = read_table(write(tmp_path / name, codecs.BOM_UTF8 + content.encode()), "--dataset x")
    assert table["answer"] == [*cells[:-2], 'a, "b"\nc', "½"]
    assert table["prompt"] == [f"Q{i}" for i in range(len(cells))]


def test_csv_of_long_fields_blank_lines_and_a_numbered_index(tmp_path):
    long = "x" * 200_000
    table = read_table(write(tmp_path / "x.csv", f",prompt\r\n0,{long}\r\n\r\n1,b"), "--dataset x")
    assert table == {"Unnamed: 0": ["0", "1"], "prompt": [long, "b"]}


def test_parquet_is_read_as_it_is(tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"prompt": ["a", "b"], "answer": ["None", "007"], "n": [2**62, 1]}).to_parquet(tmp_path / "x.parquet")
    assert read_table(tmp_path / "x.parquet", "--dataset x") == {"prompt": ["a", "b"], "answer": ["None", "007"], "n": [2**62, 1]}


# --- What is wrong, and where ---


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("x.jsonl", "", "x.jsonl is empty"),
        ("x.jsonl", "\n \n", "it has no rows"),
        ("x.json", "[]", "it has no rows"),
        ("x.json", "{}", "it is one object with nothing"),
        ("x.csv", "prompt,answer\n", "it has no rows"),
        ("x.csv.gz", "prompt,answer\n", "it has no rows"),
        ("x.jsonl", LINES + '{"prompt": "d", "ans', "line 5 is not JSON (Unterminated string ... ; the file seems to be cut short"),
        ("x.jsonl", LINES + '{"prompt": "d", "answer"\n', "line 5 is not JSON ... ; the file seems to be cut short"),
        ("x.jsonl", LINES.replace('"b"', "b"), "line 2 is not JSON (Expecting value, column 12)"),
        ("x.jsonl", LINES + "[1, 2]\n", "line 5 is '[1, 2]' and must be an object"),
        ("x.jsonl", "# JSON\n" + LINES, "line 1 is not JSON"),
        ("x.json", json.dumps(JSON_ROWS, indent=1)[:-30], "line 1 ... is not JSON ... ; the file seems to be cut short"),
        ("x.json", "[1, 2]", "row 0 is '1' and must be an object"),
        ("x.json", '[{"a": 1}, null]', "row 1 is 'None' and must be an object"),
        ("x.json", "7", "it is '7' and must be a list of rows"),
        ("x.json", json.dumps({"train": JSON_ROWS, "test": JSON_ROWS}), "it is one object with train, test; it must be a list of rows"),
        ("x.json", json.dumps({"prompt": ["a", "b"], "answer": ["1"]}), "it is one object with prompt, answer"),
        ("x.json", "[" * 100_000, "recursion"),
        ("x.jsonl", '{"answer": ' + "9" * 5000 + "}", "line 1: it has an integer of more than 4,300 digits; write it as a text"),
        ("x.json", '{"prompt": {"0": "a"}, "answer": {"1": "y"}}', "it is one object with prompt, answer"),
        ("x.csv", gzip.compress(b"prompt,answer", mtime=0), "it is compressed; name it x.csv.gz"),
        ("x.csv", "prompt,answer\né,1\n".encode("utf-16-le"), "it has bytes 0, as UTF-16 without a byte order mark"),
        ("x.csv", "prompt,answer\na,1\nb,2,3\n", "line 3 has 3 fields and the header 2; a field with a comma"),
        ("x.csv", 'prompt,answer\n"a\nb",1\nc\n', "line 4 has 1 fields and the header 2"),
        ("x.csv", 'prompt,answer\na,1\n"b,2\n', "line 3: unexpected end of data"),
        ("x.csv", "answer,answer\n1,2\n", "its header has 'answer' twice"),
        ("x.csv", "prompt,answer\ncafé,1\n".encode("latin-1"), "line 2 is not utf-8 (byte 0xe9); convert it, as by `iconv -f latin1"),
        ("x.jsonl", '{"prompt": "a"}\n{"prompt": "£"}\n'.encode("cp1252"), "line 2 is not utf-8 (byte 0xa3)"),
        ("x.csv", "prompt,answer\na,1\n".encode("utf-16-le"), "it has bytes 0, as UTF-16 without a byte order mark"),
        ("x.parquet", "prompt,answer\na,1\n", "arquet"),
    ],
)  # fmt: skip
def test_one_line_says_where(name, content, told, tmp_path):
    file = write(tmp_path / name, content)
    with pytest.raises(UserError) as caught:
        read_table(file, f"--dataset {file}")
    message = str(caught.value)
    assert all(part in message for part in told.split(" ... ")), message
    assert message.startswith(f"--dataset {file}")
    assert "\n" not in message


@pytest.mark.parametrize("damage", [lambda raw: raw[:-9], lambda raw: b"no" + raw[2:], lambda raw: raw[:12] + b"!!!!" + raw[16:]])
def test_a_damaged_gz(damage, tmp_path):
    file = tmp_path / "x.jsonl.gz"
    file.write_bytes(damage(gzip.compress(LINES.encode())))
    with pytest.raises(UserError, match=r"--dataset x could not be read: [^\n]+$"):
        read_table(file, "--dataset x")


# --- Folders ---


def folder(path: Path, files: dict[str, str]) -> Path:
    for name, content in files.items():
        write(path / name, content)
    return path


ONE = '{"prompt": "one", "answer": 1}\n'
TWO = '{"prompt": "two", "answer": 2, "level": 3}\n'


def test_files_are_the_splits_whatever_columns_they_have(tmp_path):
    found = read_splits(str(folder(tmp_path, {"train.jsonl.gz": ONE, "test.csv": "prompt,gold\nx,7\n", "notes.txt": "-"})))
    assert found == {"test": {"prompt": ["x"], "gold": ["7"]}, "train": {"prompt": ["one"], "answer": [1]}}


def test_numbered_files_are_one_split(tmp_path):
    names = {"train-00000-of-00002.jsonl": ONE, "train-00001-of-00002.jsonl": TWO, "test-00000-of-00001.jsonl": ONE}
    found = read_splits(str(folder(tmp_path, names)))
    assert found["train"] == {"prompt": ["one", "two"], "answer": [1, 2], "level": [None, 3]}
    assert list(found) == ["test", "train"]


@pytest.mark.parametrize(
    "names",
    [
        ["train-00000-of-00003", "train-00002-of-00003"],
        ["train-00000-of-00001", "train-00000-of-00002", "train-00001-of-00002"],
        ["train", "train-00000-of-00001"],
    ],
)
def test_parts_that_are_not_one_split_are_told(names, tmp_path):
    with pytest.raises(UserError, match=r"train-00000-of-0000\d.jsonl, .* are not the parts of one split"):
        read_splits(str(folder(tmp_path, {f"{name}.jsonl": ONE for name in names})))


def test_files_that_are_no_split_are_not_read_and_told(tmp_path, capsys):
    files = {"train.jsonl": ONE, "._train.jsonl": "\0\0", "dataset_info.json": "7", "test.jsonl": TWO}
    assert list(read_splits(str(folder(tmp_path, files)))) == ["test", "train"]
    assert capsys.readouterr().out.startswith(f"--dataset {tmp_path}: dataset_info is not used; splits are train, test and tune, val")


def test_a_held_out_split_by_another_name_is_not_passed_over(tmp_path):
    with pytest.raises(UserError, match=r"has the splits \['eval', 'train'\]; it needs train and test, or just train"):
        read_splits(str(folder(tmp_path, {"train.jsonl": ONE, "eval.jsonl": TWO})))


@pytest.mark.parametrize("rows", [0, 2])
def test_parquet_of_no_rows(rows, tmp_path):
    from datasets import Dataset

    Dataset.from_dict({"prompt": ["a"] * rows}).to_parquet(tmp_path / "x.parquet")
    if rows:
        assert read_table(tmp_path / "x.parquet", "--dataset x") == {"prompt": ["a", "a"]}
    else:
        with pytest.raises(UserError, match="it has no rows"):
            read_table(tmp_path / "x.parquet", "--dataset x")


@pytest.mark.parametrize("beside", ["test.csv", "test.json", "test.jsonl", "test.csv.gz"])
def test_of_two_files_of_a_split_the_one_taken_is_told(beside, tmp_path, capsys):
    content = "prompt,answer\none,1\n" if "csv" in beside else ONE
    found = read_splits(str(folder(tmp_path, {"train.jsonl": ONE, beside: content, "test.jsonl.gz": TWO})))
    assert found["test"]["prompt"] == ["two"]
    assert capsys.readouterr().out == f"--dataset {tmp_path} has {beside} and test.jsonl.gz: test.jsonl.gz is taken\n"


def test_a_broken_file_of_a_folder_is_named(tmp_path):
    with pytest.raises(UserError, match=rf"^--dataset {tmp_path} could not be read: test.csv: line 2 has 3 fields"):
        read_splits(str(folder(tmp_path, {"train.jsonl": ONE, "test.csv": "prompt,answer\na,b,c\n"})))


@pytest.mark.parametrize("name", ["x.xlsx", "x.parquet.gz", "x.gz", "x.json.zip", "x"])
def test_another_format_is_told(name, tmp_path):
    with pytest.raises(UserError, match=r"cannot read its format; use one of .parquet, .json, .jsonl, .csv, or .gz of the last three"):
        read_splits(str(write(tmp_path / name, "x")))

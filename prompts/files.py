"""Tables from files and from the hub: values as they stand there, and what is wrong with a file in one line that says where.

JSON and csv are read by Python's own readers. Those of table libraries guess a type per column, and turn 10^25 + 1 into a float, `7` into
`7.0`, a date into a time and the word `None` into nothing.
"""

import codecs
import csv
import gzip
import io
import json
import re
import sys
import zlib
from pathlib import Path

from common import ranks
from common.errors import UserError, require
from integrations.model_checks import is_missing

FORMATS = (".parquet", ".json", ".jsonl", ".csv")  # of which all but parquet may be compressed: .json.gz
Columns = dict[str, list]  # each of the length of the table

EXAMPLE = '{"prompt": "...", "answer": "..."}'
DIGITS = "it has an integer of more than 4,300 digits; write it as a text"
CUT = "; the file seems to be cut short"
TUNE_NAMES = ("tune", "val", "validation", "dev")
_SHARD = re.compile(r"-([0-9]{5})-of-([0-9]{5})$")  # how the hub numbers the files of one split
_MARKS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


class _Unreadable(Exception):
    """What is wrong with a file, and where."""


def read_splits(dataset: str) -> dict[str, Columns]:
    """The tables of a file (named "train"), a folder or the hub, by the name of their split. A folder's files are named after their splits,
    `train-00000-of-00002.parquet` too; of `test.csv` and `test.jsonl` the last is taken, and told. hub: `name` or `name:config`.

    Raises UserError naming --dataset, the file and the place in it.
    """
    path, flag = Path(dataset), f"--dataset {dataset}"
    if path.is_file():
        require(bool(ending(path)), f"{flag}: cannot read its format; use one of {', '.join(FORMATS)}, or .gz of the last three")
        return {"train": read_table(path, flag)}
    if not path.is_dir():
        require(not is_missing(dataset), f"{flag}: no such file or folder")
        return _from_hub(dataset)
    files: dict[str, dict[str, list[Path]]] = {}
    for file in sorted(file for file in path.iterdir() if ending(file) and not file.name.startswith(".")):
        split = _SHARD.sub("", file.name.removesuffix(ending(file)))
        files.setdefault(split, {}).setdefault(ending(file), []).append(file)
    require("train" in files, f"{flag}: the folder needs a train file ({', '.join(FORMATS)}); it has {sorted(files)}")
    others = sorted(files.keys() - {"train", "test", *TUNE_NAMES})
    require("test" in files or not others, f"{flag} has the splits {sorted(files)}; it needs train and test, or just train")
    if others and ranks.rank() == 0:
        print(f"{flag}: {', '.join(others)} is not used; splits are train, test and {', '.join(TUNE_NAMES)}")
    found = {}
    for split, kinds in files.items():
        if split not in others:
            tell_choice(dataset, [split + kind for kind in kinds])
            found[split] = _joined(_shards(list(kinds.values())[-1], flag), flag)
    return found


def _shards(files: list[Path], flag: str) -> list[Path]:
    """The files of one split, all of its numbered parts or the only one."""
    numbers = [_SHARD.search(file.name.removesuffix(ending(file))) for file in files]
    if all(numbers):
        totals = {int(number[2]) for number in numbers}
        complete = len(totals) == 1 and {int(number[1]) for number in numbers} == set(range(*totals))
    else:
        complete = len(files) == 1
    names = ", ".join(file.name for file in files)
    require(complete, f"{flag}: {names} are not the parts of one split; add the missing ones, or remove the others")
    return files


def _joined(files: list[Path], flag: str) -> Columns:
    tables = [read_table(file, flag, file.name) for file in files]
    names = dict.fromkeys(name for table in tables for name in table)
    sizes = [len(next(iter(table.values()))) for table in tables]
    cells = {name: [table.get(name, [None] * size) for table, size in zip(tables, sizes, strict=True)] for name in names}
    return {name: [value for part in parts for value in part] for name, parts in cells.items()}


def tell_choice(dataset: str, names: list[str]) -> None:
    """Say, on the first rank, that of several names for one split the last is taken."""
    if len(names) > 1 and ranks.rank() == 0:
        print(f"--dataset {dataset} has {' and '.join(names)}: {names[-1]} is taken")


def ending(file: Path) -> str:
    """The end of its name that says how to read a file, such as .csv or .csv.gz; "" where there is no such end."""
    name = file.name.lower()
    kind = next((kind for kind in FORMATS if name.removesuffix(".gz").endswith(kind)), "")
    if name.endswith(".gz"):
        kind = kind + ".gz" if kind not in ("", ".parquet") else ""
    return file.name[-len(kind) :] if kind else ""


def read_table(file: Path, flag: str, name: str = "") -> Columns:
    """The columns of a file of FORMATS, at least one row long. A row that lacks a column has None there; values of csv are texts.

    flag, name: what it was given by, and which file of a folder it is, for errors. Raises UserError naming them and the place in the file.
    """
    where = f"{flag}: {name}" if name else flag
    require(file.stat().st_size > 0, f"{where} is empty")
    kind = ending(file).lower().removesuffix(".gz")
    try:
        if kind == ".parquet":
            return _with_rows(_parquet(file))
        raw = file.read_bytes()
        if ending(file).lower().endswith(".gz"):
            raw = gzip.decompress(raw)
        elif raw.startswith(b"\x1f\x8b"):
            raise _Unreadable(f"it is compressed; name it {file.name}.gz")
        text = _decode(raw)
        return _with_rows(_csv(text) if kind == ".csv" else _json(text, lines=kind == ".jsonl"))
    except (OSError, EOFError, zlib.error, RecursionError, _Unreadable) as error:
        told = error if isinstance(error, _Unreadable) else cause(error)
        raise UserError(f"{flag} could not be read: {name}{': ' if name else ''}{told}") from error


def cause(error: BaseException) -> str:
    """The first line of the error that all others came from."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _from_hub(dataset: str) -> dict[str, Columns]:
    from datasets import disable_progress_bars, load_dataset
    from datasets.exceptions import DatasetsError

    disable_progress_bars()
    name, _, config = dataset.partition(":")
    try:
        tables = load_dataset(name, config or None)
    except (OSError, ValueError, DatasetsError) as error:  # no such name, no network, splits whose columns differ
        told = cause(error) if isinstance(error, DatasetsError) else " ".join(str(error).split())[:300]
        known = "arithmetic, arithmetic3, words, math500, reasoning-gym:TASK, a hub name, or a parquet, json, jsonl or csv file"
        known = f"{name}:CONFIG" if told.startswith("Config name is missing") else known
        raise UserError(f"--dataset {dataset} could not be read: {told} (expected {known})") from error
    return {split: {name: list(table[name]) for name in table.column_names} for split, table in tables.items()}


def _with_rows(columns: Columns) -> Columns:
    if not columns or not next(iter(columns.values())):
        raise _Unreadable("it has no rows")
    return columns


def _decode(raw: bytes) -> str:
    encoding = next((encoding for mark, encoding in _MARKS.items() if raw.startswith(mark)), "utf-8")
    if encoding == "utf-8" and b"\0" in raw[:1000]:
        raise _Unreadable("it has bytes 0, as UTF-16 without a byte order mark has; convert it, as by `iconv -f utf-16le -t utf-8`")
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        fix = "convert it, as by `iconv -f latin1 -t utf-8`, naming the encoding that it has"
        raise _Unreadable(f"line {line} is not {encoding} (byte 0x{raw[error.start]:02x}); {fix}") from error


def _json(text: str, lines: bool) -> Columns:
    if not lines or text.lstrip().startswith("["):
        try:
            return _columns_of(json.loads(text))
        except json.JSONDecodeError as error:
            if error.msg != "Extra data":  # else it is JSON lines by another name
                told = f"line {error.lineno} is not JSON ({error.msg}, column {error.colno})"
                raise _Unreadable(told + CUT * (not error.doc[error.pos :].strip() or error.msg.startswith("Unterminated"))) from error
        except ValueError as error:
            raise _Unreadable(DIGITS) from error
    rows, texts = [], text.split("\n")  # only line feeds end a line: texts may hold other separators
    last = max((number for number, line in enumerate(texts, 1) if line.strip()), default=0)
    for number, line in enumerate(texts, 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            told = f"line {number} is not JSON ({error.msg}, column {error.colno})"
            raise _Unreadable(told + CUT * (number == last > 1)) from error
        except ValueError as error:
            raise _Unreadable(f"line {number}: {DIGITS}") from error
        if not isinstance(row, dict):
            raise _Unreadable(f"line {number} is {line.strip()[:40]!r} and must be an object, as in {EXAMPLE}")
        rows.append(row)
    return _columns_of(rows)


def _columns_of(found: object) -> Columns:
    """Of a list of rows, an object with one such list (`{"data": [...]}`), or an object of columns."""
    if isinstance(found, dict):
        lists = {name: value for name, value in found.items() if isinstance(value, list)}
        tables = [value for value in lists.values() if value and all(isinstance(row, dict) for row in value)]
        if len(lists) == len(tables) == 1:
            return {name: [value] for name, value in found.items()} if "role" in tables[0][0] else _columns_of(tables[0])  # chat messages
        if found and all(isinstance(value, dict) and value.keys() == found[next(iter(found))].keys() for value in found.values()):
            rows = next(iter(found.values()))  # pandas' columns of numbered cells
            return {name: [cells[row] for row in rows] for name, cells in found.items()}
        if len(tables) < len(found) == len(lists) and len(set(map(len, lists.values()))) == 1:
            return found
        raise _Unreadable(f"it is one object with {', '.join(found) or 'nothing'}; it must be a list of rows, or have just one such list")
    if not isinstance(found, list):
        raise _Unreadable(f"it is {str(found)[:40]!r} and must be a list of rows")
    rows = [{"text": row} if isinstance(row, str) else row for row in found]
    for number, row in enumerate(rows):
        if not isinstance(row, dict):
            raise _Unreadable(f"row {number} is {str(row)[:40]!r} and must be an object")
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _csv(text: str) -> Columns:
    csv.field_size_limit(sys.maxsize)  # by itself 128 kB
    reader, rows, header = csv.reader(io.StringIO(text, newline=""), strict=True), [], []
    try:
        for row in reader:
            if not row:  # a blank line
                continue
            if not header:
                header = [name or f"Unnamed: {place}" for place, name in enumerate(row)]  # as pandas calls an index without a name
                if twice := [name for name in header if header.count(name) > 1]:
                    raise _Unreadable(f"its header has {twice[0]!r} twice")
                continue
            if len(row) != len(header):
                told = f"line {reader.line_num} has {len(row)} fields and the header {len(header)}"
                raise _Unreadable(f"{told}; a field with a comma or a line break needs double quotes around it")
            rows.append(row)
    except csv.Error as error:
        raise _Unreadable(f"line {reader.line_num}: {error}") from error
    return {name: [row[place] for row in rows] for place, name in enumerate(header)}


def _parquet(file: Path) -> Columns:
    from pyarrow import ArrowException
    from pyarrow.parquet import read_table as read

    try:
        table = read(file, partitioning=None)
        if len(set(table.column_names)) < len(table.column_names):
            raise _Unreadable("it has two columns of one name")
        return table.to_pydict()
    except (OSError, ValueError, ArrowException) as error:
        raise _Unreadable(cause(error)) from error

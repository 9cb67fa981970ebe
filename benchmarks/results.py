"""The tables of docs/results.md, from finished runs or from docs/results/table.json.

python -m benchmarks.results --runs results/study     # reads the runs, writes docs/results/table.json and the page's tables
python -m benchmarks.results                          # the page's tables alone, from that file

`table.json` has the values of every run, for other statistics. The page leaves out the column of times: runs of the
study shared their cores with each other and with other work (benchmarks/step_time.py compares times on equal work).
"""

import json
from dataclasses import dataclass
from pathlib import Path

import tyro

from analysis import bench
from benchmarks.differing_lines import insert
from common.errors import plain_errors
from common.files import write_whole

ROOT = Path(__file__).resolve().parents[1]
PAGE, DATA = ROOT / "docs" / "results.md", ROOT / "docs" / "results" / "table.json"
MARKS = ("<!-- tables: begin -->", "<!-- tables: end -->")
ORDER = ("testbed", "testbed:wavering", "testbed:robust")  # others follow


@dataclass
class Args:
    runs: tuple[str, ...] = ()
    """results folders of bench, or run folders; none: the values in docs/results/table.json"""


def in_order(section: dict) -> tuple[int, str, str]:
    """Models from the most fragile on, REINFORCE before GRPO."""
    model, estimator = section["args"]["model"], section["args"]["estimator"]
    return ORDER.index(model) if model in ORDER else len(ORDER), model, "" if estimator == "reinforce" else estimator


def tables(board: dict) -> str:
    """Every section of a board (analysis.bench.leaderboard) as Markdown, and all of them pooled where they measure the same."""
    parts = []
    for section in board["sections"]:
        heads, rows = bench.heads(section), [bench.cells(section, row) for row in section["rows"]]
        parts += [f"### {section['title']}", bench.table(heads[:-1], [cells[:-1] for cells in rows])]
    return "\n\n".join(parts)


def main(args: Args) -> None:
    if args.runs:
        runs, left_out = bench.load_finished(args.runs)
        board = bench.leaderboard(runs)
        board["sections"].sort(key=in_order)
        board["provenance"] = bench.provenance(runs, "python -m benchmarks.results --runs " + " ".join(args.runs))
        print("\n".join([*board["provenance"], *(f"left out: {line}" for line in left_out)]))
        DATA.parent.mkdir(exist_ok=True)
        write_whole(DATA, json.dumps(board | {"definitions": bench.DEFINITIONS}, indent=1) + "\n")
    insert(PAGE, tables(json.loads(DATA.read_text())), MARKS)
    print(f"wrote {PAGE.relative_to(ROOT)}")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))

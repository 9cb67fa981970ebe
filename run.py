"""One entrance: `python run.py ctwa --seed 2` trains, `python run.py plot RUN` draws, `python run.py diff linear ctwa` compares,
`python run.py doctor` checks the machine before a long run, `python run.py bench` makes the leaderboard.

Training is `python algos/<algorithm>.py` with the same flags, to the letter. A command is a module of tools/ with a `main`.
"""

import ast
import importlib
import runpy
import shutil
import sys
import textwrap

from tools.scripts import ROOT, algorithms, nearest
from common.errors import UserError, plain_errors

# as a user comes to need them; a command that is not among them comes last
ORDER = ("doctor", "presets", "score", "diff", "bench", "sweep", "explain", "explore", "plot", "export")


def commands() -> dict[str, tuple[str, str]]:
    """Usage and first line of every command in tools/, by its name: `USAGE`, and the docstring of `main`.

    Modules are read, not imported: importing some would load torch first.
    """
    found = {}
    for path in sorted((ROOT / "tools").glob("*.py")):
        usage = docstring = None
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == "main":
                docstring = ast.get_docstring(node) or "(no docstring)"
            elif isinstance(node, ast.Assign) and [getattr(target, "id", "") for target in node.targets] == ["USAGE"]:
                usage = ast.literal_eval(node.value)
        if docstring is not None:
            found[path.stem] = usage or "", docstring.splitlines()[0]
    return dict(sorted(found.items(), key=lambda entry: ORDER.index(entry[0]) if entry[0] in ORDER else len(ORDER)))


def help_text() -> str:
    """The commands and the algorithms, of which the first paragraph of the docstring is shown. They are read, too."""
    scripts = []
    for name, path in algorithms().items():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(no docstring)"
        scripts.append((name, " ".join(docstring.split("\n\n")[0].split())))
    entries = [(f"{name} {usage}".strip(), told) for name, (usage, told) in commands().items()]
    columns = shutil.get_terminal_size().columns

    def block(rows: list[tuple[str, str]]) -> list[str]:
        margin = " " * (max(len(name) for name, _ in rows) + 4)
        return [
            textwrap.fill(words, columns, initial_indent=f"  {name}".ljust(len(margin)), subsequent_indent=margin) for name, words in rows
        ]

    head = ["usage: python run.py COMMAND ...", "", "train with an algorithm (its flags: python run.py ALGORITHM --help)"]
    return "\n".join([*head, *block(scripts), "", "before a run and after it", *block(entries)])


def main() -> None:
    """Run the command on the command line. Exit code 2 for one that does not exist."""
    command, argv = (sys.argv[1], sys.argv[2:]) if len(sys.argv) > 1 else ("--help", [])
    scripts = algorithms()
    if command in scripts:
        sys.argv = [str(scripts[command]), *argv]
        runpy.run_path(sys.argv[0], run_name="__main__")
        return
    with plain_errors():
        if command in ("-h", "--help"):
            print(help_text())
        elif command in (known := commands()):
            importlib.import_module(f"tools.{command}").main(argv)
        else:
            raise UserError(f"unknown command {command!r}{nearest(command, [*scripts, *known])}")


if __name__ == "__main__":
    main()

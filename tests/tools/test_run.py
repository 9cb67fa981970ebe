"""The entrance: help, unknown commands, training as the script itself, diff and plot, each as a user types it."""

import errno
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from unittest.mock import Mock

import pytest

from tools import plot
from tools.diff import side_by_side
from common.errors import UserError
from support.folders import GOOD, write_run
from support.running import ROOT, run_script

ALGORITHMS = sorted(path.stem for path in (ROOT / "algos").glob("*.py") if path.stem != "__init__")


def run(*arguments: str, cwd: Path = ROOT, **env: str) -> subprocess.CompletedProcess:
    return run_script(str(ROOT / "run.py"), *arguments, cwd=cwd, env=env)


@pytest.fixture
def scripts(tmp_path) -> tuple[Path, Path]:
    """Two scripts with a shared region, an own one, a shared one that has drifted apart, and one that only the second has."""
    left = tmp_path / "left.py"
    left.write_text(
        '"""Left: adds."""\n'
        "# --- SHARED: imports ---\nimport math\nimport sys\n\n"
        "# --- ALGO: mathematics ---\ndef f(x):\n    return x + 1\n\n\n"
        "def main():\n    # --- SHARED: set-up ---\n    seed = 1\n    steps = 3\n"
        "    # --- SHARED: close ---\n    print(math.pi, sys.argv)\n"
    )
    right = tmp_path / "right.py"
    right.write_text(
        '"""Right: multiplies.\n\nIn two paragraphs.\n"""\n'
        "# --- SHARED: imports ---\nimport math\nimport sys\n\n"
        "# --- ALGO: mathematics ---\ndef f(x):\n    x = 2 * x\n    return x\n\n\n"
        "def main():\n    # --- SHARED: set-up ---\n    seed = 2\n    steps = 3\n"
        "    # --- ALGO: more ---\n    more = True\n"
        "    # --- SHARED: close ---\n    print(math.pi, sys.argv)\n"
    )
    return left, right


# --- help and unknown commands ---


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_lists_commands_and_algorithms(arguments):
    done = run(*arguments, COLUMNS="400")
    assert done.returncode == 0
    assert ALGORITHMS
    for name in ALGORITHMS:
        idea = re.match(r'\s*"""(.*?)\n\n', (ROOT / "algos" / f"{name}.py").read_text(), re.S)[1].replace("\n", " ")
        assert re.search(rf"^  {name} +{re.escape(idea)}$", done.stdout, re.M)
    for command in ("diff A B", "plot RUN"):
        assert re.search(rf"^  {re.escape(command)}", done.stdout, re.M)


def test_help_loads_nothing_heavy():
    code = "import sys, runpy; sys.argv = ['run.py']; runpy.run_path('run.py', run_name='__main__'); print(sorted(sys.modules))"
    start = time.perf_counter()
    loaded = run_script("-c", code).stdout.splitlines()[-1]
    assert time.perf_counter() - start < 1
    assert not re.search(r"'(torch|transformers|matplotlib|tyro|numpy)'", loaded)


@pytest.mark.parametrize(
    ("typed", "meant"), [("ctw", "'ctwa'"), ("Linear", "'linear'"), ("polt", "'plot'"), ("dif", "'diff'"), ("linnear", "'linear'")]
)
def test_unknown_command_names_the_nearest(typed, meant):
    done = run(typed)
    assert done.returncode == 2
    assert done.stderr == f"error: unknown command '{typed}'; did you mean {meant}?\n"
    assert done.stdout == ""


def test_unknown_command_far_from_all_lists_them():
    done = run("zzz")
    assert done.returncode == 2
    for name in [*ALGORITHMS, "diff", "plot"]:
        assert name in done.stderr


@pytest.mark.parametrize(
    ("command", "rest", "flag", "meant"), [("plot", ["x"], "--outt", "--out"), ("diff", ["a", "b"], "--hlep", "--help")]
)
def test_unknown_flag_names_the_nearest(command, rest, flag, meant):
    done = run(command, *rest, flag)
    assert done.returncode == 2
    assert meant in done.stderr


# --- training ---


def test_an_algorithm_runs_as_its_own_script(tmp_path):
    """A copy of the entrance with a new file in algos/ and in tools/: found without being listed, given the flags and nothing else."""
    for name in ("run.py", "tools/__init__.py", "tools/scripts.py", "common/__init__.py", "common/errors.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text((ROOT / name).read_text())
    (tmp_path / "algos").mkdir()
    (tmp_path / "algos" / "__init__.py").touch()
    probe = "print(json.dumps([__name__, sys.argv, str(pathlib.Path(__file__).resolve())]))\nsys.exit(int(sys.argv[-1]))\n"
    script = tmp_path / "algos" / "novel.py"
    script.write_text(f'"""Novel: a new idea."""\n\nimport json\nimport pathlib\nimport sys\n\n{probe}')
    mine = run_script("run.py", "novel", "--seed", "2", "--flag", "7", cwd=tmp_path)
    direct = run_script("algos/novel.py", "--seed", "2", "--flag", "7", cwd=tmp_path)
    assert json.loads(mine.stdout) == ["__main__", ["algos/novel.py", "--seed", "2", "--flag", "7"], str(script)]
    assert (mine.stdout, mine.stderr, mine.returncode) == (direct.stdout, direct.stderr, direct.returncode)
    assert mine.returncode == 7
    (tmp_path / "tools" / "tell.py").write_text('USAGE = "WORD"\n\n\ndef main(argv):\n    """says it"""\n    print(argv)\n')
    (tmp_path / "tools" / "part.py").write_text("import torch\n")  # of a command; not one
    told = run_script("run.py", cwd=tmp_path).stdout
    assert "novel  Novel: a new idea." in told
    assert told.endswith("before a run and after it\n  tell WORD  says it\n")
    assert run_script("run.py", "tell", "a", "-b", cwd=tmp_path).stdout == "['a', '-b']\n"


def test_help_of_an_algorithm_is_the_scripts(tmp_path):
    assert {"linear", "ctwa"} <= set(ALGORITHMS)
    assert run("ctwa", "--help").stdout == run_script("algos/ctwa.py", "--help").stdout != ""


# --- diff ---


def test_diff_folds_what_is_shared_and_counts_what_differs(scripts):
    text = side_by_side(*scripts)
    lines = text.splitlines()
    assert text.index("Left: adds.") < text.index("Right: multiplies.") < text.index("SHARED: imports")  # docstrings first
    assert "  … SHARED: imports, 4 lines, the same in both" in lines
    assert "  … SHARED: close, 2 lines, the same in both" in lines
    assert "import sys" not in text  # folded is folded
    assert [line for line in lines if line.startswith(("-", "+")) and line[:3] not in ("---", "+++")] == [
        "-    return x + 1",
        "+    x = 2 * x",
        "+    return x",
        "-    seed = 1",  # a shared region that has drifted apart is not folded
        "+    seed = 2",
        "+    # --- ALGO: more ---",
        "+    more = True",
    ]
    assert lines[-1] == "7 lines differ: 2 -, 5 + (docstrings not counted)"


def test_diff_gives_line_numbers_of_the_files(scripts):
    heads = [line for line in side_by_side(*scripts).splitlines() if line.startswith("@@")]
    assert heads == ["@@ -6 +9 @@ ALGO: mathematics", "@@ -12 +16 @@ SHARED: set-up", "@@ -0 +19 @@ ALGO: more"]
    right = scripts[1].read_text().splitlines()
    assert right[9 - 1] == "# --- ALGO: mathematics ---"
    assert right[19 - 1] == "    # --- ALGO: more ---"


def test_diff_of_a_script_with_itself(scripts):
    lines = side_by_side(scripts[0], scripts[0]).splitlines()
    assert lines[-1] == "no line differs (docstrings not counted)"
    assert not [line for line in lines if line.startswith("@@")]


def test_a_region_moved_elsewhere_is_not_folded(tmp_path):
    regions = [f"# --- SHARED: {name} ---\n{name} = 1\n" for name in ("a", "b")]
    (tmp_path / "x.py").write_text("".join(regions))
    (tmp_path / "y.py").write_text("".join(reversed(regions)))
    text = side_by_side(tmp_path / "x.py", tmp_path / "y.py")
    assert text.count("the same in both") == 1
    assert text.splitlines()[-1].startswith("4 lines differ: 2 -, 2 +")


def test_diff_of_what_is_not_python(scripts):
    scripts[1].write_text("def f(:\n")
    with pytest.raises(UserError, match=r"right\.py line 1: not Python"):
        side_by_side(*scripts)
    scripts[1].write_bytes(b"\x89PNG\r\n")
    with pytest.raises(UserError, match=r"right\.py: not Python"):
        side_by_side(*scripts)


def test_colour_only_where_asked(scripts):
    plain, coloured = side_by_side(*scripts), side_by_side(*scripts, colour=True)
    assert "\033" not in plain
    assert "\033[31m-    return x + 1\033[0m" in coloured
    assert "\033[32m+    return x\033[0m" in coloured
    assert "\033[2m  … SHARED: imports" in coloured
    assert re.sub(r"\033\[\d+m", "", coloured) == plain


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colour_on_a_terminal_unless_no_color(environment, coloured, monkeypatch):
    import pty

    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    shown = bytearray()

    def read(terminal: int) -> bytes:
        data = os.read(terminal, 4096)
        shown.extend(data)
        return b"." if data else b""  # kept from the test's own output

    pty.spawn([sys.executable, str(ROOT / "run.py"), "diff", "linear", "ctwa"], read)
    assert b"lines differ" in shown
    assert (b"\033[" in shown) == coloured


def test_diff_of_linear_and_ctwa():
    done = run("diff", "linear", "ctwa")
    assert done.returncode == 0
    assert "\033" not in done.stdout  # a pipe
    assert done.stdout.startswith("--- algos/linear.py\nLinear scalarisation")
    shared = re.findall(r"# --- (SHARED: .+) ---", (ROOT / "algos" / "linear.py").read_text())
    assert re.findall(r"^  … (SHARED: .+), \d+ lines, the same in both$", done.stdout, re.M) == shared
    assert "+def update_log_weights(" in done.stdout
    removed, added = map(int, re.search(r"lines differ: (\d+) -, (\d+) \+ ", done.stdout.splitlines()[-1]).groups())
    assert 0 < removed < added < 100


def test_diff_of_an_unknown_algorithm(scripts):
    done = run("diff", "linaer", "ctwa")
    assert (done.returncode, done.stderr) == (2, "error: diff: no algorithm or file 'linaer'; did you mean 'linear'?\n")
    done = run("diff", *map(str, scripts))  # a fork is compared by its path
    assert done.stdout.endswith("7 lines differ: 2 -, 5 + (docstrings not counted)\n")


def test_diff_into_head_does_not_complain():
    reader, writer = os.pipe()
    os.close(reader)  # `| head` that has already seen enough
    done = subprocess.run([sys.executable, "run.py", "diff", "linear", "ctwa"], cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (0, "")


# --- plot ---


def test_plot_one_run(tmp_path):
    write_run(tmp_path / "runs" / "ctwa-s1", GOOD)
    done = run("plot", "runs/ctwa-s1", cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "runs" / "ctwa-s1" / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "All three objectives improved; accuracy dipped to 0.40 at step 10 before it recovered." in done.stdout
    assert done.stdout.endswith("wrote runs/ctwa-s1/curves.png\n")


def test_plot_several_runs_says_what_it_replaces(tmp_path):
    write_run(tmp_path / "a", GOOD)
    write_run(tmp_path / "b", {name: values[::-1] for name, values in GOOD.items()}, script="linear")
    done = run("plot", "a", "b", cwd=tmp_path)
    assert done.stdout.endswith("\nwrote comparison.png\n")
    assert re.findall(r"^[ab]$", done.stdout, re.M) == ["a", "b"]
    assert "accuracy was degraded" not in done.stdout.split("\nb\n")[0]
    assert (tmp_path / "comparison.png").is_file()
    assert run("plot", "a", "b", cwd=tmp_path).stdout.endswith("\nreplaced comparison.png\n")
    assert run("plot", "a", "b", "--out", "mine.pdf", cwd=tmp_path).stdout.endswith("\nwrote mine.pdf\n")
    assert (tmp_path / "mine.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("refusal", [None, OSError(errno.EROFS, "Read-only file system")])
def test_plot_into_a_folder_that_cannot_be_written_still_judges(refusal, tmp_path, monkeypatch, capsys):
    """The picture's place is taken by a folder; or nothing can be written there, nor deleted."""
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "a", GOOD)
    if refusal:
        monkeypatch.setattr("matplotlib.figure.Figure.savefig", Mock(side_effect=refusal))
        monkeypatch.setattr(Path, "unlink", Mock(side_effect=refusal))
    else:
        (tmp_path / "a" / "curves.png").mkdir()
    with pytest.raises(UserError, match="the picture a/curves.png cannot be written .*; make room there, or give --out FILE in another"):
        plot.main(["a"])
    monkeypatch.undo()
    assert "accuracy" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "a").iterdir() if path.is_file()) == ["args.json", "metrics.jsonl"]


def test_plot_draws_a_run_that_has_no_verdict(tmp_path):
    write_run(tmp_path / "a", GOOD)
    write_run(tmp_path / "b", {"accuracy": [0.1, 0.2]}, objectives=["accuracy", "clarity"])
    done = run("plot", "a", "b", cwd=tmp_path)
    assert done.returncode == 0
    assert "no eval/clarity" in done.stdout
    assert "All three objectives improved" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"), [([], "which run?"), (["ctwa_s1"], "did you mean ctwa-s1?"), (["ctwa-s1", "--out", "x.gif"], ".png")]
)
def test_plot_mistakes(tmp_path, arguments, message):
    write_run(tmp_path / "ctwa-s1", GOOD)
    done = run("plot", *arguments, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr

"""The entrance: help, version, unknown words, a wrong Python, training as the script itself."""

import json
import re
import subprocess
import sys

import pytest

import run as entrance
from support.running import NAMES, ROOT, run_script

PROBE = '''"""Novel: a new idea,
in two lines.

More of it.
"""
import json, sys
print(json.dumps([__name__, sys.argv, __file__]))
sys.exit(7)
'''


def run(*arguments: str):
    return run_script("run.py", *arguments)


def test_help_lists_every_script_and_command_and_loads_nothing_heavy(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY")  # set by the import above
    code = "import os, run, sys; run.main(); print(os.environ['OMP_WAIT_POLICY'], *sys.modules)"
    *lines, last = run_script("-c", code).stdout.splitlines()
    listed = re.findall(r"^  (\w+).*  \S", "\n".join(lines), re.M)
    tools = [path for path in (ROOT / "tools").glob("*.py") if "\ndef main(" in path.read_text()]
    assert sorted(listed) == sorted([*NAMES, *(path.stem for path in tools)])
    policy, *loaded = last.split()
    assert policy == "passive"
    assert not {"torch", "transformers", "matplotlib", "tyro", "numpy"} & {*loaded}
    assert run("--help").stdout == run().stdout == "\n".join([*lines, ""])


def test_help_of_a_script_is_the_scripts():
    assert run("ctwa", "--help").stdout == run_script("algos/ctwa.py", "--help").stdout != ""


def test_version_is_the_projects():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{run("--version").stdout.split()[1]}"' in project


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["ctw"], "error: unknown command 'ctw'; did you mean 'ctwa'?\n"),
        (["polt", "x"], "error: unknown command 'polt'; did you mean 'plot'?\n"),
        (["zzz"], "'zzz'; there are " + ", ".join(NAMES)),
    ],
)
def test_a_word_that_is_not_known_names_the_nearest(arguments, told):
    done = run(*arguments)
    assert (done.returncode, done.stdout, told in done.stderr) == (2, "", True)


def test_a_script_runs_as_itself(tmp_path, monkeypatch, capsys):
    script = tmp_path / "novel.py"
    script.write_text(PROBE)
    monkeypatch.setattr(entrance, "algorithms", lambda: {"novel": script})
    monkeypatch.setattr(sys, "argv", ["run.py", "novel", "--seed", "2"])
    with pytest.raises(SystemExit, match="7"):
        entrance.main()
    told = ["__main__", [str(script), "--seed", "2"], str(script)]
    assert json.loads(capsys.readouterr().out) == told


def test_a_script_is_described_by_its_first_paragraph(tmp_path):
    script = tmp_path / "x.py"
    for text, told in ((PROBE, "Novel: a new idea, in two lines."), ("x = 1", "(no docstring)")):
        script.write_text(text)
        assert entrance.described(script).split(maxsplit=1) == ["x", told]


@pytest.mark.parametrize("command", ["linear", "plot"])
def test_a_wrong_python_is_one_line(command):
    bare = [sys.executable, "-S", "run.py", command]  # no environment's packages
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert re.search(f"No module named .* {sys.executable}.*activate.*README", done.stderr)


def test_a_missing_part_of_ours_is_no_wrong_python():
    code = (
        "import runpy, sys; sys.modules['tools.regions'] = None; sys.argv[1:] = ['diff', 'a', 'b']"
    )
    done = run_script("-c", f"{code}; runpy.run_path('run.py', run_name='__main__')")
    assert "Traceback" in done.stderr

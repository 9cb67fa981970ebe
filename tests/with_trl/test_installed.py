"""What `pip install .` puts where, and that it leaves a user's own files alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = ("common", "rewards", "tools", "prompts", "algos", "integrations", "testbed")
LEFT = shutil.ignore_patterns(".*", "runs", "tests", "docs", "*.safetensors", "__pycache__")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with what pip installs, from a copy: setuptools writes beside what it builds."""
    copy, target = tmp_path_factory.mktemp("copy") / "repository", tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT, copy, ignore=LEFT)
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation"]
    pip += ["--target", str(target), str(copy)]
    subprocess.run(pip, check=True, capture_output=True, text=True, timeout=200)
    return target


def test_nothing_but_cleanmoa_is_installed(site):
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"cleanmoa"}
    assert {path.name for path in (site / "cleanmoa").iterdir()} == {"trl", "algos", "common"}
    common = {path.stem for path in site.glob("cleanmoa/common/*.py")}
    assert common == {"__init__", "controllers", "errors", "flags"}


def test_a_users_own_modules_are_his(site, tmp_path):
    """Also after a script was loaded, whose text imports modules of these names."""
    for name in OWN:
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    told = f"""
import sys
before = list(sys.path)
import cleanmoa.trl
for name in cleanmoa.trl.scripts.controllers():
    getattr(cleanmoa.trl, name)
cleanmoa.trl.CTWA().start(["a", "b"])
assert cleanmoa.trl.scripts.ROOT.name == "cleanmoa", cleanmoa.trl.scripts.ROOT
assert sys.path == before
for name in {OWN}:
    assert name not in sys.modules and __import__(name).mine, name
print("done")
"""
    how = {"cwd": tmp_path, "env": {"PYTHONPATH": str(site)}, "capture_output": True, "text": True}
    done = subprocess.run([sys.executable, "-c", told], timeout=200, **how)
    assert done.stdout == "done\n", done.stderr

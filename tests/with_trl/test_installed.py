"""What `pip install .` puts where, and that it leaves a user's own files alone."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
OWN = ("common", "rewards", "tools", "prompts", "tools", "algos", "integrations", "testbed", "trl_methods")


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder with what pip installs, built from a copy: setuptools writes beside what it builds."""
    copy, target = tmp_path_factory.mktemp("copy") / "repository", tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".*", "runs", "tests", "docs", "*.safetensors", "__pycache__"))
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-build-isolation", "--target", str(target), str(copy)]
    subprocess.run(pip, check=True, capture_output=True, text=True, timeout=200)
    return target


def test_nothing_but_cleanmoa_is_installed(site):
    assert {path.name.split("-")[0] for path in site.iterdir()} == {"cleanmoa"}
    assert {path.name for path in (site / "cleanmoa").iterdir()} == {"trl", "algos"}
    assert not list(site.rglob("vllm*"))


def test_a_users_own_modules_are_his(site, tmp_path):
    """Also after the mathematics of a script was loaded, whose text imports modules of these names."""
    for name in OWN:
        (tmp_path / f"{name}.py").write_text("mine = True\n")
    told = f"""
import sys
before = list(sys.path)
from cleanmoa.trl import multi_objective, CTWA
import cleanmoa.trl.scripts
CTWA().start(["a", "b"])
assert cleanmoa.trl.scripts.FOLDER.parent.name == "cleanmoa", cleanmoa.trl.scripts.FOLDER
assert sys.path == before
for name in {OWN}:
    assert name not in sys.modules and __import__(name).mine, name
print("done")
"""
    command, environment = [sys.executable, "-c", told], {"PYTHONPATH": str(site)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=200)
    assert done.stdout == "done\n", done.stderr

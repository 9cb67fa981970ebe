"""Named flag values, from algos/presets.toml."""

import difflib
import tomllib
from pathlib import Path

from common.errors import require

FILE = Path(__file__).resolve().parents[1] / "algos" / "presets.toml"


def presets(script: str = "") -> dict[str, dict]:
    """The flags of every preset, by its name; with what `script` adds to those of the paper."""
    table = tomllib.loads(FILE.read_text())
    own = table["scripts"].get(script, {})
    papers = {
        f"{model}-{data}": table["paper"] | flags | chosen | own
        for model, flags in table["models"].items()
        for data, chosen in table["datasets"].items()
    }
    return papers | table["others"]


def preset(name: str, script: str) -> dict:
    """The flags that --preset sets for a script. Raises UserError naming the nearest there is."""
    known = presets(script)
    near = ", ".join(difflib.get_close_matches(name, known, n=1) or known)
    require(name in known, f"--preset {name} does not exist; there is {near}")
    return known[name]

"""The name that a run's folder has by itself: `runs/ctwa-lr3e-5-s1` is CTWA with `--lr 3e-5` and seed 1."""

import hashlib
import math
import re
from dataclasses import fields
from decimal import Decimal

from tools.plot import BOOKKEEPING
from common.flags import RunFlags

LONGEST_VALUE = 24  # letters; a longer one is cut, and ends in what tells it from others
LONGEST = 64  # of all flags together; a file system takes 255 bytes


def run_name(args: RunFlags, default: RunFlags, script: str) -> str:
    """`<script>-<flags that differ from the default, with their values>-s<seed>`, fit for a file system, the same for the same flags.

    default: the flags of a run that was given none but `--preset`, whose name then stands first. Numbers follow their flag at once
    (`lr3e-5`, `weights2,1,1`), of words comes what is behind the last `/` or `:` (`model-robust`), and a switch is its name (`no-x` where
    it is off). Flags that change no number of a run, and those of place, are left out.
    """
    parts = [_short(_safe(args.preset), LONGEST_VALUE)] if args.preset else []
    for field in fields(args):
        value = getattr(args, field.name)
        if field.name not in BOOKKEEPING | {"preset"} and value != getattr(default, field.name):
            parts.append(_part(field.name.replace("_", "-"), value))
    return "-".join([script, *([_short("-".join(parts), LONGEST)] if parts else []), f"s{args.seed}"])


def _part(flag: str, value: object) -> str:
    if isinstance(value, bool):
        return flag if value else f"no-{flag}"
    values = value if isinstance(value, tuple) else (value,)
    words = any(isinstance(one, str) for one in values)
    told = ",".join(_safe(re.split(r"[/:\\]", one.rstrip("/"))[-1]) if isinstance(one, str) else _number(one) for one in values)
    return f"{flag}{'-' if words else ''}{_short(told, LONGEST_VALUE)}".rstrip("-")


def _number(value: float) -> str:
    """1e-4, not 0.0001 or 1e-04; and 2, not 2.0."""
    if value and math.isfinite(value) and not 1e-3 <= abs(value) < 1e6:
        return f"{Decimal(repr(value)).normalize():e}".replace("+", "")
    return repr(value).removesuffix(".0")


def _safe(text: str) -> str:
    return re.sub(r"[^\w.]+", "-", text).strip("-.")


def _short(text: str, longest: int) -> str:
    if len(text) <= longest:
        return text
    return f"{text[: longest - 5].rstrip('-,.')}-{hashlib.sha256(text.encode()).hexdigest()[:4]}"

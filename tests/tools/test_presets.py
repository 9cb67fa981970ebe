"""`run.py presets` prints flags that do what the preset does."""

import shlex
from dataclasses import replace
from importlib import import_module

from common.launch import parse, presets
from support.running import NAMES
from tools.presets import main

PAPERS = "qwen2.5-7b-math"


def test_what_is_printed_can_be_typed(capsys):
    main([])
    lines = capsys.readouterr().out.splitlines()
    printed = dict(zip(lines[::2], map(shlex.split, lines[1::2]), strict=True))
    assert printed.keys() >= presets().keys()
    cases = [("linear", name) for name in presets()] + [(script, PAPERS) for script in NAMES]
    for script, name in cases:
        args_of = import_module(f"algos.{script}").Args
        typed = printed[name] + printed.get(f"the paper's, for {script}", [])
        wanted = parse(args_of, script, ["--preset", name])
        assert replace(parse(args_of, script, typed), preset=name) == wanted

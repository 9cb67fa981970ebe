"""Presets change defaults and nothing else: flags win, resumed runs keep what they had, and every script takes every preset."""

import json
import re
import shlex
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path

import pytest

from tools.command_line import parse
from tools.presets import PAPER, PAPERS, PRESETS, named_preset
from common.errors import UserError
from common.flags import check_flags
from integrations.pretrained import PRETRAINED
from prompts import BOXED_SUFFIX
from rewards import load
from support.running import ROOT, run_script
from testbed.words import HELD_OUT, TRAINED_ON

NAMES = sorted(path.stem for path in (ROOT / "algos").glob("[a-z]*.py"))
ONE = "qwen2.5-1.5b-math500"


def flags(*argv: str, name: str = "linear"):
    return parse(import_module(f"algos.{name}").Args, name, list(argv))


def stopped_run(folder: Path, *argv: str, script: str = "linear", drop: str = "") -> Path:
    folder.mkdir()
    saved = {"script": script, **asdict(flags(*argv, name=script)), "resume": ""}
    saved.pop(drop, None)
    (folder / "args.json").write_text(json.dumps(saved))
    return folder


@pytest.mark.parametrize("name", NAMES)
def test_every_script_takes_every_preset(name):
    defaults = asdict(flags(name=name))
    for preset, values in PRESETS.items():
        own = dict(getattr(import_module(f"algos.{name}").Args, "PRESET", ())) if preset in PAPERS else {}
        assert asdict(flags("--preset", preset, name=name)) == defaults | values | own | {"preset": preset}
        assert own.keys() <= defaults.keys() - values.keys()


@pytest.mark.parametrize(
    ("name", "flag", "value"), [("ctwa", "weight_lr", 0.05), ("tchebycheff", "weight_lr", 0.3), ("lagrangian", "dual_lr", 0.01)]
)
def test_rates_of_the_weights_go_with_the_number_of_steps(name, flag, value):
    """The default's total over 100 steps and the paper's over 810 are alike, and a flag given still wins."""
    default, paper = getattr(flags(name=name), flag), getattr(flags("--preset", ONE, name=name), flag)
    assert paper == value
    assert 0.3 < (PAPER["steps"] * paper) / (100 * default) < 3
    assert getattr(flags("--preset", ONE, f"--{flag.replace('_', '-')}=0.7", name=name), flag) == 0.7
    args = flags("--preset", ONE, name="dynamic_weighting")
    assert args.lr / args.mu == pytest.approx(
        flags(name="dynamic_weighting").lr / flags(name="dynamic_weighting").mu
    )  # its rate is lr / mu


def test_the_papers_values():
    assert {preset for preset in PAPERS if preset.endswith("-math500")} == {
        f"{model}-math500" for model in ("qwen2.5-1.5b", "qwen2.5-1.5b-instruct", "qwen3-1.7b-base", "smollm2-1.7b", "qwen2.5-7b")
    }
    assert {preset.replace("-math500", "-math") for preset in PAPERS if preset.endswith("-math500")} == PAPERS.keys() - {
        preset for preset in PAPERS if preset.endswith("-math500")
    }
    assert PAPER["steps"] == 90 * (300 // PAPER["prompts"])  # 90 epochs, the incomplete batch at the end of each dropped
    for values in PAPERS.values():
        assert PAPER.items() <= values.items()
        assert (values["engine"], values["activation_checkpointing"]) == ("vllm", True)
        assert values.get("prompt_suffix", BOXED_SUFFIX) == BOXED_SUFFIX  # which math500 appends by itself
        assert (values["dataset"] == "math500") != ("prompt_suffix" in values)


def test_a_real_model_on_two_cores():
    """Its steps are few: no script takes the rate that the paper ties to its 810."""
    assert PRESETS.keys() - PAPERS.keys() == {"smollm2-135m-words"}
    args = flags("--preset", "smollm2-135m-words")
    assert flags("--preset", "smollm2-135m-words", name="ctwa").weight_lr == flags(name="ctwa").weight_lr
    assert (args.model, args.dataset, args.compute_dtype, args.engine) == ("smollm2-135m", "words", "auto", "transformers")
    assert args.model in PRETRAINED
    assert list(load(args.rewards)) == ["accuracy", "units", "sentence"]
    assert args.steps % args.eval_every == args.steps % args.checkpoint_every == 0
    assert args.eval_prompts <= HELD_OUT
    assert args.steps * args.prompts <= TRAINED_ON  # no problem twice
    check_flags(args, 1)
    check_flags(args, 2)


def test_a_flag_beside_the_preset_wins_wherever_it_stands():
    for argv in (["--lr", "0.5", "--preset", ONE], ["--preset", ONE, "--lr", "0.5"], [f"--preset={ONE}", "--lr=0.5"]):
        args = flags(*argv)
        assert (args.lr, args.prompts, args.preset) == (0.5, 32, ONE)
    assert not flags("--preset", ONE, "--no-activation-checkpointing").activation_checkpointing
    assert flags("--preset", ONE, "--prompts", "16").prompts == 16  # the script's default, but asked for
    assert flags("--preset", "qwen2.5-7b-math", "--preset", ONE).model == "Qwen/Qwen2.5-1.5B"
    assert flags("--preset", "").prompts == flags().prompts == 16


def test_a_preset_does_not_outlive_its_command_line():
    first = flags("--preset", ONE)
    assert flags().lr == 1e-4
    named_preset(["--preset", ONE])["lr"] = 7.0
    assert flags("--preset", ONE) == first


def test_help_shows_the_values_of_the_preset(capsys):
    with pytest.raises(SystemExit) as stop:
        flags("--preset", ONE, "--help")
    assert stop.value.code == 0
    told = re.sub(r"[│|\s]", "", capsys.readouterr().out)
    assert "--lrFLOATAdamWlearningrate(paper:1e-6for1.5Bparameters)(default:1e-06)" in told
    assert "(default:vllm)" in told


def test_unknown_presets_and_missing_names(capsys):
    with pytest.raises(UserError, match="--preset qwn2.5-1.5b-math500 does not exist; did you mean qwen2.5-1.5b-math500?"):
        flags("--preset", "qwn2.5-1.5b-math500")
    with pytest.raises(UserError, match="--preset zzz does not exist; there are qwen.*smollm2"):
        flags("--preset=zzz")
    with pytest.raises(SystemExit) as stop:
        flags("--preset")
    assert stop.value.code == 2
    assert "--preset" in capsys.readouterr().err


def test_a_script_that_lacks_a_flag_says_so():
    @dataclass
    class Bare:
        preset: str = ""
        resume: str = ""
        lr: float = 0.1

    @dataclass
    class Older:
        resume: str = ""

    with pytest.raises(UserError, match="--preset sets --activation-checkpointing, .*, which mine does not have"):
        parse(Bare, "mine", ["--preset", ONE])
    assert parse(Older, "old", []) == Older()
    with pytest.raises(SystemExit):
        parse(Older, "old", ["--preset", ONE])


# --- resuming ---


def test_resuming_keeps_what_the_run_had(tmp_path, monkeypatch):
    run = str(stopped_run(tmp_path / "run", "--preset", ONE, "--lr", "0.5"))
    began = asdict(flags("--preset", ONE, "--lr", "0.5")) | {"resume": run}
    for argv in ([], ["--preset", ONE], ["--preset", ONE, "--lr", "0.5"]):
        assert asdict(flags("--resume", run, *argv)) == began
    assert flags("--resume", run, "--steps", "900").steps == 900
    monkeypatch.delitem(PRESETS, ONE)  # a preset that is gone since, or has other values, changes nothing
    assert asdict(flags("--resume", run)) == began


def test_resuming_with_another_preset_or_flag_is_refused(tmp_path):
    with_preset = str(stopped_run(tmp_path / "a", "--preset", ONE))
    without = str(stopped_run(tmp_path / "b"))
    with pytest.raises(UserError, match=re.escape(f"these flags differ from the run's: --preset (was {ONE})")):
        flags("--resume", with_preset, "--preset", "qwen2.5-7b-math")
    with pytest.raises(UserError, match=re.escape("--preset (was )")):
        flags("--resume", without, "--preset", ONE)
    with pytest.raises(UserError, match=re.escape("--lr (was 1e-06)")):
        flags("--resume", with_preset, "--lr", "0.0001")  # the script's default, but not the run's


def test_resuming_a_run_that_is_older_than_a_flag(tmp_path):
    run = str(stopped_run(tmp_path / "run", drop="preset"))
    assert flags("--resume", run).preset == ""
    with pytest.raises(UserError, match=re.escape("--preset (was )")):
        flags("--resume", run, "--preset", ONE)


# --- the command ---


def test_the_presets_command_prints_flags_that_do_the_same():
    done = run_script("run.py", "presets", env={"COLUMNS": "200"})
    assert (done.returncode, done.stderr) == (0, "")
    blocks = re.split(r"\n(?! )", done.stdout.strip())
    printed = {block.split("\n", 1)[0]: shlex.split(block.split("\n", 1)[1]) for block in blocks}
    common = printed.pop("all of the paper's")
    rates = {name: printed.pop(f"the paper's, for {name}") for name in NAMES if f"the paper's, for {name}" in printed}
    assert sorted(rates) == ["ctwa", "dynamic_weighting", "lagrangian", "tchebycheff"]
    for name, argv in rates.items():
        args = import_module(f"algos.{name}").Args
        assert flags(*argv, name=name) == args(**dict(args.PRESET))
    assert printed.keys() == PRESETS.keys()
    for name, own in printed.items():
        assert asdict(flags(*(common if name in PAPERS else ()), *own)) | {"preset": name} == asdict(flags("--preset", name))
    assert max(map(len, done.stdout.splitlines())) <= 140
    assert "presets" in run_script("run.py").stdout
    assert run_script("run.py", "ctwa", "--preset", "zzz").stderr.startswith("error: --preset zzz does not exist")

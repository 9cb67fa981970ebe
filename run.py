"""One entrance: `python run.py ctwa --seed 2` trains, `python run.py plot RUN` draws, `python run.py diff linear ctwa` compares,
`python run.py doctor` checks the machine before a long run, `python run.py bench` makes the leaderboard.

Training is `python algos/<algorithm>.py` with the same flags, to the letter.
"""

import ast
import difflib
import os
import runpy
import shutil
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from common.errors import UserError, plain_errors

ROOT = Path(__file__).resolve().parent


def algorithms() -> dict[str, Path]:
    """Every script in algos/ by its name, relative to the current folder as a user types it. A new file there is a new command."""
    return {path.stem: Path(os.path.relpath(path)) for path in sorted((ROOT / "algos").glob("*.py")) if path.stem != "__init__"}


def plot(argv: list[str]) -> None:
    """curves of one run, or of several in one picture, and each run's verdict"""
    import tyro

    @dataclass
    class Args:
        runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
        """run folders, finished or still running"""
        out: str = ""
        """the picture, .png or .pdf, replaced if it exists; default: curves.png beside a single run's metrics, else ./comparison.png"""

    args = tyro.cli(Args, prog="python run.py plot", description="Draw runs and judge them.", args=argv)
    from analysis.curves import draw
    from analysis.runs import load_run
    from analysis.verdict import verdict

    if not args.runs:
        raise UserError("plot: which run? python run.py plot RUN [RUN ...], such as runs/ctwa-s1")
    runs = [load_run(path) for path in args.runs]
    out = Path(args.out) if args.out else runs[0].path / "curves.png" if len(runs) == 1 else Path("comparison.png")
    replaced = out.exists()
    draw(runs, out)
    for run in runs:
        try:
            text = verdict(run).text
        except UserError as error:  # such as a run that was not evaluated: the others still have their say
            text = str(error)
        print(f"{run.path}\n{textwrap.indent(text, '  ')}\n")
    print(f"{'replaced' if replaced else 'wrote'} {out}")


def diff(argv: list[str]) -> None:
    """what one algorithm does differently from another; what they share is folded"""
    import tyro

    @dataclass
    class Args:
        left: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="A")]]
        """an algorithm, or the path of a script"""
        right: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="B")]]
        """another"""
        html: str = ""
        """instead of printing, write a page with both scripts in two columns and their update equations on top, replaced if it exists"""

    args = tyro.cli(Args, prog="python run.py diff", description="Compare two algorithms.", args=argv)
    from analysis.sidebyside import side_by_side

    left, right = _script(args.left), _script(args.right)
    if args.html:
        from analysis.page import write_page

        write_page(left, right, ROOT / "docs" / "algos", Path(args.html))
        print(f"wrote {args.html}")
        return
    colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")
    print(side_by_side(left, right, colour), flush=True)


def doctor(argv: list[str]) -> None:
    """before a long run, with its flags and --algorithm: is what it needs there, and do its parts agree?"""
    import argparse
    import importlib

    known = algorithms()
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--algorithm", nargs="?", default="linear", const="linear")
    name = first.parse_known_args(argv)[0].algorithm
    if name not in known:
        raise UserError(f"doctor: --algorithm {name} does not exist{_nearest(name, known)}")
    script = importlib.import_module(f"algos.{name}")

    @dataclass
    class Args(script.Args):
        algorithm: str = name
        """the algorithm that will be trained; its own flags, and those of all ten, follow here as they will there"""

    from common.doctor import examine
    from common.track import parse

    args = parse(Args, name, argv)
    failed = examine(args, name, "backward_each" in known[name].read_text(encoding="utf-8"))
    from common import ranks

    ranks.stop()
    if failed:
        sys.exit(1)


def bench(argv: list[str]) -> None:
    """the leaderboard: train algorithms × seeds as far as they are missing, or read runs, and write a table with intervals"""
    import importlib

    import tyro

    cut = argv.index("--") if "--" in argv else len(argv)
    own, passed = argv[:cut], argv[cut + 1 :]

    @dataclass
    class Args:
        algos: tuple[str, ...] = ("all",)
        """algorithms, or all"""
        seeds: int = 5
        """number of seeds, 1 to this"""
        models: tuple[str, ...] = ()
        """--model of the runs, a table each, such as testbed testbed:robust; default: the scripts' own"""
        estimator: tuple[Literal["reinforce", "grpo"], ...] = ()
        """one or both, a table each; default: the scripts'"""
        steps: int = 0
        """steps of each run; 0 is the scripts' default, or what a --preset after -- says"""
        jobs: int = 0
        """runs at a time, each on one thread; 0 is the number of cores, or 1 where there is a GPU"""
        quick: bool = False
        """linear, ctwa and pama, 2 seeds and 60 steps, in less than ten minutes on two cores; a flag given beside it wins"""
        out: str = "results/bench"
        """results folder; the same command continues one that was stopped and keeps what is finished"""
        runs: Annotated[tuple[str, ...], tyro.conf.arg(name="from", metavar="RUN [RUN ...]")] = ()
        """train nothing: make the table of these run folders, or of all runs in a results folder, and write it to --out"""

    default = Args()
    if "--quick" in own:
        default = Args(algos=("linear", "ctwa", "pama"), seeds=2, steps=60, out="results/quick")
    description = "Train algorithms on several seeds and compare them. What follows -- is passed on to every script."
    args = tyro.cli(Args, prog="python run.py bench", description=description, args=own, default=default)
    known = algorithms()
    if args.runs:
        own_flags = ("algos", "seeds", "models", "estimator", "steps", "jobs")
        if given := [name for name in own_flags if getattr(args, name) != getattr(default, name)]:
            raise UserError(f"--from trains nothing, so --{given[0]} has no use; drop it")
        if args.quick or passed:
            raise UserError(f"--from trains nothing, so {'--quick' if args.quick else 'flags after --'} have no use; drop them")
    elif "--from" in own:
        raise UserError("--from: which runs? python run.py bench --from RUN [RUN ...], such as runs/ctwa-s1")
    if args.jobs < 0:
        raise UserError(f"--jobs {args.jobs} must be at least 1; 0 is one per core")
    if unknown := [name for name in args.algos if name not in known and name != "all"]:
        raise UserError(f"--algos {unknown[0]} does not exist{_nearest(unknown[0], known | {'all': None})}")
    from analysis import bench as board  # loads torch: a mistake in the flags is told at once

    command, out = board.command_line(argv), Path(args.out)
    if args.runs:
        print(board.make_table(args.runs, out, command))
        return
    names = list(known) if "all" in args.algos else list(dict.fromkeys(args.algos))
    scripts = {name: (known[name], importlib.import_module(f"algos.{name}").Args) for name in names}
    jobs = board.plan(scripts, args.seeds, args.models, args.estimator, args.steps, passed, out)
    failed = board.train_missing(jobs, out, args.jobs or board.default_jobs(), command)
    finished = [job.folder for job in jobs if job.name not in failed]
    if finished:
        print(board.make_table(finished, out, command, failed))
    if failed:
        told = f"{', '.join(failed)}; what they printed is in {out / 'logs'}, and the same command tries them again"
        print(f"failed: {told}", file=sys.stderr)
        sys.exit(1)


def score(argv: list[str]) -> None:
    """before training: rewards on a file of completions. Which differ within prompts, which pull apart, which would a sum give up?"""
    from dataclasses import asdict

    import tyro

    @dataclass
    class Args:
        completions: str = ""
        """jsonl, json, csv or parquet file with a completion in each row, best several of each prompt; a run's completions.jsonl too"""
        rewards: tuple[str, ...] = ()
        """objectives as in training, module:function or file.py:function; default: the run's, else the paper's three"""
        weights: tuple[float, ...] = ()
        """weight of each objective in the predicted sum; default: equal. Only their ratios matter"""
        completion_column: str = ""
        """column with the text; default: completion, completions or text"""
        prompt_column: str = ""
        """column that says which completions belong together; default: prompt, problem or question"""
        answer_column: str = ""
        """column with the reference answer, nested as in reward_model.ground_truth; default: answer. With --dataset, a column of that"""
        dataset: str = ""
        """where the prompts are from: gives rewards the columns that the file lacks, such as answer; as in training"""
        tokenizer: str = ""
        """testbed, a hub name or a folder, to count lengths in its tokens; default: the file's completion_ids, else words"""
        mean_length: float = 0.0
        """tokens that conciseness compares with; 0 is the mean of the file"""
        answer_check: Literal["auto", "exact", "math-verify", "boxed"] = "auto"
        """how accuracy compares, as in training"""

    args = tyro.cli(Args, prog="python run.py score", description="Look at rewards before training with them.", args=argv)
    if not args.completions:
        raise UserError("score: which completions? python run.py score --completions FILE, with a column `completion`, best with `prompt`")
    from analysis.score import look_at  # loads torch: a mistake in the flags is told at once

    print(look_at(**asdict(args)))


def watch(argv: list[str]) -> None:
    """a page of runs that follows them while they train: curves, alarm, law against measurement, completions; opened as a file"""
    import tyro

    @dataclass
    class Args:
        runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]] = ()
        """run folders; one that has not taken its first step yet is waited for"""
        out: str = ""
        """the page, replaced if it exists; default: watch.html in a single run's folder, else ./watch.html"""
        every: float = 5.0
        """seconds between two looks at the runs, and between two reloads of the page"""
        once: bool = False
        """write the page once and end, also where a run goes on"""

    args = tyro.cli(Args, prog="python run.py watch", description="Follow runs on a page that needs no server.", args=argv)
    from analysis.watch import follow

    follow(args.runs, args.out, args.every, args.once)


def explain(argv: list[str]) -> None:
    """why each objective of a run moved or not, what the covariance law predicted, and what the other controllers would have chosen"""
    import importlib

    import tyro

    @dataclass
    class Args:
        runs: tyro.conf.Positional[Annotated[tuple[str, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]]
        """run folders, finished or still running"""
        steps: tuple[int, ...] = ()
        """training steps at which to show what each controller would have chosen; default: five over the run"""
        out: str = ""
        """the picture, .png or .pdf, replaced if it exists, for one run; default: explain.png in the run's folder"""

    args = tyro.cli(Args, prog="python run.py explain", description="Say why the objectives of a run moved.", args=argv)
    if not args.runs:
        raise UserError("explain: which run? python run.py explain RUN [RUN ...], such as runs/ctwa-s1")
    if args.out and len(args.runs) > 1:
        raise UserError("--out is one picture, and each run has its own: explain the runs one by one, or drop it")
    from analysis.counterfactual import counterfactual_weights
    from analysis.explain import counterfactual_table, draw, require_picture
    from analysis.explain import explain as explanation
    from analysis.runs import load_run

    if args.out:
        require_picture(Path(args.out))
    scripts = {name: importlib.import_module(f"algos.{name}") for name in algorithms()}
    for run in map(load_run, args.runs):
        out = Path(args.out) if args.out else run.path / "explain.png"
        print(f"{explanation(run)}\n")
        try:
            print(counterfactual_table(run, *counterfactual_weights(run, scripts), args.steps))
        except UserError as error:  # a run whose statistics were deleted still has its explanation
            if args.steps:
                raise
            print(error)
        draw(run, out)
        print(f"\nwrote {out}\n")


def presets(argv: list[str]) -> None:
    """the presets that `run.py ALGORITHM --preset NAME` knows, and the flags they set"""
    import tyro

    @dataclass
    class Args:
        pass

    tyro.cli(Args, prog="python run.py presets", description="Named flag values; a flag given beside --preset wins.", args=argv)
    from dataclasses import asdict
    from importlib import import_module

    from algos.linear import Args as Shared
    from common.presets import PRESETS

    defaults = asdict(Shared())
    differing = {name: {k: v for k, v in values.items() if v != defaults[k]} for name, values in PRESETS.items()}
    common = dict(set.intersection(*(set(values.items()) for values in differing.values())))
    columns = min(shutil.get_terminal_size().columns, 140)

    def flags(values: dict) -> str:
        shown = {k.replace("_", "-"): f'"{v}"'.replace(" ", "\0") if " " in str(v) else v for k, v in values.items()}  # not to be wrapped
        return " ".join(f"--{k}" if v is True else f"--{k} {v}" for k, v in shown.items())

    def block(name: str, text: str) -> str:
        return f"{name}\n{textwrap.fill(text, columns, initial_indent='  ', subsequent_indent='  ', break_on_hyphens=False)}".replace(
            "\0", " "
        )

    print(block("all of them", flags({k: v for k, v in next(iter(differing.values())).items() if k in common})))
    for name, values in differing.items():
        print(block(name, flags({k: v for k, v in values.items() if k not in common})))
    for name in algorithms():
        if own := dict(getattr(import_module(f"algos.{name}").Args, "PRESET", ())):
            print(block(f"any, for {name}", flags(own)))


COMMANDS = {
    "doctor": (doctor, "[FLAGS]"),
    "presets": (presets, ""),
    "score": (score, "--completions FILE [--rewards R ...]"),
    "diff": (diff, "A B [--html FILE]"),
    "bench": (bench, "[--algos A B ...] [--from RUN ...]"),
    "watch": (watch, "RUN [RUN ...] [--out FILE] [--once]"),
    "explain": (explain, "RUN [RUN ...] [--steps S ...]"),
    "plot": (plot, "RUN [RUN ...] [--out FILE]"),
}


def _script(name: str) -> Path:
    known = algorithms()
    path = known.get(name, Path(name))
    if not path.is_file():
        raise UserError(f"diff: no algorithm or file {name!r}{_nearest(name, known)}")
    return path


def _nearest(word: str, known: dict) -> str:
    near = difflib.get_close_matches(word, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else f"; there are {', '.join(known)}"


def help_text() -> str:
    """The commands and the algorithms. Docstrings are read, not imported: importing a script would load torch first."""
    entries = [(f"{name} {usage}".strip(), function.__doc__) for name, (function, usage) in COMMANDS.items()]
    scripts = []
    for name, path in algorithms().items():
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "(no docstring)"
        scripts.append((name, docstring.splitlines()[0]))
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
        elif command in COMMANDS:
            COMMANDS[command][0](argv)
        else:
            raise UserError(f"unknown command {command!r}{_nearest(command, scripts | COMMANDS)}")


if __name__ == "__main__":
    main()

"""The leaderboard: the table of runs whose truth is known, what is started, kept, resumed and refused, and a small real bench, killed."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest

import algos.linear
from tools import curves, leaderboard
from tools.leaderboard import draw_ends, load_finished, markdown, with_mean_end
from common.runs import load_run
from tools.bench import plan
from tools.jobs import Job, train_missing
from common.errors import UserError
from support.folders import NAMES, write_run
from support.running import ROOT, run_script


def foreign(folder: Path, script: str, seed: int, ends: tuple[float, ...], seconds: float = 1.0, **flags) -> Path:
    """A finished run of 50 steps from .5, .3, .4 to `ends`, reached at step 30 and left again at once: the mean of the last three counts.

    The verdict's standard error is .02 at both ends, so that .0566 is beyond noise."""
    starts = dict(zip(NAMES, (0.5, 0.3, 0.4), strict=True))
    values = {n: [starts[n], 0.99, 0.99, end - 0.1, end, end + 0.1] for n, end in zip(NAMES, ends, strict=True)}
    shared = {"steps": 50, "eval_split": "test", "rewards": list(NAMES), "temperature": 1.0, "estimator": "reinforce"}
    write_run(folder, values, script=script, seed=seed, **(shared | flags))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    timed = [line | ({"time/rollout": seconds / 4, "time/update": 3 * seconds / 4} if line["step"] else {}) for line in lines]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in timed))
    return folder


@pytest.fixture
def folders(tmp_path) -> list[Path]:
    """linear loses accuracy in two runs of three; ctwa in none, and takes 1.5 times as long."""
    linear = [(0.2, 0.8, 0.8), (0.3, 0.8, 0.8), (0.55, 0.7, 0.75)]
    ctwa = [(0.6, 0.7, 0.7), (0.55, 0.7, 0.7), (0.7, 0.8, 0.7)]
    return [
        foreign(tmp_path / f"{script}-{seed}", script, seed, ends, seconds)
        for script, runs, seconds in (("linear", linear, 2.0), ("ctwa", ctwa, 3.0))
        for seed, ends in enumerate(runs, 1)
    ]


def board_of(folders) -> dict:
    return leaderboard.leaderboard(load_finished(folders)[0])


# --- reading ---


def test_the_table_says_what_was_put_in(folders):
    (section,) = board_of(folders)["sections"]
    assert section["title"] == "testbed · arithmetic · reinforce · 50 steps · eval split test"
    ctwa, linear = section["rows"]  # by the worst change
    assert [row["algorithm"] for row in (ctwa, linear)] == ["ctwa", "linear"]
    assert ctwa["seeds"] == linear["seeds"] == [1, 2, 3]
    assert linear["objectives"]["accuracy"]["start"] == 0.5
    assert linear["objectives"]["accuracy"]["per_seed"] == pytest.approx([0.2, 0.3, 0.55])
    assert linear["objectives"]["accuracy"]["value"] == pytest.approx(0.35)  # of three seeds, the mean
    assert linear["objectives"]["accuracy"]["interval"] == pytest.approx([0.2, 0.55])  # of 27 resamples, the ends come up more than 2.5%
    assert linear["worst_change"]["per_seed"] == pytest.approx([-0.3, -0.2, 0.05])
    assert ctwa["worst_change"]["per_seed"] == pytest.approx([0.1, 0.05, 0.2])
    assert linear["worst_change"]["objective_per_seed"] == ["accuracy"] * 3
    assert linear["interference"] == {"runs": 2, "of": 3, "degraded": {"accuracy": 2, "conciseness": 0, "clarity": 0}}
    assert ctwa["interference"]["runs"] == 0
    assert ctwa["hypervolume"]["per_seed"] == pytest.approx([0.294, 0.2695, 0.392])
    assert ctwa["better_than_linear"]["value"] == pytest.approx(8.5 / 9)  # one pair of the nine is a tie
    assert linear["better_than_linear"] is None
    assert (linear["seconds_per_step"], ctwa["time_relative_to_linear"]) == (2.0, 1.5)
    assert ctwa["length"] == {"start": 30, "end": 26}


def test_a_tie_is_a_tie_in_whatever_order_evaluations_came(tmp_path):
    one = foreign(tmp_path / "a", "linear", 1, (0.6, 0.7, 0.7))
    two = foreign(tmp_path / "b", "ctwa", 1, (0.6, 0.7, 0.7))
    text = (two / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in text]
    for name in NAMES:  # the last three in another order
        rows[30][f"eval/{name}"], rows[50][f"eval/{name}"] = rows[50][f"eval/{name}"], rows[30][f"eval/{name}"]
    (two / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = {row["algorithm"]: row for row in board_of([one, two])["sections"][0]["rows"]}
    assert rows["ctwa"]["better_than_linear"] == {"value": 0.5, "interval": None}  # one seed each


@pytest.mark.parametrize("flag", [*leaderboard.SETTING, *leaderboard.MEASURE])
def test_runs_that_differ_in_what_is_measured_are_not_compared(flag, tmp_path):
    values = {
        "steps": [50, 40],
        "rewards": [["a"], ["b"]],
        "eval_prompts": [64, 128],
        "temperature": [1.0, 0.7],
        "max_new_tokens": [56, 80],
    }
    one, other = values.get(flag, ["this", "that"])
    runs = [foreign(tmp_path / f"{n}", "linear", 1, (0.6, 0.7, 0.7), **{flag: value}) for n, value in enumerate((one, other))]
    assert len(board_of(runs)["sections"]) == 2
    same = [foreign(tmp_path / f"same{n}", script, 1, (0.6, 0.7, 0.7), **{flag: one}) for n, script in enumerate(("linear", "ctwa"))]
    assert len(board_of(same)["sections"]) == 1


def test_seconds_are_the_median_and_the_length_starts_where_it_starts(tmp_path):
    run = load_run(foreign(tmp_path / "run", "linear", 1, (0.6, 0.7, 0.7)))
    for row in run.rows[1:4]:  # a machine that was busy for three steps
        row["time/update"] = 100.0
    assert leaderboard.seconds_per_step(run) == 1.0
    run.rows[0]["eval/length"] = 41.0
    assert leaderboard.leaderboard([run])["sections"][0]["rows"][0]["length"]["start"] == 41.0


def test_a_row_is_compared_with_the_linear_of_the_nearest_flags(tmp_path):
    """What is a run's own, its seed, its folder or its micro-batches, takes no part in that."""
    own = foreign(tmp_path / "ctwa", "ctwa", 1, (0.6, 0.7, 0.7), kl_coef=0.001, micro_batch_tokens=4096)
    near = foreign(tmp_path / "near", "linear", 2, (0.7, 0.7, 0.7), kl_coef=0.001, micro_batch_tokens=512, checkpoint_every=5)
    far = foreign(tmp_path / "far", "linear", 1, (0.2, 0.7, 0.7), kl_coef=0.0, micro_batch_tokens=4096)
    rows = {row["algorithm"]: row for row in board_of([own, near, far])["sections"][0]["rows"]}
    assert rows["ctwa"]["better_than_linear"]["value"] == 0.0  # 1.0 beside the other


def test_the_end_is_the_mean_of_the_last_three_and_never_the_start(tmp_path):
    ended = with_mean_end(load_run(write_run(tmp_path / "a", {"accuracy": [0.1, 0.9, 0.2, 0.4, 0.6]})))
    assert [row["eval/accuracy"] for row in ended.rows] == [0.1, pytest.approx(0.4)]
    assert ended.rows[1]["eval/accuracy_se"] == pytest.approx(0.02)
    run = load_run(tmp_path / "a")
    for row, se in zip([row for row in run.rows if "eval/accuracy" in row], (0.5, 0.4, 0.01, 0.02, 0.06), strict=True):
        row["eval/accuracy_se"] = se
    assert with_mean_end(run).rows[1]["eval/accuracy_se"] == pytest.approx(0.03)  # of the same three
    ended = with_mean_end(load_run(write_run(tmp_path / "b", {"accuracy": [0.1, 0.3, 0.5]})))
    assert ended.rows[1]["eval/accuracy"] == pytest.approx(0.4)


def test_what_rose_in_samples_alone_is_told_below_the_table(folders):
    for folder in folders[3:5]:
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            if "eval/greedy/clarity" in line:
                line["eval/greedy/clarity"] = 0.9 if line["step"] == 0 else 0.7
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    board = board_of(folders)
    (ctwa,) = (row for row in board["sections"][0]["rows"] if row["script"] == "ctwa")
    assert ctwa["in_samples_alone"] == {"accuracy": 0, "conciseness": 0, "clarity": 2}
    assert "Improved in samples, degraded under greedy decoding (runs): `ctwa` clarity in 2 of 3." in markdown(board)
    assert "under greedy decoding (runs)" not in markdown(board_of(folders[:3]))


def test_an_unfinished_run_is_left_out_and_named(folders, tmp_path):
    lines = (folders[1] / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folders[1] / "metrics.jsonl").write_text("".join(lines[:-1]))
    runs, left_out = load_finished([*folders, folders[0]])  # a folder given twice counts once
    assert len(runs) == 5
    assert len(left_out) == 1
    assert re.fullmatch(r".*linear-2: at step 49 of 50, not finished", left_out[0])
    with pytest.raises(UserError, match="no finished run among the 1 given"):
        load_finished([folders[1]])
    with pytest.raises(UserError, match="no run folder"):
        load_finished([tmp_path / "nowhere"])


def test_a_run_of_a_results_folder_that_has_no_step_yet_is_left_out(folders, tmp_path):
    results = tmp_path / "results" / "runs"
    results.mkdir(parents=True)
    for folder in folders[:2]:
        folder.rename(results / folder.name)
    (results / "mgda-1").mkdir()
    (results / "mgda-1" / "args.json").write_text("{}")
    runs, left_out = load_finished([tmp_path / "results"])
    assert [run.name for run in runs] == ["linear-1", "linear-2"]
    assert len(left_out) == 1
    assert "mgda-1" in left_out[0]
    with pytest.raises(UserError, match="mgda-1"):
        load_finished([results / "mgda-1"])


def test_settings_are_pooled_by_their_flags_and_not_by_their_names(tmp_path):
    """`ctwa` is one thing on each model here, and another where a section has two of it."""
    made = [
        ("testbed", "ctwa", {"weight_lr": 1.0}, 0.6),
        ("testbed", "ctwa", {"weight_lr": 0.05}, 0.2),
        ("testbed:robust", "ctwa", {"weight_lr": 1.0}, 0.7),
        ("testbed:wavering", "ctwa", {"weight_lr": 0.05}, 0.1),
    ]
    board = board_of([foreign(tmp_path / f"{n}", s, 1, (end, 0.7, 0.7), model=m, **f) for n, (m, s, f, end) in enumerate(made)])
    assert [[row["algorithm"] for row in s["rows"]] for s in board["sections"]] == [
        ["ctwa weight_lr 1.0", "ctwa weight_lr 0.05"],
        ["ctwa"],
        ["ctwa"],
    ]
    pooled = {row["algorithm"]: row["worst_change"]["value"] for row in board["overall"]}
    assert pooled == pytest.approx({"ctwa weight_lr 1.0": (0.1 + 0.2) / 2, "ctwa weight_lr 0.05": (-0.3 - 0.4) / 2})


def test_settings_in_folders_of_one_name_have_names_of_their_own(tmp_path):
    targets = {"half": [0.0125, 0.0625, 0.03125], "double": [0.0375, 0.1875, 0.09375]}  # too long for a name
    for name, values in targets.items():
        foreign(tmp_path / name / "runs" / "ctwa-s1", "ctwa", 1, (0.6, 0.7, 0.7), cov_targets=values)
    folders = [tmp_path / name / "runs" / "ctwa-s1" for name in targets]
    labels = [row["algorithm"] for row in board_of(folders)["sections"][0]["rows"]]
    assert len(set(labels)) == 2
    assert all(any(name in label for label in labels) for name in targets)


def test_the_same_seed_twice_is_refused(folders, tmp_path):
    again = foreign(tmp_path / "again", "linear", 2, (0.2, 0.8, 0.8))
    with pytest.raises(UserError, match="linear-2 and .*again are the same setting with the same seed; give one of them"):
        board_of([*folders, again])


def test_settings_that_do_not_compare_stand_in_sections_of_their_own(folders, tmp_path):
    robust = [foreign(tmp_path / f"r{n}", script, 1, (0.7, 0.7, end), model="testbed:robust") for n, (script, end) in
              enumerate([("linear", 0.7), ("ctwa", 0.6)])]  # fmt: skip
    board = board_of([*folders, *robust])
    assert [s["title"].split(" · ")[0] for s in board["sections"]] == ["testbed", "testbed:robust"]
    overall = {row["algorithm"]: row for row in board["overall"]}
    assert overall["linear"]["interference"] == {"runs": 2, "of": 4}
    assert overall["linear"]["worst_change"]["value"] == pytest.approx((-0.2 + 0.05) / 2)  # of -.3, -.2, .05, .2 the middle two
    assert overall["ctwa"]["better_than_linear"] == pytest.approx((8.5 / 9 + 0.5) / 2)  # the mean of the settings
    assert (leaderboard.write_board(board, tmp_path)[2]).name == "ends-1-testbed-arithmetic-reinforce.png"
    other_rewards = foreign(tmp_path / "o", "linear", 1, (0.7, 0.7, 0.7), rewards=["mine.py:accuracy"])
    board = board_of([*folders, other_rewards])
    assert len(board["sections"]) == 2
    assert board["overall"] == []  # changes in other units are not pooled
    assert "rewards ['mine.py:accuracy']" in board["sections"][1]["title"]


def test_other_flags_are_another_row_and_linear_is_the_one_that_fits(folders, tmp_path):
    hot = [foreign(tmp_path / f"hot{n}", s, 1, ends, lr=1.0) for n, (s, ends) in enumerate(
        [("linear", (0.9, 0.9, 0.9)), ("ctwa", (0.8, 0.8, 0.8))])]  # fmt: skip
    (section,) = board_of([*folders, *hot])["sections"]
    rows = {row["algorithm"]: row for row in section["rows"]}
    assert set(rows) == {"linear lr None", "linear lr 1.0", "ctwa lr None", "ctwa lr 1.0"}
    assert rows["ctwa lr 1.0"]["better_than_linear"]["value"] == 0  # against the other linear it would be 1
    assert rows["ctwa lr None"]["better_than_linear"]["value"] == pytest.approx(8.5 / 9)


def test_without_linear_nothing_is_compared_with_it(folders):
    (section,) = board_of(folders[3:])["sections"]
    assert section["rows"][0]["better_than_linear"] is None
    assert section["rows"][0]["time_relative_to_linear"] is None
    assert "| – |" in markdown(board_of(folders[3:]))


def test_files_and_footer(folders, tmp_path, monkeypatch):
    figures = []
    original = curves.write_figure
    monkeypatch.setattr(leaderboard, "write_figure", lambda figure, out: (figures.append(figure), original(figure, out)))
    printed = leaderboard.make_table(folders, tmp_path / "out", "python run.py bench --from x")
    out = tmp_path / "out"
    assert sorted(path.name for path in out.iterdir()) == ["ends.pdf", "ends.png", "table.json", "table.md"]
    text = (out / "table.md").read_text()
    assert text in printed
    assert "| `linear` | 3 | 0.50 → 0.35 [0.20, 0.55] |" in text
    assert "| 2/3 (accuracy 2) |" in text
    for told in ("last 3 evaluations", "never the best", "95% percentile interval", "2 standard errors", "(0, ..., 0)", "ties half"):
        assert told in text
    for told in (
        "Command: `python run.py bench --from x`",
        "Seeds: 1, 2, 3; 6 runs",
        "6 runs, whose code",
        "torch 2.",
        "Table made at commit",
    ):
        assert told in text
    assert "quick form" not in text
    saved = json.loads((out / "table.json").read_text())
    assert saved["sections"] == board_of(folders)["sections"]
    assert saved["definitions"] == list(leaderboard.DEFINITIONS)
    assert (out / "ends.png").read_bytes()[:4] == b"\x89PNG"
    axes = figures[0].axes
    assert [a.get_title(loc="left") for a in axes] == [*NAMES, "worst change"]
    assert [t.get_text() for t in axes[0].get_yticklabels()] == ["ctwa", "linear"]
    drawn = [list(line.get_xdata()) for line in axes[0].lines]
    assert [0.5, 0.5] in drawn  # the start
    row = saved["sections"][0]["rows"][1]["objectives"]["accuracy"]
    assert all(values in drawn for values in ([row["value"]], row["interval"], row["per_seed"]))
    tuned = foreign(tmp_path / "tuned", "linear", 1, (0.7, 0.7, 0.7), eval_split="tune")
    assert "Tuning prompts" in leaderboard.make_table([tuned], tmp_path / "tune", "x")


def test_a_picture_of_ten_rows_one_seed_and_one_objective(tmp_path):
    for n in range(10):
        write_run(tmp_path / f"{n}", {"only": [0.1, 0.5, 0.6]}, script=f"algorithm_{n}", steps=20)
    (section,) = board_of([tmp_path / f"{n}" for n in range(10)])["sections"]
    draw_ends(section, tmp_path / "x.pdf")
    assert (tmp_path / "x.pdf").read_bytes()[:4] == b"%PDF"
    assert section["rows"][0]["interference"]["runs"] == 0


def test_from_on_the_command_line_and_its_refusals(folders, tmp_path):
    def run(*words):
        return run_script(str(ROOT / "run.py"), "bench", *words, cwd=tmp_path)

    done = run("--from", *[folder.name for folder in folders], "--out", "table")
    assert done.returncode == 0, done.stderr
    assert "| `ctwa` | 3 |" in done.stdout
    assert (tmp_path / "table" / "table.md").read_text() in done.stdout
    for words, told in [
        (("--from", "linear-1", "--seeds", "3"), "error: --from trains nothing, so --seeds has no use; drop it\n"),
        (("--from",), "error: --from: which runs? python run.py bench --from RUN [RUN ...], such as runs/ctwa-s1\n"),
        (("--jobs", "-1"), "error: --jobs -1 must be at least 1; 0 is one per core\n"),
        (("--algos", "linea"), "error: --algos linea does not exist; did you mean 'linear'?\n"),
    ]:
        done = run(*words)
        assert (done.returncode, done.stderr) == (2, told)


# --- what is to be run ---


SCRIPTS = {"linear": (ROOT / "algos" / "linear.py", algos.linear.Args)}


def test_the_plan_is_every_combination_seed_by_seed():
    jobs = plan(SCRIPTS, 2, ("testbed", "testbed:robust"), ("grpo",), 7, ["--prompts", "4"], Path("r"))
    assert [job.name for job in jobs] == [f"linear-{model}-grpo-s{s}" for s in (1, 2) for model in ("testbed", "testbed-robust")]
    words = ["--prompts", "4", "--model", "testbed", "--estimator", "grpo", "--steps", "7", "--seed", "1"]
    assert jobs[0].argv == words
    assert jobs[0].folder == Path("r/runs/linear-testbed-grpo-s1")
    assert [jobs[3].args[k] for k in ("script", "model", "seed", "prompts", "steps")] == ["linear", "testbed:robust", 2, 4, 7]
    assert json.loads(json.dumps(jobs[0].args)) == jobs[0].args
    (job,) = plan(SCRIPTS, 1, (), (), 0, ["--preset", "qwen2.5-1.5b-math500"], Path("r"))
    assert (job.steps, job.args["model"]) == (810, "Qwen/Qwen2.5-1.5B")  # what the preset says stands
    assert job.name == "linear-Qwen-Qwen2.5-1.5B-reinforce-s1"


@pytest.mark.parametrize(
    ("seeds", "models", "passed", "told"),
    [
        (1, (), ["--seed", "3"], "-- --seed: bench sets it for each run; use its --seeds, before the --"),
        (1, (), ["--eval-every", "5", "--model=x"], "-- --model=x: bench sets it for each run; use its --models, before the --"),
        (1, (), ["--no-such-flag", "3"], "flags after -- go to every script, and linear does not take these"),
        (0, (), [], "--seeds 0 must be at least 1"),
        (1, ("a/b", "a-b"), [], "two runs would be called linear-a-b-reinforce-s1"),
    ],
)
def test_the_plan_refuses(seeds, models, passed, told, capsys):
    with pytest.raises(UserError, match=re.escape(told)):
        plan(SCRIPTS, seeds, models, (), 0, passed, Path("r"))


# --- what is run, with a script that only pretends to train ---

FAKE = """
import json, sys, time
from pathlib import Path
words = sys.argv[1:]
resume = "--resume" in words
folder = Path(words[words.index("--resume" if resume else "--out") + 1])
here = Path(__file__).parent
args = json.loads((here / "plan.json").read_text())[folder.name]
with open(here / "started.txt", "a") as file:
    file.write(f"{folder.name} {'resume' if resume else 'new'}\\n")
if (here / f"fail-{folder.name}").exists():
    print("half a bar  10%|#   | 1/10\\rerror: the disk is full", file=sys.stderr)
    sys.exit(2)
folder.mkdir(parents=True, exist_ok=resume)
(folder / "args.json").write_text(json.dumps(args | {"out": str(folder)}))
first = max([-1, *(int(p.name[5:]) for p in folder.glob("checkpoints/step_*") if p.name[5:].isdigit())]) + 1
rows = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)[:first] if resume else []
(folder / "metrics.jsonl").write_text("".join(rows))
for step in range(first, args["steps"] + 1):
    names = (*args["objectives"], "length")
    row = {"step": step, "time/update": 1.0} | {f"eval/{n}{s}": .02 + .01 * step for n in names for s in ("", "_se")}
    with open(folder / "metrics.jsonl", "a") as file:
        file.write(json.dumps(row) + "\\n")
    if step % 2 == 0 and step:
        (folder / "checkpoints" / f"step_{step:06d}").mkdir(parents=True)
    while step in (2, 3) and (here / "wait").exists():
        time.sleep(.02)
(folder / "model").mkdir()
"""


@pytest.fixture
def jobs(tmp_path) -> list[Job]:
    """Four runs of 4 steps of a script that pretends; a file `wait` beside it stops each at steps 2 and 3, `fail-NAME` lets one fail."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "fake.py").write_text(FAKE)
    args = {"script": "linear", "objectives": list(NAMES), "steps": 4, "lr": 0.1, "estimator": "grpo", "model": "testbed"}
    made = [
        Job(f"linear-s{s}", tmp_path / "out" / "runs" / f"linear-s{s}", fake / "fake.py", ["--seed", str(s)], args | {"seed": s}, 4)
        for s in (1, 2, 3, 4)
    ]
    (fake / "plan.json").write_text(json.dumps({job.name: job.args for job in made}))
    return made


def started(jobs) -> list[str]:
    """What was started since the last look."""
    file = jobs[0].script.with_name("started.txt")
    text = file.read_text() if file.exists() else ""
    file.write_text("")
    return sorted(text.splitlines())


def test_finished_runs_are_kept_and_the_others_started_resumed_or_started_anew(jobs, tmp_path, capsys):
    out = tmp_path / "out"
    assert train_missing(jobs[:1], out, 2, "python run.py bench --quick") == {}
    assert started(jobs) == ["linear-s1 new"]
    assert "**This is the quick form**" in leaderboard.make_table([out], tmp_path / "elsewhere", "c")
    second = jobs[1].folder  # killed after its checkpoint of step 2, while it wrote step 3
    second.mkdir()
    (second / "args.json").write_text(json.dumps(jobs[1].args | {"out": "elsewhere", "wandb": True}))
    (second / "metrics.jsonl").write_text("".join(json.dumps({"step": s}) + "\n" for s in range(3)) + '{"ste')
    (second / "checkpoints" / "step_000002").mkdir(parents=True)
    (second / "checkpoints" / "step_000004.tmp").mkdir()
    third = jobs[2].folder  # killed while it wrote its first checkpoint
    (third / "checkpoints" / "step_000002.tmp").mkdir(parents=True)
    (third / "args.json").write_text(json.dumps(jobs[2].args))
    jobs[3].folder.mkdir()  # killed at once
    (out / "stopped" / "linear-s3-1").mkdir(parents=True)
    assert train_missing(jobs, out, 2, "c") == {}
    assert started(jobs) == ["linear-s2 resume", "linear-s3 new", "linear-s4 new"]
    assert json.loads((out / "stopped" / "linear-s3-2" / "args.json").read_text()) == jobs[2].args
    assert (out / "stopped" / "linear-s4-1").is_dir()
    assert "4 runs: 1 finished, 1 to resume, 2 to start; 2 at a time" in capsys.readouterr().out
    assert [load_run(job.folder).rows[-1]["step"] for job in jobs] == [4] * 4
    notes = json.loads((out / "started.json").read_text())
    assert {name: len(starts) for name, starts in notes.items()} == {job.name: 1 for job in jobs}
    assert notes["linear-s2"][0]["jobs"] == 2
    assert train_missing(jobs, out, 2, "c") == {}
    assert started(jobs) == []
    text = leaderboard.make_table([out], out, "c")
    assert "4 runs at commit" in text
    assert "0.02 → 0.05" in text


def test_a_run_killed_between_its_last_step_and_its_model_is_resumed_and_one_cleared_of_both_is_done(jobs, tmp_path):
    train_missing(jobs[:2], tmp_path / "out", 2, "c")
    started(jobs)
    for job in jobs[:2]:
        (job.folder / "model").rmdir()
    for checkpoint in (jobs[1].folder / "checkpoints").iterdir():
        checkpoint.rmdir()
    assert train_missing(jobs[:2], tmp_path / "out", 2, "c") == {}
    assert started(jobs) == ["linear-s1 resume"]


def test_a_failing_run_is_named_and_the_others_go_on(jobs, tmp_path, capsys):
    jobs[0].script.with_name("fail-linear-s2").touch()
    failed = train_missing(jobs, tmp_path / "out", 2, "c")
    assert failed == {"linear-s2": "    error: the disk is full"}  # without the bar
    assert re.search(r"linear-s2: FAILED with exit code 2 \(\d of 4\)\n    error: the disk is full", capsys.readouterr().out)
    text = leaderboard.make_table([job.folder for job in jobs if job.name not in failed], tmp_path / "out", "c", failed=failed)
    assert "Failed, not in the table: linear-s2." in text
    assert "| `linear` | 3 |" in text
    jobs[0].script.with_name("fail-linear-s2").unlink()
    started(jobs)
    assert train_missing(jobs, tmp_path / "out", 2, "c") == {}
    assert started(jobs) == ["linear-s2 new"]


def test_other_settings_are_named_before_anything_starts(jobs, tmp_path):
    out = tmp_path / "out"
    train_missing(jobs[3:], out, 1, "c")
    started(jobs)
    path = jobs[3].folder / "args.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"lr": 0.3, "steps": 9}))
    told = f"--out {out} holds linear-s4 with other settings (--lr was 0.3, now 0.1, --steps was 9, now 4); give another --out"
    with pytest.raises(UserError, match=re.escape(told)):
        train_missing(jobs, out, 1, "c")
    assert started(jobs) == []
    assert not (out / "stopped").exists()


def test_a_results_folder_that_cannot_be_made(jobs, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match="--out .*out cannot be made"):
        train_missing(jobs, tmp_path / "out", 1, "c")


def bench_process(jobs, out: Path) -> subprocess.Popen:
    """train_missing in a process of its own."""
    made = [(j.name, str(j.folder), str(j.script), j.argv, j.args, j.steps) for j in jobs]
    code = (
        "import sys; from pathlib import Path; from tools.jobs import Job, train_missing\n"
        f"jobs = [Job(n, Path(f), Path(s), a, d, k) for n, f, s, a, d, k in {made!r}]\n"
        f"train_missing(jobs, Path({str(out)!r}), 2, 'c')"
    )
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def until(condition, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def alive(pid: int) -> bool:
    """Whether a process runs; one that ended and that nobody has asked for is not running."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_stopped_bench_ends_its_runs_and_one_killed_outright_leaves_the_folder_locked(jobs, tmp_path):
    out, wait = tmp_path / "out", jobs[0].script.with_name("wait")
    wait.touch()

    def pids() -> list[int]:
        lines = (out / ".lock").read_text().splitlines()
        return [int(line.split()[0]) for line in lines if not line.endswith("run.py")]

    def two_at_step_two() -> bool:
        return sum((job.folder / "checkpoints" / "step_000002").exists() for job in jobs) == 2

    process = bench_process(jobs, out)
    until(two_at_step_two)
    first = pids()
    process.send_signal(signal.SIGTERM)
    assert process.wait(120) == 143
    assert len(first) == 2
    assert not any(map(alive, first))

    process = bench_process(jobs, out)
    until(lambda: sum(load_run(job.folder).rows[-1]["step"] == 3 for job in jobs[:2]) == 2)  # resumed from step 2
    process.kill()
    process.wait()
    orphans = pids()
    assert all(map(alive, orphans))
    with pytest.raises(UserError, match=rf"another command is at work there, .*{orphans[0]} linear-s1.*; wait, or end them"):
        train_missing(jobs, out, 2, "c")
    for pid in orphans:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(alive, orphans)))
    wait.unlink()
    assert train_missing(jobs, out, 2, "c") == {}
    assert [load_run(job.folder).rows[-1]["step"] for job in jobs] == [4] * 4


# --- for real ---


def test_a_small_bench_of_real_scripts_and_again_with_other_flags(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["bench", "--algos", "linear", "pama", "--seeds", "1", "--steps", "2", "--jobs", "2", "--out", "small", "--", "--prompts", "4"]
    words += ["--completions", "2", "--eval-prompts", "4", "--eval-every", "1", "--checkpoint-every", "1", "--max-new-tokens", "8"]
    out = Path("small")

    def small(completions: str) -> list[Job]:
        passed = words[words.index("--") + 1 :]
        passed[passed.index("--completions") + 1] = completions
        scripts = {name: (ROOT / "algos" / f"{name}.py", import_module(f"algos.{name}").Args) for name in ("linear", "pama")}
        return plan(scripts, 1, (), (), 2, passed, out)

    done = run_script(str(ROOT / "run.py"), *words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "2 runs: 0 finished, 0 to resume, 2 to start; 2 at a time" in done.stdout
    saved = json.loads((out / "table.json").read_text())
    rows = {row["algorithm"]: row for row in saved["sections"][0]["rows"]}
    assert {name: row["seeds"] for name, row in rows.items()} == {"linear": [1], "pama": [1]}
    assert [row["step"] for row in load_run(out / "runs" / "pama-testbed-reinforce-s1").rows] == [0, 1, 2]
    assert rows["pama"]["time_relative_to_linear"] > 0
    text = (out / "table.md").read_text()
    assert f"Command: `python run.py {' '.join(words)}`" in text
    assert "Seeds: 1; 2 runs." in text
    assert train_missing(small("2"), out, 2, "c") == {}  # what the scripts wrote is what was planned
    assert "2 finished" in capsys.readouterr().out
    with pytest.raises(UserError, match=re.escape("with other settings (--completions was 2, now 4)")):
        train_missing(small("4"), out, 2, "c")

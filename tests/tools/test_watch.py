"""The page that follows a run: what is in it, when it is written, and, where there is a browser, what it shows and does."""

import json
import math
import os
import re
import shutil
import threading
import time
from pathlib import Path

import pytest

from tools.runs import load_run
from tools.verdict import verdict
from tools import watch
from tools.watch import alarms, finished, follow, law_intervals, page, page_data
from common.errors import UserError
from common.track import Hold
from support.browser import Browser, needs_browser, needs_driver, rendered
from support.folders import write_run

LOST = {"accuracy": [0.55, 0.3, 0.06], "clarity": [0.4, 0.7, 1.0]}
HOSTILE = [
    "</script><script>document.title = 'owned'</script>",
    "<img src=x onerror=\"document.title = 'owned'\"><!-- <script>",
    "line\u2028paragraph\u2029 __DATA__ __TITLE__ ${document.title = 'owned'} \ud800",
]


def add_to_rows(folder: Path, extra) -> None:
    """Merge `extra(step)` into each line of metrics.jsonl."""
    file = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    file.write_text("".join(json.dumps(row | extra(row["step"])) + "\n" for row in rows))


def a_run(folder: Path, evaluations=LOST, law: float = 0.01, texts=("1. a", "2. b"), done: bool = True, **flags) -> Path:
    """A run of 20 steps, evaluated at 0, 10 and 20, with law/<o> of `law` at each step and a completion of each of two prompts."""
    write_run(folder, evaluations, **{"steps": 20} | flags)
    add_to_rows(folder, lambda step: {f"law/{name}": law for name in evaluations} | {"time/update": 2.0} if step else {})
    samples = []
    for step in (0, 10, 20):
        for p, text in enumerate(texts):
            samples.append({"step": step, "prompt": f"Q{p}", "completion": f"{text} at {step}", "accuracy": float(p), "clarity": step / 20})
    (folder / "completions.jsonl").write_text("".join(json.dumps(sample) + "\n" for sample in samples))
    if done:
        (folder / "model").mkdir()
    return folder


def train_on(folder: Path, kinds=((0, 1), (1, 0)), texts=("a", "b"), size: int = 4) -> None:
    """Of steps 1 and 10 `size` completions of each of two prompts, other ones in each step: of the first prompt with the first of `kinds`
    (accuracy, clarity), of the second with the first and the second by turns."""
    rows = []
    for step in (1, 10):
        for i in range(2 * size):
            scores = dict(zip(("accuracy", "clarity"), map(float, kinds[i // size * (i % 2)]), strict=True))
            rows.append({"step": step, "row": i, "prompt": f"T{step}.{i // size}", "completion": f"{texts[i // size]} {i}", **scores})
    (folder / "training_completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def cut(folder: Path, step: int) -> None:
    """As it was when that step was the last."""
    for file in (folder / "metrics.jsonl", folder / "completions.jsonl"):
        file.write_text("".join(line for line in file.read_text().splitlines(True) if json.loads(line)["step"] <= step))


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


# --- what is in the page ---


def test_completions_cannot_leave_their_place(tmp_path):
    text = page([load_run(a_run(tmp_path / "run", texts=HOSTILE))], "live")
    assert len(re.findall("<script", text)) == text.count("</script>") == watch.TEMPLATE.read_text().count("</script>") == 2
    assert "<img" not in text
    assert "<!--" not in text
    assert not re.search("[\u2028\u2029]", text)
    assert [sample[2] for sample in data_of(text)["runs"][0]["samples"]][:3] == [f"{hostile} at 0" for hostile in HOSTILE]


def test_folder_name_is_text(tmp_path):
    text = page([load_run(a_run(tmp_path / "<b>&amp;"))], "live")
    assert "<title>&lt;b&gt;&amp;amp;</title>" in text
    assert "<b>" not in text


def test_numbers_come_through_with_four_digits(tmp_path):
    run = load_run(a_run(tmp_path / "run"))
    shown = data_of(page([run], "live"))["runs"][0]
    for key in ("eval/accuracy", "eval/accuracy_se", "cov/clarity", "weight_share/accuracy", "eval/length", "loss/kl"):
        steps, values = run.series(key)
        assert shown["series"][key][0] == steps
        assert shown["series"][key][1] == pytest.approx(values, rel=5.1e-4)
    assert "loss/policy" not in shown["series"]  # null in every line of this run
    assert shown["changes"] == {"accuracy": "0.55 → 0.06 ▼ degraded", "clarity": "0.40 → 1.00 ▲ improved"}
    assert shown["samples"][3] == [10, 1, "2. b at 10", [1.0, 0.5]]


def test_page_of_a_long_run_stays_small(tmp_path):
    values = [0.5] * 82
    folder = a_run(tmp_path / "run", {"accuracy": values, "conciseness": values, "clarity": values}, steps=810)
    names = ("reward/{}", "law/{}", "cov_active/{}", "signal/{}")
    add_to_rows(folder, lambda step: {key.format(o): math.sin(step) for key in names for o in ("accuracy", "conciseness", "clarity")})
    add_to_rows(folder, lambda step: {key: math.sin(step) for key in watch.OTHERS})
    rows = [{"step": 10 * e, "prompt": f"{p}" * 500, "completion": "日本" * 2000} for e in range(82) for p in range(4)]
    (folder / "completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    rows = [row | {"row": i, "prompt": f"{row['step']} {row['prompt']}"} for i, row in enumerate(rows)]
    (folder / "training_completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = page([load_run(folder)], "live")
    assert len(text.encode()) < 2_000_000
    assert data_of(text)["runs"][0]["training_left_out"] > 0
    kept = {sample[0] for sample in data_of(text)["runs"][0]["samples"]}
    assert {0, 810} < kept
    assert data_of(text)["runs"][0]["left_out"] == 82 - len(kept) > 0


def test_training_completions_are_in_the_page(tmp_path):
    folder = a_run(tmp_path / "run")
    without = page_data([load_run(folder)], "finished")
    assert without["runs"][0]["training"] == []
    train_on(folder)
    data = page_data([load_run(folder)], "finished")
    assert data["prompts"] == ["Q0", "Q1", "T1.0", "T1.1", "T10.0", "T10.1"]
    shown = data["runs"][0]
    assert shown["samples"] == without["runs"][0]["samples"]
    assert [len(shown["training"]), shown["training_left_out"], shown["training_cut"]] == [16, 0, 0]
    assert shown["training"][4:6] == [[1, 3, "b 4", [0.0, 1.0]], [1, 3, "b 5", [1.0, 0.0]]]


@pytest.mark.parametrize("steps", [82, 2])
def test_training_completions_stay_within_their_room(tmp_path, steps):
    """Of 82 steps some are left out; of two that are too long by themselves, the last completions of each."""
    folder, long = a_run(tmp_path / "run"), "日本" * (200 if steps == 82 else 5000)
    each = [(step, i) for step in range(steps) for i in range(64)]
    rows = [{"step": step, "row": i, "prompt": f"{step} {i // 8} {long}", "completion": f"{i} {long}", "accuracy": 1.0} for step, i in each]
    (folder / "training_completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    before = len(page([load_run(a_run(tmp_path / "without"))], "live"))
    text = page([load_run(folder)], "live")
    assert 0.5 * watch.TRAINING < len(text) - before < watch.TRAINING + 1000
    shown = data_of(text)["runs"][0]
    kept = {step: [int(row[2].split()[0]) for row in shown["training"] if row[0] == step] for step in {row[0] for row in shown["training"]}}
    assert {0, steps - 1} <= set(kept)
    assert shown["training_left_out"] == steps - len(kept)
    assert all(texts == list(range(len(texts))) for texts in kept.values())
    assert shown["training_cut"] == 64 * len(kept) - len(shown["training"])
    assert (shown["training_left_out"] > 0, shown["training_cut"] > 0) == (steps == 82, steps == 2)


def test_rewards_that_are_no_numbers_are_null(tmp_path):
    folder = a_run(tmp_path / "run")
    (folder / "completions.jsonl").write_text('{"step": 0, "prompt": "Q", "completion": "a", "accuracy": NaN}\n')
    assert data_of(page([load_run(folder)], "live"))["runs"][0]["samples"] == [[0, 0, "a", [None, None]]]


def test_half_written_lines_are_passed_over(tmp_path):
    folder = a_run(tmp_path / "run")
    for name in ("metrics.jsonl", "completions.jsonl"):
        with open(folder / name, "ab") as file:
            file.write('{"step": 21, "prompt": "é'.encode()[:-1])
    shown = data_of(page([load_run(folder)], "live"))["runs"][0]
    assert len(shown["samples"]) == 6
    assert max(shown["series"]["cov/accuracy"][0]) == 20
    (folder / "completions.jsonl").write_text("no\n")
    with pytest.raises(UserError, match="completions.jsonl line 1: not JSON"):
        page([load_run(folder)], "live")


def test_older_runs_show_what_they_have(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "args.json").write_text('{"script": "linear", "objectives": ["accuracy"]}')  # no steps
    (folder / "metrics.jsonl").write_text('{"step": 0, "eval/accuracy": 0.5}\n{"step": 1, "reward/accuracy": 0.4}\n{"step": 2}\n')
    data = page_data([load_run(folder)], "live")
    assert data["runs"][0]["series"] == {"eval/accuracy": [[0], [0.5]], "reward/accuracy": [[1], [0.4]]}
    assert data["runs"][0]["law"] == {"accuracy": []}
    assert data["runs"][0]["changes"] == {"accuracy": "0.50 at step 0"}
    assert data["runs"][0]["samples"] == data["alarms"] == []
    assert data["status"].endswith("old: step 2 of 2")
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "eval/accuracy": 0.25}\n')  # without a standard error nothing is judged
    assert page_data([load_run(folder)], "live")["runs"][0]["changes"] == {"accuracy": "0.50 → 0.25"}
    (folder / "model").mkdir()
    assert "no standard error" in page_data([load_run(folder)], "live")["runs"][0]["verdict"]


def test_finished_is_the_last_step_and_the_model(tmp_path):
    folder = a_run(tmp_path / "run", done=False)
    assert not finished(load_run(folder))
    assert page_data([load_run(folder)], "live")["runs"][0]["verdict"] == ""
    (folder / "model").mkdir()
    run = load_run(folder)
    assert finished(run)
    data = page_data([run], "finished")
    assert data["runs"][0]["verdict"] == verdict(run).text
    heads, *rows = data["runs"][0]["table"]
    assert [row[:2] for row in rows] == [["accuracy", "▼ degraded"], ["clarity", "▲ improved"], ["length", "shorter"]]
    assert dict(zip(heads[2:], rows[0][2:], strict=True)) == {
        "start": "0.550",
        "end": "0.060",
        "change ± 2 se": "−0.490 ± 0.057",
        "lowest (step)": "0.060 (20)",
        "greedy": "0.275 → 0.030",
    }
    assert re.fullmatch(r"finished, page of [-\d]+ [:\d]+ · run: 20 steps", data["status"])
    cut(folder, 19)  # resumed with more steps: the model is that of the first part
    assert not finished(load_run(folder))


def test_time_left_is_that_of_the_steps_left(tmp_path):
    folder = a_run(tmp_path / "run", steps=4000)
    hold = Hold(folder)  # as the run's own process does
    assert hold.locked
    assert page_data([load_run(folder)], "live")["status"].endswith("run: step 20 of 4000, about 2:12:40 left")  # at 2 s each
    (tmp_path / "run" / "args.json").write_text((folder / "args.json").read_text().replace("4000", "60"))
    assert page_data([load_run(folder)], "live")["status"].endswith("run: step 20 of 60, about 1:20 left")


def test_runs_of_one_name_are_told_apart(tmp_path):
    runs = [load_run(a_run(tmp_path / seed / "run")) for seed in ("a", "b")]
    assert [run["name"] for run in page_data(runs, "live")["runs"]] == [str(run.path) for run in runs]


# --- what is said of a run ---


def test_law_is_summed_over_the_steps_between_two_evaluations(tmp_path):
    folder = a_run(tmp_path / "run")
    add_to_rows(folder, lambda step: {"law/accuracy": float(step)} if step else {})
    rows = law_intervals(load_run(folder), "accuracy")
    assert [row[:2] for row in rows] == [(0, 10), (10, 20)]
    assert [row[2] for row in rows] == pytest.approx([-0.25, -0.24])
    assert [row[3] for row in rows] == pytest.approx([0.02 * 2**0.5] * 2)
    assert [row[4] for row in rows] == [sum(range(1, 11)), sum(range(11, 21))]


def test_a_run_whose_process_is_gone_says_so(tmp_path):
    folder = a_run(tmp_path / "run", steps=60)
    os.utime(folder / "metrics.jsonl", (time.time() - 3600,) * 2)
    told = f"step 20 of 60, not running: its process is gone; --resume {folder} goes on"
    assert page_data([load_run(folder)], "live")["status"].endswith(told)
    hold = Hold(folder)  # as the run's own process does
    assert page_data([load_run(folder)], "live")["status"].endswith("about 1:20 left")
    del hold
    os.utime(folder / "metrics.jsonl")  # written a moment ago: killed just now, or of a machine whose lock is not seen here
    status = page_data([load_run(folder)], "live")["status"]
    assert "left" not in status
    assert status.endswith("step 20 of 60; no process of this machine trains it: it has just stopped, or runs on another machine")


def test_the_page_that_is_open_hears_of_a_run_that_died(tmp_path, monkeypatch):
    """Nothing in its files changes then."""
    folder = a_run(tmp_path / "run", steps=60)
    held, states = [Hold(folder)], []

    def later(seconds: float) -> None:
        states.append(data_of((folder / "watch.html").read_text())["status"])
        if len(states) == 1:
            held.clear()
            os.utime(folder / "metrics.jsonl", (time.time() - 3600,) * 2)  # stands for the hour
        elif len(states) == 3:
            raise KeyboardInterrupt

    before = os.stat(folder / "metrics.jsonl").st_mtime_ns
    monkeypatch.setattr(watch, "_signature", lambda folder: before)
    monkeypatch.setattr(time, "sleep", later)
    follow([str(folder)], "", 1, once=False)
    assert states[0].endswith("about 1:20 left")
    assert "not running" in states[-1]


def test_intervals_without_a_law_are_left_out(tmp_path):
    folder = a_run(tmp_path / "run")
    add_to_rows(folder, lambda step: {"law/accuracy": None} if step == 10 else {})
    assert [row[:2] for row in law_intervals(load_run(folder), "accuracy")] == [(10, 20)]


@pytest.mark.parametrize(
    ("covariance", "values", "told"),
    [
        (-0.1, [0.55, 0.4], True),
        (0.1, [0.55, 0.4], False),
        (-0.1, [0.55, 0.51], False),
        (-0.1, [0.55, 0.7], False),
        (None, [0.55, 0.4], False),
    ],
)
def test_alarm_needs_a_loss_and_a_negative_covariance(tmp_path, covariance, values, told):
    folder = a_run(tmp_path / "run", {"accuracy": values, "clarity": [0.5, 0.9]}, steps=50, done=False)  # the mean is of the last 3
    add_to_rows(folder, lambda step: {"cov/accuracy": (covariance if step > 7 else 5.0) if covariance else None, "cov/clarity": -1.0})
    text = (
        "interference: held-out accuracy fell, 0.55 → 0.40 (-0.15 ± 0.06, 2 standard errors), and its covariance with the update is -0.100"
    )
    assert alarms(load_run(folder)) == ([f"{text} (mean of the last 3 steps)"] if told else [])
    assert len(page_data([load_run(folder)], "live")["alarms"]) == told


# --- when it is written ---


def test_finished_run_is_written_once(tmp_path, capsys):
    folder = a_run(tmp_path / "a run")
    follow([str(folder)], "", 60, once=False)
    assert data_of((folder / "watch.html").read_text())["state"] == "finished"
    assert capsys.readouterr().out == f"{(folder / 'watch.html').as_uri()}\n"
    assert "a%20run" in (folder / "watch.html").as_uri()
    assert not list(folder.glob("*.tmp"))


def test_once_does_not_wait_for_the_end(tmp_path, monkeypatch):
    folder, other = a_run(tmp_path / "run", done=False), a_run(tmp_path / "other")
    monkeypatch.chdir(tmp_path)
    follow([str(folder), str(other)], "", 60, once=True)
    data = data_of((tmp_path / "watch.html").read_text())
    assert data["state"] == "once"
    assert [run["name"] for run in data["runs"]] == ["run", "other"]


def test_ends_by_itself_with_the_run(tmp_path, capsys, monkeypatch):
    """From before the first line to the model folder: a page for what is new, none where nothing is."""
    whole, folder = a_run(tmp_path / "whole"), tmp_path / "run"
    folder.mkdir()
    shutil.copy(whole / "args.json", folder)
    lines = (whole / "metrics.jsonl").read_text().splitlines(True)
    states, happening, hold = [], iter(["", lines[0][:20], lines[0][20:], "", *lines[1:], "model"]), Hold(folder)
    assert hold.locked

    def later(seconds: float) -> None:
        written = folder / "watch.html"
        states.append((written.stat().st_ino, data_of(written.read_text())["status"].split("run: ")[1]) if written.exists() else None)
        event = next(happening)
        if event == "model":
            (folder / "model").mkdir()
        with open(folder / "metrics.jsonl", "a") as file:
            file.write(event if event != "model" else "")

    monkeypatch.setattr(time, "sleep", later)
    follow([str(folder)], "", 1, once=False)
    assert states[:3] == [None] * 3
    assert states[3] == states[4]  # the same file, not written anew
    assert [state[1] for state in states[4:]] == [
        "step 0 of 20",
        *(f"step {s} of 20" + f", about 0:{40 - 2 * s:02} left" * (s < 20) for s in range(1, 21)),
    ]
    data = data_of((folder / "watch.html").read_text())
    assert data["state"] == "finished"
    assert "degraded" in data["runs"][0]["verdict"]
    assert capsys.readouterr().out.splitlines() == [
        f"{folder}: no step yet; waiting for the first (Ctrl-C ends)",
        (folder / "watch.html").as_uri(),
    ]


def test_ctrl_c_stops_the_page_too(tmp_path, capsys, monkeypatch):
    folder = a_run(tmp_path / "run", done=False)

    def interrupt(seconds: float) -> None:
        assert data_of((folder / "watch.html").read_text())["state"] == "live"
        raise KeyboardInterrupt

    monkeypatch.setattr(time, "sleep", interrupt)
    follow([str(folder)], "", 1, once=False)
    assert data_of((folder / "watch.html").read_text())["state"] == "stopped"
    assert "no longer watching" in capsys.readouterr().out


def test_mistakes_are_told(tmp_path):
    folder = a_run(tmp_path / "ctwa-s1")
    with pytest.raises(UserError, match="watch: which run"):
        follow([], "", 5, once=False)
    with pytest.raises(UserError, match="RUN: no run folder .*ctwa-s2; did you mean .*ctwa-s1"):
        follow([str(tmp_path / "ctwa-s2")], "", 5, once=False)
    with pytest.raises(UserError, match="is not a run folder"):
        follow([str(tmp_path)], "", 5, once=False)
    for every in (0, -1, math.nan, math.inf):
        with pytest.raises(UserError, match="--every .* must be more than 0 seconds"):
            follow([str(folder)], "", every, once=False)
    with pytest.raises(UserError, match=r"--out .*watch.html cannot be written \(No such file or directory\)"):
        follow([str(folder)], str(tmp_path / "none" / "watch.html"), 5, once=False)
    (folder / "metrics.jsonl").write_text("")
    with pytest.raises(UserError, match="no complete line yet"):
        follow([str(folder)], "", 5, once=True)


# --- in a browser ---


@needs_browser
def test_browser_shows_panels_and_runs_no_completion(tmp_path):
    folder = a_run(tmp_path / "run", texts=HOSTILE)
    follow([str(folder)], "", 5, once=False)
    dom = rendered(folder / "watch.html", tmp_path / "profile")
    assert re.findall("<h3>(.*?)</h3>", dom) == [
        *("accuracy", "clarity", "share of the weights", "covariance with the update", "accuracy", "clarity"),
        *("response length, tokens", "KL from the start"),
    ]
    words = re.findall("<text[^>]*>(.*?)</text>", dom)
    for label in ("sampled 0.06", "greedy 0.03", "accuracy 0.5", "measured −0.24", "predicted 0.1", "held-out 28"):
        assert label in words
    assert re.search('0.55 → 0.06 </span><span class="lost">▼ degraded</span>', dom)
    assert re.search(r'id="error" class="alarm"[^>]* hidden=""', dom)
    assert "<title>run</title>" in dom
    assert "<img" not in dom
    assert "&lt;img src=x onerror=" in dom


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


NO_ERROR = "document.getElementById('error').hidden && document.title"


@needs_driver
def test_browser_shows_what_is_new_and_keeps_what_was_chosen(tmp_path, browser):
    whole, folder = a_run(tmp_path / "whole"), a_run(tmp_path / "run", texts=HOSTILE, done=False)
    cut(folder, 10)
    hold = Hold(folder)
    assert hold.locked
    follower = threading.Thread(target=follow, args=([str(folder)], "", 0.2, False), daemon=True)
    follower.start()
    deadline = time.monotonic() + 20
    while not (folder / "watch.html").exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    browser.open(folder / "watch.html")
    browser.until("document.getElementById('status').textContent.includes('run: step 10 of 20, about 0:20 left')")
    browser.ask("document.getElementById('pause').click()")
    assert browser.ask("document.getElementById('status').textContent.startsWith('paused, live, updated')")
    browser.ask("(text.value = 'IMG', text.oninput(), theme.click(), theme.click(), scrollTo(0, 150), window.marked = true)")
    place = browser.ask("document.querySelector('h3').getBoundingClientRect().top")
    assert browser.ask("scrollY") == 150
    time.sleep(0.5)  # two reloads long
    assert browser.ask("window.marked")
    (folder / "metrics.jsonl").write_bytes((whole / "metrics.jsonl").read_bytes())
    browser.ask("document.getElementById('pause').click()")
    browser.until("document.getElementById('status')?.textContent.includes('run: step 20 of 20')")
    assert browser.ask("[text.value, document.documentElement.style.colorScheme]") == ["IMG", "dark"]
    assert browser.ask("document.querySelector('h3').getBoundingClientRect().top") == pytest.approx(place, abs=1)  # where it was
    assert browser.ask("found.textContent") == "2 of 6 completions. "
    (folder / "model").mkdir()
    follower.join(20)
    assert not follower.is_alive()
    browser.until("document.getElementById('status')?.textContent.startsWith('finished')")
    assert browser.ask("pause.hidden")
    assert "accuracy was degraded" in browser.ask("verdicts.textContent")
    browser.ask("window.marked = true")
    time.sleep(0.5)
    assert browser.ask("window.marked")  # no more reloads
    assert browser.ask(NO_ERROR) == "run"


@needs_driver
def test_browser_reads_all_panels_at_the_step_pointed_at(tmp_path, browser):
    folder = a_run(tmp_path / "run")
    follow([str(folder)], "", 5, once=False)
    browser.open(folder / "watch.html")
    texts = "[...document.querySelectorAll('svg g g text')].map(t => t.textContent)"
    assert "sampled 0.06" in browser.ask(texts)
    before = len(browser.ask("[...document.querySelectorAll('svg .cross')]"))
    browser.point("document.querySelector('svg')", -0.17, click=True)  # left of the middle of the plot, near its middle step
    step = browser.ask("state.step")
    assert 6 <= step <= 14
    assert len(browser.ask("[...document.querySelectorAll('svg .cross')]")) == before + browser.ask(
        "document.querySelectorAll('svg').length"
    )
    assert {"sampled 0.3", "sampled 0.7", f"{step / 1000:.3g}".rstrip("0")} <= set(browser.ask(texts))
    assert browser.ask("where.textContent") == "step 10 beside step 0"  # the click
    browser.point("document.querySelector('h1')", 0)
    assert "sampled 0.06" in browser.ask(texts)
    assert browser.ask(NO_ERROR) == "run"


@needs_driver
def test_browser_of_completions(tmp_path, browser):
    runs = [a_run(tmp_path / name, texts=("1. a", f"2. {name}")) for name in ("linear", "ctwa")]
    follow([str(run) for run in runs], str(tmp_path / "both.html"), 5, once=False)
    browser.open(tmp_path / "both.html")
    cards = (
        "[...document.querySelectorAll('.card')].map(c => [...c.querySelectorAll('.note, .chip, pre')].map(n => n.textContent).join('|'))"
    )
    assert browser.ask("where.textContent") == "step 20 beside step 0"
    assert len(browser.ask(cards)) == 8
    assert browser.ask(cards)[3] == "step 20 ctwa|accuracy 0|clarity 1|1. a at 20"
    browser.ask("document.getElementById('before').click()")
    assert browser.ask("where.textContent") == "step 10 beside step 0"
    browser.ask("(level.value = 'high accuracy', level.onchange())")  # searches all evaluations
    assert browser.ask("found.textContent") == "6 of 12 completions. "
    assert all("|accuracy 1|" in card for card in browser.ask(cards))
    browser.ask("(text.value = 'CTWA AT 0', text.oninput())")
    assert browser.ask(cards) == ["step 0 ctwa|accuracy 1|clarity 0|2. ctwa at 0"]
    assert browser.ask("[...document.querySelectorAll('h3')].map(h => h.textContent)")[:3] == [
        "accuracy",
        "clarity",
        "share of the weights: accuracy",
    ]
    assert browser.ask(NO_ERROR) == "linear, ctwa"


CARDS = "[...document.querySelectorAll('.card')].map(c => [...c.querySelectorAll('.note, .chip, pre')].map(n => n.textContent).join('|'))"
KINDS = "[...kind.options].map(o => o.textContent)"


@needs_driver
def test_browser_shows_training_completions_of_one_pattern(tmp_path, browser):
    folder = a_run(tmp_path / "run")
    train_on(folder, texts=HOSTILE[:2])
    follow([str(folder)], "", 5, once=False)
    browser.open(folder / "watch.html")
    browser.ask("sessionStorage.clear()")
    assert browser.ask("[...document.querySelectorAll('#source option')].map(o => o.textContent)") == ["held-out", "training"]
    assert browser.ask(KINDS) == ["all (4)", "wrong, unclear (1)", "right, unclear (1)", "wrong, clear (1)", "right, clear (1)"]
    browser.ask("(source.value = 'training', source.onchange())")
    assert browser.ask(KINDS) == ["all (8)", "wrong, clear (6)", "right, unclear (2)"]
    assert browser.ask("[where.textContent, found.textContent]") == ["step 10", "8 completions. "]
    assert browser.ask("[...document.querySelectorAll('#strips > div > pre')].map(p => p.textContent)") == ["T10.0", "T10.1"]
    browser.ask("kind.focus()")
    for key in ("\ue015", "\ue015"):  # down and down again: without a mouse
        browser.send(
            "/actions", {"actions": [{"type": "key", "id": "keys", "actions": [{"type": t, "value": key} for t in ("keyDown", "keyUp")]}]}
        )
    browser.until("found.textContent === '2 of 8 completions. '")
    assert browser.ask("document.activeElement.id") == "kind"
    assert browser.ask(CARDS) == [f"step 10 |accuracy 1|clarity 0|{HOSTILE[1]} {i}" for i in (5, 7)]
    browser.ask("document.getElementById('before').click()")
    assert browser.ask(CARDS) == [f"step 1 |accuracy 1|clarity 0|{HOSTILE[1]} {i}" for i in (5, 7)]
    browser.ask("(kind.value = '=wrong, clear', kind.onchange())")
    texts = [f"{HOSTILE[0]} {i}" for i in range(4)] + [f"{HOSTILE[1]} {i}" for i in (4, 6)]
    assert browser.ask(CARDS) == [f"step 1 |accuracy 0|clarity 1|{text}" for text in texts]
    assert browser.ask("document.querySelectorAll('#strips img, #strips script').length") == 0
    browser.ask("(document.getElementById('after').click(), source.value = 'samples', source.onchange())")
    assert browser.ask("found.textContent") == "1 of 4 completions (step 0: 0 of 2, step 20: 1 of 2). "
    assert browser.ask(CARDS) == ["step 20 |accuracy 0|clarity 1|1. a at 20"]
    browser.open(folder / "watch.html")  # what was chosen outlives a reload
    assert browser.ask("[source.value, kind.value]") == ["samples", "=wrong, clear"]
    assert browser.ask(NO_ERROR) == "run"


@needs_driver
def test_browser_of_a_run_without_training_completions(tmp_path, browser):
    folder = a_run(tmp_path / "run")
    follow([str(folder)], "", 5, once=False)
    browser.open(folder / "watch.html")
    assert browser.ask("[sources.hidden, where.textContent, found.textContent]") == [True, "step 20 beside step 0", ""]
    assert browser.ask(NO_ERROR) == "run"


@needs_driver
@pytest.mark.parametrize("width", [360, 1600])
def test_browser_fits_the_window(tmp_path, browser, width):
    """The verdict's table too, and no words over other words, of runs as long as the page and shorter ones."""
    folders = [a_run(tmp_path / name) for name in ("linear", "a-run-with-a-long-name")]
    train_on(folders[1])
    cut(folders[0], 10)
    follow([str(folder) for folder in folders], str(tmp_path / "watch.html"), 5, once=True)
    browser.send("/window/rect", {"width": width, "height": 800})
    browser.open(tmp_path / "watch.html")
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
    assert browser.ask("[...document.querySelectorAll('table.verdict, .card')].filter(t => t.scrollWidth > t.clientWidth + 1).length") == 0
    right = "getBoundingClientRect().right"
    beyond = f"[...document.querySelectorAll('svg text')].filter(t => t.{right} > t.ownerSVGElement.{right} + 1)"
    assert browser.ask(f"{beyond}.map(t => t.textContent)") == []
    names = "[...document.querySelectorAll('svg')].flatMap(s => { const b = [...s.querySelectorAll('g g text')].map(t => t.getBBox());"
    covered = "b.some((p, i) => i && Math.abs(p.y - b[i - 1].y) < 9)"
    assert browser.ask(f"{names} b.sort((p, q) => p.y - q.y); return {covered} ? [s.getAttribute('aria-label')] : []; }})") == []
    assert browser.ask(
        "[...document.querySelectorAll('svg')].every(s => s.querySelector('g g text').getBBox().x > s.clientWidth / 3)"
    )  # plots are no strips

"""The page of explore: its mathematics in JavaScript against the scripts' own, what is in it, what
is refused, and, where there is a browser, what it shows and does."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from py_mini_racer import MiniRacer

from algos.pama import PAMA, estimate_advantages, estimate_each, pareto_scalar
from common.controllers import first_order_change, within_prompt_covariance
from common.runs import load_run
from study.explore_page import PAGE, embedded
from support.browser import Browser, needs_driver
from support.folders import write_predicted_run as write_run
from support.own_rewards import OWN
from support.running import read_lines
from tools.explore import MATHS, NUMBERS, TEXTS, main, page, page_data

HOSTILE = "</script><img src=x onerror=\"document.title = 'owned'\"><!-- <script> \u2028 __DATA__"
FILE = "training_completions.jsonl"


@pytest.fixture(scope="module")
def ask():
    """ask(function, *arguments): what a function of explore.js answers."""
    engine = MiniRacer()
    engine.eval(MATHS.read_text(encoding="utf-8"))

    def call(function: str, *arguments):
        told = [each.tolist() if hasattr(each, "tolist") else each for each in arguments]
        return json.loads(engine.eval(f"JSON.stringify(maths.{function}(...{json.dumps(told)}))"))

    return call


def with_texts(folder: Path, count: int, steps=(1,)) -> Path:
    """`count` completions at some steps of a run, four to a prompt."""
    told = {"prompt": HOSTILE, "completion": HOSTILE + "\ud800"}
    rows = [told | {"step": step, "row": i} for step in steps for i in range(count)]
    (folder / FILE).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
@pytest.mark.parametrize("scale", [1, 1e4])
def test_mathematics_is_that_of_the_scripts(ask, scale, estimator):
    def same(wanted, *call) -> None:
        assert np.array(ask(*call)) == pytest.approx(wanted.numpy(), rel=1e-6, abs=1e-9 * scale)

    torch.manual_seed(1)
    r, drift = torch.randn(2, 24, 3).double()
    r[:4], r[4:8], r[:, 2] = 1.0, r[4:8].sign(), 0.5  # no difference, ties, a constant objective
    r, drift, weights = r * scale, drift[:, 0], torch.rand(3).double()
    lengths, age = torch.arange(24) + 1, torch.arange(6).repeat_interleave(4) % 3
    scores, how = r @ weights, (lengths, 4, estimator)
    advantages, each = estimate_advantages(scores, *how), estimate_each(r, *how)
    same(scores, "scalarize", r, weights)
    same(advantages, "estimateAdvantages", scores, *how)
    same(each, "estimateEach", r, *how)
    same(pareto_scalar(each), "paretoScalar", each)
    same(within_prompt_covariance(advantages, r, 4), "withinPromptCovariance", advantages, r, 4)
    law, *_ = first_order_change(drift, age, advantages, r, 4, 4)
    same(law, "byMove", drift, age, r, 4, 4)
    some = r.masked_fill(torch.rand(24, 3) < 0.3, torch.nan)  # where a reward applies
    some[5] = torch.nan
    told = [[None if value != value else value for value in row] for row in some.tolist()]
    sums = (some * weights).nansum(1).masked_fill(some.isnan().all(1), torch.nan)
    shown = [None if value != value else value for value in sums.tolist()]
    assert ask("scalarize", told, weights)[5] is None
    same(estimate_advantages(sums, *how), "estimateAdvantages", shown, *how)
    same(estimate_each(some, *how), "estimateEach", told, *how)
    covariance = within_prompt_covariance(advantages, some, 4)
    same(covariance, "withinPromptCovariance", advantages, told, 4)
    law, *_ = first_order_change(drift, age, advantages, some, 4, 4)
    same(law, "byMove", drift, age, told, 4, 4)
    for unknown in ([0] * 24, age):  # nothing fresh; a log-probability that was not finite
        assert ask("byMove", [*drift.tolist()[:-1], None], unknown, r, 4, 4) is None
    same(torch.tensor([0.75, 0.15, 0.1]), "turned", [0.5, 0.3, 0.2], 0, 0.75)


def test_page_of_a_run_gives_back_what_the_run_logged(ask, trained):
    """At the run's own weights: advantages, covariances, the move; and its texts."""
    run = load_run(trained("ctwa"))
    data, names = embedded(page(page_data(run))), run.objectives
    for own, row in zip(data["steps"], run.rows[1:], strict=True):
        weighed = ask("scalarize", own["rewards"], own["weights"])
        advantages = ask("estimateAdvantages", weighed, own["lengths"], 4, "reinforce")
        covariance = ask("withinPromptCovariance", advantages, own["rewards"], 4)
        move = ask("byMove", own["drift"], own["age"], own["rewards"], 4, 2)
        told = [row[f"{key}/{name}"] for key in ("cov", "law") for name in names]
        assert [*covariance, *move] == pytest.approx(told, abs=1e-4)
        assert "advantages" not in own  # they are of a weighted sum
    for sample in read_lines(trained("ctwa") / FILE):
        own, row = data["steps"][sample["step"] - 1], sample["row"]
        assert own["texts"][str(row)] == sample["completion"]
        assert own["prompts"][str(row // 4)] == sample["prompt"]


def test_a_page_is_made_anew_from_itself_and_nothing_that_a_run_holds_leaves_its_place(tmp_path):
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    flags = {"rewards": [f"{tmp_path}/mine.py:hard", "rewards.accuracy:accuracy"], "script": "gdpo"}
    folder = write_run(tmp_path / "<b>&amp;", [0.01] * 2, [0.5, 0.6], **flags)
    text = page(page_data(load_run(with_texts(folder, 4))))
    data = embedded(text)
    assert page(data) == text
    assert len(re.findall("<script", text)) == text.count("</script>") == 3
    assert not re.search("<img|<!--|<b>|\u2028", text)
    assert not re.search(r"https?://(?!www\.w3\.org/)|@import|url\(|\bfetch\(", text)
    assert "<title>Turn the weights: &lt;b&gt;&amp;amp;</title>" in text
    assert data["steps"][0]["texts"]["0"] == HOSTILE + "\ud800"
    assert data["steps"][0]["advantages"] == [1.0, -1.0, 0.5, -0.5]  # of a score that is no sum
    assert list(data["pays"]) == ["easy"]  # a reward of our own is told, another file not run
    assert not (tmp_path / "ran").exists()


def test_committed_page_is_what_the_template_makes():
    text = PAGE.read_text(encoding="utf-8")
    assert page(embedded(text)) == text, "python -m study.explore_page makes docs/explore.html anew"


def test_page_of_a_default_run_is_whole_and_that_of_a_long_one_stays_small(tmp_path):
    """Of a long run its first and last step stay, and those with texts; of these some prompts. Only
    where all steps are on the page does it tell why an objective fell over the whole run."""
    wide = {key: [0.123456] * 256 for key in ("lengths", "drift", "age")}
    wide["rewards"] = [[0.123456, 0.654321]] * 256
    usual = page_data(load_run(write_run(tmp_path / "usual", [0.01] * 100, [0.5] * 51, line=wide)))
    assert [own["step"] for own in usual["steps"]] == [*range(1, 101)]
    folder = write_run(tmp_path / "run", [0.01] * 200, [0.5] * 101, line=wide)
    data = page_data(load_run(with_texts(folder, 256, range(1, 200, 10))))
    assert {1, 11, 191, 200} < {own["step"] for own in data["steps"]} < set(range(1, 201))
    assert len(page(data)) < 2 * NUMBERS + TEXTS


# --- in a browser ---


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    yield browser
    browser.close()


@pytest.fixture
def opened(browser):
    browser.open(PAGE)
    yield browser
    assert browser.ask("error.hidden")


def texts(browser, selector: str) -> list[str]:
    return browser.ask(f"[...document.querySelectorAll('{selector}')].map(n => n.innerText)")


@needs_driver
def test_browser_runs_no_completion(opened, tmp_path, capsys):
    folder = with_texts(write_run(tmp_path / "$^$<b>", [0.01] * 2, [0.5, 0.6]), 4)
    for _ in range(2):  # an older page is replaced
        main([str(folder)])
    assert capsys.readouterr().out == 2 * f"{(folder / 'explore.html').as_uri()}\n"
    opened.open(folder / "explore.html")
    assert opened.ask("document.title") == "Turn the weights: $^$<b>"
    assert opened.ask("rows.innerText.includes('</script><img')")
    assert not texts(opened, "img, h1 b")


@needs_driver
def test_browser_tells_the_story_of_the_committed_page(opened):
    """With equal weights a short wrong answer is paid most, at .6 .2 .2 none is."""
    assert "fell, from 0.555 to 0.051, while" in opened.ask("story.innerText")
    assert "accuracy −0.504 measured, −0.546 by the move, −0.067" in opened.ask("whole.innerText")
    said = opened.ask("said.innerText")
    assert "pushes accuracy down in step 1. 134 of its 154 right completions are long and" in said
    assert "raise accuracy by 0.049, but that of conciseness takes 0.038 away and" in said
    kinds = texts(opened, "#kinds tbody th")
    opened.ask("(w0.value = 60, w0.oninput())")
    assert kinds.index("right, long, unclear") > kinds.index("wrong, short, clear")
    kinds = texts(opened, "#kinds tbody th")
    assert kinds.index("right, long, unclear") < kinds.index("wrong, short, clear")
    assert texts(opened, "#weights span") == ["0.60", "0.20", "0.20"]
    assert "none becomes likelier" in opened.ask("largest.innerText")
    opened.ask("(rule.value = 'all', rule.onchange())")
    assert "punishes none" in opened.ask("said.innerText")
    assert not any("▼" in text for text in texts(opened, "#rows .sign"))
    opened.ask("document.querySelector('[aria-label$=\"which has wrong, long, clear\"]').click()")
    assert "In prompt 2 " in opened.ask("largest.innerText")
    opened.ask("document.querySelector('[data-name=lagrangian]').click()")
    for step in (0, 1):
        assert opened.ask("state.weights") == opened.ask(f"data.steps[{step}].chosen.lagrangian")
        opened.ask("after.click()")


@needs_driver
def test_browser_leaves_out_what_does_not_apply(opened, trained, tmp_path):
    """Neither high nor low, nor in a mean, nor the least where all must be good."""
    run = trained("linear", rewards=("rewards.accuracy:accuracy", f"{OWN}:absent"))
    data = page_data(load_run(run))
    for own in data["steps"]:
        for row in own["rewards"]:  # 5, 5.5 or 6: a null is no 0; in the last step of none
            row[1] = None if row[1] is None or own["step"] == data["last"] else row[1] + 5
    (tmp_path / "page.html").write_text(page(data))
    opened.open(tmp_path / "page.html")
    for rule in ("sum", "all"):
        opened.ask(f"(rule.value = '{rule}', rule.onchange(), step.value = 0, step.oninput())")
        for own in data["steps"]:
            shown = opened.ask("document.body.innerText")
            assert not re.search("null|NaN|undefined|Infinity", shown)
            rewards = torch.tensor(np.array(own["rewards"], dtype=float))
            lengths, estimator = torch.tensor(own["lengths"]), data["args"]["estimator"]
            credited = int((PAMA().advantages(rewards, lengths, 4, estimator)[0] > 0).sum())
            if rule == "all" and credited:
                assert f"It credits {credited} of {len(rewards)} completions" in shown
            for kind, found in (("low", rewards <= 5.5), ("high", rewards > 5.5)):
                if count := int(found[:, 1].sum()):
                    number = f"[aria-label*='that are {kind} in absent']"
                    opened.ask(f'document.querySelector("{number}").focus()')
                    told = f"{count} of {len(rewards)} completions of the batch are {kind} in"
                    assert told in opened.ask("formula.innerText")
            opened.ask("after.click()")
    assert "–" in texts(opened, "#rows .n")


@needs_driver
def test_browser_shows_the_log_of_another_trainer(opened, tmp_path):
    log = Path(__file__).parents[1] / "data" / "trl_completions.parquet"
    main([str(log), "--out", str(tmp_path / "page.html")])
    opened.open(tmp_path / "page.html")
    assert opened.ask("said.innerText").endswith("accuracy is outvoted.")
    assert "another trainer's log: its curves" in opened.ask("pays.innerText")
    assert "tokens" not in opened.ask("rows.innerText + sort.innerText")
    opened.ask("document.querySelector('#kinds .n').focus()")
    assert "false" not in opened.ask("formula.innerText")


@needs_driver
def test_browser_by_keyboard_alone(opened):
    """Tab reaches every control and one number of each group, arrows go on from there, and what is
    focused shows its formula."""

    def press(key: str) -> str:
        keys = [{"type": kind, "value": key} for kind in ("keyDown", "keyUp")]
        opened.send("/actions", {"actions": [{"type": "key", "id": "keys", "actions": keys}]})
        return opened.ask("document.activeElement.id || document.activeElement.className")

    seen = [press("\ue004") for _ in range(40)]
    assert {"step", "w0", "w2", "equal", "own", "rule", "prompt", "sort"} <= set(seen)
    assert sum(name.startswith("n ") for name in seen) == 3  # effects, kinds, completions
    opened.ask("document.querySelector('#rows .n').focus()")
    told = opened.ask("formula.innerText")
    assert "(score − base) · scale = (0.33·" in told
    press("\ue014")
    assert opened.ask("formula.innerText") != told


@needs_driver
@pytest.mark.parametrize("width", [420, 1280])
def test_browser_fits_the_window_and_has_even_digits(opened, width):
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    params = {"cmd": "Emulation.setDeviceMetricsOverride", "params": size}
    opened.send("/goog/cdp/execute", params)
    cut = "n.getBoundingClientRect().right > innerWidth || n.scrollWidth > n.clientWidth + 1"
    inside = "[...document.querySelectorAll('main :is(p, td, th, button, select, pre, svg)')]"
    assert opened.ask(f"{inside}.filter(n => n.clientWidth && ({cut})).map(n => n.outerHTML)") == []
    for table in ("#effects td:not(:nth-child(2))", "#kinds", "#rows", "#others"):
        assert len({len(text.split(".")[1]) for text in texts(opened, f"{table} .sign")}) == 1

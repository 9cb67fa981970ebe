"""The page of explore: its mathematics in JavaScript against the scripts' own, what is embedded, what is refused, and, where there is a
browser, what it shows and does."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from py_mini_racer import MiniRacer

from algos.linear import estimate_advantages, scalarize, within_prompt_covariance
from algos.pama import pareto_scalar
from common.runs import load_run
from study.explore_page import embedded
from tools.explain import intervals, outvoted
from tools.explore import MARK, MATHS, TEMPLATE, fewer, main, page, page_data
from common.errors import UserError
from common.observe import first_order_change
from support.browser import Browser, needs_browser, needs_driver, rendered
from support.folders import write_predicted_run
from support.running import ROOT, train

HOSTILE = [
    "</script><img src=x onerror=\"document.title = 'owned'\">",
    "<!-- <script>document.title = 'owned'</script>",
    "\u2028__DATA__ \ud800 ${1}",
]
TEXTS = "training_completions.jsonl"


@pytest.fixture(scope="module")
def engine() -> MiniRacer:
    engine = MiniRacer()
    engine.eval(MATHS.read_text(encoding="utf-8"))
    return engine


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run of CTWA, whose weights differ from step to step."""
    folder = tmp_path_factory.mktemp("runs") / "ctwa-s1"
    train("ctwa", folder, lr=1e-3, weight_lr=0.5, log_completions=8)
    return folder


def ask(engine: MiniRacer, function: str, *arguments):
    return json.loads(engine.eval(f"JSON.stringify(maths.{function}(...{json.dumps(arguments)}))"))


def tensor(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def a_batch(kind: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """rewards [B,K], lengths [B], weights [K] of 6 prompts with 4 completions."""
    rng = np.random.default_rng(seed)
    rewards = {"continuous": rng.normal(size=(24, 4)), "ties": rng.integers(0, 2, (24, 3)) * 1.0, "large": rng.normal(size=(24, 2)) * 1e4}[
        kind
    ]
    if kind == "ties":
        rewards[:4], rewards[:, 2] = 1.0, 0.5  # a prompt whose completions are alike, and an objective that is constant
    return rewards, rng.integers(1, 60, 24), rng.dirichlet(np.ones(rewards.shape[1]))


# --- the mathematics ---


@pytest.mark.parametrize("estimator", ["reinforce", "grpo"])
@pytest.mark.parametrize("kind", ["continuous", "ties", "large"])
def test_mathematics_is_that_of_the_scripts(engine, kind, estimator):
    for seed in range(3):
        rewards, lengths, weights = a_batch(kind, seed)
        how, near = (lengths.tolist(), 4, estimator), {"rel": 1e-6, "abs": 1e-9 * max(1.0, abs(rewards).max())}
        scores = scalarize(tensor(rewards), tensor(weights))
        assert ask(engine, "scalarize", rewards.tolist(), weights.tolist()) == pytest.approx(scores.tolist(), **near)
        advantages = estimate_advantages(scores, tensor(lengths), 4, estimator)
        assert ask(engine, "estimateAdvantages", scores.tolist(), *how) == pytest.approx(advantages.tolist(), **near)
        each = torch.stack([estimate_advantages(r, tensor(lengths), 4, estimator) for r in tensor(rewards).T], 1)
        assert np.array(ask(engine, "eachAdvantage", rewards.tolist(), *how)) == pytest.approx(each.numpy(), **near)
        for given in (each, each.clamp(min=0)):
            assert ask(engine, "paretoScalar", given.tolist()) == pytest.approx(pareto_scalar(given).tolist(), **near)
        covariance = within_prompt_covariance(advantages, tensor(rewards), 4)
        assert ask(engine, "withinPromptCovariance", advantages.tolist(), rewards.tolist(), 4) == pytest.approx(covariance.tolist(), **near)
        scales = [norm["scale"] for norm in ask(engine, "normalisers", scores.tolist(), *how)]
        votes = np.array(ask(engine, "votes", rewards.tolist(), weights.tolist(), scales, 4))
        assert votes.sum(1) == pytest.approx(covariance.numpy(), **near)  # what the objectives' weights do adds up to the covariance


@pytest.mark.parametrize("kind", ["continuous", "ties", "large"])
def test_move_is_that_of_the_training(engine, kind):
    rewards, _, _ = a_batch(kind, 5)
    rng = np.random.default_rng(6)
    drift, advantages, age = rng.normal(size=24), rng.normal(size=24), np.array([0, 1, 2, 0, 3, 1])
    law, rate, nats = first_order_change(tensor(drift), tensor(age.repeat(4)), tensor(advantages), tensor(rewards), 4, 4)
    found = ask(engine, "firstOrderChange", drift.tolist(), age.tolist(), advantages.tolist(), rewards.tolist(), 4, 4)
    assert found["law"] == pytest.approx(law.tolist(), rel=1e-6, abs=1e-9)
    assert [found["rate"], found["nats"]] == pytest.approx([rate.item(), nats.item()], rel=1e-6)
    for unknown in ([0] * 6, age.tolist()):  # nothing fresh; a log-probability that was not finite
        lacking = [None if unknown[i // 4] and i == 23 else d for i, d in enumerate(drift.tolist())]
        assert ask(engine, "firstOrderChange", lacking, unknown, advantages.tolist(), rewards.tolist(), 4, 4) is None


def test_a_turned_weight_takes_from_the_others_in_proportion(engine):
    assert ask(engine, "turned", [0.5, 0.3, 0.2], 0, 0.75) == pytest.approx([0.75, 0.15, 0.1])
    assert ask(engine, "turned", [0.5, 0.3, 0.2], 1, 1) == pytest.approx([0, 1, 0])
    assert ask(engine, "turned", [0, 1, 0], 1, 0.4) == pytest.approx([0.3, 0.4, 0.3])  # nobody else has a proportion
    assert sum(ask(engine, "turned", [0.1, 0.2, 0.3, 0.4], 3, 0.123)) == pytest.approx(1)


def test_weights_are_shares(engine):
    assert ask(engine, "shares", [3, 1, 1]) == pytest.approx([0.6, 0.2, 0.2])
    assert ask(engine, "shares", [0, 0]) == [0.5, 0.5]


def test_page_of_a_run_gives_back_what_the_run_logged(engine, trained):
    """From what is embedded, at the run's own weights: covariances, both predictions, and the advantages of statistics.jsonl."""
    run = load_run(trained)
    data, lines = page_data(run), [json.loads(line) for line in (trained / "statistics.jsonl").read_text().splitlines()]
    assert [own["step"] for own in data["steps"]] == [1, 2, 3]
    by_score = np.zeros((3, 3))
    assert len({tuple(own["weights"]) for own in data["steps"]}) == 3
    for own, line, row in zip(data["steps"], lines, run.rows[1:], strict=True):
        rewards, lengths = [own["kinds"][i][:3] for i in own["of"]], [own["kinds"][i][3] for i in own["of"]]
        assert (rewards, lengths) == (line["rewards"], line["lengths"])
        scores = ask(engine, "scalarize", rewards, own["weights"])
        advantages = ask(engine, "estimateAdvantages", scores, lengths, data["size"], data["estimator"])
        assert advantages == pytest.approx(line["advantages"], abs=1e-3)  # the run's weights are embedded in five digits
        covariance = ask(engine, "withinPromptCovariance", advantages, rewards, data["size"])
        assert covariance == pytest.approx([row[f"cov/{name}"] for name in run.objectives], abs=1e-3)
        by_score[own["step"] - 1] = [ask(engine, "byScore", value, own["rate"], data["size"]) for value in covariance]
        move = ask(engine, "firstOrderChange", own["drift"], own["age"], advantages, rewards, data["size"], data["updates"])
        assert move["law"] == pytest.approx([row[f"law/{name}"] for name in run.objectives], abs=1e-4)
        assert move["rate"] == pytest.approx(own["rate"], rel=1e-2)
        assert own["rate"] == row["law/rate"]
        votes = ask(engine, "votes", rewards, own["weights"], [1] * 4, data["size"])
        for k, name in enumerate(run.objectives):
            assert votes[k] == pytest.approx([value for _, value in outvoted(run, name, own["step"] - 1, own["step"])], abs=1e-4)
        assert own["chosen"]["ctwa"] == pytest.approx(own["weights"], abs=0.02)  # computed anew, before the update
        assert own["chosen"]["linear"] == pytest.approx([1 / 3] * 3, abs=1e-4)
        assert own["chosen"]["gradnorm"] is None
    told = [[interval.score for interval in intervals(run, name)] for name in run.objectives]  # of steps 1 and 2, and of step 3
    assert np.stack([by_score[:2].sum(0), by_score[2]], 1) == pytest.approx(np.array(told), rel=1e-2, abs=1e-5)
    assert all("paid" not in own for own in data["steps"])


def test_what_pays_is_told_of_our_own_rewards_and_no_other_file_is_run(trained, tmp_path):
    pays = page_data(load_run(trained))["pays"]
    assert pays["accuracy"] == "completions whose last box holds the right answer"
    assert list(pays) == ["accuracy", "conciseness", "clarity"]
    folder = write_predicted_run(tmp_path / "run", [0.01] * 2, [0.5, 0.6])
    (tmp_path / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    args = json.loads((folder / "args.json").read_text())
    (folder / "args.json").write_text(
        json.dumps(args | {"rewards": [f"{tmp_path / 'mine.py'}:hard", "accuracy:easy"]})
    )  # nor a module like ours
    assert page_data(load_run(folder))["pays"] == {}
    assert not (tmp_path / "ran").exists()


def test_texts_join_their_rewards(trained):
    data, kept = page_data(load_run(trained)), [json.loads(line) for line in (trained / TEXTS).read_text().splitlines()]
    assert [len(own["texts"]) for own in data["steps"]] == [8, 8, 8]
    for sample in kept:
        own = next(own for own in data["steps"] if own["step"] == sample["step"])
        assert own["texts"][sample["row"]] == sample["completion"]
        assert own["prompts"][sample["row"] // 4] == sample["prompt"]
        assert own["kinds"][own["of"][sample["row"]]][:3] == pytest.approx([sample[name] for name in data["objectives"]], rel=1e-5)


def test_advantages_that_are_no_weighted_sum_are_kept(tmp_path):
    folder = write_predicted_run(tmp_path / "run", [0.01] * 2, [0.5, 0.6])
    assert [own["paid"] for own in page_data(load_run(folder))["steps"]] == [[1.0, -1.0, 0.5, -0.5]] * 2
    rewrite(folder, lambda line: line | {"advantages": [-0.5, -0.5, 1.5, -0.5]})  # as .5 and .5 have them
    assert all("paid" not in own for own in page_data(load_run(folder))["steps"])


# --- what is in the page ---


def rewrite(folder: Path, change, name: str = "statistics.jsonl") -> None:
    lines = [change(json.loads(line)) for line in (folder / name).read_text().splitlines()]
    (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def with_texts(folder: Path, texts: list[str], objectives=("hard", "easy")) -> Path:
    """Of the two steps of `write_predicted_run`, a prompt with four completions each."""
    rows = [{"step": s, "row": i, "prompt": HOSTILE[0], "completion": texts[i % len(texts)]} for s in (1, 2) for i in range(4)]
    (folder / TEXTS).write_text("".join(json.dumps(row | dict.fromkeys(objectives, 0)) + "\n" for row in rows))
    return folder


def hostile_run(folder: Path) -> Path:
    """Completions, prompts, the name of an objective, of the script and of the folder."""
    with_texts(write_predicted_run(folder, [0.01] * 2, [0.5, 0.6]), HOSTILE)
    for name in ("args.json", "metrics.jsonl"):
        (folder / name).write_text((folder / name).read_text().replace("hard", "<img src=x>").replace('"linear"', '"<b>linear"'))
    return folder


def test_nothing_that_a_model_wrote_leaves_its_place(tmp_path):
    text = page(page_data(load_run(hostile_run(tmp_path / "<b>&amp;"))))
    assert len(re.findall("<script", text)) == text.count("</script>") == TEMPLATE.read_text().count("</script>") == 3
    assert "<img" not in text
    assert "<!--" not in text
    assert "<b>" not in text
    assert "<title>Turn the weights: &lt;b&gt;&amp;amp;</title>" in text
    assert not re.search("[\u2028\u2029]", text)
    data = embedded(text)
    assert data["steps"][0]["texts"] == [*HOSTILE, HOSTILE[0]]
    assert data["objectives"][0] == "<img src=x>"


def test_a_page_needs_no_network_and_is_made_anew_from_itself(trained):
    text = page(page_data(load_run(trained)))
    assert page(embedded(text)) == text
    assert not re.search(r"https?://(?!www\.w3\.org/)|@import|url\(|\bfetch\(", text.replace("default-src 'none'", ""))
    assert MATHS.read_text() in text


def test_committed_page_is_what_the_template_makes():
    text = (ROOT / "docs" / "explore.html").read_text(encoding="utf-8")
    assert page(embedded(text)) == text, "python -m study.explore_page makes docs/explore.html anew from the data in it"
    assert len(text.encode()) < 1_000_000


def test_page_of_a_long_run_stays_small(tmp_path):
    """Its first and its last step stay, those with texts before others; of long completions the first prompts."""
    folder, rng = write_predicted_run(tmp_path / "run", [0.01] * 200, [0.5] * 101), np.random.default_rng(1)

    def grown(line: dict) -> dict:
        columns = {key: rng.normal(size=128).tolist() for key in ("lengths", "advantages", "drift")}
        return line | columns | {"rewards": rng.normal(size=(128, 2)).tolist(), "age": [1] * 128}

    rewrite(folder, grown)
    rows = [{"step": s, "row": i, "prompt": "Q", "completion": "日" * 500} for s in (1, *range(10, 201, 10)) for i in range(64)]
    (folder / TEXTS).write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = page_data(load_run(folder))
    assert len(page(data).encode()) < 1_000_000
    shown = [own["step"] for own in data["steps"]]
    assert shown[0] == 1
    assert shown[-1] == 200
    assert len(shown) + data["left_out"] == 200
    texts = [own["step"] for own in data["steps"] if own.get("texts")]
    assert len(texts) > 1
    assert len(texts) + data["texts_left_out"] == 21
    assert all(len(own["texts"]) == 4 * len(own["prompts"]) for own in data["steps"] if "texts" in own)


def test_steps_are_left_out_evenly_and_spared_ones_last():
    sizes = dict.fromkeys(range(10), 10)
    assert fewer(sizes, 100) == list(range(10))
    assert fewer(sizes, 60) == [0, 2, 4, 6, 8, 9]
    assert fewer(sizes, 50, spared=(1, 3, 5)) == [0, 1, 3, 5, 9]
    assert fewer(sizes, 40, spared=(1, 3, 5)) == [0, 3, 9]
    assert fewer(sizes, 1) == [0, 9]


def test_runs_that_lack_something_show_what_they_have(tmp_path):
    folder = write_predicted_run(tmp_path / "run", [0.01] * 2, [0.5, 0.6])  # no texts, no drift, no age
    rewrite(folder, lambda row: row | {"law/rate": None, "eval/hard_se": None}, "metrics.jsonl")
    (folder / "statistics.jsonl").write_text((folder / "statistics.jsonl").read_text() + '{"step": 3, "rew')
    data = page_data(load_run(folder))
    assert [(own["drift"], own["age"], own["rate"]) for own in data["steps"]] == [([], [], None)] * 2
    assert data["curves"]["hard"] == [[0, 2], [0.5, 0.6], [None, None]]
    assert not any("texts" in own for own in data["steps"])
    moved = {"drift": [0.1, None, 0.2, 0.3], "age": [1] * 4}  # a log-probability that was not finite
    rewrite(write_predicted_run(tmp_path / "nan", [0.01] * 2, [0.5, 0.6]), lambda line: line | moved)
    own = embedded(page(page_data(load_run(tmp_path / "nan"))))["steps"][1]
    assert own["drift"] == moved["drift"]
    assert own["chosen"]["ratchet"] is None


def test_mistakes_are_told(tmp_path, capsys):
    folder = write_predicted_run(tmp_path / "linear-s1", [0.01] * 2, [0.5, 0.6])
    with pytest.raises(UserError, match="explore: which run"):
        main([])
    with pytest.raises(UserError, match="no run folder .*linear-s2; did you mean .*linear-s1"):
        main([str(tmp_path / "linear-s2")])
    with pytest.raises(UserError, match="is not a run folder"):
        main([str(tmp_path)])
    with pytest.raises(UserError, match=r"--out .* cannot be written \(No such file or directory\)"):
        main([str(folder), "--out", str(tmp_path / "none" / "page.html")])
    with pytest.raises(UserError, match="--out .* is a folder; name a file in it"):
        main([str(folder), "--out", str(tmp_path)])
    (tmp_path / "notes.html").write_text("mine")
    with pytest.raises(UserError, match="--out .*notes.html exists and is no page of explore"):
        main([str(folder), "--out", str(tmp_path / "notes.html")])
    assert (tmp_path / "notes.html").read_text() == "mine"
    for _ in range(2):  # its own page is replaced
        main([str(folder)])
    assert capsys.readouterr().out == 2 * f"{(folder / 'explore.html').as_uri()}\n"
    assert MARK in (folder / "explore.html").read_text()
    statistics, args = (folder / "statistics.jsonl").read_text(), (folder / "args.json").read_text()
    rewrite(folder, lambda line: line | {"rewards": [[1, 0], [None, 1], [1, 1], [0, 1]]})
    with pytest.raises(UserError, match="hard was not finite in step 1"):
        main([str(folder)])
    (folder / "statistics.jsonl").write_text("")
    with pytest.raises(UserError, match="no step yet; look again"):
        main([str(folder)])
    (folder / "statistics.jsonl").unlink()
    with pytest.raises(UserError, match="no statistics.jsonl"):
        main([str(folder)])
    (folder / "statistics.jsonl").write_text(statistics)
    (folder / TEXTS).write_text("no\n")
    with pytest.raises(UserError, match=f"{TEXTS} line 1: not JSON"):
        main([str(folder)])
    (folder / "args.json").write_text(args.replace('["hard", "easy"]', '["hard"]'))
    with pytest.raises(UserError, match="has one objective, hard: there are no weights to turn; python run.py plot"):
        main([str(folder)])


# --- in a browser ---


@needs_browser
def test_browser_runs_no_completion(tmp_path):
    main([str(hostile_run(tmp_path / "run"))])
    dom = rendered(tmp_path / "run" / "explore.html", tmp_path / "profile")
    assert re.search(r'id="error" class="alarm" role="alert" hidden=""', dom)
    assert "<title>Turn the weights: run</title>" in dom
    assert "<img" not in dom
    assert "&lt;img src=x onerror=" in dom


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    browser = Browser(tmp_path_factory.mktemp("profile"))
    browser.open(ROOT / "docs" / "explore.html")
    yield browser
    browser.close()


def texts_of(browser, selector: str) -> list[str]:
    return browser.ask(f"[...document.querySelectorAll('{selector}')].map(n => n.textContent)")


@needs_driver
def test_browser_turns_the_weights(browser, engine):
    """The story of the committed page: with equal weights a short wrong answer is paid most, at .6 .2 .2 none is."""
    data = embedded((ROOT / "docs" / "explore.html").read_text(encoding="utf-8"))
    assert browser.ask("error.hidden")
    assert texts_of(browser, ".weight .share") == ["0.33", "0.33", "0.33"]
    said = browser.ask("said.textContent")
    assert "pushes accuracy down in step 1." in said
    assert "134 of its 154 right completions are long and unclear; 67 of its 102 wrong ones are short and clear." in said
    assert "accuracy is outvoted" in browser.ask("said.textContent")
    assert "wrong, short, clear" in browser.ask("largest.textContent")
    assert texts_of(browser, "#rows .row:first-child .chips .note") == ["wrong, short, clear · 16 tokens"]
    assert browser.ask("document.querySelector('#rows .sign').textContent").startswith("▲+")
    equal = dict(zip(texts_of(browser, "#kinds tbody th"), texts_of(browser, "#kinds .n"), strict=True))
    assert equal["right, long, unclear"].startswith("▼")
    assert equal["wrong, short, clear"].startswith("▲")
    browser.ask("(w0.value = 60, w0.oninput())")
    turned = dict(zip(texts_of(browser, "#kinds tbody th"), texts_of(browser, "#kinds .n"), strict=True))
    assert turned["right, long, unclear"].startswith("▲")
    assert turned["wrong, short, clear"].startswith("▼")
    assert texts_of(browser, ".weight .share") == ["0.60", "0.20", "0.20"]
    assert "none becomes likelier" in browser.ask("largest.textContent")
    own = data["steps"][0]
    rewards, lengths = [own["kinds"][i][:3] for i in own["of"]], [own["kinds"][i][3] for i in own["of"]]
    scores = ask(engine, "scalarize", rewards, [0.6, 0.2, 0.2])
    advantages = ask(engine, "estimateAdvantages", scores, lengths, data["size"], data["estimator"])
    shown = browser.ask("maths.groups(now.advantages, size)[state.prompt]")
    first = browser.ask("state.prompt") * data["size"]
    assert shown == pytest.approx(advantages[first : first + data["size"]], abs=1e-6)
    assert texts_of(browser, "#rows .sign")[0] == "▲" + browser.ask(f"signed({max(shown)})")


@needs_driver
def test_browser_adds_up_the_run(browser, engine):
    data = embedded((ROOT / "docs" / "explore.html").read_text(encoding="utf-8"))
    by_move, by_score, parts = np.zeros(3), np.zeros(3), {True: np.zeros(3), False: np.zeros(3)}
    for own in data["steps"]:
        rewards, lengths = [own["kinds"][i][:3] for i in own["of"]], [own["kinds"][i][3] for i in own["of"]]
        scores = ask(engine, "scalarize", rewards, own["weights"])
        advantages = ask(engine, "estimateAdvantages", scores, lengths, data["size"], data["estimator"])
        move = ask(engine, "firstOrderChange", own["drift"], own["age"], advantages, rewards, data["size"], data["updates"])
        by_move += move["law"]
        covariance = ask(engine, "withinPromptCovariance", advantages, rewards, data["size"])
        by_score += [ask(engine, "byScore", value, own["rate"], data["size"]) for value in covariance]
        against = covariance[0] < 0
        parts[against] += np.array([1, move["law"][0], ask(engine, "byScore", covariance[0], own["rate"], data["size"])])
    story = browser.ask("story.textContent").replace("−", "-")
    steps, moved, asked = re.search(
        r"in (\d+) of 60 steps.*it was outvoted.*moved it by (\S+) \(by the move\), where the rewards as such ask for (\S+) \(", story
    ).groups()
    assert (int(steps), float(moved), float(asked)) == pytest.approx(parts[True], rel=1e-2)
    left, moved = re.search(r"The other (\d+) steps, in which they were for it, moved it by (\S+) all the same", story).groups()
    assert (int(left), float(moved)) == pytest.approx(parts[False][:2], rel=1e-2)
    told = browser.ask("whole.textContent").replace("−", "-")
    for k, name in enumerate(data["objectives"]):
        measured, move, score = re.search(rf"{name} (\S+) measured, (\S+) by the move, (\S+) by the score", told).groups()
        curve = data["curves"][name][1]
        assert float(measured) == pytest.approx(curve[-1] - curve[0], rel=1e-2)
        assert (float(move), float(score)) == pytest.approx((by_move[k], by_score[k]), rel=1e-2)


@needs_driver
def test_browser_goes_from_a_kind_to_a_prompt_that_has_it(browser):
    browser.ask("(own.click(), step.value = 0, step.oninput())")
    row = "[...document.querySelectorAll('#kinds tr')].find(r => r.textContent.startsWith('wrong, long, clear'))"
    browser.ask(f"{row}.querySelector('button:not(.n)').click()")
    assert "wrong, long, clear" in " ".join(texts_of(browser, "#rows .chips .note"))
    assert "In prompt 2 " in browser.ask("largest.textContent")


@needs_driver
def test_browser_takes_a_controllers_weights_and_goes_along_with_it(browser):
    browser.ask("(own.click(), step.value = 0, step.oninput())")
    browser.ask("document.querySelector('[data-name=lagrangian]').click()")
    assert browser.ask("document.activeElement.dataset.name") == "lagrangian"
    assert browser.ask("state.weights") == browser.ask("data.steps[0].chosen.lagrangian")
    browser.ask("after.click()")
    assert browser.ask("state.weights") == browser.ask("data.steps[1].chosen.lagrangian")
    assert "text not kept at this step" in texts_of(browser, "#rows pre")
    browser.ask("texts.click()")
    assert "text not kept at this step" not in texts_of(browser, "#rows pre")
    browser.ask("(rule.value = 'all', rule.onchange())")
    assert "punishes none" in browser.ask("said.textContent")
    assert not any("▼" in text for text in texts_of(browser, "#rows .sign"))
    browser.ask("(own.click(), step.value = 0, step.oninput())")
    assert browser.ask("error.hidden")


@needs_driver
def test_browser_by_keyboard_alone(browser):
    """Tab reaches every control and one number of each group, arrows go on from there, and what is focused shows its formula."""
    browser.ask("(document.activeElement.blur(), own.click(), own.blur())")
    keys, seen = {"tab": "\ue004", "right": "\ue014", "escape": "\ue00c"}, []

    def press(key: str) -> None:
        actions = [{"type": kind, "value": keys[key]} for kind in ("keyDown", "keyUp")]
        browser.send("/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    browser.ask("(document.body.tabIndex = -1, document.body.focus())")
    for _ in range(60):
        press("tab")
        seen.append(browser.ask("document.activeElement.id || document.activeElement.className || document.activeElement.tagName"))
    for control in ("step", "w0", "w1", "w2", "equal", "own", "rule", "prompt", "sort", "SUMMARY"):
        assert control in seen
    assert sum(name.startswith("n ") for name in seen[: seen.index("SUMMARY")]) == 3  # the effects, the kinds and the completions
    browser.ask("document.querySelector('#rows .n').focus()")
    told = browser.ask("formula.innerText")
    assert "(score − base) · scale = (0.33·" in told
    press("right")
    assert browser.ask("formula.innerText") != told
    assert browser.ask("document.activeElement.getAttribute('aria-label')").startswith("accuracy of this completion")
    press("escape")
    assert browser.ask("formula.hidden")
    assert browser.ask("[...document.querySelectorAll('input, select')].every(n => n.labels.length)")


@needs_driver
@pytest.mark.parametrize("width", [420, 1280])
def test_browser_fits_the_window(browser, width):
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.send("/goog/cdp/execute", {"cmd": "Emulation.setDeviceMetricsOverride", "params": metrics})
    assert browser.ask("innerWidth") == width
    assert browser.ask("document.documentElement.scrollWidth <= innerWidth")
    inside = "[...document.querySelectorAll('main *')].filter(n => !n.closest('.wide, svg, .bar'))"
    assert browser.ask(f"{inside}.filter(n => n.getBoundingClientRect().right > innerWidth + 1).map(n => n.outerHTML.slice(0, 80))") == []

"""The study's own commands: gradients of disjoint halves, the law over many runs, and the tables of docs/results.md."""

import csv
import json
import random
import re
from statistics import fmean
from unittest.mock import patch

import pytest
import torch

from tools.looks import algorithm_look
from common.runs import load_run
from study.mathematics import sample_testbed
from study import gradients, habits, law, records, results, words_study
from common.errors import UserError
from common.model import token_logprobs
from support.folders import write_predicted_run as write_run
from support.pictures import cut_off, leaving, overlapping
from support.running import train
from testbed import words
from testbed.arithmetic import SLIPS, solution, split


def test_policy_gradients_are_those_of_the_baselined_likelihood():
    """Against one autograd pass over the whole batch; a constant added to a prompt's rewards changes nothing."""
    policy, batch, rewards = sample_testbed(3, 4, seed=1)
    flat = rewards.flatten(0, 1)
    found = gradients.policy_gradients(policy, batch, flat, 4)
    leave_one_out = flat - (rewards.sum(1, keepdim=True) - rewards).flatten(0, 1) / 3
    likelihood = (token_logprobs(policy, batch, 1.0) * batch.mask).sum(1)
    for k, gradient in enumerate(found):
        loss = (leave_one_out[:, k] * likelihood).mean()
        expected = torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(policy.parameters()), retain_graph=True)])
        torch.testing.assert_close(gradient.float(), expected, rtol=1e-3, atol=1e-5)
    shifted = gradients.policy_gradients(policy, batch, (rewards + torch.rand(3, 1, 3)).flatten(0, 1), 4)
    for gradient, other in zip(found, shifted, strict=True):
        torch.testing.assert_close(gradient, other, rtol=1e-3, atol=1e-5)


def test_disjoint_halves_take_the_bias_out_of_the_gram_matrix():
    """Noisy gradients of two objectives, orthogonal in truth, with noise that both share: the mean over many draws is the true matrix,
    while products within one half are far off."""
    generator = torch.Generator().manual_seed(0)
    true = torch.zeros(2, 50, dtype=torch.float64)
    true[0, 0], true[1, 1] = 1.0, 2.0
    crossed, within = torch.zeros(2, 2, 2, dtype=torch.float64)
    for _ in range(3000):
        halves = [list(true + 0.5 * torch.randn(1, 50, generator=generator, dtype=torch.float64)) for _ in range(2)]
        crossed += gradients.cross_gram(*halves) / 3000
        within += torch.stack(halves[0]) @ torch.stack(halves[0]).T / 3000
    torch.testing.assert_close(crossed, true @ true.T, rtol=0, atol=0.2)
    assert within[0, 1] > 10  # noise: 50 * .5^2
    assert torch.equal(gradients.cross_gram(*halves), gradients.cross_gram(*halves).T)


def test_a_measured_run_continues_where_it_stopped(tmp_path):
    small = {"algos": ("linear",), "seeds": 1, "every": 1, "prompts": 4, "completions": 2, "out": str(tmp_path)}
    with patch("common.curves.draw"):
        for steps in (1, 2):
            gradients.main(gradients.Args(steps=steps, **small))
    run = tmp_path / "runs" / "linear-s1"
    lines = [json.loads(line) for line in (run / "gradients.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [row["step"] for row in load_run(run).rows] == [0, 1, 2]
    assert len({line["gap"] for line in lines}) > 1  # other policies, other completions
    for line in lines:
        gram = torch.tensor(line["gram"])
        assert line["gap"] == pytest.approx(1 - sum(line["objective"]) / 3)
        assert line["pl_ratio"] == pytest.approx(gram.mean().item() / (2 * line["gap"]), rel=1e-5)


def test_the_law_is_judged_over_all_runs_of_a_setting(tmp_path):
    right = write_run(tmp_path / "right", [0.05, 0.05, -0.05, -0.05], [0.5, 0.6, 0.5])
    wrong = write_run(tmp_path / "wrong", [-0.05, -0.05, 0.05, 0.05], [0.5, 0.6, 0.5])
    (single,) = law.settings([_with_rate(right)])
    assert law.unexplained(single.intervals["hard"], "move") == pytest.approx(0, abs=1e-9)
    (pooled,) = law.settings([_with_rate(right), _with_rate(wrong)])
    assert law.unexplained(pooled.intervals["hard"], "move") == pytest.approx(2**0.5)  # exact in one run, twice the change off in the other
    assert "| `linear` | 0.0001 | 2 | 0.10 | 2/4 |" in law.table([pooled])
    assert law.noise(pooled.intervals["hard"]) == pytest.approx(2**0.5 * 0.01 / 0.1)
    assert "| hard | 0.14 | 2/4 |" in law.by_objective([pooled])
    assert law.first_interval([pooled]).endswith("| +0.00 | +0.10 |  |")  # moves of +.1 and -.1, a change of +.1 in both, no gradients
    lines = [json.loads(line) for line in (right / "statistics.jsonl").read_text().splitlines()]
    grams = [[[4.0, -3.0], [-3.0, 9.0]], [[0.0, 0.0], [0.0, 1.0]]]  # an objective without a gradient has no cosine
    (right / "statistics.jsonl").write_text("".join(json.dumps(line | {"gram": grams}) + "\n" for line in lines))
    assert law.first_interval([pooled]).endswith("| -0.50 |")
    with patch("study.law.write_figure") as write:
        law.draw([pooled], tmp_path / "law")
    figure = write.call_args.args[0]
    assert not overlapping(figure)
    assert not cut_off(figure)
    assert not leaving(figure)
    law.draw([pooled], tmp_path / "law")
    assert all((tmp_path / f"law.{kind}").stat().st_size > 5000 for kind in ("png", "pdf"))


def test_the_law_takes_any_number_of_objectives_and_steps_that_tell_a_move(tmp_path):
    one = write_run(tmp_path / "one", [0.05, 0.05], [0.5, 0.6])
    lines = [json.loads(line) for line in (one / "statistics.jsonl").read_text().splitlines()]
    (one / "statistics.jsonl").write_text("".join(json.dumps(line | {"gram": [[[4.0]]]}) + "\n" for line in lines))
    run = _with_rate(one)
    run.args["objectives"] = ["hard"]
    assert law.first_interval(law.settings([run])).endswith("|  |")  # a single gradient has no cosine
    many = _with_rate(write_run(tmp_path / "many", [0.05, 0.05], [0.5, 0.6]))
    names = [f"hard{n}" for n in range(9)]
    for row in many.rows:
        row |= {key.replace("hard", name): value for key, value in row.items() if "hard" in key for name in names}
    many.args["objectives"] = names
    law.draw(law.settings([many]), tmp_path / "law")
    assert (tmp_path / "law.png").stat().st_size > 5000
    single = write_run(tmp_path / "single", [0.05, 0.05], [0.5, 0.6])
    text = (single / "metrics.jsonl").read_text()
    for key in ("law/hard", "law/easy", "law/rate", "law/nats"):
        text = re.sub(rf'"{key}": [^,}}]+', f'"{key}": null', text)
    (single / "metrics.jsonl").write_text(text)
    with pytest.raises(UserError, match="--runs: in none of them is a step's move known .*single: a step of it is one mini-batch"):
        law.main(law.Args(runs=(str(single),), out=str(tmp_path)))


def _with_rate(folder):
    run = load_run(folder)
    run.args["lr"] = 1e-4
    return run


def test_the_tables_of_the_results_pages_are_those_of_their_data():
    board = json.loads(results.DATA.read_text())
    assert results.tables(board) in results.PAGE.read_text(), "python -m study.results"
    assert results.verdicts(board) in results.VERDICTS.read_text(), "python -m study.results"
    assert sorted(board["sections"], key=results.in_order) == board["sections"]
    for section in board["sections"]:  # seeds once each, and the numbers of a row those of its runs
        for row in section["rows"]:
            assert len(set(row["seeds"])) == len(row["seeds"]) == len(row["worst_change"]["per_seed"])


def test_the_verdicts_are_those_of_the_runs():
    """In every setting an accuracy is lost in as many runs as the leaderboard, which knew the evaluations' own errors, called degraded."""
    board = json.loads(results.DATA.read_text())
    for section in board["sections"]:
        for row in section["rows"]:
            found = results.statuses(section, row, "accuracy")
            assert found.count("lost") == row["interference"]["degraded"]["accuracy"], (section["title"], row["algorithm"])


def test_the_verdict_table_counts_and_sorts():
    def section(model, estimator, **algorithms):
        rows = [
            {
                "algorithm": name,
                "objectives": {"accuracy": {"start": 0.5, "per_seed": ends}},
                "worst_change": {"per_seed": [end - 0.5 for end in ends]},
            }
            for name, ends in algorithms.items()
        ]
        return {"args": {"model": model, "estimator": estimator, "eval_prompts": 256}, "rows": rows}

    # two standard errors of a change from .5 to about .58 are .088
    first = section("testbed", "reinforce", loser=[0.1, 0.9, 0.58], keeper=[0.6, 0.42])
    lines = results.verdicts({"sections": [first, section("testbed:robust", "grpo", keeper=[0.9])]}).splitlines()
    assert lines[0] == "| algorithm | accuracy lost | `fragile` REINFORCE | `robust` GRPO |"
    assert lines[2] == "| `keeper` | **0** of 3 | 1↑ 1= (-0.08) | 1↑ (+0.40) |"
    assert lines[3] == "| `loser` | **1** of 3 | 1↑ 1= 1↓ (-0.40) | – |"
    assert len(lines) == 4


def test_the_curves_of_the_study_are_of_the_runs_of_its_tables():
    """Start and end of every run in table.json, from curves.csv."""
    evaluations = {}
    with results.CURVES.open(newline="") as file:
        for row in csv.DictReader(file):
            run = tuple(row[key] for key in ("model", "dataset", "estimator", "script", "seed"))
            evaluations.setdefault(run, {})[int(row["step"])] = row
    for section in json.loads(results.DATA.read_text())["sections"]:
        for row in section["rows"]:
            for i, seed in enumerate(row["seeds"]):
                run = *(section["args"][key] for key in ("model", "dataset", "estimator")), row["script"], str(seed)
                own = evaluations.pop(run)
                assert sorted(own) == list(own)
                for name, values in row["objectives"].items():
                    reached = [float(own[step][name]) for step in own]
                    assert reached[0] == pytest.approx(values["start"], abs=1e-4)
                    assert fmean(reached[-3:]) == pytest.approx(values["per_seed"][i], abs=1e-4)
    assert not evaluations


def test_a_run_without_an_objective_leaves_its_cell_empty(tmp_path):
    runs = [load_run(write_run(tmp_path / name, [0.05, 0.05], [0.5, 0.61234567])) for name in ("both", "other")]
    for seed, run in enumerate(runs, 1):
        run.args.update(model="testbed", dataset="arithmetic", seed=seed)
    runs[1].args["objectives"] = ["hard"]
    for row in runs[1].rows:
        row.pop("eval/easy", None)
    assert results.curves(runs[::-1]).splitlines() == [
        "model,dataset,estimator,script,seed,step,hard,easy,length",
        "testbed,arithmetic,grpo,linear,1,0,0.5,0.5,20",
        "testbed,arithmetic,grpo,linear,1,2,0.61235,0.5,20",
        "testbed,arithmetic,grpo,linear,2,0,0.5,,20",
        "testbed,arithmetic,grpo,linear,2,2,0.61235,,20",
    ]


# --- habits ---


@pytest.mark.parametrize("operations", [2, 3])
def test_every_solution_has_its_own_habit_whatever_its_numbers(operations):
    known, rng = habits.habits(operations), random.Random(1)
    assert sorted(known.values()) == sorted(SLIPS)
    for problem in split("train", operations)[::97]:
        for style in SLIPS:
            assert known[habits.layout(solution(problem, style, rng))] == style  # slips included
    assert habits.layout(solution(problem, "compact", rng).replace("2. ", "2: ")) not in known


def test_habits_of_a_base_are_those_it_was_trained_on(capsys):
    """`robust` has .10 of `compact` in its second stage, `fragile` .006; the shares of a model add up to 1."""
    habits.main(habits.Args(models=("testbed", "testbed:robust"), completions=2))
    lines = capsys.readouterr().out.splitlines()
    heads = lines[1].split()
    fragile, robust = (dict(zip(heads, map(float, line.split()[1:]), strict=True)) for line in lines[2:4])
    for shares in (fragile, robust):
        assert sum(shares[head] for head in (*SLIPS, "other")) == pytest.approx(1, abs=0.004)
        assert 0.2 < shares["rush"] < 0.36
        assert 0.45 < shares["accuracy"] < 0.62
    assert fragile["compact"] < 0.02 < 0.06 < robust["compact"] < 0.16


def test_habits_of_a_run_are_those_of_its_model_on_its_problems(tmp_path, capsys):
    run = tmp_path / "run"
    train("linear", run, model="testbed:fragile3", dataset="arithmetic3", max_new_tokens=70, steps=1)
    assert habits.source(str(run)) == (str(run / "model"), "arithmetic3", 70)
    assert habits.source("testbed:fragile3") == ("testbed:fragile3", "arithmetic3", 80)
    assert habits.source("testbed") == ("testbed", "arithmetic", 56)
    capsys.readouterr()
    habits.main(habits.Args(models=(str(run),), split="test", completions=1))
    shares = [float(cell) for cell in capsys.readouterr().out.splitlines()[2].split()[1:8]]
    assert shares[list(SLIPS).index("long")] > 0.4


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (lambda run: (run / "args.json").unlink(), "no run folder and no testbed"),
        (lambda run: (run / "model").rename(run / "other"), "has no model yet: finish it, python run.py linear --resume"),
        (lambda run: (run / "args.json").write_text('{"dataset": "math500"}'), "was trained on math500"),
    ],
)
def test_models_without_habits_are_refused(tmp_path, spoil, told):
    run = write_run(tmp_path / "run", [0.1] * 2, [0.5, 0.6])
    (run / "args.json").write_text(json.dumps({"script": "linear", "dataset": "arithmetic", "max_new_tokens": 56}))
    (run / "model").mkdir()
    spoil(run)
    with pytest.raises(UserError, match=told):
        habits.main(habits.Args(models=("testbed", str(run))))
    with pytest.raises(UserError, match="no such base"):
        habits.source("testbed:nothing")


def test_an_objective_has_beaten_its_start_when_it_never_falls_back_into_noise():
    """Two standard errors of the difference of shares of 256 problems: .088 at .5 for example."""
    steps = [0, 10, 20, 30, 40]
    assert records.beaten_from(steps, [0.5, 0.6, 0.6, 0.6, 0.6]) == 10
    assert records.beaten_from(steps, [0.5, 0.9, 0.58, 0.6, 0.6]) == 30
    assert records.beaten_from(steps, [0.5, 0.9, 0.9, 0.9, 0.58]) is None
    assert records.beaten_from(steps, [0.5, 0.3, 0.2, 0.1, 0.0]) is None


def test_the_record_is_of_the_last_objective_and_of_accuracy_at_its_lowest(tmp_path):
    write = "model,dataset,estimator,script,seed,step,accuracy,conciseness,clarity,length\n"
    for script, seed, accuracy in (("good", 1, (0.5, 0.48, 0.7, 0.7)), ("good", 2, (0.5, 0.5, 0.5, 0.7)), ("bad", 1, (0.5, 0.1, 0.1, 0.1))):
        for step, value in enumerate(accuracy):
            write += f"testbed,arithmetic,grpo,{script},{seed},{10 * step},{value},{0.3 + 0.2 * step},{0.3 + 0.2 * step},20\n"
    found = records.records([write])["testbed", "grpo"]
    assert [(run.steps, run.lowest, round(run.change, 6)) for run in found["good"]] == [(20, 0.48, -0.02), (30, 0.5, 0.0)]
    assert found["bad"][0].steps is None
    first, second = records.table({("testbed", "grpo"): found}).splitlines()[2:]
    assert first == "| `python run.py good` | 100% of 2 | 100% | 2/2, 25 steps, 0.48 (-0.02) |"
    assert second == "| `python run.py bad` | 0% of 1 | 0% | 0/1, 0.10 (-0.40) |"


def test_the_kept_evaluations_are_drawn(tmp_path):
    runs = results.evaluations([(records.DATA / name).read_text() for name in ("curves.csv", "field.csv")])
    with patch("study.records.write_figure") as write:
        records.draw(runs, records.Args(), tmp_path / "records.png")
    (figure, _), _ = write.call_args
    titles, lines = [axes.get_title() or axes.get_title(loc="left") for axes in figure.axes[:5]], figure.axes[0].lines
    assert titles == ["fragile", "wavering", "robust", "fragile-gpt2", "fragile3"]
    assert len([line for line in lines if line.get_label() != "_start"]) == sum(
        key[0] == "testbed" and key[2] == "reinforce" and key[3] in records.Args().scripts for key in runs
    )
    assert {line.get_label(): line.get_color() for line in lines if line.get_label() != "_start"} == {
        script: algorithm_look(script).colour for script in records.Args().scripts
    }
    assert not overlapping(figure)
    assert not cut_off(figure)
    first = runs["testbed", "arithmetic", "reinforce", "ctwa", "1"]
    assert [first["step"], first["accuracy"]] in [[list(line.get_xdata()), list(line.get_ydata())] for line in lines]
    with pytest.raises(UserError, match="--scripts gdpo: no such run with grpo"):
        records.draw(runs, records.Args(estimator="grpo", scripts=("linear", "gdpo")), tmp_path / "records.png")
    with pytest.raises(UserError, match="--figure .*records.jpg: a figure is a .png or a .pdf"):
        records.draw(runs, records.Args(), tmp_path / "records.jpg")


def test_the_page_has_the_records_of_the_kept_evaluations():
    texts = [(records.DATA / name).read_text() for name in ("curves.csv", "field.csv")]
    assert records.PAGE.read_text().split(records.MARKS[0])[1].split(records.MARKS[1])[0].strip() == records.table(records.records(texts))


# --- the real model ---


def words_run(folder, seed: int, texts: list[str]):
    """A run of linear with one kept step, whose completions answer the last training problem; the prompt shows another one before it."""
    folder.mkdir()
    (folder / "args.json").write_text(json.dumps({"script": "linear", "seed": seed, "objectives": list(words_study.OBJECTIVES)}))
    rows = [{"step": 0, "eval/accuracy": 0.5}, {"step": 1, "reward/accuracy": 0.25, "law/nats": 0.4, "eval/accuracy": 0.125 * seed}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown, asked = words.split("train")[0], words.split("train")[-1]
    prompt = f"user {shown.question} assistant {shown.answer} user {asked.question} assistant"
    kept = [{"step": 1, "row": i, "prompt": prompt, "completion": text} for i, text in enumerate(texts)]
    (folder / "training_completions.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    return load_run(folder)


def test_a_box_and_a_last_number_are_told_apart(tmp_path):
    right = words.split("train")[-1].answer
    texts = [f"\\boxed{{{right}}}", f"So {right} are left.", f"{right} - 1 = {right - 1}", "none"]
    run = words_run(tmp_path / "run", 1, texts)
    assert words_study.read_texts(run) == {1: (0.25, 0.5)}
    (tmp_path / "run" / "training_completions.jsonl").write_text(json.dumps({"step": 1, "prompt": "what?", "completion": ""}) + "\n")
    with pytest.raises(ValueError, match="no training problem"):
        words_study.read_texts(run)


def test_runs_of_the_real_model_replace_themselves_and_leave_others(tmp_path):
    one, two = words_run(tmp_path / "1", 1, ["7"]), words_run(tmp_path / "2", 2, ["7"])
    both = words_study.merged(words_study.merged("", [two]), [one])
    assert both == words_study.merged(both, [one]) == words_study.merged("", [one, two])
    runs = words_study.by_run(words_study.parse(both))
    assert {key: columns["held-out accuracy"] for key, columns in runs.items()} == {
        ("linear", "1"): ([0, 1], [0.5, 0.125]),
        ("linear", "2"): ([0, 1], [0.5, 0.25]),
    }
    assert "| 0.50 (–) → 0.25 (–) |" in words_study.table(runs)


def test_the_page_has_the_table_of_the_kept_runs_of_the_real_model():
    kept = words_study.by_run(words_study.parse(words_study.DATA.read_text(encoding="utf-8")))
    assert words_study.table(kept) in words_study.PAGE.read_text(encoding="utf-8")

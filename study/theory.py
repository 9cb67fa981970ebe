"""The pictures of docs/theory.md, and the numbers beside them: everything is computed here, nothing is read from a run.

python -m study.theory [--out docs/theory]
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from algos.mgda import min_norm_weights
from study import mathematics as theory
from tools.looks import BROKEN, COLOURS, DOTTED, GREY, LABEL, START, STYLE

ROOT = Path(__file__).resolve().parents[1]
ACCURACY, CONCISENESS = COLOURS[:2]  # as in every picture of objectives; black and grey are neither
BLACK = "#000000"


@dataclass
class Args:
    out: str = str(ROOT / "docs" / "theory")
    """folder of the pictures"""
    prompts: int = 16
    """testbed: prompts of the step"""
    completions: int = 16
    """testbed: completions per prompt"""
    draws: int = 4
    """testbed: fresh draws of completions of the same prompts"""


def figure(words: str, *titles: str, width: float = 3.0, height: float = 2.1):
    """A figure under a sentence that says what it is of, with one panel per title and room for the names at the ends of their lines."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    size = (len(titles) * (width + 1.15), height + 1.15)
    drawn = Figure(figsize=size)
    drawn.text(0.1 / size[0], 1 - 0.1 / size[1], words, va="top", color="#444444", fontsize=LABEL)
    FigureCanvasAgg(drawn)
    panels = []
    for i, title in enumerate(titles):
        left = i * (width + 1.15) + 0.65
        panel = drawn.add_axes((left / size[0], 0.45 / size[1], (width - 0.35) / size[0], height / size[1]))
        panel.set_title(title, pad=6)
        panel.tick_params(length=2.5, pad=2)
        panels.append(panel)
    return drawn, panels


def name(panel, x: float, y: float, words: str, colour: str, dx: float = 4, dy: float = 0, ha: str = "left") -> None:
    panel.annotate(
        words, (x, y), (dx, dy), textcoords="offset points", color=colour, fontsize=LABEL, va="center", ha=ha, annotation_clip=False
    )


def law(out: Path) -> None:
    """Theorem 4.2 on one prompt with the three modes of the clipping example."""
    rewards = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 1]], dtype=torch.float64)[None]
    pi = torch.tensor([[0.1, 0.5, 0.4]], dtype=torch.float64)
    score = rewards.mean(2)
    words = "One prompt, three modes: the exact change of two objectives under a step of size η along the score, and the law's η Cov"
    drawn, (left, right) = figure(words, "what the step does", "what the law leaves out, accuracy")
    etas = torch.linspace(0, 6, 121, dtype=torch.float64)
    laws = [theory.covariance_law(pi, rewards, score, float(eta)) for eta in etas]
    print("law: compact .1, long .5, rush .4, equal weights; covariances", [f"{x:+.4f}" for x in laws[1].first / etas[1]])
    for k, (words, colour) in enumerate((("accuracy", ACCURACY), ("conciseness\nand clarity", CONCISENESS))):
        exact, first = ([float(getattr(step, part)[k]) for step in laws] for part in ("change", "first"))
        left.plot(etas, exact, color=colour)
        left.plot(etas, first, color=colour, linestyle=DOTTED)
        name(left, 6, exact[-1], words, colour, dy=-4 if k else 0)
        name(left, 6, first[-1], "the law, η Cov", colour, dy=5 if k else 0)
    left.axhline(0, color=GREY, linewidth=0.5)
    left.set(xlabel="size of the step, η", ylabel="change of the objective", xlim=(0, 6))
    etas = torch.logspace(-3, 1, 41, dtype=torch.float64)
    laws = [theory.covariance_law(pi, rewards, score, float(eta)) for eta in etas]
    residual = [float((step.change - step.first)[0].abs()) for step in laws]
    second, bound = ([float(getattr(step, part)[0].abs()) for step in laws] for part in ("second", "bound"))
    right.loglog(etas, residual, color=ACCURACY)
    right.loglog(etas, second, color=BLACK, linestyle=DOTTED)
    right.loglog(etas, bound, color=GREY, linestyle=BROKEN)
    name(right, 10, residual[-1], "left out", ACCURACY, dy=2)
    name(right, 10, second[-1], "second order", BLACK, dy=-7)
    name(right, 10, bound[-1], "bound", GREY, dy=4)
    right.set(xlabel="size of the step, η (log scale)", ylabel="what η Cov misses of the change (log scale)", xlim=(1e-3, 10))
    drawn.savefig(out / "law.png", dpi=150)


def two_modes(out: Path) -> None:
    """Equations 4 and 5 from three starts."""
    words = "Two modes, and a score that prefers the bad one: the more probable the good mode is at the start (p₀), the later it is lost"
    drawn, (left, right) = figure(words, "objective that prefers the good mode", "its covariance with the score")
    steps = torch.arange(0, 41)
    starts = ((0.99999, BLACK, "-"), (0.99, BLACK, BROKEN), (0.5, GREY, (0, (6, 1.5, 1, 1.5))))
    for start, colour, dash in starts:
        p = theory.two_mode_probability(torch.tensor(start, dtype=torch.float64), torch.tensor(-0.5), 1.0, steps)
        values = (0.2 + 0.7 * p).tolist()
        cov = theory.two_mode_covariance(p, torch.tensor(0.7), torch.tensor(-0.5)).tolist()
        left.plot(steps, values, color=colour, linestyle=dash)
        right.plot(steps, cov, color=colour, linestyle=dash)
        middle = min(range(41), key=lambda n, v=values: abs(v[n] - 0.47))
        name(left, middle, values[middle], f"p₀ = {start:g}", colour, dx=6, dy=4)
        low = min(range(41), key=cov.__getitem__)
        name(right, low, cov[low], f"p₀ = {start:g}", colour, dx=3, dy=-8)
    left.axhline(0.2, **START)
    name(left, 40, 0.2, "reward of the\nbad mode", GREY)
    right.axhline(0, color=GREY, linewidth=0.5)
    left.set(xlabel="step", ylabel="mean of the objective, J", xlim=(0, 40), ylim=(0.15, 0.95))
    right.set(xlabel="step", ylabel="covariance of objective and score", xlim=(0, 40), ylim=(-0.105, 0.005))
    drawn.savefig(out / "two_modes.png", dpi=150)


def clipping(out: Path) -> None:
    """Corollary C.4 along the path of the update."""
    distances = [i / 400 for i in range(401)]
    margins = [theory.clipping_example(distance)[1] for distance in distances]
    words = "What one more step gains, with and without clipping, on the way from the policy that was sampled; below 0 it loses"
    drawn, panels = figure(words, "accuracy", "conciseness, and clarity alike")
    for k, panel in enumerate(panels):
        for part, colour, dash, words in (
            ("unclipped", GREY, BROKEN, "unclipped"),
            ("clipped", BLACK, "-", "clipped"),
            ("bound", GREY, DOTTED, "lower bound"),
        ):
            values = [float(getattr(step, part)[k]) for step in margins]
            panel.plot(distances, values, color=colour, linestyle=dash, zorder=3 if part == "clipped" else 2)
            name(panel, 1, values[-1], words, colour)
        panel.axhline(0, color=BLACK, linewidth=0.5)
        panel.set(xlabel="distance from the sampling policy, in tilts by the advantage", xlim=(0, 1), ylim=(-0.095, 0.08))
    panels[0].set_ylabel("gain per unit of step, ⟨grad J, F⁺v⟩")
    for distance, height, words in ((0.5825, 0.062, "compact leaves\nthe window "), (0.6275, 0.062, " then long")):
        panels[0].axvline(distance, **START)
        name(panels[0], distance, height, words, GREY, dx=-2 if distance < 0.6 else 2, ha="right" if distance < 0.6 else "left")
    drawn.savefig(out / "clipping.png", dpi=150)
    for distance in (0.5, 0.61, 0.65):
        ratio, step = theory.clipping_example(distance)
        numbers = {key: [f"{x:+.4f}" for x in value.tolist()] for key, value in vars(step).items() if value.dim()}
        print(f"clipping at {distance}: ratio {[f'{x:.3f}' for x in ratio.tolist()]}, {numbers}, distortion {float(step.distortion):.3f}")


def random_bandits(count: int):
    """Categorical policies of 2 to 9 completions, with scores in 0..1 of every spread."""
    generator = torch.Generator().manual_seed(0)
    for trial in range(count):
        size = 2 + trial % 8
        logits = (1 + trial % 5) * torch.randn(size, 1, generator=generator, dtype=torch.float64)
        score = torch.rand(size, generator=generator, dtype=torch.float64)
        yield theory.landscape(logits, torch.ones(1, 1, dtype=torch.float64), score, 1)


def pl(out: Path) -> None:
    """Theorem 6.4: the bracket, its repair, and the ratio that needs neither."""
    words = (
        "Theorem 6.4 on 4000 random policies, a point each: its lower bound says something where the bracket is above 0; right, the ratio "
    )
    words += "it bounds, measured"
    drawn, (left, middle, right) = figure(words, "the theorem's bracket", "shifted by a baseline", "empirical PL ratio, two completions")
    models = list(random_bandits(4000))
    plain = [theory.pl_bracket(at) / (at.score_bound * at.rest) for at in models]
    repaired = [theory.repaired_bracket(at) / (at.score_bound * at.rest) for at in models]
    p = [at.p for at in models]
    for panel, values, colour in ((left, plain, BLACK), (middle, repaired, BLACK)):
        panel.plot(p, values, ".", color=colour, markersize=1.5, alpha=0.6, rasterized=True)
        panel.axhline(0, color=GREY, linewidth=0.8)
        panel.set(xlabel="probability p of the best completion", xlim=(0, 1), ylim=(-1.6, 1.6))
    left.set_ylabel("bracket over B (1 − p)")
    name(left, 1, 0, "needed:\nabove 0", BLACK)
    share = sum(value > 0 for value in repaired) / len(repaired)
    name(middle, 0.03, 1.4, f"positive in {share:.0%}", BLACK, dx=0)
    grid = torch.linspace(0.002, 0.998, 250, dtype=torch.float64)
    for gap, dash in ((1.0, "-"), (0.5, BROKEN), (0.2, DOTTED)):
        score = torch.tensor([1.0, 1 - gap], dtype=torch.float64)
        logits = [torch.tensor([[math.log(x / (1 - x))], [0.0]], dtype=torch.float64) for x in grid.tolist()]
        ratios = [theory.pl_ratio(theory.landscape(x, torch.ones(1, 1, dtype=torch.float64), score, 1)) for x in logits]
        right.plot(grid, ratios, color=BLACK, linestyle=dash)
        name(right, 2 / 3, max(ratios), f"scores {gap:g} apart", BLACK, dx=0, dy=6, ha="center")
    right.set(xlabel="probability p of the better one", ylabel="squared gradient / (2 × gap to the best)", xlim=(0, 1), ylim=(0, 0.17))
    drawn.savefig(out / "pl.png", dpi=150)
    wide = [value for value, at in zip(plain, models, strict=True) if at.vocabulary > 2]
    print(f"pl: {len(models)} bandits; bracket / (B(1-p)) at most {max(plain):.2g}, {max(wide):.3f} with more than two completions")
    below = all(at.slope >= theory.repaired_bracket(at) - 1e-12 for at in models)
    print(f"pl: the shifted bracket is positive in {share:.1%}; below the slope in all: {below}")
    more = [at for at in models if at.vocabulary > 2 and theory.repaired_bracket(at) > 0]
    used = sorted(theory.pl_constant(theory.repaired_bracket(at), at, at.best - at.worst) / theory.pl_ratio(at) for at in more)
    print(
        f"pl: with more than two completions ({len(more)} positive) its constant is {used[len(used) // 2]:.2f} of the ratio in the median"
    )


def language_model(out: Path, prompts: int, completions: int, draws: int) -> None:
    """One step of the testbed's model, of many sizes."""
    weights = torch.full((3,), 1 / 3)
    words = (
        "One step of the testbed's model, of many sizes: what the gradient predicts, and what happens on the same and on fresh completions"
    )
    drawn, (left, right) = figure(words, "first order against what happened", "change of accuracy per nat, AdamW")
    for seed in (1, 2, 3):
        policy, batch, rewards = theory.sample_testbed(prompts, completions, seed)
        fresh = [theory.sample_testbed(prompts, completions, seed, draw)[1:] for draw in range(2, 2 + draws)]
        for optimizer, lrs, own in (
            ("sgd", torch.logspace(-4, -0.5, 8).tolist(), 1e-2),
            ("adamw", torch.logspace(-6, -2.5, 8).tolist(), 1e-4),
        ):
            wanted = sorted([*lrs, own]) if seed == 1 else [own]
            steps = dict(zip(wanted, theory.first_step(policy, batch, rewards, weights, optimizer, wanted, fresh), strict=True))
            _report(seed, optimizer, own, steps[own])
            if seed == 1:
                _draw_steps(left, right, optimizer, steps, own)
        C = theory.reward_covariance(torch.full(rewards.shape[:2], 1 / completions).double(), rewards.double()).mean(0)
        safe = min_norm_weights(C)
        print(f"model, seed {seed}: C w with equal weights {_words(C.mean(1))}; with weights {_words(safe)}: {_words(C @ safe)}")
    left.set(xlabel="size of the step, nats per completion (log scale)", ylabel="relative error of the gradient (log scale)")
    right.set(xlabel="size of the step, nats per completion (log scale)", ylabel="change of accuracy over size", xscale="log")
    right.axhline(0, color=GREY, linewidth=0.5)
    drawn.savefig(out / "model.png", dpi=150)


def _draw_steps(left, right, optimizer: str, steps: dict[float, theory.FirstStep], own: float) -> None:
    colour, words, dy = (GREY, "SGD", -9) if optimizer == "sgd" else (BLACK, "AdamW", 8)
    line = list(steps.values())
    sizes, error = [step.size for step in line], [float((step.change - step.gradient).norm() / step.change.norm()) for step in line]
    left.loglog(sizes, error, color=colour, linestyle=BROKEN if optimizer == "sgd" else "-")
    name(left, sizes[3], error[3], words, colour, dx=3 if dy < 0 else -3, dy=dy, ha="left" if dy < 0 else "right")
    if optimizer == "sgd":
        return
    at = list(steps).index(own)
    left.plot(sizes[at], error[at], "o", color=colour, markersize=4)
    name(left, sizes[at], error[at], "the scripts' rate, 1e-4", colour, dx=6, dy=-6)
    curves = {key: [float(getattr(step, key)[0]) / step.size for step in line] for key in ("change", "gradient", "law")}
    seen = torch.stack([step.fresh[:, 0] / step.size for step in line])  # [sizes, draws]
    mean, se = seen.mean(1), seen.std(1) / seen.size(1) ** 0.5
    right.fill_between(sizes, mean - se, mean + se, color=ACCURACY, alpha=0.2, linewidth=0)
    right.plot(sizes, mean, color=ACCURACY)
    looks = (
        ("change", BLACK, "-", "the same\ncompletions", -12),
        ("gradient", BLACK, BROKEN, "predicted by\nthe gradient", 0),
        ("law", GREY, DOTTED, "by the law,\nη Cov(r, s)", 12),
    )
    for key, pen, dash, label, dy in looks:
        right.plot(sizes, curves[key], color=pen, linestyle=dash)
        name(right, sizes[-1], curves[key][-1], label, pen, dy=dy)
    name(right, sizes[2], float(mean[2]), "fresh completions,\n± 1 standard error", ACCURACY, dx=-34, dy=-17)
    right.axvline(sizes[at], **START)
    name(right, sizes[at], max(curves["gradient"]), "lr 1e-4", GREY, dy=6)


def _report(seed: int, optimizer: str, lr: float, step: theory.FirstStep) -> None:
    rows = {key: getattr(step, key) for key in ("gradient", "change", "realised", "law")} | {"fresh": step.fresh.mean(0)}
    rows["fresh_se"] = step.fresh.std(0) / len(step.fresh) ** 0.5
    print(f"model, seed {seed}: {optimizer} {lr:g}, size {step.size:.2f}, the score's share of the tilt {step.score_share:.2f}")
    for key, values in rows.items():
        print(f"    {key:9}", _words(values))


def _words(values: torch.Tensor) -> str:
    return " ".join(f"{value:+.4f}" for value in values.tolist())


def main(args: Args) -> None:
    import matplotlib

    torch.set_num_threads(1)
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        law(out)
        two_modes(out)
        clipping(out)
        pl(out)
        language_model(out, args.prompts, args.completions, args.draws)


if __name__ == "__main__":
    main(tyro.cli(Args))

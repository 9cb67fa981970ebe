"""The plane with two losses on which the gradient methods of multi-task learning are compared.

    python -m study.toy [--steps 50000] [--out docs/figures]

The problem, the starts and Adam's rate are those of the public code of CAGrad, Nash-MTL and FAMO.
What weighs the gradients is the scripts', with the defaults of their flags. Prints after how many
steps each start reaches the Pareto front, and draws toy.png for docs/toy.md.
"""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib import import_module
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path

import pandas as pd
import torch
import tyro
from torch import Tensor
from tqdm import tqdm

from common.curves import picture
from common.errors import plain_errors
from study.results import DOCS
from tools.leaderboard import markdown

STARTS = (-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0), (0.0, 0.0), (-7.5, -0.5), (9.0, -1.0)
SCALE, SIDE = torch.tensor([0.1, 1.0]), torch.tensor([-1.0, 1.0])
FREE = {"max_grad_norm": torch.inf}  # only Nash-MTL's code clips, at 1 as the scripts do
LOWEST = {"reward_max": (2.1, 21.0)}  # no loss is below minus that (FAMO's code)
METHODS = {"nash_mtl": {}, "mgda": FREE, "gradnorm": FREE | LOWEST}
METHODS |= {"famo": FREE | LOWEST | {"gamma": 0.0}, "linear": FREE}  # FAMO's code: no decay here
EVERY, NEAR = 50, 0.05  # steps from one point that is kept to the next; see `near`


@dataclass
class Args:
    steps: int = 50_000
    """steps of Adam from each start, at most"""
    out: Path = DOCS / "figures"
    """folder of the picture"""


def losses(points: Tensor) -> Tensor:
    """Both losses at points (x, y): but for SCALE mirror images in x = 0. [..., 2] -> [..., 2]."""
    x, y = points[..., :1], points[..., 1:]
    valley = (x / 2 - SIDE * (3.5 - y.tanh())).abs().clamp(min=5e-6).log() + 6
    bowl = ((x + 7 * SIDE) ** 2 + (y + 8) ** 2 / 10) / 10 - 20
    return SCALE * (valley * (y / 2).tanh().clamp(min=0) + bowl * (-y / 2).tanh().clamp(min=0))


def front() -> Tensor:
    """Points of the Pareto front, between the bowls' lowest. [141, 2]"""
    x = torch.linspace(-7, 7, 141)
    return torch.stack([x, torch.full_like(x, -8.3552)], 1)


def near(points: Tensor) -> Tensor:
    """Whether both losses are within NEAR, times SCALE, of those at a point of the front.
    [..., 2] -> [...]"""
    above = (losses(points)[..., None, :] - losses(front())) / SCALE
    return above.amax(-1).amin(-1) < NEAR


def descend(method: str, starts, steps: int, lr: float = 1e-3, line: int | None = None) -> list:
    """A method's way from each start to the front, or of all steps where it does not come there:
    every EVERY-th point, [N, 2] each. line: of the progress bar; None: no bar."""
    torch.set_num_threads(1)
    script = import_module(f"algos.{method}")
    args = script.Args(**METHODS[method])
    drivers = [script.controller(args, ["first", "second"], "cpu") for _ in starts]
    points = torch.tensor(starts, requires_grad=True)
    optimizer, told = torch.optim.Adam([points], lr), losses(points)
    ways, going = [[start] for start in starts], range(len(starts))
    for step in tqdm(range(1, steps + 1), method, position=line, disable=line is None):
        each = [torch.autograd.grad(told[:, k].sum(), points, retain_graph=k == 0) for k in (0, 1)]
        gradients = torch.stack([own for (own,) in each], 1)  # [starts, 2 losses, 2]
        points.grad = torch.zeros_like(points)
        for i in going:
            combined = weigh(drivers[i], -told[i].detach(), gradients[i].double()) @ gradients[i]
            points.grad[i] = combined * (args.max_grad_norm / combined.norm()).clamp(max=1)
        optimizer.step()
        told = losses(points)
        for i in going:
            if hasattr(drivers[i], "reached"):
                drivers[i].reached(-told[i].detach())
        if step % EVERY == 0:
            for i in going:
                ways[i].append(points[i].tolist())
            arrived = near(points)
            going = [i for i in going if not arrived[i]]
            if not going:
                break
    return [torch.tensor(way) for way in ways]


def weigh(driver, rewards: Tensor, gradients: Tensor) -> Tensor:
    """A controller's weights, see common/controllers.py. rewards [2] are the losses with the sign
    turned, gradients [2, 2] have a row per loss. -> [2]"""
    if hasattr(driver, "see"):
        driver.see(rewards[None])
    if hasattr(driver, "weigh"):
        return driver.weigh(gradients @ gradients.T)
    return driver.weights(rewards[None])


def draw(ways: dict[str, list], out: Path) -> None:
    """A column per method: above the plane with the sum of the losses, below the losses."""
    side = torch.linspace(-10, 10, 200)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    with picture(out, 11, 5) as figure:
        panels = figure.subplots(2, len(ways), sharex="row", sharey="row")
        for (above, below), (method, each) in zip(panels.T, ways.items(), strict=True):
            above.contour(side, side, losses(grid).sum(-1), 12, cmap="Greys", linewidths=0.5)
            for panel, of in ((above, lambda points: points), (below, losses)):
                panel.plot(*of(front()).T, color="0.6", linewidth=4, label="Pareto front")
                for k, points in enumerate(each):
                    panel.plot(*of(points).T, color=f"C{k}", linewidth=1)
                    panel.plot(*of(points)[0], "o", color=f"C{k}", label=f"start {STARTS[k]}")
                    panel.plot(*of(points)[-1], "*", color="black", zorder=3)
            above.set(title=method, xlabel="x")
            below.set(xlabel="first loss")
        panels[0, 0].set_ylabel("y")
        panels[1, 0].set_ylabel("second loss")
        figure.legend(*below.get_legend_handles_labels(), loc="outside lower center", ncols=7)


def main(args: Args) -> None:
    """Two methods at a time, each in a process of its own."""
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        given = (METHODS, repeat(STARTS), repeat(args.steps), repeat(1e-3), range(len(METHODS)))
        ways = dict(zip(METHODS, pool.map(descend, *given), strict=True))
    table = pd.DataFrame({"start": map(str, STARTS)})
    for method, each in ways.items():
        ends = [(EVERY * (len(way) - 1), way[-1]) for way in each]
        never = "never: ({:.1f}, {:.1f})"
        table[method] = [step if near(at) else never.format(*at.tolist()) for step, at in ends]
    print(markdown(table))
    draw(ways, args.out / "toy.png")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))

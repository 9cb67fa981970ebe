"""The plane with two losses on which the gradient methods of multi-task learning are compared.

    python -m study.toy [--steps 50000] [--out docs/figures]

The problem, the starts and Adam's rate are those of the public code of CAGrad, Nash-MTL and FAMO.
What weighs and clips the gradients is the scripts', with the defaults of their flags. Prints after
how many steps each start reaches the Pareto front, and draws toy.png for docs/toy.md.
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
from study.results import DOCS, markdown

STARTS = (-8.5, 7.5), (-8.5, -5.0), (9.0, 9.0), (0.0, 0.0), (-7.5, -0.5), (9.0, -1.0)
SCALE, SIDE = torch.tensor([0.1, 1.0]), torch.tensor([-1.0, 1.0])
LOWEST = {"reward_max": (2.1, 21.0)}  # no loss is below minus that (FAMO's code)
METHODS = {"nash_mtl": {}, "mgda": {}, "gradnorm": LOWEST, "famo": LOWEST, "linear": {}}
EVERY, NEAR = 50, 0.05  # steps from one point that is kept to the next; see `arrivals`


@dataclass
class Args:
    steps: int = 50_000
    """steps of Adam from each start"""
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


def descend(method: str, starts, steps: int, lr: float = 1e-3, line: int | None = None) -> Tensor:
    """Every EVERY-th point on a method's way from each start, [1 + steps // EVERY, starts, 2].
    line: of the progress bar; None: no bar."""
    torch.set_num_threads(1)
    script = import_module(f"algos.{method}")
    args = script.Args(**METHODS[method])
    drivers = [script.controller(args, ["first", "second"], "cpu") for _ in starts]
    points = torch.tensor(starts, requires_grad=True)
    optimizer, path, told = torch.optim.Adam([points], lr), [points.tolist()], losses(points)
    for step in tqdm(range(1, steps + 1), method, position=line, disable=line is None):
        each = [torch.autograd.grad(told[:, k].sum(), points, retain_graph=k == 0) for k in (0, 1)]
        gradients = torch.stack([own for (own,) in each], 1)  # [starts, 2 losses, 2]
        weights = map(weigh, drivers, -told.detach(), gradients.double())
        combined = torch.einsum("sk,skd->sd", torch.stack([*weights]), gradients)
        points.grad = combined * (args.max_grad_norm / combined.norm(dim=1)[:, None]).clamp(max=1)
        optimizer.step()
        told = losses(points)
        for driver, rewards in zip(drivers, -told.detach(), strict=True):
            if hasattr(driver, "reached"):
                driver.reached(rewards)
        path += [points.tolist()] if step % EVERY == 0 else []
    return torch.tensor(path)


def weigh(driver, rewards: Tensor, gradients: Tensor) -> Tensor:
    """A controller's weights, see common/controllers.py. rewards [2] are the losses with the sign
    turned, gradients [2, 2] have a row per loss. -> [2]"""
    if hasattr(driver, "see"):
        driver.see(rewards[None])
    if hasattr(driver, "weigh"):
        return driver.weigh(gradients @ gradients.T)
    return driver.weights(rewards[None])


def arrivals(path: Tensor) -> list[int | None]:
    """The first step at which both losses are within NEAR, times SCALE, of those at a point of the
    front, for each start; None: never. path as `descend` gives it."""
    above = (losses(path)[:, :, None] - losses(front())) / SCALE  # [points, starts, 141, 2]
    near = above.amax(-1).amin(-1) < NEAR
    return [own.nonzero()[0].item() * EVERY if own.any() else None for own in near.T]


def draw(paths: dict[str, Tensor], out: Path) -> None:
    """A column per method: above the plane with the sum of the losses, below the losses."""
    side = torch.linspace(-10, 10, 200)
    grid = torch.stack(torch.meshgrid(side, side, indexing="xy"), -1)
    with picture(out, 11, 5) as figure:
        panels = figure.subplots(2, len(paths), sharex="row", sharey="row")
        for (above, below), (method, path) in zip(panels.T, paths.items(), strict=True):
            above.contour(side, side, losses(grid).sum(-1), 12, cmap="Greys", linewidths=0.5)
            for panel, of in ((above, lambda points: points), (below, losses)):
                panel.plot(*of(front()).T, color="0.6", linewidth=4, label="Pareto front")
                for k, points in enumerate(path.unbind(1)):
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
        paths = dict(zip(METHODS, pool.map(descend, *given), strict=True))
    table = pd.DataFrame({"start": map(str, STARTS)})
    for method, path in paths.items():
        ends = [f"never: ({x:.1f}, {y:.1f})" for x, y in path[-1]]
        table[method] = [step or end for step, end in zip(arrivals(path), ends, strict=True)]
    print(markdown(table))
    draw(paths, args.out / "toy.png")


if __name__ == "__main__":
    with plain_errors():
        main(tyro.cli(Args, description=__doc__.splitlines()[0]))

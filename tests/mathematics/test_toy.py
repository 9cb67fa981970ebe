"""The plane of the multi-task literature: its losses by hand, and that methods come down to the
front."""

import math

import pytest
import torch

from study.toy import descend, front, losses, near

DOWN = math.tanh(4)  # how much a bowl counts at y = -8


@pytest.mark.parametrize(
    ("point", "told", "gradients"),
    [  # the lowest point of the first bowl; over a bowl's factor d/dy is that of tanh(-y / 2)
        ((7, -8), (-2 * DOWN, -0.4 * DOWN), ((0, 1 - DOWN**2), (2.8 * DOWN, 0.2 * (1 - DOWN**2)))),
        ((0, 0), (0, 0), None),  # no side counts
        # the bottom of the first valley is cut off at 5e-6: there it has no slope in x
        ((-7 + 2 * math.tanh(6), 6), (0.1 * (math.log(5e-6) + 6) * math.tanh(3), None), None),
        ((0, 6), [s * (math.log(3.5 - math.tanh(6)) + 6) * math.tanh(3) for s in (0.1, 1)], None),
    ],
)
def test_losses_are_those_by_hand(point, told, gradients):
    at = torch.tensor(point, dtype=torch.float64)
    for found, value in zip(losses(at), told, strict=True):
        assert value is None or found.item() == pytest.approx(value, abs=1e-6)
    if gradients:
        slopes = torch.autograd.functional.jacobian(losses, at)
        assert torch.allclose(slopes, torch.tensor(gradients, dtype=torch.float64), atol=1e-7)


def test_nothing_is_below_the_front_in_both():
    side = torch.linspace(-11, 11, 200)
    plane = losses(torch.cartesian_prod(side, side))
    for at in losses(front()):
        assert not (plane < at - 2e-3).all(1).any()


@pytest.mark.parametrize("method", ["mgda", "nash_mtl"])
def test_methods_come_down_to_the_front_and_lower_both_losses(method):
    (way,) = descend(method, [(-7.5, -0.5)], 300, lr=0.05)
    assert near(way).tolist() == [False] * (len(way) - 1) + [True]
    assert (losses(way[-1]) < losses(way[0])).all()

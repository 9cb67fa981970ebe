"""PCGrad's weights against the projections of explicit gradients, and laws; trained."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from algos.pcgrad import project_conflicts
from support.running import train
from support.tensors import close, tensor


def projected(gradients: torch.Tensor, orders: list[list[int]]) -> torch.Tensor:
    """The algorithm of the paper on vectors [K, P]: mean of the projected gradients [P]."""
    found = []
    for k, others in enumerate(orders):
        own = gradients[k].clone()
        for j in others:
            if own @ gradients[j] < 0:
                own = own - (own @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        found.append(own)
    return torch.stack(found).mean(0)


def draw(seed: int, K: int) -> tuple[torch.Tensor, list[list[int]]]:
    generator = torch.Generator().manual_seed(seed)
    gradients = torch.randn(K, 7, generator=generator, dtype=torch.float64)
    draws = [torch.randperm(K, generator=generator).tolist() for _ in range(K)]
    return gradients, [[j for j in order if j != k] for k, order in enumerate(draws)]


@settings(deadline=None, max_examples=80)
@given(seed=st.integers(0, 10**6), K=st.sampled_from([1, 2, 3, 5]))
def test_weights_give_the_projected_gradients(seed, K):
    gradients, orders = draw(seed, K)
    gram = gradients @ gradients.T
    before = gram.clone()
    weights = project_conflicts(gram, orders)
    assert torch.equal(gram, before)
    assert (weights >= 0).all()  # one gives way to another by going along with it
    torch.testing.assert_close(weights @ gradients, projected(gradients, orders))


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 10**6))
def test_two_are_never_opposed(seed):
    gradients, orders = draw(seed, 2)
    gram = gradients @ gradients.T
    assert (gram @ project_conflicts(gram, orders) >= -1e-12).all()
    longer = torch.diag(tensor([3.0, 0.1]))  # what each gives up depends on directions alone: weights go with the lengths
    scaled = project_conflicts(longer @ gram @ longer, orders)
    torch.testing.assert_close(scaled @ longer @ gradients, projected(longer @ gradients, orders))


def test_without_conflict_it_is_the_mean():
    close(project_conflicts(tensor([[1.0, 0.2, 0.0], [0.2, 4.0, 0.1], [0.0, 0.1, 9.0]]), [[1, 2], [0, 2], [1, 0]]), [1 / 3] * 3, 1e-12)


def test_of_three_one_may_still_be_outvoted():
    """As its page says: the sum of what is left of two that agree points against the third."""
    lost = 0
    for seed in range(300):
        gradients, orders = draw(seed, 3)
        gram = gradients @ gradients.T
        lost += bool((gram @ project_conflicts(gram, orders) < -1e-9).any())
    assert 0 < lost < 150


def test_a_gradient_of_zero_gives_way_to_none():
    gram = tensor([[1.0, 0.0, -1.0], [0.0, 0.0, 0.0], [-1.0, 0.0, 4.0]])
    weights = project_conflicts(gram, [[1, 2], [0, 2], [1, 0]])
    assert weights.isfinite().all()
    close(weights, [(1 + 1) / 3, 1 / 3, (1 + 0.25) / 3], 1e-12)


def test_a_run_weighs_the_gradients_so(tmp_path):
    """Each mini-batch has an order of its own, from (seed, step): a run repeats, and its weights are at least the mean's."""
    rows, again = (train("pcgrad", tmp_path / name, steps=2, lr=1e-3)[1:] for name in "ab")
    assert rows == again
    for row in rows:
        weights = [row[f"weight/{name}"] for name in ("accuracy", "conciseness", "clarity")]
        assert min(weights) >= 1 / 3 - 1e-6
    assert max(rows[0][f"weight/{name}"] for name in ("accuracy", "conciseness", "clarity")) > 0.34  # some do oppose each other

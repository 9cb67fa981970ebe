"""Several gradients from one forward pass: against separate passes and autograd, their inner products and weighted sums."""

import pytest
import torch
from torch import nn

from algos.linear import kl_penalty, policy_loss
from common.batch import micro_rows, pad
from common.grads import backward_each, combine, gram_matrix, has_gradient
from common.model import load_model, token_logprobs


def fresh(count: int, parameters: list) -> list:
    return [[None] * len(parameters) for _ in range(count)]


@pytest.fixture(scope="module")
def problem():
    """The testbed policy, a batch on it, three sets of advantages and a displaced reference."""
    policy = load_model("testbed", torch.device("cpu"))
    generator = torch.Generator().manual_seed(0)
    ids = [torch.randint(3, 20, (int(n),), generator=generator).tolist() for n in torch.randint(5, 40, (16,), generator=generator)]
    batch = pad([i[:4] for i in ids], ids, 0)
    with torch.no_grad():
        old = token_logprobs(policy, batch, 1.0) + 0.1 * torch.randn(batch.mask.shape, generator=generator)
    return policy, batch, torch.randn(3, 16, generator=generator), old


def terms(policy, batch, advantages, old, part=slice(None)):
    """The three objectives' clipped losses and the KL term, as fractions of the whole batch's tokens."""
    micro = batch.select(part)
    width = micro.mask.size(1)
    logp, tokens = token_logprobs(policy, micro, 1.0), batch.mask.sum()
    ratio = (logp - old[part, :width]).exp()
    losses = [policy_loss(ratio, a[part], 0.2, 0.2, 0.0) for a in advantages]
    return [(loss * micro.mask).sum() / tokens for loss in (*losses, kl_penalty(logp, old[part, :width]))]


def test_one_forward_pass_gives_the_gradients_of_separate_passes(problem):
    policy, batch, advantages, old = problem
    parameters = list(policy.parameters())
    gradients = fresh(4, parameters)
    parts = micro_rows(batch, torch.arange(16), 100)
    assert len(parts) > 3
    for part in parts:
        backward_each(terms(policy, batch, advantages, old, part), parameters, gradients)
    assert all(p.grad is None for p in parameters)
    for k in range(4):
        separate = torch.autograd.grad(terms(policy, batch, advantages, old)[k], parameters)
        scale = max(s.abs().max() for s in separate)
        assert scale > 1e-3
        for mine, theirs in zip(gradients[k], separate, strict=True):
            torch.testing.assert_close(mine, theirs, rtol=0, atol=1e-5 * float(scale))


def test_gram_matrix_and_weighted_sum_are_those_of_the_flat_gradients(problem):
    policy, batch, advantages, old = problem
    parameters = list(policy.parameters())
    gradients = fresh(3, parameters)
    backward_each(terms(policy, batch, advantages, old)[:3], parameters, gradients)
    flat = torch.stack([torch.cat([g.flatten() for g in each]) for each in gradients])
    torch.testing.assert_close(gram_matrix(gradients), flat.double() @ flat.double().T, rtol=1e-12, atol=0)
    combine(gradients, [0.5, -2.0, 3.0], parameters)
    written = torch.cat([p.grad.flatten() for p in parameters])
    torch.testing.assert_close(written, torch.tensor([0.5, -2.0, 3.0]) @ flat, rtol=1e-4, atol=1e-6)
    for p in parameters:
        p.grad = None


def test_a_parameter_that_no_loss_reaches_has_no_gradient():
    used, idle = nn.Parameter(torch.tensor([1.0, 2.0])), nn.Parameter(torch.tensor([3.0]))
    gradients = fresh(2, [used, idle])
    backward_each([used.sum(), (used**2).sum()], [used, idle], gradients)
    assert gram_matrix(gradients).tolist() == [[2, 6], [6, 20]]
    combine(gradients, [1.0, 1.0], [used, idle])
    assert idle.grad is None
    assert used.grad.tolist() == [3, 5]


def test_nearly_opposed_gradients_keep_their_difference():
    """In float32 the product of these two would be rounded to that of exactly opposed ones."""
    one = torch.tensor([1.0, 1e-5])
    gram = gram_matrix([[one], [torch.tensor([-1.0, 1e-5])]])
    assert float(torch.ones(2, dtype=torch.float64) @ gram @ torch.ones(2, dtype=torch.float64)) == pytest.approx(4e-10, rel=1e-5)


def test_an_objective_has_a_gradient_relative_to_the_largest():
    assert has_gradient(torch.diag(torch.tensor([1e-20, 1e-18, 0.0]).double())).tolist() == [True, True, False]
    assert has_gradient(torch.diag(torch.tensor([1.0, 1e-13, 1e-11]).double())).tolist() == [True, False, True]
    assert has_gradient(torch.zeros(3, 3).double()).tolist() == [False, False, False]
    assert has_gradient(torch.full((2, 2), torch.nan).double()).tolist() == [False, False]

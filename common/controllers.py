"""What every algorithm's controller has, and what a driver other than its script needs to know.

A controller is a class in its script's ALGO region. `state` is a dict of small tensors and numbers,
all that it remembers; `log` holds what it wants logged of the step, tensors [K] or numbers by name.
What else it has says of which kind it is. B completions, K objectives, a prompt's `group_size`
completions in adjacent rows; a reward that does not apply to a completion is NaN.

before the update, one of
    weights(rewards [B,K]) -> [K]      what the rewards are summed with
    advantages(rewards, lengths [B], group_size, estimator) -> ([B], [K])
                                       where they are no advantages of a sum; and weights to log
    follow(gram [K,K], lr) -> [K]      like `weights`, from the gradients of the whole batch
    weigh(gram [K,K]) -> [K]           once per mini-batch, of its gradients; after `see(rewards)`,
                                       once a step, where it has that
after the update, one of
    learn(rewards, measured [B], group_size)    what `measure(log_ratio [b,T], token_weight [b,T],
                                       advantages [b], clip_low, clip_high)` -> [b] finds of the
                                       completions that were trained on, under the new policy
    learn(rewards, drift [B], age [B], updates, group_size)    what the updates did to completions
                                       before they were trained on: see `first_order_change`
    reached(mean_rewards [K])          the means after the update: for a driver without log_ratio
The second kind of `learn` has a parameter `drift`. `controller(args, objectives, device)` of the
script makes one from its flags.
"""

import torch
from torch import Tensor


def remember(state: dict, **new: Tensor | int | list | None) -> None:
    """Put new values into a controller's state. Numbers that are not finite, after an overflow or
    of an objective that no completion has, leave what was there before."""
    for name, value in new.items():
        if isinstance(value, Tensor) and not value.isfinite().all():
            old = state[name]
            value = None if old is None else torch.where(value.isfinite(), value, old)
        state[name] = value


def within_prompt_covariance(completion_weight: Tensor, rewards: Tensor, group_size: int) -> Tensor:
    """Covariance law (arXiv 2602.06869, eq. 3): mean over prompts of the covariance, over their
    completions, of what the update weighs a completion with and of each reward; biased (1/G) as in
    the paper. completion_weight [B], rewards [B,K] -> [K]."""
    weight = completion_weight.view(-1, group_size, 1)
    reward = rewards.view(-1, group_size, rewards.size(1))
    products = (weight - weight.mean(1, keepdim=True)) * (reward - reward.nanmean(1, keepdim=True))
    return products.nanmean((0, 1))


def first_order_change(
    drift: Tensor, age: Tensor, advantages: Tensor, rewards: Tensor, group_size: int, updates: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Covariance law (arXiv 2602.06869, eq. 3) with what the step really did to log pi as its
    score: change of each mean reward [K]; nats per unit of advantage; sd in nats within prompts.

    drift [B]: log pi(y) of a completion when its mini-batch was reached, less that when it was
    sampled; age [B]: updates made in between, of `updates` in the step. At age 0 nothing had moved;
    the others had not been trained on either, so they tell how the policy moves on fresh
    completions. advantages [B], rewards [B,K]. All NaN where a step is a single mini-batch.
    """
    scaled, trained = (drift * updates / age)[:, None], age[:, None] == 0
    columns = torch.cat([scaled, advantages[:, None], rewards], 1).masked_fill(trained, torch.nan)
    groups = columns.view(-1, group_size, columns.size(1))
    centred = groups - groups.nanmean(1, keepdim=True)
    degrees = ((~groups.isnan()).sum(1) - 1).clamp(min=0).sum(0)  # of freedom, of each column
    covariance = (centred * centred[..., :1]).nansum((0, 1)) / degrees
    rate = covariance[1] / (centred[..., 1].square().nansum() / degrees[1]).clamp(min=1e-12)
    return covariance[2:], rate, covariance[0].sqrt()

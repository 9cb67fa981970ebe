"""The canary, stop tokens, and the division of work among ranks that needs no second process to be checked."""

from dataclasses import replace

import pytest
import torch
from transformers import GenerationConfig

from common import ranks
from common.batch import Sampled, micro_rows, pad
from common.errors import UserError
from common.model import load_model, token_logprobs
from common.rollout import Canary, TransformersEngine, stop_tokens
from support.running import read_metrics, train
from testbed.arithmetic import tokenizer

# --- the canary ---


def gaps(*values: float, limit: float = 0.1):
    canary = Canary(limit, torch.float32)
    return [canary.check(step, sampled_batch(step - 1, [v, -v, 99.0]), torch.zeros(1, 3)) for step, v in enumerate(values, 1)]


def sampled_batch(version: int, logp: list[float]):
    """One completion of two tokens and padding, with the sampler's log-probabilities."""
    batch = replace(pad([[5]], [[6, 7, 8]], 0), mask=torch.tensor([[1.0, 1.0, 0.0]]))
    return replace(batch, sampled=Sampled([[6, 7]], ["a"], {}, torch.tensor([logp]), version, 0.0))


def test_the_gap_is_a_mean_over_tokens_and_two_in_a_row_stop_the_run():
    rows = gaps(0.05, 0.2, 0.05, 0.2, 0.0)
    assert [row["sampler/gap"] for row in rows] == pytest.approx([0.05, 0.2, 0.05, 0.2, 0.0])
    assert rows[1]["sampler/gap_max"] == pytest.approx(0.2)
    assert rows[1]["sampler/version"] == 1
    with pytest.raises(UserError, match=r"step 3: .*0.3 nats.*--max-logp-gap 0.1.*old weights.*prefix cache.*temperature"):
        gaps(0.0, 0.2, 0.3)
    with pytest.raises(UserError, match="step 2"):
        gaps(float("nan"), float("nan"))


def test_weights_of_another_step_are_refused_at_once():
    with pytest.raises(RuntimeError, match="weights of step 3, not of step 4"):
        Canary(1.0, torch.float32).check(5, sampled_batch(3, [0.0, 0.0, 0.0]), torch.zeros(1, 3))


def test_a_sampler_with_stale_weights_is_stopped(tmp_path, monkeypatch):
    """The engine keeps the weights of the start and claims to have the new ones."""

    def pretend(self, model, version):
        self.model, self.version = self.model or load_model("testbed", torch.device("cpu")), version

    healthy = train("linear", tmp_path / "healthy", lr=1e-3)
    assert max(row["sampler/gap"] for row in healthy[1:]) < 1e-5
    assert [row["sampler/version"] for row in healthy[1:]] == [0, 1, 2]
    monkeypatch.setattr(TransformersEngine, "sync", pretend)
    with pytest.raises(UserError, match="step 3: the sampler's log-probabilities"):
        train("linear", tmp_path / "stale", lr=1e-3, steps=5)
    assert [row["sampler/gap"] > 0.01 for row in read_metrics(tmp_path / "stale")[1:]] == [False, True]


def test_a_wider_limit_lets_it_run(tmp_path, monkeypatch):
    monkeypatch.setattr(Canary, "check", lambda self, *rest: {"sampler/gap": self.limit, "sampler/gap_max": 0.0, "sampler/version": 0})
    assert train("linear", tmp_path / "a", steps=1)[1]["sampler/gap"] == 1e-3
    assert train("linear", tmp_path / "b", steps=1, max_logp_gap=7.0)[1]["sampler/gap"] == 7.0


# --- truncated importance sampling ---


def test_tis_weighs_tokens_by_the_truncated_ratio(tmp_path, monkeypatch):
    """A sampler that reports log-probabilities .5 too high: every token's weight is e^-.5; a cap below that is the weight."""
    plain = train("linear", tmp_path / "plain", steps=1, mini_batches=1, kl_coef=0.0)[1]
    exact = train("linear", tmp_path / "exact", steps=1, mini_batches=1, kl_coef=0.0, tis_cap=2.0)[1]
    assert exact["grad/norm"] == pytest.approx(plain["grad/norm"], rel=1e-5)  # the two agree, so every weight is 1
    generate = TransformersEngine.generate

    def shifted(self, *rest):
        ids, logprobs = generate(self, *rest)
        return ids, [[value + 0.5 for value in row] for row in logprobs]

    monkeypatch.setattr(TransformersEngine, "generate", shifted)
    for cap, factor in ((2.0, 0.60653), (0.25, 0.25)):
        flags = {"steps": 1, "mini_batches": 1, "kl_coef": 0.0, "tis_cap": cap, "max_logp_gap": 9.0}
        for name in ("linear", "mgda"):
            off = plain if name == "linear" else train(name, tmp_path / f"{name}-{cap}-off", **(flags | {"tis_cap": 0.0}))[1]
            row = train(name, tmp_path / f"{name}-{cap}", **flags)[1]
            assert row["grad/norm"] == pytest.approx(factor * off["grad/norm"], rel=1e-3)


# --- stop tokens ---


def test_stop_tokens_are_the_tokenizers_and_the_generation_configs(tmp_path):
    assert stop_tokens("testbed", tokenizer()) == {1}
    from transformers import LlamaConfig

    LlamaConfig(vocab_size=72, eos_token_id=5).save_pretrained(tmp_path)
    assert stop_tokens(str(tmp_path), tokenizer()) == {1, 5}  # without a generation config
    GenerationConfig(eos_token_id=[7, 9]).save_pretrained(tmp_path)
    assert stop_tokens(str(tmp_path), tokenizer()) == {1, 7, 9}


# --- micro-batches ---


@pytest.fixture
def sized():
    """16 completions of 5 to 60 tokens for 4 prompts."""
    lengths = torch.randint(5, 60, (16,), generator=torch.Generator().manual_seed(1)).tolist()
    ids = [torch.randint(3, 70, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in lengths]
    return pad([[5, 6, 7]] * 16, ids, 0)


def test_gradients_do_not_depend_on_the_division(sized):
    """1 x 16 = 16 x 1 = by budget, to 1e-6 of the largest entry, when losses are fractions of all tokens."""
    policy, advantages = load_model("testbed", torch.device("cpu")), torch.randn(16, generator=torch.Generator().manual_seed(0))
    seen = []
    for budget in (10**6, 1, 150):
        policy.zero_grad()
        parts = micro_rows(sized, torch.arange(16), budget)
        for part in parts:
            micro = sized.select(part)
            (advantages[part, None] * token_logprobs(policy, micro, 1.0) * micro.mask).sum().div(sized.mask.sum()).backward()
        seen.append((len(parts), torch.cat([p.grad.flatten() for p in policy.parameters()])))
    assert [count for count, _ in seen][:2] == [1, 16]
    assert 2 < seen[2][0] < 10
    for _, gradient in seen[1:]:
        torch.testing.assert_close(gradient, seen[0][1], rtol=0, atol=1e-6 * float(seen[0][1].abs().max()))


@pytest.mark.parametrize("budget", [1, 70, 150, 10**6])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ranks_share_the_rows_and_take_equally_many_micro_batches(sized, count, budget, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: count)
    rows = torch.tensor([4, 5, 6, 7, 12, 13, 14, 15])  # two prompts of four completions
    found = []
    for rank in range(count):
        monkeypatch.setattr(ranks, "rank", lambda rank=rank: rank)
        found.append(micro_rows(sized, rows, budget))
    assert len({len(parts) for parts in found}) == 1
    assert sorted(torch.cat([part for parts in found for part in parts]).tolist()) == sorted(rows.tolist())
    for rank, parts in enumerate(found):
        own = set(torch.cat(parts).tolist())
        each = len(rows) // count  # whole prompts where there are enough
        assert own == set(rows[each * rank : each * (rank + 1)].tolist())
        for part in parts:
            micro = sized.select(part)
            assert len(part) == 1 or (micro.prompts.size(1) + micro.completions.size(1)) * len(part) <= budget


def test_length_sorting_leaves_little_padding(sized):
    """A budget of four mean completions: under a fifth of the tokens is padding, where the batch as it comes has about half."""
    real = float(sized.mask.sum() + sized.prompt_mask.sum())
    padded = sum(m.prompts.numel() + m.completions.numel() for m in map(sized.select, micro_rows(sized, torch.arange(16), 160)))
    assert 1 - real / padded < 0.2
    assert 1 - real / (sized.prompts.numel() + sized.completions.numel()) > 0.35


def test_every_rank_needs_a_row(sized, monkeypatch):
    monkeypatch.setattr(ranks, "count", lambda: 4)
    with pytest.raises(ValueError, match="3 rows cannot be divided"):
        micro_rows(sized, torch.arange(3), 100)


# --- what ranks do together ---


def test_shares_are_contiguous_even_and_complete():
    for things in (0, 1, 7, 8, 100):
        for shares in (1, 2, 3, 8):
            parts = [list(range(things))[ranks.share(things, i, shares)] for i in range(shares)]
            assert [x for part in parts for x in part] == list(range(things))
            assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_one_process_needs_no_group():
    assert (ranks.rank(), ranks.count()) == (0, 1)
    assert ranks.together(lambda: 3) == [3]
    assert ranks.on_first(lambda: "x") == "x"
    tensor = torch.ones(2)
    assert ranks.all_sum(tensor).tolist() == [1, 1]
    assert ranks.all_sum(tensor) is not tensor
    with pytest.raises(UserError, match="no"):
        ranks.together(lambda: (_ for _ in ()).throw(UserError("no")))

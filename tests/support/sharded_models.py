"""Checks of sharded models, run by tests/plumbing/test_models.py as `torchrun --nproc_per_node 2 tests/support/sharded_models.py FOLDER`.

FOLDER holds tiny random checkpoints; every line printed by rank 0 is a JSON object that the test judges.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch.distributed.tensor import DTensor

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from common import batch as batches  # noqa: E402
from common import ranks  # noqa: E402
from common.batch import micro_rows, pad  # noqa: E402
from common.grads import backward_each, clip_gradients, combine, gram_matrix  # noqa: E402
from common.model import full_parameters, load_model, load_tokenizer, load_whole, token_logprobs, token_logprobs_no_grad  # noqa: E402
from common.rollout import TransformersEngine, sample  # noqa: E402
from integrations.export import export  # noqa: E402

CPU = torch.device("cpu")


def gap(one: torch.Tensor, other: torch.Tensor) -> float:
    return (one - other).abs().max().item()


def digest(policy: torch.nn.Module) -> int:
    """Of all float32 weights, to the last bit."""
    return sum(int(tensor.view(torch.int32).long().sum()) for _, tensor in full_parameters(policy, torch.float32))


def check(folder: Path, name: str, compute: torch.dtype, checkpointing: bool, prompts_once: bool) -> dict:
    """Load, shard, roll out, take K gradients and a step, export, reload; what came out, for the parent to judge."""
    path, tokenizer = str(folder / name), load_tokenizer("testbed")
    policy = load_model(path, CPU, compute=compute, activation_checkpointing=checkpointing)
    plain = load_whole(path, CPU, dtype=torch.float32)
    engine = TransformersEngine(path, tokenizer, CPU, compute)
    engine.sync(policy, 0)
    prompts = [[5, 9, 30], [7, 8], [40, 41, 42, 43], [9]]
    rollout = sample(engine, prompts, 4, 12, 0.8, [1, 2, 3, 4])
    batch = pad([p for p in prompts for _ in range(4)], rollout.ids, 0)
    apart, shared = batch, torch.arange(4).repeat_interleave(4) if prompts_once else None
    batch = replace(batch, prompt_of=shared)
    reported = torch.tensor([row + [0.0] * (batch.mask.size(1) - len(row)) for row in rollout.logprobs])
    sharded, whole = token_logprobs_no_grad(policy, batch, 0.8, 60), token_logprobs(plain, apart, 0.8).detach()
    found = {"sampler": gap(sharded, reported), "forward": gap(sharded, whole), "digest": digest(policy)}

    def losses(model, part):
        micro = (apart if model is plain else batch).select(part)
        logp = token_logprobs(model, micro, 0.8)
        return [(a[part, None] * logp * micro.mask).sum() / batch.mask.sum() for a in advantages]

    advantages = torch.randn(3, 16, generator=torch.Generator().manual_seed(0))
    everything = [torch.autograd.grad(loss, list(plain.parameters()), retain_graph=True) for loss in losses(plain, torch.arange(16))]
    expected = torch.stack([torch.cat([g.flatten() for g in each]) for each in everything]).double()
    parameters = list(policy.parameters())
    gradients = [[None] * len(parameters) for _ in range(3)]
    parts = micro_rows(batch, torch.arange(16), 60)
    for part in parts:
        backward_each(losses(policy, part), parameters, gradients)
    gram = gram_matrix(gradients)
    found |= {"gram": gap(gram, expected @ expected.T) / (expected @ expected.T).diagonal().max().item(), "parts": len(parts)}
    found["sharded"] = all(isinstance(g, DTensor) and g.to_local().numel() < g.numel() for each in gradients for g in each if g.numel() > 2)
    found["held"] = sum(g.to_local().numel() for g in gradients[0]) / sum(g.numel() for g in gradients[0])
    combine(gradients, [0.2, 0.3, 0.5], parameters)
    weighted = torch.tensor([0.2, 0.3, 0.5]).double() @ expected
    norm = clip_gradients(parameters, 1e9)
    found["norm"] = abs(norm / weighted.norm().item() - 1)
    torch.optim.AdamW(parameters, lr=3e-2).step()
    found["masters"] = all(p.dtype == torch.float32 for p in parameters)
    stale = gap(token_logprobs_no_grad(policy, batch, 0.8, 60), sharded)
    engine.sync(policy, 1)
    again = sample(engine, prompts, 4, 12, 0.8, [1, 2, 3, 4])
    batch = replace(pad([p for p in prompts for _ in range(4)], again.ids, 0), prompt_of=shared)
    reported = torch.tensor([row + [0.0] * (batch.mask.size(1) - len(row)) for row in again.logprobs])
    trained = token_logprobs_no_grad(policy, batch, 0.8, 60)
    found |= {"moved": stale, "synced": gap(trained, reported), "version": again.version}
    out = folder / f"{name}-out"
    export(policy, tokenizer, out, compute)
    reloaded = load_whole(str(out), CPU, dtype=compute)
    found["reloaded"] = gap(token_logprobs(reloaded, replace(batch, prompt_of=None), 0.8).detach().float(), trained)
    tied = reloaded.get_output_embeddings().weight is reloaded.get_input_embeddings().weight
    found |= {"tied": tied, "names": len(list(full_parameters(policy, compute)))}
    return found


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    batches.SHARE = 0  # these prompts are short
    ranks.start(single=False)
    for name in sorted(p.name for p in folder.iterdir() if p.is_dir()):
        for compute in (torch.float32, torch.bfloat16):
            exact = compute == torch.float32  # the ways differ in no dtype
            for how in ({}, {"checkpointing": True}, {"prompts_once": True}) if exact else ({},):
                found = check(folder, name, compute, **{"checkpointing": False, "prompts_once": False} | how)
                if ranks.rank() == 0:
                    print(json.dumps({"model": name, "compute": str(compute)} | how | found), flush=True)
    ranks.stop()


if __name__ == "__main__":
    main(Path(sys.argv[1]))

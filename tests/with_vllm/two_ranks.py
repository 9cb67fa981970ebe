"""Run by test_engine.py under torchrun: python two_ranks.py FOLDER TENSOR_PARALLEL RESULT. Every
rank has an engine and half the policy."""

import json
import os
import sys
from pathlib import Path

import torch
from torch.distributed.fsdp import fully_shard

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE.parents[1]), str(HERE)]
from sampled import disturbed, gap, prompts, start  # noqa: E402

from common import ranks  # noqa: E402


def main(folder: str, tensor_parallel: int, result: Path) -> None:
    from transformers import AutoModelForCausalLM

    ranks.start(single=True)
    engine = start(folder, vllm_tp=tensor_parallel)
    base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    trained = disturbed(base)
    sharded = fully_shard(disturbed(base))
    engine.sync(base, 0)
    index, shares = engine.share
    own = prompts(12)[ranks.share(12, index, shares)]  # different prompts on different engines
    stale = gap(engine, trained, own)
    engine.sync(sharded, 1)
    found = gap(engine, trained, own)
    ids = engine.generate(prompts(3), 2, 24, 1.0, [7, 8, 9])[0]  # the same on all
    every = ranks.together(
        lambda: (list(engine.share), stale, found, ids, os.environ["LOCAL_WORLD_SIZE"])
    )
    if ranks.rank() == 0:
        names, columns = ("shares", "stale", "gaps", "ids", "local"), list(zip(*every, strict=True))
        outcome = dict(zip(names, columns, strict=True))
        result.write_text(json.dumps(outcome | {"same": outcome["ids"][0] == outcome["ids"][1]}))
    ranks.stop()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), Path(sys.argv[3]))

"""Sampling with vLLM in the trainer's processes (`--engine vllm`). Written for vLLM 0.32."""

import atexit
import gc
import math
import os

import torch
from torch import nn

from common import ranks
from common.batch import Completions
from common.errors import UserError, first_line, require, told_as
from common.model import full_parameters

SEEDS = 2**62  # vLLM adds a completion's number to the seed, and stores 64 bits with a sign


class VLLMEngine:
    """The `Engine` (common/rollout.py) of a rank, or of --vllm-tp neighbouring ranks, which sample
    the same prompts together."""

    prompts_once = False

    def __init__(self, args, model: str, stop_ids: set[int], max_length: int, dtype) -> None:
        """Start it, before a policy is loaded. Collective; one per process.

        args: the run's flags. model: a folder or a hub name. max_length: of a prompt with its
        completion, in tokens. dtype: of the weights that sync() brings. Raises UserError.
        """
        cuda, size = torch.cuda.is_available(), args.vllm_tp
        local = int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count()))
        divides = size >= 1 and ranks.count() % size == 0 and local % size == 0
        require(divides, f"--vllm-tp {size} must divide the ranks, and those of a node")
        require(cuda or not args.vllm_sleep, "--vllm-sleep gives back a GPU's memory: leave it out")
        self.device = torch.device("cpu")
        if cuda:
            self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
        with told_as("--engine vllm needs vLLM", ": pip install -r requirements-vllm.txt"):
            from vllm import LLM
        if not cuda:
            from vllm import _custom_ops

            # or linear layers keep a packed copy of the first weights, which no sync reaches
            _custom_ops._supports_onednn = False
        try:
            self.llm = LLM(
                model,
                dtype=dtype,
                max_model_len=max_length,
                tensor_parallel_size=size,
                distributed_executor_backend="external_launcher",  # in this process
                gpu_memory_utilization=args.vllm_memory,
                kv_cache_memory_bytes=None if cuda else 2**30,
                enforce_eager=not cuda,
                enable_sleep_mode=args.vllm_sleep,
                logprobs_mode="processed_logprobs",  # after the temperature
                generation_config="vllm",  # not the model's, with its top-p and top-k
                load_format="safetensors",  # a pickled checkpoint runs code when it is loaded
                use_tqdm_on_load=False,
                skip_tokenizer_init=True,
                trust_remote_code=args.trust_remote_code,
                seed=args.seed % 2**32,  # vLLM seeds the global generators with it
            )
        except ValueError as error:
            told = f"--engine vllm could not start with --model {model}: {first_line(error)}"
            raise UserError(told) from error
        finally:
            os.environ["LOCAL_WORLD_SIZE"] = str(local)  # on a CPU vLLM overwrites it
        # at exit it would leave process groups that have ended
        self.llm.llm_engine.engine_core._finalizer.detach()
        atexit.register(gc.unfreeze)  # which it would have done as well
        self.stop_ids, self.dtype, self.version = stop_ids, dtype, -1
        self.share = (ranks.rank() // size, ranks.count() // size)
        self.sleeps, self.asleep = args.vllm_sleep, set()
        self._sleep(level=2)  # the weights it read are never sampled from: keep no copy

    def sync(self, model: nn.Module, version: int) -> None:
        """Take the trainer's weights, one whole parameter at a time. Collective."""
        self.version = -1
        self._wake("weights")  # not yet the cache: there is room for whole parameters
        weights = {"weights_iterator": full_parameters(model, self.dtype)}
        self.llm.collective_rpc("reload_weights", kwargs=weights | {"is_checkpoint_format": True})
        if not self.llm.reset_prefix_cache():
            raise RuntimeError("vLLM kept its prefix cache of the old weights")
        self.version = version

    def generate(
        self, prompts: list, completions: int, max_new_tokens: int, temperature: float, seeds: list
    ) -> Completions:
        """Token lists and the log-probabilities of their tokens at this temperature (at 0, greedy,
        those at 1)."""
        if not prompts:
            return [], []
        from vllm import SamplingParams

        self._wake("weights", "kv_cache")
        fixed: dict = {"temperature": temperature, "max_tokens": max_new_tokens, "logprobs": 0}
        fixed |= {"stop_token_ids": sorted(self.stop_ids), "ignore_eos": True, "detokenize": False}
        drawn = completions if temperature > 0 else 1  # vLLM refuses several greedy completions
        requests = [SamplingParams(n=drawn, seed=seed % SEEDS, **fixed) for seed in seeds]
        given = [{"prompt_token_ids": prompt} for prompt in prompts]
        outputs = self.llm.generate(given, requests, use_tqdm=False)
        self._sleep(level=1)  # the weights to host memory: they may be sampled from again
        written = [c for output in outputs for c in output.outputs * (completions // drawn)]
        logprobs = [
            [at[token].logprob for token, at in zip(c.token_ids, c.logprobs, strict=True)]
            for c in written
        ]
        finite = all(math.isfinite(value) for row in logprobs for value in row)
        require(finite, "the model's logits are not finite: lower --lr or check --model")
        return [list(c.token_ids) for c in written], logprobs

    def _sleep(self, level: int) -> None:
        """Give back the cache's memory, and the weights' to the host (1) or to nowhere (2)."""
        if self.sleeps:
            self.llm.sleep(level=level)
            self.asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        """Take memory for these parts again, in this order, where they sleep."""
        for part in parts:
            if part in self.asleep:
                self.llm.wake_up(tags=[part])
                self.asleep.remove(part)

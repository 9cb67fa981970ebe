"""Sampling with vLLM, which lives in the trainer's processes and takes over its weights after every update (`--engine vllm`)."""

import atexit
import gc
import math
import os

import torch
from torch import nn

from common import ranks
from common.errors import UserError, require
from common.model import full_parameters

SEEDS = 2**62  # vLLM gives completion g of a prompt the seed + g and stores it in 64 bits with a sign, where a 63-bit seed may not fit


class VLLMEngine:
    """One vLLM engine per rank, or per `tensor_parallel` neighbouring ranks, which then sample the same prompts together.

    stop_ids: the tokens that end a completion. version: of the weights it samples with, -1 while it has none of the trainer's.
    share: which share of the prompts this rank samples, and of how many. Written for vLLM 0.32; see vLLM's docs on RLHF and sleep mode.
    """

    prompts_once = False  # until `check_architecture` has found that the policy can

    def __init__(
        self,
        model: str,
        stop_ids: set[int],
        max_length: int,
        dtype: torch.dtype,
        seed: int,
        tensor_parallel: int,
        memory: float,
        sleep: bool,
        trust_remote_code: bool,
    ) -> None:
        """Start the engine; collective: every rank calls it after ranks.start(single=True), best before it loads a model of its own.

        model: a folder with config.json and safetensors, or a hub name. max_length: of a prompt with its completion, in tokens, cut to the
        positions that the model has. dtype: of the weights that sync() will bring. memory: the share of a GPU's memory that weights and
        cache may take. sleep: give that memory back after every generate(). One engine per process. Raises UserError naming the flag, also
        for what vLLM refuses, and if vLLM is not installed.
        """
        require(not model.endswith(".gguf"), f"--engine vllm does not take the GGUF file {model}; take --engine transformers")
        cuda, local = torch.cuda.is_available(), int(os.environ.get("LOCAL_WORLD_SIZE", ranks.count()))
        self.device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0))) if cuda else torch.device("cpu")  # as ranks.start has it
        for size, of in ((ranks.count(), "ranks"), (local, "ranks of a node")):
            require(tensor_parallel >= 1 and size % tensor_parallel == 0, f"--vllm-tp {tensor_parallel} must divide the {size} {of}")
        require(cuda or not sleep, "--vllm-sleep gives back the memory of a GPU, and there is none: leave it out")
        os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")  # its warnings name, at every sync, layers that have no weights of their own
        os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")  # a training run reports to nobody unless asked to
        try:
            from vllm import LLM
        except ImportError as error:
            raise UserError("--engine vllm needs vLLM: pip install -r requirements-vllm.txt (Linux with CUDA)") from error
        if not cuda:
            from vllm import _custom_ops

            # or linear layers keep a packed copy of the first weights, and reload_weights, silently, does not reach it
            _custom_ops._supports_onednn = False
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(model, trust_remote_code=trust_remote_code).get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or max_length  # none where the architecture has no bound
        self.max_length = min(max_length, positions)  # vLLM refuses to start with more
        try:
            self.llm = LLM(
                model,
                dtype=dtype,
                max_model_len=self.max_length,
                tensor_parallel_size=tensor_parallel,
                distributed_executor_backend="external_launcher",  # in this process: sync() hands tensors over and copies no pickles
                gpu_memory_utilization=memory,
                kv_cache_memory_bytes=None if cuda else 2**30,  # on a CPU a share of all memory would be taken from everything else
                enforce_eager=not cuda,
                enable_sleep_mode=sleep,
                logprobs_mode="processed_logprobs",  # of the distribution that is sampled, so after the temperature
                generation_config="vllm",  # not the model's, whose top-p and top-k would sample from another distribution
                load_format="safetensors",  # a pickled checkpoint runs code when it is loaded
                use_tqdm_on_load=False,
                skip_tokenizer_init=True,
                trust_remote_code=trust_remote_code,
                seed=seed % 2**32,  # vLLM seeds Python's, NumPy's and torch's global generators with it: the same on every rank
            )
        except ValueError as error:
            message = " ".join(str(error).split())
            raise UserError(f"--engine vllm could not start with --model {model} and --vllm-memory {memory}: {message}") from error
        finally:
            os.environ["LOCAL_WORLD_SIZE"] = str(local)  # on a CPU vLLM overwrites it with tensor_parallel
        self.llm.llm_engine.engine_core._finalizer.detach()  # at exit it would leave process groups that ranks.stop() has ended
        atexit.register(gc.unfreeze)  # which it would have done as well: what vLLM froze would be reported as leaked, in a page of lines
        self.stop_ids, self.dtype, self.version = stop_ids, dtype, -1
        self.share = (ranks.rank() // tensor_parallel, ranks.count() // tensor_parallel)
        self.sleeps, self.asleep = sleep, set()
        self._sleep(level=2)  # the weights it read are never sampled from: keep no copy

    def sync(self, model: nn.Module, version: int) -> None:
        """Take the trainer's weights, one whole parameter at a time. Collective, because making a sharded parameter whole is.

        Any exception leaves the engine half loaded and must end the run. Raises RuntimeError if the prefix cache, with its keys and values
        of the old weights, was not emptied.
        """
        self.version = -1
        self._wake("weights")  # not yet the cache: until it wakes there is room for whole parameters
        weights = {"weights_iterator": full_parameters(model, self.dtype), "is_checkpoint_format": True}
        self.llm.collective_rpc("reload_weights", kwargs=weights)
        if not self.llm.reset_prefix_cache():
            raise RuntimeError(f"vLLM kept its prefix cache while it took the weights of step {version}: a request is still running")
        self.version = version

    def generate(
        self, prompts: list[list[int]], completions: int, max_new_tokens: int, temperature: float, seeds: list[int]
    ) -> tuple[list[list[int]], list[list[float]]]:
        """Sample `completions` token lists for each prompt: prompt by prompt, adjacent, each ending with its stop token if it reached one.

        prompts: token ids, the same on all ranks of one engine. seeds: one per prompt, from 0 to 2^63 - 1. Returns the completions and the
        log-probability of each of their tokens at this temperature. Temperature 0 is greedy: a prompt's completions are the same, and the
        log-probabilities are those of temperature 1. Raises UserError if the model's logits are not finite, or if a completion might not
        fit in max_length, where vLLM would cut it without a word, and RuntimeError if sync() never brought weights.
        """
        if self.version < 0:
            raise RuntimeError("the vLLM engine has no weights of the trainer: call sync() before generate()")
        if not prompts:
            return [], []
        longest, fits = max(map(len, prompts)), f"do not fit in the {self.max_length} positions of the model, or of vLLM"
        require(longest + max_new_tokens <= self.max_length, f"a prompt of {longest} tokens and --max-new-tokens {max_new_tokens} {fits}")
        from vllm import SamplingParams

        self._wake("weights", "kv_cache")
        fixed = {"temperature": temperature, "max_tokens": max_new_tokens, "logprobs": 0, "detokenize": False}
        fixed |= {"stop_token_ids": sorted(self.stop_ids), "ignore_eos": True}  # exactly these stop; 0 log-probs beside the token's own
        drawn = completions if temperature > 0 else 1  # vLLM refuses several greedy completions
        requests = [SamplingParams(n=drawn, seed=seed % SEEDS, **fixed) for seed in seeds]
        outputs = self.llm.generate([{"prompt_token_ids": p} for p in prompts], requests, use_tqdm=False)
        self._sleep(level=1)  # the weights go to host memory, for they may be sampled from again: evaluation, then the next step
        written = [c for output in outputs for c in output.outputs * (completions // drawn)]
        logprobs = [[at[token].logprob for token, at in zip(c.token_ids, c.logprobs, strict=True)] for c in written]
        if not all(map(math.isfinite, (value for row in logprobs for value in row))):
            raise UserError("the model's logits are not finite: the weights have diverged or are broken; lower --lr or check --model")
        return [list(c.token_ids) for c in written], logprobs

    def _sleep(self, level: int) -> None:
        """Give the GPU's memory back, if that is wanted: the cache, and the weights to host memory (level 1) or to nowhere (2)."""
        if self.sleeps:
            self.llm.sleep(level=level)
            self.asleep = {"weights", "kv_cache"}

    def _wake(self, *parts: str) -> None:
        """Take memory for these parts again, in this order; vLLM warns about a part that is awake, so only those that sleep."""
        for part in parts:
            if part in self.asleep:
                self.llm.wake_up(tags=[part])
                self.asleep.remove(part)

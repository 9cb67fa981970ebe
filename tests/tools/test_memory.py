"""The memory formula against real models, tensors and files, and the laws it must obey."""

from dataclasses import asdict, replace

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tools.memory import PHASES, Setup, Shape, layer_activations, peak, readable, shape_of, terms
from tools.presets import PAPERS
from common.batch import pad
from common.checkpoint import save_checkpoint
from common.grads import backward_each, combine
from common.model import load_model, load_tokenizer, token_logprobs
from integrations.export import export
from testbed.arithmetic import base_path

SMALL = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 176, "num_hidden_layers": 3, "num_attention_heads": 8}
SMALL |= {"num_key_value_heads": 2, "max_position_embeddings": 512}
KINDS = [("llama", {}), ("qwen2", {}), ("qwen3", {"head_dim": 16}), ("qwen2", {"tie_word_embeddings": True}), ("mistral", {})]
# of the presets' models, from their config.json on the hub, with the numbers of parameters on their pages there
REAL = {
    "Qwen/Qwen2.5-1.5B": ("qwen2", 151936, 1536, 8960, 28, 12, 2, True, 1.543714304e9),
    "Qwen/Qwen3-1.7B-Base": ("qwen3", 151936, 2048, 6144, 28, 16, 8, True, 1.720574976e9),
    "HuggingFaceTB/SmolLM2-1.7B": ("llama", 49152, 2048, 8192, 24, 32, 32, True, 1.711376384e9),
    "Qwen/Qwen2.5-7B": ("qwen2", 152064, 3584, 18944, 28, 28, 4, False, 7.615616512e9),
}
GIB = 2**30


def named(shape: Shape, setup: Setup) -> dict[str, int]:
    found = terms(shape, setup)
    assert len({term.name for term in found}) == len(found)
    return {term.name: term.bytes for term in found}


def real_shape(model: str) -> tuple[Shape, float]:
    *sizes, tied, parameters = REAL[model]
    keys = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    kind, *sizes = sizes
    more = {"head_dim": 128} if kind == "qwen3" else {}
    config = AutoConfig.for_model(kind, **dict(zip(keys, sizes, strict=True)), **more, tie_word_embeddings=tied, dtype="bfloat16")
    return shape_of(config), parameters


def size(tensors) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


@pytest.fixture
def testbed() -> tuple[torch.nn.Module, Shape]:
    return load_model("testbed", torch.device("cpu")), shape_of(AutoConfig.from_pretrained(base_path("fragile")))


def losses(model, count: int) -> list[torch.Tensor]:
    logp = token_logprobs(model, pad([[3, 4, 5], [6, 7]], [[8, 9], [10, 11, 12]], 0), 1.0)
    return [(logp * k).sum() for k in range(1, count + 1)]


# --- counts ---


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_counts_of_real_models(kind, more):
    config = AutoConfig.for_model(kind, **SMALL | more)
    model = AutoModelForCausalLM.from_config(config)
    shape = shape_of(config)
    assert shape.parameters == sum(p.numel() for p in model.parameters())
    assert shape.layer == sum(p.numel() for p in model.model.layers[0].parameters())
    assert shape.root == shape.parameters - 3 * shape.layer
    assert shape.root == 64 * 64 * (1 if config.tie_word_embeddings else 2) + 64  # embeddings and the last norm
    assert (shape.layers, shape.hidden, shape.heads, shape.kv_heads, shape.vocab) == (3, 64, 8, 2, 64)


@pytest.mark.parametrize("model", REAL)
def test_counts_of_the_presets_models_without_their_weights(model):
    shape, parameters = real_shape(model)
    assert shape.parameters == parameters
    assert shape.stored == 2
    assert {values["model"].removesuffix("-Instruct") for values in PAPERS.values()} == REAL.keys()


# --- what is measured ---


def test_what_is_kept_between_steps_is_exact(testbed):
    model, shape = testbed
    said = named(shape, Setup())
    optimizer = torch.optim.AdamW(model.parameters())
    losses(model, 1)[0].backward()
    optimizer.step()
    state = optimizer.state.values()
    assert said["weights"] == size(model.parameters())
    assert said["gradients"] == size(p.grad for p in model.parameters())
    assert said["AdamW m"] == size(s["exp_avg"] for s in state)
    assert said["AdamW v"] == size(s["exp_avg_sq"] for s in state)
    assert said["reference"] == size(load_model("testbed", torch.device("cpu"), frozen=True).parameters())


@pytest.mark.parametrize(("K", "kl"), [(2, True), (3, True), (3, False)])
def test_gradients_of_an_algorithm_that_weighs_them(testbed, K, kl):
    model, shape = testbed
    parameters = list(model.parameters())
    gradients = [[None] * len(parameters) for _ in range(K + kl)]
    backward_each(losses(model, K + kl), parameters, gradients)
    combine(gradients, [1.0] * len(gradients), parameters)
    tensors = {id(g): g for one in gradients for g in one} | {id(p.grad): p.grad for p in parameters}  # the sum is one of them
    held = size(tensors.values())
    assert named(shape, Setup(gradients=K, kl=kl))["gradients"] == held


def test_files(testbed, tmp_path):
    model, shape = testbed
    optimizer = torch.optim.AdamW(model.parameters())
    losses(model, 1)[0].backward()
    optimizer.step()
    said = named(shape, Setup())
    save_checkpoint(tmp_path, 1, model, optimizer, {})
    export(model, load_tokenizer("testbed"), tmp_path / "model")
    checkpoint = sum(file.stat().st_size for file in (tmp_path / "checkpoints").rglob("*") if file.is_file())
    heads = 4 * len(list(model.parameters())) * 4096  # of each tensor in the file: weight, m, v and the step
    assert said["checkpoints"] <= 3 * checkpoint <= said["checkpoints"] + 3 * heads
    assert named(shape, Setup(keep_safe=True))["checkpoints"] == said["checkpoints"] * 4 / 3
    assert (tmp_path / "model" / "model.safetensors").stat().st_size == pytest.approx(said["exported model"], rel=0.02)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_activations_are_estimated_on_the_safe_side(kind, more, dtype):
    config = AutoConfig.for_model(kind, **SMALL | more)
    ids, mask = torch.randint(0, 64, (4, 64)), torch.ones(4, 64, dtype=torch.long)
    mask[0, :5] = 0

    def kept(layers: int) -> int:
        model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
        model.model.layers = model.model.layers[:layers]
        own, storages = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

        def pack(tensor):
            storages[tensor.untyped_storage().data_ptr()] = tensor  # alive, so that no other storage gets its place
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            model.base_model(ids, attention_mask=mask, use_cache=False)
        return sum(tensor.untyped_storage().nbytes() for place, tensor in storages.items() if place not in own)

    measured = (kept(3) - kept(1)) / 2 / ids.numel()
    assert 0.7 < measured / layer_activations(shape_of(config), dtype.itemsize) <= 1


def test_key_value_cache(testbed):
    model, shape = testbed
    cache = model(torch.ones(6, 20, dtype=torch.long), use_cache=True).past_key_values
    measured = size(tensor for layer in cache.layers for tensor in (layer.keys, layer.values))
    setup = Setup(prompts=2, completions=3, max_prompt_length=15, max_new_tokens=5)
    assert named(shape, setup)["key-value cache"] == measured


# --- laws ---


@pytest.mark.parametrize("gradients", [1, 3])
def test_what_is_sharded_goes_with_one_over_the_ranks(gradients):
    shape, _ = real_shape("Qwen/Qwen2.5-1.5B")
    one, four = (named(shape, Setup(ranks=W, sharded=True, compute_bytes=2, gradients=gradients)) for W in (1, 4))
    for name in ("weights", "AdamW m", "AdamW v", "gradients", "reference", "key-value cache"):
        assert one[name] == pytest.approx(4 * four[name], rel=1e-6)
    for name in ("gathered groups", "gathered gradient", "logits", "sampler", "checkpoints", "exported model"):
        assert one[name] == four[name]
    assert one["loading"] == four["loading"]  # per node, and both have one rank here
    assert named(shape, Setup(ranks=4, local_ranks=4, sharded=True))["loading"] == 4 * four["loading"]


def test_one_process_without_a_group_holds_nothing_twice():
    shape, _ = real_shape("HuggingFaceTB/SmolLM2-1.7B")
    alone = named(shape, Setup())
    assert not alone.keys() & {"gathered groups", "gathered gradient", "sampler"}
    assert alone["loading"] == alone["export"] == 0


BASE = Setup(ranks=4, local_ranks=4, sharded=True, compute_bytes=2, device_bytes=80 * GIB, micro_batch_tokens=16384)


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ({"gradients": 3}, "device"),
        ({"micro_batch_tokens": 32768}, "device"),
        ({"compute_bytes": 4}, "device"),
        ({"completions": 64, "engine": "transformers"}, "device"),
        ({"max_new_tokens": 32768}, "device"),
        ({"ranks": 2, "local_ranks": 2}, "device"),
        ({"engine": "vllm", "vllm_memory": 0.9}, "device"),
        ({"engine": "vllm", "vllm_sleep": True}, "host"),
        ({"local_ranks": 8}, "host"),
        ({"compute_bytes": 4}, "disk"),
    ],
)
def test_more_needs_more(change, place):
    shape, _ = real_shape("Qwen/Qwen3-1.7B-Base")
    assert peak(terms(shape, replace(BASE, **change)), **{place: 1}) > peak(terms(shape, BASE), **{place: 1})


@pytest.mark.parametrize(
    "change", [{"kl": False}, {"activation_checkpointing": True}, {"ranks": 8}, {"compute_bytes": 2, "sharded": False}]
)
def test_less_needs_less(change):
    shape, _ = real_shape("Qwen/Qwen3-1.7B-Base")
    assert peak(terms(shape, replace(BASE, **change)), device=1) < peak(terms(shape, BASE), device=1)


def test_a_sleeping_sampler_gives_its_memory_back_for_the_update():
    shape, _ = real_shape("Qwen/Qwen2.5-7B")
    awake, asleep = (terms(shape, replace(BASE, engine="vllm", vllm_sleep=sleep)) for sleep in (False, True))
    update = sum(t.bytes for t in awake if t.where == "device" and t.phase == "update")
    share = int(0.4 * 80 * GIB)
    assert peak(awake, device=1) - peak(asleep, device=1) == min(update, share)


def test_the_peak_is_the_largest_phase_of_the_places_named():
    found = terms(real_shape("Qwen/Qwen2.5-7B")[0], BASE)
    steady = sum(t.bytes for t in found if t.where == "device" and t.phase == "always")
    phases = [sum(t.bytes for t in found if t.where == "device" and t.phase == phase) for phase in PHASES]
    assert peak(found, device=1) == steady + max(phases)
    assert peak(found, device=3) == 3 * peak(found, device=1)
    assert max(peak(found, device=1), peak(found, host=1)) <= peak(found, device=1, host=1) <= peak(found, device=1) + peak(found, host=1)
    assert all(term.bytes >= 0 and term.formula and term.where in ("device", "host", "disk") for term in found)


@pytest.mark.parametrize("name", PAPERS)
def test_presets_fit_on_the_gpus_they_are_written_for(name):
    values = PAPERS[name]
    known = {key: value for key, value in values.items() if key in asdict(Setup())}
    memory = (80 if "7b" in name else 48) * GIB
    shape, _ = real_shape(values["model"].removesuffix("-Instruct"))
    setup = Setup(ranks=4, local_ranks=4, sharded=True, compute_bytes=2, device_bytes=memory, **known)
    assert peak(terms(shape, setup), device=1) < 0.9 * memory


@pytest.mark.parametrize(
    ("name", "ranks", "gradients", "low", "high"),
    [("qwen2.5-1.5b", 4, 1, 31, 33), ("qwen2.5-1.5b", 4, 3, 35, 37), ("qwen2.5-7b", 4, 1, 63, 65), ("qwen2.5-7b", 4, 3, 80, 99),
     ("qwen2.5-7b", 8, 3, 0, 72)],
)  # fmt: skip
def test_the_numbers_of_the_scaling_page(name, ranks, gradients, low, high):
    """GiB per GPU of the MATH-500 presets, on cards of 48 GB (1.5B) and 80 GB (7B)."""
    values = PAPERS[f"{name}-math500"]
    known = {key: value for key, value in values.items() if key in asdict(Setup())} | {"ranks": ranks, "local_ranks": ranks}
    setup = Setup(sharded=True, compute_bytes=2, device_bytes=(80 if "7b" in name else 48) * GIB, gradients=gradients, **known)
    assert low < peak(terms(real_shape(values["model"])[0], setup), device=1) / GIB < high


def test_readable():
    assert [readable(n) for n in (0, 1023, 1024, 1536, 3 * GIB, 5000 * 2**40)] == [
        "0 B",
        "1023 B",
        "1.0 KiB",
        "1.5 KiB",
        "3.0 GiB",
        "5000.0 TiB",
    ]

"""Whether a model can be trained here: its files are whole, its tokenizer fits it, its architecture does what a run asks for, and it can be
written again. Everything is found before the first step, as a UserError naming --model."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from torch import nn

from common import ranks
from common.errors import UserError, require

# of files that models and data sets are kept in: a name that ends so is no name on a hub
ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".arrow", ".gz", ".zip", ".gguf", ".safetensors", ".bin", ".pt", ".pth")
# of configs whose logits are more than lm_head(hidden)
POSTPROCESSING = ("final_logit_softcapping", "logits_soft_cap", "logits_scaling", "logit_scale", "lm_head_multiplier")
POINTER = b"version https://git-lfs"  # how the file begins that Git leaves in the place of a large one


@contextmanager
def loading(model: str, failed: str) -> Iterator[None]:
    """Turn whatever a library raises about the files of a model into one line: what failed, and which file is to blame."""
    require(not is_missing(model), f"--model {model}: no such file or folder")
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # tokenizers, safetensors and optional packages raise classes of their own, or Exception itself
        cause = _broken_file(Path(model)) or first_line(error)
        if "custom code" in cause:
            cause = "it brings code of its own, which --trust-remote-code runs; only for a source you trust"
        raise UserError(f"--model {model}: {failed} ({cause})") from error


def is_missing(name: str) -> bool:
    """Whether a name can only be that of a file or folder and there is none: a hub would be asked for it over and over."""
    path = name.startswith((".", "/", "~")) or name.endswith(("/", *ENDINGS)) or name.count("/") > 1 or "\\" in name
    return path and not Path(name).exists()


def files_of(model: str) -> dict[str, str]:
    """Where transformers finds a hub name, a folder, or a GGUF file, whose weights it turns into floating-point numbers."""
    if not model.endswith(".gguf"):
        return {"pretrained_model_name_or_path": model}
    lacking = lacking_for_gguf()
    require(not lacking, f"--model {model}: a GGUF file is read with packages that are not installed: pip install {' '.join(lacking)}")
    return {"pretrained_model_name_or_path": str(Path(model).parent), "gguf_file": Path(model).name}


def lacking_for_gguf() -> list[str]:
    """The packages that transformers reads GGUF files with and that are not installed."""
    return [package for package in ("gguf", "accelerate") if not find_spec(package)]


def _broken_file(folder: Path) -> str:
    """The first file of a local model that is a Git LFS pointer or no whole safetensors file, and the fix; empty if there is none."""
    from safetensors import SafetensorError, safe_open

    for file in sorted(f for f in folder.glob("*.*") if f.is_file()):
        with open(file, "rb") as content:
            if content.read(len(POINTER)) == POINTER:
                return f"{file.name} is a Git LFS pointer, not the file itself; run `git lfs pull` in {folder}"
        try:
            if file.suffix == ".safetensors":
                safe_open(file, "pt").__exit__(None, None, None)
        except SafetensorError as error:
            return f"{file.name} is cut short or damaged, {error}; download it again"
    return ""


def first_line(error: Exception) -> str:
    line = (str(error).strip() or "no message").splitlines()[0]
    return line if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {line}"


def check_config(model: str, config) -> None:
    """Refuse what no weights need to be read for: quantised checkpoints, whose weights have no gradient, and encoder-decoders."""
    for part in (config, config.get_text_config()):
        for name in ("quantization_config", "compression_config"):
            if found := getattr(part, name, None):
                method = (found if isinstance(found, dict) else vars(found)).get("quant_method", name)
                told = f"its weights are quantised ({getattr(method, 'value', method)}), and cannot be trained"
                raise UserError(f"--model {model}: {told}; give the checkpoint in bfloat16 or float32 that it was made from")
    told = "an encoder-decoder, which is not supported; give a decoder-only language model"
    require(not config.is_encoder_decoder, f"--model {model} is {told}")


def check_tokens(model: str, config, tokenizer, prompts: list[list[int]]) -> None:
    """Refuse a tokenizer that has ids beyond the embedding where they are used, or that ends every prompt as if it were a whole text."""
    rows = getattr(config.get_text_config(), "vocab_size", None) or len(tokenizer)
    used = {"in a prompt": max(map(max, prompts)), "that ends a text": tokenizer.eos_token_id, "for padding": tokenizer.pad_token_id}
    for where, token in used.items():
        if token >= rows:
            told = f"the token {tokenizer.convert_ids_to_tokens(token)!r} {where} has the id {token}"
            sizes = f"its embedding has {rows} rows; its tokenizer has {len(tokenizer)} tokens"
            raise UserError(f"--model {model}: {told}, and {sizes}: take its own tokenizer and template, or resize_token_embeddings first")
    for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
        if all(ids[-1] == token for ids in prompts):
            name = tokenizer.convert_ids_to_tokens(token)
            fix = "set add_eos_token to false in its tokenizer_config.json, or take that token out of tokenizer.json or the chat template"
            raise UserError(f"--model {model}: its tokenizer ends every prompt with {name!r}, so there is nothing to complete; {fix}")


def longest_sequence(model: str, config, prompts: list[list[int]], max_new_tokens: int) -> int:
    """Tokens of the longest prompt with a whole completion. config: that of the model, as transformers has it.

    Raises UserError naming the flags if the model has fewer positions: learned ones end there, in an IndexError, and rotary ones were
    never trained beyond.
    """
    longest = max(map(len, prompts))
    positions = (
        getattr(config.get_text_config(), "max_position_embeddings", None) or longest + max_new_tokens
    )  # none where the architecture has no bound
    if longest + max_new_tokens > positions:
        raise UserError(
            f"--max-new-tokens {max_new_tokens} and the longest prompt, of {longest} tokens, do not fit in the {positions} positions of "
            f"--model {model}; lower --max-new-tokens, or --max-prompt-length, which drops longer prompts"
        )
    return longest + max_new_tokens


def check_weights(model: str, loaded: nn.Module, info: dict) -> None:
    """Refuse a model with weights that its files lack (random ones would take their place), have in another shape, or have beside those
    that its config.json speaks of; or with logits that are more than lm_head(hidden).

    info: transformers' `output_loading_info`, in which tied weights are not missing."""
    if info["mismatched_keys"]:
        name, stored, wanted = min((name, tuple(stored), tuple(wanted)) for name, stored, wanted in info["mismatched_keys"])
        told = f"{name} has the shape {stored} in its files and {wanted} by its config.json"
    elif info["missing_keys"]:
        told = f"{_first_of(info['missing_keys'])} is missing from its files"
    elif beside := [name for name in info["unexpected_keys"] if _is_left_out(loaded, name)]:
        told = f"{_first_of(beside)} is in its files, and config.json has no place for it"
    else:
        if loaded.__dict__.pop("hf_quantizer", None):  # of a GGUF file, whose weights are numbers now; it would not let them be saved
            del loaded.config.quantization_config
        configs = (loaded.config, loaded.config.get_text_config())
        more = [name for name in POSTPROCESSING if any(getattr(config, name, None) not in (None, 1, 1.0) for config in configs)]
        told = f"--model {model}: its config sets {''.join(more[:1])}, which log-probabilities by chunks of lm_head would leave out"
        require(not more, told)
        return
    raise UserError(f"--model {model}: {told}; get config.json and weights from one and the same checkpoint, merged and not quantised")


def _first_of(names: set[str] | list[str]) -> str:
    more = f", one of {len(names)}," if len(names) > 1 else ""
    return f"the weight {min(names)}{more}"


def _is_left_out(loaded: nn.Module, name: str) -> bool:
    """Whether a stored weight is of a layer that the model has, or of a further one in a list of layers. Others, such as a value head or
    the part for pictures, are no part of the language model."""
    modules = dict(loaded.named_modules())
    owner = name.rpartition(".")[0]
    while owner and owner not in modules:
        owner = owner.rpartition(".")[0]
    module = modules.get(owner)
    return owner != "" and (isinstance(module, nn.ModuleList) or any(True for _ in module.parameters(recurse=False)))


def mend_generation_config(loaded: nn.Module) -> None:
    """Make the generation config, of which a run takes the stop tokens alone, one that transformers is willing to write again."""
    config = loaded.generation_config
    if (config.pad_token_id or 0) < 0:  # how older models say that there is none
        config.pad_token_id = None
    if not (wrong := _invalid(config)):
        return
    if config.do_sample is None:
        config.do_sample, kept = True, "with do_sample, which its other values are for"
    if _invalid(config):
        kept = "with its token ids alone"
        loaded.generation_config = type(config)(
            bos_token_id=config.bos_token_id, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
        )
    if ranks.rank() == 0:
        print(f"--model {loaded.name_or_path}: its generation config cannot be saved as it is and will be {kept} ({wrong})")


def _invalid(config) -> str:
    """What transformers finds wrong with a generation config, empty if it would save it."""
    try:
        config.validate(strict=True)
    except ValueError as error:
        return " ".join(str(error).split("\nIf you")[0].split())
    return ""


def check_export(model: str, policy: nn.Module, tokenizer) -> None:
    """Write all of a trained model but its weights, into a folder that is deleted at once. Raises UserError naming --model."""
    with loading(model, "it could not be saved after training"):
        mend_generation_config(policy)
        try:
            with TemporaryDirectory() as folder:
                policy.save_pretrained(folder, state_dict={})
                tokenizer.save_pretrained(folder)
        except Exception as error:
            # no room for temporary files says nothing of the model; tokenizers tell of it by another class
            if not isinstance(error, OSError) and "(os error " not in str(error):
                raise

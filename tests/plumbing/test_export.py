"""The trained model on disk: what would keep it from being written is found before the first step, and one that could not be written is
written later, from a checkpoint, by `python run.py export`."""

import errno
import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.export import main
from common.errors import UserError
from common.model import load_model, load_tokenizer
from common.rollout import stop_tokens
from integrations.export import export
from support.models import CPU, copy_of_base, fails_in_doctor, refusal
from support.running import ROOT, run_script, train, weights_of


def with_generation_config(folder: Path, **values) -> str:
    model = copy_of_base(folder)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 7]} | values))
    return model


# --- Before the first step ---


@pytest.mark.parametrize(
    ("values", "saved"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, {"temperature": 0.9, "top_p": 0.6, "do_sample": True}),  # as Llama 2's was
        ({"min_p": 0.1}, {"min_p": 0.1, "do_sample": True}),
        ({"pad_token_id": -1}, {"pad_token_id": None}),
        ({"pad_token_id": -1, "top_k": 20}, {"pad_token_id": None, "top_k": 20, "do_sample": True}),
        ({"temperature": 0.6, "do_sample": False}, {"temperature": None, "do_sample": None}),  # greedy was meant
        ({"num_beams": 1, "length_penalty": 2.0}, {"length_penalty": None}),
        ({"num_beams": 1, "early_stopping": True, "pad_token_id": 3}, {"early_stopping": None, "pad_token_id": 3}),
        ({"output_scores": True}, {"output_scores": None}),
    ],
)
def test_a_generation_config_that_transformers_would_not_save(values, saved, tmp_path, capsys):
    model = with_generation_config(tmp_path / "m", **values)
    with pytest.raises(ValueError, match="GenerationConfig is invalid"):
        GenerationConfig.from_pretrained(model).save_pretrained(tmp_path / "x")
    export(load_model(model, CPU), load_tokenizer(model), tmp_path / "out")
    told = capsys.readouterr().out
    assert ("its generation config cannot be saved as it is" in told) == (set(values) != {"pad_token_id"})
    assert told.count("\n") <= 1
    written = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert written["eos_token_id"] == [1, 7]
    assert {name: written.get(name) for name in saved} == saved
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


@pytest.mark.parametrize("values", [{}, {"temperature": 0.6, "top_p": 0.95, "do_sample": True}, {"num_beams": 4, "length_penalty": 0.6}])
def test_a_valid_one_is_written_as_it_was(values, tmp_path, capsys):
    model = with_generation_config(tmp_path / "m", **values)
    export(load_model(model, CPU), load_tokenizer(model), tmp_path / "out")
    assert capsys.readouterr().out == ""
    written = GenerationConfig.from_pretrained(tmp_path / "out").to_diff_dict()
    assert written == GenerationConfig.from_pretrained(model).to_diff_dict()


@pytest.mark.parametrize(
    "values",
    [{"early_stopping": "soon"}, {"cache_implementation": "none such"}, {"max_new_tokens": 0}, {"num_return_sequences": 4, "num_beams": 2}],
)
def test_a_generation_config_that_cannot_be_read_is_named(values, tmp_path):
    model = with_generation_config(tmp_path / "m", **values)
    assert "its generation config could not be read" in refusal(lambda: stop_tokens(model, load_tokenizer(model)))


def test_such_a_model_trains_to_its_end(tmp_path, capsys):
    model = with_generation_config(tmp_path / "m", temperature=0.9)
    train("linear", tmp_path / "run", model=model, steps=1)
    assert capsys.readouterr().out.count("cannot be saved as it is") == 1
    AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")


@pytest.mark.parametrize("saver", [PreTrainedTokenizerFast, LlamaForCausalLM, GenerationConfig])
def test_whatever_else_cannot_be_saved_is_found_before_the_first_step(saver, tmp_path, monkeypatch, capsys):
    def refuse(*_, **__):
        raise NotImplementedError("no such thing as a vocabulary file\nmore")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(saver, "save_pretrained", refuse)
    told = "it could not be saved after training (NotImplementedError: no such thing as a vocabulary file)"
    assert told in refusal(lambda: train("linear", tmp_path / "run"))
    assert list(tmp_path.iterdir()) == []
    fails_in_doctor(capsys, "tied embeddings", told)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "No space left on device"), Exception("No space left on device (os error 28)")])
def test_a_full_disk_for_temporary_files_is_no_fault_of_the_model(error, tmp_path, monkeypatch):
    save, calls = PreTrainedTokenizerFast.save_pretrained, []

    def refuse_once(*given, **more):
        calls.append(1)
        if len(calls) == 1:
            raise error
        return save(*given, **more)

    monkeypatch.setattr(PreTrainedTokenizerFast, "save_pretrained", refuse_once)
    train("linear", tmp_path / "run", steps=1)
    assert (tmp_path / "run" / "model" / "tokenizer.json").exists()


# --- After the last ---


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left on device"), RuntimeError("share memory")],
)
def test_an_export_that_fails_loses_nothing_else(error, tmp_path, capsys, monkeypatch):
    """Curves and verdict are there, the error says how to write the model, and that writes the very model."""
    run, write = tmp_path / "run", LlamaForCausalLM.save_pretrained

    def fail(*args, state_dict, **rest):
        if state_dict:
            raise error
        write(*args, state_dict=state_dict, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", fail)
        with pytest.raises(UserError) as caught:
            train("linear", run, picture=True, lr=1e-3)
    message, printed = str(caught.value), capsys.readouterr().out
    assert str(error.strerror if isinstance(error, OSError) else error) in message
    assert f"`python run.py export {run}`" in message
    assert "\n" not in message
    assert "accuracy" in printed
    assert "model: " not in printed
    assert {"curves.png", "checkpoints", "metrics.jsonl"} <= {path.name for path in run.iterdir()}
    assert not [path for path in run.iterdir() if path.name.startswith("model")]
    train("linear", tmp_path / "whole", lr=1e-3)
    main([str(run)])
    assert capsys.readouterr().out.endswith(f"wrote {run / 'model'}, the model of step 3, in float32\n")
    wanted = weights_of(tmp_path / "whole" / "model")
    found = weights_of(run / "model")
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        assert (run / "model" / file).read_text() == (tmp_path / "whole" / "model" / file).read_text()


def test_a_full_disk_leaves_the_verdict(tmp_path, capsys, monkeypatch):
    """Neither model nor picture can be written: the verdict is told, and the line is about the model."""

    def full(*_, **__):
        raise UserError("curves.png cannot be written (No space left on device)")

    monkeypatch.setattr("common.curves.draw", full)
    monkeypatch.setattr("common.run.export", lambda *_: full())
    with pytest.raises(UserError, match="python run.py export"):
        train("linear", tmp_path / "run", picture=True, steps=1)
    assert "accuracy" in capsys.readouterr().out


def test_a_checkpoint_of_two_ranks(tmp_path):
    flags = ["--steps", "2", "--prompts", "4", "--completions", "4", "--eval-prompts", "8", "--compute-dtype", "bfloat16", "--lr", "1e-3"]
    done = run_script(str(ROOT / "run.py"), "linear", *flags, "--out", str(tmp_path / "run"), ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "run" / "checkpoints" / "step_000002").glob("*.distcp"))) == 2
    done = run_script(str(ROOT / "run.py"), "export", "run", "--out", "later", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (0, "wrote later, the model of step 2, in bfloat16\n"), done.stderr
    wanted, found = weights_of(tmp_path / "run" / "model"), weights_of(tmp_path / "later")
    assert {name: tensor.dtype for name, tensor in found.items()} == dict.fromkeys(wanted, torch.bfloat16)
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert len(AutoTokenizer.from_pretrained(tmp_path / "later")) == 72


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("linear", tmp_path / "run", steps=1)
    (tmp_path / "mine").mkdir()
    for argv, told in [
        (["nowhere"], "RUN: no run folder nowhere"),
        (["mine"], "RUN: mine is not a run folder"),
        (["run", "--out", "mine"], "--out mine exists already"),
    ]:
        with pytest.raises(UserError, match=told):
            main(argv)
    for file in (tmp_path / "run" / "checkpoints").rglob("state.pt"):
        file.write_bytes(b"\x80\x04broken")
    with pytest.raises(UserError, match="RUN: run/checkpoints has no checkpoint that can be read"):
        main(["run"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "run"]


def test_a_run_folder_cannot_ask_for_code_to_be_run(tmp_path):
    model = Path(copy_of_base(tmp_path / "m", auto_map={"AutoConfig": "code.Config"}, model_type="mine"))
    (model / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    train("linear", tmp_path / "run", steps=1)
    saved = json.loads((tmp_path / "run" / "args.json").read_text())
    (tmp_path / "run" / "args.json").write_text(json.dumps(saved | {"model": str(model), "trust_remote_code": True}))
    with pytest.raises(UserError, match="--model .*it brings code of its own, which --trust-remote-code runs"):
        main([str(tmp_path / "run")])
    assert not (tmp_path / "executed").exists()

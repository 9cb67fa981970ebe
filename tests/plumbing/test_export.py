"""The trained model on disk: written whole or not at all, by a run or later by `run.py export`."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from transformers import GenerationConfig, LlamaForCausalLM

from common.errors import UserError
from common.model import export, load_tokenizer, load_whole
from support.models import Q, copy_of_base
from support.running import ROOT, run_script, train, weights_of
from tools.export import main


@pytest.mark.parametrize(
    ("values", "saved"),
    [
        ({"temperature": 0.9, "top_p": 0.6}, False),  # as Llama 2's was
        ({"num_beams": 1, "length_penalty": 2.0}, False),
        ({"temperature": 0.6, "do_sample": True}, True),
    ],
)
def test_of_a_generation_config_that_cannot_be_saved_the_tokens_are(values, saved, tmp_path):
    model = copy_of_base(tmp_path / "m")
    tokens = {"eos_token_id": [1, 7], "pad_token_id": 3}
    (tmp_path / "m" / "generation_config.json").write_text(json.dumps(tokens | values))
    export(load_whole(model, "cpu"), load_tokenizer(model), tmp_path / "out", torch.float32)
    found = GenerationConfig.from_pretrained(tmp_path / "out").to_diff_dict()
    found.pop("transformers_version")
    assert found == (tokens | values if saved else tokens)
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1


def test_an_export_that_fails_loses_nothing_else(tmp_path, capsys, monkeypatch):
    """Verdict and checkpoints are there, the model of before is whole, and the very model can be
    written later."""
    run, save = tmp_path / "run", LlamaForCausalLM.save_pretrained

    def fail(*given, **rest):
        save(*given, **rest)  # all is there, but for its name
        raise SafetensorError("No space left")

    with monkeypatch.context() as patch:
        patch.setattr(LlamaForCausalLM, "save_pretrained", fail)
        with pytest.raises(UserError, match=r"model cannot be written \(No space .*run.py export"):
            train("linear", run, lr=1e-3)
        assert "accuracy" in capsys.readouterr().out
        assert not (run / "model").exists()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)  # where it runs decides nothing
    main([str(run)])
    told = f"wrote {run / 'model'}, the model of step 3, in float32\n"
    assert capsys.readouterr().out == told
    monkeypatch.setattr(LlamaForCausalLM, "save_pretrained", fail)
    with pytest.raises(UserError, match="cannot be written"):
        main([str(run)])
    monkeypatch.undo()
    main([str(run)])  # in place of the one that is there
    train("linear", tmp_path / "whole", lr=1e-3)
    for file in (tmp_path / "whole" / "model").iterdir():
        assert (run / "model" / file.name).read_bytes() == file.read_bytes()
    main([str(run), "--step", "2"])
    early, late = (weights_of(run / name)[Q] for name in ("model-step2", "model"))
    assert not torch.equal(early, late)


@pytest.mark.parametrize("more", [[], ["--lora-rank", "2"]])
def test_a_checkpoint_of_two_ranks(more, tmp_path):
    flags = "--steps 2 --prompts 4 --completions 4 --eval-prompts 8 --lr 1e-3 --out run"
    flags += " --compute-dtype bfloat16"
    script, run = str(ROOT / "run.py"), tmp_path / "run"
    done = run_script(script, "linear", *flags.split(), *more, ranks=2, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = run_script(script, "export", "run", "--out", "later", cwd=tmp_path)
    assert done.stdout == "wrote later, the model of step 2, in bfloat16\n", done.stderr
    wanted, found = weights_of(run / "model"), weights_of(tmp_path / "later")
    assert {tensor.dtype for tensor in found.values()} == {torch.bfloat16}
    assert all(torch.equal(found[name], wanted[name]) for name in wanted)


def test_what_cannot_be_exported(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    train("linear", Path("run"), steps=1)
    Path("mine").mkdir()
    own = {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "mine"}
    model = Path(copy_of_base(tmp_path / "m", **own))
    (model / "code.py").write_text(f"open({str(tmp_path / 'executed')!r}, 'w')\n")
    saved = json.loads(Path("run/args.json").read_text())

    def refuses(told: str, *argv: str) -> None:
        with pytest.raises(UserError, match=told):
            main([*argv])

    refuses("RUN: nowhere is no run folder", "nowhere")
    refuses("RUN: mine is no run folder", "mine")
    refuses("--out mine exists already", "run", "--out", "mine")
    refuses("RUN run: no readable checkpoint of step 7", "run", "--step", "7")
    for file in Path("run/checkpoints").rglob("*.pt"):
        file.write_bytes(file.read_bytes()[:-9])
    refuses("no readable checkpoint", "run", "--out", "other")
    # a run folder alone cannot ask for its code to be run
    asked = saved | {"model": str(model), "trust_remote_code": True}
    Path("run/args.json").write_text(json.dumps(asked))
    refuses("--model .*custom code", "run")
    assert not Path("executed").exists()
    assert not Path("other").exists()

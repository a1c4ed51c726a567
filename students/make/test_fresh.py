"""The tool that makes a student of any size, from which a training goes on."""

import runpy
import sys

import torch

import train
from gpt import GPT

def test_a_fresh_student_has_the_shape_that_was_asked_for_and_is_trained_as_one_from_scratch(
        tmp_path, monkeypatch):
    command = f"fresh.py {tmp_path} --role solver --n-embd 48 --n-layer 2 --n-head 3"
    monkeypatch.setattr(sys, "argv", command.split())
    runpy.run_path("students/make/fresh.py", run_name="__main__")
    model = GPT.from_pretrained(tmp_path)
    config = model.config
    shape = (config.n_embd, config.n_layer, config.n_head, config.n_positions, config.vocab_size)
    assert shape == (48, 2, 3, 1024, 2048)
    assert model.info["role"] == "solver" and model.get_tokenizer().name == "tiny"
    assert isinstance(train.make_optimizers(model)[0], train.Muon)
    torch.manual_seed(0)    # the weights are those of a model that begins within train.py
    assert torch.equal(GPT(config).h[1].mlp.c_fc.weight, model.h[1].mlp.c_fc.weight)

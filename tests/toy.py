"""A toy GPT-2 in which no two sizes agree and no weight is 0 or 1, so that nothing right is right by luck."""

import os
from pathlib import Path

import pytest
import torch

from data import Problem, Step
from gpt import GPT, GPTConfig

# H = 4, D = 5. Every field differs from GPTConfig's default too, so that a file that forgets one is noticed.
TOY = GPTConfig(vocab_size=61, n_positions=230, n_embd=20, n_layer=2, n_head=4, layer_norm_epsilon=1e-3)


def toy_model(config=TOY, seed=0, dtype=torch.float64, info=None):
    """A model with random gains, biases and embeddings, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    model = GPT(config, info)
    with torch.no_grad():
        for name, p in model.named_parameters():
            gain = name.endswith(("ln_1.weight", "ln_2.weight", "ln_f.weight"))
            p.copy_((1 if gain else 0) + 0.4 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model.to(dtype)


def numpy_weights(model):
    """{name: float64 array} of a model's parameters."""
    return {name: p.detach().double().numpy() for name, p in model.named_parameters()}


def random_ids(*shape, seed=0, config=TOY):
    return torch.randint(config.vocab_size, shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------- problems

PROBLEM = Problem("toy-1", "Ava has 3 boxes with 4 pens each. She gives away 5. How many are left?", [
    Step("How many pens?", "There are 3*4 = <<3*4=12>>12 pens."),
    Step("How many are left?", "12-5 = <<12-5=7>>7 are left."),
], "7")

# The real data sets, where SOCRATIC_DATA names a folder that has them; elsewhere these tests are skipped and say so.
REAL = Path(os.environ.get("SOCRATIC_DATA", "data"))
real = pytest.mark.skipif(not (REAL / "gsm8k" / "train_socratic.jsonl").exists(), reason="the real data sets are not here")


def tiny_student(role, dataset="demo", seed=0, n_positions=512, **config):
    """A very small student with the tiny tokenizer, fresh from random numbers."""
    torch.manual_seed(seed)
    config = {"vocab_size": 2048, "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": n_positions} | config
    return GPT(GPTConfig(**config), {"role": role, "dataset": dataset, "tokenizer": "tiny"})

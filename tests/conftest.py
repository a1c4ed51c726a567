"""Tests run on the CPU, where their figures hold. Only those that ask for a device use what else is there."""

import signal

import pytest
import torch

signal.signal(signal.SIGINT, signal.default_int_handler)    # a shell's background jobs ignore Ctrl-C, and so do theirs
torch.set_num_threads(1)    # the models are so small that a second thread only makes them wait


@pytest.fixture(autouse=True)
def cpu_only(request, monkeypatch):
    if "device" not in request.fixturenames:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")    # for the scripts that a test starts

"""The loss counts what it should, the gradients do not depend on how a step is cut up, and a killed run goes on."""

import functools
import itertools
import json
import math
import os
import random
import runpy
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from toy import PROBLEM, tiny_student

import data
import train
from data import IGNORE, Problem, encode, get_tokenizer, load_problems, segments
from gpt import GPT, SIZES, pick_device
from train import make_batches, summed_loss

ROOT = Path(train.__file__).resolve().parent
NO_AUTOCAST = torch.autocast("cpu", enabled=False)
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)

# ---------------------------------------------------------------- batches, the loss and its gradient

@functools.cache
def stories(split):
    return load_problems("demo", split, 34)

def examples_of(role, n=12):
    return train.make_examples(stories("train")[:n], role, tiny_student(role))

def gradients(examples, groups):
    """(loss, gradients) of one optimizer step over the examples, cut into these micro-batches."""
    model = tiny_student("solver")
    micro_batches = [train.collate([examples[i] for i in group], "cpu") for group in groups]
    loss = train.backward(model, micro_batches, train.count_learned(examples), NO_AUTOCAST, NO_SCALER)
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])

def test_every_example_comes_once_an_epoch_in_batches_of_the_budget_with_little_padding():
    rng = random.Random(1)
    examples = [([i] * rng.randint(5, 200), []) for i in range(1000)]
    groups = make_batches(examples, 2000, random.Random(2))
    assert sorted(ids[0] for group in groups for ids, _ in group) == list(range(1000))
    padded = [len(group) * max(len(ids) for ids, _ in group) for group in groups]
    assert max(padded) <= 2000
    assert sum(padded) < 1.05 * sum(len(ids) for ids, _ in examples)
    other = make_batches(examples, 2000, random.Random(3))
    assert groups != other and groups == make_batches(examples, 2000, random.Random(2))

def test_an_example_longer_than_the_budget_gets_a_batch_of_its_own():
    short, long = ([0] * 10, []), ([0] * 500, [])
    assert sorted(make_batches([short, long], 100, random.Random(0))) == [[short], [long]]

def test_every_epoch_shows_every_example_in_another_order_and_the_first_one_the_short_ones_first():
    examples = [([i] * (5 + i % 60), []) for i in range(240)]
    n = len(make_batches(examples, 300, random.Random(0)))

    def epochs(short_first):
        batches = train.endless_batches(examples, 300, 0, short_first)
        return [list(itertools.islice(batches, n)) for _ in range(3)]

    plain, sorted_once = epochs(False), epochs(True)
    for epoch in plain + sorted_once:
        assert sorted(ids[0] for batch in epoch for ids, _ in batch) == list(range(240))
    assert plain[0] != plain[1] != plain[2] and plain == epochs(False)
    assert sorted_once[1:] == plain[1:] and sorted(sorted_once[0]) == sorted(plain[0])
    is_short = [len(batch[0][0]) <= 15 for batch in sorted_once[0]]
    assert is_short == sorted(is_short, reverse=True) and 2 <= sum(is_short) <= n / 6, "the shortest sixth has at most 15 tokens"
    assert sum(is_short) == sum(len(batch[0][0]) <= 15 for batch in plain[0])

def test_gradients_do_not_depend_on_the_size_of_the_micro_batches():
    examples = examples_of("solver")
    loss, whole = gradients(examples, [list(range(12))])
    for groups in ([[i] for i in range(12)], [[0, 11], list(range(1, 9)), [9, 10]]):
        other_loss, other = gradients(examples, groups)
        assert math.isclose(loss, other_loss, rel_tol=1e-5)
        assert torch.allclose(whole, other, atol=1e-6 * whole.abs().max())

def test_one_pass_over_a_dialogue_has_the_loss_of_one_example_for_each_step():
    # What a textbook would do: for every solution an example of its own, (all that came before) -> (that solution).
    tokenizer, model = get_tokenizer("tiny"), tiny_student("solver").double()
    parts, total = segments(PROBLEM, "solver"), 0
    for k, part in enumerate(parts):
        if part.learned:
            alone = [type(p)(p.text, p is part) for p in parts[:k + 1]]
            ids, targets = encode(alone, tokenizer)
            if k < len(parts) - 1:                      # the end token belongs to the last turn only
                targets[-1] = IGNORE
            total += summed_loss(model, torch.tensor([ids]), torch.tensor([targets])).item()
    ids, targets = encode(parts, tokenizer)
    assert math.isclose(total, summed_loss(model, torch.tensor([ids]), torch.tensor([targets])).item(), rel_tol=1e-6)

def test_learn_all_learns_every_token_after_the_first():
    for ids, targets in train.make_examples([PROBLEM], "solver", tiny_student("solver"), learn_all=True):
        assert targets[:-1] == ids[1:] and IGNORE not in targets
    assert IGNORE in train.make_examples([PROBLEM], "solver", tiny_student("solver"))[0][1]

# ---------------------------------------------------------------- the optimizer

def test_the_learning_rate_rises_then_falls_to_nothing():
    rates = [train.learning_rate(step, 200, 1.0) for step in range(200)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert rates[10] == 1.0 and all(a > b for a, b in zip(rates[10:], rates[11:])) and 0 < rates[-1] < 0.001

def muon_steps(kind, shape, **flags):
    """How far three steps move a matrix, from the same gradients."""
    rng = torch.Generator().manual_seed(0)
    p = torch.nn.Parameter(torch.zeros(shape))
    optimizer = kind([p], **flags)
    for _ in range(3):
        p.grad = torch.randn(shape, generator=rng) * torch.logspace(0, -3, shape[1])  # very unlike singular values
        for group in optimizer.param_groups:
            group["lr"] = 0.01
        optimizer.step()
    return p.detach()

@pytest.mark.parametrize("shape", [(16, 48), (16, 16), (64, 16)])
def test_muon_takes_the_steps_of_torchs_muon(shape):
    theirs = muon_steps(torch.optim.Muon, shape, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    assert (muon_steps(train.Muon, shape) - theirs).norm() < 0.05 * theirs.norm()  # theirs is computed in bfloat16

def test_a_step_of_muon_is_as_long_in_every_direction_that_has_a_gradient():
    p = torch.nn.Parameter(torch.zeros(16, 32))
    u, _, v = torch.linalg.svd(torch.randn(16, 32), full_matrices=False)
    p.grad = u * torch.logspace(0, -1.5, 16) @ v          # the strongest direction 30 times the weakest
    optimizer = train.Muon([p])
    optimizer.param_groups[0]["lr"] = 1.0
    optimizer.step()
    lengths = torch.diagonal(u.T @ -p.detach() @ v.T) / (0.2 * 32**0.5)
    assert lengths.min() > 0.5 and lengths.max() < 1.3    # the polynomial's own spread
    assert torch.allclose(-p.detach(), u * (lengths * 0.2 * 32**0.5) @ v, atol=1e-3)  # and in no other direction

def test_it_learns_four_problems_by_heart():
    examples, model = examples_of("unified", 4), tiny_student("unified", n_embd=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    batch = [train.collate(examples, "cpu")]
    for _ in range(60):
        loss = train.backward(model, batch, train.count_learned(examples), NO_AUTOCAST, NO_SCALER)
        optimizer.step()
    assert loss.item() < 0.05

@pytest.mark.parametrize("dtype, most", [("fp32", 1e-4), ("bf16", 0.05), ("fp16", 0.01)])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_every_device_computes_in_every_dtype_what_the_cpu_does(tmp_path, device, dtype, most):
    """Devices have had wrong vocabulary heads and optimizers: loss, gradients and one step beside the CPU's in fp32."""
    if device != "cpu" and not {"cuda": torch.cuda, "mps": torch.backends.mps}[device].is_available():
        pytest.skip(f"no {device} on this machine")
    found, examples = [], examples_of("solver")
    for where, how in (("cpu", "fp32"), (device, dtype)):
        out = tmp_path / f"{where}-{how}-{len(found)}"
        train.claim(out, False)
        where, how = pick_device(where, how)
        model = tiny_student("solver").to(where)
        before = torch.cat([p.detach().cpu().flatten() for p in model.parameters()])
        args = SimpleNamespace(out=out, accumulate=1, seed=0, model="tiny", resume=False, steps=1, batch_tokens=10_000, lr=1e-3)
        valid_loss, _ = train.train(model, examples, [examples], {}, args, where, how)
        after = torch.cat([p.detach().cpu().flatten() for p in model.parameters()])
        gradient = torch.cat([p.grad.cpu().flatten() for p in model.parameters()])
        found.append((json.loads((out / "log.jsonl").open().readline())["loss"], gradient, after - before, valid_loss))
    (loss, gradient, change, _), (its_loss, its_gradient, its_change, its_valid_loss) = found
    assert abs(its_loss - loss) < most * loss and change.abs().max() > 1e-4
    assert (its_gradient - gradient).norm() < 3 * most * gradient.norm()
    # Muon brings all singular values near 1, the small and noisy ones too: its step is compared by direction.
    assert torch.cosine_similarity(its_change, change, dim=0) > 1 - 10 * most
    assert its_valid_loss < its_loss

# ---------------------------------------------------------------- what is trained

def write(path, problems):
    path.write_text("".join(p.to_json() + "\n" for p in problems), encoding="utf-8")
    return str(path)

@pytest.fixture
def small(monkeypatch, tmp_path):
    """A `tiny` that trains in a second, and a few stories."""
    monkeypatch.setitem(SIZES, "tiny", tiny_student("solver").config)
    write(tmp_path / "few.jsonl", stories("train") + stories("valid"))    # split by their ids

def run(tmp_path, *flags, out="run"):
    train.main(train.parse_args(["--role", "solver", "--dataset", str(tmp_path / "few.jsonl"), "--steps", "12",
                                 "--batch-tokens", "512", "--out", str(tmp_path / out), *flags]))
    return tmp_path / out

def ava(n):
    return [Problem(f"p-{i}", f"Ava has {i} pens. How many?", PROBLEM.steps, str(i)) for i in range(n)]

def test_examples_that_do_not_fit_are_left_out_whole_and_counted(monkeypatch, capsys):
    long = Problem("long", "word " * 3000, PROBLEM.steps, "7")
    bare = Problem("bare", "How many?", [], "7")
    monkeypatch.setattr(train, "load_problems", lambda *_: [PROBLEM, long, bare, bare])
    examples, valid = train.load_examples(train.parse_args(["--role", "solver"]), tiny_student("solver"))
    assert len(examples) == len(valid) == 1
    assert "1 of 4 problems hold what this role learns and fit it" in capsys.readouterr().out

def test_a_mixture_is_every_data_set_up_to_the_limit_and_its_run_says_so(tmp_path, small, capsys):
    few, mine = str(tmp_path / "few.jsonl"), write(tmp_path / "mine.jsonl", ava(60))
    args = train.parse_args(["--role", "solver", "--dataset", few, mine, "--limit", "20"])
    assert args.out == "runs/few+mine-tiny-solver"
    examples, valid = train.load_examples(args, tiny_student("solver"))
    for split, found, n in (("train", examples, 20), ("valid", valid, None)):
        parts = [load_problems(name, split, n) for name in (few, mine)]
        assert all(parts) and found == train.make_examples([*parts[0], *parts[1]], "solver", tiny_student("solver"))
    assert len(examples) == 40
    model = GPT.from_pretrained(run(tmp_path, "--dataset", few, mine, "--limit", "20"))
    assert model.info["dataset"] == "few+mine" and "solver on few+mine: " in capsys.readouterr().out

def test_a_teachers_student_is_chosen_by_the_teachers_text(tmp_path, small, capsys):
    """Annotations of the training split alone: a part of them is held out, gold steps are no substitute."""
    run(tmp_path, "--annotations", write(tmp_path / "a.jsonl", stories("train")))
    out = capsys.readouterr().out
    assert "every 20th training problem is held out" in out and "32 dialogues" in out

def test_a_role_without_enough_to_learn_names_the_command_that_helps(tmp_path):
    bare = [Problem(f"b-{i}", f"Who has {i} pens?", [], str(i)) for i in range(30)]
    for problems in (bare, [*bare, PROBLEM]):
        mine = write(tmp_path / "mine.jsonl", problems)
        with pytest.raises(SystemExit, match="Too few .* what this role learns.*\n  python annotate.py --dataset .*mine.jsonl"):
            run(tmp_path, "--dataset", mine)
        assert not (tmp_path / "run").exists(), "the folder is free for the next try"

def test_a_student_says_what_it_is_and_can_be_trained_on(tmp_path, small, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--role", "solver", "--out", "my runs"])
    out = run(tmp_path)
    model = GPT.from_pretrained(out)
    assert model.info["role"] == "solver" and model.info["tokenizer"] == "tiny" and model.info["dataset"] == "few"
    assert model.info["eos_token_id"] == get_tokenizer("tiny").eot_token
    assert model.info["command"] == "python train.py --role solver --out 'my runs'"
    again = run(tmp_path, "--model", str(out), out="again")
    first = json.loads((again / "log.jsonl").open().readline())
    fresh = json.loads((out / "log.jsonl").open().readline())
    assert first["valid_loss"] < fresh["valid_loss"], "it goes on from what it knew"

# ---------------------------------------------------------------- a training that stops and goes on

def weights(folder):
    return torch.load(folder / "resume.pt", weights_only=True)["states"][0]

def same_weights(folder, other):
    return all(map(torch.equal, weights(folder).values(), weights(other).values()))

def log_of(folder):
    """log.jsonl without its times."""
    return [{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"} for line in (folder / "log.jsonl").open()]

def at_step(monkeypatch, step, action):
    """From now on `action` comes before the gradients of this step, once."""
    calls, backward = [], train.backward

    def watched(*args):
        calls.append(1)
        if len(calls) == step:
            monkeypatch.setattr(train, "backward", backward)
            action()
        return backward(*args)

    monkeypatch.setattr(train, "backward", watched)

def interrupt():
    raise KeyboardInterrupt

@pytest.mark.parametrize("step", [1, 7])
def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one_bit_for_bit(tmp_path, small, monkeypatch, step):
    """Also one that was stopped before its first validation: it begins anew."""
    whole = run(tmp_path, "--accumulate", "2", out="whole")
    at_step(monkeypatch, step, interrupt)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, "--accumulate", "2", out="broken")
    broken = run(tmp_path, "--accumulate", "2", "--resume", out="broken")
    assert same_weights(whole, broken) and log_of(whole) == log_of(broken)
    assert (whole / "model.safetensors").read_bytes() == (broken / "model.safetensors").read_bytes()

def test_a_run_is_never_overwritten_or_mixed_with_other_flags(tmp_path, small):
    out = run(tmp_path)
    with pytest.raises(SystemExit, match="--resume goes on with it"):
        run(tmp_path)
    for flag, value, before in (("seed", "1", "0"), ("dtype", "bf16", "torch.float32")):
        with pytest.raises(SystemExit, match=f"other flags or problems: {{'{flag}': '{before}'}}"):
            run(tmp_path, "--resume", f"--{flag}", value)
    # A guard against a past fault: a script that always says --resume wrote over a finished student.
    student = (out / "model.safetensors").read_bytes()
    (out / "resume.pt").unlink()
    with pytest.raises(SystemExit, match="run is another training's"):
        run(tmp_path, "--resume")
    assert (out / "model.safetensors").read_bytes() == student

def test_a_training_goes_on_only_with_the_same_problems(tmp_path, small):
    mine = write(tmp_path / "mine.jsonl", ava(30))
    run(tmp_path, "--dataset", mine, "--steps", "2")
    write(tmp_path / "mine.jsonl", ava(29))
    with pytest.raises(SystemExit, match="other flags or problems: {'examples'"):
        run(tmp_path, "--dataset", mine, "--steps", "2", "--resume")

def test_of_two_trainings_started_into_one_folder_the_second_is_refused_at_the_start(tmp_path, small, monkeypatch):
    """A guard against a past fault: both ended well, and one student was lost."""
    def second():
        monkeypatch.setattr(train, "train", lambda *_: pytest.fail("it was not refused at the start"))
        with pytest.raises(SystemExit, match="run cannot be used: .*\n.* --out FOLDER begins another"):
            run(tmp_path, "--seed", "1")

    at_step(monkeypatch, 1, second)    # the first has saved nothing yet
    out = run(tmp_path)
    assert log_of(out)[-1]["step"] == 12 and GPT.from_pretrained(out).info["role"] == "solver"

@pytest.mark.parametrize("n_saved", [0, 6])
def test_of_two_trainings_that_resume_at_once_one_stops_at_its_next_save_and_no_student_is_lost(tmp_path, small, monkeypatch, n_saved):
    if n_saved:
        at_step(monkeypatch, n_saved + 1, interrupt)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path)
    files = {}

    def second():
        out = run(tmp_path, "--resume")
        files.update((path, path.read_bytes()) for path in out.iterdir())

    at_step(monkeypatch, 1, second)
    with pytest.raises(SystemExit, match="run is another training's. This one stops"):
        run(tmp_path, "--resume")
    assert {path: path.read_bytes() for path in (tmp_path / "run").iterdir()} == files
    assert len(files) == 4 and log_of(tmp_path / "run")[-1]["step"] == 12

@pytest.mark.parametrize("place", ["a file", "a file/run", "locked/run"])
def test_a_folder_that_cannot_be_written_is_told_at_the_start(tmp_path, small, monkeypatch, place):
    (tmp_path / "a file").touch()
    (tmp_path / "locked").mkdir(mode=0o500)
    if place == "locked/run" and os.access(tmp_path / "locked", os.W_OK):
        pytest.skip("root may write anywhere")
    monkeypatch.setattr(train, "train", lambda *_: pytest.fail("it was not told at the start"))
    with pytest.raises(SystemExit, match=f"{place} cannot be used: "):
        run(tmp_path, out=place)

@pytest.mark.parametrize("saved, words", [(False, "before the first validation. With --resume it begins anew"), (True, "--resume .*goes on")])
def test_ctrl_c_is_one_line_that_says_what_was_saved(tmp_path, monkeypatch, saved, words):
    (tmp_path / "run").mkdir()
    if saved:
        (tmp_path / "run" / "resume.pt").touch()
    monkeypatch.setattr(data, "load_problems", lambda *_: interrupt())
    monkeypatch.setattr(sys, "argv", ["train.py", "--role", "solver", "--out", str(tmp_path / "run"), "--resume"])
    with pytest.raises(SystemExit, match=f"^\nInterrupted.*{words}.*$"):
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")

def test_a_run_killed_at_a_random_moment_goes_on(tmp_path, small):
    """SIGKILL, the real command, and the same command again with --resume: the student is there and whole."""
    command = [sys.executable, str(ROOT / "train.py"), "--role", "answer", "--model", "nano", "--steps", "20",
               "--batch-tokens", "512", "--dataset", str(tmp_path / "few.jsonl"), "--out", str(tmp_path / "run"), "--resume"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    deadline = time.time() + 60
    while not (tmp_path / "run" / "resume.pt").exists() and time.time() < deadline:
        time.sleep(0.02)
    time.sleep(random.random() / 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    steps = [line["step"] for line in log_of(tmp_path / "run")]
    assert steps == sorted(steps) and steps[-1] == 20
    assert GPT.from_pretrained(tmp_path / "run").info["role"] == "answer"

# ---------------------------------------------------------------- numbers that are not finite

def spoil(monkeypatch, step, what, value):
    """From now on the loss, or one number of the gradient, is this value in one step."""
    calls, backward = [], train.backward

    def spoiled(model, *args):
        calls.append(1)
        loss = backward(model, *args)
        if len(calls) == step and what == "gradient norm":
            model.wte.weight.grad[5, 5] = value
        return loss * value if len(calls) == step and what == "loss" else loss

    monkeypatch.setattr(train, "backward", spoiled)

@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step, best, what", [(1, 0, "loss"), (7, 6, "loss"), (7, 6, "gradient norm")])
def test_a_training_stops_at_the_first_number_that_is_not_finite(tmp_path, small, monkeypatch, value, step, best, what):
    """A guard against a past fault: it went on to the end, and ended as if all were well."""
    spoil(monkeypatch, step, what, value)
    with pytest.raises(SystemExit) as end:
        run(tmp_path)
    for words in (f"Step {step}: the loss is", what, str(value), f"{tmp_path / 'run'} holds the student of step {best}"):
        assert words in str(end.value)
    assert (tmp_path / "run" / "model.safetensors").exists() == (best > 0)
    if best:
        model = GPT.from_pretrained(tmp_path / "run")
        assert model.info["step"] == 6 and all(p.isfinite().all() for p in model.parameters())

@pytest.mark.parametrize("n_good", [0, 2])
def test_a_valid_loss_that_is_no_number_is_never_the_best(tmp_path, small, monkeypatch, capsys, n_good):
    calls, validate = [], train.validate
    monkeypatch.setattr(train, "validate", lambda *a: validate(*a) * (1 if calls.append(1) or len(calls) <= n_good else math.nan))
    out = run(tmp_path)
    assert f"The best student is that of step {2 * n_good} " in capsys.readouterr().out
    assert (out / "model.safetensors").exists() == (n_good > 0)
    assert not n_good or GPT.from_pretrained(out).info["step"] == 4

@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_overflow_in_float16_leaves_one_step_out_and_spoils_nothing(tmp_path, small, monkeypatch, value):
    """A guard against a past fault: one overflow made all gradients NaN, and Muon stepped with them."""
    spoil(monkeypatch, 7, "gradient norm", value)
    out = run(tmp_path, "--dtype", "fp16", "--steps", "9")
    saved = torch.load(out / "resume.pt", weights_only=True)
    assert all(t.isfinite().all() for t in saved["states"][0].values()) and saved["log"][-1]["step"] == 9
    assert saved["states"][-1]["scale"] == 2**15, "the scaler multiplies by half as much"

# ---------------------------------------------------------------- one process, and several

def start(code, *args, **changes):
    """A process of its own that may import the scripts and toy.py; its environment has these changes (None: not set)."""
    env = {key: value for key, value in (os.environ | changes).items() if value is not None}
    code = "import os, shutil, sys; sys.path[:0] = sys.argv[1:3]; sys.argv[1:3] = []; import gpt, train, toy, torch\n" + code
    return subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(ROOT / "tests"), *map(str, args)], env=env,
                            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

TRAIN_SMALL = """
gpt.SIZES["tiny"], rate = toy.tiny_student("solver").config, train.learning_rate
args = train.parse_args(["--role", "solver", "--steps", "12", "--batch-tokens", "512", *sys.argv[1:]])
def keep_step_7(step, *a):
    if train.RANK == 0 and step == 7:
        shutil.copytree(args.out, args.out + "-7")
    return rate(step, *a)
train.learning_rate = keep_step_7
train.main(args)
"""

def two_processes(out, *flags, out_of_second=None):
    """The real command under torchrun's variables: gloo, two processes. Returns what they printed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    processes = [start(TRAIN_SMALL, *flags, "--dataset", out.parent / "few.jsonl", "--out", folder, TORCHELASTIC_RUN_ID="test", WORLD_SIZE="2", RANK=rank, LOCAL_RANK=rank,
                       MASTER_ADDR="127.0.0.1", MASTER_PORT=port, OMP_NUM_THREADS="1")
                 for rank, folder in (("0", out), ("1", out_of_second or out))]
    texts = [process.communicate(timeout=120) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], texts
    return [out for out, _ in texts]

def test_two_processes_give_the_weights_of_one_and_go_on_bit_for_bit(tmp_path, small):
    """
    One micro-batch on each of two against two on one; then the same two go on from what was there after seven steps. They
    all read the file of the first, whatever the second finds: on another machine that is nothing, or another training.
    """
    n_batches = len(make_batches(examples_of("solver", 34), 512, random.Random(0)))
    assert n_batches % 2 and n_batches < 24, "one step ends the first epoch and begins the second"
    one, two, broken, other = (tmp_path / name for name in ("one", "two", "two-7", "other"))
    run(tmp_path, "--accumulate", "2", out="one")
    first, second = two_processes(two)
    assert "valid loss" in first and second == ""
    for a, b in zip(weights(one).values(), weights(two).values()):
        assert torch.allclose(a, b, atol=1e-5), (a - b).abs().max()
    assert log_of(broken)[-1]["step"] == 6 and not same_weights(two, broken)
    other.mkdir()
    (other / "resume.pt").write_bytes(b"of another training")
    two_processes(broken, "--resume", out_of_second=other)
    assert same_weights(two, broken) and log_of(two) == log_of(broken)
    assert [path.name for path in other.iterdir()] == ["resume.pt"], "only the first one saves"

def test_a_clusters_variables_without_torchrun_are_one_process_of_one_thread_that_needs_no_home(tmp_path, small):
    """A guard against past faults: it waited for partners that nobody had started; the import of gpt.py asked for the home."""
    nobody = "import pwd\npwd.getpwuid = lambda uid: {}['no such user']\ntorch.set_num_threads(2)\n"
    process = start(nobody + TRAIN_SMALL + "print('threads:', torch.get_num_threads())", "--dataset", tmp_path / "few.jsonl",
                    "--out", tmp_path / "run", HOME=None, OMP_NUM_THREADS=None, TORCHELASTIC_RUN_ID=None, WORLD_SIZE="4", RANK="3", LOCAL_RANK="3", MASTER_ADDR="127.0.0.1")
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert ", 1 x cpu, " in out and "threads: 1\n" in out and (tmp_path / "run" / "model.safetensors").exists()

@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the threads")
def test_no_thread_of_a_process_group_outlives_it():
    """A guard against a past fault: one process in twenty ended with SIGABRT, since a thread of gloo was still at work."""
    process = start("from pathlib import Path\ntrain.dist.init_process_group('gloo', store=train.dist.HashStore(), rank=0, world_size=1)\n"
                    "train.make_optimizers(train.GPT(train.SIZES['nano']))\ntrain.dist.barrier()\ntrain.dist.destroy_process_group()\n"
                    "print([name for name in (path.read_text() for path in Path('/proc/self/task').glob('*/comm')) if 'gloo' in name])")
    out, error = process.communicate(timeout=120)
    assert out == "[]\n", error

def test_each_process_takes_its_own_gpu_before_nccl_starts(monkeypatch):
    calls = []
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(str(device)))
    monkeypatch.setattr(train.dist, "init_process_group", lambda backend: calls.append(backend))
    monkeypatch.setattr(train.atexit, "register", lambda end: None)
    train.start_processes(torch.device("cuda:1"))
    assert calls == ["cuda:1", "nccl"]

"""The loss counts what it should, the gradients do not depend on how a step is cut up, and a killed run goes on."""

import itertools
import json
import math
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from toy import PROBLEM, tiny_student

import train
from train import batches, summed_loss
from data import IGNORE, Problem, Step, encode, get_tokenizer, load_problems, segments
from gpt import GPT, SIZES

ROOT = Path(train.__file__).resolve().parent
NO_AUTOCAST = torch.autocast("cpu", enabled=False)
NO_SCALER = torch.amp.GradScaler("cpu", enabled=False)


def examples_of(role, n=12):
    tokenizer = get_tokenizer("tiny")
    return [encode(segments(p, role), tokenizer) for p in load_problems("demo", "train", limit=n)]


def gradients(examples, groups):
    """(loss, gradients) of one optimizer step over the examples, cut into these micro-batches."""
    model = tiny_student("solver")
    micro_batches = [train.collate([examples[i] for i in group], "cpu") for group in groups]
    loss = train.backward(model, micro_batches, train.count_learned(examples), NO_AUTOCAST, NO_SCALER)
    return loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])


def test_every_example_comes_once_an_epoch_in_batches_of_the_budget_with_little_padding():
    rng = random.Random(1)
    examples = [([i] * rng.randint(5, 200), []) for i in range(1000)]
    groups = batches(examples, 2000, random.Random(2))
    assert sorted(ids[0] for group in groups for ids, _ in group) == list(range(1000))
    padded = [len(group) * max(len(ids) for ids, _ in group) for group in groups]
    assert max(padded) <= 2000
    assert sum(padded) < 1.05 * sum(len(ids) for ids, _ in examples)
    other = batches(examples, 2000, random.Random(3))
    assert groups != other and groups == batches(examples, 2000, random.Random(2))


def test_an_example_longer_than_the_budget_gets_a_batch_of_its_own():
    short, long = ([0] * 10, []), ([0] * 500, [])
    assert sorted(batches([short, long], 100, random.Random(0))) == [[short], [long]]


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


def test_padding_changes_nothing():
    examples = examples_of("cot", 6)
    model = tiny_student("cot")
    together = summed_loss(model, *train.collate(examples, "cpu")).item()
    alone = sum(summed_loss(model, *train.collate([e], "cpu")).item() for e in examples)
    assert math.isclose(together, alone, rel_tol=1e-5)


def test_a_batch_in_which_nothing_is_learned_gives_no_gradient_and_no_nan():
    model = tiny_student("solver")
    loss = summed_loss(model, torch.tensor([[1, 2, 3]]), torch.full((1, 3), IGNORE))
    loss.backward()
    assert loss.item() == 0 and all(p.grad is None or not p.grad.any() for p in model.parameters())


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
    ours, theirs = muon_steps(train.Muon, shape), muon_steps(torch.optim.Muon, shape, weight_decay=0.01, adjust_lr_fn="match_rms_adamw")
    assert (ours - theirs).norm() < 0.05 * theirs.norm()  # theirs is computed in bfloat16


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


def test_examples_that_do_not_fit_are_left_out_whole_and_counted(small, tmp_path, monkeypatch, capsys):
    long = Problem("long", "word " * 3000, PROBLEM.steps, "7")
    bare = Problem("bare", "How many?", [], "7")
    monkeypatch.setattr(train, "load_problems", lambda dataset, split, *_: [PROBLEM, long, bare, bare])
    args = train.parse_args(["--role", "solver"])
    _, problems, examples, valid = train.load(args)
    assert len(problems) == 4 and len(examples) == len(valid) == 1
    assert "left out: 2 problems that lack what a solver learns, 1 that are too long" in capsys.readouterr().out


def told(i, a, b):
    """A problem that can be told with other numbers."""
    steps = [Step("How many are there?", f"There are {a}+{b} = <<{a}+{b}={a + b}>>{a + b} pens.")]
    return Problem(f"told-{i}", f"Ava has {a} pens and gets {b} more. How many are there?", steps, str(a + b))


def test_every_epoch_tells_other_numbers_the_same_ones_again_for_the_same_seed():
    problems = [told(i, 20 + i, 110 + i) for i in range(9)] + load_problems("demo", "train", limit=2)
    first, again, other = (train.with_other_numbers(problems, 3, epoch) for epoch in (0, 0, 1))
    assert first == again != other
    assert first[9:] == other[9:] == problems[9:], "a story of the demo keeps its numbers"
    assert all(new.answer != old.answer or new != old for new, old in zip(first[:9], problems))


def test_epochs_of_unlike_length_go_on_bit_for_bit_after_a_kill_in_the_second(small, tmp_path, monkeypatch):
    """With other numbers the texts have other lengths, so an epoch may have one batch more."""
    problems = [told(i, 60 + i, 600 + 9 * i) for i in range(60)]    # 600 may become 1,000: a token more
    monkeypatch.setattr(train, "load_problems", lambda dataset, split, *_: list(problems))
    flags = ["--dataset", "mine.jsonl", "--batch-tokens", "300"]
    n_batches = set()
    for epoch in range(9):
        examples = train.make_examples(train.with_other_numbers(problems, 0, epoch), "solver", tiny_student("solver"))
        n_batches.add(len(batches(examples, 300, random.Random(0))))
    assert len(n_batches) > 1, "all epochs have the same length: the test would see nothing"

    n_steps = 2 * max(n_batches)    # it reaches into the third epoch
    whole = run(tmp_path, *flags, "--steps", str(n_steps), out="whole")
    step = train.Trainer.step
    monkeypatch.setattr(train, "N_EVALS", n_steps)    # every step is saved
    calls = []

    def interrupted(*args):
        calls.append(1)
        if len(calls) == max(n_batches) + 3:
            raise KeyboardInterrupt
        return step(*args)

    monkeypatch.setattr(train.Trainer, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, *flags, "--steps", str(n_steps), out="broken")
    monkeypatch.setattr(train.Trainer, "step", step)
    broken = run(tmp_path, *flags, "--steps", str(n_steps), "--resume", out="broken")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(broken).values()))


def test_renumbering_is_on_from_scratch_only_and_never_for_generated_stories():
    def is_on(*flags):
        args = train.parse_args(["--role", "cot", *flags])
        train.set_defaults(args, args.model != "gpt2")
        return args.renumber
    assert not is_on() and not is_on("--dataset", "world+demo", "--renumber")
    assert is_on("--dataset", "gsm8k") and is_on("--dataset", "world+gsm8k", "--model", "mini")
    assert not is_on("--dataset", "gsm8k", "--model", "gpt2") and not is_on("--dataset", "gsm8k", "--no-renumber")
    assert is_on("--dataset", "svamp", "--model", "gpt2", "--renumber")


def run(tmp_path, *flags, out="run"):
    train.main(train.parse_args(["--role", "solver", "--limit", "34", "--steps", "12", "--batch-tokens", "512",
                                 "--out", str(tmp_path / out), *flags]))
    return tmp_path / out


@pytest.fixture
def small(monkeypatch):
    """A `tiny` that trains in a second."""
    monkeypatch.setitem(SIZES, "tiny", tiny_student("solver").config)
    monkeypatch.setattr(train, "load_problems", lambda *a: load_problems(*a[:3], min(a[3] or 40, 40), *a[4:]))


def weights(folder):
    return torch.load(folder / "resume.pt", weights_only=True)["states"][0]


def test_a_resumed_run_ends_with_the_weights_of_an_unbroken_one_bit_for_bit(tmp_path, small, monkeypatch):
    whole = run(tmp_path, out="whole")
    calls, backward = [], train.backward

    def interrupted(*args):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return backward(*args)

    monkeypatch.setattr(train, "backward", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, out="broken")
    monkeypatch.setattr(train, "backward", backward)
    broken = run(tmp_path, "--resume", out="broken")
    assert all(torch.equal(a, b) for a, b in zip(weights(whole).values(), weights(broken).values()))
    lines = [[{k: v for k, v in json.loads(line).items() if k != "tokens_per_second"}
              for line in (folder / "log.jsonl").open()] for folder in (whole, broken)]
    assert lines[0] == lines[1]


def test_every_step_is_whole_and_an_epoch_shows_every_example_once():
    examples, model = examples_of("solver", 20), tiny_student("solver")
    args = train.parse_args(["--role", "solver", "--accumulate", "3", "--batch-tokens", "512"])
    args.renumber = False
    n_batches = len(batches(examples, 512, random.Random(0)))
    assert n_batches % 3, "the epochs do not end with a step"
    steps = list(itertools.islice(train.all_steps([], examples, model, args), n_batches))    # three epochs
    assert {len(step) for step in steps} == {3}
    seen = [str(example) for step in steps for batch in step for example in batch]
    assert sorted(seen) == sorted(3 * list(map(str, examples)))


def test_a_teachers_student_is_chosen_by_the_teachers_text(tmp_path, small, capsys):
    """Annotations of the training split alone: a part of them is held out, gold steps are no substitute."""
    problems = load_problems("demo", "train", limit=40)
    (tmp_path / "a.jsonl").write_text("".join(p.to_json() + "\n" for p in problems), encoding="utf-8")
    run(tmp_path, "--annotations", str(tmp_path / "a.jsonl"))
    out = capsys.readouterr().out
    assert "every 20th training problem is held out" in out and "32 dialogues" in out


def test_a_run_is_never_overwritten_or_mixed_with_other_flags(tmp_path, small):
    run(tmp_path)
    with pytest.raises(SystemExit, match="--resume"):
        run(tmp_path)
    with pytest.raises(SystemExit, match="other flags or problems: {'seed': 0}"):
        run(tmp_path, "--resume", "--seed", "1")


def test_a_student_says_what_it_is_and_can_be_trained_on(tmp_path, small):
    out = run(tmp_path)
    model = GPT.from_pretrained(out)
    assert model.info["role"] == "solver" and model.info["tokenizer"] == "tiny" and model.info["dataset"] == "demo"
    assert model.info["eos_token_id"] == get_tokenizer("tiny").eot_token
    again = run(tmp_path, "--model", str(out), out="again")
    first = json.loads((again / "log.jsonl").open().readline())
    fresh = json.loads((out / "log.jsonl").open().readline())
    assert first["valid_loss"] < fresh["valid_loss"], "it goes on from what it knew"


def test_the_next_command_is_the_partners_training_and_then_the_evaluation(tmp_path, small, capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["train.py", "--role", "solver", "--out", "a-solver"])
    out = run(tmp_path, out="a-solver")
    assert "Next: python train.py --role decomposer --out a-decomposer\n" in capsys.readouterr().out
    out.rename(tmp_path / "b-decomposer")
    run(tmp_path, out="b-solver")
    pair = f"{tmp_path / 'b-solver'} {tmp_path / 'b-decomposer'}"
    assert f"Next: python eval.py --dataset demo --method socratic --students {pair}\n" in capsys.readouterr().out
    out = run(tmp_path, "--role", "cot", out="my runs")
    assert f"Next: python eval.py --dataset demo --method cot --students '{out}'\n" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["train.py", "--role", "solver", "--out", "t1"])
    out = run(tmp_path, out="t1")    # a name that does not say the role
    assert f"Next: python train.py --role decomposer --out t1 --out {out}-decomposer\n" in capsys.readouterr().out


def test_it_learns_four_problems_by_heart(tmp_path):
    examples, model = examples_of("unified", 4), tiny_student("unified", n_embd=64)
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    batch = [train.collate(examples, "cpu")]
    for _ in range(250):
        loss = train.backward(model, batch, train.count_learned(examples), NO_AUTOCAST, NO_SCALER)
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05


def test_a_role_without_anything_to_learn_names_the_command_that_helps(tmp_path, monkeypatch):
    bare = [Problem("a", "How many?", [], "7")]
    monkeypatch.setattr(train, "load_problems", lambda *a: bare)
    with pytest.raises(SystemExit, match="python annotate.py --dataset gsm8k"):
        train.main(train.parse_args(["--role", "solver", "--dataset", "gsm8k", "--out", str(tmp_path / "run")]))


def two_processes(out, *more, stop_at=None, path_of_second="", **pipes):
    """The real command under torchrun's variables: gloo, two processes. Both fail at a step. Returns the processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    code = ("import os, sys; sys.path[:0] = sys.argv[1:3]; import gpt, train, toy;"
            "gpt.SIZES['tiny'] = toy.tiny_student('solver').config; load, rate = train.load_problems, train.learning_rate;"
            "train.load_problems = lambda *a: load(*a[:3], min(a[3] or 40, 40), *a[4:]);"
            f"train.learning_rate = lambda step, *a: os._exit(9) if step == {stop_at} else rate(step, *a);"
            "train.main(train.parse_args(sys.argv[3:]))")
    flags = ["--role", "solver", "--limit", "34", "--steps", "12", "--batch-tokens", "512", *more]
    common = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
    return [subprocess.Popen([sys.executable, "-c", code, str(ROOT), str(ROOT / "tests"), *flags, "--out", str(folder)],
                             env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, text=True, **pipes)
            for rank, folder in enumerate([out, path_of_second or out])]


def codes_of(processes):
    return [process.wait(timeout=120) for process in processes]


def test_two_processes_give_the_weights_of_one_and_go_on_bit_for_bit(tmp_path, small):
    """One micro-batch on each of two against two on one; then the same two, stopped at step 7 and resumed."""
    n_batches = len(batches(examples_of("solver", 34), 512, random.Random(0)))
    assert n_batches % 2 and n_batches < 24, "one step ends the first epoch and begins the second"
    one = run(tmp_path, "--accumulate", "2", out="one")
    assert codes_of(two_processes(tmp_path / "two")) == [0, 0]
    for a, b in zip(weights(one).values(), weights(tmp_path / "two").values()):
        assert torch.allclose(a, b, atol=1e-5), (a - b).abs().max()
    command = json.loads((tmp_path / "two" / "config.json").read_text())["command"]
    assert command.startswith("torchrun --nproc-per-node 1 train.py"), "one on each of two machines"
    assert 0 not in codes_of(two_processes(tmp_path / "broken", stop_at=7))    # the slower one may lose its partner before
    assert codes_of(two_processes(tmp_path / "broken", "--resume")) == [0, 0]
    assert all(map(torch.equal, weights(tmp_path / "two").values(), weights(tmp_path / "broken").values()))


@pytest.mark.parametrize("second", ["nothing", "other weights"])
def test_processes_that_would_go_on_from_different_checkpoints_stop(tmp_path, small, second):
    """Two machines without a common disk: the second has no resume.pt, or that of another training."""
    mine, other = tmp_path / "first" / "resume.pt", tmp_path / "second" / "resume.pt"
    assert 0 not in codes_of(two_processes(mine.parent, stop_at=7))
    other.parent.mkdir()
    if second == "other weights":
        saved = torch.load(mine, weights_only=True)
        saved["states"][0]["wte.weight"][3, 4] += 1e-6
        torch.save(saved, other)
    processes = two_processes(mine.parent, "--resume", path_of_second=other.parent, stderr=subprocess.PIPE)
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert 0 not in codes_of(processes)    # 1; or -6, where gloo aborts because its partner has gone
    assert f"Copy {mine} of the first machine" in errors[0] and "Traceback" not in errors[0] + errors[1]


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="asks Linux for the threads")
def test_no_thread_of_a_process_group_outlives_it():
    """A test that guards a past bug: one process in twenty ended with SIGABRT, since a thread of gloo was still at work."""
    code = ("import sys; sys.path.insert(0, sys.argv[1]); from pathlib import Path; import train;"
            "train.dist.init_process_group('gloo', store=train.dist.HashStore(), rank=0, world_size=1);"
            "train.make_optimizers(train.GPT(train.SIZES['nano'])); train.dist.barrier(); train.dist.destroy_process_group();"
            "print([name for name in (path.read_text() for path in Path('/proc/self/task').glob('*/comm')) if 'gloo' in name])")
    assert subprocess.run([sys.executable, "-c", code, str(ROOT)], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_each_process_takes_its_own_gpu_before_nccl_starts(monkeypatch):
    calls = []
    monkeypatch.setattr(train, "WORLD", 2)
    monkeypatch.setattr(train, "pick_device", lambda *_: (torch.device("cuda:1"), torch.bfloat16))
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: calls.append(str(device)))
    monkeypatch.setattr(train.dist, "init_process_group", lambda backend, timeout: calls.append(backend))
    monkeypatch.setattr(train.atexit, "register", lambda end: None)
    monkeypatch.setattr(train, "load", lambda args: sys.exit("far enough"))
    with pytest.raises(SystemExit, match="far enough"):
        train.prepare(train.parse_args(["--role", "solver"]))
    assert calls == ["cuda:1", "nccl"]


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


@pytest.mark.parametrize("what, value", [("loss", math.nan), ("loss", math.inf), ("gradient norm", math.nan), ("gradient norm", math.inf)])
def test_a_training_stops_at_the_first_number_that_is_not_finite(tmp_path, small, monkeypatch, what, value):
    """A guard against a past fault: it went on to the end, and ended as if all were well."""
    spoil(monkeypatch, 7, what, value)
    with pytest.raises(SystemExit) as end:
        run(tmp_path)
    for words in ("Step 7: the loss is", what, str(value), "that of step 6 (0: none), in", str(tmp_path / "run")):
        assert words in str(end.value)
    model = GPT.from_pretrained(tmp_path / "run")
    assert model.info["step"] == 6 and all(p.isfinite().all() for p in model.parameters())


def test_before_the_first_validation_no_student_is_promised(tmp_path, small, monkeypatch):
    spoil(monkeypatch, 1, "loss", math.nan)
    with pytest.raises(SystemExit, match="that of step 0 .0: none."):
        run(tmp_path)


def test_a_valid_loss_that_is_no_number_stops_the_training(tmp_path, small, monkeypatch):
    monkeypatch.setattr(train, "summed_loss", lambda *_, loss=train.summed_loss: loss(*_) * (1 if torch.is_grad_enabled() else math.nan))
    with pytest.raises(SystemExit, match="Step 2: the valid loss is nan, so the training stops"):
        run(tmp_path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_an_overflow_in_float16_leaves_one_step_out_and_spoils_nothing(tmp_path, small, monkeypatch, value):
    """A guard against a past fault: one overflow made all gradients NaN, and Muon stepped with them."""
    spoil(monkeypatch, 7, "gradient norm", value)
    out = run(tmp_path, "--dtype", "fp16")
    saved = torch.load(out / "resume.pt", weights_only=True)
    assert all(t.isfinite().all() for t in saved["states"][0].values()) and saved["log"][-1]["step"] == 12
    assert saved["states"][-1]["scale"] == 2**15, "the scaler multiplies by half as much"


def test_a_run_killed_at_a_random_moment_goes_on(tmp_path):
    """SIGKILL, the real command, and the same command again with --resume: the student is there and whole."""
    command = [sys.executable, str(ROOT / "train.py"), "--role", "answer", "--limit", "60", "--steps", "30",
               "--batch-tokens", "512", "--out", str(tmp_path / "run")]
    rng = random.Random(0)
    for _ in range(2):
        process = subprocess.Popen([*command, "--resume"], stdout=subprocess.DEVNULL)
        deadline = time.time() + 60
        while not (tmp_path / "run" / "resume.pt").exists() and time.time() < deadline:
            time.sleep(0.02)
        time.sleep(rng.random() / 2)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run([*command, "--resume"], check=True, stdout=subprocess.DEVNULL)
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").open()]
    assert steps == sorted(steps) and steps[-1] == 30
    assert GPT.from_pretrained(tmp_path / "run").info["role"] == "answer"


def devices():
    yield "cpu"
    if torch.cuda.is_available():
        yield "cuda"
    if torch.backends.mps.is_available():
        yield "mps"


@pytest.mark.parametrize("dtype, most", [("fp32", 1e-4), ("bf16", 0.05), ("fp16", 0.01)])
@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_every_device_computes_in_every_dtype_what_the_cpu_does(device, dtype, most):
    """Devices have had wrong vocabulary heads and optimizers: loss, gradients and one step beside the CPU's in fp32."""
    if device not in devices():
        pytest.skip(f"no {device} on this machine")
    found = {}
    for where, how in (("cpu", "fp32"), (device, dtype)):
        trainer = train.Trainer(tiny_student("solver"), *train.pick_device(where, how))
        before = torch.cat([p.detach().cpu().flatten() for p in trainer.model.parameters()])
        loss, norm = trainer.step([examples_of("solver")], 1e-3)
        after = torch.cat([p.detach().cpu().flatten() for p in trainer.model.parameters()])
        gradient = torch.cat([p.grad.cpu().flatten() for p in trainer.model.parameters()])
        found[where, how] = loss, gradient, after - before, trainer
    (loss, gradient, change, _), (its_loss, its_gradient, its_change, trainer) = found["cpu", "fp32"], found[device, dtype]
    assert abs(its_loss - loss) < most * loss and change.abs().max() > 1e-4
    assert (its_gradient - gradient).norm() < 3 * most * gradient.norm()
    # Muon brings all singular values near 1, the small and noisy ones too: its step is compared by direction.
    assert torch.cosine_similarity(its_change, change, dim=0) > 1 - 10 * most
    assert trainer.validate([examples_of("solver")]) < its_loss


def test_a_training_goes_on_only_with_the_same_problems_and_the_same_dtype(tmp_path):
    mine = tmp_path / "mine.jsonl"
    records = [Problem(f"p-{i}", f"Ava has {i} pens. How many?", PROBLEM.steps, str(i)) for i in range(60)]
    mine.write_text("".join(r.to_json() + "\n" for r in records), encoding="utf-8")
    flags = ["--role", "solver", "--dataset", str(mine), "--steps", "2", "--out", str(tmp_path / "run"), "--batch-tokens", "600"]
    train.main(train.parse_args(flags))
    with pytest.raises(SystemExit, match="'dtype': 'float32'"):
        train.main(train.parse_args([*flags, "--resume", "--dtype", "bf16"]))
    mine.write_text("".join(r.to_json() + "\n" for r in records[5:]), encoding="utf-8")
    with pytest.raises(SystemExit, match="other flags or problems: {'examples_sha256'"):
        train.main(train.parse_args([*flags, "--resume"]))


def test_a_file_of_which_too_little_teaches_the_role_is_told_before_the_training(tmp_path):
    mine = tmp_path / "mine.jsonl"
    bare = [Problem(f"b-{i}", f"Who has {i} pens?", [], str(i)) for i in range(30)]
    good = Problem("good", "Ava has 3 pens. How many?", PROBLEM.steps, "7")
    mine.write_text("".join(r.to_json() + "\n" for r in [*bare, good]), encoding="utf-8")
    with pytest.raises(SystemExit, match="Too few problems hold what a solver learns"):
        train.main(train.parse_args(["--role", "solver", "--dataset", str(mine), "--out", str(tmp_path / "run")]))


def test_resume_does_not_begin_anew_where_resume_pt_is_gone(tmp_path, small):
    """A guard against a past fault: a script that always says --resume wrote over a finished student."""
    out = run(tmp_path)
    student = (out / "model.safetensors").read_bytes()
    (out / "resume.pt").unlink()
    with pytest.raises(SystemExit, match="holds a run already. If it has a resume.pt, --resume goes on"):
        run(tmp_path, "--resume")
    assert (out / "model.safetensors").read_bytes() == student

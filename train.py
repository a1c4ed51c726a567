"""
How does it learn? A student GPT-2 is trained to write its part of the dialogue.

    python train.py --role decomposer                        minutes on a laptop, no download
    python train.py --role solver
    python train.py --role solver --dataset gsm8k --model gpt2              the paper's setting
    torchrun --nproc-per-node 8 train.py --role solver --dataset gsm8k --model gpt2-large

Reads   problem records (data.py), with --annotations a teacher's (annotate.py)
Writes  runs/<dataset>-<model>-<role>/
            model.safetensors, config.json   the student that was best on valid, in half precision
            log.jsonl                        every printed number, up to the last validation
            resume.pt                        all that --resume needs

Shapes  B rows   T tokens   N learned tokens   V vocabulary
"""

import argparse
import atexit
import hashlib
import itertools
import json
import math
import os
import random
import shlex
import sys
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn    # if AdamW imports it later, gloo's threads live on and crash
import torch.nn.functional as F

from data import (DATASET_HELP, IGNORE, ROLES, Segment, can_learn, encode, load_problems, positive,
                  renumber, replace_file, run_name, segments, show)
from gpt import FROM_SCRATCH, GPT, SIZES, pick_device

WARMUP = 0.05          # the share of the steps in which the learning rate rises to its peak
WEIGHT_DECAY = 0.01    # of matrices and embeddings
MOMENTUM = 0.95        # of Muon
MAX_NORM = 1.0         # longer gradients are clipped to this length
N_EPOCHS = 10          # the length of a training, if --steps does not say another
N_EVALS = 10           # how often a run validates, and saves what --resume needs

# torchrun starts WORLD processes. This one has the number RANK, on its machine LOCAL_RANK.
WORLD = int(os.environ.get("WORLD_SIZE", 1))
RANK = int(os.environ.get("RANK", 0))
LOCAL_RANK = int(os.environ.get("LOCAL_RANK", 0))
N_HERE = os.environ.get("LOCAL_WORLD_SIZE", str(WORLD))    # processes on this machine
LAUNCHER = ["torchrun", "--nproc-per-node", N_HERE] if WORLD > 1 else ["python"]

# ------------------------------------------------------------ batches

def make_examples(problems, role, model, learn_all=False):
    """[(ids, targets)] of the problems that teach this role and fit the model."""
    tokenizer, examples = model.get_tokenizer(), []
    for problem in problems:
        if can_learn(problem, role):
            parts = [Segment(part.text, part.learned or learn_all)
                     for part in segments(problem, role)]
            examples.append(encode(parts, tokenizer))
    # An example that is too long is dropped: cutting it would cut its answer off.
    return [example for example in examples if length(example) <= model.config.n_positions]

def with_other_numbers(problems, seed, epoch):
    """The problems as one epoch shows them: renumbered where that is safe."""
    return [renumber(problem, random.Random(f"{seed}-{epoch}-{problem.id}")) or problem
            for problem in problems]

def length(example):
    return len(example[0])

def count_learned(examples):
    return sum(target != IGNORE for _, targets in examples for target in targets)

def batches(examples, n_tokens, rng):
    """
    Lists of examples: every example once, at most `n_tokens` tokens per list with padding (unless
    one example alone has more).

    Examples of nearly the same length stand together, so almost nothing is padded. The order of
    the lists is random, and so is which examples of one length share a list.
    """
    order, lists = list(examples), [[]]
    rng.shuffle(order)
    for example in sorted(order, key=length):
        if lists[-1] and (len(lists[-1]) + 1) * length(example) > n_tokens:
            lists.append([])
        lists[-1].append(example)
    rng.shuffle(lists)
    return lists

def all_steps(problems, examples, model, args):
    """
    Yield the batches of one optimizer step after another, endlessly. Every call yields the same
    ones, so that --resume can skip those that are done.
    """
    n_batches, waiting = args.accumulate * WORLD, []
    for epoch in itertools.count():
        if args.renumber:
            told = with_other_numbers(problems, args.seed, epoch)
            examples = make_examples(told, args.role, model, args.learn_all)
        order = batches(examples, args.batch_tokens, random.Random(f"{args.seed}-{epoch}"))
        if args.model in FROM_SCRATCH and epoch == 0:
            # The shortest sixth of the dialogues comes first: heads that copy form sooner where
            # there is less to look through.
            short = sorted(map(length, examples))[len(examples) // 6]
            order.sort(key=lambda batch: length(batch[0]) > short)
        waiting += order
        while len(waiting) >= n_batches:    # a step may end one epoch and begin the next
            yield waiting[:n_batches]
            del waiting[:n_batches]

def collate(batch, device):
    """(ids, targets), both (B, T), padded on the right where the causal mask hides the padding."""
    T = max(map(length, batch))
    ids = [ids + [0] * (T - len(ids)) for ids, _ in batch]
    targets = [targets + [IGNORE] * (T - len(targets)) for _, targets in batch]
    return torch.tensor(ids, device=device), torch.tensor(targets, device=device)

# ------------------------------------------------------------ one optimizer step

def summed_loss(model, ids, targets):
    """The cross entropy of the learned tokens, added up; ids and targets are (B, T)."""
    learned = targets != IGNORE                                         # (B, T)
    logits = model(ids, learned)                                        # (N, V)
    return F.cross_entropy(logits.float(), targets[learned], reduction="sum")

def backward(model, micro_batches, n_learned, autocast, scaler):
    """
    Compute the gradients of one optimizer step. Returns its loss, a tensor.

    Every loss is divided by `n_learned`, the number of learned tokens of the whole step: all
    micro-batches of all processes. So each learned token counts the same, wherever it stands. A
    mean for each micro-batch would let a token of a short answer outweigh one of a long solution.
    """
    step_loss = torch.zeros((), device=model.wte.weight.device)
    model.zero_grad()
    for ids, targets in micro_batches:
        with autocast:
            loss = summed_loss(model, ids, targets) * (1 / n_learned)
        scaler.scale(loss).backward()
        step_loss += loss.detach()
    if WORLD > 1:    # the other processes had other micro-batches
        for t in [step_loss, *(p.grad for p in model.parameters())]:
            dist.all_reduce(t)
    return step_loss

class Trainer:
    """A model with all that an optimizer step needs."""

    def __init__(self, model, device, dtype):
        self.model, self.device = model.to(device), device
        self.optimizers = make_optimizers(model)
        self.autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
        # Small gradients vanish in float16. The scaler multiplies the loss to prevent that.
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.parts = [model, *self.optimizers, self.scaler]    # all that changes

    def step(self, step_batches, lr):
        """
        One optimizer step on a list of batches. Returns its loss and gradient norm. Where they
        are not finite, a FloatingPointError is raised and the weights stay as they are; only an
        overflow in float16 is not an error: that step is skipped.
        """
        n_learned = sum(map(count_learned, step_batches))
        micro_batches = [collate(batch, self.device) for batch in step_batches[RANK::WORLD]]
        loss = backward(self.model, micro_batches, n_learned, self.autocast, self.scaler).item()
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
            for group in optimizer.param_groups:
                group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), MAX_NORM).item()
        if math.isfinite(loss) and math.isfinite(norm):
            for optimizer in self.optimizers:
                self.scaler.step(optimizer)
        elif not math.isfinite(loss) or self.scaler.get_scale() == 1:
            raise FloatingPointError(f"the loss is {loss}, the gradient norm {norm}")
        self.scaler.update()    # after an overflow in float16 it multiplies by less
        return loss, norm

    @torch.no_grad()
    def validate(self, valid_batches):
        """The mean loss of a learned token, in nats."""
        with self.autocast:
            total = sum(summed_loss(self.model, *collate(batch, self.device)).item()
                        for batch in valid_batches)
        if not math.isfinite(total):
            raise FloatingPointError(f"the valid loss is {total}")
        return total / sum(map(count_learned, valid_batches))

def learning_rate(step, n_steps, peak):
    """A linear warm-up, then half a cosine down to zero."""
    n_rising = max(1, int(WARMUP * n_steps))
    if step < n_rising:
        return peak * (step + 1) / n_rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - n_rising) / max(1, n_steps - n_rising)))

class Muon(torch.optim.Optimizer):
    """
    For the matrices of a model from scratch (Jordan et al., 2024,
    https://kellerjordan.github.io/posts/muon): a step is the momentum with all its singular
    values brought near 1, so that rare directions are learned as fast as frequent ones.

    Newton and Schulz do that with matrix products alone: their odd polynomial, applied five
    times, lifts singular values between 0.002 and 1 to about 1. The step is then as long as
    AdamW's (Liu et al., 2025, arXiv 2502.16982, section 2.2), so both share a learning rate.
    torch.optim.Muon computes in bfloat16, which is far slower on most CPUs.
    """

    def __init__(self, matrices):
        super().__init__(matrices, {"lr": 0.0})

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        for p in group["params"]:
            momentum = self.state[p].setdefault("momentum", torch.zeros_like(p))
            momentum.lerp_(p.grad, 1 - MOMENTUM)
            x = p.grad.lerp(momentum, MOMENTUM)    # Nesterov: look one step ahead
            is_tall = x.shape[0] > x.shape[1]
            x = x.T if is_tall else x
            x = x / (x.norm() + 1e-7)
            for _ in range(5):
                square = x @ x.T
                x = 3.4445 * x + (2.0315 * square @ square - 4.7750 * square) @ x
            p.mul_(1 - group["lr"] * WEIGHT_DECAY)
            p.add_(x.T if is_tall else x, alpha=-group["lr"] * 0.2 * max(p.shape)**0.5)

def make_optimizers(model):
    """AdamW; in models of ours Muon for the blocks' matrices. Biases and gains do not decay."""
    embeddings = [model.wte.weight, model.wpe.weight]
    matrices = [p for p in model.h.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    decaying = embeddings if is_ours(model) else embeddings + matrices
    adamw = torch.optim.AdamW([{"params": decaying, "weight_decay": WEIGHT_DECAY},
                               {"params": vectors, "weight_decay": 0.0}],
                              betas=(0.9, 0.95), fused=True)
    return [Muon(matrices), adamw] if is_ours(model) else [adamw]

def is_ours(model):
    """Whether it began from scratch here. Released weights are trained more gently."""
    return model.info.get("tokenizer") == "tiny"

# ------------------------------------------------------------ preparation

def say(text):
    """Print, but under torchrun only once."""
    if RANK == 0:
        print(text, flush=True)

def prepare(args):
    """(trainer, training problems, their examples, valid batches). Completes args."""
    device, dtype = pick_device(args.device, args.dtype)
    if WORLD > 1:
        if device.type == "cuda":
            torch.cuda.set_device(device)    # otherwise NCCL would give all processes one GPU
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo",
                                timeout=timedelta(hours=2))    # the others wait for a download
        atexit.register(dist.destroy_process_group)
    # The first process of each machine downloads; the others wait, and find the files there.
    if LOCAL_RANK > 0:
        dist.barrier()
    model, problems, examples, valid = load(args)
    if LOCAL_RANK == 0 and WORLD > 1:
        dist.barrier()
    n_tokens = sum(map(length, examples))
    n_batches = len(batches(examples, args.batch_tokens, random.Random(0)))
    n_steps_an_epoch = n_batches / (args.accumulate * WORLD)
    args.steps = args.steps or math.ceil(N_EPOCHS * n_steps_an_epoch)
    # These are saved with the flags, so that --resume can check that they are the same.
    args.dtype = str(dtype).removeprefix("torch.")
    args.examples_sha256 = hashlib.sha256(repr(examples).encode()).hexdigest()[:16]
    say(f"{args.role} on {args.dataset}: {model.n_params():,} parameters, {device}, {args.dtype}, "
        f"processes: {WORLD}\n{len(examples):,} dialogues, {n_tokens:,} tokens "
        f"({count_learned(examples) / n_tokens:.0%} learned), {args.steps:,} steps, "
        f"{args.steps / n_steps_an_epoch:.1f} epochs")
    trainer = Trainer(model, device, dtype)
    return trainer, problems, examples, batches(valid, args.batch_tokens, random.Random(0))

def load(args):
    """(model, training problems, their examples, valid examples). Shows the first dialogue."""
    torch.manual_seed(args.seed)
    if args.model in FROM_SCRATCH:
        model = GPT(SIZES[args.model], {"tokenizer": "tiny"})
    else:
        model = GPT.from_pretrained(args.model)
    set_defaults(args, is_ours(model))
    problems = load_problems(args.dataset, "train", None, args.limit, args.annotations)
    held_out = load_problems(args.dataset, "valid", None, 512, args.annotations)
    valid = make_examples(held_out, args.role, model)
    if not valid:    # a teacher's annotations may cover the training split alone
        say("No valid problem teaches this role: every 20th training problem is held out instead.")
        valid = make_examples(problems[::20], args.role, model)
        del problems[::20]
    examples = make_examples(problems, args.role, model, args.learn_all)
    teaching = [problem for problem in problems if can_learn(problem, args.role)]
    if len(examples) < len(problems):
        say(f"left out: {len(problems) - len(teaching):,} problems that lack what a {args.role} "
            f"learns, {len(teaching) - len(examples):,} that are too long")
    if not (examples and valid):
        raise SystemExit(f"Too few problems hold what a {args.role} learns. A teacher writes it:\n"
                         f"  python annotate.py --dataset {args.dataset} --teacher NAME\nThen add: "
                         f"--annotations annotations/{run_name(args.dataset)}-socratic.jsonl")
    text = show(segments(teaching[0], args.role), color=sys.stdout.isatty())
    say(f"The first dialogue; what the {args.role} learns to write is marked:\n\n{text}\n")
    return model, problems, examples, valid

def set_defaults(args, ours):
    """What the flags leave open depends on whether the model is one of ours."""
    is_generated = set(args.dataset.split("+")) <= {"demo", "world"}
    args.renumber = not is_generated and (ours if args.renumber is None else args.renumber)
    args.lr = args.lr or (4e-3 if args.model in FROM_SCRATCH else 1e-3 if ours else 1e-4)
    args.batch_tokens = args.batch_tokens or (2048 if ours else 4096)

# ------------------------------------------------------------ checkpoints

def save(out, trainer, args, log, best):
    """Write all that --resume needs, then log.jsonl. A kill cannot tear files that are replaced."""
    states = [part.state_dict() for part in trainer.parts]
    torch.save({"args": vars(args), "log": log, "best": best, "states": states}, out / "next.pt")
    (out / "next.pt").replace(out / "resume.pt")
    replace_file(out / "log.jsonl", *(json.dumps(line).encode() + b"\n" for line in log))

def resume(path, trainer, args):
    """Put everything back as it was saved, bit for bit. Returns the log and `best`."""
    log, best = [], (math.inf, 0)    # best: (valid loss, step)
    if path.exists():
        saved = torch.load(path, map_location=trainer.device, weights_only=True)
        log, best = saved["log"], saved["best"]
        other = sorted(saved["args"].items() - vars(args).items())
        other = {flag: old for flag, old in other if flag not in ("resume", "out", "device")}
        if other:
            raise SystemExit(f"{path.parent} was started with other flags or problems: {other}")
        for part, state in zip(trainer.parts, saved["states"], strict=True):
            part.load_state_dict(state)
    if WORLD > 1:    # another machine may have another file, or none
        sums = [p.detach().view(torch.int32).sum().item() for p in trainer.model.parameters()]
        found = [None] * WORLD
        dist.all_gather_object(found, (len(log), *sums))
        if len(set(found)) > 1:
            raise SystemExit("The processes would go on from different steps or weights.\n"
                             f"Copy {path} of the first machine to all others.")
    return log, best

def next_command(args):
    """What comes next: the training of its partner, if it is one of a pair, or the evaluation."""
    partner = {"decomposer": "solver", "solver": "decomposer"}.get(args.role, args.role)
    folder = args.out.replace(args.role, partner)    # a folder like this one
    flags = [word.replace(args.role, partner) for word in sys.argv[1:]]
    if folder == args.out and partner != args.role:    # the role is no part of its name
        folder += f"-{partner}"
        flags += ["--out", folder]    # the last --out counts
    if not Path(folder, "config.json").exists():
        return [*LAUNCHER, "train.py", *flags]
    method = "socratic" if partner != args.role else args.role
    return ["python", "eval.py", "--dataset", args.dataset.partition("+")[0], "--method", method,
            "--students", *dict.fromkeys([args.out, folder])]

# ------------------------------------------------------------ the command

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Train a student to write its part of the dialogue.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--role", required=True, choices=ROLES, help="what it learns to write (see data.py)")
    add("--dataset", default="demo", help=DATASET_HELP)
    add("--annotations", help="a teacher's annotations (JSONL), joined to the problems by id")
    add("--limit", type=positive,
        help="only the first so many of each data set (None: all; demo and world: 20,000)")
    add("--model", default="tiny",
        help="nano, tiny, mini (from scratch), a released gpt2..., or a folder")
    add("--out", help="folder of the student (None: runs/<dataset>-<model>-<role>)")
    add("--resume", action="store_true", help="go on where the same command was interrupted")
    add("--steps", type=positive,
        help=f"optimizer steps (None: {N_EPOCHS} passes over the problems; demo: 1,800)")
    add("--batch-tokens", type=positive, help="tokens of a micro-batch (None: 2,048; gpt2: 4,096)")
    add("--renumber", action=argparse.BooleanOptionalAction,
        help="tell each epoch's problems with other numbers, but not generated stories "
        "(None: off for released weights)")
    add("--learn-all", action="store_true",
        help="learn to write the context too, the problem above all: more language from scratch")
    add("--accumulate", type=positive, default=1, help="micro-batches of a step, on every process")
    add("--lr", type=float,
        help="peak learning rate (None: 4e-3 from scratch, 1e-3 to train such a student further, "
        "1e-4 for released weights)")
    add("--seed", type=int, default=0, help="of initial weights, order of batches, other numbers")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"),
        help="of the matrix products (auto: on CUDA bf16 or fp16, else fp32); weights stay fp32")
    args = parser.parse_args(argv)
    name = f"{run_name(args.dataset)}-{Path(args.model).name}-{args.role}"
    args.out = str(Path(args.out or f"runs/{name}").expanduser())
    if args.dataset == "demo":
        args.steps = args.steps or 1800
    args.processes = WORLD    # no flag, but a training must go on with as many
    return args

def main(args):
    out = Path(args.out)
    if (out / "log.jsonl").exists() and not (args.resume and (out / "resume.pt").exists()):
        raise SystemExit(f"{out} holds a run already. If it has a resume.pt, --resume goes on.\n"
                         "To begin anew, delete that folder or name another: --out FOLDER")
    trainer, problems, examples, valid_batches = prepare(args)
    log, best = resume(out / "resume.pt", trainer, args) if args.resume else ([], (math.inf, 0))
    n_done, n_steps = log[-1]["step"] if log else 0, args.steps
    say(f"-> {out}, after step {n_done}")

    seconds = n_tokens = 0    # of training, without validation
    steps = all_steps(problems, examples, trainer.model, args)
    for step, step_batches in enumerate(itertools.islice(steps, n_done, n_steps), n_done + 1):
        lr = learning_rate(step - 1, n_steps, args.lr)
        is_checkpoint = step % math.ceil(n_steps / N_EVALS) == 0 or step == n_steps
        start = time.time()
        try:
            loss, norm = trainer.step(step_batches, lr)
            seconds += time.time() - start
            if is_checkpoint and RANK == 0:
                valid_loss = trainer.validate(valid_batches)
        except FloatingPointError as error:
            text = (f"Step {step}: {error}, so the training stops. The best student so far is that "
                    f"of step {best[1]} (0: none), in {out}.\nBegin anew with a smaller --lr.")
            raise SystemExit(text if RANK == 0 else 1) from None
        n_tokens += sum(map(length, itertools.chain(*step_batches)))
        if RANK > 0:    # the first process prints, validates and saves
            continue
        if step % 10 == 0 or step == n_steps:
            speed, left = n_tokens / seconds, int(seconds / (step - n_done) * (n_steps - step))
            log.append({"step": step, "loss": loss, "lr": lr, "norm": norm,
                        "tokens_per_second": speed})
            say(f"step {step:5d}/{n_steps} | loss {loss:.4f} | lr {lr:.1e} | norm {norm:.2f} | "
                f"{speed:6,.0f} tok/s | {left // 60}:{left % 60:02d} left")
        if is_checkpoint:
            log.append({"step": step, "valid_loss": valid_loss})
            say(f"step {step:5d}/{n_steps} | valid loss {valid_loss:.4f}")
            if valid_loss < best[0]:
                best = (valid_loss, step)
                command = shlex.join([*LAUNCHER, "train.py", *sys.argv[1:]])
                trainer.model.info |= {"role": args.role, "dataset": run_name(args.dataset),
                                       "command": command} | log[-1]
                trainer.model.save_pretrained(out, torch.float16)
            save(out, trainer, args, log, best)
    say(f"\nThe best student is that of step {best[1]} (valid loss {best[0]:.4f}), in {out}\n"
        f"Next: {shlex.join(next_command(args))}")

if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on from the last validation with --resume.")

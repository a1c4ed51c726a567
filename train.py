"""
How does it learn? A student GPT-2 is trained to write its part of the dialogue.

    python train.py --role decomposer                        minutes on a laptop, no download
    python train.py --role solver
    python train.py --role solver --dataset gsm8k --model gpt2              the paper's setting
    torchrun --nproc-per-node 8 train.py --role solver --dataset gsm8k --model gpt2-large

Reads   problem records (data.py), with --annotations a teacher's (annotate.py)
Writes  runs/<dataset>-<model>-<role>/
            model.safetensors, config.json   the student that was best on the valid split
            log.jsonl                        every printed number
            resume.pt                        all that --resume needs

Shapes  B rows   T tokens   N learned tokens   V vocabulary
"""

import argparse
import contextlib
import itertools
import json
import math
import os
import random
import shlex
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.nn.parallel import DistributedDataParallel

from data import (DATASETS, IGNORE, ROLES, can_learn, encode, get_tokenizer, load_problems,
                  read_lines, replace_file, segments, show)
from gpt import GPT, SIZES, pick_device

WARMUP = 0.05          # the share of the steps in which the learning rate rises to its peak
WEIGHT_DECAY = 0.01    # of matrices and embeddings
MAX_NORM = 1.0         # longer gradients are clipped to this length
N_EVALS = 10           # how often a run validates, and saves what --resume needs

# ------------------------------------------------------------ batches

def make_examples(problems, role, tokenizer, n_positions):
    """[(ids, targets)] of the problems that teach this role and fit the model; counts the rest."""
    fits = [problem for problem in problems if can_learn(problem, role)]
    examples = [encode(segments(problem, role), tokenizer) for problem in fits]
    # One that is too long is dropped: cutting it would cut its answer off.
    short = [example for example in examples if len(example[0]) <= n_positions]
    if len(short) < len(problems):
        say(f"left out: {len(problems) - len(fits):,} problems that lack what a {role} learns, "
            f"{len(examples) - len(short):,} that are too long")
    return short

def batches(examples, n_tokens, rng):
    """
    Lists of example numbers: every example once, at most `n_tokens` tokens per list with padding.

    Rows of nearly the same length stand together, so almost nothing is padded. The order of the
    lists is random, and so is which examples of one length share a list.
    """
    order = list(range(len(examples)))
    rng.shuffle(order)
    order.sort(key=lambda i: len(examples[i][0]))
    groups = [[]]
    for i in order:
        if groups[-1] and (len(groups[-1]) + 1) * len(examples[i][0]) > n_tokens:
            groups.append([])
        groups[-1].append(i)
    rng.shuffle(groups)
    return groups

def collate(examples, device):
    """
    (ids, targets), both (B, T). Rows are padded on the right: the causal mask hides the padding
    from everything before it, and its targets are IGNORE.
    """
    length = max(len(ids) for ids, _ in examples)
    ids = [ids + [0] * (length - len(ids)) for ids, _ in examples]
    targets = [targets + [IGNORE] * (length - len(targets)) for _, targets in examples]
    return torch.tensor(ids, device=device), torch.tensor(targets, device=device)

def count_learned(examples):
    return sum(target != IGNORE for _, targets in examples for target in targets)

# ------------------------------------------------------------ one optimizer step

def summed_loss(model, ids, targets):
    """The cross entropy of the learned tokens, added up; ids and targets are (B, T)."""
    learned = targets != IGNORE                                         # (B, T)
    logits = model(ids, learned)                                        # (N, V)
    return F.cross_entropy(logits.float(), targets[learned], reduction="sum")

def backward(model, micro_batches, n_learned, autocast, scaler):
    """
    Add up the gradients of one optimizer step. Returns its loss, a tensor.

    Every loss is divided by `n_learned`, the number of learned tokens of the whole step: all
    micro-batches of all processes. So each learned token counts the same, wherever it stands. A
    mean for each micro-batch would let a token of a short answer outweigh one of a long solution.
    DistributedDataParallel averages the gradients over the processes, hence the factor `world`.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    step_loss = 0
    for i, (ids, targets) in enumerate(micro_batches):
        is_last = i == len(micro_batches) - 1
        # Processes exchange their gradients once a step, with the last micro-batch.
        with contextlib.nullcontext() if is_last or world == 1 else model.no_sync():
            with autocast:
                loss = summed_loss(model, ids, targets) * (world / n_learned)
            scaler.scale(loss).backward()
        step_loss += loss.detach() / world
    if world > 1:
        dist.all_reduce(step_loss)
    return step_loss

def train_step(run, groups, lr):
    """One optimizer step on groups of example numbers. Returns its loss and gradient norm."""
    chosen = [[run.examples[i] for i in group] for group in groups]
    n_learned = sum(count_learned(examples) for examples in chosen)
    micro_batches = []
    for examples, teaches in share(chosen, run.rank, run.world):
        ids, targets = collate(examples, run.device)
        micro_batches.append((ids, targets if teaches else torch.full_like(targets, IGNORE)))
    loss = backward(run.wrapped, micro_batches, n_learned, run.autocast, run.scaler)
    for optimizer in run.optimizers:
        run.scaler.unscale_(optimizer)
    norm = torch.nn.utils.clip_grad_norm_(run.model.parameters(), MAX_NORM)
    for optimizer in run.optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        run.scaler.step(optimizer)
        optimizer.zero_grad()
    run.scaler.update()
    return loss.item(), norm.item()

def share(groups, rank, world):
    """
    [(group, teaches)]: this process's groups of one step. All processes must take part equally
    often, so one without a group of its own runs another's, which then teaches nothing.
    """
    even = [(group, True) for group in groups] + [(groups[0], False)] * (-len(groups) % world)
    return even[rank::world]

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
    times, lifts every singular value between 0 and 1 to about 1. The step is then as long as
    AdamW's (Liu et al., 2025, arXiv 2502.16982, section 2.2), so both share a learning rate.
    torch.optim.Muon computes in bfloat16, which is far slower on most CPUs.
    """

    def __init__(self, matrices, momentum=0.95):
        super().__init__(matrices, {"lr": 0.0, "momentum": momentum})

    @torch.no_grad()
    def step(self):
        (group,) = self.param_groups
        for p in group["params"]:
            state = self.state[p]
            if not state:
                state["momentum"] = torch.zeros_like(p)
            momentum = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
            x = p.grad.lerp(momentum, group["momentum"])    # Nesterov: look one step ahead
            wide = x if x.shape[0] <= x.shape[1] else x.T
            wide = wide / (wide.norm() + 1e-7)
            for _ in range(5):
                square = wide @ wide.T
                wide = 3.4445 * wide + (2.0315 * square @ square - 4.7750 * square) @ wide
            x = wide if x.shape[0] <= x.shape[1] else wide.T
            p.mul_(1 - group["lr"] * WEIGHT_DECAY)
            p.add_(x, alpha=-group["lr"] * 0.2 * max(p.shape)**0.5)

def make_optimizers(model, from_scratch):
    """AdamW; from scratch Muon for the blocks' matrices. Biases and gains do not decay."""
    embeddings = [model.wte.weight, model.wpe.weight]
    matrices = [p for p in model.h.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    decaying = embeddings if from_scratch else embeddings + matrices
    adamw = torch.optim.AdamW([{"params": decaying, "weight_decay": WEIGHT_DECAY},
                               {"params": vectors, "weight_decay": 0.0}],
                              betas=(0.9, 0.95), fused=True)
    return [Muon(matrices), adamw] if from_scratch else [adamw]

@torch.no_grad()
def validate(run):
    """The mean loss of a learned token of the valid split, in nats."""
    total = 0
    for group in batches(run.valid, run.batch_tokens, random.Random(0)):
        with run.autocast:
            ids, targets = collate([run.valid[i] for i in group], run.device)
            total += summed_loss(run.model, ids, targets).item()
    return total / count_learned(run.valid)

# ------------------------------------------------------------ preparation

def load(args):
    """(model, training examples, valid examples). Shows the first dialogue."""
    torch.manual_seed(args.seed)
    if args.model == "tiny":
        model = GPT(SIZES["tiny"], {"tokenizer": "tiny"})
    else:
        model = GPT.from_pretrained(args.model)
    tokenizer = get_tokenizer(model.info.setdefault("tokenizer", "gpt2"))
    problems = load_problems(args.dataset, "train", args.data_dir, args.limit, args.annotations)
    valid_problems = load_problems(args.dataset, "valid", args.data_dir, 512)
    examples, valid = (make_examples(p, args.role, tokenizer, model.config.n_positions)
                       for p in (problems, valid_problems))
    if not examples:
        raise SystemExit(
            f"No training problem of {args.dataset} holds what a {args.role} learns to write.\n"
            f"Let a teacher write it: python annotate.py --dataset {args.dataset}\n"
            f"then add: --annotations annotations/{args.dataset}-socratic.jsonl")
    if not valid:    # annotations may cover the training split alone
        say("No valid problem teaches this role: every 20th training problem is held out instead.")
        valid, examples = examples[::20], [e for i, e in enumerate(examples) if i % 20] or examples
    first = next(problem for problem in problems if can_learn(problem, args.role))
    text = show(segments(first, args.role), color=sys.stdout.isatty())
    say(f"The first dialogue; what the {args.role} learns to write is marked:\n\n{text}\n")
    return model, examples, valid

def prepare(args):
    """All that a run needs, as the attributes of one object."""
    run = SimpleNamespace(world=int(os.environ.get("WORLD_SIZE", 1)),
                          rank=int(os.environ.get("RANK", 0)))
    run.device, dtype = pick_device(args.device, args.dtype)
    if run.world > 1:
        dist.init_process_group("nccl" if run.device.type == "cuda" else "gloo")
    with first_process_first():
        run.model, run.examples, run.valid = load(args)
    run.model.to(run.device)
    run.wrapped = DistributedDataParallel(run.model) if run.world > 1 else run.model
    run.from_scratch = args.model == "tiny"
    run.optimizers = make_optimizers(run.model, run.from_scratch)
    run.autocast = torch.autocast(run.device.type, dtype, enabled=dtype != torch.float32)
    run.scaler = torch.amp.GradScaler(run.device.type, enabled=dtype == torch.float16)

    run.peak = args.lr or (4e-3 if run.from_scratch else 1e-4)
    run.batch_tokens = args.batch_tokens or (2048 if run.from_scratch else 4096)
    run.per_step = args.accumulate * run.world
    groups = batches(run.examples, run.batch_tokens, random.Random(0))
    run.n_steps = args.steps or (args.epochs or 10) * math.ceil(len(groups) / run.per_step)
    if args.dataset == "demo" and not args.steps and not args.epochs:
        run.n_steps = 1800
    # A resumed run ends with the weights of an unbroken one, so these must not change.
    free = ("resume", "out", "data_dir", "device")
    run.same = {key: value for key, value in vars(args).items() if key not in free}
    run.same["world"] = run.world

    n_tokens = sum(len(ids) for ids, _ in run.examples)
    n_padded = sum(len(run.examples[group[-1]][0]) * len(group) for group in groups)
    say(f"{args.role} on {args.dataset}: {run.model.n_params():,} parameters, "
        f"{len(run.examples):,} dialogues,\n{n_tokens:,} tokens "
        f"({count_learned(run.examples) / n_tokens:.0%} learned, "
        f"{1 - n_tokens / n_padded:.1%} padding)\n"
        f"{run.n_steps:,} steps of {run.per_step} x {run.batch_tokens:,} tokens "
        f"({run.n_steps * run.per_step / len(groups):.1f} epochs), {run.device}, "
        f"{str(dtype).removeprefix('torch.')}, {run.world} process{'es' * (run.world > 1)}")
    return run

def say(text):
    """Print, but under torchrun only once."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)

@contextlib.contextmanager
def first_process_first():
    """The first process of each machine downloads; the others wait, and find the files there."""
    is_first = os.environ.get("LOCAL_RANK", "0") == "0"
    if not is_first:
        dist.barrier()
    yield
    if is_first and dist.is_initialized():
        dist.barrier()

def steps_from(first, run, seed):
    """The groups of each optimizer step from step `first` on; the same ones after a resume."""
    step = 0
    for epoch in itertools.count():
        groups = batches(run.examples, run.batch_tokens, random.Random(f"{seed}-{epoch}"))
        if run.from_scratch and epoch == 0:
            # The shortest sixth of the dialogues comes first: heads that copy form sooner where
            # there is less to look through.
            lengths = sorted(len(ids) for ids, _ in run.examples)
            short = lengths[len(lengths) // 6]
            groups.sort(key=lambda group: len(run.examples[group[0]][0]) > short)
        for at in range(0, len(groups), run.per_step):
            if step == run.n_steps:
                return
            if step >= first:
                yield groups[at:at + run.per_step]
            step += 1

# ------------------------------------------------------------ checkpoints

def save_checkpoint(path, run, progress):
    """All that --resume needs. The file is replaced as a whole, so a kill cannot tear it."""
    part = path.with_suffix(".part")
    torch.save({"progress": progress, "same": run.same, "model": run.model.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in run.optimizers],
                "scaler": run.scaler.state_dict()}, part)
    part.replace(path)

def load_checkpoint(path, run):
    """Put everything back as it was saved. Returns the progress."""
    saved = torch.load(path, map_location=run.device, weights_only=True)
    changed = [f"--{key.replace('_', '-')} {value}" for key, value in saved["same"].items()
               if value != run.same.get(key)]
    if changed:
        raise SystemExit(f"{path.parent} was started with other flags: {', '.join(changed)}")
    run.model.load_state_dict(saved["model"])
    for optimizer, state in zip(run.optimizers, saved["optimizers"], strict=True):
        optimizer.load_state_dict(state)
    run.scaler.load_state_dict(saved["scaler"])
    return saved["progress"]

def save_student(out, run, args, progress):
    """Write the student as a folder, in half precision; its config.json says how it was made."""
    run.model.info |= {"role": args.role, "dataset": args.dataset, "seed": args.seed,
                       "command": shlex.join(["python", "train.py", *sys.argv[1:]]),
                       "n_dialogues": len(run.examples), "n_steps": run.n_steps,
                       "step": progress["step"], "valid_loss": progress["best"]}
    run.model.save_pretrained(out, torch.float16)

def record(path, step, **numbers):
    """Add a line to log.jsonl."""
    with open(path, "a", encoding="utf-8") as file:
        file.write(json.dumps({"step": step} | numbers) + "\n")

def cut_log(path, step):
    """Forget what was logged after `step`, and a last line that a kill tore."""
    kept = read_lines(path, may_be_torn=True) if path.exists() else []
    lines = [json.dumps(line) + "\n" for line in kept if line["step"] <= step]
    replace_file(path, "".join(lines).encode())

# ------------------------------------------------------------ the command

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Train a student to write its part of the dialogue.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--role", required=True, choices=ROLES, help="what it learns to write (see data.py)")
    add("--dataset", default="demo", choices=DATASETS, help="which problems")
    add("--data-dir", help="folder of the data sets (None: SOCRATIC_DATA, or data/)")
    add("--annotations", help="a teacher's annotations (JSONL), joined to the problems by id")
    add("--limit", type=int, help="train on the first so many problems (None: all; demo: 20,000)")
    add("--model", default="tiny", help="tiny (from scratch), gpt2, gpt2-medium, -large, -xl, "
        "or a folder")
    add("--out", help="folder of the student (None: runs/<dataset>-<model>-<role>)")
    add("--resume", action="store_true", help="go on where the same command was interrupted")
    add("--epochs", type=int, help="passes over the training problems (None: 10; demo: --steps)")
    add("--steps", type=int, help="optimizer steps, instead of --epochs (None: 1,800 for demo)")
    add("--batch-tokens", type=int, help="tokens of a micro-batch, with padding (None: 2,048 from "
        "scratch, else 4,096)")
    add("--accumulate", type=int, default=1, help="micro-batches of a step, on every process")
    add("--lr", type=float, help="peak learning rate (None: 4e-3 from scratch, else 1e-4)")
    add("--seed", type=int, default=0, help="of the initial weights and the order of the batches")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"),
        help="of the matrix products (auto: on CUDA bf16 or fp16, else fp32); weights stay fp32")
    args = parser.parse_args(argv)
    for flag in ("limit", "epochs", "steps", "batch_tokens", "accumulate"):
        if (getattr(args, flag) or 1) < 1 or getattr(args, flag) == 0:
            parser.error(f"--{flag.replace('_', '-')} must be at least 1")
    return args

def main(args):
    out = Path(args.out or f"runs/{args.dataset}-{Path(args.model).name}-{args.role}")
    log = out / "log.jsonl"
    if log.exists() and not args.resume:
        raise SystemExit(f"{out} holds a run already.\n  To go on with it, add: --resume\n"
                         "  To start anew, delete that folder or name another: --out FOLDER")
    run = prepare(args)
    progress = {"step": 0, "best": math.inf, "best_step": 0}
    if args.resume and (out / "resume.pt").exists():
        progress = load_checkpoint(out / "resume.pt", run)
    done = progress["step"]
    say(f"-> {out}, " + (f"going on after step {done}" if done else "from the beginning"))
    if run.rank == 0:
        cut_log(log, progress["step"])

    first, start, seconds, n_tokens = progress["step"], time.time(), 0, 0
    for groups in steps_from(first, run, args.seed):
        step_start = time.time()
        lr = learning_rate(progress["step"], run.n_steps, run.peak)
        loss, norm = train_step(run, groups, lr)
        progress["step"] = step = progress["step"] + 1
        seconds += time.time() - step_start
        n_tokens += sum(len(run.examples[i][0]) for group in groups for i in group)
        is_last = step == run.n_steps
        if run.rank == 0 and (step % 10 == 0 or is_last):
            speed, left = n_tokens / seconds, (time.time() - start) / (step - first)
            left = int(left * (run.n_steps - step))
            say(f"step {step:5d}/{run.n_steps} | loss {loss:.4f} | lr {lr:.1e} | norm {norm:.2f} | "
                f"{speed:6,.0f} tok/s | {left // 60}:{left % 60:02d} left")
            record(log, step, loss=loss, lr=lr, norm=norm, tokens_per_second=speed)
            seconds, n_tokens = 0, 0
        if run.rank == 0 and (step % math.ceil(run.n_steps / N_EVALS) == 0 or is_last):
            valid_loss = validate(run)
            is_best = valid_loss < progress["best"]
            say(f"step {step:5d}/{run.n_steps} | valid loss {valid_loss:.4f}"
                + " | the best so far: saved" * is_best)
            record(log, step, valid_loss=valid_loss)
            if is_best:
                progress |= {"best": valid_loss, "best_step": step}
                save_student(out, run, args, progress)
            save_checkpoint(out / "resume.pt", run, progress)
    say(f"\nThe best student is that of step {progress['best_step']} (valid loss "
        f"{progress['best']:.4f}), in {out}\nNext: train its partner, if it has one, "
        "then python eval.py" + f" --dataset {args.dataset}" * (args.dataset != "demo")
        + f" --method {args.role}" * (args.role in ("cot", "answer", "unified")))
    if run.world > 1:
        dist.destroy_process_group()

if __name__ == "__main__":
    main(parse_args())

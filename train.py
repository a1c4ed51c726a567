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
import itertools
import json
import math
import os
import random
import shlex
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.nn    # if AdamW imports it later, gloo's threads live on and crash
import torch.nn.functional as F

from data import (DATASET_HELP, IGNORE, ROLES, Segment, can_learn, encode, load_problems, positive,
                  replace_file, run_name, segments, sha256, show)
from gpt import FROM_SCRATCH, GPT, SIZES, limit_threads, pick_device

WARMUP = 0.05          # the share of the steps in which the learning rate rises to its peak
WEIGHT_DECAY = 0.01    # of matrices and embeddings
MOMENTUM = 0.95        # of Muon
MAX_NORM = 1.0         # longer gradients are clipped to this length
N_EPOCHS = 10          # the length of a training, if --steps does not say another
N_EVALS = 10           # how often a run validates, and saves what --resume needs

WORLD, RANK = 1, 0     # torchrun starts WORLD processes, and this is number RANK of them
if dist.is_torchelastic_launched():
    WORLD, RANK = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])

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

def length(example):
    return len(example[0])

def count_learned(examples):
    return sum(target != IGNORE for _, targets in examples for target in targets)

def make_batches(examples, n_tokens, rng):
    """
    Lists of examples: every example once, at most `n_tokens` tokens (or one example) per list.

    Examples of nearly the same length stand together, so almost nothing is padded. The order of
    the lists is random, and so is which examples of one length share a list.
    """
    order, batches = list(examples), [[]]
    rng.shuffle(order)
    for example in sorted(order, key=length):
        if batches[-1] and (len(batches[-1]) + 1) * length(example) > n_tokens:
            batches.append([])
        batches[-1].append(example)
    rng.shuffle(batches)
    return batches

def endless_batches(examples, n_tokens, seed, short_first):
    """One epoch after another, each in another order. Every call yields the same batches."""
    for epoch in itertools.count():
        batches = make_batches(examples, n_tokens, random.Random(f"{seed}-{epoch}"))
        if short_first and epoch == 0:
            # The shortest sixth of the dialogues comes first: heads that copy form sooner where
            # there is less to look through.
            short = sorted(map(length, examples))[len(examples) // 6]
            batches.sort(key=lambda batch: length(batch[0]) > short)
        yield from batches

def collate(batch, device):
    """(ids, targets), both (B, T), padded on the right where the causal mask hides the padding."""
    T = max(map(length, batch))
    ids = [ids + [0] * (T - len(ids)) for ids, _ in batch]
    targets = [targets + [IGNORE] * (T - len(targets)) for _, targets in batch]
    return torch.tensor(ids, device=device), torch.tensor(targets, device=device)

# ------------------------------------------------------------ the loss and its gradient

def summed_loss(model, ids, targets):
    """The cross entropy of the learned tokens, added up; ids and targets are (B, T)."""
    learned = targets != IGNORE                                         # (B, T)
    logits = model(ids, learned)                       # (N, V): no others are needed
    return F.cross_entropy(logits.float(), targets[learned], reduction="sum")

def backward(model, micro_batches, n_learned, autocast, scaler):
    """
    Compute the gradients of one optimizer step. Returns its loss, a tensor.

    Every loss is divided by `n_learned`, the learned tokens of all micro-batches of all processes.
    So each of them counts the same. With a mean for each micro-batch, a token of a short answer
    would outweigh one of a long solution.
    """
    step_loss = torch.zeros((), device=model.wte.weight.device)
    model.zero_grad()
    for ids, targets in micro_batches:
        with autocast:
            loss = summed_loss(model, ids, targets) / n_learned
        scaler.scale(loss).backward()
        step_loss += loss.detach()
    if WORLD > 1:    # the other processes had other micro-batches
        for t in [step_loss, *(p.grad for p in model.parameters())]:
            dist.all_reduce(t)
    return step_loss

@torch.no_grad()
def validate(model, batches, autocast):
    """The mean loss of a learned token, in nats."""
    device, total = model.wte.weight.device, 0.0
    with autocast:
        for batch in batches:
            total += summed_loss(model, *collate(batch, device)).item()
    return total / sum(map(count_learned, batches))

# ------------------------------------------------------------ learning rate and optimizers

def learning_rate(step, n_steps, peak):
    """A linear warm-up, then half a cosine down to zero."""
    n_rising = int(WARMUP * n_steps)
    if step < n_rising:
        return peak * (step + 1) / n_rising
    return peak * 0.5 * (1 + math.cos(math.pi * (step - n_rising) / (n_steps - n_rising)))

class Muon(torch.optim.Optimizer):
    """
    For the matrices of a model from scratch (Jordan et al., 2024,
    https://kellerjordan.github.io/posts/muon): a step is the momentum with all its singular
    values brought near 1, so that rare directions are learned as fast as frequent ones.

    An odd polynomial (Newton and Schulz), applied five times, does that with matrix products. The
    step is then as long as AdamW's (Liu et al., 2025, arXiv 2502.16982, section 2.2), so both
    share a learning rate. torch.optim.Muon computes in bfloat16, far slower on most CPUs.
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
    decaying = embeddings if model.is_from_scratch() else embeddings + matrices
    adamw = torch.optim.AdamW([{"params": decaying, "weight_decay": WEIGHT_DECAY},
                               {"params": vectors, "weight_decay": 0.0}],
                              betas=(0.9, 0.95), fused=True)
    return [Muon(matrices), adamw] if model.is_from_scratch() else [adamw]

# ------------------------------------------------------------ the loop

def train(model, examples, valid, settings, args, device, dtype):
    """From batch to checkpoint. `settings` holds all that a resumed run must find unchanged."""
    out, n_steps, n_batches = Path(args.out), args.steps, args.accumulate * WORLD
    optimizers = make_optimizers(model)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    # Small gradients vanish in float16. The scaler multiplies the loss to prevent that.
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    parts = [model, *optimizers, scaler]    # all that a step changes
    log = resume(out / "resume.pt", parts, settings) if args.resume else []
    n_done = log[-1]["step"] if log else 0
    print(f"-> {out}, after step {n_done}")
    batches = endless_batches(examples, args.batch_tokens, args.seed,
                              short_first=args.model in FROM_SCRATCH)
    batches = itertools.islice(batches, n_done * n_batches, None)
    start, n_tokens = time.time(), 0
    for step in range(n_done + 1, n_steps + 1):
        step_batches = list(itertools.islice(batches, n_batches))
        n_learned = sum(map(count_learned, step_batches))
        micro_batches = [collate(batch, device) for batch in step_batches[RANK::WORLD]]
        loss = backward(model, micro_batches, n_learned, autocast, scaler).item()
        lr = learning_rate(step - 1, n_steps, args.lr)
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
            for group in optimizer.param_groups:
                group["lr"] = lr
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), MAX_NORM).item()
        if math.isfinite(loss + norm):
            for optimizer in optimizers:
                scaler.step(optimizer)
        elif scaler.get_scale() <= 1 or not math.isfinite(loss):    # no overflow of float16
            raise SystemExit(f"Step {step}: the loss is {loss}, the gradient norm {norm}. Try a "
                             f"smaller --lr. {out} holds the student of step {best_of(log)[1]}.")
        scaler.update()    # after such an overflow it multiplies by less
        n_tokens += sum(map(length, itertools.chain(*step_batches)))
        if RANK > 0:    # the first process prints, validates and saves
            continue
        if step % 10 == 0 or step == n_steps:
            seconds = time.time() - start
            speed, left = n_tokens / seconds, int(seconds / (step - n_done) * (n_steps - step))
            log.append({"step": step, "loss": loss, "lr": lr, "norm": norm,
                        "tokens_per_second": speed})
            print(f"step {step:5d}/{n_steps} | loss {loss:.4f} | lr {lr:.1e} | norm {norm:.2f} | "
                  f"{speed:6,.0f} tok/s | {left // 60}:{left % 60:02d} left", flush=True)
        if step % math.ceil(n_steps / N_EVALS) == 0 or step == n_steps:
            valid_loss = validate(model, valid, autocast)
            log.append({"step": step, "valid_loss": valid_loss})
            print(f"step {step:5d}/{n_steps} | valid loss {valid_loss:.4f}", flush=True)
            save(out, parts, settings, log)
    return best_of(log)

# ------------------------------------------------------------ checkpoints

def best_of(log):
    """(valid loss, step) of the best validation so far."""
    return min(((line["valid_loss"], line["step"]) for line in log
                if line.get("valid_loss", math.inf) < math.inf), default=(math.inf, 0))

def claim(out, resumes):
    """Make the folder of a run, which belongs to this run alone."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.jsonl").touch(exist_ok=resumes)
    except OSError as error:
        raise SystemExit(f"{out} cannot be used: {error}\nIf it holds a run, --resume goes on with "
                         "it. --out FOLDER begins another.") from None

def save(out, parts, settings, log):
    """Keep the student if it is the best so far, all that --resume needs, and log.jsonl."""
    text = "".join(json.dumps(line) + "\n" for line in log)
    if not text.startswith((out / "log.jsonl").read_text()):
        raise SystemExit(f"{out} is another training's. This one stops; use --out FOLDER.")
    if best_of(log)[1] == log[-1]["step"]:
        parts[0].info |= log[-1]
        parts[0].save_pretrained(out, torch.float16)
    states = [part.state_dict() for part in parts]
    torch.save({"settings": settings, "log": log, "states": states}, out / "next.pt")
    (out / "next.pt").replace(out / "resume.pt")    # a kill leaves the old one or the new one
    replace_file(out / "log.jsonl", text.encode())

def resume(path, parts, settings):
    """Put everything back as it was saved, bit for bit. Returns the log."""
    found = [torch.load(path, map_location="cpu") if RANK == 0 and path.exists() else None]
    if WORLD > 1:    # all processes go on from the file of the first
        dist.broadcast_object_list(found)
    (saved,) = found
    if saved is None:
        return []
    changed = sorted(saved["settings"].items() - settings.items())
    if changed:
        raise SystemExit(f"{path.parent} was started with other flags or problems: {dict(changed)}")
    for part, state in zip(parts, saved["states"], strict=True):
        part.load_state_dict(state)
    return saved["log"]

# ------------------------------------------------------------ what is trained

def load_examples(args, model):
    """(training examples, valid examples) of all data sets together. Shows the first dialogue."""
    role, problems, held_out = args.role, [], []
    for name in args.dataset:
        problems += load_problems(name, "train", args.limit, args.annotations)
        held_out += load_problems(name, "valid", 512, args.annotations)
    valid = make_examples(held_out, role, model)
    if not valid:    # a teacher's annotations may cover the training split alone
        print("No valid problem teaches this role: every 20th training problem is held out.")
        valid = make_examples(problems[::20], role, model)
        del problems[::20]
    examples = make_examples(problems, role, model, args.learn_all)
    print(f"{len(examples):,} of {len(problems):,} problems hold what this role learns and fit it")
    if not (examples and valid):
        raise SystemExit(f"Too few problems hold what this role learns. A teacher writes it:\n"
                         f"  python annotate.py --dataset {args.dataset[0]} --teacher NAME\n"
                         "Then add: --annotations, and the file that annotate.py names")
    first = next(problem for problem in problems if can_learn(problem, role))
    print(f"The first one; what is learned is marked:\n\n{show(segments(first, role))}\n")
    return examples, valid

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Train a student to write its part of the dialogue.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--role", required=True, choices=ROLES, help="what it learns to write (see data.py)")
    add("--dataset", nargs="+", default=["demo"], help=f"{DATASET_HELP}; of several, the mixture")
    add("--annotations", help="a teacher's annotations (JSONL), joined by id and problem text")
    add("--limit", type=positive, help="only the first so many of each data set (None: all)")
    add("--model", default="tiny", help="nano, tiny, mini (from scratch), gpt2..., or a folder")
    add("--out", help="folder of the student (None: runs/<dataset>-<model>-<role>)")
    add("--resume", action="store_true", help="go on where the same command was interrupted")
    add("--steps", type=positive, help=f"optimizer steps (None: {N_EPOCHS} epochs; demo: 1,800)")
    add("--batch-tokens", type=positive, help="tokens of a micro-batch (None: 2,048; gpt2: 4,096)")
    add("--learn-all", action="store_true", help="learn to write the context, too")
    add("--accumulate", type=positive, default=1, help="micro-batches per step and process")
    add("--lr", type=float,
        help="peak learning rate (None: 4e-3 from scratch, 1e-3 to go on from there; gpt2: 1e-4)")
    add("--seed", type=int, default=0, help="of initial weights and batch order")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"),
        help="of the matrix products (auto: on CUDA bf16 or fp16, else fp32); weights stay fp32")
    args = parser.parse_args(argv)
    name = "+".join(map(run_name, args.dataset))
    args.out = args.out or f"runs/{name}-{Path(args.model).name}-{args.role}"
    return args

def main(args):
    """What is trained: the model, the examples, and how long."""
    device, dtype = pick_device(args.device, args.dtype)
    if WORLD > 1:
        start_processes(device)
    torch.manual_seed(args.seed)
    if args.model in FROM_SCRATCH:
        model = GPT(SIZES[args.model], {"tokenizer": "tiny"})
    else:
        model = GPT.from_pretrained(args.model)
    limit_threads(model)
    examples, valid = load_examples(args, model)
    if RANK == 0:
        claim(Path(args.out), args.resume)
    from_scratch = model.is_from_scratch()
    args.batch_tokens = args.batch_tokens or (2048 if from_scratch else 4096)
    peak = 4e-3 if args.model in FROM_SCRATCH else 1e-3 if from_scratch else 1e-4
    args.lr = args.lr or peak
    n_batches = len(make_batches(examples, args.batch_tokens, random.Random(0)))
    per_epoch = n_batches / (args.accumulate * WORLD)    # steps
    if args.steps is None:
        args.steps = 1800 if args.dataset == ["demo"] else math.ceil(N_EPOCHS * per_epoch)
    # Everything that shapes the weights. --resume goes on only where it is the same.
    settings = {key: str(value) for key, value in vars(args).items()
                if key not in ("out", "resume", "device")}
    settings |= {"dtype": str(dtype), "processes": WORLD,
                 "examples": sha256(repr(examples).encode())}
    name, total = "+".join(map(run_name, args.dataset)), sum(map(length, examples))
    print(f"{args.role} on {name}: {model.n_params():,} parameters, {WORLD} x {device}, {dtype}\n"
          f"{len(examples):,} dialogues, {total:,} tokens "
          f"({count_learned(examples) / total:.0%} learned), {args.steps:,} steps, "
          f"{args.steps / per_epoch:.1f} epochs", flush=True)
    model.info |= {"role": args.role, "dataset": name,
                   "command": shlex.join(["python", "train.py", *sys.argv[1:]])}
    valid_batches = make_batches(valid, args.batch_tokens, random.Random(0))
    loss, step = train(model.to(device), examples, valid_batches, settings, args, device, dtype)
    print(f"\nThe best student is that of step {step} (valid loss {loss:.4f}), in {args.out}\n"
          "Next: python eval.py, or python infer.py (they need a decomposer and a solver)")

def start_processes(device):
    """Under torchrun every process takes its part of the batches, and the first one prints."""
    if device.type == "cuda":
        torch.cuda.set_device(device)    # otherwise NCCL would give all processes one GPU
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    atexit.register(dist.destroy_process_group)
    if RANK > 0:
        sys.stdout = open(os.devnull, "w")    # noqa: SIM115 (open until the end)

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a console that lacks a letter shows "?"
    args = parse_args()
    try:
        main(args)
    except KeyboardInterrupt:
        if Path(args.out, "resume.pt").exists():
            sys.exit("\nInterrupted. With --resume it goes on from the last validation.")
        sys.exit("\nInterrupted before the first validation. With --resume it begins anew.")

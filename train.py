"""
Train a student: GPT-2 learns to write its part of the dialogue.

    python train.py --role decomposer                          minutes on a laptop, no download
    python train.py --role solver
    python train.py --role solver --dataset gsm8k --model gpt2                              the paper's setting
    torchrun --nproc-per-node 8 train.py --role solver --dataset gsm8k --model gpt2-large   several GPUs

Reads   problem records (data.py), with --annotations a teacher's (annotate.py)
Writes  runs/<dataset>-<model>-<role>/   model.safetensors + config.json: the student that was best on the valid split
                                         log.jsonl: every printed number    resume.pt: to go on after an interruption

Shapes  B rows   T tokens   (ids and targets are (B, T); targets are IGNORE where nothing is learned)
"""

import argparse
import contextlib
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
from torch.nn.parallel import DistributedDataParallel

from data import DATASETS, IGNORE, ROLES, batches, can_learn, encode, get_tokenizer, load_problems, segments, show
from gpt import GPT, SIZES, pick_device


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Train a student to write its part of the dialogue.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--role", required=True, choices=ROLES, help="what the student learns to write (python data.py shows all five)")
    add("--dataset", default="demo", choices=DATASETS, help="which problems")
    add("--data-dir", help="folder of the data sets (None: SOCRATIC_DATA, or data/)")
    add("--annotations", help="a teacher's annotations (JSONL), joined to the training problems by id")
    add("--limit", type=int, help="train on the first so many problems only (None: all; demo: 20,000)")
    add("--model", default="tiny", help="tiny (from scratch), gpt2, gpt2-medium, gpt2-large, gpt2-xl, or a folder")
    add("--cache-dir", help="where released weights are kept (None: ~/.cache/socratic)")
    add("--out", help="folder of the student (None: runs/<dataset>-<model>-<role>)")
    add("--resume", action="store_true", help="go on exactly where an interrupted run of the same command stopped")
    add("--epochs", type=int, help="passes over the training problems (None: 10; for demo see --steps)")
    add("--steps", type=int, help="optimizer steps, instead of --epochs (None: 1,800 for demo)")
    add("--batch-tokens", type=int, help="tokens of a micro-batch with padding (None: 2,048 from scratch, else 4,096)")
    add("--accumulate", type=int, default=1, help="micro-batches of an optimizer step, on every process")
    add("--lr", type=float, help="peak learning rate (None: 4e-3 from scratch, 1e-4 fine-tuning)")
    add("--warmup", type=float, default=0.05, help="share of the steps in which the learning rate rises to its peak")
    add("--weight-decay", type=float, default=0.01, help="of matrices; AdamW and Muon")
    add("--evals", type=int, default=10, help="how often to validate (and save)")
    add("--seed", type=int, default=0, help="of the initial weights and the order of the batches")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"),
        help="of the matrix products; weights stay fp32 (auto: bf16 on CUDA, fp16 where there is no bf16, else fp32)")
    return parser.parse_args(argv)


def make_examples(problems, role, tokenizer, n_positions):
    """[(ids, targets)] of the problems that hold what the role learns and fit the model; and why others do not."""
    fits = [p for p in problems if can_learn(p, role)]
    examples = [encode(segments(p, role), tokenizer) for p in fits]
    short = [e for e in examples if len(e[0]) <= n_positions]  # cutting one would cut its answer off
    return short, {"lack what the role learns": len(problems) - len(fits), "are too long": len(examples) - len(short)}


def collate(examples, device):
    """(ids, targets), both (B, T): padded on the right, where the causal mask hides it and nothing is learned."""
    length = max(len(ids) for ids, _ in examples)
    ids = [ids + [0] * (length - len(ids)) for ids, _ in examples]
    targets = [targets + [IGNORE] * (length - len(targets)) for _, targets in examples]
    return torch.tensor(ids, device=device), torch.tensor(targets, device=device)


def share(groups, rank, world):
    """This process's groups of one step. All get as many: who would lack one gets (group, False), to learn nothing."""
    even = [(group, True) for group in groups] + [(groups[0], False)] * (-len(groups) % world)
    return even[rank::world]


def count_learned(examples):
    return sum(target != IGNORE for _, targets in examples for target in targets)


def backward(model, micro_batches, n_learned, autocast, scaler):
    """
    Add up the gradients of one optimizer step; returns its loss, a tensor.

    The loss is the mean over the step's `n_learned` tokens (all micro-batches, all processes), so that a dialogue with
    few learned tokens does not weigh more than one with many. DDP averages gradients over processes: hence `world`.
    """
    world = dist.get_world_size() if dist.is_initialized() else 1
    step_loss = 0
    for i, (ids, targets) in enumerate(micro_batches):
        last = i == len(micro_batches) - 1
        wait = contextlib.nullcontext() if last or world == 1 else model.no_sync()  # exchange gradients once a step
        with wait:
            with autocast:
                loss = model(ids, targets=targets) * (world / n_learned)
            scaler.scale(loss).backward()
        step_loss += loss.detach() / world
    if world > 1:
        dist.all_reduce(step_loss)
    return step_loss


class Muon(torch.optim.Optimizer):
    """
    For the matrices of a model that learns from scratch (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon):
    the momentum, with all its singular values brought near 1, so that rare directions learn as fast as frequent ones.

    Newton and Schulz do it with matrix products alone: their odd polynomial, five times over, lifts every singular
    value between 0 and 1 to about 1. Scaled so that a step is as long as AdamW's and takes its learning rate (Liu et
    al., 2025, arXiv 2502.16982, section 2.2). torch.optim.Muon does this in bfloat16, far slower on a CPU without it.
    """

    def __init__(self, matrices, momentum=0.95, weight_decay=0.01):
        super().__init__(matrices, {"lr": 0.0, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                if not self.state[p]:
                    self.state[p]["momentum"] = torch.zeros_like(p)
                momentum = self.state[p]["momentum"].lerp_(p.grad, 1 - group["momentum"])
                x = p.grad.lerp(momentum, group["momentum"])  # Nesterov: look one step ahead
                wide = x if x.shape[0] <= x.shape[1] else x.T
                wide = wide / (wide.norm() + 1e-7)
                for _ in range(5):
                    square = wide @ wide.T
                    wide = 3.4445 * wide + (2.0315 * square @ square - 4.7750 * square) @ wide
                x = wide if x.shape[0] <= x.shape[1] else wide.T
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(x, alpha=-group["lr"] * 0.2 * max(p.shape)**0.5)


def learning_rate(step, n_steps, peak, warmup):
    """Linear warm-up, then a cosine down to nothing."""
    rise = max(1, int(warmup * n_steps))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, n_steps - rise)))


@torch.no_grad()
def validate(model, examples, n_tokens, device, autocast):
    """Mean loss per learned token."""
    total = 0
    for group in batches(examples, n_tokens, random.Random(0)):
        ids, targets = collate([examples[i] for i in group], device)
        with autocast:
            total += model(ids, targets=targets).item()
    return total / count_learned(examples)


def load_model(args):
    """(model, its tokenizer's name). `tiny` starts from random numbers, everything else from trained weights."""
    if args.model == "tiny":
        return GPT(SIZES["tiny"]), "tiny"
    model = GPT.from_pretrained(args.model, args.cache_dir)
    return model, model.info.get("tokenizer", "gpt2")


def run_folder(args):
    return Path(args.out or f"runs/{args.dataset}-{Path(args.model).name}-{args.role}")


def main(args):
    world, rank = int(os.environ.get("WORLD_SIZE", 1)), int(os.environ.get("RANK", 0))
    device, dtype = pick_device(args.device, args.dtype)
    if world > 1:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    say = print if rank == 0 else lambda *_, **__: None
    out = run_folder(args)
    if (out / "log.jsonl").exists() and not args.resume:
        raise SystemExit(f"{out} holds a run already.\n  To go on with it, add: --resume\n"
                         "  To start anew, delete that folder or name another: --out FOLDER")

    torch.manual_seed(args.seed)
    model, tokenizer_name = load_model(args)
    tokenizer = get_tokenizer(tokenizer_name)
    data = [load_problems(args.dataset, split, args.data_dir, limit, args.annotations if split == "train" else None)
            for split, limit in (("train", args.limit), ("valid", 512))]
    (examples, dropped), (valid, _) = (make_examples(p, args.role, tokenizer, model.config.n_positions) for p in data)
    if not examples:
        raise SystemExit(f"No training problem of {args.dataset} holds what a {args.role} learns to write.\n"
                         f"Let a teacher write it: python annotate.py --dataset {args.dataset}\n"
                         f"then add: --annotations annotations/{args.dataset}-socratic.jsonl")
    if not valid:  # annotations may cover the training split alone: hold out every twentieth example
        valid, examples = examples[::20], [e for i, e in enumerate(examples) if i % 20] or examples
        say("No validation problem holds what this role learns: every twentieth training problem is held out instead.")

    from_scratch = args.model == "tiny"
    batch_tokens = args.batch_tokens or (2048 if from_scratch else 4096)

    def groups_of(epoch):
        groups = batches(examples, batch_tokens, random.Random(f"{args.seed}-{epoch}"))
        if from_scratch and epoch == 0:
            # Begin with short dialogues: heads that copy form sooner where there is less to look through.
            groups.sort(key=lambda group: len(examples[group[0]][0]) > short)
        return groups

    short = sorted(len(ids) for ids, _ in examples)[len(examples) // 6]
    per_step = args.accumulate * world
    steps_per_epoch = math.ceil(len(groups_of(0)) / per_step)
    n_steps = args.steps or (args.epochs or 10) * steps_per_epoch
    if args.dataset == "demo" and not (args.steps or args.epochs):
        n_steps = 1800
    eval_every = max(1, math.ceil(n_steps / args.evals))
    peak = args.lr or (4e-3 if from_scratch else 1e-4)

    n_tokens, n_learned = sum(len(ids) for ids, _ in examples), count_learned(examples)
    padded = sum(len(group) * max(len(examples[i][0]) for i in group) for group in groups_of(0))
    say(f"{args.role} on {args.dataset}: {model.n_params():,} parameters, {len(examples):,} dialogues,\n"
        f"{n_tokens:,} tokens ({n_learned / n_tokens:.0%} learned, {1 - n_tokens / padded:.1%} padding)")
    for reason, n in dropped.items():
        if n:
            say(f"{n:,} problems {reason}: left out")
    say(f"{n_steps:,} steps of {per_step} x {batch_tokens:,} tokens ({n_steps / steps_per_epoch:.1f} epochs), "
        f"{device}, {str(dtype).removeprefix('torch.')}, {world} process{'es' * (world > 1)}\n-> {out}\n\n"
        "The first dialogue; what the student learns to write is marked:")
    first = next(p for p in data[0] if can_learn(p, args.role))
    say(show(segments(first, args.role), sys.stdout.isatty()) + "\n")

    model.to(device)
    tables = [model.wte.weight, model.wpe.weight]
    matrices = [p for p in model.h.parameters() if p.dim() > 1]
    vectors = [p for p in model.parameters() if p.dim() == 1]
    optimizers = [Muon(matrices, weight_decay=args.weight_decay)] if from_scratch else []
    optimizers.append(torch.optim.AdamW(
        [{"params": tables if from_scratch else tables + matrices, "weight_decay": args.weight_decay},
         {"params": vectors, "weight_decay": 0.0}], betas=(0.9, 0.95), fused=True))
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    ddp = DistributedDataParallel(model) if world > 1 else model
    # What must be the same to go on: then a resumed run ends with the very weights of an unbroken one.
    free = ("resume", "out", "data_dir", "cache_dir", "device")
    same = {k: v for k, v in vars(args).items() if k not in free} | {"world": world}
    step, best, best_step, log = 0, math.inf, 0, []
    if args.resume and (out / "resume.pt").exists():
        saved = torch.load(out / "resume.pt", map_location=device, weights_only=True)
        if saved["same"] != same:
            raise SystemExit(f"{out} was started with other flags: " + ", ".join(
                f"--{k.replace('_', '-')} {v}" for k, v in saved["same"].items() if v != same.get(k)))
        model.load_state_dict(saved["model"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        scaler.load_state_dict(saved["scaler"])
        step, best, best_step = saved["step"], saved["best"], saved["best_step"]
        log = [line for line in (out / "log.jsonl").read_text().splitlines() if json.loads(line)["step"] <= step]
        say(f"going on after step {step}")
    if rank == 0:
        out.mkdir(parents=True, exist_ok=True)
        (out / "log.jsonl").write_text("".join(line + "\n" for line in log))

    def record(**numbers):
        if rank == 0:
            with open(out / "log.jsonl", "a") as file:
                file.write(json.dumps({"step": step} | numbers) + "\n")

    def save():
        if rank == 0:
            torch.save({"same": same, "model": model.state_dict(), "scaler": scaler.state_dict(), "step": step,
                        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
                        "best": best, "best_step": best_step}, out / "resume.part")
            (out / "resume.part").replace(out / "resume.pt")

    first_step, start, window_start, window_tokens = step, time.time(), time.time(), 0
    groups, epoch = [], -1
    while step < n_steps:
        if step // steps_per_epoch != epoch:
            epoch = step // steps_per_epoch
            groups = groups_of(epoch)
        at = step % steps_per_epoch * per_step
        of_all = groups[at:at + per_step]
        n_learned = count_learned([examples[i] for group in of_all for i in group])
        micro_batches = []
        for group, counts in share(of_all, rank, world):
            ids, targets = collate([examples[i] for i in group], device)
            micro_batches.append((ids, targets if counts else torch.full_like(targets, IGNORE)))

        lr = learning_rate(step, n_steps, peak, args.warmup)
        loss = backward(ddp, micro_batches, n_learned, autocast, scaler)
        for optimizer in optimizers:
            scaler.unscale_(optimizer)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr
            scaler.step(optimizer)
            optimizer.zero_grad()
        scaler.update()
        step += 1

        window_tokens += sum(len(examples[i][0]) for group in of_all for i in group)
        if step % 10 == 0 or step == n_steps:
            loss, norm, speed = loss.item(), norm.item(), window_tokens / (time.time() - window_start)
            left = (time.time() - start) / (step - first_step) * (n_steps - step)
            say(f"step {step:5d}/{n_steps} | loss {loss:.4f} | lr {lr:.1e} | norm {norm:.2f} | {speed:6,.0f} tok/s | "
                f"{int(left // 60)}:{int(left % 60):02d} left", flush=True)
            record(loss=loss, lr=lr, norm=norm, tokens_per_second=speed, seconds=time.time() - start)
            window_start, window_tokens = time.time(), 0
        if step % eval_every == 0 or step == n_steps:
            valid_loss = validate(model, valid, batch_tokens, device, autocast)
            better = valid_loss < best
            if better:
                best, best_step = valid_loss, step
            say(f"step {step:5d}/{n_steps} | valid loss {valid_loss:.4f}{' | best so far: saved' * better}", flush=True)
            record(valid_loss=valid_loss)
            if better and rank == 0:
                model.info = {"bos_token_id": tokenizer.eot_token, "eos_token_id": tokenizer.eot_token,
                              "role": args.role, "dataset": args.dataset, "tokenizer": tokenizer_name,
                              "command": shlex.join(["python", "train.py", *sys.argv[1:]]), "seed": args.seed,
                              "n_dialogues": len(examples), "step": step, "n_steps": n_steps, "valid_loss": valid_loss}
                model.save_pretrained(out, torch.float16)  # half the bytes; resume.pt keeps all of them
            save()
    say(f"\nThe best student is that of step {best_step} (valid loss {best:.4f}), in {out}\n"
        + (f"Next, its partner: python train.py --role {'solver' if args.role == 'decomposer' else 'decomposer'}"
           if args.role in ("decomposer", "solver") else f"Next, its score: python eval.py --method {args.role}")
        + (f" --dataset {args.dataset}" if args.dataset != "demo" else ""))
    if world > 1:
        dist.destroy_process_group()


if __name__ == "__main__":
    main(parse_args())

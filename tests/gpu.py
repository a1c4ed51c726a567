"""
What a GPU needs for the paper's setting: speed and memory, before you spend hours. Nothing is downloaded but GSM8K and
GPT-2's tokenizer; the weights are random.

    python tests/gpu.py                  all four sizes in bf16
    python tests/gpu.py --dtype fp16 --sizes gpt2 gpt2-large

training    steps of one micro-batch of 4,096 tokens, GSM8K's solver; the minutes are for its default of 10 epochs
generating  64 rows that have read 200 tokens write 50 each
"""

import argparse
import random
import sys
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import train
from data import load_problems
from gpt import GPT, SIZES, GPTConfig, KVCache, pick_device


def seconds(work, n, n_warm):
    """The time of `work(i)` for i < n, after `n_warm` calls more."""
    for i in range(n_warm + n):
        if i == n_warm:
            torch.cuda.synchronize()
            start = time.time()
        work(i)
    torch.cuda.synchronize()
    return time.time() - start


def training(size, dtype, batches):
    """(tokens per second, peak memory in GB) of steps on these batches."""
    torch.cuda.reset_peak_memory_stats()
    device, dtype = pick_device("cuda", dtype)
    with device:
        model = GPT(SIZES[size], {"tokenizer": "gpt2"})
    (optimizer,), scaler = train.make_optimizers(model), torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    autocast = torch.autocast(device.type, dtype, enabled=dtype != torch.float32)

    def step(i):    # the heart of the loop in train.py
        train.backward(model, [train.collate(batches[i], device)], train.count_learned(batches[i]), autocast, scaler)
        scaler.unscale_(optimizer)
        for group in optimizer.param_groups:
            group["lr"] = 1e-4
        torch.nn.utils.clip_grad_norm_(model.parameters(), train.MAX_NORM)
        scaler.step(optimizer)
        scaler.update()

    took = seconds(step, len(batches) - 5, 5)
    n_tokens = sum(train.length(example) for batch in batches[5:] for example in batch)
    return n_tokens / took, torch.cuda.max_memory_allocated() / 1e9


@torch.inference_mode()
def generating(size, dtype, n_rows=64):
    """Tokens per second of all rows together."""
    device, dtype = pick_device("cuda", dtype)
    with device:
        model = GPT(SIZES[size]).to(dtype)
        ids = torch.randint(50257, (n_rows, 200))
    cache = KVCache(model.config, n_rows, device=device, dtype=dtype)
    model.append(ids, cache, slice(None), [200] * n_rows)
    took = seconds(lambda i: model.append(ids[:, :1], cache, slice(None), [1] * n_rows).argmax(-1).tolist(), 50, 10)
    return 50 * n_rows / took


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    released = [size for size in SIZES if size.startswith("gpt2")]
    parser.add_argument("--sizes", nargs="+", choices=released, default=released)
    parser.add_argument("--dtype", choices=("bf16", "fp16", "fp32"), default="bf16")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("torch finds no CUDA device here.")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {args.dtype}")
    reader = GPT(GPTConfig(n_embd=16, n_layer=1, n_head=1), {"tokenizer": "gpt2"})
    examples = train.make_examples(load_problems("gsm8k", "train"), "solver", reader)
    n_tokens = train.N_EPOCHS * sum(map(train.length, examples))
    batches = train.make_batches(examples, 4096, random.Random(0))[:35]
    for size in args.sizes:
        speed, memory = training(size, args.dtype, batches)
        torch.cuda.empty_cache()
        print(f"{size:12s} training {speed:8,.0f} tokens/s, {memory:5.1f} GB, {n_tokens / speed / 60:5.1f} minutes | "
              f"generating {generating(size, args.dtype):6,.0f} tokens/s", flush=True)
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

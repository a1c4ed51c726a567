"""
An untrained student of any size, in a folder that `train.py --model FOLDER` goes on from.

    python students/make/fresh.py runs/fresh --role solver --n-embd 192 --n-layer 5 --n-head 6

Its parameters are drawn as those of the sizes that train.py knows. Two things are different for a
student that begins in a folder: the short dialogues do not come first, and --lr is 1e-3 if
nothing is said (for the sizes that train.py knows 4e-3).
"""

import argparse
import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import ROLES
from gpt import GPT, GPTConfig

def main(args):
    torch.manual_seed(args.seed)
    config = GPTConfig(vocab_size=2048, n_positions=1024, n_embd=args.n_embd, n_layer=args.n_layer,
                       n_head=args.n_head)
    model = GPT(config, {"tokenizer": "tiny", "role": args.role})
    args.folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(args.folder)
    print(f"{args.folder}: {model.n_params():,} parameters")

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[1])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--role", required=True, choices=ROLES)
    for flag, value in {"--n-embd": 128, "--n-layer": 4, "--n-head": 8, "--seed": 0}.items():
        parser.add_argument(flag, type=int, default=value)
    main(parser.parse_args())

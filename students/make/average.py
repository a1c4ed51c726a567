"""
The mean of two students' weights. It made both embedded students:

    python students/make/average.py runs/w2-solver runs/w3-solver students/solver

Where the second was trained on from the first, the mean often keeps more of both than either
(Wortsman et al., "Model soups", ICML 2022).
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gpt import GPT

def main(folder_a, folder_b, out):
    a, b = GPT.from_pretrained(folder_a), GPT.from_pretrained(folder_b)
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            p.lerp_(q, 0.5)
    # What was measured on the second one does not hold for the mean.
    a.info = {key: value for key, value in b.info.items() if key not in ("step", "valid_loss")}
    command = f"python students/make/average.py {folder_a} {folder_b} {out}"
    a.info["command"] = f"{b.info.get('command')} && {command}"
    a.save_pretrained(out, torch.float16)

if __name__ == "__main__":
    main(*sys.argv[1:])

"""
The mean of two students' weights: python tests/average.py FOLDER_A FOLDER_B OUT

Where B was trained on from A, the mean often keeps more of both than either (Wortsman et al., "Model soups", ICML 2022).
"""

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from gpt import GPT

if __name__ == "__main__":
    a, b = map(GPT.from_pretrained, sys.argv[1:3])
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            p.lerp_(q, 0.5)
    a.info = {key: value for key, value in b.info.items() if key not in ("step", "valid_loss")}
    a.info["command"] = f"{b.info['command']} && python {' '.join(sys.argv)}"
    a.save_pretrained(sys.argv[3], torch.float16)

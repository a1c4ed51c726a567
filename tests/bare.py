"""
GSM8K's solutions as bare equations, for a row of the README: `3*4 = <<3*4=12>>12`, without words.

    python tests/bare.py annotations/bare.jsonl
    python train.py --role cot --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3 --steps 2875 --out runs/bare
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import CALCULATION, Step, load_problems, replace_file


def to_bare(step):
    equations = CALCULATION.findall(step.solution)
    return Step(step.question, ", ".join(f"{left} = <<{left}={result}>>{result}" for left, result in equations))


def main(path):
    """Steps without a calculation are left out, and so are problems that have no other."""
    problems = load_problems("gsm8k", "train") + load_problems("gsm8k", "valid")
    for problem in problems:
        problem.steps = [step for step in map(to_bare, problem.steps) if step.solution]
    replace_file(path, *(f"{problem.to_json()}\n".encode() for problem in problems if problem.steps))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

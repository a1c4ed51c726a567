"""
Solutions as bare equations: of "There are 3*4 = <<3*4=12>>12 pens." only 3*4 = <<3*4=12>>12 stays.

    python students/make/bare.py gsm8k annotations/bare.jsonl
    python train.py --role cot --dataset gsm8k --annotations annotations/bare.jsonl --lr 8e-3

It made the annotations of the students that are trained on equations alone. Of a built-in data set
the training and validation splits are written, of FILE.jsonl all records. Steps without a
calculation are left out, and so are problems that have no other.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import CALCULATION, DATASETS, Step, load_problems, replace_file

def write_bare(step: Step) -> Step:
    """
    >>> write_bare(Step("How many?", "He has 3*4 = <<3*4=12>>12 pens, so $<<12*2=24>>24."))
    Step(question='How many?', solution='3*4 = <<3*4=12>>12, 12*2 = <<12*2=24>>24')
    """
    equations = CALCULATION.findall(step.solution)
    texts = [f"{left} = <<{left}={result}>>{result}" for left, result in equations]
    return Step(step.question, ", ".join(texts))

def main(dataset, path):
    splits = ["train", "valid"] if dataset in DATASETS else ["all"]
    problems = [problem for split in splits for problem in load_problems(dataset, split)]
    for problem in problems:
        problem.steps = [step for step in map(write_bare, problem.steps) if step.solution]
    lines = [f"{problem.to_json()}\n".encode() for problem in problems if problem.steps]
    replace_file(path, *lines)
    print(f"{path}: {len(lines):,} of {len(problems):,} problems")

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

"""
Guidance: every subquestion begins with the operations of its step, "[*] How many pens are there?"

    python students/make/bare.py gsm8k annotations/bare.jsonl
    python students/make/guide.py annotations/bare.jsonl annotations/guided.jsonl
    python train.py --role decomposer --dataset gsm8k --annotations annotations/guided.jsonl

So a decomposer plans and asks in one breath (Shridhar et al., 2023, tell it the
operations instead). Of predictions the marks are taken off again, and the scores are printed:

    python students/make/guide.py predictions/gsm8k-test-socratic.jsonl
"""

import re
import sys
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import CALCULATION, Problem, Step, read_lines, replace_file
from eval import bleu_of, print_scores, read_run, score

def operators(text: str) -> list[str]:
    """An operator stands behind a number, a bracket or a percent sign: -5 alone has none."""
    return re.findall(r"(?<=[\d)%])\s*([-+*/])", text)

def mark(step: Step) -> Step:
    """
    >>> mark(Step("How many pens are left?", "3*4 = <<3*4=12>>12, 12-5-1 = <<12-5-1=6>>6")).question
    '[*--] How many pens are left?'
    """
    calculations = " ".join(left for left, _ in CALCULATION.findall(step.solution))
    return replace(step, question=f"[{''.join(operators(calculations))}] {step.question}")

def strip(text: str) -> str:
    """
    >>> strip("[*--] How many pens are left?")
    'How many pens are left?'
    """
    return re.sub(r"^\[[^\]]*\] *", "", text)

def write_marked(source, path):
    records = read_lines(source, Problem.from_json)
    for record in records:
        record.steps = list(map(mark, record.steps))
    replace_file(path, *(f"{record.to_json()}\n".encode() for record in records))
    print(f"{path}: {len(records):,} problems")

def print_stripped(path):
    _, records = read_run(path)
    for record in records:
        for turn in record["turns"]:
            turn["text"] = strip(turn["text"])
    print_scores(score(records), bleu_of(records))

if __name__ == "__main__":
    if len(sys.argv) == 2:
        print_stripped(Path(sys.argv[1]))
    else:
        write_marked(sys.argv[1], Path(sys.argv[2]))

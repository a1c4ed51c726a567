"""
Leave out problems with a step that mixes kinds of operations, as 3*4-5: nothing is split there.

    python students/make/single.py more.jsonl more-single.jsonl

Percentages may multiply and divide at once, as in 40*(75/100).
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from guide import operators

from data import CALCULATION, Problem, read_lines, replace_file

def is_single(expression: str) -> bool:
    """
    >>> is_single("3+4+5"), is_single("3*4-5"), is_single("40*(75/100)"), is_single("40*(3/4)")
    (True, False, True, False)
    """
    kinds = set(operators(expression))
    is_percentage = kinds == {"*", "/"} and "/100" in expression.replace(" ", "")
    return len(kinds) < 2 or is_percentage

def main(source, path):
    records = read_lines(source, Problem.from_json)
    kept = [record for record in records if all(
        is_single(expression) for step in record.steps
        for expression, _ in CALCULATION.findall(step.solution))]
    replace_file(path, *(f"{record.to_json()}\n".encode() for record in kept))
    print(f"{path}: {len(kept):,} of {len(records):,} problems")

if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))

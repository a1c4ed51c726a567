"""
GSM8K's training problems with other numbers, as a file of records:

    python students/make/renumber.py annotations/renumbered.jsonl --seed 1

The numbers of a problem that its annotations use are drawn anew, the annotations are computed
again, and the new numbers are written wherever the old ones stood. A problem where that could say
something false stays as it is; `source` tells which ones are new. With --copies 5 every problem
comes five times. The validation split stands in the file as it is.

Reads   GSM8K (see data.py), numbers.toml in students/ and renumber.toml beside this file
"""

import argparse
import math
import random
import re
import sys
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import CALCULATION, NUMBER, Problem, calculate, load_problems, read_toml, replace_file

# A number that may not change: part of a fraction, a time, a date, a percentage or an ordinal
MONTHS = "January|February|March|April|May|June|July|August|September|October|November|December"
FIXED = (rf"[/:]\s?{NUMBER}|(?:{MONTHS}) {NUMBER}"
         rf"|{NUMBER}(?=\s?[/:%]| ?percent| ?[ap]\.?m\b|st\b|nd\b|rd\b|th\b| ?o.clock)")

def renumber(problem: Problem, rng) -> Problem | None:
    """
    The same story with other numbers, or None where that cannot be done safely.

    >>> from data import Step
    >>> story = Problem("", "Ava had 8 pens and lost 3.", [Step("", "8-3 = <<8-3=5>>5.")], "5")
    >>> renumber(story, random.Random(1)).steps
    [Step(question='', solution='5-2 = <<5-2=3>>3.')]
    """
    told = "\n".join([problem.problem, *(step.question for step in problem.steps)])
    solved = "\n".join(step.solution for step in problem.steps)
    calculations = CALCULATION.findall(solved)
    solved = CALCULATION.sub("~", solved)    # a number after = and without ~ was not computed
    given, computed, constants, used = set(find_values(problem.problem)), set(), set(), set()
    fixed = find_fixed(told, solved)
    for expression, result in calculations:
        operands, value = set(find_values(expression)), calculate(result)
        # A value that is computed, and also given or fixed, might stand for either.
        if value in given | fixed or not is_sound(expression, value):
            return None
        constants |= operands - given - computed
        computed.add(value)
        used |= operands
    is_explained = set(find_values(f"{told} {solved}")) <= given | computed | constants
    is_computed = problem.answer in computed and not re.search(rf"=\s*\$?{NUMBER}", solved)
    # Any other constant may depend on a given number without saying how.
    if not is_explained or not is_computed or not constants <= fixed:
        return None
    free = sorted((given & used) - fixed - find_percentages(given, used), key=Fraction)
    kept = {value: value for value in (given | fixed) - set(free)}
    for _ in range(200):
        new = kept | {value: draw_value(value, rng) for value in free}
        if all(new[value] == value for value in free) or not in_order(new):
            continue
        new = recompute(calculations, new)
        if new and in_order(new):
            steps = [replace(step, question=replace_numbers(step.question, new),
                             solution=replace_numbers(step.solution, new))
                     for step in problem.steps]
            return replace(problem, problem=replace_numbers(problem.problem, new), steps=steps,
                           answer=new[problem.answer], source="renumbered")
    return None

def find_values(text: str) -> list[str]:
    """The values of all numbers in a text, as `calculate` prints them: 1,200.50 is 1200.5."""
    return [calculate(number) for number in re.findall(NUMBER, text)]

def is_sound(expression: str, value: str | None) -> bool:
    """Whether the calculation is true, not rounded, and its value positive and below a million."""
    is_exact = calculate(f"({expression})-({value})") == "0"
    return is_exact and 0 < Fraction(value) < 1_000_000

def find_fixed(told: str, solved: str) -> set[str]:
    """The values that must stay: part of a time, a percentage, ..., or said by a word too."""
    marked = re.findall(f"(?i){FIXED}", told) + re.findall(rf"{NUMBER}\s?%", solved)
    table = read_toml("make/renumber.toml")
    years = re.findall(r"\b(?:19|20)\d\d\b", told)
    fixed = {*table["always"].split(), *find_values(" ".join(marked)), *years}
    words = read_toml("numbers.toml")["cardinals"] | table["words"]
    for word in re.findall("[a-z]+|%", f"{told} {solved}".lower()):
        fixed.update(words.get(word, "").split())
    return fixed

def find_percentages(given: set[str], used: set[str]) -> set[str]:
    """The given values that may be percentages: 20 where 0.2, 1.2, 0.8, 80 or 120 is used."""
    forms = ("{0}%", "1+{0}%", "1-{0}%", "100-{0}", "100+{0}")
    return {value for value in given
            if not used.isdisjoint(calculate(form.format(value)) for form in forms)}

def draw_value(value: str, rng) -> str:
    """A number between half and one and a half of this one, as round and with as many decimals."""
    n_decimals = len(value.partition(".")[2])
    old = int(value.replace(".", ""))
    step = 1 if n_decimals else 10 ** max(0, len(value) - 2)
    while old % step:
        step //= 10
    low = max(1 if n_decimals else 2, old // 2)
    drawn = rng.randint(math.ceil(low / step), max(low, old * 3 // 2) // step) * step
    return calculate(f"{drawn}/{10**n_decimals}")

def in_order(new: dict[str, str]) -> bool:
    """
    Whether what was smaller is smaller still: no part is larger than its whole, and nobody works
    8 days in a week, since the 7 of a week is among the values that stay.
    """
    values = [Fraction(new[old]) for old in sorted(new, key=Fraction)]
    return all(a < b for a, b in zip(values, values[1:]))

def recompute(calculations, new: dict[str, str]) -> dict[str, str] | None:
    """{old: new value}, with the results too. None: one is not like the old."""
    new = dict(new)
    for expression, result in calculations:
        text, old = replace_numbers(expression, new), calculate(result)
        value = calculate(text)
        is_alike = is_sound(text, value) and ("." in old or "." not in value)
        if not is_alike or new.setdefault(old, value) != value:
            return None
    return new

def replace_numbers(text: str, new: dict[str, str]) -> str:
    """A text with its numbers replaced; 1,200 keeps its comma and 2.50 its two decimals."""
    def write(match):
        if match["left"] is not None:    # an annotation stays as the calculator writes it
            left = re.sub(NUMBER, lambda m: new.get(calculate(m[0]), m[0]), match["left"])
            return f"<<{left}={calculate(left)}>>"
        old = match[0]
        value = new.get(calculate(old), calculate(old))
        if value == calculate(old):
            return old    # 7:00 is not 7:0
        whole, _, decimals = value.partition(".")
        if "," in old or len(whole) > 4 and "," in text:
            whole = f"{int(whole):,}"
        decimals = decimals.ljust(len(old.partition(".")[2]), "0")
        return f"{whole}.{decimals}" if decimals else whole
    return re.sub(rf"<<(?P<left>[^<>=]*)=[^<>=]*>>|{NUMBER}", write, text)

def parse_args(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--seed", type=int, default=1, help="of the new numbers")
    parser.add_argument("--copies", type=int, default=1, help="how often each problem comes")
    return parser.parse_args(argv)

def main(args):
    records, n_new = [], 0
    for copy in range(args.copies):
        for problem in load_problems("gsm8k", "train"):
            new = renumber(problem, random.Random(f"{args.seed}-{copy}-{problem.id}"))
            n_new += new is not None
            records.append(replace(new or problem, id=f"{problem.id}-{copy}"))
    records += load_problems("gsm8k", "valid")
    replace_file(args.file, *(f"{record.to_json()}\n".encode() for record in records))
    print(f"{args.file}: {len(records):,} problems, {n_new:,} of them with other numbers")

if __name__ == "__main__":
    main(parse_args())

"""
Write a file of problem records, made from public collections of word problems:

    python students/make/more.py more.jsonl [FILE.jsonl ...]

A step is a line of a program that a language model wrote for its problem; its subquestion is made
of the variable's name, the last one is the problem's own. Records of a FILE keep their steps.

Reads   more.toml; the files that it names, in data/ or SOCRATIC_DATA, or from their authors
Writes  records (see data.py) whose ids hold the split: 1 of 20 texts is valid, the rest train
"""

import csv
import hashlib
import json
import re
import sys
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from programs import WORDS, read_program, solve

from data import (CALCULATION, HERE, NUMBER, Problem, calculate, clean, find_file, load_problems,
                  read_lines, read_toml, replace_file, segments)

TABLE = read_toml("make/more.toml")

def check(record: Problem, comments: str = "") -> None:
    """Raise a ValueError for a record that may teach a falsehood; more.toml has the patterns."""
    text = "".join(part.text for part in segments(record, "unified"))
    for why, pattern in TABLE["drops"].items():
        if re.search(pattern, f"{text}\n{comments}", re.MULTILINE | re.VERBOSE):
            raise ValueError(why)
    told = record.problem.lower()
    known = {*WORDS["known"], *map(calculate, re.findall(NUMBER, told))}
    known.update(TABLE["numbers"].get(word) for word in re.findall("[a-z]+", told))
    for step in record.steps:
        for expression, value in CALCULATION.findall(step.solution):
            for number in re.findall(NUMBER, expression):
                # 20 % may be used as 20, 0.2, 0.8, 1.2 and 80.
                forms = ("{}", "{}*100", "100-{}*100", "{}*100-100", "100-{}")
                if known.isdisjoint(calculate(form.format(number)) for form in forms):
                    raise ValueError("a number comes from nowhere")
            known.add(calculate(value))
        known.update(map(calculate, re.findall(NUMBER, step.solution)))

def runs(text: str) -> list[str]:
    """All runs of nine words, with numbers masked; a shorter text is one run."""
    words = re.sub(NUMBER, "#", clean(text).lower()).split()
    return [" ".join(words[i:i + 9]) for i in range(max(1, len(words) - 8))]

def convert(record: Problem, code: str, tests: set[str]) -> Problem:
    """
    The finished record of a row. A ValueError says why there is none.

    code    the program that solves the problem; without one the record is finished already
    tests   the runs of all problems that nothing here may be like
    """
    label = r"^\W*((Student|Question ?\d*|Q\d*|[^.?:]*programs?( are)?)\W*:\W*|\d+[.)] )*(?=[A-Z])"
    problem = re.sub(label, "", clean(record.problem))
    steps, answer, found = record.steps, record.answer, runs(problem)
    if 2 * sum(run in tests for run in found) >= len(found):
        raise ValueError("like a problem of a test or valid split")
    if code:
        steps = solve(read_program(code), problem)
        end_of_sentence = r"(?<=[.?!])(?<!\b[DM][rs]\.)(?<!\bMrs\.) (?=[A-Z])"
        steps[-1].question = re.split(end_of_sentence, problem)[-1]
        answer = CALCULATION.findall(steps[-1].solution)[0][1]
    record = Problem(record.id, problem, steps, answer, record.source)
    check(record, "\n".join(re.findall("#.*", code)))
    return record

def read_rows(own_files):
    """(record, program) of every row. A row with a program lacks its steps and its answer."""
    read_toml("sources.toml").update(TABLE["sources"])    # `find_file` knows these files, too
    for name in TABLE["sources"]:
        text = find_file(name).read_text(encoding="utf-8")
        rows = json.loads(text) if name.endswith("json") else csv.DictReader(text.splitlines(True))
        for row in rows:
            if "user" in row:
                yield Problem("tinygsm", row["user"], source="TinyGSM-Filter"), row["assistant"]
            elif row["mac"] == "1":    # teachers found it solvable, solved, and fit for a school
                yield Problem("mathwell", row["question"], source="MATHWELL"), row["solution"]
    for path in own_files:
        for record in read_lines(path, Problem.from_json):
            record.id = Path(path).stem
            yield record, ""

def main(out, *own_files):
    parts = [("gsm8k", "valid"), ("gsm8k", "test"), ("svamp", "all")]
    parts += [(str(path), "all") for path in (HERE / "tests").glob("typed*.jsonl")]
    tests = {run for part in parts for test in load_problems(*part) for run in runs(test.problem)}
    lines, counts = {}, Counter()
    for row, code in read_rows(own_files):
        try:
            record = convert(row, code, tests)
            if record.problem in lines:
                raise ValueError("the same text again")
        except ValueError as why:
            counts[row.id, f"dropped: {why}"] += 1
            continue
        # Twins that differ in their numbers have the same split. Paraphrases of GSM8K's training
        # problems, or what else has no program, are for training only.
        text = " ".join(runs(record.problem))
        bucket = int(hashlib.sha256(text.encode()).hexdigest(), 16) % 20
        split = "valid" if code and bucket == 0 else "train"
        record.id += f"-{split}-{counts[row.id, split]}"
        counts[row.id, split] += 1
        lines[record.problem] = f"{record.to_json()}\n".encode()
    for (name, what), n in sorted(counts.items()):
        print(f"{n:6,} {name}, {what}")
    replace_file(Path(out), *lines.values())

if __name__ == "__main__":
    main(*sys.argv[1:])

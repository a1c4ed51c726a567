"""
A small decomposer for a large solver: is a teacher right more often with its subquestions?

    python eval.py --dataset gsm8k --limit 200 --no-diagnose --out predictions/planned
    python students/make/planned.py files predictions/planned/*.jsonl teacher
    python annotate.py --dataset teacher/plain.jsonl --mode cot --out teacher/cot.jsonl ...
    python students/make/planned.py score teacher/gold.jsonl teacher/*.replies.jsonl

`files` writes three files of records without solutions: `plain` (problems alone), `decomposed`
(with the subquestions of the predictions) and `gold` (with those of the data set). All commands are
in students/results/splitting/teacher.sh. `score` counts the first reply to each problem by its
answer alone: the calculations of a right answer may be false. A missing reply is wrong, and said.
"""

import itertools
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from annotate import read_row, read_text
from data import Problem, Step, extract_answer, read_lines, replace_file, same_answer
from eval import mcnemar, read_run, subquestions, wilson

def write_files(predictions, folder):
    files = {"plain": [], "decomposed": [], "gold": []}
    for record in read_run(predictions)[1]:
        told = record["problem"]
        for name, questions in zip(files, ([], *subquestions(record))):
            steps = [Step(text, "") for text in questions]
            files[name].append(Problem(told["id"], told["problem"], steps, told["answer"]))
    folder.mkdir(parents=True, exist_ok=True)
    for name, problems in files.items():
        path = folder / f"{name}.jsonl"
        replace_file(path, *(f"{problem.to_json()}\n".encode() for problem in problems))
        print(f"{path}: {len(problems)} problems")

def read_hits(records, replies):
    """{id: whether the first reply has the record's answer}; False where there is none."""
    answers = {problem.id: problem.answer for problem in read_lines(records, Problem.from_json)}
    texts = {row["id"]: read_text(row["reply"]) for row in read_lines(replies, read_row)
             if row and row["sample"] == 0}
    n, n_twice = len(answers), sum(text.count("Answer:") > 1 for text in texts.values())
    print(f"{replies}: {len(texts.keys() & answers.keys())} of {n} problems have a reply, "
          f"{n_twice} with several answers")
    return {name: same_answer(extract_answer(texts.get(name, "")), answer)
            for name, answer in answers.items()}

def print_scores(records, paths):
    hits = {path.name.partition(".")[0]: read_hits(records, path) for path in paths}
    for name, its in hits.items():
        right, n = sum(its.values()), len(its)
        low, high = wilson(right, n)
        print(f"{name:<12}{right:5} of {n} = {right / n:6.1%}   {low:.1%} to {high:.1%}")
    for (a, x), (b, y) in itertools.combinations(hits.items(), 2):
        wins, losses = (sum(one[i] > other[i] for i in one) for one, other in ((x, y), (y, x)))
        print(f"{a} against {b}: {wins} wins, {losses} losses, p = {mcnemar(wins, losses):.2g}")

if __name__ == "__main__":
    what, first, *rest = sys.argv[1:]
    if what == "files":
        write_files(Path(first), Path(rest[0]))
    else:
        print_scores(Path(first), list(map(Path, rest)))

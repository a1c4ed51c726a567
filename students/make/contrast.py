"""
When does splitting help? The budget and the scores of a contrast between a pair of students, chain
of thought and one unified student; students/results/splitting holds the commands.

    python students/make/contrast.py steps counted.jsonl 900
    python students/make/contrast.py score predictions/splitting/* --plot splitting.svg

`steps` prints how many training steps of each student cost what `cot` costs at 900. `score` reads
folders of eval.py's predictions, one for each arm and seed (cot-11, pair-11, ...).
"""

import argparse
import math
import re
import sys
from collections import defaultdict, namedtuple
from itertools import accumulate, islice
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import load_problems, replace_file
from eval import is_right, read_run
from gpt import GPT, SIZES
from train import count_learned, endless_batches, length, make_examples

STUDENTS = [("cot", "cot", "tiny", 1), ("unified", "unified", "tiny", 1),    # arm, role, size and
            ("pair", "decomposer", "nano", 2), ("pair", "solver", "nano", 2),    # students to share
            ("answer", "answer", "tiny", 1)]                                     # the budget
# A t distribution has 95 % within this; the degrees of freedom are the seeds less one.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
COLORS = ["#0072b2", "#d55e00", "#009e73", "#888888", "#56b4e9", "#cc79a7", "#e69f00"]

# counted: whether it has the right number of steps; None for `answer`, which shows none
Outcome = namedtuple("Outcome", "right counted n_steps n_distractors")

def flops(batch, model):
    """The FLOPs of a training step, without the scores of attention; padding is read, too."""
    n_blocks = sum(p.numel() for p in model.h.parameters())
    n_read = len(batch) * max(map(length, batch))
    return 6 * (n_blocks * n_read + model.wte.weight.numel() * count_learned(batch))

def print_steps(dataset, budgets):
    """The batches are those that train.py makes with seed 0."""
    problems, costs = load_problems(dataset, "train"), {}
    for student in STUDENTS:
        model = GPT(SIZES[student[2]], {"tokenizer": "tiny"})
        batches = endless_batches(make_examples(problems, student[1], model), 2048, 0, True)
        each = (flops(batch, model) for batch in islice(batches, 3 * max(budgets)))
        costs[student] = list(accumulate(each))
    for n in budgets:
        budget = costs[STUDENTS[0]][n - 1]
        print(f"\n`cot` at {n:,} steps: {budget:.4g} FLOPs\n\n| arm | role | size | FLOPs a step | "
              "steps | a third of them | their share of the budget |\n|---|---|---|---|---|---|---|")
        for (arm, role, size, n_sharing), total in costs.items():
            k = min(range(len(total)), key=lambda i: abs(total[i] - budget / n_sharing)) + 1
            print(f"| {arm} | {role} | {size} | {total[k - 1] / k:.4g} | {k} | {round(k / 3)} | "
                  f"{total[k - 1] / budget:.4f} |")

def read_outcomes(folders):
    """{arm: {seed: {id: Outcome}}}"""
    arms, problems = defaultdict(dict), set()
    for folder in map(Path, folders):
        arm, _, seed = folder.name.rpartition("-")
        (path,) = folder.glob("*.jsonl")
        header, records = read_run(path)
        problems.add(header["settings"]["problems_sha256"])
        if len(records) != header["settings"]["n"] or len(problems) > 1:
            raise SystemExit(f"{path} is unfinished, or of other problems than those before it.")
        arms[arm][seed] = {record["problem"]["id"]: read_outcome(record) for record in records}
    return arms

def read_outcome(record):
    # Chain of thought shows its steps as solutions, the others as subquestions.
    kinds, n_steps = [turn["kind"] for turn in record["turns"]], len(record["problem"]["steps"])
    n_ours = kinds.count("Subquestion") or kinds.count("Solution")
    counted = None if kinds == ["Answer"] else n_ours == n_steps
    n_distractors = int(re.search(r"-(\d+)distractors-", record["problem"]["id"])[1])
    return Outcome(is_right(record), counted, n_steps, n_distractors)

def percent(hits):
    hits = list(hits)
    return math.nan if not hits or None in hits else 100 * sum(hits) / len(hits)

def figures(outcomes):
    """{what: percent} of the primary set: stories of 2 to 6 steps with two distractors."""
    its = [one for one in outcomes.values() if one.n_distractors == 2 and 2 <= one.n_steps <= 6]
    return {"right": percent(one.right for one in its),
            "right number of steps": percent(one.counted for one in its),
            "right among those": percent(one.right for one in its if one.counted)}

def p_value(t, df, n=2_000):
    """Two-sided p of Student's t: its density is integrated from 0 to |t| by Simpson's rule."""
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    heights = [scale * (1 + (i * t / n) ** 2 / df) ** (-(df + 1) / 2) for i in range(n + 1)]
    area = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    return max(0.0, 1 - 2 * area * abs(t) / n / 3)

def interval(differences):
    """(the mean of the seeds' differences, half of its 95 % interval, p)"""
    n, middle, error = len(differences), mean(differences), stdev(differences)
    t = middle * math.sqrt(n) / error if error else math.inf
    return middle, T_95[n - 1] * error / math.sqrt(n), p_value(t, n - 1) if error else math.nan

def print_scores(arms):
    """The primary set, with the two primary contrasts; then, without a verdict, all stories."""
    table = {arm: {seed: figures(its) for seed, its in seeds.items()} for arm, seeds in arms.items()}
    whats = ("right", "right number of steps", "right among those")
    print(f"| 2 to 6 steps, 2 distractors | seed | {' | '.join(whats)} |\n|---|---|---|---|---|")
    for arm, rows in table.items():
        middle = {what: mean(row[what] for row in rows.values()) for what in whats}
        for seed, row in [*sorted(rows.items()), ("mean", middle)]:
            print(f"| {arm} | {seed} | {' | '.join(f'{row[what]:.1f}' for what in whats)} |")
    print("\n| points more than cot | mean | 95 % interval | p of t | Holm's p |\n|---|---|---|---|---|")
    for what in whats:
        pairs = {arm: [(rows[seed][what], table["cot"][seed][what]) for seed in sorted(rows)]
                 for arm, rows in table.items() if arm in ("pair", "unified")}
        found = {arm: interval([a - b for a, b in both]) for arm, both in pairs.items()}
        low, high = min(its[2] for its in found.values()), max(its[2] for its in found.values())
        for arm, (middle, half, p) in found.items():
            adjusted = max(p, min(1, 2 * low)) if p == high else min(1, 2 * p)    # for two contrasts
            last = f"{adjusted:.2g}" if what == "right" else "not tested"
            print(f"| {arm}, {what} | {middle:+.1f} | {middle - half:+.1f} to {middle + half:+.1f} | "
                  f"{p:.2g} | {last} |")
    print(f"\n| right | distractors | {' | '.join(f'{n} steps' for n in range(1, 9))} |\n{'|---' * 10}|")
    for arm, seeds in arms.items():
        for n in (2, 0):
            cells = " | ".join(f"{mean(by_seed):.1f}" for by_seed in curve(seeds, n))
            print(f"| {arm}, {len(seeds)} seeds | {n} | {cells} |")

def curve(seeds, n_distractors):
    """The percentages of right answers at 1 to 8 steps, each for all seeds."""
    return [[percent(one.right for one in its.values() if one[2:] == (n, n_distractors))
             for its in seeds.values()] for n in range(1, 9)]

def plot(arms):
    """Right answers over steps: a line an arm (the mean of its seeds), a dot a seed; a panel each."""

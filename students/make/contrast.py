"""
When does splitting help? The budget and the scores of a contrast between a pair of students, chain
of thought and one unified student (its commands are in students/results/splitting).

    python students/make/contrast.py steps counted.jsonl 900
    python students/make/contrast.py keep outcomes.gz predictions/splitting/*-1?
    python students/make/contrast.py score outcomes.gz right.svg
    python students/make/contrast.py differences 1319 74 70 71 34 39 33

`steps` prints how many training steps of each student cost what `cot` costs at 900. `keep` reads
folders of eval.py's predictions, one for each arm and seed (cot-11, pair-11), and keeps of each
story whether it came out right. `score` prints all tables of that and draws a picture.
`differences` takes a number of problems, then the right ones of one arm's seeds, then another's.
"""

import gzip
import itertools
import math
import re
import sys
from collections import defaultdict, namedtuple
from pathlib import Path
from statistics import mean, stdev

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import load_problems, read_lines, replace_file
from eval import is_right, read_run
from gpt import GPT, SIZES
from train import count_learned, endless_batches, length, make_examples

STUDENTS = [("cot", "tiny", 1), ("unified", "tiny", 1), ("decomposer", "nano", 2),    # role, size,
            ("solver", "nano", 2), ("answer", "tiny", 1)]    # and how many share the budget
# A t distribution has 95 % within this; the degrees of freedom are the seeds less one.
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
WHATS = ("right", "right number of steps", "right among those", "right where both have that number")
# n_ours: how many steps the dialogue has; None for `answer`, which shows none
Outcome = namedtuple("Outcome", "right n_ours n_steps n_distractors")

def flops(batch, model):
    """The FLOPs of a training step, without the scores of attention; padding is read, too."""
    n_blocks = sum(p.numel() for p in model.h.parameters())
    n_read = len(batch) * max(map(length, batch))
    return 6 * (n_blocks * n_read + model.wte.weight.numel() * count_learned(batch))

def print_steps(dataset, budgets):
    """The batches are those that train.py makes with seed 0."""
    whole = []    # the cost of `cot`, which comes first
    for role, size, n_sharing in STUDENTS:
        model = GPT(SIZES[size], {"tokenizer": "tiny"})
        examples = make_examples(load_problems(dataset, "train"), role, model)
        batches = endless_batches(examples, 2048, 0, short_first=True)
        each = (flops(next(batches), model) for _ in range(2 * max(budgets)))
        total = list(itertools.accumulate(each))
        whole = whole or total
        for n in budgets:
            k = min(range(len(total)), key=lambda i: abs(total[i] - whole[n - 1] / n_sharing)) + 1
            print(f"budget {n}: {role} {size} {k} steps, a third {round(k / 3)}, twice {2 * k}; "
                  f"{total[k - 1]:.4g} FLOPs, {total[k - 1] / whole[n - 1]:.1%} of the budget")

def read_outcomes(folders):
    arms, problems = defaultdict(dict), set()    # {arm: {seed: {id: Outcome}}}
    for folder in map(Path, folders):
        arm, _, seed = folder.name.rpartition("-")
        (path,) = folder.glob("*.jsonl")
        header, records = read_run(path)
        settings = header["settings"]
        problems.add(settings["problems_sha256"])
        if len(records) != settings["n"] or len(problems) > 1:
            raise SystemExit(f"{path} is unfinished, or of other problems than those before it.")
        arms[arm][seed] = {record["problem"]["id"]: read_outcome(record, settings["method"])
                           for record in records}
    return arms

def read_outcome(record, method):
    # Chain of thought shows its steps as solutions, the others as subquestions.
    kind = "Solution" if method == "cot" else "Subquestion"
    n_ours = sum(turn["kind"] == kind for turn in record["turns"])
    return Outcome(is_right(record), None if method == "answer" else n_ours,
                   *read_id(record["problem"]["id"]))

def read_id(name):
    return map(int, re.search(r"-(\d+)steps-(\d+)distractors-", name).groups())

def write_table(arms):
    """
    A line for each story. A column for each arm and seed holds two numbers: 1 if it came out
    right, else 0, and the number of its steps (- if none are shown).
    """
    runs = {f"{arm}-{seed}": its for arm, seeds in arms.items() for seed, its in seeds.items()}
    lines = [["id", *runs]]
    for name in next(iter(runs.values())):
        outcomes = [its[name] for its in runs.values()]
        lines.append([name, *(f"{one.right:d}{'-' if one.n_ours is None else one.n_ours}"
                              for one in outcomes)])
    return gzip.compress("".join(" ".join(line) + "\n" for line in lines).encode(), mtime=0)

def read_table(path):
    (_, *runs), *rows = read_lines(path, str.split)
    arms = defaultdict(dict)
    for run, cells in zip(runs, zip(*(row[1:] for row in rows), strict=True), strict=True):
        arm, _, seed = run.rpartition("-")
        for (name, *_), (right, *n_ours) in zip(rows, cells):
            n_ours = None if n_ours == ["-"] else int("".join(n_ours))
            arms[arm].setdefault(seed, {})[name] = Outcome(right == "1", n_ours, *read_id(name))
    return arms

def percent(hits):
    hits = [*hits]
    return 100 * sum(hits) / len(hits) if hits else math.nan

def too_many(one):
    """How many steps the dialogue has more than the story; 0 is right, None if it shows none."""
    return None if one.n_ours is None else one.n_ours - one.n_steps

def primary(its, n_distractors=2):
    """The stories of 2 to 6 steps; with two distractors they are what was fixed beforehand."""
    return {name: one for name, one in its.items()
            if one.n_distractors == n_distractors and 1 < one.n_steps < 7}

def figures(ours, others):
    """The percentages of WHATS on the primary set."""
    its = primary(ours)
    counted = [name for name, one in its.items() if too_many(one) == 0]
    return [percent(one.right for one in its.values()),
            100 * len(counted) / len(its) if any(one.n_ours for one in its.values()) else math.nan,
            percent(its[name].right for name in counted),
            percent(its[name].right for name in counted if too_many(others[name]) == 0)]

def p_value(t, df, n=2_000):
    """Two-sided p of Student's t: its density is integrated from 0 to |t| by Simpson's rule."""
    scale = math.gamma((df + 1) / 2) / (math.sqrt(df * math.pi) * math.gamma(df / 2))
    heights = [scale * (1 + (i * t / n) ** 2 / df) ** (-(df + 1) / 2) for i in range(n + 1)]
    area = heights[0] + heights[-1] + 4 * sum(heights[1:-1:2]) + 2 * sum(heights[2:-1:2])
    return max(0.0, 1 - 2 * area * abs(t) / n / 3)

def interval(points):
    """(the mean of the seeds, half of its 95 % interval, p)"""
    error, df = stdev(points) / math.sqrt(len(points)), len(points) - 1
    return mean(points), T_95[df] * error, p_value(mean(points) / error, df) if error else math.nan

def print_differences(n, *counts):
    half = len(counts) // 2
    middle, width, p = interval([100 * (b - a) / n for a, b in zip(counts[:half], counts[half:])])
    print(f"the second arm has {middle:+.2f} points, {middle - width:+.2f} to "
          f"{middle + width:+.2f}, p {p:.2g}")

def holm(a, b):    # Holm (1979), for two p values
    return [min(1, 2 * p) if p == min(a, b) else max(p, min(1, 2 * min(a, b))) for p in (a, b)]

def row(*cells):
    texts = (f"{x:.1f}" if isinstance(x, float) else str(x) for x in cells)
    print("|", " | ".join(texts).replace("nan", "-"), "|")

def head(*cells):
    print()
    row(*cells)
    row(*["---"] * len(cells))

def print_scores(arms):
    """All tables. Returns {arm and distractors: percent right at 1 to 8 steps}, means of seeds."""
    cot, tested = arms["cot"], ("pair", "unified")
    head("arm", "right, each seed", "mean", *WHATS[1:3], "right without distractors")
    for arm, seeds in arms.items():
        every = [figures(its, its)[:3] + [percent(one.right for one in primary(its, 0).values())]
                 for its in seeds.values()]
        row(arm, " ".join(f"{figure[0]:.1f}" for figure in every), *map(mean, zip(*every)))
    head("points more than cot, over the seeds", "", "mean", "95 % interval", "p of t, Holm")
    for i, what in enumerate(WHATS):
        found = [interval([figures(its, cot[seed])[i] - figures(cot[seed], its)[i]
                           for seed, its in arms[arm].items()]) for arm in tested]
        for arm, (middle, half, _), p in zip(tested, found, holm(found[0][2], found[1][2])):
            row(arm, what, middle, f"{middle - half:.1f} to {middle + half:.1f}",
                f"{p:.2g}" if what == "right" else "not tested")
    curves = {}
    head("percent right (distractors) at steps:", *range(1, 9))
    for arm, n in itertools.product(arms, (2, 0)):
        curves[arm, n] = shares(arms[arm], n, lambda one: one.right)
        row(f"{arm} ({n})", *curves[arm, n])
    head("percent with too few / too many steps (two distractors) at steps:", *range(1, 9))
    for arm, seeds in arms.items():
        if any(one.n_ours for its in seeds.values() for one in its.values()):
            few = shares(seeds, 2, lambda one: too_many(one) < 0)
            many = shares(seeds, 2, lambda one: too_many(one) > 0)
            row(arm, *(f"{a:.0f} / {b:.0f}" for a, b in zip(few, many)))
    return curves

def shares(seeds, n_distractors, is_hit):
    """The percentage of hits at 1 to 8 steps, means of seeds."""
    return [mean(percent(is_hit(one) for one in its.values() if one[2:] == (k, n_distractors))
                 for its in seeds.values()) for k in range(1, 9)]

def plot(curves):
    """Right answers over steps: on the left with two distractors, on the right without."""
    text = ('<svg xmlns="http://www.w3.org/2000/svg" width="760" height="330" font-size="12" '
            'font-family="sans-serif">')
    for x, title in (50, "steps, with two distractors"), (350, "steps, without distractors"):
        text += (f'<path d="M{x} 10V290h252" fill="none" stroke="#888"/>'
                 f'<text x="{x}" y="325">{title}</text>')
        text += "".join(f'<text x="{x + 36 * n - 40}" y="306">{n}</text>' for n in range(1, 9))
        text += "".join(f'<text x="{x - 42}" y="{294 - 2.8 * y}">{y} %</text>'
                        for y in range(0, 101, 20))
    for i, ((arm, n), shares) in enumerate(curves.items()):
        color, x = f"hsl({i // 2 * 207 % 360} 75% 40%)", 50 if n else 350
        line = " ".join(f"{x + 36 * k - 36},{290 - 2.8 * y:.0f}" for k, y in enumerate(shares, 1))
        text += (f'<polyline points="{line}" fill="none" stroke="{color}" stroke-width="2"/>'
                 f'<text x="640" y="{20 + 10 * i}" fill="{color}">{arm if n else ""}</text>')
    return text + "</svg>\n"

if __name__ == "__main__":
    what, file, *rest = sys.argv[1:]
    if what == "steps":
        print_steps(file, list(map(int, rest)))
    elif what == "differences":
        print_differences(int(file), *map(int, rest))
    elif what == "keep":
        replace_file(Path(file), write_table(read_outcomes(rest)))
    else:
        replace_file(Path(rest[0]), plot(print_scores(read_table(file))).encode())

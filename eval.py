"""
How well, and where does it break? Students are scored on a test split.

    python eval.py                                  decomposer and solver on the demo's test split
    python eval.py --method cot --dataset gsm8k     chain of thought, on GSM8K's test split
    python eval.py --samples 16                     16 dialogues vote, as in infer.py
    python eval.py --compare A.jsonl B.jsonl        is the difference more than luck?

Reads   the students (see infer.py) and the problems of a split
Writes  predictions/<dataset>-<split>-<method>.jsonl    the settings, then a dialogue a line; the
                                                        same command goes on where it stopped
        predictions/<dataset>-<split>-<method>.json     the scores
        predictions/report.html                         scores, loss curves, where each one broke
"""

import argparse
import html
import json
import math
import re
import shlex
import sys
import time
from collections import Counter
from dataclasses import asdict
from functools import partial
from pathlib import Path

from data import (DATASET_HELP, Problem, Step, clean, load_problems, positive, read_lines,
                  read_toml, replace_file, run_name, same_answer, sha256)
from infer import TEMPERATURE, Dialogue, Turn, add_student_flags, chunks, load_students, solve

# ------------------------------------------------------------ predictions: one record per dialogue

def predict(args):
    """Solve the problems in batches; each goes to a file when it is done. Returns its path."""
    problems = [problem for problem in load_problems(args.dataset, args.split, args.limit)
                if problem.answer]    # without a gold answer nothing can be scored
    if not problems:
        raise SystemExit(f"{args.dataset}/{args.split} holds no problem with an answer. (The text "
                         "of a problem decides its split.) --split all takes all of the file, "
                         "what you trained on, too.")
    students = load_students(args)
    header = make_header(args, students, problems)
    path = args.out / f"{run_name(args.dataset)}-{args.split}-{args.method}.jsonl"
    records = []
    if path.exists():
        old, records = read_run(path)
        other = [key for key, value in header["settings"].items()
                 if old["settings"].get(key) != value]
        if other:
            raise SystemExit(f"{path} holds another run, with other settings: {', '.join(other)}.\n"
                             "It stays as it is. Name a folder for this one: --out FOLDER")
    start, n_first = time.time(), len(records)
    for batch in chunks(problems[n_first:], args.batch_size):
        records += solve_batch(args, batch, students)
        replace_file(path, *(json.dumps(row).encode() + b"\n" for row in (header, *records)))
        share = sum(map(is_right, records)) / len(records)
        speed = (len(records) - n_first) / (time.time() - start)
        left = int((len(problems) - len(records)) / speed)
        print(f"{len(records):5d}/{len(problems)} problems | right so far {share:6.1%} | "
              f"{speed:5.1f} problems/s | {left // 60}:{left % 60:02d} left", flush=True)
    return path

def make_header(args, students, problems):
    """The first line of a run. `settings` holds all that shapes the predictions."""
    flags = ("split", "method", "calculator", "samples", "diagnose", "batch_size", "dtype")
    settings = {"dataset": run_name(args.dataset)} | {flag: getattr(args, flag) for flag in flags}
    texts = "\n".join(problem.to_json() for problem in problems)
    # 16 digits of a sha256 are enough to tell two files apart.
    settings |= {"n": len(problems), "problems_sha256": sha256(texts.encode())[:16]}
    trained_by, curves = {}, {}
    for role, student in students.items():
        folder = Path(student.folder)
        settings["device"] = student.model.wte.weight.device.type
        settings[f"{role}_sha256"] = sha256((folder / "model.safetensors").read_bytes())[:16]
        trained_by[role] = student.model.info.get("command")
        log = read_lines(folder / "log.jsonl") if (folder / "log.jsonl").exists() else []
        curves[role] = [(line["step"], line["loss"]) for line in log if "loss" in line]
    return {"settings": settings, "command": shlex.join(["python", "eval.py", *sys.argv[1:]]),
            "trained_by": trained_by, "curves": curves}

def solve_batch(args, problems, students):
    """A record a problem: its dialogue, and the answers with an oracle (see `oracles`)."""
    run = partial(solve, students=students, method=args.method, batch_size=args.batch_size,
                  calculator=args.calculator)
    dialogues = run(problems, n_samples=args.samples)
    records = [asdict(dialogue) | {"oracles": {}} for dialogue in dialogues]
    for name, chosen, options in oracles(args, problems, dialogues) if args.diagnose else ():
        answered = run([problems[i] for i in chosen], **options)
        for i, dialogue in zip(chosen, answered):
            records[i]["oracles"][name] = dialogue.answer
    return records

def read_run(path):
    """(header, records) of a file of predictions."""
    rows = read_lines(path, read_row)
    if not rows or "settings" not in rows[0] or any("settings" in row for row in rows[1:]):
        raise SystemExit(f"{path} is not a file of predictions. They are made with: python eval.py")
    return rows[0], rows[1:]

def read_row(line):
    """A line of a file of predictions: the header, or a dialogue."""
    row = {} | json.loads(line)    # a TypeError if it is no object
    if "settings" in row:
        curves = {role: [(float(step), float(loss)) for step, loss in points]
                  for role, points in dict(row.get("curves", {})).items()}
        return {"command": ""} | row | {"settings": {} | row["settings"], "curves": curves}
    if row.keys() != {*Dialogue.__dataclass_fields__, "oracles"}:
        raise ValueError("not a dialogue of eval.py: a key is missing, or there is another one")
    oracles = {} | row.pop("oracles")
    row["problem"] = Problem.from_json(json.dumps(row["problem"]))
    row["turns"] = turns = [Turn(**turn) for turn in row["turns"]]
    row["answers"] = list(row["answers"])
    dialogue = Dialogue(**row)
    texts = [text for turn in turns for text in (turn.kind, turn.text)] + [dialogue.ended]
    answers = [dialogue.answer, *dialogue.answers, *oracles.values()]
    texts += [answer for answer in answers if answer is not None]
    if any(type(text) is not str for text in texts):
        raise ValueError("not a dialogue of eval.py: a field that should be a text is none")
    return asdict(dialogue) | {"oracles": oracles}

# ------------------------------------------------------------ where did it break?

def oracles(args, problems, dialogues):
    """
    An oracle is a second dialogue in which one part is replaced, most often by the correct (gold)
    one. What the students then get right tells which part was to blame. Yields (name, indices of
    its problems, options of `solve`):

    calculator on / off   the other way than before
    gold subquestions     the solver writes the rest
    gold solutions        to the decomposer's subquestions, if they are as many as gold's; the
                          solver writes the answer alone
    """
    everything = list(range(len(problems)))
    switched = "calculator off" if args.calculator else "calculator on"
    yield switched, everything, {"calculator": not args.calculator}
    if args.method != "socratic":
        return
    gold = [problem.steps for problem in problems]
    asked = [i for i in everything if gold[i] and all(step.question for step in gold[i])]
    given = [[Step(step.question) for step in gold[i]] for i in asked]
    yield "gold subquestions", asked, {"given": given}
    ours = [dialogue.texts("Subquestion") for dialogue in dialogues]
    paired = [i for i in asked
              if len(ours[i]) == len(gold[i]) and all(step.solution for step in gold[i])]
    given = [[Step(question, step.solution) for question, step in zip(ours[i], gold[i])]
             for i in paired]
    yield "gold solutions", paired, {"given": given}

def stage(record):
    """Where a dialogue broke, in words."""
    right_with = {name for name, answer in record["oracles"].items()
                  if same_answer(answer, record["problem"]["answer"])}
    if is_right(record):
        return "right"
    if record["ended"] != "finished":
        return "cut off before its end"
    if "calculator on" in right_with:
        return "arithmetic: right with the calculator"
    if "gold subquestions" not in record["oracles"]:
        return "cause unknown"
    if "gold subquestions" in right_with:
        return "decomposer: right with gold subquestions"
    if "gold solutions" in record["oracles"] and "gold solutions" not in right_with:
        return "answer: wrong even with gold solutions"
    return "solver: wrong with gold subquestions"

def is_right(record):
    """Whether the answer of a dialogue is the gold answer."""
    return same_answer(record["answer"], record["problem"]["answer"])

# ------------------------------------------------------------ scores: {section: {row: figure}}

def score(records):
    """All shares of a run, from its predictions alone: {"right", "n", "low", "high"} for each."""
    golds = Counter(record["problem"]["answer"] for record in records)
    common, scores = golds.most_common(1)[0][0], {}
    for record in records:
        for section, row, hit in find_hits(record, common):
            scores.setdefault(section, {}).setdefault(row, []).append(hit)
    broke = [stage(record) for record in records if not is_right(record)]
    for place in sorted(set(broke)):
        rows = scores.setdefault("where wrong answers broke", {})
        rows[place] = [its == place for its in broke]
    for section, rows in scores.items():
        if "by number" in section:    # of steps, of votes
            order = sorted(rows, key=lambda row: int(row.split()[0]))
            rows = scores[section] = {row: rows[row] for row in order}
        for row, hits in rows.items():
            low, high = wilson(sum(hits), len(hits))
            rows[row] = {"right": sum(hits), "n": len(hits), "low": low, "high": high}
    return scores

def find_hits(record, common):
    """What a dialogue adds to the scores: (section, row, whether it is a hit) for each row."""
    gold, answers, is_hit = record["problem"]["answer"], record["answers"], is_right(record)
    yield "accuracy", "right", is_hit
    yield "accuracy", "an answer was found", record["answer"] is not None
    yield "accuracy", f"always {common}, the most frequent here", same_answer(common, gold)
    if len(answers) > 1:
        n, n_votes = len(answers), answers.count(record["answer"]) if record["answer"] else 0
        last = max(4, math.ceil(n_votes / 4) * 4)
        votes = f"{last - 3 if last > 4 else 0} to {min(last, n)} of {n} votes"
        yield "accuracy", "the first dialogue alone", same_answer(answers[0], gold)
        yield "right, by number of votes", votes, is_hit
    yield "right, by number of steps", f"{n_steps(record)} steps", is_hit
    for name, answer in record["oracles"].items():
        yield "right, with one thing changed", name, same_answer(answer, gold)
    ours, wanted = subquestions(record)
    if ours and wanted:
        yield "subquestions against gold", "as many as gold", len(ours) == len(wanted)
        yield "subquestions against gold", "word for word gold", ours == wanted

def n_steps(record):
    # SVAMP has no steps, but a formula: every operator is a step.
    formula = " ".join(record["problem"]["evidence"][:1])
    return len(record["problem"]["steps"]) or len(re.findall(r"[\d)] ?[-+*/]", formula))

def subquestions(record):
    """(the decomposer's, gold's); gold's are empty unless all are known."""
    ours = [turn["text"] for turn in record["turns"] if turn["kind"] == "Subquestion"]
    gold = [clean(step["question"]) for step in record["problem"]["steps"]]
    return ours, gold if all(gold) else []

def describe(figure):
    """A figure as the screen and the page print it."""
    n_right, n = figure["right"], figure["n"]
    share = f"{n_right:,} of {n:,} = {n_right / n:6.1%}"
    return f"{share:>22s}    {figure['low']:6.1%} to {figure['high']:6.1%}"

def print_scores(scores, bleu_4):
    """The scores as a table on the screen."""
    for section, rows in scores.items():
        print(f"\n{section:64s} 95 % interval")
        for row, figure in rows.items():
            print(f"  {row:40s} {describe(figure)}")
        if section == "subquestions against gold":
            print(f"  {'BLEU-4':40s} {bleu_4:22.1f}")

# ------------------------------------------------------------ statistics, two runs in pairs

def wilson(n_right, n, z=1.96):
    """
    The 95 % interval of a share, (low, high): Wilson (1927), which stays honest near 0 and 1.

    >>> low, high = wilson(0, 10); round(low, 3), round(high, 3)
    (0.0, 0.278)
    """
    share, width = n_right / n, z * z / n
    middle = share + width / 2
    half = z * math.sqrt(share * (1 - share) / n + width / (4 * n))
    return max(0.0, (middle - half) / (1 + width)), min(1.0, (middle + half) / (1 + width))

def mcnemar(wins, losses):
    """
    The exact two-sided p of McNemar (1947): the chance that fair coin flips differ as much.

    >>> mcnemar(5, 0), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    n = wins + losses
    n_as_uneven = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * n_as_uneven / 2**n)

def bleu(pairs):
    """
    BLEU-4 of [(text, gold)] in percent: Papineni et al., "BLEU" (ACL 2002). One gold text each,
    no smoothing. The geometric mean, over the whole corpus, of the precisions of 1- to 4-grams,
    times exp(1 - gold length / length) if the texts are shorter than gold.

    >>> round(bleu([("the cat sat on the mat", "the cat sat on a mat")]), 1)    # 5/6 3/5 2/4 1/3
    53.7
    """
    matched, written = [], []
    for n in (1, 2, 3, 4):
        counts = [(Counter(ngrams(text, n)), Counter(ngrams(gold, n))) for text, gold in pairs]
        matched.append(sum((a & b).total() for a, b in counts))    # none more often than in gold
        written.append(sum(a.total() for a, _ in counts))
    if 0 in matched:
        return 0.0
    mean_log = sum(math.log(m / n) for m, n in zip(matched, written)) / 4
    gold_length = sum(len(ngrams(gold, 1)) for _, gold in pairs)
    return 100 * math.exp(mean_log + min(0, 1 - gold_length / written[0]))

def ngrams(text, n):
    """All runs of n words or marks."""
    words = re.findall(r"\w+|[^\w\s]", text)
    return list(zip(*(words[i:] for i in range(n))))

def bleu_of(records):
    """BLEU-4 of all subquestions against gold, or None where there are none."""
    pairs = [(" ".join(ours), " ".join(gold)) for ours, gold in map(subquestions, records)
             if ours and gold]
    return bleu(pairs) if pairs else None

def compare(path_a, path_b):
    """Two runs on the same problems: who is right where the other is wrong; is it luck?"""
    runs = []
    for path in (path_a, path_b):
        header, records = read_run(path)
        runs.append({(row["problem"]["id"], row["problem"]["problem"]): is_right(row)
                     for row in records})
        if len(records) != header["settings"].get("n"):
            raise SystemExit(f"{path} is unfinished. Go on with: {header['command']}")
    a, b = runs
    if a.keys() != b.keys():
        raise SystemExit("These runs are not of the same problems. Make both with the same "
                         "--dataset, --split and --limit.")
    pairs = Counter((a[key], b[key]) for key in a)
    both, wins_a, wins_b = pairs[True, True], pairs[True, False], pairs[False, True]
    p = mcnemar(wins_a, wins_b)
    verdict = "unlikely to be luck" if p < 0.05 else "no difference shown"
    print(f"A: {path_a}\nB: {path_b}\n"
          f"{len(a)} problems: A has {both + wins_a} right, B {both + wins_b}\n"
          f"wins of A {wins_a}, wins of B {wins_b}, both right {both}\n"
          f"exact McNemar p = {p:.2g}: {verdict}")

# ------------------------------------------------------------ the report, a static page

def page(header, records, scores):
    """The report. Its parts are in students/report.toml; every text in it is escaped."""
    table = read_toml("report.toml")
    settings = ", ".join(f"{key} {value}" for key, value in header["settings"].items())
    about = html.escape(f"{header['command']}\n{settings}")
    text = f"{table['head']}<p>{about}</p><table>"
    for section, rows in scores.items():
        text += table["section"].format(html.escape(section))
        for row, figure in rows.items():
            text += table["row"].format(
                row=html.escape(row), words=describe(figure), share=figure["right"] / figure["n"],
                low=figure["low"], width=figure["high"] - figure["low"],
                note=table["notes"].get(row, ""))
    text += "</table>" + "".join(curve(role, line) for role, line in header["curves"].items())
    groups = {}
    for record in records:
        groups.setdefault(stage(record), []).append(dialogue_block(record))
    for name, blocks in sorted(groups.items(), key=lambda group: group[0] == "right"):
        text += f"\n<details><summary>{name}: {len(blocks)}</summary>{''.join(blocks)}</details>"
    return text

def dialogue_block(record):
    """A problem and its dialogue, folded; below it gold, and what was answered with an oracle."""
    problem = record["problem"]
    lines = [("", problem["problem"])]
    lines += [(turn["kind"], f"{turn['kind']}: {turn['text']}") for turn in record["turns"]]
    lines += [("gold", f"gold: {step['question']} {step['solution']}") for step in problem["steps"]]
    lines += [("gold", f"gold answer: {problem['answer']}")]
    lines += [("gold", f"with {name}: {answer}") for name, answer in record["oracles"].items()]
    block = f"\n<details><summary>{html.escape(problem['problem'][:90])}</summary>"
    for kind, line in lines:
        block += f'<p class="{html.escape(kind)}" dir="auto">{html.escape(line)}</p>'
    return block + "</details>"

def curve(role, points):
    """The training's loss as a picture with labelled axes, the loss on a logarithmic scale."""
    points = [(step, math.log(loss)) for step, loss in points if loss > 0]
    if len(points) < 2 or points[-1][0] <= 0:
        return ""
    last, low, high = points[-1][0], min(y for _, y in points), max(y for _, y in points)
    line = " ".join(f"{60 + 500 * step / last:.1f},{10 + 120 * (high - y) / (high - low or 1):.1f}"
                    for step, y in points)
    return read_toml("report.toml")["curve"].format(
        role=html.escape(role), points=line, last=last, low=math.exp(low), high=math.exp(high))

# ------------------------------------------------------------ the command

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Score students on a test split, and see where they break.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", help=DATASET_HELP)
    add("--split", default="test", help="train, valid, test; demo: long too; svamp and files: all")
    add("--limit", type=positive, help="only the first so many problems (None: all)")
    add_student_flags(add)
    add("--out", default="predictions", type=Path, help="folder of predictions, scores and report")
    add("--batch-size", type=positive, default=64, help="dialogues at once")
    add("--diagnose", action=argparse.BooleanOptionalAction, default=True,
        help="solve again with one thing changed, to see where it broke (not where several vote)")
    add("--samples", type=positive, default=1,
        help=f"dialogues per problem, drawn at temperature {TEMPERATURE}; their answers vote "
        "(infer.py draws 16 if the students are small)")
    add("--compare", nargs=2, type=Path, metavar="FILE", help="solve nothing; compare two runs")
    args = parser.parse_args(argv)
    args.diagnose = args.diagnose and args.samples == 1
    return args

def main(args):
    if args.compare:
        compare(*args.compare)
        return
    path = predict(args)
    header, records = read_run(path)
    scores, bleu_4 = score(records), bleu_of(records)
    settings = header["settings"]
    print(f"\n{args.method} on {settings['dataset']}/{args.split}: {len(records)} problems, sha256 "
          f"{settings['problems_sha256']}")
    print_scores(scores, bleu_4)
    text = json.dumps(header | {"curves": {}, "scores": scores, "bleu_4": bleu_4}, indent=1)
    replace_file(path.with_suffix(".json"), text.encode())
    report = args.out / "report.html"
    replace_file(report, page(header, records, scores).encode("utf-8", "replace"))
    print(f"\npredictions  {path}\nscores       {path.with_suffix('.json')}\nto browse    {report}")

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a console that lacks a letter shows "?"
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on where it stopped.")

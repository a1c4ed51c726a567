"""
Score students on a test split, and see where they break.

    python eval.py                                          decomposer + solver on the demo's test split
    python eval.py --method cot --dataset gsm8k             a chain-of-thought student on GSM8K's
    python eval.py --samples 8 --temperature 0.7            self-consistency: the majority of eight dialogues
    python eval.py --compare predictions/A.jsonl predictions/B.jsonl      is the difference more than luck?
    python eval.py --rescore predictions/A.jsonl            a finished run again, without students; several get a mean

Reads   the students (see infer.py) and the problems of a split
Writes  predictions/<name>-<key>.jsonl   the settings, then a line a dialogue, as they come. The key stands for all that
                                         shapes them (students, problems, flags, code): the same command goes on
                                         where it stopped, and no other one mixes in
        predictions/<name>-<key>.json    the scores
        report.html                      scores, training curves and every dialogue, to browse; needs no network
Order   statistics, reading a dialogue, predictions, where it broke, scores, pairs, report, the command, the page
"""

import argparse
import hashlib
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import textwrap
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from itertools import zip_longest
from pathlib import Path

from data import DATASETS, HERE, Step, calculate, clean, extract_answer, load_problems, same_answer, segments
from infer import METHODS, find_students, load_students, pick_device, solve, solved

# Where a wrong answer broke: tried in this order, and the first that holds counts.
STAGES = {"cut off": "cut off before its end",
          "format": "format: right if read leniently",
          "arithmetic": "arithmetic: right with the calculator",
          "decomposer": "decomposer: right with gold subquestions",
          "one solution": "solver: right with one gold solution",
          "several": "solver: several turns are wrong",
          "answer": "solver: solutions right, answer wrong",
          "solver": "solver: wrong with gold subquestions",
          "unknown": "not told apart"}


# ---------------------------------------------------------------- statistics

def wilson(n_right, n, z=1.96):
    """
    The 95 % interval of a share, (low, high): Wilson (1927), which stays honest near 0 and 1.

    >>> low, high = wilson(0, 10); round(low, 3), round(high, 3)
    (0.0, 0.278)
    """
    if n == 0:
        return 0.0, 1.0
    share, width = n_right / n, z * z / n
    middle, half = share + width / 2, z * math.sqrt(share * (1 - share) / n + width / (4 * n))
    return max(0.0, (middle - half) / (1 + width)), min(1.0, (middle + half) / (1 + width))


def share(hits):
    """The share of True in a list, with its interval."""
    low, high = wilson(sum(hits), len(hits))
    return {"right": sum(hits), "n": len(hits), "low": low, "high": high}


def plain(hits):
    """The same as a text without interval: several of one dialogue are no independent draws."""
    return f"{sum(hits)} of {len(hits)} = {sum(hits) / max(1, len(hits)):.1%}"


def mcnemar(wins, losses):
    """
    The exact two-sided p of McNemar (1947): how often a fair coin is at least as uneven as wins to losses.

    >>> mcnemar(5, 0), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    n = wins + losses
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(wins, losses) + 1)) / 2**n)


def bleu(pairs):
    """
    BLEU-4 of [(text, gold)], in percent: Papineni et al., "BLEU" (ACL 2002). Over the whole corpus, the geometric mean
    of the modified precisions of 1- to 4-grams, times exp(1 - gold length / length) where the texts are shorter.
    Tokens are words and single marks, case kept; one gold text each; no smoothing.

    >>> round(bleu([("the cat sat on the mat", "the cat sat on a mat")]), 1)      # 5/6, 3/5, 2/4, 1/3
    53.7
    """
    precisions = [modified_precision(pairs, n) for n in (1, 2, 3, 4)]
    if not all(matched for matched, _ in precisions):
        return 0.0
    length, gold = (sum(len(ngrams(pair[i], 1)) for pair in pairs) for i in (0, 1))
    return 100 * math.exp(sum(math.log(matched / n) for matched, n in precisions) / 4 + min(0, 1 - gold / length))


def modified_precision(pairs, n):
    """(n-grams of the texts that gold has too, none counted more often than there; all n-grams of the texts)."""
    counts = [(Counter(ngrams(text, n)), Counter(ngrams(gold, n))) for text, gold in pairs]
    return sum((text & gold).total() for text, gold in counts), sum(text.total() for text, _ in counts)


def ngrams(text, n):
    words = re.findall(r"\w+|[^\w\s]", text)
    return list(zip(*(words[i:] for i in range(n))))


def vote(answers):
    """
    (the most frequent answer, whether another one has as many votes): None has no vote, and of several with as many
    the one drawn first wins.

    >>> vote(["7", None, "8", "8"]), vote(["8", "7"]), vote([None])
    (('8', False), ('8', True), (None, False))
    """
    votes = Counter(answer for answer in answers if answer is not None).most_common()
    return (votes[0][0], len(votes) > 1 and votes[0][1] == votes[1][1]) if votes else (None, False)


# ---------------------------------------------------------------- reading a dialogue: a record of the predictions

def texts(record, kind):
    return [turn["text"] for turn in record["turns"] if turn["kind"] == kind]


def is_right(record, gold):
    return same_answer(record["answer"], gold)


def lenient(record):
    """The answer, or where none was found the last number (or yes or no) of everything that was written."""
    written = "\n".join(turn["text"] for turn in record["turns"])
    return record["answer"] if record["answer"] is not None else extract_answer(written, lenient=True)


def result(solution):
    """
    The number that a solution comes to: what follows its last <<...>>, else what is in it, else the last number.

    >>> result("3*4 = $<<3*4=12>>13."), result("It is <<3*4=12>> pens."), result("She has 12.")
    ('13', '12', '12')
    """
    if equations := re.findall(r"=([^<>=]*)>>[ $]*(-?[\d.,]*\d)?", solution):
        inside, after = equations[-1]
        return after or inside
    return extract_answer(solution, lenient=True)


def first_wrong(solutions, gold_steps):
    """The place of the first solution whose result is not gold's (or that is missing, or too many), or None."""
    for i, (ours, step) in enumerate(zip_longest(solutions, gold_steps)):
        gold = step and step["solution"]
        if gold != "" and (not ours or not gold or not same_answer(result(ours), result(gold))):
            return i
    return None


def broken_solution(record):
    """The place of the first solution that is wrong although its subquestion is gold's, or None."""
    return first_wrong(texts(record["oracles"]["gold decomposer"], "Solution"), record["gold_steps"])


def stage(record):
    """Where the dialogue broke: a key of STAGES, or "right"."""
    gold, oracles = record["gold"], record.get("oracles", {})
    helps = {name for name, dialogue in oracles.items() if is_right(dialogue, gold)}
    if is_right(record, gold):
        return "right"
    if record["ended"] != "finished":
        return "cut off"
    if same_answer(lenient(record), gold):
        return "format"
    if "calculator" in helps:
        return "arithmetic"
    if "gold decomposer" not in oracles:
        return "unknown"
    if "gold decomposer" in helps:
        return "decomposer"
    if "one gold solution" in oracles:
        return "one solution" if "one gold solution" in helps else "several"
    return "answer" if all(step["solution"] for step in record["gold_steps"]) else "solver"


# ---------------------------------------------------------------- predictions

def settings(args, folders, problems):
    """Everything that shapes the predictions, as JSON-able values."""
    text = "\n".join(problem.to_json() for problem in problems)
    code = b"".join((HERE / name).read_bytes() for name in ("data.py", "gpt.py", "infer.py"))
    device, dtype = pick_device(args.device, args.dtype)
    return {"dataset": args.dataset, "split": args.split, "n": len(problems), "problems_sha256": sha256(text.encode()),
            "method": args.method, "students": {role: sha256((folder / "model.safetensors").read_bytes())
                                                for role, folder in folders.items()},
            "calculator": args.calculator, "device": device.type, "dtype": str(dtype).removeprefix("torch."),
            "batch_size": args.batch_size, "samples": args.samples, "temperature": args.temperature,
            "seed": args.seed, "diagnose": args.diagnose, "code_sha256": sha256(code)}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def to_lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)


def write(path, text):
    """All of the file or nothing: to a temporary name, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8", newline="\n")
    part.replace(path)


def read_predictions(path):
    """(header, records) of a file; a last line that a kill tore is left out."""
    if not path.is_file():
        raise SystemExit(f"{path} does not exist. Predictions are made with: python eval.py")
    lines = []
    for n, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            lines.append(json.loads(line))
        except ValueError as error:
            raise SystemExit(f"{path}:{n}: {error}") from None
    if not lines or "settings" not in lines[0]:
        raise SystemExit(f"{path}:1: the first line should hold the settings. Is this a file of predictions?")
    return lines[0], lines[1:]


def predict(args):
    """Solve the problems in batches and append the dialogues to a file as they come; returns its path."""
    problems = load_problems(args.dataset, args.split, args.data_dir, args.limit)
    folders = find_students(args.method, args.students, args.dataset, args.model)
    shape = settings(args, folders, problems)
    key = sha256(json.dumps(shape, sort_keys=True).encode())[:8]
    path = Path(args.out) / f"{args.dataset}-{args.split}-{args.method}-{key}.jsonl"
    if not path.exists():
        write(path, to_lines([{"settings": shape, "made": {
            "commit": commit(), "command": shlex.join(["python", "eval.py", *sys.argv[1:]]),
            "students": {role: str(folder) for role, folder in folders.items()}}}]))
    header, records = read_predictions(path)
    if len(records) == len(problems):
        return path
    # A batch that a kill tore is done again as a whole: in low precision a dialogue can depend on its company.
    del records[len(records) // args.batch_size * args.batch_size:]
    write(path, to_lines([header, *records]))
    students = load_students(folders, args.device, args.dtype)
    start, first = time.time(), len(records)
    with open(path, "ab") as file:
        for at in range(first, len(problems), args.batch_size):
            batch = solve_batch(args, problems[at:at + args.batch_size], students)
            file.write(to_lines(batch).encode())
            file.flush()
            records += batch
            n_right = sum(is_right(record, record["gold"]) for record in records)
            speed = (len(records) - first) / (time.time() - start)
            left = int((len(problems) - len(records)) / speed)
            print(f"{len(records):5d}/{len(problems)} problems | right so far {n_right / len(records):6.1%} | "
                  f"{speed:5.1f} problems/s | {left // 60}:{left % 60:02d} left", flush=True)
    return path


def commit():
    """The repository's, with "-dirty" where files differ from it; None where there is no git."""
    return subprocess.run("git describe --always --dirty", shell=True, cwd=HERE, capture_output=True,
                          text=True).stdout.strip() or None


def solve_batch(args, problems, students):
    """A record a problem: its dialogue, and all that is needed to score it again without a student."""
    run = partial(solve, students=students, method=args.method, batch_size=args.batch_size,
                  temperature=args.temperature, seed=args.seed, calculator=args.calculator)
    if args.samples > 1:
        draws = [run(problems, seed=f"{args.seed}.{k}") for k in range(args.samples)]
        records = [elect([dialogue.to_json() for dialogue in samples]) for samples in zip(*draws)]
    else:
        records = [dialogue.to_json() for dialogue in run(problems)]
    for record, problem in zip(records, problems):
        # SVAMP has no steps, but a formula: as many steps as it has operators.
        n_steps = len(problem.steps) or len(re.findall(r" [-+*/] ", " ".join(problem.evidence[:1])))
        record |= {"gold": problem.answer, "gold_steps": [vars(step) for step in problem.steps], "n_steps": n_steps}
    if args.diagnose and args.samples == 1:
        diagnose(args, records, problems, run)
    return records


def elect(samples):
    """One record of several: the first dialogue that has the elected answer, and all of them beside it."""
    answer, tie = vote([sample["answer"] for sample in samples])
    chosen = next(sample for sample in samples if sample["answer"] == answer)
    return chosen | {"samples": [brief(sample) for sample in samples], "tie": tie}


def brief(record):
    return {key: record[key] for key in ("turns", "answer", "ended")}


# ---------------------------------------------------------------- where did it break? Put one thing right, solve again

def diagnose(args, records, problems, run):
    """
    Adds to each record `calls`, those of the calculator, and `oracles`, its dialogues with one thing put right:

    calculator         for wrong answers without the calculator: with it
    no calculator      for right answers that the calculator had a hand in: without it
    gold decomposer    gold subquestions; the solver writes the rest
    gold solver        the decomposer's subquestions, if as many as gold's, and gold solutions; the solver answers
    one gold solution  gold subquestions, and gold solutions up to the first one that was wrong; the solver goes on
    """
    rows = list(zip(records, problems))
    watch_calculator(args, rows, run)

    def again(name, rows, steps=None, **options):
        scripts = [solved(problem, steps(record, problem)) for record, problem in rows] if steps else None
        for (record, _), dialogue in zip(rows, run([problem for _, problem in rows], scripts=scripts, **options)):
            record["oracles"][name] = brief(dialogue.to_json())

    def wrong(dialogue, problem):
        return not is_right(dialogue, problem.answer)

    miscalculated = [(r, p) for r, p in rows if any(call["result"] != call["alone"] for call in r["calls"])]
    if args.calculator:
        again("no calculator", [(r, p) for r, p in miscalculated if not wrong(r, p)], calculator=False)
    else:
        again("calculator", [(r, p) for r, p in miscalculated if wrong(r, p)], calculator=True)
    if args.method != "socratic":
        return
    rows = [(r, p) for r, p in rows if p.steps and all(step.question for step in p.steps)]
    again("gold decomposer", rows, lambda r, p: [Step(step.question) for step in p.steps])
    rows = [(r, p) for r, p in rows if all(step.solution for step in p.steps)]
    again("gold solver", [(r, p) for r, p in rows if len(texts(r, "Subquestion")) == len(p.steps)],
          lambda r, p: [Step(ours, step.solution) for ours, step in zip(texts(r, "Subquestion"), p.steps)])
    again("one gold solution", [(r, p) for r, p in rows if broken_solution(r) is not None
                                and wrong(r, p) and wrong(r["oracles"]["gold decomposer"], p)],
          lambda r, p: [Step(step.question, step.solution if i <= broken_solution(r) else "")
                        for i, step in enumerate(p.steps)])


def watch_calculator(args, rows, run):
    """
    `calls` of each record: for every <<expression=...>> that can be computed, the place of its solution, the
    expression, its result, and what the student writes there `alone` (its likeliest tokens).
    """
    role, calls = METHODS[args.method][-1], []
    for record, problem in rows:
        record |= {"calls": [], "oracles": {}}
        steps = zip_longest(texts(record, "Subquestion"), texts(record, "Solution"), fillvalue="")
        parts = segments(replace(problem, steps=[Step(*step) for step in steps], evidence=[]), role)
        places = [at for at, part in enumerate(parts) if at and parts[at - 1].text == "Solution:"]
        for i, at in enumerate(places):
            for found in re.finditer(r"<<([^<>=]*)=([^<>]*)>>", parts[at].text):
                if (value := calculate(found[1])) is not None:
                    call = {"solution": i, "expression": found[1], "result": value, "alone": found[2]}
                    record["calls"].append(call)
                    read = [*(part.text for part in parts[:at]), parts[at].text[:found.start(2)]]
                    calls.append((call, problem, one_turn(role, read)))
    if args.calculator and calls:
        calls, problems, scripts = zip(*calls)
        dialogues = run(problems, scripts=scripts, calculator=False, temperature=0,
                        max_turn=max(len(call["result"]) for call in calls) + 3)
        for call, dialogue in zip(calls, dialogues):
            call["alone"] = "".join(turn.text for turn in dialogue.turns).partition(">>")[0]


def one_turn(role, read):
    """A dialogue of one turn: the student reads something and writes on."""
    yield role, read


# ---------------------------------------------------------------- scores: {section: {row: a share, or a text}}

def score(records, settings):
    """All figures of a run, from its predictions alone."""
    right = [is_right(record, record["gold"]) for record in records]
    common, _ = vote([record["gold"] for record in records])
    found = [record["answer"] is not None for record in records]
    scores = {"accuracy": {
        "right (strict)": share(right),
        "right (lenient)": share([same_answer(lenient(record), record["gold"]) for record in records]),
        "an answer was found": share(found),
        f"always {common}, the most frequent answer": share([same_answer(common, r["gold"]) for r in records])}}
    if settings["samples"] > 1:
        scores[f"self-consistency: the majority of {settings['samples']} samples"] = {
            "one sample alone": plain([is_right(sample, r["gold"]) for r in records for sample in r["samples"]]),
            "ties, which the first drawn won": share([record["tie"] for record in records])}
    steps = sorted({record["n_steps"] for record in records})
    unit = "operator" if settings["dataset"] == "svamp" else "step"
    scores[f"right (strict), by number of {unit}s"] = {f"{k} {unit}{'s' * (k != 1)}": share(
        [yes for record, yes in zip(records, right) if record["n_steps"] == k]) for k in steps}

    broke = [stage(record) for record in records]
    rows = scores["where wrong answers broke"] = {}
    for name in [name for name in STAGES if name in broke]:
        rows[STAGES[name]] = share([of == name for of in broke if of != "right"]) | {"by_steps": {
            str(k): sum(of == name and record["n_steps"] == k for of, record in zip(broke, records)) for k in steps}}
    which = Counter(broken_solution(r) + 1 for of, r in zip(broke, records) if of in ("one solution", "several"))
    if which:
        rows["first wrong solution"] = ", ".join(f"{k}: {which[k]}" for k in sorted(which))
    asked = [record for record in records if "gold decomposer" in record.get("oracles", {})]
    full = [record for record in asked if all(step["solution"] for step in record["gold_steps"])]
    scores["right (strict), with a part of gold"] = {  # where counts differ the gold solver is wrong
        name: share([name in r["oracles"] and is_right(r["oracles"][name], r["gold"]) for r in rows])
        for name, rows in (("gold decomposer", asked), ("gold solver", full)) if rows}

    pairs = [([clean(text) for text in texts(r, "Subquestion")], [clean(step["question"]) for step in r["gold_steps"]])
             for r in records]
    pairs = [(ours, gold) for ours, gold in pairs if ours and gold and all(gold)]
    scores["subquestions against gold"] = pairs and {
        "as many as gold": share([len(ours) == len(gold) for ours, gold in pairs]),
        "word for word gold": share([ours == gold for ours, gold in pairs]),
        "BLEU-4": f"{bleu([(' '.join(ours), ' '.join(gold)) for ours, gold in pairs]):.1f}"}

    calls = [call for record in records for call in record.get("calls", [])]
    changed = plain([call["alone"] != call["result"] for call in calls])
    scores["the calculator"] = calls and ({  # rescued: right, and wrong when the same students compute by themselves
        "results that it changed, of all it wrote": changed,
        "right answers that it rescued": share([
            "no calculator" in r["oracles"] and not is_right(r["oracles"]["no calculator"], r["gold"])
            for r, yes in zip(records, right) if yes])} if settings["calculator"] else {
        "off: it would change the result": changed})
    return {section: rows for section, rows in scores.items() if rows}


def show(name, header, scores):
    """A run's scores on the screen."""
    of = header["settings"]
    print(f"\n{of['method']} on {of['dataset']}/{of['split']}: {of['n']} problems, sha256 {of['problems_sha256'][:12]}")
    for section, rows in scores.items():
        columns = next((row["by_steps"] for row in rows.values() if "by_steps" in row), None)
        print(f"\n{section:48s} steps: " + "".join(f"{k:>4s}" for k in columns) if columns else
              f"\n{section:68s}95 % interval")
        for label, row in rows.items():
            if isinstance(row, str):
                print(f"  {label:40s} {row:>5s}")
                continue
            percent = f"{row['right'] / max(1, row['n']):6.1%}"
            print(f"  {label:40s} {row['right']:5d}" + (
                f" {percent} {''.join(f'{n:4d}' for n in row['by_steps'].values())}" if columns else
                f"/{row['n']:<5d} {percent}     {row['low']:6.1%} to {row['high']:6.1%}"))


def show_mean(runs):
    """Mean and spread of runs that differ in their students or seed only."""
    every = [header["settings"] for _, header, _, _ in runs]
    others = {key for one in every for key in one if one[key] != every[0].get(key)} - {"students", "seed"}
    if others:
        print(f"\nno mean of these {len(runs)} runs, they differ in: {', '.join(sorted(others))}")
        return
    rows = [scores["accuracy"]["right (strict)"] for _, _, _, scores in runs]
    points = [100 * row["right"] / max(1, row["n"]) for row in rows]
    print(f"\n{len(runs)} runs: right (strict) {statistics.mean(points):.1f} % on average, standard deviation "
          f"{statistics.stdev(points):.1f}, from {min(points):.1f} to {max(points):.1f}")


# ---------------------------------------------------------------- pairs

def compare(path_a, path_b):
    """Two runs on the same problems: who is right where the other is wrong, and whether luck explains it."""
    (a, records_a), (b, records_b) = read_predictions(path_a), read_predictions(path_b)
    for key in ("dataset", "split", "n", "problems_sha256"):
        if a["settings"][key] != b["settings"][key]:
            raise SystemExit(f"These runs are not of the same problems. {key}:\n  {a['settings'][key]}  {path_a}\n"
                             f"  {b['settings'][key]}  {path_b}")
    for path, header, records in ((path_a, a, records_a), (path_b, b, records_b)):
        if len(records) != header["settings"]["n"]:
            raise SystemExit(f"{path} holds {len(records)} of {header['settings']['n']} problems. "
                             f"Go on with:\n  {header['made']['command']}")
    pairs = [(x, y, is_right(x, x["gold"]), is_right(y, y["gold"])) for x, y in zip(records_a, records_b)]
    tally = Counter((x_right, y_right) for _, _, x_right, y_right in pairs)
    wins, losses, both, neither = (tally[key] for key in ((1, 0), (0, 1), (1, 1), (0, 0)))
    p = mcnemar(wins, losses)
    print(f"A: {path_a}\nB: {path_b}\n{a['settings']['dataset']}/{a['settings']['split']}, {len(pairs)} problems: "
          f"A has {wins + both} right, B {losses + both}\n"
          f"wins of A {wins}, wins of B {losses}, ties {both + neither} ({both} both right, {neither} both wrong)\n"
          f"exact McNemar p = {p:.2g}: " + ("luck alone hardly does this" if p < 0.05 else
                                            "no difference shown, luck alone does as much"))
    # The most instructive flips: the shortest problems, where one sees at a glance what went wrong.
    pairs.sort(key=lambda pair: (pair[0]["n_steps"], len(pair[0]["problem"])))
    for name, wanted in (("A", (True, False)), ("B", (False, True))):
        for x, y in [pair[:2] for pair in pairs if pair[2:] == wanted][:3]:
            print(f"\nonly {name} is right: {x['id']}, gold {x['gold']}")
            print(textwrap.fill(x["problem"], 86, initial_indent="  ", subsequent_indent="  "))
            results = ([turn for turn in record["turns"] if turn["kind"] != "Subquestion"] for record in (x, y))
            turns = list(zip_longest(*results, fillvalue={"kind": "end", "text": ""}))
            differ = [pair for pair in turns if result(pair[0]["text"]) != result(pair[1]["text"])] or turns
            for letter, turn in zip("AB", *differ[:1]):
                print("  " + textwrap.shorten(f"{letter} | {turn['kind']}: {turn['text']}", 86, placeholder=" ..."))


# ---------------------------------------------------------------- the report

def report(runs, path):
    """All of the runs [(path, header, records, scores)] in one page."""
    data = [{"name": name.stem, **header, "scores": scores, "dialogues": [browse(record) for record in records],
             "curves": {role: read_log(folder) for role, folder in header["made"]["students"].items()}}
            for name, header, records, scores in runs]
    # "<" is the only sign that could end the script element in which the data stand.
    write(path, PAGE.replace("DATA", json.dumps(data).replace("<", "\\u003c"), 1))


def browse(record):
    """What the page shows of a dialogue."""
    keys = ("id", "problem", "turns", "answer", "ended", "gold", "gold_steps", "n_steps")
    known = any(step["solution"] for step in record["gold_steps"]) and not is_right(record, record["gold"])
    return {key: record[key] for key in keys} | {
        "stage": STAGES.get(stage(record), "right"), "calls": record.get("calls", []), "tie": record.get("tie", False),
        "first_wrong": first_wrong(texts(record, "Solution"), record["gold_steps"]) if known else None,
        "oracles": {name: dialogue["answer"] for name, dialogue in record.get("oracles", {}).items()},
        "samples": [sample["answer"] for sample in record.get("samples", [])]}


def read_log(folder):
    """[[step, loss, valid loss]] of a student's training, either of the two None; empty where there is no log."""
    path = Path(folder) / "log.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    numbers = [json.loads(line) for line in lines if line.endswith("}")]  # a training that goes on may be mid-line
    return [[line["step"], line.get("loss"), line.get("valid_loss")] for line in numbers]


# ---------------------------------------------------------------- the command

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Score students on a test split, and see where they break.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", choices=DATASETS, help="which problems")
    add("--split", default="test", help="train, valid, test; demo also has long, svamp all")
    add("--limit", type=int, help="only the first so many problems (None: all)")
    add("--data-dir", help="folder of the data sets (None: SOCRATIC_DATA, or data/)")
    add("--method", default="socratic", choices=METHODS, help="which students solve them")
    add("--students", nargs="+", metavar="FOLDER",
        help="their folders (None: runs/<dataset>-<model>-<role>, else students/)")
    add("--model", default="tiny", help="use the students of this size")
    add("--out", default="predictions", help="folder of the predictions")
    add("--report", default="report.html", metavar="FILE", type=Path, help="the page to write")
    add("--batch-size", type=int, default=64, help="dialogues at once")
    add("--calculator", action=argparse.BooleanOptionalAction, default=True, help="compute <<...=...>> for the student")
    add("--diagnose", action=argparse.BooleanOptionalAction, default=True,
        help="solve again with one thing put right, to see where it broke: twice the work (not with --samples)")
    add("--samples", type=int, default=1, help="dialogues a problem, whose majority answers (needs a --temperature)")
    add("--temperature", type=float, default=0.0, help="0: always the likeliest token; 1: draw as the student believes")
    add("--seed", type=int, default=0, help="of the draws, together with the problem")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of weights and cache")
    add("--rescore", nargs="+", metavar="FILE", type=Path, help="instead: score finished predictions again")
    add("--compare", nargs=2, metavar="FILE", type=Path, help="instead: two predictions of the same problems, in pairs")
    return parser.parse_args(argv)


def main(args):
    if args.compare:
        compare(*args.compare)
        return
    if args.samples > 1 and not args.temperature:
        raise SystemExit("Without a temperature all samples are the same. Add for example: --temperature 0.7")
    runs = []
    for path in args.rescore or [predict(args)]:
        header, records = read_predictions(path)
        if len(records) < header["settings"]["n"]:
            print(f"{path} is unfinished: {len(records)} of {header['settings']['n']} problems")
        scores = score(records, header["settings"])
        show(path, header, scores)
        write(path.with_suffix(".json"), json.dumps(header | {"scores": scores}, indent=1))
        print(f"\npredictions  {path}\nscores       {path.with_suffix('.json')}")
        runs.append((path, header, records, scores))
    if len(runs) > 1:
        show_mean(runs)
    report(runs, args.report)
    print(f"to browse    {args.report}")


# ---------------------------------------------------------------- the page: texts enter it as text nodes, never as HTML

PAGE = r"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Where do the students break?</title>
<meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy"
      content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<style>
:root { color-scheme: light dark; --page: #f6f5f1; --card: #fff; --ink: #22252b; --dim: #666b74; --line: #dcdad2;
  --decomposer: #a05500; --solver: #0a62a8; --calculator: #a0208c; --gold: #56641a; --right: #1c7a3e; --wrong: #c0271d;
  --bar: #9cc3e6 }
@media (prefers-color-scheme: dark) { :root { --page: #16181c; --card: #1f2227; --ink: #e4e4e0; --dim: #9a9fa8;
  --line: #363a41; --decomposer: #f0b060; --solver: #7fbcf5; --calculator: #ee8fdf; --gold: #c0cf75; --right: #6fd08f;
  --wrong: #ff8577; --bar: #3d6a94 } }
* { box-sizing: border-box }
body { margin: 0 auto; padding: 16px; max-width: 1280px; background: var(--page); color: var(--ink);
  font: 15px/1.45 system-ui, sans-serif }
h1 { font-size: 22px; margin: 4px 0 } h2 { font-size: 15px; margin: 0 0 8px }
.dim { color: var(--dim); font-size: 13px; overflow-wrap: anywhere }
.card { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: 12px 16px }
#figures { columns: 370px; column-gap: 12px; margin: 12px 0 }
#figures .card { break-inside: avoid; margin-bottom: 12px }
.row { display: flex; flex-wrap: wrap; justify-content: space-between; gap: 0 1em; font-size: 13px; padding: 2px 0 }
.row b { margin-left: auto; font-weight: 500; font-variant-numeric: tabular-nums }
.track { position: relative; flex: 0 0 100%; height: 9px; background: var(--page); border-radius: 3px }
.track i { position: absolute; top: 0; bottom: 0; background: var(--bar); border-radius: 3px }
.track i.point { width: 2px; background: var(--ink) }
svg { display: block; width: 100%; overflow: visible }
path { fill: none; stroke: var(--bar); stroke-width: 1.2 } path.valid { stroke: var(--decomposer); stroke-width: 2 }
select, input, button { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line);
  border-radius: 6px; padding: 3px 8px; max-width: 100% }
:focus-visible { outline: 2px solid var(--solver); outline-offset: 1px }
#filters select { max-width: 14em }
#filters { display: flex; flex-wrap: wrap; gap: 8px; align-items: center; margin: 16px 0 8px }
#browse { display: grid; grid-template-columns: 330px 1fr; gap: 12px; height: 88vh }
#list, #dialogue { overflow-y: auto; overflow-x: hidden; contain: strict }   /* a key press lays out these alone */
#list { padding: 6px }
#list button { display: block; width: 100%; text-align: left; border: 0; white-space: nowrap; overflow: hidden;
  text-overflow: ellipsis; font-size: 13px; content-visibility: auto; contain-intrinsic-height: 28px }
#list button[hidden] { display: none } #list button[aria-current] { background: var(--page); font-weight: 600 }
.right { color: var(--right) } .wrong { color: var(--wrong) } .gold { color: var(--gold) }
.decomposer, .unified { color: var(--decomposer) } .solver, .cot, .answer { color: var(--solver) }
.calculator { color: var(--calculator); font-weight: 600 } .aside { color: var(--dim); font-size: 12px }
.unified + .unified { color: var(--solver) }
.text { unicode-bidi: isolate; overflow-wrap: anywhere; white-space: pre-wrap }
.step { display: grid; grid-template-columns: 1fr 1fr; gap: 16px; padding: 8px; border-top: 1px solid var(--line) }
.step.broke { box-shadow: inset 3px 0 var(--wrong) } .key span { margin-right: 14px }
@media (max-width: 760px) { #browse, .step { grid-template-columns: 1fr; height: auto } #list { max-height: 30vh }
  #list, #dialogue { contain: content } }
</style>
<h1>Where do the students break?</h1>
<div class="dim" id="made"></div>
<div id="figures"></div>
<div id="filters"><select id="run" aria-label="run"></select><select id="verdict" aria-label="right or wrong"></select>
<select id="stage" aria-label="where it broke"></select><select id="steps" aria-label="number of steps"></select>
<input id="search" type="search" placeholder="text" aria-label="text"><span id="count" role="status"></span>
<span class="dim">keys: j, k, /, Esc</span></div>
<div id="browse"><div class="card" id="list"></div><div class="card" id="dialogue" tabindex="0"></div></div>
<script type="application/json" id="data">DATA</script>
<script>
const $ = id => document.getElementById(id), runs = JSON.parse($("data").textContent);
let run, rows, current;

function make(tag, className, ...children) {         // strings become text nodes: nothing in them is ever markup
  const element = document.createElementNS(tag == "svg" || tag == "path" ? "http://www.w3.org/2000/svg"
                                                                          : "http://www.w3.org/1999/xhtml", tag);
  element.setAttribute("class", className);
  element.append(...children.filter(child => child !== null));
  return element;
}
const text = (className, ...parts) => Object.assign(make("div", className + " text", ...parts), {dir: "auto"});

function figure(title, scores) {                     // a bar is the 95 % interval, its line the share itself
  return make("div", "card", make("h2", "", title), ...Object.entries(scores).map(([label, row]) => {
    if (typeof row == "string") return make("div", "row", make("span", "", label), make("b", "", row));
    const bar = make("i", ""), point = make("i", "point"), share = row.n ? 100 * row.right / row.n : 0;
    const [low, high] = row.by_steps ? [0, share] : [100 * row.low, 100 * row.high];
    bar.style.cssText = `left: ${low}%; width: ${high - low}%`;
    point.style.left = `min(${share}%, 100% - 2px)`;
    const track = make("div", "track", bar, point);
    track.title = row.by_steps ? Object.entries(row.by_steps).map(([k, n]) => `${n} with ${k} steps`).join(", ")
                               : `95 % interval ${low.toFixed(1)} to ${high.toFixed(1)} %`;
    const number = make("b", "", `${row.right} of ${row.n} = ${share.toFixed(1)} %`);
    return make("div", "row", make("span", "", label), number, track);
  }));
}

function curve([role, log]) {                        // of a training; the scale is logarithmic
  const logs = log.flatMap(([, ...losses]) => losses.filter(loss => loss > 0).map(Math.log));
  const low = Math.min(...logs), high = Math.max(...logs), last = log.at(-1)[0], svg = make("svg", "");
  svg.setAttribute("viewBox", "0 0 400 130");
  const x = step => (400 * step / last).toFixed(1);
  const y = loss => (3 + 120 * (high - Math.log(loss)) / (high - low || 1)).toFixed(1);
  for (const [which, name] of [[1, "train"], [2, "valid"]]) {
    const points = log.filter(line => line[which] > 0).map(line => x(line[0]) + " " + y(line[which]));
    svg.append(make("path", name));
    svg.lastChild.setAttribute("d", points.length ? "M" + points.join("L") : "");
  }
  const range = `${Math.exp(high).toFixed(2)} to ${Math.exp(low).toFixed(3)} nats a token`;
  return make("div", "card", make("h2", "", `training the ${role}: loss (thick: valid split)`), svg,
              make("div", "dim", `${last} steps, ${range}`));
}

function solution(turn, calls) {                     // the calculator's results marked, beside them the student's own
  const parts = [];
  let end = 0;
  for (const found of turn.text.matchAll(/<<([^<>=]*)=([^<>]*)>>/g)) {
    const call = calls[0] && calls[0].expression == found[1] ? calls.shift() : null, on = run.settings.calculator;
    parts.push(turn.text.slice(end, found.index), `<<${found[1]}=`,
               make("span", call && on ? "calculator" : "", found[2]), ">>");
    if (call && call.alone != call.result)
      parts.push(make("span", "aside", on ? ` [alone: ${call.alone}] ` : ` [calculator: ${call.result}] `));
    end = found.index + found[0].length;
  }
  return text(turn.speaker, ...parts, turn.text.slice(end));
}

function open(row) {
  if (current) current.removeAttribute("aria-current");
  current = row;
  if (!row) return $("dialogue").replaceChildren("No dialogue fits.");
  row.setAttribute("aria-current", "true");
  const d = row.dialogue, of = kind => d.turns.filter(turn => turn.kind == kind), steps = [];
  const asks = of("Subquestion"), solves = of("Solution"), [answer] = of("Answer");
  for (let i = 0; i < Math.max(asks.length, solves.length, d.gold_steps.length); i++) {
    const gold = d.gold_steps[i] || {question: "", solution: ""}, broke = i === d.first_wrong;
    steps.push(make("div", broke ? "step broke" : "step",
      make("div", "", asks[i] ? text(asks[i].speaker, asks[i].text) : null,
           solves[i] ? solution(solves[i], d.calls.filter(call => call.solution == i)) : null,
           broke ? make("div", "wrong aside", "✗ the first step that does not come to gold's result") : null),
      make("div", "gold", text("", gold.question), text("", gold.solution))));
  }
  const speakers = [...new Set([...d.turns.map(turn => turn.speaker), "calculator", "gold"])];
  const answers = [...Object.entries(d.oracles).map(([name, found]) => ["with " + name, found]),
                   ...d.samples.map((found, i) => [`sample ${i + 1}${d.tie ? " (a tie)" : ""}`, found])];
  $("dialogue").replaceChildren(
    make("div", "dim", `${d.id} · ${d.ended} · `, make("span", d.stage == "right" ? "right" : "wrong", d.stage)),
    text("", d.problem), make("p", "dim key", ...speakers.map(speaker => make("span", speaker, speaker))), ...steps,
    make("div", "step", answer ? text(answer.speaker, "Answer: " + answer.text) : text("dim", "no answer"),
         text("gold", "Answer: " + d.gold)),
    make("div", "dim", answers.map(([name, found]) => `${name}: ${found ?? "none"}`).join(" · ")));
  $("dialogue").scrollTop = 0;
}

function filter() {
  const wanted = $("search").value.toLowerCase(), fits = (id, value) => ["", "" + value].includes($(id).value);
  for (const row of rows)
    row.hidden = !(fits("verdict", row.dialogue.stage == "right" ? "right" : "wrong") && row.words.includes(wanted)
                   && fits("stage", row.dialogue.stage) && fits("steps", row.dialogue.n_steps));
  const shown = rows.filter(row => !row.hidden);
  $("count").textContent = `${shown.length} of ${rows.length}`;
  if (!current || current.hidden) open(shown[0]);
}

function options(id, every, values) {
  $(id).replaceChildren(...["", ...values].map(
    value => Object.assign(make("option", "", value === "" ? every : "" + value), {value})));
}

function load(i) {
  [run, current] = [runs[i], null];
  const brief = value => value && typeof value == "object" ? Object.values(value).join(", ") : value;
  $("made").textContent = Object.entries({...run.settings, ...run.made}).map(([key, value]) =>
    `${key}: ${key.endsWith("sha256") ? value.slice(0, 12) : brief(value)}`).join(" · ");
  const all = runs.map(one => [one.name, one.scores.accuracy["right (strict)"]]);
  const sections = runs.length > 1 ? [["all runs: right (strict)", Object.fromEntries(all)]] : [];
  sections.push(...Object.entries(run.scores));
  $("figures").replaceChildren(...sections.map(([title, scores]) => figure(title, scores)),
                               ...Object.entries(run.curves).filter(([, log]) => log.length > 1).map(curve));
  rows = run.dialogues.map(dialogue => {
    const right = dialogue.stage == "right", mark = make("span", right ? "right" : "wrong", right ? "✓ " : "✗ ");
    const words = [dialogue.id, dialogue.problem, dialogue.gold, ...dialogue.turns.map(turn => turn.text),
                   ...dialogue.gold_steps.flatMap(step => [step.question, step.solution])].join("\n").toLowerCase();
    const row = make("button", "", mark, dialogue.problem.slice(0, 90));
    return Object.assign(row, {dialogue, words, onclick: () => open(row)});
  });
  $("list").replaceChildren(...rows);
  const values = key => [...new Set(run.dialogues.map(dialogue => dialogue[key]))];
  options("verdict", "right and wrong", ["right", "wrong"]);
  options("stage", "broken anywhere", values("stage").filter(stage => stage != "right").sort());
  options("steps", "any number of steps", values("n_steps").sort((a, b) => a - b));
  filter();
}

$("run").replaceChildren(...runs.map((one, value) => Object.assign(make("option", "", one.name), {value})));
$("run").hidden = runs.length < 2;
$("run").oninput = () => load($("run").value);
for (const id of ["verdict", "stage", "steps", "search"]) $(id).oninput = filter;
document.onkeydown = event => {
  if (event.key == "Escape") return event.target.blur();
  if (["INPUT", "SELECT"].includes(event.target.tagName) || event.ctrlKey || event.metaKey || event.altKey) return;
  const step = {j: 1, ArrowDown: 1, k: -1, ArrowUp: -1}[event.key], shown = rows.filter(row => !row.hidden);
  if (event.key == "/") $("search").focus();
  else if (step && shown.length) {
    open(shown.at(Math.max(0, shown.indexOf(current) + step)) || current);
    current.scrollIntoView({block: "nearest"});
  } else return;
  event.preventDefault();
};
load(0);
</script>
</html>
"""


if __name__ == "__main__":
    main(parse_args())

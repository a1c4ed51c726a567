"""
How well, and where does it break? Students are scored on a test split.

    python eval.py                                  decomposer and solver on the demo's test split
    python eval.py --method cot --dataset gsm8k     chain of thought, on GSM8K's test split
    python eval.py --samples 8                      self-consistency: the majority of 8 dialogues
    python eval.py --compare A.jsonl B.jsonl        is the difference more than luck?
    python eval.py --rescore A.jsonl B.jsonl        finished runs again, without students; the mean

Reads   the students (see infer.py) and the problems of a split
Writes  predictions/<name>.jsonl    the settings, then a dialogue a line as they come. The name ends
                                    in a key of all that shapes them (students, problems, flags,
                                    code), so the same command goes on where it stopped
        predictions/<name>.json     the scores
        predictions/report.html     scores, loss curves, dialogues grouped by where they broke
Order   statistics, predictions, where it broke, scores, the report, the command
"""

import argparse
import hashlib
import html
import json
import math
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

from data import (DATASETS, HERE, Step, clean, extract_answer, load_problems, read_lines,
                  replace_file, same_answer, sha256_of)
from infer import METHODS, find_students, load_students, pick_device, solve

SAMPLE_TEMPERATURE = 0.7    # of --samples
CODE = ("data.py", "gpt.py", "infer.py", "eval.py")    # what shapes the predictions
STAGES = {    # where a wrong answer broke (see `stage`)
    "cut off": "cut off before its end",
    "format": "format: right if read leniently",
    "arithmetic": "arithmetic: right with the calculator",
    "decomposer": "decomposer: right with gold subquestions",
    "answer": "answer: wrong even with gold solutions",
    "solver": "solver: wrong with gold subquestions",
    "unknown": "not told apart",
}

# ------------------------------------------------------------ statistics

def wilson(n_right, n, z=1.96):
    """
    The 95 % interval of a share, (low, high): Wilson (1927), which stays honest near 0 and 1.

    >>> low, high = wilson(0, 10); round(low, 3), round(high, 3)
    (0.0, 0.278)
    """
    if n == 0:
        return 0.0, 1.0
    share, width = n_right / n, z * z / n
    middle = share + width / 2
    half = z * math.sqrt(share * (1 - share) / n + width / (4 * n))
    return max(0.0, (middle - half) / (1 + width)), min(1.0, (middle + half) / (1 + width))

def count(hits):
    """How many of the booleans are True, with the interval of their share."""
    hits = list(hits)
    low, high = wilson(sum(hits), len(hits))
    return {"right": sum(hits), "n": len(hits), "low": low, "high": high}

def mcnemar(wins, losses):
    """
    The exact two-sided p of McNemar (1947): the chance that fair coin flips differ as much.

    >>> mcnemar(5, 0), mcnemar(3, 3)
    (0.0625, 1.0)
    """
    n = wins + losses
    as_uneven = sum(math.comb(n, k) for k in range(min(wins, losses) + 1))
    return min(1.0, 2 * as_uneven / 2**n)

def bleu(pairs):
    """
    BLEU-4 of [(text, gold)] in percent: Papineni et al., "BLEU" (ACL 2002). One gold text each,
    no smoothing. The geometric mean, over the whole corpus, of the precisions of 1- to 4-grams,
    times exp(1 - gold length / length) if the texts are shorter than gold.

    >>> round(bleu([("the cat sat on the mat", "the cat sat on a mat")]), 1)    # 5/6 3/5 2/4 1/3
    53.7
    """
    matched, written = zip(*(modified_precision(pairs, n) for n in (1, 2, 3, 4)))
    if 0 in matched:
        return 0.0
    mean_log = sum(math.log(m / n) for m, n in zip(matched, written)) / 4
    gold_length = sum(len(ngrams(gold, 1)) for _, gold in pairs)
    return 100 * math.exp(mean_log + min(0, 1 - gold_length / written[0]))

def modified_precision(pairs, n):
    """(n-grams of the texts that gold has too, none counted more often than there; all of them)."""
    counts = [(Counter(ngrams(text, n)), Counter(ngrams(gold, n))) for text, gold in pairs]
    return sum((a & b).total() for a, b in counts), sum(a.total() for a, _ in counts)

def ngrams(text, n):
    words = re.findall(r"\w+|[^\w\s]", text)
    return list(zip(*(words[i:] for i in range(n))))

def vote(answers):
    """
    (the most frequent answer, whether another one is as frequent). None has no vote; of several
    with as many votes, the one that was drawn first wins.

    >>> vote(["7", None, "8", "8"]), vote(["8", "7"]), vote([None])
    (('8', False), ('8', True), (None, False))
    """
    votes = Counter(answer for answer in answers if answer is not None).most_common(2)
    if not votes:
        return None, False
    return votes[0][0], len(votes) == 2 and votes[0][1] == votes[1][1]

# ------------------------------------------------------------ predictions: a record a dialogue

def texts(record, kind):
    return [turn["text"] for turn in record["turns"] if turn["kind"] == kind]

def is_right(record, gold):
    return same_answer(record["answer"], gold)

def read_leniently(record):
    """The answer, or if none was found the last number (or yes or no) of all that was written."""
    if record["answer"] is not None:
        return record["answer"]
    return extract_answer("\n".join(turn["text"] for turn in record["turns"]), lenient=True)

def read_predictions(path):
    """(header, records) of a file."""
    if not path.is_file():
        raise SystemExit(f"{path} does not exist. Predictions are made with: python eval.py")
    lines = read_lines(path, may_be_torn=True)
    if not lines or "settings" not in lines[0]:
        raise SystemExit(f"{path}:1: the first line should hold the settings. "
                         "Is this a file of predictions?")
    return lines[0], lines[1:]

def to_lines(records):
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)

def replace_text(path, text):
    replace_file(path, text.encode("utf-8", "replace"))    # half a surrogate pair becomes "?"

def make_header(args, folders, problems):
    """`settings`: all that shapes the predictions. `made`: where they come from."""
    device, dtype = pick_device(args.device, args.dtype)
    flags = ("dataset", "split", "method", "calculator", "samples", "diagnose", "batch_size")
    settings = {flag: getattr(args, flag) for flag in flags} | {
        "n": len(problems), "problems_sha256": sha256(problem.to_json() for problem in problems),
        "students": {role: sha256_of(f / "model.safetensors") for role, f in folders.items()},
        "code_sha256": sha256(sha256_of(HERE / name) for name in CODE),
        "device": device.type, "dtype": str(dtype).removeprefix("torch.")}
    git = subprocess.run("git describe --always --dirty", shell=True, cwd=HERE, text=True,
                         capture_output=True)
    made = {"commit": git.stdout.strip() or None,
            "command": shlex.join(["python", "eval.py", *sys.argv[1:]]),
            "students": {role: str(folder) for role, folder in folders.items()}}
    return {"settings": settings, "made": made}

def sha256(texts):
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()

def predict(args):
    """Solve the problems in batches; the dialogues go to a file as they come. Returns its path."""
    problems = load_problems(args.dataset, args.split, args.data_dir, args.limit)
    folders = find_students(args.method, args.students, args.dataset, args.model)
    header, records = make_header(args, folders, problems), []
    key = sha256([json.dumps(header["settings"], sort_keys=True)])[:8]
    path = args.out / f"{args.dataset}-{args.split}-{args.method}-{key}.jsonl"
    if path.exists():
        header, records = read_predictions(path)
        if len(records) == len(problems):
            return path
    # A batch that a kill tore is done again as a whole.
    del records[len(records) // args.batch_size * args.batch_size:]
    replace_text(path, to_lines([header, *records]))
    students = load_students(folders, args.device, args.dtype)
    start, n_first = time.time(), len(records)
    with open(path, "a", encoding="utf-8", newline="\n") as file:
        for at in range(n_first, len(problems), args.batch_size):
            batch = solve_batch(args, problems[at:at + args.batch_size], students)
            file.write(to_lines(batch))
            file.flush()
            records += batch
            n_right = sum(is_right(record, record["gold"]) for record in records)
            speed = (len(records) - n_first) / (time.time() - start)
            left = int((len(problems) - len(records)) / speed)
            print(f"{len(records):5d}/{len(problems)} problems | right so far "
                  f"{n_right / len(records):6.1%} | {speed:5.1f} problems/s | "
                  f"{left // 60}:{left % 60:02d} left", flush=True)
    return path

def solve_batch(args, problems, students):
    """A record a problem: its dialogue, and all that is needed to score it without a student."""
    def run(problems, **changes):
        options = {"calculator": args.calculator} | changes
        return [dialogue.to_json() for dialogue in solve(
            problems, students, args.method, args.batch_size, **options)]

    if args.samples > 1:
        draws = [run(problems, seed=k, temperature=SAMPLE_TEMPERATURE)
                 for k in range(args.samples)]
        records = [elect(samples) for samples in zip(*draws)]
    else:
        records = run(problems)
    for record, problem in zip(records, problems):
        # SVAMP has no steps, but a formula: as many steps as it has operators.
        n_operators = len(re.findall(r" [-+*/] ", " ".join(problem.evidence[:1])))
        record |= {"gold": problem.answer, "gold_steps": [vars(step) for step in problem.steps],
                   "n_steps": len(problem.steps) or n_operators}
    if args.diagnose and args.samples == 1:
        diagnose(args, records, problems, run)
    return records

def elect(samples):
    """The first of several dialogues that has the elected answer, with all of them beside it."""
    answer, is_tie = vote([sample["answer"] for sample in samples])
    chosen = next(sample for sample in samples if sample["answer"] == answer)
    return chosen | {"samples": list(samples), "tie": is_tie}

# ------------------------------------------------------------ where did it break?

def diagnose(args, records, problems, run):
    """
    An oracle is a second dialogue in which one part is replaced, most often by the correct (gold)
    one. Adds to each record its `oracles` {name: dialogue}:

    calculator          on, for a wrong answer without it; off, for a right answer with it
    gold subquestions   the solver writes the rest
    gold solutions      to the decomposer's subquestions, if they are as many as gold's; the solver
                        writes the answer alone
    """
    def again(name, chosen, given=None, **changes):
        if chosen:
            dialogues = run([problem for _, problem in chosen], given=given, **changes)
            for (record, _), dialogue in zip(chosen, dialogues):
                record["oracles"][name] = dialogue

    pairs = list(zip(records, problems))
    for record in records:
        record["oracles"] = {}
    again("calculator", [(r, p) for r, p in pairs if is_right(r, p.answer) == args.calculator],
          calculator=not args.calculator)
    if args.method != "socratic":
        return
    asked = [(r, p) for r, p in pairs if p.steps and all(step.question for step in p.steps)]
    again("gold subquestions", asked,
          given=[[Step(step.question) for step in p.steps] for _, p in asked])
    solved = [(r, p) for r, p in asked if all(step.solution for step in p.steps)
              and len(texts(r, "Subquestion")) == len(p.steps)]
    given = []
    for record, problem in solved:
        steps = zip(texts(record, "Subquestion"), problem.steps)
        given.append([Step(question, step.solution) for question, step in steps])
    again("gold solutions", solved, given=given)

def stage(record):
    """Where the dialogue broke: a key of STAGES, or "right"."""
    gold, oracles = record["gold"], record.get("oracles", {})
    if is_right(record, gold):
        return "right"
    if record["ended"] != "finished":
        return "cut off"
    if same_answer(read_leniently(record), gold):
        return "format"
    right_with = {name for name, dialogue in oracles.items() if is_right(dialogue, gold)}
    if "calculator" in right_with:
        return "arithmetic"
    if "gold subquestions" not in oracles:
        return "unknown"
    if "gold subquestions" in right_with:
        return "decomposer"
    if "gold solutions" in oracles and "gold solutions" not in right_with:
        return "answer"
    return "solver"

# ------------------------------------------------------------ scores: {section: {row: figure}}

def score(records, settings):
    """All figures of a run, from its predictions alone."""
    unit = "operators" if settings["dataset"] == "svamp" else "steps"
    sections = {"accuracy": score_answers(records),
                f"right (strict), by number of {unit}": score_by_steps(records, unit),
                "where wrong answers broke": score_stages(records),
                "right (strict), with one thing changed": score_oracles(records, settings),
                "subquestions against gold": score_subquestions(records)}
    return {name: rows for name, rows in sections.items() if rows}

def score_answers(records):
    common, _ = vote([record["gold"] for record in records])
    rows = {"right (strict)": count(is_right(r, r["gold"]) for r in records),
            "right (lenient)": count(same_answer(read_leniently(r), r["gold"]) for r in records),
            "an answer was found": count(r["answer"] is not None for r in records),
            f"always {common}, the most frequent": count(same_answer(common, r["gold"])
                                                         for r in records)}
    samples = [is_right(sample, r["gold"]) for r in records for sample in r.get("samples", [])]
    if samples:    # no interval: several dialogues of one problem are not independent draws
        rows["one sample alone"] = f"{sum(samples)} of {len(samples)}"
        rows["ties, which the first drawn won"] = count(r["tie"] for r in records)
    return rows

def score_by_steps(records, unit):
    return {f"{n} {unit}": count(is_right(r, r["gold"]) for r in records if r["n_steps"] == n)
            for n in sorted({record["n_steps"] for record in records})}

def score_stages(records):
    broke = [place for place in map(stage, records) if place != "right"]
    return {text: count(place == name for place in broke)
            for name, text in STAGES.items() if name in broke}

def score_oracles(records, settings):
    """Right answers with one thing changed, of the problems for which gold has that thing."""
    def right_with(name, chosen):
        # The calculator is changed only where that can matter. Gold solutions fit only as many
        # subquestions; with another number the answer counts as wrong.
        missing = {"answer": None}
        return count(is_right(r["oracles"].get(name, r if name == "calculator" else missing),
                              r["gold"]) for r in chosen)

    records = [record for record in records if "oracles" in record]
    asked = [record for record in records if "gold subquestions" in record["oracles"]]
    full = [record for record in asked if all(step["solution"] for step in record["gold_steps"])]
    switched = f"calculator {'off' if settings['calculator'] else 'on'}"
    rows = {switched: right_with("calculator", records),
            "gold subquestions": right_with("gold subquestions", asked),
            "gold solutions": right_with("gold solutions", full)}
    return {name: row for name, row in rows.items() if row["n"]}

def score_subquestions(records):
    pairs = []
    for record in records:
        ours = [clean(text) for text in texts(record, "Subquestion")]
        gold = [clean(step["question"]) for step in record["gold_steps"]]
        if ours and gold and all(gold):
            pairs.append((ours, gold))
    return pairs and {
        "as many as gold": count(len(ours) == len(gold) for ours, gold in pairs),
        "word for word gold": count(ours == gold for ours, gold in pairs),
        "BLEU-4": f"{bleu([(' '.join(ours), ' '.join(gold)) for ours, gold in pairs]):.1f}"}

def table_rows(rows):
    """[(label, number, interval, row)] of a section, as the screen and the page print them."""
    for label, row in rows.items():
        if isinstance(row, str):
            yield label, row, "", None
        else:
            percent = f"{row['right'] / max(1, row['n']):.1%}"
            yield (label, f"{row['right']:,} of {row['n']:,} = {percent:>6s}",
                   f"{row['low']:.1%} to {row['high']:.1%}", row)

def show(header, scores):
    """A run's scores on the screen."""
    settings = header["settings"]
    print(f"\n{settings['method']} on {settings['dataset']}/{settings['split']}: {settings['n']} "
          f"problems, sha256 {settings['problems_sha256'][:12]}")
    for section, rows in scores.items():
        print(f"\n{section:64s} 95 % interval")
        for label, number, interval, _ in table_rows(rows):
            print(f"  {label:40s} {number:>22s}  {interval:>17s}".rstrip())

def show_mean(runs):
    """Mean and spread of runs that differ in their students only."""
    every = [header["settings"] for _, header, _, _ in runs]
    differ = {key for one in every for key in one if one[key] != every[0].get(key)} - {"students"}
    if differ:
        print(f"\nno mean of these {len(runs)} runs, they differ in: {', '.join(sorted(differ))}")
        return
    rows = [scores["accuracy"]["right (strict)"] for _, _, _, scores in runs]
    points = [100 * row["right"] / max(1, row["n"]) for row in rows]
    mean, spread = statistics.mean(points), statistics.stdev(points)
    print(f"\n{len(runs)} runs: right (strict) {mean:.1f} % on average, standard deviation "
          f"{spread:.1f}, from {min(points):.1f} to {max(points):.1f}")

def compare(path_a, path_b):
    """Two runs on the same problems: who is right where the other is wrong; is it luck?"""
    (a, records_a), (b, records_b) = read_predictions(path_a), read_predictions(path_b)
    for key in ("dataset", "split", "n", "problems_sha256"):
        if a["settings"][key] != b["settings"][key]:
            raise SystemExit(f"These runs are not of the same problems. {key}:\n"
                             f"  {a['settings'][key]}  {path_a}\n  {b['settings'][key]}  {path_b}")
    for path, header, records in ((path_a, a, records_a), (path_b, b, records_b)):
        if len(records) != header["settings"]["n"]:
            raise SystemExit(f"{path} holds {len(records)} of {header['settings']['n']} problems. "
                             f"Go on with:\n  {header['made']['command']}")
    pairs = [(x, is_right(x, x["gold"]), is_right(y, y["gold"]))
             for x, y in zip(records_a, records_b)]
    only_a = [x for x, a_right, b_right in pairs if a_right and not b_right]
    only_b = [x for x, a_right, b_right in pairs if b_right and not a_right]
    n_both = sum(a_right and b_right for _, a_right, b_right in pairs)
    p = mcnemar(len(only_a), len(only_b))
    print(f"A: {path_a}\nB: {path_b}\n{a['settings']['dataset']}/{a['settings']['split']}, "
          f"{len(pairs)} problems: A has {n_both + len(only_a)} right, B {n_both + len(only_b)}\n"
          f"wins of A {len(only_a)}, wins of B {len(only_b)}, both right {n_both}\n"
          f"exact McNemar p = {p:.2g}: " + ("luck alone hardly does this" if p < 0.05 else
                                            "no difference shown, luck alone does as much"))
    for name, flips in (("A", only_a), ("B", only_b)):
        for record in sorted(flips, key=lambda record: len(record["problem"]))[:3]:
            print(f"only {name} is right: {record['id']}: {record['problem']}"[:88])

# ------------------------------------------------------------ the report, a static page

STYLE = """
body { max-width: 60em; margin: 1em auto; padding: 0 1em; font: 15px/1.5 system-ui, sans-serif }
td { padding: 0 .8em 0 0; white-space: nowrap } th { text-align: left; padding-top: 1em }
.track { width: 16em; height: .7em; background: #eee; position: relative }
.track i { position: absolute; height: 100%; background: #9cc3e6 }
.track b { position: absolute; height: 100%; width: 2px; background: #222 }
details { margin: .2em 0 .2em 1em } summary { cursor: pointer }
p { margin: .3em 1em; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }
.Subquestion { color: #a05500 } .Solution { color: #0a62a8 } .gold { color: #56641a }
svg { width: 30em; height: 8em; display: block } path { fill: none; stroke: #0a62a8 }
"""

def page(runs):
    """The report of all runs [(path, header, records, scores)]. Every text in it is escaped."""
    parts = [f'<!doctype html><meta charset="utf-8"><title>Where do the students break?</title>'
             f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style>']
    for path, header, records, scores in runs:
        settings = html.escape(json.dumps({**header["settings"], **header["made"]}, indent=1))
        parts.append(f"<h1>{html.escape(path.stem)}</h1><details><summary>settings</summary>"
                     f"<p>{settings}</p></details><table>")
        for section, rows in scores.items():
            parts.append(f'<tr><th colspan="4">{html.escape(section)}')
            parts += [table_row(*row) for row in table_rows(rows)]
        parts.append("</table>")
        parts += [curve(role, Path(folder)) for role, folder in header["made"]["students"].items()]
        for name, title in {**STAGES, "right": "right"}.items():
            group = [dialogue_block(record) for record in records if stage(record) == name]
            if group:
                parts.append(f"<details><summary>{title}: {len(group)}</summary>")
                parts += [*group, "</details>"]
    return "\n".join(parts)

def table_row(label, number, interval, row):
    bar = ""
    if row:    # the bar is the 95 % interval, the line in it the share itself
        low, high, share = row["low"], row["high"], row["right"] / max(1, row["n"])
        bar = (f'<div class="track"><i style="left:{low:.1%};width:{high - low:.1%}"></i>'
               f'<b style="left:{share:.1%}"></b></div>')
    return f"<tr><td>{html.escape(label)}<td>{number}<td>{interval}<td>{bar}"

def dialogue_block(record):
    lines = [("", record["problem"])]
    lines += [(turn["kind"], f"{turn['kind']}: {turn['text']}") for turn in record["turns"]]
    lines += [("gold", f"gold: {s['question']} {s['solution']}") for s in record["gold_steps"]]
    answers = [f"with {name}: {one['answer']}" for name, one in record.get("oracles", {}).items()]
    lines.append(("gold", " | ".join([f"gold answer: {record['gold']}", *answers])))
    lines = [f'<p class="{kind}" dir="auto">{html.escape(text)}</p>' for kind, text in lines]
    title = html.escape(record["problem"][:90])
    return f"<details><summary>{title}</summary>{''.join(lines)}</details>"

def curve(role, folder):
    """The training's loss as a picture, on a logarithmic scale; nothing if there is no log."""
    log = folder / "log.jsonl"
    lines = read_lines(log, may_be_torn=True) if log.exists() else []
    points = [(line["step"], math.log(line["loss"])) for line in lines
              if 0 < (line.get("loss") or 0) < math.inf]    # not so for NaN
    if len(points) < 2:
        return ""
    last, low, high = points[-1][0], min(y for _, y in points), max(y for _, y in points)
    line = " ".join(f"{400 * step / last:.1f} {100 * (high - y) / (high - low or 1):.1f}"
                    for step, y in points)
    return (f"<h3>training the {html.escape(role)}: loss {math.exp(high):.2f} to "
            f"{math.exp(low):.3f} nats a token in {last:,} steps</h3>"
            f'<svg viewBox="-2 -2 404 104" preserveAspectRatio="none"><path d="M{line}"/></svg>')

# ------------------------------------------------------------ the command

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Score students on a test split, and see where they break.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", choices=DATASETS, help="which problems")
    add("--split", default="test", help="train, valid, test; demo also has long, svamp all")
    add("--limit", type=int, help="only the first so many problems (None: all)")
    add("--data-dir", help="folder of the data sets (None: SOCRATIC_DATA, or data/)")
    add("--method", default="socratic", choices=METHODS, help="which students solve them")
    add("--students", nargs="+", metavar="FOLDER",
        help="their folders (None: runs/<dataset>-<model>-<role>, else students/)")
    add("--model", default="tiny", help="use students of this size")
    add("--out", default="predictions", type=Path, metavar="FOLDER",
        help="where predictions, scores and report.html go")
    add("--batch-size", type=int, default=64, help="dialogues at once")
    add("--calculator", action=argparse.BooleanOptionalAction, default=True,
        help="compute <<...=...>> for the student")
    add("--diagnose", action=argparse.BooleanOptionalAction, default=True,
        help="solve again with one thing changed, to see where it broke: over twice the work")
    add("--samples", type=int, default=1,
        help=f"dialogues a problem, at temperature {SAMPLE_TEMPERATURE}; their majority answers")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"),
        help="of weights and cache (auto: on CUDA bf16 or fp16, else fp32)")
    add("--rescore", nargs="+", metavar="FILE", type=Path,
        help="instead: score finished predictions again")
    add("--compare", nargs=2, metavar="FILE", type=Path,
        help="instead: two predictions of the same problems, in pairs")
    return parser.parse_args(argv)

def main(args):
    if args.compare:
        compare(*args.compare)
        return
    runs = []
    for path in args.rescore or [predict(args)]:
        header, records = read_predictions(path)
        scores = score(records, header["settings"])
        show(header, scores)
        if len(records) < header["settings"]["n"]:
            print(f"{path} is unfinished: {len(records)} of {header['settings']['n']} problems")
        replace_text(path.with_suffix(".json"), json.dumps(header | {"scores": scores}, indent=1))
        print(f"\npredictions  {path}\nscores       {path.with_suffix('.json')}")
        runs.append((path, header, records, scores))
    if len(runs) > 1:
        show_mean(runs)
    replace_text(args.out / "report.html", page(runs))
    print(f"to browse    {args.out / 'report.html'}")

if __name__ == "__main__":
    main(parse_args())

"""
How well, and where does it break? Students are scored on a test split.

    python eval.py                                  decomposer and solver on the demo's test split
    python eval.py --method cot --dataset gsm8k     chain of thought, on GSM8K's test split
    python eval.py --samples 8                      self-consistency: 8 dialogues vote
    python eval.py --compare A.jsonl B.jsonl        is the difference more than luck?
    python eval.py --rescore A.jsonl B.jsonl        finished runs again, without students; the mean

Reads   the students (see infer.py) and the problems of a split
Writes  predictions/<name>.jsonl    the settings, then a dialogue a line. The name ends in a key of
                                    the settings, so the same command goes on where it stopped
        predictions/<name>.json     the scores
        predictions/report.html     scores, loss curves, dialogues grouped by where they broke
"""

import argparse
import hashlib
import html
import json
import math
import re
import shlex
import sys
import time
from collections import Counter
from pathlib import Path

from data import (DATASET_HELP, HERE, Step, clean, extract_answer, load_problems, positive,
                  read_lines, replace_file, run_name, same_answer, sha256_of)
from infer import (TEMPERATURE, add_student_flags, chunks, find_students, load_students,
                   pick_device, read_config, solve)

STAGES = {    # where a wrong answer broke (see `stage`)
    "cut off": "cut off before its end",
    "format": "format: right if read leniently",
    "arithmetic": "arithmetic: right with the calculator",
    "decomposer": "decomposer: right with gold subquestions",
    "answer": "answer: wrong even with gold solutions",
    "solver": "solver: wrong with gold subquestions",
    "unknown": "cause unknown",
}

# ------------------------------------------------------------ predictions: a record a dialogue

def predict(args):
    """Solve the problems in batches; each goes to a file when it is done. Returns its path."""
    problems = [problem for problem in load_problems(args.dataset, args.split, limit=args.limit)
                if problem.answer.strip()]    # without a gold answer nothing can be scored
    if not problems:
        raise SystemExit(f"{args.dataset}/{args.split} holds no problem with an answer. "
                         "Try: --split all")
    folders = find_students(args.method, args.students, args.dataset, args.model)
    header = make_header(args, folders, problems)
    key = sha256(json.dumps(header["settings"]))[:8]
    path = args.out / f"{run_name(args.dataset)}-{args.split}-{args.method}-{key}.jsonl"
    records = read_run(path)[1] if path.exists() else []
    if len(records) == len(problems):
        return path
    # If the file has lost its end, the last whole batch is followed by the next one.
    del records[len(records) // args.batch_size * args.batch_size:]
    students = load_students(folders, args.device, args.dtype)
    start, n_first = time.time(), len(records)
    for batch in chunks(problems[n_first:], args.batch_size):
        records += solve_batch(args, batch, students)
        replace_file(path, *(json.dumps(line).encode() + b"\n" for line in (header, *records)))
        share = sum(map(is_right, records)) / len(records)
        speed = (len(records) - n_first) / (time.time() - start)
        left = int((len(problems) - len(records)) / speed)
        print(f"{len(records):5d}/{len(problems)} problems | right so far {share:6.1%} | "
              f"{speed:5.1f} problems/s | {left // 60}:{left % 60:02d} left", flush=True)
    return path

def make_header(args, folders, problems):
    """The first line of a run. `settings` holds all that shapes the predictions."""
    flags = ("dataset", "split", "method", "calculator", "samples", "diagnose", "batch_size")
    settings = {flag: getattr(args, flag) for flag in flags}
    device, dtype = pick_device(args.device, args.dtype)
    settings |= {"device": device.type, "dtype": str(dtype).removeprefix("torch.")}
    settings["n"] = len(problems)
    settings["problems_sha256"] = sha256("\n".join(problem.to_json() for problem in problems))
    files = {role: folder / "model.safetensors" for role, folder in folders.items()}
    files |= {name: HERE / name for name in ("data.py", "gpt.py", "infer.py", "eval.py")}
    settings |= {f"{name}_sha256": sha256_of(path) for name, path in files.items()}
    return {"settings": settings, "command": shlex.join(["python", "eval.py", *sys.argv[1:]]),
            "students": {role: str(folder) for role, folder in folders.items()},
            "trained_by": {role: read_config(folder / "config.json")[1].get("command")
                           for role, folder in folders.items()}}

def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()

def read_run(path):
    """(header, records, scores) of a file of predictions. A line that lost its end is left out."""
    try:
        header, *records = read_lines(path, may_be_torn=True)
        run = header, records, score(records)
        describe(header["settings"], records)    # these two fail where something is missing
        page([(path, *run)])
        return run
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SystemExit(f"{path} is not a whole file of predictions: {error!r}.\n"
                         "They are made with: python eval.py") from None

def solve_batch(args, problems, students):
    """A record a problem: its dialogue, and all that is needed to score it without a student."""
    def run(problems, **options):
        options = {"calculator": args.calculator} | options
        dialogues = solve(problems, students, args.method, args.batch_size, **options)
        return [dialogue.to_json() | {"gold": dialogue.problem.answer} for dialogue in dialogues]

    records = run(problems, n_samples=args.samples)
    for record, problem in zip(records, problems):
        add_gold(record, problem)
    if args.diagnose:
        diagnose(args, records, problems, run)
    return records

def add_gold(record, problem):
    """Put into a record what the scores compare it with."""
    questions = [clean(step.question) for step in problem.steps]
    # SVAMP has no steps, but a formula: every operator is a step.
    n_operators = len(re.findall(r"[\d)] ?[-+*/]", " ".join(problem.evidence[:1])))
    record["n_steps"] = len(problem.steps) or n_operators
    record["gold_steps"] = [vars(step) for step in problem.steps]
    record["gold_subquestions"] = questions if all(questions) else []
    record["subquestions"] = [turn["text"] for turn in record["turns"]
                              if turn["kind"] == "Subquestion"]

# ------------------------------------------------------------ where did it break?

def diagnose(args, records, problems, run):
    """
    An oracle is a second dialogue in which one part is replaced, most often by the correct (gold)
    one. What the students then get right tells which part was to blame. Adds to each record its
    `oracles` {name: dialogue}:

    calculator on / off   off for a right answer with it, on for a wrong one without it; other
                          answers are taken as they are
    gold subquestions     the solver writes the rest
    gold solutions        to the decomposer's subquestions, if they are as many as gold's; the
                          solver writes the answer alone
    """
    switched = "calculator off" if args.calculator else "calculator on"
    chosen = {switched: [], "gold subquestions": [], "gold solutions": []}
    for record, problem in zip(records, problems):
        record["oracles"] = {switched: {"answer": record["answer"], "gold": record["gold"]}}
        if is_right(record) == args.calculator:    # the switch can turn only these
            chosen[switched].append((record, problem, None))
        ours, gold = record["subquestions"], record["gold_subquestions"]
        if args.method == "socratic" and gold:
            chosen["gold subquestions"].append((record, problem, list(map(Step, gold))))
            solutions = [step.solution for step in problem.steps]
            if len(ours) == len(gold) and all(solutions):
                chosen["gold solutions"].append((record, problem, list(map(Step, ours, solutions))))
    for name, rows in chosen.items():
        if rows:
            broken, again, given = zip(*rows)
            options = {"calculator": not args.calculator} if name == switched else {"given": given}
            for record, dialogue in zip(broken, run(again, **options)):
                record["oracles"][name] = dialogue

def stage(record):
    """Where the dialogue broke: a key of STAGES, or "right"."""
    oracles = record.get("oracles", {})
    right_with = {name for name, dialogue in oracles.items() if is_right(dialogue)}
    if is_right(record):
        return "right"
    if record["ended"] != "finished":
        return "cut off"
    if is_right_leniently(record):
        return "format"
    if "calculator on" in right_with:
        return "arithmetic"
    if "gold subquestions" not in oracles:
        return "unknown"
    if "gold subquestions" in right_with:
        return "decomposer"
    if "gold solutions" in oracles and "gold solutions" not in right_with:
        return "answer"
    return "solver"

def is_right(record):
    return same_answer(record["answer"], record["gold"])

def is_right_leniently(record):
    """If no answer was found, the last number (or yes or no) of all that was written counts."""
    written = "\n".join(turn["text"] for turn in record["turns"])
    answer = record["answer"] or extract_answer(written, lenient=True)
    return same_answer(answer, record["gold"])

# ------------------------------------------------------------ scores: {section: {row: figure}}

def score(records):
    """All figures of a run, from its predictions alone."""
    golds = Counter(record["gold"] for record in records)
    common = max(golds, key=golds.get, default=None)
    scores, pairs = {}, []    # scores hold at first [whether it is a hit, ...] for each row
    for record in sorted(records, key=lambda record: record["n_steps"]):
        for section, row, hit in find_hits(record, common):
            scores.setdefault(section, {}).setdefault(row, []).append(hit)
        if record["subquestions"] and record["gold_subquestions"]:
            pairs.append((" ".join(record["subquestions"]), " ".join(record["gold_subquestions"])))
    broke = [STAGES[stage(record)] for record in records if not is_right(record)]
    if broke:
        scores["where wrong answers broke"] = {
            row: [place == row for place in broke] for row in STAGES.values() if row in broke}
    for rows in scores.values():
        for row, hits in rows.items():
            low, high = wilson(sum(hits), len(hits))
            rows[row] = {"right": sum(hits), "n": len(hits), "low": low, "high": high}
    if pairs:
        scores["subquestions against gold"]["BLEU-4"] = f"{bleu(pairs):.1f}"
    return scores

def find_hits(record, common):
    """What a dialogue adds to the scores: (section, row, whether it is a hit) for each row."""
    yield "accuracy", "right (strict)", is_right(record)
    yield "accuracy", "right (lenient)", is_right_leniently(record)
    yield "accuracy", "an answer was found", record["answer"] is not None
    yield "accuracy", f"always {common}, the most frequent", same_answer(common, record["gold"])
    if len(answers := record.get("answers", [])) > 1:
        yield "accuracy", "the first sample alone", same_answer(answers[0], record["gold"])
    yield "right (strict), by number of steps", f"{record['n_steps']} steps", is_right(record)
    for name, dialogue in record.get("oracles", {}).items():
        yield "right (strict), with one thing changed", name, is_right(dialogue)
    ours, gold = record["subquestions"], record["gold_subquestions"]
    if ours and gold:
        yield "subquestions against gold", "as many as gold", len(ours) == len(gold)
        yield "subquestions against gold", "word for word gold", ours == gold

def in_words(figure):
    """A figure as the screen and the page print it. BLEU-4 is text already."""
    if isinstance(figure, str):
        return f"{figure:>22s}"
    n_right, n = figure["right"], figure["n"]
    number = f"{n_right:,} of {n:,} = {n_right / n:6.1%}"
    return f"{number:>22s}    {figure['low']:6.1%} to {figure['high']:6.1%}"

def describe(settings, records):
    return (f"{settings['method']} on {settings['dataset']}/{settings['split']}: {len(records)} of "
            f"{settings['n']} problems, sha256 {settings['problems_sha256'][:12]}")

def print_scores(scores):
    for section, rows in scores.items():
        print(f"\n{section:64s} 95 % interval")
        for row, figure in rows.items():
            print(f"  {row:40s} {in_words(figure)}")

# ------------------------------------------------------------ statistics, two runs in pairs

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

def compare(path_a, path_b):
    """Two runs on the same problems: who is right where the other is wrong; is it luck?"""
    (a, records_a, _), (b, records_b, _) = read_run(path_a), read_run(path_b)
    hash_a, hash_b = a["settings"]["problems_sha256"], b["settings"]["problems_sha256"]
    if hash_a != hash_b or len(records_a) != len(records_b):
        raise SystemExit("These runs are not of the same problems, or one is unfinished. Make both "
                         f"with the same --dataset, --split and --limit:\n  {a['command']}\n"
                         f"  {b['command']}")
    pairs = Counter((is_right(one), is_right(other)) for one, other in zip(records_a, records_b))
    both, wins_a, wins_b = pairs[True, True], pairs[True, False], pairs[False, True]
    p = mcnemar(wins_a, wins_b)
    verdict = "unlikely to be luck" if p < 0.05 else "no difference shown"
    print(f"A: {path_a}\nB: {path_b}\n"
          f"{len(records_a)} problems: A has {both + wins_a} right, B {both + wins_b}\n"
          f"wins of A {wins_a}, wins of B {wins_b}, both right {both}\n"
          f"exact McNemar p = {p:.2g}: {verdict}")

# ------------------------------------------------------------ the report, a static page

STYLE = """
body { max-width: 60em; margin: auto; font: 15px/1.5 sans-serif }
th { text-align: left; padding-top: 1em } td { padding-right: 1em; white-space: pre }
.track { width: 16em; height: .7em; background: #eee; position: relative }
.track i { position: absolute; height: 100%; background: #9cc3e6 }
details { margin-left: 1em }
p { margin: .3em 1em; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }
.Subquestion { color: #a05500 } .Solution { color: #0a62a8 } .gold { color: #56641a }
svg { width: 30em; height: 8em; overflow: visible }
path { fill: none; stroke: #0a62a8; vector-effect: non-scaling-stroke }
"""

def page(runs):
    """The report of all runs [(path, header, records, scores)]. Every text in it is escaped."""
    text = ('<!doctype html><meta charset="utf-8"><title>Where do the students break?</title>'
            f"<style>{STYLE}</style>")
    for path, header, records, scores in runs:
        text += f"\n<h1>{html.escape(path.stem)}</h1><p>{html.escape(header['command'])}</p><table>"
        for section, rows in scores.items():
            text += f'<tr><th colspan="3">{html.escape(section)}'
            for row, figure in rows.items():
                text += f"<tr><td>{html.escape(row)}<td>{in_words(figure)}<td>{bar(figure)}"
        text += "</table>"
        for role, folder in header["students"].items():
            text += curve(role, Path(folder))
        for name, title in {**STAGES, "right": "right"}.items():
            group = [record for record in records if stage(record) == name]
            if group:
                text += f"\n<details><summary>{title}: {len(group)}</summary>"
                text += "".join(map(dialogue_block, group)) + "</details>"
    return text

def bar(figure):
    """The 95 % interval as a bar. BLEU-4 has none."""
    if isinstance(figure, str):
        return ""
    low, width = figure["low"], figure["high"] - figure["low"]
    return f'<div class="track"><i style="left:{low:.1%};width:{width:.1%}"></i></div>'

def dialogue_block(record):
    """A problem and its dialogue, folded; below it gold, and what was answered with an oracle."""
    turns, steps, oracles = record["turns"], record["gold_steps"], record.get("oracles", {})
    lines = [("", record["problem"])]
    lines += [(turn["kind"], f"{turn['kind']}: {turn['text']}") for turn in turns]
    lines += [("gold", f"gold: {step['question']} {step['solution']}") for step in steps]
    lines += [("gold", f"gold answer: {record['gold']}")]
    lines += [("gold", f"with {name}: {dialogue['answer']}") for name, dialogue in oracles.items()]
    block = f"\n<details><summary>{html.escape(record['problem'][:90])}</summary>"
    for kind, line in lines:
        block += f'<p class="{html.escape(kind)}" dir="auto">{html.escape(line)}</p>'
    return block + "</details>"

def curve(role, folder):
    """The training's loss as a picture, on a logarithmic scale; nothing if there is no log."""
    log = folder / "log.jsonl"
    lines = read_lines(log, may_be_torn=True) if log.exists() else []
    # The line of a validation has no loss.
    losses = {line["step"]: line["loss"] for line in lines if line.get("loss", 0) > 0}
    if not losses:
        return ""
    last, low, high = max(losses), min(losses.values()), max(losses.values())
    line = " ".join(f"{step} {-math.log(loss):.3f}" for step, loss in losses.items())
    box = f"0 {-math.log(high):.3f} {last} {math.log(high / low):.3f}"
    return (f"\n<h3>training the {html.escape(role)}: loss {high:.2f} to {low:.3f} nats a token in "
            f'{last:,} steps</h3>\n<svg viewBox="{box}" preserveAspectRatio="none">'
            f'<path d="M{line}"/></svg>')

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
        help="solve again with one thing changed, to see where it broke: over twice the work")
    add("--samples", type=positive, default=1,
        help=f"dialogues a problem, drawn at temperature {TEMPERATURE}; their answers vote")
    add("--rescore", nargs="+", type=Path, metavar="FILE",
        help="solve nothing; score these runs again")
    add("--compare", nargs=2, type=Path, metavar="FILE", help="solve nothing; compare two runs")
    args = parser.parse_args(argv)
    args.diagnose = args.diagnose and args.samples == 1    # voters are not diagnosed
    return args

def main(args):
    if args.compare:
        compare(*args.compare)
        return
    runs, shares = [], []
    for path in args.rescore or [predict(args)]:
        header, records, scores = read_run(path)
        if not records:
            raise SystemExit(f"{path} holds no dialogue yet. Go on with:\n  {header['command']}")
        print(f"\n{describe(header['settings'], records)}")
        print_scores(scores)
        text = json.dumps(header | {"scores": scores}, indent=1)
        replace_file(path.with_suffix(".json"), text.encode())
        print(f"\npredictions  {path}\nscores       {path.with_suffix('.json')}")
        runs.append((path, header, records, scores))
        shares.append(sum(map(is_right, records)) / len(records))
    if len(runs) > 1:
        print(f"\n{len(runs)} runs: right (strict) {sum(shares) / len(runs):.1%} on average, "
              f"from {min(shares):.1%} to {max(shares):.1%}")
    report = args.out / "report.html"
    replace_file(report, page(runs).encode("utf-8", "replace"))    # half a letter becomes "?"
    print(f"to browse    {report}")

if __name__ == "__main__":
    try:
        main(parse_args())
    except KeyboardInterrupt:
        sys.exit("\nInterrupted. The same command goes on where it stopped.")

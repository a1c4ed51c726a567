"""
How well, and where does it break? Students are scored on a test split.

    python eval.py                                  decomposer and solver on the demo's test split
    python eval.py --method cot --dataset gsm8k     chain of thought, on GSM8K's test split
    python eval.py --samples 8                      self-consistency: the majority of 8 dialogues
    python eval.py --compare A.jsonl B.jsonl        is the difference more than luck?
    python eval.py --rescore A.jsonl B.jsonl        finished runs again, without students; the mean

Reads   the students (see infer.py) and the problems of a split
Writes  predictions/<name>.jsonl    the settings, then a dialogue a line, in batches. The name ends
                                    in a key of all that shapes them (students, problems, flags,
                                    code), so the same command goes on where it stopped
        predictions/<name>.json     the scores
        predictions/report.html     scores, loss curves, dialogues grouped by where they broke
Order   predictions, where it broke, scores, statistics, comparison, the report, the command
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
from infer import add_student_flags, find_students, load_students, pick_device, solve

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

# ------------------------------------------------------------ predictions: a record a dialogue

def predict(args):
    """Solve the problems in batches; each goes to a file when it is done. Returns its path."""
    problems = load_problems(args.dataset, args.split, args.data_dir, args.limit)
    if not problems:
        raise SystemExit(f"{args.dataset}/{args.split} holds no problem. A small file may have "
                         "none in its test split; --split all scores all of it.")
    folders = find_students(args.method, args.students, args.dataset, args.model)
    header, records = make_header(args, folders, problems), []
    key = sha256(json.dumps(header["settings"], sort_keys=True))[:8]
    name = f"{run_name(args.dataset)}-{args.split}-{args.method}-{key}"
    path = args.out.expanduser() / f"{name}.jsonl"
    if path.exists():
        header, records = read_predictions(path)
        if len(records) == len(problems):
            return path
    # Where the file was cut, as a copy may be, the batch that was cut is solved again.
    del records[len(records) // args.batch_size * args.batch_size:]
    students = load_students(folders, args.device, args.dtype)
    start, n_first = time.time(), len(records)
    while len(records) < len(problems):
        batch = problems[len(records):len(records) + args.batch_size]
        records += solve_batch(args, batch, students)
        replace_text(path, to_lines([header, *records]))
        n_right = sum(is_right(record, record["gold"]) for record in records)
        speed = (len(records) - n_first) / (time.time() - start)
        left = int((len(problems) - len(records)) / speed)
        print(f"{len(records):5d}/{len(problems)} problems | right so far "
              f"{n_right / len(records):6.1%} | {speed:5.1f} problems/s | "
              f"{left // 60}:{left % 60:02d} left", flush=True)
    return path

def make_header(args, folders, problems):
    """`settings`: all that shapes the predictions. `made`: where they come from."""
    device, dtype = pick_device(args.device, args.dtype)
    flags = ("dataset", "split", "method", "calculator", "samples", "diagnose", "batch_size")
    settings = {flag: getattr(args, flag) for flag in flags} | {
        "n": len(problems),
        "problems_sha256": sha256("\n".join(problem.to_json() for problem in problems)),
        "students": {role: sha256_of(f / "model.safetensors") for role, f in folders.items()},
        "code_sha256": sha256("".join(sha256_of(HERE / name) for name in CODE)),
        "device": device.type, "dtype": str(dtype).removeprefix("torch.")}
    made = {"command": shlex.join(["python", "eval.py", *sys.argv[1:]]),
            "students": {role: str(folder) for role, folder in folders.items()}}
    return {"settings": settings, "made": made}

def sha256(text):
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()

def solve_batch(args, problems, students):
    """A record a problem: its dialogue, and all that is needed to score it without a student."""
    def run(problems, **options):
        options = {"calculator": args.calculator} | options
        dialogues = solve(problems, students, args.method, args.batch_size, **options)
        return [dialogue.to_json() for dialogue in dialogues]

    if args.samples > 1:
        draws = [run(problems, seed=seed, temperature=SAMPLE_TEMPERATURE)
                 for seed in range(args.samples)]
        records = [elect(samples) for samples in zip(*draws)]
    else:
        records = run(problems)
    for record, problem in zip(records, problems):
        # SVAMP has no steps, but a formula: as many steps as it has operators.
        n_operators = len(re.findall(r" [-+*/] ", " ".join(problem.evidence[:1])))
        record["gold"] = problem.answer
        record["gold_steps"] = [vars(step) for step in problem.steps]
        record["n_steps"] = len(problem.steps) or n_operators
    if args.diagnose and args.samples == 1:
        diagnose(args, records, problems, run)
    return records

def elect(samples):
    """The first of several dialogues that has the elected answer, with all of them beside it."""
    answer = vote([sample["answer"] for sample in samples])
    chosen = next(sample for sample in samples if sample["answer"] == answer)
    return chosen | {"samples": list(samples)}

def vote(answers):
    """
    The most frequent answer. None has no vote; of several with as many, the first drawn wins.

    >>> vote(["7", None, "8", "8"]), vote(["8", "7"]), vote([None])
    ('8', '8', None)
    """
    votes = Counter(answer for answer in answers if answer is not None)
    return max(votes, key=votes.get, default=None)

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

def texts(record, kind):
    return [turn["text"] for turn in record["turns"] if turn["kind"] == kind]

def is_right(record, gold):
    return same_answer(record["answer"], gold)

def is_right_leniently(record, gold):
    """If no answer was found, the last number (or yes or no) of all that was written counts."""
    written = "\n".join(turn["text"] for turn in record["turns"])
    return same_answer(record["answer"] or extract_answer(written, lenient=True), gold)

# ------------------------------------------------------------ where did it break?

def diagnose(args, records, problems, run):
    """
    An oracle is a second dialogue in which one part is replaced, most often by the correct (gold)
    one. What the students then get right tells which part was to blame. Adds to each record its
    `oracles` {name: dialogue}:

    calculator          on, for a wrong answer without it; off, for a right answer with it
    gold subquestions   the solver writes the rest
    gold solutions      to the decomposer's subquestions, if they are as many as gold's; the solver
                        writes the answer alone
    """
    switched, asked, solved = [], [], []    # (record, problem, given steps) for each oracle
    for record, problem in zip(records, problems):
        record["oracles"] = {}
        if is_right(record, problem.answer) == args.calculator:
            switched.append((record, problem, None))
        steps, questions = problem.steps, texts(record, "Subquestion")
        if args.method != "socratic" or not steps or not all(step.question for step in steps):
            continue
        asked.append((record, problem, [Step(step.question) for step in steps]))
        if len(questions) == len(steps) and all(step.solution for step in steps):
            given = [Step(ours, step.solution) for ours, step in zip(questions, steps)]
            solved.append((record, problem, given))

    solve_again("calculator", switched, run, calculator=not args.calculator)
    solve_again("gold subquestions", asked, run)
    solve_again("gold solutions", solved, run)

def solve_again(name, chosen, run, **options):
    """Solve the chosen [(record, problem, given steps)] in one batch, and file the dialogues."""
    if not chosen:
        return
    records, problems, given = zip(*chosen)
    if given[0] is not None:
        options["given"] = given
    for record, dialogue in zip(records, run(problems, **options)):
        record["oracles"][name] = dialogue

def stage(record):
    """Where the dialogue broke: a key of STAGES, or "right"."""
    gold, oracles = record["gold"], record.get("oracles", {})
    if is_right(record, gold):
        return "right"
    if record["ended"] != "finished":
        return "cut off"
    if is_right_leniently(record, gold):
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
    common = vote([record["gold"] for record in records])
    accuracy, by_steps, changed, broke = {}, {}, {}, {}    # {row: [whether it is a hit, ...]}
    for record in sorted(records, key=lambda record: record["n_steps"]):
        gold, right = record["gold"], is_right(record, record["gold"])
        note(accuracy, "right (strict)", right)
        note(accuracy, "right (lenient)", right or is_right_leniently(record, gold))
        note(accuracy, "an answer was found", record["answer"] is not None)
        note(accuracy, f"always {common}, the most frequent", same_answer(common, gold))
        if "samples" in record:
            note(accuracy, "the first sample alone", is_right(record["samples"][0], gold))
        note(by_steps, f"{record['n_steps']} {unit}", right)
        if "oracles" in record:
            note_oracles(changed, record, settings)
    places = [stage(record) for record in records if not is_right(record, record["gold"])]
    for name in STAGES:
        if name in places:
            broke[STAGES[name]] = [place == name for place in places]
    scores = {"accuracy": counts(accuracy),
              f"right (strict), by number of {unit}": counts(by_steps),
              "where wrong answers broke": counts(broke),
              "right (strict), with one thing changed": counts(changed),
              "subquestions against gold": score_subquestions(records)}
    return {section: rows for section, rows in scores.items() if rows}

def note(rows, row, hit):
    rows.setdefault(row, []).append(hit)

def note_oracles(rows, record, settings):
    """Is the answer right with one thing changed? Noted where gold has that thing."""
    gold, oracles = record["gold"], record["oracles"]
    # The calculator was switched only where that can matter. Elsewhere the answer stays.
    switched = f"calculator {'off' if settings['calculator'] else 'on'}"
    note(rows, switched, is_right(oracles.get("calculator", record), gold))
    if "gold subquestions" not in oracles:
        return
    note(rows, "gold subquestions", is_right(oracles["gold subquestions"], gold))
    if all(step["solution"] for step in record["gold_steps"]):
        # They fit only as many subquestions. With another number the answer counts as wrong.
        missing = {"answer": None}
        note(rows, "gold solutions", is_right(oracles.get("gold solutions", missing), gold))

def score_subquestions(records):
    rows, pairs = {}, []
    for record in records:
        ours = [clean(text) for text in texts(record, "Subquestion")]
        gold = [clean(step["question"]) for step in record["gold_steps"]]
        if ours and gold and all(gold):
            note(rows, "as many as gold", len(ours) == len(gold))
            note(rows, "word for word gold", ours == gold)
            pairs.append((" ".join(ours), " ".join(gold)))
    return counts(rows) | ({"BLEU-4": f"{bleu(pairs):.1f}"} if pairs else {})

def counts(rows):
    """{row: how many of its hits are True, with the 95 % interval of their share}."""
    figures = {}
    for row, hits in rows.items():
        low, high = wilson(sum(hits), len(hits))
        figures[row] = {"right": sum(hits), "n": len(hits), "low": low, "high": high}
    return figures

def in_words(figure):
    """(number, interval) of a figure, as the screen and the page print them. BLEU has no n."""
    if isinstance(figure, str):
        return figure, ""
    percent = f"{figure['right'] / figure['n']:.1%}"
    return (f"{figure['right']:,} of {figure['n']:,} = {percent:>6s}",
            f"{figure['low']:.1%} to {figure['high']:.1%}")

def show(header, scores):
    """A run's scores on the screen."""
    settings = header["settings"]
    print(f"\n{settings['method']} on {settings['dataset']}/{settings['split']}: {settings['n']} "
          f"problems, sha256 {settings['problems_sha256'][:12]}")
    for section, rows in scores.items():
        print(f"\n{section:64s} 95 % interval")
        for row, figure in rows.items():
            number, interval = in_words(figure)
            print(f"  {row:40s} {number:>22s}  {interval:>17s}".rstrip())

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

# ------------------------------------------------------------ two runs in pairs

def compare(path_a, path_b):
    """Two runs on the same problems: who is right where the other is wrong; is it luck?"""
    (a, records_a), (b, records_b) = read_predictions(path_a), read_predictions(path_b)
    if a["settings"]["problems_sha256"] != b["settings"]["problems_sha256"]:
        raise SystemExit("These runs are not of the same problems (problems_sha256 differs). "
                         "Make both with the same --dataset, --split and --limit.")
    for header, records in ((a, records_a), (b, records_b)):
        if len(records) < header["settings"]["n"]:
            raise SystemExit(f"One run is unfinished. Go on with:\n  {header['made']['command']}")
    both = wins_a = wins_b = 0
    for one, other in zip(records_a, records_b):
        right_a, right_b = is_right(one, one["gold"]), is_right(other, other["gold"])
        both += right_a and right_b
        wins_a += right_a and not right_b
        wins_b += right_b and not right_a
    p = mcnemar(wins_a, wins_b)
    print(f"A: {path_a}\nB: {path_b}\n"
          f"{len(records_a)} problems: A has {both + wins_a} right, B {both + wins_b}\n"
          f"wins of A {wins_a}, wins of B {wins_b}, both right {both}\n"
          f"exact McNemar p = {p:.2g}: " + ("luck alone hardly does this" if p < 0.05 else
                                            "no difference shown, luck alone does as much"))

# ------------------------------------------------------------ the report, a static page

STYLE = """
body { max-width: 60em; margin: auto; font: 15px/1.5 sans-serif }
td { padding-right: 1em; white-space: nowrap } th { text-align: left; padding-top: 1em }
.track { width: 16em; height: .7em; background: #eee; position: relative }
.track i { position: absolute; height: 100%; background: #9cc3e6 }
.track b { position: absolute; height: 100%; width: 2px; background: #222 }
details { margin-left: 1em }
p { margin: .3em 1em; white-space: pre-wrap; overflow-wrap: anywhere; unicode-bidi: isolate }
.Subquestion { color: #a05500 } .Solution { color: #0a62a8 } .gold { color: #56641a }
svg { width: 30em; height: 8em } path { fill: none; stroke: #0a62a8 }
"""

def page(runs):
    """The report of all runs [(path, header, records, scores)]. Every text in it is escaped."""
    parts = ['<!doctype html><meta charset="utf-8"><title>Where do the students break?</title>',
             f"<style>{STYLE}</style>"]
    for path, header, records, scores in runs:
        settings = html.escape(json.dumps(header, indent=1))
        parts.append(f"<h1>{html.escape(path.stem)}</h1>"
                     f"<details><summary>settings</summary><p>{settings}</p></details><table>")
        for section, rows in scores.items():
            parts.append(f'<tr><th colspan="4">{html.escape(section)}')
            parts += [table_row(row, figure) for row, figure in rows.items()]
        parts.append("</table>")
        for role, folder in header["made"]["students"].items():
            parts.append(curve(role, Path(folder)))
        for name, title in {**STAGES, "right": "right"}.items():
            group = [record for record in records if stage(record) == name]
            if group:
                parts.append(f"<details><summary>{title}: {len(group)}</summary>")
                parts += [dialogue_block(record) for record in group]
                parts.append("</details>")
    return "\n".join(parts)

def table_row(row, figure):
    number, interval = in_words(figure)
    bar = ""
    if interval:    # the bar is the 95 % interval, the line in it the share itself
        low, high, share = figure["low"], figure["high"], figure["right"] / figure["n"]
        bar = (f'<div class="track"><i style="left:{low:.1%};width:{high - low:.1%}"></i>'
               f'<b style="left:{share:.1%}"></b></div>')
    return f"<tr><td>{html.escape(row)}<td>{number}<td>{interval}<td>{bar}"

def dialogue_block(record):
    """A problem and its dialogue, folded; below it gold, and what was answered with an oracle."""
    lines = [("", record["problem"])]
    for turn in record["turns"]:
        lines.append((turn["kind"], f"{turn['kind']}: {turn['text']}"))
    for step in record["gold_steps"]:
        lines.append(("gold", f"gold: {step['question']} {step['solution']}"))
    lines.append(("gold", f"gold answer: {record['gold']}"))
    for name, dialogue in record.get("oracles", {}).items():
        lines.append(("gold", f"with {name}: {dialogue['answer']}"))
    block = f"<details><summary>{html.escape(record['problem'][:90])}</summary>"
    for kind, text in lines:
        block += f'<p class="{kind}" dir="auto">{html.escape(text)}</p>'
    return block + "</details>"

def curve(role, folder):
    """The training's loss as a picture, on a logarithmic scale; nothing if there is no log."""
    log = folder / "log.jsonl"
    points = []
    for line in read_lines(log, may_be_torn=True) if log.exists() else []:
        if 0 < (line.get("loss") or 0) < math.inf:    # not so for NaN
            points.append((line["step"], math.log(line["loss"])))
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
    add("--dataset", default="demo", help=DATASET_HELP)
    add("--split", default="test", help="train, valid, test; demo: long too; svamp and files: all")
    add("--limit", type=positive, help="only the first so many problems (None: all)")
    add("--data-dir", help="folder of the data sets (None: SOCRATIC_DATA, or data/)")
    add_student_flags(add)
    add("--out", default="predictions", type=Path, metavar="FOLDER",
        help="where predictions, scores and report.html go")
    add("--batch-size", type=positive, default=64, help="dialogues at once")
    add("--diagnose", action=argparse.BooleanOptionalAction, default=True,
        help="solve again with one thing changed, to see where it broke: over twice the work")
    add("--samples", type=positive, default=1,
        help=f"dialogues a problem, at temperature {SAMPLE_TEMPERATURE}; their majority answers")
    add("--rescore", nargs="+", metavar="FILE", type=Path,
        help="instead: score finished predictions again")
    add("--compare", nargs=2, metavar="FILE", type=Path,
        help="instead: two predictions of the same problems, in pairs")
    return parser.parse_args(argv)

def main(args):
    if args.compare:
        compare(*args.compare)
        return
    runs, shares = [], []
    for path in args.rescore or [predict(args)]:
        header, records = read_predictions(path)
        if not records:
            raise SystemExit(f"{path} holds no dialogue yet. Make them with:\n"
                             f"  {header['made']['command']}")
        try:
            scores = score(records, header["settings"])
        except (KeyError, TypeError, AttributeError) as error:
            raise SystemExit(f"{path} holds no whole predictions: {error!r}") from None
        show(header, scores)
        if len(records) < header["settings"]["n"]:
            print(f"{path} is unfinished: {len(records)} of {header['settings']['n']} problems")
        replace_text(path.with_suffix(".json"), json.dumps(header | {"scores": scores}, indent=1))
        print(f"\npredictions  {path}\nscores       {path.with_suffix('.json')}")
        runs.append((path, header, records, scores))
        strict = scores["accuracy"]["right (strict)"]
        shares.append(100 * strict["right"] / strict["n"])
    if len(runs) > 1:
        print(f"\n{len(runs)} runs: right (strict) {sum(shares) / len(runs):.1f} % on average, "
              f"from {min(shares):.1f} to {max(shares):.1f}")
    report = args.out.expanduser() / "report.html"
    replace_text(report, page(runs))
    print(f"to browse    {report}")

if __name__ == "__main__":
    main(parse_args())

"""
The README's tables of results are made from receipts: the scores that eval.py wrote, and how.

    python tests/tables.py                                      prints the tables
    python tests/tables.py --add predictions/NAME.json --row 'demo, decomposer and solver'
    python tests/tables.py --add predictions/NAME.json --row 'cot, seed 1' --folder contrast       (or beside, other)
    python tests/tables.py --unpack students/results/contrast/NAME.jsonl.gz

A receipt in students/results/ also holds the commit and the machine. Beside those of the contrast
lie the dialogues, compressed and without the problems; --unpack puts them together again, for
`eval.py --rescore`. A test compares the README.
"""

import argparse
import gzip
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "students" / "results"
sys.path.insert(0, str(ROOT))

import eval  # noqa: E402
from data import load_problems  # noqa: E402

KEPT = ("id", "method", "turns", "answer", "ended")    # of a dialogue; the rest is the data set's


def add(path, row, folder):
    """Keep the scores of a run as a receipt for this row of a table; of the contrast itself the dialogues too."""
    receipt = json.loads(path.read_text(encoding="utf-8").replace(f"{ROOT}/", ""))
    receipt["command"] = re.sub(r" --out \S+", "", receipt["command"])
    receipt["row"] = row
    receipt["commit"] = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                                       capture_output=True, check=True).stdout.strip()
    receipt["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    target = RESULTS / folder / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    if folder == "contrast":
        header, records, _ = eval.read_run(path.with_suffix(".jsonl"))
        lines = [header]
        for record in records:
            oracles = {name: dialogue["answer"] for name, dialogue in record.get("oracles", {}).items()}
            lines.append({name: record[name] for name in KEPT} | {"oracles": oracles})
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        target.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text, mtime=0))


def unpack(path):
    """[header, record, ...] as eval.py wrote them, from compressed dialogues and the data set."""
    header, *records = map(json.loads, gzip.decompress(path.read_bytes()).splitlines())
    settings = header["settings"]
    for record, problem in zip(records, load_problems(settings["dataset"], settings["split"])):
        assert record["id"] == problem.id
        record |= {"problem": problem.problem, "gold": problem.answer}
        record["oracles"] = {name: {"answer": answer, "gold": problem.answer}
                             for name, answer in record["oracles"].items()}
        eval.add_gold(record, problem)
    return [header, *records]


def receipts(folder=RESULTS):
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return sorted(found, key=lambda receipt: receipt["row"])


def table(folder=RESULTS):
    """The lines of a table, a receipt each."""
    lines = ["| | right, of | 95 % interval | always the most frequent | `python eval.py` |", "|---|---|---|---|---|"]
    for receipt in receipts(folder):
        rows = receipt["scores"]["accuracy"]
        strict = rows["right (strict)"]
        (constant,) = (figure for name, figure in rows.items() if name.startswith("always"))
        share, fixed = strict["right"] / strict["n"], constant["right"] / constant["n"]
        flags = receipt["command"].removeprefix("python eval.py").strip()
        lines.append(f"| {receipt['row']} | {strict['right']:,} of {strict['n']:,} = {share:.1%} | {strict['low']:.1%} to "
                     f"{strict['high']:.1%} | {fixed:.1%} | {f'`{flags}`' if flags else ''} |")
    return lines


def contrast():
    """The lines of the table of the contrast, and of what is beside it: a row for all seeds of one kind of students."""
    lines = ["| | right, seeds 1, 2, 3 | mean (least to most; of one run its 95 % interval) |", "|---|---|---|"]
    rows = {}
    for receipt in receipts(RESULTS / "contrast") + receipts(RESULTS / "beside"):
        rows.setdefault(receipt["row"].partition(", seed")[0], []).append(receipt["scores"]["accuracy"]["right (strict)"])
    for row, scores in rows.items():
        n = scores[0]["n"]
        counts = [score["right"] for score in scores]
        one = f"{scores[0]['low']:.1%} to {scores[0]['high']:.1%}"
        spread = f"{min(counts) / n:.1%} to {max(counts) / n:.1%}" if len(counts) > 1 else one
        lines.append(f"| {row} | {', '.join(map(str, counts))} of {n:,} | {sum(counts) / len(counts) / n:.1%} ({spread}) |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", metavar="FILE", type=Path, help="the .json file of a run")
    parser.add_argument("--row", help="what the row says")
    parser.add_argument("--folder", default="", help="of students/results/: contrast keeps the dialogues too")
    parser.add_argument("--unpack", metavar="FILE", type=Path, help="write predictions/NAME.jsonl from compressed dialogues")
    args = parser.parse_args()
    if args.unpack:
        out = Path("predictions") / args.unpack.stem
        out.parent.mkdir(exist_ok=True)
        out.write_text("".join(json.dumps(line) + "\n" for line in unpack(args.unpack)), encoding="utf-8")
        sys.exit(f"python eval.py --rescore {out}")
    if args.add:
        if not args.row:
            sys.exit("--add needs --row, what the row says")
        add(args.add, args.row, args.folder)
    print("\n".join([*table(), "", *contrast(), "", *table(RESULTS / "other")]))

"""
The tables of students/results/README.md are made from receipts: the scores that eval.py wrote, and how.

    python tests/tables.py                                      prints the tables
    python tests/tables.py --add predictions/NAME.json --row 'demo, decomposer and solver'
    python tests/tables.py --add predictions/NAME.json --row 'cot, seed 1' --folder contrast       (or another one)

A receipt in students/results/ also holds the commit and the machine. Beside those of the contrast
lie the dialogues, compressed and without the problems. A test compares the tables.
"""

import argparse
import gzip
import hashlib
import itertools
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

KEPT = ("turns", "answer", "ended", "oracles")    # of a dialogue; the rest is the data set's


def add(path, row, folder):
    """Keep the scores of a run as a receipt for this row of a table; of the contrast itself the dialogues too."""
    receipt = json.loads(path.read_text(encoding="utf-8").replace(f"{ROOT}/", ""))
    receipt["command"] = re.sub(r" --out \S+", "", receipt["command"])
    receipt["row"] = row
    receipt["commit"] = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                                       capture_output=True, check=True).stdout.strip()
    receipt["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    # Runs of other students have the same name; they differ in their settings.
    digest = hashlib.sha256(json.dumps(receipt["settings"]).encode()).hexdigest()[:8]
    target = RESULTS / folder / f"{path.stem}-{digest}.json"
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")
    if folder == "contrast":
        header, records = eval.read_run(path.with_suffix(".jsonl"))
        lines = [header | {"curves": {}}]
        lines += [{"id": record["problem"]["id"]} | {name: record[name] for name in KEPT} for record in records]
        text = "".join(json.dumps(line) + "\n" for line in lines).encode()
        target.with_suffix(".jsonl.gz").write_bytes(gzip.compress(text, mtime=0))


def receipts(folder=RESULTS):
    found = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.json")]
    return sorted(found, key=lambda receipt: receipt["row"])


def right(receipt):
    """The figure of the right answers. Old receipts also had a lenient one, and called this one strict."""
    rows = receipt["scores"]["accuracy"]
    return rows["right"] if "right" in rows else rows["right (strict)"]


def table(folder=RESULTS):
    """The lines of a table, a receipt each."""
    lines = ["| | right, of | 95 % interval | always the most frequent | `python eval.py` |", "|---|---|---|---|---|"]
    for receipt in receipts(folder):
        rows = receipt["scores"]["accuracy"]
        ours = right(receipt)
        (constant,) = (figure for name, figure in rows.items() if name.startswith("always"))
        share, fixed = ours["right"] / ours["n"], constant["right"] / constant["n"]
        flags = receipt["command"].removeprefix("python eval.py").strip()
        lines.append(f"| {receipt['row']} | {ours['right']:,} of {ours['n']:,} = {share:.1%} | {ours['low']:.1%} to "
                     f"{ours['high']:.1%} | {fixed:.1%} | {f'`{flags}`' if flags else ''} |")
    return lines


def by_seed(*folders):
    """The lines of a table: a row for all seeds of one kind of students."""
    lines = ["| | right, each seed | mean (least to most; of one run its 95 % interval) |", "|---|---|---|"]
    rows = {}
    for receipt in itertools.chain(*(receipts(RESULTS / folder) for folder in folders)):
        rows.setdefault(receipt["row"].partition(", seed")[0], []).append(right(receipt))
    for row, scores in rows.items():
        n = scores[0]["n"]
        counts = [score["right"] for score in scores]
        each = ", ".join(f"{count:,}" for count in counts)
        one = f"{scores[0]['low']:.1%} to {scores[0]['high']:.1%}"
        spread = f"{min(counts) / n:.1%} to {max(counts) / n:.1%}" if len(counts) > 1 else one
        lines.append(f"| {row} | {each} of {n:,} | {sum(counts) / len(counts) / n:.1%} ({spread}) |")
    return lines


def with_parts(folder):
    """The lines of a table: for each run also what eval.py says of the decomposer's part."""
    lines = ["| | right | with gold subquestions | as many subquestions as gold |", "|---|---|---|---|"]
    for receipt in receipts(RESULTS / folder):
        figures = {name: figure for group in receipt["scores"].values() for name, figure in group.items()}
        cells = (figures.get(name, {"right": None})["right"] for name in ("right", "gold subquestions", "as many as gold"))
        lines.append(f"| {receipt['row']} | " + " | ".join("" if cell is None else f"{cell:,}" for cell in cells) + " |")
    return lines


def tables():
    """All tables, as lists of lines."""
    return [table(RESULTS / "minutes"), table(), table(RESULTS / "before"), by_seed("contrast", "beside"), by_seed("splitting"),
            with_parts("equations"), table(RESULTS / "other")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", metavar="FILE", type=Path, help="the .json file of a run")
    parser.add_argument("--row", help="what the row says")
    parser.add_argument("--folder", default="", help="of students/results/: contrast keeps the dialogues too")
    args = parser.parse_args()
    if args.add:
        if not args.row:
            sys.exit("--add needs --row, what the row says")
        add(args.add, args.row, args.folder)
    print("\n\n".join("\n".join(lines) for lines in tables()))

"""
The README's table of results is made from receipts: the scores that eval.py wrote, and how.

    python tests/tables.py                                      prints the table
    python tests/tables.py --add predictions/NAME.json --row 'demo, decomposer and solver'

A receipt in students/results/ also holds the commit and the machine. A test compares the README.
"""

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "students" / "results"


def add(path, row):
    """Keep the scores of a run as a receipt for this row of the table."""
    receipt = json.loads(Path(path).read_text(encoding="utf-8").replace(f"{ROOT}/", ""))
    receipt["command"] = re.sub(r" --out \S+", "", receipt["command"])
    receipt["row"] = row
    receipt["commit"] = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True,
                                       capture_output=True, check=True).stdout.strip()
    receipt["machine"] = f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / Path(path).name).write_text(json.dumps(receipt, indent=1) + "\n", encoding="utf-8")


def receipts():
    found = [json.loads(path.read_text(encoding="utf-8")) for path in RESULTS.glob("*.json")]
    return sorted(found, key=lambda receipt: receipt["row"])


def table():
    """The lines of the table, a receipt each."""
    lines = ["| | right, of | 95 % interval | always the most frequent | `python eval.py` |", "|---|---|---|---|---|"]
    for receipt in receipts():
        rows = receipt["scores"]["accuracy"]
        strict = rows["right (strict)"]
        (constant,) = (figure for name, figure in rows.items() if name.startswith("always"))
        share, fixed = strict["right"] / strict["n"], constant["right"] / constant["n"]
        flags = receipt["command"].removeprefix("python eval.py").strip()
        lines.append(f"| {receipt['row']} | {strict['right']:,} of {strict['n']:,} = {share:.1%} | {strict['low']:.1%} to "
                     f"{strict['high']:.1%} | {fixed:.1%} | {f'`{flags}`' if flags else ''} |")
    return lines


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", metavar="FILE", help="the .json file of a run")
    parser.add_argument("--row", help="what the row says")
    args = parser.parse_args()
    if args.add:
        if not args.row:
            sys.exit("--add needs --row, what the row says")
        add(args.add, args.row)
    print("\n".join(table()))

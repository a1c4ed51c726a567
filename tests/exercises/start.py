"""
Make a copy of the code for an exercise, with its fault if it has one.

    python tests/exercises/start.py 6
    cd runs/exercise-6
"""

import ast
import shutil
import sys
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
EDITS = tomllib.loads((HERE / "edits.toml").read_text(encoding="utf-8"))


def copy_code(folder):
    folder.mkdir(parents=True)
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, folder)
    for name in ("tests", "students"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))


def apply(folder, file, after, before=None, function=None, **_):
    """Put `after` in the place of a text or of a whole function."""
    path = folder / file
    text = path.read_text(encoding="utf-8")
    if function:
        (node,) = [node for node in ast.parse(text).body if getattr(node, "name", None) == function]
        before = "\n".join(text.splitlines()[node.lineno - 1:node.end_lineno])
        after = after.strip()
    assert text.count(before) == 1, f"{before!r} stands in {file} {text.count(before)} times, not once"
    path.write_text(text.replace(before, after), encoding="utf-8")


def start(number, folder):
    copy_code(folder)
    if EDITS.get(number, {}).get("planted"):
        apply(folder, **EDITS[number])


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in "123456789":
        sys.exit("Which exercise? For example: python tests/exercises/start.py 6")
    folder = ROOT / "runs" / f"exercise-{sys.argv[1]}"
    if folder.exists():
        sys.exit(f"{folder} is there already. Rename or delete it to start afresh.")
    start(sys.argv[1], folder)
    print(f"cd {folder.relative_to(ROOT)}")

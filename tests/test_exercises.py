"""The exercises of the workshop still teach: each edit turns exactly its test red."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXERCISES = tomllib.loads((ROOT / "tests" / "exercises" / "exercises.toml").read_text(encoding="utf-8"))["exercise"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the code in which things may be broken."""
    folder = tmp_path_factory.mktemp("copy")
    for path in [*ROOT.glob("*.py"), ROOT / "pyproject.toml"]:
        shutil.copy(path, folder)
    for name in ("tests", "students"):
        shutil.copytree(ROOT / name, folder / name)
    return folder


def failing(folder, run):
    """The names of the tests that fail."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--doctest-modules", *shlex.split(run)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return set(re.findall(r"^FAILED \S+::(\w+)", done.stdout, re.M))


@pytest.mark.parametrize("exercise", EXERCISES, ids=lambda exercise: exercise["name"])
def test_an_exercise_turns_its_test_red_and_no_other(exercise, copy):
    path = copy / exercise["file"]
    text = path.read_text(encoding="utf-8")
    assert text.count(exercise["before"] + "\n") == 1, "the line of the exercise has changed"
    try:
        path.write_text(text.replace(exercise["before"], exercise["after"]), encoding="utf-8")
        assert failing(copy, exercise["run"]) == set(exercise["red"])
    finally:
        path.write_text(text, encoding="utf-8")


def test_the_workshop_names_every_exercise_and_its_test():
    text = (ROOT / "tests" / "exercises" / "README.md").read_text(encoding="utf-8")
    for exercise in EXERCISES:
        assert exercise["before"].strip() in text and all(name in text for name in exercise["red"]), exercise["name"]

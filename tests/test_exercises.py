"""The exercises of the workshop still teach: each starts as it says, and the key solves it."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from exercises.start import EDITS, apply, copy_code, start

ROOT = Path(__file__).resolve().parent.parent
TEXT, KEY = ((ROOT / "tests" / "exercises" / name).read_text(encoding="utf-8") for name in ("README.md", "KEY.md"))
SCRIPTS = ("data", "gpt", "train", "infer", "eval", "annotate")
SYMPTOMS, GUESSER = "tests/exercises/check_symptoms.py", "tests/exercises/check_guesser.py"


def key_edits():
    """What the key writes: for exercise 8 a function, for exercise 9 lines."""
    (vote,) = re.findall(r"```python\n(.*?)```", KEY, re.S)
    (diff,) = re.findall(r"```diff\n(.*?)```", KEY, re.S)
    lines = re.findall(r"-(.*\n)\+(.*\n)", diff)
    return ([{"file": "infer.py", "after": vote, "function": "vote"}],
            [{"file": "data.py", "before": before, "after": after} for before, after in lines])


# {name: (edits, the tests that are run then)}
CASES = {number: ([edit], edit["run"]) for number, edit in EDITS.items()}
CASES |= {"whole": ([], SYMPTOMS), "5 seen": ([EDITS["5"]], f"{SYMPTOMS} -k ava"), "7 seen": ([EDITS["7"]], SYMPTOMS)}
CASES |= {"8 solved": (key_edits()[0], EDITS["8"]["run"]), "9": ([], GUESSER), "9 solved": (key_edits()[1], GUESSER)}


class Failed(list):
    """A plugin of pytest that notes which tests fail."""

    def pytest_runtest_logreport(self, report):
        if report.failed:
            self.append(report.nodeid.split("::")[1].split("[")[0])


def run_cases(folder):
    """{case: (pytest's exit status, the tests that fail)} in a copy, all by this process, since torch starts slowly."""
    found = {}
    sys.dont_write_bytecode = True    # a file edited twice within a second would count as the same
    for name, (edits, run) in CASES.items():
        for edit in edits:
            apply(folder, **edit)
        for module in [*SCRIPTS, "toy", "reference", "conftest", *(m for m in sys.modules if m.startswith(("test_", "check_")))]:
            sys.modules.pop(module, None)
        path, *flags = shlex.split(run)
        failed = Failed()
        status = pytest.main([str(folder / path), "-q", "-p", "no:cacheprovider", *flags], plugins=[failed])
        found[name] = int(status), sorted(set(failed))
        for script in ROOT.glob("*.py"):
            shutil.copy(script, folder)
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    folder = tmp_path_factory.mktemp("workshop") / "copy"
    copy_code(folder)
    done = subprocess.run([sys.executable, __file__, str(folder)], capture_output=True, text=True, cwd=folder,
                          env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name, red", [
    *((number, edit["red"]) for number, edit in EDITS.items()),
    ("whole", []),
    ("5 seen", ["test_the_embedded_students_solve_avas_story"]),
    ("7 seen", ["test_dialogues_that_vote_differ"]),
    ("8 solved", []),
    ("9", ["test_a_record_without_subquestions_teaches_it_nothing", "test_it_reads_the_same_when_it_solves_a_problem",
           "test_it_sees_the_problem_and_all_subquestions_and_learns_the_answer_alone"]),
    ("9 solved", []),
])
def test_an_exercise_turns_its_tests_red_and_no_others_and_the_key_turns_them_green(name, red, found):
    assert found[name] == [1 if red else 0, sorted(red)]
    assert name not in EDITS or all(test in KEY for test in red)


def test_the_problems_text_is_far_harder_to_predict_than_what_a_decomposer_learns():
    from data import load_problems
    from gpt import GPT
    from train import collate, count_learned, make_examples, summed_loss

    model, losses = GPT.from_pretrained(ROOT / "students" / "decomposer"), []
    for learn_all in (False, True):
        examples = make_examples(load_problems("demo", "valid", 8), "decomposer", model, learn_all)
        losses.append(summed_loss(model, *collate(examples, "cpu")).item() / count_learned(examples))
    assert losses[1] > 5 * losses[0]


@pytest.mark.parametrize("number, changed", [("1", []), ("6", ["data.py"]), ("8", ["infer.py"]), ("9", [])])
def test_an_exercise_starts_from_the_code_as_it_is_or_with_its_fault(number, changed, tmp_path):
    start(number, tmp_path / "copy")
    paths = [path for path in ROOT.glob("*.py") if path.read_bytes() != (tmp_path / "copy" / path.name).read_bytes()]
    assert [path.name for path in paths] == changed


def test_the_workshop_quotes_every_edit_and_its_commands_have_flags_that_exist():
    import data
    import eval as scoring
    import infer
    import train

    text = " ".join(TEXT.split())
    for number, edit in EDITS.items():
        if not edit.get("planted"):
            assert f"`{edit['after'].strip()}` for `{edit['before'].strip()}`" in text
        assert number in "567" or f"`python -m pytest -q {edit['run']}`" in text
    commands = re.findall(r"`python (\w+)\.py([^`]*)`", text)
    assert len(commands) > 10
    for script, flags in commands:
        {"data": data, "train": train, "infer": infer, "eval": scoring}[script].parse_args(shlex.split(flags))


if __name__ == "__main__":
    print("\n" + json.dumps(run_cases(Path(sys.argv[1]))))

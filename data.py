"""
Problems, dialogues and tokens: what a student reads, and which part of it the student learns to write.

    python data.py                    the demo data set: counts, and one dialogue per role
    python data.py --dataset gsm8k    the same for gsm8k, svamp or strategyqa (downloaded once)

A solved problem is a dialogue. As text, which is all that the models ever see:

    Problem: Ava has 3 boxes with 4 pens each. She gives away 5 pens. How many pens are left?
    Subquestion: How many pens are in the boxes?
    Solution: There are 3*4 = <<3*4=12>>12 pens in the boxes.
    Subquestion: How many pens are left?
    Solution: There are 12-5 = <<12-5=7>>7 pens left.
    Answer: 7

Reads   data/<dataset>/...   the authors' files (--data-dir or SOCRATIC_DATA names another folder)
Order   records, demo stories, the three data sets, tokenizers, dialogues, batches, arithmetic, answers
"""

import argparse
import base64
import hashlib
import json
import os
import random
import re
import sys
from collections import Counter, defaultdict, namedtuple
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from pathlib import Path
from xml.etree import ElementTree

import requests
import tiktoken

DATASETS = ("demo", "gsm8k", "svamp", "strategyqa")
ROLES = ("answer", "cot", "unified", "decomposer", "solver")
IGNORE = -100  # the target of a token that is context: what cross_entropy skips by default
HERE = Path(__file__).resolve().parent


# ---------------------------------------------------------------- problem records, one JSON object a line

@dataclass
class Step:
    question: str = ""
    solution: str = ""


@dataclass
class Problem:
    id: str
    problem: str
    steps: list[Step] = field(default_factory=list)
    answer: str = ""
    source: str = "human"
    evidence: list[str] = field(default_factory=list)  # formula or facts: for a teacher's eyes (see `solutions`)

    def to_json(self):
        record = asdict(self)
        if not self.evidence:
            del record["evidence"]
        return json.dumps(record, ensure_ascii=False)

    @classmethod
    def from_json(cls, line):
        """One record; a ValueError says what is wrong with the line."""
        record = json.loads(line)
        if not isinstance(record, dict):
            raise ValueError("a record is a JSON object")
        required = {"id", "problem", "steps", "answer", "source"}
        for key in sorted(required - record.keys()):
            raise ValueError(f"the key {key!r} is missing")
        for key in sorted(record.keys() - required - {"evidence"}):
            raise ValueError(f"unknown key {key!r}")
        for key in ("id", "problem", "answer", "source"):
            if not isinstance(record[key], str):
                raise ValueError(f"{key!r} must be a string")
        if not record["problem"].strip():
            raise ValueError("'problem' is empty")
        evidence = record.get("evidence", [])
        if not isinstance(evidence, list) or not all(isinstance(fact, str) for fact in evidence):
            raise ValueError("'evidence' must be a list of strings")
        steps = record["steps"]
        if not isinstance(steps, list):
            raise ValueError("'steps' must be a list")
        for step in steps:
            if (not isinstance(step, dict) or set(step) != {"question", "solution"}
                    or not all(isinstance(text, str) for text in step.values())):
                raise ValueError("a step is {'question': string, 'solution': string}")
        return cls(**record | {"steps": [Step(**step) for step in steps]})


def read_records(path):
    """All records of a JSONL file; a broken line ends the program with `file:line` and the reason."""
    problems = []
    with open_text(path) as file:
        for n, line in enumerate(file, 1):
            if line.strip():
                try:
                    problems.append(Problem.from_json(line))
                except ValueError as error:
                    raise SystemExit(f"{path}:{n}: {error}") from None
    return problems


def open_text(path):
    if not Path(path).is_file():
        raise SystemExit(f"{path} does not exist.")
    return open(path, encoding="utf-8")


# ---------------------------------------------------------------- the demo: stories from a grammar

GIRLS = "Ava Mia Zoe Lily Emma Nora Ruby Ella Anna Maya Lucy Iris Amy Kate Rosa Lena Tara Jane Sara Nina".split()
BOYS = "Ben Tom Max Leo Sam Jack Noah Adam Luke Omar Ravi Paul Dan Eric Finn Hugo Ivan Joel Kofi Yusuf".split()
# plural: singular. Stories are written in the plural; `singular` mends the ones.
THINGS = {word + "s": word for word in (
    "pen pencil marble sticker apple orange book card coin shell stamp button cookie muffin balloon toy flower "
    "ribbon badge lemon plum egg cupcake postcard crayon bead magnet pear photo acorn candle ticket "
    "carrot pebble doll block notebook eraser bracelet").split()}
BOXES = {"boxes": "box", "bags": "bag", "baskets": "basket", "jars": "jar", "crates": "crate", "trays": "tray",
         "packs": "pack", "buckets": "bucket", "tins": "tin", "chests": "chest"}
GIFTS = {word + "s": word for word in "hat ball kite scarf cap game puzzle plant lamp cup poster rope".split()}
SINGULAR = THINGS | BOXES | GIFTS
ONES = re.compile(rf"(?<![\d*/+-])1 ({'|'.join(SINGULAR)})\b")
FRACTIONS = {3: "a third", 4: "a quarter", 5: "a fifth"}
DISTRACTORS = ("{B} was {d} years old.", "The walk home took {d} minutes.", "There were {d} houses in the street.",
               "{A} had {d} cousins.", "It was {d} degrees outside.", "{B} lived {d} miles away.",
               "The table was {d} years old.", "{A} had waited {d} days for this.")

# An event: kind, state before, state after, its numbers, wordings of the sentence, and its steps.
# A step: the expression, wordings of the subquestion, the solution.
# A, B are people; x is the amount so far, a and b the event's numbers, z the result of the step before;
# {e} is the worked expression. The past tense needs no agreement: "Ava had", "the two had".
HAVE = ("How many {items} did {A} have then?|How many {items} did {A} have after that?",
        "{A} had {e} {items}.")
LEFT = ("How many {items} did {A} have left?|How many {items} were left?|How many {items} did {A} still have?",
        "{A} had {e} {items} left.")
CASH = ("How much money did {A} have then?|How much money did {A} have after that?",
        "{A} had {e}.")
REST = ("How much money did {A} have left?|How much money was left?",
        "{A} had {e} left.")


def divide(r, x):
    """A number from 2 to 10 that divides x, or None."""
    fits = [a for a in range(2, 11) if x % a == 0 and x > a]
    return [r.choice(fits)] if fits else None


def divide_by_word(r, x):
    """The same among the fractions that have a word."""
    found = divide(r, x)
    return found if found and found[0] in FRACTIONS else None


def take(r, x):
    """A number below x, or None where x is too small."""
    return [r.randint(2, min(x - 1, 40))] if x > 3 else None


def take_groups(r, x):
    """How many groups, and how many in each, with fewer than x in all; or None."""
    if x < 10:
        return None
    a = r.randint(2, min(8, (x - 1) // 2))
    return [a, r.randint(2, (x - 1) // a)]


Event = namedtuple("Event", "kind before after draw says steps")
EVENTS = [Event(*row) for row in [
    ("have", "start", "items", lambda r, x: [r.randint(5, 60)],
     "{A} had {a} {items}.|There were {a} {items} on {A}'s desk.|{A} owned {a} {items}.", []),
    ("boxes", "start", "items", lambda r, x: [r.randint(2, 10), r.randint(2, 12)],
     "{A} had {a} {boxes} with {b} {items} in each.|{A} filled {a} {boxes} with {b} {items} each.|"
     "There were {a} {boxes} in {A}'s room. Each one held {b} {items}.",
     [("{a}*{b}", "How many {items} were in the {boxes}?|How many {items} did {A} have at first?",
       "There were {e} {items} in the {boxes}.")]),
    ("colors", "start", "items", lambda r, x: [r.randint(2, 40), r.randint(2, 40)],
     "{A} had {a} red {items} and {b} blue {items}.|{A} counted {a} small {items} and {b} big {items}.|"
     "{A} owned {a} old {items} and {b} new ones.",
     [("{a}+{b}", "How many {items} did {A} have in all?|How many {items} did {A} have at first?",
       "{A} had {e} {items} at first.")]),
    ("daily", "start", "items", lambda r, x: [r.randint(2, 12), r.randint(2, 10)],
     "{A} collected {a} {items} a day for {b} days.|Every day for {b} days {A} got {a} {items}.",
     [("{a}*{b}", "How many {items} did {A} collect?|How many {items} did {A} get in {b} days?",
       "{A} collected {e} {items}.")]),
    ("wages", "start", "money", lambda r, x: [r.randint(3, 15), r.randint(2, 8)],
     "{A} earned ${a} an hour and worked {b} hours.|{A} worked for {b} hours at ${a} an hour.",
     [("{a}*{b}", "How much money did {A} earn?|How much did {A} earn in {b} hours?",
       "{A} earned {e}.")]),
    ("saving", "start", "money", lambda r, x: [r.randint(2, 15), r.randint(2, 10)],
     "{A} saved ${a} a week for {b} weeks.|For {b} weeks {A} put ${a} a week into a piggy bank.",
     [("{a}*{b}", "How much money did {A} save?|How much did {A} save in {b} weeks?",
       "{A} saved {e}.")]),
    ("gain", "items", "items", lambda r, x: [r.randint(2, 40)],
     "{A} bought {a} more {items}.|Then {B} gave {A} {a} more {items}.|Later {A} found {a} more.|"
     "Next, {A} got another {a} {items}.",
     [("{x}+{a}", HAVE[0] + "|How many {items} did {A} have with the new ones?", HAVE[1])]),
    ("loss", "items", "items", take,
     "{A} gave {a} of the {items} to {B}.|Then {A} lost {a} {items}.|{A} sold {a} of them to {B}.|"
     "After lunch {a} of the {items} went missing.",
     [("{x}-{a}", *LEFT)]),
    ("gain-groups", "items", "items", lambda r, x: [r.randint(2, 6), r.randint(2, 10)],
     "{A} bought {a} {boxes} of {items}, with {b} {items} in each.|Then {B} brought {A} {a} {boxes} of {b} {items}.",
     [("{a}*{b}", "How many {items} were in the new {boxes}?|How many {items} did the {boxes} hold?",
       "The {boxes} held {e} {items}."), ("{x}+{z}", *HAVE)]),
    ("loss-groups", "items", "items", take_groups,
     "{A} gave {b} {items} to each of {a} friends.|Then {a} friends took {b} {items} each.",
     [("{a}*{b}", "How many {items} did the friends get?|How many {items} went to the friends?",
       "The friends got {e} {items}."), ("{x}-{z}", *LEFT)]),
    ("half", "items", "items", lambda r, x: [] if x % 2 == 0 else None,
     "{A} gave half of the {items} to {B}.|Then {A} sold half of them.|Half of the {items} broke.", [("{x}/2", *LEFT)]),
    ("grow", "items", "items", lambda r, x: [r.randint(2, 4)],
     "A month later {A} had {a} times as many {items}.|By the summer {A} had {a} times that many {items}.",
     [("{x}*{a}", HAVE[0] + "|How many {items} did {A} have later?", HAVE[1])]),
    ("fraction", "items", "items", divide_by_word,
     "{A} gave {fraction} of the {items} to {B}.|Then {fraction} of the {items} got lost.",
     [("{x}/{a}", "How many {items} were gone?|How many {items} is {fraction} of {x}?",
       "{e} {items} were gone."),
      ("{x}-{z}", *LEFT)]),
    ("more-than", "items", "items of B", lambda r, x: [r.randint(2, 40)],
     "{B} had {a} more {items} than {A}.|{B} had {a} {items} more than {A}.",
     [("{x}+{a}", "How many {items} did {B} have?", "{B} had {e} {items}.")]),
    ("fewer-than", "items", "items of B", take,
     "{B} had {a} fewer {items} than {A}.|{B} had {a} {items} less than {A}.",
     [("{x}-{a}", "How many {items} did {B} have?", "{B} had {e} {items}.")]),
    ("times-as-many", "items", "items of B", lambda r, x: [r.randint(2, 4)],
     "{B} had {a} times as many {items} as {A}.|{B} had {a} times that many {items}.",
     [("{x}*{a}", "How many {items} did {B} have?", "{B} had {e} {items}.")]),
    ("together", "items", "items of both", lambda r, x: [r.randint(2, 20)],
     "{B} had {a} more {items} than {A}. They put all their {items} together.|"
     "{B} came with {a} {items} more than {A} had, and they made one big pile.",
     [("{x}+{a}", "How many {items} did {B} have?", "{B} had {e} {items}."),
      ("{x}+{z}", "How many {items} did {A} and {B} have together?|How many {items} did the two have in all?",
       "Together they had {e} {items}.")]),
    ("pack", "items", "boxes", divide,
     "{A} packed all the {items} into {boxes} of {a}.|{A} put the {items} into {boxes}, {a} in each.",
     [("{x}/{a}", "How many {boxes} did {A} fill?|How many {boxes} were there?",
       "{A} filled {e} {boxes}.")]),
    ("share", "items", "end", divide,
     "{A} shared all the {items} equally among {a} friends.|{a} friends divided the {items} fairly.",
     [("{x}/{a}", "How many {items} did each friend get?", "Each friend got {e} {items}.")]),
    ("sell", "items", "money", lambda r, x: [r.randint(2, 5)],
     "{A} sold all the {items} for ${a} each.|All of the {items} were sold at ${a} each.",
     [("{x}*{a}", "How much money did {A} get?|How much money did the {items} bring?",
       "{A} got {e}.")]),
    ("earn", "money", "money", lambda r, x: [r.randint(2, 40)],
     "{A} earned ${a} more for washing cars.|Then an uncle gave {A} ${a}.|{A} got ${a} for helping a neighbor.",
     [("{x}+{a}", *CASH)]),
    ("spend", "money", "money", take,
     "{A} spent ${a} on lunch.|Then {A} paid ${a} for a bus ticket.|{A} lost ${a} on the way.", [("{x}-{a}", *REST)]),
    ("buy", "money", "money", take_groups,
     "{A} bought {a} {gifts} for ${b} each.|Then {A} paid ${b} each for {a} {gifts}.",
     [("{a}*{b}", "How much did the {gifts} cost?|How much did {A} pay for the {gifts}?",
       "The {gifts} cost {e}."),
      ("{x}-{z}", *REST)]),
    ("spend-all", "money", "gifts", divide,
     "{A} spent all the money on {gifts} that cost ${a} each.|With all the money {A} bought {gifts} at ${a} each.",
     [("{x}/{a}", "How many {gifts} did {A} buy?", "{A} bought {e} {gifts}.")]),
    ("split", "money", "end", divide,
     "{A} shared the money equally among {a} cousins.|{a} cousins split the money evenly.",
     [("{x}/{a}", "How much money did each cousin get?", "Each cousin got {e}.")]),
]]


def make_story(rng, n_steps):
    """One demo problem with `n_steps` steps, and the key of its events and numbers; None from a dead end."""
    people = rng.sample(GIRLS + BOYS, 6)
    boxes, gifts = rng.sample(list(BOXES), 5), rng.sample(list(GIFTS), 4)
    words = {"A": people.pop(), "items": rng.choice(list(THINGS))}
    hero, state, kinds, x, key, sentences, steps = words["A"], "start", set(), 0, [], [], []

    def word(wordings):
        return rng.choice(wordings.split("|")).format(**words)

    while len(steps) < n_steps:
        room = n_steps - len(steps)
        fits = [event for event in EVENTS
                if event.before == state and len(event.steps) <= room and event.kind not in kinds
                and (event.after != "end" or len(event.steps) == room)
                and (" of " not in event.after or words["A"] == hero)]
        if not fits:
            return None
        kind, _, after, draw, says, moves = rng.choice(fits)
        if (numbers := draw(rng, x)) is None:
            return None
        words |= dict(zip("ab", numbers)) | {"x": x, "B": people[-1], "boxes": boxes[-1], "gifts": gifts[-1]}
        if kind == "fraction":
            words["fraction"] = FRACTIONS[numbers[0]]
        kinds.add(kind)  # every kind once, and the story passes to somebody else once at most
        key.append(f"{kind} {numbers}")
        sentences.append(word(says))
        if kind == "have":
            x = numbers[0]
        for expression, asks, solution in moves:
            expression = expression.format(**words)
            words["z"] = result = int(calculate(expression))
            dollar = "$" if after == "money" or state == "money" and after != "gifts" else ""
            words["e"] = f"{expression} = {dollar}<<{expression}={result}>>{result}"
            steps.append(Step(word(asks), capital(solution.format(**words))))
            x = result
        if not 0 < x <= 300 or min(len(people), len(boxes), len(gifts)) < 2:
            return None
        if after == "items of B":
            words["A"] = people.pop()
        elif after == "items of both":
            words["A"], _ = "the two", people.pop()
        elif after in ("boxes", "gifts"):
            words["items"] = words[after]
            {"boxes": boxes, "gifts": gifts}[after].pop()
        elif kind in ("boxes", "gain-groups"):
            boxes.pop()
        elif kind == "buy":
            gifts.pop()
        state = "items" if after.startswith("items") or after in ("boxes", "gifts") else after
    if rng.random() < 0.5:
        steps[-1].question = re.sub(r" (then|after that)\?$", " in the end?", steps[-1].question)
    if rng.random() < 0.4:
        distractor = rng.choice(DISTRACTORS).format(A=hero, B=people[0], d=rng.randint(3, 50))
        sentences.insert(rng.randint(1, len(sentences)), distractor)
    for step in steps:
        step.question, step.solution = singular(step.question), singular(step.solution)
    problem = " ".join(capital(sentence) for sentence in sentences) + " " + steps[-1].question
    return Problem("", singular(problem), steps, str(x), "demo"), "; ".join(key)


def singular(text):
    """
    >>> singular("Ava had 11 pens, 1 boxes and 5-4 = <<5-4=1>>1 apples.")
    'Ava had 11 pens, 1 box and 5-4 = <<5-4=1>>1 apple.'
    """
    return ONES.sub(lambda match: "1 " + SINGULAR[match[1]], text)


def capital(text):
    return text[:1].upper() + text[1:]


def make_demo(split, n, seed=0):
    """
    `n` demo problems of a split, the same ones for the same seed.

    The split of a story is decided by a sha256 of its events and numbers; names, wording and the distractor are
    left out. So no story of the test split, however worded, can be generated for training.
    """
    rng, problems, seen = random.Random(f"{split}-{seed}"), [], set()
    while len(problems) < n:
        n_steps = rng.choice((7, 8)) if split == "long" else rng.choice((2, 2, 2, 3, 3, 3, 4, 4, 5, 6))
        if (story := make_story(rng, n_steps)) is None:
            continue
        problem, key = story
        bucket = int(hashlib.sha256(key.encode()).hexdigest(), 16) % 10
        home = "test" if bucket == 0 else "valid" if bucket == 1 else "train"
        if (split == "long" or split == home) and key not in seen:
            seen.add(key)
            problem.id = f"demo-{split}-{len(problems)}"
            problems.append(problem)
    return problems


# ---------------------------------------------------------------- the data sets

GITHUB = "https://raw.githubusercontent.com/"
GSM8K = GITHUB + "openai/grade-school-math/master/grade_school_math/data/"
FILES = {  # path below the data folder: (address, sha256, or None where only the number of rows is checked)
    "gsm8k/train_socratic.jsonl": (GSM8K + "train_socratic.jsonl", None),
    "gsm8k/train.jsonl": (GSM8K + "train.jsonl", "17f347dc51477c50d4efb83959dbb7c56297aba886e5544ee2aaed3024813465"),
    "gsm8k/test_socratic.jsonl":
        (GSM8K + "test_socratic.jsonl", "c96673362fa7a699f4836a9b6474a067448f95fe58064727501ee63ba4c3fdb6"),
    "gsm8k/test.jsonl": (GSM8K + "test.jsonl", "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"),
    "svamp/SVAMP.json": (GITHUB + "arkilpatel/SVAMP/main/SVAMP.json",
                         "5be77703a6d891ae476d7c082787ad361392aa02453b132516cdd5f4e7934e3e"),
    "asdiv/ASDiv.xml": (GITHUB + "chaochun/nlu-asdiv-dataset/master/dataset/ASDiv.xml",
                        "ef8904068482919ac48c8eeaaf6df344b8a308ba66d048c2d4d87eab82dc4929"),
    "strategyqa/train.json": (GITHUB + "eladsegal/strategyqa/main/data/strategyqa/train.json",
                              "0f72560b8a6fad3db847d2f1a7524fb087297843bb45a8d3245ffd68cbe0de12"),
    "strategyqa/dev.json": (GITHUB + "eladsegal/strategyqa/main/data/strategyqa/dev.json",
                            "0d94842ffb022db8fd5ecd2168b785d5cf67f6faf64f665476bad544a3eb9dde"),
}


def find_file(name, data_dir=None):
    """The path of a data file, downloaded first if it is not there."""
    path = Path(data_dir or os.environ.get("SOCRATIC_DATA") or "data") / name
    if not path.is_file():
        download(*FILES[name], path)
    return path


def download(url, sha256, path):
    """Fetch `url` to `path`: under a temporary name, going on where an earlier try stopped, checked, then renamed."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        with requests.get(url, headers={"Range": f"bytes={have}-"} if have else {}, stream=True, timeout=30) as reply:
            if reply.status_code != 416:  # 416: nothing is left to fetch
                reply.raise_for_status()
                with open(part, "ab" if reply.status_code == 206 else "wb") as file:
                    for chunk in reply.iter_content(1 << 16):
                        file.write(chunk)
    except (requests.RequestException, OSError) as error:
        raise SystemExit(f"Cannot download {url}\n  {type(error).__name__}: {error}\n"
                         f"  Offline? Fetch that address on another machine and put the file at {path}") from None
    found = hashlib.sha256(part.read_bytes()).hexdigest()
    if sha256 and found != sha256:
        part.unlink()
        raise SystemExit(f"{url}\n  is not the file this code knows (sha256 {found}, not {sha256}).\n"
                         f"  Try again; if that persists, put the right file at {path}")
    part.replace(path)
    print(f"downloaded {path}", file=sys.stderr)


def load_problems(dataset, split, data_dir=None, limit=None, annotations=None):
    """
    The problems of one split, in a fixed order.

    dataset      demo, gsm8k, svamp or strategyqa
    split        train, valid or test; demo also has long (7 and 8 steps), svamp also all (all 1,000)
    limit        only the first so many; demo's train split is generated, so there it may be any number
    annotations  a JSONL file of records whose steps take the place of the data set's own, joined by id
    """
    if dataset not in DATASETS:
        raise SystemExit(f"Unknown data set {dataset!r}. There are: {', '.join(DATASETS)}")
    splits = {"train", "valid", "test"} | {"demo": {"long"}, "svamp": {"all"}}.get(dataset, set())
    if split not in splits:
        raise SystemExit(f"{dataset} has no split {split!r}. There are: {', '.join(sorted(splits))}")
    if dataset == "demo":
        n = {"train": 20_000, "valid": 500, "test": 1_000, "long": 500}[split]
        problems = make_demo(split, limit if limit and (split == "train" or limit < n) else n)
    else:
        problems = {"gsm8k": load_gsm8k, "svamp": load_svamp, "strategyqa": load_strategyqa}[dataset](split, data_dir)
    if annotations:
        by_id = {record.id: record for record in read_records(annotations)}
        matched = [by_id[problem.id] for problem in problems if problem.id in by_id]
        print(f"{annotations}: {len(by_id)} annotations, {len(matched)} match the "
              f"{len(problems)} problems of {dataset}/{split}", file=sys.stderr)
        problems = matched
    return problems[:limit]


def load_gsm8k(split, data_dir):
    part = "test" if split == "test" else "train"
    try:
        path, rows = find_file(f"gsm8k/{part}_socratic.jsonl", data_dir), {"train": 7473, "test": 1319}[part]
    except SystemExit as error:  # no Socratic file
        path = find_file(f"gsm8k/{part}.jsonl", data_dir)
        print(f"warning: {error}\n  Using {path}: its steps have no subquestions; only `answer` and `cot` learn\n"
              "  from it. The Socratic roles need annotations: python annotate.py --dataset gsm8k", file=sys.stderr)
    problems = []
    with open_text(path) as file:
        for n, line in enumerate(file):
            try:
                row = json.loads(line)
                text, answer = row["answer"].split("#### ")
                steps = [Step(*line.split(" ** ")) if " ** " in line else Step("", line)
                         for line in text.strip("\n").split("\n") if line.strip()]
                problems.append(Problem(f"gsm8k-{part}-{n}", row["question"], steps, answer.replace(",", "")))
            except (ValueError, KeyError, TypeError) as error:
                raise SystemExit(f"{path}:{n + 1}: not a row of GSM8K ({error!r})") from None
    if "_socratic" in path.name and len(problems) != rows:
        raise SystemExit(f"{path} has {len(problems)} rows, not {rows}. Delete it to have it downloaded again.")
    return problems[:-512] if split == "train" else problems[-512:] if split == "valid" else problems


def load_svamp(split, data_dir):
    """Training: ASDiv problems of two or more operations. Test: SVAMP's 237 of two operators; `all`: its 1,000."""
    if split in ("test", "all"):
        rows = json.loads(find_file("svamp/SVAMP.json", data_dir).read_text(encoding="utf-8"))
        operators = re.compile(r" [-+*/] ")
        return [Problem(f"svamp-{row['ID']}", join_question(row["Body"], row["Question"]),
                        answer=calculate(str(row["Answer"])), evidence=[row["Equation"]])
                for row in rows if split == "all" or len(operators.findall(row["Equation"])) == 2]
    problems, n_left_out = [], 0
    for row in ElementTree.parse(find_file("asdiv/ASDiv.xml", data_dir)).getroot().iter("Problem"):
        formula, answer = row.findtext("Formula").strip(), row.findtext("Answer")
        if len(re.findall(r"[-+*/]", formula)) < 2:
            continue
        if not (number := re.fullmatch(r"\s*(-?\d+(\.\d+)?)\s*(\([^()]*\))?\s*", answer)):
            n_left_out += 1
            continue
        expression, _, value = formula.partition("=")
        single = calculate(expression) is not None and calculate(expression) == calculate(value)
        steps = [Step("", f"{expression.strip()} = <<{expression.strip()}={calculate(value)}>>{calculate(value)}")]
        text = join_question(row.findtext("Body"), row.findtext("Question"))
        problems.append(Problem(f"svamp-asdiv-{row.get('ID')}", text, steps if single else [], calculate(number[1]),
                                evidence=[formula]))
    print(f"svamp/{split}: of {n_left_out + len(problems)} ASDiv problems with two or more operations {len(problems)} "
          f"serve, every tenth as valid; the other {n_left_out} have no plain number as answer", file=sys.stderr)
    return [p for i, p in enumerate(problems) if (i % 10 == 9) == (split == "valid")]


def join_question(body, question):
    """
    >>> join_question("He had 4 pens. If he lost 1", "How many are left?")
    'He had 4 pens. If he lost 1, how many are left?'
    >>> join_question("He lost 1 pen", "How many are left?")
    'He lost 1 pen. How many are left?'
    """
    body, question = body.strip(), question.strip()
    if body.endswith((".", "?", "!", ",", '"')):
        return f"{body} {question}"
    if re.search(r"(^|[.?!] )If [^.?!]*$", body):
        return f"{body}, {question[:1].lower()}{question[1:]}"
    return f"{body}. {question}"


def load_strategyqa(split, data_dir):
    name = "dev" if split == "test" else "train"
    rows = json.loads(find_file(f"strategyqa/{name}.json", data_dir).read_text(encoding="utf-8"))
    problems = [Problem(f"strategyqa-{row['qid']}", row["question"],
                        [Step(re.sub(r"#(\d+)", r"answer \1", question)) for question in row["decomposition"]],
                        "yes" if row["answer"] else "no", evidence=row["facts"]) for row in rows]
    return problems[:1832] if split == "train" else problems[-229:] if split == "valid" else problems


# ---------------------------------------------------------------- tokenizers

END = "<|endoftext|>"
# Single digits, so that numbers are copied digit by digit; <<, =, >> stand alone. Read by `re` and by tiktoken.
TINY_PATTERN = r"<<|>>|[=\n\d<>]|'(?:s|t|re|ve|m|ll|d)\b| ?[^\W\d_]+| ?(?:[^\w\s=<>]|_)+| (?=\d)|\s+(?!\S)|\s+"


def get_tokenizer(name):
    """`gpt2`: OpenAI's 50,257 tokens (tiktoken downloads them once). `tiny`: our 2,048, from students/."""
    if name == "gpt2":
        try:
            return tiktoken.get_encoding("gpt2")
        except (requests.RequestException, OSError) as error:
            raise SystemExit(f"Cannot load GPT-2's tokenizer: {type(error).__name__}\n  It needs the network once. Run "
                             "this where there is network, with the environment variable TIKTOKEN_CACHE_DIR naming\n"
                             "  a folder, and copy that folder here: python -c 'import tiktoken; "
                             "tiktoken.get_encoding(\"gpt2\")'") from None
    if name == "tiny":
        with open_text(HERE / "students" / "tiny.tiktoken") as file:
            ranks = {base64.b64decode(token): int(rank) for token, rank in map(str.split, file)}
        return tiktoken.Encoding("tiny", pat_str=TINY_PATTERN, mergeable_ranks=ranks, special_tokens={END: len(ranks)})
    raise SystemExit(f"Unknown tokenizer {name!r}. There are: gpt2, tiny")


def train_bpe(texts, n_tokens):
    """
    Byte-pair encoding (Sennrich et al., 2016): begin with the 256 bytes, then merge the most frequent pair of
    neighbours into a token again and again. Returns {bytes: rank}.
    """
    pieces = Counter(piece for text in texts for piece in re.findall(TINY_PATTERN, text))
    words = [([bytes([b]) for b in piece.encode()], n) for piece, n in pieces.items()]
    ranks = {bytes([b]): b for b in range(256)}
    counts, where = Counter(), defaultdict(set)   # pair -> how often, pair -> numbers of the words that hold it
    for i, (word, n) in enumerate(words):
        for pair in zip(word, word[1:]):
            counts[pair] += n
            where[pair].add(i)
    while len(ranks) < n_tokens:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        ranks.setdefault(b"".join(best), len(ranks))   # two pairs can spell the same token
        for i in where.pop(best):
            word, n = words[i]
            for pair in zip(word, word[1:]):
                counts[pair] -= n
            j = 0
            while j < len(word) - 1:
                if (word[j], word[j + 1]) == best:
                    word[j:j + 2] = [word[j] + word[j + 1]]
                j += 1
            for pair in zip(word, word[1:]):
                counts[pair] += n
                where[pair].add(i)
        del counts[best]
    return ranks


# ---------------------------------------------------------------- the dialogue, and who learns which part

@dataclass(frozen=True)
class Segment:
    text: str
    learned: bool  # True: the student learns to write it; False: it is given as context


def clean(text):
    """One line: white space collapsed, since a newline ends a turn."""
    return " ".join(text.split())


def solutions(problem, role):
    """The solutions that a role learns: those of the steps, or StrategyQA's facts for its chain of thought."""
    texts = [step.solution for step in problem.steps]
    if role == "cot" and not any(texts) and problem.answer in ("yes", "no"):
        return problem.evidence
    return texts


def can_learn(problem, role):
    """Whether the record holds everything that the role learns to write."""
    asks = bool(problem.steps) and all(clean(step.question) for step in problem.steps)
    solves = [bool(clean(text)) for text in solutions(problem, role)]
    return (role == "decomposer" or bool(clean(problem.answer))) and {
        "answer": True,
        "cot": bool(solves) and all(solves),
        "decomposer": asks,
    }.get(role, asks and all(solves))


def segments(problem, role):
    """
    A solved problem as the list of segments that a student of this role reads and writes.

    | role       | sees                             | learns to write                                |
    | answer     | problem                          | answer                                         |
    | cot        | problem                          | solutions, answer                              |
    | unified    | problem                          | subquestion 1, solution 1, ..., answer         |
    | decomposer | problem                          | subquestions (it never sees a solution)        |
    | solver     | problem, subquestions one by one | solution 1..n, answer                          |

    A label (`Solution:`) is learned where the role has a choice and given where it has none. The text after a label
    begins with a space, as GPT-2's tokens do. A turn ends with a newline, the last one with the end token instead
    (`encode` adds it).
    """
    parts = [Segment(f"Problem: {clean(problem.problem)}\n", False)]
    questions = [step.question for step in problem.steps]
    if role == "decomposer":
        turns = [("Subquestion:", text) for text in questions]
    elif role == "answer":
        turns = []
    elif role == "cot":
        turns = [("Solution:", text) for text in solutions(problem, role)]
    else:
        turns = [turn for step in problem.steps
                 for turn in (("Subquestion:", step.question), ("Solution:", step.solution))]
    if role != "decomposer":
        turns.append(("Answer:", problem.answer))
    for i, (label, text) in enumerate(turns):
        stop = "\n" if i < len(turns) - 1 else ""
        chooses = role in ("cot", "unified", "decomposer")
        parts.append(Segment(label, chooses))
        parts.append(Segment(f" {clean(text)}{stop}", chooses or label != "Subquestion:"))
    return parts


def tokenize(text, tokenizer):
    """
    Token ids of one segment, cut after every `=` and `>>` of a calculator annotation: where the calculator takes the
    pen while a student writes, the tokens are then those of training.
    """
    return [i for piece in re.split(r"(?<=>>)|(?<==)(?=[^<>=]*>>)", text) for i in tokenizer.encode_ordinary(piece)]


def encode(parts, tokenizer):
    """
    (ids, targets), both of length T: targets[t] is the token that follows ids[t] if the student learns to write
    it, else IGNORE. The end token is the last target.
    """
    ids, learned = [], []
    for part in parts:
        tokens = tokenize(part.text, tokenizer)
        ids += tokens
        learned += [part.learned] * len(tokens)
    ids.append(tokenizer.eot_token)
    learned.append(parts[-1].learned)
    return ids[:-1], [i if yes else IGNORE for i, yes in zip(ids[1:], learned[1:])]


def show(parts, color=False):
    """The dialogue as text with its learned parts marked: green on a terminal, ‹...› elsewhere."""
    start, stop = ("\033[32m", "\033[0m") if color else ("‹", "›")
    text = "".join(f"{start}{part.text}{stop}" if part.learned else part.text for part in parts)
    return text.replace(f"{stop}{start}", "").replace(f"\n{stop}", f"{stop}\n")


def batches(examples, n_tokens, rng):
    """
    Cut the examples [(ids, targets)] into lists of example numbers: every example exactly once, rows of nearly the
    same length together (so that almost nothing is padding), at most `n_tokens` tokens with padding, in random order.
    """
    order = list(range(len(examples)))
    rng.shuffle(order)  # equal lengths meet in a new company every epoch
    order.sort(key=lambda i: len(examples[i][0]))
    groups, group = [], []
    for i in order:
        if group and (len(group) + 1) * len(examples[i][0]) > n_tokens:
            groups.append(group)
            group = []
        group.append(i)
    groups.append(group)
    rng.shuffle(groups)
    return groups


# ---------------------------------------------------------------- arithmetic and answers

NUMBER = r"\d+(?:,\d{3})*(?:\.\d+)?|\.\d+"


def calculate(expression):
    """
    The value of an arithmetic expression as the data writes it, or None for what is not arithmetic.

    Exact inside (fractions), no `eval`; at most 200 characters. Knows + - * / ( ), decimals, percent, thousands
    commas and x-like signs. A fraction without an end is rounded to 2 decimals, or to 2 significant digits below 0.1.

    >>> calculate("2*(3+4)"), calculate("5/2"), calculate("1,000*20%"), calculate("1/3"), calculate("1/0")
    ('14', '2.5', '200', '0.33', None)
    """
    if len(expression) > 200:
        return None
    text = expression.translate(str.maketrans("×÷−–", "*/--")).replace("$", "").replace(" ", "")
    tokens = re.findall(rf"{NUMBER}|[-+*/()%]", text)
    if "".join(tokens) != text:
        return None
    tokens.append("end")
    try:
        value = _sum(tokens)
    except (ZeroDivisionError, SyntaxError, RecursionError):
        return None
    return format_number(value) if tokens == ["end"] else None


def _sum(tokens):      # sum = product {(+ | -) product}
    value = _product(tokens)
    while tokens[0] in "+-":
        value = value + _product(tokens) if tokens.pop(0) == "+" else value - _product(tokens)
    return value


def _product(tokens):  # product = factor {(* | /) factor}
    value = _factor(tokens)
    while tokens[0] in "*/":
        value = value * _factor(tokens) if tokens.pop(0) == "*" else value / _factor(tokens)
    return value


def _factor(tokens):   # factor = {-} (number | "(" sum ")") {%}
    token = tokens.pop(0)
    if token == "-":
        return -_factor(tokens)
    if token == "(":
        value = _sum(tokens)
        if tokens.pop(0) != ")":
            raise SyntaxError
    elif token[0] in ".0123456789":
        value = Fraction(token.replace(",", ""))
    else:
        raise SyntaxError
    while tokens[0] == "%":
        tokens.pop(0)
        value /= 100
    return value


def format_number(value):
    """
    >>> format_number(Fraction(24)), format_number(Fraction(1, 2)), format_number(Fraction(200, 3))
    ('24', '0.5', '66.67')
    """
    rest = value.denominator
    for prime in (2, 5):
        while rest % prime == 0:
            rest //= prime
    digits = 0
    if rest == 1:
        while (value * 10**digits).denominator != 1 and digits < 12:
            digits += 1
    else:
        digits = 2
        while 0 < abs(value) * 10**digits < 10 and digits < 12:
            digits += 1
    scaled = round(abs(value) * 10**digits)
    text = str(scaled // 10**digits)
    if digits:
        text = f"{text}.{scaled % 10**digits:0{digits}d}".rstrip("0").rstrip(".")
    return "-" + text if value < 0 and text != "0" else text


def extract_answer(text, lenient=False):
    r"""
    The answer of the first answer block (`Answer: ...` or `#### ...`), normalised, or None. Text after it is ignored.
    lenient: where there is no block, the last number of the text, or its last yes or no.

    >>> extract_answer("so she has\nAnswer: $1,200.\nProblem: ...")
    '1200'
    >>> extract_answer("She has 18 apples"), extract_answer("She has 18 apples", lenient=True)
    (None, '18')
    """
    block = re.search(r"(?:\bAnswer:|####)[ \t]*([^\n]*)", text)
    if block:
        value = block[1].rsplit("=", 1)[-1]
        if word := re.match(r"\W*(yes|no|true|false)\b(?! one\b)", value, re.IGNORECASE):
            return {"true": "yes", "false": "no"}.get(word[1].lower(), word[1].lower())
        return _number(re.search(r"[-−]?[ $€£]*[.,\d][\d.,:/^%−×*-]*", value))
    if not lenient:
        return None
    if numbers := list(re.finditer(rf"(?:(?<![\w.,)])[-−])?[ $€£]*(?:{NUMBER})", text)):
        return _number(numbers[-1])
    words = re.findall(r"\b(yes|no)\b(?=[.,;!]|\W*$)", text, re.IGNORECASE)
    return words[-1].lower() if words else None


def _number(match):
    """A matched number, written as `format_number` does; None where it is none: 5-10, 3:30, 1.2.3."""
    if not match:
        return None
    text = re.sub(r"[ $€£]", "", match[0]).rstrip(".,:%-").replace("−", "-")
    if not re.fullmatch(rf"-?(?:{NUMBER})(?:/(?:{NUMBER}))?", text):
        return None
    return calculate(text)


def same_answer(a, b):
    """
    Whether two answers are the same number or the same word. None, an answer that was not found, equals nothing.

    >>> same_answer("18.0", "18"), same_answer("yes", "Yes"), same_answer(None, None)
    (True, True, False)
    """
    if a is None or b is None:
        return False
    x, y = calculate(a), calculate(b)
    return a.strip().lower() == b.strip().lower() if x is None or y is None else x == y


# ---------------------------------------------------------------- the command

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Count a data set's problems and show one dialogue per role.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--dataset", default="demo", choices=DATASETS, help="which problems")
    parser.add_argument("--data-dir", help="folder of the data sets (None: SOCRATIC_DATA, or data/)")
    parser.add_argument("--annotations", help="teacher annotations (JSONL) to join to the training problems by id")
    parser.add_argument("--role", choices=ROLES, help="show this role only (None: all)")
    parser.add_argument("--limit", type=int, default=1, help="how many training problems to show")
    parser.add_argument("--train-tokenizer", metavar="FILE",
                        help="instead: train the tiny tokenizer on the training splits of demo, gsm8k and strategyqa")
    return parser.parse_args(argv)


def main(args):
    if args.train_tokenizer:
        problems = [p for name in ("demo", "gsm8k", "strategyqa") for p in load_problems(name, "train", args.data_dir)]
        texts = [part.text for p in problems for part in segments(p, "cot") + segments(p, "decomposer")[1:]]
        lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in train_bpe(texts, 2047).items())
        Path(args.train_tokenizer).write_text("".join(lines), encoding="utf-8")
        return
    color = sys.stdout.isatty()
    tokenizer = get_tokenizer("tiny")
    for split in ("train", "valid", "test", "long" if args.dataset == "demo" else "all"):
        if split == "all" and args.dataset != "svamp":
            continue
        annotations = args.annotations if split == "train" else None
        problems = load_problems(args.dataset, split, args.data_dir, annotations=annotations)
        if split == "train":
            examples = problems
        steps = Counter(len(problem.steps) for problem in problems)
        print(f"{args.dataset}/{split:5s} {len(problems):6,} problems | by number of steps: "
              + " ".join(f"{n}:{count:,}" for n, count in sorted(steps.items())))
    for role in [args.role] if args.role else ROLES:
        fits = [problem for problem in examples if can_learn(problem, role)]
        print(f"\n{role}: {len(fits):,} of {len(examples):,} training problems hold what it learns to write "
              f"(marked {'green' if color else '‹so›'})")
        for problem in fits[:args.limit]:
            ids, targets = encode(segments(problem, role), tokenizer)
            print(show(segments(problem, role), color))
            print(f"[{len(ids)} tokens, {sum(t != IGNORE for t in targets)} learned]")


if __name__ == "__main__":
    main(parse_args())

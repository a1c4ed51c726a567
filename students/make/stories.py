"""
Write a file of generated stories. The embedded demo was made by the first of these commands:

    python students/make/stories.py students/demo.jsonl.gz
    python students/make/stories.py world.jsonl --level world --train 30000 --seed 1
    python students/make/stories.py counted.jsonl --steps 2 3 4 5 6 --distractors 0 2

The third file is for experiments: its test stories have exactly 1, 2, ..., 8 steps, 500 stories
each, and each is told twice, with two sentences that no step needs and without them.

Reads   stories.toml, which explains itself, and world.toml
Writes  records (see data.py); ids such as demo-test-17 hold the split
"""

import argparse
import gzip
import itertools
import math
import random
import re
import sys
from functools import cache
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import Problem, Step, calculate, read_toml, replace_file, split_of

@cache
def story_table(level):
    """The table of stories.toml, which explains it; for the world, world.toml is merged into it."""
    table = read_toml("make/stories.toml")
    if level == "world":
        table = merge(table, read_toml("make/world.toml"))
    columns = {kind: names.split() for kind, names in table["columns"].items()}
    words = {kind: [read_word(row, columns[kind]) for row in rows.split()]
             for kind, rows in table["words"].items()}
    events = []
    for name, event in table["event"].items():
        used = re.findall(r"{(\w+)}", str(event))
        kinds = [kind for kind, own in columns.items() if kind != "item" and {*own} & {*used}]
        events.append(table["unsaid"] | event | {"name": name, "kinds": kinds})
    return table | {"columns": columns, "words": words, "event": events}

def merge(old, new):
    """Two tables as one: lists and texts of the same name are joined, a number is replaced."""
    if isinstance(old, dict):
        return old | {key: merge(old[key], new[key]) if key in old else new[key] for key in new}
    if isinstance(old, str):
        return f"{old} {new}"
    return old + new if isinstance(old, list) else new

def read_word(row, columns):
    """{column: text} for a word of the table, such as tea_cup/tea_cups, or in short tea_cup."""
    texts = row.replace("_", " ").split("/")
    if len(texts) < len(columns):
        texts.append(texts[-1] + "s")
    return dict(zip(columns, texts, strict=True))

def draw_number(rng, rule):
    """A number by its rule in the table: "2-40", "10-90 by 10", or one of "2 5 10"."""
    if "-" not in rule:
        return int(rng.choice(rule.split()))
    low, high, *by = map(int, re.findall(r"\d+", rule))
    return rng.randrange(low, high + 1, *by)

class Story:
    """A story on its way: what has been told so far, and which words it uses."""

    def __init__(self, rng, level):
        self.rng, self.table = rng, story_table(level)
        self.does = {habit: rng.random() < share for habit, share in self.table["habits"].items()}
        self.state, self.numbers = "start", {}    # {name of an event: its numbers}
        self.sentences, self.steps = [], []
        self.words, self.used = {"x": 0}, []      # x is the amount so far
        # If A is "she", all others are boys, so that it is clear who she is.
        sex, other = rng.sample(["girl", "boy"], 2)
        others = [other] if self.does["pronouns"] else ["girl", "boy"]
        self.people = [self.draw(rng.choice(others))["name"] for _ in range(8)]
        self.people[0] = self.draw(sex)["name"]
        self.meet()
        if self.does["pronouns"]:
            self.words |= self.table["pronouns"][sex]
        self.words |= self.draw("item")
        if self.does["adjective"]:
            adjective = self.draw("adjective")["adjective"]
            for column in ("item", "items"):
                self.words[column] = f"{adjective} {self.words[column]}"

    def draw(self, kind):
        """A word of this kind that the story has not used yet."""
        while True:
            word = self.rng.choice(self.table["words"][kind])
            if self.does["made_up"] and kind in ("girl", "boy", "item", "box", "gift"):
                sounds = self.table["sounds"] * self.rng.randint(2, 3)
                text = "".join(self.rng.choice(sound.split()) for sound in sounds).replace("_", "")
                text = text.title() if kind in ("girl", "boy") else text
                word = read_word(text, self.table["columns"][kind])
            if word not in self.used:
                self.used.append(word)
                return word

    def meet(self):
        """The people of the story as words."""
        A = self.people[0]
        self.words |= dict(zip("ABCD", self.people)) | {"he": A, "his": f"{A}'s", "him": A}

    def tell(self, n_left) -> bool:
        """Add a random event of at most `n_left` steps. False: the story is at a dead end."""
        events = [event for event in self.table["event"] if self.can_follow(event, n_left)]
        if not events:
            return False
        event = self.rng.choice(events)
        for kind in event["kinds"]:
            self.words |= self.draw(kind)
        if not any(self.draw_numbers(event) for _ in range(20)):
            return False
        self.sentences.append(self.fill(self.rng.choice(event["say"]), self.does["words"]))
        for step in event["step"]:
            self.compute(step)
            question = self.fill(self.rng.choice(step["ask"]))
            self.steps.append(Step(question, self.fill(step["solve"])))
        self.state = event["after"]
        # An event without steps only tells its amount, a.
        self.words["x"] = int(self.words["z" if event["step"] else "a"])
        self.words |= {name: self.words[column] for name, column in event["rename"].items()}
        if event["person"] != "A":
            first = self.people[1:2] if event["person"] == "B" else ["the two"]
            self.people = first + self.people[2:]
            self.meet()
        return True

    def can_follow(self, event, n_left) -> bool:
        """Every event comes once, the person changes once, and "end" brings the last step."""
        n_steps = len(event["step"])
        return (event["before"] == self.state and event["name"] not in self.numbers
                and (n_steps == n_left if event["after"] == "end" else n_steps <= n_left)
                and (event["person"] == "A" or len(self.people) == 8)    # all of them, so far
                and not (self.does["present"] and event["tense"] == "past"))

    def draw_numbers(self, event) -> bool:
        """Draw the event's numbers. Are all that it tells and finds whole and neither 0 nor 1?"""
        numbers = {name: draw_number(self.rng, rule) for name, rule in event["draw"].items()}
        self.numbers[event["name"]] = list(numbers.values())
        self.words |= numbers
        for name, number in numbers.items():
            for kind, texts in self.table["numbers"].items():
                self.words[f"{name}_{kind}"] = texts.get(str(number), "?")
        for name, text in event["let"].items():
            self.words[name] = calculate(text.format(**self.words))
        found = [self.words[name] for name in event["let"]]
        for step in event["step"]:
            self.compute(step)
            found.append(self.words["up" if step.get("decimal") else "z"])
        found += [calculate(text.format(**self.words)) for text in event["check"]]
        return all(n and n.isdigit() and 2 <= int(n) <= self.table["largest"] for n in found)

    def compute(self, step):
        """Calculate a step. Its own texts and all later ones may use the result, also rounded."""
        expression = step["compute"].format(**self.words)
        result = calculate(expression)
        value = float(result or 0)
        self.words |= {"z": result, step.get("result", "z"): result,
                       "down": str(math.floor(value)), "up": str(math.ceil(value)),
                       "e": f"{expression} = <<{expression}={result}>>{result}",
                       "$e": f"{expression} = $<<{expression}={result}>>{result}"}

    def fill(self, text, in_words=False):
        """A text of the table with all its choices made and all its words filled in."""
        text = re.sub(r"\(([^()]*\|[^()]*)\)", lambda m: self.rng.choice(m[1].split("|")), text)
        text = re.sub(r"\[(.*?)\|(.*?)\]", r"\1" if self.does["present"] else r"\2", text)
        words = dict(self.words)
        if in_words:    # but not in $5, 5% or 5:30
            for name in re.findall(r"(?<!\$){([a-d])}(?!%|:| [ap]\.m)", text):
                words[name] = self.table["numbers"]["word"].get(str(words[name]), words[name])
        text = re.sub(r" +(?=[ ?.,])", "", text.format(**words))
        text = re.sub(r"\ba (?=[aeio])", "an ", text)
        return re.sub(r"(?:^|[.?!] )[a-z]", lambda m: m[0].upper(), text)

    def key(self) -> str:
        """The events and their numbers: what the story is, in whatever words it is told."""
        return "; ".join(f"{name} {numbers}" for name, numbers in self.numbers.items())

    def finish(self, distractors) -> Problem:
        """The whole story. "Then?" is often said as "in the end?"; `add_distractors` may add."""
        rng, last, sentences = self.rng, self.steps[-1], self.sentences
        if rng.random() < 0.5:
            last.question = re.sub(r" (then|after that)\?$", " in the end?", last.question)
        question, condition = last.question, sentences[-1][:-1]
        if self.does["if"] and re.fullmatch(rf"({self.people[0]}|She|He) [^.?!]*", condition):
            condition = re.sub("^(She|He) ", lambda match: match[0].lower(), condition)
            question = f"If {condition}, {question[0].lower()}{question[1:]}"
            sentences.pop()
        self.add_distractors(distractors)
        is_first = self.does["first"] and not question.startswith("If ")
        order = [question, *sentences] if is_first else [*sentences, question]
        return Problem("", " ".join(order), self.steps, str(self.words["x"]), "generated")

    def add_distractors(self, distractors):
        """
        Add sentences that no step needs: one of these numbers of them, and their own numbers stand
        nowhere else in the story. None: at most one, as often as the table says.
        """
        rng, texts = self.rng, self.table["distractors"]
        if distractors is None:
            n = int(self.does["distractor"])
            numbers = [rng.randint(3, 50) for _ in range(n)]
            texts = [rng.choice(texts) for _ in range(n)]
        else:
            # subtle: these draws depend on the story alone: it is the same one with 0 and with 2.
            rng = self.rng = random.Random(self.key())
            n = rng.choice(distractors)
            told = f"{self.key()} {self.words} {self.sentences} {self.steps}"
            free = set(range(3, 51)) - set(map(int, re.findall(r"\d+", told)))
            numbers, texts = rng.sample(sorted(free), n), rng.sample(texts, n)
        for number, text in zip(numbers, texts):
            self.words["d"] = number
            text = self.fill(text)
            place = rng.randint(min(1, len(self.sentences)), len(self.sentences))
            self.sentences.insert(place, text)

def make_story(rng, level, lengths, distractors=None):
    """(a problem with one of these numbers of steps, the key of its events and numbers)."""
    while True:
        n_steps, story = rng.choice(lengths), Story(rng, level)
        while story.tell(n_steps - len(story.steps)):    # False: a dead end; tell another story
            if len(story.steps) == n_steps:
                return story.finish(distractors), story.key()

def make_stories(level, part, n, seed=0, lengths=None, distractors=None) -> list[Problem]:
    """
    `n` stories of a part (train, valid, test, test-3steps, long), the same ones for the same seed.
    A sha256 of a story's events and numbers decides its split, so that no test story can be
    generated for training in other words (but for six pairs of the world's events that say the
    same under two names). One of `lengths` is its number of steps.
    """
    split, problems, seen = part.split("-")[0], [], set()
    rng = random.Random(f"{split}-{seed}")
    lengths = lengths or story_table(level)["steps"]["long" if split == "long" else level]
    while len(problems) < n:
        problem, key = make_story(rng, level, lengths, distractors)
        if split_of(key) == split.replace("long", "test") and key not in seen:
            seen.add(key)
            problem.id = f"{level}-{part}-{len(problems)}"
            problems.append(problem)
    return problems

def parse_args(argv=None):
    parser = argparse.ArgumentParser(formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("file", type=Path, help="FILE.jsonl or FILE.jsonl.gz")
    add("--level", choices=["demo", "world"], default="demo", help="world: more words and events")
    add("--train", type=int, default=20_000, help="how many stories are for training")
    add("--seed", type=int, default=0, help="of the training stories; the others stay as they are")
    add("--steps", type=int, nargs="+", help="how many a story has, 1 to 8: one of these numbers")
    add("--distractors", type=int, nargs="+", help="how many sentences no step needs: one of these")
    return parser.parse_args(argv)

def main(args):
    level, kind = args.level, (args.steps, args.distractors)
    problems = make_stories(level, "train", args.train, args.seed, *kind)
    problems += make_stories(level, "valid", 500, 0, *kind)
    if any(kind):
        for n, n_steps in itertools.product((2, 0), range(1, 9)):
            part = f"test-{n_steps}steps-{n}distractors"
            problems += make_stories(level, part, 500, 0, [n_steps], [n])
    else:
        problems += make_stories(level, "test", 1_000)
        if level == "demo":    # the world's stories have up to 8 steps anyway
            problems += make_stories(level, "long", 500)
    text = "".join(f"{problem.to_json()}\n" for problem in problems).encode()
    replace_file(args.file, gzip.compress(text, 9, mtime=0) if args.file.suffix == ".gz" else text)
    print(f"{args.file}: {len(problems):,} stories")

if __name__ == "__main__":
    main(parse_args())

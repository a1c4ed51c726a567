"""
What do we want a student to write? Problems, dialogues, answers, tokens, and the data sets.

    python data.py                    the demo data set: counts, and one dialogue for each role
    python data.py --dataset gsm8k    the same for gsm8k, svamp, strategyqa or your own FILE.jsonl

A solved problem is a dialogue. This text is all that the models ever see:

    Problem: Ava has 3 boxes with 4 pens each. She gives away 5 pens. How many pens are left?
    Subquestion: How many pens are in the boxes?
    Solution: There are 3*4 = <<3*4=12>>12 pens in the boxes.
    Subquestion: How many pens are left?
    Solution: There are 12-5 = <<12-5=7>>7 pens left.
    Answer: 7

Reads   students/demo.jsonl.gz, your own FILE.jsonl or FILE.jsonl.gz, and the authors' files in
        data/ or the folder SOCRATIC_DATA (downloaded once)
"""

import argparse
import ast
import base64
import gzip
import hashlib
import json
import math
import operator as op
import os
import re
import sys
import tomllib
import unicodedata
import zlib
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from fractions import Fraction
from functools import cache
from pathlib import Path
from xml.etree import ElementTree

import requests
import tiktoken

USUAL = ("train", "valid", "test")
DATASETS = {"demo": (*USUAL, "long"), "gsm8k": USUAL, "svamp": (*USUAL, "all"),
            "strategyqa": USUAL}    # long: 7 and 8 steps; all: no split
DATASET_HELP = f"which problems: {', '.join(DATASETS)}, or your own FILE.jsonl"
ROLES = ("answer", "cot", "unified", "decomposer", "solver")
IGNORE = -100    # the target of a token that is only context: cross_entropy skips it by default
HERE = Path(__file__).resolve().parent

# ------------------------------------------------------------ records, one JSON object a line

@dataclass
class Step:
    question: str = ""
    solution: str = ""

@dataclass
class Problem:
    id: str
    problem: str
    steps: list[Step] = field(default_factory=list)
    answer: str = ""    # as `extract_answer` reads it: a number, yes or no; or unknown
    source: str = "human"
    evidence: list[str] = field(default_factory=list)    # a formula (svamp), facts (strategyqa)

    def to_json(self) -> str:
        record = asdict(self)
        if not self.evidence:
            del record["evidence"]
        return json.dumps(record, ensure_ascii=False)

    @classmethod
    def from_json(cls, line: str) -> "Problem":
        """The record of one line. A ValueError or TypeError says what is wrong with it."""
        record = json.loads(line)
        if type(record) is not dict:
            raise ValueError("a record must be an object: {...}")
        missing = [key for key in ("id", "problem", "answer") if key not in record]
        unknown = [key for key in record if key not in cls.__dataclass_fields__]
        if missing or unknown:
            raise ValueError(f"missing keys: {missing}, unknown keys: {unknown}")
        steps = [Step(**step) for step in record.get("steps", [])]
        problem = cls(**record | {"steps": steps, "answer": read_gold(record["answer"])})
        texts = [problem.id, problem.problem, problem.source] + problem.evidence
        texts += [text for step in steps for text in (step.question, step.solution)]
        wrong = [text for text in texts if type(text) is not str]
        if wrong or not problem.problem.strip():
            raise ValueError(f"not a text: {wrong}" if wrong else "an empty problem")
        "".join(texts).encode()    # fails for half of a surrogate pair
        return problem

def read_gold(answer) -> str:
    """
    The answer of a record, read by the rule for a student's; empty if it is not known.

    >>> read_gold("12 pens"), read_gold(12.0), read_gold(True), read_gold("")
    ('12', '12', 'yes', '')
    """
    text = clean(str(answer))
    value = extract_answer(f"Answer: {text}") if text else ""
    if value is None or isinstance(answer, (list, dict)):
        raise ValueError(f"the answer {answer!r} is neither one number nor yes or no")
    return value

def read_lines(path, parse=json.loads) -> list:
    """`parse(line)` of every line that is not blank; "-" is the standard input."""
    values, n = [], 0
    try:
        opener = gzip.open if str(path).endswith(".gz") else open
        with sys.stdin.buffer if path == "-" else opener(path, "rb") as file:
            for line in file:
                n += 1
                if line.strip():
                    values.append(parse(line.decode("utf-8-sig")))    # without a byte order mark
    except (OSError, EOFError, zlib.error) as error:    # not there, not readable, a .gz cut off
        raise SystemExit(f"{path} cannot be read: {error}") from None
    except (ValueError, TypeError, RecursionError) as error:
        raise SystemExit(f"{path}:{n}: {error}") from None
    return values

def replace_file(path, *chunks: bytes) -> None:
    """Write a file so that a reader, or a kill, finds the old one or the whole new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb") as file:
        file.writelines(chunks)
    part.replace(path)

# ------------------------------------------------------------ the dialogue, and who learns what

@dataclass(frozen=True)
class Segment:
    text: str
    learned: bool    # True: the student learns to write it. False: it is given as context.

def segments(problem: Problem, role: str) -> list[Segment]:
    """
    A solved problem as the segments that a student of this role reads and learns to write.

    | role       | sees                      | learns to write                        |
    | answer     | problem                   | answer                                 |
    | cot        | problem                   | solution 1..n, answer                  |
    | unified    | problem                   | subquestion 1, solution 1, ..., answer |
    | decomposer | problem                   | subquestion 1..n                       |
    | solver     | problem, each subquestion | solution 1..n, answer                  |

    A label such as `Solution:` is learned where the role itself decides what comes next. The text
    after it begins with a space, as most of GPT-2's tokens do. A turn ends with a newline, but the
    last one with the end token, which `encode` adds.
    """
    steps = problem.steps
    if role == "cot" and problem.answer in ("yes", "no") and not any(s.solution for s in steps):
        steps = [Step("", fact) for fact in problem.evidence]    # all that StrategyQA has
    turns = []    # (label, text)
    for step in steps:
        if role in ("unified", "decomposer", "solver"):
            turns.append(("Subquestion:", step.question))
        if role in ("cot", "unified", "solver"):
            turns.append(("Solution:", step.solution))
    if role != "decomposer":
        turns.append(("Answer:", problem.answer))

    parts = [Segment(f"Problem: {clean(problem.problem)}\n", False)]
    writes_labels = role in ("cot", "unified", "decomposer")
    for i, (label, text) in enumerate(turns, 1):
        end = "\n" if i < len(turns) else ""
        is_given = role == "solver" and label == "Subquestion:"
        parts.append(Segment(label, writes_labels))
        parts.append(Segment(f" {clean(text)}{end}", not is_given))
    return parts

def clean(text: str) -> str:
    """The text on one line, with single spaces: a newline would end a turn. In Unicode's NFC."""
    return " ".join(unicodedata.normalize("NFC", text).split())

def can_learn(problem: Problem, role: str) -> bool:
    """Whether the record holds everything that the role reads and learns to write."""
    parts = segments(problem, role)    # the problem, then a label and a text for each turn
    min_turns = 1 if role in ("answer", "decomposer") else 2
    return len(parts) >= 1 + 2 * min_turns and all(part.text.strip() for part in parts)

def encode(parts: list[Segment], tokenizer):
    """
    (ids, targets), two lists of length T. targets[t] is the token that follows ids[t] if the
    student learns to write it, else IGNORE. The last target is the end token: of the context A A
    and the learned text B C the ids are A A B C and the targets IGNORE B C end.
    """
    ids, learned = [], []
    for part in parts:
        tokens = tokenize(part.text, tokenizer)
        ids += tokens
        learned += [part.learned] * len(tokens)
    ids.append(tokenizer.eot_token)
    learned.append(parts[-1].learned)
    targets = [token if is_learned else IGNORE for token, is_learned in zip(ids[1:], learned[1:])]
    return ids[:-1], targets

def tokenize(text: str, tokenizer) -> list[int]:
    """The token ids of one segment."""
    # subtle: the text is cut where the calculator starts and stops writing for a student, after
    # the `=` and the `>>` of an annotation. So training sees the same tokens.
    pieces = re.split(r"(?<=>>)|(?<==)(?=[^<>=]*>>)", text)
    return [token for piece in pieces for token in tokenizer.encode_ordinary(piece)]

def show(parts: list[Segment]) -> str:
    """The dialogue with its learned parts marked ‹like this›."""
    text = "".join(f"‹{part.text}›" if part.learned else part.text for part in parts)
    return text.replace("›‹", "").replace("\n›", "›\n")

# ------------------------------------------------------------ arithmetic

NUMBER = r"(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|\.[0-9]+)"
OPERATORS = {ast.Add: op.add, ast.Sub: op.sub, ast.Mult: op.mul, ast.Div: op.truediv}
CALCULATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")    # the data's annotations, <<3*4=12>>

@cache    # most answers of a data set occur many times
def calculate(expression: str) -> str | None:
    """
    The value of an arithmetic expression as the data writes it, or None if it is not arithmetic.
    It knows + - * / ( ), decimals, percent and thousands commas, up to 200 characters.

    >>> calculate("2*(3+4)"), calculate("1,000*20%"), calculate("1/3"), calculate("3 4")
    ('14', '200', '0.33', None)
    """
    if len(expression) > 200:
        return None
    text = expression.translate(str.maketrans("×÷−–", "*/--", "$")).strip()    # without $
    # Python's parser reads the rest, but neither 1,000 nor 007.
    text = re.sub(r"(?<![\d.])\d{1,3}(,\d{3})+(?!\d)", lambda m: m[0].replace(",", ""), text)
    text = re.sub(r"(?<![0-9.])0+(?=[0-9])", "", text)
    text = re.sub(r"([0-9.]+) *%", r"(\1/100)", text)
    if not re.fullmatch(r"([0-9+*/() -]|\.(?=[0-9]))*", text):
        return None
    try:
        return format_number(value_of(ast.parse(text, mode="eval").body))
    except (SyntaxError, ZeroDivisionError):
        return None

def value_of(node) -> Fraction:
    """The exact value of a node of Python's syntax tree, if it is one of ours. No eval."""
    if isinstance(node, ast.Constant):
        return Fraction(str(node.value))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -value_of(node.operand)
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        return OPERATORS[type(node.op)](value_of(node.left), value_of(node.right))
    raise SyntaxError

def format_number(value: Fraction) -> str:
    """A number as GSM8K writes it. Endless decimals are rounded to 2, or to 2 digits below 0.1."""
    n_decimals = next((n for n in range(13) if (value * 10**n).denominator == 1), None)
    if n_decimals is None:
        n_decimals = min(12, max(2, 1 - math.floor(math.log10(abs(value)))))
    whole, rest = divmod(round(abs(value) * 10**n_decimals), 10**n_decimals)
    text = f"{whole}.{rest:0{n_decimals}d}".rstrip("0").rstrip(".")
    return "-" + text if value < 0 and text != "0" else text

# ------------------------------------------------------------ answers

DASHES = str.maketrans("‐‑‒–−－", "------")    # all that may mean minus
# A minus sign counts only if it does not stand between two numbers, as in "5-10 minutes".
VALUE = rf"(?:(?<![\w.,)])-)?[ $€£]{{0,3}}{NUMBER}(?:/{NUMBER})?"

def extract_answer(text: str) -> str | None:
    r"""
    The answer of the first answer block (`Answer: ...` or `#### ...`), normalised, or None.

    It is yes or no, or the one number of the block; of several numbers none is chosen. In an
    equation the last side with just one number counts. Units, $ and % are dropped.

    >>> extract_answer("so\nAnswer: $1,200.\nProblem: ..."), extract_answer("Answer: 3*4 = 12 pens")
    ('1200', '12')
    >>> extract_answer("She has 18 apples"), extract_answer("Answer: 19 and 27")
    (None, None)
    """
    block = re.search(r"(?:\bAnswer:|####)([^\n]*)", text.translate(DASHES))
    if not block:
        return None
    word = re.match(r"\W*(yes|no|true|false)\b(?! one\b)", block[1], re.IGNORECASE)
    if word:
        return "yes" if word[1].lower() in ("yes", "true") else "no"
    for side in reversed(re.sub("<<[^<>]*>>", "", block[1]).split("=")):
        found = re.findall(VALUE, side)
        if len(found) == 1:
            return calculate(re.sub(r"[ €£]", "", found[0]))
    return None

def same_answer(a: str | None, b: str | None) -> bool:
    """Whether two answers are the same number (18.0 is 18) or word. None equals nothing."""
    x, y = (extract_answer(f"Answer: {text or ''}") for text in (a, b))
    return x is not None and x == y

def is_true(expression: str, result: str) -> bool:
    """
    Whether a calculation's result is right, to its last digit where it is rounded.

    >>> is_true("3*4", "12"), is_true("10/3", "3.33"), is_true("10/3", "3")
    (True, True, False)
    """
    n_decimals = len(result.strip().partition(".")[2])
    tolerance = 0.500001 / 10**n_decimals if n_decimals else 0
    error = calculate(f"({expression})-({result})")
    return bool(calculate(expression) and error) and abs(float(error)) <= tolerance

# ------------------------------------------------------------ tokenizers

# Digits stand alone, so that numbers can be copied digit by digit; so do <<, = and >>.
TINY_PATTERN = (r"<<|>>|[=\n\d<>]|'(?:s|t|re|ve|m|ll|d)\b| ?[^\W\d_]+| ?(?:[^\w\s=<>]|_)+"
                r"| (?=\d)|\s+(?!\S)|\s+")

def get_tokenizer(name: str) -> tiktoken.Encoding:
    """`gpt2`: OpenAI's 50,257 tokens (downloaded once). `tiny`: our own 2,048, in students/."""
    if name == "tiny":
        rows = read_lines(HERE / "students" / "tiny.tiktoken", str.split)
        ranks = {base64.b64decode(token): int(rank) for token, rank in rows}
        return tiktoken.Encoding("tiny", pat_str=TINY_PATTERN, mergeable_ranks=ranks,
                                 special_tokens={"<|endoftext|>": len(ranks)})
    try:
        return tiktoken.get_encoding(name)
    except (OSError, ValueError) as error:    # no network; a proxy's page; an unknown name
        raise SystemExit(f"Cannot load the tokenizer {name!r}: {error}\nOffline? Run this with a "
                         "network and TIKTOKEN_CACHE_DIR=FOLDER; copy that folder.") from None

# ------------------------------------------------------------ files: found, downloaded, checked

@cache
def read_toml(name):
    """A file of students/, which holds all that is data and not code. Each explains itself."""
    return tomllib.loads((HERE / "students" / name).read_text(encoding="utf-8"))

def find_file(name: str) -> Path:
    """The path of an author's file: downloaded if it is not there, and always checked."""
    path = Path(os.environ.get("SOCRATIC_DATA") or "data") / name
    url, known = read_toml("sources.toml")[name]
    if not path.is_file():
        download(url, path)
    if sha256(path.read_bytes()) != known:
        raise SystemExit(f"{path} is not the file this code knows: its sha256 is not {known}.\n"
                         f"  Delete it to have it downloaded again from {url}")
    return path

def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

def download(url: str, path: Path) -> None:
    """Fetch `url` into `path`; under a temporary name until it is whole."""
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with requests.get(url, stream=True, timeout=60) as reply, open(part, "wb") as file:
            reply.raise_for_status()
            for chunk in reply.iter_content(1 << 20):
                file.write(chunk)
                print(f"\r{path}: {file.tell() / 1e6:,.1f} MB", end="", file=sys.stderr)
    except OSError as error:    # as all errors of requests
        raise SystemExit(f"\nCannot download {url}\n  {type(error).__name__}: {error}\n  Offline? "
                         f"Fetch that address on another machine; put the file at {path}") from None
    print(file=sys.stderr)
    part.replace(path)

# ------------------------------------------------------------ the data sets

def load_problems(dataset, split, limit=None, annotations=None) -> list[Problem]:
    """
    The problems of one split, in a fixed order.

    dataset      a built-in one, or the path of a file of records
    limit        only the first so many
    annotations  a file of records whose steps replace the data set's own, joined by id and text;
                 problems without an annotation are left out
    """
    name, splits = run_name(dataset), splits_of(dataset)
    if split not in splits:
        raise SystemExit(f"{name} has no split {split!r}. There are: {', '.join(splits)}")
    load = {"gsm8k": load_gsm8k, "svamp": load_svamp, "strategyqa": load_strategyqa}.get(name)
    path = HERE / "students" / "demo.jsonl.gz" if name == "demo" else dataset
    problems = (load(split) if load else load_file(path, split))[:limit]
    if not annotations:
        return problems
    records = read_lines(annotations, Problem.from_json)
    found = {(record.id, clean(record.problem)): record for record in records}
    pairs = [(problem, found.get((problem.id, clean(problem.problem)))) for problem in problems]
    annotated = [replace(problem, steps=record.steps, source=record.source)
                 for problem, record in pairs if record]
    print(f"{annotations}: {len(records)} annotations, {len(annotated)} match the {len(problems)} "
          f"problems of {name}/{split} in id and text", file=sys.stderr)
    return annotated

def run_name(dataset: str) -> str:
    """What a data set is called in names of runs: "pens" for "my/pens.jsonl"."""
    if dataset in DATASETS:
        return dataset
    name = Path(dataset).name.removesuffix(".gz").removesuffix(".jsonl")
    if not dataset.endswith((".jsonl", ".jsonl.gz")) or name in DATASETS:
        raise SystemExit(f"Unknown data set {dataset!r}. There are: {', '.join(DATASETS)}\n"
                         "or your own FILE.jsonl or .jsonl.gz (not with the name of one of these)")
    return name

def splits_of(dataset) -> tuple:
    return DATASETS.get(dataset, (*USUAL, "long", "all"))

def split_of(text: str) -> str:
    """The split of a text by its sha256: 1 of 10 is test, 1 of 10 valid, the rest train."""
    bucket = int(sha256(clean(text).encode()), 16) % 10
    return {0: "test", 1: "valid"}.get(bucket, "train")

def load_file(path, split) -> list[Problem]:
    """Records: split by their ids where all of them hold a split, as demo-test-17; else by text."""
    problems = read_lines(path, Problem.from_json)
    for name, n in Counter(problem.id for problem in problems).items():
        if n > 1:
            raise SystemExit(f"{path}: the id {name!r} occurs {n} times")
    named = [re.search("-(train|valid|test|long)-", problem.id) for problem in problems]
    splits = ([match[1] for match in named] if all(named)
              else [split_of(problem.problem) for problem in problems])
    return [problem for problem, its in zip(problems, splits) if split in ("all", its)]

def load_gsm8k(split) -> list[Problem]:
    """Its answers are lines `subquestion ** solution`, then `#### number`."""
    path = find_file(f"gsm8k/{'test' if split == 'test' else 'train'}_socratic.jsonl")
    problems = []
    for n, row in enumerate(read_lines(path)):
        *lines, answer = row["answer"].split("\n")
        steps = [Step(*line.split(" ** ")) for line in lines]
        problems.append(Problem(f"gsm8k-{split}-{n}", row["question"], steps, read_gold(answer)))
    return {"train": problems[:-512], "valid": problems[-512:], "test": problems}[split]

def load_svamp(split) -> list[Problem]:
    """Test: SVAMP's 237 problems with two operators. Else ASDiv's: every tenth is for valid."""
    if split in ("train", "valid"):
        asdiv = enumerate(load_asdiv())
        return [problem for i, problem in asdiv if (i % 10 == 9) == (split == "valid")]
    problems = []
    for row in json.loads(find_file("svamp/SVAMP.json").read_text(encoding="utf-8")):
        text, formula = join_question(row["Body"], row["Question"]), row["Equation"]
        answer = calculate(str(row["Answer"]))
        if split == "all" or len(re.findall(r" [-+*/] ", formula)) == 2:
            problems.append(Problem(f"svamp-{row['ID']}", text, [], answer, evidence=[formula]))
    return problems

def load_asdiv():
    """ASDiv's problems whose formula has two or more operators and whose answer is one number."""
    for row in ElementTree.parse(find_file("asdiv/ASDiv.xml")).iter("Problem"):
        text = join_question(row.findtext("Body"), row.findtext("Question"))
        formula = row.findtext("Formula").strip()
        match = re.fullmatch(r"\s*(-?\d+(\.\d+)?)\s*(\([^()]*\))?\s*", row.findtext("Answer"))
        if len(re.findall(r"[-+*/]", formula)) < 2 or not match:
            continue
        left, _, right = (side.strip() for side in formula.partition("="))
        value, steps = calculate(left), []
        if value is not None and value == calculate(right):    # not so for "x=3*4; y=x-5"
            steps = [Step("", f"{left} = <<{left}={value}>>{value}")]
        name, answer = f"svamp-asdiv-{row.get('ID')}", calculate(match[1])
        yield Problem(name, text, steps, answer, evidence=[formula])

def join_question(body: str, question: str) -> str:
    """
    >>> join_question("He had 4. If he lost 1", "How many are left?"), join_question("So", "Why?")
    ('He had 4. If he lost 1, how many are left?', 'So. Why?')
    """
    body, question = body.strip(), question.strip()
    if body.endswith((".", "?", "!", ",", '"')):
        return f"{body} {question}"
    if re.search(r"(^|[.?!] )If [^.?!]*$", body):
        return f"{body}, {question[:1].lower()}{question[1:]}"
    return f"{body}. {question}"

def load_strategyqa(split) -> list[Problem]:
    """Yes or no. The steps are the decomposition, without solutions; the facts are evidence."""
    path = find_file(f"strategyqa/{'dev' if split == 'test' else 'train'}.json")
    problems = []
    for row in json.loads(path.read_text(encoding="utf-8")):
        steps = [Step(re.sub(r"#(\d+)", r"answer \1", text)) for text in row["decomposition"]]
        name, answer = f"strategyqa-{row['qid']}", "yes" if row["answer"] else "no"
        problems.append(Problem(name, row["question"], steps, answer, evidence=row["facts"]))
    return {"train": problems[:1832], "valid": problems[-229:], "test": problems}[split]

# ------------------------------------------------------------ the command

def positive(text: str) -> int:
    """The type of every flag that counts something."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return int(text)

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Count a data set's problems and show one dialogue for each role.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", help=DATASET_HELP)
    add("--role", choices=ROLES, help="show this role only (None: all)")
    return parser.parse_args(argv)

def false_calculations(problems) -> list[str]:
    """Where an annotation is false or cannot be read: "mine-7: 3*4=13"."""
    return [f"{problem.id}: {left}={right}" for problem in problems for step in problem.steps
            for left, right in CALCULATION.findall(step.solution)
            if not is_true(left, right)]

def main(args):
    splits = {split: load_problems(args.dataset, split) for split in splits_of(args.dataset)}
    for split, problems in splits.items():
        counts = sorted(Counter(len(problem.steps) for problem in problems).items())
        by_steps = " ".join(f"{n}:{count:,}" for n, count in counts)
        print(f"{run_name(args.dataset)}/{split:5s} {len(problems):6,} problems | "
              f"by steps: {by_steps}")
        if false := false_calculations(problems):
            print(f"  {len(false):,} calculations are false or cannot be read, the first one in "
                  f"{false[0]}")
    problems, tokenizer = splits["train"], get_tokenizer("tiny")
    for role in [args.role] if args.role else ROLES:
        fits = [segments(problem, role) for problem in problems if can_learn(problem, role)]
        print(f"\n{role}: {len(fits):,} of {len(problems):,} training problems hold what it "
              "learns to write (marked)")
        if fits:
            ids, targets = encode(fits[0], tokenizer)
            n_learned = sum(target != IGNORE for target in targets)
            print(f"{show(fits[0])}\n[{len(ids)} tokens, {n_learned} learned]")

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a console that lacks a letter shows "?"
    try:
        main(parse_args())
    except BrokenPipeError:    # of `| head`
        sys.exit(1)

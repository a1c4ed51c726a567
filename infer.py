"""
Solve problems with trained students: the decomposer asks, the solver answers, the calculator computes.

    python infer.py "Ava has 3 boxes with 4 pens each. She gives away 5 pens. How many pens are left?"
    python infer.py                                    type problems at a prompt
    python infer.py --file problems.txt --json         a problem a line (text, or a record of data.py)

Reads   the students: those of --students, else those you trained in runs/, else the embedded ones in students/
Writes  the dialogue, on the screen

How it works: a dialogue is a generator, plain code that yields "this student reads that, then writes a turn" and is
sent the turn back. `solve` runs many of them at once, one row of the student's cache for each.
"""

import argparse
import codecs
import json
import os
import random
import re
import sys
from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from data import DATASETS, HERE, Problem, Step, calculate, clean, extract_answer, get_tokenizer, segments, tokenize
from gpt import GPT, KVCache, pick_device, read_config

METHODS = {"socratic": ("decomposer", "solver"), "unified": ("unified",), "cot": ("cot",), "answer": ("answer",)}
MAX_QUESTIONS = 16   # a decomposer that never stops is stopped
MAX_TURN = 256       # tokens; so is a turn that never ends


# ---------------------------------------------------------------- dialogues, one generator for each method

@dataclass
class Turn:
    speaker: str   # the student's role
    kind: str      # Subquestion, Solution or Answer
    text: str


@dataclass
class Dialogue:
    problem: Problem
    method: str
    turns: list[Turn] = field(default_factory=list)
    answer: str | None = None
    ended: str = "finished"   # or why it was cut short

    def to_json(self):
        turns = [vars(turn) for turn in self.turns]
        return {"id": self.problem.id, "problem": self.problem.problem, "method": self.method, "turns": turns,
                "answer": self.answer, "ended": self.ended}


class Cut(Exception):
    """Thrown into a dialogue that cannot go on; its text says why."""


def socratic(problem):
    """Two students in turn: all subquestions from the problem alone, then a solution for each, then the answer."""
    questions, last = [], False
    read = given(problem, "decomposer")
    while not last and len(questions) < MAX_QUESTIONS:
        text, last = yield "decomposer", read
        questions.append(text.removeprefix("Subquestion:"))
        read = []
    yield from solved(problem, [Step(question) for question in questions])
    if not last:
        raise Cut(f"the decomposer was stopped after {MAX_QUESTIONS} subquestions")


def solved(problem, steps):
    """The solver's part: it reads the dialogue up to each solution that `steps` leave open, and writes that."""
    read = []
    for part in segments(replace(problem, steps=steps, answer=""), "solver"):
        if part.learned and not part.text.strip():
            yield "solver", read
            read = []
        else:
            read.append(part.text)


def alone(problem, role):
    """One student writes everything: `unified` its subquestions too, `cot` solutions, both until their answer."""
    read = given(problem, role)
    for _ in range(2 * MAX_QUESTIONS + 1):
        text, last = yield role, read
        if last or text.startswith("Answer:"):
            return
        read = []
    raise Cut(f"{role} was stopped after {2 * MAX_QUESTIONS + 1} turns without an answer")


def given(problem, role):
    """What a student reads before it writes its first word."""
    parts = segments(replace(problem, steps=[], answer=""), role)
    return [part.text for part in parts if not part.learned]


def script(problem, method):
    return socratic(problem) if method == "socratic" else alone(problem, method)


# ---------------------------------------------------------------- students at work

@dataclass
class Student:
    role: str
    model: GPT
    tokenizer: object


class Job:
    """One dialogue on its way: what its student reads next, and the turn being written."""

    def __init__(self, problem, method, script, on_text, seed, max_turn):
        self.dialogue = Dialogue(problem, method)
        self.script = script
        self.on_text = on_text
        self.max_turn = max_turn
        self.rng = random.Random(f"{seed} {problem.id} {problem.problem}")
        self.role = None                        # of the student whose turn it is; None when the dialogue is over
        self.go_on(None)

    def go_on(self, turn):
        """Send the finished turn to the dialogue; it says who reads what, and writes, next."""
        try:
            before = self.role
            self.role, read = self.script.send(turn)
            self.kind = read[-1][:-1] if read and read[-1] in ("Solution:", "Answer:") else None
            # A student's turns end with a newline: the first thing it reads of the next one.
            self.read = read if self.role != before else ["\n", *read]
            self.feed, self.written, self.n_written = None, b"", 0
            if self.kind:
                self.on_text(self, self.role, self.kind, "")
        except StopIteration:
            self.role = None
        except Cut as cut:
            self.stop(str(cut))

    def stop(self, why):
        self.role, self.dialogue.ended = None, why

    def tokens_to_read(self, tokenizer):
        if self.feed is None:
            self.feed = [i for text in self.read for i in tokenize(text, tokenizer)]
        return self.feed

    def take(self, token, tokenizer, calculator):
        """The student wrote one token: show it, call the calculator, or end the turn."""
        last = token == tokenizer.eot_token
        piece = b"" if last else tokenizer.decode_single_token_bytes(token)
        self.n_written += 1
        line, newline, _ = piece.partition(b"\n")
        self.written += line
        self.feed = [token]
        self.say(line)
        if last or newline or self.n_written >= self.max_turn:
            self.end_turn()
            if not last and not newline:
                self.stop(f"the {self.role}'s turn did not end within {self.max_turn} tokens")
            else:
                self.go_on((self.written.decode(errors="replace"), last))
        elif calculator and line.endswith(b"="):
            match = re.search(r"<<([^<>=]*)=$", self.written.decode(errors="replace"))
            if match and (result := calculate(match[1])) is not None:
                forced = tokenize(f"{result}>>", tokenizer)
                self.written += f"{result}>>".encode()
                self.n_written += len(forced)
                self.feed += forced
                self.say(f"{result}>>".encode(), "calculator")

    def say(self, piece, speaker=None):
        if piece:
            self.on_text(self, speaker or self.role, None, piece)

    def end_turn(self):
        text = self.written.decode(errors="replace")
        kind, body = self.kind, text
        if not kind:                            # the student wrote the label itself
            label = re.match(r"(Subquestion|Solution|Answer):", text)
            kind, body = (label[1], text[label.end():]) if label else ("Solution", text)
        self.dialogue.turns.append(Turn(self.role, kind, body.strip()))
        if kind == "Answer":
            self.dialogue.answer = extract_answer("Answer:" + body)
        self.on_text(self, self.role, None, b"\n")


def pick(logits, jobs, temperature):
    """The next token of every row: the likeliest, or one drawn by the dialogue's own random numbers."""
    if not temperature:
        return logits.argmax(-1).tolist()
    shares = (logits.float() / temperature).softmax(-1).cumsum(-1)      # (B, V)
    draws = torch.tensor([job.rng.random() for job in jobs], device=logits.device)
    return torch.searchsorted(shares, draws[:, None] * shares[:, -1:]).clamp(max=logits.shape[-1] - 1)[:, 0].tolist()


@torch.inference_mode()
def work(student, jobs, batch_size, temperature, calculator):
    """Let one student write until every job has moved on to another student or is over."""
    waiting, rows = deque(jobs), [None] * min(batch_size, len(jobs))
    model, tokenizer = student.model, student.tokenizer
    weight = model.wte.weight
    cache = KVCache(model.config, len(rows), device=weight.device, dtype=weight.dtype)
    while True:
        for i, job in enumerate(rows):
            while rows[i] is None and waiting:
                rows[i] = waiting.popleft()
                cache.lengths[i] = 0
            if job := rows[i]:
                length = int(cache.lengths[i]) + len(job.tokens_to_read(tokenizer))
                if length > model.config.n_positions:
                    job.stop(f"the dialogue outgrew the {student.role}: {model.config.n_positions:,} tokens")
                    rows[i] = None
        if None in rows:                                                # rows that are done leave the batch,
            if waiting:
                continue
            n = len(rows) - rows.count(None)
            last = [i for i in range(n, len(rows)) if rows[i]]          # ... and the last ones take their places
            stay = [i if rows[i] else last.pop() for i in range(n)]
            cache.keep(stay)
            rows = [rows[i] for i in stay]
        if not rows:
            return
        counts = [len(job.feed) for job in rows]
        ids = torch.tensor([job.feed + [0] * (max(counts) - len(job.feed)) for job in rows], device=weight.device)
        tokens = pick(model(ids, cache, counts), rows, temperature)
        for i, job in enumerate(rows):
            job.take(tokens[i], tokenizer, calculator)
            if job.role != student.role:
                rows[i] = None


def solve(problems, students, method="socratic", batch_size=64, temperature=0.0, seed=0, calculator=True,
          on_text=lambda *_: None, scripts=None, max_turn=MAX_TURN):
    """
    Solve problems [Problem] with students {role: Student}; returns a [Dialogue], in the same order.

    on_text(job, speaker, kind, piece) is called for every piece (bytes) as it is written; the calculator is a speaker.
    scripts: a generator a problem, where it is not the method's own dialogue (eval.py gives away parts of it).
    """
    scripts = scripts or [script(problem, method) for problem in problems]
    jobs = [Job(problem, method, lines, on_text, seed, max_turn) for problem, lines in zip(problems, scripts)]
    for role in METHODS[method]:
        if here := [job for job in jobs if job.role == role]:
            work(students[role], here, batch_size, temperature, calculator)
    return [job.dialogue for job in jobs]


# ---------------------------------------------------------------- which students

def find_students(method, folders=None, dataset="demo", model="tiny"):
    """The folders of a method's students: those named, else the trained ones of this data set and model, else ours."""
    roles = METHODS[method]
    if folders:
        found = {read_config(Path(folder) / "config.json")[1].get("role"): Path(folder) for folder in folders}
        if missing := [role for role in roles if role not in found]:
            raise SystemExit(f"--method {method} needs {' and '.join(roles)}; --students names "
                             f"{', '.join(map(str, found))}. Lacking: {', '.join(missing)}")
        return {role: found[role] for role in roles}
    trained = {role: Path(f"runs/{dataset}-{Path(model).name}-{role}") for role in roles}
    if all((folder / "model.safetensors").exists() for folder in trained.values()):
        return trained
    embedded = {role: HERE / "students" / role for role in roles}
    if (dataset, model) == ("demo", "tiny") and all(folder.is_dir() for folder in embedded.values()):
        return embedded
    missing = [role for role, folder in trained.items() if not (folder / "model.safetensors").exists()]
    flags = (f" --dataset {dataset}" if dataset != "demo" else "") + (f" --model {model}" if model != "tiny" else "")
    raise SystemExit("No student yet for " + " and ".join(missing) + ". Train with:\n"
                     + "\n".join(f"  python train.py --role {role}{flags}" for role in missing))


def load_students(folders, device="auto", dtype="auto"):
    """{role: Student} of {role: folder}, ready to write; and says on the error stream which ones."""
    device, dtype = pick_device(device, dtype)
    students = {}
    for role, folder in folders.items():
        model = GPT.from_pretrained(folder).to(device, dtype).eval()
        students[role] = Student(role, model, get_tokenizer(model.info.get("tokenizer", "gpt2")))
        name = folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder
        about = f"{model.n_params() / 1e6:.1f} M parameters, {model.info.get('dataset', 'no data set')}"
        print(f"{role:10s} | {name} ({about})", file=sys.stderr)
    return students


# ---------------------------------------------------------------- the screen

COLORS = {"decomposer": 33, "solver": 36, "unified": 36, "cot": 36, "answer": 36, "calculator": 35}


class Screen:
    """Prints a dialogue as it is written: every turn a line, its speaker in front."""

    def __init__(self, color):
        self.color, self.fresh, self.decoder = color, True, codecs.getincrementaldecoder("utf-8")("replace")

    def __call__(self, job, speaker, kind, piece):
        if self.fresh:
            self.fresh = False
            print(f"{speaker:10s} | ", end="")
        text = f"{kind}:" if kind else self.decoder.decode(piece)
        if piece == b"\n":
            self.fresh = True
        elif self.color:
            text = f"\033[{COLORS[speaker]}m{text}\033[0m"
        print(text, end="", flush=True)


def print_dialogue(dialogue, screen):
    """A finished dialogue, as `Screen` would have shown it."""
    for turn in dialogue.turns:
        screen(None, turn.speaker, turn.kind, "")
        screen(None, turn.speaker, None, f" {turn.text}".encode())
        screen(None, turn.speaker, None, b"\n")


def print_answer(dialogue, color):
    if dialogue.ended != "finished":
        print(f"[{dialogue.ended}]")
    answer = "none found" if dialogue.answer is None else dialogue.answer
    print(f"\033[1m= {answer}\033[0m" if color else f"= {answer}")


def read_problems(lines, name):
    """Problems of a file: a record of data.py a line, or plain text a line."""
    problems = []
    for n, line in enumerate(lines, 1):
        if line.lstrip().startswith("{"):
            try:
                problems.append(Problem.from_json(line))
            except ValueError as error:
                raise SystemExit(f"{name}:{n}: {error}") from None
        elif line.strip():
            problems.append(Problem(f"{name}-{n}", line.strip()))
    return problems


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Solve word problems with trained students.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("problem", nargs="?", help="the problem (None: standard input; on a terminal, a prompt)")
    add("--file", help="a problem a line: plain text, or records of data.py (- is standard input)")
    add("--json", action="store_true", help="print a JSON object a problem")
    add("--method", default="socratic", choices=METHODS, help="which students solve it")
    add("--students", nargs="+", metavar="FOLDER",
        help="their folders (None: runs/<dataset>-<model>-<role>, else students/)")
    add("--dataset", default="demo", choices=DATASETS, help="use the students trained on this data set")
    add("--model", default="tiny", help="use the students of this size")
    add("--calculator", action=argparse.BooleanOptionalAction, default=True, help="compute <<...=...>> for the student")
    add("--temperature", type=float, default=0.0, help="0: always the likeliest token; 1: draw as the student believes")
    add("--seed", type=int, default=0, help="of the draws, together with the problem")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of weights and cache")
    args = parser.parse_args(argv)
    if args.students and args.problem is None and not os.path.isdir(args.students[-1]):
        args.problem = args.students.pop()  # infer.py --students A B "problem": argparse takes all three for folders
    return args


def main(args):
    color = sys.stdout.isatty()
    typing = args.problem is None and args.file is None and sys.stdin.isatty()
    if args.problem is not None:
        problems = [Problem("problem", args.problem)]
    elif args.file and args.file != "-":
        if not Path(args.file).is_file():
            raise SystemExit(f"{args.file} does not exist. It should hold a problem a line.")
        with open(args.file, encoding="utf-8") as file:
            problems = read_problems(file, args.file)
    else:
        problems = [] if typing else read_problems(sys.stdin, "stdin")
    if not typing and not any(clean(problem.problem) for problem in problems):
        raise SystemExit('There is no problem to solve. Try: python infer.py "Ava had 3 boxes with 4 pens in each. '
                         'Ava gave 5 pens to Ben. How many pens did Ava have left?"')
    folders = find_students(args.method, args.students, args.dataset, args.model)
    students = load_students(folders, args.device, args.dtype)
    options = {"method": args.method, "temperature": args.temperature, "seed": args.seed, "calculator": args.calculator}

    def solve_aloud(problem):
        screen = Screen(color)
        (dialogue,) = solve([problem], students, **options, on_text=screen)
        print_answer(dialogue, color)

    if typing:
        print("Type a problem, then Enter. An empty line ends.", file=sys.stderr)
        while text := input("\nProblem: ").strip():
            solve_aloud(Problem("problem", text))
    elif len(problems) == 1 and not args.json:
        solve_aloud(problems[0])
    else:
        for at in range(0, len(problems), 64):
            for dialogue in solve(problems[at:at + 64], students, **options):
                if args.json:
                    print(json.dumps(dialogue.to_json(), ensure_ascii=False))
                else:
                    print(f"\nProblem: {dialogue.problem.problem}")
                    print_dialogue(dialogue, Screen(color))
                    print_answer(dialogue, color)


if __name__ == "__main__":
    try:
        main(parse_args())
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        sys.exit(1)

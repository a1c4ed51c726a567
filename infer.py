"""
Does it think? Trained students solve problems: the decomposer asks, the solver answers.

    python infer.py 'Ava has 3 boxes with 4 pens each. She gives away 5. How many are left?'
    python infer.py                                  type problems at a prompt
    python infer.py --samples 1                      one dialogue a problem, as it is written
    python infer.py --file problems.txt --json       one problem per line (text, or a record)

Reads   the students of --students, else yours in runs/, else the embedded ones in students/
Writes  the dialogue, on the screen

A job is one student's part of a dialogue. It is a list of cues, texts that the student reads;
after each cue it writes a turn. The decomposer reads only the problem and writes all subquestions,
so everything that the solver will be given is known before the solver begins.

Small students are often wrong, but each time in another way. So several dialogues are drawn, and
the most frequent answer counts: self-consistency (Wang et al., 2023, arXiv 2203.11171).
"""

import argparse
import codecs
import json
import random
import re
import sys
from collections import Counter
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch

from data import (HERE, Problem, Step, calculate, clean, extract_answer, positive, read_lines,
                  run_name, segments, tokenize)
from gpt import GPT, KVCache, pick_device, read_config

METHODS = {"socratic": ("decomposer", "solver"), "unified": ("unified",), "cot": ("cot",),
           "answer": ("answer",)}
MAX_QUESTIONS = 16    # a decomposer that never stops is stopped
MAX_TURN = 256        # tokens; a turn that never ends is stopped too
TEMPERATURE = 0.7     # at which several dialogues are drawn

@dataclass
class Student:
    role: str
    model: GPT
    tokenizer: object

@dataclass
class Turn:
    speaker: str    # the student's role
    kind: str       # Subquestion, Solution or Answer
    text: str

@dataclass
class Dialogue:
    problem: Problem
    method: str
    seed: int = 0    # of its draws
    turns: list[Turn] = field(default_factory=list)
    answer: str | None = None
    ended: str = "finished"    # or the reason why it was stopped
    answers: list = field(default_factory=list)    # of all dialogues that voted

    def texts(self, kind):
        return [turn.text for turn in self.turns if turn.kind == kind]

    def to_json(self):
        return {"id": self.problem.id, "problem": self.problem.problem, "method": self.method,
                "turns": [vars(turn) for turn in self.turns], "answer": self.answer,
                "ended": self.ended, "answers": self.answers}

# ------------------------------------------------------------ one student's part of a dialogue

def make_cues(problem, role, steps=()):
    r"""
    The cues of a job, each a list of texts.

    A role that chooses its labels gets one cue, the problem. The solver gets one for each empty
    solution of `steps`, then one for the answer. Solutions that are given are context.

    >>> make_cues(Problem("", "Who won?"), "solver", [Step("Who ran?")])
    [['Problem: Who won?\n', 'Subquestion:', ' Who ran?\n', 'Solution:'], ['Answer:']]
    """
    parts = segments(replace(problem, steps=list(steps), answer=""), role)
    if role in ("decomposer", "unified", "cot"):
        return [[parts[0].text]]
    cues = [[]]
    for part in parts:
        if part.learned and not part.text.strip():    # an empty place: here the student writes
            cues.append([])
        else:
            cues[-1].append(part.text)
    return cues[:-1]    # after the last place there is nothing to read

class Job:
    """
    One student at work on one dialogue.

    ids     the tokens that it reads next: a cue, or the token it wrote last; [] when it is done
    text    the turn so far, in bytes, because a token may end in the middle of a letter
    forced  the tokens that the calculator still has to write
    """

    def __init__(self, dialogue, student, steps, calculator, on_text):
        self.dialogue, self.calculator = dialogue, calculator
        self.role, self.tokenizer = student.role, student.tokenizer
        self.cues = make_cues(dialogue.problem, self.role, steps)
        self.on_text = partial(on_text, dialogue)
        self.rng = random.Random(f"{dialogue.seed} {self.role} {dialogue.problem.problem}")
        self.n_tokens, self.n_positions = 0, student.model.config.n_positions
        self.forced = []
        self.begin_turn(self.cues.pop(0))

    def begin_turn(self, cue):
        """Read a cue. If it ends in a label, the turn begins with this label."""
        self.on_text("context", "".join(cue).encode())
        self.text, self.n_written = b"", 0
        if cue[-1] in ("Solution:", "Answer:"):
            self.text = cue[-1].encode()
            self.on_text(self.role, self.text)
        self.read([token for text in cue for token in tokenize(text, self.tokenizer)])

    def read(self, ids):
        self.ids, self.n_tokens = ids, self.n_tokens + len(ids)
        if self.n_tokens > self.n_positions:
            if self.n_written:
                self.file_turn()
            self.stop(f"the dialogue outgrew the {self.role}: over {self.n_positions:,} tokens")

    def take(self, token):
        """The student has chosen a token. While the calculator writes, the student only reads."""
        speaker = "calculator" if self.forced else self.role
        token = self.forced.pop(0) if self.forced else token
        is_end = token == self.tokenizer.eot_token
        piece = b"" if is_end else self.tokenizer.decode_single_token_bytes(token)
        line, newline, _ = piece.partition(b"\n")
        self.text += line
        self.n_written += 1
        self.on_text(speaker, line)
        if is_end or newline:
            self.file_turn()
            self.go_on(is_end)
        elif self.n_written == MAX_TURN:
            self.file_turn()
            self.stop(f"the {self.role}'s turn did not end within {MAX_TURN} tokens")
        else:
            self.read([token])
            # subtle: from `<<3*4=` on, the calculator writes `12>>`, one token a step.
            match = re.search(rb"<<([^<>=]*)=$", self.text)
            result = calculate(match[1].decode(errors="replace")) if match else None
            if self.calculator and result is not None:
                self.forced = tokenize(f"{result}>>", self.tokenizer)
                self.on_text("note", f"= the calculator: {result}>>".encode())

    def explain(self, logits):
        """Note the three likeliest next tokens (logits: (V,)), if the student is unsure."""
        shares, tokens = logits.float().softmax(-1).topk(3)
        if shares[0] < 0.9 and not self.forced:
            pairs = zip(self.tokenizer.decode_batch(tokens[:, None].tolist()), shares.tolist())
            likeliest = ", ".join(f"{text!r} {share:.0%}" for text, share in pairs)
            last = " ".join(self.text.decode(errors="replace").split(" ")[-4:])
            self.on_text("note", f"? after {last!r}: {likeliest}".encode())

    def file_turn(self):
        """Add the turn to the dialogue. Without a label it gets the kind that the role writes."""
        text = self.text.decode(errors="replace")
        kind, colon, rest = text.partition(":")
        if not colon or kind not in ("Subquestion", "Solution", "Answer"):
            kind, rest = "Subquestion" if self.role == "decomposer" else "Solution", text
        self.dialogue.turns.append(Turn(self.role, kind, rest.strip()))
        if kind == "Answer":
            self.dialogue.answer = extract_answer(text)
        self.on_text(self.role, b"\n")

    def go_on(self, is_end):
        """After a turn the next cue is read, or the student writes another turn, or it is done."""
        turns = self.dialogue.turns
        max_turns = MAX_QUESTIONS if self.role == "decomposer" else 2 * MAX_QUESTIONS
        if self.cues:
            # The newline that ends a turn is read, whether the student wrote it or the end token.
            self.begin_turn(["\n", *self.cues.pop(0)])
        elif is_end or turns[-1].kind == "Answer":
            self.ids = []
        elif len(turns) >= max_turns:
            self.stop(f"the {self.role} was stopped after {max_turns} turns")
        else:
            self.begin_turn(["\n"])

    def stop(self, why):
        self.ids, self.dialogue.ended = [], why

def choose(logits, jobs, temperature):
    """The next token of each row of logits (R, V): the likeliest, or drawn by the job's own rng."""
    if not temperature:
        return logits.argmax(-1).tolist()
    cumulative = (logits.float() / temperature).softmax(-1).cumsum(-1)          # (R, V)
    draws = torch.tensor([[job.rng.random()] for job in jobs], device=logits.device)
    tokens = torch.searchsorted(cumulative, draws * cumulative[:, -1:])         # (R, 1)
    return tokens.clamp(max=logits.shape[-1] - 1)[:, 0].tolist()

@torch.inference_mode()
def write(student, jobs, temperature=0.0, explain=False):
    """Let a student do its jobs side by side, each in a row of the cache."""
    model, device = student.model, student.model.wte.weight.device
    active = [job for job in jobs if job.ids]    # the job of each row
    cache = KVCache(model.config, len(active), device=device, dtype=model.wte.weight.dtype)
    while active:
        # Rows with a cue before them read it, each in one go. Else all rows write a token each.
        reading = [row for row, job in enumerate(active) if len(job.ids) > 1]
        chosen = [active[row] for row in reading] or active
        counts = [len(job.ids) for job in chosen]
        ids = [job.ids + [0] * (max(counts) - len(job.ids)) for job in chosen]  # (R, T)
        ids = torch.tensor(ids, device=device)
        logits = model.append(ids, cache, reading or slice(None), counts)       # (R, V)
        logits = logits[:, :student.tokenizer.n_vocab]    # some models have more, as padding
        for job, token, its_logits in zip(chosen, choose(logits, chosen, temperature), logits):
            if explain:
                job.explain(its_logits)
            job.take(token)
        for row in reversed(range(len(active))):
            if not active[row].ids:    # done: the last row moves into the gap
                cache.drop(row)
                active[row] = active[-1]
                active.pop()

def solve(problems, students, method="socratic", batch_size=64, temperature=None, seed=0,
          n_samples=1, calculator=True, explain=False, on_text=lambda *piece: None, given=None):
    """
    Solve problems [Problem] with students {role: Student}. Returns [Dialogue], in the same order.
    Of each problem n_samples are drawn, the first one with this seed, the next one with the next
    seed, and the one is returned that the vote elects.

    on_text(dialogue, speaker, bytes)  is called for every piece as it is written. The speaker is a
                role, the calculator, "context" (what a student is given), or "note" (what the
                calculator found; with explain also which tokens the student hesitated between)
    given       [[Step, ...], ...], a list for each dialogue: the solver gets these steps and fills
                the solutions that are empty; nobody is asked
    """
    if temperature is None:    # dialogues that vote must differ
        temperature = TEMPERATURE if n_samples > 1 else 0.0
    dialogues = [Dialogue(problem, method, seed + n)
                 for problem in problems for n in range(n_samples)]

    def ask(role, steps):
        jobs = [Job(dialogue, students[role], its_steps, calculator, on_text)
                for dialogue, its_steps in zip(dialogues, steps) if dialogue.ended == "finished"]
        for batch in chunks(jobs, batch_size):
            write(students[role], batch, temperature, explain)

    if given is None:
        ask(METHODS[method][0], [()] * len(dialogues))
        given = [list(map(Step, dialogue.texts("Subquestion"))) for dialogue in dialogues]
    if method == "socratic":
        ask("solver", given)
    return list(map(vote, chunks(dialogues, n_samples)))

def chunks(items, n):
    """The items in lists of n; the last one may be shorter."""
    return [items[at:at + n] for at in range(0, len(items), n)]

def vote(dialogues):
    """
    The first dialogue that has the most frequent answer, with all answers noted in it. None has no
    vote; of several answers with as many votes, the one drawn first wins.
    """
    answers = [dialogue.answer for dialogue in dialogues]
    votes = Counter(answer for answer in answers if answer is not None)
    elected = dialogues[answers.index(max(votes, key=votes.get, default=None))]
    elected.answers = answers
    return elected

# ------------------------------------------------------------ which students

def find_students(method, folders=None, dataset="demo", model="tiny"):
    """{role: folder}: those named; else yours, of this data set; else the embedded, for any."""
    roles, folders = METHODS[method], list(map(Path, folders or []))
    named = [str(read_config(folder / "config.json")[1].get("role")) for folder in folders]
    found = dict(zip(named, folders))
    if not folders:
        name = f"{run_name(dataset)}-{Path(model).name}"
        found = {role: Path(f"runs/{name}-{role}") for role in roles}
        if model == "tiny" and not all(is_student(folder) for folder in found.values()):
            found = {role: HERE / "students" / role for role in roles}
    missing = [role for role in roles if role not in found or not is_student(found[role])]
    if missing or len(found) < len(folders):    # or two folders of one role
        flags = f" --dataset {dataset} --model {model}"
        commands = [f"\n  python train.py --role {role}{flags}" for role in missing]
        raise SystemExit(f"--method {method} needs {' and '.join(roles)}. Named: "
                         f"{', '.join(named) or 'none'}. Missing: {', '.join(missing) or 'none'}"
                         f"{''.join(commands)}")
    return {role: found[role] for role in roles}

def is_student(folder):
    return (folder / "model.safetensors").exists()

def load_students(folders, device="auto", dtype="fp32"):
    """{role: Student} of {role: folder}. The error stream says which ones they are."""
    device, dtype = pick_device(device, dtype)
    students = {}
    for role, folder in folders.items():
        model = GPT.from_pretrained(folder).to(device, dtype).eval()
        students[role] = Student(role, model, model.get_tokenizer())
        print(f"{role:10s} | {folder} ({model.n_params() / 1e6:.1f} M parameters, "
              f"{model.info.get('dataset', 'no data set')})", file=sys.stderr)
    return students

# ------------------------------------------------------------ the screen and the command

class Screen:
    """
    Prints a dialogue as it is written: a turn a line, its speaker in front. To explain it also
    prints what a student is given (<), and below a turn what the calculator found (=) and what else
    the student might have written (?).
    """

    def __init__(self, explain=False):
        self.explain, self.begins_line, self.notes = explain, True, []
        # A token may end in the middle of an emoji; the decoder waits for the rest.
        self.decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def show(self, speaker, piece):
        if speaker == "context":
            self.add(f"< {line}" for line in piece.decode().split("\n") if line)
        elif speaker == "note":
            self.notes.append(piece.decode())
        else:
            if self.begins_line:
                print(f"{speaker:10s} | ", end="")
            text = self.decoder.decode(piece)
            if speaker == "calculator" and sys.stdout.isatty():
                text = f"\033[35m{text}\033[0m"    # in colour
            print(text, end="", flush=True)
            self.begins_line = piece == b"\n"
            if self.begins_line:
                self.add(self.notes)
                self.notes = []

    def add(self, lines):
        for line in lines if self.explain else ():
            print(f"{'':10s} {line}")

def solve_aloud(problem, students, explain, options):
    """Print one dialogue as it is written; of several, the first one with the elected answer."""
    screen, pieces = Screen(explain), []

    def on_text(dialogue, *piece):
        if options["n_samples"] == 1:
            screen.show(*piece)
        else:
            pieces.append((dialogue, *piece))

    (elected,) = solve([problem], students, explain=explain, on_text=on_text, **options)
    for dialogue, *piece in pieces:
        if dialogue is elected:
            screen.show(*piece)
    if elected.ended != "finished":
        print(f"[{elected.ended}]")
    n, n_votes = len(elected.answers), elected.answers.count(elected.answer)
    agreed = f"   ({n_votes} of {n} dialogues)" if pieces and elected.answer else ""
    print(f"= {elected.answer or 'none found'}{agreed}")

def read_problem(line):
    """A line is a record of data.py, or the text of a problem."""
    is_record = line.lstrip().startswith("{")
    return Problem.from_json(line) if is_record else Problem("", clean(line))

def add_student_flags(add):
    """The flags that infer.py and eval.py share: which students, and how they work."""
    add("--method", default="socratic", choices=METHODS, help="which students solve problems")
    add("--students", nargs="+", metavar="FOLDER",
        help="their folders (None: runs/<dataset>-<model>-<role>, else students/)")
    add("--model", default="tiny", help="use students of this size")
    add("--calculator", action=argparse.BooleanOptionalAction, default=True,
        help="compute <<...=...>> for the student")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"),
        help="of weights and cache; on a GPU bf16 is faster for large models, but rounds logits")

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Solve word problems with trained students.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    one_of = parser.add_mutually_exclusive_group().add_argument
    one_of("problem", nargs="?", help="the problem (None: standard input; at a terminal, a prompt)")
    one_of("--file", help="a problem a line: text, or records of data.py (- is standard input)")
    add = parser.add_argument
    add("--json", action="store_true", help="print a JSON object a problem")
    add("--explain", action="store_true",
        help="print what each student is given (<) and where it hesitates, below 90 %% (?)")
    add("--dataset", default="demo", help="use students of this data set")
    add_student_flags(add)
    add("--samples", type=positive,
        help=f"dialogues drawn at temperature {TEMPERATURE}; their most frequent answer counts. "
        "1: the likeliest token always (None: 16 for students from scratch, else 1)")
    add("--seed", type=int, default=0, help="of the draws, together with the problem's text")
    return parser.parse_args(argv)

def main(args):
    typing = not (args.problem is not None or args.file or args.json) and sys.stdin.isatty()
    if args.problem is not None:
        text = clean(args.problem.encode(errors="replace").decode())    # what is no UTF-8 is "?"
        problems = [Problem("", text)] if text else []
    else:
        problems = [] if typing else read_lines(args.file or "-", read_problem)
    if not problems and not typing:
        raise SystemExit("There is no problem to solve. Give one in quotes, before all flags:\n"
                         "  python infer.py 'Ava had 3 boxes of 4 pens. How many pens had Ava?'")
    for n, problem in enumerate(problems, 1):
        problem.id = problem.id or f"problem-{n}"
    folders = find_students(args.method, args.students, args.dataset, args.model)
    students = load_students(folders, args.device, args.dtype)
    is_small = all(student.tokenizer.name == "tiny" for student in students.values())
    options = {"method": args.method, "seed": args.seed, "calculator": args.calculator,
               "n_samples": args.samples or (16 if is_small else 1)}
    if typing:
        print("Type a problem on one line, without quotes. An empty line ends.", file=sys.stderr)
        while text := input("\nProblem: ").strip():
            solve_aloud(Problem("problem-1", clean(text)), students, args.explain, options)
    elif args.json:
        for batch in chunks(problems, 64):
            for dialogue in solve(batch, students, **options):
                print(json.dumps(dialogue.to_json(), ensure_ascii=False))
    else:
        for problem in problems:
            print(f"\nProblem: {problem.problem}")    # as the shell has passed it on
            solve_aloud(problem, students, args.explain, options)

if __name__ == "__main__":
    try:
        main(parse_args())
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        sys.exit(1)

"""
Does it think? Trained students solve problems: the decomposer asks, the solver answers.

    python infer.py 'Ava has 3 boxes with 4 pens each. She gives away 5. How many are left?'
    python infer.py                                  type problems at a prompt
    python infer.py --explain 'Ava has ...'          token by token: what is read, what is likely
    python infer.py --file problems.txt --json       one problem per line (text, or a record)

Reads   the students of --students, else yours in runs/, else the embedded ones in students/
Writes  the dialogue, to the screen

A job is one student's part of a dialogue. It is a list of cues, texts that the student reads. The
decomposer has one cue, the problem, and writes all subquestions. So everything that the solver will
be given is known before it begins: after each of its cues it writes one turn.

Small students are often wrong, but each time in another way. So several dialogues are drawn, and
the most frequent answer counts: self-consistency (Wang et al., 2023, arXiv 2203.11171).
"""

import argparse
import json
import random
import re
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch

from data import (HERE, Problem, Step, calculate, clean, extract_answer, positive, read_lines,
                  run_name, segments, tokenize)
from gpt import GPT, KVCache, limit_threads, pick_device

METHODS = {"socratic": ("decomposer", "solver"), "unified": ("unified",), "cot": ("cot",),
           "answer": ("answer",)}
MAX_QUESTIONS = 16    # a decomposer that never stops is stopped
MAX_TURN = 256        # tokens; a turn that never ends is stopped too
TEMPERATURE = 0.7     # at which several dialogues are drawn
UNSURE = 5 / 16       # an answer with a smaller share of the votes is most often wrong

@dataclass
class Student:
    role: str
    model: GPT
    tokenizer: object
    folder: str = ""

@dataclass
class Turn:
    speaker: str    # the student's role
    kind: str       # Subquestion, Solution or Answer
    text: str

@dataclass
class Dialogue:
    problem: Problem
    seed: int = 0    # of its draws
    turns: list[Turn] = field(default_factory=list)
    answer: str | None = None
    ended: str = "finished"    # or the reason why it was stopped
    answers: list = field(default_factory=list)    # of all dialogues that voted

    def texts(self, kind):
        return [turn.text for turn in self.turns if turn.kind == kind]

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

    def __init__(self, dialogue, student, steps, calculator):
        self.dialogue, self.calculator = dialogue, calculator
        self.role, self.tokenizer = student.role, student.tokenizer
        self.cues = make_cues(dialogue.problem, self.role, steps)
        self.rng = random.Random(f"{dialogue.seed} {self.role} {dialogue.problem.problem}")
        self.n_read, self.n_positions = 0, student.model.config.n_positions
        self.n_turns, self.forced = 0, []
        self.begin_turn(self.cues.pop(0))

    def begin_turn(self, cue):
        """Read a cue. If it ends in a label, the turn begins with this label."""
        self.text = cue[-1].encode() if cue[-1] in ("Solution:", "Answer:") else b""
        self.n_written = 0
        self.feed([token for text in cue for token in tokenize(text, self.tokenizer)])

    def feed(self, ids):
        """These tokens are what the model reads next."""
        self.ids, self.n_read = ids, self.n_read + len(ids)
        if self.n_read > self.n_positions:
            self.stop(f"the dialogue outgrew the {self.role}: over {self.n_positions:,} tokens")

    def take(self, token):
        """The student has chosen a token. While the calculator writes, the student only reads."""
        token = self.forced.pop(0) if self.forced else token
        is_end = token == self.tokenizer.eot_token
        piece = b"" if is_end else self.tokenizer.decode_single_token_bytes(token)
        line, newline, _ = piece.partition(b"\n")
        self.text += line
        self.n_written += 1
        if is_end or newline:
            self.end_turn(is_end)
        elif self.n_written == MAX_TURN:
            self.stop(f"the {self.role}'s turn did not end within {MAX_TURN} tokens")
        else:
            self.feed([token])
            # subtle: from `<<3*4=` on, the calculator writes `12>>`, one token a step.
            match = re.search(rb"<<([^<>=]*)=$", self.text)
            result = calculate(match[1].decode(errors="replace")) if match else None
            if self.calculator and result is not None:
                self.forced = tokenize(f"{result}>>", self.tokenizer)

    def end_turn(self, is_end):
        """After a turn the next cue is read, or the student writes another turn, or it is done."""
        self.file_turn()
        if self.cues:
            # The newline that ends a turn is read, whether the student wrote it or the end token.
            self.begin_turn(["\n", *self.cues.pop(0)])
        elif is_end or self.dialogue.turns[-1].kind == "Answer":
            self.ids = []
        elif self.n_turns >= (MAX_QUESTIONS if self.role == "decomposer" else 2 * MAX_QUESTIONS):
            self.stop(f"the {self.role} was stopped after {self.n_turns} turns")
        else:
            self.begin_turn(["\n"])

    def file_turn(self):
        """Add the turn to the dialogue. Without a label it gets the kind that the role writes."""
        text = self.text.decode(errors="replace")
        match = re.match("(Subquestion|Solution|Answer):(.*)", text)
        usual = "Subquestion" if self.role == "decomposer" else "Solution"
        kind, said = match.groups() if match else (usual, text)
        self.dialogue.turns.append(Turn(self.role, kind, said.strip()))
        self.n_turns, self.n_written = self.n_turns + 1, 0
        if kind == "Answer":
            self.dialogue.answer = extract_answer(text)

    def stop(self, why):
        if self.n_written:
            self.file_turn()
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
        if explain:
            print_choice(chosen[0], logits[0])
        for job, token in zip(chosen, choose(logits, chosen, temperature)):
            job.take(token)
        for row in reversed(range(len(active))):
            if not active[row].ids:    # done: the last row, which is not, moves into the gap
                cache.drop(row)
                active[row] = active[-1]
                active.pop()

def print_choice(job, logits):
    """What the student has read, and its three likeliest next tokens (logits: (V,))."""
    shares, tokens = logits.float().softmax(-1).topk(3)
    likeliest = [f"{job.tokenizer.decode([token])!r} {share:.0%}"
                 for token, share in zip(tokens.tolist(), shares.tolist())]
    by = "the calculator writes" if job.forced else "   ".join(likeliest)
    text = job.tokenizer.decode(job.ids)
    if len(job.ids) > 1:    # a cue
        print("\n".join(f"{job.role:10s} < {line}" for line in text.splitlines() if line))
        text = ""
    print(f"{job.role:10s} | {text!r:20} -> {by}")

def solve(problems, students, method="socratic", batch_size=64, temperature=None, seed=0,
          n_samples=1, calculator=True, explain=False, given=None):
    """
    Solve problems [Problem] with students {role: Student}. Returns [Dialogue], in the same order.
    Of each problem n_samples are drawn, and the vote elects the one that is returned. With the
    same n_samples, no two seeds share a dialogue.

    given       [[Step, ...], ...], a list for each dialogue: the solver gets these steps and fills
                the solutions that are empty; nobody is asked
    """
    if temperature is None:    # dialogues that vote must differ
        temperature = TEMPERATURE if n_samples > 1 else 0.0
    dialogues = [Dialogue(problem, seed * n_samples + n)
                 for problem in problems for n in range(n_samples)]

    def ask(role, steps):
        jobs = [Job(dialogue, students[role], its_steps, calculator)
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
    return [items[i:i + n] for i in range(0, len(items), n)]

def vote(dialogues):
    """The first dialogue with the most frequent answer that is not None; it notes all answers."""
    answers = [dialogue.answer for dialogue in dialogues]
    votes = Counter(answer for answer in answers if answer is not None)
    elected = dialogues[answers.index(max(votes, key=votes.get, default=None))]
    elected.answers = answers
    return elected

# ------------------------------------------------------------ which students

def load_students(args):
    """
    {role: Student}, one for each role of the method: those of --students; else yours, of this data
    set and model; else, if you have none of them, the embedded ones.
    """
    roles, size = METHODS[args.method], args.model or "tiny"
    name = f"{run_name(args.dataset)}-{Path(size).name}"
    folders = args.students or [f"runs/{name}-{role}" for role in roles]
    needs = f"--method {args.method} needs one student of each role: {' and '.join(roles)}"
    missing = [folder for folder in folders if not Path(folder, "model.safetensors").exists()]
    if missing == folders and args.method == "socratic" and not (args.students or args.model):
        folders, missing = [HERE / "students" / role for role in roles], []
    if missing:
        raise SystemExit(f"{needs}. No student is in {', '.join(missing)}.\n"
                         "Name folders with --students (after the problem), or train it:\n"
                         f"  python train.py --dataset {args.dataset} --model {size} --role ROLE")
    device, dtype = pick_device(args.device, args.dtype)
    students = {}
    for folder in folders:
        model = GPT.from_pretrained(folder).to(device, dtype).eval()
        limit_threads(model)
        role, read = (model.info.get(key, "unknown") for key in ("role", "dataset"))
        students[role] = Student(role, model, model.get_tokenizer(), folder)
        read = "demo, and knows no other wording" if read == "demo" else read
        print(f"{role:10s} | {folder} (has read {read})", file=sys.stderr)
    if set(students) != set(roles) or len(folders) > len(roles):
        raise SystemExit(needs)
    return students

# ------------------------------------------------------------ the screen and the command

def print_dialogue(dialogue):
    print(f"\nProblem: {dialogue.problem.problem}")
    for turn in dialogue.turns:
        print(f"{turn.speaker:10s} | {turn.kind}: {turn.text}")
    if dialogue.ended != "finished":
        print(f"[{dialogue.ended}]")
    print(f"= {dialogue.answer or 'none found'}{describe_votes(dialogue)}", flush=True)

def describe_votes(dialogue):
    """
    How the other dialogues have voted. How many agree says how sure they are, not who is right.

    >>> describe_votes(Dialogue(None, answer="7", answers=["7"] * 12 + ["1"] * 3 + ["21"]))
    '   (12 of 16 dialogues; 3 say 1, 1 says 21)'
    """
    n, votes = len(dialogue.answers), Counter(dialogue.answers)
    if n == 1 or dialogue.answer is None:
        return ""
    n_votes = votes.pop(dialogue.answer)
    text = f"{'unsure: ' if n_votes < UNSURE * n else ''}{n_votes} of {n} dialogues"
    others = [f"{k} {'say' if k > 1 else 'says'} {answer or 'nothing'}"
              for answer, k in votes.most_common(3)] + ["..."] * (len(votes) > 3)
    if n_votes in [k for answer, k in votes.items() if answer]:
        text += ", a tie"
    return f"   ({text}; {', '.join(others)})" if others else f"   ({text})"

def read_problem(line):
    """A line is a record of data.py, or the text of a problem."""
    is_record = line.lstrip().startswith("{")
    return Problem.from_json(line) if is_record else Problem("", clean(line))

def typed_problems():
    print("Type a problem on one line, without quotes. An empty line ends.", file=sys.stderr)
    while text := input("\nProblem: ").strip():
        yield Problem("typed", text)

def add_student_flags(add):
    """The flags that infer.py and eval.py share: which students, and how they work."""
    add("--method", default="socratic", choices=METHODS, help="which students solve problems")
    add("--students", nargs="+", metavar="FOLDER",
        help="their folders (None: runs/<dataset>-<model>-<role>, else students/)")
    add("--model", help="use your students of this size (None: tiny)")
    add("--calculator", action=argparse.BooleanOptionalAction, default=True,
        help="compute <<...=...>> for the student")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="fp32", choices=("fp32", "bf16", "fp16"),
        help="of weights and cache; on a GPU bf16 is faster for large models, but rounds logits")

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Solve word problems with trained students.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("problem", nargs="?", help="the problem (None: standard input; at a terminal, a prompt)")
    add("--file", help="one problem per line: text, or records of data.py (- is standard input)")
    add("--json", action="store_true", help="print one JSON object per problem")
    add("--explain", action="store_true", help="print the likeliest dialogue, token by token")
    add("--dataset", default="demo", help="use your students of this data set")
    add_student_flags(add)
    add("--samples", type=positive,
        help=f"dialogues that vote, drawn at temperature {TEMPERATURE}; 1: the likeliest tokens "
        "(None: 16 for students from scratch, else 1; eval.py draws 1 if nothing is said)")
    add("--seed", type=int, default=0, help="of the random draws, which also depend on the text")
    return parser.parse_args(argv)

def main(args):
    if args.problem is not None:
        text = clean(args.problem.encode(errors="replace").decode())    # what is no UTF-8 is "?"
        problems = [Problem("typed", text)] if text else []
    elif args.file or args.json or not sys.stdin.isatty():
        problems = read_lines(args.file or "-", read_problem)
        for n, problem in enumerate(problems, 1):
            problem.id = problem.id or f"problem-{n}"
    else:
        problems = typed_problems()
    if not problems:
        raise SystemExit("There is no problem to solve. Give one in quotes, before all flags:\n"
                         "  python infer.py 'Ava had 3 boxes of 4 pens. How many pens had Ava?'")
    students = load_students(args)
    from_scratch = all(student.model.is_from_scratch() for student in students.values())
    n_samples = 1 if args.explain else args.samples or (16 if from_scratch else 1)
    batches = chunks(problems, 64) if args.json else ([problem] for problem in problems)
    for batch in batches:
        for dialogue in solve(batch, students, args.method, seed=args.seed, n_samples=n_samples,
                              calculator=args.calculator, explain=args.explain):
            if args.json:
                print(json.dumps(asdict(dialogue), ensure_ascii=False), flush=True)
            else:
                print_dialogue(dialogue)

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a console that lacks a letter shows "?"
    try:
        main(parse_args())
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        sys.exit(1)

"""
Where does the text come from? A teacher, a large model, writes it; what proves right is kept.

    python annotate.py                                            a recorded teacher: no key
    python annotate.py --dataset svamp --teacher NAME --dry-run   what asking would cost
    python annotate.py --dataset svamp --teacher NAME             OpenAI; key in OPENAI_API_KEY
    python annotate.py --dataset mine.jsonl --teacher NAME --base-url http://localhost:11434

Reads   problem records (data.py), students/exemplars.toml
Writes  annotations/<dataset>-<mode>.jsonl            what is kept: the records, source: teacher
        annotations/<dataset>-<mode>.rejected.jsonl   what is not, each text beside the reason
        annotations/<dataset>-<mode>.replies.jsonl    every reply as it came; the other two are
                                                      made of these, or of a recording

The teacher writes the dialogue in the very form that a student learns, so reading it is `segments`
backwards. Nothing is guessed or repaired: a text that is not in the form is rejected. Only steps
that merely repeat a number of the problem are left out.
"""

import argparse
import hashlib
import json
import os
import re
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path

import requests
from requests.exceptions import ProxyError, SSLError

from data import (CALCULATION, DATASET_HELP, HERE, NUMBER, Problem, Step, calculate, check_shape,
                  clean, extract_answer, find_values, load_problems, positive, read_lines,
                  read_toml, replace_file, run_name, same_answer, segments)

RECORDING = HERE / "students" / "demo-teacher.jsonl"    # a real teacher's replies about the demo
OPENAI = "https://api.openai.com/v1"
TEMPERATURE, MAX_TOKENS = 0.7, 1024    # --body changes both
TIMEOUT = 600       # seconds for one reply
ATTEMPTS = 8        # of one request
FIRST_WAIT = 1.0    # seconds before the second attempt, then twice as long each time, up to 60

# ------------------------------------------------------------ the question

def make_messages(problem: Problem, mode: str, dataset: str) -> list[dict]:
    """The chat that the teacher goes on with: the task, solved examples, then the problem."""
    table, role = read_toml("exemplars.toml"), find_role(problem, mode)
    is_word = problem.answer in ("yes", "no")
    if dataset not in table["examples"]:    # one's own file, world, a mixture
        dataset = "strategyqa" if is_word else "gsm8k"
    messages = []
    for text in table["examples"][dataset].strip().split("\n\n"):
        example = read_example(text)
        messages.append({"role": "user", "content": make_question(example, role, mode)})
        messages.append({"role": "assistant", "content": make_reply(example, role)})
    messages.append({"role": "user", "content": make_question(problem, role, mode)})
    task = table["task"][role].format(**table["word" if is_word else "number"])
    messages[0]["content"] = f"{task}\n\n{messages[0]['content']}"
    return messages

def find_role(problem: Problem, mode: str) -> str:
    """Whose part the teacher writes. In the mode `socratic-gt` that is what the record lacks."""
    if mode == "cot":
        return "cot"
    if mode == "socratic" or not problem.steps:
        return "unified"
    if all(step.solution for step in problem.steps) and not problem.evidence:
        return "decomposer"
    return "solver" if all(step.question for step in problem.steps) else "unified"

def make_question(problem: Problem, role: str, mode: str) -> str:
    """What the teacher reads of a problem."""
    lines = [segments(problem, role)[0].text.strip()]
    if mode == "socratic-gt" and role != "decomposer":
        lines += [f"Fact: {clean(fact)}" for fact in problem.evidence]
    if role == "solver":
        lines += [f"Subquestion: {clean(step.question)}" for step in problem.steps]
    if role == "decomposer":
        lines += [f"Solution: {clean(step.solution)}" for step in problem.steps]
    return "\n".join(lines)

def make_reply(problem: Problem, role: str) -> str:
    """What it should write, given a solved problem: the dialogue, as a student learns it."""
    # The solver's part without the subquestions that it is given is a chain of thought.
    parts = segments(problem, "cot" if role == "solver" else role)
    return "".join(part.text for part in parts[1:])

def read_example(text: str) -> Problem:
    """A solved example of students/exemplars.toml."""
    said = read_dialogue(text, "unified")
    steps = list(map(Step, said["Subquestion"], said["Solution"]))
    problem, facts = re.match("Problem: (.*)", text)[1], re.findall("(?m)^Fact: (.*)", text)
    return Problem("example", problem, steps, said["Answer"][0], evidence=facts)

# ------------------------------------------------------------ reading the reply

class Rejected(Exception):
    """A reply that is not kept. The text says why: the reason, then perhaps a colon and details."""

# The finish reasons of a reply, and why it is not kept. With any other reason it is asked again.
ENDS = {"stop": None, "length": "cut off", "max_tokens": "cut off", "content_filter": "filtered"}
THINKING_ENDS = re.compile(r"[<\[]/\w*(?:think|reason)\w*[>\]]", re.IGNORECASE)
LINE = re.compile(r"(Subquestion|Solution|Answer): *(\S.*)")
# None of this belongs in a text: tags, templates, markup, a second label.
MARK = re.compile(r"[<>{}\[\]\\|`]|(?:Problem|Subquestion|Solution|Answer):")
LIKE_A_LABEL = re.compile(r"(?:sub-?question|solution|answer)\b[^:]{0,8}:\s*\S", re.IGNORECASE)
LETTERS = {"Subquestion": "q", "Solution": "s", "Answer": "a", "other": "-"}
# The lines that each role writes, a letter for each.
FORMS = {"unified": "(qs)+a?", "cot": "s+a?", "solver": "s+a?", "decomposer": "q+"}

def read_reply(reply) -> tuple[str, str | None]:
    """(text, why it cannot be kept) of a chat completion. Reasoning in other fields is not read."""
    try:
        if "refused" in reply:    # see Run.request
            return "", f"refused by the server: {reply['refused']}"
        choice = reply["choices"][0]
        finish = (choice.get("finish_reason") or "stop").lower().partition(":")[0]
        content, fault = choice["message"].get("content"), ENDS[finish]
    except (KeyError, IndexError, TypeError, AttributeError):
        return "", "broken"
    return str(content or "").encode("utf-8", "replace").decode(), fault    # no half surrogates

def read_dialogue(text: str, role: str) -> dict[str, list[str]]:
    """
    {label: its texts} of the dialogue in a reply: the last unbroken run of labelled lines.

    Other text interrupts a run; bold marks, fences and blank lines do not. An earlier run must be
    a complete draft, with an answer: else the beginning of the dialogue would be lost.

    >>> read_dialogue("Let me see.\\n**Solution:** 3*4 = <<3*4=12>>12\\n\\nAnswer: 12", "cot")
    {'Subquestion': [], 'Solution': ['3*4 = <<3*4=12>>12'], 'Answer': ['12']}
    """
    lines = []    # (label, text)
    for line in THINKING_ENDS.split(text)[-1].replace("**", "").split("\n"):
        line = line.strip()
        match = LINE.fullmatch(line)
        if match and not MARK.search(CALCULATION.sub("", match[2])):
            lines.append(match.groups())
        elif LIKE_A_LABEL.search(line):
            raise Rejected(f"not in the form: {line}")
        elif line and not line.startswith("```"):
            lines.append(("other", line))
    kinds = "".join(LETTERS[label] for label, _ in lines)    # such as "-qsqsa-"
    match = re.fullmatch(f"-*([qsa]*a-+)*(?P<dialogue>{FORMS[role]})-*", kinds)
    if not match:
        raise Rejected(f"not in the form: the lines are {kinds}")
    said = {"Subquestion": [], "Solution": [], "Answer": []}
    for label, text in lines[match.start("dialogue"):match.end("dialogue")]:
        said[label].append(text)
    return said

# ------------------------------------------------------------ judging it

def judge(problem: Problem, reply: dict, mode: str, teacher: str) -> Problem:
    """The record that is kept of a reply, or Rejected. What is kept is clean by construction."""
    text, fault = read_reply(reply)
    if fault:
        raise Rejected(fault)
    role = find_role(problem, mode)
    said = read_dialogue(text, role)
    solutions = said["Solution"]
    questions = said["Subquestion"] or [""] * len(solutions)
    if role == "solver":
        questions = [step.question for step in problem.steps]
    if role == "decomposer":
        solutions = [step.solution for step in problem.steps]
    if len(questions) != len(solutions):
        raise Rejected("not one line for each step")
    steps = list(map(Step, questions, solutions))
    if role != "decomposer":
        steps = judge_solutions(problem, steps, said["Answer"])
    judge_questions(problem, steps)
    return replace(problem, steps=steps, source=teacher)

def judge_solutions(problem, steps, answers) -> list[Step]:
    """The steps that calculate something, all of it right, and lead to the gold answer."""
    kept, results, stated = [], [], find_numbers(problem.problem)
    for step in steps:
        found, numbers = check_calculations(step.solution), find_numbers(step.solution)
        results += found
        if found or problem.answer in ("yes", "no"):
            kept.append(step)
        # Else it may only repeat numbers of the problem, and is left out; never the last one.
        elif step is steps[-1] or "=" in step.solution or not numbers or numbers - stated:
            raise Rejected(f"a solution without a calculation: {step.solution}")
    # The line with the answer may be missing where the last result is the answer.
    values = ["", *results, *answers]
    answer = extract_answer(f"Answer: {values[-1]}")
    if not same_answer(answer, problem.answer):
        raise Rejected(f"wrong answer: {answer}, not {problem.answer}" if answer else "no answer")
    return kept

def check_calculations(solution: str) -> list[str]:
    """
    The results of a solution's calculations. Rejected unless each is true and written as in the
    data: the same calculation before it, its result after it.

    >>> check_calculations("They have 3*4 = $<<3*4=12>>12 and 12-5 = <<12-5=7>>7 left.")
    ['12', '7']
    """
    results = []
    for match in CALCULATION.finditer(solution):
        expression, result = match[1].strip(), match[2].strip()
        # It may be rounded, but then it is right to its last digit: 10/3=3.33, not 10/3=3.
        error, n_decimals = calculate(f"({expression})-({result})"), len(result.partition(".")[2])
        tolerance = 0.500001 / 10**n_decimals if n_decimals else 0
        if not error or abs(float(error)) > tolerance:
            raise Rejected(f"false arithmetic: {expression}={result}")
        # All arithmetic before it counts, so that it is not cut out of a larger equation.
        before = re.search(r"[-\d\s.,+*/^()%$=×÷−]*$", solution[:match.start()])[0]
        before, same = (re.sub(r"[\s$]", "", text).lstrip(".,") for text in (before, expression))
        after = re.match(rf"\$?(-?{NUMBER})(?!\s*[*/+^=])", solution[match.end():])
        if before != f"{same}=" or not after or after[1] != result:
            raise Rejected(f"an annotation that does not fit its text: {solution}")
        if re.search(r"[\d)%]\s*[-+*/×÷−]", expression):    # not so in <<5=5>>
            results.append(result)
    return results

def judge_questions(problem, steps) -> None:
    """Subquestions are asked before anything is solved, so they may hold no result."""
    solutions = " ".join(step.solution for step in steps)
    results = {calculate(result) for _, result in CALCULATION.findall(solutions)}
    secrets = (results | {problem.answer}) - find_numbers(problem.problem)
    for step in steps:
        if find_numbers(step.question) & secrets:
            raise Rejected(f"a subquestion gives a result away: {step.question}")

def find_numbers(text: str) -> set[str]:
    """
    The numbers of a text in digits, or in words up to 99. "One" is none: it may be a pronoun.

    >>> sorted(find_numbers("Thirty-one of 1,000 pens, one card"))
    ['1000', '31']
    """
    numbers, values = set(find_values(text)), read_toml("numbers.toml")["cardinals"]
    for word in re.findall("[a-z]+(?:-[a-z]+)?", text.lower()):
        parts = word.split("-")
        if word != "one" and values.keys() >= set(parts):
            numbers.add(str(sum(int(values[part]) for part in parts)))
    return numbers

# ------------------------------------------------------------ the run

class Stop(Exception):
    """Nothing more is asked; what is on disk stays."""

class Run:
    """One command: its problems, the replies on disk, the server that is asked for others."""

    def __init__(self, args, problems, path, rows):
        self.args, self.problems, self.path = args, problems, path
        self.lock, self.stopping = threading.Lock(), threading.Event()
        self.kept = {}        # records by the id of their problem
        self.rejected = []    # each reply with its reason
        self.missing = []     # why a reply could not be had, for each problem that lacks one
        self.on_disk = {self.key(row): row for row in rows}
        self.has_asked, self.n_replies = False, len(rows)
        self.spent = sum(self.cost(row["reply"]) for row in rows)

    def key(self, row) -> tuple:
        """What a reply on disk has in common with the one that is wanted."""
        names = ["id", "sample", "problem_sha256"]
        if not self.args.replay:    # a recording takes any prompt
            names += ["messages_sha256", "request_sha256", "teacher"]
        return tuple(str(row.get(name)) for name in names)

    def annotate_all(self):
        """The first request goes alone, since a wrong key shows there; then many at a time."""
        todo, start = list(self.problems), time.time()
        with ThreadPoolExecutor(self.args.workers) as pool:
            try:
                while todo and not self.has_asked:
                    self.annotate(todo.pop(0))
                if self.has_asked and not self.n_replies:
                    raise SystemExit(
                        f"{self.args.base_url}: {self.missing[-1]}\n  Is it running? Does it have "
                        f"a model {self.args.teacher!r}? Is OPENAI_API_KEY its key?")
                futures = [pool.submit(self.annotate, problem) for problem in todo]
                for n, _ in enumerate(as_completed(futures), 1):
                    if n % 10 == 0 or n == len(todo):
                        left = int((len(todo) - n) * (time.time() - start) / n)
                        print(f"{n:6,}/{len(todo):,} problems | {self.n_replies:,} replies | "
                              f"{self.spent:.4f} spent | {left // 60}:{left % 60:02d} left",
                              flush=True)
            except KeyboardInterrupt:
                self.stopping.set()
                self.missing.append("interrupted")
                print("\ninterrupted: waiting for the requests under way", flush=True)

    def annotate(self, problem):
        """Settle a problem. Whatever happens, the run goes on with the others."""
        try:
            self.judge_replies(problem)
        except Exception as error:
            self.missing.append(str(error))
            if isinstance(error, (Stop, OSError)):    # OSError: a reply cannot be written
                self.stopping.set()

    def judge_replies(self, problem):
        """Judge the replies to a problem until one is kept. One cut off gets one try more."""
        mode, n_tries, room, sample = self.args.mode, self.args.tries, 1, 0
        messages = make_messages(problem, mode, self.args.dataset)
        while sample < n_tries:
            row = self.get_row(problem, messages, sample, room)
            try:
                self.kept[problem.id] = judge(problem, row["reply"], mode, row["teacher"])
                return
            except Rejected as error:
                reason, text = str(error), read_reply(row["reply"])[0]
            self.rejected.append(
                {"id": problem.id, "sample": sample, "reason": reason, "text": text})
            if reason.startswith(("filtered", "refused")):    # it would be again
                return
            if reason == "cut off" and room == 1:    # the next has twice the room
                n_tries, room = n_tries + 1, 2
            sample += 1

    def get_row(self, problem, messages, sample, room) -> dict:
        """A row of the replies: one on disk, or else what the server says now, put on disk."""
        body = make_body(self.args, messages, sample, room)
        row = {"id": problem.id, "sample": sample, "problem_sha256": sha16(problem.problem),
               "messages_sha256": sha16(json.dumps(messages)),
               "request_sha256": sha16(json.dumps([self.args.base_url, make_body(self.args, [])])),
               "teacher": self.args.teacher}
        if self.key(row) in self.on_disk:
            return self.on_disk[self.key(row)]
        if self.args.replay:
            raise RuntimeError("the recording holds fewer replies")
        if self.args.dry_run:    # English has 3 to 4 characters a token
            n_out = body.get("max_tokens") or body.get("max_completion_tokens")
            self.spent += self.cost({"usage": {"prompt_tokens": len(json.dumps(messages)) // 3,
                                               "completion_tokens": n_out}})
            raise RuntimeError("a dry run asks nothing")
        if self.args.budget is not None and self.spent >= self.args.budget:
            raise Stop(f"the budget of {self.args.budget:g} is spent")
        self.has_asked = True
        row["reply"] = self.request(body)
        if "refused" in row["reply"] and not self.n_replies:    # it is not this problem's fault
            raise Stop(row["reply"]["refused"])
        with self.lock, open(self.path, "ab") as file:
            file.write(to_line(row))
            self.n_replies += 1
            self.spent += self.cost(row["reply"])
        return row

    def request(self, body) -> dict:
        """The server's reply, or {"refused": reason}. RuntimeError if no attempt succeeds."""
        url, key = f"{self.args.base_url}/chat/completions", os.environ.get("OPENAI_API_KEY", "")
        headers = {"Authorization": f"Bearer {key.strip()}"} if key else {}
        wait, error = 0, ""
        for attempt in range(ATTEMPTS):
            if wait >= 8:
                print(f"{error[:60]}: the next attempt in {wait} s", file=sys.stderr, flush=True)
            if self.stopping.wait(wait):
                raise Stop("the run has stopped")
            wait = min(60, FIRST_WAIT * 2**attempt)
            try:
                response = requests.post(url, json=body, headers=headers, timeout=(10, TIMEOUT))
                status, text = response.status_code, clean(response.text)
                if status == 200 and read_reply(response.json())[1] != "broken":
                    return response.json()
            except requests.RequestException as cause:    # one of them: the text is no JSON
                error = f"no reply: {type(cause).__name__}: {cause}"[:300]
                if isinstance(cause, (ProxyError, SSLError)) and not self.n_replies:
                    raise Stop(error) from None
                continue
            error = f"{status} {text.replace(key.strip() or '***', '***')[:300]}"
            if status in (401, 402, 403, 404) or "insufficient_quota" in text:
                raise Stop(error)
            if status in (400, 413, 422):    # for example, the problem is too long
                return {"refused": error}
            named = response.headers.get("Retry-After", "")
            if named.isdecimal() and int(named):    # seconds
                wait = min(int(named), 3600)
        raise RuntimeError(error)

    def cost(self, reply) -> float:
        usage, (price_in, price_out) = reply.get("usage"), self.args.price
        counts = usage if type(usage) is dict else {}
        n_in, n_out, n_all = (n if type(n := counts.get(name)) is int else 0 for name in
                              ("prompt_tokens", "completion_tokens", "total_tokens"))
        n_out = max(n_out, n_all - n_in)    # hidden reasoning may be in the total only
        return (n_in * price_in + n_out * price_out) / 1e6

    def finish(self, out) -> int:
        """Write what is kept and rejected, print a summary, return the exit status."""
        kept = [self.kept[problem.id] for problem in self.problems if problem.id in self.kept]
        replace_file(out, *(f"{record.to_json()}\n".encode() for record in kept))
        replace_file(beside(out, "rejected"), *map(to_line, self.rejected))
        print(f"{len(kept):,} of {len(self.problems):,} problems are kept: {out}")
        reasons = Counter(row["reason"].partition(":")[0] for row in self.rejected)
        for reason, n in reasons.most_common():
            print(f"{n:8,} replies rejected: {reason}")
        for reason, n in Counter(self.missing).most_common():
            print(f"{n:8,} problems missing: {reason}")
        print(f"{self.n_replies:,} replies, cost {self.spent:.4f}")
        if self.missing and not self.args.replay:
            print("The same command goes on where this one stopped.")
        return 1 if self.missing else 0

def make_body(args, messages, sample=0, room=1) -> dict:
    """The JSON of a request for `room` times as many tokens. The first sample is greedy."""
    body = {"model": args.teacher, "messages": messages, "seed": sample, "stream": False,
            "temperature": TEMPERATURE if sample else 0.0, "max_tokens": MAX_TOKENS} | args.body
    for name in ("max_tokens", "max_completion_tokens"):
        if body.get(name):
            body[name] *= room
    return {name: value for name, value in body.items() if value is not None}

def sha16(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

def beside(out: Path, what: str) -> Path:
    """annotations/demo-cot.replies.jsonl, beside annotations/demo-cot.jsonl."""
    return Path(f"{str(out).removesuffix('.jsonl')}.{what}.jsonl")

def to_line(row: dict) -> bytes:
    return (json.dumps(row) + "\n").encode()

# ------------------------------------------------------------ the command

def server_url(text):
    url = text.rstrip("/")
    return f"{url}/v1" if re.fullmatch("(https?://)?[^/]*", url) else url    # a bare host

def json_object(text):
    return {} | json.loads(text)

def prices(text):
    price_in, price_out = map(float, text.split(","))
    return price_in, price_out

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Let a teacher write subquestions and solutions; keep what is right.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", help=DATASET_HELP)
    add("--limit", type=positive, help="only the first so many (None: all; demo and world: 40)")
    add("--mode", default="socratic", choices=("socratic", "socratic-gt", "cot"),
        help="what the teacher writes; socratic-gt: what the record lacks; cot: solutions only")
    add("--teacher", metavar="NAME", help="the model to ask, as its server calls it")
    add("--base-url", type=server_url, default=OPENAI, help="an OpenAI-compatible chat server")
    add("--body", type=json_object, default="{}", metavar="JSON",
        help="merged into every request; null removes a field")
    add("--workers", type=positive, default=8, help="requests at a time")
    add("--tries", type=positive, default=3,
        help="replies to a problem until one is kept; the first is greedy, the others are drawn")
    add("--price", type=prices, default="0,0", metavar="IN,OUT",
        help="what a million prompt tokens and a million reply tokens cost")
    add("--budget", type=float, help="stop when the replies on disk cost so much (needs --price)")
    add("--dry-run", action="store_true", help="ask nothing; say what it would cost")
    add("--replay", metavar="FILE", help="ask nothing; take the replies of an earlier run")
    add("--out", metavar="FILE", help="where to write (None: annotations/<dataset>-<mode>.jsonl)")
    return parser.parse_args(argv)

def read_row(line) -> dict:
    row = json.loads(line)
    if type(row) is not dict or type(row.get("reply")) is not dict:
        raise ValueError("a line of a recording must be an object with a reply, also an object")
    for name in ("id", "teacher"):
        check_shape(row.get(name), "", repr(name))
    return row

def main(args):
    """The exit status: 1 where problems are missing."""
    name = run_name(args.dataset)
    if args.budget is not None and not any(args.price):
        raise SystemExit("--budget needs the prices of a million tokens: --price IN,OUT")
    if not (args.replay or args.teacher):
        if (args.dataset, args.mode, args.base_url) != ("demo", "socratic", OPENAI):
            raise SystemExit("Which teacher? Name the model as its server does: --teacher NAME\n"
                             "  The recorded one has seen demo problems only, in mode socratic.")
        args.replay = RECORDING
    is_file = args.dataset.endswith(".jsonl") and "+" not in args.dataset
    split = "all" if is_file else "train"
    limit = args.limit or (40 if name in ("demo", "world") else None)
    problems = [problem for problem in load_problems(args.dataset, split, limit=limit)
                if problem.answer.strip()]    # without a gold answer no reply can be judged
    out = Path(args.out or f"annotations/{name}-{args.mode}.jsonl").expanduser()

    path = Path(args.replay or beside(out, "replies"))
    rows = []
    if args.replay or path.exists():
        rows = read_lines(path, read_row, may_be_torn=not args.replay)
    if args.replay:    # it may be about some of the problems only
        seen = {row["id"] for row in rows}
        problems = [problem for problem in problems if problem.id in seen]
    elif not args.dry_run:
        if args.base_url == OPENAI and not os.environ.get("OPENAI_API_KEY"):
            raise SystemExit(f"{OPENAI} needs a key in the environment variable OPENAI_API_KEY.")
        replace_file(path, *map(to_line, rows))    # without a line that a kill has torn
    run = Run(args, problems, path, rows)
    run.annotate_all()
    if args.dry_run:
        print(f"{len(run.missing):,} problems to ask about; with one try for each, all replies "
              f"cost at most {run.spent:.2f}")
        return 0
    return run.finish(out)

if __name__ == "__main__":
    raise SystemExit(main(parse_args()))

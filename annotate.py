"""
Where does the text come from? A teacher, a large model, writes it; what can be trusted is kept.

    python annotate.py                                            a recorded teacher: no key
    python annotate.py --dataset svamp --teacher NAME --dry-run   what asking would cost
    python annotate.py --dataset svamp --teacher NAME             OpenAI; key in OPENAI_API_KEY
    python annotate.py --dataset mine.jsonl --teacher NAME --base-url http://localhost:11434

Reads   problem records (data.py), students/exemplars.toml
Writes  annotations/<dataset>-<mode>.jsonl            what is kept: the records, source: teacher
        annotations/<dataset>-<mode>.rejected.jsonl   what is not, each text beside the reason
        annotations/<dataset>-<mode>.replies.jsonl    every reply as it came; the other two are made
                                                      from it, so reading it again costs nothing

The teacher writes the dialogue in the very form that a student learns, so reading it is `segments`
backwards. Nothing is guessed or repaired: a text that is not in the form is rejected. Only steps
that merely repeat a number of the problem are left out.
"""

import argparse
import hashlib
import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import Retry
from requests.packages.urllib3.exceptions import InvalidHeader

from data import (DATASET_HELP, HERE, NUMBER, Problem, Step, calculate, clean, extract_answer,
                  load_problems, positive, read_lines, read_toml, replace_file, run_name,
                  same_answer, segments)

RECORDING = HERE / "students" / "demo-teacher.jsonl"    # a real teacher's replies about the demo
OPENAI = "https://api.openai.com/v1"
TEMPERATURE, MAX_TOKENS = 0.7, 1024    # --body changes both
ATTEMPTS = 8        # of one request
FIRST_WAIT = 1.0    # seconds before the second attempt, then twice as long each time, up to 60

# ------------------------------------------------------------ the question

def make_messages(problem: Problem, mode: str, dataset: str) -> list[dict]:
    """The chat that the teacher goes on with: the task, solved examples, then the problem."""
    table, role = read_toml("exemplars.toml"), find_role(problem, mode)
    is_word = problem.answer in ("yes", "no")
    if dataset not in table["examples"]:    # one's own file
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
    """
    Whose part the teacher writes. In the mode `socratic-gt` it writes what the record lacks: to
    gold solutions the subquestions, to gold subquestions the solutions, to facts or a formula both.
    """
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
    steps = [Step(*pair) for pair in zip(said["Subquestion"], said["Solution"])]
    facts = re.findall("^Fact: (.*)", text, re.MULTILINE)
    return Problem("example", re.match("Problem: (.*)", text)[1], steps, said["Answer"][0],
                   evidence=facts)

# ------------------------------------------------------------ reading the reply

class Rejected(Exception):
    """A reply that is not kept. The text says why: the reason, then perhaps a colon and details."""

LINE = re.compile(r"(Subquestion|Solution|Answer): *(\S.*)")
CALCULATION = re.compile(r"<<([^<>=]*)=([^<>=]*)>>")
# Nothing of this belongs into a text: tags, templates, markup, a second label.
MARK = re.compile(r"[<>{}\[\]\\|`]|\*\*|(?:Problem|Subquestion|Solution|Answer):")
LIKE_A_LABEL = re.compile(r"(?:sub-?question|solution|answer)\b[^:]{0,8}:\s*\S", re.IGNORECASE)
THINKING_ENDS = re.compile(r"[<\[]/\w*(?:think|reason)\w*[>\]]", re.IGNORECASE)
FORMS = {    # the lines that each role writes: q subquestion, s solution, a answer
    "unified": "(qs)+a?", "cot": "s+a?", "solver": "s+a?", "decomposer": "q+"}

def read_dialogue(text: str, role: str) -> dict[str, list[str]]:
    """
    {label: its texts} of the dialogue in a reply: the last unbroken run of labelled lines.

    Other text interrupts a run; bold marks, fences and blank lines do not. An earlier run must be
    a complete draft, with an answer: else the beginning of the dialogue would be lost.

    >>> read_dialogue("Let me see.\\n**Solution:** 3*4 = <<3*4=12>>12\\n\\nAnswer: 12", "cot")
    {'Subquestion': [], 'Solution': ['3*4 = <<3*4=12>>12'], 'Answer': ['12']}
    """
    lines = []    # (label, text)
    text = THINKING_ENDS.split(text)[-1]
    for line in re.sub(r"\*\*(.+?)\*\*", r"\1", text).split("\n"):
        line = line.strip()
        match = LINE.fullmatch(line)
        if match and not MARK.search(CALCULATION.sub("", match[2])):
            lines.append(match.groups())
        elif LIKE_A_LABEL.search(line):
            raise Rejected(f"not in the form: {line}")
        elif line and not line.startswith("```"):
            lines.append(("other", line))
    letters = {"Subquestion": "q", "Solution": "s", "Answer": "a", "other": "-"}
    kinds = "".join(letters[label] for label, _ in lines)
    match = re.fullmatch(f"-*([qsa]*a-+)*(?P<dialogue>{FORMS[role]})-*", kinds)
    if not match:
        raise Rejected(f"not in the form: the lines are {kinds}")
    said = {"Subquestion": [], "Solution": [], "Answer": []}
    for label, text in lines[match.start("dialogue"):match.end("dialogue")]:
        said[label].append(text)
    return said

def read_reply(reply) -> tuple[str, str]:
    """(text, finish reason) of a chat completion. Reasoning with a field of its own is not read."""
    try:
        choice = reply["choices"][0]
        content, finish = choice["message"].get("content"), choice.get("finish_reason")
        if isinstance(content, list):    # of parts, some of which may be reasoning
            content = "".join(part["text"] for part in content if part["type"] == "text")
    except (KeyError, IndexError, TypeError, AttributeError):
        return "", "broken"
    text = str(content or "").encode("utf-8", "replace").decode()    # no half surrogate pairs
    return text, str(finish or "stop").lower()

# ------------------------------------------------------------ judging it

def judge(problem: Problem, reply: dict, mode: str, teacher: str) -> Problem:
    """The record that is kept of a reply, or Rejected. What is kept is clean by construction."""
    text, finish = read_reply(reply)
    if "refused" in reply:
        raise Rejected(f"refused by the server: {reply['refused']}")
    if finish.startswith(("length", "max_tokens")):
        raise Rejected("cut off")
    if finish.startswith("content_filter"):
        raise Rejected("filtered")
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
    steps = [Step(*pair) for pair in zip(questions, solutions)]
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
        # A step that only repeats numbers of the problem is left out, but never the last one.
        repeats = numbers and numbers <= stated and "=" not in step.solution
        if found or problem.answer in ("yes", "no"):
            kept.append(step)
        elif not repeats or step is steps[-1]:
            raise Rejected(f"a solution without a calculation: {step.solution}")
    # The line with the answer may be missing where the last result is the answer.
    said = (results + answers)[-1:]
    answer = extract_answer(f"Answer: {said[0]}") if said else None
    if answer is None:
        raise Rejected("no answer")
    if not same_answer(answer, problem.answer):
        raise Rejected(f"wrong answer: {answer}, not {problem.answer}")
    return kept

def check_calculations(solution: str) -> list[str]:
    """
    The results of a solution's calculations. Rejected unless each is true and stands there as in
    the data: the same calculation before it, its result after it.

    >>> check_calculations("They have 3*4 = $<<3*4=12>>12 and 12-5 = <<12-5=7>>7 left.")
    ['12', '7']
    """
    results = []
    for match in CALCULATION.finditer(solution):
        expression, result = match[1].strip(), match[2].strip()
        # It may be rounded, but then it is right to its last digit: 10/3=3.33, not 10/3=3.
        difference = calculate(f"({expression})-({result})")
        n_decimals = len(result.partition(".")[2])
        limit = 0.500001 / 10**n_decimals if n_decimals else 0
        if difference is None or abs(float(difference)) > limit:
            raise Rejected(f"false arithmetic: {expression}={result}")
        before = re.search(r"[-\d\s.,+*/^()%$=×÷−]*$", solution[:match.start()])[0]
        before, same = (re.sub(r"[\s$]", "", text).lstrip(".,") for text in (before, expression))
        after = re.match(rf"\$?(-?(?:{NUMBER}))(?!\s*[*/+^=])", solution[match.end():])
        if before != f"{same}=" or not after or after[1] != result:
            raise Rejected(f"an annotation that does not fit its text: {solution}")
        if re.search(r"[\d)%]\s*[-+*/×÷−]", expression):    # not so in <<5=5>>
            results.append(result)
    return results

SMALL = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
         "fifteen sixteen seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
VALUES = dict(zip(SMALL, range(20))) | dict(zip(TENS, range(20, 100, 10)))

def find_numbers(text: str) -> set[str]:
    """
    The numbers that a text states, in digits or words. "One" is none: it may be a pronoun.

    >>> sorted(find_numbers("Twenty-five of 1,000 pens, six cards"))
    ['1000', '25', '6']
    """
    found = {calculate(number) for number in re.findall(NUMBER, text)}
    for word in re.findall("[a-z]+(?:-[a-z]+)?", text.lower()):
        if word != "one" and all(part in VALUES for part in word.split("-")):
            found.add(str(sum(VALUES[part] for part in word.split("-"))))
    return found

def judge_questions(problem, steps) -> None:
    """Subquestions are asked before anything is solved, so they may hold no result."""
    results = {problem.answer}
    for step in steps:
        results |= {calculate(match[2]) for match in CALCULATION.finditer(step.solution)}
    stated = find_numbers(problem.problem)
    for step in steps:
        if (find_numbers(step.question) - stated) & results:
            raise Rejected(f"a subquestion gives a result away: {step.question}")

# ------------------------------------------------------------ the server

class Stop(Exception):
    """The run ends; what is on disk stays."""

class Server:
    """An OpenAI-compatible chat server, which all threads share."""

    def __init__(self, args):
        self.args = args
        self.url = (args.base_url or OPENAI).rstrip("/")
        if not urlsplit(self.url).path:    # a bare host
            self.url += "/v1"
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.stopping = threading.Event()
        self.not_before = 0.0    # the time of the next request

    def make_body(self, messages, sample=0, room=1) -> dict:
        """The JSON of a request for `room` times as many tokens. The first sample is greedy."""
        body = {"model": self.args.teacher, "messages": messages, "seed": sample, "stream": False,
                "temperature": TEMPERATURE if sample else 0.0, "max_tokens": MAX_TOKENS}
        body |= self.args.body
        for name in ("max_tokens", "max_completion_tokens"):
            if body.get(name):
                body[name] *= room
        return {name: value for name, value in body.items() if value is not None}

    def ask(self, body) -> dict:
        """
        The reply to a request, after several attempts if need be; {"refused": reason} where the
        server will never answer this one. Raises Stop, or RuntimeError if no attempt succeeds.
        """
        next_time = 0.0
        for attempt in range(ATTEMPTS):
            wait = max(next_time, self.not_before) - time.time()
            if self.stopping.wait(max(0, wait)):
                raise Stop("stopped")
            status, text, wait = self.post(body)
            if status == 200 and is_complete(text):
                return json.loads(text)
            error = f"{status or 'no reply'} {clean(text)[:300]}"
            error = error.replace(self.key, "***") if self.key else error
            if status in (401, 402, 403, 404) or "insufficient_quota" in text:
                raise Stop(error)
            if 400 <= status < 500 and status not in (408, 409, 429):    # too long, say
                return {"refused": error}
            wait = wait or min(60, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1)
            next_time = time.time() + wait
            if status == 429:    # all threads wait
                self.not_before = max(self.not_before, next_time)
        raise RuntimeError(error)

    def post(self, body) -> tuple[int, str, float]:
        """(status, text, seconds to wait) of one exchange; the status is 0 if there was none."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        try:
            response = requests.post(
                f"{self.url}/chat/completions", json=body, timeout=(10, self.args.timeout),
                headers=headers, auth=lambda request: request)    # no .netrc replaces the key
        except requests.RequestException as error:
            return 0, type(error).__name__, 0.0
        try:
            wait = Retry().get_retry_after(response) or 0.0    # it may be given as a date
        except InvalidHeader:
            wait = 0.0
        return response.status_code, response.content.decode("utf-8", "replace"), min(wait, 3600)

def is_complete(text) -> bool:
    """Whether a text is a chat completion that ended for a reason that we know."""
    try:
        finish = read_reply(json.loads(text))[1]
    except ValueError:
        return False
    return finish.startswith(("stop", "length", "max_tokens", "content_filter"))

# ------------------------------------------------------------ the run

class Case:
    """A problem, and what the replies so far make of it."""

    def __init__(self, problem, args, request):
        self.problem, self.args = problem, args
        self.messages = make_messages(problem, args.mode, args.dataset)
        self.question = {    # what a row of the replies says of it
            "id": problem.id, "problem_sha256": sha16(problem.problem),
            "messages_sha256": sha16(json.dumps(self.messages)),
            "request_sha256": sha16(json.dumps(request)), "teacher": args.teacher}
        self.kept = None       # the record
        self.rejected = []     # a row for each reply that is not kept, with the reason
        self.failure = None    # why the next reply is missing

    def add(self, row):
        """Judge a reply, if it is the next one."""
        keys = ["problem_sha256"] if self.args.replay else self.question    # it takes any prompt
        is_ours = all(row.get(key) == self.question[key] for key in keys)
        if self.kept or row["sample"] != len(self.rejected) or not is_ours:
            return
        try:
            self.kept = judge(self.problem, row["reply"], self.args.mode, row["teacher"])
        except Rejected as error:
            self.rejected.append({
                "id": row["id"], "sample": row["sample"], "reason": str(error),
                "text": read_reply(row["reply"])[0], "answer": self.problem.answer})

    def has(self, *reasons) -> bool:
        return any(row["reason"].startswith(reasons) for row in self.rejected)

    def is_open(self) -> bool:
        """Whether to ask once more. What was filtered or refused would be again."""
        if self.kept or self.has("filtered", "refused"):
            return False
        # A reply that was cut off is asked for again, with twice the room.
        return len(self.rejected) < self.args.tries + self.has("cut off")

class Run:
    """The problems of one command, and what the replies cost."""

    def __init__(self, args, problems, rows):
        self.args, self.server, self.lock = args, Server(args), threading.Lock()
        self.why = "the recording holds fewer replies" if args.replay else ""    # it is not done
        self.calls = self.tokens_in = self.tokens_out = 0
        self.spent = 0.0   # for the replies, and at most for requests without one
        request = [self.server.url, self.server.make_body([])]
        self.cases = {problem.id: Case(problem, args, request) for problem in problems}
        for row in sorted(rows, key=lambda row: row["sample"]):
            self.spent += self.count(row["reply"])
            if row["id"] in self.cases:
                self.cases[row["id"]].add(row)

    def work_all(self, queue):
        """Ask about the first problem alone, since a wrong key shows there; then many at a time."""
        start, n_all = time.time(), len(queue)
        self.work(queue[0])
        if not self.calls:
            raise SystemExit(f"{self.server.url}: {self.why or queue[0].failure}\n"
                             f"  Is it running? Does it have a model {self.args.teacher!r}? "
                             "The key is read from OPENAI_API_KEY.")
        with ThreadPoolExecutor(self.args.workers) as pool:
            futures = [pool.submit(self.work, case) for case in queue[1:]]
            try:
                for n, _ in enumerate(as_completed(futures), 2):
                    if n % 10 == 0 or n == n_all:
                        left = int((n_all - n) * (time.time() - start) / n)
                        print(f"{n:6,}/{n_all:,} problems | {self.calls:,} replies | "
                              f"{self.spent:.4f} spent | {left // 60}:{left % 60:02d} left",
                              flush=True)
            except KeyboardInterrupt:
                self.stop("interrupted")
                print("\nWaiting for the requests under way.", flush=True)

    def work(self, case):
        """Ask until a problem is settled. Whatever happens, the run goes on with the others."""
        try:
            while case.is_open():
                self.ask(case)
        except (Stop, OSError) as error:    # OSError: a reply cannot be written
            self.stop(str(error))
        except Exception as error:
            case.failure = str(error)

    def stop(self, why):
        self.why = self.why or why
        self.server.stopping.set()

    def ask(self, case):
        """One more reply, on disk before it is looked at."""
        sample, room = len(case.rejected), 2 if case.has("cut off") else 1
        body = self.server.make_body(case.messages, sample, room)
        n_out = body.get("max_tokens") or body.get("max_completion_tokens") or 0
        at_most = self.cost(count_tokens(body), n_out)
        with self.lock:
            if self.args.budget is not None and self.spent + at_most > self.args.budget:
                raise Stop(f"the budget of {self.args.budget:g} would be exceeded")
            self.spent += at_most
        reply = self.server.ask(body)
        if "refused" in reply and not self.calls:    # it is not this problem's fault
            raise Stop(reply["refused"])
        row = case.question | {"sample": sample, "reply": reply}
        with self.lock:
            if self.file.write(to_line(row)) < len(to_line(row)):
                raise OSError("the disk is full")
            self.spent += self.count(reply) - at_most
        case.add(row)

    def count(self, reply) -> float:
        """Count what a reply has used; its cost."""
        usage = reply.get("usage") or {}
        n_in, n_out = usage.get("prompt_tokens") or 0, usage.get("completion_tokens") or 0
        # Some servers count the tokens of hidden reasoning in the total only.
        n_out = max(n_out, (usage.get("total_tokens") or 0) - n_in)
        self.calls += 1
        self.tokens_in += n_in
        self.tokens_out += n_out
        return self.cost(n_in, n_out)

    def cost(self, n_in, n_out) -> float:
        price_in, price_out = self.args.price
        return (n_in * price_in + n_out * price_out) / 1e6

def sha16(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

def to_line(row: dict) -> bytes:
    return (json.dumps(row) + "\n").encode()

def count_tokens(value) -> int:
    return len(json.dumps(value)) // 3    # a careful guess: English has 3 to 4 characters a token

def finish(run, out) -> int:
    """Write what is kept and rejected, say what came of it; 1 if problems are missing, else 0."""
    cases = run.cases.values()
    kept = [case.kept for case in cases if case.kept]
    rejected = [row for case in cases for row in case.rejected]
    replace_file(out, *(f"{record.to_json()}\n".encode() for record in kept))
    replace_file(out.with_suffix(".rejected.jsonl"), *map(to_line, rejected))
    reasons = Counter(row["reason"].partition(":")[0] for row in rejected)
    missing = Counter(case.failure or run.why for case in cases if case.is_open())
    print(f"{len(kept):,} of {len(cases):,} problems are kept: {out}")
    for reason, n in reasons.most_common():
        print(f"{n:8,} replies rejected: {reason}")
    for why, n in missing.most_common():
        print(f"{n:8,} problems missing: {why}")
    print(f"{run.calls:,} replies, {run.tokens_in:,} tokens in, {run.tokens_out:,} out, "
          f"cost {run.cost(run.tokens_in, run.tokens_out):.4f}")
    if missing and not run.args.replay:
        print("The same command goes on where this one stopped.")
    return 1 if missing else 0

# ------------------------------------------------------------ the command

def prices(text):
    price_in, price_out = map(float, text.split(","))
    return price_in, price_out

def json_object(text):
    return dict(json.loads(text))

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Let a teacher write subquestions and solutions; keep what is right.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", help=DATASET_HELP)
    add("--data-dir", help="folder of the data sets (None: SOCRATIC_DATA, or data/)")
    add("--split", choices=("train", "valid"), help="which part (None: train; all of a file)")
    add("--limit", type=positive, help="the first so many problems only (None: all; demo: 40)")
    add("--mode", default="socratic", choices=("socratic", "socratic-gt", "cot"),
        help="socratic: subquestions and solutions; socratic-gt: what the record lacks, while the "
        "teacher sees the rest (gold solutions, gold subquestions, facts); cot: solutions only")
    add("--teacher", metavar="NAME", help="the model to ask, as its server calls it")
    add("--base-url", metavar="URL", help=f"an OpenAI-compatible chat server (None: {OPENAI})")
    add("--body", type=json_object, default="{}", metavar="JSON", help="merged into every request; "
        'null removes a field: \'{"max_tokens": null, "max_completion_tokens": 2000}\'')
    add("--workers", type=positive, default=8, help="requests at a time")
    add("--tries", type=positive, default=3, help="replies to a problem until one is kept: the "
        f"first is greedy, the others are drawn at temperature {TEMPERATURE}")
    add("--timeout", type=float, default=300, help="seconds for one reply")
    add("--price", type=prices, default="0,0", metavar="IN,OUT",
        help="what a million prompt tokens and a million reply tokens cost")
    add("--budget", type=float, help="stop before all replies on disk cost more (needs --price)")
    add("--dry-run", action="store_true", help="ask nothing; say what it would cost")
    add("--replay", metavar="FILE", help="ask nothing; take the replies of an earlier run (None: "
        "without --teacher, a recorded one about the demo)")
    add("--out", metavar="FILE", help="where to write (None: annotations/<dataset>-<mode>.jsonl)")
    return parser.parse_args(argv)

def read_row(line) -> dict:
    row, keys = json.loads(line), {"id", "sample", "problem_sha256", "teacher", "reply"}
    if type(row) is not dict or not row.keys() >= keys or type(row["reply"]) is not dict:
        raise ValueError(f"a reply must be an object with {', '.join(sorted(keys))}")
    return row

def main(args):
    """The exit status: 1 where problems are missing."""
    name = run_name(args.dataset)
    if args.budget is not None and not any(args.price):
        raise SystemExit("--budget needs the prices of a million tokens: --price IN,OUT")
    if not (args.replay or args.teacher):
        if (args.dataset, args.mode, args.base_url) != ("demo", "socratic", None):
            raise SystemExit("Which teacher? Name the model as its server does: --teacher NAME\n"
                             "  The recorded one has seen demo problems only, in mode socratic.")
        args.replay = RECORDING
    split = args.split or ("all" if args.dataset.endswith(".jsonl") else "train")
    limit = args.limit or (40 if name == "demo" else None)
    problems = load_problems(args.dataset, split, args.data_dir, limit)
    problems = [problem for problem in problems if problem.answer.strip()]
    if not problems:
        raise SystemExit(f"{name}/{split} holds no problem with a gold answer to judge a reply by.")
    suffix = "-valid" if split == "valid" else ""
    out = Path(args.out or f"annotations/{name}-{args.mode}{suffix}.jsonl").expanduser()

    if args.replay:
        rows = read_lines(args.replay, read_row)
        seen = {row["id"] for row in rows}
        run = Run(args, [problem for problem in problems if problem.id in seen], rows)
        return finish(run, out)
    path = out.with_suffix(".replies.jsonl")
    rows = read_lines(path, read_row, may_be_torn=True) if path.exists() else []
    run = Run(args, problems, rows)
    queue = [case for case in run.cases.values() if case.is_open()]
    if args.dry_run:
        n_in, n_out = sum(count_tokens(case.messages) for case in queue), 150 * len(queue)
        print(f"{len(queue):,} problems to ask about, one try for each: about {n_in:,} tokens in,\n"
              f"{n_out:,} out, cost {run.cost(n_in, n_out):,.2f}; with all tries at most "
              f"{args.tries} times as much")
        return 0
    if run.server.url == OPENAI and not run.server.key:
        raise SystemExit(f"{OPENAI} needs a key in the environment variable OPENAI_API_KEY.\n"
                         "  A server of your own needs none: --base-url http://localhost:11434")
    replace_file(path, *map(to_line, rows))    # without a line that a kill has torn
    with open(path, "ab", buffering=0) as run.file:
        if queue:
            run.work_all(queue)
    return finish(run, out)

if __name__ == "__main__":
    try:
        sys.exit(main(parse_args()))
    except KeyboardInterrupt:
        sys.exit(1)

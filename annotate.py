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
import functools
import hashlib
import itertools
import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter, namedtuple
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.adapters import HTTPAdapter, Retry
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

def find_role(problem: Problem, mode: str) -> str:
    """
    Whose part the teacher writes. In the mode `socratic-gt` it writes what the record lacks: to
    gold solutions the subquestions, to gold subquestions the solutions, to facts or a formula both.
    """
    if mode != "socratic-gt":
        return {"socratic": "unified", "cot": "cot"}[mode]
    asked = [bool(step.question) for step in problem.steps]
    solved = [bool(step.solution) for step in problem.steps]
    if asked and all(asked) and not any(solved):
        return "solver"
    if solved and all(solved) and not problem.evidence:
        return "decomposer"
    return "unified"

def make_question(problem: Problem, role: str, mode: str) -> str:
    """What the teacher reads of a problem."""
    lines = [segments(problem, role)[0].text.strip()]
    if mode == "socratic-gt" and role != "decomposer":
        lines += [f"Fact: {clean(fact)}" for fact in problem.evidence]
    for step in problem.steps:
        if role == "solver":
            lines.append(f"Subquestion: {clean(step.question)}")
        if role == "decomposer":
            lines.append(f"Solution: {clean(step.solution)}")
    return "\n".join(lines)

def make_reply(problem: Problem, role: str) -> str:
    """What it should write, given a solved problem: the dialogue, as a student learns it."""
    # The solver's part without the subquestions that it is given is a chain of thought.
    parts = segments(problem, "cot" if role == "solver" else role)
    return "".join(part.text for part in parts[1:])

@functools.cache
def make_opening(role: str, mode: str, dataset: str, is_word: bool) -> tuple[dict, ...]:
    """The chat before a problem: the task and solved examples. `is_word`: answers are yes or no."""
    table = read_toml("exemplars.toml")
    if dataset not in table["examples"]:    # one's own file
        dataset = "strategyqa" if is_word else "gsm8k"
    messages = []
    for text in table["examples"][dataset].strip().split("\n\n"):
        example = read_example(text)
        messages.append({"role": "user", "content": make_question(example, role, mode)})
        messages.append({"role": "assistant", "content": make_reply(example, role)})
    task = table["task"][role].format(**table["word" if is_word else "number"])
    messages[0]["content"] = f"{task}\n\n{messages[0]['content']}"
    return tuple(messages)

def make_messages(problem: Problem, mode: str, dataset: str) -> list[dict]:
    role = find_role(problem, mode)
    opening = make_opening(role, mode, dataset, problem.answer in ("yes", "no"))
    return [*opening, {"role": "user", "content": make_question(problem, role, mode)}]

def read_example(text: str) -> Problem:
    lines, said = text.split("\n"), read_dialogue(text, "unified")
    facts = [line.removeprefix("Fact: ") for line in lines if line.startswith("Fact: ")]
    steps = [Step(*pair) for pair in zip(said["Subquestion"], said["Solution"])]
    return Problem("example", lines[0].removeprefix("Problem: "), steps, said["Answer"][0],
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
    {kind: its texts} of the dialogue in a reply.

    Other text splits the labelled lines into blocks; bold marks, fences and blank lines do not.
    The last block that ends in a solution or an answer (for a decomposer, in a subquestion) is
    the dialogue. Each block before it must be a complete draft, ending in an answer: otherwise
    the other text has interrupted the dialogue, and its beginning would be lost.

    >>> read_dialogue("Let me see.\\n**Solution:** 3*4 = <<3*4=12>>12\\n\\nAnswer: 12", "cot")
    {'Subquestion': [], 'Solution': ['3*4 = <<3*4=12>>12'], 'Answer': ['12']}
    """
    blocks = [[]]    # each a list of (kind, text)
    text = THINKING_ENDS.split(text)[-1]
    for line in re.sub(r"\*\*(.+?)\*\*", r"\1", text).split("\n"):
        line = line.strip()
        match = LINE.fullmatch(line)
        if match and not MARK.search(CALCULATION.sub("", match[2])):
            blocks[-1].append((match[1], match[2]))
        elif LIKE_A_LABEL.search(line):
            raise Rejected(f"not in the form: {line}")
        elif line and not line.startswith("```") and blocks[-1]:
            blocks.append([])
    ends = ("Subquestion",) if role == "decomposer" else ("Solution", "Answer")
    while blocks and (not blocks[-1] or blocks[-1][-1][0] not in ends):
        blocks.pop()
    if not blocks or any(draft[-1][0] != "Answer" for draft in blocks[:-1]):
        raise Rejected("interrupted by other text" if blocks else "not in the form")
    letters = {"Subquestion": "q", "Solution": "s", "Answer": "a"}
    kinds = "".join(letters[kind] for kind, _ in blocks[-1])
    if not re.fullmatch(FORMS[role], kinds):
        raise Rejected(f"not in the form: the lines are {kinds}")
    return {kind: [text for k, text in blocks[-1] if k == kind] for kind in letters}

def dig(value, *path):
    """value[path[0]][path[1]]..., or None where there is no such thing."""
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value

def read_reply(reply) -> tuple[str, str]:
    """(text, finish reason) of a chat completion. Reasoning with a field of its own is not read."""
    content = dig(reply, "choices", 0, "message", "content")
    if isinstance(content, list):    # of parts, some of which may be reasoning
        texts = [part for part in content if dig(part, "type") == "text"]
        content = "".join(str(dig(part, "text") or "") for part in texts)
    text = str(content or "").encode("utf-8", "replace").decode()    # no half surrogate pairs
    return text, str(dig(reply, "choices", 0, "finish_reason") or "stop").lower()

# ------------------------------------------------------------ judging it

WORDS = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
         "fifteen sixteen seventeen eighteen nineteen "
         "twenty thirty forty fifty sixty seventy eighty ninety").split()

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
    kept, result, stated = [], None, find_numbers(problem.problem)
    for step in steps:
        results = check_calculations(step.solution)
        said = find_numbers(step.solution)
        # A step that only repeats numbers of the problem is left out, but never the last one.
        repeats = said and said <= stated and "=" not in step.solution and step is not steps[-1]
        if results or problem.answer in ("yes", "no"):
            kept.append(step)
        elif not repeats:
            raise Rejected(f"a solution without a calculation: {step.solution}")
        result = results[-1] if results else result
    # The line with the answer may be missing where the last result is the answer.
    answer = extract_answer(f"Answer: {answers[0]}") if answers else result
    if not kept or answer is None:
        raise Rejected("no answer" if kept else "no calculation")
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

def find_numbers(text: str) -> set[str]:
    """
    The numbers that a text states, in digits or words. "One" is none: it may be a pronoun.

    >>> sorted(find_numbers("Twenty-five of 1,000 pens, six cards"))
    ['1000', '25', '6']
    """
    found = {calculate(number) for number in re.findall(NUMBER, text)}
    values = {word: n if n < 20 else 10 * n - 180 for n, word in enumerate(WORDS)}
    for word in re.findall("[a-z]+(?:-[a-z]+)?", text.lower()):
        if word != "one" and all(part in values for part in word.split("-")):
            found.add(str(sum(values[part] for part in word.split("-"))))
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

class Failed(Exception):
    """A request without a reply that can be used. `wait`: seconds that the server asks for."""

    def __init__(self, message, status=0, again=True, wait=0.0):
        super().__init__(message)
        self.status, self.again, self.wait = status, again, wait

class Stop(Exception):
    """The run ends; what is on disk stays."""

class Server:
    """An OpenAI-compatible chat server, which all threads share."""

    def __init__(self, args):
        self.url, self.timeout = normal_url(args.base_url or OPENAI), args.timeout
        self.key = os.environ.get("OPENAI_API_KEY", "").strip()
        self.body = {"model": args.teacher, "stream": False, "temperature": TEMPERATURE,
                     "max_tokens": MAX_TOKENS} | (args.body or {})
        self.session = requests.Session()
        self.session.mount("http", HTTPAdapter(pool_maxsize=args.workers))
        self.session.auth = lambda request: request    # else a .netrc would replace the key
        if self.key:
            self.session.headers["Authorization"] = f"Bearer {self.key}"
        self.stopping, self.not_before = threading.Event(), 0.0

    def make_body(self, messages, sample, room):
        """The JSON of a request. The first sample is greedy; a reply cut off gets more room."""
        body = {"messages": messages, "seed": sample} | self.body
        if sample == 0 and body["temperature"] is not None:
            body["temperature"] = 0.0
        for name in ("max_tokens", "max_completion_tokens"):
            if body.get(name):
                body[name] *= room
        return {name: value for name, value in body.items() if value is not None}

    def ask(self, body) -> dict:
        """The reply to one request, after several attempts if need be. Else Failed or Stop."""
        for attempt in range(ATTEMPTS):
            self.pause(self.not_before - time.time())
            try:
                return self.post(body)
            except Failed as failed:
                error = failed
            if error.status in (401, 402, 403, 404) or "insufficient_quota" in str(error):
                raise Stop(error)
            if not error.again:
                break
            wait = error.wait or min(60, FIRST_WAIT * 2**attempt) * random.uniform(0.5, 1)
            if wait > 60:
                print(f"The server asks to wait for {wait:,.0f} s: {error}", flush=True)
            if error.status == 429:    # all threads wait
                self.not_before = max(self.not_before, time.time() + wait)
            else:
                self.pause(wait)
        raise error

    def post(self, body) -> dict:
        """One exchange: the reply, or Failed."""
        try:
            response = self.session.post(f"{self.url}/chat/completions", json=body,
                                         timeout=(10, self.timeout))
        except requests.RequestException as error:
            raise Failed(f"no reply ({type(error).__name__})") from None
        try:
            reply = response.json()
        except ValueError:
            reply = None
        status, headers = response.status_code, response.headers
        if status == 200 and is_complete(reply):
            return reply
        text = clean(re.sub("(?s)<style.*?</style>|<[^>]*>", " ", response.text))[:300]
        text = text.replace(self.key, "***") if self.key else text
        again = status in (200, 408, 409, 429) or status >= 500
        again = {"true": True, "false": False}.get(headers.get("x-should-retry"), again)
        raise Failed(f"{status} {text}", status, again, read_wait(headers))

    def pause(self, seconds):
        if self.stopping.wait(max(0, seconds)):
            raise Stop("stopped")

def is_complete(reply) -> bool:
    """Whether a reply is worth keeping: no error inside, and it ended for a reason that we know."""
    if dig(reply, "choices") is None or dig(reply, "error") or dig(reply, "choices", 0, "error"):
        return False
    return read_reply(reply)[1].startswith(("stop", "length", "max_tokens", "content_filter"))

def read_wait(headers) -> float:
    """The seconds that a server asks to wait, at most an hour; 0 where it does not say."""
    try:
        if "retry-after-ms" in headers:
            return min(float(headers["retry-after-ms"]) / 1000, 3600)
        return min(Retry().parse_retry_after(headers["retry-after"]), 3600)    # seconds, or a date
    except (KeyError, ValueError, InvalidHeader):
        return 0.0

def normal_url(text: str) -> str:
    """
    The address as given; a bare host gets /v1.

    >>> normal_url("localhost:8080"), normal_url("https://host/inference/")
    ('http://localhost:8080/v1', 'https://host/inference')
    """
    url = text if "://" in text else f"http://{text}"
    url = url.rstrip("/").removesuffix("/chat/completions")
    return url if urlsplit(url).path else f"{url}/v1"

# ------------------------------------------------------------ the run

# What the replies so far make of a problem.
#   kept         the record, or None
#   next_sample  the number of the reply to ask for, or None: nothing more is asked
#   room         2: that reply may have twice as many tokens, because one was cut off; else 1
#   rejected     [(sample, reason, text)]
Outcome = namedtuple("Outcome", "kept next_sample room rejected")

def sha16(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]

class Run:
    """The problems of one command, and every reply about them. A replay is a run without server."""

    def __init__(self, args, problems, rows, server=None):
        self.args, self.problems, self.server = args, problems, server
        self.lock, self.missing, self.why = threading.Lock(), {}, None
        self.calls, self.tokens_in, self.tokens_out, self.reserved = 0, 0, 0, 0.0
        self.replies = {}    # {(problem id, sample): row}
        by_id = {problem.id: problem for problem in problems}
        for row in rows:
            self.count(row)
            if row["id"] in by_id:
                # A run goes on only with replies to the same question. A replay takes any prompt.
                asked = self.describe(by_id[row["id"]])
                if all(row.get(key) == value for key, value in asked.items()):
                    self.replies[row["id"], row["sample"]] = row

    def messages(self, problem):
        return make_messages(problem, self.args.mode, self.args.dataset)

    def describe(self, problem) -> dict:
        """All that shapes a reply, besides the number of the sample."""
        what = {"problem_sha256": sha16(problem.problem)}
        if self.server:
            request = json.dumps([self.server.url, self.server.body], sort_keys=True)
            what |= {"messages_sha256": sha16(json.dumps(self.messages(problem))),
                     "request_sha256": sha16(request), "teacher": self.args.teacher}
        return what

    def settle(self, problem) -> Outcome:
        """Judge the replies about a problem, sample by sample. Nothing is asked here."""
        rejected, room, n_tries = [], 1, self.args.tries
        for sample in itertools.count():
            row = self.replies.get((problem.id, sample))
            if row is None:
                return Outcome(None, sample if sample < n_tries else None, room, rejected)
            try:
                kept = judge(problem, row["reply"], self.args.mode, row["teacher"])
                return Outcome(kept, None, room, rejected)
            except Rejected as error:
                reason = str(error)
            rejected.append((sample, reason, read_reply(row["reply"])[0]))
            if reason == "cut off" and room == 1:    # once more, with twice the room
                room, n_tries = 2, n_tries + 1
            if reason.startswith(("filtered", "refused")):    # it would be again
                n_tries = 0

    def work(self, problem):
        """Ask until the problem is settled. Whatever happens, the run goes on with the others."""
        try:
            while (outcome := self.settle(problem)).next_sample is not None:
                self.ask(problem, outcome.next_sample, outcome.room)
        except Stop as stop:
            self.stop(str(stop))
        except Exception as error:
            self.missing[problem.id] = str(error) if isinstance(error, Failed) else repr(error)

    def ask(self, problem, sample, room):
        """One more reply, on disk before it is looked at."""
        body = self.server.make_body(self.messages(problem), sample, room)
        most = self.price(count_tokens(json.dumps(body)), body.get("max_tokens", 0)
                          + body.get("max_completion_tokens", 0))
        with self.lock:
            if self.args.budget is not None and self.cost() + most > self.args.budget:
                raise Stop(f"the budget of {self.args.budget:g} would be exceeded")
            self.reserved += most
        row = {"id": problem.id, "sample": sample} | self.describe(problem)
        try:
            row["reply"] = self.server.ask(body)
        except Failed as error:
            if error.status not in (400, 413, 422) or not self.calls:
                # A reply that got lost may be billed: its price stays reserved.
                self.reserved -= most if error.status > 200 else 0
                raise
            row["reply"] = {"refused": str(error)}    # among good ones: it is too long, or filtered
        with self.lock:
            self.write(row)
            self.replies[problem.id, sample] = row
            self.reserved -= most
            self.count(row)

    def write(self, row):
        data = (json.dumps(row, ensure_ascii=False) + "\n").encode()
        try:
            if self.file.write(data) < len(data):
                raise OSError("the disk is full")
        except OSError as error:
            raise Stop(f"the replies cannot be written: {error}") from None

    def count(self, row):
        n_in, n_out, total = (dig(row, "reply", "usage", f"{kind}_tokens") or 0
                              for kind in ("prompt", "completion", "total"))
        self.calls += 1
        self.tokens_in += n_in
        # Some servers count the tokens of the reasoning in the total only; some count nothing.
        self.tokens_out += max(n_out, total - n_in) or count_tokens(read_reply(row["reply"])[0])

    def price(self, n_in, n_out) -> float:
        price_in, price_out = self.args.price or (0, 0)
        return (n_in * price_in + n_out * price_out) / 1e6

    def cost(self) -> float:
        return self.price(self.tokens_in, self.tokens_out) + self.reserved

    def stop(self, why):
        self.why = self.why or why
        self.server.stopping.set()

    def work_all(self, queue):
        """Ask about the first problem alone, since a wrong key shows there; then many at a time."""
        start = shown = time.time()
        self.work(queue[0])
        if not self.calls:
            raise SystemExit(f"{self.server.url}: {self.why or self.missing[queue[0].id]}\n"
                             f"  Is it running? Does it have a model {self.args.teacher!r}? "
                             "The key is read from OPENAI_API_KEY.")
        with ThreadPoolExecutor(self.args.workers) as pool:
            futures = [pool.submit(self.work, problem) for problem in queue[1:]]
            try:
                for n, _ in enumerate(as_completed(futures), 2):
                    if time.time() - shown > 1 or n == len(queue):
                        shown = time.time()
                        left = int((len(queue) - n) * (shown - start) / n)
                        print(f"{n:6,}/{len(queue):,} problems | {self.calls:,} replies | "
                              f"{self.cost():.4f} spent | {left // 60}:{left % 60:02d} left",
                              flush=True)
            except KeyboardInterrupt:
                self.stop("interrupted")
                print("\nWaiting for the requests under way.", flush=True)

def count_tokens(text) -> int:
    return len(text) // 3    # a careful guess: English with numbers has 3 to 4 characters a token

def finish(run, out) -> int:
    """Write what is kept and rejected, say what came of it; 1 if problems are missing, else 0."""
    kept, rejected, reasons, missing = [], [], Counter(), Counter()
    for problem in run.problems:
        outcome = run.settle(problem)
        if outcome.kept:
            kept.append(outcome.kept.to_json() + "\n")
        if outcome.next_sample is not None:
            missing[run.missing.get(problem.id, run.why)] += 1
        for sample, reason, text in outcome.rejected:
            reasons[reason.partition(":")[0]] += 1
            row = {"id": problem.id, "sample": sample, "reason": reason, "text": text}
            rejected.append(json.dumps(row | {"answer": problem.answer}, ensure_ascii=False) + "\n")
    replace_file(out, "".join(kept).encode())
    replace_file(out.with_suffix(".rejected.jsonl"), "".join(rejected).encode())
    n, n_missing = len(run.problems), missing.total()
    print(f"kept      {len(kept):,} of {n:,} problems -> {out}\nrejected  "
          f"{n - len(kept) - n_missing:,} problems; {len(rejected):,} replies in all:")
    for reason, n in reasons.most_common():
        print(f"  {n:8,}  {reason}")
    print(f"missing   {n_missing:,} problems")
    for why, n in missing.most_common():
        print(f"  {n:8,}  {why}")
    cost = f", cost {run.cost():.4f}" if run.args.price else ""
    print(f"calls     {run.calls:,}: {run.tokens_in:,} tokens in, {run.tokens_out:,} out{cost}")
    if n_missing and run.server:
        print("The same command goes on where this one stopped.")
    return int(n_missing > 0)

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
    add("--body", type=json_object, metavar="JSON", help="merged into every request; null "
        'removes a field: \'{"max_tokens": null, "max_completion_tokens": 2000}\'')
    add("--workers", type=positive, default=8, help="requests at a time")
    add("--tries", type=positive, default=3, help="replies to a problem until one is kept: the "
        f"first is greedy, the others are drawn at temperature {TEMPERATURE}")
    add("--timeout", type=float, default=300, help="seconds for one reply")
    add("--price", metavar="IN,OUT", type=prices,
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

def open_replies(path):
    """The file of replies, to append to. A last line that a kill has torn is cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "ab+") as file:
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
    return open(path, "ab", buffering=0)

def main(args):
    """The exit status: 1 where problems are missing."""
    name, is_file = run_name(args.dataset), args.dataset.endswith(".jsonl")
    if args.budget is not None and not args.price:
        raise SystemExit("--budget needs the prices of a million tokens: --price IN,OUT")
    replay = args.replay
    if not (replay or args.teacher or args.dry_run):
        if (args.dataset, args.mode, args.base_url) != ("demo", "socratic", None):
            raise SystemExit("Which teacher? Name the model as its server does: --teacher NAME\n"
                             "  The recorded one has seen demo problems only, in mode socratic.")
        replay = RECORDING
    split = args.split or ("all" if is_file else "train")
    limit = args.limit or (40 if args.dataset == "demo" else None)
    problems = load_problems(args.dataset, split, args.data_dir, limit)
    problems = [problem for problem in problems if problem.answer.strip()]
    if not problems:
        raise SystemExit(f"{name}/{split} holds no problem with a gold answer to judge a reply by.")
    suffix = "-valid" if split == "valid" else ""
    out = Path(args.out or f"annotations/{name}-{args.mode}{suffix}.jsonl").expanduser()
    if replay:
        rows = read_lines(replay, read_row)
        seen = {row["id"] for row in rows}
        run = Run(args, [problem for problem in problems if problem.id in seen], rows)
        run.why = "the recording holds fewer replies"
        return finish(run, out)
    server, path = Server(args), out.with_suffix(".replies.jsonl")
    rows = read_lines(path, read_row, may_be_torn=True) if path.exists() else []
    run = Run(args, problems, rows, server)
    queue = [problem for problem in problems if run.settle(problem).next_sample is not None]
    if args.dry_run:
        n_in = sum(count_tokens(json.dumps(run.messages(problem))) for problem in queue)
        n_out = len(queue) * (run.tokens_out // run.calls if run.calls else 150)
        cost = f"{run.price(n_in, n_out):,.2f}" if args.price else "unknown: give --price IN,OUT"
        print(f"{len(problems):,} problems, {len(queue):,} to ask; with one try for each "
              f"{n_in:,} tokens in, {n_out:,} out;\ncost {cost}; with all tries at most "
              f"{args.tries} times as much")
        return 0
    if server.url == OPENAI and not server.key:
        raise SystemExit(f"{OPENAI} needs a key in the environment variable OPENAI_API_KEY.\n"
                         "  A server of your own needs none: --base-url http://localhost:11434")
    with open_replies(path) as run.file:
        if queue:
            run.work_all(queue)
    return finish(run, out)

if __name__ == "__main__":
    try:
        sys.exit(main(parse_args()))
    except KeyboardInterrupt:
        sys.exit(1)

"""
Ask a teacher, a large model, to break problems into subquestions and to solve them; keep what can be trusted.

    python annotate.py                                              a recorded teacher: no server, no key, no cost
    python annotate.py --dataset svamp --teacher NAME --dry-run     what asking would cost
    python annotate.py --dataset svamp --teacher NAME               OpenAI; the key is in OPENAI_API_KEY
    python annotate.py --dataset svamp --teacher NAME --base-url http://localhost:11434    a local server, no key

Reads   problem records (data.py)
Writes  annotations/<dataset>-<mode>.jsonl            what is kept: problem records whose source is the teacher
        annotations/<dataset>-<mode>.rejected.jsonl   what is not, each text beside the reason
        annotations/<dataset>-<mode>.replies.jsonl    every reply as it came; the other two are made from this one
Order   the prompt, the reply, the filter, the server, the run, the command

A reply is on disk before the next question is asked: stopped by Ctrl-C, kill -9 or a full disk, the same command goes
on and asks only for what is missing.
"""

import argparse
import email.utils
import functools
import hashlib
import json
import os
import random
import re
import sys
import threading
import time
from collections import Counter, deque
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import requests
from requests.exceptions import SSLError
from requests.packages.urllib3.exceptions import HTTPError, NewConnectionError, ReadTimeoutError

from data import HERE, NUMBER, Problem, Step, calculate, clean, extract_answer, load_problems, read_records, same_answer

try:
    import fcntl
except ImportError:
    fcntl = None  # Windows: nothing stops two runs of the same command at a time

MODES = ("socratic", "socratic-gt", "cot")
RECORDING = HERE / "students" / "demo-teacher.jsonl"  # what a real teacher said about the first demo problems
OPENAI = "https://api.openai.com/v1"
STAND_IN = " (answer from the last solution)"         # added to the source where a reply has no answer line
calculate = functools.lru_cache(1 << 16)(calculate)   # the same small numbers come again and again


# ---------------------------------------------------------------- the prompt

TASKS = {
    "socratic": "Break the problem into subquestions and solve them one by one. For every step write a line "
                "'Subquestion: ...' and a line 'Solution: ...'. {end} {steps} Ask only for what has to be {found}, "
                "never for what the problem states. The last subquestion asks what the problem asks. No subquestion "
                "may tell the answer.",
    "cot": "Solve the problem step by step. For every step write a line 'Solution: ...'. {end} {steps}",
    "gold steps": "Each problem comes with the steps of its solution. For every step write a line 'Subquestion: ...' "
                  "that asks for what the step computes: as many lines as steps, in their order, and nothing else. "
                  "The last subquestion asks what the problem asks. No subquestion may tell a result.",
}
NUMBERS = {"end": "At the end write a line 'Answer: ...' with the number alone.", "found": "computed",
           "steps": "Every solution is one short sentence with one calculation, written out like 3*4 = 12."}
YES_NO = {"end": "At the end write 'Answer: yes' or 'Answer: no'.", "found": "looked up or concluded",
          "steps": "Every solution is one short sentence. The last one draws the conclusion."}

# Problem; with = a formula or fact that only `socratic-gt` shows; with ** a subquestion and its solution; with #### the
# answer. They show what deserves a subquestion: no number that the problem states.
EXEMPLARS = {
    "demo": """
Pia filled 6 boxes with 7 shells each. Pia was 9 years old. Pia gave 12 of the shells to Gus. Then Gus gave Pia 5 more \
shells. How many shells did Pia have in the end?
How many shells were in the boxes? ** There were 6*7 = 42 shells in the boxes.
How many shells did Pia have left? ** Pia had 42-12 = 30 shells left.
How many shells did Pia have in the end? ** Pia had 30+5 = 35 shells in the end.
#### 35

Dora worked for 7 hours at $6 an hour. The bus was 20 minutes late. Then Dora paid $4 each for 3 mugs. With all the \
money Dora bought pens at $2 each. How many pens did Dora buy?
How much money did Dora earn? ** Dora earned 6*7 = $42.
How much did the mugs cost? ** The mugs cost 3*4 = $12.
How much money did Dora have left? ** Dora had 42-12 = $30 left.
How many pens did Dora buy? ** Dora bought 30/2 = 15 pens.
#### 15

Hal had 19 white eggs and 17 brown eggs. After that 6 of the eggs broke. Hal put the eggs into cartons, 5 in each. Wim \
had 3 times as many cartons as Hal. How many cartons did Wim have?
How many eggs did Hal have at first? ** Hal had 19+17 = 36 eggs at first.
How many eggs did Hal have left? ** Hal had 36-6 = 30 eggs left.
How many cartons did Hal fill? ** Hal filled 30/5 = 6 cartons.
How many cartons did Wim have? ** Wim had 6*3 = 18 cartons.
#### 18

Every day for 6 days Bo got 9 coins. Then Bo gave 4 coins to each of 7 friends. Wim had 13 fewer coins than Bo. How \
many coins did Wim have?
How many coins did Bo collect? ** Bo collected 9*6 = 54 coins.
How many coins went to the friends? ** The friends got 4*7 = 28 coins.
How many coins did Bo have left? ** Bo had 54-28 = 26 coins left.
How many coins did Wim have? ** Wim had 26-13 = 13 coins.
#### 13""",
    "gsm8k": """
A bakery sells a tray of 6 rolls for $4. On Saturday it baked 90 rolls, and a third of them burned. How much money \
does the bakery make if it sells all the other rolls in trays?
How many rolls burned? ** A third of the rolls burned, which is 90 / 3 = 30 rolls.
How many rolls were left to sell? ** There were 90 - 30 = 60 rolls left.
How many trays do the rolls fill? ** They fill 60 / 6 = 10 trays.
How much money does the bakery make? ** The bakery makes 10 * 4 = $40.
#### 40

Farah runs 5 miles on each of the 5 weekdays and twice as far on Sunday. Her sister runs 20% less than Farah in a \
week. How many miles does her sister run in a week?
How many miles does Farah run on weekdays? ** On weekdays Farah runs 5 * 5 = 25 miles.
How many miles does Farah run on Sunday? ** On Sunday she runs 5 * 2 = 10 miles.
How many miles does Farah run in a week? ** In a week she runs 25 + 10 = 35 miles.
How many miles less does her sister run? ** Her sister runs 35 * 20% = 7 miles less.
How many miles does her sister run in a week? ** Her sister runs 35 - 7 = 28 miles.
#### 28""",
    "svamp": """
Mr. Ito bought 4 packs of stickers with 12 in each pack. He used 15 stickers. How many stickers does he have left?
= (4*12)-15=33
How many stickers did Mr. Ito buy? ** Mr. Ito bought 4 * 12 = 48 stickers.
How many stickers does he have left? ** He has 48 - 15 = 33 stickers left.
#### 33

There are 14 ducks and 10 geese on a pond. If the birds swim in groups of 3, how many groups are there?
= (14+10)/3=8
How many birds are on the pond? ** There are 14 + 10 = 24 birds on the pond.
How many groups are there? ** There are 24 / 3 = 8 groups.
#### 8""",
    "strategyqa": """
Could a giraffe stand upright in the cargo hold of a Boeing 747?
= An adult giraffe is 14 to 19 feet tall.
= The main deck of a Boeing 747 freighter takes freight up to 10 feet high.
How tall is an adult giraffe? ** An adult giraffe is 14 to 19 feet tall.
How high may freight in a Boeing 747 be? ** A Boeing 747 takes freight up to 10 feet high.
Is 10 feet at least as high as an adult giraffe is tall? ** No, 10 feet is less than 14 feet.
#### no

Did Beethoven live at the same time as Napoleon?
= Ludwig van Beethoven was born in 1770 and died in 1827.
= Napoleon Bonaparte was born in 1769 and died in 1821.
When did Beethoven live? ** Beethoven lived from 1770 to 1827.
When did Napoleon live? ** Napoleon lived from 1769 to 1821.
Do these two spans of time overlap? ** Yes, both men were alive from 1770 to 1821.
#### yes""",
}


def read_exemplar(text):
    """The problem record of an exemplar."""
    first, *lines, last = text.strip().split("\n")
    steps = [Step(*line.split(" ** ")) for line in lines if " ** " in line]
    evidence = [line.removeprefix("= ") for line in lines if line.startswith("= ")]
    return Problem("exemplar", first, steps, last.removeprefix("#### "), evidence=evidence)


def has_gold_steps(problem):
    """Whether `socratic-gt` shows the teacher gold solutions, which stay. A formula or facts are shown instead."""
    return bool(problem.steps) and all(step.solution for step in problem.steps) and not problem.evidence


def asked(problem, mode, dataset):
    """What the teacher reads of a problem."""
    lines = [f"Problem: {clean(problem.problem)}"]
    if mode == "socratic-gt" and has_gold_steps(problem):
        lines += [f"Step {i}: " + re.sub("<<.*?>>", "", step.solution) for i, step in enumerate(problem.steps, 1)]
    elif mode == "socratic-gt":
        lines += [f"{'Formula' if dataset == 'svamp' else 'Fact'}: {clean(line)}" for line in problem.evidence]
    return "\n".join(lines)


def written(problem, mode):
    """What it should write, given the steps of an exemplar."""
    if mode == "socratic-gt" and has_gold_steps(problem):
        return "\n".join(f"Subquestion {i}: {step.question}" for i, step in enumerate(problem.steps, 1))
    asks = "" if mode == "cot" else "Subquestion: {}\n"
    steps = [f"{asks.format(step.question)}Solution: {step.solution}" for step in problem.steps]
    return "\n".join([*steps, f"Answer: {problem.answer}"])


@functools.cache
def opening(mode, dataset):
    """The chat up to a problem: the task and the exemplars. Some chat templates know no system turn: there is none."""
    exemplars = [read_exemplar(text) for text in EXEMPLARS[dataset].split("\n\n")]
    gold = mode == "socratic-gt" and has_gold_steps(exemplars[0])
    task = TASKS["gold steps" if gold else "cot" if mode == "cot" else "socratic"]
    task = task.format(**(YES_NO if dataset == "strategyqa" else NUMBERS))
    if mode == "socratic-gt" and not gold:
        task += " Follow the formula." if dataset == "svamp" else " Use the facts."
    turns = [turn for exemplar in exemplars for turn in (
        {"role": "user", "content": asked(exemplar, mode, dataset)},
        {"role": "assistant", "content": written(exemplar, mode)})]
    turns[0]["content"] = f"{task}\n\n{turns[0]['content']}"
    return turns


def make_messages(problem, mode, dataset):
    """The chat that asks for one problem."""
    return [*opening(mode, dataset), {"role": "user", "content": asked(problem, mode, dataset)}]


# ---------------------------------------------------------------- the reply: from text to steps

class Rejected(Exception):
    """A reply that is not kept. The text says why: the reason, then perhaps a colon and details."""


MARKUP = (  # what models write around the text that they were asked for
    (r"(?s)\A.*</think>|<think>.*", ""),
    (r"(?<!\\)\$([^$\n]*\\[^$\n]*)(?<!\\)\$", r"\1"),
    (r"\\(?:boxed|text\w*|math\w+)\s*\{([^{}]*)\}", r"\1"),
    (r"\\[dt]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}", r"\1/\2"),
    (r"\\(?:times|cdot)\b", "*"),
    (r"\\div\b", "/"),
    (r"\\[()\[\],;! ]", " "),
    (r"\\(?=[$%#&])|\*\*|__|`|\$\$", ""),
    (r"\{,\}", ","),
    (r"(?m)^\W*(?:(?:so|therefore|thus|hence),? )?the (?:final )?answer is:?|####(?=\s*[-$\d])", "Answer:"),
    (r"(?<=\S)(?<!final)[ \t]+((?:sub-?question|solution|(?:final )?answer)[ \t]*\d*:)", r"\n\1"),
)
LABEL = re.compile(r"""[\s>#*•-]* (?:\(?\d+[.):]\s+)?
    (problem | sub-?\s?question | question | q(?=\d*:) | solution | s(?=\d*:) | (?:the\s|final\s)*answer | a(?=\d*:))
    \s*\#?(\d+)?[*\s]* (?: : | [.)–-]\s | [.)–-]*$ )""", re.IGNORECASE | re.VERBOSE)
BULLET = re.compile(r"[\s>#*•-]*(?:(?:step\s*)?\d+\s*[.):](?:\s+|$))?", re.IGNORECASE)


def read_dialogue(text, mode):
    r"""
    (steps, answer) of a reply. The answer is None where it has no such line; what follows that line is ignored.

    >>> read_dialogue("**Subquestion 1:** How many?\n\n### Solution\n3*4 = 12\nFinal answer: 12\nSo...", "socratic")
    ([Step(question='How many?', solution='3*4 = 12')], '12')
    """
    for pattern, by in MARKUP:
        text = re.sub(pattern, by, text, flags=re.IGNORECASE)
    lines = [(line, LABEL.match(line)) for line in text.split("\n") if re.search(r"\w", line)]
    labelled = any(label and label[1].lower() == "solution" for _, label in lines)
    parts = []                                             # [kind, text]
    for line, label in lines:
        kind, written = parts[-1] if parts else (None, "")
        if kind == "answer" and written.strip():
            break
        if label:
            word = label[1].lower()
            if word == "problem" and parts:
                break                                      # one more problem, which nobody asked for
            if word != "problem":
                # "Question: ... Answer: ..." again and again: such an answer is the solution of its question.
                unsolved = kind == "question" and not written.partition("?")[2].strip()
                solves = word[0] == "s" or unsolved or label[2]
                parts.append(["question" if "q" in word else "solution" if solves else "answer", line[label.end():]])
            continue
        begins, bare = not kind or written.strip(), BULLET.sub("", line, count=1)  # or it stands below its label
        if begins and not bare:
            continue
        line = bare or line
        if begins and line.rstrip().endswith("?") and mode != "cot":
            parts.append(["question", line])
        elif begins and (kind == "question" or mode == "cot" and not labelled):
            parts.append(["solution", line])
        elif kind:
            parts[-1][1] += f" {line}"

    steps, answer = [], None
    for kind, part in parts:
        part = clean(part)
        if kind == "answer":
            answer = extract_answer(f"Answer: {part}") or ""
        elif mode == "cot":
            steps += [Step("", part)] * (kind == "solution")
        elif kind == "question":
            question, mark, rest = part.partition("?")
            steps.append(Step(question + mark, rest.strip()))
        elif not steps:
            raise Rejected("a solution without a subquestion")
        else:
            steps[-1].solution = clean(f"{steps[-1].solution} {part}")
    return steps, answer


# ---------------------------------------------------------------- the filter: what can be trusted

ATOM = rf"-?(?:\(\s*){{0,5}}[$€£]?(?:{NUMBER})%?(?:\s*\)){{0,5}}"
UNIT = r"(?:\s*/\s*[a-z]+|\s+(?!x\b)[a-z']+){0,4}"         # 3 boxes * 4 pens = 12 pens, $12/hour
PART = rf"{ATOM}{UNIT}(?:(?:\s*[-+*/×÷−–·x]\s*|(?<=%)\sof\s){ATOM}{UNIT})*"
EQUATION = re.compile(rf"(?<![\w.,])(?<!\d\s)(?<![-+*/×÷−–·])(?<![-+*/×÷−–·]\s){PART}(?:\s*=\s*{PART})+", re.IGNORECASE)
OPERATOR = re.compile(r"[\d)%][-+*/]")
RESULT = re.compile(r"=([^<>=]+)>>")
ONES = ("zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
        "seventeen eighteen nineteen").split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
WORDS = {word: n for n, word in enumerate(ONES)} | {word: n for n, word in zip(range(20, 100, 10), TENS)}


def expression(text):
    """
    A side of an equation as calculator annotations have it.

    >>> expression("(3 boxes x $1,200/box"), expression("20% of 50")
    ('3*1200', '20%*50')
    """
    text = re.sub(r"(?<=%)\sof\s(?=[$(.\d])|(?<![a-z])x(?=\s*[-$(.\d])|[×·]", "*", text, flags=re.IGNORECASE)
    text = re.sub(r"(?:\s*/)?\s*[a-z']+|[\s,$€£]", "", text, flags=re.IGNORECASE).translate(str.maketrans("÷−–", "/--"))
    surplus = text.count("(") - text.count(")")            # a bracket around the whole equation
    return text.removeprefix("(" * surplus) if surplus > 0 else text.removesuffix(")" * -surplus)


def annotate(solution):
    """
    The solution with `<<...>>` added where it calculates. Rejected: something in it is false.

    >>> annotate("Each of the 4 gets $1,200 / 4 = $300.")
    'Each of the 4 gets $1,200 / 4 = $<<1200/4=300>>300.'
    """
    def check(equation):
        sides = equation[0].split("=")
        out = sides[:1]
        for left, right in zip(map(expression, sides), sides[1:]):
            value, says = calculate(left), expression(right)
            if OPERATOR.search(left) and value is not None:
                if value not in (calculate(says), calculate(says.rstrip("%"))):
                    raise Rejected(f"false arithmetic: {left}={says}")
                if not OPERATOR.search(says):
                    right = re.sub(r"^\s*[$€£]?", rf"\g<0><<{left}={value}>>", right)
            out.append(right)
        return "=".join(out)

    if not re.search("<<|>>", solution):
        return EQUATION.sub(check, solution)
    for inside in re.findall("<<(.*?)>>|<<|>>", solution):  # the teacher's own
        left, _, right = inside.partition("=")
        if not same_answer(calculate(left), calculate(right)):
            raise Rejected(f"false arithmetic: {inside}")
    return solution


def numbers(text):
    """
    The numbers that a text states, in digits or, below a hundred, in words.

    >>> sorted(numbers("Twenty-five of 1,000 pens, and sixteen cards."))
    ['1000', '16', '25']
    """
    words = re.findall("[a-z]+(?:-[a-z]+)?", text.lower())  # twenty-five is 25
    parts = [word.split("-") for word in words]
    said = {str(sum(map(WORDS.get, part))) for part in parts if WORDS.keys() >= {*part}}
    return said | {calculate(number) for number in re.findall(NUMBER, text)}


def judge(problem, reply, mode, teacher):
    """The record that is kept of a server's reply, or Rejected."""
    text, finish, refusal = read_reply(reply)
    if finish in ("length", "max_tokens"):
        raise Rejected("cut off")
    if finish == "content_filter":
        raise Rejected("filtered")
    if refusal:
        raise Rejected("refused")
    if not text.strip():
        raise Rejected("empty")
    steps, answer = read_dialogue(text, mode)
    if not steps:
        sorry = re.match(r"\W*(I('m| am) (sorry|unable)|Sorry|I can('|no)t|As an AI)", text)
        raise Rejected("refused" if sorry else "no steps")
    gold = mode == "socratic-gt" and has_gold_steps(problem)
    arithmetic = not gold and problem.answer not in ("yes", "no")
    if gold:
        if len(steps) != len(problem.steps):
            raise Rejected(f"not one subquestion for each step: {len(steps)} for {len(problem.steps)}")
        steps = [Step(mine.question, given.solution) for mine, given in zip(steps, problem.steps)]
    else:
        if not all(step.solution and (step.question or mode == "cot") for step in steps):
            raise Rejected("a subquestion without a solution")
        if arithmetic:
            steps = [Step(step.question, annotate(step.solution)) for step in steps]
        if answer is None:  # the last solution's value stands in, and the record says so
            teacher += STAND_IN
            results = RESULT.findall(steps[-1].solution)
            answer = results[-1] if results else extract_answer(steps[-1].solution, lenient=True)
        if not answer:
            raise Rejected("no answer")
        if not same_answer(answer, problem.answer):
            raise Rejected(f"wrong answer: {answer}, not {problem.answer}")
    stated, kept = numbers(problem.problem), []
    known = set(stated)
    for step in steps:
        results = set(map(calculate, RESULT.findall(step.solution)))
        told = {calculate(number) for number in re.findall(NUMBER, step.question)} - stated
        if told & (results | {problem.answer}) or "answer is" in step.question:
            raise Rejected(f"a subquestion gives the answer away: {step.question}")
        # A step that computes nothing, such as one that asks for a number of the problem, is left out.
        if not arithmetic or results or not numbers(step.solution) <= known:
            kept.append(step)
        known |= numbers(step.solution)
    if not kept or arithmetic and not any(RESULT.search(step.solution) for step in kept):
        raise Rejected("no calculation" if kept else "no steps")
    if kept[-1] is not steps[-1] and steps[-1].question and problem.answer in RESULT.findall(kept[-1].solution):
        # "So how many are left in the end?" is what the problem asks: the question of the step that found the answer.
        kept[-1] = Step(steps[-1].question, kept[-1].solution)
    return replace(problem, steps=kept, source=teacher)


# ---------------------------------------------------------------- the server: one chat completion

ATTEMPTS = 6            # of one request; waits after a 429 are not counted
PAID_ATTEMPTS = 2       # of one request that broke off with the server at work: that has probably been billed
REFUSALS = 20           # so many requests refused in a row end the run
PATIENCE = 3600         # so many seconds without a single reply end the run
FIRST_WAIT = 1.0        # seconds before the second attempt; then twice as long each time, up to a minute
LONGEST_WAIT = 3600     # the longest Retry-After that is obeyed


class Failed(Exception):
    """A request without a reply."""

    def __init__(self, message, status=None, passing=True, paid=False, wait=None, code="", field=None):
        super().__init__(message)
        self.status, self.code, self.field = status, code, field  # as the server says
        self.passing, self.paid, self.wait = passing, paid, wait  # may go well later; may be billed; seconds to wait


class Stop(Exception):
    """The run ends; what is on disk stays."""


class Server:
    """An OpenAI-compatible chat server. All threads share it; each has a connection of its own."""

    def __init__(self, base_url, teacher, key=None, timeout=300):
        self.base_url, self.teacher, self.key, self.timeout = base_url, teacher, key, timeout
        self.names = {field: field for field in ("temperature", "max_tokens", "seed", "n")}  # None: not to be sent
        self.lock, self.local, self.stopping = threading.Lock(), threading.local(), threading.Event()
        self.not_before, self.last_reply, self.n_refused = 0.0, None, 0

    def session(self):
        if not hasattr(self.local, "session"):
            session = self.local.session = requests.Session()
            session.trust_env = False  # it would be read at every request, and a .netrc would replace the key
            session.proxies = requests.utils.get_environ_proxies(self.base_url)
            session.verify = os.environ.get("REQUESTS_CA_BUNDLE") or True
            session.headers["Content-Type"] = "application/json"
            if self.key:
                session.headers["Authorization"] = f"Bearer {self.key}"
        return self.local.session

    def post(self, body):
        """One exchange: the reply, a dictionary, or Failed."""
        start, chunks = time.monotonic(), []
        try:
            with self.session().post(f"{self.base_url}/chat/completions", data=json.dumps(body), stream=True,
                                     timeout=(10, self.timeout), allow_redirects=False) as response:
                while chunk := response.raw.read1(1 << 16, decode_content=True):
                    chunks.append(chunk)
                    if time.monotonic() - start > self.timeout:  # a slow trickle never times out by itself
                        raise requests.ReadTimeout
        except (requests.RequestException, HTTPError) as error:
            cause = getattr(error.args[0] if error.args else None, "reason", error)
            if isinstance(error, (requests.ReadTimeout, ReadTimeoutError)):
                raise Failed(f"no reply within {self.timeout:g} s", paid=True) from None
            if isinstance(error, (requests.ConnectTimeout, SSLError)) or isinstance(cause, NewConnectionError):
                raise Failed(f"no connection ({type(cause).__name__})") from None
            raise Failed("the connection broke", paid=True) from None
        text = b"".join(chunks).decode("utf-8", "replace")
        if self.key and len(self.key) >= 8:
            text = text.replace(self.key, "***")
        return read_body(text, response.status_code, response.headers)

    def ask(self, messages, fields, on_paid=lambda error: None, attempts=ATTEMPTS):
        """The reply to one request, after as many attempts as are worth while. Else Failed, or Stop."""
        n, n_failed, n_paid = 0, 0, 0
        while True:
            while (wait := self.not_before - time.monotonic()) > 0:
                self.pause(wait * random.uniform(1, 1.2))  # so that not all begin at the same moment
            self.pause(0)
            sent = {self.names[field]: value for field, value in fields.items() if self.names[field]}
            try:
                reply = self.post({"model": self.teacher, "messages": messages, **sent})
                self.last_reply, self.n_refused = time.monotonic(), 0
                return reply
            except Failed as failed:
                error = failed
            if error.status in (400, 422) and self.adapt(error, sent):
                continue
            if error.paid:
                on_paid(error)
            self.n_refused += not error.passing
            if error.status in (401, 402) or "insufficient_quota" in error.code:
                raise Stop(error)
            if self.n_refused >= REFUSALS:
                raise Stop(f"{REFUSALS} requests in a row were refused; the last word was: {error}")
            if self.last_reply and time.monotonic() - self.last_reply > PATIENCE:
                raise Stop(f"no reply for {PATIENCE / 60:.0f} minutes; the last word was: {error}")
            n, n_paid = n + 1, n_paid + error.paid
            n_failed += error.status != 429 or not self.last_reply
            if not error.passing or n_failed >= attempts or n_paid >= PAID_ATTEMPTS:
                raise error
            wait = error.wait
            if wait is None:
                wait = min(60, FIRST_WAIT * 2 ** min(n - 1, 6)) * random.uniform(0.5, 1)
            if error.status == 429:
                self.not_before = max(self.not_before, time.monotonic() + wait)  # for all threads
            else:
                self.pause(wait)

    def adapt(self, error, sent):
        """Whether a parameter that the server does not take has been renamed or left out, for all requests to come."""
        named = [name for name in sent if name == error.field] or [
            name for name in sent if re.search(rf"\b{name}\b", str(error))]
        words = "support|unknown|unrecogni|unexpected|permitted|allowed|extra"
        if not named or not re.search(words, f"{error} {error.code}", re.IGNORECASE):
            return False
        with self.lock:
            for field, name in self.names.items():
                if name == named[0]:  # else another thread was faster
                    self.names[field] = "max_completion_tokens" if name == "max_tokens" else None
                    print(f"The server does not take {name}:", self.names[field] or "nothing", "is sent instead.")
        return True

    def pause(self, seconds):
        if self.stopping.wait(seconds):
            raise Stop


def read_body(text, status, headers):
    """
    The reply in the body of an HTTP response, or Failed.

    Errors come in five shapes: {"error": {...}}, {"error": "text"}, a flat object, these under HTTP 200, and HTML.
    """
    try:
        body = json.loads(text)
    except ValueError:
        body = None
    body = body if isinstance(body, dict) else {}
    error = body.get("error") or body
    if status == 200 and error is body and ("choices" in body or body and "message" not in body):
        return body
    if status == 200 and not body:
        raise Failed("the reply is not JSON", paid=not text.lstrip().startswith("<"))
    error = error if isinstance(error, dict) else {"message": error}
    message = error.get("message") or error.get("detail") or re.sub("(?s)<style.*?</style>|<[^>]*>", " ", text)
    code = f"{error.get('code')} {error.get('type')}"
    if status == 200:
        status = int(code[:3]) if re.match(r"[45]\d\d ", code) else 500
    passing = status in (408, 409, 429) or status >= 500
    passing = {"true": True, "false": False}.get(headers.get("x-should-retry"), passing)
    raise Failed(f"{status} {clean(str(message))[:200]}", status, passing, False, read_wait(headers), code,
                 error.get("param"))


def read_wait(headers):
    """The seconds to wait that a server asks for, or None."""
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif re.fullmatch(r"\d+(\.\d+)?", value := headers.get("retry-after", "")):
            seconds = float(value)
        else:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(0, seconds), LONGEST_WAIT)


def read_reply(reply):
    """(text, finish reason, refusal) of a chat completion. Reasoning that has a field of its own is not read."""
    choices = reply.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
    message = choice.get("message") if isinstance(choice.get("message"), dict) else {}
    content = message.get("content") or ""
    if isinstance(content, list):
        content = "".join(str(part.get("text") or "") for part in content if isinstance(part, dict))
    return str(content).encode("utf-8", "replace").decode(), choice.get("finish_reason"), message.get("refusal")


def count_tokens(messages):
    """A careful guess: English with numbers has 3 to 4 characters a token."""
    return sum(len(message["content"]) // 3 + 4 for message in messages)


def read_usage(reply, messages):
    """[prompt tokens, reply tokens]; guessed where the server does not say."""
    usage = reply.get("usage") if isinstance(reply.get("usage"), dict) else {}
    said = usage.get("prompt_tokens"), usage.get("completion_tokens")
    guessed = count_tokens(messages), count_tokens([{"content": read_reply(reply)[0]}])
    return [a if isinstance(a, int) else b for a, b in zip(said, guessed)]


# ---------------------------------------------------------------- the run: who is asked what, and what came of it

def read_rows(path):
    """The rows of a file of replies. A line that a kill or a full disk has torn is skipped."""
    rows = []
    for n, line in enumerate(path.read_bytes().split(b"\n") if path.exists() else [], 1):
        try:
            row = json.loads(line or "null")
            rows += [row] if row and len(row["usage"]) == 2 and row["teacher"] else []
        except (ValueError, KeyError, TypeError):
            print(f"{path}:{n}: not a whole reply, skipped", file=sys.stderr)
    return rows


SHOW_EVERY = 10.0       # seconds between two lines of progress; every second on a terminal


class Run:
    """
    The problems of one command on their way. `settle` looks at the replies so far and says what they make of a
    problem, or what to ask next; so a fresh run, one that goes on, a dry run and a replay are the same thing.
    """

    def __init__(self, args, problems, rows, server=None, file=None):
        self.args, self.problems, self.server, self.file = args, problems, server, file
        self.key = "replay" if args.replay else "key"
        self.replies = {row[self.key]: row for row in rows if self.key in row}
        self.lock, self.spent = threading.Lock(), Counter()
        for row in rows:
            if row.get("teacher") == args.teacher:
                self.count(row)
        self.queue = deque(problem for problem in problems if self.settle(problem)[0])
        self.done, self.n_failed, self.failed, self.why = Counter(), Counter(), {}, None

    def count(self, row):
        tokens_in, tokens_out = row["usage"]
        self.spent.update(calls=1, tokens_in=tokens_in, tokens_out=tokens_out, seconds=row.get("seconds", 0),
                          broken="failed" in row)

    def cost(self, tokens_in=None, tokens_out=None):
        """In dollars, or whatever the prices are in; without arguments, of all that is on disk."""
        counts = (self.spent["tokens_in"], self.spent["tokens_out"]) if tokens_in is None else (tokens_in, tokens_out)
        return sum(n * (price or 0) / 1e6 for n, price in zip(counts, (self.args.price_in, self.args.price_out)))

    def request(self, problem, sample, cap):
        """(row, messages, fields) of a request; the keys in its row are hashes of everything that shapes the reply."""
        messages = make_messages(problem, self.args.mode, self.args.dataset)
        fields = {"temperature": self.args.temperature, "max_tokens": cap, "seed": self.args.seed + sample, "n": 1}
        replay = hashlib.sha256(json.dumps([messages, fields]).encode()).hexdigest()
        where = f"{self.server.base_url} {self.args.teacher} " if self.server else ""
        key = hashlib.sha256(f"{where}{replay}".encode()).hexdigest()
        row = {"key": key, "replay": replay, "id": problem.id, "sample": sample, "teacher": self.args.teacher}
        return row, messages, fields

    def settle(self, problem):
        """(next request or None, record that is kept or None, [(sample, reason, text)] of the rejected replies)."""
        rejected = []
        for sample in range(self.args.tries):
            for cap in (self.args.max_tokens, 2 * self.args.max_tokens):
                request = self.request(problem, sample, cap)
                row = self.replies.get(request[0][self.key])
                if row is None:                   # a recording may have fewer tries than we would give
                    return None if self.args.replay and rejected else request, None, rejected
                try:
                    return None, judge(problem, row["reply"], self.args.mode, row["teacher"]), rejected
                except Rejected as reason:
                    rejected.append((sample, str(reason), read_reply(row["reply"])[0]))
                if rejected[-1][1] != "cut off":  # else once more, with room for twice as much
                    break
            if rejected[-1][1] in ("cut off", "filtered"):
                break                             # another sample would end the same way
        return None, None, rejected

    def ask(self, row, messages, fields):
        """One request; its reply is on disk when this returns."""
        usage, start = [count_tokens(messages), fields["max_tokens"]], time.monotonic()

        def on_paid(error):  # a call that broke off tells no usage: the worst case counts
            self.write({"id": row["id"], "teacher": row["teacher"], "usage": usage, "failed": str(error)})
            self.check_budget(usage)

        self.check_budget(usage)
        reply = self.server.ask(messages, fields, on_paid)
        seconds = round(time.monotonic() - start, 3)
        self.write(row | {"usage": read_usage(reply, messages), "seconds": seconds, "reply": reply})

    def check_budget(self, usage):
        """The budget must hold one more call of the worst case for each of the workers."""
        if self.args.budget is not None and self.cost() + self.args.workers * self.cost(*usage) > self.args.budget:
            raise Stop(f"{self.args.workers} more calls at a time might exceed the budget of {self.args.budget:g}")

    def write(self, row):
        """Append one row to the replies, at once. It begins a line of its own, whatever a kill has left before it."""
        with self.lock:
            try:
                self.file.seek(max(0, self.file.seek(0, os.SEEK_END) - 1))
                torn = self.file.read() not in (b"", b"\n")
                data = memoryview(b"\n" * torn + json.dumps(row).encode() + b"\n")
                while data:
                    data = data[self.file.write(data):]
            except OSError as error:
                raise Stop(f"the replies cannot be written: {error.strerror}") from None
            self.count(row)
            if "key" in row:
                self.replies[row["key"]] = row

    def work(self):
        """What each thread does: take a problem, ask until it is settled, take the next."""
        while not self.server.stopping.is_set():
            try:
                problem = self.queue.popleft()
            except IndexError:
                return
            try:
                while (outcome := self.settle(problem))[0]:
                    self.ask(*outcome[0])
                with self.lock:
                    self.done.update(settled=1, kept=outcome[1] is not None)
            except Stop as stop:
                self.stop(str(stop))
            except Failed as error:
                self.n_failed[problem.id] += 1
                if error.passing and not error.paid and self.n_failed[problem.id] < 3:
                    self.queue.append(problem)    # after all others: the server may have recovered by then
                else:
                    self.failed[problem.id] = str(error)
            except Exception as error:            # one problem that we cannot handle must not cost the night
                self.failed[problem.id] = repr(error)

    def stop(self, why):
        self.why = self.why or why
        self.server.stopping.set()

    def work_all(self):
        """Let the threads work and show how far they are, until all is settled or something ends the run."""
        start = shown = time.monotonic()
        n_queued, n_calls, terminal = len(self.queue), self.spent["calls"], sys.stdout.isatty()
        threads = [threading.Thread(target=self.work, daemon=True) for _ in range(min(self.args.workers, n_queued))]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            try:
                time.sleep(0.05)
                if time.monotonic() - shown > (1 if terminal else SHOW_EVERY):
                    shown = time.monotonic()
                    n = self.done["settled"]
                    left = timedelta(seconds=int((n_queued - n) * (shown - start) / max(1, n)))
                    wait = self.server.not_before - shown
                    print(f"{n:6,}/{n_queued:,} | {self.done['kept'] / max(1, n):4.0%} kept | "
                          f"{(self.spent['calls'] - n_calls) / (shown - start):5.1f} req/s | "
                          f"{left} left | {self.cost():.4f} spent"
                          + (f" | waits {wait:.0f} s" if wait > 1 else ""), end="\r" if terminal else "\n", flush=True)
            except KeyboardInterrupt:
                if self.server.stopping.is_set():
                    break
                self.stop("interrupted")
                print("\nWaiting for the requests under way; Ctrl-C again gives them up.")
        print("\n" * terminal, end="")


# ---------------------------------------------------------------- the command

def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Let a teacher write subquestions and solutions; keep what is right.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", choices=EXEMPLARS, help="which problems")
    add("--data-dir", help="folder of the data sets (None: SOCRATIC_DATA, or data/)")
    add("--split", default="train", choices=("train", "valid"), help="which part of them")
    add("--limit", type=int, help="the first so many problems only (None: all; demo: 40)")
    add("--mode", default="socratic", choices=MODES, help="socratic: the teacher writes subquestions and solutions; "
        "socratic-gt: it sees the gold steps, formula or facts; cot: solutions only")
    add("--teacher", metavar="NAME", help="the model to ask, as its server calls it")
    add("--base-url", metavar="URL", help=f"an OpenAI-compatible chat server (None: {OPENAI})")
    add("--key-env", default="OPENAI_API_KEY", metavar="NAME", help="environment variable that holds the key, if any")
    add("--workers", type=int, default=8, help="requests at a time")
    add("--tries", type=int, default=3, help="samples of a problem until one is kept")
    add("--temperature", type=float, default=0.7, help="of the teacher")
    add("--seed", type=int, default=0, help="of the first sample; the others count on from it")
    add("--max-tokens", type=int, default=1024, help="of a reply; once more with twice as many where it is cut off")
    add("--timeout", type=float, default=300, help="seconds for one reply")
    add("--price-in", type=float, help="price of a million prompt tokens")
    add("--price-out", type=float, help="price of a million reply tokens")
    add("--budget", type=float, help="stop before the replies on disk cost more than this in all (needs both prices)")
    add("--dry-run", action="store_true", help="ask nothing; say what requests, tokens, money and time it would take")
    add("--replay", nargs="?", const=str(RECORDING), metavar="FILE", help="ask nothing; take the replies from a "
        "recording, the .replies.jsonl of another run (no FILE: a real teacher's on demo; so does no flag at all)")
    add("--out", metavar="FILE", help="where to write (None: annotations/<dataset>-<mode>.jsonl)")
    return parser.parse_args(argv)


def normal_url(text):
    """
    >>> normal_url("localhost:8080"), normal_url("https://openrouter.ai/api/v1/")
    ('http://localhost:8080/v1', 'https://openrouter.ai/api/v1')
    """
    url = (text if "://" in text else f"http://{text}").rstrip("/").removesuffix("/chat/completions")
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        raise SystemExit("--base-url is no place for a key. Put it into an environment variable: --key-env NAME")
    return url if re.search(r"/v\d", parts.path) else f"{url}/v1"


def find_server(args):
    """The server that the flags name; nothing is asked yet."""
    url, key = normal_url(args.base_url or OPENAI), os.environ.get(args.key_env, "").strip()
    if not args.dry_run and not args.teacher:
        raise SystemExit("Which model? Name it as its server does: --teacher NAME")
    if not args.dry_run and not key and url == OPENAI:
        raise SystemExit(f"{url} needs a key: set the environment variable {args.key_env}.\n"
                         "  A server of your own needs none: --base-url http://localhost:11434")
    if not re.fullmatch("[!-~]*", key):
        raise SystemExit(f"{args.key_env} holds characters that no key has.")
    return Server(url, args.teacher, key, args.timeout)


def preflight(run):
    """One small call before the many: is the server there, does it know the model, what does it take, is it fast?"""
    server, args, start = run.server, run.args, time.monotonic()
    messages = [{"role": "user", "content": "Say OK."}]
    try:
        run.check_budget([count_tokens(messages), args.max_tokens])
        fields = {"temperature": args.temperature, "max_tokens": args.max_tokens, "seed": args.seed, "n": 1}
        reply = server.ask(messages, fields, attempts=3)
    except (Failed, Stop) as error:
        hint = {"401": f" The key is taken from the environment variable {args.key_env}.",
                "404": f" Does it have a model {args.teacher!r}?",
                "no ": " Is it running, and is this its address?"}.get(str(error)[:3], "")
        raise SystemExit(f"{server.base_url}: {error}.{hint}") from None
    run.write({"id": "preflight", "teacher": args.teacher, "usage": read_usage(reply, messages)})
    takes = ", ".join(filter(None, server.names.values()))
    print(f"{server.base_url} knows {args.teacher} and answers in {time.monotonic() - start:.1f} s\n"
          f"It takes {takes}; " + (f"key from {args.key_env}" if server.key else "no key"))


def dry_run(run):
    """What the command would ask, at the measured rate where replies are there to measure."""
    args, spent, n = run.args, run.spent, len(run.queue)
    n_settled, n_calls = len(run.problems) - n, spent["calls"]
    measured = n_settled > 0 and n_calls > 0
    n_requests = n * n_calls / n_settled if measured else n
    tokens_in = sum(count_tokens(run.settle(problem)[0][1]) for problem in run.queue) / max(1, n)
    per_call = (spent["tokens_in"] / n_calls, spent["tokens_out"] / n_calls) if measured else (tokens_in, 150)
    tokens_in, tokens_out = (n_requests * tokens for tokens in per_call)
    seconds = n_requests * spent["seconds"] / max(1, n_calls - spent["broken"]) / args.workers
    print(f"{len(run.problems):,} problems: {n_settled:,} settled, {n:,} to ask"
          f"\nrequests  {n_requests:,.0f}, at most {n * args.tries:,}"
          f"\ntokens    {tokens_in:,.0f} in, {tokens_out:,.0f} out"
          "\ncost      " + ("unknown: give --price-in and --price-out, per million tokens" if args.price_in is None
                            else f"{run.cost(tokens_in, tokens_out):,.2f}")
          + "\ntime      " + (f"{timedelta(seconds=int(seconds))}, {args.workers} at a time" if measured else
                              "unknown until a few replies are there, and the rest is a guess: try --limit 20"))


def finish(run, out):
    """Make the annotations from the replies, say what came of it, and return how many problems are missing."""
    args, spent, total = run.args, run.spent, len(run.problems)
    outcomes = [run.settle(problem) for problem in run.problems]
    kept = [record.to_json() for _, record, _ in outcomes if record]
    rejected = [json.dumps({"id": p.id, "sample": sample, "reason": reason, "text": text, "problem": p.problem,
                            "answer": p.answer}, ensure_ascii=False)
                for p, (_, _, rejections) in zip(run.problems, outcomes) for sample, reason, text in rejections]
    for path, lines in ((out, kept), (out.with_suffix(".rejected.jsonl"), rejected)):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part = path.with_name(path.name + ".part")
            part.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
            part.replace(path)
        except OSError as error:
            raise SystemExit(f"{path} cannot be written: {error.strerror}. The replies are safe.") from None
    missing = Counter(run.failed.get(p.id, run.why) for p, outcome in zip(run.problems, outcomes) if outcome[0])
    reasons = Counter(reason.partition(":")[0] for _, _, rejections in outcomes for _, reason, _ in rejections)
    print(f"kept      {len(kept):,} of {total:,} ({len(kept) / max(1, total):.0%}) -> {out}")
    print(f"rejected  {total - len(kept) - missing.total():,}, and {reasons.total():,} replies:"
          + "".join(f"\n  {n:8,}  {reason}" for reason, n in reasons.most_common()))
    print(f"missing   {missing.total():,}" + "".join(f"\n  {n:8,}  {why}" for why, n in missing.most_common(9)))
    print(f"calls     {spent['calls']:,}: {spent['tokens_in']:,} tokens in, {spent['tokens_out']:,} out"
          + (f" ({spent['broken']:,} broke off and may be billed)" if spent["broken"] else ""))
    if args.price_in is not None:
        print(f"cost      {run.cost():.4f}, {run.cost() / max(1, len(kept)):.6f} for each that is kept")
    if missing and not args.replay:
        print("The same command goes on where this one stopped.")
    return missing.total()


def main(args):
    """The exit status: 1 where problems are missing."""
    if args.budget is not None and None in (args.price_in, args.price_out):
        raise SystemExit("--budget needs the prices of a million tokens: --price-in and --price-out")
    if not (args.replay or args.teacher or args.base_url or args.dry_run):
        if (args.dataset, args.mode) != ("demo", "socratic"):
            raise SystemExit("Which teacher? Name it: --teacher NAME, and --base-url URL where it is not OpenAI's.\n"
                             "  The recorded one has seen demo problems only, in mode socratic.")
        args.replay = str(RECORDING)
    limit = args.limit or (40 if args.dataset == "demo" else None)
    name = f"{args.dataset}-{args.mode}" + ("" if args.split == "train" else f"-{args.split}")
    out = Path(args.out or f"annotations/{name}.jsonl")
    replies = Path(args.replay) if args.replay else out.with_suffix(".replies.jsonl")
    if args.replay:
        rows = [row for row in read_rows(replies) if "replay" in row]
        seen = {row["id"] for row in rows}
        if args.dataset == "demo" and not args.limit:  # as many stories as the recording knows
            limit = max((int(id.rpartition("-")[2]) + 1 for id in seen if id.startswith("demo-")), default=1)
        problems = [p for p in load_problems(args.dataset, args.split, args.data_dir, limit) if p.id in seen]
        if not problems:
            raise SystemExit(f"{replies} does not exist, or holds no replies about {args.dataset}.\n"
                             "  A recording is the .replies.jsonl of an earlier run.")
        args.teacher = rows[0]["teacher"]
        check_out(out, problems, args.teacher)
        run = Run(args, problems, rows)
        run.why = "not in the recording, which was made with other prompts or flags"
        return int(finish(run, out) > 0)
    problems = load_problems(args.dataset, args.split, args.data_dir, limit)
    server = find_server(args)
    if args.dry_run:
        dry_run(Run(args, problems, read_rows(replies), server))
        return 0
    check_out(out, problems, args.teacher)
    with open_replies(replies) as file:
        run = Run(args, problems, read_rows(replies), server, file)
        if run.queue:
            preflight(run)
            run.work_all()
        return int(finish(run, out) > 0)


def open_replies(path):
    """The file of replies, to append to, for this run alone."""
    path.parent.mkdir(parents=True, exist_ok=True)
    file = path.open("ab+", buffering=0)
    if fcntl:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            raise SystemExit(f"Another run is writing {path}. Wait for it, or name another file: --out FILE") from None
    return file


def check_out(out, problems, teacher):
    """Stop before annotations are replaced that this command does not make."""
    ids = {problem.id for problem in problems}
    others = [record for record in (read_records(out) if out.exists() else [])
              if record.id not in ids or record.source.removesuffix(STAND_IN) != teacher]
    if others:
        raise SystemExit(f"{out} holds {len(others)} annotations that this command does not make (another teacher, or "
                         "more problems).\n  Keep them: name another file with --out. Or delete that file.")


if __name__ == "__main__":
    try:
        sys.exit(main(parse_args()))
    except KeyboardInterrupt:
        sys.exit(1)

"""
Where does the text come from? A teacher, a large model, writes it; what passes the checks is kept.

    python annotate.py                                            a recorded teacher: no key
    python annotate.py --dataset svamp --teacher NAME --limit 20  OpenAI; key in OPENAI_API_KEY
    python annotate.py --dataset mine.jsonl --teacher NAME --base-url http://localhost:11434

Reads   problem records (data.py), students/exemplars.toml
Writes  annotations/<dataset>-<mode>.jsonl            what is kept: the records, source: teacher
        annotations/<dataset>-<mode>.rejected.jsonl   what is not, each text beside the reason
        annotations/<dataset>-<mode>.replies.jsonl    every reply as it came; the other two are
                                                      made of these, or of a recording

The teacher writes the very form that a student learns, so reading it is `segments` backwards. A
text that is not in the form is rejected. Only bold marks, and steps that merely repeat a number of
the problem, are left out.
"""

import argparse
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

import requests

from data import (CALCULATION, DATASET_HELP, DATASETS, HERE, NUMBER, Problem, Step, calculate,
                  clean, extract_answer, is_true, load_problems, positive, read_lines, read_toml,
                  replace_file, run_name, same_answer, segments, sha256)

RECORDING = HERE / "students" / "demo-teacher.jsonl"    # a real teacher's replies about the demo
OPENAI = "https://api.openai.com/v1"
TEMPERATURE, MAX_TOKENS = 0.7, 1024    # can be changed with --body
TIMEOUT = 600       # seconds for one reply
ATTEMPTS = 30       # of one request
FIRST_WAIT = 1.0    # seconds before the second attempt, then twice as long each time, up to 60
MAX_FAILURES = 3    # so many in a row end the run
NO_SERVER = "NewConnectionError|NameResolutionError|SSLError|ProxyError"

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
        if not problem.evidence:    # then no example shows any either
            example.evidence = []
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

THINKING_ENDS = re.compile(r"[<\[]/\w*(?:think|reason)\w*[>\]]", re.IGNORECASE)
LINE = re.compile(r"(Subquestion|Solution|Answer): *(\S.*)")
# None of this belongs in a text: tags, templates, markup, a second label.
MARK = re.compile(r"[<>{}\[\]\\|`]|(?:Problem|Subquestion|Solution|Answer):")
LIKE_A_LABEL = re.compile(r"(?:sub-?question|solution|answer)\b[^:]{0,8}:\s*\S", re.IGNORECASE)
LETTERS = {"Subquestion": "q", "Solution": "s", "Answer": "a", "other": "-"}
# The lines that each role writes, a letter for each.
FORMS = {"unified": "(qs)+a?", "cot": "s+a?", "solver": "s+a?", "decomposer": "q+"}

def read_text(reply: dict) -> str:
    """The text of a chat completion; "" if there is none. Reasoning in other fields is not read."""
    try:
        content = reply["choices"][0]["message"]["content"]
        return content.encode("utf-8", "replace").decode().strip()    # no half surrogates
    except (KeyError, IndexError, TypeError, AttributeError):
        return ""

def read_dialogue(text: str, role: str) -> dict[str, list[str]]:
    """
    {label: its texts} of the dialogue in a reply: the last unbroken run of labelled lines.

    Bold marks, fences and blank lines are ignored; any other text ends a run. A run before the
    last one must be a draft with an answer. Otherwise the dialogue's beginning might be missing.

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
    finish = str(reply["choices"][0].get("finish_reason")).lower()
    if re.search("length|max_tokens|filter|safety", finish):
        raise Rejected(f"cut off: {finish}")    # any other reason is a normal end
    role = find_role(problem, mode)
    said = read_dialogue(read_text(reply), role)
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
    kept, results, is_word = [], [], problem.answer in ("yes", "no")
    stated = find_numbers(" ".join([problem.problem, *problem.evidence]))
    for step in steps:
        found, numbers = check_calculations(step.solution), find_numbers(step.solution)
        results += found
        if found or is_word:
            kept.append(step)
        # Else it may only repeat numbers of the problem, and is left out; never the last one.
        elif step is steps[-1] or not numbers or numbers - stated:
            raise Rejected(f"a solution without a calculation: {step.solution}")
    # The line with the answer may be missing where the last result is the answer.
    values = ["", *results, *answers]
    answer = extract_answer(f"Answer: {values[-1]}")
    if not same_answer(answer, problem.answer):
        raise Rejected(f"wrong answer: {answer}, not {problem.answer}" if answer else "no answer")
    if not is_word and not any(same_answer(result, answer) for result in results):
        raise Rejected(f"an answer that no step has found: {answer}")
    return kept

# A calculation as the data writes it, with all arithmetic before it, so that it is not cut out of a
# larger equation
WRITTEN = re.compile(rf"""
    (?<!\S)([-\d\s.,+*/^()%$=×÷−]{{0,200}})    # 3*4 = at the beginning, or after white space
    <<([^<>=]*)=([^<>=]*)>>                    # <<3*4=12>>
    \$?(-?{NUMBER})                            # 12, where the arithmetic does not go on
    (?!\s*[*/+^=×÷]|\s*[-−][ ]*\d)""", re.VERBOSE)
# Other arithmetic: an equals sign, an operator before a number, or - and / between two numbers
EQUATION = re.compile(r"=|[+*×÷^√]\s*[\d(]|[\d)]\s+[-−/]\s+[\d(]")

def check_calculations(solution: str) -> list[str]:
    """
    The results of a solution's calculations. Rejected unless each is true and written as in the
    data: the same calculation before it, its result after it. Other arithmetic is rejected, too,
    unless it could be a range or a fraction (5-10, 3/4).

    >>> check_calculations("They have 3*4 = $<<3*4=12>>12 and 12-5 = <<12-5=7>>7 left.")
    ['12', '7']
    """
    results = []
    for before, expression, result, after in WRITTEN.findall(solution):
        result = result.strip()
        if not is_true(expression, result):
            raise Rejected(f"false arithmetic: {expression}={result}")
        before, same = (re.sub(r"[\s$]", "", text) for text in (before, expression))
        if before != f"{same}=" or after != result:
            raise Rejected(f"an annotation that does not fit its text: {solution}")
        if re.search(r"[\d)%]\s*[-+*/×÷−]", expression):    # not so in <<5=5>>
            results.append(result)
    rest = WRITTEN.sub("0", solution)
    if "<<" in rest:
        raise Rejected(f"an annotation that does not fit its text: {solution}")
    if EQUATION.search(rest):
        raise Rejected(f"arithmetic outside of an annotation: {solution}")
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
    The numbers in digits, or in words up to 99. "One" may be a pronoun, so it does not count.

    >>> sorted(find_numbers("Thirty-one of 1,000 pens, one card"))
    ['1000', '31']
    """
    numbers = {calculate(number) for number in re.findall(NUMBER, text)}
    values = read_toml("numbers.toml")["cardinals"]
    for word in re.findall("[a-z]+(?:-[a-z]+)?", text.lower()):
        parts = word.split("-")
        if word != "one" and values.keys() >= set(parts):
            numbers.add(str(sum(int(values[part]) for part in parts)))
    return numbers

# ------------------------------------------------------------ asking

class Refused(Exception):
    """No reply to a problem could be had. The text says why, in the server's words."""

class Replies:
    """The replies on disk, and the server that is asked for those that are missing."""

    def __init__(self, path, args):
        self.path, self.args = path, args
        self.lock, self.stopping, self.n_failures = threading.Lock(), threading.Event(), 0
        names = ["id", "sample", "problem_sha256", "messages_sha256", "request_sha256", "teacher"]
        self.names = names[:3] if args.replay else names    # a recording takes any prompt
        rows = read_lines(path, read_row) if path.exists() or args.replay else []
        if rows and not args.replay and not path.read_bytes().endswith(b"\n"):
            with open(path, "a") as file:
                file.write("\n")    # where a kill has torn the last row
        self.rows = {self.key(row): row for row in rows if row}
        self.usage = Counter()    # replies that this run has used, and tokens by their kind

    def key(self, row) -> tuple:
        """What a reply on disk has in common with the one that is wanted."""
        return tuple(str(row.get(name)) for name in self.names)

    def count(self, reply):
        usage = reply.get("usage")
        with self.lock:
            self.usage["replies"] += 1
            if isinstance(usage, dict):
                self.usage.update({kind: n for kind, n in usage.items() if type(n) is int})

    def get(self, problem, messages, sample) -> dict | None:
        """A row: one on disk, or what the server says now, put on disk. None: none is recorded."""
        args = self.args
        row = {"id": problem.id, "sample": sample, "problem_sha256": sha16(problem.problem),
               "messages_sha256": sha16(json.dumps(messages)),
               "request_sha256": sha16(json.dumps([args.base_url, make_body(args, [])])),
               "teacher": args.teacher}
        key = self.key(row)
        if key in self.rows:
            self.count(self.rows[key]["reply"])
            return self.rows[key]
        if args.replay:    # the recording holds no more
            return None
        try:
            row["reply"] = self.ask(make_body(args, messages, sample))
            with self.lock, open(self.path, "a") as file:
                file.write(json.dumps(row) + "\n")
        except (Refused, OSError) as error:
            self.n_failures += 1
            if self.n_failures >= MAX_FAILURES or isinstance(error, OSError):    # a full disk
                self.stopping.set()
            raise
        self.n_failures = 0
        self.rows[key] = row
        return row

    def ask(self, body) -> dict:
        """The server's reply, with text in it. While the server is busy, it is asked again."""
        args, wait, error = self.args, 0, ""
        headers = {"Authorization": f"Bearer {args.key}"} if args.key else {}
        for attempt in range(ATTEMPTS):
            if wait >= 8:
                print(f"{error[:60]}: the next attempt in {wait:.0f} s", file=sys.stderr)
            if self.stopping.wait(wait):
                raise Refused("not asked, since the run has stopped")
            try:    # with `auth`, a password in ~/.netrc does not take the place of the key
                response = requests.post(
                    f"{args.base_url}/chat/completions", json=body, headers=headers,
                    timeout=(10, TIMEOUT), auth=lambda request: request, allow_redirects=False)
                status, named = response.status_code, response.headers.get("Retry-After", "")
                text = f"{status} {response.content.decode(errors='replace')}"
                if "Location" in response.headers:
                    text = f"{status} moved: name {response.headers['Location']} in --base-url"
            except (requests.RequestException, ValueError) as cause:
                status, named, text = 0, "", f"{type(cause).__name__}: {cause}"
                if isinstance(cause, ValueError) or re.search(NO_SERVER, text):
                    text = f"no server (is --base-url right?): {text}"
            error = clean(text.replace(args.key or "\0", "***"))[:300]
            if status == 200:
                reply = read_body(response.content)
                self.count(reply)    # what was paid, whatever came of it
                if read_text(reply):
                    return reply
            if text.startswith("no server") or "insufficient_quota" in text:
                self.stopping.set()
                break
            if status not in (0, 408, 409, 429) and status < 500:
                break
            seconds = re.fullmatch("[1-9]|[1-5][0-9]|60", named)    # else it is ignored
            wait = int(named) if seconds else min(60, FIRST_WAIT * 2**attempt)
            wait *= random.uniform(1, 2)
        raise Refused(error)

def read_body(content) -> dict:
    """The JSON object in a body, which is UTF-8 whatever the header says; {} if there is none."""
    try:
        return {} | json.loads(content)
    except (ValueError, TypeError, RecursionError):
        return {}

def read_row(line) -> dict | None:
    """A row of replies; None if it is torn: its problem is asked about again."""
    try:
        row = {"teacher": "unknown"} | json.loads(line)    # a TypeError if it is no object
    except ValueError:
        return None
    texts = row.get("id"), row["teacher"], read_text(row.get("reply"))
    if not all(type(text) is str and text for text in texts):
        raise ValueError("a row of replies has an id, and a reply with text")
    "".join(texts).encode()    # fails for half of a surrogate pair
    return row

def make_body(args, messages, sample=0) -> dict:
    """The JSON of a request. The first sample is greedy."""
    body = {"model": args.teacher, "messages": messages, "seed": sample, "stream": False,
            "temperature": TEMPERATURE if sample else 0.0, "max_tokens": MAX_TOKENS} | args.body
    return {name: value for name, value in body.items() if value is not None}

def sha16(text: str) -> str:
    return sha256(text.encode())[:16]

# ------------------------------------------------------------ the run

def annotate(problem, replies, args):
    """(the record that is kept or None, its rejections): replies are judged until one is kept."""
    rejected, messages = [], make_messages(problem, args.mode, args.dataset)
    for sample in range(args.tries):
        row = replies.get(problem, messages, sample)
        if row is None:
            break
        try:
            return judge(problem, row["reply"], args.mode, row["teacher"]), rejected
        except Rejected as error:
            rejected.append({"id": problem.id, "sample": sample, "reason": str(error),
                             "text": read_text(row["reply"])})
    if not rejected:
        raise Refused("the recording holds no reply to this text")
    return None, rejected

def annotate_all(problems, replies, args):
    """({id: record that is kept}, [rejection], [why a problem is missing])."""
    kept, rejected, missing, start, n = {}, [], [], time.time(), 0
    pool = ThreadPoolExecutor(args.workers)
    # The order is random, so that the same few bad problems do not stop every run.
    futures = [pool.submit(annotate, problem, replies, args)
               for problem in random.sample(problems, len(problems))]
    try:
        for n, future in enumerate(as_completed(futures), 1):
            try:
                record, its_rejected = future.result()
                rejected += its_rejected
                if record:
                    kept[record.id] = record
            except Refused as error:
                missing.append(str(error))
            if n % 10 == 0 and not args.replay:
                left = int((len(problems) - n) * (time.time() - start) / n)
                print(f"{n:6,}/{len(problems):,} problems | {len(replies.rows):,} replies | "
                      f"{len(kept):,} kept | {left // 60}:{left % 60:02d} left", flush=True)
    except KeyboardInterrupt:
        missing += ["interrupted"] * (len(problems) - n)
        print("\nInterrupted.")
    finally:
        replies.stopping.set()
        pool.shutdown(wait=False, cancel_futures=True)
    return kept, rejected, missing

def write_lines(out: Path, lines: list[str]) -> Path:
    """Write a file, or name.2, ... beside a file that holds other lines. Returns its path."""
    n, path, chunks = 1, out, [line.encode() + b"\n" for line in lines]
    while path.exists() and not set(path.read_bytes().splitlines(True)) <= set(chunks):
        n += 1
        path = out.with_suffix(f".{n}.jsonl")
    if path != out:
        print(f"{out} holds other records. It stays as it is.")
    replace_file(path, *chunks)
    return path

# ------------------------------------------------------------ the command

def server_url(text):
    url = (text if "://" in text else f"http://{text}").rstrip("/")
    return url if re.search("://.*/", url) else f"{url}/v1"    # a bare host

def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description="Let a teacher write subquestions and solutions; keep what is right.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", help=DATASET_HELP)
    add("--limit", type=positive, help="only the first so many (None: all; demo: 40)")
    add("--mode", default="socratic", choices=("socratic", "socratic-gt", "cot"),
        help="what the teacher writes; socratic-gt: what the record lacks; cot: solutions only")
    add("--teacher", metavar="NAME", help="the model to ask, as its server calls it")
    add("--base-url", type=server_url, default=OPENAI, help="an OpenAI-compatible chat server")
    add("--body", type=lambda text: {} | json.loads(text), default="{}", metavar="JSON",
        help="merged into every request; null removes a field")
    add("--workers", type=positive, default=8, help="requests at a time")
    add("--tries", type=positive, default=3,
        help="replies to a problem until one is kept; the first is greedy, the others are drawn")
    add("--replay", metavar="FILE", help="ask nothing; take the replies of an earlier run")
    add("--out", metavar="FILE", help="where to write (None: annotations/<dataset>-<mode>.jsonl)")
    args = parser.parse_args(argv)
    args.key = os.environ.get("OPENAI_API_KEY", "").strip()
    return args

def main(args):
    """The exit status: 1 where problems are missing."""
    name = run_name(args.dataset)
    if not (args.replay or args.teacher):
        if (name, args.mode, args.base_url) != ("demo", "socratic", OPENAI):
            raise SystemExit("Which teacher? Name the model as its server does: --teacher NAME")
        args.replay = RECORDING
    split = "train" if args.dataset in DATASETS else "all"    # all of one's own file
    limit = args.limit or (40 if name == "demo" else None)
    problems = [problem for problem in load_problems(args.dataset, split, limit)
                if problem.answer]    # else no reply can be judged
    if not problems:
        raise SystemExit(f"{args.dataset} holds no problem with an answer.")
    out = Path(args.out or f"annotations/{name}-{args.mode}.jsonl").expanduser()
    if out.suffix != ".jsonl" or out.is_dir():
        raise SystemExit(f"--out {out}: name a file that ends in .jsonl")
    valid = "[!-~]+" if args.base_url == OPENAI else "[!-~]*"
    if not args.replay and not re.fullmatch(valid, args.key):
        raise SystemExit("The environment variable OPENAI_API_KEY is empty or holds no valid key.")
    replies = Replies(Path(args.replay or out.with_suffix(".replies.jsonl")), args)
    out.parent.mkdir(parents=True, exist_ok=True)
    kept, rejected, missing = annotate_all(problems, replies, args)

    records = [kept[problem.id].to_json() for problem in problems if problem.id in kept]
    path = write_lines(out, records)
    write_lines(out.with_suffix(".rejected.jsonl"), list(map(json.dumps, rejected)))
    print(f"{len(kept):,} of {len(problems):,} problems are kept: {path}")
    for reason, n in Counter(row["reason"].partition(":")[0] for row in rejected).most_common():
        print(f"{n:8,} replies rejected: {reason}")
    for reason, n in Counter(missing).most_common():
        print(f"{n:8,} problems missing: {reason}")
    n_in, n_out = replies.usage["prompt_tokens"], replies.usage["completion_tokens"]
    print(f"{replies.usage['replies']:,} replies, {n_in:,} prompt tokens, {n_out:,} reply tokens: "
          f"{n_in / len(problems):,.0f} and {n_out / len(problems):,.0f} for each problem")
    if missing and not args.replay:
        print("The same command asks again for what is missing.")
    return 1 if missing else 0

if __name__ == "__main__":
    sys.stdout.reconfigure(errors="replace")    # a console that lacks a letter shows "?"
    status = main(parse_args())
    sys.stdout.flush()
    os._exit(status)    # without waiting for requests under way

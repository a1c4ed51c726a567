"""
What a program says, as the steps of a dialogue. `more.py`, beside this file, uses it.

    boxes = 3                     nothing is calculated
    pens = boxes * 4              How many pens are there?    3*4 = <<3*4=12>>12
    return float(pens) - 5        (the problem's question)    12-5 = <<12-5=7>>7
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import Step, calculate, read_toml

WORDS = {kind: set(words.split()) for kind, words in read_toml("make/more.toml")["words"].items()}

def read_program(code: str) -> list[tuple[str, str]]:
    """(name, expression) of the lines that the returned value needs; it is called `result`."""
    body = re.search(r"(?ms)def \w+\(.*?\n(.*?^ *return [^\n]*)", code)
    program, needed = [], {"result"}
    for line in reversed(re.sub(r'(?s)""".*?"""', "", body[1] if body else "cut").splitlines()):
        line = re.sub(r"^return\b", "result =", line.partition("#")[0].strip())
        name, _, text = line.partition(" = ")
        if line and not (text and name.isidentifier()):
            raise ValueError("the program is cut, or does more than calculate")
        if name in needed:
            needed.update(re.findall(r"[A-Za-z_]\w*", text))
            program.insert(0, (name, text))
    return program

def solve(program: list[tuple[str, str]], problem: str) -> list[Step]:
    """
    The calculations of a program. A fraction, an endless decimal and a value whose name says
    nothing have no step of their own: they are written out in the step that uses them.
    """
    sums = [i for i, (_, text) in enumerate(program) if re.search(r"\w.*[-+*/]", text)]
    values, steps = {}, []
    for i, (name, text) in enumerate(program):
        filled = re.sub(r"[A-Za-z_]\w*", lambda match: values.get(match[0], match[0]), text)
        zeros = r"\.0+\b|(?<=\.\d)0+\b"
        expression = re.sub(rf" |\b(float|int)(?=\()|(?<=/)/|{zeros}", "", filled)
        value, question = calculate(expression), ask(name, problem)
        if value is None:
            raise ValueError("the program is cut, or does more than calculate")
        is_exact = calculate(f"({expression})-({value})") == "0"
        if re.search(r"int\(|//", text) and not (is_exact and value.isdigit()):
            raise ValueError("a value is rounded")
        is_step = i in sums and is_exact and question and re.search("[a-z]", text)
        if is_step or i in sums[-1:] and is_exact:
            steps.append(Step(question, f"{expression} = <<{expression}={value}>>{value}"))
        elif i in sums:
            value = f"({expression})"
        values[name] = value
    if not steps or not is_exact:
        raise ValueError("nothing is calculated, or the answer is an endless decimal")
    return steps

def ask(name: str, problem: str) -> str:
    """A subquestion in plain English, or nothing for a name that says nothing, such as `x2`."""
    words = [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|\d|[A-Z]", name)
             if word != "num"]
    said = set(re.findall(r"\w+", problem))
    words = [w.title() if w.title() in said and w not in said else w for w in words]
    if words and words[-1].istitle() and WORDS["before"].isdisjoint(words[-2:-1]):
        words.insert(0, words.pop())    # "pens Ben" becomes "Ben's pens"
    owner = f"{words.pop(0)}'s " if words and words[0].istitle() else ""
    ends = (i for i, word in enumerate(words) if word in WORDS["before"] | WORDS["done"])
    n = next(ends, len(words))
    if n == 0 or min(map(len, words)) < 2 or not WORDS["vague"].isdisjoint(words):
        return ""
    noun, are = words[n - 1], [] if WORDS["done"].isdisjoint(words[n:n + 1]) else ["are"]
    if re.search("people|children|[^s]s$", noun) and noun not in WORDS["sums"]:
        if not WORDS["measures"].isdisjoint(words[:n - 1]):
            words.insert(n - 1, "in" if noun in WORDS["units"] else "of")    # "cost of pens"
        elif owner:
            owner = f"the number of {owner}"
        else:
            return f"How many {' '.join(words[:n] + are + words[n:])}{'' if are else ' are there'}?"
    return f"What is {owner or 'the '}{' '.join(words)}?"

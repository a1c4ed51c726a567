"""
Damaged inputs by the thousand, hundreds of kills, a slow server. By hand; pytest does not run it.

    python tests/stress.py                                                 all of it, twenty minutes
    python tests/stress.py predictions kills --mutations 500 --kills 10    two of its parts, in a minute

A damaged input must end in one clear line (SystemExit, or the function's own error), or in exactly what its text says. Any
other error is printed, with the number of its case; after LIMIT seconds with one of them all ends, with a traceback.
"""

import argparse
import contextlib
import faulthandler
import io
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from fake_teacher import FakeTeacher    # which makes the scripts importable
from toy import PROBLEM, tiny_student

import annotate
import eval
from data import HERE, ROLES, Problem, can_learn, encode, extract_answer, get_tokenizer, load_problems, read_lines, segments
from gpt import GPT, read_safetensors

LIMIT = 5    # seconds for one input
VALUES = [None, True, False, 0, 1, -1, 2.5, 1e308, float("nan"), 10**30, 7 * 10**9, "", "x", "7", "\ud800", "<script>", "9" * 5000, "é\n",
          [], {}, [[]], [None], {"x": 1}, ["x", 1], {"text": "x"}]
BYTES = [b"", *(bytes([c]) for c in b'"{}[],:09-\n\0\xff\xc3\\<='), b"\\ud800", b"null", b"1e999", b">>", b"Answer: 7", b"[" * 2000,
         b"7" * 5000, b"NaN"]

def places(value):
    """(container, key) of everything inside a JSON value."""
    for key in (value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()):
        yield value, key
        yield from places(value[key])

def damaged(data, rng):
    """The bytes of a JSON value in which one to three things are changed: values, keys, or some bytes; or which is cut off."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        start = rng.randrange(len(data) + 1)
        end = min(len(data), start + rng.choice((0, 0, 1, 1, 5, 100)))
        changed = data[:start] + rng.choice([*BYTES, data[end:end + 9]]) + data[end:]
        if rng.random() < 0.6:
            with contextlib.suppress(ValueError, RecursionError, IndexError):
                value = json.loads(data)
                container, key = rng.choice(list(places(value)))
                text, new = container[key], rng.choice(VALUES)
                cut = rng.randrange(len(text) + 1) if isinstance(text, str) and rng.random() < 0.5 else None
                container[key] = new if cut is None else f"{text[:cut]}{new}{text[cut + rng.randrange(4):]}"
                if rng.random() < 0.25:
                    del container[key]
                changed = json.dumps(value).encode()
        data = changed
    return data if rng.random() < 0.97 else data[:rng.randrange(len(data) + 1)]

TOKENIZER, ARGS = get_tokenizer("tiny"), annotate.parse_args(["--replay", "rows.jsonl", "--dataset", "mine.jsonl"])
STORIES, ROWS = load_problems("demo", "train", limit=5000), read_lines(annotate.RECORDING)
DIALOGUE = {"problem": asdict(PROBLEM), "seed": 0, "turns": [{"speaker": "solver", "kind": "Subquestion", "text": "How many?"}],
            "answer": "7", "ended": "finished", "answers": ["7", None], "oracles": {"calculator off": "7", "gold subquestions": None}}
RUN = [{"settings": {"dataset": "demo", "n": 2}, "command": "python eval.py", "trained_by": {}, "curves": {"solver": [[1, 5.5], [2, 0.5]]}},
       DIALOGUE, DIALOGUE | {"answer": None}]

def records(rng):
    Path("a.jsonl").write_bytes(damaged(rng.choice(STORIES).to_json().encode(), rng))
    for problem in read_lines("a.jsonl", Problem.from_json):
        said, record = json.loads(Path("a.jsonl").read_bytes().decode("utf-8-sig")), asdict(problem)
        said["steps"] = [step | its for step, its in zip(record["steps"], said.get("steps", []))]
        assert record == record | said | {"answer": extract_answer(f"Answer: {said['answer']}") or ""}, "not what it says"
        assert Problem.from_json(problem.to_json()) == problem
        for role in (role for role in ROLES if can_learn(problem, role)):
            encode(segments(problem, role), TOKENIZER)

def replies(rng):
    row = rng.choice(ROWS)
    problem = next(problem for problem in STORIES if problem.id == row["id"])
    Path("rows.jsonl").write_bytes(damaged(json.dumps(row).encode(), rng))
    for ARGS.mode in ("socratic", "socratic-gt", "cot"):
        store = annotate.Replies(Path("rows.jsonl"), ARGS)
        with contextlib.suppress(annotate.Refused):
            record, rejected = annotate.annotate(problem, store, ARGS)
            text = "".join(annotate.read_text(row["reply"]) for row in store.rows.values())
            assert all(row["text"] == text and row["reason"] for row in rejected)
            assert not record or Problem.from_json(record.to_json()) == record and record.answer == problem.answer
            for step in record.steps if record else ():
                for words, given in ((step.question, "cot"), (step.solution, "socratic-gt")):
                    assert ARGS.mode == given or words in text.replace("**", ""), "the teacher did not write that"

def bodies(rng):
    body = damaged(json.dumps(rng.choice(ROWS)["reply"], ensure_ascii=rng.random() < 0.5).encode(), rng)
    Path("rows.jsonl").write_bytes(b"")
    reply = annotate.read_body(body)
    annotate.Replies(Path("rows.jsonl"), ARGS).count(reply)
    with contextlib.suppress(annotate.Rejected):
        if not annotate.read_text(reply):
            return
        line = json.dumps({"id": "x", "sample": 0, "reply": reply})
        assert "\n" not in line and str(annotate.read_row(line)["reply"]) == str(reply) == str(json.loads(body)), "not what it says"
        annotate.judge(STORIES[0], reply, "socratic", "x").to_json().encode()

def safetensors(rng):
    path = Path("model/model.safetensors")
    data = path.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header, body = damaged(data[8:8 + n], rng), data[8 + n:]
    length = rng.choice((len(header),) * 9 + (n, 0, 2**63, rng.getrandbits(64)))
    path.write_bytes(length.to_bytes(8, "little") + header + body[:rng.choice((None, None, None, -1, 100))])
    for name, tensor in read_safetensors(path).items():
        entry = json.loads(header)[name]
        assert list(tensor.shape) == entry["shape"], "not what it says"
        assert entry["dtype"] != "F32" or tensor.numpy().tobytes() == body[slice(*entry["data_offsets"])], "not what it says"
    GPT.from_pretrained("model")

def config(rng):
    path = Path("model/config.json")
    path.write_bytes(damaged(path.read_bytes(), rng))
    model, said = GPT.from_pretrained("model"), json.loads(path.read_bytes())
    shape = {key: type(value)(said.pop(key, value)) for key, value in asdict(model.config).items()}
    assert str(shape) == str(asdict(model.config)) and str(model.info) == str(said), "not what it says"
    if model.info.get("tokenizer", "gpt2") != "gpt2":    # which might be downloaded
        model.get_tokenizer()

def predictions(rng):
    lines, i = [json.dumps(row).encode() for row in RUN], rng.randrange(3)
    lines[i] = damaged(lines[i], rng)
    Path("p.jsonl").write_bytes(b"\n".join(lines) + b"\n")
    header, rows = eval.read_run(Path("p.jsonl"))
    scores = eval.score(rows)
    assert scores["accuracy"]["right"]["n"] == len(rows)
    assert "<script" not in eval.page(header, rows, scores), "a text that is not escaped"
    with contextlib.redirect_stdout(io.StringIO()):
        eval.print_scores(scores, eval.bleu_of(rows))
        eval.compare(Path("p.jsonl"), Path("p.jsonl"))

def mutate(part, n):
    """Whether all went well. What did not is printed, once for each place in the code."""
    found, n_clear, began = {}, 0, time.time()
    for i in range(n):
        shutil.copytree("whole", "model", dirs_exist_ok=True)
        faulthandler.dump_traceback_later(LIMIT, exit=True)
        try:
            part(random.Random(f"{part.__name__} {i}"))
        except SystemExit as error:
            n_clear += 1
            assert str(error).strip()
        except Exception as error:
            frame = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename.startswith(str(HERE))][-1]
            place = f"{type(error).__name__} at {Path(frame.filename).name}:{frame.lineno} ({frame.line})"
            found.setdefault(place, []).append(f"{str(error)[:150]!r}, first in case {i}")
    faulthandler.cancel_dump_traceback_later()
    print(f"{part.__name__}: {n_clear:,} of {n:,} are one clear line; {time.time() - began:.0f} s", flush=True)
    print("".join(f"{len(cases):6d} x {place}: {cases[0]}\n" for place, cases in found.items()), end="")
    return not found

MOODS = [None] * 14 + ["wrong", "length", "null content", "400", "reset", "500"]    # the faults of requests: most have none

def kills(n, workers=6):
    """No stored row is lost or doubled, and a kill costs at most the requests under way."""
    Path("mine.jsonl").write_text("".join(problem.to_json() + "\n" for problem in STORIES), encoding="utf-8")
    path, stored, rows, lost = Path("annotations/mine-socratic.replies.jsonl"), b"", Counter(), []
    with FakeTeacher(STORIES, random.choices(MOODS, k=99_999), delay=0.05) as server:
        command = f"{sys.executable} {HERE}/annotate.py --dataset mine.jsonl --teacher fake --base-url {server.url} --workers {workers}"
        for i in range(n):
            process, first, n_before = subprocess.Popen(command.split(), stdout=subprocess.DEVNULL), len(server.log), rows.total()
            while i % 5 and len(server.log) == first and process.poll() is None:    # every fifth kill comes at any time
                time.sleep(0.005)
            time.sleep(random.uniform(0, 0.4 if i % 5 else 1.5))
            process.kill()
            assert process.wait() in (0, 1, -9)    # 1: three refusals in a row
            time.sleep(0.1)
            data = path.read_bytes() if path.exists() else b""
            assert data.startswith(stored), f"kill {i}: a stored row is lost"
            stored = data
            whole = read_lines(path, annotate.read_row) if path.exists() else []
            rows = Counter((row["id"], row["sample"]) for row in whole if row)
            assert rows.total() == len(rows), f"kill {i}: a row is doubled"
            n_paid = sum(entry["fault"] in (None, "wrong", "length") for entry in server.log[first:])    # these are replies
            lost.append(n_paid - rows.total() + n_before)
            assert 0 <= lost[-1] <= workers, f"kill {i}: {lost[-1]} requests are to be repeated"
    print(f"kills: {n}, requests: {len(server.log):,}, replies stored: {len(rows):,}, lost: {sum(lost)}, at most {max(lost)} a kill")
    return True

def slow(busy):
    """A server that takes two requests a second: 40 problems from 8 workers, and not one is missing."""
    began = time.time()
    with FakeTeacher(STORIES, rate=2, busy=busy) as server:
        status = annotate.main(annotate.parse_args([*"--limit 40 --teacher fake --out slow.jsonl --base-url".split(), server.url]))
    print(f"slow: status {status} after {busy}, {len(server.log)} requests, {time.time() - began:.0f} s", flush=True)
    return status == 0 and len(read_lines("slow.jsonl")) == 40

if __name__ == "__main__":
    damages = {part.__name__: part for part in (records, replies, bodies, safetensors, config, predictions)}
    parser = argparse.ArgumentParser(description="Damage, kill, and slow down.")
    parser.add_argument("parts", nargs="*", default=[*damages, "kills", "slow"], help=f"of {', '.join(damages)}, kills, slow")
    parser.add_argument("--mutations", type=int, default=10_000, help="of each part")
    parser.add_argument("--kills", type=int, default=200)
    args = parser.parse_args()
    random.seed(0)
    os.chdir(tempfile.mkdtemp())
    tiny_student("solver").save_pretrained("whole")
    GPT.from_pretrained("whole")    # the first load is slow
    well = [mutate(damages[part], args.mutations) for part in args.parts if part in damages]
    well += [kills(args.kills)] if "kills" in args.parts else []
    well += map(slow, ("429", "429 Retry-After 1", "429 Retry-After 0")) if "slow" in args.parts else []
    sys.exit(not all(well))

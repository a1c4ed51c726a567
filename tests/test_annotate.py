"""
annotate.py against a real chat server that misbehaves on request; no key, no network beyond 127.0.0.1.
"""

import contextlib
import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from fake_teacher import FakeTeacher, dialogue, reply

import annotate
from annotate import MODES, Rejected, judge, make_messages, read_exemplar
from data import HERE, Problem, Step, load_problems, read_records

PROBLEMS = load_problems("demo", "train", limit=24)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(annotate, "FIRST_WAIT", 0.01)


def run(server, *flags, limit=1, workers=1):
    """(exit status, kept records, rejected, rows of replies) of a command against a server."""
    flags = ["--teacher", "fake", "--base-url", server.url, "--limit", limit, "--workers", workers, *flags]
    status = annotate.main(annotate.parse_args(list(map(str, flags))))
    return status, *files(flags[flags.index("--out") + 1] if "--out" in flags else "annotations/demo-socratic.jsonl")


def files(out):
    out = Path(out)
    return read_records(out), lines(out.with_suffix(".rejected.jsonl")), lines(out.with_suffix(".replies.jsonl"))


def lines(path):
    """The whole lines of a file, as objects."""
    return [json.loads(line) for line in path.read_bytes().split(b"\n") if line.endswith(b"}")]


def chat(text, finish="stop", **message):
    return {"choices": [{"message": {"content": text} | message, "finish_reason": finish}]}


# ---------------------------------------------------------------- faults: what is asked, how often, what is stored

KEPT, REJECTED, MISSING = "kept", "rejected", "missing"
TABLE = [  # faults of the first requests; then: how often it is asked, what comes of it, replies stored, broken calls
    (["429"], 2, KEPT, 1, 0),
    (["429"] * 7, 8, KEPT, 1, 0),
    (["429 retry-after-ms"], 2, KEPT, 1, 0),
    (["429 quota"], 1, MISSING, 0, 0),
    (["400"], 1, MISSING, 0, 0),
    (["401"], 1, MISSING, 0, 0),
    (["403"], 1, MISSING, 0, 0),
    (["404"], 1, MISSING, 0, 0),
    (["408"], 2, KEPT, 1, 0),
    (["409"], 2, KEPT, 1, 0),
    (["422"], 1, MISSING, 0, 0),
    (["500"], 2, KEPT, 1, 0),
    (["500"] * 7, 8, KEPT, 1, 0),                      # six attempts, then again after all other problems
    (["500"] * 99, 18, MISSING, 0, 0),
    (["500 text"], 2, KEPT, 1, 0),
    (["500 flat"], 2, KEPT, 1, 0),
    (["500 final"], 1, MISSING, 0, 0),                 # x-should-retry: false
    (["400 again"], 2, KEPT, 1, 0),                    # x-should-retry: true
    (["503 html"], 2, KEPT, 1, 0),
    (["200 html"], 2, KEPT, 1, 0),
    (["200 error"], 2, KEPT, 1, 0),
    (["200 error 400"], 1, MISSING, 0, 0),
    (["200 flat error"], 2, KEPT, 1, 0),
    (["empty choices"], 2, KEPT, 2, 0),                # a reply that says nothing is paid for: a fresh sample
    (["null content"], 2, KEPT, 2, 0),
    (["empty content"], 2, KEPT, 2, 0),
    (["empty content"] * 3, 3, REJECTED, 3, 0),
    (["length"], 2, KEPT, 2, 0),                       # once more with twice the room
    (["length"] * 2, 2, REJECTED, 2, 0),
    (["content filter"], 1, REJECTED, 1, 0),           # would be filtered again
    (["refusal"], 2, KEPT, 2, 0),
    (["sorry"], 2, KEPT, 2, 0),
    (["wrong", "false"], 3, KEPT, 3, 0),
    (["wrong"] * 9, 3, REJECTED, 3, 0),
    (["parts"], 1, KEPT, 1, 0),
    (["reasoning"], 1, KEPT, 1, 0),
    (["think"], 1, KEPT, 1, 0),
    (["asks for what is stated"], 1, KEPT, 1, 0),      # that step is left out
    (["no answer line"], 1, KEPT, 1, 0),               # the last solution's value stands in
    (["500 validation"] * 99, 18, MISSING, 0, 0),      # what a 500 means is not for us to guess
    (["no usage"], 1, KEPT, 1, 0),
    (["half"], 2, KEPT, 1, 1),                         # broken off: probably billed, so it counts
    (["half json"], 2, KEPT, 1, 1),
    (["reset"], 2, KEPT, 1, 1),
    (["reset"] * 2, 2, MISSING, 0, 2),
    (["late"], 2, KEPT, 1, 1),
    (["trickle"], 2, KEPT, 1, 1),
    (["max_tokens"], 2, KEPT, 1, 0),
    (["temperature"], 2, KEPT, 1, 0),
    (["seed"], 2, KEPT, 1, 0),
    (["422 seed"], 2, KEPT, 1, 0),
]


@pytest.mark.parametrize("faults, n_asked, verdict, n_replies, n_broken", TABLE, ids=lambda x: str(x)[:30])
def test_each_fault_is_asked_again_as_often_as_it_should(faults, n_asked, verdict, n_replies, n_broken):
    with FakeTeacher(PROBLEMS, faults, late=0.5) as server:
        status, kept, rejected, rows = run(server, "--timeout", 0.25 if faults[0] in ("late", "trickle") else 5)
    assert len(server.asked()) == n_asked
    assert (status, len(kept)) == {KEPT: (0, 1), REJECTED: (0, 0), MISSING: (1, 0)}[verdict]
    assert len([row for row in rows if "key" in row]) == n_replies
    assert len([row for row in rows if "failed" in row]) == n_broken
    assert len(rejected) == n_replies - len(kept)


def test_waits_are_those_that_the_server_names():
    for fault, least, most in (("429 Retry-After", 1, 1.6), ("429 retry-after-ms", 0.3, 0.7), ("429 date", 0.9, 2.8)):
        with FakeTeacher(PROBLEMS, [fault]) as server:
            run(server, "--out", f"{fault[4:]}.jsonl")
        first, second = server.asked()
        assert least <= second["time"] - first["time"] < most, fault


def test_after_a_429_all_workers_wait():
    with FakeTeacher(PROBLEMS, ["429 Retry-After"], delay=0.05) as server:
        status, kept, _, _ = run(server, limit=24, workers=4)
    assert (status, len(kept)) == (0, 24)
    told = server.asked()[0]["time"] + 0.05
    assert not [entry for entry in server.asked() if told + 0.05 < entry["time"] < told + 0.95]


def test_a_cut_reply_is_asked_once_more_with_twice_the_room_and_a_rejected_one_with_another_seed():
    with FakeTeacher(PROBLEMS, ["length", "wrong"]) as server:
        run(server)
    fields = [(entry["body"]["max_tokens"], entry["body"]["seed"]) for entry in server.asked()]
    assert fields == [(1024, 0), (2048, 0), (1024, 1)]


@pytest.mark.parametrize("fault, gone, come", [("max_tokens", "max_tokens", "max_completion_tokens"),
                                               ("temperature", "temperature", None), ("422 seed", "seed", None)])
def test_a_refused_parameter_is_adapted_once_and_for_all(fault, gone, come, capsys):
    with FakeTeacher(PROBLEMS, [fault], preflight=True) as server:
        run(server, limit=5)
    assert gone in server.log[0]["body"] and len(server.log) == 7
    assert not any(gone in entry["body"] or come and come not in entry["body"] for entry in server.log[1:])
    assert capsys.readouterr().out.count("does not take") == 1
    with FakeTeacher(PROBLEMS, port=server.server_address[1]) as again:
        assert run(again, limit=5)[0] == 0 and not again.log, "the same request, whatever the server takes of it"


def test_one_failed_problem_does_not_end_the_run_but_twenty_refusals_in_a_row_do():
    with FakeTeacher(PROBLEMS, ["400", "500 final"]) as server:
        status, kept, _, _ = run(server, limit=10)
    assert (status, len(kept)) == (1, 8)
    with FakeTeacher(PROBLEMS, ["404"] * 99) as server:
        status, kept, _, _ = run(server, "--out", "x.jsonl", limit=24)
    assert (status, len(kept), len(server.asked())) == (1, 0, 20)


def test_no_reply_for_too_long_ends_the_run(monkeypatch, capsys):
    monkeypatch.setattr(annotate, "PATIENCE", 0.3)
    with FakeTeacher(PROBLEMS, ["429 retry-after-ms"] * 99) as server:
        status, *_ = run(server, limit=3)
    assert status == 1 and len(server.asked()) <= 3
    assert "no reply for" in capsys.readouterr().out


def test_nothing_is_asked_and_nobody_waits_after_a_stop():
    with FakeTeacher(PROBLEMS, ["429 Retry-After"]) as server:
        teacher = annotate.Server(f"{server.url}/v1", "fake")
        threading.Timer(0.2, teacher.stopping.set).start()
        began = time.monotonic()
        for _ in range(2):
            with pytest.raises(annotate.Stop):
                teacher.ask([{"role": "user", "content": "Hello"}], {})
            teacher.not_before = 0
        assert time.monotonic() - began < 0.8 and len(server.log) == 1


# ---------------------------------------------------------------- nothing is paid for twice, nothing is lost

def test_a_rerun_asks_only_for_what_is_missing():
    with FakeTeacher(PROBLEMS, ["400", "wrong"]) as server:
        first = run(server, limit=10)
        assert len(first[1]) == 9 and len(server.asked()) == 11
        second = run(server, limit=10)
        assert len(second[1]) == 10 and len(server.asked()) == 12
        n = len(server.log)
        third = run(server, limit=10)
        assert third == (0, *second[1:]) and len(server.log) == n, "nothing is missing: not even a preflight"


@pytest.mark.parametrize("flags", [["--temperature", "0.1"], ["--max-tokens", "9"], ["--seed", "7"], ["--mode", "cot"]])
def test_whatever_shapes_a_reply_asks_anew(flags):
    with FakeTeacher(PROBLEMS, mode="cot" if "cot" in flags else "socratic") as server:
        run(server, limit=3)
        n = len(server.asked())
        run(server, *flags, "--out", "annotations/demo-socratic.jsonl", limit=3)
        assert len(server.asked()) == n + 3


def test_another_server_or_teacher_asks_anew():
    with FakeTeacher(PROBLEMS) as one, FakeTeacher(PROBLEMS) as two:
        run(one, limit=3)
        run(two, limit=3)
        assert (len(one.asked()), len(two.asked())) == (3, 3)
        with pytest.raises(SystemExit, match="another teacher"):
            run(one, "--teacher", "fake-2", limit=3)
        with pytest.raises(SystemExit, match="more problems"):
            run(one, limit=2)


@pytest.mark.parametrize("cut", [1, 40, -1])
def test_a_torn_line_costs_one_request(cut):
    with FakeTeacher(PROBLEMS) as server:
        whole = run(server, limit=6)
        path = Path("annotations/demo-socratic.replies.jsonl")
        data = path.read_bytes()
        last = data.rstrip(b"\n").rindex(b"\n") + 1
        path.write_bytes(data[:last + cut] if cut > 0 else data[:cut])
        n = len(server.asked())
        again = run(server, limit=6) if cut > 0 else None
        assert len(server.asked()) == n + (cut > 0)
        if again:
            assert again[1] == whole[1] and run(server, limit=6)[1] == whole[1]
            assert len(server.asked()) == n + 1
        else:  # only the newline is missing: nothing is lost
            assert run(server, limit=7)[1][:6] == whole[1] and len(server.asked()) == n + 1
            assert run(server, limit=7)[0] == 0 and len(server.asked()) == n + 1


def start(server, *flags, limit=24, workers=4, **more):
    command = [sys.executable, HERE / "annotate.py", "--teacher", "fake", "--base-url", server.url, "--limit", limit,
               "--workers", workers, *flags]
    env = os.environ | {"PYTHONPATH": str(HERE)}
    return subprocess.Popen(list(map(str, command)), env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            text=True, **more)


def identity(entry):
    return entry["id"], entry["body"]["seed"], entry["body"]["max_tokens"]


def test_runs_killed_at_random_moments_lose_nothing_and_pay_nothing_twice():
    rng, workers = random.Random(0), 4
    path = Path("annotations/demo-socratic.replies.jsonl")
    with FakeTeacher(PROBLEMS, delay=0.08) as server:
        stored, n_repeated = set(), 0
        for kill in [True] * 5 + [False]:
            n = len(server.asked())
            process = start(server, workers=workers)
            if kill:
                while len(server.asked()) == n and process.poll() is None:
                    time.sleep(0.01)
                time.sleep(rng.uniform(0, 0.3))
                process.kill()
            assert process.wait(30) in (0, -9)
            time.sleep(0.1)
            assert not stored & {entry["id"] for entry in server.asked()[n:]}, "asked again although it was on disk"
            whole = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
            stored = {json.loads(line)["id"] for line in whole if line.endswith(b"}}")}
        asked = [identity(entry) for entry in server.asked()]
        n_repeated = len(asked) - len(set(asked))
    kept = read_records("annotations/demo-socratic.jsonl")
    assert [record.id for record in kept] == [problem.id for problem in PROBLEMS]
    keys = [row["key"] for row in lines(path) if "key" in row]
    assert len(keys) == len(set(keys)) == 24
    assert n_repeated <= 5 * workers


def test_ctrl_c_keeps_what_is_under_way_and_says_how_to_go_on():
    with FakeTeacher(PROBLEMS, delay=0.3) as server:
        process = start(server)
        while len(server.asked()) < 6:
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, _ = process.communicate(timeout=20)
        n = len(server.asked())
        assert process.returncode == 1 and "interrupted" in out and "same command goes on" in out
        assert 6 <= n <= 10 and len(read_records("annotations/demo-socratic.jsonl")) == n
        assert start(server).wait(30) == 0 and len(server.asked()) == 24


def test_a_full_disk_stops_the_run_and_costs_what_was_under_way():
    def small():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))

    with FakeTeacher(PROBLEMS, delay=0.02) as server:
        process = start(server, preexec_fn=small)
        out, _ = process.communicate(timeout=20)
        n = len(server.asked())
        assert process.returncode == 1 and "cannot be written" in out and n < 24
        stored = {row["id"] for row in map(json.loads, re.findall(".*}}\n", Path(
            "annotations/demo-socratic.replies.jsonl").read_text()))}
        assert n - 4 <= len(stored) < n
        assert start(server).wait(20) == 0
        assert not stored & {entry["id"] for entry in server.asked()[n:]}
        assert len(server.asked()) == n + 24 - len(stored)
    assert len(read_records("annotations/demo-socratic.jsonl")) == 24


def test_the_same_command_cannot_run_twice_at_a_time():
    with FakeTeacher(PROBLEMS, delay=0.2) as server:
        process = start(server, workers=1)
        while len(server.log) < 2:
            time.sleep(0.01)
        with pytest.raises(SystemExit, match="Another run"):
            run(server, limit=24)
        process.kill()
        process.wait()


# ---------------------------------------------------------------- keys, money, preflight, replay

def test_the_key_is_sent_and_never_shown(monkeypatch, capsys):
    key = "sk-secret-0123456789"
    monkeypatch.setenv("MY_KEY", f"{key}\n")
    with FakeTeacher(PROBLEMS, [reply(f"Subquestion: {key}?"), "500", "401"]) as server:
        assert run(server, "--key-env", "MY_KEY", limit=3)[0] == 1
        assert {entry["key"] for entry in server.log} == {f"Bearer {key}"}
    with FakeTeacher(PROBLEMS, ["401"], preflight=True) as server, pytest.raises(SystemExit) as error:
        run(server, "--key-env", "MY_KEY", limit=4)
    shown = "".join(capsys.readouterr()) + str(error.value)
    stored = "".join(path.read_text() for path in Path().rglob("*") if path.is_file())
    assert "Incorrect API key" in shown and "MY_KEY" in shown and "***" in stored
    assert key not in shown + stored
    with FakeTeacher(PROBLEMS) as server:   # a local server: no key, no header
        run(server, "--out", "x.jsonl")
        assert {entry["key"] for entry in server.log} == {None}


def test_a_netrc_does_not_replace_the_key(monkeypatch, tmp_path):
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login a password b\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("OPENAI_API_KEY", "sk-0123456789")
    with FakeTeacher(PROBLEMS) as server:
        run(server)
    assert {entry["key"] for entry in server.log} == {"Bearer sk-0123456789"}


@pytest.mark.parametrize("fault, says", [
    ("401", "401 Incorrect API key.*OPENAI_API_KEY"), ("404", "404 The model .*'fake'"),
    ("429 quota", "exceeded your current quota"), ("200 html", "not JSON")])
def test_preflight_ends_in_one_clear_line(fault, says):
    with FakeTeacher(PROBLEMS, [fault] * 9, preflight=True) as server, pytest.raises(SystemExit) as error:
        run(server)
    assert re.search(says, str(error.value)) and "\n" not in str(error.value) and len(server.log) <= 3


def test_preflight_says_that_a_server_is_down():
    with FakeTeacher(PROBLEMS) as server:
        pass
    with pytest.raises(SystemExit, match="no connection .NewConnectionError.. Is it running") as error:
        run(server)
    assert "\n" not in str(error.value)


def test_preflight_reports_and_is_counted(capsys):
    with FakeTeacher(PROBLEMS) as server:
        run(server, limit=2)
    out = capsys.readouterr().out
    assert re.search(r"knows fake and answers in 0\.\d s\nIt takes temperature, max_tokens, seed, n; no key\n", out)
    assert "calls     3: 1,200 tokens in, 180 out\n" in out


def test_progress_and_summary(monkeypatch, capsys):
    monkeypatch.setattr(annotate, "SHOW_EVERY", 0.3)
    with FakeTeacher(PROBLEMS, ["wrong", "400", "wrong", "false", "half"], delay=0.02) as server:
        run(server, "--price-in", 100, "--price-out", 1000, limit=24)
    out = capsys.readouterr().out
    assert re.search(r"\n +\d+/24 \| +\d+% kept \| +\d+\.\d req/s \| 0:00:0\d left \| [\d.]+ spent\n", out)
    assert "kept      23 of 24 (96%) -> annotations/demo-socratic.jsonl\n" in out
    assert "rejected  0, and 3 replies:\n         2  wrong answer\n         1  false arithmetic\n" in out
    assert "missing   1\n         1  400 This model's maximum context" in out
    assert re.search(r"calls     28: 1\d,\d+ tokens in, 2,644 out .1 broke off and may be billed.\n", out)
    assert re.search(r"cost      \d\.\d+, 0\.\d+ for each that is kept\nThe same command goes on", out)


@pytest.mark.parametrize("path", ["", "/", "/v1", "/v1/", "/v1/chat/completions"])
def test_base_urls_with_and_without_v1(path):
    with FakeTeacher(PROBLEMS) as server:
        server.url += path
        run(server)
    assert {entry["path"] for entry in server.log} == {"/v1/chat/completions"}


def test_the_budget_is_never_exceeded_and_a_larger_one_goes_on(capsys):
    prices = ["--price-in", 1, "--price-out", 10]             # a call costs 0.0010, at most 0.0108
    with FakeTeacher(PROBLEMS, ["half"]) as server:
        status, kept, _, rows = run(server, *prices, "--budget", 0.03, limit=24)
        out = capsys.readouterr().out
        cost = sum(row["usage"][0] * 1e-6 + row["usage"][1] * 1e-5 for row in rows)
        assert status == 1 and "budget" in out and 0.018 < cost <= 0.03
        assert f"cost      {cost:.4f}" in out and sum("failed" in row for row in rows) == 1
        n = len(server.log)
        with pytest.raises(SystemExit, match="budget"):
            run(server, *prices, "--budget", 0.001, limit=24)
        assert len(server.log) == n, "not even a preflight"
        assert run(server, *prices, "--budget", 1, limit=24)[0] == 0
    with pytest.raises(SystemExit, match="--price-in"):
        run(server, "--budget", 1)


def test_a_dry_run_asks_nothing_and_measures_what_is_there(capsys):
    with FakeTeacher(PROBLEMS, ["wrong"], delay=0.05) as server:
        flags = ["--dry-run", "--price-in", "10", "--price-out", "100"]
        args = ["--teacher", "fake", "--base-url", server.url, "--limit", "24"]
        assert annotate.main(annotate.parse_args(args + flags)) == 0
        assert "24 to ask" in capsys.readouterr().out and not server.log and not Path("annotations").exists()
        run(server, "--out", "annotations/demo-socratic.jsonl", limit=3)
        capsys.readouterr()
        annotate.main(annotate.parse_args(args + flags))
        out = capsys.readouterr().out   # 5 calls (one is the preflight) for 3 problems: 21 / 3 * 5 = 35 more
        assert re.search(r"3 settled, 21 to ask\s+requests +35, at most 63\s+tokens +14,000 in, 2,100 out\s+cost +0.35", out)
        assert len(server.log) == 5


def test_a_replay_gives_the_same_annotations_without_a_server(capsys, monkeypatch):
    with FakeTeacher(PROBLEMS, ["wrong", "length"]) as server:
        _, kept, rejected, _ = run(server, limit=12)
    replay = ["--replay", "annotations/demo-socratic.replies.jsonl", "--out", "again.jsonl"]
    assert annotate.main(annotate.parse_args(replay)) == 0
    assert Path("again.jsonl").read_bytes() == Path("annotations/demo-socratic.jsonl").read_bytes()
    assert lines(Path("again.rejected.jsonl")) == rejected and len(kept) == 12
    assert not Path("again.replies.jsonl").exists()
    rows = lines(Path("annotations/demo-socratic.replies.jsonl"))
    Path("short.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows if not row.get("sample")))
    assert annotate.main(annotate.parse_args(["--replay", "short.jsonl", "--out", "short-out.jsonl"])) == 0
    assert len(read_records("short-out.jsonl")) == 11, "what the recording did not try again is rejected, not missing"
    monkeypatch.setitem(annotate.TASKS, "socratic", "Solve this.")
    annotate.opening.cache_clear()
    Path("again.jsonl").unlink()
    assert annotate.main(annotate.parse_args(replay)) == 1, "a recording must not be taken for replies to other prompts"
    assert "not in the recording" in capsys.readouterr().out
    annotate.opening.cache_clear()


@pytest.mark.skipif(not annotate.RECORDING.exists(), reason="no recording yet")
def test_without_flags_the_recorded_teacher_is_replayed():
    assert annotate.main(annotate.parse_args([])) == 0, "the prompts no longer match students/demo-teacher.jsonl"
    assert read_records("annotations/demo-socratic.jsonl")


def test_who_is_not_named_is_not_asked():
    Path("other.jsonl").write_text('{"id": "strategyqa-2bc", "teacher": "x", "usage": [1, 1], "replay": "r", "reply": {}}\n')
    for flags, says in ((["--dataset", "svamp"], "--teacher NAME"), (["--base-url", "localhost:1"], "--teacher NAME"),
                        (["--teacher", "x"], "OPENAI_API_KEY"), (["--replay", "none.jsonl"], "does not exist"),
                        (["--replay", "other.jsonl"], "no replies about demo"),
                        (["--teacher", "x", "--base-url", "http://a:b@localhost"], "no place for a key")):
        with pytest.raises(SystemExit, match=says):
            annotate.main(annotate.parse_args(flags))


def test_no_torch_is_needed_to_ask_a_teacher():
    code = "import sys, annotate; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=HERE).returncode == 0


# ---------------------------------------------------------------- prompts

@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("dataset", annotate.EXEMPLARS)
def test_the_exemplars_pass_the_filter_and_lose_no_step(dataset, mode):
    for text in annotate.EXEMPLARS[dataset].split("\n\n"):
        exemplar = read_exemplar(text)
        record = judge(exemplar, chat(dialogue(exemplar, mode)), mode, "me")
        plain = [Step(step.question, re.sub("<<.*?>>", "", step.solution)) for step in record.steps]
        assert [step.solution for step in plain] == [step.solution for step in exemplar.steps]
        assert mode == "cot" or plain == exemplar.steps
        assert "<<" in record.steps[0].solution or dataset == "strategyqa" or mode == "socratic-gt"


LEMONS = Problem("x", "Finn filled 7 jars with 16 lemons each. Finn had 38 more lemons than Dan. How many had Dan?", [
    Step("How many lemons were in the jars?", "Finn had 7*16 = <<7*16=112>>112 lemons at first."),
    Step("How many lemons did Dan have?", "Dan had 112-38 = <<112-38=74>>74 lemons.")], "74")


def test_what_a_teacher_reads():
    problem = LEMONS
    assert make_messages(problem, "socratic", "demo")[-1]["content"] == f"Problem: {problem.problem}"
    turns = make_messages(problem, "socratic-gt", "demo")
    assert [turn["role"] for turn in turns] == ["user", "assistant"] * 4 + ["user"]
    assert turns[-1]["content"] == f"Problem: {problem.problem}\nStep 1: Finn had 7*16 = 112 lemons at first.\n" \
                                   "Step 2: Dan had 112-38 = 74 lemons."
    assert turns[1]["content"].startswith("Subquestion 1: How many shells were in the boxes?\nSubquestion 2:")
    svamp = Problem("x", "He had 2*3 pens?", [Step("", "2*3 = <<2*3=6>>6")], "6", evidence=["2*3=6"])
    assert make_messages(svamp, "socratic-gt", "svamp")[-1]["content"].endswith("\nFormula: 2*3=6")
    assert "Formula" not in str(make_messages(svamp, "socratic", "svamp"))
    assert "Fact: An adult giraffe" in str(make_messages(svamp, "socratic-gt", "strategyqa"))


def test_no_exemplar_is_taken_from_the_data_sets():
    stories = " ".join(problem.problem for problem in load_problems("demo", "train", limit=500))
    for text in annotate.EXEMPLARS["demo"].split("\n\n"):
        assert not {"Pia", "Gus", "Wim", "Bo", "Dora", "Hal"} & set(stories.split()) and read_exemplar(text).steps


# ---------------------------------------------------------------- replies as models really write them

PENS = Problem("x", "Ava has 3 boxes with 4 pens each. She gives away 5 pens. How many pens are left?", [], "7")
IDEAL = [Step("How many pens are in the boxes?", "There are 3*4 = <<3*4=12>>12 pens."),
         Step("How many pens are left?", "There are 12-5 = <<12-5=7>>7 pens left.")]
PLAIN = ("Subquestion: How many pens are in the boxes?\nSolution: There are 3*4 = 12 pens.\n"
         "Subquestion: How many pens are left?\nSolution: There are 12-5 = 7 pens left.\nAnswer: 7")


@pytest.mark.parametrize("text", [
    PLAIN,
    PLAIN.replace("\n", "\n\n"),
    PLAIN.replace("\n", "  "),                                                   # all in one line
    "Sure! Here it is:\n\n" + PLAIN + "\n\nProblem: Tom has 3 dogs.\nSubquestion: How many?\nSolution: 3\nAnswer: 3",
    "Problem: " + PENS.problem + "\n" + PLAIN,
    re.sub("(\\w+):", "**\\1:**", PLAIN),
    re.sub("(\\w+): (.*)", "**\\1**: *\\2", PLAIN).replace("*There", "There").replace("*How", "How").replace("*7", "7"),
    re.sub("(Subquestion|Solution|Answer):", "### \\1\n", PLAIN),
    PLAIN.replace("Subquestion", "1. Sub-question").replace("Solution", "- Solution"),
    PLAIN.replace("Subquestion:", "Q1:").replace("Solution:", "A1:"),
    PLAIN.replace("Answer:", "Final answer:").replace("Subquestion:", "Question:").replace("Solution:", "Answer:"),
    PLAIN.replace("Answer: 7", "Final answer: $\\boxed{7}$"),
    PLAIN.replace("Answer: 7", "#### 7"),
    PLAIN.replace("Answer: 7", "So the answer is 7."),
    PLAIN.replace("Answer: 7", "**Answer:** 7 pens"),
    PLAIN.replace("Answer: 7", "Answer:\n7"),
    PLAIN.replace("3*4 = 12", "\\(3 * 4 = 12\\)").replace("\\(3 * 4 = 12\\)", "3*4 = 12"),
    "1. How many pens are in the boxes?\n   There are 3*4 = 12 pens.\n2. How many pens are left?\n"
    "   There are 12-5 = 7 pens left.\nAnswer: 7",
    PLAIN.replace("?\nSolution:", "?"),                                          # the solution behind its question
    PLAIN.replace("12 pens.", "<<3*4=12>>12 pens.").replace("7 pens", "<<12-5=7>>7 pens"),
    "Subquestion: How many boxes does Ava have?\nSolution: Ava has 3 boxes.\n" + PLAIN,   # asks for what is stated
    PLAIN.replace("many pens are left", "many pens did she give").replace(        # the answer's own question comes late
        "\nAnswer", "\nSubquestion: How many pens are left?\nSolution: So 7 pens are left.\nAnswer"),
    "<think>Answer: 9</think>" + PLAIN, "Answer: 9 maybe</think>" + PLAIN,
])
def test_messy_replies_give_the_same_steps(text):
    record = judge(PENS, chat(text), "socratic", "me")
    assert record.steps == IDEAL and record.answer == "7" and record.source == "me"


def test_without_an_answer_line_the_last_solution_stands_in_and_the_record_says_so():
    text = PLAIN.replace("\nAnswer: 7", "")
    record = judge(PENS, chat(text + " They lie in 3 boxes."), "socratic", "me")
    assert record.source == "me (answer from the last solution)" and record.steps[0] == IDEAL[0]
    with pytest.raises(Rejected, match="wrong answer: 12"):
        judge(PENS, chat("\n".join(text.split("\n")[:2])), "socratic", "me")


@pytest.mark.parametrize("text, finish, reason", [
    (PLAIN.replace("Answer: 7", "Answer: 8"), "stop", "wrong answer: 8, not 7"),
    (PLAIN.replace("Answer: 7", "Answer: seven pens"), "stop", "no answer"),
    (PLAIN.replace("= 12", "= 13"), "stop", "false arithmetic: 3\\*4=13"),
    (PLAIN.replace("= 12", "= <<3*4=13>>13"), "stop", "false arithmetic: 3\\*4=13"),
    (PLAIN.replace("= 12", "= <<3*4>>12"), "stop", "false arithmetic"),
    (PLAIN.replace("= 12", "= 2*7 = 14"), "stop", "false arithmetic: 3\\*4=2\\*7"),
    ("Answer: 7", "stop", "no steps"),
    ("There are 7 pens left.", "stop", "no steps"),
    ("Subquestion: How many pens are left?\nSolution: There are 7 pens left.\nAnswer: 7", "stop", "no calculation"),
    (PLAIN.replace("many pens are left", "come 7 pens to be left"), "stop", "a subquestion gives the answer away"),
    (PLAIN.replace("are in the boxes", "are 3*4 = 12"), "stop", "a subquestion gives the answer away"),
    (PLAIN.replace("are in the boxes", "come before the last 7"), "stop", "a subquestion gives the answer away"),
    (PLAIN.replace("Solution: There are 3*4 = 12 pens.\n", ""), "stop", "a subquestion without a solution"),
    (PLAIN.replace("Subquestion: How many pens are in the boxes?\n", ""), "stop", "a solution without a subquestion"),
    (PLAIN, "length", "cut off"),
    (PLAIN, "content_filter", "filtered"),
    ("I'm sorry, but I can't help with that.", "stop", "refused"),
    (" \n", "stop", "empty"),
])
def test_what_cannot_be_trusted_is_refused(text, finish, reason):
    with pytest.raises(Rejected, match=f"^{reason}"):
        judge(PENS, chat(text, finish), "socratic", "me")


@pytest.mark.parametrize("text", [
    "Solution: There are 3*4 = 12 pens.\nSolution: There are 12-5 = 7 pens left.\nAnswer: 7",
    "There are 3*4 = 12 pens.\nThere are 12-5 = 7 pens left.\n\nThe answer is 7.",
    "Let's think step by step.\nStep 1: There are 3*4 = 12 pens.\nStep 2: There are 12-5 = 7 pens left.\nAnswer: 7",
    "1. There are 3*4 = 12 pens.\n2. There are 12-5 = 7 pens left.\n**Final Answer:** 7",
])
def test_chains_of_thought(text):
    assert [step.solution for step in judge(PENS, chat(text), "cot", "me").steps] == [s.solution for s in IDEAL]


def test_gold_solutions_stay_and_only_the_subquestions_are_the_teachers():
    problem = LEMONS
    text = "Subquestion 1: How many lemons does Finn have?\nSubquestion 2: And how many has Dan?"
    record = judge(problem, chat(text), "socratic-gt", "me")
    assert [step.solution for step in record.steps] == [step.solution for step in problem.steps]
    assert record.steps[1].question == "And how many has Dan?"
    with pytest.raises(Rejected, match="not one subquestion for each step: 1 for 2"):
        judge(problem, chat(text.split("\n")[0]), "socratic-gt", "me")
    with pytest.raises(Rejected, match="gives the answer away"):
        judge(problem, chat(text.replace("many has Dan", "come that Dan has 74")), "socratic-gt", "me")


def test_yes_and_no_need_no_arithmetic():
    problem = Problem("x", "Could a giraffe stand in a bus?", [Step("How tall is it?")], "no", evidence=["It is tall."])
    text = "Subquestion: How tall is a giraffe?\nSolution: 14 feet.\nSubquestion: Is a bus higher?\nSolution: No."
    for end, source in (("\nAnswer: No, it could not.", "me"), ("", "me (answer from the last solution)")):
        record = judge(problem, chat(text + end), "socratic", "me")
        assert (len(record.steps), record.source, record.evidence) == (2, source, ["It is tall."])
    with pytest.raises(Rejected, match="wrong answer"):
        judge(problem, chat(text + "\nAnswer: yes"), "socratic", "me")


@pytest.mark.parametrize("plain, annotated", [
    ("3 boxes * 4 pens = 12 pens", "3 boxes * 4 pens = <<3*4=12>>12 pens"),
    ("He pays $1,200 / 4 = $300.", "He pays $1,200 / 4 = $<<1200/4=300>>300."),
    ("2 × 3 = 6 and 6 ÷ 2 = 3", "2 × 3 = <<2*3=6>>6 and 6 ÷ 2 = <<6/2=3>>3"),
    ("2 x 3 = 6", "2 x 3 = <<2*3=6>>6"),
    ("(2+3)*4 = 5*4 = 20", "(2+3)*4 = 5*4 = <<5*4=20>>20"),
    ("(2+3=5)", "(2+3=<<2+3=5>>5)"),
    ("20% of 50 = 10", "20% of 50 = <<20%*50=10>>10"),
    ("100 - 40 = 60% of it", "100 - 40 = <<100-40=60>>60% of it"),
    ("$12/hour * 3 hours = $36", "$12/hour * 3 hours = $<<12*3=36>>36"),
    ("10 / 4 = 2.50 dollars", "10 / 4 = <<10/4=2.5>>2.50 dollars"),
    ("3 - 8 = -5", "3 - 8 = <<3-8=-5>>-5"),
    ("x + 3 = 7, so x = 4", "x + 3 = 7, so x = 4"),
    ("1 hour = 60 minutes", "1 hour = 60 minutes"),
    ("from 5-10 to 2020", "from 5-10 to 2020"),
])
def test_annotations_are_added_where_plain_arithmetic_checks_out(plain, annotated):
    assert annotate.annotate(plain) == annotated


def test_the_annotations_of_the_stories_come_back_after_they_were_taken_out():
    for problem in load_problems("demo", "train", limit=300):
        assert judge(problem, chat(dialogue(problem)), "socratic", "me").steps == problem.steps


def test_no_text_breaks_the_parser():
    rng = random.Random(0)
    words = ["Subquestion:", "Solution:", "Answer:", "Problem:", "\n", "3", "*", "4", "=", "12", "<<", ">>", "?", "(", ")",
             "$", "\\boxed{", "}", "pens", "**", "-", "x", "%", " of ", "1,000", "####", "1.", "\u2028", "\ud800", "½", "/", " "]
    for _ in range(3000):
        text = " ".join(rng.choices(words, k=rng.randint(1, 40)))
        for mode in MODES:
            with contextlib.suppress(Rejected):
                judge(PENS, chat(text), mode, "me").to_json().encode()
    began = time.perf_counter()
    for text, n in (("1 ", 20_000), ("(", 20_000), ("1 a b c d ", 4000), ("1+", 20_000), ("$", 20_000), ("Answer:", 5000),
                    ("1 = ", 9000), ("\\boxed{", 5000), ("<think>", 5000), ("1/a", 9000)):
        with contextlib.suppress(Rejected):
            judge(PENS, chat(f"Subquestion: a?\nSolution: {text * n}"), "socratic", "me")
    assert time.perf_counter() - began < 10


def test_a_reply_may_have_any_shape():
    for raw in ({}, {"choices": None}, {"choices": []}, {"choices": [None]}, {"choices": [{"message": None}]},
                {"choices": [{"message": {"content": [1, {"text": None}, {"text": 3}]}}]}, {"usage": 1, "choices": "x"}):
        with pytest.raises(Rejected):
            judge(PENS, raw, "socratic", "me")
        assert len(annotate.read_usage(raw, [{"content": "abc"}])) == 2

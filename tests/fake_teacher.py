"""
A chat server that knows the right dialogue of every problem, and misbehaves on request.

    python tests/fake_teacher.py --port 8000 --delay 0.2     for trying annotate.py by hand, on the demo problems

A fault is a name of FAULTS or a function of the handler. `faults` are what the next requests get, whatever they ask, then all
goes well; `flagged` {id: fault} is what requests about a problem always get; of more than `rate` requests a second the rest
get `busy`. Every request is in `log`: what was asked, with which key, when, and whether it was answered.
"""

import argparse
import json
import re
import socket
import struct
import sys
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from annotate import find_role, make_reply
from data import clean, load_problems

def answer(status, content, headers=None):
    """A whole answer: JSON, or text or bytes as they are."""
    return lambda h: h.send(status, content, headers)

def error(status, message, headers=None, **more):
    return answer(status, {"error": {"message": message} | more}, headers)

def reply(content, finish="stop", **message):
    """A completion with this text; a function gets the right one."""
    return lambda h: h.send(200, chat(content(h.right()) if callable(content) else content, finish, **message))

def chat(content, finish="stop", **message):
    message = {"role": "assistant", "content": content} | message
    return {"id": "x", "object": "chat.completion", "usage": {"prompt_tokens": 400, "completion_tokens": 60},
            "choices": [{"index": 0, "message": message, "finish_reason": finish}]}

def half(h):
    """A Content-Length that the body does not reach."""
    h.send(200, chat("Subquestion: How"), {"Content-Length": "1000"})
    h.close_connection = True

def reset(h):
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    h.rfile.close()
    h.connection.close()
    h.close_connection = True

def late(h):
    time.sleep(h.server.late)
    h.send(200, chat(h.right()))

FAULTS = {
    "429": error(429, "Rate limit reached", code="rate_limit_exceeded"),
    "429 Retry-After 0": error(429, "Rate limit reached", {"Retry-After": "0"}),
    "429 Retry-After 1": error(429, "Rate limit reached", {"Retry-After": "1"}),
    "429 Retry-After 50": error(429, "Rate limit reached", {"Retry-After": "50"}),
    "429 date": lambda h: error(429, "Slow down", {"Retry-After": formatdate(time.time() + 2, usegmt=True)})(h),
    "429 nines": error(429, "Slow down", {"Retry-After": "9" * 5000}),
    "429 quota": error(429, "You exceeded your current quota", code="insufficient_quota"),
    "400": error(400, "This model's maximum context length is 512 tokens", code="context_length_exceeded"),
    "400 filter": error(400, "The prompt was filtered by the content management policy", code="content_filter"),
    "401": lambda h: error(401, f"Incorrect API key provided: {h.headers.get('Authorization', 'none')}")(h),
    "403": error(403, "Your request was flagged", metadata={"reasons": ["violence"]}),
    "404": error(404, "The model `x` does not exist", code="model_not_found"),
    "408": error(408, "Request time-out"),
    "409": error(409, "Conflict"),
    "413": answer(413, "<html><h1>413 Request Entity Too Large</h1></html>"),
    "422": answer(422, {"detail": [{"loc": ["body", "messages"], "msg": "Input should be a valid list"}]}),
    "500": error(500, "The server had an error"),
    "500 text": answer(500, {"error": "CUDA out of memory"}),
    "503 html": answer(503, "<html><style>b {}</style><body><h1>503 Service Unavailable</h1></body></html>"),
    "200 html": answer(200, "<html><body>Please log in to the network</body></html>", {"Content-Type": "text/html"}),
    "200 error": answer(200, {"error": {"message": "Upstream is overloaded", "code": 502}}),
    "200 flat error": answer(200, {"object": "error", "message": "internal", "code": 50001}),
    "200 error inside": answer(200, {"choices": [{"finish_reason": "error", "error": {"code": 502}, "message": {"content": ""}}]}),
    "no choices": answer(200, {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}),
    "null content": reply(None), "empty content": reply(""), "half json": answer(200, json.dumps(chat("Subquestion:"))[:60]),
    "filtered": reply("", "content_filter"), "refusal": reply(None, refusal="I'm sorry, I cannot help with that."),
    "wrong": reply("Subquestion: How many?\nSolution: It is 1+998 = <<1+998=999>>999.\nAnswer: 999"),
    "false": reply("Subquestion: How many?\nSolution: It is 2*3 = <<2*3=7>>7.\nAnswer: 7"),
    "sorry": reply("I'm sorry, but I can't assist with that."),
    "length": reply("Subquestion: How many", "length"), "MAX_TOKENS": reply("Subquestion: How many", "MAX_TOKENS"),
    "reasoning": reply(str, reasoning_content="Answer: 0", reasoning="Answer: 0"),
    "think": reply(lambda right: f"<think>Subquestion: ?\nAnswer: 0</think>\n{right}"),
    # What llama.cpp's server and small models were seen to do: forget the answer line, ask for what the problem states.
    "no answer line": reply(lambda right: right.rpartition("\nAnswer:")[0]),
    "asks for what is stated": lambda h: h.send(200, chat(h.stated())),
    "no usage": lambda h: h.send(200, {k: v for k, v in chat(h.right()).items() if k != "usage"}),
    "half": half, "reset": reset, "late": late,
}
# A server that takes a request and is then silent.
FAULTS["hang"] = lambda h: time.sleep(600)

class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        server = self.server
        self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        first = self.asked["messages"][-1]["content"].split("\n")[0]
        self.problem = server.problems.get(first.removeprefix("Problem: "))
        name = self.problem.id if self.problem else first
        with server.lock:
            now = time.monotonic()
            fault = server.faults.pop(0) if server.faults else server.flagged.get(name)
            if server.rate and now < server.free:
                fault = server.busy
            elif server.rate:
                server.free = now + 1 / server.rate
            entry = {"path": self.path, "key": self.headers.get("Authorization"), "fault": fault, "time": now, "id": name,
                     "body": self.asked, "done": False}
            server.log.append(entry)
        time.sleep(server.delay)
        try:
            (FAULTS.get(fault, fault) or reply(str))(self)
            entry["done"] = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True    # the client has gone

    def do_GET(self):    # what a redirected POST becomes
        self.server.log.append({"path": self.path, "fault": "GET"})
        self.send(200, chat("Answer: 0"))

    def right(self):
        """The gold dialogue of the problem that is asked about, in the form that a teacher is asked for."""
        return make_reply(self.problem, find_role(self.problem, self.server.mode))

    def stated(self):
        """The right dialogue after a step that computes nothing."""
        number = re.search(r"\d+", self.problem.problem)[0]
        return f"Subquestion: What number comes first?\nSolution: It is {number}.\n{self.right()}"

    def send(self, status, content, headers=None):
        data = content if isinstance(content, bytes) else (
            content if isinstance(content, str) else json.dumps(content, ensure_ascii=False)).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass

class FakeTeacher(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(self, problems, faults=(), flagged=None, rate=None, busy="429", mode="socratic", delay=0.0, late=1.0, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.problems = {clean(problem.problem): problem for problem in problems}
        self.faults, self.flagged, self.mode, self.delay, self.late = list(faults), flagged or {}, mode, delay, late
        self.rate, self.busy, self.free = rate, busy, 0.0
        self.log, self.lock = [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_):
        pass

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.shutdown()
        self.server_close()

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A chat server that knows the answers to the demo problems.")
    parser.add_argument("--port", type=int, default=8000, help="of 127.0.0.1")
    parser.add_argument("--delay", type=float, default=0.2, help="seconds before every reply")
    args = parser.parse_args()
    server = FakeTeacher(load_problems("demo", "train", limit=2000), delay=args.delay, port=args.port)
    print(f"{server.url}; stop with Ctrl-C", flush=True)
    server.serve_forever()

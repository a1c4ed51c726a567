"""
A chat server that knows the right dialogue of every problem, and misbehaves on request.

    python tests/fake_teacher.py --port 8000 --delay 0.2     for trying annotate.py by hand, on the demo problems

A test gives `faults`, a list of names of FAULTS (or functions of the handler) that the next requests get, whatever they
ask; then all goes well. Every request is in `log`: what was asked, with which key, and which fault it got.
"""

import argparse
import json
import re
import socket
import struct
import threading
import time
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from annotate import find_role, make_reply
from data import clean, load_problems

def dialogue(problem, mode="socratic"):
    """The gold dialogue in the form that a teacher is asked for."""
    return make_reply(problem, find_role(problem, mode))

def error(status, message, headers=None, **more):
    return lambda h: h.send(status, {"error": {"message": message} | more}, headers)

def body(status, content, headers=None):
    return lambda h: h.send(status, content, headers)

def reply(content, finish="stop", **more):
    return lambda h: h.send(200, h.server.chat(content, finish, **more))

def half(h):
    """A Content-Length that the body does not reach."""
    h.send(200, h.server.chat("Subquestion: How"), cut=0.5)

def half_json(h):
    """A body that is as long as promised, but half of its JSON is missing."""
    h.send(200, json.dumps(h.server.chat("Subquestion: How"))[:60])

def reset(h):
    h.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    h.rfile.close()
    h.connection.close()
    h.close_connection = True

def late(h):
    time.sleep(h.server.late)
    h.send(200, h.server.chat(h.right()))

QUOTA = {"code": "insufficient_quota", "type": "insufficient_quota"}
FAULTS = {
    "429": error(429, "Rate limit reached", code="rate_limit_exceeded"),
    "429 Retry-After": error(429, "Rate limit reached", {"Retry-After": "1"}),
    "429 date": lambda h: error(429, "Slow down", {"Retry-After": formatdate(time.time() + 2, usegmt=True)})(h),
    "429 quota": error(429, "You exceeded your current quota", **QUOTA),
    "400": error(400, "This model's maximum context length is 512 tokens", code="context_length_exceeded"),
    "401": lambda h: error(401, f"Incorrect API key provided: {h.headers.get('Authorization', 'none')}")(h),
    "403": error(403, "Country not supported"),
    "404": error(404, "The model `x` does not exist", code="model_not_found"),
    "408": error(408, "Request time-out"),
    "409": error(409, "Conflict"),
    "422": body(422, {"detail": [{"loc": ["body", "messages"], "msg": "Input should be a valid list"}]}),
    "500": error(500, "The server had an error"),
    "500 text": body(500, {"error": "CUDA out of memory"}),
    "500 flat": body(500, {"object": "error", "message": "worker died", "code": 500}),
    "503 html": body(503, "<html><style>b {}</style><body><h1>503 Service Unavailable</h1></body></html>"),
    "200 html": body(200, "<html><body>Please log in to the network</body></html>"),
    "200 error": body(200, {"error": {"message": "Upstream is overloaded", "code": 502}}),
    "200 error 400": body(200, {"error": {"message": "Upstream refuses", "code": 400}}),
    "200 flat error": body(200, {"object": "error", "message": "internal", "code": 50001}),
    "empty choices": lambda h: h.send(200, h.server.chat("") | {"choices": []}),
    "null content": reply(None),
    "empty content": reply(""),
    "length": reply("Subquestion: How many", "length"),
    "content filter": reply("", "content_filter: hate"),
    "refusal": reply(None, refusal="I'm sorry, I cannot help with that."),
    "sorry": reply("I'm sorry, but I can't assist with that."),
    "wrong": reply("Subquestion: How many?\nSolution: It is 1+1 = <<1+1=2>>2.\nAnswer: 2"),
    "false": reply("Subquestion: How many?\nSolution: It is 2*3 = <<2*3=7>>7.\nAnswer: 7"),
    "error inside": lambda h: h.send(200, {"choices": [{"finish_reason": "error", "error": {"code": 502},
                                                        "message": {"content": ""}}]}),
    "odd finish": reply("Subquestion: How", "recitation"),
    "MAX_TOKENS": reply("Subquestion: How many", "MAX_TOKENS"),
    "429 Retry-After 0": error(429, "Rate limit reached", {"Retry-After": "0"}),
    "429 past": error(429, "Rate limit reached", {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
    "parts": lambda h: h.send(200, h.server.chat([{"type": "text", "text": part} for part in h.right().split("A", 1)[:1]
                                                  + ["A" + h.right().split("A", 1)[1]]])),
    "reasoning": lambda h: h.send(200, h.server.chat(h.right(), reasoning_content="Answer: 0", reasoning="Answer: 0")),
    "think": lambda h: h.send(200, h.server.chat(f"<think>Subquestion: ?\nAnswer: 0</think>\n{h.right()}")),
    # What llama.cpp's server and small models were seen to do: they ask for what the problem states, forget the answer
    # line, and a request that does not validate is called a 500.
    "asks for what is stated": lambda h: h.send(200, h.server.chat(h.stated())),
    "no answer line": lambda h: h.send(200, h.server.chat(h.right().rpartition("\nAnswer:")[0])),
    "no usage": lambda h: h.send(200, {k: v for k, v in h.server.chat(h.right()).items() if k != "usage"}),
    "hidden reasoning": lambda h: h.send(200, h.server.chat(h.right()) | {
        "usage": {"prompt_tokens": 279, "completion_tokens": 60, "total_tokens": 1239}}),
    "half": half, "half json": half_json, "reset": reset, "late": late,
}

class Handler(BaseHTTPRequestHandler):
    protocol_version, disable_nagle_algorithm = "HTTP/1.1", True

    def do_POST(self):
        server = self.server
        self.asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        content = self.asked["messages"][-1]["content"]
        with server.lock:
            fault = server.faults.pop(0) if server.faults else None
            server.log.append({"path": self.path, "key": self.headers.get("Authorization"), "fault": fault,
                               "time": time.monotonic(), "id": self.problem().id if self.problem() else content,
                               "body": self.asked, "done": False})
            entry = server.log[-1]
        time.sleep(server.delay)
        try:
            (FAULTS.get(fault, fault) or (lambda h: h.send(200, server.chat(h.right()))))(self)
            entry["done"] = True
        except (BrokenPipeError, ConnectionResetError):
            self.close_connection = True   # the client has gone

    def problem(self):
        first = self.asked["messages"][-1]["content"].split("\n")[0]
        return self.server.problems.get(first.removeprefix("Problem: "))

    def right(self):
        return dialogue(self.problem(), self.server.mode) if self.problem() else "OK"

    def stated(self):
        """The right dialogue after a step that computes nothing."""
        number = re.search(r"\d+", self.problem().problem)[0]
        return f"Subquestion: What number comes first?\nSolution: It is {number}.\n{self.right()}"

    def start(self, status, length, headers):
        self.send_response(status)
        for name, value in ({"Content-Length": str(length)} | (headers or {})).items():
            self.send_header(name, value)
        self.end_headers()

    def send(self, status, content, headers=None, cut=None):
        data = (content if isinstance(content, str) else json.dumps(content)).encode()
        self.start(status, len(data), headers)
        self.wfile.write(data[:int(len(data) * cut)] if cut else data)
        self.close_connection = bool(cut)

    def log_message(self, *_):
        pass

class FakeTeacher(ThreadingHTTPServer):
    daemon_threads, request_queue_size = True, 128

    def __init__(self, problems, faults=(), mode="socratic", delay=0.0, late=1.0, port=0):
        super().__init__(("127.0.0.1", port), Handler)
        self.problems = {clean(problem.problem): problem for problem in problems}
        self.faults, self.mode, self.delay, self.late = list(faults), mode, delay, late
        self.log, self.lock = [], threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"

    def chat(self, content, finish="stop", **more):
        return {"id": "x", "object": "chat.completion", "usage": {"prompt_tokens": 400, "completion_tokens": 60},
                "choices": [{"index": 0, "message": {"role": "assistant", "content": content} | more,
                             "finish_reason": finish}]}

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

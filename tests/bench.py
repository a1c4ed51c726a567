"""
How fast: this repository beside the textbook version of the same work, and beside Hugging Face `transformers`.

    python tests/bench.py                            all rows: a quarter of an hour on two cores
    python tests/bench.py --rows decoding dialogue   only these
    python tests/bench.py --quick                    does it run? Models and work are small, the figures mean nothing

Run it on a machine that does nothing else. The sides of a row take turns, five times; a ratio is the median of five.
`transformers` (pip install "transformers<6") gets our weights and the faster of its caches. Before the clock runs, both
sides must have computed the same losses or tokens.

solver-training  textbook: one solution a row, random batches padded to the longest, logits everywhere
cot-training     the same batches for both; and the work a textbook does for them (the head at every token) in GFLOP/s
decoding         one row; beside it also nothing but the matrix-vector products over all weights
batch-decoding   rows of unlike length; only the tokens that were asked for count
dialogue         the real `solve` with random weights: a token is picked as always, then the gold text's is taken.
                 Beside `generate` on the growing text, batched (slow: it runs once, its nine calls spread over the
                 five turns), and beside `solve` for one problem at a time
demo             the embedded students; and the time from the start of infer.py to its dialogue (--samples 1)
growth           seconds and peak memory (Linux) of `tiny`, each cell in a process of its own: 16 dialogues of so many
                 steps, so many rows of 64 tokens, a training step of so many tokens
"""

import argparse
import importlib.util
import math
import multiprocessing
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import torch
import torch.nn.functional as F
from torch.testing import assert_close

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import infer
from data import HERE, IGNORE, Problem, encode, get_tokenizer, load_problems, segments
from gpt import GPT, SIZES, GPTConfig
from train import collate, count_learned, make_batches, summed_loss

FULL = SimpleNamespace(  # product, vector: sides of the ceilings' square matrices; the next three: of a training step
    config=SIZES["gpt2"], repeats=5, product=2048, vector=16384, solver_tokens=1024, singles=8, cot_tokens=2048,
    prompt=32, new=128, n_rows=32, prompts=(16, 256), news=(16, 128), problems=16, demo=500,
    growth={"steps": (2, 4, 8, 16), "rows": (1, 4, 16, 64), "tokens": (1024, 4096, 16384)})
QUICK = SimpleNamespace(
    config=GPTConfig(n_embd=64, n_layer=2, n_head=2), repeats=2, product=256, vector=512, solver_tokens=256, singles=2,
    cot_tokens=512, prompt=8, new=8, n_rows=5, prompts=(4, 16), news=(2, 8), problems=3, demo=8,
    growth={"steps": (2,), "rows": (1, 4), "tokens": (1024,)})
HAS_TRANSFORMERS = importlib.util.find_spec("transformers") is not None
CACHES = {"growing": None, "static": "static"}  # of transformers: one that it concatenates, one of fixed size
STUDENTS = ("decomposer", "solver")


def race(name, sides, repeats):
    """{side: its rates}. A side is a function that works and returns how much it did; all sides take turns."""
    rates = {side: [] for side in sides}
    for n in range(repeats):
        for side, work in sides.items():
            start = time.perf_counter()
            rates[side].append(work() / (time.perf_counter() - start))
        print(f"{name} {n + 1}/{repeats} | " + " | ".join(f"{side} {r[-1]:.4g}/s" for side, r in rates.items()),
              file=sys.stderr, flush=True)
    return rates


def faster(work, variants):
    """The variant with which `work(variant)` is the fastest; the second time counts."""
    rates = race("which one?", {v: lambda v=v: bool(work(v)) for v in variants}, 2)
    return max(variants, key=lambda v: rates[v][1])


def line(row, rates, rival, unit, reach, name=None):
    """The table's line of ours beside a rival, in a list; no line without the rival."""
    if rival not in rates:
        return []
    ratio = statistics.median(a / b for a, b in zip(rates["ours"], rates[rival]))
    ours, theirs = (statistics.median(rates[side]) for side in ("ours", rival))
    return [(row, f"{ours:,.4g} {unit}", f"{theirs:,.4g} {name or rival}", f"{ratio:.2f}x", reach)]


def ceilings(size):
    """The machine's own, as sides of a race: GFLOP of matrix products, GB of a matrix-vector product."""
    a, matrix = torch.randn(size.product, size.product), torch.randn(size.vector, size.vector)
    sides = {"GFLOP": lambda: sum(2e-9 * len(torch.mm(a, a))**3 for _ in range(5)),
             "GB": lambda: 4e-9 * len(torch.mv(matrix, matrix[0]))**2}
    race("warm-up", sides, 1)
    return sides


def to_transformers(model):
    """The same weights in GPT2LMHeadModel, which trains without dropout, as ours do, and never stops by itself."""
    import transformers
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        other = transformers.GPT2LMHeadModel.from_pretrained(
            folder, attn_implementation="sdpa", dtype=torch.float32, attn_pdrop=0.0, embd_pdrop=0.0, resid_pdrop=0.0)
    other.generation_config.eos_token_id = None
    return other


LOSSES = {  # of n learned tokens, the mean. The targets are shifted already: nobody reads a row's last token
    "ours": lambda model, ids, targets, n: summed_loss(model, ids, targets) / n,
    "textbook": lambda model, ids, targets, n: F.cross_entropy(model(ids).flatten(0, 1), targets.flatten()),
    "transformers": lambda model, ids, targets, n: model(
        input_ids=ids, labels=targets, shift_labels=targets, num_items_in_batch=n, use_cache=False).loss}


def loss_of(side, model, group):
    return LOSSES[side](model, *collate(group, "cpu"), count_learned(group))


def trainer(side, model, groups):
    """A side of a race: every call takes an optimizer step on the next group and returns its learned tokens."""
    def steps(optimizer):
        for group in [groups[0][:1], *groups]:
            loss_of(side, model, group).backward()
            optimizer.step()
            optimizer.zero_grad()
            yield count_learned(group)

    run = steps(torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True))
    next(run)  # warm up, on a single row
    return run.__next__


def turns(ids, targets, tokenizer):
    """[(what the student has read, the turn that it writes then)] of an encoded dialogue."""
    (newline,), found = tokenizer.encode_ordinary("\n"), []
    for t, target in enumerate(targets):
        if target != IGNORE and targets[t - 1] in (IGNORE, newline):
            start = t
        if target in (newline, tokenizer.eot_token):
            found.append((ids[:start + 1], targets[start:t + 1]))
    return found


def solver_training(size):
    tokenizer, model, rng = get_tokenizer("gpt2"), GPT(size.config), random.Random(0)
    examples = [encode(segments(p, "solver"), tokenizer) for p in load_problems("demo", "train", limit=2000)]
    singles = [(read + turn[:-1], [IGNORE] * (len(read) - 1) + turn)
               for example in examples for read, turn in turns(*example, tokenizer)]
    assert count_learned(singles) == count_learned(examples)
    own = singles[:len(turns(*examples[0], tokenizer))]                 # one pass learns what they do one by one
    assert_close(loss_of("ours", model, examples[:1]), loss_of("textbook", model, own), rtol=1e-4, atol=0)
    groups = make_batches(examples, size.solver_tokens, rng)
    draws = [rng.sample(singles, size.singles) for _ in range(size.repeats)]
    rates = race("solver training", {"ours": trainer("ours", model, groups),
                                     "textbook": trainer("textbook", GPT(size.config), draws)}, size.repeats)
    return line("solver training, demo dialogues", rates, "textbook", "learned/s", "3x")


def cot_training(size):
    try:
        problems = load_problems("gsm8k", "train", limit=1000)
    except SystemExit as reason:
        print(f"cot-training is left out, gsm8k is not here: {reason}", file=sys.stderr)
        return []
    tokenizer, model, sides = get_tokenizer("gpt2"), GPT(size.config), {}
    examples = [encode(segments(p, "cot"), tokenizer) for p in problems]
    groups = make_batches(examples, size.cot_tokens, random.Random(0))
    if HAS_TRANSFORMERS:
        other, few = to_transformers(model).train(), groups[0][:4]
        assert_close(loss_of("ours", model, few), loss_of("transformers", other, few), rtol=1e-4, atol=0)
        sides["transformers"] = trainer("transformers", other, groups)
    sides |= {"ours": trainer("ours", model, groups), "product": ceilings(size)["GFLOP"]}
    rates = race("cot training", sides, size.repeats)
    table = line("cot training, gsm8k", rates, "transformers", "learned/s", "1.15x")
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and name != "wpe.weight")
    attention = 12 * size.config.n_layer * size.config.n_embd           # FLOP for a pair of tokens; 6 for a weight
    for n, group in enumerate(groups[:size.repeats]):
        flop = sum(6 * matrices * len(ids) + attention * len(ids)**2 for ids, _ in group)
        rates["ours"][n] *= flop / count_learned(group) / 1e9
    return table + line("  the textbook's work for it", rates, "product", "GFLOP/s", "0.70x", "bare product")


class Row:
    """A job for `infer.write`: n tokens after a prompt, likeliest or from a script."""

    def __init__(self, prompt, n, script):
        self.ids, self.n, self.script, self.written = prompt, n, script, []

    def take(self, token):
        self.written.append(self.script[len(self.written)] if self.script else token)
        self.ids = self.written[-1:] if len(self.written) < self.n else []


def decode(model, prompts, n_new, script=None):
    """Ours: row b writes n_new[b] tokens."""
    rows = [Row(*row) for row in zip(prompts, n_new, script or [None] * len(prompts))]
    infer.write(infer.Student("row", model, get_tokenizer("gpt2")), rows)
    return [row.written for row in rows]


@torch.inference_mode()
def generate(other, prompts, n_new, cache, script=None):
    """transformers: padded on the left; all rows write as long as the longest."""
    width, options = max(map(len, prompts)), {"min_new_tokens": max(n_new)}
    ids = torch.tensor([[0] * (width - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    if script:
        dictated = torch.tensor([turn + turn[-1:] * (max(n_new) - len(turn)) for turn in script])
        options = {"logits_processor": [
            lambda ids, logits: logits.scatter_(1, dictated[:, ids.shape[1] - width, None], math.inf)]}
    out = other.generate(ids, attention_mask=mask, max_new_tokens=max(n_new), do_sample=False, use_cache=True,
                         pad_token_id=0, cache_implementation=CACHES[cache], **options)
    return [row[:n] for row, n in zip(out[:, width:].tolist(), n_new)]


def decoders(model, lengths, n_new):
    """Sides of a race that have written the same tokens, and a name with transformers' faster cache."""
    rng = random.Random(0)
    prompts = [[rng.randrange(model.config.vocab_size) for _ in range(length)] for length in lengths]
    few, short = prompts[::2], [max(1, n // 4) for n in n_new[::2]]
    written, best = decode(model, few, short), None
    sides = {"ours": lambda: sum(map(len, decode(model, prompts, n_new)))}
    if HAS_TRANSFORMERS:
        other = to_transformers(model).eval()
        assert written == generate(other, few, short, "growing"), "the sides write different tokens"
        best = faster(lambda cache: generate(other, few, short, cache), CACHES)
        sides["transformers"] = lambda: sum(map(len, generate(other, prompts, n_new, best)))
    return sides, f"transformers, {best}"


def decoding(size):
    model = GPT(size.config).eval()
    linear = [(m.bias.data, m.weight.data, torch.randn(len(m.weight)))
              for m in model.h.modules() if getattr(m, "weight", torch.empty(0)).dim() == 2]

    def products(how, n=size.new // 2):
        for _ in range(n):
            for bias, weight, x in linear:
                torch.addmv(bias, weight.T, x) if how == "addmv" else torch.addmm(bias, x[None], weight)
            F.linear(linear[0][2][None], model.wte.weight.data)
        return n

    how = faster(products, ("addmv", "addmm"))
    sides, best = decoders(model, [size.prompt], [size.new])
    rates = race("decoding", sides | {"ceiling": lambda: products(how)}, size.repeats)
    return (line("decoding, 1 row", rates, "transformers", "tok/s", "1.05x", best)
            + line("decoding, 1 row", rates, "ceiling", "tok/s", "0.95x", f"bare products, {how}"))


def batch_decoding(size):
    rng, row = random.Random(0), f"decoding, {size.n_rows} ragged rows"
    lengths, n_new = ([rng.randint(*span) for _ in range(size.n_rows)] for span in (size.prompts, size.news))
    sides, best = decoders(GPT(size.config).eval(), lengths, n_new)
    return line(row, race(row, sides, size.repeats), "transformers", "tok/s", "3x", best)


def gold_turns(problems, tokenizer):
    return {(p.id, role): turns(*encode(segments(p, role), tokenizer), tokenizer)
            for p in problems for role in STUDENTS}


def solve_dictated(problems, gold, model, tokenizer):
    """The real `solve`, in which every token that is picked is then replaced by the next one of the gold turn."""
    def next_token(job):
        n_turns = sum(turn.speaker == job.role for turn in job.dialogue.turns)
        return gold[job.dialogue.problem.id, job.role][n_turns][1][job.n_written]

    def choose(logits, jobs, temperature, really_choose=infer.choose):
        really_choose(logits, jobs, temperature)
        return [next_token(job) for job in jobs]

    with mock.patch.object(infer, "choose", choose):
        dialogues = infer.solve(problems, {role: infer.Student(role, model, tokenizer) for role in STUDENTS})
    for p, dialogue in zip(problems, dialogues):
        texts = [s.question for s in p.steps] + [s.solution for s in p.steps] + [p.answer]
        assert texts == [turn.text for turn in dialogue.turns], "not as dictated"
    return len(problems)


def dialogue(size):
    model, tokenizer, best = GPT(size.config).eval(), get_tokenizer("gpt2"), None
    problems = [p for p in load_problems("demo", "train", limit=2000) if len(p.steps) == 4][:size.problems]
    gold, row = gold_turns(problems, tokenizer), f"Socratic dialogue, {size.problems} problems"
    calls = [("decomposer", k) for k in range(4)] + [("solver", k) for k in range(5)]
    coming, singly = iter([calls[n::size.repeats] for n in range(size.repeats)]), iter(problems)

    def loop(calls, problems):
        for role, k in calls:
            prompts, script = zip(*(gold[p.id, role][k] for p in problems))
            lengths = [len(turn) for turn in script]
            written = (generate(other, prompts, lengths, best, script) if HAS_TRANSFORMERS
                       else decode(model, prompts, lengths, script))
            assert written == list(script), "not as dictated"
        return 1

    if HAS_TRANSFORMERS:
        other = to_transformers(model).eval()
        prompts, script = zip(*(gold[p.id, "solver"][3] for p in problems[:16]))
        best = faster(lambda cache: generate(other, prompts, [len(turn) for turn in script], cache, script), CACHES)
    solve_dictated(problems[:2], gold, model, tokenizer)
    rates = race("dialogue", {"ours": lambda: solve_dictated(problems, gold, model, tokenizer),
                              "loop": lambda: loop(next(coming), problems),
                              "one": lambda: solve_dictated([next(singly)], gold, model, tokenizer)}, size.repeats)
    rates["loop"] = [len(problems) / sum(1 / rate for rate in rates["loop"])] * size.repeats  # all nine calls together
    return (line(row, rates, "loop", "prob./s", "4x", f"generate(), {best}" if best else "decode() anew")
            + line(row, rates, "one", "prob./s", "8x", "one at a time"))


def demo(size):
    def first_byte(*command):
        with subprocess.Popen([sys.executable, *command], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
            n = len(process.stdout.read(1))
            process.kill()
        return n

    problems, folders = load_problems("demo", "test", limit=size.demo), [HERE / "students" / role for role in STUDENTS]
    flags = ["--device", "cpu", "--students", *map(str, folders)]
    n_threads, students = torch.get_num_threads(), infer.load_students(infer.parse_args(flags))
    rates = race("demo", {"ours": lambda: sum(len(infer.solve(problems[at:at + 64], students))  # as in eval.py
                                              for at in range(0, len(problems), 64))}, size.repeats)
    starts = race("start", {"ours": lambda: first_byte(HERE / "infer.py", problems[0].problem, "--samples", "1", "--json", *flags),
                            "import torch": lambda: first_byte("-c", "import torch; print(flush=True)")}, size.repeats)
    seconds = {side: [1 / rate for rate in rates] for side, rates in starts.items()}
    torch.set_num_threads(n_threads)    # load_students has limited them
    return [(f"tiny, {len(problems)} demo problems", f"{statistics.median(rates['ours']):.4g} prob./s", "", "", ""),
            *line("  from start to dialogue", seconds, "import torch", "s", "")]


def peak_mb():
    """The most memory that this process held; getrusage's would begin with what its parent held."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) / 1e3


def cell(kind, n, repeats):
    """(seconds, MB above those of an idle process) of `tiny` at work."""
    pool, tokenizer, idle = load_problems("demo", "train", limit=300), get_tokenizer("tiny"), peak_mb()
    model = GPT(SIZES["tiny"])
    if kind == "steps":
        steps = [step for p in pool for step in p.steps]
        problems = [Problem(p.id, p.problem, steps[i * n:(i + 1) * n], "7") for i, p in enumerate(pool[:16])]
        gold = gold_turns(problems, tokenizer)
    elif kind == "tokens":
        examples = [encode(segments(p, "solver"), tokenizer) for p in pool]
        group = max(make_batches(examples, n, random.Random(0)), key=len)
        step = trainer("ours", model, [group] * (repeats + 1))
    work = {"steps": lambda: bool(solve_dictated(problems, gold, model, tokenizer)), "tokens": lambda: bool(step()),
            "rows": lambda: bool(decode(model, [list(range(32))] * n, [64] * n))}[kind]
    rates = race(f"{kind} {n}", {"work": work}, repeats + 1)["work"]
    return 1 / statistics.median(rates[1:]), peak_mb() - idle


def growth(size):
    table = []
    for kind, counts in size.growth.items():
        first = None
        for n in counts:
            with multiprocessing.get_context("spawn").Pool(1) as process:
                seconds, mb = process.apply(cell, (kind, n, size.repeats))
            first = first or seconds
            table.append((f"tiny, {kind}: {n}", f"{seconds:.3g} s", f"{mb:,.0f} MB", f"{seconds / first:.2f}x",
                          f"<= {n // counts[0]}x"))
    return table


ROWS = {"solver-training": solver_training, "cot-training": cot_training, "decoding": decoding,
        "batch-decoding": batch_decoding, "dialogue": dialogue, "demo": demo, "growth": growth}


def main():
    parser = argparse.ArgumentParser(description="How fast, beside the textbook and transformers?")
    parser.add_argument("--rows", nargs="+", choices=ROWS, default=list(ROWS), help="only these rows")
    parser.add_argument("--quick", action="store_true", help="small models and little work: only to see that it runs")
    args = parser.parse_args()
    size, start, table = QUICK if args.quick else FULL, time.time(), []
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads" + ". Figures mean nothing" * args.quick)
    if not HAS_TRANSFORMERS:
        print("transformers is not installed: its rows are left out")
    torch.manual_seed(0)
    try:
        for when in ("before", *args.rows, "after"):
            if when in ROWS:
                table += ROWS[when](size)
                print(f"{when}: done after {time.time() - start:.0f} s", file=sys.stderr, flush=True)
            else:
                rates = race("ceilings", ceilings(size), size.repeats)
                product, read = (statistics.median(rates[side]) for side in ("GFLOP", "GB"))
                print(f"{when:6} {product:.0f} GFLOP/s (matrix product), {read:.1f} GB/s (matrix-vector product)")
    finally:  # what was measured before an interruption, too
        rules = tuple("-" * width for width in (36, 15, 28, 7, 8))
        for row in [("row", "ours", "competitor", "ratio", "to reach"), rules, *table]:
            print("{:36} {:>15} {:>28} {:>7} {:>8}".format(*row))


if __name__ == "__main__":
    main()

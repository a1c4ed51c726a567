"""
Score students on a test split.

    python eval.py                                           decomposer + solver on the demo's test split
    python eval.py --method cot --dataset gsm8k              a chain-of-thought student on GSM8K's
    python eval.py --limit 100                               the first 100 problems only

Reads   the students (see infer.py) and the problems of a split
Writes  predictions/<name>-<key>.jsonl    a line a dialogue, as they come; the key stands for everything that shapes
        them (students, split, flags), so that the same command goes on where it stopped and no other one mixes in
"""

import argparse
import hashlib
import json
import math
import time
from collections import Counter
from pathlib import Path

from data import DATASETS, load_problems, same_answer
from infer import METHODS, find_students, load_students, solve


def wilson(n_right, n, z=1.96):
    """
    The 95 % interval of a share, (low, high): Wilson (1927), which stays honest near 0 and 1.

    >>> low, high = wilson(0, 10); round(low, 3), round(high, 3)
    (0.0, 0.278)
    """
    if n == 0:
        return 0.0, 1.0
    share, width = n_right / n, z * z / n
    middle, half = share + width / 2, z * math.sqrt(share * (1 - share) / n + width / (4 * n))
    return max(0.0, (middle - half) / (1 + width)), min(1.0, (middle + half) / (1 + width))


def settings(args, folders, problems):
    """Everything that shapes the predictions, as JSON-able values."""
    text = "\n".join(problem.to_json() for problem in problems)
    return {"dataset": args.dataset, "split": args.split, "n": len(problems), "problems_sha256": sha256(text.encode()),
            "method": args.method, "students": {role: sha256((folder / "model.safetensors").read_bytes())
                                                for role, folder in folders.items()},
            "calculator": args.calculator, "dtype": args.dtype, "batch_size": args.batch_size,
            "temperature": args.temperature, "seed": args.seed}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def read_predictions(path, batch_size):
    """The predictions of whole batches; what a killed run left of a batch, or of a line, is cut off the file."""
    if not path.exists():
        return []
    lines = []
    with open(path, encoding="utf-8") as file:
        for line in file:
            if not line.endswith("\n"):
                break
            lines.append(line)
    lines = lines[:len(lines) // batch_size * batch_size] if len(lines) % batch_size else lines
    path.write_text("".join(lines), encoding="utf-8")
    return [json.loads(line) for line in lines]


def predict(args, problems, folders, path):
    """Solve the problems in batches, write the dialogues as they come, and return all of them."""
    done = read_predictions(path, args.batch_size) if len(problems) else []
    if len(done) < len(problems):
        students = load_students(folders, args.device, args.dtype)
        path.parent.mkdir(parents=True, exist_ok=True)
        start, first = time.time(), len(done)
        with open(path, "a", encoding="utf-8") as file:
            for at in range(first, len(problems), args.batch_size):
                batch = solve(problems[at:at + args.batch_size], students, args.method, args.batch_size,
                              args.temperature, args.seed, args.calculator)
                records = [dialogue.to_json() | {"gold": dialogue.problem.answer} for dialogue in batch]
                file.write("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records))
                file.flush()
                done += records
                n_right = sum(same_answer(r["answer"], r["gold"]) for r in done)
                left = (time.time() - start) / (len(done) - first) * (len(problems) - len(done))
                print(f"{len(done):5d}/{len(problems)} problems | right so far {n_right / len(done):6.1%} | "
                      f"{(len(done) - first) / (time.time() - start):5.1f} problems/s | "
                      f"{int(left // 60)}:{int(left % 60):02d} left", flush=True)
    return done


def report(args, problems, predictions):
    n = len(predictions)
    right = [same_answer(r["answer"], r["gold"]) for r in predictions]
    low, high = wilson(sum(right), n)
    print(f"\n{args.method} on {args.dataset}/{args.split}: {sum(right)} of {n} right = {sum(right) / n:.1%} "
          f"(95 % interval {low:.1%} to {high:.1%})")
    parsed = sum(r["answer"] is not None for r in predictions)
    print(f"an answer was found in {parsed} of {n}")
    for why, count in Counter(r["ended"] for r in predictions if r["ended"] != "finished").most_common():
        print(f"{count} dialogues were cut short: {why}")
    by_steps = Counter(len(problem.steps) for problem in problems)
    if len(by_steps) > 1:
        hits = Counter(len(problem.steps) for problem, yes in zip(problems, right) if yes)
        print("by number of steps: " + "  ".join(f"{k}: {hits[k]}/{by_steps[k]}" for k in sorted(by_steps)))


def parse_args(argv=None):
    parser = argparse.ArgumentParser(description="Score students on a test split.",
                                     formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    add = parser.add_argument
    add("--dataset", default="demo", choices=DATASETS, help="which problems")
    add("--split", default="test", help="train, valid, test; demo also has long, svamp all")
    add("--limit", type=int, help="only the first so many problems (None: all)")
    add("--data-dir", help="folder of the data sets (None: SOCRATIC_DATA, or data/)")
    add("--method", default="socratic", choices=METHODS, help="which students solve them")
    add("--students", nargs="+", metavar="FOLDER",
        help="their folders (None: runs/<dataset>-<model>-<role>, else students/)")
    add("--model", default="tiny", help="use the students of this size")
    add("--out", default="predictions", help="folder of the predictions")
    add("--batch-size", type=int, default=64, help="dialogues at once")
    add("--calculator", action=argparse.BooleanOptionalAction, default=True, help="compute <<...=...>> for the student")
    add("--temperature", type=float, default=0.0, help="0: always the likeliest token; 1: draw as the student believes")
    add("--seed", type=int, default=0, help="of the draws, together with the problem")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    add("--dtype", default="auto", choices=("auto", "fp32", "bf16", "fp16"), help="of weights and cache")
    return parser.parse_args(argv)


def main(args):
    problems = load_problems(args.dataset, args.split, args.data_dir, args.limit)
    folders = find_students(args.method, args.students, args.dataset, args.model)
    shape = settings(args, folders, problems)
    key = sha256(json.dumps(shape, sort_keys=True).encode())[:8]
    path = Path(args.out) / f"{args.dataset}-{args.split}-{args.method}-{key}.jsonl"
    predictions = predict(args, problems, folders, path)
    report(args, problems, predictions)
    print(f"predictions: {path}")


if __name__ == "__main__":
    main(parse_args())

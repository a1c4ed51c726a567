"""
How the tokenizer of the `tiny` students was made: byte-pair encoding, trained from scratch.

    python tests/train_tokenizer.py students/tiny.tiktoken

on the training splits of demo, gsm8k and strategyqa. Students depend on their tokenizer, so this is not run again.
"""

import base64
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from data import TINY_PATTERN, load_problems, segments


def train_bpe(texts, n_tokens):
    """
    Sennrich et al. (2016): begin with the 256 bytes, then merge the most frequent pair of neighbours into a token,
    again and again. Returns {bytes: rank}.

    By hand: "ab" stands 5 times; then "abc" 3 times, " ab" and "abd" once and twice.

    >>> list(train_bpe(["abc abd abd", "abc", "abc"], 258))[256:]
    [b'ab', b'abc']
    """
    pieces = Counter(piece for text in texts for piece in re.findall(TINY_PATTERN, text))
    words = [([bytes([b]) for b in piece.encode()], n) for piece, n in pieces.items()]
    ranks = {bytes([b]): b for b in range(256)}
    counts, where = Counter(), defaultdict(set)   # pair -> how often, pair -> numbers of the words that hold it
    for i, (word, n) in enumerate(words):
        for pair in zip(word, word[1:]):
            counts[pair] += n
            where[pair].add(i)
    while len(ranks) < n_tokens:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        ranks.setdefault(b"".join(best), len(ranks))   # two pairs can spell the same token
        for i in where.pop(best):
            word, n = words[i]
            for pair in zip(word, word[1:]):
                counts[pair] -= n
            j = 0
            while j < len(word) - 1:
                if (word[j], word[j + 1]) == best:
                    word[j:j + 2] = [word[j] + word[j + 1]]
                j += 1
            for pair in zip(word, word[1:]):
                counts[pair] += n
                where[pair].add(i)
        del counts[best]
    return ranks


def main(path):
    problems = [p for name in ("demo", "gsm8k", "strategyqa") for p in load_problems(name, "train")]
    texts = [part.text for p in problems for part in segments(p, "cot") + segments(p, "decomposer")[1:]]
    lines = (f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in train_bpe(texts, 2047).items())
    Path(path).write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1])

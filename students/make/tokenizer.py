"""
Train the tokenizer of the students from scratch: byte-pair encoding.

    python students/make/tokenizer.py students/tiny.tiktoken

This made the embedded one, from the training splits of GSM8K, StrategyQA and the demo of an earlier
version. Students depend on their tokenizer, so it is not made again: today's demo gives another.
"""

import base64
import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data import TINY_PATTERN, load_problems, replace_file, segments

def train_bpe(texts, n_tokens):
    """
    Sennrich et al. (2016): begin with the 256 bytes, then merge the most frequent pair of
    neighbours into a token, again and again. Returns {bytes: rank}.

    By hand: "ab" stands 5 times; then "abc" 3 times, " ab" and "abd" once and twice.

    >>> list(train_bpe(["abc abd abd", "abc", "abc"], 258))[256:]
    [b'ab', b'abc']
    """
    pieces = Counter(piece for text in texts for piece in re.findall(TINY_PATTERN, text))
    words = [([bytes([b]) for b in piece.encode()], n) for piece, n in pieces.items()]
    ranks = {bytes([b]): b for b in range(256)}
    counts = Counter()          # how often a pair occurs
    where = defaultdict(set)    # the numbers of the words that hold a pair
    for i, (word, n) in enumerate(words):
        for pair in zip(word, word[1:]):
            counts[pair] += n
            where[pair].add(i)
    while len(ranks) < n_tokens:
        best = max(counts, key=lambda pair: (counts[pair], pair))
        ranks.setdefault(b"".join(best), len(ranks))    # two pairs can spell the same token
        for i in where.pop(best):
            word, n = words[i]
            for pair in zip(word, word[1:]):
                counts[pair] -= n
            join_pair(word, best)
            for pair in zip(word, word[1:]):
                counts[pair] += n
                where[pair].add(i)
        del counts[best]
    return ranks

def join_pair(word, pair):
    """Make one token of the pair wherever it stands in the word, a list of tokens."""
    j = 0
    while j < len(word) - 1:
        if (word[j], word[j + 1]) == pair:
            word[j:j + 2] = [word[j] + word[j + 1]]
        j += 1

def main(path):
    problems = [problem for name in ("demo", "gsm8k", "strategyqa")
                for problem in load_problems(name, "train")]
    texts = [part.text for problem in problems
             for part in segments(problem, "cot") + segments(problem, "decomposer")[1:]]
    ranks = train_bpe(texts, 2047)
    lines = [f"{base64.b64encode(token).decode()} {rank}\n" for token, rank in ranks.items()]
    replace_file(path, "".join(lines).encode())

if __name__ == "__main__":
    main(Path(sys.argv[1]))

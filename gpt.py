"""
GPT-2 by hand: the model, its key-value cache, and its files.

    model = GPT.from_pretrained("gpt2")     # released weights (downloaded once), or a folder
    logits = model(ids)                     # (B, T) -> (B, T, V)

Reads and writes   <folder>/model.safetensors, config.json: the Hugging Face GPT-2 format, both ways

Shapes  B rows   T tokens   C channels   H heads   D = C // H   V vocabulary   S time in the cache
        N = all new tokens of all rows, one after another
"""

import ctypes
import hashlib
import json
import math
import os
import struct
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import requests
import torch
import torch.nn.functional as F
from torch import nn


@dataclass
class GPTConfig:  # the names are those of Hugging Face's config.json
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5


# Radford et al. (2019), table 2. `tiny` is ours: what learns most in a few minutes on two cores.
SIZES = {
    "tiny": GPTConfig(vocab_size=2048, n_embd=128, n_layer=4, n_head=8),
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPTConfig(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPTConfig(n_embd=1600, n_layer=48, n_head=25),
}


# ---------------------------------------------------------------- the model

def product(x, weight, bias=None):
    """
    x W^T + b of x (N, in), weight (out, in) and bias (out,): (N, out).

    A few rows, as in decoding, are computed the other way round, as (W x^T)^T, and one row alone as two: the same, but
    sooner. With MKL on an AMD CPU, GPT-2's head took 36 ms instead of 60 for 64 rows, and 4.5 instead of 11.5 for one.
    """
    if len(x) > 256:
        return F.linear(x, weight, bias)
    if len(x) == 1:
        return product(x.repeat(2, 1), weight, bias)[:1].contiguous()
    return (weight @ x.T if bias is None else torch.addmm(bias[:, None], weight, x.T)).T


class Linear(nn.Module):
    """y = x W + b with W (in, out), as in OpenAI's files (a "Conv1D"); in memory by columns, as `product` reads it."""

    def __init__(self, n_in, n_out, std):
        super().__init__()
        self.weight = nn.Parameter((torch.randn(n_in, n_out) * std).T.contiguous().T)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return product(x.flatten(0, -2), self.weight.T, self.bias).unflatten(0, x.shape[:-1])


class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.c_attn = Linear(C, 3 * C, C**-0.5)
        # Every layer adds to the residual stream twice: start small, so that its variance does not grow with depth.
        self.c_proj = Linear(C, C, (2 * config.n_layer * C)**-0.5)

    def forward(self, x, layer=None, cache=None):
        qkv = self.c_attn(x).contiguous()
        qkv = qkv.unflatten(-1, (3, self.n_head, -1))                   # (B, T, 3, H, D), with a cache (N, 3, H, D)
        if cache is None:
            q, k, v = qkv.permute(2, 0, 3, 1, 4)                        # 3 x (B, H, T, D)
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
            y = y.transpose(1, 2)                                       # (B, T, H, D)
        else:
            y = cache.attend(layer, *qkv.unbind(1))                     # (N, H, D)
        return self.c_proj(y.flatten(-2))                               # (B, T, C) or (N, C)


class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.c_fc = Linear(C, 4 * C, C**-0.5)
        self.c_proj = Linear(4 * C, C, (2 * config.n_layer * C)**-0.5)

    def forward(self, x):
        # GPT-2 was trained with the tanh approximation of GELU, not with the exact one.
        return self.c_proj(F.gelu(self.c_fc(x), approximate="tanh"))


class Block(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.ln_1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.attn = Attention(config)
        self.ln_2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        self.mlp = MLP(config)

    def forward(self, x, layer=None, cache=None):
        x = x + self.attn(self.ln_1(x), layer, cache)
        return x + self.mlp(self.ln_2(x))


def waves(n_positions, n_channels):
    """Sines and cosines of wavelengths from 2 pi to 20,000 pi: (n_positions, n_channels)."""
    frequency = 10_000 ** -(torch.arange(0, n_channels, 2) / n_channels)
    angle = torch.arange(n_positions)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :n_channels]


class GPT(nn.Module):
    """GPT-2. `info` is what config.json holds besides the shape: role, data set, tokenizer, how it was made."""

    def __init__(self, config, info=None):
        super().__init__()
        self.config, self.info = config, info or {}
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        # From scratch: GPT-2's own 0.02 is far too small for 128 channels. Positions begin as the waves of Vaswani et
        # al. (2017, section 3.5): "the token before me" is then one rotation, and heads that copy numbers form sooner.
        nn.init.normal_(self.wte.weight, std=config.n_embd**-0.5)
        self.wpe.weight.data = waves(config.n_positions, config.n_embd) * config.n_embd**-0.5

    def forward(self, ids, cache=None, counts=None, targets=None):
        """
        model(ids)                  logits (B, T, V) of ids (B, T)
        model(ids, targets=y)       the summed loss of the learned tokens: y (B, T), negative where nothing is learned
        model(ids, cache, counts)   append the first counts[b] tokens of ids[b] to row b of the cache (None: all T);
                                    each row's last logits (B, V), also of rows that append nothing
        """
        if cache is not None:
            return self._append(ids, cache, counts)
        positions = torch.arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(positions)                         # (B, T, C)
        for block in self.h:
            x = block(x)
        if targets is None:
            return self.read_out(x)
        # The vocabulary product is a third of GPT-2's work and most positions are context: keep the learned ones.
        learned = targets >= 0
        return F.cross_entropy(self.read_out(x[learned]).float(), targets[learned], reduction="sum")

    def _append(self, ids, cache, counts):
        row, column, position = cache.begin(counts, *ids.shape)         # 3 x (N,)
        x = self.wte(ids[row, column]) + self.wpe(position)             # (N, C)
        for layer, block in enumerate(self.h):
            x = block(x, layer, cache)
        return self.read_out(cache.end(x))

    def read_out(self, x):
        """Logits (..., V) of the last block's output (..., C): the head is the token embedding, transposed."""
        x = self.ln_f(x)
        return product(x.flatten(0, -2), self.wte.weight).unflatten(0, x.shape[:-1])

    def n_params(self):
        return sum(p.numel() for p in self.parameters())

    # ------------------------------------------------------------ files

    def save_pretrained(self, folder, dtype=torch.float32):
        """Write model.safetensors and config.json, each under a temporary name first."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_safetensors(folder / "model.safetensors", {k: v.to(dtype) for k, v in self.state_dict().items()})
        config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2", "activation_function": "gelu_new",
                  "bos_token_id": self.config.vocab_size - 1, "eos_token_id": self.config.vocab_size - 1}
        replace_file(folder / "config.json", json.dumps(config | asdict(self.config) | self.info, indent=1).encode())

    @classmethod
    def from_pretrained(cls, name_or_folder, cache_dir=None):
        """A model from a Hugging Face GPT-2 folder, or a released size by name; the weights become float32."""
        folder = Path(name_or_folder)
        if not folder.is_dir():
            if str(name_or_folder) not in SIZES or name_or_folder == "tiny":
                raise SystemExit(f"{name_or_folder} is neither a folder nor one of: {', '.join(list(SIZES)[1:])}")
            folder = download_released(str(name_or_folder), cache_dir)
        config, info = read_config(folder / "config.json")
        model = cls(config, info)
        model.load_tensors(read_safetensors(folder / "model.safetensors"), folder / "model.safetensors")
        return model

    def load_tensors(self, tensors, path):
        """Fill the parameters from {name: tensor}; anything missing, extra or misshapen ends the program."""
        tensors = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        for name in list(tensors):
            if name.endswith((".attn.bias", ".attn.masked_bias")):      # the causal mask: a constant, not a weight
                del tensors[name]
        head = tensors.pop("lm_head.weight", None)
        own = self.state_dict()
        if missing := own.keys() - tensors.keys():
            raise SystemExit(f"{path} lacks {len(missing)} tensors of this GPT-2, such as {min(missing)}")
        if extra := tensors.keys() - own.keys():
            raise SystemExit(f"{path} has {len(extra)} tensors that are not GPT-2's, such as {min(extra)}")
        for name, t in tensors.items():
            if t.shape != own[name].shape:
                raise SystemExit(f"{path}: {name} has shape {tuple(t.shape)}; "
                                 f"config.json asks for {tuple(own[name].shape)}")
        if head is not None and not torch.equal(head, tensors["wte.weight"]):
            raise SystemExit(f"{path}: lm_head.weight differs from wte.weight; GPT-2's head is tied to its embedding")
        self.load_state_dict(tensors)


def keep_freed_memory():
    """Linux takes large blocks back when they are freed and clears the next ones page by page: not at every step."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4                           # glibc's malloc.h
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_MAX, 0)


def pick_device(device, dtype):
    """(torch.device, dtype of the matrix products) of the flags --device and --dtype."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(device)
    if device.type == "cpu":
        keep_freed_memory()
    if dtype == "auto":  # bf16 is several times slower than fp32 on a CPU without matrix units for it
        dtype = "fp32" if device.type != "cuda" else "bf16" if torch.cuda.is_bf16_supported() else "fp16"
    return device, {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[dtype]


# ---------------------------------------------------------------- the cache

class KVCache:
    """
    Keys and values of every token read so far, with a length for every row.

    keys, values  (layer, row, head, time, channel), zeros at first: a NaN behind a mask would still poison attention
    lengths       (row,) on the CPU: how many tokens each row holds
    last          (row, C): the last block's output for the last token of each row (zeros for a row without tokens)
    dtype         the model's own

    Rows grow each at its own pace: nothing is padded on the left and nothing is read twice. The tokens that a call
    appends go through the model as one list of N; only attention looks at rows. The time axis grows by itself.
    """

    def __init__(self, config, n_rows, n_positions=64, device=None, dtype=None):
        self.n_positions = config.n_positions
        H, D, S = config.n_head, config.n_embd // config.n_head, min(n_positions, config.n_positions)
        self.keys = torch.zeros(config.n_layer, n_rows, H, S, D, device=device, dtype=dtype)
        self.values = torch.zeros_like(self.keys)
        self.last = torch.zeros(n_rows, config.n_embd, device=device, dtype=dtype)
        self.lengths = torch.zeros(n_rows, dtype=torch.long)

    def keep(self, rows):
        """Only these rows go on, in this order. A row that keeps its number is not copied."""
        moved = [i for i, row in enumerate(rows) if i != row]
        for z in (self.keys.transpose(0, 1), self.values.transpose(0, 1), self.last, self.lengths):
            z[moved] = z[[rows[i] for i in moved]]
        self.keys, self.values = self.keys[:, :len(rows)], self.values[:, :len(rows)]
        self.last, self.lengths = self.last[:len(rows)], self.lengths[:len(rows)]

    def begin(self, counts, n_rows, n_columns):
        """Plan a call that appends counts[b] tokens to row b. Returns row, column and position of the N tokens."""
        assert n_rows == len(self.lengths), f"{n_rows} rows of ids for {len(self.lengths)} rows of cache"
        counts = torch.as_tensor(n_columns if counts is None else counts, device="cpu").expand(n_rows)
        assert counts.min() >= 0 and counts.max() <= n_columns, f"counts {counts.tolist()} of {n_columns} columns"
        needed = int((self.lengths + counts).max())
        assert needed <= self.n_positions, f"{needed} tokens, but the model reads {self.n_positions}"
        capacity = self.keys.shape[3]
        if needed > capacity:                                           # half as much again, so that copies stay rare
            grown, used = min(needed + needed // 2, self.n_positions), int(self.lengths.max())
            for name, old in (("keys", self.keys), ("values", self.values)):
                new = old.new_empty(*old.shape[:3], grown, old.shape[4])
                new[:, :, :, :used], new[:, :, :, used:] = old[:, :, :, :used], 0
                setattr(self, name, new)
        device = self.keys.device
        row, column = (torch.arange(n_columns) < counts[:, None]).nonzero(as_tuple=True)
        position = self.lengths[row] + column
        starts = counts.cumsum(0) - counts                              # where a row's tokens begin among the N
        one = counts == 1
        self.counts, self.n_visible = counts, needed
        self.each_one = bool(one.all())
        # Rows that append one token attend together, each looking at keys up to its own position ...
        self.one_row, self.one_token = one.nonzero()[:, 0].to(device), starts[one].to(device)
        # A row that does not take part looks at key 0: a softmax needs a key, and nobody reads what it sees.
        ends = torch.where(one, self.lengths, 0)                        # (B,)
        self.visible = (torch.arange(needed) <= ends[:, None])[:, None, None].to(device)     # (B, 1, 1, S)
        # ... and a row that appends more attends by itself, so that its queries make no other row wait.
        longer = (counts > 1).nonzero()[:, 0].tolist()
        self.longer = [(b, int(starts[b]), int(counts[b]), int(self.lengths[b])) for b in longer]
        self.row, self.position = row.to(device), position.to(device)
        return self.row, column.to(device), self.position

    def attend(self, layer, q, k, v):
        """Store the new keys and values (N, H, D) and return what the new queries (N, H, D) read: (N, H, D)."""
        keys, values = self.keys[layer], self.values[layer]             # (B, H, S, D)
        keys[self.row, :, self.position] = k
        values[self.row, :, self.position] = v
        if self.each_one:                                               # as below, without gathering anything
            return F.scaled_dot_product_attention(
                q[:, :, None], keys[:, :, :self.n_visible], values[:, :, :self.n_visible],
                attn_mask=self.visible)[:, :, 0]
        y = torch.empty_like(q)
        if len(self.one_row):
            queries = q.new_zeros(len(keys), *q.shape[1:])              # (B, H, D)
            queries[self.one_row] = q[self.one_token]
            read = F.scaled_dot_product_attention(
                queries[:, :, None], keys[:, :, :self.n_visible], values[:, :, :self.n_visible],
                attn_mask=self.visible)
            y[self.one_token] = read[self.one_row, :, 0]
        for row, start, n, length in self.longer:
            own = slice(start, start + n)
            mask = torch.ones(n, length + n, dtype=torch.bool, device=q.device).tril(length)
            read = F.scaled_dot_product_attention(                      # (1, H, n, D)
                q[own].transpose(0, 1)[None], keys[None, row, :, :length + n], values[None, row, :, :length + n],
                attn_mask=mask)
            y[own] = read[0].transpose(0, 1)
        return y

    def end(self, x):
        """Close the call: x (N, C) is the last block's output. Returns each row's last one (B, C)."""
        some = self.counts > 0
        last_token = (self.counts.cumsum(0) - 1)[some].to(x.device)
        self.last[some.to(x.device)] = x[last_token]
        self.lengths = self.lengths + self.counts
        return self.last


# ---------------------------------------------------------------- safetensors and config.json, by hand

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def read_safetensors(path):
    """
    {name: float32 tensor}. The format: 8 bytes with the header's length, a JSON header {name: {dtype, shape,
    data_offsets}}, and the raw numbers, without gaps (https://github.com/huggingface/safetensors#format).
    Buffers of other types (masks) are skipped. A file that does not add up ends the program with the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: a model is a folder with model.safetensors and config.json")
    data = bytearray(path.read_bytes())
    try:
        (n,) = struct.unpack_from("<Q", data)
        if n > len(data) - 8:
            raise ValueError("the header is cut off")
        header = json.loads(data[8:8 + n])
        header.pop("__metadata__", None)
        body, tensors, expected = memoryview(data)[8 + n:], {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, end = entry["data_offsets"]
            if begin != expected or end < begin or end > len(body):
                raise ValueError(f"{name} is cut off or out of place")
            expected = end
            if entry["dtype"] in DTYPES:
                dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
                whole = all(type(s) is int and s >= 0 for s in shape)
                if not whole or math.prod(shape) * dtype.itemsize != end - begin:
                    raise ValueError(f"{name} has {end - begin} bytes for shape {shape} of {entry['dtype']}")
                t = torch.frombuffer(body[begin:end], dtype=dtype) if end > begin else torch.empty(0)
                tensors[name] = t.reshape(shape).float()
        if expected != len(body):
            raise ValueError(f"{len(body) - expected} bytes too many at the end")
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RuntimeError) as error:
        raise SystemExit(f"{path} is not a whole safetensors file: {error}. Copy or download it again.") from None


def write_safetensors(path, tensors):
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, t in tensors.items():
        blob = t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)                                     # numbers start at a multiple of 8 bytes
    replace_file(path, struct.pack("<Q", len(head)), head, *blobs)


def replace_file(path, *chunks):
    """Write a file so that a reader, or a crash, meets the old one or the new one and nothing between."""
    part = Path(f"{path}.part")
    with open(part, "wb") as file:
        for chunk in chunks:
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def read_config(path):
    """(GPTConfig, everything else that config.json says)."""
    if not path.is_file():
        raise SystemExit(f"{path} does not exist: a model is a folder with model.safetensors and config.json")
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        config = GPTConfig(**{key: type(value)(record.pop(key, value)) for key, value in asdict(GPTConfig()).items()})
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SystemExit(f"{path} is not the config of a GPT-2: {error}") from None
    if record.get("model_type", "gpt2") != "gpt2" or record.get("activation_function", "gelu_new") != "gelu_new":
        raise SystemExit(f"{path} is not GPT-2's: model_type {record.get('model_type')!r}, activation_function "
                         f"{record.get('activation_function')!r}; this code knows 'gpt2' with 'gelu_new'")
    if not record.get("scale_attn_weights", True) or record.get("scale_attn_by_inverse_layer_idx", False):
        raise SystemExit(f"{path}: scale_attn_weights or scale_attn_by_inverse_layer_idx is not GPT-2's; "
                         "attention would compute something else")
    record.pop("dtype", None), record.pop("torch_dtype", None)          # what they say is in model.safetensors
    if min(asdict(config).values()) <= 0 or config.n_embd % config.n_head:
        raise SystemExit(f"{path}: n_embd {config.n_embd} and n_head {config.n_head} do not fit each other")
    return config, record


HUB = "https://huggingface.co/openai-community/{name}/resolve/main/model.safetensors"


def download_released(name, cache_dir=None, url=HUB):
    """The folder of a released GPT-2, downloaded if need be; a download that broke off goes on where it stopped."""
    folder = Path(cache_dir or Path.home() / ".cache" / "socratic") / name
    path, part, url = folder / "model.safetensors", folder / "model.safetensors.part", url.format(name=name)
    config = {"model_type": "gpt2", "activation_function": "gelu_new"} | asdict(SIZES[name])
    if path.is_file():
        if not (folder / "config.json").is_file():                      # the weights were put here by hand
            replace_file(folder / "config.json", json.dumps(config, indent=1).encode())
        return folder
    try:
        folder.mkdir(parents=True, exist_ok=True)
        have = part.stat().st_size if part.exists() else 0
        with requests.get(url, headers={"Range": f"bytes={have}-"} if have else {}, stream=True, timeout=60) as reply:
            if reply.status_code != 416:                                # 416: nothing is left to fetch
                reply.raise_for_status()
                have = have if reply.status_code == 206 else 0
                total, start, fresh = have + int(reply.headers.get("Content-Length", 0)), time.time(), have
                with open(part, "ab" if have else "wb") as file:
                    for chunk in reply.iter_content(1 << 20):
                        file.write(chunk)
                        have += len(chunk)
                        rate = (have - fresh) / (time.time() - start + 1e-9)
                        print(f"\r{name}: {have / 1e6:,.0f} of {total / 1e6:,.0f} MB, {rate / 1e6:.1f} MB/s, "
                              f"{(total - have) / rate:.0f} s left ", end="", file=sys.stderr)
                print(file=sys.stderr)
                if total and have != total:
                    raise OSError(f"closed after {have:,} of {total:,} bytes; the same command again goes on there")
            # The hub names the file's sha256 in the answer that sends us to its storage.
            tags = [r.headers.get("X-Linked-ETag", "").strip('"') for r in (*reply.history, reply)]
    except (requests.RequestException, OSError) as error:
        raise SystemExit(f"\nCannot download {url}\n  {type(error).__name__}: {error}\n  Offline? Fetch that address "
                         f"elsewhere and put the file at {path}") from None
    digest = hashlib.sha256()
    with open(part, "rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    if any(len(tag) == 64 and tag != digest.hexdigest() for tag in tags):
        part.unlink()
        raise SystemExit(f"{url} arrived damaged (its sha256 is not the hub's). Run the command again.")
    try:
        GPT(SIZES[name]).load_tensors(read_safetensors(part), part)     # whole and the right shape, before it counts
    except SystemExit:
        part.unlink()                                                   # there is nothing to go on from
        raise
    replace_file(folder / "config.json", json.dumps(config, indent=1).encode())
    part.replace(path)
    return folder

"""
Who learns it? GPT-2 by hand: the model, its key-value cache, and its files.

    model = GPT.from_pretrained("gpt2")     # released weights (downloaded once), or a folder
    logits = model(ids)                     # (B, T) -> (B, T, V)

Reads and writes   <folder>/model.safetensors, config.json: the Hugging Face GPT-2 format

Shapes  B rows   T tokens   C channels   H heads   D = C // H   V vocabulary
        R rows of the cache that take part   S positions of the cache
"""

import json
import math
import os
import struct
from collections import namedtuple
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from data import download, replace_file

@dataclass
class GPTConfig:    # the names are those of Hugging Face's config.json
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

# ------------------------------------------------------------ the model

class Linear(nn.Module):
    """y = x W + b with W (in, out), as in OpenAI's files; nn.Linear keeps W transposed."""

    def __init__(self, n_in, n_out, std):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n_in, n_out) * std)
        self.bias = nn.Parameter(torch.zeros(n_out))

    def forward(self, x):
        return F.linear(x, self.weight.T, self.bias)

class Attention(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.n_head = config.n_head
        self.c_attn = Linear(C, 3 * C, std=C**-0.5)
        # Every layer adds to the residual stream twice. Starting small keeps its variance from
        # growing with depth.
        self.c_proj = Linear(C, C, std=(2 * config.n_layer * C)**-0.5)

    def forward(self, x, past=None):
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                            # 3 x (B, H, T, D)
        visible = None if past is None else past.visible                # (R, 1, T, S)
        if past is not None:
            k, v = past.add(k, v)                                       # 2 x (R, H, S, D)
        # Softmax of q k^T / sqrt(D). Without 1/sqrt(D) the scores grow with D and it saturates.
        y = F.scaled_dot_product_attention(q, k, v, visible, is_causal=visible is None)
        return self.c_proj(y.transpose(1, 2).reshape(B, T, C))

class MLP(nn.Module):
    def __init__(self, config):
        super().__init__()
        C = config.n_embd
        self.c_fc = Linear(C, 4 * C, std=C**-0.5)
        self.c_proj = Linear(4 * C, C, std=(2 * config.n_layer * C)**-0.5)

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

    def forward(self, x, past=None):
        x = x + self.attn(self.ln_1(x), past)
        return x + self.mlp(self.ln_2(x))

def waves(n_positions, n_channels):
    """Sines and cosines of wavelengths from 2 pi to 20,000 pi: (n_positions, n_channels)."""
    frequency = 10_000 ** -(torch.arange(0, n_channels, 2) / n_channels)
    angle = torch.arange(n_positions)[:, None] * frequency
    return torch.stack([angle.sin(), angle.cos()], dim=-1).flatten(1)[:, :n_channels]

class GPT(nn.Module):
    """GPT-2. `info` is what config.json holds besides the shape: role, data set, tokenizer, ..."""

    def __init__(self, config, info=None):
        super().__init__()
        self.config, self.info = config, info or {}
        self.wte = nn.Embedding(config.vocab_size, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_epsilon)
        # From scratch. GPT-2's own 0.02 is far too small for 128 channels. Positions begin as the
        # waves of Vaswani et al. (2017, section 3.5): with them "the token before me" is a
        # rotation, and the heads that copy numbers form sooner.
        nn.init.normal_(self.wte.weight, std=config.n_embd**-0.5)
        self.wpe.weight.data = waves(config.n_positions, config.n_embd) * config.n_embd**-0.5

    def forward(self, ids, where=None):
        """
        Logits (B, T, V) of ids (B, T); with a mask `where` (B, T) only those of its N true
        positions (N, V). The vocabulary product is a third of GPT-2's work, and in training most
        positions are context whose logits nobody reads.
        """
        position = torch.arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(position)                          # (B, T, C)
        for block in self.h:
            x = block(x)
        return self.head(x if where is None else x[where])

    def append(self, ids, cache, rows, counts):
        """
        Append the first counts[i] tokens of ids[i] (R, T) to some rows of a cache (a slice or a
        list). Returns the logits of the last ones (R, V).

        Two uses: some rows read a cue each, or all rows write one token each. Cues are padded on
        the right. The padding is stored beyond the end of its row, where no query of that row may
        look before other tokens have taken its place.
        """
        position, visible = cache.extend(rows, counts, ids.shape[1])    # (R, T), (R, 1, T, S)
        x = self.wte(ids) + self.wpe(position)                          # (R, T, C)
        for layer, block in enumerate(self.h):
            past = Past(cache.keys[layer], cache.values[layer], rows, position, visible)
            x = block(x, past)
        return self.head(x[torch.arange(len(x)), torch.as_tensor(counts) - 1])

    def head(self, x):
        """Logits (..., V) of the last block's output (..., C); the head is tied to wte."""
        return F.linear(self.ln_f(x), self.wte.weight)

    def n_params(self):
        return sum(p.numel() for p in self.parameters())

    # -------------------------------------------------------- files

    def save_pretrained(self, folder, dtype=torch.float32):
        """Write model.safetensors and config.json, each to a temporary name first."""
        folder = Path(folder)
        tensors = {name: t.to(dtype) for name, t in self.state_dict().items()}
        write_safetensors(folder / "model.safetensors", tensors)
        end = self.config.vocab_size - 1
        config = {"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2",
                  "activation_function": "gelu_new", "bos_token_id": end, "eos_token_id": end}
        config |= asdict(self.config) | self.info
        replace_file(folder / "config.json", json.dumps(config, indent=1).encode())

    @classmethod
    def from_pretrained(cls, name_or_folder):
        """A model from a Hugging Face GPT-2 folder, or a released size by name; in float32."""
        folder = Path(name_or_folder)
        if not folder.is_dir():
            folder = find_released(str(name_or_folder))
        model = cls(*read_config(folder / "config.json"))
        path = folder / "model.safetensors"
        model.load_tensors(read_safetensors(path), path)
        return model

    def load_tensors(self, tensors, path):
        """Fill the parameters from {name: tensor}. Missing, extra and misshapen ones are errors."""
        tensors = {name.removeprefix("transformer."): t for name, t in tensors.items()}
        for name in list(tensors):
            if name.endswith((".attn.bias", ".attn.masked_bias")):      # the mask, not a weight
                del tensors[name]
        head = tensors.pop("lm_head.weight", None)
        own = self.state_dict()
        if lacking := own.keys() - tensors.keys():
            raise SystemExit(f"{path} lacks {len(lacking)} tensors, such as {min(lacking)}")
        if extra := tensors.keys() - own.keys():
            raise SystemExit(f"{path} has {len(extra)} tensors that are not GPT-2's: {min(extra)}")
        for name, t in tensors.items():
            if t.shape != own[name].shape:
                raise SystemExit(f"{path}: {name} has shape {tuple(t.shape)}, "
                                 f"but config.json asks for {tuple(own[name].shape)}")
        if head is not None and not torch.equal(head, tensors["wte.weight"]):
            raise SystemExit(f"{path}: lm_head.weight differs from wte.weight, "
                             "but GPT-2's head is tied to its embedding")
        self.load_state_dict(tensors)

def pick_device(device, dtype):
    """(torch.device, dtype of the matrix products) of the flags --device and --dtype."""
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if device == "cuda" and "LOCAL_RANK" in os.environ:                 # torchrun: one GPU each
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(device)
    if dtype == "auto" and device.type == "cuda":
        dtype = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    dtypes = {"auto": torch.float32, "fp32": torch.float32, "bf16": torch.bfloat16,
              "fp16": torch.float16}
    return device, dtypes[dtype]

# ------------------------------------------------------------ the cache

class KVCache:
    """
    The keys and values of every token that has been read or written so far.

    keys, values  (layer, row, H, S, D), zeros at first: a NaN would get through any mask
    lengths       (row,) on the CPU: how many tokens each row holds

    Each row grows at its own pace. Nothing is padded on the left and nothing is read twice.
    """

    def __init__(self, config, n_rows, capacity=64, device=None, dtype=None):
        self.n_positions = config.n_positions
        S, D = min(capacity, config.n_positions), config.n_embd // config.n_head
        shape = (config.n_layer, n_rows, config.n_head, S, D)
        self.keys = torch.zeros(shape, device=device, dtype=dtype)
        self.values = torch.zeros(shape, device=device, dtype=dtype)
        self.lengths = torch.zeros(n_rows, dtype=torch.long)

    def extend(self, rows, counts, n_columns):
        """
        Make room for counts[i] more tokens in each of these rows. Returns the positions (R, T) of
        `n_columns` tokens each, and what they may see: key position <= query position,
        (R, 1, T, S) up to the longest row.
        """
        lengths, counts = self.lengths[rows], torch.as_tensor(counts)
        needed, capacity = int((lengths + counts).max()), self.keys.shape[3]
        assert needed <= self.n_positions, f"{needed} tokens, but {self.n_positions} positions"
        longest = min(int(lengths.max()) + n_columns, self.n_positions)
        if longest > capacity:
            more = min(max(longest, 2 * capacity), self.n_positions) - capacity
            self.keys = F.pad(self.keys, (0, 0, 0, more))
            self.values = F.pad(self.values, (0, 0, 0, more))
        position = (lengths[:, None] + torch.arange(n_columns)).clamp(max=self.n_positions - 1)
        position = position.to(self.keys.device)                        # clamped: of padding only
        self.lengths[rows] += counts
        visible = torch.arange(longest, device=position.device) <= position[:, None, :, None]
        return position, visible

    def drop(self, row):
        """A row that is done leaves. The last row moves into its place; no other is copied."""
        self.keys[:, row], self.values[:, row] = self.keys[:, -1], self.values[:, -1]
        self.keys, self.values = self.keys[:, :-1], self.values[:, :-1]
        self.lengths[row] = self.lengths[-1]
        self.lengths = self.lengths[:-1]

class Past(namedtuple("Past", "keys values rows position visible")):
    """What one layer remembers, keys and values (row, H, S, D), and which rows take part."""

    def add(self, k, v):
        """Store the new k and v (R, H, T, D). Returns all of these rows up to the longest one."""
        S = self.visible.shape[-1]
        row = torch.arange(len(self.keys), device=k.device)[self.rows, None]    # (R, 1)
        self.keys[row, :, self.position] = k.transpose(1, 2)
        self.values[row, :, self.position] = v.transpose(1, 2)
        return self.keys[self.rows, :, :S], self.values[self.rows, :, :S]

# ------------------------------------------------------------ safetensors and config.json

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

def read_safetensors(path):
    """
    {name: float32 tensor}. The format (https://github.com/huggingface/safetensors#format) is the
    header's length in 8 bytes, a JSON header {name: {dtype, shape, data_offsets}}, and the raw
    numbers without gaps. Buffers of other types (masks) are skipped. A file that does not add up
    ends the program with the reason.
    """
    path = Path(path)
    if not path.is_file():
        raise SystemExit(f"{path} does not exist. "
                         "A model is a folder with model.safetensors and config.json.")
    data = bytearray(path.read_bytes())
    try:
        (n_header,) = struct.unpack_from("<Q", data)
        if n_header > len(data) - 8:
            raise ValueError("the header is cut off")
        header = json.loads(data[8:8 + n_header])
        header.pop("__metadata__", None)
        body, tensors, end = memoryview(data)[8 + n_header:], {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, (start, end) = end, entry["data_offsets"]
            if start != begin or not start <= end <= len(body):
                raise ValueError(f"{name} is cut off or out of place")
            if entry["dtype"] in DTYPES:
                tensors[name] = read_tensor(body[start:end], entry["shape"], DTYPES[entry["dtype"]])
        if end != len(body):
            raise ValueError(f"{len(body) - end} bytes too many at the end")
        return tensors
    except (ValueError, KeyError, TypeError, AttributeError, struct.error, RuntimeError) as error:
        raise SystemExit(f"{path} is not a whole safetensors file: {error}. "
                         "Copy or download it again.") from None

def read_tensor(raw, shape, dtype):
    whole_numbers = all(type(side) is int and side >= 0 for side in shape)
    if not whole_numbers or math.prod(shape) * dtype.itemsize != len(raw):
        raise ValueError(f"{len(raw)} bytes for shape {shape} of {dtype}")
    t = torch.frombuffer(raw, dtype=dtype) if len(raw) else torch.empty(0)
    return t.reshape(shape).float()

def write_safetensors(path, tensors):
    header, blobs, offset = {"__metadata__": {"format": "pt"}}, [], 0
    names = {dtype: name for name, dtype in DTYPES.items()}
    for name, t in tensors.items():
        blob = t.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape),
                        "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)                                     # the numbers start aligned
    replace_file(path, struct.pack("<Q", len(head)), head, *blobs)

# What config.json may say besides the shape. Anything else would compute something else.
GPT2 = {"model_type": "gpt2", "activation_function": "gelu_new", "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False}

def read_config(path):
    """(GPTConfig, everything else that config.json says)."""
    if not path.is_file():
        raise SystemExit(f"{path} does not exist. "
                         "A model is a folder with model.safetensors and config.json.")
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        shape = {key: type(default)(info.pop(key, default))
                 for key, default in asdict(GPTConfig()).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise SystemExit(f"{path} is not the config of a GPT-2: {error}") from None
    for key, value in GPT2.items():
        if info.get(key, value) != value:
            raise SystemExit(f"{path} is not GPT-2's: {key} is {info[key]!r}, not {value!r}")
    config = GPTConfig(**shape)
    if min(shape.values()) <= 0 or config.n_embd % config.n_head:
        raise SystemExit(f"{path}: n_embd {config.n_embd} and n_head {config.n_head} "
                         "do not fit each other")
    for key in ("dtype", "torch_dtype"):                                # model.safetensors tells
        info.pop(key, None)
    return config, info

HUB = "https://huggingface.co/openai-community/{name}/resolve/main/model.safetensors"
CACHE = Path.home() / ".cache" / "socratic"

def find_released(name):
    """The folder of a released GPT-2, downloaded if it is not there."""
    released = [size for size in SIZES if size != "tiny"]
    if name not in released:
        raise SystemExit(f"{name} is neither a folder nor one of: {', '.join(released)}")
    folder = CACHE / name
    if not (folder / "model.safetensors").is_file():
        download(HUB.format(name=name), folder / "model.safetensors")
    config = {"model_type": "gpt2", "activation_function": "gelu_new"} | asdict(SIZES[name])
    replace_file(folder / "config.json", json.dumps(config, indent=1).encode())
    return folder

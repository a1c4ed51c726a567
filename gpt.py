"""
Who learns it? GPT-2 by hand: the model, its key-value cache, and its files.

    model = GPT.from_pretrained("gpt2")     # released weights (downloaded once), or a folder
    logits = model(ids)                     # (B, T) -> (B, T, V)

Reads and writes   <folder>/model.safetensors, config.json: the Hugging Face GPT-2 format

Shapes  B rows   T tokens   C channels   H heads   D = C // H   V vocabulary
        R rows of the cache that take part   S positions of the cache
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from textwrap import shorten

import torch
import torch.nn.functional as F
from torch import nn

from data import download, get_tokenizer, replace_file

@dataclass
class GPTConfig:    # the names are those of Hugging Face's config.json
    vocab_size: int = 50257
    n_positions: int = 1024
    n_embd: int = 768
    n_layer: int = 12
    n_head: int = 12
    layer_norm_epsilon: float = 1e-5

# Radford et al. (2019), table 2. Ours: tiny learns most within minutes; nano has half as many
# parameters, mini twice as many.
SIZES = {
    "nano": GPTConfig(vocab_size=2048, n_embd=96, n_layer=3, n_head=6),
    "tiny": GPTConfig(vocab_size=2048, n_embd=128, n_layer=4, n_head=8),
    "mini": GPTConfig(vocab_size=2048, n_embd=144, n_layer=8, n_head=9),
    "gpt2": GPTConfig(),
    "gpt2-medium": GPTConfig(n_embd=1024, n_layer=24, n_head=16),
    "gpt2-large": GPTConfig(n_embd=1280, n_layer=36, n_head=20),
    "gpt2-xl": GPTConfig(n_embd=1600, n_layer=48, n_head=25),
}
FROM_SCRATCH = ("nano", "tiny", "mini")

# cuDNN compiles its attention anew for every length. On an H100 writing took 7 times as long.
torch.backends.cuda.enable_cudnn_sdp(False)

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
        # Starts small, since every layer adds to the residual stream twice and variances add up.
        self.c_proj = Linear(C, C, std=(2 * config.n_layer * C)**-0.5)

    def forward(self, x, cache=None, layer=None):
        B, T, C = x.shape
        qkv = self.c_attn(x).view(B, T, 3, self.n_head, C // self.n_head)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)                            # 3 x (B, H, T, D)
        # The cache gives all its keys and values, 2 x (R, H, S, D), and visible, (R, 1, T, S).
        k, v, visible = cache.store(layer, k, v) if cache else (k, v, None)
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

    def forward(self, x, cache=None, layer=None):
        x = x + self.attn(self.ln_1(x), cache, layer)
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
        # GPT-2's own 0.02 is far too small for 128 channels. Positions begin as waves (Vaswani et
        # al., 2017, 3.5): with them "the token before me" is a rotation, easy to look for.
        nn.init.normal_(self.wte.weight, std=config.n_embd**-0.5)
        self.wpe.weight.data = waves(config.n_positions, config.n_embd) * config.n_embd**-0.5

    def forward(self, ids, wanted=None):
        """
        Logits (B, T, V) of ids (B, T); with a mask `wanted` (B, T) only those of its N true
        positions (N, V). In training many are context, and logits are a third of GPT-2's work.
        """
        position = torch.arange(ids.shape[1], device=ids.device)
        x = self.wte(ids) + self.wpe(position)                          # (B, T, C)
        for block in self.h:
            x = block(x)
        return self.head(x if wanted is None else x[wanted])

    def append(self, ids, cache, rows, counts):
        """
        Append the first counts[i] tokens of ids[i] (R, T) to some rows of a cache (a slice or a
        list). Returns the logits of the last ones (R, V).

        Two uses: some rows read a cue each, padded on the right, or all rows write one token each.
        The padding lies beyond the end of its row, where no query looks before tokens replace it.
        """
        position = cache.extend(rows, counts, ids.shape[1])             # (R, T)
        position = position.clamp(max=self.config.n_positions - 1)      # only padding lies beyond
        x = self.wte(ids) + self.wpe(position)                          # (R, T, C)
        for layer, block in enumerate(self.h):
            x = block(x, cache, layer)
        return self.head(x[torch.arange(len(x)), torch.as_tensor(counts) - 1])

    def head(self, x):
        """Logits (..., V) of the last block's output (..., C); the head is tied to wte."""
        return F.linear(self.ln_f(x), self.wte.weight)

    def n_params(self):
        return sum(p.numel() for p in self.parameters())

    def is_from_scratch(self):
        """Whether it began here from random numbers. Released weights are trained more gently."""
        return self.info.get("tokenizer") == "tiny"

    def get_tokenizer(self):
        """The tokenizer that its config.json names, else GPT-2's."""
        tokenizer = get_tokenizer(self.info.get("tokenizer", "gpt2"))
        if self.config.vocab_size < tokenizer.n_vocab:
            raise SystemExit(f"A model with {self.config.vocab_size:,} tokens does not fit the "
                             f"tokenizer {tokenizer.name} with {tokenizer.n_vocab:,}.")
        return tokenizer

    def save_pretrained(self, folder, dtype=torch.float32):
        """Write model.safetensors and config.json, each to a temporary name first."""
        tensors = {name: t.to(dtype) for name, t in self.state_dict().items()}
        write_safetensors(Path(folder) / "model.safetensors", tensors)
        write_config(Path(folder) / "config.json", self.config, self.info)

    @classmethod
    def from_pretrained(cls, name_or_folder):
        """A model from a Hugging Face GPT-2 folder, or a released size by name; in float32."""
        folder = Path(name_or_folder)
        if not folder.is_dir():
            folder = find_released(str(name_or_folder))
        with torch.device("meta"):                                      # shapes without memory
            model = cls(*read_config(folder / "config.json"))
        path, tensors = folder / "model.safetensors", {}
        for name, t in read_safetensors(path).items():
            if not name.endswith((".attn.bias", ".attn.masked_bias")):  # buffers, not weights
                tensors[name.removeprefix("transformer.")] = t
        lm_head = tensors.pop("lm_head.weight", tensors.get("wte.weight"))
        try:
            model.load_state_dict(tensors, assign=True)
        except RuntimeError as error:                                   # missing, extra, misshapen
            raise SystemExit(f"{path} and config.json: {shorten(str(error), 300)}") from None
        if not torch.equal(lm_head, model.wte.weight):
            raise SystemExit(f"{path}: lm_head.weight is not tied to wte.weight, as GPT-2's is")
        return model

# ------------------------------------------------------------ the cache

class KVCache:
    """
    The keys and values of every token that has been read or written so far.

    keys, values  (layer, row, H, S, D), zeros at first: a NaN would get through any mask
    lengths       (row,) on the CPU: how many tokens each row holds

    Each row grows at its own pace. Nothing is padded on the left and nothing is read twice. For
    new tokens `extend` is called once, then `store` once in every layer.
    """

    def __init__(self, config, n_rows, capacity=64, device=None, dtype=None):
        self.n_positions = config.n_positions
        D = config.n_embd // config.n_head
        shape = (2, config.n_layer, n_rows, config.n_head, capacity, D)
        self.keys, self.values = torch.zeros(shape, device=device, dtype=dtype)    # one each
        self.lengths = torch.zeros(n_rows, dtype=torch.long)

    def extend(self, rows, counts, n_columns):
        """
        Make room for counts[i] more tokens in each of these rows. Fixes and returns their positions
        (R, T); fixes what they may see (R, 1, T, S): key position <= query position.
        """
        lengths, counts = self.lengths[rows], torch.as_tensor(counts)
        needed, longest = int((lengths + counts).max()), int(lengths.max()) + n_columns
        assert needed <= self.n_positions, f"{needed} tokens, but {self.n_positions} positions"
        if longest > self.keys.shape[3]:    # it becomes more than twice as long
            self.keys = F.pad(self.keys, (0, 0, 0, longest))
            self.values = F.pad(self.values, (0, 0, 0, longest))
        position = (lengths[:, None] + torch.arange(n_columns)).to(self.keys.device)
        visible = torch.arange(longest, device=position.device) <= position[:, None, :, None]
        self.rows, self.position, self.visible = rows, position, visible
        self.lengths[rows] += counts
        return position

    def store(self, layer, k, v):
        """Add k, v (R, H, T, D) of a layer. Returns all k, v (R, H, S, D) and what is visible."""
        keys, values, S = self.keys[layer], self.values[layer], self.visible.shape[-1]
        row = torch.arange(len(keys), device=k.device)[self.rows, None]             # (R, 1)
        keys[row, :, self.position] = k.transpose(1, 2)                             # (R, T, H, D)
        values[row, :, self.position] = v.transpose(1, 2)
        return keys[self.rows, :, :S], values[self.rows, :, :S], self.visible

    def drop(self, row):
        """Remove a row that is done. The last row moves into its place; no other is copied."""
        self.keys[:, row], self.values[:, row] = self.keys[:, -1], self.values[:, -1]
        self.keys, self.values = self.keys[:, :-1], self.values[:, :-1]
        self.lengths[row] = self.lengths[-1]
        self.lengths = self.lengths[:-1]

# ------------------------------------------------------------ safetensors and config.json

DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BROKEN = (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RuntimeError)

def read_safetensors(path):
    """
    {name: float32 tensor}. The format (https://github.com/huggingface/safetensors#format) is the
    header's length in 8 bytes, a JSON header {name: {dtype, shape, data_offsets}}, and the raw
    numbers without gaps; all of that is checked. Buffers of other types (masks) are skipped.
    """
    try:
        data = bytearray(path.read_bytes())    # torch wants memory that may be written
        n_header = int.from_bytes(data[:8], "little")
        header = json.loads(data[8:8 + n_header])
        header.pop("__metadata__", None)
        body, tensors, n_bytes = memoryview(data)[8 + n_header:], {}, 0
        for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            start, end = entry["data_offsets"]
            if start != n_bytes:
                raise ValueError(f"there is a gap or an overlap before {name}")
            n_bytes = end
            if entry["dtype"] in DTYPES:
                t = torch.frombuffer(body[start:end], dtype=DTYPES[entry["dtype"]])
                t = t.reshape(entry["shape"])
                if list(t.shape) != entry["shape"]:    # -1 means "the rest" to torch
                    raise ValueError(f"{name} cannot have the shape {entry['shape']}")
                tensors[name] = t.float()
        if n_bytes != len(data) - 8 - n_header:
            raise ValueError("the tensors do not fill the file")
        return tensors
    except BROKEN as error:    # the file is missing or damaged
        raise SystemExit(f"{path} cannot be read as a safetensors file: {error}.\n"
                         "Copy, download or train it again; it must be one file.") from None

def write_safetensors(path, tensors):
    names = {dtype: name for name, dtype in DTYPES.items()}
    header, chunks, offset = {"__metadata__": {"format": "pt"}}, [], 0
    for name, t in tensors.items():
        chunks.append(t.cpu().contiguous().view(torch.uint8).numpy())
        begin, offset = offset, offset + chunks[-1].nbytes
        header[name] = {"dtype": names[t.dtype], "shape": list(t.shape),
                        "data_offsets": [begin, offset]}
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)                                     # the numbers start aligned
    replace_file(path, len(head).to_bytes(8, "little"), head, *chunks)

# What config.json says besides the shape. A model with other values computes something else.
GPT2 = {"model_type": "gpt2", "activation_function": "gelu_new", "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False}

def read_config(path):
    """(GPTConfig, everything else that config.json says)."""
    try:
        info = json.loads(path.read_bytes())
        config = GPTConfig(**{key: type(default)(info.pop(key, default))
                              for key, default in asdict(GPTConfig()).items()})
    except BROKEN as error:
        raise SystemExit(f"{path} cannot be read as the config of a GPT-2: {error}") from None
    for key, value in GPT2.items():
        if info.get(key, value) != value:
            raise SystemExit(f"{path} is not GPT-2's: {key} is {info[key]!r}, not {value!r}")
    sizes = asdict(config).values()
    if not 0 < min(sizes) <= max(sizes) < 10**6 or config.n_embd % config.n_head:
        raise SystemExit(f"{path} does not describe a GPT-2: {config}")
    return config, info

def write_config(path, config, info):
    end = config.vocab_size - 1
    fixed = {"architectures": ["GPT2LMHeadModel"], "bos_token_id": end, "eos_token_id": end}
    replace_file(path, json.dumps(GPT2 | fixed | asdict(config) | info, indent=1).encode())

HUB = "https://huggingface.co/openai-community/{name}/resolve/main/model.safetensors"
def find_released(name):
    """The folder of a released GPT-2, downloaded if it is not there."""
    released = [size for size in SIZES if size not in FROM_SCRATCH]
    if name not in released:
        raise SystemExit(f"{name} is neither a folder nor one of: {', '.join(released)}")
    folder = Path(os.path.expanduser("~/.cache/socratic")) / name
    if not (folder / "model.safetensors").is_file():
        download(HUB.format(name=name), folder / "model.safetensors")
    if not (folder / "config.json").is_file():
        write_config(folder / "config.json", SIZES[name], {})
    return folder

# ------------------------------------------------------------ the machine

def pick_device(device, dtype):
    """(torch.device, dtype of the matrix products) of the flags --device and --dtype."""
    if device == "auto":
        has_mps = torch.backends.mps.is_available()
        device = "cuda" if torch.cuda.is_available() else "mps" if has_mps else "cpu"
    if device == "cuda" and torch.distributed.is_torchelastic_launched():    # torchrun: one each
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise SystemExit(f"--device {device}: {shorten(str(error), 200)}") from None
    if dtype == "auto" and device.startswith("cuda"):
        dtype = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    dtypes = {"bf16": torch.bfloat16, "fp16": torch.float16}
    return torch.device(device), dtypes.get(dtype, torch.float32)

def limit_threads(model):
    """A student from scratch runs on one thread: its products are too small to be shared."""
    if model.is_from_scratch() and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)

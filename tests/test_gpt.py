"""
gpt.py against a second GPT-2 in numpy, its cache against no cache, its files against files built by hand.
"""

import json
import math
import random
import struct
import threading
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from reference import reference_logits
from toy import TOY, numpy_weights, random_ids, toy_model

import gpt
from gpt import GPT, GPTConfig, KVCache
from train import summed_loss

def differ(a, b):
    return (a - b).abs().max().item()

# ---------------------------------------------------------------- the model

def test_logits_equal_the_numpy_reference():
    model, ids = toy_model(), random_ids(3, 11)
    sizes = [*ids.shape, TOY.n_embd, TOY.n_head, TOY.n_embd // TOY.n_head, TOY.vocab_size, TOY.n_layer]
    assert len(set(sizes)) == len(sizes), "two equal sizes could hide a transposed axis"
    expected = reference_logits(numpy_weights(model), TOY, ids.numpy())
    assert expected.shape == (3, 11, 61)
    np.testing.assert_allclose(model(ids).detach().numpy(), expected, rtol=0, atol=1e-10)

def test_a_later_token_cannot_change_an_earlier_logit():
    model, ids = toy_model(), random_ids(2, 9)
    before = model(ids)
    for t in range(9):
        changed = ids.clone()
        changed[:, t] = (ids[:, t] + 1) % TOY.vocab_size
        after = model(changed)
        assert torch.equal(after[:, :t], before[:, :t])
        assert (after[:, t:] != before[:, t:]).any(dim=-1).all(), "every later position reads the changed token"

def textbook_loss(logits, targets):
    """The sum of -log softmax of every learned target, one after another."""
    loss = 0
    for b, t in (targets >= 0).nonzero().tolist():
        loss = loss - (logits[b, t] - logits[b, t].logsumexp(0))[targets[b, t]]
    return loss

def test_the_loss_and_its_gradients_are_those_of_the_full_logits():
    model, ids, targets = toy_model(), random_ids(3, 11), random_ids(3, 11, seed=1)
    targets[0, :4] = targets[2, 5:] = -100
    targets[1] = -100
    targets[0, 7] = 0                                                   # token 0 is learned like any other

    loss = summed_loss(model, ids, targets)
    loss.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    expected = textbook_loss(model(ids), targets)
    expected.backward()

    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)      # the loss itself is summed in float32
    for name, p in model.named_parameters():
        assert p.grad.abs().max() > 0, name
        torch.testing.assert_close(gradients[name], p.grad, rtol=0, atol=1e-5 * p.grad.abs().max().item(), msg=name)

def test_nothing_learned_is_a_loss_of_zero_without_nan():
    model, ids = toy_model(), random_ids(2, 5)
    loss = summed_loss(model, ids, torch.full((2, 5), -100))
    loss.backward()
    assert loss.item() == 0
    assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())

def test_the_released_sizes_have_their_published_numbers_of_parameters():
    published = {"gpt2": 124_439_808, "gpt2-medium": 354_823_168, "gpt2-large": 774_030_080, "gpt2-xl": 1_557_611_200}
    with torch.device("meta"):                                          # shapes without memory
        assert {name: GPT(gpt.SIZES[name]).n_params() for name in published} == published

def test_a_fresh_model_knows_nothing_at_any_depth():
    """Its loss is near ln V; the residual stream, to which every layer adds, is as wide with 16 layers as with 1."""
    widths = []
    for n_layer in (1, 16):
        config = GPTConfig(vocab_size=500, n_positions=64, n_embd=96, n_layer=n_layer, n_head=4)
        torch.manual_seed(0)
        model = GPT(config)
        model.ln_f.register_forward_pre_hook(lambda module, inputs: widths.append(inputs[0].std().item()))
        ids, targets = random_ids(4, 64, config=config), random_ids(4, 64, seed=1, config=config)
        assert math.log(500) - 0.1 < summed_loss(model, ids, targets).item() / targets.numel() < math.log(500) + 1
    assert widths[1] == pytest.approx(widths[0], rel=0.3)

# ---------------------------------------------------------------- the cache

class Rows:
    """A cache and, beside it, the plain token lists that it should stand for."""

    def __init__(self, model, n_rows, n_positions=3):
        self.model, self.tokens = model, [[] for _ in range(n_rows)]
        self.cache = KVCache(model.config, n_rows, n_positions, dtype=model.wte.weight.dtype)

    @torch.no_grad()
    def append(self, rows, new, garbage=0):
        """Append new[i] to the rows (a slice or a list). Returns the last logits with the cache and without, both (R, V)."""
        chosen = list(range(len(self.tokens)))[rows] if isinstance(rows, slice) else rows
        width = max(map(len, new)) + (rows != slice(None))              # the padding must never be looked at
        ids = torch.tensor([tokens + [garbage] * (width - len(tokens)) for tokens in new])
        for row, tokens in zip(chosen, new):
            self.tokens[row] = self.tokens[row] + tokens
        cached = self.model.append(ids, self.cache, rows, [len(tokens) for tokens in new])
        plain = torch.stack([self.model(torch.tensor([self.tokens[row]]))[0, -1] for row in chosen])
        assert self.cache.lengths.tolist() == [len(tokens) for tokens in self.tokens]
        return cached, plain

    def drop(self, row):
        self.cache.drop(row)
        self.tokens[row] = self.tokens[-1]
        self.tokens.pop()

@pytest.mark.parametrize("seed", range(8))
def test_any_sequence_of_reads_writes_and_drops_equals_no_cache(seed):
    draw = random.Random(seed)
    rows = Rows(toy_model(), 6, n_positions=draw.choice([1, 8, 64, 500]))

    def some(*counts):
        return [[draw.randrange(TOY.vocab_size) for _ in range(n)] for n in counts]

    rows.append(draw.sample(range(6), 6), some(*[draw.choice([1, 2, 37, 64, 129, 190]) for _ in range(6)]), garbage=60)
    for _ in range(14):
        n_rows = len(rows.tokens)
        if draw.random() < 0.2 and n_rows > 1:
            rows.drop(draw.randrange(n_rows))
            continue
        chosen = draw.sample(range(n_rows), draw.randint(1, n_rows)) if draw.random() < 0.5 else slice(None)
        room = [TOY.n_positions - len(tokens) for tokens in rows.tokens]
        counts = [1] * n_rows if chosen == slice(None) else [min(room[row], draw.randint(1, 30)) for row in chosen]
        if min(room) > 0:
            cached, plain = rows.append(chosen, some(*counts), garbage=7)
            assert differ(cached, plain) <= 1e-10

def test_the_cache_can_be_full_to_the_last_position_and_no_further():
    model, ids = toy_model(), random_ids(2, TOY.n_positions)
    cache = KVCache(TOY, 2, dtype=torch.float64)
    with torch.no_grad():
        logits = model.append(ids, cache, [0, 1], [TOY.n_positions, 4])
        assert differ(logits[0], model(ids)[0, -1]) <= 1e-10
        with pytest.raises(AssertionError, match="231 tokens.* 230"):
            model.append(ids[:, :1], cache, slice(None), [1, 1])
        # A refused call leaves the cache as it was: the other row can go on. Its padding ends where the positions do.
        assert differ(model.append(ids[1:, 4:], cache, [1], [1])[0], model(ids[:, :5])[1, -1]) <= 1e-10
        rest = model.append(ids[1:, 5:], cache, [1], [TOY.n_positions - 5])
        assert differ(rest[0], model(ids)[1, -1]) <= 1e-10
    assert cache.lengths.tolist() == [230, 230]

def test_nothing_becomes_nan_and_a_row_that_takes_no_part_stays_empty():
    rows = Rows(toy_model(), 4, n_positions=2)
    for some, counts in (([0, 1], (9, 1)), ([3], (2,)), ([1, 0], (7, 1))):          # row 2 never takes part
        cached, _ = rows.append(some, [list(range(1, n + 1)) for n in counts])
        assert torch.isfinite(cached).all()
    assert rows.cache.lengths.tolist() == [10, 8, 0, 2]
    assert not rows.cache.keys[:, 2].any() and not rows.cache.values[:, 2].any()

# ---------------------------------------------------------------- files, by a reader and a writer of the test's own

def float_bytes(array, dtype):
    """The raw little-endian bytes of a float array as F32, F16 or BF16 (the upper half of a float32)."""
    single = np.asarray(array).astype("<f4")
    if dtype == "BF16":
        return (single.view("<u4") >> 16).astype("<u2").tobytes()
    return single.astype({"F32": "<f4", "F16": "<f2"}[dtype]).tobytes()

def header_and_body(entries):
    """{name: (dtype, shape, bytes)} -> (header dict, body bytes), in order and without gaps."""
    header, body = {}, b""
    for name, (dtype, shape, raw) in entries.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [len(body), len(body) + len(raw)]}
        body += raw
    return header, body

def safetensors(header, body):
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + body

def entries_of(model, prefix="", dtype="F32"):
    return {prefix + k: (dtype, v.shape, float_bytes(v, dtype)) for k, v in numpy_weights(model).items()}

def write_folder(folder, entries, **changes):
    folder.mkdir(exist_ok=True)
    (folder / "model.safetensors").write_bytes(safetensors(*header_and_body(entries)))
    config = {"model_type": "gpt2", "activation_function": "gelu_new"} | asdict(TOY) | changes
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder

def assert_refused(folder, *words):
    with pytest.raises(SystemExit) as refusal:
        GPT.from_pretrained(folder)
    for word in (str(folder), *words):
        assert word in str(refusal.value)

@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_save_then_load_gives_the_same_model(tmp_path, dtype):
    assert not set(asdict(TOY).items()) & set(asdict(GPTConfig()).items()), "a default value could hide a lost field"
    info = {"role": "solver", "dataset": "demo", "made": {"steps": 7, "note": "é"}, "eos_token_id": 3}
    model = toy_model(dtype=torch.float32, info=info)
    for _ in range(2):                                                  # the second time over the first
        model.save_pretrained(tmp_path / "new" / "student", dtype)
    loaded = GPT.from_pretrained(tmp_path / "new" / "student")
    assert loaded.config == TOY
    assert info.items() <= loaded.info.items()
    for (name, p), q in zip(model.named_parameters(), loaded.parameters(), strict=True):
        assert q.dtype == torch.float32 and torch.equal(q, p.to(dtype).float()), name
    assert sorted(p.name for p in (tmp_path / "new" / "student").iterdir()) == ["config.json", "model.safetensors"]

def test_a_saved_file_follows_the_format_to_the_letter(tmp_path):
    model = toy_model(dtype=torch.float32)
    model.save_pretrained(tmp_path)
    data = (tmp_path / "model.safetensors").read_bytes()
    (n,) = struct.unpack("<Q", data[:8])
    assert data[8:9] == b"{" and n % 8 == 0
    header, body, end = json.loads(data[8:8 + n]), data[8 + n:], 0
    assert header.pop("__metadata__") == {"format": "pt"}               # what transformers asks for
    for name, array in numpy_weights(model).items():
        entry = header.pop(name)
        begin, after = entry["data_offsets"]
        assert begin == end and entry["dtype"] == "F32" and entry["shape"] == list(array.shape)
        np.testing.assert_array_equal(np.frombuffer(body[begin:after], "<f4").reshape(array.shape), array)
        end = after
    assert not header and end == len(body)
    config = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    assert asdict(TOY).items() <= config.items()
    assert (config["model_type"], config["activation_function"]) == ("gpt2", "gelu_new")
    assert config["architectures"] == ["GPT2LMHeadModel"]

def with_masks(model, prefix, mask):
    """The layout of the released files: two constant buffers in every layer."""
    entries, side = entries_of(model, prefix), TOY.n_positions
    triangle = np.tril(np.ones((side, side)))
    raw = float_bytes(triangle, "F32") if mask == "F32" else triangle.astype("u1").tobytes()
    for layer in range(TOY.n_layer):
        entries[f"{prefix}h.{layer}.attn.bias"] = (mask, (1, 1, side, side), raw)
        entries[f"{prefix}h.{layer}.attn.masked_bias"] = ("F32", (), float_bytes(-1e4, "F32"))
    return entries

def with_head(model, prefix=""):
    entries = entries_of(model, prefix)
    return entries | {"lm_head.weight": entries[prefix + "wte.weight"]}

@pytest.mark.parametrize("layout, build", {
    "bare": lambda m: entries_of(m),
    "prefix": lambda m: entries_of(m, "transformer."),
    "another order": lambda m: dict(reversed(entries_of(m).items())),
    "F32 masks": lambda m: with_masks(m, "", "F32"),
    "BOOL masks": lambda m: with_masks(m, "", "BOOL"),
    "prefix and U8 masks": lambda m: with_masks(m, "transformer.", "U8"),
    "tied head": lambda m: with_head(m),
    "prefix and tied head": lambda m: with_head(m, "transformer."),
    "F16": lambda m: entries_of(m, dtype="F16"),
    "BF16": lambda m: entries_of(m, dtype="BF16"),
}.items(), ids=lambda x: x if isinstance(x, str) else "")
def test_a_file_in_the_released_layout_loads_as_float32(tmp_path, layout, build):
    model = toy_model(dtype=torch.float32)
    loaded = GPT.from_pretrained(write_folder(tmp_path, build(model)))
    error = {"F16": 2**-10, "BF16": 2**-7}.get(layout, 0)
    for (name, p), q in zip(model.named_parameters(), loaded.parameters(), strict=True):
        torch.testing.assert_close(q, p, rtol=error, atol=1e-7 * (error > 0), msg=name)

def test_a_file_that_is_not_this_gpt2_is_refused_by_name(tmp_path):
    model = toy_model(dtype=torch.float32)

    def refused(change, *words):
        entries = entries_of(model)
        change(entries)
        assert_refused(write_folder(tmp_path, entries), *words)

    refused(lambda e: e.pop("h.1.mlp.c_fc.bias"), "Missing", "h.1.mlp.c_fc.bias")
    refused(lambda e: e.update({"h.2.ln_1.bias": e["h.1.ln_1.bias"]}), "Unexpected", "h.2.ln_1.bias")
    refused(lambda e: e.update({"score.weight": e["wte.weight"]}), "score.weight")
    refused(lambda e: e.pop("wte.weight"), "Missing", "wte.weight")
    # As many numbers, but transposed: what a file with Linear weights (out, in) would hold.
    dtype, (n_in, n_out), raw = entries_of(model)["h.0.attn.c_attn.weight"]
    refused(lambda e: e.update({"h.0.attn.c_attn.weight": (dtype, (n_out, n_in), raw)}),
            "h.0.attn.c_attn.weight", "[60, 20]", "[20, 60]")
    refused(lambda e: e.update({"wpe.weight": (dtype, (2,), bytes(8))}), "wpe.weight", "[230, 20]")
    untied = numpy_weights(model)["wte.weight"].copy()
    untied[60, 19] += 1
    refused(lambda e: e.update({"lm_head.weight": ("F32", untied.shape, float_bytes(untied, "F32"))}),
            "lm_head.weight", "tied")
    refused(lambda e: e.update({"lm_head.weight": (dtype, (2,), bytes(8))}), "lm_head.weight")
    refused(lambda e: e.update({"wte.weight": ("F64", untied.shape, untied.tobytes())}), "wte.weight")

def read_or_refuse(path, data):
    """The tensors of a file with these bytes, or None if it is refused; any other exception is the test's failure."""
    path.unlink(missing_ok=True)                                        # to overwrite a file is 50 times slower
    path.write_bytes(data)
    try:
        tensors = gpt.read_safetensors(path)
    except SystemExit as refusal:
        assert f"{path} cannot be read as a safetensors file" in str(refusal)
        return None
    assert all(t.dtype == torch.float32 for t in tensors.values())
    assert sum(t.numel() for t in tensors.values()) <= len(data), "more numbers than bytes"
    return tensors

def test_a_file_cut_anywhere_is_refused(tmp_path):
    whole = safetensors(*header_and_body(entries_of(toy_model())))
    for offset in [*range(300), *random.Random(0).sample(range(300, len(whole)), 100), len(whole) - 1]:
        assert read_or_refuse(tmp_path / "x", whole[:offset]) is None, offset
    assert read_or_refuse(tmp_path / "x", whole + b"\0") is None
    assert len(read_or_refuse(tmp_path / "x", whole)) == 28

def test_a_file_with_any_altered_header_byte_is_refused_or_read(tmp_path):
    values = [1, 2, 3, 4, 5, 6]
    header, body = header_and_body({
        "single": ("F32", (2, 3), float_bytes(values, "F32")),
        "mask": ("U8", (3,), b"\1\0\1"),
        "half": ("BF16", (1, 6), float_bytes(values, "BF16"))})
    whole = safetensors({"__metadata__": {"format": "pt"}} | header, body)
    tensors = read_or_refuse(tmp_path / "x", whole)
    assert {k: t.flatten().tolist() for k, t in tensors.items()} == {"single": values, "half": values}
    n_read = 0
    for i in range(len(whole) - len(body)):
        for byte in b'\0\x80\xff 029-.,:e]}"\\F' + bytes([whole[i] ^ 1]):
            altered = bytearray(whole)
            altered[i] = byte
            n_read += read_or_refuse(tmp_path / "x", altered) is not None
    assert n_read > 100, "a changed letter of a name still reads"

ONE = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}

@pytest.mark.parametrize("header", [
    [], 1, None, "x", {"a": 1}, {"a": None}, {"a": []}, {"a": {}}, {"a": "data_offsets"},
    *({"a": ONE | {"data_offsets": offsets}} for offsets in (
        None, [], [0], [0, 8, 8], [8, 0], [0, 9], [4, 8], [0, 7], [-8, 0], [0, 1e400], [0, float("nan")], [0, 10**400],
        ["0", "8"], "08", [0, None], [0.0, 8.0], [[0], [8]], {"0": 0, "8": 8}, {"0": 8})),
    *({"a": ONE | {"shape": shape}} for shape in (
        None, "2", "", {}, {"2": 2}, [3], [1], [2.0], [True, 2], ["2"], [None], [[2]], -1, [-1], [-1, 1], [1, -1], [-1, -2], [2**62, 2**62],
        [2, 0], [10**30], [])),
    *({"a": ONE | {"dtype": dtype}} for dtype in (None, 1, [], {}, "f32", "F16", "F64")),
    {"a": ONE, "b": ONE},
    {"a": ONE, "b": ONE | {"data_offsets": [4, 8], "shape": [1]}},
    {"a": ONE | {"data_offsets": [0, 4], "shape": [1]}},
    {"a": ONE | {"data_offsets": [0, 4], "shape": [1]}, "b": ONE | {"data_offsets": [0, 4], "shape": [1]}},    # as many bytes
    {"a": {"dtype": "F32", "shape": [0, 2**63], "data_offsets": [0, 0]}, "b": ONE},
    {"a": {"dtype": "F32", "shape": [2**62, 2**62, 0], "data_offsets": [0, 0]}, "b": ONE},
    {"a": {"dtype": "F32", "shape": [0, -1], "data_offsets": [0, 0]}, "b": ONE},
], ids=lambda header: str(header)[:70])
def test_a_header_that_does_not_add_up_is_refused(tmp_path, header):
    tensors = read_or_refuse(tmp_path / "x", safetensors(header, bytes(8)))
    # A buffer of another type is skipped; only from_pretrained knows which names must be there.
    assert tensors is None or tensors == {} and header["a"]["dtype"] in (None, 1, "f32", "F64")

@pytest.mark.parametrize("shape", [[32, -1], [-1, 4], [-1], -1])
def test_a_shape_that_leaves_a_size_open_is_refused(tmp_path, shape):
    """A guard against a past fault: to torch, -1 means "whatever is left"."""
    header = {"a": {"dtype": "F32", "shape": shape, "data_offsets": [0, 512]}}
    assert read_or_refuse(tmp_path / "x", safetensors(header, bytes(512))) is None
    header["a"]["shape"] = [32, 4]
    assert read_or_refuse(tmp_path / "x", safetensors(header, bytes(512)))["a"].shape == (32, 4)

@pytest.mark.parametrize("head", [
    b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b"\xff\xfe{}", b"{} x", b'{"a": {"shape": NaN}}', b"",
    b'{"\\ud800": 1}'])
def test_a_header_that_is_not_json_is_refused(tmp_path, head):
    assert read_or_refuse(tmp_path / "x", struct.pack("<Q", len(head)) + head + bytes(8)) is None

@pytest.mark.parametrize("extra", [1, 2**20, 2**63 - 200, 2**63, 2**64 - 200])
def test_a_header_longer_than_the_file_is_refused(tmp_path, extra):
    for header in ({"a": ONE}, {}):
        data = safetensors(header, b"")
        assert read_or_refuse(tmp_path / "x", struct.pack("<Q", len(data) - 8 + extra) + data[8:]) is None

def test_the_header_may_name_tensors_in_any_order_and_a_tensor_may_be_a_single_number(tmp_path):
    values = {"b": 1, "c": 2, "a": 3}
    header, body = header_and_body({name: ("F32", (), float_bytes(v, "F32")) for name, v in values.items()})
    tensors = read_or_refuse(tmp_path / "x", safetensors(dict(sorted(header.items())), body))
    assert {name: t.item() for name, t in tensors.items()} == values

@pytest.mark.parametrize("text, words", [
    (None, ["config.json", "No such file"]),
    *((text, ["config.json"]) for text in ("", "{", "[]", "7", "null", "\ud800", "[" * 100_000)),
    ({"model_type": "llama"}, ["config.json", "llama"]),
    ({"activation_function": "gelu"}, ["config.json", "'gelu'", "gelu_new"]),
    ({"activation_function": None}, ["config.json"]),
    ({"n_head": 3}, ["config.json", "n_embd=20", "n_head=3"]),
    *(({name: value}, ["config.json"]) for name, value in [
        ("n_head", 0), ("n_embd", -20), ("n_embd", None), ("n_embd", [20]), ("n_layer", "two"), ("n_layer", 1e400),
        ("vocab_size", float("nan")), ("n_positions", 0), ("layer_norm_epsilon", "small"), ("layer_norm_epsilon", 0)]),
    # These change what a model with the same tensors computes: loaded as a plain GPT-2 it would be silently wrong.
    ({"scale_attn_by_inverse_layer_idx": True}, ["config.json", "scale_attn_by_inverse_layer_idx"]),
    ({"scale_attn_weights": False}, ["config.json", "scale_attn_weights"]),
], ids=lambda x: str(x)[:40])
def test_a_config_that_is_not_gpt2s_is_refused(tmp_path, text, words):
    write_folder(tmp_path, entries_of(toy_model()), **(text if isinstance(text, dict) else {}))
    if text is None:
        (tmp_path / "config.json").unlink()
    elif isinstance(text, str):
        (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert_refused(tmp_path, *words)

def test_a_config_of_another_size_is_refused(tmp_path):
    for change, word in [({"n_layer": 1}, "h.1."), ({"n_layer": 3}, "h.2."), ({"n_embd": 24}, "[61, 24]"),
                         ({"n_positions": 229}, "wpe.weight"), ({"vocab_size": 62}, "wte.weight")]:
        assert_refused(write_folder(tmp_path, entries_of(toy_model()), **change), word)

def test_a_folder_without_weights_or_an_unknown_name_is_refused(tmp_path):
    write_folder(tmp_path, entries_of(toy_model()))
    (tmp_path / "model.safetensors").unlink()
    assert_refused(tmp_path, "model.safetensors", "No such file")
    for name in ("gpt3", str(tmp_path / "nowhere"), "tiny"):
        with pytest.raises(SystemExit, match="neither a folder nor one of: gpt2, gpt2-medium, gpt2-large, gpt2-xl"):
            GPT.from_pretrained(name)

# ---------------------------------------------------------------- downloads, from a hub of the test's own

class Hub(BaseHTTPRequestHandler):
    """Sends /toy/model.safetensors on to its storage, like the real one, and breaks off where it is told to."""
    def do_GET(self):
        hub = self.server
        hub.asked.append(self.path)
        self.send_response({"/toy/model.safetensors": 302, "/storage": 200}.get(self.path, 404))
        self.send_header("Location", "/storage")
        self.send_header("Content-Length", str(len(hub.content) if self.path == "/storage" else 0))
        self.end_headers()
        if self.path == "/storage":
            self.wfile.write(hub.content[:hub.cut_after])

    def log_message(self, *args):
        pass

@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server with one released model, of 3 MB, so that a download can break off in the middle."""
    config = GPTConfig(vocab_size=8000, n_positions=32, n_embd=80, n_layer=2, n_head=4)
    monkeypatch.setitem(gpt.SIZES, "toy", config)
    for name, value in {"NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1", "HOME": str(tmp_path)}.items():
        monkeypatch.setenv(name, value)
    hub = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    hub.model, hub.asked, hub.cut_after = toy_model(config, dtype=torch.float32), [], None
    hub.content = safetensors(*header_and_body(entries_of(hub.model)))
    hub.path = tmp_path / ".cache" / "socratic" / "toy" / "model.safetensors"
    hub.url = f"http://127.0.0.1:{hub.server_port}/{{name}}/model.safetensors"
    monkeypatch.setattr(gpt, "HUB", hub.url)
    threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    yield hub
    hub.shutdown()
    hub.server_close()

def assert_not_downloaded(hub, *words):
    with pytest.raises(SystemExit) as refusal:
        GPT.from_pretrained("toy")
    for word in (gpt.HUB.format(name="toy"), str(hub.path), *words):
        assert word in str(refusal.value)
    assert not hub.path.exists(), "a file with this name counts as whole"

def assert_loads(hub):
    loaded = GPT.from_pretrained("toy")
    assert loaded.config == hub.model.config
    assert all(torch.equal(p, q) for p, q in zip(hub.model.parameters(), loaded.parameters(), strict=True))

def test_a_released_model_is_downloaded_once(hub, capsys):
    assert_loads(hub)
    assert sorted(p.name for p in hub.path.parent.iterdir()) == ["config.json", "model.safetensors"]
    assert hub.path.read_bytes() == hub.content and f"{hub.path}: 3.2 MB" in capsys.readouterr().err
    before = (hub.path.parent / "config.json").stat().st_mtime_ns
    assert_loads(hub)                            # asks nobody, and rewrites nothing that another process may read
    assert hub.asked == ["/toy/model.safetensors", "/storage"]
    assert (hub.path.parent / "config.json").stat().st_mtime_ns == before

def test_a_download_that_broke_off_is_no_model_and_is_fetched_again(hub):
    hub.cut_after = 2_500_000
    assert_not_downloaded(hub)
    hub.cut_after = None
    assert_loads(hub)

def test_without_a_network_a_file_put_where_the_error_says_is_a_released_model(hub, monkeypatch):
    monkeypatch.setattr(gpt, "HUB", hub.url.replace("model.safetensors", "gone"))
    assert_not_downloaded(hub, "404")
    monkeypatch.setattr(gpt, "HUB", "http://127.0.0.1:9/{name}")
    assert_not_downloaded(hub, "Offline?")
    for path in hub.path.parent.iterdir():       # as on a machine that has never asked for it
        path.unlink()
    hub.path.write_bytes(hub.content)
    assert_loads(hub)
    assert hub.asked == ["/toy/gone"]

def test_a_home_that_cannot_be_written_is_one_line(hub, monkeypatch, tmp_path):
    (tmp_path / "a file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "a file"))
    with pytest.raises(SystemExit, match="a file/.cache/socratic/toy"):
        GPT.from_pretrained("toy")

# ---------------------------------------------------------------- the machine

@pytest.mark.parametrize("device", ["cuda", "cuda:7", "nonsense"])
def test_a_device_that_is_not_there_is_one_line(device):
    if torch.cuda.is_initialized():
        pytest.skip("a GPU is in use")
    with pytest.raises(SystemExit, match=f"^--device {device}: .*$"):
        gpt.pick_device(device, "auto")

def test_models_from_scratch_run_on_one_thread_unless_omp_num_threads_is_set(monkeypatch):
    def threads(tokenizer):
        torch.set_num_threads(2)
        gpt.limit_threads(toy_model(info={"tokenizer": tokenizer}))
        return torch.get_num_threads()
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    try:
        assert threads("gpt2") == 2 and threads("tiny") == 1
        monkeypatch.setenv("OMP_NUM_THREADS", "2")
        assert threads("tiny") == 2
    finally:
        torch.set_num_threads(1)


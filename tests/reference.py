"""
GPT-2 a second time, slowly: numpy, float64, one row, one head and one position at a time.

Written from the papers (Radford et al. 2018 and 2019) and OpenAI's `src/model.py`; shares no line with gpt.py.
"""

import math

import numpy as np


def layer_norm(x, gain, bias, epsilon):
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + epsilon) * gain + bias


def gelu(x):
    """OpenAI's approximation (Hendrycks and Gimpel 2016, section 2)."""
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x ** 3)))


def softmax(scores):
    e = np.exp(scores - scores.max())
    return e / e.sum()


def attention(x, w, prefix, n_head):
    T, C = x.shape
    D = C // n_head
    mixed = x @ w[prefix + "c_attn.weight"] + w[prefix + "c_attn.bias"]
    queries, keys, values = mixed[:, :C], mixed[:, C:2 * C], mixed[:, 2 * C:]
    out = np.zeros((T, C))
    for head in range(n_head):
        own = slice(head * D, (head + 1) * D)
        for t in range(T):
            weights = softmax(keys[:t + 1, own] @ queries[t, own] / math.sqrt(D))    # the past and itself
            out[t, own] = weights @ values[:t + 1, own]
    return out @ w[prefix + "c_proj.weight"] + w[prefix + "c_proj.bias"]


def mlp(x, w, prefix):
    hidden = gelu(x @ w[prefix + "c_fc.weight"] + w[prefix + "c_fc.bias"])
    return hidden @ w[prefix + "c_proj.weight"] + w[prefix + "c_proj.bias"]


def reference_logits(weights, config, ids):
    """Logits (B, T, V) of ids (B, T). `weights` has OpenAI's names; matrices are (in, out)."""
    w = {name: np.asarray(array, dtype=np.float64) for name, array in weights.items()}
    epsilon = config.layer_norm_epsilon
    rows = []
    for row in np.asarray(ids):
        x = np.stack([w["wte.weight"][token] + w["wpe.weight"][t] for t, token in enumerate(row)])
        for layer in range(config.n_layer):
            p = f"h.{layer}."
            normed = layer_norm(x, w[p + "ln_1.weight"], w[p + "ln_1.bias"], epsilon)
            x = x + attention(normed, w, p + "attn.", config.n_head)
            normed = layer_norm(x, w[p + "ln_2.weight"], w[p + "ln_2.bias"], epsilon)
            x = x + mlp(normed, w, p + "mlp.")
        x = layer_norm(x, w["ln_f.weight"], w["ln_f.bias"], epsilon)
        rows.append(x @ w["wte.weight"].T)
    return np.stack(rows)

"""LM-Infinite in one file: a Llama that writes on for ever, in constant memory.

    python lm_infinite_in_one_file.py FOLDER [PROMPT]

A model that learned from texts of L tokens fails on longer ones. LM-Infinite (Han et al., NAACL
2024, arXiv 2308.16137) lets it go on, by a Λ-shaped mask (1, 2) and a ceiling (3) in attention:

1. A query sees the last L keys, the window, at their true distances,
2. and the first G keys of the text, the starting tokens. It sees nothing else.
3. A starting token that has left the window seems to stand at distance C = L.
4. So no distance, and no number of keys, is far from what training has shown.
5. Up to L tokens nothing changes: one softmax over all keys, as in any Llama.
6. What lies between the legs of the Λ is never seen again: all memory is L + G keys.

Letters: i position of a query, j of a key, d = i - j; G n_global; L n_local, the trained length
unless told; C the ceiling; T queries, S keys, H heads, K key heads (H_kv in the course), D
width of a head, E of the model, V of the vocabulary; theta the base of RoPE's angles.
"""

import argparse
import codecs
import json
import sys
from itertools import islice
from pathlib import Path

import sentencepiece
import torch
from safetensors.torch import load_file
from torch import Tensor

N_GLOBAL = 10  # G; the paper takes 10 to 100
CHUNK, NEW_TOKENS = 256, 400  # how many tokens are read at once (at most L), and written
PROMPT = "My dear friend, I have much to tell you of our voyage, and"
# What is computed here; a config.json that gives any of these keys another value is refused.
ONLY = {"model_type": "llama", "hidden_act": "silu", "rope_type": "default", "mlp_bias": False}
ONLY |= {"rope_scaling": None, "attention_bias": False, "quantization_config": None}


def lambda_mask(i: Tensor, j: Tensor, n_local: int, n_global: int) -> Tensor:
    """Which keys does query i see? (T,), (S,) -> (T, S + G): the first S columns are keys at
    their true distances (#), the last G starting tokens at the ceiling (C). In this picture,
    L = 3 and G = 2, both lie over each other, as in lesson 05's lambda_mask, which is (T, S).

        # . . . . . . .
        # # . . . . . .
        # # # . . . . .
        C # # # . . . .     a row for each query, a column for each key;
        C C # # # . . .     a starting token is in the window first, then at the ceiling
        C C . # # # . .
        C C . . # # # .
        C C . . . # # #
    """
    d, d_starting = i[:, None] - j, i[:, None] - torch.arange(n_global)
    return torch.cat(((d >= 0) & (d < n_local), d_starting >= n_local), -1)


def angles(positions: Tensor, width: int, theta: float) -> tuple[Tensor, Tensor]:
    """Cosines and sines, (T, D / 2), of each pair's turn. In float64 they are off by about 1e-8
    at position 200 million; the package counts turns in integers, exactly (positions.py)."""
    frequencies = theta ** -(torch.arange(0, width, 2, dtype=torch.float64) / width)
    turns = positions[:, None] * frequencies
    return turns.cos().float(), turns.sin().float()


def rotate(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Place x (..., T, D): turn pairs, m and m + D / 2. Then q · k depends on i - j only."""
    (cos, sin), (a, b) = angles, x.chunk(2, -1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), -1)


class Cache:
    """All that is kept of a text: for each layer the last L keys and values, in a ring where a
    new token takes the place of the oldest, and the first G, not yet rotated."""

    def __init__(self, model: "Llama", n_local: int | None = None, n_global: int = N_GLOBAL):
        self.n_local, self.n_global = n_local or model.trained_length, n_global
        self.ceiling = self.n_local
        shape = model.n_layer, 2, model.n_kv_head  # of the 2, the first is keys
        self.window = torch.zeros(*shape, self.n_local, model.head_dim)
        self.starting = torch.zeros(*shape, n_global, model.head_dim)
        self.positions = torch.full((self.n_local,), -self.n_local)  # empty: too far to be seen
        self.length = 0  # tokens read so far


def attend(q: Tensor, k: Tensor, v: Tensor, cache: Cache, layer: int, theta: float) -> Tensor:
    """What T more queries gather (section 3.2): q (H, T, D), k and v (K, T, D) -> (H, T, D)."""
    i, width = cache.length + torch.arange(q.shape[1]), q.shape[-1]
    here, ceiling = (angles(x, width, theta) for x in (i, torch.tensor([cache.ceiling])))
    new, starting = torch.stack((rotate(k, here), v)), cache.starting[layer]
    window = torch.cat((cache.window[layer], new), 2)  # (2, K, L + T, D)
    q = q.unflatten(0, (len(k), -1))  # (K, H / K, T, D)

    # In the window they are placed at i and j; at the ceiling at C and 0, where nothing turns.
    near = torch.einsum("khtd,ksd->khts", rotate(q, here), window[0])
    far = torch.einsum("khtd,ksd->khts", rotate(q, ceiling), starting[0])
    logits = torch.cat((near, far), -1) / width**0.5
    visible = lambda_mask(i, torch.cat((cache.positions, i)), cache.n_local, cache.n_global)
    weights = logits.masked_fill(~visible, -torch.inf).softmax(-1)
    values = torch.cat((window[1], starting[1]), 1)  # values carry no position

    cache.window[layer][:, :, i % cache.n_local] = new
    starting[:, :, i[i < cache.n_global]] = torch.stack((k, v))[:, :, i < cache.n_global]
    return torch.einsum("khts,ksd->khtd", weights, values).flatten(0, 1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return x / (x.pow(2).mean(-1, keepdim=True) + eps).sqrt() * weight


class Llama:
    """The Llama of a folder in Hugging Face's form, in float32 on the CPU. Raises ValueError
    for what this file does not compute, KeyError for what the folder lacks."""

    def __init__(self, folder: Path):
        config = json.loads((folder / "config.json").read_bytes())
        config |= config.get("rope_parameters") or {}  # where newer files keep rope_theta
        for key, value in ONLY.items():
            if config.get(key, value) != value:
                raise ValueError(f"{key} must be {json.dumps(value)} in its config.json")
        n_head, self.n_layer = config["num_attention_heads"], config["num_hidden_layers"]
        self.n_kv_head = config.get("num_key_value_heads") or n_head
        self.head_dim = config.get("head_dim") or config["hidden_size"] // n_head
        self.theta, self.eps = config.get("rope_theta", 10000.0), config["rms_norm_eps"]
        self.trained_length = config["max_position_embeddings"]
        self.bos, eos = config.get("bos_token_id", 1), config.get("eos_token_id", 2)
        self.eos = eos if isinstance(eos, list) else [eos]

        index, shards = folder / "model.safetensors.index.json", {"model.safetensors"}
        if index.is_file():
            shards = set(json.loads(index.read_bytes())["weight_map"].values())
        self.weights = {}
        for shard in shards:
            for name, weight in load_file(folder / shard).items():
                self.weights[name.removesuffix(".weight")] = weight.float()
        if config.get("tie_word_embeddings", False):
            self.weights["lm_head"] = self.weights["model.embed_tokens"]

    @torch.inference_mode()
    def read(self, ids: Tensor, cache: Cache) -> Tensor:
        """The logits (T, V) after each of the next ids (T,) of a text; T is at most L."""
        w, x = self.weights, self.weights["model.embed_tokens"][ids]  # x: (T, E)
        for layer in range(self.n_layer):
            own = f"model.layers.{layer}"
            normed = rms_norm(x, w[f"{own}.input_layernorm"], self.eps)
            q, k, v = (normed @ w[f"{own}.self_attn.{name}_proj"].T for name in "qkv")
            q, k, v = (y.unflatten(-1, (-1, self.head_dim)).transpose(0, 1) for y in (q, k, v))
            gathered = attend(q, k, v, cache, layer, self.theta).transpose(0, 1)  # (T, H, D)
            x = x + gathered.flatten(1) @ w[f"{own}.self_attn.o_proj"].T
            normed = rms_norm(x, w[f"{own}.post_attention_layernorm"], self.eps)
            gate, up = (normed @ w[f"{own}.mlp.{name}_proj"].T for name in ("gate", "up"))
            x = x + (gate * gate.sigmoid() * up) @ w[f"{own}.mlp.down_proj"].T
        i = cache.length + torch.arange(len(ids))
        cache.positions[i % cache.n_local] = i
        cache.length += len(ids)
        return rms_norm(x, w["model.norm"], self.eps) @ w["lm_head"].T


def generate(model: Llama, ids: list[int], cache: Cache):
    """Read ids in chunks, then yield those that follow, the likeliest each time, until EOS."""
    for chunk in torch.tensor(ids).split(min(CHUNK, cache.n_local)):
        logits = model.read(chunk, cache)[-1]
    while (id := int(logits.argmax())) not in model.eos:
        yield id
        logits = model.read(torch.tensor([id]), cache)[-1]


def characters(ids, tokenizer):
    """Yield the text of ids; bytes wait until they form a character."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    for id in ids:
        piece = tokenizer.IdToPiece(id)
        if tokenizer.IsByte(id):
            yield decoder.decode(bytes([int(piece[1:-1], 16)]))  # "<0x41>"
        elif not tokenizer.IsControl(id):
            yield decoder.decode(piece.replace("▁", " ").encode())
    yield decoder.decode(b"", final=True)


def main():
    parser = argparse.ArgumentParser(description="Write on from a prompt with LM-Infinite.")
    parser.add_argument("folder", type=Path, help="config.json, *.safetensors, tokenizer.model")
    parser.add_argument("prompt", nargs="?", default=PROMPT)
    options = parser.parse_args()
    try:
        model, path = Llama(options.folder), options.folder / "tokenizer.model"
        tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(path))
        ids = ([] if model.bos is None else [model.bos]) + tokenizer.EncodeAsIds(options.prompt)
        new_ids = islice(generate(model, ids, Cache(model)), NEW_TOKENS)
        for text in characters(new_ids, tokenizer):
            print(text, end="", flush=True)
        print()
    except KeyError as error:
        sys.exit(f"{options.folder} is not a plain Llama: it lacks {error}")
    except Exception as error:
        sys.exit(f"{options.folder} cannot be read: {error}")


if __name__ == "__main__":
    main()

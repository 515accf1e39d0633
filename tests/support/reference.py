"""A ViT from the definitions in float64 NumPy, image by image: what the real one is held against.

No line of it is shared with the model.
"""

import math
from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import erf, softmax

from schemas.model import ViTSpec

Array = NDArray[np.float64]


class ReferenceViT:
    """All but the stem, the noise and the dropout."""

    def __init__(self, spec: ViTSpec, weights: Mapping[str, torch.Tensor]) -> None:
        self.spec = spec
        self.weights = {name: np.asarray(it.detach(), np.float64) for name, it in weights.items()}

    def logits(self, pixels: torch.Tensor) -> Array:
        images = np.asarray(pixels, np.float64)
        return np.stack([self._logits(image) for image in images])

    def _logits(self, image: Array) -> Array:
        spec, tokens = self.spec, self._tokens(image)
        for layer in range(spec.depth):
            if layer == 0 or spec.position_at != "stem":
                tokens = tokens + self._position(layer)
            tokens = self._block(f"blocks.{layer}", tokens)
        if spec.norm_at == "tokens":
            tokens = self._norm("norm", tokens)
        if spec.distillation_token:
            pair = self._dense("head", tokens[0]), self._dense("distillation_head", tokens[1])
            return (pair[0] + pair[1]) / 2
        features = self._pool(tokens)
        if spec.norm_at == "pooled":
            features = self._norm("norm", features)
        if spec.hidden_head:
            features = np.tanh(self._dense("hidden", features))
        return self._dense("head", features)

    def _tokens(self, image: Array) -> Array:
        side, (rows, columns) = self.spec.patch_px, self.spec.grid
        cells = [
            image[:, y * side : (y + 1) * side, x * side : (x + 1) * side].ravel()
            for y in range(rows)
            for x in range(columns)
        ]
        leading = [
            np.atleast_2d(self.weights[name])
            for name in ("class_token", "distillation_token", "registers")
            if name in self.weights
        ]
        return np.concatenate([*leading, self._dense("patch", np.stack(cells))])

    def _position(self, layer: int) -> Array:
        """For every token; zero where there is none."""
        spec, (rows, columns), width = self.spec, self.spec.grid, self.spec.width
        found = np.zeros((spec.leading + rows * columns, width))
        if spec.position in ("none", "relative"):
            return found
        tables = {
            name: table[layer] if spec.position_at == "every_layer" else table
            for name, table in self.weights.items()
            if name.startswith("position")
        }
        if spec.position == "learned_1d":
            slots, patches = np.split(tables["position"], [spec.slots])
        else:
            slots = tables.get("position_slots", np.zeros((spec.slots, width)))
            patches = np.stack(
                [self._place(y, x, tables) for y in range(rows) for x in range(columns)]
            )
        places = [spec.class_position] * (spec.pool == "cls") + [True] * spec.distillation_token
        found[: len(places)][places] = slots
        found[spec.leading :] = patches
        return found

    def _place(self, y: int, x: int, tables: Mapping[str, Array]) -> Array:
        if self.spec.position == "learned_2d":
            return np.concatenate([tables["position_columns"][x], tables["position_rows"][y]])
        quarter = self.spec.width // 4
        omega = np.array([10_000.0 ** (-i / (quarter - 1)) for i in range(quarter)])
        waves = (np.sin(x * omega), np.cos(x * omega), np.sin(y * omega), np.cos(y * omega))
        return np.concatenate(waves)

    def _block(self, name: str, tokens: Array) -> Array:
        if not self.spec.axial:
            return self._plain_block(name, tokens)
        grid = tokens.reshape(*self.spec.grid, -1)
        grid = np.stack([self._plain_block(f"{name}.rows", row) for row in grid])
        columns = [self._plain_block(f"{name}.columns", grid[:, x]) for x in range(grid.shape[1])]
        return np.stack(columns, axis=1).reshape(tokens.shape)

    def _plain_block(self, name: str, tokens: Array) -> Array:
        normed = self._norm(f"{name}.norm1", tokens)
        attended = self._attention(f"{name}.attention", normed, normed)
        tokens = tokens + attended * self.weights.get(f"{name}.scale1", 1.0)
        hidden = self._mlp(name, self._norm(f"{name}.norm2", tokens))
        return tokens + hidden * self.weights.get(f"{name}.scale2", 1.0)

    def _mlp(self, name: str, tokens: Array) -> Array:
        return self._dense(f"{name}.dense2", self._gelu(self._dense(f"{name}.dense1", tokens)))

    def _gelu(self, x: Array) -> Array:
        if self.spec.gelu == "erf":
            return 0.5 * x * (1 + erf(x / math.sqrt(2)))
        return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))

    def _attention(self, name: str, tokens: Array, asking: Array) -> Array:
        heads, each = self.spec.num_heads, self.spec.width // self.spec.num_heads
        query, key, value = (
            self._dense(f"{name}.{part}", source)
            for part, source in (("query", asking), ("key", tokens), ("value", tokens))
        )
        mixed = []
        for head in range(heads):
            own = slice(head * each, (head + 1) * each)
            asks, keys = query[:, own], key[:, own]
            if f"{name}.query_norm.weight" in self.weights:
                asks = self._norm(f"{name}.query_norm", asks)
                keys = self._norm(f"{name}.key_norm", keys)
            scores = asks @ keys.T
            if f"{name}.relative" in self.weights:
                scores += self._by_distance(asks, self.weights[f"{name}.relative"][head])
            mixed.append(softmax(scores / math.sqrt(each), axis=-1) @ value[:, own])
        return self._dense(f"{name}.out", np.concatenate(mixed, axis=1))

    def _by_distance(self, asks: Array, relative: Array) -> Array:
        first, found = self.spec.leading, np.zeros((len(asks), len(asks)))
        for q in range(first, len(asks)):
            for k in range(first, len(asks)):
                found[q, k] = asks[q] @ relative[k - q + len(asks) - first - 1]
        return found

    def _pool(self, tokens: Array) -> Array:
        if self.spec.pool == "cls":
            return tokens[0]
        if self.spec.pool == "gap":
            return tokens[self.spec.leading :].mean(axis=0)
        probe = self.weights["pooling.probe"][None]
        pooled = self._attention("pooling.attention", tokens, probe)[0]
        return pooled + self._mlp("pooling", self._norm("pooling.norm", pooled))

    def _norm(self, name: str, x: Array) -> Array:
        mean, variance = x.mean(axis=-1, keepdims=True), x.var(axis=-1, keepdims=True)
        normed = (x - mean) / np.sqrt(variance + self.spec.layer_norm_eps)
        return normed * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _dense(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

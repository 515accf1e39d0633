"""The Vision Transformer of Dosovitskiy et al. (2020), one sitting to read.

Axes in names: B batch, C channels, H W pixels, N tokens, D width, K classes, S leading tokens with
a position, T all tokens, M patches that stay. Attention, blocks, stem, pooling, positions and
initial weights have files beside this one. Nothing here knows of training, files or devices.
"""

import re

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pipeline.model.backbone import Backbone
from pipeline.model.block import AxialBlock, Block
from pipeline.model.initial import initial_weights
from pipeline.model.layers import number_layers
from pipeline.model.noise import ForwardNoise
from pipeline.model.pooling import AttentionPooling
from pipeline.model.positions import crossed, for_all_tokens, sincos_2d
from pipeline.model.stem import ResNetStem
from schemas.model import ViTSpec

KEY_BIAS = ".attention.key.bias"
"""How the names of key biases end: their true gradient is zero, so comparisons leave them out."""


def build(spec: ViTSpec, *, seed: int) -> "ViT":
    """A ViT on the CPU with the initial weights of the authors' code, fixed by (spec, seed).

    The global generator is left alone. The model starts in training mode.
    """
    with torch.device("meta"):
        model = ViT(spec)  # no memory and no draw
    weights = initial_weights(spec, model.named_parameters(), seed=seed)
    model.load_state_dict(weights, assign=True)
    return model


def patchify(pixels_BCHW: Tensor, side: int) -> Tensor:
    """Cut images, or grids of features, into square patches in reading order.

    [B, C, H, W] -> [B, N, C * side * side]. The order inside a patch is that of a convolution's
    weight, so both can be exchanged.

    Raises:
        ValueError: If `side` does not divide both sides.
    """
    batch, channels, height, width = pixels_BCHW.shape
    if height % side or width % side:
        raise ValueError(f"patch_px {side} must divide both sides of {height} x {width} px")
    rows, columns = height // side, width // side
    cells = pixels_BCHW.reshape(batch, channels, rows, side, columns, side)
    return cells.permute(0, 2, 4, 1, 3, 5).reshape(batch, rows * columns, -1)


class Encoder(nn.Module):
    """The part that makes tokens: stem, patches, positions, blocks, and the last norm."""

    spec: ViTSpec
    recomputes: bool = False
    """As in `Backbone`."""

    def __init__(self, spec: ViTSpec) -> None:
        """Parts with empty weights."""
        super().__init__()
        self.spec = spec
        width, has_class = spec.width, spec.pool == "cls"
        self.stem = ResNetStem(spec.stem) if spec.stem else None
        self.patch = nn.Linear(spec.patch_values, width)
        self.class_token = _empty(width) if has_class else None
        self.distillation_token = _empty(width) if spec.distillation_token else None
        self.registers = _empty(spec.registers, width) if spec.registers else None
        self._add_positions()
        self.dropout = nn.Dropout(spec.dropout)
        self.blocks = nn.ModuleList(
            AxialBlock(spec) if spec.axial else Block(spec, patches=spec.patches)
            for _ in range(spec.depth)
        )
        self.norm = nn.LayerNorm(width, eps=spec.layer_norm_eps)

    def _add_positions(self) -> None:
        """Tables of [S + N, D], of rows and of columns; one for each layer where they differ."""
        spec = self.spec
        (rows, columns), half = spec.grid, spec.width // 2
        lead = (spec.tables,) if spec.position_at == "every_layer" else ()
        self.position: Tensor | None = None
        self.position_rows = self.position_columns = self.position_slots = None
        if spec.position == "learned_1d":
            self.position = _empty(*lead, spec.slots + spec.patches, spec.width)
        elif spec.position == "learned_2d":
            self.position_rows = _empty(*lead, rows, half)
            self.position_columns = _empty(*lead, columns, half)
            if spec.slots:
                self.position_slots = _empty(*lead, spec.slots, spec.width)
        elif spec.position == "sincos_2d":
            del self.position
            self.register_buffer("position", sincos_2d(spec), persistent=False)

    def embed(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, C, H, W] -> a vector for each patch [B, N, D], without position."""
        grid_BCHW = pixels_BCHW if self.stem is None else self.stem(pixels_BCHW)
        patches_BND: Tensor = self.patch(patchify(grid_BCHW, self.spec.patch_side))
        return patches_BND

    def encode(self, patches_BND: Tensor, noise: ForwardNoise | None = None) -> Tensor:
        """Embedded patches [B, N, D] -> tokens after the last block [B, T, D], before the norm.

        First the class token, the distillation token and the registers, as far as there are any;
        then patches in reading order, those alone that stay.
        """
        return self._run(patches_BND, noise or ForwardNoise(), seen=None)

    def hidden_states(self, pixels_BCHW: Tensor) -> list[Tensor]:
        """Tokens [B, T, D] after each block, before the last norm."""
        seen: list[Tensor] = []
        self._run(self.embed(pixels_BCHW), ForwardNoise(), seen=seen)
        return seen

    def _run(self, patches_BND: Tensor, noise: ForwardNoise, seen: list[Tensor] | None) -> Tensor:
        """Tokens after the last block; those after each block are appended to `seen`."""
        tokens_BTD = self._with_leading(patches_BND)
        stay_BT = self._staying(noise)
        tokens_BTD = tokens_BTD if stay_BT is None else _rows(tokens_BTD, stay_BT)
        everywhere = self.spec.position_at != "stem"
        tokens_BTD = self.dropout(self._placed(tokens_BTD, 0, stay_BT))
        for index, block in enumerate(self.blocks):
            if everywhere and index:
                tokens_BTD = self._placed(tokens_BTD, index, stay_BT)
            tokens_BTD = self._through(block, tokens_BTD, index, noise.keep_path_BL)
            if seen is not None:
                seen.append(tokens_BTD)
        return tokens_BTD

    def _with_leading(self, patches_BND: Tensor) -> Tensor:
        """Class token, distillation token and registers put before the patches."""
        kinds = (self.class_token, self.distillation_token, self.registers)
        leading = [token for token in kinds if token is not None]
        if not leading:
            return patches_BND
        shape = (patches_BND.shape[0], -1, -1)
        expanded = [
            token.view(-1, self.spec.width).expand(shape).to(patches_BND.dtype) for token in leading
        ]
        return torch.cat([*expanded, patches_BND], dim=1)

    def _staying(self, noise: ForwardNoise) -> Tensor | None:
        """Indices of the tokens that stay, [B, T]; leading tokens always do."""
        kept_BM = noise.kept_patches_BM
        if kept_BM is None:
            return None
        if self.spec.axial or self.spec.position == "relative":
            raise ValueError("axial blocks and relative positions need every patch of the grid")
        leading = torch.arange(self.spec.leading, device=kept_BM.device).expand(len(kept_BM), -1)
        return torch.cat([leading, kept_BM + self.spec.leading], dim=1)

    def _placed(self, tokens_BTD: Tensor, layer: int, stay_BT: Tensor | None) -> Tensor:
        """Tokens with the positions of this layer added."""
        position_ND = self.positions(layer)
        if position_ND is None:
            return tokens_BTD
        position_TD = for_all_tokens(position_ND, self.spec)
        return tokens_BTD + (position_TD if stay_BT is None else position_TD[stay_BT])

    def positions(self, layer: int) -> Tensor | None:
        """What is added at the input of a block, [S + N, D]; None for models without a table."""
        position = self.position
        if self.position_rows is not None and self.position_columns is not None:
            position = crossed(self.position_rows, self.position_columns)
            if self.position_slots is not None:
                position = torch.cat([self.position_slots, position], dim=-2)
        return position[layer] if position is not None and position.ndim == 3 else position

    def _through(
        self, block: nn.Module, tokens_BTD: Tensor, index: int, keep_BL: Tensor | None
    ) -> Tensor:
        """One block, with its factors out of those of all branches."""
        count = AxialBlock.BRANCHES if self.spec.axial else Block.BRANCHES
        keep_BR = None if keep_BL is None else keep_BL[:, index * count : (index + 1) * count]
        if self.recomputes and torch.is_grad_enabled():
            again: Tensor = checkpoint(block, tokens_BTD, keep_BR, use_reentrant=False)
            return again
        out: Tensor = block(tokens_BTD, keep_BR)
        return out


_BLOCK = re.compile(r"^blocks\.\d+\.")


class ViT(Encoder, Backbone):
    """The model that `spec` describes; `build` gives it its initial weights."""

    spec: ViTSpec

    def __init__(self, spec: ViTSpec) -> None:
        """Parts with empty weights."""
        super().__init__(spec)
        width = spec.width
        self.pooling = AttentionPooling(spec) if spec.pool == "map" else None
        self.hidden = nn.Linear(width, width) if spec.hidden_head else None
        heads = 1 + spec.distillation_token if spec.num_classes else 0
        self.head = nn.Linear(width, spec.num_classes) if heads else None
        self.distillation_head = nn.Linear(width, spec.num_classes) if heads > 1 else None

    def forward(
        self, pixels_BCHW: Tensor, noise: ForwardNoise | None = None, *, both_heads: bool = False
    ) -> Tensor:
        """Normalised pixels [B, C, H, W] -> logits [B, K]; features [B, D] where there is no head.

        Args:
            pixels_BCHW: Of the size that the spec says.
            noise: Skipped branches and patches; None: all are there.
            both_heads: Logits of the class token's and of the distillation token's head apart,
                [B, 2, K], instead of their mean.

        Raises:
            ValueError: If there are no two heads, or if `noise` leaves patches out of a model whose
                grid must be whole.
        """
        if both_heads and self.distillation_head is None:
            raise ValueError("both_heads asks for the distillation token's head, and there is none")
        if self.distillation_head is None:
            return super().forward(pixels_BCHW, noise)
        with self.below_head():
            tokens_BTD = self.forward_tokens(pixels_BCHW, noise)
        pair = self.forward_head(tokens_BTD[:, 0]), self.distillation_head(tokens_BTD[:, 1])
        logits_B2K = torch.stack(pair, dim=1)
        return logits_B2K if both_heads else logits_B2K.mean(dim=1)

    def forward_features(self, pixels_BCHW: Tensor, noise: ForwardNoise | None = None) -> Tensor:
        """Normalised pixels [B, C, H, W] -> what the head sees of each image, [B, D].

        With a distillation token: the mean of both class tokens, as timm has it.
        """
        return self._pool(self.forward_tokens(pixels_BCHW, noise))

    def forward_tokens(self, pixels_BCHW: Tensor, noise: ForwardNoise | None = None) -> Tensor:
        """Tokens after the last block [B, T, D], as in `encode`; normalised if the spec says so."""
        tokens_BTD = self.encode(self.embed(pixels_BCHW), noise)
        return self.norm(tokens_BTD) if self.spec.norm_at == "tokens" else tokens_BTD

    def layers(self) -> dict[str, int]:
        """Parameter -> number of its layer; see `number_layers`."""
        return number_layers((name for name, _ in self.named_parameters()), _BLOCK)

    def forward_grid(self, pixels_BCHW: Tensor) -> Tensor:
        """Normalised pixels [B, C, H, W] -> tokens of the patches in their places, [B, R, Q, D]."""
        patches_BND = self.forward_tokens(pixels_BCHW)[:, self.spec.leading :]
        return patches_BND.reshape(len(patches_BND), *self.spec.grid, -1)

    def _pool(self, tokens_BTD: Tensor) -> Tensor:
        """What the head sees of each image: [B, T, D] -> [B, D]."""
        if self.pooling is not None:
            pooled_BD = self.pooling(tokens_BTD)
        elif self.class_token is None:
            pooled_BD = tokens_BTD[:, self.spec.leading :].mean(dim=1)
        elif self.distillation_token is None:
            pooled_BD = tokens_BTD[:, 0]
        else:
            pooled_BD = tokens_BTD[:, :2].mean(dim=1)
        if self.spec.norm_at == "pooled":
            pooled_BD = self.norm(pooled_BD)
        return pooled_BD if self.hidden is None else torch.tanh(self.hidden(pooled_BD))


def _empty(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(*shape))


def _rows(tokens_BTD: Tensor, index_BT: Tensor) -> Tensor:
    """The tokens of these indices, for each image its own."""
    return tokens_BTD.gather(1, index_BT[:, :, None].expand(-1, -1, tokens_BTD.shape[2]))

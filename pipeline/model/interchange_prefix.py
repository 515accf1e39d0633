"""The tokens before the patches of a timm ViT, as far as ours has the same under other names.

timm gives rows of the position table to class token, distillation token and registers, or to none,
and may pool patches beside a class token. Here registers have no positions, and a model that pools
patches has no class token; both are told by registers.
"""

import torch

from pipeline.model.interchange_names import Fields, Tensors, image_of_tokens, square_side
from schemas.errors import SpecError
from schemas.interchange import Assumptions


class Prefix:
    """The tokens before the patches and their positions, brought to what our model has."""

    def __init__(self, found: Tensors, known: Fields, defaults: Fields, said: Fields) -> None:
        self.found, self.known, self.defaults, self.said = found, known, defaults, said
        self.notes: tuple[str, ...] = ()
        for name in ("cls_token", "dist_token", "reg_token", "pos_embed"):
            shape = list(found[name].shape) if name in found else [1, 1, known["width"]]
            if len(shape) != 3 or [shape[0], shape[2]] != [1, known["width"]]:
                raise SpecError(f"{name} has the shape {shape} instead of [1, N, {known['width']}]")

    def settle(self, assume: Assumptions) -> None:
        """Decide pooling and positions; `found`, `known` and `defaults` are changed to say them.

        Raises:
            SpecError: If our model cannot do the same.
        """
        pool = self.said.get("pool") or assume.pool or self._likely_pool()
        slots = self._settle_positions(assume)
        if pool == "map" and self._has_prefix() and not self.said.get("pool_all"):
            raise SpecError(
                "map pooling here sees all tokens, and timm's leaves the class token and the "
                "registers out unless pool_include_prefix says otherwise"
            )
        if pool != "map" and self.said.get("pool_all"):
            raise SpecError(f"timm's pool_include_prefix is not known for pooling {pool}")
        is_certain = "pool" in self.said or "cls_token" not in self.found
        (self.known if is_certain else self.defaults)["pool"] = pool
        if pool != "cls" and "cls_token" in self.found:
            self._turn_class_into_register(slots)
            slots = 0
        self.known["registers"] = self._count("reg_token")
        has_table = self.known.get("position") != "none"
        self.known["class_position"] = pool != "cls" or slots > 0 or not has_table

    def _likely_pool(self) -> str:
        if "attn_pool.latent" in self.found:
            return "map"
        averages = "cls_token" not in self.found or "fc_norm.weight" in self.found
        return "gap" if averages else "cls"

    def _has_prefix(self) -> bool:
        return "cls_token" in self.found or "reg_token" in self.found

    def _count(self, name: str) -> int:
        count: int = self.found[name].shape[1] if name in self.found else 0
        return count

    def _settle_positions(self, assume: Assumptions) -> int:
        """Slots of class and distillation token in the table; those of registers are taken out."""
        if "pos_embed" not in self.found:
            self.known |= {"position": "none", "image_px": self._image(assume) or (224, 224)}
            return 0
        leading = self._count("cls_token") + self._count("dist_token")
        registers = self._count("reg_token")
        table = self.found["pos_embed"]
        slots = self._slots(table.shape[1], (leading + registers, leading, 0), assume)
        image = self._image(assume)
        fits = image is not None and self._patches(image) == table.shape[1] - slots
        self.known["image_px"] = (
            image
            if fits and image is not None
            else image_of_tokens(table.shape[1] - slots, self.known["patch_px"], assume)
        )
        if registers and slots == leading + registers:
            # A register with a position is a register that starts elsewhere.
            self.found["reg_token"] = self.found["reg_token"] + table[:, leading:slots]
            self.found["pos_embed"] = torch.cat([table[:, :leading], table[:, slots:]], dim=1)
            slots = leading
        return slots

    def _slots(self, total: int, allowed: tuple[int, ...], assume: Assumptions) -> int:
        """How many rows of the table belong to tokens before the patches."""
        image = self._image(assume)
        if image is not None:
            counts = (self._patches(image),)
            fitting = [slots for slots in allowed if total - slots in counts]
            if fitting or "image_px" in assume.given():
                return fitting[0] if fitting else allowed[1]
        return next((it for it in allowed if square_side(total - it) is not None), allowed[1])

    def _image(self, assume: Assumptions) -> tuple[int, int] | None:
        found: tuple[int, int] | None = assume.given().get("image_px", self.said.get("image_px"))
        return found

    def _patches(self, image_px: tuple[int, int]) -> int:
        patch_px: int = self.known["patch_px"]
        return (image_px[0] // patch_px) * (image_px[1] // patch_px)

    def _turn_class_into_register(self, slots: int) -> None:
        """Where patches alone are pooled, a class token is a token as registers are."""
        if "dist_token" in self.found:
            raise SpecError("a distillation token goes with pooling cls alone")
        token = self.found.pop("cls_token")
        if "pos_embed" in self.found:
            table = self.found["pos_embed"]
            token = token + table[:, :slots] if slots else token
            self.found["pos_embed"] = table[:, slots:]
        others = [self.found["reg_token"]] if "reg_token" in self.found else []
        self.found["reg_token"] = torch.cat([token, *others], dim=1)
        self.notes = ("the class token is a register here, because patches alone are pooled",)

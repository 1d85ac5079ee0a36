"""KeyValueCache: what attention has already computed of the tokens before, for generation and for continuations.

Shapes: B batch, L context length, S positions kept so far, T new positions, H key/value heads, K width of a head.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from farthing.recipe.model import Model

_FIRST_ROOM = 1 << 16
"""positions"""


@dataclass(frozen=True)
class Gap:
    """Padding in the middle of rows.

    Args:
        ends_B: the position of each row that its padding begins at.
        until: the position that it ends before, in every row.
    """

    ends_B: Tensor
    until: int

    def numbers_BT(self, start: int, end: int) -> Tensor:
        """What the positions start .. end - 1, which lie behind it, count as in their rows."""
        positions_T = torch.arange(start, end, device=self.ends_B.device)
        return positions_T - (self.until - self.ends_B)[:, None]

    def open_B1TS(self, start: int, end: int) -> Tensor:
        """Which of all positions up to `end` the ones from `start` on see: neither padding nor what is later."""
        positions_S = torch.arange(end, device=self.ends_B.device)
        padding_BS = (positions_S >= self.ends_B[:, None]) & (positions_S < self.until)
        later_TS = positions_S > positions_S[start:, None]
        return ~(padding_BS[:, None, None] | later_TS)


class KeyValueCache:
    """Keys, values and document numbers of the positions so far, at most a context length of them.

    Filled by a forward pass with cache=cache, without gradients; the first one settles the batch. It never drops
    anything: once it is full, clear() it and run the model over the tokens to keep (generate.py does).

    Args:
        section: the model's.
        positions: how many there is room for; None: a context length.
    """

    def __init__(self, section: Model, *, positions: int | None = None) -> None:
        self.section = section
        # A model from elsewhere may claim a context that fills any memory: room for a longer one is made when it is used.
        self._room = min(section.context_length, _FIRST_ROOM) if positions is None else positions
        self.length = 0
        self._stores: dict[int, tuple[Tensor, Tensor]] = {}
        self._segments_BL: Tensor | None = None
        self.gap: Gap | None = None

    def clear(self) -> None:
        """Forget every position; the memory is kept for reuse."""
        self.length, self.gap = 0, None

    def leave_gap(self, ends_B: Tensor) -> None:
        """Take the positions of each row from ends_B on for padding: rows of several lengths then go on together.

        What comes later does not see them, and is numbered on from where its row ends. Of Inference only.
        """
        assert self.gap is None, "one stretch of padding at most"
        self.gap = Gap(ends_B, self.length)

    def append(self, layer: int, keys_BHTK: Tensor, values_BHTK: Tensor) -> tuple[Tensor, Tensor]:
        """Store a layer's new keys and values; return all of them so far, [B, H, S + T, K].

        The cache's length moves on only with advance(), once every layer has stored its share.
        """
        assert not torch.is_grad_enabled(), "a cache overwrites tensors in place; use it under torch.no_grad()"
        batch, heads, new, width = keys_BHTK.shape
        if layer not in self._stores:
            shape = (batch, heads, self._room, width)
            self._stores[layer] = (keys_BHTK.new_empty(shape), values_BHTK.new_empty(shape))
        end = self.length + new
        while end > self._room:
            self._room *= 2
        keys, values = self._stores[layer] = _with_room(self._stores[layer], self._room)
        keys.narrow(2, self.length, new).copy_(keys_BHTK)
        values.narrow(2, self.length, new).copy_(values_BHTK)
        return keys.narrow(2, 0, end), values.narrow(2, 0, end)

    def append_segments(self, segments_BT: Tensor) -> Tensor:
        """Store the document numbers of the new positions; return all of them so far, [B, S + T]."""
        if self._segments_BL is None:
            self._segments_BL = segments_BT.new_zeros((segments_BT.shape[0], self._room))
        end = self.length + segments_BT.shape[1]
        if end > self._segments_BL.shape[1]:
            self._segments_BL = F.pad(self._segments_BL, (0, end))
        self._segments_BL[:, self.length : end] = segments_BT
        return self._segments_BL[:, :end]

    def advance(self, positions: int) -> None:
        """Count the positions that every layer has now stored."""
        self.length += positions

    @torch.inference_mode()
    def keep(self, rows: Tensor) -> None:
        """Go on with these rows of the batch alone, in this order."""
        self._stores = {layer: (keys[rows], values[rows]) for layer, (keys, values) in self._stores.items()}
        if self._segments_BL is not None:
            self._segments_BL = self._segments_BL[rows]
        if self.gap is not None:
            self.gap = Gap(self.gap.ends_B[rows], self.gap.until)

    @torch.inference_mode()
    def branch(self, rows: Tensor, *, positions: int) -> KeyValueCache:
        """A cache of its own in which these rows of the batch, each as often as it is named, may go on.

        Args:
            rows: numbers of rows, in the new order.
            positions: how many more there is to be room for.
        """
        new = KeyValueCache(self.section, positions=self.length + positions)
        new.length = self.length
        for layer, store in self._stores.items():
            keys, values = (_longer(kept[:, :, : self.length], rows, 2, new._room) for kept in store)
            new._stores[layer] = (keys, values)
        if self._segments_BL is not None:
            new._segments_BL = _longer(self._segments_BL[:, : self.length], rows, 1, new._room)
        if self.gap is not None:
            new.gap = Gap(self.gap.ends_B[rows], self.gap.until)
        return new


def _longer(kept: Tensor, rows: Tensor, axis: int, length: int) -> Tensor:
    """Some rows of a tensor, with room for `length` entries along an axis."""
    shape = [len(rows), *kept.shape[1:]]
    shape[axis] = length
    new = kept.new_empty(shape)
    torch.index_select(kept, 0, rows, out=new.narrow(axis, 0, kept.shape[axis]))
    return new


def cache_bytes(section: Model) -> int:
    """What a text's cache takes in fp32, in bytes."""
    return 2 * 4 * section.n_layer * section.kv_heads * section.head_dim * section.context_length


def _with_room(stores: tuple[Tensor, Tensor], room: int) -> tuple[Tensor, Tensor]:
    """Keys and values, [B, H, L, K], with L no less than `room`."""
    missing = room - stores[0].shape[2]
    return stores if missing <= 0 else (F.pad(stores[0], (0, 0, 0, missing)), F.pad(stores[1], (0, 0, 0, missing)))

"""Which of a model's layers a node reads first, where several read them for one start: pure.

Layers are told by the names of their tensors. The node that is to have the whole model begins with
what stands beside layers, and the first of those; the others have the rest, one range each.
"""

import re
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Final

from sllm.checkpoint.format.manifest import Manifest
from sllm.node.tiers.first_use import ChunkOrder, chunks_of

_LAYER: Final = re.compile(r"(?:^|\.)layers\.(\d+)\.")


def layer_of(name: str) -> int | None:
    """The layer that a tensor belongs to. None: it stands beside them."""
    found = _LAYER.search(name)
    return int(found[1]) if found else None


def layer_bytes(manifest: Manifest) -> tuple[int, ...]:
    """Bytes of each layer, from the first on. Empty: the model does not have them one by one."""
    sizes: dict[int, int] = {}
    for one in manifest.tensors:
        if (layer := layer_of(one.name)) is not None:
            sizes[layer] = sizes.get(layer, 0) + one.size
    return tuple(sizes[n] for n in range(len(sizes))) if max(sizes, default=-1) < len(sizes) else ()


def ranges(sizes: Sequence[int], shares: Sequence[float]) -> tuple[range, ...]:
    """Divides layers among nodes: for each of them its own, which follow one another.

    Args:
        sizes: bytes of each layer.
        shares: of these bytes, the part of each lender. What is left is the borrower's, who has the
            first layers. Each gets as near to its part as whole layers allow: one may get none.
    """
    ends = [0, *accumulate(sizes)]
    own = max(0.0, 1.0 - sum(shares))
    wanted = [part * ends[-1] for part in accumulate((own, *shares))]
    cuts = [min(range(len(ends)), key=lambda n: abs(ends[n] - end)) for end in wanted]
    cuts[-1] = len(sizes)
    return tuple(range(begin, end) for begin, end in pairwise(cuts))


def first(
    manifest: Manifest, order: ChunkOrder, is_wanted: Callable[[int | None], bool]
) -> ChunkOrder:
    """The order of chunks in which those come first that have anything of wanted layers.

    Args:
        manifest: of the checkpoint.
        order: in which they are used. What must be there at once stays before all others.
        is_wanted: of a layer; None: of what stands beside layers.
    """
    tensors = [one for one in manifest.tensors if is_wanted(layer_of(one.name))]
    wanted = set(chunks_of(manifest, tensors)) | order.at_once
    return ChunkOrder(tuple(sorted(order.chunks, key=lambda one: one not in wanted)), order.at_once)

"""Each sequence of a batch is attended to by itself, and gets what it would get alone."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import pytest
import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from sllm.node.worker.engine.attention import by_sequence

SIZE = 16
"""Of a head."""


class Layer(torch.nn.Module):
    """What transformers asks of the module that attends."""

    def __init__(self, groups: int) -> None:
        super().__init__()
        self.num_key_value_groups = groups
        self.is_causal = True


class Packed:
    """Sequences one after the other, as continuous batching packs them."""

    def __init__(self, queries: Sequence[int], keys: Sequence[int], groups: int, rows: int) -> None:
        self.queries = [0, *accumulate(queries)]
        self.keys = [0, *accumulate(keys)]
        self.query = torch.randn(1, 2 * groups, rows, SIZE)
        self.key = torch.randn(1, 2, self.keys[-1], SIZE)
        self.value = torch.randn(1, 2, self.keys[-1], SIZE)
        self.mask = torch.full((1, 1, rows, self.keys[-1]), torch.finfo().min)
        for number, (asked, known) in enumerate(zip(queries, keys, strict=True)):
            mask = torch.full((asked, known), torch.finfo().min).triu(known - asked + 1)
            self.mask[0, 0, self._asked(number), self._known(number)] = mask

    def attend(self, layer: Layer) -> Any:
        return by_sequence(sdpa_attention_forward)(
            layer,
            self.query,
            self.key,
            self.value,
            self.mask,
            is_causal=False,
            cu_seq_lens_q=torch.tensor(self.queries),
            cu_seq_lens_k={"full_attention": torch.tensor(self.keys)},
        )[0]

    def together(self, layer: Layer) -> Any:
        return sdpa_attention_forward(
            layer, self.query, self.key, self.value, self.mask, is_causal=False
        )[0]

    def alone(self, layer: Layer, number: int) -> Any:
        """What it gets in a batch of its own."""
        asked, known = self._asked(number), self._known(number)
        rows = asked.stop - asked.start
        batch = Packed([rows], [known.stop - known.start], 1, rows)
        batch.query, batch.mask = self.query[:, :, asked], self.mask[:, :, asked, known]
        batch.key, batch.value = self.key[:, :, known], self.value[:, :, known]
        return batch.attend(layer)

    def rows(self, number: int) -> slice:
        return self._asked(number)

    def _asked(self, number: int) -> slice:
        return slice(self.queries[number], self.queries[number + 1])

    def _known(self, number: int) -> slice:
        return slice(self.keys[number], self.keys[number + 1])


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(
    ("queries", "keys"),
    [((1, 1, 1), (40, 7, 129)), ((5, 1, 64), (5, 33, 200)), ((9,), (30,))],
    ids=["decoding", "mixed", "one"],
)
def test_attention_by_sequence_is_that_under_a_mask(
    queries: Sequence[int], keys: Sequence[int], groups: int
) -> None:
    torch.manual_seed(0)
    packed, layer = Packed(queries, keys, groups, sum(queries)), Layer(groups)
    torch.testing.assert_close(packed.attend(layer), packed.together(layer))


def test_what_a_sequence_gets_depends_on_no_other() -> None:
    torch.manual_seed(0)
    packed, layer = Packed((1, 12, 1), (300, 40, 2), 4, 14), Layer(4)
    found = packed.attend(layer)
    for number in range(3):
        torch.testing.assert_close(
            found[:, packed.rows(number)], packed.alone(layer, number), rtol=0, atol=0
        )


def test_rows_that_fill_a_batch_up_get_nothing() -> None:
    packed, layer = Packed((3, 2), (8, 9), 1, 8), Layer(1)
    assert packed.attend(layer)[:, 5:].eq(0).all()


def test_a_model_that_is_called_without_a_batch_is_left_alone() -> None:
    query = torch.randn(1, 2, 5, SIZE)
    layer = Layer(1)
    expected, _ = sdpa_attention_forward(layer, query, query, query, None)
    found, _ = by_sequence(sdpa_attention_forward)(layer, query, query, query, None)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)

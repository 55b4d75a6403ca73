import pytest
import torch

from sllm.checkpoint.format.dtypes import BITS
from sllm.checkpoint.format.manifest import Manifest, PartitionEntry, TensorEntry
from sllm.checkpoint.reading.tensors import tensors_over
from sllm.errors import UnsupportedModel
from sllm.node.tiers.pool import Pool
from sllm.node.worker.model.mapping import map_chunks

CHUNK = 4096


def manifest_of(*entries: TensorEntry) -> Manifest:
    partition = PartitionEntry("partition-00000.bin", 2 * CHUNK, CHUNK, ("0" * 32, "0" * 32))
    return Manifest(1, entries, (partition,), (), "0" * 32)


@pytest.mark.parametrize("dtype", [name for name, bits in BITS.items() if bits >= 8])
def test_every_dtype_of_whole_bytes_is_read_in_place(dtype: str) -> None:
    size = BITS[dtype] // 8 * 6
    memory = bytearray(range(256)) * 32
    entry = TensorEntry("t", dtype, (2, 3), 0, 64, size)
    tensor = tensors_over([entry], [memoryview(memory)])["t"]
    assert tensor.shape == (2, 3)
    assert tensor.is_contiguous()
    assert bytes(tensor.flatten().view(torch.uint8).numpy()) == bytes(memory[64 : 64 + size])


def test_dtypes_that_torch_lacks_are_refused_by_name() -> None:
    entry = TensorEntry("odd", "F6_E2M3", (4,), 0, 0, 3)
    with pytest.raises(UnsupportedModel, match=r"'odd' is F6_E2M3"):
        tensors_over([entry], [memoryview(bytearray(CHUNK))])


def test_tensors_lie_in_the_mapping_and_tied_ones_share_it() -> None:
    pool = Pool(4 * CHUNK, CHUNK)
    with pool.view(3) as view:
        view[:8] = (42).to_bytes(8, "little")
    mapping = map_chunks(pool.fd, CHUNK, [[3, 0]])
    manifest = manifest_of(
        TensorEntry("scalar", "I64", (), 0, 0, 8),
        TensorEntry("tied", "I64", (1,), 0, 0, 8),
        TensorEntry("empty", "BF16", (0, 7), 0, 64, 0),
        TensorEntry("across", "F32", (1040,), 0, 64, 4160),
    )
    tensors = tensors_over(manifest.tensors, [mapping.buffer(0)])
    assert tensors["scalar"].item() == 42
    assert tensors["scalar"].data_ptr() == tensors["tied"].data_ptr() == mapping.address
    assert tensors["across"].data_ptr() == mapping.address + 64
    assert tensors["empty"].shape == (0, 7)
    assert list(tensors) == ["scalar", "tied", "empty", "across"]
    tensors["scalar"].fill_(1)
    assert tensors["tied"].item() == 1
    with pool.view(3) as view:
        assert int.from_bytes(view[:8], "little") == 42
    pool.close()

"""Fills one chunk of a checkpoint with what its plan says."""

from collections.abc import Callable, Sequence

from sllm.checkpoint.importing.chunk_plan import ChunkPlan, Piece, runs
from sllm.checkpoint.importing.conversion import convert
from sllm.checkpoint.sources.weight_reader import WeightReader


def fill(
    memory: memoryview, plan: ChunkPlan, reader: WeightReader, read: Callable[[int], object]
) -> None:
    """Fills a chunk.

    Args:
        memory: the chunk's.
        plan: what goes where.
        reader: the source's.
        read: told, after every read, how many bytes of tensors it brought; what it raises ends
            the work.

    Raises:
        CheckpointCorrupt, SourceUnavailable: as `WeightReader` says.
    """
    _zero_gaps(memory, plan.pieces)
    for run in runs(plan.pieces):
        _fill_run(memory, run, reader)
        read(sum(piece.size for piece in run))


def _zero_gaps(memory: memoryview, pieces: Sequence[Piece]) -> None:
    done = 0
    for piece in pieces:
        memory[done : piece.offset] = bytes(piece.offset - done)
        done = piece.offset + piece.chunk_size
    memory[done:] = bytes(len(memory) - done)


def _fill_run(memory: memoryview, run: Sequence[Piece], reader: WeightReader) -> None:
    """Reads in place what can be; the rest goes through memory of one run's size."""
    first, file = run[0], run[0].tensor.file
    if len(run) == 1 and not first.converted:
        reader.read_into(_place(memory, first), file, first.start)
        return
    buffer = memoryview(bytearray(run[-1].end - first.start))
    reader.read_into(buffer, file, first.start)
    for piece in run:
        stored = buffer[piece.start - first.start : piece.end - first.start]
        _place(memory, piece)[:] = (
            convert(stored, piece.tensor.dtype, piece.dtype) if piece.converted else stored
        )


def _place(memory: memoryview, piece: Piece) -> memoryview:
    return memory[piece.offset : piece.offset + piece.chunk_size]

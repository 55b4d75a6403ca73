"""What `sllm pack --for` has made of a packed checkpoint, and left within it."""

from dataclasses import dataclass

from sllm.checkpoint.format.form import FORMS_DIRECTORY, WeightForm, expect_form
from sllm.checkpoint.format.manifest import corrupt
from sllm.checkpoint.format.manifest_file import MANIFEST_FILE
from sllm.checkpoint.sources.sources import LocalSource, SourceFiles, find
from sllm.node.tiers.checkpoints import SourceRecord


@dataclass(frozen=True, slots=True)
class PackedForm:
    """Weights that were made ready ahead of any deployment, where they lie."""

    files: SourceFiles
    form: WeightForm

    @property
    def kept_bytes(self) -> int:
        """Bytes of the small files that a node keeps of it."""
        return sum(path.stat().st_size for path in self.files.files)


def find_packed_form(
    source: LocalSource, record: SourceRecord, chunk_bytes: int
) -> PackedForm | None:
    """What lies within a source, ready for what a record names. None: nothing of use.

    Args:
        source: a checkpoint.
        record: the source, with the form that is looked for.
        chunk_bytes: of chunks as the pool has them.

    Raises:
        SllmError: It contradicts itself, or is of another checkpoint.
        OSError: It cannot be read.
    """
    directory, room = source.directory / FORMS_DIRECTORY / record.form, source.settled
    if not (directory / MANIFEST_FILE).is_file():
        return None
    if not room.holds(directory.resolve()):
        raise corrupt(directory, "leads out of its checkpoint")
    files = find(LocalSource(directory, room))
    form = expect_form(directory, record.form, record.made_of, room)
    packed = files.packed
    if packed is None or any(one.chunk_size != chunk_bytes for one in packed.partitions):
        return None
    return PackedForm(files, form)

"""A checkpoint as a node knows it, whichever of its tiers hold it."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from sllm.checkpoint.format.form import WeightForm
from sllm.checkpoint.format.manifest import Manifest


@dataclass(frozen=True, slots=True)
class SourceRecord:
    """What a checkpoint came from."""

    url: str
    fingerprint: str
    """Of the source's files when they were read."""
    dtype: str | None
    """Torch's name for what weights were converted to; None: they were not."""
    identity: str = field(default="", compare=False)
    """Of what was found there, wherever it lies. Empty: nobody has looked."""
    form: str = ""
    """What it was made ready for; see `sllm.node.instances.forms`. Empty: it is as published."""
    made_of: str = field(default="", compare=False)
    """Digest of the checkpoint that it was made ready of, if it was."""

    @property
    def published(self) -> "SourceRecord":
        """The same source, as it is published."""
        return replace(self, form="", made_of="")


@dataclass(slots=True, eq=False)
class Checkpoint:
    """What it consists of, and where its small files can be read."""

    manifest: Manifest
    directory: Path
    """Of the model's small files: configuration, tokenizer and the like."""
    sources: list[SourceRecord] = field(default_factory=list, kw_only=True)
    """What is known to lead to it."""
    form: WeightForm | None = field(default=None, kw_only=True)
    """What it was made ready for, as it says itself. None: it is as published, or does not say."""

    @property
    def weights(self) -> Path:
        """The directory of its partitions, of a copy on SSD."""
        return self.directory

    @property
    def urls(self) -> tuple[str, ...]:
        """Sources that lead to it."""
        return tuple(dict.fromkeys(record.url for record in self.sources if not record.form))

    @property
    def made_of(self) -> str:
        """Digest of the checkpoint that it was made ready of. Empty: it is as published."""
        return next((record.made_of for record in self.sources if record.form), "")

    @property
    def made_for(self) -> str:
        """What it was made ready for, which its form begins with; see `WeightForm.label`."""
        forms = (record.form for record in self.sources if record.form)
        return next(forms, "").rpartition("-")[0]

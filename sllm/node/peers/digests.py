"""What an import's chunks must be, as far as other nodes can tell."""

from collections.abc import Collection, Mapping
from threading import Lock

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.importing.import_plan import ImportPlan
from sllm.checkpoint.importing.journal import ChunkKey
from sllm.node.peers.manifests import digests_of, manifest_of
from sllm.node.peers.news import News
from sllm.node.peers.words import Words


class Digests:
    """Proven by a manifest, or else as those say who get the same. For all threads.

    A source that was not packed says nothing of its chunks. Nodes that get it at the same time, and
    read the same bytes of it into the same chunks, are then believed what each has digested, as
    they are believed the tokens that they compute; see `Words`.
    """

    def __init__(self, plan: ImportPlan, chunk_bytes: int) -> None:
        """Of the import of a plan in chunks of this size."""
        self.digest = ""
        """That the checkpoint must have. Empty: nobody knows it."""
        self.manifest: Manifest | None = plan.packed
        """What the checkpoint consists of, where that is proven before it has come."""
        self.layout = plan.describe(chunk_bytes)
        """See `News.layout`."""
        self._plan = plan
        self._chunk_bytes = chunk_bytes
        counts = plan.layout.chunk_counts(chunk_bytes)
        self._keys = [(part, index) for part, count in enumerate(counts) for index in range(count)]
        self._known: dict[ChunkKey, str] = dict(plan.expected_digests)
        # Nobody's news wait for one another but for this: a large manifest takes a second to read,
        # and is read once.
        self._learning = Lock()
        self._lock = Lock()
        """Guards what is below."""
        self._words = Words()
        self._taken: dict[int, str] = {}
        """Digests of chunks that are here and have not come from the source."""

    @property
    def proven(self) -> Mapping[ChunkKey, str]:
        """By chunk; of none, where fellows alone say what they must be."""
        return self._known if self.manifest else {}

    @property
    def count(self) -> int:
        """Of all chunks."""
        return len(self._keys)

    def of(self, chunk: int) -> str | None:
        """Of a chunk, counted over all partitions. None: not known."""
        if (known := self._known.get(self._keys[chunk])) is not None:
            return known
        with self._lock:
            return self._words.of(chunk)

    def is_disputed(self, chunk: int) -> bool:
        """Whether only the source can tell what a chunk is."""
        with self._lock:
            return not self.manifest and self._words.is_disputed(chunk)

    def learn(self, name: str, news: News) -> str:
        """Takes in what a node says; what is wrong with it, or nothing."""
        if news.layout and news.layout != self.layout:
            return "it reads the source into other chunks"
        with self._learning:
            if self.manifest is None and news.manifest:
                found = manifest_of(news.manifest, self.digest, self._plan, self._chunk_bytes)
                if found is None:
                    return "its manifest is of another checkpoint, or of other chunks"
                return self._believe_manifest(name, found)
            return "" if self.manifest else self._believe(name, news)

    def _believe_manifest(self, name: str, manifest: Manifest) -> str:
        """A manifest proves something where its digest was named; otherwise it is a node's word."""
        digests = digests_of(manifest)
        if self.digest:
            self.manifest, self._known = manifest, dict(digests)
            return ""
        with self._lock:
            return self._words.hear(name, {n: digests[key] for n, key in enumerate(self._keys)})

    def _believe(self, name: str, news: News) -> str:
        if (news.whole or news.arrived) and not news.layout:
            return "nobody knows what its chunks must be"
        said = {chunk: one for chunk, one in news.arrived.items() if chunk < len(self._keys)}
        with self._lock:
            return self._words.hear(name, said)

    def took(self, chunk: int, digest: str, name: str = "") -> None:
        """Notes what a chunk is that is here, and has not come from the source.

        `name`: of who says so; empty: others have.
        """
        with self._lock:
            self._taken[chunk] = digest
            if name:
                self._words.hear(name, {chunk: digest})

    def read(self, chunk: int, digest: str) -> Collection[str]:
        """Notes what the source has given; names those that have said something else."""
        with self._lock:
            self._taken.pop(chunk, None)
            return self._words.read(chunk, digest)

    @property
    def doubted(self) -> Collection[int]:
        """Chunks that are here, and of which nobody is believed any more what they are."""
        with self._lock:
            taken = dict(self._taken)
        return [chunk for chunk, digest in sorted(taken.items()) if self.of(chunk) != digest]

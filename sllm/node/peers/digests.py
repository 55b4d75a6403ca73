"""What an import's chunks must be, as far as other nodes can tell."""

from collections.abc import Mapping
from threading import Lock

from sllm.checkpoint.format.manifest import Manifest
from sllm.checkpoint.importing.import_plan import ImportPlan
from sllm.checkpoint.importing.journal import ChunkKey
from sllm.node.peers.manifests import digests_of, manifest_of
from sllm.node.peers.news import News


class Digests:
    """Proven by a manifest, or else as those say who get the same. For all threads.

    A source that was not packed says nothing of its chunks. Nodes that get it at the same time, and
    read the same bytes of it into the same chunks, are then believed what each has digested, as
    they are believed the tokens that they compute.
    """

    def __init__(self, plan: ImportPlan, chunk_bytes: int) -> None:
        """Of the import of a plan in chunks of this size."""
        self.digest = ""
        """That the checkpoint must have. Empty: nobody knows it."""
        self.manifest: Manifest | None = plan.packed
        """What the checkpoint consists of, where that is known before it has come."""
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

    @property
    def proven(self) -> Mapping[ChunkKey, str]:
        """By chunk; of none, where fellows alone say what they must be."""
        return self._known if self.manifest else {}

    def of(self, chunk: int) -> str | None:
        """Of a chunk, counted over all partitions. None: not known."""
        return self._known.get(self._keys[chunk])

    def learn(self, news: News) -> str:
        """Takes in what a node says; what is wrong with it, or nothing."""
        if news.layout and news.layout != self.layout:
            return "it reads the source into other chunks"
        with self._learning:
            if self.manifest is None and news.manifest:
                found = manifest_of(news.manifest, self.digest, self._plan, self._chunk_bytes)
                if found is None:
                    return "its manifest is of another checkpoint, or of other chunks"
                self.manifest, self._known = found, dict(digests_of(found))
            return "" if self.manifest else self._believe(news)

    def _believe(self, news: News) -> str:
        if (news.whole or news.arrived) and not news.layout:
            return "nobody knows what its chunks must be"
        for chunk, digest in news.arrived.items():
            if chunk < len(self._keys) and digest:
                self._known.setdefault(self._keys[chunk], digest)
        return ""

"""Clients of node agents: one for each node, made when it reports and closed when it is lost."""

import asyncio
from collections.abc import Mapping

from sllm import errors, rpc
from sllm.control.cluster.nodes import NodeFacts
from sllm.control.types.authority import ALONE, Authority
from sllm.control.wire.node_client import Node


class Nodes:
    """The clients of all nodes that are members."""

    def __init__(self, dial: rpc.Dial = rpc.channel, authority: Authority = ALONE) -> None:
        """`dial` leads to nodes, and by `authority` they are given orders."""
        self._dial = dial
        self._authority = authority
        self._nodes: dict[str, Node] = {}

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def by_id(self) -> Mapping[str, Node]:
        """Every member."""
        return self._nodes

    def member(self, node_id: str) -> Node:
        """The client of one node.

        Raises:
            errors.NodeNotFound: It is no member, or no longer.
        """
        node = self._nodes.get(node_id)
        if node is None:
            raise errors.NodeNotFound(
                f"node {node_id!r} is not there; ListNodes tells which nodes are"
            )
        return node

    def join(self, facts: NodeFacts) -> Node | None:
        """Makes the client of a node; returns one of another address, which is to be closed."""
        before = self._nodes.get(facts.node_id)
        if before and before.address == facts.address:
            return None
        self._nodes[facts.node_id] = Node(facts, self._dial, self._authority)
        return before

    def reported(self, node_id: str) -> None:
        """Has a member know the term in which it is called, from its first report on."""
        self._nodes[node_id].tell_term()

    def drop(self, node_id: str) -> Node | None:
        """Takes out the client of a lost node, which is to be closed."""
        return self._nodes.pop(node_id, None)

    async def close(self) -> None:
        """Closes all channels."""
        nodes, self._nodes = list(self._nodes.values()), {}
        await asyncio.gather(*(node.close() for node in nodes))

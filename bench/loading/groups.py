"""All contenders."""

from bench.loading.node import LIBRARY_GROUP, NODE_GROUP
from bench.loading.peers import PEERS

GROUPS = {group.names: group for group in (NODE_GROUP, LIBRARY_GROUP, *PEERS)}

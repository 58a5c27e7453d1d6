"""What tests stand on: real servers with their whole life cycle, and waiting that has a deadline.

Nothing here is a stand-in for a component. A server that cannot be started fails the test that asked for it.
"""

from tests.support.cluster import Cluster
from tests.support.native import NatsServer
from tests.support.node import Node
from tests.support.waiting import eventually, wait_until

__all__ = ["Cluster", "NatsServer", "Node", "eventually", "wait_until"]

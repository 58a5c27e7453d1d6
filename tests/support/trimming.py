"""What an operator may do to a log and agentfield never does: cut its beginning off."""

from agentfield.fabric.fabric import Fabric
from agentfield.fabric.jetstream import api


async def trim(fabric: Fabric, first: int) -> None:
    """Leave nothing of the log from before this sequence."""
    name = fabric.log.stream
    info = await api(fabric.connection, f"STREAM.INFO.{name}")
    left = info["state"]["last_seq"] - first + 1
    await api(fabric.connection, f"STREAM.UPDATE.{name}", {**info["config"], "max_msgs": left, "discard": "old"})
    assert (await fabric.log.state())["first_seq"] == first

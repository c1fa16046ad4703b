"""Exit with 0 if Prefect's background services that run on this host were heard of, with 1 otherwise: a health check.

They answer no page, and their process stays when what runs in it has ended: a look at the process says nothing. The
worker that they run in sends a heartbeat through Redis every other second.
"""

import asyncio
import os
import socket
import sys
from pathlib import Path

from docket import Docket


def services(pid: str) -> bool:
    """Whether a process of this host is that of the services: the server has a worker for its own tasks, too."""
    try:
        return b"services" in Path("/proc", pid, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False


async def heard() -> list[str]:
    async with Docket(name="prefect", url=os.environ["PREFECT_SERVER_DOCKET_URL"]) as docket:
        names = [worker.name.partition("#") for worker in await docket.workers()]
    return [pid for host, _, pid in names if host == socket.gethostname() and services(pid)]


if not asyncio.run(asyncio.wait_for(heard(), timeout=8)):
    sys.exit("no heartbeat of Prefect's services on this host")

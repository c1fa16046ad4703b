"""A process for which everything is read-only but a few folders, as in a container with `read_only: true`.

The process gets a mount namespace of its own, which needs the right to mount; kernel file systems stay as they are, as
they do in a container. What a program made of itself where it is installed, at an earlier start on this machine, is
hidden: an image lacks it.
"""

from __future__ import annotations

import functools
import importlib.util
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

# Arguments: `writable:FOLDER` and `hidden:FOLDER`, then `--` and the command. It takes the place of the shell, so that
# the process that was started is the one that runs.
_SCRIPT = r"""
set -eu
before=$(awk '$5 !~ "^/(proc|sys|dev)(/|$)" {print $5}' /proc/self/mountinfo | sort -u)
for part in "$@"; do
  case $part in
    --) break ;;
    writable:*) mount --bind "${part#*:}" "${part#*:}" ;;
    hidden:*) mount -t tmpfs -o ro tmpfs "${part#*:}" ;;
  esac
done
for place in $before; do
  mount -o remount,bind,ro "$place"
done
while [ "$1" != -- ]; do shift; done
shift
cd "$PWD"  # the folder that was current lies on the file system as it was
exec "$@"
"""


def confined(command: Sequence[str], writable: Iterable[Path]) -> list[str]:
    """The command line that runs `command` so; the writable folders have to be there."""
    folders = [f"writable:{folder.resolve()}" for folder in writable]
    folders += [f"hidden:{folder}" for folder in _made_when_installed() if folder.is_dir()]
    unshare = ["unshare", "--mount", "--propagation", "private", "/bin/sh", "-c", _SCRIPT, "confined"]
    return [*unshare, *folders, "--", *command]


@functools.cache
def available() -> bool:
    """Whether this machine lets us."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            done = subprocess.run(confined(["true"], [Path(folder)]), capture_output=True, check=False)
        except FileNotFoundError:
            return False
    return done.returncode == 0


def _made_when_installed() -> list[Path]:
    """Prefect writes its pages into its own package when a server starts, unless they are there."""
    spec = importlib.util.find_spec("prefect")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    server = Path(spec.submodule_search_locations[0]) / "server"
    return [server / "ui_build", server / "ui_v2_build"]

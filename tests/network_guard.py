"""A machine without a network: connections and name look-ups of others are refused and kept.

It acts through a `sitecustomize`, so that processes which a guarded one starts are guarded, too.
"""

from __future__ import annotations

from pathlib import Path

_GUARD = """
import errno, ipaddress, os, socket, sys, traceback

_LOG = os.environ["NETWORK_LOG"]

def _is_local(host):
    if host is None or host in ("", b"", "localhost", b"localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(host.decode() if isinstance(host, bytes) else host)
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified

def _refuse(what, host):
    with open(_LOG, "a") as log:
        log.write(f"{what} {host!r} in {sys.argv!r}\\n{''.join(traceback.format_stack(limit=12))}\\n")
    raise OSError(errno.ENETUNREACH, f"the test refuses {what} {host!r}")

def _guard_method(name, position):
    original = getattr(socket.socket, name)
    def guarded(self, *args):
        address = args[position] if position >= 0 else args[-1]
        if self.family in (socket.AF_INET, socket.AF_INET6) and not _is_local(address[0]):
            _refuse(name, address[0])
        return original(self, *args)
    setattr(socket.socket, name, guarded)

for _name, _position in [("connect", 0), ("connect_ex", 0), ("sendto", -1)]:
    _guard_method(_name, _position)

def _guard_function(name):
    original = getattr(socket, name)
    def guarded(host, *args, **kwargs):
        if not _is_local(host):
            _refuse(name, host)
        return original(host, *args, **kwargs)
    setattr(socket, name, guarded)

for _name in ("getaddrinfo", "gethostbyname", "gethostbyname_ex"):
    _guard_function(_name)
"""


def network_guard(folder: Path) -> Path:
    """Write the guard into a new folder, for PYTHONPATH; the file that NETWORK_LOG names gets what was attempted."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(_GUARD)
    return folder

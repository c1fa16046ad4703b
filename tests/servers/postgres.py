"""PostgreSQL from Debian's package, in a temporary folder on a free port."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import psutil
import pytest


def binaries() -> Path | None:
    """The folder of the newest PostgreSQL's programs; None where none is installed."""
    found = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if not found and (on_path := shutil.which("postgres")):
        found = [Path(on_path).resolve().parent]
    return max(found, key=lambda folder: (len(folder.parts[-2]), folder.parts[-2]), default=None)


def require() -> Path:
    """The folder of the programs; the test is skipped where there is none."""
    folder = binaries()
    if folder is None:
        pytest.skip("no PostgreSQL: apt-get install postgresql")
    return folder


def account() -> pwd.struct_passwd:
    """Whom PostgreSQL runs as: it refuses root."""
    if os.geteuid() != 0:
        return pwd.getpwuid(os.geteuid())
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise RuntimeError("neither postgres nor nobody is a user of this machine")


class Postgres:
    """One cluster. Its superuser is `postgres`, without a password through the socket folder alone.

    Attributes:
        folder: data, socket and log; removed by `remove`. It lies directly in the system's temporary folder, for the
            user that PostgreSQL runs as cannot enter those of pytest, and a socket's path must be short.
        port: the port of 127.0.0.1; every role needs its password there.
    """

    def __init__(self, port: int):
        self.folder, self.port = Path(tempfile.mkdtemp(prefix="purecc-postgres-")), port
        self._binaries = require()
        self._account = account()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def superuser(self) -> dict[str, str]:
        """The environment in which psql and its kin are the superuser."""
        return {
            "PATH": f"{self._binaries}:{os.environ['PATH']}",
            "PGHOST": str(self.folder),
            "PGPORT": str(self.port),
            "PGUSER": "postgres",
        }

    def start(self, *, wait: bool = True) -> None:
        """Start the cluster; it is made where there is none."""
        data = self.folder / "data"
        if not data.is_dir():
            os.chown(self.folder, self._account.pw_uid, self._account.pw_gid)
            options = ["--username=postgres", "--auth-local=trust", "--auth-host=scram-sha-256"]
            options += ["--encoding=UTF8", "--locale=C", "--no-sync"]
            password = self.folder / "password"
            password.write_text("superuser\n")
            os.chown(password, self._account.pw_uid, self._account.pw_gid)
            self._run(["initdb", f"--pgdata={data}", f"--pwfile={password}", *options])
            password.unlink()
        settings = {
            "port": self.port,
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": self.folder,
            "fsync": "off",  # a test's data need not survive the machine
            "max_connections": 200,
        }
        command = [str(self._binaries / "postgres"), "-D", str(data)]
        command += [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, start_new_session=True, **self._as_account()
            )
        while wait and subprocess.run(["pg_isready", "-q"], env=self.superuser, check=False).returncode != 0:
            assert self._process.poll() is None, (self.folder / "log").read_text()

    def stop(self) -> None:
        """A fast shutdown: open transactions are rolled back."""
        process, self._process = self._process, None
        if process is not None and process.poll() is None:
            process.send_signal(2)
            process.wait(timeout=60)

    def remove(self) -> None:
        """Stop it and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    def kill(self) -> None:
        """As when the machine loses power; the next start recovers."""
        process, self._process = self._process, None
        if process is not None:
            backends = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            process.wait()
            psutil.wait_procs(backends, timeout=60)  # they end when they notice; until then nothing can be started
            (self.folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def psql(self, statement: str, *, database: str = "postgres") -> str:
        """Run a statement as the superuser; unaligned rows without a header."""
        command = ["psql", "--no-psqlrc", "-At", "--set=ON_ERROR_STOP=1", "--dbname", database, "--command", statement]
        done = subprocess.run(command, env=self.superuser, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.strip()

    def _run(self, command: Sequence[str]) -> None:
        program = [str(self._binaries / command[0]), *command[1:]]
        done = subprocess.run(
            program, capture_output=True, text=True, cwd=self.folder, check=False, **self._as_account()
        )
        assert done.returncode == 0, done.stderr

    def _as_account(self) -> dict[str, object]:
        if os.geteuid() != 0:
            return {}
        return {"user": self._account.pw_uid, "group": self._account.pw_gid, "extra_groups": []}

"""Save the databases and the artifacts of the servers into a folder, and bring them back into empty ones.

    python backup.py save FOLDER       FOLDER/<time>: a dump per database, every object of the bucket, SHA256SUMS
    python backup.py restore FOLDER    FOLDER: one such folder; refused unless databases and bucket are empty
    python backup.py check FOLDER      every file against SHA256SUMS

The databases are dumped first, in one moment each, and artifacts are only ever added: whatever a dump refers to is
among the objects that are copied after it, unless somebody deletes meanwhile. Reads POSTGRES_ADDRESS (host:port),
PREFECT_DATABASE_PASSWORD, MLFLOW_DATABASE_PASSWORD, BUCKET, MLFLOW_S3_ENDPOINT_URL and the usual AWS_* variables.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import quote, unquote

import boto3

DATABASES = {"prefect": "prefect", "mlflow": "mlflow", "mlflow_auth": "mlflow"}  # name -> owner
MANIFEST = "SHA256SUMS"


class Failed(Exception):
    """The end of the program, with a message for a person."""


def environment(database: str) -> dict[str, str]:
    """What PostgreSQL's programs need to reach a database as its owner."""
    owner = DATABASES[database]
    host, _, port = os.environ["POSTGRES_ADDRESS"].partition(":")
    password = os.environ[f"{owner.upper()}_DATABASE_PASSWORD"]
    return {
        **os.environ,
        "PGHOST": host,
        "PGPORT": port,
        "PGUSER": owner,
        "PGDATABASE": database,
        "PGPASSWORD": password,
    }


def program(database: str, *command: str) -> str:
    done = subprocess.run(command, env=environment(database), capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{command[0]} of {database}: {done.stderr.strip()}")
    return done.stdout.strip()


def bucket() -> tuple[object, str]:
    return boto3.client("s3", endpoint_url=os.environ["MLFLOW_S3_ENDPOINT_URL"]), os.environ["BUCKET"]


def keys() -> list[str]:
    client, name = bucket()
    pages = client.get_paginator("list_objects_v2").paginate(Bucket=name)
    return sorted(entry["Key"] for page in pages for entry in page.get("Contents", ()))


def digests(folder: Path) -> dict[str, str]:
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file() and file.name != MANIFEST:
            with file.open("rb") as stream:
                found[file.relative_to(folder).as_posix()] = hashlib.file_digest(stream, "sha256").hexdigest()
    return found


def save(target: Path) -> None:
    final = target / time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    partial = target / f".{final.name}.partial"
    if final.exists() or partial.exists():
        raise Failed(f"{final} is there already, or being made")
    partial.mkdir(parents=True)
    try:
        for database in DATABASES:
            program(database, "pg_dump", "--format=custom", "--file", str(partial / f"{database}.dump"))
        client, name = bucket()
        objects = partial / "objects"
        objects.mkdir()
        for key in keys():
            client.download_file(name, key, str(objects / quote(key, safe="")))  # one flat folder: no key leads out
        found = digests(partial)
        (partial / MANIFEST).write_text("".join(f"{digest}  {file}\n" for file, digest in found.items()))
        partial.rename(final)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    print(json.dumps({"backup": str(final), "objects": len(found) - len(DATABASES)}))


def check(source: Path) -> None:
    manifest = source / MANIFEST
    if not manifest.is_file():
        raise Failed(f"{source}: no {MANIFEST}: not a backup, or one that was cut off")
    stated = {}
    for line in manifest.read_text().splitlines():
        digest, _, file = line.partition("  ")
        stated[file] = digest
    found = digests(source)
    wrong = sorted(file for file in stated.keys() | found.keys() if stated.get(file) != found.get(file))
    if wrong:
        raise Failed(f"{source}: {len(wrong)} files are missing, changed or not of the backup, e.g. {wrong[0]}")
    missing = [database for database in DATABASES if f"{database}.dump" not in stated]
    if missing:
        raise Failed(f"{source}: without a dump of {', '.join(missing)}")


def restore(source: Path) -> None:
    check(source)
    for database in DATABASES:
        count = program(database, "psql", "-At", "-c", "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'")
        if count != "0":
            raise Failed(f"the database {database} is not empty: restore into new servers, before they are started")
    if present := keys():
        raise Failed(f"the bucket is not empty: it holds {len(present)} objects")
    client, name = bucket()
    files = sorted((source / "objects").iterdir())
    for file in files:
        client.upload_file(str(file), name, unquote(file.name))
    for database in DATABASES:
        options = ["--no-owner", "--no-privileges", "--no-comments", "--exit-on-error", "--single-transaction"]
        program(database, "pg_restore", *options, "--dbname", database, str(source / f"{database}.dump"))
    if len(keys()) != len(files):
        raise Failed(f"{len(files)} objects were sent, the bucket holds {len(keys())}")
    print(json.dumps({"restored": str(source), "objects": len(files)}))


def main() -> None:
    actions = {"save": save, "restore": restore, "check": check}
    if len(sys.argv) != 3 or sys.argv[1] not in actions:
        sys.exit(__doc__)
    os.umask(0o077)  # the dumps hold the users' password hashes, and everything else
    try:
        actions[sys.argv[1]](Path(sys.argv[2]))
    except (Failed, OSError) as error:
        sys.exit(f"backup: {error}")


if __name__ == "__main__":
    main()

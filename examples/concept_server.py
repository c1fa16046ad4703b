"""One base in memory, many concepts: an HTTP server that picks adapters by the names in a prompt.

    python examples/concept_server.py --port 8010
    curl -s localhost:8010/images -H 'Content-Type: application/json' \
         -d '{"prompt": "a <striped_star> star on the left", "seed": 1}' --output star.png

`PURECC_PROFILE` names the profile (default: tiny). The champion of a concept is fetched, verified and loaded when a
prompt first names it; `POST /concepts/NAME` puts its newest champion in the place of the loaded one, without a reload
of the base. It listens at 127.0.0.1. Any other address (`--host`) is refused unless `PURECC_SERVER_TOKEN` is set; then
every request has to bear it (`Authorization: Bearer TOKEN`). That is plain HTTP: beyond a trusted network put a proxy
that speaks TLS before it. It answers to the names in `PURECC_ALLOWED_HOSTS` (default: localhost) and to no web page: a
page of somebody else's that is open in a browser here could otherwise use it.
"""

from __future__ import annotations

import argparse
import contextlib
import hmac
import json
import logging
import os
import re
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from mlflow.exceptions import MlflowException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from components.backbones.sd3 import SD3Backbone
from components.concepts.texts import NAME_PATTERN
from components.errors import IntegrityError, InvalidInput, PureCCError
from components.secrets import redact
from components.serving.requests import read_request
from components.serving.service import Find, ImageService
from components.settings import load_profile, project_root
from components.tracking import blessings, registry, signing
from components.tracking.store import Store, open_store
from flows.ui import require_auth

logger = logging.getLogger("concept_server")

TOKEN = "PURECC_SERVER_TOKEN"
MAXIMUM_BODY = 16_384  # bytes
LOCAL = ("localhost", "127.0.0.1", "[::1]")


def champions(store: Store, public_key: Path | None = None) -> Find:
    """Finds the champion of a concept; its bytes and blessings are verified before anything opens them.

    Args:
        public_key: the bytes have to be signed with its pair; default: the configured key, if any.
    """

    @contextlib.contextmanager
    def find(concept: str) -> Iterator[Path]:
        champion = registry.by_alias(store, concept)
        if champion is None:
            raise InvalidInput(f"<{concept}> has no champion", field="prompt", mend=f"purecc customize {concept}")
        with registry.adapter_folder(store, concept, champion.number) as folder:
            try:
                blessings.require(champion, folder, public_key, act="served")
            except InvalidInput as error:  # the key that is configured here cannot be read: not the caller's fault
                raise blessings.PromotionRefused(str(error)) from error
            yield folder

    return find


def create_app(service: ImageService, find: Find, hosts: Sequence[str] = LOCAL, token: str | None = None) -> FastAPI:
    """The server around a service.

    Args:
        hosts: names under which it answers.
        token: what every request has to bear; None: none.
    """
    app = FastAPI(title="PureCC", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def no_page(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if "origin" in request.headers:  # browsers name the page that asks; other clients have none
            return _answer(403, "not for web pages", field="Origin")
        return await answer(request)

    @app.middleware("http")
    async def only_with_token(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        # compared as bytes: a header may hold any; in a time that does not tell how much of it was right
        borne = request.headers.get("authorization", "").encode("latin-1", "replace")
        if token is not None and not hmac.compare_digest(borne, f"Bearer {token}".encode()):
            return _answer(
                401, "no token, or a wrong one", field="Authorization", headers={"WWW-Authenticate": "Bearer"}
            )
        return await answer(request)

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.exception_handler(InvalidInput)
    async def refuse(request: Request, error: InvalidInput) -> JSONResponse:
        return _answer(422, error.problem, field=error.field, mend=error.mend)

    # What is not the caller's fault. The reason is the operator's to read: it names versions, keys and servers.
    @app.exception_handler(IntegrityError)
    async def broken(request: Request, error: IntegrityError) -> JSONResponse:
        return _unavailable("the adapter is not whole", error)

    @app.exception_handler(blessings.PromotionRefused)
    async def unblessed(request: Request, error: blessings.PromotionRefused) -> JSONResponse:
        return _unavailable("the champion may not be served: purecc models verify says why", error)

    @app.exception_handler(PureCCError)
    async def failed(request: Request, error: PureCCError) -> JSONResponse:
        return _unavailable(f"the concept cannot be served now ({type(error).__name__})", error)

    @app.exception_handler(MlflowException)
    async def away(request: Request, error: MlflowException) -> JSONResponse:
        return _unavailable("the registry does not answer", error)

    @app.post("/images")
    async def images(request: Request) -> Response:
        """A JSON object with `prompt` and what `ImageRequest` knows -> PNG; its facts stand in a header."""
        asked = read_request(await _body(request))
        drawn = await run_in_threadpool(service.draw, asked)
        return Response(drawn.png, media_type="image/png", headers={"X-PureCC-Facts": json.dumps(drawn.facts)})

    @app.post("/concepts/{name}")
    async def refresh(name: str) -> dict[str, Any]:
        if re.fullmatch(NAME_PATTERN, name) is None:
            raise InvalidInput("not the name of a concept", field="name", mend="small letters, digits, _ and -")

        def replace() -> None:
            with find(name) as folder:
                service.add(name, folder)

        await run_in_threadpool(replace)
        return {"loaded": list(service.concepts)}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "loaded": list(service.concepts)}

    return app


def _answer(
    status: int,
    message: str,
    *,
    field: str | None = None,
    mend: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    return JSONResponse({"error": {"field": field, "message": message, "mend": mend}}, status, headers)


def _unavailable(message: str, error: Exception) -> JSONResponse:
    logger.error("%s", redact(str(error)))
    return _answer(503, message)


async def _body(request: Request) -> dict[str, Any]:
    body = b""
    async for part in request.stream():
        body += part
        if len(body) > MAXIMUM_BODY:
            raise InvalidInput(f"more than {MAXIMUM_BODY} bytes", field="body")
    try:
        content = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise InvalidInput("not JSON", field="body", mend='send e.g. {"prompt": "..."}') from error
    if not isinstance(content, dict):
        raise InvalidInput("not a JSON object", field="body", mend='send e.g. {"prompt": "..."}')
    return content


def _build() -> FastAPI:
    root, profile = project_root(), load_profile(os.environ.get("PURECC_PROFILE", "tiny"))
    find = champions(open_store(root), signing.policy_key(root, profile.promotion.public_key))
    backbone = SD3Backbone.load(profile.base, parts=("transformer", "text", "vae"))
    hosts = os.environ.get("PURECC_ALLOWED_HOSTS", ",".join(LOCAL)).split(",")
    service = ImageService(backbone, profile.evaluation.sampling, find)
    return create_app(service, find, hosts, os.environ.get(TOKEN) or None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until Ctrl-C; 1: the address or the project is not as it must be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--host", default="127.0.0.1", help=f"the address to listen at; beyond this machine with {TOKEN}"
    )
    parser.add_argument("--port", type=int, default=8010)
    given = parser.parse_args(arguments)
    import uvicorn

    try:
        require_auth(given.host, [TOKEN])
        app = _build()
    except PureCCError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    uvicorn.run(app, host=given.host, port=given.port)
    return 0


if __name__ == "__main__":  # the one way to start it: uvicorn's own would take any address
    sys.exit(main())

"""One base in memory, many concepts: an HTTP server that picks adapters by the names in a prompt.

    uvicorn --app-dir examples concept_server:app --host 127.0.0.1 --port 8010
    curl -s localhost:8010/images -H 'Content-Type: application/json' \
         -d '{"prompt": "a <striped_star> star on the left", "seed": 1}' --output star.png

`PURECC_PROFILE` names the profile (default: tiny). The champion of a concept is fetched, verified and loaded when a
prompt first names it; `POST /concepts/NAME` puts its newest champion in the place of the loaded one, without a reload
of the base. An example to start from: it asks nobody for a password, so keep it on this machine or behind a proxy that
does. It answers to the names in `PURECC_ALLOWED_HOSTS` (default: localhost) and to no web page: a page of somebody
else's that is open in a browser here could otherwise use it.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Awaitable, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.responses import JSONResponse
from starlette.middleware.trustedhost import TrustedHostMiddleware

from components.backbones.sd3 import SD3Backbone
from components.concepts.texts import NAME_PATTERN
from components.errors import IntegrityError, InvalidInput
from components.serving.requests import read_request
from components.serving.service import Find, ImageService
from components.settings import load_profile, project_root
from components.tracking import blessings, registry
from components.tracking.store import Store, open_store

MAXIMUM_BODY = 16_384  # bytes
LOCAL = ("localhost", "127.0.0.1", "[::1]")


def champions(store: Store) -> Find:
    """Finds the champion of a concept; its bytes are verified before anything opens them."""

    @contextlib.contextmanager
    def find(concept: str) -> Iterator[Path]:
        champion = registry.by_alias(store, concept)
        if champion is None:
            raise InvalidInput(f"<{concept}> has no champion", field="prompt", mend=f"purecc customize {concept}")
        with registry.adapter_folder(store, concept, champion.number) as folder:
            blessings.require(champion, folder)
            yield folder

    return find


def create_app(service: ImageService, find: Find, hosts: Sequence[str] = LOCAL) -> FastAPI:
    """The server around a service.

    Args:
        hosts: names under which it answers.
    """
    app = FastAPI(title="PureCC", docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def no_page(request: Request, answer: Callable[[Request], Awaitable[Response]]) -> Response:
        if "origin" in request.headers:  # browsers name the page that asks; other clients have none
            return JSONResponse({"error": {"field": "Origin", "message": "not for web pages", "mend": None}}, 403)
        return await answer(request)

    app.add_middleware(TrustedHostMiddleware, allowed_hosts=list(hosts))

    @app.exception_handler(InvalidInput)
    async def refuse(request: Request, error: InvalidInput) -> JSONResponse:
        return JSONResponse({"error": {"field": error.field, "message": error.problem, "mend": error.mend}}, 422)

    @app.exception_handler(IntegrityError)
    async def broken(request: Request, error: IntegrityError) -> JSONResponse:
        return JSONResponse({"error": {"field": None, "message": "the adapter is not whole", "mend": None}}, 503)

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
    profile = load_profile(os.environ.get("PURECC_PROFILE", "tiny"))
    find = champions(open_store(project_root()))
    backbone = SD3Backbone.load(profile.base, parts=("transformer", "text", "vae"))
    hosts = os.environ.get("PURECC_ALLOWED_HOSTS", ",".join(LOCAL)).split(",")
    return create_app(ImageService(backbone, profile.evaluation.sampling, find), find, hosts)


def __getattr__(name: str) -> Any:
    if name == "app":  # built when the server asks for it, not when a test imports this module
        globals()["app"] = _build()
        return globals()["app"]
    raise AttributeError(name)

"""The application: OpenAI's routes for one model."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from farthing.errors import DivergedError
from farthing.serving.answer import Answer, event
from farthing.serving.engine import Engine
from farthing.serving.guard import FAILED, GONE, Receive, Scope, Send
from farthing.serving.refusal import Refusal
from farthing.serving.request import CompletionRequest, parse
from farthing.serving.turns import HungUp, Turn, Turns

_JSON = "application/json"


class EventStream(Response):
    """Server-sent events as they are made; a turn that fails before its first event is answered as an error."""

    def __init__(self, turn: Turn[bytes]) -> None:
        super().__init__(media_type="text/event-stream")
        del self.headers["content-length"]
        self._turn = turn

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An ASGI application."""
        begun = False
        async with self._turn.attended(receive):
            try:
                async for chunk in self._turn:
                    if not begun:
                        await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
                        begun = True
                    await send({"type": "http.response.body", "body": chunk, "more_body": True})
            except HungUp:
                return
            except DivergedError as error:
                if not begun:
                    raise
                await send({"type": "http.response.body", "body": event(_diverged(error).body), "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


def build_app(engine: Engine, *, name: str, turns: Turns) -> FastAPI:
    """The routes.

    Args:
        engine: writes.
        name: what clients call the model.
        turns: how many may write at a time.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        turns.close()

    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None, redirect_slashes=False, lifespan=lifespan)
    model = {"id": name, "object": "model", "created": int(time.time()), "owned_by": "farthing"}

    @app.get("/health")
    async def health() -> dict[str, Any]:
        return {"status": "ok", "model": name, "requests": turns.there}

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [{**model, "context_length": engine.context_length}]}

    @app.get("/v1/models/{wanted}")
    async def one_model(wanted: str) -> dict[str, Any]:
        _check_name(wanted, name)
        return {**model, "context_length": engine.context_length}

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise Refusal(415, f"Content-Type: must be {_JSON}", code="unsupported_media_type")
        asked = parse(await request.body())
        _check_name(asked.model or name, name)
        if asked.stream:
            return EventStream(turns.take(_streamed(engine, name, asked)))
        turn = turns.take(_whole(engine, name, asked))
        async with turn.attended(request.receive):
            try:
                return JSONResponse(await anext(turn))
            except HungUp:
                return Response(status_code=GONE)

    _answer_errors(app)
    return app


def _whole(
    engine: Engine, name: str, asked: CompletionRequest
) -> Callable[[Callable[[], bool]], Iterator[dict[str, Any]]]:
    def work(stopped: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        job = engine.job(asked)
        yield Answer(name, job).whole(engine.write(job, stopped))

    return work


def _streamed(engine: Engine, name: str, asked: CompletionRequest) -> Callable[[Callable[[], bool]], Iterator[bytes]]:
    def work(stopped: Callable[[], bool]) -> Iterator[bytes]:
        job = engine.job(asked)
        yield from Answer(name, job).events(engine.write(job, stopped))

    return work


def _check_name(asked: str, name: str) -> None:
    if asked != name:
        raise Refusal(404, f"model: there is only {name!r} here", code="model_not_found", param="model")


def _diverged(error: DivergedError) -> Refusal:
    return Refusal(500, str(error), code="diverged")


def _answer_errors(app: FastAPI) -> None:
    """Every error in OpenAI's shape."""

    @app.exception_handler(Refusal)
    async def refused(_: Request, refusal: Refusal) -> Response:
        return JSONResponse(refusal.body, status_code=refusal.status, headers=refusal.headers)

    @app.exception_handler(DivergedError)
    async def diverged(_: Request, error: DivergedError) -> Response:
        return JSONResponse(_diverged(error).body, status_code=500)

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        # The guard hears of it too, and tells the terminal.
        return JSONResponse(FAILED.body, status_code=FAILED.status)

    routes = ", ".join(sorted(str(path) for route in app.routes if (path := getattr(route, "path", None))))

    @app.exception_handler(404)
    async def unknown(_: Request, error: Exception) -> Response:
        body = Refusal(404, f"no such route; there are {routes}", code="not_found").body
        return JSONResponse(body, status_code=404)

    @app.exception_handler(405)
    async def wrong_method(_: Request, error: Exception) -> Response:
        headers = getattr(error, "headers", None) or {}
        body = Refusal(
            405, f"this route takes {headers.get('Allow', 'another method')}", code="method_not_allowed"
        ).body
        return JSONResponse(body, status_code=405, headers=headers)

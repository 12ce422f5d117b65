"""The routes of the server: models, completions, sessions; errors in OpenAI's format. Needs the extra `serve`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import secrets
import time
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from sleeptrain.serve.batch import BatchThread
from sleeptrain.serve.errors import ApiError
from sleeptrain.serve.limits import Limits
from sleeptrain.serve.request import CompletionRequest, parse_request
from sleeptrain.serve.served import Served
from sleeptrain.serve.sessions import SessionStore
from sleeptrain.serve.texts import RequestTexts, collect


def build_app(served: Served, limits: Limits) -> FastAPI:
    """The application that serves a model. It computes between its start and its shutdown."""
    batch, store = BatchThread(served.empty_session, limits), SessionStore(limits)

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        batch.start()
        yield
        await asyncio.to_thread(batch.stop)

    app = FastAPI(title="sleeptrain", lifespan=lifespan, openapi_url=None)
    app.add_exception_handler(ApiError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_http_error)
    about = {"id": served.name, "object": "model", "created": int(time.time()), "owned_by": "sleeptrain"}

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [about]}

    @app.get("/v1/models/{name}")
    async def model(name: str) -> Any:
        if name != served.name:
            raise ApiError(
                404, f"model {name!r} does not exist; this server has {served.name!r}", "model_not_found", "model"
            )
        return about

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = parse_request(await _read_body(request, limits), served.name)
        texts = RequestTexts(asked, served, batch, store, limits)
        answer = CompletionAnswer(asked, texts)
        if asked.stream:
            return TimedStream(answer.stream(), texts, limits.seconds)
        try:
            return JSONResponse(await _unless_disconnected(request, answer.whole()))
        finally:
            texts.close()

    @app.post("/v1/chat/completions")
    async def chat() -> Response:
        raise ApiError(404, "this model has no chat template; use /v1/completions", "no_chat_template")

    @app.delete("/v1/sessions/{name}")
    async def delete_session(name: str) -> Any:
        store.delete(name)
        return {"id": name, "object": "session", "deleted": True}

    return app


class CompletionAnswer:
    """The answer to a completions request, whole or as server-sent events."""

    def __init__(self, request: CompletionRequest, texts: RequestTexts) -> None:
        self._texts = texts
        self._usage_wanted = request.stream_options is not None and request.stream_options.include_usage
        self._head = {
            "id": f"cmpl-{secrets.token_hex(12)}", "object": "text_completion", "created": int(time.time()), "model": request.model,
        }  # fmt: skip
        if texts.session is not None:
            self._head["session"] = texts.session.id

    async def whole(self) -> dict[str, Any]:
        """The answer without `stream`."""
        choices = [_choice(i, text, why) for i, (text, why) in enumerate(zip(*await collect(self._texts), strict=True))]
        return self._head | {"choices": choices, "usage": self._texts.usage}

    async def stream(self) -> AsyncIterator[bytes]:
        """The answer as server-sent events. An error in the middle is one, too, and the last."""
        try:
            async for event in self._texts.events():
                yield _sse(self._head | {"choices": [_choice(event.index, event.progress.text, event.progress.finish)]})
            if self._usage_wanted:
                yield _sse(self._head | {"choices": [], "usage": self._texts.usage})
            yield b"data: [DONE]\n\n"
        except ApiError as error:
            yield _sse(error.body())


class TimedStream(StreamingResponse):
    """Server-sent events that end after `seconds`, also where the client does not read, and then release what computes them."""

    def __init__(self, content: AsyncIterator[bytes], texts: RequestTexts, seconds: float) -> None:
        super().__init__(content, media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self._texts, self._seconds = texts, seconds

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            async with asyncio.timeout(self._seconds + 1):  # the batch reports its own limit to clients that read
                await super().__call__(scope, receive, send)
        except (TimeoutError, asyncio.CancelledError):
            pass  # the server closes the connection of an answer that is not complete, and cancels answers when it stops
        finally:
            self._texts.close()


def _choice(index: int, text: str, finish: str | None) -> dict[str, Any]:
    return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}


def _sse(body: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(body).encode() + b"\n\n"


async def _read_body(request: Request, limits: Limits) -> bytes:
    """The body of a request. Raises ApiError where it is too large or too slow."""
    body = bytearray()
    try:
        async with asyncio.timeout(limits.seconds):
            async for chunk in request.stream():
                body += chunk
                if len(body) > limits.body:
                    raise ApiError(
                        413,
                        f"the body is larger than {limits.body:,} bytes, the limit of this server",
                        "body_too_large",
                    )
    except TimeoutError:
        raise ApiError(408, f"the body took more than {limits.seconds:g} seconds", "timeout") from None
    except ClientDisconnect:
        raise ApiError(400, "the client has disconnected", "disconnected") from None
    return bytes(body)


async def _unless_disconnected(request: Request, answer: Any) -> Any:
    """What a coroutine returns; it is cancelled when the client disconnects. Raises ApiError then."""

    async def disconnected() -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass

    tasks = [asyncio.ensure_future(answer), asyncio.ensure_future(disconnected())]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if not tasks[0].done():
            raise ApiError(400, "the client has disconnected", "disconnected")
        return tasks[0].result()
    finally:
        for task in tasks:
            task.cancel()


async def _answer_error(request: Request, error: Any) -> Response:
    headers = {"Retry-After": "1"} if error.status == 503 else None
    return JSONResponse(error.body(), error.status, headers)


async def _answer_http_error(request: Request, error: Any) -> Response:
    """A path or a method that does not exist."""
    message = f"{request.method} {request.url.path}: {error.detail}; the paths are /v1/models, /v1/completions and /v1/sessions/ID"
    return JSONResponse(ApiError(error.status_code, message, "not_found").body(), error.status_code)

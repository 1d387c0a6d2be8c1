"""A page and an interface like OpenAI's for the course's own models, on this machine.

chat.py --web starts it. It listens on the loopback address only, and answers nobody but
this machine's own programs and its own page: a request that names another host, or that
another site's page sends, is refused. Nothing is kept, and nothing leaves the machine.

    GET  /                       the page, chat.html
    GET  /v1/models              what can be chosen
    POST /v1/chat/completions    an answer, whole or in pieces ("stream": true)

What is understood of OpenAI's interface: model, messages, stream, temperature, top_p,
max_tokens (or max_completion_tokens) and seed. Other fields are ignored.
"""

import asyncio
import json
import math
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from tornado.httpserver import HTTPServer
from tornado.iostream import StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from shared.pretrained_weights import Conversation

PAGE = Path(__file__).with_name("chat.html")
LARGEST = 1_000_000  # bytes in the body of a request
LONGEST = 200  # tokens in an answer, where a request does not say
POLICY = (
    "default-src 'none'; connect-src 'self'; style-src 'nonce-{0}'; script-src "
    "'nonce-{0}'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


class Refused(Exception):
    """A request that is not answered: a sentence, and the status of the reply."""

    def __init__(self, message: str, status: int = 400):
        super().__init__(message)
        self.status = status


class Models:
    """The choices by name; the one that is loaded; one answer at a time.

    `choices` holds a function for each name that returns a new Conversation.
    """

    def __init__(self, choices: Mapping[str, Callable[[], Conversation]]):
        self.choices = choices
        self.loaded: tuple[str, Conversation] | None = None
        self.worker = ThreadPoolExecutor(1)  # the event loop stays free for a stop
        self.turn = asyncio.Lock()

    def load(self, name: str) -> Conversation:
        """Return a new conversation with a choice; it stays loaded until the next."""
        if self.loaded is None or self.loaded[0] != name:
            self.loaded = None  # before the next one is read: memory for one is enough
            self.loaded = (name, self.choices[name]())
        chat = self.loaded[1]
        return Conversation(chat.model, chat.tokenizer)

    async def pieces(self, name: str, request: dict[str, Any]) -> AsyncIterator[str]:
        """Yield an answer's pieces; raise Refused if the model cannot be loaded."""
        run = asyncio.get_running_loop().run_in_executor
        async with self.turn:
            try:
                chat = await run(self.worker, self.load, name)
            except (ValueError, OSError, RuntimeError) as problem:
                raise Refused(str(problem), 500) from problem
            *before, last = request["messages"]
            if before and before[0]["role"] == "system":
                chat.messages = before
            else:
                chat.messages += before
            reply = chat.reply(last["content"], **request["sampling"])
            try:
                while (piece := await run(self.worker, next, reply, None)) is not None:
                    yield piece
            except ValueError as problem:
                raise Refused(str(problem)) from problem
            finally:
                await run(self.worker, reply.close)  # type: ignore[attr-defined]


def number(body: dict, name: str, default: float, low: float, high: float) -> float:
    """Return a number of a request, or the default where there is none."""
    value = body.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Refused(f"{name} must be a number, got {value!r:.40}")
    if not low <= value <= high:
        raise Refused(
            f"{name} must lie between {low:g} and {high:g}, got {value!r:.40}"
        )
    return value


def whole(body: dict, name: str, default: int, low: int) -> int:
    """Return a whole number of a request, or the default where there is none."""
    value = number(body, name, default, low, 2**63 - 1)
    if value != math.floor(value):
        raise Refused(f"{name} must be a whole number, got {value!r:.40}")
    return int(value)


def text_of(content: Any) -> str:
    """Return the text of a message's content: a text, or a list of parts with texts."""
    if isinstance(content, list) and all(isinstance(part, dict) for part in content):
        kinds = {part.get("type") for part in content}
        if kinds <= {"text"}:
            return "".join(text_of(part.get("text")) for part in content)
        raise Refused(
            f"only parts of type text can be read, got {sorted(map(str, kinds))}"
        )
    if not isinstance(content, str):
        raise Refused(f"a message's content must be a text, got {content!r:.40}")
    return content


def read_messages(messages: Any) -> list[dict[str, str]]:
    """Return the turns of a request, each with its role and its text.

    A system message may come first; then user and assistant take turns, the user last.
    """
    if not isinstance(messages, list) or not messages:
        raise Refused("messages must be a list of at least one message")
    turns = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        role = "system" if role == "developer" else role
        if role not in ("system", "user", "assistant"):
            raise Refused(
                f"a message's role is system, user or assistant, got {role!r:.40}"
            )
        turns.append({"role": role, "content": text_of(message.get("content"))})
    roles = [turn["role"] for turn in turns]
    said = roles[1:] if roles[0] == "system" else roles
    if len(said) % 2 == 0 or said != ["user", "assistant"] * (len(said) // 2) + [
        "user"
    ]:
        raise Refused(
            "after at most one system message, user and assistant take turns, and the "
            f"last message is the user's; got {', '.join(roles[-6:])}"
        )
    return turns


def read_request(raw: bytes, choices: dict[str, Any]) -> dict[str, Any]:
    """Return what a request to /v1/chat/completions asks for, or raise Refused."""
    try:
        body = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is no JSON: {error}") from error
    if not isinstance(body, dict):
        raise Refused("the body must be a JSON object")
    name = body.get("model")
    if not isinstance(name, str) or name not in choices:
        known = ", ".join(choices)
        raise Refused(f"there is no model {name!r:.60} here, but {known}", 404)
    longest = body.get("max_completion_tokens", body.get("max_tokens"))
    sampling: dict[str, Any] = {
        "max_new_tokens": whole({"max_tokens": longest}, "max_tokens", LONGEST, 1),
        "temperature": number(body, "temperature", 0.0, 0, 2),
        "top_p": number(body, "top_p", 1.0, 0.000001, 1),
    }
    if body.get("seed") is not None:
        seed = whole(body, "seed", 0, 0)
        sampling["generator"] = torch.Generator().manual_seed(seed)
    return {
        "model": name,
        "messages": read_messages(body.get("messages")),
        "stream": body.get("stream") is True,
        "sampling": sampling,
    }


class Guarded(RequestHandler):
    """A handler that refuses what does not come from this machine or this page."""

    def prepare(self) -> None:
        port = self.settings["port"]
        own = {f"{name}:{port}" for name in ("127.0.0.1", "localhost")}
        if self.request.host.lower() not in own:
            raise Refused(f"this is no {self.request.host:.60}", 403)
        origin = self.request.headers.get("Origin")
        if origin is not None and origin.lower() not in {f"http://{o}" for o in own}:
            raise Refused(f"a page of {origin:.60} may not ask here", 403)

    def set_default_headers(self) -> None:
        self.set_header("Cache-Control", "no-store")
        self.set_header("X-Content-Type-Options", "nosniff")
        self.set_header("Referrer-Policy", "no-referrer")
        self.set_header("Cross-Origin-Resource-Policy", "same-origin")
        self.clear_header("Server")

    def log_exception(self, kind: Any, value: Any, trace: Any) -> None:
        if not isinstance(value, Refused):
            super().log_exception(kind, value, trace)

    def write_error(self, status_code: int, **info: Any) -> None:
        """Reply as OpenAI's interface does."""
        error = info.get("exc_info", (None, None))[1]
        message = str(error) if isinstance(error, Refused) else self._reason
        if isinstance(error, Refused):
            self.set_status(error.status)
        kind = "invalid_request_error" if self.get_status() < 500 else "server_error"
        self.finish({"error": {"message": message, "type": kind, "code": None}})


class Nothing(Guarded):
    """Every other address."""

    def prepare(self) -> None:
        super().prepare()
        raise Refused("there is nothing at this address", 404)


class Page(Guarded):
    def get(self) -> None:
        nonce = secrets.token_urlsafe(16)
        self.set_header("Content-Security-Policy", POLICY.format(nonce))
        self.finish(PAGE.read_text("utf-8").replace("NONCE", nonce))


class ModelList(Guarded):
    def get(self) -> None:
        names = self.settings["models"].choices
        models = [
            {"id": name, "object": "model", "created": 0, "owned_by": "llm-course"}
            for name in names
        ]
        self.finish({"object": "list", "data": models})


class Completions(Guarded):
    gone = False

    def on_connection_close(self) -> None:
        self.gone = True  # the reader pressed Stop, or went away

    async def post(self) -> None:
        kind = self.request.headers.get("Content-Type", "").split(";")[0].strip()
        if kind.lower() != "application/json":
            raise Refused(f"the body must be application/json, got {kind!r:.40}", 415)
        models = self.settings["models"]
        asked = read_request(self.request.body, models.choices)
        reply: dict[str, Any] = {
            "id": f"chatcmpl-{secrets.token_hex(12)}",
            "object": "chat.completion.chunk" if asked["stream"] else "chat.completion",
            "created": int(time.time()),
            "model": asked["model"],
        }
        pieces: list[str] = []
        answering = models.pieces(asked["model"], asked)
        try:
            async for piece in answering:
                if self.gone:
                    return
                if asked["stream"]:
                    role = {} if pieces else {"role": "assistant"}
                    await self.send(reply, role | {"content": piece})
                pieces.append(piece)
        except StreamClosedError:
            return
        finally:
            await answering.aclose()
        usage = self.usage(models.loaded[1], asked["messages"], pieces)
        most = asked["sampling"]["max_new_tokens"]
        finish = "length" if usage["completion_tokens"] >= most else "stop"
        if asked["stream"]:
            await self.send(reply, {}, finish)
            self.finish("data: [DONE]\n\n")
        else:
            message = {"role": "assistant", "content": "".join(pieces)}
            choice = {"index": 0, "message": message, "finish_reason": finish}
            self.finish(reply | {"choices": [choice], "usage": usage})

    async def send(self, reply: dict, delta: dict, finish: str | None = None) -> None:
        """Send one event of a stream."""
        self.set_header("Content-Type", "text/event-stream; charset=utf-8")
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        self.write(f"data: {json.dumps(reply | {'choices': [choice]})}\n\n")
        await self.flush()

    def usage(self, chat: Conversation, messages: list, pieces: list[str]) -> dict:
        """Return the numbers of tokens in a request and in its answer."""
        texts = [message["content"] for message in messages]
        count = [len(chat.tokenizer.encode_ordinary(text)) for text in texts]
        answer = len(chat.tokenizer.encode_ordinary("".join(pieces)))
        return {
            "prompt_tokens": sum(count),
            "completion_tokens": answer,
            "total_tokens": sum(count) + answer,
        }


async def serve(
    choices: Mapping[str, Callable[[], Conversation]],
    port: int = 0,
    ready: Callable[[str], object] = print,
) -> None:
    """Serve until the task is cancelled; `ready` gets the page's address.

    Port 0 takes a free one. The first choice is loaded at once. Raises what loading it
    raises, and OSError if the port is taken.
    """
    models = Models(choices)
    models.load(next(iter(choices)))
    (socket,) = bind_sockets(port, "127.0.0.1")
    port = socket.getsockname()[1]
    routes = [
        ("/", Page),
        ("/v1/models", ModelList),
        ("/v1/chat/completions", Completions),
    ]
    application = Application(
        routes,  # type: ignore[arg-type]
        default_handler_class=Nothing,
        models=models,
        port=port,
        log_function=lambda handler: None,
    )
    server = HTTPServer(
        application,
        max_body_size=LARGEST,
        max_header_size=16_384,
        idle_connection_timeout=60,
        body_timeout=10,
    )
    server.add_socket(socket)
    ready(f"http://127.0.0.1:{port}/")
    try:
        await asyncio.Event().wait()
    finally:
        server.stop()

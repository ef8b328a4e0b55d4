"""A page on loopback that follows a campaign; whoever has its address, and nobody else, sees it."""

from __future__ import annotations

import asyncio
import logging
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from tornado.httpserver import HTTPServer
from tornado.ioloop import IOLoop, PeriodicCallback
from tornado.iostream import IOStream, StreamClosedError
from tornado.netutil import bind_sockets
from tornado.web import Application, HTTPError, RequestHandler

from campaign.display import tell
from campaign.watch.following import Following
from tasks.errors import BadInput

logger = logging.getLogger(__name__)

HOST = "127.0.0.1"

# How often a page asks, and how old an answer may be.
POLL_S = 2.0

# A browser opens some six; each costs a file and what it has sent or not yet read.
MOST_CONNECTIONS = 400

# To say what one wants; and for a whole connection, since each serves one request, which takes milliseconds.
_PATIENCE_S = 10.0
_LONGEST_CONNECTION_S = 30.0

_MOST_HEADER_BYTES = 16_384

# The page gives up after 10 s.
_LONGEST_LOOK_S = 8.0

_LOOK_EVERY_S = 0.25

_BUSY = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nRetry-After: 5\r\nConnection: close\r\n\r\n"

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
}

AnswerT = TypeVar("AnswerT")


class Glances:
    """Looks at a campaign when somebody asks, for all who ask at about that time."""

    def __init__(self, following: Following) -> None:
        self._following = following
        self._told = b""
        self._looked = -float("inf")
        self._looking: asyncio.Future[None] | None = None

    async def view(self) -> bytes:
        """Return the campaign in JSON, as it was not long ago.

        Raises
        ------
        HTTPError
            503 while a look takes too long, as on a disk that is gone: what is old is not told as new.
        """
        if self._looking is None and time.monotonic() - self._looked > 0.9 * POLL_S:
            self._looking = asyncio.ensure_future(self._look())
        if self._looking is not None:
            try:
                await asyncio.wait_for(asyncio.shield(self._looking), _LONGEST_LOOK_S)
            except TimeoutError:
                raise HTTPError(503) from None
        return self._told

    async def _look(self) -> None:
        try:
            self._told = (await aside(self._following.look)).as_json()
        finally:
            self._looked, self._looking = time.monotonic(), None


def aside(work: Callable[[], AnswerT]) -> asyncio.Future[AnswerT]:
    """Do work in a thread that the process does not wait for when it ends: a disk may be slow, or gone."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[AnswerT] = loop.create_future()

    def settle(how: Callable[[Any], None], value: object) -> None:
        if not future.done():
            how(value)

    def run() -> None:
        try:
            found = work()
        except Exception as error:  # noqa: BLE001  # raised where the future is awaited
            how, value = future.set_exception, error
        else:
            how, value = future.set_result, found  # type: ignore[assignment]
        with suppress(RuntimeError):  # nobody waits any more
            loop.call_soon_threadsafe(settle, how, value)

    threading.Thread(target=run, daemon=True).start()
    return future


class _Handler(RequestHandler):
    """What all answers have in common: who may ask, and how."""

    def initialize(self, token: str, hosts: frozenset[str]) -> None:
        self._token, self._hosts = token, hosts

    def set_default_headers(self) -> None:
        self.clear_header("Server")
        for name, value in _HEADERS.items():
            self.set_header(name, value)

    def prepare(self) -> None:
        # A page elsewhere whose name leads here is still elsewhere.
        if self.request.headers.get("Host", "").lower() not in self._hosts:
            raise HTTPError(403)
        given = self.get_query_arguments("token")
        if len(given) != 1 or not secrets.compare_digest(given[0].encode(), self._token.encode()):
            raise HTTPError(403)
        if self.request.method not in ("GET", "HEAD"):
            self.set_header("Allow", "GET, HEAD")
            raise HTTPError(405)

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        """Say as little as the code does."""
        self.set_header("Content-Type", "text/plain; charset=utf-8")
        self.finish(f"{status_code}\n")

    def log_exception(self, typ: Any, value: Any, tb: Any) -> None:
        """Say what went wrong without the address, which holds the token."""
        if not isinstance(value, HTTPError):
            logger.error("%s cannot be answered", self.request.path, exc_info=(typ, value, tb))

    async def get(self) -> None:
        raise HTTPError(404)

    async def head(self) -> None:
        await self.get()


class _Page(_Handler):
    """The page, which then asks for views."""

    def initialize(self, token: str, hosts: frozenset[str], run: str) -> None:  # type: ignore[override]
        super().initialize(token, hosts)
        self._run = run

    async def get(self) -> None:
        nonce = secrets.token_urlsafe(16)
        self.set_header(
            "Content-Security-Policy",
            f"default-src 'none'; script-src 'nonce-{nonce}'; style-src 'nonce-{nonce}'; connect-src 'self'; "
            "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
        )
        self.finish(page(self._run, nonce))


class _Data(_Handler):
    """A view, in JSON; nothing where the asker has it already."""

    def initialize(self, token: str, hosts: frozenset[str], glances: Glances) -> None:  # type: ignore[override]
        super().initialize(token, hosts)
        self._glances = glances

    async def get(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.finish(await self._glances.view())


def page(run: str, nonce: str) -> str:
    """Return the page of a run, in which nothing is shown yet."""
    folder = Path(__file__).parent
    # All are ours, and hold nothing of the run; the first is shared with reports.
    common, css, js = (Markup((folder / name).read_text()) for name in ("../page.css", "page.css", "page.js"))
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        (folder / "page.html.j2").read_text()
    )
    return template.render(run=run, nonce=nonce, css=common + css, js=js, poll_ms=round(1000 * POLL_S))


class _Server(HTTPServer):
    """A server that no number of askers, slow or silent, can exhaust."""

    def initialize(self, *args: Any, **kwargs: Any) -> None:
        super().initialize(*args, **kwargs)
        self._late: dict[IOStream, object] = {}

    def handle_stream(self, stream: IOStream, address: Any) -> None:
        """Serve a connection, for as long as one may take."""
        if len(self._late) >= MOST_CONNECTIONS:
            IOLoop.current().add_callback(_turn_away, stream)
            return
        self._late[stream] = IOLoop.current().call_later(_LONGEST_CONNECTION_S, stream.close)
        super().handle_stream(stream, address)

    def on_close(self, server_conn: Any) -> None:
        """Forget a connection that is over."""
        IOLoop.current().remove_timeout(self._late.pop(server_conn.stream))
        super().on_close(server_conn)


async def _turn_away(stream: IOStream) -> None:
    with suppress(StreamClosedError):
        await stream.write(_BUSY)
    stream.close()


def serve(run: Path, port: int, is_over: Callable[[], bool]) -> None:
    """Serve the page of a campaign until told to end, and print its address.

    Raises
    ------
    BadInput
        When there is no campaign, or the port cannot be had.
    """
    asyncio.run(_serve(Following(run), run.resolve().name, port, is_over))


async def _serve(following: Following, run: str, port: int, is_over: Callable[[], bool]) -> None:
    try:
        (listening,) = bind_sockets(port, HOST)
    except OSError as error:
        raise BadInput(
            f"--port {port} of {HOST} cannot be had ({error.strerror}): give another, or none to have one picked"
        ) from error
    port = listening.getsockname()[1]
    token = secrets.token_urlsafe(32)
    asked = {"token": token, "hosts": frozenset({f"{HOST}:{port}", f"localhost:{port}"})}
    application = Application(
        [
            (r"/", _Page, {**asked, "run": run}),
            (r"/view\.json", _Data, {**asked, "glances": Glances(following)}),
        ],
        default_handler_class=_Handler,
        default_handler_args=asked,
        # Addresses hold the token.
        log_function=lambda handler: None,
    )
    server = _Server(
        application,
        no_keep_alive=True,
        max_header_size=_MOST_HEADER_BYTES,
        max_body_size=0,
        idle_connection_timeout=_PATIENCE_S,
        body_timeout=_PATIENCE_S,
    )
    server.add_sockets([listening])
    tell(f"watch: http://{HOST}:{port}/?token={token}")
    over = asyncio.Event()
    clock = PeriodicCallback(lambda: over.set() if is_over() else None, 1000 * _LOOK_EVERY_S)
    clock.start()
    await over.wait()
    clock.stop()
    server.stop()

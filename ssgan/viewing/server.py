"""The viewer's server: answers the browser of this machine, and nobody else.

It listens on 127.0.0.1 alone. Every address begins with a random token, so that other users of the machine, and pages
of other sites, can ask for nothing; the Host header must be this machine's own name for itself (a site whose name was
made to point here sends its own, "DNS rebinding"), and an Origin header must be the page's own.
"""

from __future__ import annotations

import secrets
import sys
import traceback
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ssgan.utils.errors import UserError
from ssgan.viewing.browsing import DatasetBrowser, FileBrowser
from ssgan.viewing.exploring import RunExplorer
from ssgan.viewing.replies import Forbidden, NotFound, Reply, json_reply

HOST = "127.0.0.1"
OWN_NAMES = ("127.0.0.1", "localhost")
PAGE = {  # address -> file, type
    "": ("view.html", "text/html; charset=utf-8"),
    "view.css": ("view.css", "text/css; charset=utf-8"),
    "view.js": ("view.js", "text/javascript; charset=utf-8"),
    "run.js": ("run.js", "text/javascript; charset=utf-8"),
    "files.js": ("files.js", "text/javascript; charset=utf-8"),
    "screen.js": ("screen.js", "text/javascript; charset=utf-8"),
    "niivue.js": ("niivue.js", "text/javascript; charset=utf-8"),
}
POLICY = (  # NiiVue brings its letters and its light as data: pictures
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ALWAYS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

Source = RunExplorer | DatasetBrowser | FileBrowser


def check_request(path: str, headers: Mapping[str, str], token: str) -> tuple[str, dict[str, str]]:
    """Returns the address behind the token, decoded, and its query.

    Raises:
        Forbidden: another host's name, another origin, or no token or a wrong one.
    """
    host = headers.get("Host", "")
    if host.rpartition(":")[0] not in OWN_NAMES and host not in OWN_NAMES:
        raise Forbidden(f"Host {host!r} is not this machine's name for itself")
    if headers.get("Origin") not in (None, f"http://{host}"):
        raise Forbidden(f"Origin {headers.get('Origin')!r} is not this page's own")
    parts = urlsplit(path)
    given, _, address = parts.path.removeprefix("/").partition("/")
    if not secrets.compare_digest(given.encode(), token.encode()):
        raise Forbidden("wrong address: use the whole one that `ssgan view` printed, with its token")
    return unquote(address), dict(parse_qsl(parts.query))


def answer(source: Source, address: str, query: dict[str, str]) -> Reply:
    """Answers a request that may be answered.

    Raises:
        UserError: Forbidden, NotFound, or a value in the query that is not possible.
    """
    if address in PAGE:
        name, kind = PAGE[address]
        return Reply((resources.files("ssgan.viewing") / "page" / name).read_bytes(), kind)
    if address.startswith("item/"):
        return source.item(address.removeprefix("item/"))
    if address == "about":
        return json_reply(source.about())
    if isinstance(source, FileBrowser) and address.startswith("verdict/"):
        return json_reply(source.verdict(address.removeprefix("verdict/")))
    if isinstance(source, RunExplorer):
        answers: dict[str, Callable[[], Reply]] = {
            "state": lambda: json_reply(source.state()),
            "volume": lambda: source.volume(query, save=False),
            "save": lambda: source.volume(query, save=True),
            "directions": lambda: json_reply(source.directions(query)),
            "nearest": lambda: json_reply(source.nearest(query)),
            "command": lambda: json_reply(source.command(query)),
        }
        if address in answers:
            return answers[address]()
    raise Forbidden(f"{address!r} is nothing that this page shows")


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server
    timeout = 600  # seconds that an idle connection is kept

    def do_GET(self) -> None:
        status = HTTPStatus.OK
        try:
            reply = answer(self.server.source, *check_request(self.path, self.headers, self.server.token))
        except UserError as error:
            kinds = {Forbidden: HTTPStatus.FORBIDDEN, NotFound: HTTPStatus.NOT_FOUND}
            status, reply = kinds.get(type(error), HTTPStatus.BAD_REQUEST), _error(error)
        except OSError as error:
            status, reply = HTTPStatus.NOT_FOUND, _error(error)
        except Exception as error:  # a defect: the page shows it, and the server goes on
            traceback.print_exc()
            status, reply = HTTPStatus.INTERNAL_SERVER_ERROR, _error(error)
        try:
            self._send(status, reply)
        except ConnectionError:  # the page no longer waits for it
            self.close_connection = True

    def _send(self, status: HTTPStatus, reply: Reply) -> None:
        self.send_response(status)
        for name, value in ALWAYS.items():
            self.send_header(name, value)
        if reply.name:
            self.send_header("Content-Disposition", f"attachment; filename*=UTF-8''{quote(reply.name)}")
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(reply.body)))
        self.end_headers()
        self.wfile.write(reply.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Says nothing: the requests of a slider would fill the terminal."""


def _error(error: BaseException) -> Reply:
    return json_reply({"error": str(error) or type(error).__name__})


class Server(ThreadingHTTPServer):
    """Serves the page of one source on the loopback interface until it is shut down.

    port: 0 takes any that is free.

    Raises:
        UserError: the port is taken or not to be had.
    """

    daemon_threads = True

    def __init__(self, source: Source, port: int = 0) -> None:
        self.source, self.token = source, secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), Handler)
        except (OSError, OverflowError) as error:
            raise UserError(
                f"--port {port}: {getattr(error, 'strerror', None) or error}; leave it out for a port that is free"
            ) from error

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Says nothing of a browser that closed its connection; prints anything else."""
        if not isinstance(sys.exc_info()[1], ConnectionError | TimeoutError):
            super().handle_error(request, client_address)

    @property
    def port(self) -> int:
        return self.server_address[1]

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}/{self.token}/"

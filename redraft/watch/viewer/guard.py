"""Who may look: the Host header, the token, and the headers that keep a page from doing more than it should.

On loopback only names of loopback are answered, so that a page elsewhere cannot reach the viewer under a name of its
own (DNS rebinding). Elsewhere a token is asked for: it comes once in the address, and is kept in a cookie that scripts
cannot read.
"""

from __future__ import annotations

import secrets
from urllib.parse import urlsplit

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets requests through to `app`: with `token`, those that know it; without, those to a name of loopback, of which
    `host` is one more."""

    def __init__(self, app: ASGIApp, token: str | None, host: str = LOOPBACK[0]):
        self._app, self._token, self._names = app, token, {*LOOPBACK, host.lower()}
        self._cookie = f"redraft-view-{secrets.token_hex(4)}"  # of this viewer: ports of a host share their cookies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        answer = self._answer(Request(scope)) or self._app
        await answer(scope, receive, with_headers)

    def _answer(self, request: Request) -> Response | None:
        """What to say instead of the page; None to let the request through."""
        token = self._token
        if token is None:
            named = _host(request.headers.get("host", ""))
            return None if named in self._names else PlainTextResponse("this name is not answered here", 421)
        if _same(request.cookies.get(self._cookie, ""), token):
            return None
        if _same(request.query_params.get("token", ""), token):
            entered = RedirectResponse("/", 303)
            entered.set_cookie(self._cookie, token, httponly=True, samesite="lax")
            return entered
        return PlainTextResponse("open the whole address that `redraft view` printed, with its token", 401)


def _same(given: str, token: str) -> bool:
    return secrets.compare_digest(given.encode(), token.encode())


def _host(header: str) -> str | None:
    """The name in a Host header, without its port."""
    try:
        return urlsplit(f"//{header}").hostname
    except ValueError:
        return None

# Copyright 2026 The DiffuseSeg for Diffusers authors. Licensed under the Apache License, Version 2.0.
"""Who may ask the server of a labelling session for what, decided before the body of a request is read."""

import hmac
import re
from collections.abc import Collection

from fastapi import Request


MAX_BODY = 2**24  # bytes
NOBODY = "'none'"
POLICY = "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; frame-ancestors"


def answer_headers(framed_by: str = NOBODY) -> dict[str, str]:
    """Headers of every answer; `framed_by` names the sites that may show the page in a frame."""
    headers = {
        "cache-control": "no-store",  # an address may be reused by another session
        "content-security-policy": f"{POLICY} {framed_by}",
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }
    return {**headers, "x-frame-options": "DENY"} if framed_by == NOBODY else headers


def refusal(request: Request, token: str | None, hosts: Collection[str] | None = None) -> tuple[int, str] | None:
    """Status and reason for which a request is refused, `None` if it is not.

    Args:
        request (`Request`): Its headers are read alone.
        token (`str`, *optional*): That requests of the API must carry.
        hosts (collection of `str`, *optional*): Lower-case names under which the server may be addressed; any if not
            given. The page of another site may give its own name the address of this machine (DNS rebinding).
    """
    path, headers = request.scope["path"], request.headers
    if "\0" in path:
        return 404, "Not Found"
    host = headers.get("host", "").lower()
    name = re.sub(r":\d*$", "", host).rstrip(".")
    if hosts is not None and name not in hosts:
        address = "open the address that the terminal shows, or let the proxy say `Host: localhost`"
        return 403, f"Without a token this page is not served under the name {name[:100]!a}; {address}."
    if path.startswith("/api/"):
        given = headers.get("authorization", "").encode("latin-1")
        if token is not None and not hmac.compare_digest(given, f"Bearer {token}".encode()):
            return 401, "The token is missing or wrong; open the address that the terminal shows."
        if request.method != "GET" and _is_foreign(headers.get("sec-fetch-site"), headers.get("origin"), host):
            return 403, "Another site sent this request; it is not answered."
    length = headers.get("content-length") or "0"
    if not length.isdecimal() or int(length) > MAX_BODY or "transfer-encoding" in headers:
        return 413, f"A request may have {MAX_BODY:,} bytes, and has to say how many it has."
    return None


def _is_foreign(site: str | None, origin: str | None, host: str) -> bool:
    """Whether a browser says that the page of another site sent a request."""
    if site is not None and site != "none":
        return site != "same-origin"  # of the browser's own address, which a proxy need not pass on as the host
    return origin is not None and origin.partition("://")[2].lower() != host

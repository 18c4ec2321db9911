"""Where an endpoint is, and the credentials that stand in its address."""

from __future__ import annotations

import base64
import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit


class Address:
    """A server's address, taken apart; ``public`` holds no credentials."""

    def __init__(self, url: str) -> None:
        try:
            parts = urlsplit(url.strip())
            host, port = parts.hostname, parts.port
        except ValueError:
            host, port, parts = None, None, urlsplit("")
        if parts.scheme not in ("http", "https") or not host:
            # it is not shown: who mistypes an address may have typed a password too
            raise ValueError("url is no address of a server; give one such as https://host/v1 or http://localhost:8000")
        self.user, password = unquote(parts.username or ""), unquote(parts.password or "")
        self.basic = base64.b64encode(f"{self.user}:{password}".encode()).decode()
        self.query = parse_qsl(parts.query)
        path = parts.path.rstrip("/")
        if not re.search(r"/v\d[^/]*(/|$)", path):
            path += "/v1"
        place = f"[{host}]" if ":" in host else host
        self.public = f"{parts.scheme}://{place}{'' if port is None else f':{port}'}{path}"
        given = [self.user, password, self.basic if self.user else "", *(value for _, value in self.query)]
        self.secrets = [form for value in given if value for form in {value, quote(value, safe="")}]

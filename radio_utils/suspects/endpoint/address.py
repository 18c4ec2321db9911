"""Where an endpoint is, and the credentials that stand in its address."""

from __future__ import annotations

import base64
import re
from urllib.parse import parse_qsl, quote, unquote, urlsplit

_ROUTE = re.compile(r"/(chat/completions|completions|models|responses|embeddings)$")
_DEPLOYMENT = re.compile(r"/openai/deployments/[^/]+$")


class Address:
    """A server's address, taken apart; ``public`` holds no credentials.

    ``kind`` is the route that it leads to, "chat" or "completions", if it leads to one. Whoever gives a route has written
    all of the address, and where none is given ``/v1`` is understood. ``azure`` says that it is of Azure's shape.
    """

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
        route = _ROUTE.search(path)
        self.kind = {"chat/completions": "chat", "completions": "completions"}.get(route[1], "") if route else ""
        path = path[: route.start()] if route else path
        self.azure = host.endswith(".azure.com")
        if _DEPLOYMENT.search(path):
            self.azure = True
            if "api-version" not in dict(self.query):
                raise ValueError("url leads to a deployment of Azure's without a version; add ?api-version=… to it")
        elif self.azure and path in ("", "/openai"):
            path = "/openai/v1"
        elif not route and not re.search(r"/v\d[^/]*(/|$)", path):
            path += "/v1"
        place = f"[{host}]" if ":" in host else host
        self.public = f"{parts.scheme}://{place}{'' if port is None else f':{port}'}{path}"
        given = [self.user, password, self.basic if self.user else "", *(value for _, value in self.query)]
        self.secrets = [form for value in given if value for form in {value, quote(value, safe="")}]

"""What a recipe says of a teacher: a stronger model behind an OpenAI-compatible chat endpoint. Light to import."""

from __future__ import annotations

import ipaddress
import os
from typing import ClassVar
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from protocols.errors import SettingError
from protocols.settings import Settings

FIRST_WAIT_S, LONGEST_WAIT_S = 0.5, 8.0  # between two tries, as the openai client waits: each twice as long
NO_KEY = "no-key-is-needed"


class TeacherSettings(Settings):
    """A model behind an OpenAI-compatible chat endpoint."""

    place: ClassVar[str] = "rollout.teacher"
    """Where a recipe has it."""
    who: ClassVar[str] = "teacher"
    address: ClassVar[str] = "url"

    url: str
    """Base URL, such as http://host:8000/v1."""
    model: str = Field(min_length=1)
    """The name that the endpoint gives the model."""
    key_env: str = Field(default="OPENAI_API_KEY", min_length=1)
    """Environment variable that holds the key, on every node that plays. An endpoint on a loopback needs none."""
    temperature: float | None = Field(default=0.7, ge=0)
    """0 is greedy; null for models that take none."""
    max_tokens: int = Field(default=512, ge=1)
    """Longest answer, thoughts included. One that is cut there ends its episode: leave room."""
    timeout_s: float = Field(default=60.0, gt=0)
    """Longest wait for one try."""
    retries: int = Field(default=4, ge=0)
    """Further tries after a timeout, a lost connection, or status 408, 409, 429 or 5xx."""
    concurrency: int = Field(default=16, ge=1, le=1000)
    """Requests that one actor has under way at once."""
    budget_tokens: int | None = Field(default=None, ge=1)
    """Tokens of prompts and answers that one actor may use, as the endpoint counts them (None: no limit). What is under
    way when they are used up still counts."""

    @field_validator("url")
    @classmethod
    def _is_a_base_url(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:
            raise ValueError("url must be http://HOST/... or https://HOST/...")
        if parts.username is not None or parts.query or parts.fragment:
            raise ValueError("url must hold no user, password or query: a recipe is copied into each run")
        return url

    @property
    def deadline_s(self) -> float:
        """The longest that one answer may take: all tries, and the waits between them."""
        waits = sum(min(FIRST_WAIT_S * 2**n, LONGEST_WAIT_S) for n in range(self.retries))
        return self.timeout_s * (self.retries + 1) + waits

    @property
    def host(self) -> str:
        """HOST:PORT, for people."""
        return urlsplit(self.url).netloc

    def key(self) -> str:
        """The key of this process's environment, a dummy for a loopback without one. Raises SettingError."""
        key = os.environ.get(self.key_env, "").strip()
        if key and not (key.isascii() and key.isprintable()):
            problem = f"{self.key_env} holds characters that no key has"
            raise SettingError(f"{self.place}.key_env", problem, "Set it to the key")
        if not key and not _is_loopback(urlsplit(self.url).hostname):
            problem = f"{self.key_env} is not set, and {self.host} is another machine"
            raise SettingError(f"{self.place}.key_env", problem, f"Set {self.key_env} on every node that plays")
        return key or NO_KEY


def _is_loopback(host: str | None) -> bool:
    if host is None:
        return False
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

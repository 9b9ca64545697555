"""What a recipe says of tools that a model may call. Light to import."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BeforeValidator, model_validator

from protocols.settings import Settings


class McpSettings(Settings):
    """A server that speaks the Model Context Protocol. Each actor starts, or connects to, one of its own."""

    command: list[str] = []
    """Program and arguments of a server that speaks on its standard input and output."""
    url: str = ""
    """Address of a server that speaks streamable HTTP."""
    inherit: list[str] = []
    """Environment variables that a `command` gets beside PATH, HOME and such; keys go in so, not into the recipe."""
    only: list[str] = []
    """Names of its tools that are offered (none: all)."""

    @model_validator(mode="after")
    def _one_way(self):
        if bool(self.command) == bool(self.url):
            raise ValueError("an MCP server is reached by `command` or by `url`; give one of them")
        if self.url and not self.url.startswith(("http://", "https://")):
            raise ValueError(f"`url` {self.url!r} is no address, such as http://host:8000/mcp")
        if self.inherit and not self.command:
            raise ValueError("`inherit` is for a server that is started by `command`; leave it out")
        return self


class ToolSource(Settings):
    """Where tools come from."""

    function: str = ""
    """FILE.py:name or package.module:name of a typed function with a docstring, or of a list of such."""
    openai: dict[str, Any] = {}
    """The function's description in OpenAI's form, in place of one made from its types and its docstring."""
    mcp: McpSettings | None = None
    """A server whose tools are offered."""

    @model_validator(mode="after")
    def _one_source(self):
        if bool(self.function) == (self.mcp is not None):
            raise ValueError("tools come from a `function` or from `mcp`; give one of them")
        if self.openai and not self.function:
            raise ValueError("`openai` describes a `function`; an MCP server describes its tools itself")
        return self


def _named(value: Any) -> Any:
    return {"function": value} if isinstance(value, str) else value


Source = Annotated[ToolSource, BeforeValidator(_named, json_schema_input_type=str | ToolSource)]
"""A ToolSource, which a recipe may write as the name of its function alone."""

"""Parts by name: a known name, or `FILE.py:Name` or `package.module:Name` of the user's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Protocol, Self, Union, get_args

from pydantic import Discriminator, Field, PrivateAttr, Tag

from protocols import own_code
from protocols.errors import SettingError
from protocols.settings import Settings

OWN = "FILE.py:Name or package.module:Name of your own"


class Named(Protocol):
    """Settings that say of which part they are."""

    @property
    def name(self) -> str: ...


class OwnSettings(Settings):
    """A part of the user's own. Naming it imports its module, which runs that code."""

    name: str = Field(pattern=r"^([\w.]+|[^\n:]+\.py):\w+$")
    """FILE.py:Name, which travels with the run, or package.module:Name of a package that is installed on every node."""
    options: dict[str, Any] = {}
    """Its own settings, handed to it as they are."""


def load(setting: str, name: str, known: Mapping[str, str]) -> Any:
    """The object behind a name: `known` maps names to `package.module:Name`. Raises SettingError listing them."""
    cure = f"Use {', '.join([*known, OWN])}"
    if ":" not in (target := known.get(name, name)):
        raise SettingError(setting, f"there is no {name!r}", cure)
    try:
        return own_code.load(target)
    except (Exception, SystemExit) as error:  # whatever a user's module raises while it is imported
        raise SettingError(setting, f"{name!r} cannot be imported: {error}", cure) from error


def function(setting: str, name: str, known: Mapping[str, str], method: str) -> Callable:
    """The function behind a name; of a class its static method `method`. Raises SettingError where it has none."""
    found = load(setting, name, known)
    found = getattr(found, method, None) if isinstance(found, type) else found
    if not callable(found):
        raise SettingError(setting, f"{name} is neither a function nor a class with `{method}`", "Name one that is")
    return found


class OwnStating(OwnSettings):
    """Of a part of the user's own whose class may state `facts`: `_facts` are those in force, and begin as what holds
    of one that states none."""

    _facts: Any = PrivateAttr(default=None)

    def stating(self, setting: str) -> Self:
        """The same with the facts that its class states, which is imported before anything starts, and not to read the
        recipe of a run. Raises SettingError where it cannot be imported, or states facts of another type."""
        found, kind = getattr(load(setting, self.name, {}), "facts", self._facts), type(self._facts)
        if not isinstance(found, kind):
            problem = f"{self.name}.facts is {found!r}, not a {kind.__name__}"
            raise SettingError(setting, problem, f"Make it a {kind.__name__}, or leave it out")
        copy = self.model_copy()
        copy._facts = found
        return copy


def name_of(kind: type[Settings]) -> str:
    """The literal name of one kind of part."""
    return get_args(kind.model_fields["name"].annotation)[0]


def either(names: Sequence[str]) -> str:
    """The names as a choice: "a, b or c"."""
    return " or ".join(filter(None, (", ".join(names[:-1]), names[-1])))


def one_of(*kinds: type[Settings], own: type[Settings] = OwnSettings) -> Any:
    """The type of a setting that is one of `kinds`, told apart by their literal `name`, or `own` where it has a colon.

    Without a name it is the first of `kinds`. Tags are in angle brackets, so that the place of an error can leave them
    out.
    """
    tags = {name_of(kind): f"<{name_of(kind)}>" for kind in kinds}
    first = next(iter(tags))

    def tag(value: Any) -> str | None:
        name = value.get("name", first) if isinstance(value, dict) else getattr(value, "name", None)
        if not isinstance(name, str):
            return None
        return "<own>" if ":" in name else tags.get(name)

    tagged = [Annotated[kind, Tag(tags[name_of(kind)])] for kind in kinds]
    message = f"name must be one of {', '.join([*tags, OWN])}"
    chosen = Discriminator(tag, custom_error_type="unknown_name", custom_error_message=message)
    return Annotated[Union[(*tagged, Annotated[own, Tag("<own>")])], chosen]

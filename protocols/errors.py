"""Errors that people see: each names the setting or the part, and the cure."""

MISTAKE, BUG, FAULT = 2, 70, 75
"""Exit codes: something that a person wrote cannot work; an error that nobody foresaw; the same command may go on.
The last two are those of sysexits.h."""


def in_a_line(error: BaseException) -> str:
    """What an error says, in one line; with its kind where that is nothing, or the bare key of a KeyError."""
    text = " ".join(str(error).split())
    return text if text and not isinstance(error, KeyError) else named(error)


def named(error: BaseException) -> str:
    """The kind of an error and what it says, in one line; of one that says nothing, what caused it."""
    kind, text, cause = type(error).__name__, " ".join(str(error).split()), error.__cause__ or error.__context__
    if text:
        return f"{kind}: {text}"
    return kind if cause is None else f"{kind}, caused by {named(cause)}"


class RedraftError(Exception):
    """Base of every error that ends a run with one clear line instead of a traceback."""


class SettingError(RedraftError):
    """A value that a person wrote cannot work. `setting` is the dotted recipe key."""

    def __init__(self, setting: str, problem: str, cure: str = ""):
        self.setting, self._made_of = setting, (setting, problem, cure)
        super().__init__(f"{setting}: {problem}" + (f". {cure}" if cure else ""))

    def __reduce__(self):  # an error crosses processes whole
        return type(self), self._made_of


class FaultError(RedraftError):
    """A process, a machine or the network failed, and nothing that a person wrote: the same command may go on."""


class DeadlineError(FaultError):
    """A wait ran out. `culprit` names who was waited for."""

    def __init__(self, waiter: str, culprit: str, seconds: float, detail: str = ""):
        self.culprit, self._made_of = culprit, (waiter, culprit, seconds, detail)
        problem = f"{waiter} timed out after {seconds:.0f} s waiting for {culprit}"
        super().__init__(f"{problem}: {detail}" if detail else problem)

    def __reduce__(self):
        return type(self), self._made_of


class WireError(RedraftError):
    """A message or a stored record is malformed, of another schema, or fails its checksum."""


class WeightsError(RedraftError):
    """Weights arrived damaged, or the engine does not compute with what arrived."""

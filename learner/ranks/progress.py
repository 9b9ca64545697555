"""Where a learner is: the steps that it has done, and the version that it published last."""

from __future__ import annotations

from dataclasses import dataclass

from protocols.weights import version_of


@dataclass(slots=True)
class Progress:
    """Of one incarnation of a run. `published` is the step whose weights were published last."""

    incarnation: int
    step: int = 0
    published: int = 0

    @property
    def version(self) -> int:
        """Of the weights that were published last."""
        return version_of(self.incarnation, self.published)

"""Files at given qualities, adapted or not."""

from __future__ import annotations

from collections.abc import Sequence

from l2c.search.course import Course, Rounds, Staged, ask, together
from l2c.search.picture import Picture
from l2c.search.questions import Adapt, Best, Trial


class AtQualities(Staged):
    """Every picture at a quality, or at a lower one that serves it better.

    Args:
        qualities: 0..1000, of each picture. adapts: whether there is an adaptation to do.
    """

    def __init__(self, pictures: Sequence[Picture], qualities: Sequence[int], adapts: bool) -> None:
        super().__init__()
        self._pictures, self._qualities, self._adapts = pictures, qualities, adapts
        self._found: dict[int, Trial] = {}

    def rounds(self) -> Rounds:
        """All plainly, where they are adapted, too: the guards have to say what a quality is coded at."""
        yield from together(map(self._find, self._pictures, self._qualities))

    def _find(self, picture: Picture, quality: int) -> Course[None]:
        self._found[picture.i] = yield from picture.plain(quality)
        if self._adapts:
            self._found[picture.i] = yield from ask(Adapt(picture.i, picture.settled(quality)))

    def best(self, i: int) -> Best:
        """See `Strategy`."""
        return Best(self._found[i])

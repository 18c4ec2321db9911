"""Names of what a world makes, models and sets of pairs: objects, and the short text or number that stands for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, cast, get_args

from radio_utils.world.mixtures import check_share

PairSet = Literal["watermarked", "plain", "kept", "fresh", "outside"]
# watermarked: what Bob may train on, under Alice's key     plain: the same without a key, the fill of the mixtures
# kept: plain pairs that Alice kept and Bob did not use     fresh: watermarked pairs that nobody else saw
# outside: plain pairs that nobody else saw
SETS: tuple[PairSet, ...] = get_args(PairSet)


@dataclass(frozen=True, slots=True)
class Pretrained:
    """A model that nobody has fine-tuned: ``"alice"`` is A, ``"base"`` is B₀."""

    who: Literal["alice", "base"]

    def __str__(self) -> str:
        return self.who


@dataclass(frozen=True, slots=True)
class Texts:
    """A set of pairs: ``"pairs/fresh"``."""

    which: PairSet

    def __post_init__(self) -> None:
        if self.which not in SETS:
            raise ValueError(f"unknown set of pairs {self.which!r}; choose one of {', '.join(SETS)}")

    def __str__(self) -> str:
        return f"pairs/{self.which}"


@dataclass(frozen=True, slots=True)
class Bob:
    """The Bob of a share ρ; the number stands for him."""

    rho: float

    def __post_init__(self) -> None:
        check_share("rho", self.rho)

    def __str__(self) -> str:
        return str(self.rho)


@dataclass(frozen=True, slots=True)
class Twin:
    """Bob's innocent twin: ``"twin"``."""

    def __str__(self) -> str:
        return "twin"


@dataclass(frozen=True, slots=True)
class Purified:
    """The Bob of a share ρ after clean fine-tuning: ``"purified/0.5"``."""

    rho: float

    def __post_init__(self) -> None:
        check_share("rho", self.rho)

    def __str__(self) -> str:
        return f"purified/{self.rho}"


@dataclass(frozen=True, slots=True)
class Redrawn:
    """One for whom a share of the words of Dᴬ were drawn anew by his own base: ``"redrawn/0.25"``."""

    share: float

    def __post_init__(self) -> None:
        check_share("share", self.share)

    def __str__(self) -> str:
        return f"redrawn/{self.share}"


@dataclass(frozen=True, slots=True)
class ManyKeys:
    """One whose data carry so many keys in equal parts: ``"keys/2"``."""

    count: int

    def __str__(self) -> str:
        return f"keys/{self.count}"


FineTuned = Bob | Twin | Purified | Redrawn | ManyKeys
Name = Pretrained | Texts | FineTuned
Which = float | str | Name  # as a world may be asked: the share of a Bob, the text of another name, or the name itself

_PLAIN: dict[str, Name] = {str(name): name for name in (Pretrained("alice"), Pretrained("base"), Twin())}
_WITH_NUMBER: dict[str, Callable[[float], Name]] = {"purified": Purified, "redrawn": Redrawn}


def parse(text: str) -> Name:
    """The name with this text form. Raises ``ValueError`` for an unknown one, ``ShareError`` for a share outside [0, 1]."""
    kind, slash, rest = text.partition("/")
    if text in _PLAIN:
        return _PLAIN[text]
    if kind == "pairs" and rest:
        return Texts(cast(PairSet, rest))  # which refuses others
    try:
        number = float(rest if slash else text)
    except ValueError:
        raise _unknown(text) from None
    if not slash:
        return Bob(number)
    if kind in _WITH_NUMBER:
        return _WITH_NUMBER[kind](number)
    if kind == "keys" and number >= 1 and number.is_integer():
        return ManyKeys(int(number))
    raise _unknown(text)


def named(which: Which) -> Name:
    """The name that a world is asked for. A share is a number: as text it is refused, for it may lack its "purified/"."""
    if isinstance(which, Name):
        return which
    if not isinstance(which, str):
        return Bob(float(which))
    if "/" not in which and which not in _PLAIN:
        raise _unknown(which)
    return parse(which)


def fine_tuned(which: Which) -> FineTuned:
    """The name of a model that was fine-tuned. Raises ``ValueError`` for any other."""
    name = named(which)
    if isinstance(name, Pretrained | Texts):
        raise _unknown(str(name))
    return name


def _unknown(text: str) -> ValueError:
    return ValueError(f"unknown model {text!r}; give a share, 'twin', 'purified/SHARE', 'redrawn/SHARE' or 'keys/COUNT'")

"""Which keys the dictionaries of a trainer may and must have."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from . import common_functions as c_f

__all__ = ["KeyChecker", "KeyCheckerDict", "default_important"]

Keys = list[str] | Callable[["KeyChecker", Mapping[str, "KeyChecker"]], list[str]]


def default_important(s: KeyChecker, d: Mapping[str, KeyChecker]) -> list[str]:
    """Every key that is not essential."""
    keys: Any = s.keys
    return c_f.exclude(keys, s.essential)


class KeyChecker:
    """The keys of one dictionary, as regular expressions that match whole keys.

    Any other key is an error; a missing `essential` one too; a missing `important` one is a warning, as is an empty
    dictionary where `warn_empty`. `keys` and `important` may be functions of this checker and of all of them by name.
    """

    def __init__(
        self, keys: Any, warn_empty: bool = True, important: Any = default_important, essential: list[str] | None = None
    ) -> None:
        self.keys = keys
        self.warn_empty = warn_empty
        self.important = important
        self.essential: list[str] = [] if essential is None else essential


class KeyCheckerDict:
    """Checkers by the name of the attribute whose keys they check."""

    def __init__(self, children: dict[str, KeyChecker]) -> None:
        self.children = children

    def __getitem__(self, key: str) -> KeyChecker:
        return self.children[key]

    def __setitem__(self, key: str, value: KeyChecker) -> None:
        self.children[key] = value

    def verify(self, obj: Any) -> None:
        """ValueError (TypeError for what is no dictionary) where the dictionaries of `obj` break a rule."""
        for name, checker in self.children.items():
            self._verify(name, getattr(obj, name, None), checker)

    def _verify(self, name: str, given: Any, checker: KeyChecker) -> None:
        if not given and checker.warn_empty:
            c_f.LOGGER.warning("%s is empty", name)
        if given is None:
            return
        if not hasattr(given, "keys"):  # a torch ModuleDict is no Mapping
            raise TypeError(f"{name} must be a dictionary, got {type(given).__name__}")
        allowed = self._told(checker.keys, checker)
        for key in given:
            if not _matches(allowed, key):
                raise ValueError(f"{name} keys must be one of {', '.join(allowed)}, got {key!r}{_guess(key, allowed)}")
        for key in self._told(checker.essential, checker):
            if not any(_matches([key], k) for k in given):
                raise ValueError(f"{name} must contain {key!r}, got {', '.join(map(repr, given)) or 'no keys'}")
        for key in self._told(checker.important, checker):
            if not any(_matches([key], k) for k in given):
                c_f.LOGGER.warning('%s is missing "%s"', name, key)

    def _told(self, keys: Any, checker: KeyChecker) -> list[str]:
        return list(keys(checker, self.children) if callable(keys) else keys)


def _matches(patterns: Iterable[str], key: object) -> bool:
    return isinstance(key, str) and any(re.fullmatch(pattern, key) for pattern in patterns)


def _guess(key: object, allowed: list[str]) -> str:
    close = get_close_matches(str(key), allowed, n=1)
    return f": did you mean {close[0]!r}?" if close else ""

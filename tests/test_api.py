"""The training half of the API is pytorch-metric-learning 2.9's: names, signatures, defaults, default parts.

`data/pml_2_9_api.json` lists the names and signatures of the peer's public classes, a signature as one line.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from loss_table import LOSS_ARGUMENTS, REGULARIZER_ARGUMENTS, make_loss

from pml_fast import losses, reducers

API: dict[str, dict[str, Any]] = json.loads((Path(__file__).parent / "data" / "pml_2_9_api.json").read_text())
NAMES = [(module, name) for module, entries in API.items() for name, entry in entries.items() if "function" not in entry]
FUNCTIONS = [(module, name) for module, entries in API.items() for name, entry in entries.items() if "function" in entry]
REDUCER_ARGUMENTS = {
    "ClassWeightedReducer": (torch.ones(3),),
    "MultipleReducers": ({"loss": reducers.MeanReducer()},),
    "ThresholdReducer": (0.1,),
}


def find(module: str, name: str) -> type:
    return getattr(importlib.import_module(f"pml_fast.{module}"), name)


def expected_methods(module: str, name: str) -> dict[str, str]:
    """Signatures of a class's methods, those of its base included."""
    entry = API[module][name]
    inherited = API[module][entry["base"]]["methods"] if "base" in entry else {}
    return {**inherited, **entry["methods"]}


def common_methods(module: str, name: str) -> set[str]:
    """What users call or override: what the bases have. The rest are steps of one loss's own computation."""
    entry = API[module][name]
    bases = ("BaseMetricLossFunction", "BaseLossWrapper", "WeightRegularizerMixin")
    known = {method for base in bases for method in API["losses"][base]["methods"]}
    if module != "losses":
        known = set(API[module][entry.get("base", name)]["methods"])
    if name in ("CrossBatchMemory", "MultipleLosses", "SelfSupervisedLoss", "BatchedDistance"):
        known |= set(entry["methods"])
    return known


def parse(line: str) -> list[tuple[str, str, str | None]]:
    """A signature's parameters: kind ("", "*" or "**"), name and default."""
    parts: list[str] = []
    for part in line.split(", ") if line else []:
        # A default may hold a comma.
        if parts and parts[-1].count("(") > parts[-1].count(")"):
            parts[-1] += f", {part}"
        else:
            parts.append(part)
    found = []
    for part in parts:
        name, equals, default = part.partition("=")
        stars = len(name) - len(name.lstrip("*"))
        found.append(("*" * stars, name.lstrip("*"), default if equals else None))
    return found


def same_default(ours: Any, theirs: str | None) -> bool:
    if theirs is None or ours is inspect.Parameter.empty:
        return theirs is None and ours is inspect.Parameter.empty
    if theirs.startswith("<"):
        return callable(ours)
    value = ast.literal_eval(theirs)
    return bool(ours == value) and isinstance(ours, bool) == isinstance(value, bool) and (ours is None) == (value is None)


def difference(function: Any, line: str) -> str | None:
    """Why a call that the peer takes would not mean the same here, or None."""
    ours = [p for p in inspect.signature(function).parameters.values() if p.name != "self"]
    positional = [p for p in ours if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_name = {p.name: p for p in ours}
    swallows_all = any(p.kind is p.VAR_POSITIONAL for p in ours)
    seen_star, named = False, set()
    if line == "*args, **kwargs" and positional:
        # What the peer only passes on is spelled out.
        return None
    for k, (stars, name, default) in enumerate(parse(line)):
        if stars == "**" and not any(p.kind is p.VAR_KEYWORD for p in ours):
            return f"**{name} is missing"
        if stars == "*":
            seen_star = True
            if not swallows_all and not positional[k:]:
                return f"*{name} is missing"
        if stars:
            continue
        if name not in by_name:
            if swallows_all and default is None:
                continue
            return f"{name} is missing"
        named.add(name)
        if not seen_star and (k >= len(positional) or positional[k].name != name):
            return f"{name} stands elsewhere"
        if not same_default(by_name[name].default, default):
            return f"the default of {name} is {by_name[name].default!r}, not {default}"
    star_at = next((k for k, (stars, _, _) in enumerate(parse(line)) if stars == "*"), None)
    for k, p in enumerate(ours):
        required = p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
        # What the peer passes on through *args may be spelled out.
        if required and p.name not in named and star_at is None:
            return f"{p.name} (number {k}) is asked for beyond the peer's arguments"
    return None


def test_the_list_is_whole() -> None:
    counts = {module: len(classes) for module, classes in API.items()}
    assert counts == {
        "losses": 43, "distances": 6, "reducers": 10, "regularizers": 6, "miners": 11, "utils.accuracy_calculator": 14,
        "utils.inference": 13, "utils.key_checker": 3, "utils.loss_tracker": 1, "utils.common_functions": 56,
        "utils.distributed": 10,
        "trainers": 6,
        "testers": 4,
        "utils.logging_presets": 4,
        "samplers": 4,
        "datasets": 5,
    }  # fmt: skip


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_name_is_there_and_exported(module: str, name: str) -> None:
    cls = find(module, name)
    assert inspect.isclass(cls)
    assert name in importlib.import_module(f"pml_fast.{module}").__all__
    base = API[module][name].get("base")
    assert base is None or issubclass(cls, find(module, base))


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_constructor_has_the_same_signature(module: str, name: str) -> None:
    assert difference(find(module, name).__init__, API[module][name]["init"]) is None


@pytest.mark.parametrize(("module", "name"), NAMES)
def test_every_method_has_the_same_signature(module: str, name: str) -> None:
    cls = find(module, name)
    for method, line in expected_methods(module, name).items():
        if not hasattr(cls, method):
            assert method not in common_methods(module, name), f"{method} is missing"
            # An override would never be called, which the class says.
            assert method in getattr(cls, "_no_steps", (method,)), f"{method} is neither there nor refused"
            continue
        assert difference(getattr(cls, method), line) is None, method


@pytest.mark.parametrize(("module", "name"), FUNCTIONS)
def test_every_function_has_the_same_signature(module: str, name: str) -> None:
    function = getattr(importlib.import_module(f"pml_fast.{module}"), name)
    assert name in importlib.import_module(f"pml_fast.{module}").__all__
    assert difference(function, API[module][name]["function"]) is None


def made(module: str, name: str) -> Any:
    if module == "losses":
        if name == "GenericPairLoss":
            return losses.GenericPairLoss(mat_based_loss=True)
        return make_loss(losses, name)
    arguments = {"regularizers": REGULARIZER_ARGUMENTS, "reducers": REDUCER_ARGUMENTS}.get(module, LOSS_ARGUMENTS)
    return find(module, name)(*arguments.get(name, ()))


def described_distance(distance: Any) -> str:
    d = distance
    return f"{type(d).__name__}(normalize={d.normalize_embeddings}, p={d.p}, power={d.power}, is_inverted={d.is_inverted})"


def described_reducer(reducer: Any) -> Any:
    if not isinstance(reducer, reducers.MultipleReducers):
        return type(reducer).__name__
    parts = {name: type(part).__name__ for name, part in reducer.reducers.items()}
    return {**parts, "default": type(reducer.default_reducer).__name__}


@pytest.mark.parametrize(("module", "name"), [(m, n) for m, n in NAMES if "distance" in API[m][n]])
def test_every_default_part_is_the_same(module: str, name: str) -> None:
    obj, entry = made(module, name), API[module][name]
    assert described_distance(obj.distance) == entry["distance"]
    if "reducer" in entry:
        assert described_reducer(obj.reducer) == entry["reducer"]
        assert obj.sub_loss_names() == entry["sub_losses"]


@pytest.mark.parametrize("name", API["distances"])
def test_distances_point_the_same_way(name: str) -> None:
    import pytorch_metric_learning.distances as peer

    if name == "BatchedDistance":
        pytest.skip("it has the attributes of the distance inside")
    assert described_distance(find("distances", name)()) == described_distance(getattr(peer, name)())


@pytest.mark.parametrize("name", API["reducers"])
def test_reducers_can_be_made_as_listed(name: str) -> None:
    assert isinstance(made("reducers", name), reducers.BaseReducer)


def test_what_differs_is_seen() -> None:
    """The comparison itself: each of these would break a call."""

    def f(self: Any, a: int, b: int = 2, *, c: int = 3, **kwargs: Any) -> None: ...

    assert difference(f, "a, b=2, **kwargs") is None
    assert difference(f, "a, b=2, *args, c=3") == "*args is missing"
    assert difference(f, "b=2, a") == "b stands elsewhere"
    assert difference(f, "a, b=2.5") == "the default of b is 2, not 2.5"
    assert difference(f, "a=1, b=2") == "the default of a is <class 'inspect._empty'>, not 1"
    assert difference(f, "a, b=2, d=1, **kwargs") == "d is missing"
    assert difference(f, "b=2") == "b stands elsewhere"
    assert difference(lambda self, a, z: None, "a") == "z (number 1) is asked for beyond the peer's arguments"
    assert difference(lambda self, a=True: None, "a=1") == "the default of a is True, not 1"
    assert [x[:2] for x in parse("x, g=(1, 2), *_, **k")] == [("", "x"), ("", "g"), ("*", "_"), ("**", "k")]

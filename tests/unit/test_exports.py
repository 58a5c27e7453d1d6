"""The public surface: a change to it is a change to this file, made on purpose."""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import agentfield

PUBLIC = [
    "AIConfig",
    "AccessDeniedError",
    "Agent",
    "AgentFieldError",
    "AgentUnavailableError",
    "CaughtUp",
    "Change",
    "ClosedError",
    "ConflictError",
    "Consistency",
    "DecodeError",
    "Diff",
    "Entry",
    "Erasure",
    "ErasureReceipt",
    "Event",
    "Freshness",
    "HistoryTruncatedError",
    "IncompatibleServerError",
    "InvalidInputError",
    "Lock",
    "LockLostError",
    "Memory",
    "Moment",
    "NotFoundError",
    "OfflineBuffer",
    "OutcomeUnknownError",
    "Past",
    "PrivacyPolicy",
    "ProjectionError",
    "RemoteError",
    "ReplayedFrom",
    "ResyncRequired",
    "Reverted",
    "Scope",
    "Transaction",
    "UnavailableError",
    "Writer",
    "__version__",
    "connect",
]

PUBLIC_OF_PROJECTIONS = ["Buckets", "Head", "Projection", "Runner", "Source", "Store", "View", "open_store"]

# `import agentfield` must not cost what a program may not use.
LOADED_WHEN_USED = ["asyncio", "click", "cryptography", "litellm", "nats", "orjson", "pydantic", "rich"]


def public_members(owner: type) -> list[tuple[str, object]]:
    """Return what a class of ours defines and users may call or read."""
    members: list[tuple[str, object]] = []
    for name, member in vars(owner).items():
        target = member.__func__ if isinstance(member, classmethod | staticmethod) else member
        if not name.startswith("_") and (inspect.isfunction(target) or isinstance(target, property)):
            members.append((name, target))
    return members


def test_the_public_names_are_these() -> None:
    assert agentfield.__all__ == PUBLIC
    assert sorted(PUBLIC) == PUBLIC
    assert set(PUBLIC) <= set(dir(agentfield))


def test_the_public_names_of_projections_are_these() -> None:
    projections = importlib.import_module("projections")
    assert projections.__all__ == PUBLIC_OF_PROJECTIONS
    assert all(inspect.getdoc(getattr(projections, name)) for name in PUBLIC_OF_PROJECTIONS)


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_is_there_and_documented(name: str) -> None:
    value = getattr(agentfield, name)
    if not (inspect.isclass(value) or inspect.isfunction(value)):
        return
    assert inspect.getdoc(value), f"{name} has no docstring"
    if inspect.isclass(value):
        bare = [member for member, target in public_members(value) if not inspect.getdoc(target)]
        assert not bare, f"{name} has members without a docstring: {bare}"


def test_every_error_is_public() -> None:
    errors = importlib.import_module("agentfield.errors")
    defined = {
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    }
    assert {name for name in defined if not name.startswith("_")} <= set(PUBLIC)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'Agnet'"):
        getattr(agentfield, "Agnet")  # noqa: B009 - a checker refuses it written as an attribute


def test_a_star_import_brings_every_public_name() -> None:
    names: dict[str, object] = {}
    exec("from agentfield import *", names)
    assert set(PUBLIC) <= set(names)


def test_importing_the_package_loads_nothing_it_does_not_need() -> None:
    question = f"import sys, agentfield; print([name for name in {LOADED_WHEN_USED} if name in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", question], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


@pytest.mark.parametrize("package", ["agentfield", "projections"])
def test_every_module_says_what_it_is(package: str) -> None:
    root = importlib.import_module(package)
    names = [package, *(info.name for info in pkgutil.walk_packages(root.__path__, f"{package}."))]
    bare = [name for name in names if not name.endswith("__main__") and not importlib.import_module(name).__doc__]
    assert not bare

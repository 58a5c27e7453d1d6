"""The layers of the source, read off its imports: a module knows only what is above it.

The rules are the tables below. A new module that is in no layer fails here until somebody says where it belongs.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# From the top down. A module imports from its own layer and from those above it.
LAYERS = (
    words("errors version server_version"),
    words("settings naming amount ending"),
    words("scope key pattern subject"),
    words("effects execution"),
    words("value reference schema privacy envelope event header codec"),
    words("fabric"),
    words("archive"),
    words("local"),
    words("memory"),
    words("audit replay"),
    words("agent"),
    words("testing"),
    words("cli __main__"),
)
LAYER_OF = {name: depth for depth, names in enumerate(LAYERS) for name in names}

# Packages within a layer, and what each may know of the rest of it.
WITHIN = {
    "agentfield.fabric.wire": words("faults"),
    "agentfield.fabric.calling": words("faults wire"),
    "agentfield.fabric.reading": words("asking log reader"),
    "agentfield.fabric.personal": words("appending faults jetstream journals leader log topology wire"),
    "agentfield.fabric.consumers": words("backlog faults jetstream log reader reading records trimmed wire"),
}

# Rules that are the same on every machine and at every time: they do no I/O and know no clock.
PURE = words(
    "errors version server_version naming amount scope key pattern subject effects value reference schema privacy "
    "envelope event header codec"
)
IMPURE = words("asyncio concurrent http multiprocessing nats os pathlib select signal socket subprocess threading time")

# Who may use what only some may use.
IMPORTS_NATS = words("fabric")
READS_SETTINGS = words("local memory replay agent testing cli")
READS_ENVIRONMENT = words("settings")
PRINTS_OR_EXITS = words("cli")
LOCAL_KNOWS = words("errors version server_version settings local")
KNOWS_THE_PACKAGE = words("testing cli __main__")  # they stand on top of all it exports

ENVIRONMENT = words("os.environ os.environb os.getenv os.putenv")
OUTPUT_AND_EXIT = words("print exit quit SystemExit sys.exit sys.stdout sys.stderr os._exit")

# These stand where users stand: what they import from agentfield is public, and these modules besides.
ON_TOP = {"projections": words(""), "examples": words("local")}  # the demo starts a server and ends it
# The doors of what stands on top: the only files of it that know more of agentfield, and what they know.
DOORS = {
    Path("projections/source.py"): words("codec errors event execution fabric header memory pattern scope settings"),
    Path("projections/buckets.py"): words("codec errors fabric header scope"),
    Path("projections/erasures.py"): words("event fabric memory pattern"),
    Path("projections/stores/bucket.py"): words("fabric key value"),
    Path("projections/stores/seals.py"): words("audit fabric"),
    Path("projections/seals.py"): words("audit codec"),
    Path("projections/stores/archive.py"): words("archive codec"),
    Path("projections/archive.py"): words("archive audit codec subject"),
    Path("projections/messages.py"): words("audit codec"),
    Path("projections/trimming.py"): words("archive audit fabric"),
}
# Of agentfield itself, only the command line knows what stands on top: it is the one to whom users name it.
KNOWS_PROJECTIONS = words("cli")


def imports(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the dotted name of everything a module imports, also inside functions and for types only."""
    for node in ast.walk(tree):
        match node:
            case ast.Import():
                yield from ((node.lineno, alias.name) for alias in node.names)
            case ast.ImportFrom(level=0, module=str(module)):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            case ast.ImportFrom():
                yield node.lineno, "." * node.level + (node.module or "")


def import_faults(name: str, tree: ast.AST) -> Iterator[str]:
    """Yield what is wrong with the imports of a module of agentfield whose layer is called `name`."""
    for line, target in imports(tree):
        top, _, rest = target.partition(".")
        if not top:
            yield f"{line}: relative import"
        if name in PURE and top in IMPURE:
            yield f"{line}: {name} is pure and imports {top}"
        if top == "nats" and name not in IMPORTS_NATS:
            yield f"{line}: only fabric imports nats"
        if top in ("tests", "examples", "benchmarks") or (top == "projections" and name not in KNOWS_PROJECTIONS):
            yield f"{line}: imports {top}, which stands on top of agentfield"
        if top != "agentfield" or (not rest and name in KNOWS_THE_PACKAGE):
            continue
        other = rest.partition(".")[0]
        if other not in LAYER_OF:
            yield f"{line}: imports {target}, which is no module: inside the package, import from the module itself"
        elif LAYER_OF[other] > LAYER_OF[name]:
            yield f"{line}: {name} imports {other}, which is below it"
        elif other == "settings" and name not in READS_SETTINGS:
            yield f"{line}: {name} must be told, and not read settings"
        elif name == "local" and other not in LOCAL_KNOWS:
            yield f"{line}: local imports {other}, but knows only {sorted(LOCAL_KNOWS)}"


def faults_within(package: str, tree: ast.AST) -> Iterator[str]:
    """Yield what is wrong with the imports of a module of a package within a layer."""
    parent = package.rpartition(".")[0]
    for line, target in imports(tree):
        if target.startswith(f"{parent}.") and not target.startswith(f"{package}."):
            other = target.removeprefix(f"{parent}.").partition(".")[0]
            if other not in WITHIN[package]:
                yield f"{line}: {package} imports {other}, but knows only {sorted(WITHIN[package])}"


def uses(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the line and the name, bare or with its module, of whatever a module refers to.

    Left out are an exception that is only caught, and a setting for another library that is only left in the
    environment (`os.environ.setdefault(…)` as a statement): neither exits, neither reads.
    """
    yield from imports(tree)
    harmless: set[ast.AST] = set()
    for node in ast.walk(tree):
        match node:
            case ast.ExceptHandler(type=ast.expr() as caught):
                harmless.update(ast.walk(caught))
            case ast.Expr(value=ast.Call(func=ast.Attribute(value=ast.Attribute() as owner, attr="setdefault"))):
                harmless.add(owner)
            case ast.Name(id=name) if node not in harmless:
                yield node.lineno, name
            case ast.Attribute(value=ast.Name(id=module), attr=name) if node not in harmless:
                yield node.lineno, f"{module}.{name}"


def use_faults(name: str, tree: ast.AST) -> Iterator[str]:
    """Yield what a module does that only others may do."""
    for line, used in uses(tree):
        if used in ENVIRONMENT and name not in READS_ENVIRONMENT:
            yield f"{line}: {used}, but only settings reads the environment"
        if used in OUTPUT_AND_EXIT and name not in PRINTS_OR_EXITS:
            yield f"{line}: {used}, but only cli prints or exits"


def modules(package: str) -> list[Path]:
    return sorted(path.relative_to(ROOT) for path in (ROOT / package).rglob("*.py"))


def layer(path: Path) -> str:
    return path.parts[1] if len(path.parts) > 2 else path.stem


def parsed(path: Path) -> ast.Module:
    return ast.parse((ROOT / path).read_text(), str(path))


AGENTFIELD = [path for path in modules("agentfield") if path != Path("agentfield/__init__.py")]


@pytest.mark.parametrize("path", AGENTFIELD, ids=str)
def test_a_module_knows_only_what_is_above_it(path: Path) -> None:
    name = layer(path)
    assert name in LAYER_OF, f"{path} is in no layer"
    assert not [*import_faults(name, parsed(path)), *use_faults(name, parsed(path))]


@pytest.mark.parametrize("path", [path for path in AGENTFIELD if ".".join(path.parts[:-1]) in WITHIN], ids=str)
def test_a_package_within_a_layer_knows_only_what_it_stands_on(path: Path) -> None:
    assert not list(faults_within(".".join(path.parts[:-1]), parsed(path)))


@pytest.mark.parametrize("path", [path for path in modules("agentfield/cli") if "commands" not in path.parts], ids=str)
def test_only_a_command_imports_from_another(path: Path) -> None:
    assert not [target for _, target in imports(parsed(path)) if target.startswith("agentfield.cli.commands")]


@pytest.mark.parametrize("path", [path for package in ON_TOP for path in modules(package)], ids=str)
def test_what_stands_on_agentfield_uses_its_public_names(path: Path) -> None:
    package = path.parts[0]
    for line, target in imports(parsed(path)):
        top, _, rest = target.partition(".")
        inside, _, name = rest.partition(".")
        assert top != "nats", f"{line}: imports nats"
        assert (package, top) != ("projections", "examples"), f"{line}: imports {target}"
        if top == "agentfield" and name:
            allowed = ON_TOP[package] | DOORS.get(path, frozenset())
            assert inside in allowed, f"{line}: {target} is not public, import from agentfield"


def test_the_package_itself_loads_nothing_but_its_version() -> None:
    package = parsed(Path("agentfield/__init__.py"))
    at_run_time = [node for node in package.body if isinstance(node, ast.Import | ast.ImportFrom)]
    targets = {target for node in at_run_time for _, target in imports(node)}
    assert {target for target in targets if target.startswith("agentfield")} == {"agentfield.version.__version__"}


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("key", "from agentfield.event import Event"),
        ("key", "from agentfield import event"),
        ("key", "import time"),
        ("key", "def later():\n    import asyncio"),
        ("memory", "import nats.errors"),
        ("memory", "from nats.aio.client import Client"),
        ("fabric", "from agentfield.settings import Settings"),
        ("local", "from agentfield.scope import Scope"),
        ("memory", "from agentfield import Agent"),
        ("memory", "import agentfield"),
        ("memory", "from . import state"),
        ("agent", "from agentfield.cli import main"),
        ("memory", "import projections"),
        ("cli", "import examples"),
    ],
)
def test_a_forbidden_import_is_found(name: str, source: str) -> None:
    assert list(import_faults(name, ast.parse(source)))


def test_an_import_out_of_a_package_within_a_layer_is_found() -> None:
    package = "agentfield.fabric.wire"
    assert list(faults_within(package, ast.parse("from agentfield.fabric.log import Log")))
    assert list(faults_within(package, ast.parse("from agentfield.fabric import records")))
    assert not list(faults_within(package, ast.parse("from agentfield.fabric.wire.client import Client")))


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("agent", "import os\nkey = os.environ['KEY']"),
        ("local", "from os import path, environ"),
        ("cli", "import os\nos.getenv('KEY')"),
        ("agent", "import os\nkey = os.environ.setdefault('KEY', '')"),
        ("agent", "print('hello')"),
        ("local", "raise SystemExit(1)"),
        ("memory", "import sys\nsys.exit()"),
        ("agent", "import sys\nsys.stdout.write('hello')"),
    ],
)
def test_a_forbidden_use_is_found(name: str, source: str) -> None:
    assert list(use_faults(name, ast.parse(source)))


def test_what_is_allowed_is_not_found_fault_with() -> None:
    allowed = {
        "fabric": "import nats\nfrom agentfield.codec import Record",
        "settings": "import os\nvalues = os.environ",
        "cli": "import sys\nimport agentfield\nimport projections\nprint('hello')\nsys.exit(1)",
        "local": "import os\nfrom agentfield.settings import Settings\nos.kill(1, 0)",
        "agent": "try:\n    f()\nexcept (ValueError, SystemExit):\n    os.environ.setdefault('QUIET', '1')",
    }
    for name, source in allowed.items():
        assert not [*import_faults(name, ast.parse(source)), *use_faults(name, ast.parse(source))]

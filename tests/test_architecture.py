"""The direction of imports, and what a wrong config must not wait for."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("backbones", "data", "heads", "train")
HEAVY = ("tensorflow", "keras", "albumentations", "sklearn")


def modules() -> dict[str, Path]:
    """Every module of the package by its dotted name."""
    found = {}
    for path in sorted((ROOT / "tlearn").rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imports(module: str) -> set[str]:
    """Dotted names that a module imports anywhere: at the top, in a function, or for types alone."""
    path = MODULES[module]
    package = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            source = ".".join([*above, *([node.module] if node.module else [])])
            # `from tlearn import data` means the module tlearn.data, `from tlearn.data import x` may too.
            deeper = {f"{source}.{alias.name}" for alias in node.names}
            names |= (deeper & MODULES.keys()) | ({source} if deeper - MODULES.keys() else set())
    return names


def reached(module: str) -> dict[str, str]:
    """Modules of ours that a module leads to, each with the one that imports it."""
    found: dict[str, str] = {}
    waiting = [module]
    while waiting:
        current = waiting.pop()
        for name in sorted(imports(current) & MODULES.keys() - found.keys() - {module}):
            found[name] = current
            waiting.append(name)
    return found


def within(module: str, room: str) -> bool:
    return module == f"tlearn.{room}" or module.startswith(f"tlearn.{room}.")


@pytest.mark.parametrize("room", ["backbones", "data", "heads", "config"])
def test_only_train_knows_the_other_rooms(room: str) -> None:
    others = [other for other in ROOMS if other != room]
    wrong = [
        f"{module} reaches {name} through {importer}"
        for module in MODULES
        if within(module, room)
        for name, importer in reached(module).items()
        if any(within(name, other) for other in others)
    ]
    assert not wrong, "\n".join(wrong)


def test_every_room_is_there() -> None:
    for room in (*ROOMS, "config"):
        assert f"tlearn.{room}" in MODULES, f"the rules above check nothing: no tlearn.{room}"


@pytest.mark.parametrize(
    "module",
    [
        "tlearn",
        "tlearn.config",
        "tlearn.backbones",
        "tlearn.heads",
        "tlearn.data",
        "tlearn.compose",
        "tlearn.train.command",
        "tlearn.train.api",  # whose prepare() imports TensorFlow beside the check of images, and quietly
    ],
)
def test_light_modules_import_nothing_heavy(module: str) -> None:
    code = f"import sys, {module}; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]", f"{module} imports {done.stdout.strip()}"


def test_every_import_is_a_declared_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = [line for name, lines in project["optional-dependencies"].items() if name != "dev" for line in lines]
    declared = {distribution(line) for line in [*project["dependencies"], *extras]}
    owners = packages_distributions()
    missing: dict[str, list[str]] = {}
    for module in MODULES:
        for name in sorted({full.partition(".")[0] for full in imports(module)}):
            if name in sys.stdlib_module_names or name == "tlearn":
                continue
            if not {distribution(owner) for owner in owners.get(name, [name])} & declared:
                missing.setdefault(name, []).append(module)
    assert not missing, f"not in pyproject.toml: {missing}"


def distribution(requirement: str) -> str:
    """The normalised name of a distribution in a requirement such as ``Hydra_Core>=1.3``."""
    match = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert match, requirement
    return re.sub(r"[-_.]+", "-", match.group()).lower()


# --- what no module may do: SECURITY.md promises it ------------------------------------------------------------------

RUNS_CODE = {"eval", "exec", "compile", "__import__"}
UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "ctypes"}
UNSAFE_YAML = {"load", "load_all", "unsafe_load", "unsafe_load_all", "full_load", "full_load_all"}
NETWORK = {"http", "urllib", "requests", "ftplib", "smtplib", "httpx", "aiohttp"}


def calls(module: str) -> list[tuple[str, ast.Call]]:
    """Every call in a module, with what it calls as written: ``np.load``."""
    tree = ast.parse(MODULES[module].read_text(encoding="utf-8"))
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def keyword(call: ast.Call, name: str) -> str | None:
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == name), None)


@pytest.mark.parametrize("module", MODULES)
def test_no_module_runs_what_a_file_says(module: str) -> None:
    for name, call in calls(module):
        where = f"{module}:{call.lineno}: {name}"
        assert name not in RUNS_CODE, where
        assert not (name.startswith("yaml.") and name.removeprefix("yaml.") in UNSAFE_YAML), where
        assert keyword(call, "shell") in (None, "False"), where
        assert name not in ("os.system", "os.popen"), where
        assert keyword(call, "allow_pickle") in (None, "False"), where
        if name in ("np.load", "numpy.load", "np.lib.format.read_array"):
            assert keyword(call, "allow_pickle") == "False", where
        if name.endswith("load_model"):
            assert keyword(call, "safe_mode") == "True", where
        if name == "Image.open":
            assert keyword(call, "formats") is not None, f"{where}: Pillow opens what it is told to"
        assert not name.endswith("enable_unsafe_deserialization"), where


@pytest.mark.parametrize("module", MODULES)
def test_no_module_knows_pickles_or_the_network(module: str) -> None:
    named = {name.partition(".")[0] for name in imports(module)}
    assert not named & UNSAFE_MODULES
    assert not named & NETWORK, "Keras fetches its ImageNet weights; nothing else is fetched"

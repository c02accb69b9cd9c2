"""The shape of the code, read from its syntax trees: who imports whom, what is said where, how long it is."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DOMAINS = tuple(name for name in ("vision", "diffusion", "vla") if (ROOT / name).is_dir())
HEAVY = {"transformers", "diffusers", "mani_skill", "peft", "lerobot", "datasets", "torchvision", "trl"}
BANNED_NAMES = {"logps", "prev_logprobs", "log_prob_old", "uid"}
LONGER_FILES: dict[str, str] = {}
"""Files of mmrl above 250 lines, each with the reason."""
REFLECTION: dict[str, str] = {
    "mmrl/config.py": "finds classes by the dotted names that YAML gives",
}
"""Files of mmrl that use getattr, each with the reason."""


def files(*folders: str) -> list[str]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    return [str(path.relative_to(ROOT)) for path in found]


@cache
def tree(name: str) -> ast.Module:
    return ast.parse((ROOT / name).read_text(), name)


def imported(name: str) -> Iterator[str]:
    """Dotted names of all modules imported anywhere in a file, those inside functions too."""
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}:{node.lineno} imports relatively"
            yield node.module or ""


def dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def docstrings(name: str) -> set[int]:
    """ids of the string nodes that are documentation."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    bodies = [node.body for node in ast.walk(tree(name)) if isinstance(node, kinds)]
    lone = [s.value for body in bodies for s in body if isinstance(s, ast.Expr) and isinstance(s.value, ast.Constant)]
    return {id(constant) for constant in lone}


def functions(name: str) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_there_is_something_to_check() -> None:
    assert len(files("mmrl")) > 30
    assert "vision" in DOMAINS
    assert "mmrl.types" in set(imported("mmrl/update.py"))


# ---- who imports whom -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", files("mmrl"))
def test_the_core_knows_no_domain_no_reward_and_no_heavy_library(name: str) -> None:
    roots = {module.split(".")[0] for module in imported(name)}
    assert not roots & {"vision", "diffusion", "vla", "rewards", "tests", "benchmarks"}
    assert not roots & HEAVY


@pytest.mark.parametrize("name", files("rewards"))
def test_rewards_know_only_the_records_and_masked_reductions_of_the_core(name: str) -> None:
    """And how code of the user's own is imported; and, to write a page that looks like all others, mmrl.pages."""
    used = {module for module in imported(name) if module.split(".")[0] == "mmrl"}
    pages = {"mmrl.pages"} if name.endswith("/page.py") else set()
    assert used <= {"mmrl.types", "mmrl.masked", "mmrl.importing"} | pages
    assert not {module for module in imported("mmrl/pages.py") if module.split(".")[0] == "mmrl"}
    assert not {module.split(".")[0] for module in imported(name)} & {"vision", "diffusion", "vla"}


@pytest.mark.parametrize("name", files(*DOMAINS))
def test_domains_do_not_import_each_other(name: str) -> None:
    own = name.split("/")[0]
    assert not {module.split(".")[0] for module in imported(name)} & ({"vision", "diffusion", "vla"} - {own})


def test_help_answers_without_heavy_imports() -> None:
    code = (
        "import sys, runpy\nsys.argv = ['mmrl', '--help']\n"
        "try:\n    runpy.run_module('mmrl', run_name='__main__')\n"
        "except SystemExit as done:\n    assert done.code == 0\n"
        "print([m for m in ('torch', 'transformers', 'accelerate', 'numpy', 'yaml', 'matplotlib') if m in sys.modules])"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "train" in run.stdout
    assert run.stdout.splitlines()[-1] == "[]"


# ---- randomness and devices -------------------------------------------------------------------------------


def unruly(name: str) -> list[str]:
    """Global randomness and literal devices: where they stand and what they are."""
    found, documentation = [], docstrings(name)
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Attribute):
            full = dotted(node)
            own_instance = full in ("random.Random", "np.random.default_rng", "np.random.Generator")
            is_global = full.startswith(("random.", "np.random.", "numpy.random.")) and not own_instance
            if is_global or full == "torch.manual_seed" or node.attr == "cuda":
                found.append(f"{name}:{node.lineno} {full}")
        if isinstance(node, ast.ImportFrom) and node.module in ("random", "numpy.random"):
            found.append(f"{name}:{node.lineno} from {node.module}")
        says = node.value if isinstance(node, ast.Constant) and id(node) not in documentation else None
        if isinstance(says, str) and (says == "cuda" or says.startswith("cuda:")):
            found.append(f"{name}:{node.lineno} {says!r}")
    return found


@pytest.mark.parametrize("name", [n for n in files("mmrl", "rewards", *DOMAINS) if n != "mmrl/runtime.py"])
def test_randomness_and_devices_come_from_the_runtime(name: str) -> None:
    """An instance of one's own, explicitly seeded, is allowed: random.Random(seed), np.random.default_rng(seed)."""
    assert unruly(name) == []
    for node in ast.walk(tree(name)):
        if isinstance(node, ast.Call) and dotted(node.func) in ("random.Random", "np.random.default_rng"):
            assert node.args, f"{name}:{node.lineno} {dotted(node.func)} without a seed"


def test_the_check_of_randomness_finds_what_it_looks_for() -> None:
    assert any("torch.manual_seed" in line for line in unruly("mmrl/runtime.py"))
    assert any("torch.cuda" in line for line in unruly("mmrl/runtime.py"))


# ---- how it is written ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", files("mmrl"))
def test_no_reflection_in_the_core(name: str) -> None:
    calls = [dotted(node.func) for node in ast.walk(tree(name)) if isinstance(node, ast.Call)]
    reflective = {call for call in calls if call in ("getattr", "hasattr", "setattr")}
    assert not reflective or name in REFLECTION, f"{name} uses {reflective}"
    assert reflective or name not in REFLECTION, f"{name} needs no exception any more"
    catch_all = [f"{name}:{f.lineno} {f.name}" for f in functions(name) if f.args.kwarg is not None]
    assert [
        where for where in catch_all if not where.endswith(" with_")
    ] == []  # types.Rollout.with_: dataclasses.replace


@pytest.mark.parametrize("name", files("mmrl", "rewards", *DOMAINS))
def test_one_name_for_one_idea(name: str) -> None:
    used = {node.id for node in ast.walk(tree(name)) if isinstance(node, ast.Name)}
    used |= {node.attr for node in ast.walk(tree(name)) if isinstance(node, ast.Attribute)}
    used |= {node.arg for node in ast.walk(tree(name)) if isinstance(node, ast.arg)}
    used |= {node.name for node in ast.walk(tree(name)) if isinstance(node, ast.FunctionDef | ast.ClassDef)}
    assert not used & BANNED_NAMES


@pytest.mark.parametrize("name", files("mmrl", "rewards", *DOMAINS))
def test_files_and_functions_are_short(name: str) -> None:
    length = len((ROOT / name).read_text().splitlines())
    limit = 350 if name.split("/")[0] in DOMAINS else 250
    assert length <= limit or name in LONGER_FILES, f"{name} has {length} lines"
    assert length > limit or name not in LONGER_FILES, f"{name} needs no exception any more"
    if name.split("/")[0] not in DOMAINS:
        long = [f"{f.name}: {f.end_lineno - f.lineno + 1}" for f in functions(name) if f.end_lineno - f.lineno >= 50]
        assert long == []


@pytest.mark.parametrize("name", files("mmrl/advantages", "mmrl/surrogates", "mmrl/selectors", "mmrl/shapers"))
def test_a_part_of_an_algorithm_fits_on_a_page(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) <= 60


@pytest.mark.parametrize("name", files("mmrl", "rewards", *DOMAINS))
def test_what_is_public_is_documented(name: str) -> None:
    assert ast.get_docstring(tree(name)), f"{name} has no docstring"
    kinds = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    public = [node for node in tree(name).body if isinstance(node, kinds) and not node.name.startswith("_")]
    assert [node.name for node in public if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("package", ["advantages", "surrogates", "selectors", "regularisers", "shapers"])
def test_parts_are_exported_by_name_and_listed(package: str) -> None:
    exported = next(
        ast.literal_eval(node.value)
        for node in tree(f"mmrl/{package}/__init__.py").body
        if isinstance(node, ast.Assign)
    )
    kinds = {"Advantage", "Surrogate", "Selector", "Regulariser", "Shaper"}
    classes = [node for name in files(f"mmrl/{package}") for node in tree(name).body if isinstance(node, ast.ClassDef)]
    family = set(kinds)
    for _ in classes:  # of a child of a child, too
        family |= {node.name for node in classes if {dotted(base) for base in node.bases} & family}
    defined = {
        node.name for node in classes if node.name in family and "abc.ABC" not in {dotted(base) for base in node.bases}
    }
    assert set(exported) == defined


def test_the_readme_shows_files_as_they_are() -> None:
    from benchmarks.readme import with_files

    text = (ROOT / "README.md").read_text()
    assert with_files(text) == text

"""The house in numbers, read from the syntax trees of the checkout that it is run in, for docs/architecture.md.

Figures are kept by commit in benchmarks/results/structure.json, so that before and after stand beside each other.

    python -m benchmarks.structure
"""

from __future__ import annotations

import ast
import json
import statistics
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from benchmarks.common import RESULTS, write

PACKAGES = ("mmrl", "vision", "diffusion", "vla", "rewards")
PARTS = ("advantages", "surrogates", "aggregates", "regularisers", "selectors")
"""Folders of the core that hold what an algorithm is made of."""
RECIPES = {"vision": "cls_rl", "diffusion": "flow_grpo", "vla": "pirl_pushcube"}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def quantiles(values: Sequence[int]) -> dict[str, int]:
    """Median, ninth decile and maximum."""
    ordered = sorted(values)
    return {
        "median": int(statistics.median(ordered)),
        "p90": ordered[min(len(ordered) - 1, int(0.9 * len(ordered)))],
        "max": ordered[-1],
    }


def functions(tree: ast.Module) -> Iterator[Function]:
    """All functions and methods of a file."""
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def annotated(function: Function) -> bool:
    """Whether all arguments and the result have types."""
    arguments = [*function.args.posonlyargs, *function.args.args, *function.args.kwonlyargs]
    own = [a for a in arguments if a.arg not in ("self", "cls")]
    return function.returns is not None and all(a.annotation is not None for a in own)


def public(tree: ast.Module) -> Iterator[Function | ast.ClassDef]:
    """Classes and functions of a file whose names say that others may use them, methods too."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef)):
            yield from (
                n for n in node.body if isinstance(n, (*Function.__args__, ast.ClassDef)) and not n.name.startswith("_")
            )


def told(trees: Sequence[ast.Module]) -> set[str]:
    """Names of what has a docstring."""
    return {node.name for tree in trees for node in public(tree) if ast.get_docstring(node) is not None}


def documented(trees: Sequence[ast.Module], elsewhere: set[str]) -> float:
    """Share of what is public that says what it is; an overriding method says it where it was first declared, here or
    among the names `elsewhere`."""
    known = told(trees) | elsewhere
    overriding = {
        id(method)
        for tree in trees
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef) and owner.bases
        for method in owner.body
        if isinstance(method, Function) and method.name in known
    }
    nodes = [node for tree in trees for node in public(tree)]
    return sum(ast.get_docstring(node) is not None or id(node) in overriding for node in nodes) / len(nodes)


def calls(tree: ast.Module, names: Sequence[str]) -> int:
    """How often one of the functions `names` is called."""
    found = (node.func for node in ast.walk(tree) if isinstance(node, ast.Call))
    return sum(isinstance(called, ast.Name) and called.id in names for called in found)


def package(root: Path, name: str, elsewhere: set[str]) -> dict[str, object]:
    """What one package is like."""
    texts = {path: path.read_text() for path in sorted((root / name).rglob("*.py"))}
    trees = [ast.parse(text) for text in texts.values()]
    made = [f for tree in trees for f in functions(tree)]
    return {
        "files": len(texts),
        "lines": sum(text.count("\n") for text in texts.values()),
        "file_lines": quantiles([text.count("\n") for text in texts.values()]),
        "function_lines": quantiles([(f.end_lineno or 0) - f.lineno + 1 for f in made]),
        "annotated": round(sum(map(annotated, made)) / len(made), 3),
        "public_documented": round(documented(trees, elsewhere), 3),
        "reflection": sum(calls(tree, ("getattr", "hasattr", "setattr")) for tree in trees),
        "keyword_dicts": sum(f.args.kwarg is not None for f in made),
    }


def length(path: Path, function: str) -> int:
    """Lines of one function or method of a file."""
    found = [f for f in functions(ast.parse(path.read_text())) if f.name == function]
    return (found[0].end_lineno or 0) - found[0].lineno + 1


def reading(root: Path, domain: str) -> dict[str, object]:
    """The way from a recipe to the loss: files, and the lines of what is read in each."""
    recipe = root / "configs" / domain / f"{RECIPES[domain]}.yaml"
    steps = {
        str(recipe.relative_to(root)): recipe.read_text().count("\n"),
        f"{domain}/experiments.py: build": length(root / domain / "experiments.py", "build"),
        "mmrl/trainer.py: step": length(root / "mmrl/trainer.py", "step"),
        "mmrl/update.py: update": length(root / "mmrl/update.py", "update"),
        "mmrl/update.py: accumulate": length(root / "mmrl/update.py", "accumulate"),
        "mmrl/update.py: batch_loss": length(root / "mmrl/update.py", "batch_loss"),
        "mmrl/surrogates/ppo_clip.py": (root / "mmrl/surrogates/ppo_clip.py").read_text().count("\n"),
    }
    return {"files": len({step.split(":")[0] for step in steps}), "lines": sum(steps.values()), "steps": steps}


def structure(root: Path) -> dict[str, object]:
    """The figures of the checkout `root`."""
    core = told([ast.parse(path.read_text()) for path in (root / "mmrl").rglob("*.py")])
    parts = [
        (str(path.relative_to(root)), path.read_text().count("\n"))
        for part in PARTS
        for path in sorted((root / "mmrl" / part).glob("*.py"))
        if path.name != "__init__.py"
    ]
    recipes = [path.read_text().count("\n") for path in sorted((root / "configs").rglob("*.yaml"))]
    tests = [path.read_text() for path in sorted((root / "tests").rglob("test_*.py"))]
    return {
        "packages": {name: package(root, name, core) for name in PACKAGES},
        "reading": {domain: reading(root, domain) for domain in RECIPES},
        "algorithm_files": {"number": len(parts), **quantiles([lines for _, lines in parts])},
        "recipes": {"number": len(recipes), **quantiles(recipes)},
        "tests": {"functions": sum(text.count("\ndef test_") for text in tests), "files": len(tests)},
    }


def main() -> None:
    """Write the figures under this commit beside those of others."""
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], check=True, capture_output=True, text=True)
    path = RESULTS / "structure.json"
    commits = json.loads(path.read_text())["commits"] if path.exists() else {}
    commits[commit.stdout.strip()] = structure(Path.cwd())
    write("structure", {"what": (__doc__ or "").split("\n")[0], "commits": commits})


if __name__ == "__main__":
    main()

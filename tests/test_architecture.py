"""The direction of imports, and what importing the package may load."""

import ast
import subprocess
import sys
from pathlib import Path

import ensemblehub

ROOT = Path(ensemblehub.__file__).parent
ROWS = [
    {"cost", "errors", "surrogates", "concurrency", "probes"},
    {"schema"},
    {"builtin", "results"},
    {"config", "registry"},
    {"artifacts", "board", "journal", "answers", "data", "data_files", "questions", "shards"},
    {"generators"},
    {"scorers"},
    {"tandem"},
    {"ensemble_methods"},
    {"configured"},
    {"ensemble"},
    {"client", "options", "output", "ray_cluster", "ray_data"},
    {"inference", "doctor", "doctor_report", "terminal", "cli", "api", "mcp_server"},
    {"lab"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}


ENGINES = ("hf", "llama_cpp", "numpy", "vllm", "openai")


def modules():
    """Every module of the package by its dotted name below the package; packages by their own."""
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(path, names):
    """The modules that a file imports, wherever in it: at the top, in functions, for types."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "ensemblehub":
            inside = node.module.split(".")[1:]
            for alias in node.names:
                name = ".".join([*inside, alias.name])
                yield name if name in names else ".".join(inside)
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.partition(".")[2]
                for alias in node.names
                if alias.name.split(".")[0] == "ensemblehub"
            )


def graph():
    names = modules()
    return {name: set(imports(path, names)) for name, path in names.items() if name}


def circles(graph):
    """The groups of two or more modules that import each other, straight or through others."""
    reached = {name: set(targets) for name, targets in graph.items()}
    for through in graph:
        for targets in reached.values():
            if through in targets:
                targets |= reached[through]
    mutual = {
        frozenset(other for other in targets if name in reached.get(other, ())) | {name}
        for name, targets in reached.items()
    }
    return {group for group in mutual if len(group) > 1}


def test_a_package_imports_only_from_rows_above_it():
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        if name != "__main__" and target and RANK[target.split(".")[0]] > RANK[name.split(".")[0]]
    ]
    assert not wrong


def test_no_modules_import_each_other():
    assert circles({"a": {"b"}, "b": {"c", "d"}, "c": {"a"}, "d": {"d"}}) == {frozenset("abc")}
    assert {", ".join(sorted(group)) for group in circles(graph())} == set()


def test_engines_are_siblings():
    wrong = [
        f"{name} imports {target}"
        for name, targets in graph().items()
        for target in targets
        for own, other in [(name.split(".")[1:2], target.split(".")[1:2])]
        if name.startswith("generators.") and target.startswith("generators.")
        if own != other and {*own, *other} <= set(ENGINES)
    ]
    assert not wrong


def test_importing_the_package_loads_no_backend():
    heavy = "{'torch', 'transformers', 'sklearn', 'matplotlib', 'math_verify'}"
    code = f"import sys, ensemblehub.cli, ensemblehub.registry; print(sorted({heavy} & set(sys.modules)))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_no_module_shadows_the_standard_library():
    names = {path.stem for path in ROOT.glob("*.py")} | {
        path.name for path in ROOT.iterdir() if path.is_dir()
    }
    assert not names & set(sys.stdlib_module_names)

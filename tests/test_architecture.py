"""The direction of imports, and what importing the package may load."""

import ast
import subprocess
import sys
from pathlib import Path

import ensemblehub

ROOT = Path(ensemblehub.__file__).parent
ROWS = [
    {"schema", "errors", "surrogates", "concurrency"},
    {"builtin"},
    {"config", "registry", "cost"},
    {"artifacts", "journal", "answers", "data", "data_files"},
    {"generators"},
    {"scorers"},
    {"tandem"},
    {"ensemble_methods"},
    {"ensemble"},
    {"output"},
    {"inference", "doctor", "terminal", "cli", "api"},
    {"lab"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}


def imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("ensemblehub"):
            parts = node.module.split(".")
            yield from [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
        elif isinstance(node, ast.Import):
            yield from (
                alias.name.split(".")[1] for alias in node.names if alias.name.startswith("ensemblehub.")
            )


def test_a_package_imports_only_from_rows_above_it():
    wrong = []
    for path in ROOT.rglob("*.py"):
        own = path.relative_to(ROOT).parts[0].removesuffix(".py")
        if own in ("__init__", "__main__"):
            continue
        wrong += [
            f"{path.name} imports {name}" for name in imports(path) if name in RANK and RANK[name] > RANK[own]
        ]
        # terminal and the pipeline meet only inside functions of the row above
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

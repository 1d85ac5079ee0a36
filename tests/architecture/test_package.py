"""What is shipped: a wheel with the recipes in it, tools that can read their files, and no stray data."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from architecture.source import ROOT, dotted, modules
from farthing import __version__, config

IMPORTED_AS = {"vl_convert_python": "vl_convert"}
"""packages whose modules have another name"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_recipes_and_the_types(wheel: Path) -> None:
    assert wheel.name.startswith(f"farthing-{__version__}-py3-none-any")
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {f"farthing/recipes/{name}.toml" for name in config.shipped_recipes()} <= names
    assert {"farthing/py.typed", "farthing/export/card.md.jinja"} <= names
    assert {f"farthing/report/{name}" for name in ("page.html.jinja", "page.md.jinja", "style.css")} <= names
    assert {f"farthing/evals/harness_tasks/{name}" for name in ("hellaswag.yaml", "local.py")} <= names
    assert not [name for name in names if not name.startswith(("farthing/", f"farthing-{__version__}.dist-info/"))]


def test_an_installed_package_finds_its_recipes(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    program = (
        "from farthing import config, recipe; print(config.load(recipe.Recipe, 'studies/c-smallest').model.d_model)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path / "site"), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout.strip() == "192", done.stderr


def test_compose_builds_stages_that_the_dockerfile_has() -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text())
    instructions = [line.split() for line in (ROOT / "Dockerfile").read_text().splitlines()]
    stages = {words[3] for words in instructions if words[:1] == ["FROM"] and len(words) == 4}
    assert {service["build"]["target"] for service in compose["services"].values()} <= stages
    assert all("/work/runs" in " ".join(service["volumes"]) for service in compose["services"].values())


def test_hooks_and_makefile_call_the_same_tools() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    assert all(hook["entry"].startswith(".venv/bin/") for repo in hooks for hook in repo["hooks"])


def test_torch_is_bounded_and_the_core_is_small() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert "torch>=2.9,<2.14" in project["dependencies"]
    assert len(project["dependencies"]) <= 20


def test_every_extra_that_a_message_names_exists() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        keyword.value.value
        for module in modules()
        for node in ast.walk(module.tree)
        if isinstance(node, ast.Call) and dotted(node.func).endswith("need")
        for keyword in node.keywords
        if keyword.arg == "extra" and isinstance(keyword.value, ast.Constant)
    }
    assert "hf" in named
    assert named <= extras.keys()


def test_every_import_is_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    requirements = [
        *project["dependencies"],
        *(r for extra in project["optional-dependencies"].values() for r in extra),
    ]
    declared = {re.split(r"[^\w.-]", requirement)[0].replace("-", "_") for requirement in requirements}
    declared = {IMPORTED_AS.get(name, name) for name in declared}
    undeclared = {
        f"{module.where(one.line)} imports {one.module}"
        for module in modules()
        for one in module.imports()
        if (top := one.module.partition(".")[0]) not in declared | sys.stdlib_module_names | {"farthing"}
        if top not in {"__future__"}
    }
    assert not undeclared, "\n".join(sorted(undeclared))

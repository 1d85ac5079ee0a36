"""No code runs from data: the calls that would allow it appear nowhere in the package."""

from __future__ import annotations

import ast

import pytest

from architecture.source import Module, dotted, modules

FORBIDDEN_IMPORTS = {"pickle", "cPickle", "_pickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
FORBIDDEN_CALLS = {
    "eval", "exec", "__import__", "builtins.eval", "builtins.exec",
    "torch.load", "torch.save", "torch.hub.load", "torch.package.PackageImporter",
    "yaml.load", "yaml.unsafe_load", "yaml.full_load", "pandas.read_pickle", "pd.read_pickle",
    "dcp.load", "torch.distributed.checkpoint.load",
}  # fmt: skip


TRUSTS_OUR_OWN = ("farthing.export.reload", "is_our_own")
"""the one place that may run code of a folder, and the function that lets it: only for the bytes of the file we ship"""


def faults(module: Module) -> list[str]:
    """Where this module does what it must not."""
    found = [
        f"{module.where(one.line)}: imports {one.full}"
        for one in module.imports()
        if one.module.partition(".")[0] in FORBIDDEN_IMPORTS or one.full in FORBIDDEN_CALLS
    ]
    for node in ast.walk(module.tree):
        if not isinstance(node, ast.Call):
            continue
        name = dotted(node.func)
        if name in FORBIDDEN_CALLS:
            found.append(f"{module.where(node.lineno)}: calls {name}")
        for keyword in node.keywords:
            allowed = isinstance(keyword.value, ast.Constant) and keyword.value.value is False
            if isinstance(keyword.value, ast.Call) and keyword.arg == "trust_remote_code":
                allowed = (module.name, dotted(keyword.value.func)) == TRUSTS_OUR_OWN
            if keyword.arg in {"allow_pickle", "trust_remote_code"} and not allowed:
                found.append(f"{module.where(node.lineno)}: {keyword.arg} is not False")
            if keyword.arg == "weights_only":
                found.append(f"{module.where(node.lineno)}: weights_only belongs to torch.load")
            shell = isinstance(keyword.value, ast.Constant) and keyword.value.value is True
            if keyword.arg == "shell" and shell:
                found.append(f"{module.where(node.lineno)}: shell=True")
    return found


def test_the_package_runs_no_code_from_data() -> None:
    found = [fault for module in modules() for fault in faults(module)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from joblib import load",
        "import torch; torch.load('x')",
        "from torch import load",
        "import numpy as np; np.load('x', allow_pickle=True)",
        "eval('1')",
        "exec('1')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
        "AutoModel.from_pretrained('x', trust_remote_code=flag)",
        "AutoModel.from_pretrained('x', trust_remote_code=is_our_own(code))",
        "import yaml; yaml.load('x')",
    ],
)
def test_the_check_finds_each_of_them(line: str) -> None:
    sample = modules()[0]
    assert faults(Module("farthing.sample", sample.path, line, ast.parse(line)))


@pytest.mark.parametrize(
    "line", ["model.eval()", "np.load('x', allow_pickle=False)", "safetensors.torch.load_file('x')"]
)
def test_the_check_lets_honest_calls_pass(line: str) -> None:
    sample = modules()[0]
    assert not faults(Module("farthing.sample", sample.path, line, ast.parse(line)))

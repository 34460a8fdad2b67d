"""GGUF files by hub id: which file of a repository is meant, and where it is on this machine.

A file is looked for in a folder of models (`$PAIR_FOLDER`, by default `~/.cache/ensemblehub/models`), then in
the cache of `huggingface_hub`; otherwise it is fetched into the former.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ensemblehub.errors import AbsentError, ConfigError, MissingExtraError, one_line

PREFIX = "hub:"
FOLDER = "PAIR_FOLDER"  # environment variable
DEFAULT = "Q4_K_M"  # quantization where a repository has several and none is named
_PATIENCE = 20.0  # seconds to wait for the list of files
_ID = re.compile(r"[\w-][\w.-]*/[\w.-]+")
_PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")
_OF_NETWORKS = ["*.json", "*.jinja", "*.safetensors", "*.model", "*.txt", "*.py"]


def models_folder() -> Path:
    """Where GGUF files lie, those of each model in a folder of its name."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get(FOLDER) or f"{cache}/ensemblehub/models").expanduser()


def parts_of(path: Path) -> list[Path]:
    """All files of a model: `path`, and the others where its name ends in `-00001-of-00003.gguf`."""
    part = _PART.search(path.name)
    if part is None:
        return [path]
    stem, count = path.name[: part.start()], int(part[2])
    return [path.with_name(f"{stem}-{number:05}-of-{count:05}.gguf") for number in range(1, count + 1)]


def choose(names: Iterable[str], wanted: str, where: str) -> str:
    """The file meant by a quantization, or a file's name; of one in parts, the first.

    Args:
        names: paths of files.
        wanted: such as `Q4_K_M`; empty for the only file, or that of `DEFAULT`.

    Raises:
        ConfigError: none is meant, or several are; names those that there are.
    """
    files = [
        name for name in sorted(names) if name.lower().endswith(".gguf") and "mmproj" not in name.lower()
    ]
    files = [name for name in files if name == str(parts_of(Path(name))[0])]
    found = files
    if wanted.lower().endswith(".gguf"):
        found = [name for name in files if wanted in (name, PurePosixPath(name).name)]
    elif wanted or len(files) > 1:
        kind = re.compile(rf"(?<![a-z0-9_]){re.escape(wanted or DEFAULT)}(?![a-z0-9_])", re.IGNORECASE)
        found = [name for name in files if kind.search(PurePosixPath(name).name)]
    if len(found) == 1:
        return found[0]
    count = f"{len(found)} files" if found else "no GGUF file"
    there = ", ".join(PurePosixPath(name).name for name in (found or files)[:12]) or "none"
    raise ConfigError(f"{where} has {count} for {wanted or DEFAULT}; there is: {there}")


@dataclass(frozen=True)
class HubModel:
    """A GGUF file of a repository.

    Attributes:
        wanted: quantization or name of the file; empty for the only one, or that of `DEFAULT`.
    """

    repository: str
    wanted: str = ""

    @classmethod
    def named(cls, path: str) -> HubModel | None:
        """The model of `hub:ORG/NAME[:QUANTIZATION]` or the same without `hub:`; None for a file or folder.

        Raises:
            ConfigError: `hub:` is followed by anything else.
        """
        repository, _, wanted = path.removeprefix(PREFIX).partition(":")
        if _ID.fullmatch(repository) and (path.startswith(PREFIX) or _is_id(path)):
            return cls(repository, wanted)
        if path.startswith(PREFIX):
            raise ConfigError(f"{path!r} is not of the form hub:ORGANISATION/NAME:QUANTIZATION")
        return None

    @property
    def name(self) -> str:
        """Name of its folder: the repository's in lower case, without `-gguf`."""
        return PurePosixPath(self.repository).name.lower().removesuffix("-gguf")

    def inside(self, folder: Path) -> Path | None:
        """The file below a folder of models: `NAME/model.gguf`, or the file of the quantization in `NAME`."""
        own = folder / self.name
        if (own / "model.gguf").is_file():
            return own / "model.gguf"
        return own / choose(_listed(own), self.wanted, str(own)) if _listed(own) else None

    def fetched(self) -> Path:
        """The file on this machine, fetched where it has to be.

        Raises:
            AbsentError: it is not here and cannot be fetched.
            ConfigError: the repository has no such file.
        """
        found = self.inside(models_folder()) or self._cached()
        if found:
            return found
        try:
            files = _hub().HfApi().model_info(self.repository, timeout=_PATIENCE).siblings
            name = choose([file.rfilename for file in files], self.wanted, self.repository)
            parts = parts_of(Path(name))
            first, *_ = [self._download(part.as_posix()) for part in parts]
            return first
        except ConfigError:
            raise
        except Exception as error:  # whatever huggingface_hub and what it reads with raise
            raise AbsentError(self._missing(one_line(error, 200))) from error

    def _download(self, name: str) -> Path:
        """Fetch a file into its folder.

        `hf_hub_download` begins anew once its process was killed; this goes on where the file ends.
        """
        hub, folder = _hub(), models_folder() / self.name
        url = hub.hf_hub_url(self.repository, name)
        described = hub.get_hf_file_metadata(url)
        version = re.sub(r"\W", "", described.etag or described.commit_hash or "")[:16]
        target = folder / PurePosixPath(name).name
        partial = target.with_name(f"{target.name}.{version}.part")
        folder.mkdir(parents=True, exist_ok=True)
        with hub.utils.WeakFileLock(folder / ".lock"):
            if target.is_file():
                return target  # another process has fetched it
            with partial.open("ab") as file:
                hub.file_download.http_get(
                    url,
                    file,
                    resume_size=file.tell(),
                    headers=hub.utils.build_hf_headers(),
                    expected_size=described.size,
                    displayed_filename=target.name,
                )
            partial.replace(target)
        return target

    def _cached(self) -> Path | None:
        """The file in the cache of `huggingface_hub`, if all of it is there."""
        try:
            cached = _hub().snapshot_download(self.repository, local_files_only=True, allow_patterns="*.gguf")
        except OSError:  # nothing of the repository is there
            return None
        try:
            path = Path(cached) / choose(_listed(Path(cached)), self.wanted, self.repository)
        except ConfigError:  # another file of it is
            return None
        return path if all(part.is_file() for part in parts_of(path)) else None

    def _missing(self, reason: str) -> str:
        file = wanted = self.wanted or DEFAULT
        if not wanted.endswith(".gguf"):
            file = f"the {wanted} file ({self.name}-{wanted.lower()}.gguf or alike)"
        target = models_folder() / self.name / "model.gguf"
        problem = f"{self.repository} is not here and cannot be fetched ({reason})"
        return f"{problem}: put {file} of https://huggingface.co/{self.repository} at {target}"


def gguf_file(path: str) -> Path:
    """The GGUF file that a path, a folder or a hub id names.

    Raises:
        AbsentError: a hub id whose file is not here and cannot be fetched.
        ConfigError: a folder or repository without such a file, or with several.
    """
    model = HubModel.named(path)
    if model:
        return model.fetched()
    file = Path(path).expanduser()
    return file / choose(_listed(file), "", path) if file.is_dir() else file


def network_folder(repository: str) -> Path:
    """The folder of a model in the format of transformers, fetched where it has to be.

    Raises:
        AbsentError: it is not here and cannot be fetched.
    """
    hub = _hub()
    try:
        return Path(hub.snapshot_download(repository, allow_patterns=_OF_NETWORKS))
    except Exception as error:  # whatever huggingface_hub and what it reads with raise
        reason = one_line(error, 200)
        raise AbsentError(f"{repository} is not here and cannot be fetched ({reason})") from error


def pull(engine: str, path: str, source: Path | None = None) -> Path | None:
    """Fetch the model that an engine runs, or link it from a folder of models; None where there is none.

    Raises:
        AbsentError: it cannot be fetched, or is not in `source`.
    """
    model = HubModel.named(path)
    if engine == "llama_cpp":
        return gguf_file(path) if source is None or model is None else adopt(model, source)
    if engine in ("hf", "vllm") and model and source is None:
        return network_folder(model.repository)
    return None


def adopt(model: HubModel, source: Path) -> Path:
    """Link a model's files below `source`, a folder of models, into `models_folder()`; return the first.

    Raises:
        AbsentError: `source` has no such file.
    """
    found = model.inside(source.expanduser())
    if found is None:
        wanted = source / model.name / "model.gguf"
        raise AbsentError(
            f"{wanted} is missing: it is the {model.wanted or DEFAULT} file of {model.repository}"
        )
    own = models_folder() / model.name
    own.mkdir(parents=True, exist_ok=True)
    for part in parts_of(found):
        target = own / part.name
        if not target.exists() or not target.samefile(part):
            target.unlink(missing_ok=True)
            target.symlink_to(part.absolute())
    return own / found.name


def _is_id(path: str) -> bool:
    """Whether a path without `hub:` names a repository rather than a file or folder."""
    return not path.lower().endswith(".gguf") and not Path(path).expanduser().exists()


def _listed(folder: Path) -> list[str]:
    return [file.relative_to(folder).as_posix() for file in folder.rglob("*.gguf") if file.is_file()]


def _hub() -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.file_download
        import huggingface_hub.utils
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            "models of the hub need huggingface_hub: pip install 'ensemblehub[llamacpp]'"
        ) from error
    return huggingface_hub

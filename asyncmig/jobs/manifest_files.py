"""The files of a manifest: expand paths and globs, and refuse files that cannot be inputs."""

import glob
import os
import re
from collections.abc import Container, Sequence
from pathlib import Path
from typing import final
from urllib.parse import unquote

from asyncmig._core.invisible import invisible_in_name, named_characters
from asyncmig.customers.files import size_of
from asyncmig.customers.paths import check_below
from asyncmig.errors import InvalidInput
from asyncmig.jobs.outputs import OwnFiles

__all__ = ["FileFinder", "NotAnInput", "path_hint"]

_QUOTED = re.compile(
    r"""'(.+)'|"(.+)"|`(.+)`|[\u2018\u201a](.+)[\u2018\u2019]|[\u201c-\u201e](.+)[\u201c\u201d]"""
)
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_WINDOWS = re.compile(r"[A-Za-z]:[\\/]|\\\\")
_VARIABLE = re.compile(r"\$\w|\$\{|%\w+%")


class NotAnInput(InvalidInput):
    """The file exists but must not be an input: a run writes it, it is the manifest, or it is outside the root."""


@final
class FileFinder:
    """Finds the input files that paths and globs of a manifest name, and collects the files that globs leave out."""

    __slots__ = ("_begun", "_folder", "_own", "_root", "excluded", "protected")

    def __init__(self, folder: Path, own: OwnFiles, root: Path | None, begun: Container[str]) -> None:
        """`folder`: paths are relative to it. `begun`: customers whose import has begun, by external id."""
        self._folder, self._own, self._root, self._begun = folder, own, root, begun
        self.excluded: dict[Path, str] = {}
        """Files that a glob matches and that are not inputs, with the reason: "the manifest", "a report", ..."""
        self.protected: list[Path] = []
        """Those of `excluded` that no sheet may replace: they lie in the output folder of a customer who has not
        begun, so that they cannot be delivered sheets."""

    def find(self, part: str) -> list[Path]:
        """Return the inputs that a path or a glob names. A file whose name is `a[1].csv` is found under that name.

        Raises `InvalidInput` if there is none, `NotAnInput` if the file must not be an input.
        """
        if "\0" in part:
            raise InvalidInput("files", part, "is not a path")
        path = self.path_of(part)
        if not glob.has_magic(part) or path.is_file():
            self._check_root(part, [path])
            size_of(path)
            if what := self._own.kind_of(path):
                raise NotAnInput("files", part, f"is {what}, and cannot be an input")
            return [path]
        matches = sorted(glob.glob(part, root_dir=self._folder, recursive=True))
        found = {
            path: self._own.kind_of(path) for path in map(self._folder.joinpath, matches) if path.is_file()
        }
        excluded = {path: what for path, what in found.items() if what is not None}
        files = [path for path in found if path not in excluded]
        if not files:
            but = [f", except {path}, which is {what}" for path, what in excluded.items()][:1]
            raise InvalidInput("files", part, f"matches no file{''.join(but)}")
        self._check_root(part, files)
        for path in files:
            size_of(path)
        self._exclude(excluded)
        return files

    def path_of(self, part: str) -> Path:
        """Return the path that `part` names, whether or not it exists."""
        return self._folder / part

    def _exclude(self, excluded: dict[Path, str]) -> None:
        for path in excluded.keys() - self.excluded.keys():
            owner = self._own.owner_of(path)
            if owner is not None and owner not in self._begun:
                self.protected.append(path)
        self.excluded.update(excluded)

    def _check_root(self, part: str, files: Sequence[Path]) -> None:
        if self._root is None:
            return
        try:
            check_below(self._root, files)
        except InvalidInput as error:
            raise NotAnInput("files", part, error.reason) from error


def path_hint(part: str) -> str:
    """Return the probable reason why a path names no file, to be appended to an error; "" if there is none."""
    if quoted := _QUOTED.fullmatch(part):
        return f"; it has quotes around it: write {next(filter(None, quoted.groups()))}"
    if part.lower().startswith("file:"):
        return f"; it is a URL: write its path, {unquote(part.partition(':')[2].removeprefix('//'))}"
    if _URL.match(part):
        return "; it is a URL: download the file, and write its path"
    if part.startswith("~"):
        return "; '~' is not expanded: write the full path"
    if os.sep != "\\" and _WINDOWS.match(part):
        return "; it is a Windows path, and this computer does not run Windows"
    if os.sep != "\\" and "\\" in part:
        return "; folders are separated by '/': write " + part.replace("\\", "/")
    if _VARIABLE.search(part):
        return "; variables are not expanded: write the full path"
    if found := invisible_in_name(part):
        return f"; it has invisible or look-alike characters ({named_characters(set(found))})"
    return ""

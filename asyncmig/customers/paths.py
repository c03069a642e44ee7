"""Whether paths mean the same file, although one is relative, goes through links, or differs in letter case."""

import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from itertools import islice
from pathlib import Path
from typing import final

from asyncmig.errors import InvalidInput

__all__ = [
    "FileId",
    "FolderLookup",
    "Inputs",
    "Key",
    "Keys",
    "check_below",
    "entries",
    "file_id",
    "is_same",
    "keys_of",
    "same_folder",
]

FileId = tuple[int, int]
"""Device and inode, which are the same for all names of a file or folder."""
Key = FileId | str
"""Identifies a file or a directory entry."""
Keys = Mapping[Path, Sequence[Key]]
"""The keys of files."""
_MOST_LOOKED_AT = 50


def _resolved(path: str) -> str:
    return os.path.realpath(path)


def file_id(path: str | Path, *, follow: bool = True) -> FileId | None:
    """Return the identity of an existing file; None if the path does not exist."""
    try:
        found = os.stat(path, follow_symlinks=follow)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def entries(path: str | Path, real: Callable[[str], str] = _resolved) -> Iterator[str]:
    """Yield the directory entry that a path names, and, if it is a symbolic link, each entry that it leads to.

    Replacing any of them changes what the path reads. `real`: `realpath`, or a cached one for many paths.
    """
    seen: set[str] = set()
    at = str(path)
    while "\0" not in at:
        at = os.path.join(real(os.path.dirname(at)), os.path.basename(at))
        if at in seen:
            return
        seen.add(at)
        yield at
        try:
            at = os.path.join(os.path.dirname(at), os.readlink(at))
        except (OSError, ValueError):
            return


def _folded(path: str | Path) -> str:
    """Return a key that is the same for all spellings of a path that some file system treats as equal."""
    return _folded_entry(os.path.realpath(path))


def _folded_entry(entry: str) -> str:
    return unicodedata.normalize("NFC", entry).casefold()


def is_same(one: Path, other: Path) -> bool:
    """Return whether two paths are the same file. Paths that do not exist yet are compared without letter case."""
    ids = file_id(one), file_id(other)
    if ids == (None, None):
        return _folded(one) == _folded(other)
    return ids[0] == ids[1]


def check_below(root: Path, paths: Iterable[Path]) -> None:
    """Raise `InvalidInput` for a file that is not below `root` after symbolic links are resolved. Blocks."""
    folder = file_id(root) if root.is_dir() else None
    if folder is None:
        raise InvalidInput("root", str(root), "is not a folder")
    inside: dict[Path, bool] = {}
    for path in paths:
        parent = Path(path if "\0" in str(path) else os.path.realpath(path)).parent
        if parent not in inside:
            inside[parent] = folder in map(file_id, (parent, *parent.parents))
        if not inside[parent]:
            raise InvalidInput("files", str(path), f"lies outside of {root}, where all files must be")


def ignores_case(folder: Path) -> bool:
    """Return whether a folder's file system ignores case, as far as existing names in and above it show."""
    inside = islice(folder.iterdir(), _MOST_LOOKED_AT) if folder.is_dir() else ()
    for place in (*inside, folder.absolute(), *folder.absolute().parents):
        swapped = os.path.join(place.parent, place.name.swapcase())
        if place.name != place.name.swapcase() and (identity := file_id(place)):
            return file_id(swapped) == identity
    return False


def same_folder(folder: Path) -> Path | None:
    """Return another entry beside `folder` that is the same folder: a link, or a name in another case. Blocks."""
    identity = file_id(folder)
    if identity is None:
        return None
    with os.scandir(folder.parent) as beside:
        names = [
            each.name
            for each in beside
            if each.is_symlink() or _folded_entry(each.name) == _folded_entry(folder.name)
        ]
    others = [folder.parent / name for name in names if name != folder.name]
    target = Path(os.path.realpath(folder))
    if folder.is_symlink() and file_id(target.parent) == file_id(folder.parent):
        others.append(folder.parent / target.name)
    return next((other for other in others if file_id(other) == identity), None)


@final
class FolderLookup:
    """Finds the folder, of a fixed set, that contains a path. The folders need not exist yet."""

    __slots__ = ("_by_id", "_by_name", "_found", "_real", "same")

    def __init__(self, folders: Iterable[Path]) -> None:
        self._by_id: dict[FileId, Path] = {}
        self._by_name: dict[str, Path] = {}
        self.same: dict[Path, Path] = {}
        """Folders of the set that are the same folder on this file system, each with another such folder."""
        self._found: dict[str, Path | None] = {}
        """The folder of the set that a place is or lies below, by place."""
        self._real: Callable[[str], str] = cache(_resolved)
        for folder in folders:
            identity = file_id(folder)
            if identity is not None:
                other = self._by_id.setdefault(identity, folder)
            else:
                other = self._by_name.setdefault(_folded(folder), folder)
            if other != folder and (identity is not None or ignores_case(folder.parent)):
                self.same[folder], self.same[other] = other, folder

    def above(self, path: Path) -> Path | None:
        """Return the folder that contains `path` or an entry that it links to; None if there is none."""
        places = [os.path.dirname(entry) for entry in entries(path, self._real)]
        if ".." not in path.parts:  # through a linked folder: the folders above it, as they are written
            places.append(os.path.dirname(path.absolute()))
        return next((found for place in places if (found := self._at_or_above(place))), None)

    def _at_or_above(self, place: str) -> Path | None:
        if place not in self._found:
            identity, parent = file_id(place), os.path.dirname(place)
            found = self._by_id.get(identity) if identity else self._by_name.get(_folded(place))
            self._found[place] = found or (None if parent == place else self._at_or_above(parent))
        return self._found[place]


def keys_of(paths: Iterable[Path]) -> Keys:
    """Return for each file the keys that identify it, also after another file has replaced it. Blocks."""
    real: Callable[[str], str] = cache(_resolved)
    return {path: tuple(_keys_of(path, real)) for path in paths}


def _keys_of(path: Path, real: Callable[[str], str]) -> Iterator[Key]:
    for entry in entries(path, real):
        yield _folded_entry(entry)
        identities = {file_id(entry), file_id(entry, follow=False)}
        yield from (each for each in identities if each is not None)


@final
class Inputs:
    """The files that must not be replaced, because a migration reads them or because they are protected."""

    __slots__ = ("_files", "_keys")

    def __init__(self) -> None:
        self._keys: Counter[Key] = Counter()
        """How often each is protected."""
        self._files: dict[Path, Sequence[Key]] = {}
        """The files that `holding` protects now, each with its keys."""

    @contextmanager
    def holding(self, files: Keys) -> Generator[None]:
        """Protect files while a `with` block runs."""
        keys = [key for each in files.values() for key in each]
        new = files.keys() - self._files.keys()
        self._keys.update(keys)
        self._files |= {path: files[path] for path in new}
        try:
            yield
        finally:
            for key in keys:
                self._keys[key] -= 1
                if not self._keys[key]:
                    del self._keys[key]
            for path in new:
                del self._files[path]

    def keys_of(self, paths: Sequence[Path]) -> Keys | None:
        """Return the keys of files if `holding` protects all of them now; otherwise None.

        The keys were computed before that block began, and may lack a file that has replaced one of them since.
        """
        known = {path: self._files[path] for path in paths if path in self._files}
        return known if len(known) == len(paths) else None

    def add(self, paths: Iterable[Path]) -> None:
        """Protect files permanently. Blocks."""
        for keys in keys_of(paths).values():
            self._keys.update(keys)

    def check(self, target: Path) -> None:
        """Raise `InvalidInput` if `target` is a protected file."""
        if not os.path.lexists(target):
            return
        keys = (file_id(target), file_id(target, follow=False), *map(_folded_entry, entries(target)))
        if any(key in self._keys for key in keys if key is not None):
            reason = "is an input file: it was not replaced; choose another folder for the output"
            raise InvalidInput("to", str(target), reason)

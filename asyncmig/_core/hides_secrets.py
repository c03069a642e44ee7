"""The base of structs with secrets: their repr shows only chosen fields."""

from typing import ClassVar

from msgspec import Struct

__all__ = ["HidesSecrets"]


class HidesSecrets(Struct, frozen=True, kw_only=True):
    """A struct whose repr shows only the fields in `_SHOWN`."""

    _SHOWN: ClassVar[tuple[str, ...]] = ()

    def __rich_repr__(self) -> list[tuple[str, object]]:
        return [(name, getattr(self, name)) for name in self._SHOWN]

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in self.__rich_repr__())})"
        )

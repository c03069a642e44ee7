"""Reads a CSV file: determines whether it is text, its encoding and its delimiter, and yields its records.

The memory is bounded for any content.
"""

import codecs
import csv
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import BinaryIO, TextIO, final

from asyncmig._core.invisible import BYTE_ORDER_MARK
from asyncmig.preflight.findings import Finding, Sample, number_of

__all__ = ["BrokenOff", "Probe", "Records", "probe", "sniff"]

_CHUNK = 1024 * 1024
_SAMPLE = 16 * 1024
_TEXT_SUFFIXES = frozenset({".csv", ".tsv", ".tab", ".txt", ""})
_MARKS = (  # UTF-32 first, because its little-endian mark begins with the mark of UTF-16
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_OTHER_FORMATS = (
    (b"PK\x03\x04", "an Excel workbook or another ZIP archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Excel workbook"),
    (b"\x1f\x8b", "gzip"),
    (b"%PDF-", "PDF"),
)
_WITH_NULS = ["utf_16_le", "utf_16_be"]
_LIKELY = [  # encodings that business systems export; with all encodings, the detector confuses Spanish with Kazakh
    *("cp1252", "cp1250", "cp1251", "cp1253", "cp1254", "cp1255", "cp1256", "cp1257", "cp1258"),
    *("iso8859_2", "iso8859_15", "mac_roman", "cp437", "cp850", "cp852", "koi8_r"),
    *("cp932", "shift_jis", "euc_jp", "gb18030", "big5", "euc_kr"),
]
_FALLBACK = "latin-1"
"""The codec for a file of unknown encoding: it accepts every byte, and decodes ASCII correctly."""
_SNIFFED = 4096
"""The number of characters from which the delimiter is guessed."""
_LONGEST_RECORD = 4 * 1024 * 1024
_DELIMITERS = ",;\t|"  # the first one is the default


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """The encoding of a file."""

    codec: str | None
    """The codec that decodes the file; None if it is not text."""
    encoding: str | None = None
    """The encoding to report; None if it is unknown."""
    warnings: list[Finding] = field(default_factory=list[Finding])
    notes: list[str] = field(default_factory=list[str])


def probe(path: Path) -> Generator[None, None, Probe]:
    """Determine the encoding of a file from all its bytes, 1 MiB in each step of the generator. Blocks."""
    with path.open("rb") as file:
        head = file.read(_SAMPLE)
        if other := _not_csv(path, head):
            return other
        for mark, encoding in _MARKS:
            if head.startswith(mark):
                return _wide(encoding)
        flaws = yield from _flaws(file)
        return _probed(file, head, flaws)


def _not_csv(path: Path, head: bytes) -> Probe | None:
    csv_by_name = path.suffix.lower() in _TEXT_SUFFIXES
    found = next((name for magic, name in _OTHER_FORMATS if head.startswith(magic)), None)
    if csv_by_name and found:
        text = f"is {found}, although its name says CSV or text; the server may read it as CSV"
        return Probe(codec=None, warnings=[Finding(kind="not_text", text=text)])
    if found or not csv_by_name:
        return Probe(
            codec=None,
            notes=[f"{found or path.suffix}: the content is not checked; it is uploaded unchanged"],
        )
    return None


def _wide(encoding: str) -> Probe:
    text = f"is {encoding}; if the server reads only UTF-8, the whole import fails: save it as UTF-8"
    return Probe(codec=encoding, encoding=encoding, warnings=[Finding(kind="encoding", text=text)])


@dataclass(slots=True)
class _Flaws:
    """The offsets of the first byte that is not UTF-8, and of the first NUL; None if there is none."""

    not_utf8: int | None = None
    byte: int = 0
    nul: int | None = None
    nuls: int = 0


def _flaws(file: BinaryIO) -> Generator[None, None, _Flaws]:
    decoder = codecs.getincrementaldecoder("utf-8")()
    flaws = _Flaws()
    file.seek(0)
    for offset, chunk in _chunks(file):
        if nuls := chunk.count(0):
            flaws.nuls += nuls
            flaws.nul = offset + chunk.index(0) if flaws.nul is None else flaws.nul
        if flaws.not_utf8 is None:
            behind = len(decoder.getstate()[0])  # bytes of a character that began in the chunk before
            try:
                decoder.decode(chunk, final=len(chunk) < _CHUNK)
            except UnicodeDecodeError as error:
                flaws.not_utf8, flaws.byte = offset - behind + error.start, error.object[error.start]
        yield
    return flaws


def _chunks(file: BinaryIO) -> Iterator[tuple[int, bytes]]:
    """Yield each chunk with its offset. The last chunk is shorter than the others, and may be empty."""
    offset = file.tell()
    while True:
        chunk = file.read(_CHUNK)
        yield offset, chunk
        offset += len(chunk)
        if len(chunk) < _CHUNK:
            return


def _probed(file: BinaryIO, head: bytes, flaws: _Flaws) -> Probe:
    if flaws.nul is not None and (codec := _guess(head, _WITH_NULS)):
        return _wide(codec)
    probed = Probe(codec="utf-8-sig", encoding="utf-8-sig" if head.startswith(codecs.BOM_UTF8) else "utf-8")
    if flaws.not_utf8 is not None:
        probed = _not_utf8(file, flaws.not_utf8, flaws.byte)
    if flaws.nul is not None:
        if probed.encoding is None:
            return Probe(codec=None, warnings=[Finding(kind="not_text", text="is not text in any encoding")])
        line = _line_of(file, flaws.nul)
        text = f"has {number_of(flaws.nuls, 'NUL character')}, the first on line {line:,}"
        samples = (Sample(line=line),)
        probed.warnings.append(Finding(kind="nul", text=text, count=flaws.nuls, samples=samples))
    return probed


def _not_utf8(file: BinaryIO, offset: int, byte: int) -> Probe:
    line = _line_of(file, offset)
    file.seek(max(0, offset - _SAMPLE))
    lines = b"\n".join(line for line in file.read(_CHUNK).splitlines() if not line.isascii())
    codec = _guess(lines[:_SAMPLE], _LIKELY)
    guess = f"it may be {codec}" if codec else "its encoding cannot be determined"
    if not codec and find_spec("charset_normalizer") is None:
        guess += " here (pip install 'asyncmig[check]' to have it guessed)"
    text = (
        f"is not UTF-8: byte 0x{byte:02x} at offset {offset:,}, on line {line:,}; {guess}. "
        "If the server reads only UTF-8, the whole import fails: save it as UTF-8"
    )
    warning = Finding(kind="encoding", text=text, samples=(Sample(line=line),))
    return Probe(codec=codec or _FALLBACK, encoding=codec, warnings=[warning])


def _line_of(file: BinaryIO, offset: int) -> int:
    """Return the number of the line, from 1, that contains a byte. Lines end in LF, CR LF or CR."""
    file.seek(0)
    line, last = 1, b""
    while offset > 0 and (chunk := file.read(min(_CHUNK, offset))):
        offset -= len(chunk)
        line += chunk.count(b"\n") + chunk.count(b"\r") - chunk.count(b"\r\n")
        line -= last == b"\r" and chunk.startswith(b"\n")
        last = chunk[-1:]
    return line


def _guess(sample: bytes, encodings: list[str]) -> str | None:
    """Return the most likely encoding; None if none is possible, or if the detector is not installed."""
    try:
        from charset_normalizer import from_bytes
    except ImportError:
        return None
    matches = from_bytes(sample, cp_isolation=encodings, enable_fallback=False)
    names = [name for match in matches for name in (match.encoding, *match.could_be_from_charset)]
    # Of the possible encodings, cp1252 is by far the most frequent.
    return "cp1252" if "cp1252" in names else next(iter(names), None)


class BrokenOff(Exception):
    """The file cannot be read from the line `line` on, because of `reason`."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(line, reason)
        self.line = line
        self.reason = reason


def sniff(file: TextIO) -> str:
    """Return the delimiter of a file.

    Only the first 4,096 characters are used, because `csv.Sniffer` needs quadratic time.
    """
    sample = file.read(_SNIFFED).lstrip("\r\n")
    file.seek(0)
    header = next(iter(sample.splitlines()), "")
    try:
        delimiter = csv.Sniffer().sniff(sample, _DELIMITERS).delimiter
    except csv.Error:
        delimiter = ""
    return delimiter if delimiter and delimiter in header else max(_DELIMITERS, key=header.count)


@final
class Records:
    """Iterates over pairs of a line number and a record. A blank line is an empty record.

    Raises `BrokenOff` for a record with more than 4 Mi characters, and for a cell over `csv.field_size_limit()`.
    """

    __slots__ = ("_complete", "_delimiter", "_file", "_line", "_pending", "_size", "is_marked")

    def __init__(self, file: TextIO, delimiter: str) -> None:
        self._file, self._delimiter = file, delimiter
        self._line = self._size = 0
        self._pending: list[str] = []
        self._complete = False
        self.is_marked: bool = False
        """Whether the line of the last record begins with a byte order mark."""

    def __iter__(self) -> Iterator[tuple[int, list[str]]]:
        line = 1
        try:
            for record in csv.reader(self._lines(), delimiter=self._delimiter):
                self._complete = True
                yield line, record
                line = self._line + 1
        except csv.Error as error:
            raise BrokenOff(line, str(error)) from error

    def _lines(self) -> Iterator[str]:
        """Yield lines. The first line that the reader requests after a complete record begins a new record."""
        while text := self._file.readline(_LONGEST_RECORD):
            if self._complete:
                self._pending, self._size, self._complete = [], 0, False
            if not self._pending:
                self.is_marked = text.startswith(BYTE_ORDER_MARK)
            self._line += 1
            self._size += len(text)
            self._pending.append(text)
            if self._size >= _LONGEST_RECORD:
                first = self._line - len(self._pending) + 1
                raise BrokenOff(first, "it has more than 4 million characters: a quote may never be closed")
            yield text

    def open_quote(self) -> bool:
        """Return whether the last record has a quoted cell that is open at the end of the file."""
        return len(list(csv.reader([*self._pending, "x"], delimiter=self._delimiter))) == 1

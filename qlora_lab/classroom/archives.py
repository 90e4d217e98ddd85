"""The files of a folder, those in zip archives included, with limits: whoever made an archive need not mean well."""

import bz2
import contextlib
import copy
import io
import lzma
import re
import zipfile
import zlib
from collections.abc import Callable, Iterator
from datetime import datetime
from functools import partial
from pathlib import Path

from qlora_lab.classroom.students import of_platform

LARGEST = 50 * 2**20  # bytes of one file
LARGEST_INNER = 4 * LARGEST  # bytes of all files in an archive of one student's; packing counts twice in another
DICTIONARY = 2**28  # bytes that unpacking LZMA may take
ENCRYPTED = 1  # a member's flag
MOST_MEMBERS = 20_000  # of an archive
MOST_INNER = 1_000  # of an archive in another
SKIPPED = re.compile(r"(^|/)(\.|__MACOSX|Thumbs\.db|desktop\.ini)")
# What programs leave beside a student's files; anything else that is skipped and looks handed in gets a row.
LEFT_BY_PROGRAMS = re.compile(r"(^|/)(\.ipynb_checkpoints/|\._|\.git/|\.venv/|\.Trash|__MACOSX)", re.IGNORECASE)
HANDED_IN = (".ipynb", ".zip")
DOTTED = "hidden, by a name or a folder that begins with a dot"

File = tuple[str, float, Callable[[], bytes]]


def files_below(folder: Path) -> Iterator[File]:
    """(path, time, function that gives the bytes) of each file below a folder, or in one archive.

    path: below the folder, as text that can be written; an archive counts as a folder of its name, and one of a whole
    class as the folder itself. time: of the last change, in seconds since 1970. The function raises whatever damaged
    files make it raise; call it before going on to the next file, when its archive is closed.
    """
    top = folder if folder.is_dir() else folder.parent
    below = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
    places = {path: path.relative_to(top).as_posix() for path in below}
    paths = [p for p in below if p.is_file() and not p.is_symlink() and not SKIPPED.search(places[p])]
    yield from _left_out(below, places, paths)
    # Alone it is the class's, and so are several as platforms make them. Beside anything else it is one student's, who
    # may have given its contents the names of others.
    whole = (len(paths) == 1 and paths[0].parent == top) or all(map(_downloaded, paths))
    for path in paths:
        name = printable(path.relative_to(top).as_posix())
        if path.suffix.lower() == ".zip":
            yield from _told(name, _members(path, name, whole))
        else:
            yield name, _changed(path), partial(_loose, path)


def _left_out(below: list[Path], places: dict[Path, str], read: list[Path]) -> Iterator[File]:
    """What looks handed in and is not read: links, which may lead anywhere, pipes and the like, names with a dot."""
    for path in set(below).difference(read):
        place, link = places[path], path.is_symlink()
        looks_handed_in = link or (place.lower().endswith(HANDED_IN) and not path.is_dir())
        if not looks_handed_in or LEFT_BY_PROGRAMS.search(place):
            continue
        what = "a link" if link else DOTTED if path.is_file() else "neither a file nor a folder"
        yield printable(place), 0.0, partial(_fail, f"not read: it is {what}; put the file itself into its place")


def printable(name: str) -> str:
    """A file's name with those of its bytes that are no UTF-8 written as %FC: what unzip leaves of Windows' archives.

    Two names that differ in such bytes stay two.
    """
    return re.sub("[\ud800-\udfff]", lambda half: f"%{ord(half[0]) & 0xFF:02X}", name)


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0  # reading it says why


def _told(name: str, members: Iterator[File]) -> Iterator[File]:
    """Members of an archive; where a library stumbles over the archive itself, a last one that says so."""
    try:
        yield from members
    except Exception as error:
        kind = f"{type(error).__name__}: {error}".strip(": ")
        yield name, 0.0, partial(_fail, f"not a zip archive that can be read ({kind})")


def _loose(path: Path) -> bytes:
    return _limited(path.stat().st_size, path.read_bytes)


def _listed(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Its files. One may have no name at all, which `is_dir` does not expect."""
    return [m for m in _files(archive) if not SKIPPED.search(m.filename)]


def _files(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    return [member for member in archive.infolist() if member.filename[-1:] not in ("", "/")]


def _downloaded(path: Path) -> bool:
    """Whether all that an archive holds is named as learning platforms name what they let a teacher download."""
    if path.suffix.lower() != ".zip":
        return False
    try:
        with zipfile.ZipFile(path) as archive:
            members = _listed(archive)
    except Exception:  # told when its members are asked for
        return False
    return bool(members) and all(of_platform(_name(member)) for member in members)


def _members(source: Path | io.BytesIO, name: str, whole: bool) -> Iterator[File]:
    """Members of an archive: of a whole class, with folders or names of students, or of one that has the name."""
    try:
        archive = zipfile.ZipFile(source)
    except Exception as error:  # zipfile raises half a dozen kinds for archives that are none
        yield name, 0.0, partial(_fail, f"not a zip archive that can be read ({error})")
        return
    with archive:
        members, inner = _listed(archive), isinstance(source, io.BytesIO)
        most = MOST_INNER if inner else MOST_MEMBERS
        if len(members) > most:
            yield name, 0.0, partial(_fail, f"an archive of more than {most:,} files")
            return
        if inner and sum(member.file_size for member in members) > LARGEST_INNER:
            yield name, 0.0, partial(_fail, f"an archive that unpacks to more than {LARGEST_INNER >> 20} MiB")
            return
        above = "" if whole else f"{_without_suffix(name)}/"
        for member in _files(archive)[:most]:
            skipped = SKIPPED.search(member.filename) and not LEFT_BY_PROGRAMS.search(member.filename)
            if skipped and member.filename.lower().endswith(HANDED_IN):
                yield (
                    above + _name(member),
                    0.0,
                    partial(_fail, f"not read: it is {DOTTED}; put the file itself into its place"),
                )
        left = float("inf") if whole else LARGEST_INNER
        # Notebooks first: what else a student packed takes nothing from them.
        for member in sorted(members, key=lambda m: not m.filename.lower().endswith(".ipynb")):
            place = above + _name(member)
            content = partial(_limited, member.file_size, partial(_member, archive, member))
            if member.file_size <= LARGEST:
                left -= member.file_size
                if left < 0:
                    content = partial(_fail, f"files before it in its archive have {LARGEST_INNER >> 20} MiB already")
            if not place.lower().endswith(".zip"):
                yield place, _time(member), content
            elif whole:
                yield from _told(place, _inner(place, content))
            else:
                yield place, 0.0, partial(_fail, "an archive in a student's archive: hand in the notebooks themselves")


def _inner(name: str, content: Callable[[], bytes]) -> Iterator[File]:
    """What a student handed in as an archive, in the archive that the platform made of the class."""
    try:
        data = content()
    except Exception as error:
        yield name, 0.0, partial(_fail, str(error))
    else:
        yield from _members(io.BytesIO(data), name, whole=False)


def _name(member: zipfile.ZipInfo) -> str:
    name = member.filename
    if not member.flag_bits & 0x800:  # macOS writes UTF-8 without saying so, and zipfile then reads code page 437
        with contextlib.suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return printable(name).replace("\\", "/").lstrip("/")


def _without_suffix(name: str) -> str:
    return re.sub(r"\.zip$", "", name, flags=re.IGNORECASE)


def _time(member: zipfile.ZipInfo) -> float:
    """Archives hold local times without a zone, which is taken to be this machine's; some hold month 0."""
    try:
        return datetime(*member.date_time).timestamp()
    except (ValueError, OverflowError, OSError):
        return 0.0


def _member(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    if member.flag_bits & ENCRYPTED:
        raise ValueError("packed with a password: hand it in without one")
    try:
        if member.compress_type in (zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA):
            return _unpacked(archive, member)
        with archive.open(member) as file:
            return file.read(LARGEST + 1)  # what the archive says of its size need not be true
    except NotImplementedError as error:
        raise ValueError(f"packed in a way that cannot be read ({error}): pack it as an ordinary zip") from None
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError) as error:
        raise ValueError(f"damaged in its archive ({str(error) or 'cut short'}): hand it in again") from None


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bytes:
    """A member packed with bzip2 or LZMA, of which `zipfile` unpacks all there is, however little is asked for."""
    packed = copy.copy(member)
    packed.compress_type, packed.file_size = zipfile.ZIP_STORED, member.compress_size
    del packed.CRC  # it is that of the contents
    with archive.open(packed) as file:
        data = file.read(LARGEST)
    if member.compress_type == zipfile.ZIP_BZIP2:
        unpack = bz2.BZ2Decompressor()
    else:  # its version and the length of what follows, then as in a file of LZMA's own, but for the size
        unpack = lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=DICTIONARY)
        data = data[4:9] + b"\xff" * 8 + data[9:]
    content = unpack.decompress(data, member.file_size + 1)
    if len(content) != member.file_size or zlib.crc32(content) != member.CRC:
        raise zipfile.BadZipFile("its size or checksum is wrong")
    return content


def _limited(size: int, content: Callable[[], bytes]) -> bytes:
    data = content() if size <= LARGEST else b""
    if size > LARGEST or len(data) > LARGEST:
        raise ValueError(f"larger than {LARGEST >> 20} MiB")
    return data


def _fail(reason: str) -> bytes:
    raise ValueError(reason)

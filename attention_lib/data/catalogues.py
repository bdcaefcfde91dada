"""Reading the translation catalogues that programs come with: messages and their translations."""

import gettext
import io
import json
import re
import tarfile
from ast import literal_eval
from collections.abc import Iterator, Mapping

from attention_lib.data.fetch import asset_path

Pair = tuple[str, str]

_FIELD = re.compile(r'(msgid|msgid_plural|msgstr|msgstr\[\d\]|msgctxt) (".*")')


def messages(asset: str) -> Iterator[Pair]:
    """All messages of one catalogue with their translations, in the order of its files.

    Args:
        asset: Name of an asset that holds ``.mo`` files, ``.po`` files, or ``en.json`` beside
            ``fr.json``.

    Yields:
        A message and its translation; of a plural the singular.

    Raises:
        AssetError: If the asset is not in the cache and cannot be fetched.

    Source:
        The file formats of GNU gettext. Chapter 06.
    """
    files = {}
    with tarfile.open(asset_path(asset)) as archive:
        for member in archive:
            content = archive.extractfile(member)
            assert content is not None  # the archive holds plain files only
            files[member.name] = content.read()
    for name, data in files.items():
        if name.endswith(".mo"):
            yield from _compiled(data)
        elif name.endswith(".po"):
            yield from _written(data.decode())
        elif name.endswith("/fr.json"):  # the same nested keys as in the English file
            yield from _nested(json.loads(files[name[:-7] + "en.json"]), json.loads(data))


def _compiled(data: bytes) -> Iterator[Pair]:
    catalogue: Mapping[str | tuple[str, int], str]
    catalogue = gettext.GNUTranslations(io.BytesIO(data))._catalog  # type: ignore[attr-defined]
    for key, translation in catalogue.items():
        english, form = key if isinstance(key, tuple) else (key, 0)
        if english and form == 0:  # the empty message is the header
            yield english.split("\x04")[-1], translation  # what stands before \x04 is a remark


def _written(text: str) -> Iterator[Pair]:
    for entry in re.split(r"\n\s*\n", text):
        fields: dict[str, str] = {}
        name = ""
        for line in entry.splitlines():
            if match := _FIELD.match(line):
                name = match[1]
                fields[name] = literal_eval(match[2])
            elif line.startswith('"'):  # a long message goes on
                fields[name] += literal_eval(line)
        english = fields.get("msgid")
        translation = fields.get("msgstr", fields.get("msgstr[0]"))
        unsure = re.search(r"^#,.*\bfuzzy\b", entry, re.M)
        if english and translation and not unsure:
            yield english, translation


def _nested(english: object, translation: object) -> Iterator[Pair]:
    if isinstance(english, dict) and isinstance(translation, dict):
        for key in english:
            yield from _nested(english[key], translation.get(key))
    elif isinstance(english, str) and isinstance(translation, str):
        yield english, translation

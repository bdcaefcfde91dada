"""The book's data: small, offline after the first use, every file checked by its hash.

``python -m attention_lib.data fetch`` fetches everything beforehand, ``... list`` shows what there
is, from where, and under which licence.
"""

from attention_lib.data.assets import ASSETS, Asset
from attention_lib.data.digits import digits, jitter, shrink, split
from attention_lib.data.fetch import AssetError, asset_path, cache_folder
from attention_lib.data.parallel import ParallelText, english_french
from attention_lib.data.photographs import PHOTOGRAPHS, photograph
from attention_lib.data.plays import plays, shakespeare, speeches
from attention_lib.data.reviews import first_of_each, movie_reviews
from attention_lib.data.scenes import SceneMaker, Scenes
from attention_lib.data.sentence import sentence

__all__ = [
    "ASSETS",
    "PHOTOGRAPHS",
    "Asset",
    "AssetError",
    "ParallelText",
    "SceneMaker",
    "Scenes",
    "asset_path",
    "cache_folder",
    "digits",
    "english_french",
    "first_of_each",
    "jitter",
    "movie_reviews",
    "photograph",
    "plays",
    "sentence",
    "shakespeare",
    "shrink",
    "speeches",
    "split",
]

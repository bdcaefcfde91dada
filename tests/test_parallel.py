"""Parallel text: what is kept, how it is normalised, and that no near-duplicate crosses the split.

The loader's own tests use the real catalogues; everything else runs on sentences made here.
"""

import hashlib
import io
import json
import random
import tarfile
import zipfile
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attention_lib.data import catalogues, english_french, fetch
from attention_lib.data.parallel import (
    clean,
    near_duplicates,
    normalise,
    split_pairs,
)


def words(sentence):
    return sentence.lower().replace("'", " ").replace(".", " ").split()


def overlap(first, second):
    """Jaccard similarity, written out."""
    both = set(words(first)) | set(words(second))
    shared = [word for word in both if word in words(first) and word in words(second)]
    return len(shared) / len(both)


def crossing(parts):
    """Near-duplicates on either side between different parts, by the function tested below."""
    pairs = [(pair, part) for part, some in enumerate(parts) for pair in some]
    found = []
    for side in (0, 1):
        for i, j in near_duplicates([pair[side] for pair, _ in pairs]):
            if pairs[i][1] != pairs[j][1]:
                found.append((pairs[i][0][side], pairs[j][0][side]))
    return found


# --- normalising and cleaning --------------------------------------------------------------------


def test_normalise_on_paper():
    assert normalise("  L’heure «\u00a0UTC\u00a0» :\tOK… ") == 'l\'heure "utc": ok...'
    assert normalise("e\u0301te\u0301") == "été"  # one character each, not a letter and an accent


@given(st.text(st.sampled_from("aé L’«» .,:?!\u00a0"), max_size=12))
def test_normalising_twice_changes_nothing(text):
    assert normalise(normalise(text)) == normalise(text)


def kept(english, french):
    return clean([(english, french)])


@pytest.mark.parametrize("mark", ["%s", "%(name)s", "{name}", "{{ name }}", "${name}"])
def test_a_placeholder_becomes_a_word_of_its_own(mark):
    assert kept(f"Delete {mark} now", f"Supprimer {mark} maintenant") == [
        ("delete x now", "supprimer x maintenant")
    ]
    assert kept(f"No '{mark}' of {mark}{mark}s", f"Pas de ({mark}) de l'{mark}") == [
        ("no 'x' of x x s", "pas de (x) de l'x")
    ]


def test_a_message_is_cut_into_sentences_where_both_languages_agree():
    english, french = "Save the file. Then close it.", "Enregistrez le fichier. Puis fermez-le."
    assert kept(english, french) == [
        ("save the file.", "enregistrez le fichier."),
        ("then close it.", "puis fermez-le."),
    ]
    one = kept(english, "Enregistrez le fichier, puis fermez-le vite.")
    assert [pair[0] for pair in one] == ["save the file. then close it."]


def test_marks_of_menu_keys_are_dropped():
    assert kept("&Open the file", "&Ouvrir le fichier") == [("open the file", "ouvrir le fichier")]


@pytest.mark.parametrize(
    ("english", "french"),
    [
        ("two words", "ces deux mots"),  # too short
        ("one " * 21, "un " * 21),  # too long
        ("three english words", "trois"),
        ("click <b>here</b> now", "cliquez <b>ici</b> maintenant"),
        ("see https://example.org for more", "voir https://example.org pour plus"),
        ("run the script.py file", "lancez le fichier script.py"),
        ("open the settings now", "ouvrir les " + "paramètres " * 6),  # more than twice as long
        ("same on both sides", "same on both sides"),
    ],
)
def test_what_is_not_fit_for_learning_is_left_out(english, french):
    assert kept("a good short sentence", "une bonne phrase courte")
    assert kept(english, french) == []


def test_each_pair_is_kept_once_and_in_order():
    messages = [("b b b", "bé bé"), ("a a a", "à à"), ("B b b", "Bé bé")]
    assert clean(messages) == [("b b b", "bé bé"), ("a a a", "à à")]


# --- near-duplicates -----------------------------------------------------------------------------

sentences = st.lists(
    st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=7).map(" ".join), max_size=9
)


@given(sentences, st.sampled_from([0.3, 0.5, 0.6, 0.7, 1.0]))
def test_near_duplicates_are_those_that_a_double_loop_finds(some, threshold):
    expected = {
        (i, j) for i in range(len(some)) for j in range(i) if overlap(some[i], some[j]) >= threshold
    }
    found = near_duplicates(some, threshold)
    assert set(found) == expected
    assert len(found) == len(expected)


@pytest.mark.hostile
@pytest.mark.parametrize("threshold", [0, -0.5, 1.01])
def test_a_threshold_outside_its_range_is_refused(threshold):
    with pytest.raises(ValueError, match=rf"threshold must be above 0 and at most 1.*{threshold}"):
        near_duplicates(["a"], threshold)


# --- the split -----------------------------------------------------------------------------------


def made_up(count, seed=0):
    """Sentence pairs of which many are near-duplicates on one side only."""
    draw = random.Random(seed)
    vocabulary = [f"w{i}" for i in range(40)]
    pairs = []
    for _ in range(count):
        english = draw.sample(vocabulary, draw.choice([4, 5, 10]))
        french = [f"f{word}" for word in draw.sample(vocabulary, 5)]
        pairs.append((" ".join(english), " ".join(french)))
        if draw.random() < 0.3:
            changed = [*english[:-1], draw.choice(vocabulary)]
            pairs.append((" ".join(changed), " ".join(f"g{i}" for i in draw.sample(range(99), 5))))
        if draw.random() < 0.3:
            changed = " ".join(draw.sample(vocabulary, 5)), " ".join([*french[:-1], "fin"])
            pairs.append(changed)
    return list(dict.fromkeys(pairs))


SIZES = {"validation": (4, 2), "test": (6, 3)}


def test_a_split_keeps_every_pair_once_and_has_the_sizes_asked_for():
    pairs = made_up(80)
    parts = split_pairs(pairs, SIZES, seed=0)
    assert Counter(parts.train + parts.validation + parts.test) == Counter(pairs)
    for part, (short, long) in ((parts.validation, SIZES["validation"]), (parts.test, (6, 3))):
        count = Counter(len(english.split()) > 8 for english, _ in part)
        assert (count[False], count[True]) == (short, long)


@pytest.mark.parametrize("seed", range(5))
def test_no_near_duplicate_crosses_a_split(seed):
    pairs = made_up(80, seed)
    parts = split_pairs(pairs, SIZES, seed)
    assert crossing([parts.train, parts.validation, parts.test]) == []
    rows = list(range(len(pairs)))  # a plain random split has some, so the check can fail
    random.Random(seed).shuffle(rows)
    naive = [[pairs[row] for row in rows[start::3]] for start in range(3)]
    assert crossing(naive) != []


def test_a_split_depends_on_the_seed_alone():
    pairs = made_up(80)
    random.seed(1)
    first = split_pairs(pairs, SIZES, seed=0)
    random.seed(2)
    assert split_pairs(pairs, SIZES, seed=0) == first
    assert split_pairs(pairs, SIZES, seed=1) != first


def test_too_few_pairs_are_refused_with_what_is_missing():
    with pytest.raises(ValueError, match=r"pairs must be enough to hold out .*still missing"):
        split_pairs(made_up(3), SIZES, seed=0)


# --- reading catalogues --------------------------------------------------------------------------


def catalogue(messages):
    """A compiled gettext catalogue, byte by byte as the format says."""
    messages = {"": "Content-Type: text/plain; charset=UTF-8\n", **messages}
    keys = [key.encode() for key in sorted(messages)]
    values = [messages[key].encode() for key in sorted(messages)]
    table, data = [], b""
    offset = 28 + 16 * len(keys)
    for text in keys + values:
        table += [len(text), offset + len(data)]
        data += text + b"\0"
    head = [0x950412DE, 0, len(keys), 28, 28 + 8 * len(keys), 0, offset]
    return b"".join(number.to_bytes(4, "little") for number in head + table) + data


def archive(path, files):
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return path


WRITTEN = """
msgid ""
msgstr "Content-Type: text/plain; charset=UTF-8\\n"

#: where it stands
msgctxt "menu"
msgid "One "
"more"
msgstr "Encore "
"un"

#, fuzzy, python-format
msgid "Not sure"
msgstr "Pas certain"

msgid "Untranslated"
msgstr ""

#, python-format
msgid "%s \\"file\\""
msgid_plural "%s files"
msgstr[0] "%s « fichier »"
msgstr[1] "%s fichiers"

#~ msgid "Old"
#~ msgstr "Vieux"
"""


def test_all_three_kinds_of_catalogue_are_read(tmp_path, monkeypatch):
    english = {"title": "One", "more": {"a": "Two", "b": "Three", "only here": "Nine"}}
    french = {"title": "Un", "more": {"a": "Deux", "b": 3}}
    files = {
        "a/x.mo": catalogue({"Four": "Quatre", "menu\x04Five": "Cinq", "s\0p": "S\0P"}),
        "b/en.json": json.dumps(english).encode(),
        "b/fr.json": json.dumps(french).encode(),
        "c/x.po": WRITTEN.encode(),
    }
    path = archive(tmp_path / "all.tar", files)
    monkeypatch.setattr(catalogues, "asset_path", lambda name: path)
    assert list(catalogues.messages("any")) == [
        ("Four", "Quatre"),
        ("Five", "Cinq"),
        ("s", "S"),
        ("One", "Un"),
        ("Two", "Deux"),
        ("One more", "Encore un"),
        ('%s "file"', "%s « fichier »"),
    ]


# --- the real data -------------------------------------------------------------------------------


def test_the_books_pairs_are_always_the_same_and_have_their_sizes():
    data = english_french()
    assert [len(part) for part in (data.train, data.validation, data.test)] == [10269, 600, 1000]
    for part, expected in ((data.validation, 240), (data.test, 400)):
        assert sum(len(english.split()) > 8 for english, _ in part) == expected
    content = json.dumps([data.train, data.validation, data.test]).encode()
    assert (
        hashlib.sha256(content).hexdigest()
        == "dfa27bcb3a15bcf6ee58de952a0de919cba4d2eeb7c1775d8b1c4d077429850d"
    )


def test_no_near_duplicate_crosses_the_books_split():
    data = english_french()
    assert crossing([data.train, data.validation, data.test]) == []
    planted = (data.test[0][0] + " too", "tout autre chose ici")
    assert crossing([[*data.train, planted], data.validation, data.test]) != []


def test_the_books_pairs_are_normalised_and_hold_no_markup():
    data = english_french()
    for pair in data.train + data.validation + data.test:
        for text in pair:
            assert text == normalise(text)
            assert not set("<>{}%\\|`[]$=_#@&") & set(text)


# --- assets of several files ---------------------------------------------------------------------


def test_an_asset_of_several_files_is_always_the_same_archive(tmp_path):
    archives = []
    for order, date in (("ab", (1990, 1, 1, 0, 0, 0)), ("ba", (2020, 2, 2, 2, 2, 2))):
        wheel = tmp_path / f"{order}.whl"
        with zipfile.ZipFile(wheel, "w") as zipped:
            for name in order:
                zipped.writestr(zipfile.ZipInfo(f"p/{name}/fr.mo", date), name * 9)
            zipped.writestr("p/a/de.mo", "not wanted")
        path = tmp_path / f"{order}.tar"
        with zipfile.ZipFile(wheel) as zipped:
            fetch._collect(zipped, "p/a/fr.mo p/*/fr.mo", path)
        archives.append(path.read_bytes())
        with tarfile.open(path) as tar:
            assert {m.name: tar.extractfile(m).read() for m in tar} == {
                "p/a/fr.mo": b"a" * 9, "p/b/fr.mo": b"b" * 9,
            }  # fmt: skip
    assert archives[0] == archives[1]


def test_patterns_that_match_nothing_are_refused(tmp_path):
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as zipped:
        zipped.writestr("p/a.mo", "")
    with (
        zipfile.ZipFile(wheel) as zipped,
        pytest.raises(KeyError, match="no file has such a name"),
    ):
        fetch._collect(zipped, "p/*.json", tmp_path / "out.tar")

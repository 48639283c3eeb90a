"""API keys from a setting and a file: whom they name, what is refused, and that nothing shows them."""

from pathlib import Path

import pytest
from pydantic import SecretStr

from service.keys import Keys, KeysError


def keys(*given: str, file: Path | None = None) -> Keys:
    return Keys([SecretStr(key) for key in given], file)


def write(folder: Path, text: str) -> Path:
    path = folder / "keys"
    path.write_text(text, encoding="utf-8")
    return path


def test_without_keys_there_is_nothing_to_match() -> None:
    assert not keys()
    assert keys().name_of([b"", b"anything"]) is None


def test_a_key_is_called_by_its_name_or_its_place(tmp_path: Path) -> None:
    file = write(tmp_path, "# customers\n\nalice:red\n  bob:blue:green  \n#eve:grey\nplain # no comment\n")
    known = keys("first", "carol:second", file=file)
    assert {
        offer: known.name_of([offer.encode()])
        for offer in ("first", "second", "red", "blue:green", "plain # no comment")
    } == {
        "first": "key-1",
        "second": "carol",
        "red": "alice",
        "blue:green": "bob",
        "plain # no comment": "line-6",
    }
    for stranger in ("alice", "alice:red", "grey", "#eve:grey", "bob:blue:green", "Red", "re", "redd", ""):
        assert known.name_of([stranger.encode()]) is None, stranger


def test_any_of_the_offers_may_match() -> None:
    assert keys("a:1", "b:2").name_of([b"0", b"2"]) == "b"


def test_keys_are_compared_as_bytes() -> None:
    known = keys("a:schlüssel")
    assert known.name_of(["schlüssel".encode()]) == "a"
    assert known.name_of(["schlüssel".encode("latin-1")]) is None


def test_two_keys_of_one_name_both_count_while_a_caller_changes_from_one_to_the_other() -> None:
    known = keys("a:old", "a:new")
    assert known.name_of([b"old"]) == known.name_of([b"new"]) == "a"


@pytest.mark.parametrize(
    ("text", "mention"),
    [
        ("a:secret\n:secret", "line 2"),
        ("name:", "line 1"),
        ("two words:secret", "line 1"),
        ("\n" + "x" * 65 + ":secret", "line 2"),
        ("a:secret\nb:secret", "line 2: the key of b is also that of another name"),
        ("secret\nsecret", "line 2"),
        ("", "no key"),
        ("# a:secret\n\n", "no key"),
    ],
)
def test_a_file_that_is_not_in_order_is_refused_by_its_line_and_without_its_keys(
    tmp_path: Path, text: str, mention: str
) -> None:
    with pytest.raises(KeysError, match=mention) as refused:
        keys(file=write(tmp_path, text))
    assert "secret" not in str(refused.value)
    assert str(tmp_path / "keys") in str(refused.value)


def test_a_mistake_in_the_setting_is_refused_by_its_place() -> None:
    with pytest.raises(KeysError, match=r"^key 2 of the setting: ") as refused:
        keys("good", "not good:secret")
    assert "secret" not in str(refused.value)


def test_a_prefix_tells_keys_of_one_kind_from_those_of_another(tmp_path: Path) -> None:
    known = Keys([SecretStr("first"), SecretStr("carol:second")], write(tmp_path, "\nthird"), prefix="admin-")
    names = [known.name_of([offer]) for offer in (b"first", b"second", b"third")]
    assert names == ["admin-key-1", "carol", "admin-line-2"]
    with pytest.raises(KeysError, match=r"^admin-key 1 of the setting: "):
        Keys([SecretStr("not good:secret")], None, prefix="admin-")


def test_a_file_that_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KeysError, match="nowhere: No such file"):
        keys(file=tmp_path / "nowhere")
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\0k")
    with pytest.raises(KeysError, match="UTF-8"):
        keys(file=tmp_path / "bytes")


def test_the_mark_that_some_editors_put_first_is_no_part_of_a_key(tmp_path: Path) -> None:
    (tmp_path / "keys").write_bytes("\ufeffa:key\r\nb:other\r\n".encode())
    known = keys(file=tmp_path / "keys")
    assert known.name_of([b"key"]) == "a"
    assert known.name_of([b"other"]) == "b"


def test_a_reload_takes_the_new_file_or_keeps_the_old_keys(tmp_path: Path) -> None:
    file = write(tmp_path, "a:old")
    known = keys("always", file=file)
    write(tmp_path, "a:new\nb:more")
    assert known.reload() == 3
    assert [known.name_of([offer]) for offer in (b"old", b"new", b"more", b"always")] == [None, "a", "b", "key-1"]
    write(tmp_path, "not good:x")
    with pytest.raises(KeysError):
        known.reload()
    assert known.name_of([b"new"]) == "a"
    file.unlink()
    with pytest.raises(KeysError):
        known.reload()
    assert known.name_of([b"new"]) == "a"


def test_keys_stand_in_no_attribute_in_the_clear(tmp_path: Path) -> None:
    known = keys("a:verysecret", file=write(tmp_path, "b:alsosecret"))
    assert "secret" not in repr(vars(known))

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st
from refusal import refusal

from aigc_jax.data import encoding
from aigc_jax.errors import UserError
from aigc_jax.texts import read_prompts

TEXTS = {
    "chinese": "今天天气很好，我们去公园散步吧。他说这个国家的人都很努力。",
    "taiwanese": "今天天氣很好，我們去公園散步吧。他說這個國家的人都很努力。",
    "japanese": "今日はとても天気がいいので、公園に行きました。",
    "korean": "오늘은 날씨가 아주 좋아서 공원에 갔다. 사람들이 많이 있었다.",
    "russian": "Сегодня хорошая погода, и мы пошли гулять в парк.",
    "french": "L'été à la plage était très agréable, où êtes-vous allé ?",
    "german": "Die Straße ist naß; Grüße aus München",
    "english": "plain English text, nothing else",
}


@given(st.text(), st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]))
def test_any_text_in_unicode_is_read(text, codec):
    if codec == "utf-8" and (text[:1] == "\ufeff" or encoding._controls(text) > 0.1):
        return
    if codec == "utf-16" and text[:1] == "\0":  # with its mark these are the bytes of UTF-32's
        return
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert encoding.decode(text.encode(codec), "it") == expected


@pytest.mark.parametrize("codec", ["utf-16-le", "utf-16-be"])
def test_utf16_with_its_mark_is_read(codec):
    for text in TEXTS.values():
        assert encoding.decode(("\ufeff" + text).encode(codec), "it") == text


@pytest.mark.parametrize("times", [1, 3000])
@pytest.mark.parametrize(
    ("language", "codec", "hint"),
    [
        ("chinese", "gbk", r"GBK \(GB18030\); convert it: iconv -f gb18030"),
        ("chinese", "gb2312", "iconv -f gb18030"),
        ("taiwanese", "big5", "iconv -f big5"),
        ("japanese", "shift_jis", "iconv -f shift_jis"),
        ("japanese", "euc-jp", "iconv -f euc-jp"),
        ("korean", "euc-kr", "iconv -f euc-kr"),
        ("russian", "cp1251", "iconv -f cp1251"),
        ("russian", "koi8-r", "iconv -f koi8-r"),
        ("french", "cp1252", "iconv -f cp1252"),
        ("german", "cp1252", "iconv -f cp1252"),
        *((name, "utf-16-le", "iconv -f utf-16le") for name in TEXTS),
        *((name, "utf-16-be", "iconv -f utf-16be") for name in TEXTS),
        ("english", "utf-32-be", "iconv -f utf-32be"),
        ("chinese", "utf-32-le", "iconv -f utf-32le"),
    ],
)
def test_another_encoding_is_refused_with_its_name(language, codec, hint, times):
    content = (TEXTS[language] * times).encode(codec)
    with pytest.raises(UserError, match=hint):
        encoding.decode(content, "old.txt")


def test_prompts_are_the_lines_of_a_file(tmp_path):
    prompts = ["Hello", "one\u2028two\x85three\x0cfour", "last"]
    for mark, end in (("", "\n"), ("\ufeff", "\r\n")):
        (tmp_path / "p.txt").write_bytes((mark + end.join(prompts) + end).encode())
        assert read_prompts(tmp_path / "p.txt") == prompts
    for content, message in ((b"", "holds no prompts"), (b"a\n\nb", "line 2: the prompt is empty")):
        (tmp_path / "p.txt").write_bytes(content)
        with pytest.raises(UserError, match=message):
            read_prompts(tmp_path / "p.txt")


def test_what_is_no_text_is_refused():
    with pytest.raises(UserError, match=r"noise\.txt is not UTF-8 .*no text"):
        encoding.decode(bytes(range(256)) * 20, "noise.txt")
    with pytest.raises(UserError, match=r"is not UTF-8 .*the rest is: it is damaged in 1 places"):
        encoding.decode("naïve café, déjà vu, ".encode() * 20 + b"\xff", "a.txt")
    with pytest.raises(UserError, match=r"is not UTF-16 .*damaged"):
        encoding.decode("abc".encode("utf-16") + b"\x00", "a.txt")


@given(st.binary(max_size=300))
def test_any_bytes_are_read_or_refused_in_one_line(content):
    assert refusal(encoding.decode, content, os.fsdecode(b"\xff\n.txt")).isprintable()

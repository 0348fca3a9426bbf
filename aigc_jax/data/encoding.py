"""The bytes of a text file as text, or a refusal that says what they probably are.

charset-normalizer guesses, too. Version 3.5.3 takes French in Windows-1252 for Windows-1250, and
one sentence in EUC-JP or KOI8-R for something else (`tests/data/test_encoding.py` has them): who
converts by such a hint gets other letters. So the guess is our own.
"""

import codecs
from collections.abc import Iterator

from aigc_jax.errors import UserError, printable

# A mark at the start of a file says its encoding. UTF-32's begins with UTF-16's.
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}

# Codec -> characters that are frequent where it is used. A text under a wrong codec is made of rare
# ones. The names are those of iconv, too.
_FREQUENT = {
    "gb18030": (
        "的一是了我不人在他有这个上们来到时大地为子中你说生国年着就那和要她出也得里后自"
        "以会家可下而过天去能对小多然于心学之都好看起发当没成只如事把还用第样道想作种开"
        "美总从无情己面最女但现前些所同日手又行意动方期它头经长儿回位分爱老因很给名法间"
        "斯知世什两次使身者被高已亲其进此话常与活正感，。、：；？！“”《》"
    ),
    "big5": (
        "的一是了我不人在他有這個上們來到時大地為子中你說生國年著就那和要她出也得裡後自"
        "以會家可下而過天去能對小多然於心學之都好看起發當沒成只如事把還用第樣道想作種開"
        "美總從無情己面最女但現前些所同日手又行意動方期它頭經長兒回位分愛老因很給名法間"
        "斯知世什兩次使身者被高已親其進此話常與活正感，。、：；？！「」"
    ),
    "shift_jis": (
        "のにはをたがでてとしれさあいうかるもなりらこまきくけっょんそだせつよわみ、。「」ー"
    ),
    "euc-jp": (
        "のにはをたがでてとしれさあいうかるもなりらこまきくけっょんそだせつよわみ、。「」ー"
    ),
    "euc-kr": (
        "이다의는에을가를은한고하지로사도서기어나리시과그정자인일아들수대있으것해만라부장전스"
    ),
    "cp1251": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъёіїєОЕАИНТСРВЛКМДПУЯГЗБЧЭ—–«»№",
    "koi8-r": "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
    "cp1252": "éèàùâêîôûçëïüöäßñóíúáãõåæøœÉÈÀÇÜÖÄÑÓÍÚÁÃÅÆØ‘’“”–—…«»°£€©§º",
}
_SAMPLE = 1 << 16  # bytes that are judged


def decode(content: bytes, where: str) -> str:
    """UTF-8, or UTF-16 and UTF-32 with their mark. Every line break becomes `\\n`.

    Args:
        content: a whole file.
        where: its name, for the error message.

    Raises:
        UserError: another encoding, or no text at all; it says which, where that can be told.
    """
    return _unicode(content, where).replace("\r\n", "\n").replace("\r", "\n")


def lines(content: bytes, where: str) -> list[str]:
    """The lines of a file whose n-th line belongs to the n-th of another: they end at `\\n` or
    `\\r\\n` and at nothing else, as those of `wc` do. A single `\\r` is a character of its line.

    Raises:
        UserError: as `decode`.
    """
    return _unicode(content, where).replace("\r\n", "\n").removesuffix("\n").split("\n")


def _unicode(content, where):
    codec = next((of for mark, of in _MARKS.items() if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(codec)
    except UnicodeDecodeError as error:
        where = f"{printable(where)} is not {codec.removesuffix('-sig').upper()}"
        hint = _hint(content) if codec == "utf-8" else "it is damaged"
        raise UserError(f"{where} (byte {error.start}); {hint}") from error
    # UTF-16 without its mark may well pass for UTF-8: Latin letters with NULs, Cyrillic with ^D.
    if codec == "utf-8" and _controls(text[:_SAMPLE]) > 0.1:
        raise UserError(f"{printable(where)} is full of control characters; {_hint(content)}")
    return text


def pieces(path: str, size: int = 1 << 22) -> Iterator[str]:
    """What `decode` makes of a file, some megabytes at a time, each but the last with the end of a
    line.

    Raises:
        UserError: as `decode`, and where the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(_SAMPLE)
            codec = next((of for mark, of in _MARKS.items() if head.startswith(mark)), "utf-8")
            if codec == "utf-8" and _controls(head.decode(errors="replace")) > 0.1:
                decode(head, path)  # says what it looks like
        with open(path, encoding=codec, newline=None) as text:
            while piece := text.read(size):
                yield piece + text.readline()
    except OSError as error:
        raise UserError(f"cannot read {printable(path)}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        hint = _hint(error.object) if codec == "utf-8" else "it is damaged"
        raise UserError(
            f"{printable(path)} is not {codec.removesuffix('-sig').upper()}; {hint}"
        ) from error


def _hint(content):
    mended = content.decode(errors="replace")
    damaged, foreign = mended.count("\ufffd"), sum(character > "\x7f" for character in mended)
    if 0 < 10 * damaged < foreign:
        return f"the rest is: it is damaged in {damaged:,} places"
    codec = _guess(content)
    if codec is None:
        return "it is no text, or in an encoding that is not recognised; convert it to UTF-8"
    name = "GBK (GB18030)" if codec == "gb18030" else codec.upper()
    return f"it looks like {name}; convert it: iconv -f {codec} -t utf-8 OLD > NEW"


def _guess(content):
    """The codec under which most of what is not ASCII is frequent; None if there is none."""
    sample = content[: _SAMPLE - _SAMPLE % 4]
    zeros = [sample[place::4].count(0) / max(len(sample) // 4, 1) for place in range(4)]
    if min(zeros[2:]) > 0.9 or min(zeros[:2]) > 0.9:  # half of four bytes is always zero
        return "utf-32le" if zeros[0] < zeros[3] else "utf-32be"
    shares = {codec: _share(sample, codec, frequent) for codec, frequent in _FREQUENT.items()}
    every = "".join(_FREQUENT.values())
    for codec, high in (("utf-16le", 1), ("utf-16be", 0)):
        latin = 2 * sample[high::2].count(0) / max(len(sample), 1)
        shares[codec] = max(_share(sample, codec, every), latin if latin > 0.5 else 0.0)
    best = max(shares, key=lambda codec: shares[codec])
    return best if shares[best] > 0.15 else None


def _share(sample, codec, frequent):
    """How much of the text under this codec is frequent, of what is not ASCII."""
    for cut in range(4):  # the sample may end within a character
        try:
            text = sample[: len(sample) - cut].decode(codec)
            break
        except UnicodeDecodeError:
            continue
    else:
        return 0.0
    foreign = [character for character in text if ord(character) > 127]
    letters = sum(map(str.isalpha, text))
    # Whole words are in Cyrillic, and only single letters have accents.
    if not foreign or _controls(text) > 0.05:
        return 0.0
    if codec in ("cp1251", "koi8-r") and 2 * sum(map(str.isalpha, foreign)) < letters:
        return 0.0
    if codec == "cp1252" and 2 * sum(map(str.isalpha, foreign)) > letters:
        return 0.0
    frequent = set(frequent)
    return sum(character in frequent for character in foreign) / len(foreign)


def _controls(text):
    strange = sum(character < " " and character not in "\t\n\r\f\v\x1b" for character in text)
    return strange / max(len(text), 1)

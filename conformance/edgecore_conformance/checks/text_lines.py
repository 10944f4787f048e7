"""Hard lines for tokenizers: what people write in many scripts, code, emoji, odd whitespace, special tokens as text;
and lines that a seed composes of them, so that no answer can be stored beforehand.

Characters are of Unicode 8 or older: of newer ones each library has its own year's opinion.
"""

from __future__ import annotations

from collections.abc import Sequence
from random import Random

SENTENCES = (
    "All human beings are born free and equal in dignity and rights.",
    "It's 5 o'clock; we'll say \"I'VE\" and he'd've LL'd it — 'RE you sure? DON'T.",
    "Alle Menschen sind frei geboren; Übergrößenträger zahlen 3,50 € für Straßenbahn.",
    "Tous les êtres humains naissent libres… « l'œuvre d'été », qu'est-ce que c'est ?",
    "Todos los seres humanos nacen libres; ¿cómo estás? ¡Mañana, niño! ñandú pingüino",
    "Všichni lidé rodí se svobodní; příliš žluťoučký kůň úpěl ďábelské ódy.",
    "Zażółć gęślą jaźń. Wszyscy ludzie rodzą się wolni.",
    "Tất cả mọi người sinh ra đều được tự do và bình đẳng về nhân phẩm.",
    "Bütün insanlar hür doğarlar; İstanbul'da ığdır, IĞDIR, şişe.",
    "Все люди рождаются свободными; ёжик съел подъезд №5.",
    "Всі люди народжуються вільними; їжак з'їв ґанок.",
    "Όλοι οι άνθρωποι γεννιούνται ελεύθεροι· ΐ ΰ ς Σ σ.",
    "Բոլոր մարդիկ ծնվում են ազատ ու հավասար։",
    "ყველა ადამიანი იბადება თავისუფალი. ᲧᲕᲔᲚᲐ",
    "כל בני האדם נולדו בני חורין; שָׁלוֹם עוֹלָם, צה״ל ג׳ירפה",
    "يولد جميع الناس أحراراً متساوين؛ السَّلَامُ عَلَيْكُمْ ـــ ٣٤٥٫٦",
    "تمام انسان‌ها آزاد به دنیا می‌آیند؛ پژوهش ۱۲۳۴۵۶",
    "تمام انسان آزاد پیدا ہوئے ہیں۔",
    "सभी मनुष्यों को गौरव और अधिकारों में जन्मजात स्वतन्त्रता; क्ष त्र ज्ञ १२३४५",
    "সমস্ত মানুষ স্বাধীনভাবে জন্মগ্রহণ করে। ১২৩",
    "ਸਾਰਾ ਮਨੁੱਖੀ ਪਰਿਵਾਰ ਆਪਣੀ ਮਹਿਮਾ।",
    "દરેક માનવી સ્વતંત્ર જન્મે છે.",
    "மனிதப் பிறிவியினர் சகலரும் சுதந்திரமாகவே பிறக்கின்றனர்.",
    "ప్రతిపత్తిస్వత్వముల విషయమున మానవులెల్లరును జన్మతః స్వతంత్రులు.",
    "ಎಲ್ಲಾ ಮಾನವರೂ ಸ್ವತಂತ್ರರಾಗಿಯೇ ಜನಿಸಿದ್ದಾರೆ.",
    "മനുഷ്യരെല്ലാവരും തുല്യാവകാശങ്ങളോടെ സ്വതന്ത്രരായി ജനിച്ചിട്ടുള്ളവരാണ്.",
    "සියලු මනුෂ්‍යයෝ නිදහස්ව උපත ලබා ඇත.",
    "มนุษย์ทั้งปวงเกิดมามีอิสระและเสมอภาคกัน ๑๒๓๔ น้ำผึ้ง",
    "ມະນຸດເກີດມາມີສິດເສລີພາບ.",
    "လူတိုင်းသည် တူညီ လွတ်လပ်သော ဂုဏ်သိက္ခာဖြင့် မွေးဖွားလာသည်။",
    "មនុស្សទាំងអស់ កើតមកមានសេរីភាព កាន់តែពិសេសអាច",
    "འགྲོ་བ་མིའི་རིགས་རྒྱུད་ཡོངས་ལ་སྐྱེས་ཙམ་ཉིད་ནས།",
    "ሁሉም ሰዎች ነጻ ሆነው ተወልደዋል። ፩፪፫",
    "ᏂᎦᏓ ᎠᏂᏴᏫ ᏂᎨᎫᏓᎸᎾ ꮒꭶꮣ",
    "人人生而自由，在尊严和权利上一律平等。我想在apple工作1314151天～",
    "人人生而自由，在尊嚴及權利上均各平等。「龍」與『龜』〇一二三",
    "すべての人間は、生まれながらにして自由であり、ｶﾀｶﾅとＡＢＣ１２３とヴァ行。",
    "모든 인간은 태어날 때부터 자유로우며 ㅋㅋㅋ 한글 각",
    "𠀀𠮷𪚥 𝕳𝖊𝖑𝖑𝖔 𝟙𝟚𝟛 𐍈 𓀀 𒀀",
    "Gach duine saor; Íslenska þ ð æ; Magyar ő ű; Latviešu ķ ļ ņ; Māori; ʻOkina",
    "naïve façade coöperate; n\u0303 e\u0301 o\u0308 a\u030a\u0323; ﬁ ﬂ ﬀ; Å Å Ω Ω ½ ² ⅷ ① ㍿ …",
    "ⅠⅡⅢ ⑴ ㈠ ৳ ₹ ฿ £ ¥ ₿ © ™ ° § ¶ † ‡ • ‣ ⁂ № ℃ ∀x∈ℝ: ∑∞ ≤ ≠ → ⇒ ⟨ψ|φ⟩",
)
CODE = (
    "def f(x: int) -> list[str]:\n\treturn [str(i ** 2) for i in range(x)]  # ²\n",
    "for (int i = 0; i < n; ++i) {\n    a[i] += b[i] << 3;   // shift\n}\r\n",
    "if (!ok) { throw new Error(`bad ${value?.toString() ?? 'none'}`); }",
    "SELECT * FROM \"t\" WHERE a_b = 'x''y' AND c >= 1e-5 OR d IS NOT NULL;--",
    '<div class="a b" style="x:1px;">&nbsp;&lt;b&gt;</div>\n<!-- no -->\n<![CDATA[ ]]>',
    "#!/bin/sh\nset -euo pipefail; x=${1:-\"$HOME\"} && echo \"$x\" | sed 's/\\//_/g' 2>&1\n",
    "{\"a\": [1, 2.50, -3e+10, null, true], \"b\\u00e9\": \"\\\\n\"}",
    "fn main() -> Result<(), Box<dyn Error>> { let v: Vec<_> = vec![0u8; 1_000]; Ok(()) }",
    "\\begin{equation} \\frac{\\partial f}{\\partial x_{i}} = 0 \\label{eq:1} \\end{equation}",
    "https://example.org/a/b?c=d&e=%20f#g user.name+tag@mail.example.co.uk ftp://[::1]:21/",
    "2026-11-21T09:51:00.123+02:00 192.168.0.1 0xDEADBEEF 1,234,567.89 +1 (555) 010-9999 v1.2.3-rc.4",
    "CamelCaseHTTPServer snake_case_name SCREAMING_SNAKE kebab-case __dunder__ x86_64 i18n",
    "public static void main(String[] args) { System.out.println(\"\\t\\\"hi\\\"\"); }\n\n\n\n",
    "::std::vector<std::pair<int,int>>&& ref; a->b->c; *p++ = ~q ^ r | s & t % 2;",
    "- [x] **bold** _it_ `code` ~~no~~ | a | b |\n|---|:-:|\n> quote\n\n```python\nprint(1)\n```\n",
)  # fmt: skip
EMOJI = (
    "🙂", "😶‍🌫️", "👩‍👩‍👧‍👦", "👩🏽‍🚀", "🏴󠁧󠁢󠁥󠁮󠁧󠁿", "🇩🇪", "🇯🇵🇺🇸", "❤️", "❤", "✅", "🦙🦙", "☠️", "1️⃣", "#️⃣",
    "👍🏿", "🧑‍💻", "🏳️‍🌈", "🫠", "🚀", "‼️", "〰️", "㊗️", "🀄", "♟", "🅰️", "🫱🏻‍🫲🏿",
)  # fmt: skip
SPACES = (
    " ", "  ", "   ", "       ", "\t", "\t\t", "\n", "\n\n", "\n\n\n\n", "\r\n", "\r", "\r\n\r\n", " \n", "\n ",
    " \t ", "\t \n", "\u00a0", "\u00a0\u00a0", "\u3000", "\u2003", "\u2009", "\u200a", "\u1680", "\u2028", "\u2029",
    "\u0085", "\x0b", "\x0c", "\x1c", "\u200b", "\u200c", "\u200d", "\u2060", "\ufeff", "\u00ad", "\u180e",
    "\u202e", "▁", "▁▁", "Ġ", "Ċ",
)  # fmt: skip
DIGITS = (
    "0", "3", "33", "333", "3333", "33333", "333333", "3333333", "33333333", "333333333", "3.14159", "1,000,000",
    "1e10", "٣٤٥٦", "१२३४", "１２３", "𝟏𝟐𝟑", "½¾", "²³", "ⅣⅤ", "①②③", "一二三", "0x1F", "007", "1st", "2nd", "10%",
    "-5", "+5", "5-3", "3..3", "3...3",
)  # fmt: skip
MARKS = "\u0300\u0301\u0308\u0323\u0327\u20d7\u093f\u064b\u0e31\u3099\ufe0f\u1ab0"
CONTROLS = "\x00\x01\x07\x08\x1b\x7f\x80\x9f\ufffd\ufffc\ufff9\ue000\U000f0000\U0010ffff\ufdd0\ufffe"
BLOCKS = (
    (0x20, 0x7E), (0xA0, 0xFF), (0x100, 0x24F), (0x250, 0x2AF), (0x300, 0x36F), (0x370, 0x3FF), (0x400, 0x4FF),
    (0x531, 0x556), (0x5D0, 0x5EA), (0x620, 0x64A), (0x905, 0x939), (0xE01, 0xE3A), (0x10A0, 0x10C5),
    (0x1E00, 0x1EFF), (0x2000, 0x206F), (0x2070, 0x209C), (0x20A0, 0x20BF), (0x2100, 0x214F), (0x2190, 0x21FF),
    (0x2200, 0x22FF), (0x2500, 0x257F), (0x2600, 0x26FF), (0x3041, 0x3096), (0x30A1, 0x30FA), (0x4E00, 0x9FA5),
    (0xAC00, 0xD7A3), (0xFF01, 0xFF5E), (0x1F300, 0x1F5FF), (0x1F600, 0x1F64F), (0x1D400, 0x1D454),
    (0x20000, 0x2A6D6),
)  # fmt: skip
"""Blocks, or the parts of them that Unicode 8 had: of newer characters each library has its own year's opinion."""
SPELLED = (
    "<s>", "</s>", "<unk>", "<pad>", "<bos>", "<eos>", "<mask>", "[INST]", "[/INST]", "<0x0A>", "<0x00>",
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|begin_of_text|>", "<|eot_id|>", "<|start_header_id|>",
    "<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|end|>", "<|placeholder1|>", "<unused7>",
    "<table>", "</table>", "[PAD7]", "<|fim_prefix|>", "<fim_prefix>", "<filename>", "<tool_call>", "<think>",
    "</think>", "[@BOS@]", "<2mass>", "<｜end▁of▁sentence｜>",
)  # fmt: skip
"""Special tokens of every family, as text."""


def lines(draw: Random, special: Sequence[str], composed: int) -> list[str]:
    """Texts, all different, none empty: the hard ones, and `composed` ones of the seed's own. `special` are the
    tokenizer's own special tokens."""
    tokens = (*SPELLED, *special)
    found = [*SENTENCES, *CODE, *EMOJI, *SPACES, *DIGITS, *special, *CONTROLS]
    found += [
        gap + word for gap in (" ", "  ", "\t", "\n", "\u00a0", "\u3000", "▁") for word in ("a", "7", "é", "你", "!")
    ]
    found += [word + gap for gap in (" ", "  ", "\n", "\r\n") for word in ("a", "7", "!")]
    found += [unit * n for unit in (" ", "\n", "a", "7", "🙂", "\r\n") for n in (2, 3, 17, 33)]
    found += [before + token + after for token in special for before, after in (("", "x"), (" ", " "), ("a", "b"))]
    found += [f"a {token}\nb" for token in SPELLED]
    for _ in range(composed):
        words = [_word(draw, tokens) for _ in range(draw.randrange(1, 8))]
        found.append("".join(word + draw.choice(SPACES[:12] if draw.random() < 0.7 else SPACES) for word in words))
    for _ in range(composed // 2):
        low, high = draw.choice(BLOCKS)
        found.append("".join(chr(draw.randrange(low, high + 1)) for _ in range(draw.randrange(1, 12))))
    return list(dict.fromkeys(filter(None, found)))


def _word(draw: Random, tokens: Sequence[str]) -> str:
    """A word or a part of one, a number, an emoji, a piece of code, a special token."""
    kind = draw.randrange(9)
    if kind < 3:
        return str(draw.choice((DIGITS, EMOJI, tokens)[kind]))
    word = str(draw.choice(draw.choice(CODE if kind == 3 else SENTENCES).split(" ")))
    if kind == 4 and word:
        return word[draw.randrange(len(word)) :] + draw.choice(MARKS)
    return word.upper() if kind == 5 else word

"""Names of Rust functions, of both schemes, as their authors wrote them.

The first is C++'s with a hash and escapes (rustc: symbol_mangling/legacy.rs). The second, v0, has
a different grammar: https://doc.rust-lang.org/rustc/symbol-mangling/v0.html. It is parsed here,
because libstdc++ does not read it and binutils' c++filt is seldom on a server.
"""

from __future__ import annotations

import re
from collections.abc import Callable

__all__ = ["legacy_name", "v0_name"]

DEPTH_LIMIT = 100
STEPS_LIMIT = 5000
LENGTH_LIMIT = 4096
LIFETIMES_LIMIT = 26

_HASH = re.compile(r"::h[0-9a-f]{16}$")
_ESCAPES = {
    **{"SP": "@", "BP": "*", "RF": "&", "LT": "<", "GT": ">"},
    **{"LP": "(", "RP": ")", "C": ","},
}
_V0 = re.compile(r"_R([A-Z]\w*)((?:\.[\w.]+)?)", re.ASCII)
_BASIC_TYPES = {
    **{"a": "i8", "b": "bool", "c": "char", "d": "f64", "e": "str", "f": "f32", "h": "u8"},
    **{"i": "isize", "j": "usize", "l": "i32", "m": "u32", "n": "i128", "o": "u128", "s": "i16"},
    **{"t": "u16", "u": "()", "v": "...", "x": "i64", "y": "u64", "z": "!", "p": "_"},
}
_INTEGERS = "ahijlmnostxy"
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"


def legacy_name(shown: str) -> str:
    """A name of the first scheme, from C++'s demangler, without hash and escapes."""

    def unescaped(found: re.Match[str]) -> str:
        return _ESCAPES.get(found[1]) or chr(int(found[1][1:], 16))

    text = re.sub(r"(^|::)_\$", r"\1$", _HASH.sub("", shown))
    text = re.sub(r"\$(SP|BP|RF|LT|GT|LP|RP|C|u[0-9a-f]{1,4})\$", unescaped, text)
    return text.replace("..", "::")


def v0_name(mangled: str) -> str | None:
    """The name that this symbol of the second scheme stands for; None if it is not of that scheme,
    or too long.
    """
    found = _V0.fullmatch(mangled)
    if found is None:
        return None
    parser = _Parser(found[1])
    try:
        name = parser.path(is_value=True)
        parser.instantiating_crate()
    except (ValueError, IndexError, KeyError, OverflowError):
        return None
    return name + ("" if found[2].startswith(".llvm.") else found[2])


class _Parser:
    """A method for each rule of the grammar. They raise ValueError, IndexError and KeyError."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        self._depth = 0
        self._steps = 0
        self._lifetimes = 0
        self._open_generics = False

    def instantiating_crate(self) -> None:
        if self._at < len(self._text):
            self.path(is_value=False)
        if self._at < len(self._text):
            raise ValueError

    # ---- Letters and numbers ---------------------------------------------------------------------

    def _next(self) -> str:
        self._at += 1
        return self._text[self._at - 1]

    def _eat(self, letter: str) -> bool:
        found = self._text.startswith(letter, self._at)
        self._at += found
        return found

    def _number(self) -> int:
        """Base 62."""
        value = 0
        if self._eat("_"):
            return 0
        while (digit := self._next()) != "_":
            value = value * 62 + _DIGITS.index(digit)
        return value + 1

    def _disambiguator(self) -> int:
        return self._number() + 1 if self._eat("s") else 0

    def _identifier(self) -> str:
        is_punycode = self._eat("u")
        start = self._at
        while self._text[self._at : self._at + 1].isdigit():
            self._at += 1
            if self._text[start] == "0":
                break
        size = int(self._text[start : self._at])
        self._eat("_")
        text = self._text[self._at : self._at + size]
        if len(text) < size:
            raise ValueError
        self._at += size
        if is_punycode:
            basic, _, extended = text.rpartition("_")
            text = f"{basic}-{extended}".removeprefix("-").encode().decode("punycode")
        return text

    def _until_end(self, part: Callable[[], str]) -> list[str]:
        parts = []
        while not self._eat("E"):
            parts.append(part())
        return parts

    def _nested(self, rule: Callable[[], str]) -> str:
        """Apply a rule within limits: of depth, of steps, and of the length of the result."""
        self._steps += 1
        if self._depth >= DEPTH_LIMIT or self._steps > STEPS_LIMIT:
            raise ValueError
        self._depth += 1
        shown = rule()
        self._depth -= 1
        if len(shown) > LENGTH_LIMIT:
            raise ValueError
        return shown

    def _again(self, rule: Callable[[], str]) -> str:
        """Apply a rule at an earlier place of the name, to which a back reference points."""
        start = self._at - 1
        place = self._number()
        if place >= start:
            raise ValueError
        after, self._at = self._at, place
        shown = rule()
        self._at = after
        return shown

    # ---- Paths -----------------------------------------------------------------------------------

    def path(self, is_value: bool) -> str:
        return self._nested(lambda: self._path(is_value))

    def _path(self, is_value: bool) -> str:
        match self._next():
            case "B":
                return self._again(lambda: self.path(is_value))
            case "I":
                base = self.path(is_value)
                arguments = ", ".join(self._until_end(self._generic_argument))
                self._open_generics = True
                return f"{base}{'::' if is_value else ''}<{arguments}>"
            case "C":
                self._disambiguator()
                shown = self._identifier()
            case "N":
                shown = self._member(is_value)
            case "M" | "X" | "Y" as kind:
                if kind != "Y":  # where the impl stands
                    self._disambiguator()
                    self.path(is_value=False)
                shown = self.type()
                if kind != "M":
                    shown += f" as {self.path(is_value=False)}"
                shown = f"<{shown}>"
            case _:
                raise ValueError
        self._open_generics = False
        return shown

    def _member(self, is_value: bool) -> str:
        space = self._next()
        base = self.path(is_value)
        number = self._disambiguator()
        name = self._identifier()
        if space.isupper():
            kind = {"C": "closure", "S": "shim"}.get(space, space)
            return f"{base}::{{{kind}{':' if name else ''}{name}#{number}}}"
        return f"{base}::{name}" if name else base

    def _generic_argument(self) -> str:
        if self._eat("L"):
            return self._lifetime(self._number())
        return self._constant() if self._eat("K") else self.type()

    # ---- Types -----------------------------------------------------------------------------------

    def type(self) -> str:
        return self._nested(self._type)

    def _type(self) -> str:
        tag = self._next()
        match tag:
            case "A":
                shown = f"[{self.type()}; {self._constant()}]"
            case "S":
                shown = f"[{self.type()}]"
            case "T":
                types = self._until_end(self.type)
                shown = f"({', '.join(types)}{',' if len(types) == 1 else ''})"
            case "R" | "Q":
                number = self._number() if self._eat("L") else 0
                lifetime = f"{self._lifetime(number)} " if number else ""
                shown = f"&{lifetime}{'mut ' if tag == 'Q' else ''}{self.type()}"
            case "P" | "O":
                shown = f"*{'const' if tag == 'P' else 'mut'} {self.type()}"
            case "F":
                shown = self._bound(self._function)
            case "D":
                shown = self._dynamic()
            case "B":
                shown = self._again(self.type)
            case _ if tag in _BASIC_TYPES:
                shown = _BASIC_TYPES[tag]
            case _:
                self._at -= 1
                shown = self.path(is_value=False)
        return shown

    def _dynamic(self) -> str:
        shown = f"dyn {self._bound(lambda: ' + '.join(self._until_end(self._trait)))}"
        if not self._eat("L"):
            raise ValueError
        number = self._number()
        return f"{shown} + {self._lifetime(number)}" if number else shown

    def _function(self) -> str:
        unsafe = "unsafe " if self._eat("U") else ""
        convention = ""
        if self._eat("K"):
            name = "C" if self._eat("C") else self._identifier().replace("_", "-")
            convention = f'extern "{name}" '
        parameters = ", ".join(self._until_end(self.type))
        result = "" if self._eat("u") else f" -> {self.type()}"
        return f"{unsafe}{convention}fn({parameters}){result}"

    def _trait(self) -> str:
        shown = self.path(is_value=False)
        is_open = self._open_generics
        bindings = []
        while self._eat("p"):
            bindings.append(f"{self._identifier()} = {self.type()}")
        if not bindings:
            return shown
        start = f"{shown[:-1]}, " if is_open else f"{shown}<"
        return f"{start}{', '.join(bindings)}>"

    def _bound(self, rule: Callable[[], str]) -> str:
        """Apply a rule after a binder, and show its lifetimes: `for<'a, 'b>`."""
        before = self._lifetimes
        count = self._number() + 1 if self._eat("G") else 0
        self._lifetimes += count
        if self._lifetimes > LIFETIMES_LIMIT:
            raise ValueError
        names = ", ".join(self._lifetime(count - index) for index in range(count))
        shown = rule()
        self._lifetimes = before
        return f"for<{names}> {shown}" if names else shown

    def _lifetime(self, number: int) -> str:
        """The name of a lifetime by its number, which counts from the innermost; 0 is erased."""
        if number > self._lifetimes:
            raise ValueError
        return f"'{_DIGITS[10 + self._lifetimes - number]}" if number else "'_"

    def _constant(self) -> str:
        kind = self._next()
        if kind == "B":
            return self._nested(lambda: self._again(self._constant))
        if kind == "p":
            return "_"
        sign = "-" if self._eat("n") else ""
        digits = ""
        while (digit := self._next()) != "_":
            digits += digit
        value = int(digits or "0", 16)
        match kind:
            case "b":
                return ("false", "true")[value]
            case "c":
                return f"'{chr(value)}'"
        if kind not in _INTEGERS:
            raise ValueError
        return f"{sign}{value}" if value < 2**64 else f"{sign}{value:#x}"

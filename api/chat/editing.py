"""A line while it is typed: keys in, finished lines out.

Knows letters, Enter, Backspace, Ctrl-U and Ctrl-W (take back all, or a word) and Ctrl-D (the end,
on an empty line). Other keys, arrows among them, do nothing.
"""

import re

MAX_LINE_CHARACTERS = 20_000

# What a terminal sends for a key that is no letter; an escape alone is one too.
_SEQUENCE = re.compile(r"\x1b(\[[0-9;?]*[ -/]*[@-~]|O.|[^\[O])?")
ENTER = "\r\n"
BACKSPACE = "\x7f\x08"
TAKE_ALL_BACK = "\x15"
TAKE_WORD_BACK = "\x17"
END = "\x04"


class Editor:
    def __init__(self) -> None:
        self.text = ""
        self.is_ended = False

    def feed(self, keys: str) -> list[str]:
        """The lines that were finished."""
        lines = []
        for key in _SEQUENCE.sub("", keys):
            if key in ENTER:
                lines.append(self.text)
                self.text = ""
            else:
                self._press(key)
        return lines

    def _press(self, key: str) -> None:
        if key in BACKSPACE:
            self.text = self.text[:-1]
        elif key == TAKE_ALL_BACK:
            self.text = ""
        elif key == TAKE_WORD_BACK:
            self.text = self.text.rstrip().rpartition(" ")[0]
        elif key == END:
            self.is_ended = self.is_ended or not self.text
        elif (key >= " " or key == "\t") and len(self.text) < MAX_LINE_CHARACTERS:
            self.text += key

"""What goes wrong in the machines.

MessengerError
├── Unavailable     a server that we need does not answer, or too much waits already
├── ImageRefused    what was uploaded is not stored; the message is for the caller
│   ├── NotAnImage      no JPEG, PNG, GIF or WebP
│   ├── ImageTooLarge   in bytes, pixels, frames, or in the time and memory that it takes
│   └── ImageBroken     truncated, corrupt, or two files in one
├── BadExport       a file to import is not as it was exported, or not for this log
├── LogError        the log is not what it must be: a gap, or it went back
└── Stopped         an operator has to act; the process ends with this one line
"""


class MessengerError(Exception):
    """Something outside the rules of the domain went wrong."""


class Unavailable(MessengerError):
    """The command or query can't be served now; trying again later is right."""


class ImageRefused(MessengerError):
    """An image is not taken, and would not be another time."""


class NotAnImage(ImageRefused):
    """The file is none of the kinds of image that we take."""


class ImageTooLarge(ImageRefused):
    """The image has more of something than we take."""


class ImageBroken(ImageRefused):
    """The file can not be read as an image, or not as that alone."""


class BadExport(MessengerError):
    """Nothing of it is imported from where it is wrong."""


class LogError(MessengerError):
    """The log has a gap or went back."""


class Stopped(MessengerError):
    """An operator has to act."""

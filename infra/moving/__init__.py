"""Moving house: a whole log as a file of JSON lines, written by one instance and read by another.

`lines` is the file's format, `export` writes it, `importing` brings it into an empty log.
"""

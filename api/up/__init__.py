"""`messenger up`: everything on one machine.

`supervisor` starts and stops it all, in order; `kept` starts again what ends; `given` looks for the
servers that are not ours to run; `directory` is where ours keep what they have.
"""

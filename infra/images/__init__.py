"""Pictures that people upload, made anew: no byte of theirs is ever served.

`pool` hands them to worker processes by `jobs`; in a `worker`, and nowhere else, `files` looks at the
bytes and `renditions` decodes and encodes them, moving GIFs by way of `gif_films`.
"""

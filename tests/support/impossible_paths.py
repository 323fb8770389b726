"""Paths that no file can have, by what is wrong with them."""

NAMES = {
    "a NUL": "a\0b",
    "half a surrogate pair": "a\ud800",
    "a long name": "x" * 300,
    "a long folder": "x" * 300 + "/y",
    "long in all": "y/" * 3000,
}

#!/usr/bin/env bash
# Guess: GGUFWriter writes every key that it is given, or refuses it where it is given.
# Fact: an empty list and an empty string are dropped without a word: the file has no such key. Lists of mixed numbers, NumPy integers
#   and numbers that do not fit are taken by add_*, and fail when the file is written, with messages that do not name the key
#   ("Unknown type: <class 'numpy.int64'>", "'I' format requires 0 <= number <= 4294967295").
# Why it matters: a reader takes a missing key for its default, and "no merges", "no suffix tokens" or an empty template come back as
#   something else. An export of hours fails at its end over a list of NumPy integers, and does not say which.
# Seen with gguf 0.19.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install gguf==0.19.0 numpy==2.1.3 2>/dev/null
cat > "$folder/keys.py" <<'PY'
import sys
from collections.abc import Callable
from importlib import metadata

import numpy as np
from gguf import GGUFReader, GGUFWriter

print("gguf", metadata.version("gguf"))


def written(add: Callable[[GGUFWriter], None]) -> str:
    """What the file says of the key k, or the error and when it came."""
    path, moment = f"{sys.argv[1]}/file.gguf", "when it was given"
    writer = GGUFWriter(path, "test")
    try:
        add(writer)
        moment = "when the file was written"
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        writer.close()
    except Exception as error:
        return f"{type(error).__name__} {moment}: {error}"
    field = GGUFReader(path).fields.get("k")
    return "no such key" if field is None else f"{field.contents()!r}"


found = {
    "[1, 2]": written(lambda w: w.add_array("k", [1, 2])),
    "[]": written(lambda w: w.add_array("k", [])),
    "'a'": written(lambda w: w.add_string("k", "a")),
    "''": written(lambda w: w.add_string("k", "")),
    "list(numpy.arange(3))": written(lambda w: w.add_array("k", list(np.arange(3)))),
    "[1, 2.5]": written(lambda w: w.add_array("k", [1, 2.5])),
    "2**33 as uint32": written(lambda w: w.add_uint32("k", 2**33)),
}
for name, what in found.items():
    print(f"{name}: {what}")
assert [found[name] for name in ("[1, 2]", "[]", "'a'", "''")] == ["[1, 2]", "no such key", "'a'", "no such key"]
late = [found[name] for name in ("list(numpy.arange(3))", "[1, 2.5]", "2**33 as uint32")]
assert all(" when the file was written: " in what for what in late)
PY
"$folder/venv/bin/python" "$folder/keys.py" "$folder" 2>/dev/null

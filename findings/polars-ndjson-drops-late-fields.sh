#!/usr/bin/env bash
# Guess: polars.read_ndjson of a .jsonl file has a column for every field of its lines, or raises an error about lines that it did not expect, as it
#   does for a number of another type.
# Fact: columns are those of the first 100 lines. A field that comes first in a later line is dropped, with its values, and nothing is said;
#   scan_ndjson does the same, and fields of nested objects are dropped, too. infer_schema_length=None keeps all of them, as pyarrow does.
# Why it matters: corpora are put together from files in which some documents have a license, a language, an answer or a reason for removal. A
#   file that begins with a hundred others loses the field for all: a filter that drops what is flagged finds no such column, or a
#   converted copy of the corpus no longer has it.
# Seen with polars 2.1.0 and pyarrow 22.0.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install polars==2.1.0 pyarrow==22.0.0 2>/dev/null
cat > "$folder/fields.py" <<'PY'
import json
import sys

import polars as pl
import pyarrow as pa
from pyarrow import json as arrow_json

print("polars", pl.__version__, "pyarrow", pa.__version__)
for before in (99, 100):
    path = f"{sys.argv[1]}/{before}.jsonl"
    lines = [{"text": "a", "meta": {"id": 1}}] * before + [{"text": "b", "meta": {"id": 2, "license": "none"}, "flag": "remove"}] * 1000
    with open(path, "w") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)
    ways = {
        "read_ndjson": lambda: pl.read_ndjson(path),
        "scan_ndjson": lambda: pl.scan_ndjson(path).collect(),
        "infer_schema_length=None": lambda: pl.read_ndjson(path, infer_schema_length=None),
    }
    print(f"{before} lines without the fields, then 1,000 with them")
    for name, read in ways.items():
        table = read()
        print(f"    {name}: {table.height:,} rows, columns {table.columns}, in meta {[field.name for field in table.schema['meta'].fields]}")
    print(f"    pyarrow: columns {arrow_json.read_json(path).column_names}")
PY
"$folder/venv/bin/python" "$folder/fields.py" "$folder" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
polars 2.1.0 pyarrow 22.0.0
99 lines without the fields, then 1,000 with them
    read_ndjson: 1,099 rows, columns ['text', 'meta', 'flag'], in meta ['id', 'license']
    scan_ndjson: 1,099 rows, columns ['text', 'meta', 'flag'], in meta ['id', 'license']
    infer_schema_length=None: 1,099 rows, columns ['text', 'meta', 'flag'], in meta ['id', 'license']
    pyarrow: columns ['text', 'meta', 'flag']
100 lines without the fields, then 1,000 with them
    read_ndjson: 1,100 rows, columns ['text', 'meta'], in meta ['id']
    scan_ndjson: 1,100 rows, columns ['text', 'meta'], in meta ['id']
    infer_schema_length=None: 1,100 rows, columns ['text', 'meta', 'flag'], in meta ['id', 'license']
    pyarrow: columns ['text', 'meta', 'flag']
SEEN

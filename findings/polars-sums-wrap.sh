#!/usr/bin/env bash
# Guess: sum() of a polars column is right or raises an error. Small types are widened for it, as in NumPy and pyarrow: a sum of int8 or of int16
#   is int64.
# Fact: so they are, up to 16 bits. Sums and running sums of 32 bits stay 32 bits and wrap around, with group_by and lazily as well, and nothing is
#   said. str.len_bytes(), str.len_chars() and list.len() are UInt32: the sizes of 4,296 texts of a million bytes sum to 1 MB. pyarrow's
#   sum is 64 bits wide.
# Why it matters: a count of the bytes or tokens of a corpus is right on the first shard and too small by a multiple of 4.29 billion on the whole.
#   Weights of a mixture, epochs and the length of a run are computed from it, and offsets of
#   documents by cum_sum begin again at 0. Cast to Int64 first.
# Seen with polars 2.1.0 and pyarrow 22.0.0.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install polars==2.1.0 pyarrow==22.0.0 2>/dev/null
cat > "$folder/sums.py" <<'PY'
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

COUNT, SIZE = 4_296, 1_000_000
RIGHT = COUNT * SIZE
print("polars", pl.__version__, "pyarrow", pa.__version__, f"right: {RIGHT:,}")
texts = pl.select(text=pl.lit("a" * SIZE).repeat_by(1).explode()).select(pl.col("text").str.len_bytes())
print("str.len_bytes() is", texts.schema["text"], "and list.len()", pl.DataFrame({"tokens": [[1]]}).select(pl.col("tokens").list.len()).schema["tokens"])
for kind in (pl.UInt32, pl.Int32, pl.Int64):
    lengths = pl.DataFrame({"source": ["web"] * COUNT, "length": pl.Series([SIZE] * COUNT, dtype=kind)})
    column = pl.col("length")
    print(f"{kind}: sum {lengths.select(column.sum()).item():,}; lazy {lengths.lazy().select(column.sum()).collect().item():,};", end=" ")
    print(f"by source {lengths.group_by('source').agg(column.sum())['length'].item():,};", end=" ")
    print(f"cum_sum {lengths.select(column.cum_sum()).to_series()[-1]:,}; cast first {lengths.select(column.cast(pl.Int64).sum()).item():,}")
print(f"Int16: sum {pl.Series([30_000] * COUNT, dtype=pl.Int16).sum():,} of {30_000 * COUNT:,}")
print(f"pyarrow uint32: sum {pc.sum(pa.array([SIZE] * COUNT, pa.uint32())).as_py():,}")
PY
"$folder/venv/bin/python" "$folder/sums.py" 2>/dev/null | tee "$folder/seen"
diff "$folder/seen" - <<'SEEN'
polars 2.1.0 pyarrow 22.0.0 right: 4,296,000,000
str.len_bytes() is UInt32 and list.len() UInt32
UInt32: sum 1,032,704; lazy 1,032,704; by source 1,032,704; cum_sum 1,032,704; cast first 4,296,000,000
Int32: sum 1,032,704; lazy 1,032,704; by source 1,032,704; cum_sum 1,032,704; cast first 4,296,000,000
Int64: sum 4,296,000,000; lazy 4,296,000,000; by source 4,296,000,000; cum_sum 4,296,000,000; cast first 4,296,000,000
Int16: sum 128,880,000 of 128,880,000
pyarrow uint32: sum 4,296,000,000
SEEN

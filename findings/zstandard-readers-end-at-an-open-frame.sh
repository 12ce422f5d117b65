#!/usr/bin/env bash
# Guess: reading a .zst file to its end with python-zstandard raises an error if the file is not whole, as gzip does for a .gz file.
# Fact: zstandard.open, stream_reader, read_to_iter and copy_stream return what is there (copy_stream: not all of it) and no error. Only
#   decompress and the `eof` of a decompressobj know whether the frame has ended. gzip raises EOFError, pyarrow OSError.
# Why it matters: .jsonl.zst is what web corpora come in. A build that starts while a file is still written or copied trains on the
#   beginning of it, and nothing says so.
# Seen with zstandard 0.25.0, pyarrow 22.0.0, Python 3.11.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" -q install zstandard==0.25.0 pyarrow==22.0.0 2>/dev/null
cat > "$folder/open_frame.py" <<'PY'
import gzip
import io
import sys

import pyarrow
import zstandard

folder = sys.argv[1]
lines = b"".join(b'{"text": "document %d"}\n' % number for number in range(10_000))

# What other processes see of a file whose writer has flushed it and goes on.
written = io.BytesIO()
writer = zstandard.ZstdCompressor().stream_writer(written, closefd=False)
writer.write(lines)
writer.flush(zstandard.FLUSH_BLOCK)
half = written.getvalue()
with open(f"{folder}/a.zst", "wb") as file:
    file.write(half)

read = {
    "zstandard.open": zstandard.open(f"{folder}/a.zst", "rb").read(),
    "stream_reader": zstandard.ZstdDecompressor().stream_reader(io.BytesIO(half)).read(),
    "read_to_iter": b"".join(zstandard.ZstdDecompressor().read_to_iter(io.BytesIO(half))),
}
target = io.BytesIO()
zstandard.ZstdDecompressor().copy_stream(io.BytesIO(half), target)
read["copy_stream"] = target.getvalue()
print(f"zstandard {zstandard.__version__}, pyarrow {pyarrow.__version__}: {len(lines):,} bytes flushed, the frame still open")
for name, data in read.items():
    print(f"{name}: {len(data):,} bytes, no error")
assert all(read[name] == lines for name in ("zstandard.open", "stream_reader", "read_to_iter"))
assert len(read["copy_stream"]) == 131_072 and lines.startswith(read["copy_stream"])
frame = zstandard.ZstdDecompressor().decompressobj()
frame.decompress(half)
print(f"decompressobj: eof {frame.eof}")
assert not frame.eof


def refuses(name, call):
    try:
        call()
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}")
    else:
        sys.exit(f"{name} raised nothing")


refuses("decompress", lambda: zstandard.ZstdDecompressor().decompress(half, max_output_size=1 << 20))
refuses("pyarrow.CompressedInputStream", lambda: pyarrow.CompressedInputStream(pyarrow.BufferReader(half), "zstd").read())
target = io.BytesIO()
gz = gzip.GzipFile(fileobj=target, mode="wb")
gz.write(lines)
gz.flush()
refuses("gzip.open", lambda: gzip.open(io.BytesIO(target.getvalue())).read())
PY
"$folder/venv/bin/python" "$folder/open_frame.py" "$folder"

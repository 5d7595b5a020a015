"""Writes batches/*.hex: record batches made by an implementation that shares nothing with Busbar's.

Made with kafka-python 3.0.12, lz4 4.4.5 and zstandard 0.25.0 on Python 3.11:

    pip install kafka-python==3.0.12 lz4==4.4.5 zstandard==0.25.0
    python tests/golden/make_batches.py

What each batch holds is written once more, by hand, in proto/tests/golden_batches.rs. A committed vector is never
made anew to please a failing test: it is the format, and the code is wrong.
"""

from pathlib import Path

from kafka.record.default_records import DefaultRecordBatchBuilder

NONE, GZIP, LZ4, ZSTD = 0, 1, 3, 4
FOLDER = Path(__file__).parent / "batches"
PLAIN = [
    # timestamp (ms), key, value, headers
    (1_700_000_000_000, b"order-1", b"created", [("traceparent", b"00-ab-01"), ("retry", b"")]),
    (1_699_999_999_000, None, b"late: the timestamp is before the first", []),
    (1_700_000_000_250, b"order-1", None, [("null", None), ("gr\u00f6\u00dfe", b"\x00\xff")]),
    (1_700_000_086_400, b"", b"", []),
]
# The same without a null header value, which Busbar reads but never writes: comparable byte for byte.
WRITABLE = [row[:3] + ([header for header in row[3] if header[1] is not None],) for row in PLAIN]
MANY = [(1_700_000_000_000 + at, b"%05d" % (at % 7), b"event number %d of a longer run " % at * 3, []) for at in range(300)]


def write(name, records, codec, producer=(-1, -1, -1), transactional=False):
    """One batch, as hexadecimal lines of 32 bytes."""
    identity, epoch, sequence = producer
    builder = DefaultRecordBatchBuilder(
        magic=2,
        compression_type=codec,
        is_transactional=transactional,
        producer_id=identity,
        producer_epoch=epoch,
        base_sequence=sequence,
        batch_size=1 << 20,
    )
    for offset, (timestamp, key, value, headers) in enumerate(records):
        assert builder.append(offset, timestamp, key, value, headers) is not None
    batch = bytes(builder.build())
    lines = [batch[at : at + 32].hex() for at in range(0, len(batch), 32)]
    (FOLDER / f"{name}.hex").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    write("plain", PLAIN, NONE)
    write("idempotent", WRITABLE, NONE, producer=(4_000_000_001, 12, 2_147_483_647))
    write("lz4", MANY, LZ4)
    write("zstd", MANY, ZSTD)
    write("gzip", MANY, GZIP)
    write("transactional", PLAIN, NONE, producer=(9, 0, 0), transactional=True)

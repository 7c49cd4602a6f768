"""Headers of safetensors files: read as the format has them, and refused where they lie."""

import json
import time
from datetime import timedelta
from pathlib import Path

import pytest
import safetensors
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save, save_file

from tests.checkpoints import entry, header_bytes, raw, write_safetensors
from wspace.errors import CheckpointError
from wspace.storage.checkpoints import open_checkpoint
from wspace.storage.headers import (
    BITS,
    CODES,
    KERNEL_NAMES,
    MAX_HEADER,
    _parse_any,
    parse_header,
    read_header,
    render_header,
)

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "F8_E8M0": torch.float8_e8m0fnu,
    "F8_E4M3FNUZ": torch.float8_e4m3fnuz,
    "F8_E5M2FNUZ": torch.float8_e5m2fnuz,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def tensor_of(dtype, shape):
    """Bytes 0, 1, 0, 1, ...: a value of every type, bool included."""
    n_bytes = torch.Size(shape).numel() * dtype.itemsize
    return (torch.arange(n_bytes) % 2).to(torch.uint8).view(dtype).view(shape)


@pytest.mark.parametrize("code", DTYPES)
def test_reads_what_safetensors_wrote(tmp_path, code):
    dtype = DTYPES[code]
    shapes = {"matrix": (3, 5), "scalar": (), "empty": (0, 7), "vector": (1,)}
    tensors = {name: tensor_of(dtype, shape) for name, shape in shapes.items()}
    path = tmp_path / "x.safetensors"
    save_file(tensors, path, metadata={"format": "pt", "note": "Gruß"})
    header = read_header(path)
    content = path.read_bytes()
    assert header.metadata == {"format": "pt", "note": "Gruß"}
    assert header.tensors.keys() == tensors.keys()
    for name, record in header.tensors.items():
        assert (record.dtype, record.shape) == (code, shapes[name])
        assert record.numel == tensors[name].numel()
        assert content[record.start : record.start + record.nbytes] == raw(tensors[name])


@pytest.mark.parametrize("shape", [[True, 2], [1.0, 2], [1, -2], "12"], ids=str)
def test_a_shape_that_equals_one_that_was_there_before_is_looked_at_too(tmp_path, shape):
    header = {"a": entry(shape=(1, 2)), "b": entry(offsets=(8, 16)) | {"shape": shape}}
    path = write_safetensors(tmp_path / "x.safetensors", header, bytes(16))
    with pytest.raises(CheckpointError, match="tensor 'b': shape: expected a list of sizes"):
        read_header(path)


@pytest.mark.parametrize("offsets", [[8, True], [8, 15], [8, 24], [16, 8], [8], {"8": 16}], ids=str)
def test_offsets_of_a_shape_that_was_there_before_are_looked_at_too(tmp_path, offsets):
    header = {"a": entry(), "b": entry() | {"data_offsets": offsets}}
    path = write_safetensors(tmp_path / "x.safetensors", header, bytes(16))
    with pytest.raises(CheckpointError, match=r"tensor 'b'.*data_offsets"):
        read_header(path)


def test_a_header_may_hold_no_tensor(tmp_path):
    save_file({}, tmp_path / "x.safetensors")
    assert read_header(tmp_path / "x.safetensors").tensors == {}


def test_tensors_come_in_the_order_of_their_bytes(tmp_path):
    header = {"last": entry(offsets=(8, 16)), "first": entry(offsets=(0, 8))}
    path = write_safetensors(tmp_path / "x.safetensors", header, bytes(16))
    assert list(read_header(path).tensors) == ["first", "last"]


def test_types_with_less_than_a_byte(tmp_path):
    header = {"x": entry("F4", (4, 3), (0, 6)), "y": entry("F6_E2M3", (4,), (6, 9))}
    records = read_header(write_safetensors(tmp_path / "x.safetensors", header, bytes(9))).tensors
    assert [record.nbytes for record in records.values()] == [6, 3]


def test_every_averaged_type_is_a_type_of_the_format():
    assert KERNEL_NAMES.keys() <= BITS.keys()
    assert {code: getattr(torch, name) for name, code in CODES.items()} == {
        code: DTYPES[code] for code in KERNEL_NAMES
    }
    assert {code: 8 * dtype.itemsize for code, dtype in DTYPES.items()} == {
        code: BITS[code] for code in DTYPES
    }


@pytest.mark.parametrize("metadata", [{}, {"format": "pt", "wspace": '{"a": "Gruß"}'}], ids=str)
def test_rendered_headers_are_read_by_safetensors(tmp_path, metadata):
    tensors = {
        code: tensor_of(dtype, (2, 3)) for code, dtype in DTYPES.items() if code != "F8_E8M0"
    } | {"skalär": torch.tensor(3.0), "empty": torch.zeros(0, 4)}
    table = {name: (CODE_OF[t.dtype], tuple(t.shape)) for name, t in tensors.items()}
    header, starts, length = render_header(table, metadata)
    content = header + b"".join(raw(tensor) for tensor in tensors.values())
    path = tmp_path / "x.safetensors"
    path.write_bytes(content)
    assert length == len(content)
    assert min(starts.values()) == len(header)
    assert len(header) % 4096 == 0
    loaded = load_file(path)
    assert loaded.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert raw(loaded[name]) == raw(tensor)
        assert content[starts[name] :][: tensor.nbytes] == raw(tensor)
    with safetensors.safe_open(path, "pt") as file:
        assert (file.metadata() or {}) == metadata
    assert list(read_header(path).tensors) == list(tensors)


CODE_OF = {dtype: code for code, dtype in DTYPES.items()}

# of processor time for any header: it takes a fraction of one, and a square would take minutes
SECONDS = 10

LONG = [2**62] * 10**5

HOSTILE = {
    # what stands before the JSON
    "empty file": (None, b"", "header length 0 does not fit in a file of 0 bytes"),
    "seven bytes": (None, b"\2\0\0\0\0\0\0", "header length 2 does not fit in a file of 7 bytes"),
    "length beyond the file": (None, b"\3\0\0\0\0\0\0\0{}", "header length 3 does not fit in"),
    "length 2**63": (None, b"\0" * 7 + b"\x80{}", f"header length {2**63} does not fit"),
    "length 2**64 - 1": (None, b"\xff" * 8 + b"{}", "cut off or is not safetensors"),
    # the JSON
    "no JSON": (b"hello", b"", "header is not JSON: Expecting value"),
    "no text": (b"", b"", "header is not JSON"),
    "not UTF-8": (b'{"\xff": 1}', b"", "header is not JSON: 'utf-8' codec can't decode byte 0xff"),
    "UTF-16": ("{}".encode("utf-16"), b"", "header is not JSON"),
    "a byte order mark": ("\ufeff{}".encode(), b"", "header is not JSON"),
    "text after the object": (b"{} x", b"", "header is not JSON: Extra data"),
    "deep arrays": (b"[" * 10**5, b"", "header is not JSON: maximum recursion depth"),
    "deep objects": (b'{"a":' * 10**5, b"", "header is not JSON: maximum recursion depth"),
    "a number of 10**5 digits": (b'{"a": ' + b"1" * 10**5 + b"}", b"", "header is not JSON"),
    "an array": ([], b"", "header: expected an object, found an array"),
    "null": (b"null", b"", "header: expected an object, found null"),
    "a number": (b"3", b"", "header: expected an object, found a number"),
    "a tensor twice": (
        b'{"x": %b, "x": %b}' % ((header_bytes(entry()),) * 2),
        bytes(8),
        "header has the key 'x' twice",
    ),
    "a dtype twice": (
        b'{"x": {"dtype": "F32", "dtype": "I32", "shape": [2], "data_offsets": [0, 8]}}',
        bytes(8),
        "header has the key 'dtype' twice",
    ),
    "a tensor without elements twice": (
        b'{"x":%b,"x":%b}' % ((b'{"dtype":"F32","shape":[0],"data_offsets":[0,0]}',) * 2),
        b"",
        "header has the key 'x' twice",
    ),
    "half of a surrogate pair": (
        {"\ud800": entry()},
        bytes(8),
        r"tensor '\\ud800': its name is not Unicode text",
    ),
    "metadata is an array": (
        {"__metadata__": []},
        b"",
        "__metadata__: expected an object of texts",
    ),
    "metadata is null": ({"__metadata__": None}, b"", "__metadata__: expected an object of texts"),
    "metadata with a number": ({"__metadata__": {"a": 1}}, b"", "__metadata__: expected an object"),
    "metadata with an object": ({"__metadata__": {"a": {}}}, b"", "__metadata__: expected an"),
    # one tensor
    "entry is an array": ({"x": []}, b"", "tensor 'x': expected dtype, shape and data_offsets"),
    "no dtype": (
        {"x": {"shape": [], "data_offsets": [0, 4]}},
        bytes(4),
        "'x': expected dtype, shape",
    ),
    "no shape": ({"x": {"dtype": "F32", "data_offsets": [0, 4]}}, bytes(4), "'x': expected dtype,"),
    "no offsets": ({"x": {"dtype": "F32", "shape": [1]}}, bytes(4), "'x': expected dtype, shape"),
    "unknown dtype": (
        {"x": entry("F33")},
        bytes(8),
        "unknown dtype 'F33'; known are F64, F32, F16,",
    ),
    "dtype is a list": ({"x": entry(["F32"])}, bytes(8), r"unknown dtype \['F32'\]"),
    "dtype in lower case": ({"x": entry("f32")}, bytes(8), "unknown dtype 'f32'"),
    "shape is a number": (
        {"x": {"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}},
        bytes(8),
        "shape: expected a list of sizes, found 2",
    ),
    "a line break for a shape": (
        {"x": entry() | {"shape": "\n"}},
        bytes(8),
        r"shape: expected a list of sizes, found '\\n'",
    ),
    "negative size": ({"x": entry(shape=[-2, -1])}, bytes(8), r"list of sizes, found \[-2, -1\]"),
    "float size": ({"x": entry(shape=[2.0])}, bytes(8), r"list of sizes, found \[2.0\]"),
    "bool size": ({"x": entry(shape=[2, True])}, bytes(8), r"list of sizes, found \[2, True\]"),
    "text size": ({"x": entry(shape=["2"])}, bytes(8), r"list of sizes, found \['2'\]"),
    "NaN size": ({"x": entry(shape=[float("nan")])}, bytes(8), r"list of sizes, found \[nan\]"),
    "NaN for what is not looked at": (
        {"x": entry() | {"more": [float("nan")]}},
        bytes(8),
        "header is not JSON: it has NaN for a value",
    ),
    "Infinity for what is not looked at": (  # found by the fuzzer
        {"x": entry() | {"more": float("inf")}},
        bytes(8),
        "header is not JSON: it has Infinity for a value",
    ),
    "size 2**63": ({"x": entry(shape=[2**63])}, bytes(8), "expected a list of sizes, found"),
    "size 2**63 beside none": (
        {"x": entry(shape=[0, 2**63], offsets=(0, 0))},
        b"",
        "expected a list of sizes, found",
    ),
    "bytes that overflow 64 bits": (
        {"x": entry(shape=[2**32, 2**32], offsets=(0, 0))},
        b"",
        r"F32 \[4294967296, 4294967296\] takes 2\*\*63 bytes or more",
    ),
    "bytes that overflow a float": (
        {"x": entry(shape=LONG, offsets=(0, 0))},
        b"",
        r"F32 \[4611686018427387904, .* takes 2\*\*63 bytes or more",
    ),
    "sizes too small": ({"x": entry(shape=[1])}, bytes(8), r"F32 \[1\] takes 4 bytes, .* give 8"),
    "sizes too large": ({"x": entry(shape=[3])}, bytes(8), r"F32 \[3\] takes 12 bytes, .* give 8"),
    "half a byte": ({"x": entry("F4", [3], (0, 1))}, bytes(1), r"F4 \[3\] takes 1.5 bytes"),
    "one offset": ({"x": entry(offsets=[8])}, bytes(8), r"two byte offsets, found \[8\]"),
    "three offsets": ({"x": entry(offsets=[0, 4, 8])}, bytes(8), "two byte offsets, found"),
    "float offsets": ({"x": entry(offsets=[0.0, 8.0])}, bytes(8), "two byte offsets, found"),
    "bool offsets": (
        {"x": entry("U8", [1], [False, True])},
        bytes(1),
        r"two byte offsets, found \[False, True\]",
    ),
    "negative offsets": (
        {"x": entry(offsets=[-8, 0])},
        bytes(8),
        r"two byte offsets, found \[-8, 0\]",
    ),
    "offsets reversed": (
        {"x": entry(offsets=[8, 0])},
        bytes(8),
        r"\[8, 0\] lie outside the 8 bytes",
    ),
    "offsets that begin late": ({"x": entry(offsets=[4, 8])}, bytes(8), "takes 8 bytes, .* give 4"),
    "offsets beyond the data": (
        {"x": entry(offsets=[8, 16])},
        bytes(8),
        r"data_offsets \[8, 16\] lie outside the 8 bytes of data",
    ),
    "offset 2**62": ({"x": entry(offsets=[2**62, 2**62 + 8])}, bytes(8), "lie outside the 8 bytes"),
    # how they lie
    "same bytes twice": (
        {"x": entry(), "y": entry()},
        bytes(8),
        "tensor 'y' overlaps tensor 'x': it starts at byte 0 of the data, expected 8",
    ),
    "overlap of 4 bytes": (
        {"x": entry(), "y": entry(offsets=(4, 12))},
        bytes(12),
        "tensor 'y' overlaps tensor 'x': it starts at byte 4 of the data, expected 8",
    ),
    "an empty tensor inside another": (
        {"x": entry(), "y": entry(shape=[0], offsets=(4, 4))},
        bytes(8),
        "tensor 'y' overlaps tensor 'x'",
    ),
    "a hole": (
        {"x": entry(), "y": entry(offsets=(12, 20))},
        bytes(20),
        "tensor 'y' leaves a hole after tensor 'x': it starts at byte 12 of the data, expected 8",
    ),
    "a hole at the start": (
        {"x": entry(offsets=(4, 12))},
        bytes(12),
        "tensor 'x' leaves a hole after the header",
    ),
    "bytes at the end": (
        {"x": entry()},
        bytes(9),
        "tensors end at byte 8 of the data, but the file has 9; it is cut off or has bytes that",
    ),
    "bytes without a tensor": (
        {},
        bytes(1),
        "tensors end at byte 0 of the data, but the file has 1",
    ),
    "data cut off": ({"x": entry()}, bytes(7), r"data_offsets \[0, 8\] lie outside the 7 bytes"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_lies_are_refused_with_the_files_name(tmp_path, case):
    header, data, words = HOSTILE[case]
    path = tmp_path / "x.safetensors"
    if header is None:
        path.write_bytes(data)
    else:
        write_safetensors(path, header, data)
    started = time.process_time()
    with pytest.raises(CheckpointError, match=words) as caught:
        read_header(path)
    assert time.process_time() - started < SECONDS
    assert str(caught.value).startswith(f"{path}: ")
    assert len(str(caught.value)) < len(str(path)) + 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("case", [name for name, (h, *_) in HOSTILE.items() if type(h) is dict])
def test_lies_in_the_form_that_safetensors_writes_are_refused_in_the_same_words(case):
    header, data, _ = HOSTILE[case]
    words = []
    for text in (header_bytes(header), json.dumps(header, separators=(",", ":")).encode()):
        with pytest.raises(CheckpointError) as caught:
            parse_header(text, len(data), Path("x"))
        words.append(str(caught.value))
    assert words[0] == words[1]


def test_metadata_are_not_given_twice_whatever_the_header_was_that_has_the_same_tensors(tmp_path):
    once = b'{"x":%b,"__metadata__":{"a":"b"}}' % FLAT
    twice = b'{"__metadata__":{},' + once[1:]
    write_safetensors(tmp_path / "once.safetensors", once.ljust(len(twice)), bytes(8))
    write_safetensors(tmp_path / "twice.safetensors", twice, bytes(8))
    kept = open_checkpoint(tmp_path / "once.safetensors")
    assert kept.metadata == {"a": "b"}
    with pytest.raises(CheckpointError, match="has the key '__metadata__' twice"):
        open_checkpoint(tmp_path / "twice.safetensors")


@pytest.mark.parametrize(
    "part", [b'"', b'"":{"dtype":"', b'"":{"dtype":"","shape":[',
             b'"":{"dtype":"F32","shape":[0],"data_offsets":[0', b'{"__metadata__":']
)  # fmt: skip
def test_an_entry_that_begins_anew_without_end_takes_no_square_of_time(part):
    started = time.process_time()
    with pytest.raises(CheckpointError, match="is not JSON"):
        parse_header(b"{" + part * 10**5 + b"}", 0, Path("x"))
    assert time.process_time() - started < SECONDS


PLAIN = [  # what comes instead of x, and around it
    b'"x":%b',
    b'"x":%b,',
    b',"x":%b',
    b'"x":%b ',
    b'"x":%b,"x":%b',
    b'"x":%b,"__metadata__":{}',
    b'"__metadata__":{"a":"}"},"x":%b',
    b'"__metadata__":{"a":"b"} ,"x":%b',
    b'"__metadata__":{"a":1},"x":%b',
    b'"__metadata__":{}"x":%b',
    b'"__metadata__":{}{"x":%b',
    b'"__metadata__":{},"__metadata__":{},"x":%b',
    b'"__met\\u0061data__":{},"x":%b',
    b'"\tx":%b',
    b'"\\tx":%b',
    b'"\xc3\xbc":%b',
    b'"\xc3":%b',
]
FLAT = b'{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'


@pytest.mark.parametrize("text", [b'{"__metadata__":{}', b'{"__metadata__":{},', b"{", b"}"])
def test_a_header_that_ends_early_is_refused(text):
    with pytest.raises(CheckpointError, match="is not JSON"):
        parse_header(text, 0, Path("x"))


@pytest.mark.parametrize("form", PLAIN)
def test_a_header_of_any_form_is_what_its_json_is(form):
    text = b"{" + form.replace(b"%b", FLAT) + b"}"
    try:
        pairs = json.loads(text, object_pairs_hook=list)
        expected = json.loads(text)
        metadata = expected.pop("__metadata__", {})
    except ValueError:
        pairs = expected = metadata = None
    good = expected is not None and len(dict(pairs)) == len(pairs) and metadata != {"a": 1}
    if not good:
        with pytest.raises(CheckpointError):
            parse_header(text, 8, Path("x"))
        return
    header = parse_header(text, 8, Path("x"))
    assert header.metadata == metadata
    assert header.tensors == {name: ("F32", (2,), 8 + len(text), 8) for name in expected}


def test_the_formats_limit_on_headers_holds_in_a_larger_file(tmp_path):
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        file.write((MAX_HEADER + 1).to_bytes(8, "little"))
        file.truncate(MAX_HEADER + 10**6)  # a hole on the disk: no bytes are written
    with pytest.raises(CheckpointError, match="header length 100000001 does not fit"):
        read_header(path)


def test_many_keys_are_compared_in_bounded_time():
    keys = b",".join(b'"%d":1' % k for k in range(10**5))
    started = time.process_time()
    with pytest.raises(CheckpointError, match="the key '99999' twice"):
        parse_header(b"{" + keys + b',"99999":1}', 0, Path("x"))
    assert time.process_time() - started < SECONDS


def test_a_missing_file_and_a_folder_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: No such file"):
        read_header(tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


VALID = save(
    {
        "a": torch.arange(6, dtype=torch.float32).view(2, 3),
        "b.c": torch.arange(4, dtype=torch.bfloat16),
        "d": torch.zeros(0, 3),
        "e": torch.tensor(7),
    },
    metadata={"format": "pt"},
)
VALID_TEXT = VALID[8 : 8 + int.from_bytes(VALID[:8], "little")]
VALID_DATA = VALID[8 + len(VALID_TEXT) :]

edits = st.lists(
    st.tuples(
        st.sampled_from(["replace", "insert", "delete", "repeat"]),
        st.integers(0, len(VALID_TEXT) - 1),
        # more often what JSON is made of
        st.one_of(st.sampled_from(list(b'0123456789[]{}",:-.eE\\u ')), st.integers(0, 255)),
    ),
    min_size=1,
    max_size=6,
)


def edited(text, changes):
    content = bytearray(text)
    for what, position, byte in changes:
        position = min(position, len(content))
        if what == "replace":
            content[position : position + 1] = bytes([byte])
        elif what == "insert":
            content[position:position] = bytes([byte])
        elif what == "delete":
            del content[position : position + 1 + byte % 8]
        else:
            content[position:position] = content[position : position + byte]
    return bytes(content)


@given(edits)
@settings(max_examples=400, deadline=timedelta(seconds=5))
def test_a_damaged_header_is_read_as_safetensors_reads_it_or_refused(changes):
    text = edited(VALID_TEXT, changes)
    try:
        header = parse_header(text, len(VALID_DATA), Path("x"))
    except CheckpointError:
        return
    position = 8 + len(text)
    for record in header.tensors.values():
        assert record.start == position
        assert record.nbytes * 8 == record.numel * BITS[record.dtype]
        position += record.nbytes
    assert position == 8 + len(text) + len(VALID_DATA)
    assert header == _parse_any(text, len(VALID_DATA), Path("x"))
    if b"-0" in text:
        return  # an integer to Python's JSON, a float to theirs
    content = len(text).to_bytes(8, "little") + text + VALID_DATA
    theirs = dict(safetensors.deserialize(content))
    assert theirs.keys() == header.tensors.keys()
    for name, record in header.tensors.items():
        assert (theirs[name]["dtype"], theirs[name]["shape"]) == (record.dtype, list(record.shape))
        assert theirs[name]["data"] == content[record.start : record.start + record.nbytes]


@given(st.integers(0, 2**64 - 1) | st.integers(0, 2 * len(VALID)), st.integers(0, len(VALID)))
@settings(max_examples=200, deadline=timedelta(seconds=5))
def test_a_damaged_length_or_a_cut_file_is_refused(tmp_path_factory, length, size):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    path.write_bytes((length.to_bytes(8, "little") + VALID[8:])[:size])
    if length == len(VALID_TEXT) and size == len(VALID):
        return
    with pytest.raises(CheckpointError):
        read_header(path)


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"])).filter(lambda n: n != "__metadata__"),
        st.tuples(
            st.sampled_from([code for code, bits in BITS.items() if bits % 8 == 0]),
            st.lists(st.integers(0, 5), max_size=4).map(tuple),
        ),
        max_size=8,
    ),
    st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), st.text("aé\n\"'\\")),
)
def test_rendered_headers_are_read_back(tensors, metadata):
    header, starts, length = render_header(tensors, metadata)
    found = parse_header(header[8:], length - len(header), Path("x"))
    assert {name: (r.dtype, r.shape) for name, r in found.tensors.items()} == tensors
    assert {name: record.start for name, record in found.tensors.items()} == starts
    assert found.metadata == metadata
    assert json.loads(header[8:]).keys() == ({"__metadata__"} if metadata else set()) | set(tensors)

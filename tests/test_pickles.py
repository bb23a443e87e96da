"""Pickles are read, not run: what torch itself reads comes out the same, and what could do harm is refused by name."""

import collections
import contextlib
import io
import os
import pickle
import pickletools
import random
import struct
import time
import zipfile
from datetime import date
from functools import partial

import numpy as np
import pytest
import torch

from rfpp.base import pickles
from rfpp.base.pickles import ALLOWED, Object, Refused, read, read_file, read_torch


def loads(content):
    return read(io.BytesIO(content))


# What may be read


TENSORS = {
    "whole": torch.arange(12.0).reshape(3, 4),
    "transposed": torch.arange(12.0).reshape(3, 4).T,
    "slice": torch.arange(12)[2::3],
    "half": torch.ones(2, 3).half(),
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "double": torch.linspace(0, 1, 7, dtype=torch.float64),
    "bool": torch.tensor([True, False]),
    "bytes": torch.tensor([0, 255], dtype=torch.uint8),
    "small": torch.tensor([-3, 3], dtype=torch.int8),
    "scalar": torch.tensor(3.25),
    "empty": torch.zeros(0, 5),
    "parameter": torch.nn.Parameter(torch.full((2, 2), 0.5)),
}


def same(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


@pytest.mark.parametrize("protocol", range(6))
def test_tensors_in_a_pickle_are_what_pickle_reads(protocol):
    """Python's own loader, on a file that we know, is the reference."""
    content = pickle.dumps(TENSORS, protocol=protocol)
    found, expected = loads(content), pickle.loads(content)
    assert list(found) == list(expected) and all(same(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("protocol", range(1, 6))
def test_files_of_torch_save_are_what_torch_reads(tmp_path, protocol, zipped):
    """Both formats; tensors that share a storage go on sharing it. (Torch itself writes no protocol 0.)"""
    shared = torch.arange(10.0)
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    optimizer = torch.optim.Adam(module.parameters())
    module(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    content = {
        "tensors": TENSORS, "shared": [shared[:5], shared[5:]], "model": module.state_dict(),
        "optimizer": optimizer.state_dict(), "plain": [1, 2.5, None, True, "é", b"\xff", (3, [4]), {5}, 2**70],
        "size": torch.Size((1, 2)), "numpy": np.float64(0.1),
    }  # fmt: skip
    path = tmp_path / "file.pth"
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=zipped)
    found, expected = read_torch(path), torch.load(path, weights_only=False)
    assert all(same(found["tensors"][name], expected["tensors"][name]) for name in TENSORS)
    assert all(same(a, b) for a, b in zip(found["shared"], expected["shared"], strict=True))
    assert found["shared"][0].untyped_storage().data_ptr() == found["shared"][1].untyped_storage().data_ptr()
    assert list(found["model"]) == list(expected["model"])
    assert all(same(found["model"][name], expected["model"][name]) for name in expected["model"])
    for number, entry in expected["optimizer"]["state"].items():
        assert all(same(found["optimizer"]["state"][number][name], value) for name, value in entry.items())
    for name in ("plain", "size", "numpy"):
        assert found[name] == expected[name]


@pytest.mark.parametrize("protocol", range(6))
def test_plain_values_of_all_kinds(protocol):
    """Everything that JSON has, and what pickles have beside it; shared and self-containing lists as well."""
    value = {
        "numbers": [0, 1, -1, 255, 256, 65536, -(2**31), 2**31, 2**200, 0.1, float("inf"), True, None],
        "text": ["", "a\nb", "日本", "x" * 300],
        "bytes": [b"", b"\x00\xff", b"x" * 300],
        "containers": [(), (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [], {}, set(), {1, 2}, collections.OrderedDict(a=1)],
        "numpy": [np.float32(0.5), np.int64(-3), np.bool_(True)],
    }
    assert loads(pickle.dumps(value, protocol=protocol)) == value
    loop = []
    loop.append(loop)
    found = loads(pickle.dumps(loop, protocol=protocol))
    assert found[0] is found


@pytest.mark.parametrize("protocol", range(6))
def test_a_module_becomes_a_record_of_its_attributes(protocol):
    container = torch.nn.ModuleDict()
    found = loads(pickle.dumps(container, protocol=protocol))
    assert isinstance(found, Object) and found.class_name == "ModuleDict"
    assert found.state.keys() == container.__dict__.keys() and found.state["training"] is True


def test_what_is_allowed_cannot_do_anything():
    """No stand-in is a function of the module it stands for, and none comes from a module that reaches outside."""
    for entry in ALLOWED.values():
        for function in (entry.call, entry.new):
            assert function is None or function in (tuple, dict) or function.__module__.startswith("rfpp.base.pickles.")


# What is refused


class Calls:
    """An object whose pickle calls ``function(*arguments)``."""

    def __init__(self, function, *arguments, state=None):
        self.answer = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.answer


CANARY = "/tmp/rfpp-pickle-was-executed"
COMMAND = f"touch {CANARY}"


def program(*parts):
    """A pickle written by hand; the end is added."""
    return b"\x80\x04" + b"".join(parts) + b"."


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def nested(levels):
    """A tuple of twice a tuple of twice ..., in a few bytes a level."""
    return b")" + b"2\x86" * levels


MODULE_DICT = name("torch.nn.modules.container", "ModuleDict") + b")\x81"
STORAGE = name("torch.storage", "_load_from_bytes")

WRITTEN = {
    "os.system": (Calls(os.system, COMMAND), "posix.system|os.system"),
    "eval": (Calls(eval, f"open({CANARY!r}, 'w')"), "builtins.eval"),
    "exec": (Calls(exec, f"open({CANARY!r}, 'w')"), "builtins.exec"),
    "open": (Calls(open, CANARY, "w"), "io.open|_io.open"),
    "getattr": (Calls(getattr, 1, "real"), "builtins.getattr"),
    "__import__": (Calls(__import__, "os"), "builtins.__import__"),
    "compile": (Calls(compile, "1", "a", "eval"), "builtins.compile"),
    "partial": (Calls(partial, os.system), "functools.partial"),
    "torch.load": (Calls(torch.load, CANARY), "torch.serialization.load"),
    "numpy object array": ([np.array([Calls(os.system, COMMAND)], dtype=object)], "_reconstruct"),
    "numpy plain array": ([np.zeros(3)], "_reconstruct|_frombuffer"),
    "numpy void": ([np.void(b"abc")], "numpy.dtype|numpy"),
    "a date": ([date(2024, 1, 1)], "datetime.date"),
    "a module": ([torch.nn.Linear(1, 1)], "torch.nn.modules.linear.Linear"),
    "a function": ([os.path.join], "posixpath.join"),
    "a class": ([dict], None),
    "hidden in a state": ([collections.OrderedDict(a=[({"b": Calls(os.system, COMMAND)},)])], "posix.system|os.system"),
    "called later": (Calls(collections.OrderedDict, [("a", Calls(os.system, COMMAND))]), "posix.system|os.system"),
    "a state for it": (Calls(os.system, COMMAND, state={"a": 1}), "posix.system|os.system"),
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("kind", [kind for kind in WRITTEN if WRITTEN[kind][1]])
def test_a_pickle_that_names_anything_else_is_refused(kind, protocol):
    """Written by Python itself in every protocol; the name is in the message, and nothing was executed."""
    content, named = WRITTEN[kind]
    with pytest.raises(Refused, match=named):
        loads(pickle.dumps(content, protocol=protocol))
    assert not os.path.exists(CANARY)


BY_HAND = {
    "global": (name("os", "system"), "os.system"),
    "global that is never called": (name("os", "system"), "os.system"),
    "global, then dropped": (name("os", "system") + b"0N", "os.system"),
    "stack global": (text("os") + text("system") + b"\x93", "os.system"),
    "stack global from the memo": (text("os") + b"\x940" + text("system") + b"\x940h\x00h\x01\x93", "os.system"),
    "stack global without names": (b"K\x01K\x02\x93", "it names a global without a module or a name"),
    "stack global with a dotted name": (text("torch") + text("os.system") + b"\x93", "torch.os.system"),
    "a dotted name of something allowed": (name("collections", "OrderedDict.fromkeys"), "OrderedDict.fromkeys"),
    "an allowed name, elsewhere": (name("torch.serialization", "_load_from_bytes"), "torch.serialization"),
    "old class": (b"(" + text(COMMAND) + b"ios\nsystem\n", "os.system"),
    "old class of an allowed name": (b"(icollections\nOrderedDict\n", "with the old instruction INST"),
    "object instruction": (b"(" + name("collections", "OrderedDict") + b"o", "instruction OBJ"),
    "extension code of one byte": (b"\x82\x07", "extension code 7"),
    "extension code of two bytes": (b"\x83\x07\x01", "extension code 263"),
    "extension code of four bytes": (b"\x84\x07\x00\x00\x01", "extension code 16777223"),
    "persistent id": (b"Pstorage\n", "instruction PERSID"),
    "persistent id from the stack": (text("storage") + b"Q", "persistent id"),
    "buffer from outside": (b"\x97", "instruction NEXT_BUFFER"),
    "read-only buffer": (b"C\x01a\x98", "instruction READONLY_BUFFER"),
    "calling what was called": (STORAGE + b"C\x01a\x85R" + b")R", "not a file of torch.save|damaged"),
    "calling a list": (b"](K\x01e)R", "calls a list"),
    "calling a word": (text("os.system") + b")R", "calls a str"),
    "calling a class": (name("torch.nn.modules.container", "ModuleDict") + b")R", "which is not a function"),
    "a reduction of a reduction": (name("collections", "OrderedDict") + b")R)R", "calls a dict"),
    "arguments that are no tuple": (name("collections", "OrderedDict") + b"]R", "which is not a function"),
    "an instance of a function": (name("builtins", "set") + b")\x81", "an instance of builtins.set"),
    "an instance of a word": (text("a") + b")\x81", "an instance of str"),
    "an instance with arguments": (name("dnnlib.util", "EasyDict") + b"K\x01\x85\x81", "an instance with arguments"),
    "keywords for an instance": (name("dnnlib.util", "EasyDict") + b")}\x92", "instruction NEWOBJ_EX"),
    "attributes for a class": (
        name("torch.nn.modules.container", "ModuleDict") + b"}" + text("__init__") + name("builtins", "set") + b"sb",
        "sets attributes of torch.nn.modules.container.ModuleDict",
    ),
    "attributes for a class, in slots": (
        name("builtins", "set") + b"N}" + text("a") + b"K\x01s\x86b", "sets attributes of builtins.set"
    ),
    "attributes for a function": (name("torch._utils", "_rebuild_parameter") + b"}b", "attributes of torch._utils"),
    "attributes for a list": (b"]}b", "sets attributes of list"),
    "attributes that are a list": (MODULE_DICT + b"]b", "sets attributes of Object"),
    "encoding by another name": (name("_codecs", "encode") + text("a") + text("idna") + b"\x86R", "'idna'"),
    "object dtype": (name("numpy", "dtype") + text("O8") + b"\x85R", "numpy.dtype.'O8'"),
    "a dtype of records": (name("numpy", "dtype") + b"]\x85R", "numpy.dtype.a list"),
    "a scalar of an object": (
        name("numpy.core.multiarray", "scalar") + text("O8") + b"C\x08aaaaaaaa\x86R", "not one number"
    ),
    "source in place of a class": (
        name("torch_utils.persistence", "_reconstruct_persistent_obj")
        + b"}(" + text("type") + text("module") + text("module_src") + text("import os") + b"u\x85R",
        "not of type 'class'",
    ),
    "storage that holds a command": (
        STORAGE + b"C\x10" + name("os", "system") + b"(tR.." + b"\x85R", "os.system"
    ),
    "a tensor beyond its storage": (
        name("torch._utils", "_rebuild_tensor_v2") + b"(K\x01K\x00K\x05\x85K\x01\x85\x89}tR", "without a storage"
    ),
    "a key that is a tuple of tuples": (b"}" + nested(60) + b"K\x01s", "key of type tuple"),
    "a set of tuples of tuples": (b"\x8f(" + nested(60) + b"\x90", "key of type tuple"),
    "a set made by a call": (name("builtins", "set") + b"](" + nested(60) + b"e\x85R", "key of type tuple"),
    "a frozen set": (b"(" + nested(60) + b"\x91", "key of type tuple"),
    "nothing in the memo": (b"h\x09", "damaged"),
    "an empty stack": (b"0", "damaged"),
    "no end to the list": (b"(K\x01K\x02", "ends in the middle"),
    "two values": (b"K\x01K\x02", "ends in the middle"),
    "items for a tuple": (b")K\x01a", "it adds items to a tuple"),
    "keys for a list": (b"]K\x01K\x02s", "it adds keys and values to a list"),
    "a key without a value": (b"}(K\x01u", "damaged"),
    "a number of 4,400 digits": (b"I" + b"9" * 4400 + b"\n", "damaged"),
    "a length of four gigabytes": (b"B\xff\xff\xff\xffabc", "damaged"),
    "a length of exabytes": (b"\x8e" + b"\xff" * 7 + b"\x0fabc", "damaged"),
    "a negative length": (b"\x8b\xff\xff\xff\xff", "damaged"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BY_HAND)
def test_a_pickle_written_to_do_harm_is_refused(kind):
    """By hand, where Python's own writer would not go. Each is refused at once and by name; none is executed."""
    body, complaint = BY_HAND[kind]
    start = time.perf_counter()
    with pytest.raises(Refused, match=complaint):
        loads(program(body))
    assert time.perf_counter() - start < 5  # a bomb would take years
    assert not os.path.exists(CANARY)


def test_the_hand_written_pickles_are_what_they_say():
    """They are real: Python's own loader does run such a one."""
    made = pickle.loads(program(name("collections", "OrderedDict") + b"](" + text("a") + b"K\x01\x86e\x85R"))
    assert made == {"a": 1}
    with pytest.raises(pickle.UnpicklingError, match="persistent"):
        pickle.loads(program(b"Pstorage\n"))


BOMBS = {
    "lists of lists": b"]" + b"(" + b"22" * 40 + b"e" + b"\x94" + b"(h\x00h\x00h\x00e" * 1000,
    "tuples of tuples": nested(10_000),
    "lists within lists": b"]" * 50_000 + b"a" * 49_999,
    "a far place in the memo": b"K\x01r\xff\xff\xff\xff",
    "dictionaries of themselves": b"}\x94(" + text("a") + b"h\x00" + b"u",
}


@pytest.mark.parametrize("kind", BOMBS)
def test_what_only_looks_large_stays_small(kind):
    """Values that refer to one another are plain data, and reading them costs what their file costs."""
    start = time.perf_counter()
    with contextlib.suppress(Refused):
        loads(program(BOMBS[kind]))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "repeated",
    [
        name("_codecs", "encode") + b"h\x00" + text("latin1") + b"\x86R0",
        name("collections", "OrderedDict") + b"h\x01\x85R0",
        name("builtins", "set") + b"h\x03\x85R0",
        MODULE_DICT + b"h\x02b0",
    ],
)
def test_a_small_file_cannot_copy_without_end(repeated):
    """A text, list or dictionary of 100 kB, used 20,000 times over: two gigabytes, or minutes of copying."""
    many = 20_000
    setup = text("x" * many) + b"\x940](" + b"K\x01K\x02\x86" * many + b"e\x940"
    setup += b"}(" + b"".join(b"M" + struct.pack("<H", i) + b"N" for i in range(many)) + b"u\x940"
    setup += b"](" + b"K\x01" * many + b"e\x940"
    start = time.perf_counter()
    with pytest.raises(Refused, match="over and over"):
        loads(program(setup, repeated * many, b"N"))
    assert time.perf_counter() - start < 5


# Damaged files


@pytest.fixture(scope="module", params=["pickle", "legacy", "zip"])
def whole(request, tmp_path_factory):
    """A file of each format, and the function that reads it."""
    path = tmp_path_factory.mktemp("whole") / "file"
    content = {"a": torch.arange(50.0), "b": [1, "two", {"three": torch.ones(2, 2)}]}
    if request.param == "pickle":
        path.write_bytes(pickle.dumps(content))
        return path.read_bytes(), read_file
    torch.save(content, path, _use_new_zipfile_serialization=request.param == "zip")
    return path.read_bytes(), read_torch


def test_a_truncated_file_is_refused_wherever_it_ends(whole, tmp_path):
    content, function = whole
    path = tmp_path / "short"
    for length in {0, 1, 10, *range(0, len(content), 37), len(content) - 1}:
        path.write_bytes(content[:length])
        with pytest.raises(Refused, match=f"{path} is refused"):
            function(path)


def test_a_file_with_changed_bytes_is_read_or_refused(whole, tmp_path):
    """500 files with one to three bytes changed: no other error than ours, ever, and no long wait."""
    content, function = whole
    source, path = random.Random(0), tmp_path / "changed"
    start = time.perf_counter()
    for _ in range(500):
        changed = bytearray(content)
        for _ in range(source.randint(1, 3)):
            changed[source.randrange(len(changed))] = source.randrange(256)
        path.write_bytes(changed)
        with contextlib.suppress(Refused):
            function(path)
    assert time.perf_counter() - start < 60


def test_random_instructions_are_read_or_refused():
    """2,000 programs of random instructions with small arguments: no other error than ours."""
    source = random.Random(1)
    codes = [opcode.code.encode("latin1") for opcode in pickletools.opcodes if opcode.code != "."]
    for _ in range(2000):
        body = b"".join(source.choice(codes) + bytes(source.choices(range(8), k=2)) for _ in range(20))
        with contextlib.suppress(Refused):
            loads(program(b"K\x01](}" + body))


# Archives


def rewrite(source, target, change):
    """A copy of a zip archive; ``change(name, content)`` gives each file's content and compression, or ``None``."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for info in old.infolist():
            changed = change(info.filename, old.read(info))
            if changed is not None:
                new.writestr(info.filename, changed[0], compress_type=changed[1])


STORED, DEFLATED = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
ARCHIVES = {
    "compressed": (lambda name, content: (content, DEFLATED), "compressed"),
    "a storage that unfolds": (
        lambda name, content: (bytes(10_000_000), DEFLATED) if "/data/" in name else (content, STORED),
        "compressed",
    ),
    "a missing storage": (lambda name, content: None if "/data/" in name else (content, STORED), "data/0 is missing"),
    "a short storage": (
        lambda name, content: (content[:-4] if "/data/" in name else content, STORED), "196 bytes instead of 200"
    ),
    "big-endian": (
        lambda name, content: (b"big" if "byteorder" in name else content, STORED), "not little-endian"
    ),
    "no pickle": (lambda name, content: None if "data.pkl" in name else (content, STORED), "not one of torch.save"),
    "a command": (
        lambda name, content: (pickle.dumps(Calls(os.system, COMMAND)) if "data.pkl" in name else content, STORED),
        "posix.system",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", ARCHIVES)
def test_an_archive_that_is_not_as_torch_writes_it_is_refused(tmp_path, kind):
    change, complaint = ARCHIVES[kind]
    torch.save({"a": torch.arange(50.0)}, tmp_path / "file.pth")
    rewrite(tmp_path / "file.pth", tmp_path / "changed.pth", change)
    with pytest.raises(Refused, match=complaint):
        read_torch(tmp_path / "changed.pth")
    assert not os.path.exists(CANARY)


def test_a_legacy_file_cannot_ask_for_more_memory_than_it_has_bytes(tmp_path):
    """The number of elements stands in the pickle; changed from 50 to 2 billion, it is refused, not allocated."""
    torch.save({"a": torch.arange(50.0)}, tmp_path / "file", _use_new_zipfile_serialization=False)
    content = (tmp_path / "file").read_bytes()
    place = content.index(b"cpu") + len(b"cpu") + 2  # the memo's place, then K 50
    assert content[place : place + 2] == b"K2"
    (tmp_path / "file").write_bytes(content[:place] + b"J\xff\xff\xff\x7f" + content[place + 2 :])
    with pytest.raises(Refused, match="2147483647 numbers, more than the file"):
        read_torch(tmp_path / "file")


def test_a_file_of_something_else_is_refused(tmp_path):
    for content in (b"hello", b"\x89PNG\r\n", bytes(1000), pickle.dumps([1, 2])):
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(Refused, match="file is refused"):
            read_torch(tmp_path / "file")


def test_messages_stay_short():
    """A name of a megabyte, or a value that would take for ever to write out, is cut short."""
    for body in (name("a" * 1_000_000, "b"), name("_codecs", "encode") + text("a") + nested(60) + b"\x86R"):
        with pytest.raises(Refused) as caught:
            loads(program(body))
        assert len(str(caught.value)) < 500


def test_it_is_pure(monkeypatch):
    """Reading looks nothing up in the running program: no import happens, whatever a file names."""

    def refuse(*arguments, **options):
        raise AssertionError("an import")

    content = pickle.dumps(TENSORS)
    body = program(name("antigravity", "geohash"))
    monkeypatch.setattr("builtins.__import__", refuse)
    found = pickles.read(io.BytesIO(content))
    with pytest.raises(Refused, match="antigravity.geohash"):
        pickles.read(io.BytesIO(body))
    monkeypatch.undo()
    assert same(found["whole"], TENSORS["whole"])


# What a first reading of the code had overlooked


def legacy(content):
    """A file of torch.save's old format around a pickle written by hand, with no storages."""
    head = [pickle.dumps(value, 2) for value in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True})]
    return b"".join(head) + content + pickle.dumps([], 2)


def test_files_do_not_hold_files_that_hold_files():
    """Each level could read the next one many times: two kilobytes would keep a machine busy for ever."""
    inner = legacy(program(b"K\x01"))
    for _ in range(3):
        kept = b"B" + struct.pack("<I", len(inner)) + inner + b"\x940"
        inner = legacy(program(kept + (STORAGE + b"h\x00\x85R0") * 30 + b"N"))
    body = STORAGE + b"B" + struct.pack("<I", len(inner)) + inner + b"\x85R"
    start = time.perf_counter()
    with pytest.raises(Refused):
        loads(program(body))
    assert time.perf_counter() - start < 5


def test_sizes_of_thousands_of_digits_are_refused_before_they_are_multiplied():
    """One number of 20 kB, used 200 times over as a tensor's size and stride."""
    whole = pickle.dumps(torch.arange(4.0), 4)
    size = whole.rindex(b"K\x04\x85")  # a tuple of one number, which the memo has next
    huge = b"\x8b" + struct.pack("<I", 20_000) + b"\x7f" * 20_000
    numbers = b"(" + huge + b"r\xff\x00\x00\x00" + b"j\xff\x00\x00\x00" * 200 + b"t"
    start = time.perf_counter()
    with pytest.raises(Refused, match="not a list of whole numbers"):
        loads(whole[:size] + numbers + whole[size + 3 :])
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize(
    "repeated",
    [
        (name("builtins", "set") + b"h\x01\x85R0"),  # a set made of a set
        (name("torch", "device") + b"h\x00R0"),  # a call with very many arguments
    ],
)
def test_sets_and_arguments_count_as_work(repeated):
    many = 20_000
    numbers = b"(" + b"".join(b"M" + struct.pack("<H", i) for i in range(many))
    setup = numbers + b"t\x940\x8f(" + b"".join(b"M" + struct.pack("<H", i) for i in range(many)) + b"\x90\x940"
    start = time.perf_counter()
    with pytest.raises(Refused):
        loads(program(setup, repeated * 3000, b"N"))
    assert time.perf_counter() - start < 5


@pytest.mark.parametrize("key", [b"\x8a\x08" + b"\x7f" * 8, b"G" + b"\x40" * 8])
def test_numbers_whose_hashes_can_be_chosen_are_no_keys(key):
    with pytest.raises(Refused, match="or a very large number"):
        loads(program(b"}" + key + b"Ns"))


def test_big_endian_numbers_are_refused_not_misread():
    with pytest.raises(Refused, match="not little-endian"):
        loads(program(name("numpy", "dtype") + text("f8") + b"\x85R(K\x03" + text(">") + b"NNNtb"))


@pytest.mark.parametrize("made", [torch.nn.Buffer(torch.arange(3.0)), torch.nn.Parameter(torch.arange(3.0))])
def test_tensors_with_attributes_are_tensors(tmp_path, made):
    """A Buffer of torch, and a Parameter that somebody wrote a note on."""
    made.note = "kept by torch, dropped here"
    torch.save({"a": made}, tmp_path / "file.pth")
    assert torch.equal(read_torch(tmp_path / "file.pth")["a"], torch.arange(3.0))
    assert torch.equal(loads(pickle.dumps(made)), torch.arange(3.0))


@pytest.mark.parametrize("body", [b"S" + b"a" * 1_000_000 + b"\n", b"F" + b"a" * 1_000_000 + b"\n"])
def test_messages_about_damage_stay_short_too(body):
    with pytest.raises(Refused) as caught:
        loads(program(body))
    assert len(str(caught.value)) < 500

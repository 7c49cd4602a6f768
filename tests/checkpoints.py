"""Checkpoints made by hand: headers that lie, layouts of shards, PyTorch's own files."""

import json

import torch
from safetensors.torch import load_file, save_file

from wspace.storage.checkpoints import INDEX


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    """What a header says of one tensor; true of 8 bytes of data."""
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def header_bytes(header):
    return header if isinstance(header, bytes) else json.dumps(header).encode()


def write_safetensors(path, header, data=b"", length=None):
    """A file with this header (an object, or raw bytes) and data, whether they agree or not."""
    text = header_bytes(header)
    length = len(text) if length is None else length
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(length.to_bytes(8, "little") + text + data)
    return path


def write_index(folder, weight_map, name=INDEX):
    text = json.dumps({"metadata": {"total_size": 0}, "weight_map": weight_map})
    (folder / name).write_text(text)


def save_model(folder, tensors, config=None):
    """``model.safetensors``, and a config if given."""
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def save_shards(folder, *parts, index=True):
    """A shard for each dict of tensors, with an index unless told otherwise."""
    folder.mkdir(parents=True, exist_ok=True)
    weight_map = {}
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        save_file(part, folder / file)
        weight_map |= dict.fromkeys(part, file)
    if index:
        write_index(folder, weight_map)
    return folder


def save_pickle(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)
    return path


def stored_bytes(checkpoint, name):
    """The bytes of a tensor, from where the checkpoint says that they are."""
    record, file, memory, _ = checkpoint.find(name)
    if memory is not None:
        return memory.tobytes()
    return checkpoint.files[file].read_bytes()[record.start : record.start + record.nbytes]


def raw(tensor):
    """The bytes of a torch tensor, in order."""
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes()


def load(folder):
    """All tensors of a folder, as safetensors itself reads them."""
    tensors = {}
    for file in sorted(folder.glob("*.safetensors")):
        tensors |= load_file(file)
    return tensors


def assert_same(found, expected):
    """Two state dicts are equal: names, types, shapes and bits."""
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert raw(found[name]) == raw(tensor), name

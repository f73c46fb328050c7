"""Chains of zarr v3 codecs: the bytes of one chunk, in whatever way they were written, as an array."""

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
from numcodecs import blosc, lz4, zstd
from numcodecs.vlen import VLenUTF8


def _without_crc32c(raw: bytes) -> bytes:
    if google_crc32c.value(raw[:-4]) != int.from_bytes(raw[-4:], "little"):
        msg = "its bytes do not match their crc32c checksum"
        raise ValueError(msg)
    return raw[:-4]


_UNPACK: dict[str, Callable[[bytes], bytes]] = {
    "blosc": blosc.decompress,
    "crc32c": _without_crc32c,
    "gzip": gzip.decompress,
    "zstd": zstd.decompress,
    "numcodecs.bz2": bz2.decompress,
    "numcodecs.lz4": lz4.decompress,
    "numcodecs.lzma": lzma.decompress,
    "numcodecs.zlib": zlib.decompress,
}


class Chain:
    """
    Decodes chunks of one shape; all codecs of zarr's specification but nested sharding.

    Parameters
    ----------
    codecs : sequence of mapping
        As in the metadata of an array.
    shape : tuple of int
        Shape of a chunk.
    dtype : dtype
        Type of the elements, object for strings.

    Raises
    ------
    ValueError
        If there are others.
    """

    def __init__(
        self, codecs: Sequence[Mapping[str, Any]], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        names = [str(codec["name"]) for codec in codecs]
        options = [codec.get("configuration", {}) for codec in codecs]
        as_bytes = "vlen-utf8" if dtype.hasobject else "bytes"
        n = names.index(as_bytes) if as_bytes in names else len(names)
        self.packing = names[n + 1 :]
        if n == len(names) or {*names[:n]} - {"transpose"} or {*self.packing} - {*_UNPACK}:
            msg = f"codecs are {names}, and those read are transpose, {as_bytes}, {', '.join(_UNPACK)}"
            raise ValueError(msg)
        self.axes = tuple(range(len(shape)))
        for option in options[:n]:
            self.axes = tuple(self.axes[k] for k in option["order"])
        self.shape = tuple(shape[k] for k in self.axes)
        self.back = tuple(int(k) for k in np.argsort(self.axes))
        self.dtype = dtype.newbyteorder(">" if options[n].get("endian") == "big" else "<")

    def decode(self, raw: bytes) -> npt.NDArray[Any]:
        """
        Decode one chunk.

        Parameters
        ----------
        raw : bytes
            As stored.

        Returns
        -------
        ndarray
            Perhaps in another byte order, and not contiguous.

        Raises
        ------
        Exception
            Of any type, if the bytes are damaged.
        """
        for name in reversed(self.packing):
            raw = _UNPACK[name](raw)
        flat = VLenUTF8().decode(raw) if self.dtype.hasobject else np.frombuffer(raw, self.dtype)
        return np.asarray(flat.reshape(self.shape).transpose(self.back))

"""Starting the weighted sum: over the rows of one arena, rows anywhere, or whole state dicts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import triton

from wkernels import dtypes
from wkernels.gpu import addresses, chips, configs, elements
from wkernels.gpu.weighted_sum.kernel import mix_rows

BLOCKS_A_UNIT = 16
"""Blocks of one tensor that share an entry of the block table."""
UNROLLED_TYPES = 16
"""Models up to which each model's own type is known to the compiler, where types differ."""
TYPED_BATCH = 4
"""Models loaded together beyond that: every load is then a branch for each type."""


def launch(
    rows: Sequence[torch.Tensor],
    weights: torch.Tensor,
    outs: Sequence[torch.Tensor],
    base: torch.Tensor | None,
) -> None:
    """``outs[j] = sum_i weights[j, i] rows[i]``; with a base, of the differences to it, and added.

    Rows, outs and base ``[n]``; ``weights [n_mixes, n_models]`` in the compute type, on the device.
    One launch. Rows equally spaced in memory (an arena ``[n_models, n]``), with outs likewise, need
    no table; others take one of ``n_models + n_mixes + 1`` addresses.
    Bytes: each row and the base once, each output once.
    """
    if not rows[0].numel():
        return
    signature = _Signature.of(rows, outs, base)
    row_step, out_step = addresses.spacing(rows), addresses.spacing(outs)
    started = addresses.addresses_of([*rows, *outs, *([] if base is None else [base])])
    if row_step is None or out_step is None:
        table = np.asarray([*started, *signature.row_codes, *signature.out_codes], dtype=np.int64)
        _start_from_table(
            table, signature, weights, n_tensors=1, length=rows[0].numel(),
            alignment=addresses.alignment(started),
        )  # fmt: skip
        return
    plan = signature.plan()
    alignment = addresses.alignment([*started, row_step, out_step])
    codes = None
    if not plan.types_known:
        table = np.asarray([*signature.row_codes, *signature.out_codes], dtype=np.int64)
        codes = addresses.to_device(table, weights.device)
    with addresses.on_device_of(weights):
        mix_rows[(triton.cdiv(rows[0].numel(), plan.config.block),)](
            rows[0].data_ptr(), row_step, codes,
            0 if base is None else base.data_ptr(),
            outs[0].data_ptr(), out_step, None if codes is None else codes[len(rows) :],
            weights, len(rows), len(outs), rows[0].numel(), None, None, None,
            **plan.constants(), TABLE=False, ALIGNED=alignment, BLOCKS_A_UNIT=0,
        )  # fmt: skip


def launch_tensors(
    models: Sequence[Sequence[torch.Tensor]],
    weights: torch.Tensor,
    outs: Sequence[Sequence[torch.Tensor]],
    base: Sequence[torch.Tensor] | None,
) -> None:
    """:func:`launch` for tensor ``t`` of every model, for all ``t``: one launch a dtype signature.

    Tensors are contiguous, of any shape, also empty. A table holds the address of each tensor of
    each party and, for each run of 16 blocks, the tensor that it belongs to: 8 bytes to at least
    32 KiB of a row. Loads are 16 bytes wide; tensors that do not start at a multiple of 16 bytes,
    in whichever party, go in a launch of their own with narrower ones.
    """
    parties = [*models, *outs, *([] if base is None else [base])]
    groups = defaultdict(list)
    for t, tensor in enumerate(models[0]):
        if tensor.numel():
            tensors = [party[t] for party in parties]
            alignment = addresses.alignment(addresses.addresses_of(tensors))
            groups[addresses.codes_of(tensors), alignment].append(t)
    for (_, alignment), members in groups.items():
        first = [party[members[0]] for party in parties]
        signature = _Signature.of(
            first[: len(models)],
            first[len(models) : len(models) + len(outs)],
            None if base is None else first[-1],
        )
        started = np.asarray(
            [[party[t].data_ptr() for t in members] for party in parties], dtype=np.int64
        )
        lengths = np.asarray([models[0][t].numel() for t in members], dtype=np.int64)
        block = signature.plan().config.block
        n_units = -(-lengths // (block * BLOCKS_A_UNIT))
        table = np.concatenate([
            started.ravel(), signature.row_codes, signature.out_codes,
            lengths, np.cumsum(n_units) - n_units, np.repeat(np.arange(len(members)), n_units),
        ]).astype(np.int64)  # fmt: skip
        _start_from_table(
            table, signature, weights.to(first[0].device), n_tensors=len(members),
            n_units=int(n_units.sum()), alignment=alignment,
        )  # fmt: skip


def _start_from_table(
    table: np.ndarray,
    signature: _Signature,
    weights: torch.Tensor,
    *,
    n_tensors: int,
    alignment: int,
    length: int = 0,
    n_units: int = 0,
) -> None:
    """``table``: addresses [parties, n_tensors]; codes of rows and outs; with several tensors their
    lengths, first units, and each unit's tensor. Parties are the rows, the outs and the base.
    """
    plan = signature.plan()
    n_models, n_mixes = len(signature.row_codes), len(signature.out_codes)
    on_device = addresses.to_device(table, weights.device)
    sizes = [
        n_models * n_tensors, n_mixes * n_tensors, signature.has_base * n_tensors,
        n_models, n_mixes, n_tensors, n_tensors, n_units,
    ]  # fmt: skip
    starts = np.cumsum([0, *sizes])
    rows, outs, base, row_codes, out_codes, lengths, first_units, units = (
        on_device[start:] for start in starts[:-1]
    )
    several = n_units > 0
    n_blocks = n_units * BLOCKS_A_UNIT if several else triton.cdiv(length, plan.config.block)
    with addresses.on_device_of(weights):
        mix_rows[(n_blocks,)](
            rows, n_tensors, row_codes, base if signature.has_base else rows, outs, n_tensors,
            out_codes, weights.to(plan.compute).contiguous(), n_models, n_mixes, length,
            units if several else None, first_units if several else None,
            lengths if several else None,
            **plan.constants(), TABLE=True, ALIGNED=alignment,
            BLOCKS_A_UNIT=BLOCKS_A_UNIT if several else 0,
        )  # fmt: skip


@dataclass(frozen=True)
class _Signature:
    """The types of all parties: with the chip, all that the choice of a kernel depends on."""

    row_codes: tuple[int, ...]
    out_codes: tuple[int, ...]
    base_code: int

    @staticmethod
    def of(rows, outs, base) -> _Signature:
        code = elements.NONE.value if base is None else addresses.codes_of([base])[0]
        return _Signature(addresses.codes_of(rows), addresses.codes_of(outs), code)

    @property
    def has_base(self) -> bool:
        return self.base_code != elements.NONE.value

    def plan(self) -> _Plan:
        names = list(dtypes.FLOATS)
        inputs = {*self.row_codes, *([self.base_code] if self.has_base else [])}
        compute = dtypes.compute_type(*(names[code] for code in {*inputs, *self.out_codes}))
        chip = chips.current()
        config = configs.weighted_sum(
            chip.family,
            itemsize=min(dtypes.FLOATS[names[code]] for code in inputs),
            compute_size=dtypes.FLOATS[compute],
            n_models=len(self.row_codes) + self.has_base,
            n_mixes=len(self.out_codes),
            lanes=chip.lanes,
        )
        return _Plan(self, config, compute)


@dataclass(frozen=True)
class _Plan:
    signature: _Signature
    config: configs.WeightedSum
    compute_name: str

    @property
    def compute(self) -> torch.dtype:
        return getattr(torch, self.compute_name)

    @property
    def kept(self) -> bool:
        """All inputs of a block stay in registers; the compiler knows each model's type."""
        same = len(set(self.signature.row_codes)) == 1
        few = len(self.signature.row_codes) <= UNROLLED_TYPES
        return bool(self.config.unrolled) and (same or few)

    @property
    def types_known(self) -> bool:
        same = len(set(self.signature.row_codes)) == 1
        return (self.kept or same) and len(set(self.signature.out_codes)) == 1

    def constants(self) -> dict:
        """The kernel's compile-time arguments, all but how it finds the rows."""
        row_codes, out_codes = self.signature.row_codes, self.signature.out_codes
        same = len(set(row_codes)) == 1
        unknown = elements.NONE.value
        return {
            "N_MODELS": len(row_codes) if self.kept else 0,
            "ONE_MIX": len(out_codes) == 1,
            "BATCH": self.config.batch or TYPED_BATCH if same else TYPED_BATCH,
            "GROUP": self.config.group,
            "ROW_CODES": row_codes if self.kept else row_codes[:1] if same else (unknown,),
            "BASE_CODE": self.signature.base_code,
            "OUT_CODE": out_codes[0] if len(set(out_codes)) == 1 else unknown,
            "COMPUTE": elements.FLOAT_TYPES[self.compute_name],
            "BLOCK": self.config.block,
            "num_warps": self.config.num_warps,
            # the sums are written with tl.fma; nothing else may be fused
            "enable_fp_fusion": False,
        }

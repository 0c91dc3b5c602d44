"""A small model of every kind of step, as a bundle: the tests break it in all ways."""

from __future__ import annotations

import dataclasses
import hashlib
import struct
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from cloister.boards import Suite
from cloister.bundle.file import write_bundle
from cloister.bundle.manifest import Manifest, Part, SliceEntry, Step, TensorInfo
from cloister.compile import ir
from cloister.compile.packing import pack_units, packed_taps
from cloister.compile.program import Program, Stage, build_inside, build_outside, constants
from cloister.planning.plan import LayerPlan, Plan

INPUT_SHAPE = (3, 6, 6)
N_CLASSES = 5
LAYERS_INSIDE = ("hidden", "head")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sample:
    """What goes into a bundle."""

    graph: ir.Graph
    manifest: Manifest
    program: Program | None
    parts: list[bytes]

    def write(self, path: Path, recipients: list[bytes], *, force: bool = False) -> Path:
        write_bundle(
            path,
            manifest=self.manifest,
            program=self.program.data if self.program else None,
            slices=[s.data for s in self.program.slices] if self.program else [],
            outside=self.parts,
            recipients=recipients if self.program else [],
            force=force,
        )
        return path

    @property
    def inside_weights(self) -> list[bytes]:
        """The weights of the inside layers: as the model has them, and as they are in the program's slices."""
        ops = [op for op in self.graph.ops if op.layer in LAYERS_INSIDE]
        return [op.weight.tobytes() for op in ops] + [packed_weights(op) for op in ops]


def packed_weights(op: ir.Conv) -> bytes:
    """The weights of all units, packed, without what follows them in a slice."""
    data = pack_units(op, 0, len(op.weight))
    return data[: len(data) // (12 + packed_taps(op)) * packed_taps(op)]


def new_device() -> bytes:
    """The public key of a device that nobody has."""
    return X25519PrivateKey.generate().public_key().public_bytes_raw()


def with_lanes(program: Program, lanes: int) -> Program:
    """The same program, run for so many images side by side, without its budget."""
    header = list(struct.unpack_from("<16I", program.data))
    inside_bytes = program.inside_bytes + (lanes - header[12]) * -(-header[3] // 64) * 64
    header[11:13] = 0, lanes
    data = struct.pack("<16I", *header) + program.data[64:]
    return dataclasses.replace(program, data=data, inside_bytes=inside_bytes, lanes=lanes)


def with_places(program: Program, places: int) -> Program:
    """The same program, its slot as large as so many of the largest slice that streams, without its budget."""
    header = list(struct.unpack_from("<16I", program.data))
    largest = max(len(piece.data) for piece in program.slices if not piece.resident)
    slot_bytes = places * -(-largest // 64) * 64
    inside_bytes = program.inside_bytes + slot_bytes - -(-header[10] // 64) * 64
    header[10:12] = slot_bytes, 0
    data = struct.pack("<16I", *header) + program.data[64:]
    return dataclasses.replace(program, data=data, inside_bytes=inside_bytes)


def make_sample(
    seed: int = 0,
    *,
    budget_bytes: int | None = None,
    inside: bool = True,
    lanes: int | None = None,
    places: int | None = None,
    suite: Suite = "AES-256-GCM",
) -> Sample:
    """x → int8 → `stem` (outside) → `hidden` → mean → `head` (inside)."""
    graph = make_graph(seed)
    outer = Stage(ops=graph.ops[:2], inputs=("x",), outputs=("stem",))
    inner = Stage(ops=graph.ops[2:], inputs=("stem",), outputs=("scores",))
    if inside:
        program = build_inside(graph, [inner], budget_bytes=budget_bytes, slicing="auto")
        if lanes is not None:
            program, budget_bytes = with_lanes(program, lanes), None
        if places is not None:
            program, budget_bytes = with_places(program, places), None
        outside = build_outside(graph, [outer])
    else:
        program, outside = None, build_outside(graph, [outer, inner])
    parts = [outside.data, constants(outside)]
    steps = (
        Step(world="outside", index=0, inputs=outer.inputs, outputs=outer.outputs, layers=("stem",)),
        Step(
            world="inside" if inside else "outside",
            index=0 if inside else 1,
            inputs=inner.inputs,
            outputs=inner.outputs,
            layers=LAYERS_INSIDE,
        ),
    )
    named = [("program", parts[0]), ("constants", parts[1])]
    manifest = make_manifest(graph, steps, program, named, budget_bytes, suite)
    return Sample(graph=graph, manifest=manifest, program=program, parts=parts)


def make_manifest(graph, steps, program, parts, budget_bytes=None, suite: Suite = "AES-256-GCM") -> Manifest:
    names = dict.fromkeys(name for step in steps for name in (*step.inputs, *step.outputs))
    slices = program.slices if program else ()
    return Manifest(
        cloister="0.1.0",
        model="sample",
        suite=suite,
        input=graph.input,
        output=graph.output,
        tensors=tuple(TensorInfo(**dataclasses.asdict(graph.tensors[name])) for name in names),
        steps=steps,
        plan=Plan(
            inside="hidden,head" if program else "none",
            slicing="auto",
            bits=8,
            budget_bytes=budget_bytes,
            inside_bytes=program.inside_bytes if program else 0,
            lanes=program.lanes if program else 1,
            smallest_budget_bytes=0,
            seed=0,
            layers=tuple(plan_layer(layer, slices) for layer in graph.layers()),
        ),
        parts=describe_parts(parts),
        slices=tuple(SliceEntry(s.layer, s.first_unit, s.n_units, len(s.data), s.resident) for s in slices),
    )


def plan_layer(layer, slices) -> LayerPlan:
    own = [s for s in slices if s.layer == layer]
    return LayerPlan(
        name=layer,
        op="conv",
        inside=bool(own),
        n_slices=len(own),
        weight_bytes=sum(len(s.data) for s in own),
        resident_bytes=sum(len(s.data) for s in own if s.resident),
        reason="",
    )


def describe_parts(parts) -> tuple[Part, ...]:
    table, offset = [], 0
    for kind, data in parts:
        table.append(Part(kind=kind, offset=offset, n_bytes=len(data), sha256=hashlib.sha256(data).hexdigest()))
        offset += len(data)
    return tuple(table)


def make_graph(seed: int) -> ir.Graph:
    rng = np.random.default_rng(seed)
    n_pixels = 36
    tensors = [
        ir.Tensor(name="x", dtype="float32", shape=INPUT_SHAPE),
        ir.Tensor(name="x_q", dtype="int8", shape=INPUT_SHAPE, scale=0.05, zero_point=3),
        ir.Tensor(name="stem", dtype="int8", shape=(8, 6, 6), scale=0.05, zero_point=-5),
        ir.Tensor(name="hidden", dtype="int8", shape=(32, 6, 6), scale=0.05),
        ir.Tensor(name="mean", dtype="int8", shape=(32, 1, 1), scale=0.05),
        ir.Tensor(name="flat", dtype="int8", shape=(32,), scale=0.05),
        ir.Tensor(name="scores", dtype="float32", shape=(N_CLASSES,)),
    ]
    size = 3 * n_pixels
    copy = {"outer": 1, "inner": size, "out_stride": size, "out_offset": 0}
    ops = (
        ir.Copy(inputs=("x",), output="x_q", multiplier=20.0, clamp=(-128, 127), **copy),
        conv(rng, "stem", "x_q", "stem", (8, 3, 3, 3)),
        conv(rng, "hidden", "stem", "hidden", (32, 3, 3, 8)),
        ir.AdaptiveAvgPool(inputs=("hidden",), output="mean", multiplier=1.0, clamp=(-128, 127)),
        ir.Alias(inputs=("mean",), output="flat"),
        conv(rng, "head", "flat", "scores", (N_CLASSES, 1, 1, 32), clamp=(-np.inf, np.inf)),
    )
    return ir.Graph(tensors={t.name: t for t in tensors}, ops=ops, input="x", output="scores")


def conv(rng, layer, source, output, shape, clamp=(-128, 127)) -> ir.Conv:
    pad = shape[1] // 2
    return ir.Conv(
        inputs=(source,),
        output=output,
        layer=layer,
        weight=rng.integers(-127, 128, shape, dtype=np.int8),
        bias=rng.integers(-2000, 2000, shape[0], dtype=np.int32),
        multiplier=rng.uniform(0.0005, 0.002, shape[0]).astype(np.float32),
        stride=(1, 1),
        padding=(pad, pad),
        dilation=(1, 1),
        groups=1,
        clamp=clamp,
    )


def images(n: int, seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, (n, *INPUT_SHAPE)).astype(np.float32)


# --- Attacks on the file -------------------------------------------------------------------------------------------

_HEADER = struct.Struct("<8sII16sQQQQ")


def sections(data: bytes) -> dict[str, tuple[int, int]]:
    """(start, end) of every section, by the format's page and not by the reader."""
    _, _, n_recipients, _, *lengths = _HEADER.unpack(data[:64])
    lengths.insert(1, 112 * n_recipients)
    names = ("manifest", "recipients", "program", "slices", "outside")
    result, at = {"header": (0, 64)}, 64
    for name, length in zip(names, lengths, strict=True):
        result[name] = (at, at + length)
        at += length
    result["digest"] = (at, len(data))
    return result


def with_digest(data: bytes | bytearray) -> bytes:
    """The file with its digest made right again, as anybody can."""
    body = bytes(data[:-32])
    return body + hashlib.sha256(body).digest()


def with_sections(data: bytes, **changed: bytes) -> bytes:
    """The file with other sections; lengths and digest are made to fit."""
    found = {name: data[start:end] for name, (start, end) in sections(data).items()} | changed
    names = ("manifest", "program", "slices", "outside")
    magic, version, _, bundle_id, *_ = _HEADER.unpack(found["header"])
    n_recipients = len(found["recipients"]) // 112
    header = _HEADER.pack(magic, version, n_recipients, bundle_id, *(len(found[name]) for name in names))
    order = ("manifest", "recipients", "program", "slices", "outside")
    return with_digest(header + b"".join(found[name] for name in order) + bytes(32))

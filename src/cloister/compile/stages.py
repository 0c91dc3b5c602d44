"""Which operation runs where, and in which order: a graph cut into stages."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal

from cloister.compile import ir
from cloister.compile.program import Stage

__all__ = ["World", "WorldStage", "refuse_foreign", "split"]

World = Literal["inside", "outside", "torch"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class WorldStage:
    """A maximal run of operations in one world."""

    world: World
    stage: Stage

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of its layers with parameters."""
        return tuple(dict.fromkeys(op.layer for op in self.stage.ops if op.layer))


def split(graph: ir.Graph, inside: Collection[str]) -> list[WorldStage]:
    """Cut a graph into stages.

    A layer is inside if it is named. An operation without parameters is inside if any of its inputs was made inside:
    so what leaves is never a partial result, and pooling makes it smaller first. `Foreign` operations run in torch.

    Args:
        graph: the whole model.
        inside: names of the layers that go inside.

    Returns:
        The stages in the order of running; there are as few changes of world as a greedy order finds.
    """
    worlds = _worlds(graph, inside)
    runs = _schedule(graph, worlds)
    made_in = {op.output: number for number, (_, ops) in enumerate(runs) for op in ops}
    return [
        WorldStage(world=world, stage=_stage(graph, ops, number, made_in, runs))
        for number, (world, ops) in enumerate(runs)
    ]


def refuse_foreign(graph: ir.Graph, inside: Collection[str]) -> list[tuple[str, str, str]]:
    """Operations that would have to be inside and cannot: (layer or module, operator, reason)."""
    worlds = _worlds(graph, inside, foreign_stays_outside=False)
    return [
        (op.layer or op.module or "(model)", op.operator, op.reason)
        for op in graph.ops
        if isinstance(op, ir.Foreign) and worlds[op.output] == "inside"
    ]


def _worlds(graph: ir.Graph, inside: Collection[str], *, foreign_stays_outside: bool = True) -> dict[str, World]:
    """The world of each operation, by the name of its output (parts of a concatenation share theirs)."""
    worlds: dict[str, World] = {}
    for op in graph.ops:
        here: World = "outside"
        if isinstance(op, ir.Foreign) and foreign_stays_outside:
            here = "torch"
        elif op.layer in inside if op.layer else any(worlds.get(name) == "inside" for name in op.inputs):
            here = "inside"
        if worlds.get(op.output) != "inside":
            worlds[op.output] = here
    return worlds


def _schedule(graph: ir.Graph, worlds: dict[str, World]) -> list[tuple[World, list[ir.Op]]]:
    """Stay in a world as long as anything there can run; operations with one output stay together."""
    waiting: dict[str, list[ir.Op]] = {}
    for op in graph.ops:
        waiting.setdefault(op.output, []).append(op)
    done = {graph.input}
    runs: list[tuple[World, list[ir.Op]]] = []
    while waiting:
        ready = [name for name, ops in waiting.items() if all(i in done for op in ops for i in op.inputs)]
        here = [name for name in ready if runs and worlds[name] == runs[-1][0]]
        if not here:
            runs.append((worlds[ready[0]], []))
            here = [ready[0]]
        for name in here:
            runs[-1][1].extend(waiting.pop(name))
            done.add(name)
    return runs


def _stage(
    graph: ir.Graph,
    ops: Sequence[ir.Op],
    number: int,
    made_in: dict[str, int],
    runs: Sequence[tuple[World, list[ir.Op]]],
) -> Stage:
    needed = dict.fromkeys(name for op in ops for name in op.inputs if made_in.get(name) != number)
    later = {name for _, others in runs[number + 1 :] for op in others for name in op.inputs} | {graph.output}
    given = dict.fromkeys(op.output for op in ops if op.output in later)
    return Stage(ops=tuple(ops), inputs=tuple(needed), outputs=tuple(given))

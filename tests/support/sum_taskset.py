"""A taskset of verifiers for tests: sums, with an adding machine as a tool."""

from __future__ import annotations

from collections.abc import Iterator

import verifiers.v1 as vf


class Sum(vf.TaskData):
    """The sum that is asked for."""

    expected: str


class AddingMachine(vf.Toolset[vf.ToolsetConfig]):
    """A tool that adds."""

    TOOL_PREFIX = "adder"

    @vf.tool
    async def add(self, first: int, second: int) -> str:
        """The sum of two numbers."""
        return str(first + second)


class SumTask(vf.Task[Sum]):
    """Rewards the right sum; the task without an expected sum fails."""

    @classmethod
    def toolsets(cls, config: vf.TaskConfig) -> list[vf.Toolset]:
        return [AddingMachine(vf.ToolsetConfig())]

    @vf.reward
    async def correct(self, task: Sum, trace: vf.Trace) -> float:
        if not task.expected:
            raise RuntimeError("nobody knows this sum")
        return float(trace.last_reply.endswith(task.expected))


class Sums(vf.Taskset[SumTask]):
    """Three tasks."""

    def load(self) -> Iterator[SumTask]:
        for number, expected in enumerate(["1", "2", ""]):
            data = Sum(prompt=f"{number}+1?", expected=expected, system_prompt="Be short.")
            yield SumTask(data, self.config.task)


__all__ = ["Sums"]

if __name__ == "__main__":
    AddingMachine.run()  # verifiers starts the tool's server in this way

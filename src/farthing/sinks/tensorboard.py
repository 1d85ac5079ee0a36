"""A TensorBoard mirror of a run (pip install 'farthing[track]'; tensorboard --logdir RUNS)."""

from __future__ import annotations

import time
from pathlib import Path

from farthing.errors import need
from farthing.events import Event, Finished, Resumed, Sampled, Step, Stopped
from farthing.sinks.mirror import scalars

_WHY = "the TensorBoard mirror"


class TensorBoard:
    """Writes a run's numbers and samples as TensorBoard event files.

    Args:
        folder: where the event files go; each sitting of a run adds one.

    Raises:
        UserError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        need("tensorboard", extra="track", why=_WHY)
        files = need("tensorboard.summary.writer.event_file_writer", extra="track", why=_WHY)
        self._events = need("tensorboard.compat.proto.event_pb2", extra="track", why=_WHY)
        self._summaries = need("tensorboard.compat.proto.summary_pb2", extra="track", why=_WHY)
        self._tensors = need("tensorboard.compat.proto.tensor_pb2", extra="track", why=_WHY)
        self._types = need("tensorboard.compat.proto.types_pb2", extra="track", why=_WHY)
        self._step = 0
        self._writer = files.EventFileWriter(str(folder))

    def __call__(self, event: Event) -> None:
        """Write an event; a run's end closes the file."""
        match event:
            case Resumed():
                self._step = event.step + 1
                # TensorBoard then forgets the steps from here on, which are taken again.
                start = self._events.SessionLog(status=self._events.SessionLog.START)
                self._add(session_log=start)
            case Step() if event.step:
                self._step = event.step
            case Sampled():
                self._text("sample", event.prompt + event.text)
        values = [self._summaries.Summary.Value(tag=tag, simple_value=value) for tag, value in scalars(event).items()]
        if values:
            self._add(summary=self._summaries.Summary(value=values))
        if isinstance(event, Finished | Stopped):
            self.close()

    def close(self) -> None:
        """Flush and close the file."""
        self._writer.close()

    def _add(self, **content: object) -> None:
        self._writer.add_event(self._events.Event(wall_time=time.time(), step=self._step, **content))

    def _text(self, tag: str, text: str) -> None:
        plugin = self._summaries.SummaryMetadata.PluginData(plugin_name="text")
        # Four spaces: TensorBoard reads Markdown, and a sample must be shown as it is.
        block = "\n".join(f"    {line}" for line in text.splitlines())
        tensor = self._tensors.TensorProto(dtype=self._types.DT_STRING, string_val=[block.encode()])
        tensor.tensor_shape.dim.add(size=1)
        metadata = self._summaries.SummaryMetadata(plugin_data=plugin)
        value = self._summaries.Summary.Value(tag=tag, tensor=tensor, metadata=metadata)
        self._add(summary=self._summaries.Summary(value=[value]))

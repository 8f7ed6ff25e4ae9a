"""How often something is done."""

from __future__ import annotations

from pydantic import Field

from areal_api.section import Section


class Frequency(Section):
    """How often something is done: after so many epochs, steps or seconds, whichever comes first; all null is never."""

    freq_epochs: int | None = Field(
        None, ge=1, description="Every so many epochs.", json_schema_extra={"unit": "epochs"}
    )
    freq_steps: int | None = Field(None, ge=1, description="Every so many steps.", json_schema_extra={"unit": "steps"})
    freq_secs: float | None = Field(None, gt=0, description="Every so many seconds.", json_schema_extra={"unit": "s"})

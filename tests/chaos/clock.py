"""A wall clock that can be set, for single processes: `clock.c` in front of the C library, steered by a file.

Ready-made libraries for this also bend sleeps and timeouts, which a machine's clock does not do. Needs a C compiler;
where there is none there are no clock jumps, and the report says so."""

import shutil
import struct
import subprocess
from dataclasses import dataclass
from pathlib import Path

_SOURCE = Path(__file__).with_name("clock.c")


@dataclass(frozen=True)
class SetClock:
    """The clock of the processes that are started with `variables`."""

    library: Path
    offset: Path

    @classmethod
    def build(cls, folder: Path) -> "SetClock | None":
        """A clock whose files lie in `folder`, or None where there is no C compiler."""
        compiler = shutil.which("cc")
        if compiler is None:
            return None
        clock = cls(folder / "clock.so", folder / "clock.offset")
        subprocess.run([compiler, "-shared", "-fPIC", "-O2", "-o", clock.library, _SOURCE], check=True)
        clock.set(0)
        return clock

    @property
    def variables(self) -> dict[str, str]:
        return {"LD_PRELOAD": str(self.library), "CHAOS_CLOCK": str(self.offset)}

    def set(self, offset_s: int) -> None:
        """Move the clock to so many seconds from the true time."""
        # Written in place: the processes have the file mapped.
        with self.offset.open("r+b" if self.offset.exists() else "wb") as file:
            file.write(struct.pack("=q", offset_s))

"""Runs a user's script as if Python had been started with it.

In: a path or a module's name, and arguments. Out: what the script does, and its exit code. Must not
know: why it is run.
"""

from __future__ import annotations

import runpy
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from teraio.errors import ConfigurationError, TeraioError

# As of a shell, for a program that Ctrl-C ended.
INTERRUPTED = 130
_OWN_FILES = (__file__, runpy.__file__, "<frozen runpy>", "<frozen importlib.util>")


@dataclass(frozen=True, slots=True)
class Script:
    """A script, or with ``module`` the name of a module, and its arguments."""

    name: str
    arguments: tuple[str, ...]
    module: bool

    def __post_init__(self) -> None:
        if not self.module and not Path(self.name).is_file():
            raise ConfigurationError(
                f"there is no script {self.name}; pass the path of one, or -m and a module's name."
            )

    @property
    def stem(self) -> str:
        """A name for files that belong to the script."""
        return self.name.rpartition(".")[2] if self.module else Path(self.name).stem

    @property
    def title(self) -> str:
        """The script as the user named it."""
        return f"-m {self.name}" if self.module else self.name

    def run(self) -> int:
        """Runs it in this process; returns its exit code. Its traceback, if any, goes to stderr.

        Errors of teraio pass: they are about the settings, not the script. Raises
        ConfigurationError for a module that is not there.
        """
        sys.argv[:] = [self.name, *self.arguments]
        try:
            if self.module:
                sys.path.insert(0, str(Path.cwd()))
                runpy.run_module(self.name, run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, str(Path(self.name).resolve().parent))
                runpy.run_path(self.name, run_name="__main__")
        except SystemExit as error:
            return _exit_code(error)
        except KeyboardInterrupt:
            return INTERRUPTED
        except TeraioError:
            raise
        except Exception as error:
            frames = _from_script(error.__traceback__)
            if frames is None and isinstance(error, ImportError):
                raise ConfigurationError(f"{self.title} can't be run: {error}.") from None
            traceback.print_exception(error.with_traceback(frames))
            return 1
        return 0


def _exit_code(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    sys.stderr.write(f"{error.code}\n")
    return 1


def _from_script(frames: TracebackType | None) -> TracebackType | None:
    """The traceback without the frames that started the script; None if it never began."""
    while frames is not None and frames.tb_frame.f_code.co_filename in _OWN_FILES:
        frames = frames.tb_next
    return frames

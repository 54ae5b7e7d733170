"""Where the iterations of a training loop end, and a word to users where none does.

In: steps of optimizers, calls of models, blocks that the user marks. Out: ``end()`` after each
iteration. Must not know: plans, the native core.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager

from torch.optim import Optimizer

log = logging.getLogger("teraio")

# So many steps of unknown optimizers, and nothing else, are worth a word.
_STRANGE_STEPS = 3
# And so many calls, or steps of one optimizer, in one iteration: accumulation hardly makes them.
_MANY_CALLS = 100
_MANY_STEPS = 10
# Steps in a row outside of all marked blocks after which the user is known to mark no more.
_UNMARKED_STEPS = 2
# Steps of another optimizer after which the one that ends iterations is known to rest.
_RESTING_STEPS = 10


class Iterations:
    """Ends an iteration with the step of the optimizer that came up last, or as the user says."""

    def __init__(
        self,
        begin: Callable[[], None],
        end: Callable[[], None],
        takes_part: Callable[[Optimizer], bool],
    ) -> None:
        """``begin()`` and ``end()`` are called around each block that the user marks, and ``end()``
        after steps that end an iteration. ``takes_part(optimizer)`` tells whether one that has come
        up still does."""
        self._begin, self._end, self._takes_part = begin, end, takes_part
        self._closing: weakref.ref[Optimizer] | None = None
        # Steps of others since that one's last, and those that rested too long to end iterations.
        self._others: weakref.WeakKeyDictionary[Optimizer, int] = weakref.WeakKeyDictionary()
        self._resting: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self._patience = _RESTING_STEPS
        self._marked = False
        self._inside = _Depth()
        self._ended = False
        self._calls = self._steps = self._unmarked_steps = self._strange_steps = 0

    def mark(self) -> AbstractContextManager[None]:
        """One iteration; steps of optimizers inside don't end it."""
        return _Marked(self)

    def comes_up(self, optimizer: Optimizer) -> bool:
        """Iterations end with this one from now on; True if they ended with another before."""
        before = self._closing() if self._closing is not None else None
        self._closing = weakref.ref(optimizer)
        self._others.clear()
        self._resting.discard(optimizer)
        self._steps = 0  # many optimizers may make one iteration, such as one for each parameter
        return before is not None and before is not optimizer

    def takes_over(self, optimizer: Optimizer) -> bool:
        """Has this one, which makes its step, come up again if no iteration would end; True then.

        The one that ends them is gone, or rests. When it steps again it takes over at once. If the
        two go on like this, as those of a generator and its critic may, it is waited for longer.
        """
        closing = self._closing() if self._closing is not None else None
        if closing is optimizer:
            self._others.clear()
            return False
        if self._marked:
            return False
        if closing is not None and self._takes_part(closing) and optimizer not in self._resting:
            self._others[optimizer] = self._others.get(optimizer, 0) + 1
            if self._others[optimizer] < self._patience:
                return False
            self._patience *= 2
            self._resting.add(closing)
        self.comes_up(optimizer)
        return True

    def stepped(self, optimizer: Optimizer) -> None:
        """An optimizer of the models has made its step."""
        if self._closing is None or self._closing() is not optimizer:
            return
        if self._inside.marked:
            self._steps += 1
            if self._steps == _MANY_STEPS:
                log.warning(
                    "%d optimizer steps in one `with teraio.iteration(model):`. Put it around each "
                    "iteration, inside of the loop, or leave it out: steps end iterations too. "
                    "Until one ends there is no plan.",
                    self._steps,
                )
            return
        if self._marked:
            self._unmarked_steps += 1
            if self._unmarked_steps < _UNMARKED_STEPS:
                return
            self._marked = False
        self._ends()

    def model_called(self) -> None:
        """A model was called, in an iteration that is profiled."""
        self._calls += 1
        if self._calls == _MANY_CALLS and not self._inside.marked:
            log.warning(
                "%d calls of the model and no end of an iteration, so teraio makes no plan yet. "
                "Steps of torch.optim's optimizers end iterations; in a loop without any, wrap "
                "each iteration in `with teraio.iteration(model):`.",
                self._calls,
            )

    def stranger_stepped(self) -> None:
        """An optimizer has made its step that has no parameters of the models."""
        self._strange_steps += 1
        if self._strange_steps == _STRANGE_STEPS and not (self._ended or self._marked):
            log.warning(
                "%d optimizer steps so far, none with parameters of an offloaded model, so teraio "
                "does not see where an iteration ends and makes no plan. Offload the module that "
                "has those parameters as well, or wrap each iteration in "
                "`with teraio.iteration(model):`.",
                self._strange_steps,
            )

    def _ends(self) -> None:
        self._ended = True
        self._calls = self._steps = self._unmarked_steps = 0
        self._end()

    def enter(self) -> None:
        """A marked block begins."""
        self._marked = True
        self._inside.marked += 1
        if self._inside.marked == 1:
            self._begin()

    def leave(self, whole: bool) -> None:
        """A marked block is over; the iteration too if the block is in no other and ran as a
        ``whole``."""
        self._inside.marked -= 1
        if whole and not self._inside.marked:
            self._ends()


class _Depth(threading.local):
    """How many marked blocks are open in this thread."""

    marked = 0


class _Marked(AbstractContextManager[None]):
    def __init__(self, iterations: Iterations) -> None:
        self._iterations = iterations

    def __enter__(self) -> None:
        self._iterations.enter()

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        self._iterations.leave(whole=error is None)
